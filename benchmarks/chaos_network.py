"""A network apart on this machine (a namespace, which takes root's rights), whose only link can be cut."""

import contextlib
import subprocess
from collections.abc import Iterator
from typing import Final, NamedTuple

_LINK: Final = ("stseg0", "stseg1")


class Network(NamedTuple):
    """Another network.

    Attributes:
        name: Its namespace.
        here: The address of this machine on the link.
        there: The address of the other side.
    """

    name: str
    here: str
    there: str

    def cut(self) -> None:
        """Cut the link; nothing on either side is told."""
        _ip("link", "set", _LINK[0], "down")


@contextlib.contextmanager
def network_apart() -> Iterator[Network]:
    """Hold a network apart.

    Raises:
        RuntimeError: It is not allowed here, or there is no `ip` command.
    """
    network = Network("stseg-chaos", "10.231.7.1", "10.231.7.2")
    try:
        _ip("netns", "add", network.name)
    except (OSError, subprocess.CalledProcessError) as error:
        raise RuntimeError(
            f"no network apart can be made here, which takes root's rights and iproute2: {error}"
        ) from error
    try:
        _ip("link", "add", _LINK[0], "type", "veth", "peer", "name", _LINK[1], "netns", network.name)
        _ip("addr", "add", f"{network.here}/24", "dev", _LINK[0])
        _ip("link", "set", _LINK[0], "up")
        _ip("-n", network.name, "addr", "add", f"{network.there}/24", "dev", _LINK[1])
        _ip("-n", network.name, "link", "set", _LINK[1], "up")
        _ip("-n", network.name, "link", "set", "lo", "up")
        yield network
    finally:
        with contextlib.suppress(subprocess.CalledProcessError):  # it did not come about
            _ip("link", "del", _LINK[0])
        _ip("netns", "del", network.name)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, timeout=30)
