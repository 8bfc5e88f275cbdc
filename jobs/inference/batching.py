"""Batches that shrink where memory does not suffice: the one place where a stage halves its batch."""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from jobs.stage import OutOfMemory

logger = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")


class BatchLimit:
    """How many things a call of a network is given.

    Attributes:
        size: Things at a time; halved for good when memory runs out.
    """

    def __init__(self, size: int, *, of: str, hint: str) -> None:
        """Begin with a size.

        Args:
            size: At least 1.
            of: What the things are, for messages: "images".
            hint: What to do where even one of them does not fit.

        Raises:
            ValueError: The size is below 1.
        """
        if size < 1:
            raise ValueError(f"batch size is {size}; expected at least 1")
        self.size = size
        self._of = of
        self._hint = hint

    def first(self, items: Sequence[Item], call: Callable[[Sequence[Item]], Result]) -> tuple[Sequence[Item], Result]:
        """Call with as many of the first items as fit; give these and what came of them.

        Raises:
            OutOfMemory: Not even one item fits.
        """
        while True:
            chosen = items[: self.size]
            try:
                return chosen, call(chosen)
            except (RuntimeError, MemoryError) as error:
                from models.devices import free_cached_memory, is_out_of_memory

                if not is_out_of_memory(error):
                    raise
                reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            # Out of the handler: the error's traceback would keep the tensors alive.
            if len(chosen) <= 1:
                raise OutOfMemory(f"not even one of the {self._of} fits into memory ({reason}); {self._hint}")
            self.size = len(chosen) // 2
            free_cached_memory()
            logger.warning("out of memory with %d %s at a time; going on with %d", len(chosen), self._of, self.size)

    def batches(
        self, items: Iterable[Item], call: Callable[[Sequence[Item]], Result]
    ) -> Iterator[tuple[Sequence[Item], Result]]:
        """Call with all items, batch by batch in order; items are taken as they are needed.

        Yields:
            The items of a batch, and what came of them; no items give no batch.

        Raises:
            OutOfMemory: Not even one item fits.
        """
        waiting: list[Item] = []
        for item in items:
            waiting.append(item)
            if len(waiting) >= self.size:
                done, result = self.first(waiting, call)
                waiting = waiting[len(done) :]
                yield done, result
        while waiting:
            done, result = self.first(waiting, call)
            waiting = waiting[len(done) :]
            yield done, result


@contextmanager
def oom_named(what: str, hint: str) -> Iterator[None]:
    """Turn a lack of memory within the block into one clear error.

    Raises:
        OutOfMemory: Memory did not suffice; with the hint.
    """
    from models.devices import is_out_of_memory
    from shards.files.errors import causes

    try:
        yield
    except Exception as error:
        # Ray Train quotes the worker's error as text alone.
        if not any(is_out_of_memory(cause) or "outofmemoryerror" in str(cause).lower() for cause in causes(error)):
            raise
        raise OutOfMemory(f"{what} ran out of memory ({_short(error)}); {hint}") from error


def _short(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if "memory" in line.lower()] or lines or [type(error).__name__]
    return telling[-1][:200]
