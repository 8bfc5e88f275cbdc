"""`replay`: pseudo-labels of a round with other settings, from stored scores and embeddings."""

# The teacher's scores do not depend on the gate, and the teacher takes most of the time of teacher, refine and write
# (45 of 83 ms per image in `make round`, docs/cluster.md). So a threshold can be tried without it, or without SAM, too.

import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from jobs.artifacts.shares import Shares
from jobs.commit import stage_records
from jobs.executor import Backend
from jobs.quality.gate_pairs import GatePairs, Kept, confidences_by_class, gather_pairs, keep
from jobs.run import has_target_labels
from jobs.stages import mirror, pseudo_scores, refine, shares, teacher, write
from jobs.stages.teacher import given_masks
from models.refinement.gate import adaptive_thresholds
from pipeline.config import changed_settings, resolve_config
from pipeline.errors import DataFault, SettingsConflict
from pipeline.progress import RunProgress
from pipeline.report.left_out import summary_of
from pipeline.rounds.driver import Driver, RoundRequest
from pipeline.run.lock import holding
from pipeline.run.next_command import require_rounds
from pipeline.run.run import OpenRun, read_run
from shards.data.sources import open_source
from shards.formats.layout import RunLayout, record_path
from shards.formats.records import Json, fingerprint_digest, read_json, read_record
from shards.storage.store import as_argument

SHOWN = ("coverage", "coverage_before", "miou_before", "miou_after", "miou_after_all", "images")


@dataclass(frozen=True)
class ReplayRequest:
    """A request to replay a round.

    Attributes:
        number: The round.
        sets: `key=value` texts within the run's `refine` section, such as "gate.threshold=0.8".
        name: Name of the replay; None: derived from the settings, so that the same settings find it again.
        backend: "ray" or "inline".
        address: The address of a running Ray; None: a private one on this machine.
    """

    number: int
    sets: tuple[str, ...] = ()
    name: str | None = None
    backend: Backend = "ray"
    address: str | None = None


def replay_round(root: Path, request: ReplayRequest, progress: RunProgress | None = None) -> dict[str, Any]:
    """Make pseudo-labels next to the round's own, under `replays/NAME`; finished work is skipped.

    Returns:
        `round`, `name`, `folder`, `changed` settings, `samples` written, `quarantined` drops, the
        scores `own` (None if the round is not
        refined) and `replay`, and `next`, the command that makes the round use these settings.

    Raises:
        DataFault: The teacher's scores are missing.
        SettingsConflict: A replay of that name was made with other settings.
        ValueError: A setting is wrong, or none differs from the run's own.
        LockHeld: Another command works on the run.
    """
    shown = RunProgress(RunLayout(root).events) if progress is None else progress
    # Opened before it is locked: taking the lock makes the folder, and a mistyped --run would leave an empty one.
    own = read_run(root)
    require_rounds(own)
    _with_sets(own, request.sets)  # a wrong setting is reported before a lock that others hold
    with holding(own.layout.root):
        own = read_run(root)
        run = _with_sets(own, request.sets)
        run = _named(own, run, request)
        number = request.number
        refuse_without_scores(run, number)
        _refuse_without_mirror(run, number)
        driver_request = RoundRequest(rounds=number, backend=request.backend, address=request.address)
        shown.note("replay", round=number, name=run.layout.replay, sets=list(request.sets))
        with Driver(run, driver_request, shown).connected() as driver:
            driver.label(number)
        return _result(own, run, request)


def preview_round(root: Path, number: int, sets: tuple[str, ...]) -> dict[str, Any]:
    """Return what the gate would keep of a round with other settings; nothing is written.

    Raises:
        DataFault: There is no run, or the teacher's scores are missing.
        ValueError: A setting is wrong.
    """
    run = _with_sets(read_run(root), sets)
    if run.config.refine.gate.decision == "mask":
        raise ValueError(
            "gate.decision=mask decides by SAM's masks, which a dry run does not make; leave out --dry-run, or count "
            "what the gate of whole classes keeps: --set gate.decision=class"
        )
    refuse_without_scores(run, number)
    return {"round": number, "gate": run.config.refine.gate.model_dump(mode="json"), **preview_gate(run, number)}


