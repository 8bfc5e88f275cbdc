"""The workers with the real networks (random weights): the whole chain of a round, here and on Ray."""

from functools import partial
from pathlib import Path

import pytest
import torch
from stseg_setup import build_random_stseg

from jobs.execution.execution import ExecutionConfig
from jobs.executor import Backend, run_chain
from jobs.inference.model import ModelConfig
from jobs.stage import Resources, ShardTask, StagePlan, why_stale
from jobs.stages.embed import EmbedConfig, EmbedWorker, embed_fingerprint
from jobs.stages.evaluate import EvaluateConfig, EvaluateWorker, evaluation_samples
from jobs.stages.refine import RefineConfig, RefineWorker, refine_fingerprint
from jobs.stages.teacher import TeacherConfig, TeacherWorker, teacher_fingerprint
from jobs.stages.write import WriteConfig, WriteWorker, write_fingerprint
from models.presets import PRESETS
from models.refinement.gate import GateConfig
from models.sam.sam import build_sam
from models.stseg.clip import build_clip
from models.stseg.text import prompt_templates
from models.weights.files import write_weights
from shards.data.plan import make_plan
from shards.data.samples import Samples
from shards.data.sources import ScenesSourceConfig, open_source
from shards.data.vocabulary import Vocabulary
from shards.files.atomic import sha256_path
from shards.formats.layout import RunLayout
from shards.formats.records import Json, read_record
from shards.scenes.scenes import SCENE_CLASSES

TARGET = ScenesSourceConfig(split="target", seed=1, count=4)
VOCABULARY = Vocabulary.from_names(SCENE_CLASSES, templates=prompt_templates("tiny8"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelConfig:
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    preset = PRESETS["tiny"]
    write_weights(build_clip(preset.clip).clip.state_dict(), folder / "clip.safetensors")
    write_weights(build_sam(preset.sam).state_dict(), folder / "sam.safetensors")
    write_weights(build_random_stseg(preset, dea=True).head_state(), folder / "head.safetensors")
    return ModelConfig(
        weights=folder / "head.safetensors",
        clip_weights=folder / "clip.safetensors",
        sam_weights=folder / "sam.safetensors",
    )


def chain(root: Path, model: ModelConfig) -> list[StagePlan]:
    """Give embed, teacher, refine and write of two shards."""
    layout = RunLayout(root)
    VOCABULARY.save(layout.vocabulary)
    where = {"source": TARGET, "vocabulary": layout.vocabulary}
    embed = EmbedConfig(model=model, **where)
    teacher = TeacherConfig(model=model, **where)
    refine = RefineConfig(model=model, vocabulary=layout.vocabulary, gate=GateConfig(threshold=0.0))
    resources = Resources(num_cpus=0.5, max_workers=1)
    plan = make_plan(open_source(TARGET, VOCABULARY).refs(), 2)

    def tasks(stage: str, fingerprint: dict[str, Json]) -> list[ShardTask]:
        outputs = {
            "embed": partial(layout.embedding, "target"),
            "teacher": partial(layout.teacher, 1),
            "refine": partial(layout.refine, 1),
            "write": partial(layout.pseudo, 1),
        }
        roles = {"embed": (), "teacher": ("embed",), "refine": ("embed", "teacher"), "write": ("refine",)}
        return [
            ShardTask(
                stage=stage,
                round=1,
                shard=shard.name,
                samples=shard.samples,
                output=outputs[stage](shard.name),
                inputs={r.replace("embed", "embedding"): outputs[r](shard.name) for r in roles[stage]},
                fingerprint=fingerprint,
            )
            for shard in plan.shards
        ]

    return [
        StagePlan("embed", partial(EmbedWorker, embed), tasks("embed", embed_fingerprint(embed)), resources),
        StagePlan(
            "teacher",
            partial(TeacherWorker, teacher),
            tasks("teacher", teacher_fingerprint(teacher, VOCABULARY)),
            resources,
            after="embed",
        ),
        StagePlan(
            "refine",
            partial(RefineWorker, refine),
            tasks("refine", refine_fingerprint(refine, VOCABULARY)),
            resources,
            after="teacher",
        ),
        StagePlan(
            "write",
            partial(WriteWorker, WriteConfig(**where)),
            tasks("write", write_fingerprint(VOCABULARY)),
            resources,
            after="refine",
        ),
    ]


def run(root: Path, model: ModelConfig, backend: Backend) -> dict[str, str]:
    """Run the chain; give the checksum of every output."""
    stages = chain(root, model)
    run_chain(stages, backend=backend, on_event=lambda event: None, execution=ExecutionConfig(max_attempts=1))
    every = [task for stage in stages for task in stage.tasks]
    assert [why_stale(task) for task in every] == [None] * 8
    assert sum(read_record(task.record).count for task in stages[-1].tasks) == 4
    return {str(task.output.relative_to(root)): sha256_path(task.output) for task in every}


def test_chain_of_real_networks_gives_the_same_bytes_here_and_on_ray(
    tmp_path: Path, model: ModelConfig, ray_session: None
) -> None:
    assert run(tmp_path / "inline", model, "inline") == run(tmp_path / "ray", model, "ray")


def test_evaluation_makes_its_own_embeddings(tmp_path: Path, model: ModelConfig) -> None:
    VOCABULARY.save(tmp_path / "vocabulary.json")
    source = ScenesSourceConfig(split="test", count=2)
    config = EvaluateConfig(model=model, source=source, vocabulary=tmp_path / "vocabulary.json")
    samples = evaluation_samples(config, VOCABULARY)
    task = ShardTask(stage="evaluate", shard="000000", samples=Samples.of(samples), output=tmp_path / "evaluate.json")
    record = EvaluateWorker(config).run(task)
    assert record.count == 2
    assert 0 <= record.stats["miou"] <= 100
