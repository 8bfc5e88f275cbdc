"""The rows of the ablation: what each trains and measures for a seed, by the project's own commands in this process."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from benchmarks.units import Found

METRICS: Final = ("miou", "miou_seen", "miou_unseen", "hiou")
STAGE1_PREFIX: Final = "stage1."
# How a run is told to begin without a stage-1 checkpoint, with the names of the classes alone.
NAMES_ONLY: Final = ("model.stage1_weights=none",)
Reports = list[dict[str, Any]]


@dataclass(frozen=True)
class Seed:
    """A seed draws new data in every split, and another training.

    Attributes:
        folder: Where all that is made for the seed goes.
        number: The seed.
        rounds: Rounds of self-training.
        sets: Settings of all rows; those that begin with "stage1." are of stage 1 alone.
    """

    folder: Path
    number: int
    rounds: int
    sets: tuple[str, ...] = ()

    @property
    def run_sets(self) -> list[str]:
        """The settings of a run: those of the seed, then those of all rows."""
        data = (f"data.{part}.seed={self.number}" for part in ("target", "source", "test", "validation"))
        return [f"seed={self.number}", *data, *(one for one in self.sets if not one.startswith(STAGE1_PREFIX))]

    @property
    def stage1_sets(self) -> list[str]:
        """The settings of stage 1 alone."""
        return [one.removeprefix(STAGE1_PREFIX) for one in self.sets if one.startswith(STAGE1_PREFIX)]

    def stage1(self, *, dea: bool) -> Path:
        """Return the path of the stage-1 weights."""
        return self.folder / f"stage1_{'dea' if dea else 'baseline'}.safetensors"


@dataclass(frozen=True)
class Part:
    """A part of a seed's table.

    Attributes:
        work: Does it for a seed; the result's `rows` are scores by row, and it may have `rounds` and `pseudo_labels`.
        rows: The rows that it fills in; none for what other parts need.
        needs: The parts that have to be done before.
    """

    work: Callable[[Seed], Found]
    rows: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()


def stage1(seed: Seed) -> Found:
    """Train stage 1 with and without DEA on the seed's labelled source images."""
    from benchmarks.source_controls import pretrain

    for dea in (True, False):
        pretrain(seed, seed.stage1(dea=dea), {"model": {"dea": dea}}, seed.stage1_sets)
    return {"rows": {}}


def start(seed: Seed) -> Found:
    """Measure stage 1."""
    (report,) = self_train(seed, "dea_st", 0)
    return {"rows": {"baseline": metrics(report["baseline"]), "dea": metrics(report)}}


def start_inference(seed: Seed) -> Found:
    """Measure stage 1 with SAM at inference."""
    root = seed.folder / "dea_st"
    return {
        "rows": {
            "baseline_sam": measured(root, 0, "refine", part="evaluate-baseline"),
            "dea_sam": measured(root, 0, "refine"),
        }
    }


def dea_st(seed: Seed) -> Found:
    """Do the rounds."""
    return of_run(seed, "dea_st", self_train(seed, "dea_st", seed.rounds))


def final_inference(seed: Seed) -> Found:
    """Measure the last student with SAM, with the mirror image, and with both."""
    root = seed.folder / "dea_st"
    choices = {"final_sam": ("refine",), "final_flip": ("flip",), "final_flip_sam": ("flip", "refine")}
    return {"rows": {row: measured(root, seed.rounds, *choice) for row, choice in choices.items()}}


def st(seed: Seed) -> Found:
    """Do the rounds without DEA."""
    own = (f"model.stage1_weights={seed.stage1(dea=False)}", "model.dea=false")
    return of_run(seed, "st", self_train(seed, "st", seed.rounds, *own))


def absent(seed: Seed) -> Found:
    """Do the rounds with as many names that no scene shows; scores are of the scenes' classes."""
    from benchmarks.absent_names import absent_settings, real_scores

    reports = self_train(seed, "absent", seed.rounds, *absent_settings())
    real = [real_scores({one["name"]: one["iou"] for one in report["classes"]}) for report in reports]
    return of_run(seed, "absent", reports, real)


def names_only(seed: Seed) -> Found:
    """Do the rounds from nothing but CLIP, SAM and the names."""
    return of_run(seed, "names_only", self_train(seed, "names_only", seed.rounds, *NAMES_ONLY))


