"""JSON files that begin with a checksum of the rest, so that damage is noticed."""

import hashlib
import re

_SEAL = re.compile(rb'\{\n "checksum": "([0-9a-f]{64})",\n')
_OPEN = b"{\n"


def sealed(body: bytes) -> bytes:
    """Return a JSON object with its checksum as the first field.

    Args:
        body: The object as `json.dumps(…, indent=1)` writes it, with at least one field.
    """
    seal = f'{{\n "checksum": "{hashlib.sha256(body).hexdigest()}",\n'.encode()
    return seal + body.removeprefix(_OPEN)


def unsealed(data: bytes) -> bytes:
    """Return the object without its checksum; one that has none (from an earlier version) as it is.

    Raises:
        ValueError: The checksum is not that of the rest.
    """
    seal = _SEAL.match(data)
    if seal is None:  # a damaged seal stays as the field `checksum`, which readers refuse as unknown
        return data
    body = _OPEN + data[seal.end() :]
    if hashlib.sha256(body).hexdigest().encode() != seal[1]:
        raise ValueError("it does not match its own checksum")
    return body