def preview_gate(run: OpenRun, number: int) -> dict[str, Any]:
    """Gate the stored scores of a round with the run's settings; nothing is written and no network loaded.

    Args:
        run: The run, with the settings to try.
        number: The round, whose teacher is done.

    Returns:
        `images`, `images_kept`; `classes`, `classes_kept`: pairs of an image and a class that the teacher sees there;
        `pixels_kept` and `precision` (the share of correct pixels among kept ones with known truth) in per cent, None
        if there is nothing to divide by; `labelled_images`; and `per_class`, the same numbers for each class with its
        threshold; `quarantined`, the unusable labels, whose images count as unlabelled. "Kept" means passing the gate,
        before SAM.
    """
    gate = run.config.refine.gate
    labelled = has_target_labels(run)
    layout, names = run.layout, [shard.name for shard in run.plan.shards]
    stores = [(layout.teacher(number, name), layout.embedding("target", name)) for name in names]
    with run.here(*(path for pair in stores for path in pair), run.layout.shares(1)):
        matched = _matched_shares(run, number)
        pairs = gather_pairs(
            stores,
            run.plan.samples,
            open_source(run.data.target, run.vocabulary) if labelled else None,
            run.vocabulary,
            [gate],
            None if matched is None else matched.bias_K,
        )
    threshold_K = np.full(len(run.vocabulary), gate.threshold)
    if matched is not None:
        threshold_K = matched.threshold_K
    elif gate.adaptive is not None:
        threshold_K = adaptive_thresholds(confidences_by_class(pairs, 0, len(run.vocabulary)), gate.adaptive)
    kept = keep(pairs, 0, threshold_K)
    rows = [_class_row(run, kept, index, float(tau)) for index, tau in enumerate(threshold_K)]
    quarantined = [drop.model_dump() for drop in pairs.drops]
    per_class = [row for row in rows if row["images"]]
    return {**summary(pairs, kept), "per_class": per_class, "quarantined": quarantined}


def _matched_shares(run: OpenRun, number: int) -> Shares | None:
    """Return the shares that a replay with the run's settings would match; None where it would match none."""
    if not shares.tasks(run, number):
        return None
    first = None if number == 1 else Shares.load(run.layout.shares(1), run.vocabulary)
    stores = [run.layout.teacher(number, shard.name) for shard in run.plan.shards]
    _, found = shares.find_shares(shares.load(run.ref(number, "refine-shares")), stores, first)
    return found if found.matters else None


def summary(pairs: GatePairs, kept: Kept) -> dict[str, Any]:
    """Return the totals over all classes, shares in per cent."""
    return {
        "images": len(pairs.image_pixels),
        "images_kept": kept.any_kept,
        "labelled_images": pairs.labelled_images,
        "classes": int(kept.images.sum()),
        "classes_kept": int(kept.images_kept.sum()),
        "pixels_kept": percent(kept.pixels_kept.sum(), pairs.image_pixels.sum()),
        "precision": percent(kept.right_kept.sum(), kept.labelled_kept.sum()),
    }


def percent(part: float, whole: float) -> float | None:
    """Return a share in per cent; None if the whole is zero."""
    return 100 * float(part) / float(whole) if whole else None


def _with_sets(run: OpenRun, sets: tuple[str, ...]) -> OpenRun:
    within = [f"refine.{text.strip()}" for text in sets]
    return replace(run, config=resolve_config({}, within, where="--set", base=run.config))


