"""Records: the small JSON next to each output that says it is done, from what, and with which settings."""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    FiniteFloat,
    JsonValue,
    NonNegativeInt,
    ValidationError,
)

from shards.files.atomic import sha256_path, write_bytes_atomic
from shards.files.untrusted import read_json_file, read_regular

Json = JsonValue
_SHOWN_CHANGES = 4
_SHOWN_CHARACTERS = 60
_DETAIL_CHARACTERS = 500
_ABSENT = "(absent)"
_SEAL = re.compile(rb'\{\n "checksum": "([0-9a-f]{64})",\n')
_OPEN = b"{\n"


def canonical_json(value: object) -> str:
    """Return the canonical text of a JSON value: sorted keys, no blanks, tuples as lists, 1.0 as 1.

    Raises:
        ValueError: The value holds something that is not JSON, nan or infinity.
    """
    try:
        return _dumped(_integral(json.loads(json.dumps(value, allow_nan=False))))
    except (TypeError, RecursionError) as error:
        raise ValueError(f"{value!r:.200} cannot be written as JSON: {error}; give plain numbers and text") from error


def _dumped(plain: Json | dict[str, Json]) -> str:
    return json.dumps(plain, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _integral(value: Json) -> Json:
    # A setting written as 1 and one written as 1.0 are the same setting.
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list):
        return [_integral(item) for item in value]
    if isinstance(value, dict):
        return {key: _integral(item) for key, item in value.items()}
    return value


def _plain_fingerprint(value: object) -> object:
    return json.loads(canonical_json(value)) if isinstance(value, Mapping) else value


def _relative_names(outputs: dict[str, str]) -> dict[str, str]:
    # Outputs are hashed, and in a mirror deleted: a record must not name a file outside its folder.
    for name in outputs:
        if not name or PurePosixPath(name).name != name or name == ".." or "\0" in name:
            raise ValueError(f"output {name!r} is not in the record's folder; give a relative name")
    return outputs


def _checksum(text: str) -> str:
    if len(text) != 64 or set(text) - set("0123456789abcdef"):
        raise ValueError(f"{text!r:.80} is not a SHA-256 (64 lower-case hex digits)")
    return text


Checksum = Annotated[str, AfterValidator(_checksum)]


def _short_text(value: object) -> object:
    # Details quote the user's file names and bytes, which need not be UTF-8.
    return value.encode(errors="backslashreplace").decode()[:_DETAIL_CHARACTERS] if isinstance(value, str) else value


class Drop(BaseModel):
    """A sample, class or mask that was left out, and why."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str
    reason: str
    detail: Annotated[str, BeforeValidator(_short_text)] = ""


class Record(BaseModel):
    """What one stage did to one shard. The output is done if and only if its record exists and holds.

    `round` is None in records of earlier versions. `outputs` are named relative to the record's folder, `inputs` by
    their role ("teacher", "images"). `fingerprint` holds the settings, weights and code version that change results,
    and nothing else. `seconds` is for people and enters no checksum.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    stage: str
    shard: str
    round: NonNegativeInt | None = None
    count: NonNegativeInt
    stats: dict[str, FiniteFloat] = {}
    drops: tuple[Drop, ...] = ()
    outputs: Annotated[dict[str, Checksum], AfterValidator(_relative_names)] = {}
    inputs: dict[str, Checksum] = {}
    fingerprint: Annotated[dict[str, Json], BeforeValidator(_plain_fingerprint)] = {}
    seconds: FiniteFloat = 0.0


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


def write_record(path: Path, record: Record) -> None:
    """Write a record, atomically and sealed with a checksum; the last thing a stage writes for a shard."""
    body = (json.dumps(record.model_dump(mode="json"), indent=1, sort_keys=True) + "\n").encode()
    write_bytes_atomic(path, sealed(body))


def read_record(path: Path) -> Record:
    """Read a record; one without a seal (from an earlier version) is accepted.

    Raises:
        FileNotFoundError: There is none.
        ValueError: It is damaged, or from another version of the program.
    """
    return parse_record(read_regular(path), str(path))


def parse_record(data: bytes, name: str) -> Record:
    """Return the record in the bytes of a file or object; `name` is its name in errors.

    Raises:
        ValueError: It is damaged, or from another version of the program.
    """
    try:
        return Record.model_validate_json(unsealed(data))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "JSON"
        raise ValueError(f"{name} is not a record ({where}: {first['msg']}); delete it to redo the shard") from error
    except ValueError as error:
        raise ValueError(f"{name} is not a record ({error}); delete it to redo the shard") from error


