"""What `round --verify` and `repair` make again before any stage runs: what no task of a round is there for."""

from pathlib import Path

from pipeline.run.foundation import Fault, mend_foundation
from pipeline.run.run import read_run
from pipeline.run.verify import fault_of, outputs_below
from shards.formats.layout import RunLayout, record_of
from shards.storage.mirror import discard, push_cache
from shards.storage.store import location_of


def mend_shared(root: Path) -> list[Fault]:
    """Make the vocabulary, the plans and the stored text embeddings of a run again where they are damaged.

    Call it under the run lock. Text embeddings that nothing reads any more are removed instead.

    Returns:
        What was damaged; it is whole again or gone.

    Raises:
        DataFault: There is no run, or something cannot be made again.
    """
    return [*mend_foundation(root), *_mend_text_embeddings(root)]


def _mend_text_embeddings(root: Path) -> list[Fault]:
    layout, place = RunLayout(root.absolute()), location_of(root)
    folder = layout.text_embeddings
    found = ((output, fault_of(output)) for output in sorted(set(outputs_below(folder))))
    faults = [Fault(output, reason) for output, reason in found if reason is not None]
    if faults:
        from jobs.inference.text_cache import restore_text_embeddings

        for fault in faults:
            discard(place, fault.output, record_of(fault.output))
        run = read_run(root)
        restore_text_embeddings(run.config.model.with_weights(None), run.vocabulary, folder)
        push_cache(place, folder)
    return faults
