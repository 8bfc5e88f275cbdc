"""`predict`: segment images by class names in batches; finished images are skipped."""

import hashlib
import json
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from jobs.inference.model import stseg_fingerprint, weights_checksum
from jobs.inference.refiner import Refiner, Refining, load_refiner
from models.devices import chosen_device, require_device_name
from models.presets import load_preset
from pipeline.commands.choose_model import ChosenModel
from pipeline.commands.result_keys import ResultKeys
from pipeline.commands.watched import Watched
from pipeline.errors import DataFault
from pipeline.report.drawing import OPACITY, classes_by_size, labelled, panels, png_bytes, scaled, with_legend
from shards.data.images import UnreadableImage, decode_image
from shards.data.inputs import ImageInput, find_images
from shards.data.labels import encode_label, legend_of
from shards.data.listing import left_out_line
from shards.data.vocabulary import Vocabulary
from shards.files.atomic import write_bytes_atomic
from shards.formats.layout import RunLayout
from shards.formats.records import fingerprint_digest, read_json
from shards.formats.result_index import CLASS_LISTS

if TYPE_CHECKING:
    from jobs.inference.segmenter import Segmenter

logger = logging.getLogger(__name__)

_SIDE: Final = 512
_MOST_VIEWS: Final = 8
# Classes x pixels of a batch: about 200 MB for each feature map of the decoder's finest level. A bound is needed
# because a machine without a GPU raises no error on which the batch could be halved: the system kills the process.
_CLASS_PIXELS: Final = 256 * 96**2


@dataclass(frozen=True)
class PredictRequest:
    """The settings of a prediction.

    Attributes:
        out: Folder for the pictures, label maps and results.
        windows: Windows per side; 1: the whole image at once.
        batch_size: Views of images per batch; None: 8, fewer with many classes or a large preset.
        device: auto, cpu, cuda or mps.
        overwrite: Predict images again that have results.
        flip: Merge each prediction with that of the mirror image.
        refine: Refine each prediction with SAM's mask decoder.
        opacity: Share of the classes' colours in overlays, 0..1.
    """

    out: Path
    windows: int = 1
    batch_size: int | None = None
    device: str = "auto"
    overwrite: bool = False
    flip: bool = False
    refine: bool = False
    opacity: float = OPACITY


@dataclass(frozen=True)
class Prediction:
    """The outcome for one image.

    Attributes:
        image: Its name, as shown to the user.
        state: "predicted", "skipped" (it had results already) or "unreadable".
        facts: overlay, label and classes of a readable image, and perhaps a note; reason and detail of an unreadable
            one.
    """

    image: str
    state: str
    facts: Mapping[str, Any]


