"""The tables of the ablation: means and deviations over seeds, gains row over row, pseudo-labels round by round."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from benchmarks.ablation_rows import METRICS

PROTOCOL: Final = (
    "transductive: the rounds know the target's images, without labels, and the names of its classes; scores are of "
    "other images, the test split. 'Sees the target' tells which rows were trained on target images at all"
)
# row -> what it is, whether it was trained on target images
TITLES: Final[dict[str, tuple[str, str]]] = {
    "baseline": ("plain baseline", "no"),
    "baseline_sam": ("plain baseline + SAM at inference", "no"),
    "dea": ("+ DEA (the start)", "no"),
    "dea_sam": ("start + SAM at inference", "no"),
    "control": ("control: as many steps on source labels", "no"),
    "control_sam": ("that + SAM at inference", "no"),
    "control_refined": ("control: ... on refined source labels", "no"),
    "control_refined_sam": ("that + SAM at inference", "no"),
    "st": ("+ self-training, without DEA", "yes"),
    "dea_st": ("+ both", "yes"),
    "final_flip": ("+ both, mirror at inference", "yes"),
    "final_sam": ("+ both, SAM at inference", "yes"),
    "final_flip_sam": ("+ both, mirror and SAM at inference", "yes"),
    "absent_start": ("start, with absent names", "no"),
    "absent": ("+ both, with absent names", "yes"),
    "names_only_start": ("start from names only", "no"),
    "names_only": ("+ self-training, from names only", "yes"),
    "truth": ("ceiling: as many steps on true labels", "labels too"),
    "truth_sam": ("that + SAM at inference", "labels too"),
}


@dataclass(frozen=True)
class Gain:
    """A row above another one of the same seed, and by how many points it should be, by metric."""

    row: str
    other: str
    wanted: Mapping[str, float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Its name in the table."""
        return f"{self.row} over {self.other}"


GAINS: Final = (
    Gain("dea_st", "control_refined", {"miou": 3, "miou_unseen": 4}),  # the strongest that never sees the target
    Gain("dea_st", "baseline", {"miou": 14, "miou_unseen": 14}),
    Gain("dea_st", "control"),
    Gain("dea_st", "dea"),
    Gain("dea_st", "st"),
    Gain("dea_st", "dea_sam"),
    Gain("final_sam", "dea_sam"),
    Gain("final_sam", "control_refined_sam"),
    Gain("final_sam", "dea_st"),
    Gain("final_flip", "dea_st"),
    Gain("control_refined", "control"),
    Gain("dea", "baseline"),
    Gain("st", "baseline"),
    Gain("absent", "dea_st", {"miou": -2}),
    Gain("names_only", "names_only_start"),
    Gain("names_only", "dea_st"),
    Gain("truth", "dea_st"),
)
_LABELS: Final = {
    "miou_before": "before, covered",
    "miou_after": "after, covered",
    "miou_before_all": "before, all",
    "miou_after_all": "after, all",
    "scene_unseen_all": "unseen, all",
    "coverage": "coverage",
    "unlabelled_objects": "no label: objects",
    "unlabelled_stuff": "no label: stuff",
    "absent_names": "absent names",
}


def combined(per_seed: Sequence[Mapping[str, Any]], rows: Sequence[str]) -> dict[str, Any]:
    """Return everything over seeds; rows and gains that some seed does not have are left out.

    Args:
        per_seed: For each seed `rows` (scores by row), `pseudo_labels` (figures by run and round) and `seconds` (by
            part).
        rows: The rows wanted.
    """
    whole = [row for row in rows if all(row in seed["rows"] for seed in per_seed)]
    runs = [name for name in per_seed[0]["pseudo_labels"] if all(name in seed["pseudo_labels"] for seed in per_seed)]
    parts = dict.fromkeys(part for seed in per_seed for part in seed["seconds"])
    seconds = {part: _present(seed["seconds"].get(part) for seed in per_seed) for part in parts}
    return {
        "protocol": PROTOCOL,
        "rows": {row: summary([seed["rows"][row] for seed in per_seed]) for row in whole},
        "gains": {gain.name: gained(per_seed, gain) for gain in GAINS if {gain.row, gain.other} <= set(whole)},
        "pseudo_labels": {name: rounds_mean([seed["pseudo_labels"][name] for seed in per_seed]) for name in runs},
        "seconds": {part: round(statistics.fmean(found), 1) for part, found in seconds.items()},
        "core_minutes": round(sum(sum(found) for found in seconds.values()) / 60, 1),
    }


