"""The workers with the real networks (random weights): the whole chain of a round, here and on Ray."""

import json
from dataclasses import replace
from pathlib import Path

from run_setup import SMALL

from jobs.commit import why_stale
from jobs.execution.settings import ExecutionConfig
from jobs.execution.worker import stage_worker
from jobs.executor import Backend, run_chain
from jobs.resources import Resources
from jobs.run import student_weights
from jobs.stage import StagePlan
from jobs.stages import embed, evaluate, refine, start, teacher, write
from pipeline.config import resolve_config
from pipeline.run.run import OpenRun, make_run
from pipeline.tasks.recipe import plans_of
from shards.files.atomic import sha256_file, sha256_path
from shards.formats.records import read_record


def made(root: Path, weights: dict[str, str], **settings: str) -> OpenRun:
    """Make a run with random weights, and its start."""
    few = {**SMALL, **weights, "data.target.count": "4", "data.source": "null", "train.source_per_step": "0"}
    run = make_run(root, resolve_config({}, [f"{k}={v}" for k, v in {**few, **settings}.items()], where="--set"))
    (plan, _) = plans_of(start.STAGE, run, start.tasks(run, 0))
    plan.worker().run(plan.tasks[0])
    return run


def chain(run: OpenRun) -> list[StagePlan]:
    """Return embed, teacher, refine and write of two shards."""
    plans: list[StagePlan] = []
    for stage, number in ((embed.STAGE, 0), (teacher.STAGE, 1), (refine.STAGE, 1), (write.STAGE, 1)):
        (plan,) = plans_of(stage, run, stage.tasks(run, number))
        after = plans[-1].name if plans else None
        plans.append(replace(plan, after=after, resources=Resources(num_cpus=0.5, max_workers=1)))
    return plans


def do_chain(root: Path, weights: dict[str, str], backend: Backend) -> dict[str, str]:
    """Run the chain; give the checksum of every output."""
    stages = chain(made(root, weights))
    run_chain(stages, backend=backend, on_event=lambda event: None, execution=ExecutionConfig(max_attempts=1))
    every = [task for stage in stages for task in stage.tasks]
    assert [why_stale(task) for task in every] == [None] * 8
    assert sum(read_record(task.record).count for task in stages[-1].tasks) == 4
    return {str(task.output.relative_to(root)): sha256_path(task.output) for task in every}


def test_chain_of_real_networks_gives_the_same_bytes_here_and_on_ray(
    tmp_path: Path, weights: dict[str, str], ray_session: None
) -> None:
    assert do_chain(tmp_path / "inline", weights, "inline") == do_chain(tmp_path / "ray", weights, "ray")


def test_evaluation_makes_its_own_embeddings_and_says_what_it_measured(tmp_path: Path, weights: dict[str, str]) -> None:
    run = made(tmp_path / "run", weights, **{"data.validation.count": "2", "data.validation.seed": "3"})
    task = evaluate.whole_validation_task(run, 0)
    assert list(task.inputs) == ["weights"]
    record = stage_worker(evaluate.STAGE, run.ref(0, task.stage))().run(task)
    assert record.count == 2
    assert 0 <= record.stats["miou"] <= 100
    result = json.loads(task.output.read_text())
    assert (result["split"], result["images"], result["seed"], result["windows"]) == ("validation", 2, 3, 1)
    assert (result["preset"], result["dea"]) == ("tiny", True)
    assert result["weights"] == sha256_file(student_weights(run, 0))


def test_windows_are_part_of_what_a_score_is_for(tmp_path: Path, weights: dict[str, str]) -> None:
    one, two = (
        made(tmp_path / windows, weights, **{"evaluate.windows": windows}).ref(0, "evaluate") for windows in ("1", "2")
    )
    assert evaluate.fingerprint(one) | {"windows": 2, "probabilities": "softmax"} == evaluate.fingerprint(two)
