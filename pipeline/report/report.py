"""The report of a round: the numbers in the run's files, as JSON and as a page."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from jobs.artifacts.shares import Shares, shares_among
from jobs.commit import stage_records
from jobs.inference.model import ModelSettings
from jobs.run import WHOLE_ROUND, Run, RunRef, baseline_weights, student_weights
from jobs.stage import Done, ShardTask, Stage
from jobs.stages import (
    embed,
    evaluate,
    mirror,
    presence,
    pseudo_scores,
    refine,
    refine_masks,
    shares,
    source_labels,
    target_check,
    teacher,
    thresholds,
    write,
)
from jobs.stages.evaluate import SCORES
from jobs.stages.promote import read_decision
from jobs.stages.start import caution_of
from jobs.training.config import TrainConfig
from models.evaluation.alarms import AlarmConfig
from models.training.settings import matched_alpha
from pipeline.report.alarms import RoundFacts, alarm_fingerprint, refused_shares, round_alarms, teacher_confidence
from pipeline.report.gallery import PICTURES_NOTE, choose_samples, draw_samples
from pipeline.report.gate import gate_facts
from pipeline.report.html import render_page
from pipeline.report.left_out import left_out, turned_labels
from pipeline.report.round_report import (
    ClassFacts,
    Gain,
    InputsFound,
    LeftOutFacts,
    MatchingFacts,
    ModelFacts,
    PseudoLabelFacts,
    Quarantined,
    RoundReport,
    Scores,
    TrainingFacts,
    read_report,
)
from shards.data.input_facts import InputFacts
from shards.files.atomic import write_bytes_atomic
from shards.formats.layout import record_path
from shards.formats.records import Json, Record, fingerprint_digest, read_json, read_record

VERSION: Final = 6  # raised when the same results would give another report


def tasks(run: Run, round: int) -> list[ShardTask]:
    """Plan the report of a round."""
    # It shows the curve over all rounds so far, so a change in an earlier round makes it stale.
    inputs: dict[str, Path] = {}
    for earlier in range(round + 1):
        scored = [*evaluate.tasks(run, earlier), *target_check.tasks(run, earlier)]
        inputs |= {f"{task.stage}/{earlier:03d}": task.output for task in scored}
        inputs[f"model/{earlier:03d}"] = student_weights(run, earlier)
        inputs[f"promotion/{earlier:03d}"] = run.layout.promotion(earlier)
        if earlier > 0:
            inputs[f"pseudo/{earlier:03d}"] = run.layout.pseudo_index(earlier)
            inputs[f"pseudo-scores/{earlier:03d}"] = run.layout.pseudo_scores(earlier)
    inputs |= refine.gate_inputs(run, round)
    return [
        ShardTask(stage="report", round=round, shard=WHOLE_ROUND, output=run.layout.report_json(round), inputs=inputs)
    ]


def fingerprint(run: RunRef) -> dict[str, Json]:
    """Return what changes the report besides its inputs: the gate, which it explains, and the alarms' thresholds."""
    # `alarms.stop` is left out: it decides whether the run goes on, not what the report says.
    found: dict[str, Json] = {
        "report": VERSION,
        "gate": refine.gate_fingerprint(run.section(refine.Settings).gate),
        "alarms": alarm_fingerprint(run.section(AlarmConfig)),
    }
    if run.round == 0:  # in later rounds, images that are left out change the inputs anyway
        keys: list[Json] = [drop.key for one in left_out(embed.tasks(run.reopened(), 0)) for drop in one.drops]
        found["left_out"] = fingerprint_digest({"keys": keys}) if keys else None
    if any(getattr(source, "labels", None) for _, source in run.data):
        # An unusable label that is replaced by another one changes no number. Absent where all are usable, as in
        # reports of earlier versions.
        found_labels = (one for one in left_out(_label_tasks(run.reopened(), run.round)) if one.what == "labels")
        faults: list[Json] = [drop.model_dump() for one in found_labels for drop in one.drops]
        if faults:
            found["labels_left_out"] = fingerprint_digest({"labels": faults})
    return found


def _image_tasks(run: Run, number: int) -> list[ShardTask]:
    """Return the tasks behind a round's numbers that read images, those done once for all rounds first."""
    once = [*embed.tasks(run, 0), *evaluate.embed_tasks(run, 0), *mirror.tasks(run, 0)]
    once += [*presence.share_tasks(run, 0), *presence.tasks(run, 0)]
    return [*once, *teacher.tasks(run, number), *write.tasks(run, number), *_label_tasks(run, number)]


def _refine_tasks(run: Run, number: int) -> list[ShardTask]:
    """Return the tasks that refined a round's labels, from scores or from given masks."""
    return [*refine.tasks(run, number), *refine_masks.given_tasks(run, number)]


def _label_tasks(run: Run, number: int) -> list[ShardTask]:
    """Return the tasks behind a round's numbers that read labels of the user's."""
    once, scores = source_labels.tasks(run, 0), pseudo_scores.tasks(run, number)
    given = refine_masks.given_tasks(run, number)
    return [*once, *given, *scores, *evaluate.tasks(run, number), *target_check.tasks(run, number)]