def from_weights(seed: Seed, row: str) -> Found:
    """Measure weights that no round made: plainly and with SAM at inference."""
    (report,) = self_train(seed, row, 0, f"model.stage1_weights={seed.folder / row}.safetensors")
    return {"rows": {row: metrics(report), f"{row}_sam": measured(seed.folder / row, 0, "refine")}}


def control(seed: Seed) -> Found:
    """Train on the source for as many steps as the rounds take."""
    from benchmarks.source_controls import continue_on_source

    continue_on_source(seed, seed.folder / "control.safetensors")
    return from_weights(seed, "control")


def control_refined(seed: Seed) -> Found:
    """Train likewise on the source's labels after SAM has refined them."""
    from benchmarks.source_controls import continue_on_source, refined_source_labels

    continue_on_source(seed, seed.folder / "control_refined.safetensors", refined_source_labels(seed))
    return from_weights(seed, "control_refined")


def truth(seed: Seed) -> Found:
    """Train likewise on the target with its true labels."""
    from benchmarks.source_controls import continue_on_truth

    continue_on_truth(seed, seed.folder / "truth.safetensors")
    return from_weights(seed, "truth")


# In the order in which they are done: what is cheap or what most rests on first.
PARTS: Final[dict[str, Part]] = {
    "stage1": Part(stage1),
    "start": Part(start, ("baseline", "dea"), ("stage1",)),
    "start_inference": Part(start_inference, ("baseline_sam", "dea_sam"), ("start",)),
    "control_refined": Part(control_refined, ("control_refined", "control_refined_sam"), ("stage1",)),
    "dea_st": Part(dea_st, ("dea_st",), ("start",)),
    "final_inference": Part(final_inference, ("final_sam", "final_flip", "final_flip_sam"), ("dea_st",)),
    "absent": Part(absent, ("absent_start", "absent"), ("stage1",)),
    "truth": Part(truth, ("truth", "truth_sam"), ("stage1",)),
    "names_only": Part(names_only, ("names_only_start", "names_only"), ("stage1",)),
    "st": Part(st, ("st",), ("stage1",)),
    "control": Part(control, ("control", "control_sam"), ("stage1",)),
}


def self_train(seed: Seed, name: str, rounds: int, *own: str) -> Reports:
    """Run rounds from the seed's stage-1 weights, or as `own` settings say; return their reports, round 0 first."""
    from pipeline.rounds.driver import RoundRequest
    from pipeline.rounds.rounds import run_rounds

    sets = (
        f"model.stage1_weights={seed.stage1(dea=True)}",
        f"model.baseline_weights={seed.stage1(dea=False)}",
        "resources.train.threads=1",
        "promotion.measure=none",  # the loop as such: choosing the best of several students is a gain of its own
        "evaluate.target_images=1",  # the look at the target changes no result
        *seed.run_sets,
        *own,
    )
    reports = run_rounds(seed.folder / name, RoundRequest(rounds=rounds, sets=sets, backend="inline"))
    return [report.model_dump(mode="json") for report in reports]


def measured(root: Path, number: int, *inference: str, part: str = "evaluate") -> dict[str, float]:
    """Score a round's model with `evaluate.flip` and `evaluate.refine` as named, by the stage's own code."""
    from jobs.stages import evaluate
    from pipeline.run.run import read_run

    run = read_run(root, sets=[f"evaluate.{name}=true" for name in inference])
    (task,) = [task for task in evaluate.tasks(run, number) if task.stage == part]
    with TemporaryDirectory() as folder:
        output = Path(folder) / "scores.json"
        evaluate.work(evaluate.load(run.ref(number, part)), task.model_copy(update={"output": output}))
        return metrics(json.loads(output.read_text()))


def of_run(seed: Seed, name: str, reports: Reports, scores: Sequence[dict[str, Any]] | None = None) -> Found:
    """Return the rows of a run, its first and last round, with the scores of all rounds and of their pseudo-labels."""
    from benchmarks.label_figures import label_figures
    from pipeline.run.run import read_run

    run = read_run(seed.folder / name)
    rounds = [metrics(one) for one in (reports if scores is None else scores)]
    labels = [label_figures(run, report["round"], report["pseudo_labels"]) for report in reports[1:]]
    rows = {f"{name}_start": rounds[0], name: rounds[-1]}
    return {
        "rows": {row: rows[row] for row in PARTS[name].rows},
        "rounds": {name: rounds},
        "pseudo_labels": {name: labels},
        "images": reports[0]["images"],
    }


def metrics(scores: dict[str, Any]) -> dict[str, float]:
    """Return the scores that the table has."""
    return {metric: scores[metric] for metric in METRICS}