def predict_images(
    paths: Sequence[Path],
    chosen: ChosenModel,
    request: PredictRequest,
    notify: Callable[[Prediction, int], None],
    say: Callable[[str], None] = logger.info,
) -> dict[str, Any]:
    """Segment images by class names; write for each an overlay with a legend, an index PNG, and a JSON, last.

    The label maps have the classes' colours as palette, to be looked at; Pillow and numpy read the ids. What these mean
    is in one file for all images of the same classes.

    An image is skipped if its JSON names the same bytes, model, classes and windows. The index of the folder
    (`result_index`) has the key of each image; a file that is no result is never replaced.

    Args:
        paths: Image files, folders, tars.
        chosen: The model and its classes.
        request: The settings.
        notify: Called with each outcome and the total number of images.
        say: Called with a line about what folders and tars hold beside images, if anything.

    Returns:
        images: a result for each readable image; predicted, skipped: their numbers; unreadable: name, reason, detail;
        class_list: the file of names and colours by id.
        cautions: why the labels may be worth nothing, as far as the program can know.
        left_out: numbers by kind.

    Raises:
        DataFault: None of the images could be read.
        FileNotFoundError: A path does not exist.
        ValueError: A setting is wrong, a result would replace a file that is none, or not even one image fits into
            memory.
    """
    require_device_name(request.device)
    left_out: Counter[str] = Counter()
    if os.path.lexists(request.out) and not request.out.is_dir():
        raise ValueError(f"{request.out} is no folder; --out names the folder of the results")
    if RunLayout(request.out).config.is_file():  # whose files have names that images may have, too
        raise ValueError(f"{request.out} is a run; name another folder with --out, or one inside of it")
    inputs = find_images(paths, left_out)
    keys = ResultKeys(request.out, inputs)
    if line := left_out_line(left_out):
        say(line)
    made_by = _fingerprint(chosen, request)
    results: list[Prediction] = []

    def done(entry: Prediction) -> None:
        results.append(entry)
        notify(entry, len(inputs))

    todo = _todo(inputs, keys, request, made_by, done)
    first = next(todo, None)  # the model, and torch, are loaded only if there is something to do
    cautions = [] if chosen.caution is None else [chosen.caution]
    if first is not None:
        from jobs.inference.labeller import Labeller

        segmenter, refiner = _networks(chosen, request)
        side = load_preset(chosen.model.preset).image_size
        batch = request.batch_size or usual_batch(side, len(chosen.vocabulary))
        watched = Watched(segmenter, len(chosen.vocabulary))
        labeller = Labeller(
            watched,
            side,
            windows=request.windows,
            probabilities=chosen.probabilities,
            batch_size=batch,
            refiner=refiner,
        )
        # The network and SAM's decoder read one embedding of the whole image; windows have their own.
        embedded = None if refiner is None or request.windows > 1 else lambda work: refiner.embedding(work.image)
        keys.claim()
        _write_class_list(request.out, chosen.vocabulary)  # before the first label map that needs it
        for work, image, label in labeller.labels(((work, work.image) for work in chain([first], todo)), embedded):
            watched.count(label)
            files = _files(work, image, label, chosen.vocabulary, made_by, request.opacity)
            # Two commands may label one image with other classes: its three files are always of one of them.
            with keys.lock():
                done(_write(work, files, request.out, keys[work.input]))
        cautions += watched.alarms(chosen)
    elif any(entry.state == "skipped" for entry in results):
        _write_class_list(request.out, chosen.vocabulary)
    class_list = str(request.out / _class_list(chosen.vocabulary))
    facts = {"class_list": class_list, "cautions": cautions, "left_out": dict(left_out.most_common())}
    return _result(results, inputs) | facts


def _networks(chosen: ChosenModel, request: PredictRequest) -> "tuple[Segmenter, Refiner | None]":
    from jobs.inference.segmenter import MirrorSegmenter, StsegSegmenter

    device = chosen_device(request.device)
    network = StsegSegmenter(
        chosen.model,
        chosen.vocabulary,
        with_encoder=True,
        text_cache=chosen.text_cache,
        device=device,
        mixed=True,
    )
    refiner = None
    if request.refine:
        refiner = load_refiner(chosen.model, _refining(chosen), encoder=network.encoder, device=device)
    return (MirrorSegmenter(network) if request.flip else network), refiner


def _refining(chosen: ChosenModel) -> Refining:
    return Refining(chosen.refinement, chosen.top_k, chosen.probabilities)


