"""`refine`: given masks, refined by SAM in a run folder without a teacher, whose first round holds the result."""

# The masks enter as the target's labels, so that plan, embeddings, records and resuming are those of any run.

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from jobs.commit import stage_records
from jobs.stages import embed, write
from jobs.stages.refine_masks import NO_MASK, mask_tasks
from models.refinement.settings import FOR_MASKS
from pipeline.config import RunConfig, laid_over, load_config, resolve_config, save_config
from pipeline.progress import RunProgress
from pipeline.report.left_out import left_out, lines_of, turned_labels, turned_lines
from pipeline.rounds.driver import Driver, RoundRequest
from pipeline.run.inputs import survey_folder
from pipeline.run.lock import holding
from pipeline.run.moved import settled
from pipeline.run.replaced import take_up_replaced
from pipeline.run.run import BASE_SAM, OpenRun, load_run, make_run
from pipeline.settings import read_settings, settings_fault
from pipeline.tasks.recipe import MASKS, all_tasks
from pipeline.tasks.states import task_states
from shards.data.folder_source import FolderSource
from shards.data.label_survey import highest_id
from shards.data.sources import FolderSourceConfig
from shards.data.vocabulary import Vocabulary
from shards.formats.layout import RunLayout
from shards.formats.records import Record
from shards.storage.store import as_shown, is_in_store

_UNNAMED: Final = ("",)  # stands for the classes until the masks are read; no class list can hold it

# 20 photographs with masks in blocks of 12 pixels: mIoU 85.5 before, 84.2 after; boundary IoU 73.4 and 71.4.
CAUTION: Final = (
    "the SAM of preset tiny knows only the scenes that this package generates, and makes masks of photographs slightly "
    f"worse; for these: --set model.preset=base --set model.sam_weights={BASE_SAM}"
)


@dataclass(frozen=True)
class MasksRequest:
    """A request to refine masks.

    Attributes:
        images: Folder of images, searched with sub-folders.
        masks: Folder of index PNGs of the same names.
        classes: File of class names; None: classes are named after their ids.
        run: Settings, backend and address; its number of rounds is not used.
    """

    images: Path
    masks: Path
    classes: Path | None
    run: RoundRequest


def refine_masks(root: Path, request: MasksRequest, progress: RunProgress | None = None) -> dict[str, Any]:
    """Refine the masks of images and write pseudo-label tars; finished work is skipped.

    Args:
        root: The run folder to make, or one that this command made.
        request: The masks, and how to refine them.
        progress: Where to show progress; None: on standard error.

    Returns:
        `run`, `images`, `refined`, `shards`, `coverage` in per cent, `masks` by outcome, `without_mask` (keys) and
        `quarantined` (keys with reasons), `turned_labels` (masks that were taken in the stored frame), `left_out`
        (lines about all of these), and `index`, the list of tars.

    Raises:
        SettingsConflict: The folder holds a run for other images, masks or classes.
        DataFault: Too many images are unreadable, or too many masks unusable.
        StageFailed: Shards failed; all others are done.
        ValueError: A folder is missing or empty, or a setting is wrong.
    """
    layout = RunLayout(root)
    shown = RunProgress(layout.events) if progress is None else progress
    if not is_in_store(root):  # whose settings are fetched under its lock
        _config(layout, request)  # what is wrong is reported before the folder is made or a lock waited for
    with holding(root):
        run = take_up_replaced(_open_or_make(root, request, shown), shown)
        if run.config.model.preset == "tiny" and run.config.model.sam_weights is None:
            shown.say(f"caution: {CAUTION}")
        states = task_states(all_tasks(run, 1, MASKS), verify=request.run.verify)
        if all(state.state == "done" for state in states):
            shown.say(f"{as_shown(root)}: nothing to do, the masks are refined ({len(states)} outputs)")
        else:
            with Driver(run, request.run, shown).connected() as driver:
                driver.rounds(MASKS, (0, 1))
        return _summary(run)


def _config(layout: RunLayout, request: MasksRequest) -> tuple[RunConfig | None, RunConfig]:
    """Return the saved settings, if there is a run, and those with the request laid over."""
    for option, folder in (("--images", request.images), ("--masks", request.masks)):
        if not folder.is_dir():
            raise ValueError(f"{folder} is not a folder; {option} names a folder that exists")
    saved = load_config(layout.config) if layout.config.is_file() else None
    requested = _settings(request, saved)
    requested = laid_over(requested, read_settings(request.run.file) if request.run.file is not None else {})
    where = f"{request.run.file or 'the options'} and --set"
    return saved, resolve_config(requested, request.run.sets, where=where, base=saved)


