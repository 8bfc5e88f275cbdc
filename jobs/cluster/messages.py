"""Messages of Ray about its machines: into the run's log, not onto the terminal."""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

logger = logging.getLogger(__name__)

OnMessage = Callable[[str, str], None]

_RAYLET_ENDED: Final = "Raylet is terminated"  # Ray says next that the node is dead
_LONGEST: Final = 200


@contextmanager
def messages_to(on_message: OnMessage | None) -> Iterator[None]:
    """Pass what Ray would print about machines, such as the last 50 log lines of one that died, for the block's length.

    Args:
        on_message: Takes the message, and a sentence for the terminal, which may be empty; None: Ray prints. Called
            from a thread of Ray's.
    """
    if on_message is None:
        yield
        return
    from ray._private import worker

    # Ray has no setting for this: `log_to_driver=False` does not cover these messages, and they go to standard output,
    # among the results.
    before = worker.print_to_stdstream

    def passed(data: Mapping[str, Any], *args: Any, **kwargs: Any) -> None:
        text = "\n".join(str(line) for line in data.get("lines", ()))
        try:
            on_message(text, sentence_of(text))
        except Exception as error:  # noqa: BLE001 - the thread would end, and say so in its own words
            logger.debug("a message of Ray's could not be noted: %s", error)

    worker.print_to_stdstream = passed
    try:
        yield
    finally:
        worker.print_to_stdstream = before


def sentence_of(text: str) -> str:
    """Return the first sentence of a message; "" where the next message says the same better."""
    lines = text.strip().splitlines()
    if not lines or lines[0].startswith(_RAYLET_ENDED):
        return ""
    first = lines[0].partition(". ")[0].strip()
    return first if len(first) <= _LONGEST else f"{first[:_LONGEST]} …"
