"""The scenes' vocabulary with absent names: ids and seen classes stay."""

import pytest

from benchmarks.absent_names import ABSENT_NAMES, absent_settings, real_scores
from models.stseg.tiny_clip import WordTokenizer
from pipeline.config import RunConfig, resolve_config
from shards.data.sources import ScenesSourceConfig, open_source
from shards.data.vocabulary import Vocabulary
from shards.scenes.scenes import SCENE_CLASSES, SEEN


def test_there_are_as_many_absent_names_as_classes_and_clip_knows_their_words() -> None:
    assert len(set(ABSENT_NAMES)) == len(SCENE_CLASSES)
    assert not set(ABSENT_NAMES) & set(SCENE_CLASSES)
    assert {word for name in ABSENT_NAMES for word in name.split()} <= WordTokenizer().ids.keys()
    assert {"red brick", "blue water"} <= set(ABSENT_NAMES)


def test_labels_keep_their_ids_and_seen_classes_stay() -> None:
    config = resolve_config({}, absent_settings(), where="test")
    classes, seen = config.vocabulary.classes, config.vocabulary.seen
    assert isinstance(classes, tuple) and seen == RunConfig().vocabulary.seen
    vocabulary = Vocabulary.from_names(classes, seen)
    assert vocabulary.names[: len(SCENE_CLASSES)] == SCENE_CLASSES
    assert {vocabulary.names[index] for index in vocabulary.seen_ids} == SEEN
    plain = Vocabulary.from_names(SCENE_CLASSES, seen)
    scenes = ScenesSourceConfig(split="test", count=1)
    (ref,) = open_source(scenes, plain).refs()
    labels = [
        open_source(scenes, v)._id_of_class.tolist()[: len(SCENE_CLASSES)]  # type: ignore[attr-defined]
        for v in (plain, vocabulary)
    ]
    assert labels[0] == labels[1] and ref.key == "test-000000"


def test_the_witness_is_set_with_the_names_on_request() -> None:
    config = resolve_config({}, absent_settings(witness=True), where="test")
    assert (config.teacher.presence.witness, config.evaluate.present) == ("clip", True)
    assert len(config.vocabulary.classes) == 2 * len(SCENE_CLASSES)


def test_real_scores_leave_absent_names_out() -> None:
    iou = {name: 60.0 if name in SEEN else 40.0 for name in SCENE_CLASSES} | dict.fromkeys(ABSENT_NAMES, 0.0)
    scores = real_scores(iou)
    assert (scores["miou_seen"], scores["miou_unseen"], scores["hiou"]) == pytest.approx((60, 40, 48))
