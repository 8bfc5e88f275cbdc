"""Makes the batch of a training's next step while this one computes."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from jobs.training.samples import TrainingSample


def batches_ahead(of_step: Callable[[int], TrainingSample], first: int, last: int) -> Iterator[TrainingSample]:
    """Give the batches of steps in order, one of them made ahead in a thread of its own.

    What a batch holds depends on its step alone, so that the order of making does not matter; what making one raises
    is raised when its turn comes.

    Args:
        of_step: Makes the batch of a step; called by one thread at a time, in order.
        first: The first step.
        last: The step after the last one.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="batches") as pool:
        ahead: Future[TrainingSample] | None = pool.submit(of_step, first) if first < last else None
        for step in range(first, last):
            assert ahead is not None
            batch = ahead.result()
            ahead = pool.submit(of_step, step + 1) if step + 1 < last else None
            yield batch