def record_or_none(path: Path) -> Record | None:
    """Read a record; None if there is none or it cannot be read."""
    try:
        return read_record(path)
    except (OSError, ValueError):
        return None


def read_json(path: Path) -> dict[str, Any] | None:
    """Read a JSON object; None if there is none or it is damaged."""
    try:
        content = read_json_file(path)
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


class RecordCounts(NamedTuple):
    """The counts of a record: samples in the output, samples left out, and working time."""

    samples: int
    dropped: int
    seconds: float


def read_counts(path: Path) -> RecordCounts | None:
    """Read only a record's counts, for listings of many; None if there is none or it is damaged."""
    try:  # without validation, which takes longer than all the rest
        content = read_json_file(path)
        return RecordCounts(int(content["count"]), len(content["drops"]), float(content["seconds"]))
    except (OSError, ValueError, TypeError, KeyError, OverflowError):
        return None


def read_drops(path: Path) -> tuple[Drop, ...]:
    """Read only what a record left out, for listings of many; empty if there is none or it is damaged."""
    try:
        return tuple(Drop(**drop) for drop in json.loads(path.read_bytes())["drops"])
    except (OSError, ValueError, TypeError, KeyError):
        return ()


def fingerprint_digest(fingerprint: Mapping[str, Json]) -> str:
    """Return the SHA-256 of a fingerprint, which has to be JSON; the order of its keys does not count."""
    return hashlib.sha256(canonical_json(dict(fingerprint)).encode()).hexdigest()


def why_stale(
    record_path: Path,
    *,
    fingerprint: Mapping[str, Json],
    inputs: Mapping[str, str],
    verify: bool = True,
    read: Callable[[Path], Record] = read_record,
    is_elsewhere: Callable[[Path], bool] = lambda output: False,
) -> str | None:
    """Return why a shard has to be done (again), or None if it is done.

    Args:
        record_path: Where its record is or would be.
        fingerprint: The current settings.
        inputs: The current checksums of the inputs.
        verify: Read the outputs and compare their checksums; False only checks that they exist.
        read: Reads a record.
        is_elsewhere: Returns whether an output that is not here is in an object store.

    Returns:
        "no record", "record unreadable: …", "gate.threshold 0.9 -> 0.8", "input teacher changed",
        "output 000003.zarr is missing" or "output 000003.zarr does not match its checksum"; None if all holds.
    """
    try:
        record = read(record_path)
    except FileNotFoundError:
        return "no record"
    except (ValueError, OSError) as error:
        return f"record unreadable: {error}"
    changes = list(_input_changes(record.inputs, inputs))
    wanted = canonical_json(dict(fingerprint))
    if _dumped(record.fingerprint) != wanted:  # most are equal, and a comparison by field takes far longer
        changes = [*_changes(record.fingerprint, json.loads(wanted)), *changes]
    if changes:
        more = f"; and {len(changes) - _SHOWN_CHANGES} more" if len(changes) > _SHOWN_CHANGES else ""
        return "; ".join(changes[:_SHOWN_CHANGES]) + more
    for name, checksum in record.outputs.items():
        output = record_path.parent / name
        if output.exists():
            trouble = _output_trouble(output, checksum) if verify else None
        else:
            trouble = None if is_elsewhere(output) else "is missing"
        if trouble:
            return f"output {name} {trouble}"
    return None


def _changes(old: Json, new: Json, field: str = "") -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            inner = f"{field}.{key}" if field else key
            if key not in old:
                yield f"{inner} {_ABSENT} -> {_shown(new[key])}"
            elif key not in new:
                yield f"{inner} {_shown(old[key])} -> {_ABSENT}"
            else:
                yield from _changes(old[key], new[key], inner)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, (left, right) in enumerate(zip(old, new, strict=True)):
            yield from _changes(left, right, f"{field}[{index}]")
    elif canonical_json(old) != canonical_json(new):
        yield f"{field} {_shown(old)} -> {_shown(new)}"


def _input_changes(old: Mapping[str, str], new: Mapping[str, str]) -> Iterator[str]:
    for name in sorted(old.keys() | new.keys()):
        if name not in old:
            yield f"input {name} is new"
        elif name not in new:
            yield f"input {name} is no longer used"
        elif old[name] != new[name]:
            yield f"input {name} changed"


def _output_trouble(path: Path, checksum: str) -> str | None:
    try:
        return None if sha256_path(path) == checksum else "does not match its checksum"
    except (OSError, ValueError) as error:
        return f"cannot be read: {error}"


def _shown(value: Json) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 1] + "…"