def summary(rows: Sequence[Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Return mean and standard deviation of each metric over seeds, in points."""
    return {
        metric: {
            "mean": round(statistics.fmean(row[metric] for row in rows), 2),
            "std": round(statistics.stdev(row[metric] for row in rows), 2) if len(rows) > 1 else 0.0,
        }
        for metric in METRICS
    }


def gained(per_seed: Sequence[Mapping[str, Any]], gain: Gain) -> dict[str, Any]:
    """Return mean and deviation of a gain over seeds; where points are wanted, how many and whether they came."""
    pairs = [(seed["rows"][gain.row], seed["rows"][gain.other]) for seed in per_seed]
    found: dict[str, Any] = summary([{metric: one[metric] - two[metric] for metric in METRICS} for one, two in pairs])
    for metric, points in gain.wanted.items():
        found[metric] |= {"wanted": points, "reached": found[metric]["mean"] >= points}
    return found


def rounds_mean(seeds: Sequence[Sequence[Mapping[str, float | None]]]) -> list[dict[str, float]]:
    """Return the means over seeds of each figure of each round; a figure that a seed does not have is left out."""
    return [
        {
            name: round(statistics.fmean(found), 2)
            for name in rounds[0]
            if len(found := _present(one.get(name) for one in rounds)) == len(rounds)
        }
        for rounds in zip(*seeds, strict=True)
    ]


def tables(result: Mapping[str, Any]) -> str:
    """Return all tables as text, the protocol at their head."""
    seeds = len(result["seeds"])
    head = [
        f"Protocol: {result['protocol']}.",
        f"mIoU, mean ± deviation of {seeds} seeds, {result['rounds']} rounds",
        "",
    ]
    lines = [*head, f"{'row':44}{'sees target':13}" + "".join(f"{metric:>16}" for metric in METRICS)]
    for row, metrics in result["rows"].items():
        title, sees = TITLES[row]
        lines.append(f"{title:44}{sees:13}" + "".join(f"{_cell(metrics[m]):>16}" for m in METRICS))
    lines += ["", f"{'gain':57}" + "".join(f"{metric:>16}" for metric in METRICS)]
    for name, metrics in result["gains"].items():
        wants = [f"{m} {metrics[m]['wanted']:+g}: {_yes(metrics[m])}" for m in METRICS if "wanted" in metrics[m]]
        cells = "".join(f"{_cell(metrics[m]):>16}" for m in METRICS)
        lines.append(f"{name:57}{cells}" + (f"   wanted {', '.join(wants)}" if wants else ""))
    lines += [
        "",
        f"{'pseudo-labels (all: uncovered = wrong)':44}" + "".join(f"{name:>19}" for name in _LABELS.values()),
    ]
    for name, rounds in result["pseudo_labels"].items():
        for number, figures in enumerate(rounds, 1):
            cells = "".join(f"{figures.get(key, '-'):>19}" for key in _LABELS)
            lines.append(f"{f'{name}, round {number}':44}{cells}")
    costs = ", ".join(f"{part} {seconds:.0f}" for part, seconds in result["seconds"].items())
    return "\n".join(
        [*lines, "", f"seconds of a core per seed: {costs}", f"in all: {result['core_minutes']} core minutes"]
    )


def _cell(metric: Mapping[str, float]) -> str:
    return f"{metric['mean']:.1f} ± {metric['std']:.1f}"


def _yes(metric: Mapping[str, Any]) -> str:
    return "yes" if metric["reached"] else "no"


def _present(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]
