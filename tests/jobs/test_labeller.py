"""Labelling images batch by batch, with less memory than asked for."""

import logging
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from jobs.inference.labeller import Labeller
from models.sam.sam import SamEmbedding

Image = NDArray[np.uint8]


class Brightness:
    """Predicts class 0 where an image is dark, else 1; runs out of memory above `fits` views."""

    needs_embedding = False

    def __init__(self, fits: int = 99, error: Exception | None = None) -> None:
        self.fits = fits
        self.error = error or torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        self.calls: list[int] = []

    def logits(self, images: Sequence[Image], sam: SamEmbedding | None) -> Tensor:
        self.calls.append(len(images))
        if len(images) > self.fits:
            raise self.error
        bright = torch.tensor([float(image.mean()) - 127 for image in images])
        return torch.stack([-bright, bright], dim=1)[:, :, None, None].expand(-1, 2, 12, 12)


def images(count: int) -> list[tuple[str, Image]]:
    return [(f"image {n}", np.full((3 + n, 5, 3), 255 * (n % 2), np.uint8)) for n in range(count)]


def labelled(model: Brightness, count: int, *, windows: int = 1, batch_size: int = 4) -> list[tuple[str, list[int]]]:
    labeller = Labeller(model, 24, windows=windows, batch_size=batch_size)
    found = list(labeller.labels(images(count)))
    assert [label.shape for _, _, label in found] == [(3 + n, 5) for n in range(count)]
    return [(name, np.unique(label).tolist()) for name, _, label in found]


EXPECTED = [(f"image {n}", [n % 2]) for n in range(5)]


@pytest.mark.parametrize("windows", [1, 2])
@pytest.mark.parametrize("batch_size", [1, 3, 50])
def test_every_image_gets_its_label_in_order_whatever_the_batch(windows: int, batch_size: int) -> None:
    model = Brightness()
    assert labelled(model, 5, windows=windows, batch_size=batch_size) == EXPECTED
    assert sum(model.calls) == 5 * (1 if windows == 1 else 5)
    assert max(model.calls) <= batch_size
    assert batch_size == 1 or max(model.calls) > 1


@pytest.mark.parametrize("windows", [1, 2])
def test_out_of_memory_halves_the_batch_for_good_and_goes_on(windows: int, caplog: pytest.LogCaptureFixture) -> None:
    model = Brightness(fits=2)
    with caplog.at_level(logging.WARNING):
        assert labelled(model, 5, windows=windows, batch_size=5) == EXPECTED
    assert [calls for calls in model.calls if calls > 2] == [5]
    assert "out of memory with 5 views at a time; going on with 2" in caplog.text


def test_memory_errors_of_a_cpu_count_too_and_other_errors_pass() -> None:
    assert labelled(Brightness(2, RuntimeError("DefaultCPUAllocator: can't allocate memory")), 5) == EXPECTED
    with pytest.raises(RuntimeError, match="shapes"):
        labelled(Brightness(2, RuntimeError("shapes do not fit")), 5)


def test_an_image_that_does_not_fit_alone_is_named_with_the_cure() -> None:
    with pytest.raises(ValueError, match=r"image 0: not even one of the views fits.*fewer classes.*--device cpu"):
        labelled(Brightness(fits=0), 2)


def test_images_are_taken_as_they_are_needed() -> None:
    taken = []

    def stream() -> Iterator[tuple[str, Image]]:
        for name, image in images(100):
            taken.append(name)
            yield name, image

    found = Labeller(Brightness(), 24, windows=2, batch_size=7).labels(stream())
    next(found)
    assert len(taken) <= 2