def work(run: Run, task: ShardTask) -> Done:
    """Write the report of a round whose other stages are done, as page and JSON."""
    # The page before the JSON: the record that makes the task done is about the JSON, and must not precede the page.
    number = task.round
    report = build_report(run, number)
    history = [past for n in range(number) if (past := read_report(run.layout.report_json(n))) is not None]
    pictures = draw_samples(run, number, choose_samples(run, number)) if number else []
    page = render_page(report, [*history, report], pictures, PICTURES_NOTE)
    write_bytes_atomic(run.layout.report_html(number), page.encode(errors="backslashreplace"))
    run.publish(run.layout.report_html(number))
    write_bytes_atomic(task.output, report.as_json().encode())
    return Done(1)


def build_report(run: Run, number: int) -> RoundReport:
    """Gather the numbers of a round from the run's files."""
    evaluated = _evaluation(run, number)
    start = evaluated if number == 0 else _evaluation(run, 0)
    baseline = read_json(baseline_weights(run).with_name("evaluate.json")) if run.data.test is not None else None
    settings = run.section(ModelSettings)
    embedded = stage_records(embed.tasks(run, 0))
    chain: dict[str, list[Record]] = {}
    facts: dict[str, Any] = {}  # left unset, and so absent from the JSON, what round 0 does not have
    if number > 0:
        matched = shares_among(refine.gate_inputs(run, number), run.vocabulary)
        stages = (teacher, *([] if matched is None else [shares]), thresholds)
        planned = [
            *(stage.tasks(run, number) for stage in stages),
            _refine_tasks(run, number),
            write.tasks(run, number),
        ]
        chain = {tasks[0].stage: stage_records(tasks) for tasks in planned if tasks}
        sigmoid = teacher.probabilities_of(run) == "sigmoid"
        facts = {
            "gate": gate_facts(run.section(refine.Settings).gate, sigmoid=sigmoid, matched=matched is not None),
            "pseudo_labels": _pseudo_labels(run, number, chain),
            "training": _training(run, number, matched),
            **_guards(run, number, chain),
        }
        if matched is not None:
            facts["matching"] = MatchingFacts(strength=matched.strength, cause=matched.cause)
    inputs = inputs_found(run)
    if inputs is not None:
        facts["inputs"] = inputs
    lacking = left_out(_image_tasks(run, number))
    turned = turned_labels(_image_tasks(run, number))
    if turned:
        facts["turned_labels"] = turned
    chosen = tuple(name for name in evaluate.INFERENCE if evaluated.get(name))
    if chosen:
        facts["inference"] = chosen
    caution = caution_of(settings, run.data)
    if caution is not None:
        facts["caution"] = caution
    return RoundReport(
        round=number,
        run=run.name,
        **{name: evaluated.get(name) for name in (*SCORES, "pixel_accuracy", "split", "images")},
        seed=run.config.seed,
        split_seed=evaluated.get("seed"),
        baseline=None if baseline is None else _scores(baseline),
        gain=Gain(over_round_0=_gain(evaluated, start), over_baseline=_gain(evaluated, baseline)),
        model=ModelFacts(preset=settings.preset, dea=settings.dea),
        **facts,
        classes=_classes(run, number, {"iou": evaluated, "iou_round_0": start, "iou_baseline": baseline or {}}, chain),
        timings=_timings(run, number, chain, embedded),
        drops={
            stage: dict(Counter(drop.reason for record in records for drop in record.drops).most_common())
            for stage, records in {"embed": embedded, **chain}.items()
        },
        left_out=tuple(LeftOutFacts.model_validate(one, from_attributes=True) for one in lacking),
        quarantined=tuple(
            Quarantined(dataset=one.dataset, what=one.what, **drop.model_dump())
            for one in lacking
            for drop in one.drops
        ),
    )


def inputs_found(run: Run) -> InputsFound | None:
    """Return what was found of images and labels when the run was made; None if that is not known."""
    try:
        found = InputFacts.load(run.layout.inputs)
    except (OSError, ValueError):  # made by an earlier version, of generated scenes, or damaged, which `verify` names
        return None
    return InputsFound(lines=found.lines, warnings=found.warnings)


def _evaluation(run: Run, number: int) -> dict[str, Any]:
    return {} if run.data.test is None else read_json(run.layout.round(number) / "evaluate.json") or {}


def _scores(found: Mapping[str, Any]) -> Scores:
    return Scores(**{name: found.get(name) for name in SCORES})


def _gain(now: Mapping[str, Any], then: Mapping[str, Any] | None) -> Scores | None:
    if then is None or not now:
        return None
    pairs = {name: (now.get(name), then.get(name)) for name in SCORES}
    return Scores(**{name: None if a is None or b is None else a - b for name, (a, b) in pairs.items()})