def usual_batch(side: int, classes: int) -> int:
    """Return the number of views per batch: 8, or fewer to keep classes times pixels within bounds."""
    return max(1, min(_MOST_VIEWS, _CLASS_PIXELS // (classes * side**2)))


@dataclass(frozen=True)
class _Work:
    """A decoded image and the checksum of its file."""

    input: ImageInput
    digest: str
    image: NDArray[np.uint8]
    note: str

    def __str__(self) -> str:
        return self.input.shown


def _todo(
    inputs: Sequence[ImageInput],
    keys: ResultKeys,
    request: PredictRequest,
    made_by: str,
    done: Callable[[Prediction], None],
) -> Iterator[_Work]:
    for entry in inputs:
        try:
            data = entry.read()
            digest = hashlib.sha256(data).hexdigest()
            old = None if request.overwrite else _existing_result(request.out, keys[entry], digest, made_by)
            if old is not None:
                done(Prediction(entry.shown, "skipped", old))
                continue
            decoded = decode_image(data)
            del data  # as large as the pixels, perhaps; this waits for the next image
        except UnreadableImage as error:
            done(Prediction(entry.shown, "unreadable", {"reason": error.reason, "detail": error.detail}))
            continue
        yield _Work(entry, digest, decoded.image, decoded.note)


def _class_list(vocabulary: Vocabulary) -> str:
    """Return the name, in the folder of results, of the file that says what the ids of label maps mean."""
    # Named by its content: two commands with other classes may write into one folder, also at the same time, and each
    # result names its own list. In a folder of its own, so that all `*.json` next to the pictures are results.
    return f"{CLASS_LISTS}/{vocabulary.digest[:8]}.json"


def _write_class_list(out: Path, vocabulary: Vocabulary) -> None:
    path = out / _class_list(vocabulary)
    content = (json.dumps(legend_of(vocabulary).model_dump(mode="json"), ensure_ascii=False, indent=1) + "\n").encode()
    if not path.is_file() or path.read_bytes() != content:
        write_bytes_atomic(path, content)


def _paths(out: Path, key: str) -> dict[str, str]:
    return {"overlay": str(out / f"{key}.png"), "label": str(out / f"{key}.label.png")}


def _existing_result(out: Path, key: str, digest: str, made_by: str) -> dict[str, Any] | None:
    """Return the earlier result for the same image and model, if all of its files exist."""
    old = read_json(out / f"{key}.json")
    paths = _paths(out, key)
    if not old or (old.get("sha256"), old.get("made_by")) != (digest, made_by):
        return None
    if not all(Path(path).is_file() for path in paths.values()):
        return None
    return {**paths, "classes": old.get("classes", [])}


@dataclass(frozen=True)
class _Files:
    """The bytes of an image's results, and the classes that were found."""

    overlay: bytes
    label: bytes
    facts: bytes
    classes: list[str]


def _files(
    work: _Work,
    image: NDArray[np.uint8],
    label: NDArray[np.int32],
    vocabulary: Vocabulary,
    made_by: str,
    opacity: float,
) -> _Files:
    drawn = labelled(image, label, vocabulary, side=_SIDE, opacity=opacity)
    sheet = panels([("image", scaled(image, _SIDE)), ("prediction", drawn)], side=_SIDE)
    found = [vocabulary.names[index] for index in classes_by_size([label], vocabulary)]
    facts = {"image": work.input.shown, "source": work.input.source, "sha256": work.digest, "classes": found}
    facts["class_list"] = _class_list(vocabulary)
    # A file name that is not UTF-8 becomes JSON's own escape.
    content = json.dumps({**facts, "made_by": made_by}, ensure_ascii=False, indent=1) + "\n"
    return _Files(
        png_bytes(with_legend(sheet, vocabulary, [label])),
        encode_label(label, vocabulary, palette=True),
        content.encode(errors="backslashreplace"),
        found,
    )


def _write(work: _Work, files: _Files, out: Path, key: str) -> Prediction:
    paths = _paths(out, key)
    # Pictures first, the JSON last: it is what a second command goes by.
    write_bytes_atomic(Path(paths["overlay"]), files.overlay)
    write_bytes_atomic(Path(paths["label"]), files.label)
    write_bytes_atomic(out / f"{key}.json", files.facts)
    note = {"note": work.note} if work.note else {}
    return Prediction(work.input.shown, "predicted", {**paths, "classes": files.classes, **note})


def _fingerprint(chosen: ChosenModel, request: PredictRequest) -> str:
    # Only where it is not the default: results of earlier versions stay done.
    drawn = {} if request.opacity == OPACITY else {"opacity": request.opacity}
    return fingerprint_digest(
        {
            "model": stseg_fingerprint(chosen.model),
            "weights": weights_checksum(chosen.model.weights),
            "vocabulary": chosen.vocabulary.digest,
            "windows": request.windows,
            "merged": chosen.probabilities if request.windows > 1 else None,
            # Absent by default, so that results of earlier versions stay valid.
            **({"flip": True} if request.flip else {}),
            **({"refine": _refining(chosen).fingerprint(chosen.model)} if request.refine else {}),
            **drawn,
        }
    )


def _result(results: Sequence[Prediction], inputs: Sequence[ImageInput]) -> dict[str, Any]:
    unreadable = [{"image": entry.image, **entry.facts} for entry in results if entry.state == "unreadable"]
    if len(unreadable) == len(inputs):
        first = unreadable[0]
        raise DataFault(
            f"none of {len(inputs)} images can be read; the first: {first['image']}: {first['reason']} "
            f"({first['detail']})"
        )
    order = {entry.shown: index for index, entry in enumerate(inputs)}
    readable = sorted((e for e in results if e.state != "unreadable"), key=lambda e: order[e.image])
    return {
        "images": [{"image": e.image, "state": e.state, **e.facts} for e in readable],
        "predicted": sum(e.state == "predicted" for e in readable),
        "skipped": sum(e.state == "skipped" for e in readable),
        "unreadable": unreadable,
    }
