"""A teacher that sees images mirrored, too; with fakes for the networks."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from shard_setup import SIZES_HW, VOCABULARY, FakeEncoder, FakeSegmenter, embed_task, make_images, next_task, run_embed
from stage_setup import do
from torch import Tensor

from jobs.inference.batching import BatchLimit
from jobs.inference.top_scores import top_scores
from jobs.stage import ShardTask
from jobs.stages import embed, teacher
from models.sam.sam import SamEmbedding
from models.stseg.views import View, disagreement, merge_views
from shards.data.folder_source import FolderSource
from shards.formats.arrays import read_arrays
from shards.formats.records import Record


class Corner(FakeEncoder):
    """Embeds an image as the brightness of its left edge."""

    def encode(self, images: Sequence[NDArray[np.uint8]]) -> SamEmbedding:
        found = super().encode(images)
        edge = torch.tensor([float(image[:, 0].mean()) for image in images])[:, None, None, None]
        return SamEmbedding(edge.expand_as(found.embedding_BCHW).contiguous(), found.valid_B2)


@pytest.fixture
def embedded(tmp_path: Path) -> tuple[ShardTask, ShardTask, FolderSource]:
    """A shard embedded as it is and mirrored."""
    source = make_images(tmp_path / "images")
    first = embed_task(tmp_path, source)
    run_embed(first, source, Corner())
    second = first.model_copy(update={"stage": "embed-mirror", "output": first.output.with_name("mirror-000000.zarr")})
    do(embed.work, embed.Embedder(Corner(), source, embed.batch_limit(8), "mirror"), second)
    return first, second, source


def taught(
    root: str, given: tuple[ShardTask, ShardTask, FolderSource], views: tuple[View, ...], model: FakeSegmenter
) -> tuple[dict[str, NDArray[np.generic]], Record]:
    first, second, source = given
    inputs = {"embedding": first, **({"mirror": second} if "mirror" in views and model.needs_embedding else {})}
    task = next_task(first, root, **inputs).model_copy(update={"stage": "teacher"})
    settings = teacher.Settings(views=views, batch_size=3)
    limit = BatchLimit(3, of="images", hint="")
    record = do(teacher.work, teacher.Teacher(model, source, settings, "softmax", "random", limit), task)
    return read_arrays(task.output)[0], record


class Brighter(FakeSegmenter):
    """Predicts `right` the surer the brighter SAM's embedding is, else `left`; in the left half only."""

    def logits(self, images: Sequence[NDArray[np.uint8]], sam: SamEmbedding | None) -> Tensor:
        super().logits(images, sam)
        logits = torch.zeros(len(images), len(VOCABULARY), 8, 8)
        logits[:, 0] = 1
        if sam is not None:
            logits[:, 1, :, :4] = sam.embedding_BCHW[:, 0, 0, 0][:, None, None] / 64
        return logits


def test_each_view_is_seen_with_its_own_embedding(embedded: tuple[ShardTask, ShardTask, FolderSource]) -> None:
    model = Brighter()
    taught("both", embedded, ("identity", "mirror"), model)
    stores = [read_arrays(task.output, names=("embedding",))[0]["embedding"][:, 0, 0, 0] for task in embedded[:2]]
    assert (stores[0] != stores[1]).any()
    upright, mirrored = (store.astype(np.float32).tolist() for store in stores)
    assert model.brightness == [*upright[:3], *mirrored[:3], *upright[3:], *mirrored[3:]]


def test_scores_are_those_of_the_merged_views(embedded: tuple[ShardTask, ShardTask, FolderSource]) -> None:
    arrays, record = taught("both", embedded, ("identity", "mirror"), Brighter())
    stores = [torch.from_numpy(read_arrays(task.output)[0]["embedding"].astype(np.float32)) for task in embedded[:2]]
    given = [Brighter().logits([np.zeros((1, 1, 3), np.uint8)] * len(one), SamEmbedding(one, one)) for one in stores]
    views = [given[0], given[1].flip(-1)]
    expected = top_scores(merge_views(views), 4, "softmax")
    assert (arrays["ids"] == expected[0]).all()
    assert (arrays["scores"] == expected[1]).all()
    apart = disagreement(views, softmax=True).numpy()
    assert np.allclose(arrays["disagreement"], apart)
    assert apart.min() > 0
    assert record.stats["disagreement_sum"] == pytest.approx(float(apart.sum()), rel=1e-6)


def test_views_of_a_model_without_dea_need_no_embeddings(embedded: tuple[ShardTask, ShardTask, FolderSource]) -> None:
    # It says `left` on the left whatever it sees: mirrored back, the two views are opposites.
    arrays, record = taught("both", embedded, ("identity", "mirror"), FakeSegmenter(needs_embedding=False))
    assert record.count == len(SIZES_HW)
    assert np.allclose(arrays["scores"][:, 0], arrays["scores"][:, 1])
    assert arrays["disagreement"].astype(np.float32).min() > 0.9


def test_one_view_writes_what_it_always_did(embedded: tuple[ShardTask, ShardTask, FolderSource]) -> None:
    arrays, record = taught("one", embedded, ("identity",), FakeSegmenter())
    assert set(arrays) == {"ids", "scores", "class_max", "class_mean"}
    assert "disagreement_sum" not in record.stats


def test_views_are_named_once_in_any_order_and_the_image_itself_is_among_them() -> None:
    assert teacher.Settings(views=("mirror", "identity")).views == ("identity", "mirror")
    for wrong in ((), ("mirror",), ("identity", "identity")):
        with pytest.raises(ValueError, match="expected identity, and perhaps mirror, each once"):
            teacher.Settings(views=wrong)