def _open_or_make(root: Path, request: MasksRequest, shown: RunProgress) -> OpenRun:
    layout = RunLayout(root.absolute())  # workers have working folders of their own
    saved, config = _config(layout, request)
    if saved is None:
        return _make(root, request, config, shown)
    config = settled(layout, saved, config, "Name another folder with --out")
    if config != saved or settings_fault(layout.config) is not None:  # edited by hand: taken, as by `round`
        save_config(layout.config, config)
    run = load_run(layout, config)
    run.publish(layout.config)
    return run


def _settings(request: MasksRequest, saved: RunConfig | None) -> dict[str, Any]:
    """Return the settings that follow from the options."""
    # Those of refinement only for a new run: an existing one keeps what `--set` chose when it was made.
    target = {"kind": "folder", "images": str(request.images), "labels": str(request.masks)}
    requested: dict[str, Any] = {"data": {"target": target}}
    if request.classes is not None:
        requested["vocabulary"] = {"classes": str(request.classes.resolve()), "seen": None}
    if saved is None:
        requested["data"] |= {"source": None, "test": None, "validation": None}
        requested["train"] = {"source_per_step": 0}
        requested["refine"] = {"refinement": FOR_MASKS.model_dump(mode="json")}
        requested.setdefault("vocabulary", {"classes": _UNNAMED, "seen": None})
    return requested


def _make(root: Path, request: MasksRequest, config: RunConfig, shown: RunProgress) -> OpenRun:
    if config.vocabulary.classes == _UNNAMED:
        names = _numbered_classes(config, shown)
        config = config.model_copy(update={"vocabulary": config.vocabulary.model_copy(update={"classes": names})})
    run = make_run(root, config, masks=True)
    for line in run.inputs.told:
        shown.say(line)
    return run


def _numbered_classes(config: RunConfig, shown: RunProgress) -> tuple[str, ...]:
    """Name the classes "class 0" and so on, up to the highest id in any mask.

    Raises:
        ValueError: No image has a mask, or no mask names a class.
    """
    folder = config.data.with_rules().target
    assert isinstance(folder, FolderSourceConfig), "masks are in a folder"
    # The vocabulary is what is looked for; it decides nothing about names and files.
    source = FolderSource(folder, Vocabulary.from_names(["class 0"]))
    survey_folder(source, None, ("target",), what="mask", strict=True)
    shown.say("without --classes, all masks are read once for the highest id …")
    highest = highest_id(source)
    if highest is None:
        raise ValueError(f"no mask in {folder.labels} names a class; --masks names the folder of masks, index PNGs")
    return tuple(f"class {number}" for number in range(highest + 1))


def _summary(run: OpenRun) -> dict[str, Any]:
    tasks = embed.tasks(run, 0), mask_tasks(run, 1), write.tasks(run, 1)
    embedded, refined, written = map(stage_records, tasks)
    total: Counter[str] = Counter()
    for record in refined:
        total.update({name: value for name, value in record.stats.items() if name != "coverage"})
    planned = [task for part in tasks for task in part]
    turned = turned_labels(planned)
    masks = {name.removeprefix("masks_"): int(n) for name, n in sorted(total.items()) if name.startswith("masks_")}
    return {
        "run": as_shown(run.layout.root),
        "images": run.plan.sample_count,
        "refined": sum(record.count for record in written),
        "shards": len(run.plan.shards),
        "coverage": 100 * total["pixels_covered"] / total["pixels"] if total["pixels"] else 0.0,
        "masks": masks,
        "without_mask": [drop["key"] for drop in _drops(refined) if drop["reason"] == NO_MASK],
        "quarantined": [drop for drop in _drops([*embedded, *refined, *written]) if drop["reason"] != NO_MASK],
        "turned_labels": sum(turned.values()),
        "left_out": [*lines_of(left_out(planned)), *turned_lines(turned)],
        "index": as_shown(run.layout.pseudo_index(1)),
    }


def _drops(records: Iterable[Record]) -> list[dict[str, Any]]:
    return [drop.model_dump() for record in records for drop in record.drops]
