"""Mirror: SAM's embeddings of the target's mirrored images, once for all rounds, for whoever needs them."""

from typing import Final

from jobs.run import Run
from jobs.stage import ShardTask, Stage
from jobs.stages import embed, refine, teacher


def tasks(run: Run, round: int) -> list[ShardTask]:
    """Plan the mirrored target's shards; none where neither the teacher nor SAM's decoder sees mirrored images."""
    sees = run.section(refine.Settings).refinement.prompts.mirror or teacher.embeds_mirror(run)
    if round > 0 or not sees:
        return []
    return [
        task.model_copy(update={"stage": "embed-mirror", "output": run.layout.mirror_embedding(task.shard)})
        for task in embed.dataset_tasks(run, "target", run.plan)
    ]


STAGE: Final = Stage("embed-views", tasks, embed.fingerprint, embed.load, embed.work, resources="embed")