def _named(own: OpenRun, run: OpenRun, request: ReplayRequest) -> OpenRun:
    """Return the run with the replay's folder instead of the round's own; refuse settings that change nothing."""
    wanted = _fingerprint(run, request.number)
    if wanted == _fingerprint(own, request.number):
        given = f"{', '.join(request.sets)} changes nothing" if request.sets else "no setting was named"
        raise ValueError(
            f"{given}: the pseudo-labels would be those of round {request.number} itself; name another value, such as "
            "--set gate.threshold=0.8"
        )
    name = request.name or fingerprint_digest(wanted)[:10]
    run = replace(run, layout=replace(run.layout, replay=name))
    # A replay's settings are kept only in its records. One shard with others is enough: a name must not mix two
    # settings.
    for task in refine.tasks(run, request.number):
        try:
            made_with = read_record(task.record).fingerprint
        except (FileNotFoundError, ValueError):
            continue
        if fingerprint_digest(made_with) != fingerprint_digest(wanted):
            raise SettingsConflict(
                f"replay {name} of round {request.number} was made with other settings; choose another --name, or "
                f"delete {run.layout.labels(request.number)}"
            )
    return run


def _fingerprint(run: OpenRun, number: int) -> dict[str, Json]:
    return refine.fingerprint(run.ref(number, "refine"))


def refuse_without_scores(run: OpenRun, number: int) -> None:
    """Raise unless the teacher of a round is done.

    Raises:
        DataFault: Scores of a shard are missing; the message names the command that makes them.
        ValueError: The round has no teacher.
    """
    if number < 1:
        raise ValueError("round 0 is the start and has no pseudo-labels; name a round from 1 with --round")
    require_rounds(run)
    masks = given_masks(run, number)
    if masks is not None:
        raise ValueError(f"round {number} began with the masks in {masks}, which have no scores; name a later round")
    tasks = teacher.tasks(run, number)
    missing = [task.shard for task in tasks if not record_path(task.output).is_file()]
    if missing:
        raise DataFault(
            f"round {number} has no teacher scores of {len(missing)} of {len(tasks)} shards; run: stseg-pipeline round "
            f"--n {number} --run {as_argument(run.layout.root)}"
        )


def _refuse_without_mirror(run: OpenRun, number: int) -> None:
    """Raise where a replay prompts SAM on mirrored images, whose embeddings only a round makes."""
    missing = [task for task in mirror.tasks(run, 0) if not record_path(task.output).is_file()]
    if missing:
        raise DataFault(
            "refine.refinement.prompts.mirror needs SAM's embeddings of mirrored images, and this run has none; run: "
            f"stseg-pipeline round --n {number} --run {as_argument(run.layout.root)} "
            "--set refine.refinement.prompts.mirror=true"
        )


def _result(own: OpenRun, run: OpenRun, request: ReplayRequest) -> dict[str, Any]:
    number = request.number
    scores = {name: read_json(one.layout.pseudo_scores(number)) for name, one in (("own", own), ("replay", run))}
    root = run.layout.root
    sets = shlex.join(part for text in request.sets for part in ("--set", f"refine.{text.strip()}"))
    return {
        "round": number,
        "name": run.layout.replay,
        "folder": str(run.layout.labels(number)),
        "changed": changed_settings(own.config, run.config),
        "samples": sum(record.count for record in stage_records(write.tasks(run, number))),
        "quarantined": summary_of([*write.tasks(run, number), *pseudo_scores.tasks(run, number)])["quarantined"],
        **{name: None if found is None else {key: found.get(key) for key in SHOWN} for name, found in scores.items()},
        "next": f"stseg-pipeline round --n {number} --run {as_argument(root)} {sets}",
    }


def _class_row(run: OpenRun, kept: Kept, index: int, threshold: float) -> dict[str, Any]:
    entry = run.vocabulary.classes[index]
    return {
        "class": entry.name,
        "seen": entry.seen,
        "threshold": round(threshold, 4),
        "images": int(kept.images[index]),
        "images_kept": int(kept.images_kept[index]),
        "pixels_kept": percent(kept.pixels_kept[index], kept.pixels[index]),
        "precision": percent(kept.right_kept[index], kept.labelled_kept[index]),
    }