def _guards(run: Run, number: int, chain: Mapping[str, Sequence[Record]]) -> dict[str, Any]:
    check = read_json(run.layout.target_check(number)) or {}
    before = stage_records(_refine_tasks(run, number - 1)) if number > 1 else []
    taught = chain.get("teacher", [])
    confidence = teacher_confidence(taught, softmax=teacher.probabilities_of(run) == "softmax")
    taught_before = stage_records(teacher.tasks(run, number - 1)) if number > 1 else []
    facts = RoundFacts(number, chain["refine"], before, check, confidence, taught, taught_before)
    return {
        "promotion": read_decision(run.layout.promotion(number)),
        "alarms": tuple(round_alarms(facts, run.vocabulary.names, run.section(AlarmConfig))),
        "proxies": check.get("proxies"),
        "waterfall": check.get("waterfall"),
    }


def _pseudo_labels(run: Run, number: int, chain: Mapping[str, Sequence[Record]]) -> PseudoLabelFacts:
    found = read_json(run.layout.pseudo_scores(number)) or {}
    stats = _summed(chain["refine"])
    taught = chain.get("teacher", [])  # given masks have no teacher, and given scores no views
    teacher_sum, teacher_count = _sum(taught, "score_sum"), _sum(taught, "samples")
    if any("disagreement_sum" in record.stats for record in taught) and teacher_count:
        found = {**found, "disagreement": 100 * _sum(taught, "disagreement_sum") / teacher_count}
    return PseudoLabelFacts(
        **found,
        samples=sum(record.count for record in chain["write"]),
        samples_uncovered=int(stats["samples_uncovered"]),
        mean_confidence=100 * teacher_sum / teacher_count if teacher_count else None,
        masks=_counts(stats, "masks_"),
        classes=_counts(stats, "classes_"),
    )


def _summed(refined: Iterable[Record]) -> defaultdict[str, float]:
    total: defaultdict[str, float] = defaultdict(float)
    for record in refined:
        for name, value in record.stats.items():
            if name != "coverage":  # a share of each shard's pixels: it does not add up
                total[name] += value
    return total


def _counts(stats: Mapping[str, float], prefix: str) -> dict[str, int]:
    return {name.removeprefix(prefix): int(value) for name, value in sorted(stats.items()) if name.startswith(prefix)}


def _training(run: Run, number: int, matched: Shares | None) -> TrainingFacts:
    stats = read_record(record_path(student_weights(run, number))).stats
    config = run.section(TrainConfig)
    return TrainingFacts(
        **{name: value for name, value in stats.items() if name in ("steps", "loss", "workers")},
        learning_rate=config.learning_rate,
        target_per_step=config.target_per_step,
        source_per_step=config.source_per_step,
        start=config.start,
        ema=config.ema,
        loss_kind=config.loss.kind,
        alpha=matched_alpha(config.loss.alpha, 0.0 if matched is None else matched.strength),
    )


def _classes(
    run: Run, number: int, scored: Mapping[str, Mapping[str, Any]], chain: Mapping[str, Sequence[Record]]
) -> tuple[ClassFacts, ...]:
    refined = chain.get("refine", [])
    stats = _summed(refined)
    covered = stats["pixels_covered"]
    found = []
    own: list[float] = []
    files = refine.gate_inputs(run, number)
    if "thresholds" in files:
        own = refine.read_thresholds(files["thresholds"], run.vocabulary).tolist()
    elif (matched := shares_among(files, run.vocabulary)) is not None:
        own = matched.threshold_K.tolist()
    judged = refined and run.section(teacher.Settings).presence.witness != "none"
    refused = 100 * refused_shares(chain.get("teacher", []), len(run.vocabulary)) if judged else None
    for index, entry in enumerate(run.vocabulary.classes):
        facts = {name: (source.get("iou") or {}).get(entry.name) for name, source in scored.items()}
        found.append(
            ClassFacts(
                id=index,
                name=entry.name,
                seen=entry.seen,
                colour=entry.colour,
                **facts,
                pixel_share=100 * stats[f"class_{index}_pixels"] / covered if covered else None,
                masks=_counts(stats, f"class_{index}_masks_") if refined else None,
                **({"threshold": own[index]} if own else {}),
                **({} if refused is None else {"refused_share": float(refused[index])}),
            )
        )
    return tuple(found)


def _timings(
    run: Run, number: int, chain: Mapping[str, Sequence[Record]], embedded: Sequence[Record]
) -> dict[str, float]:
    seconds = {stage: sum(record.seconds for record in records) for stage, records in chain.items()}
    if number == 0:
        seconds["embed"] = sum(record.seconds for record in embedded)
        if mirrored := stage_records(mirror.tasks(run, 0)):
            seconds["embed-mirror"] = sum(record.seconds for record in mirrored)
    else:
        seconds["train"] = read_record(record_path(student_weights(run, number))).seconds
    for task in [*evaluate.tasks(run, number), *target_check.tasks(run, number)]:
        seconds[task.stage] = read_record(task.record).seconds
    return {stage: round(value, 2) for stage, value in seconds.items()}


def _sum(records: Iterable[Record], name: str) -> float:
    return sum(record.stats.get(name, 0.0) for record in records)


STAGE: Final = Stage("report", tasks, fingerprint, RunRef.reopened, work, where="driver")
