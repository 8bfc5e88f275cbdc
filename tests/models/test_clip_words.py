"""What open_clip says of models that get their weights a moment later."""

import logging

import open_clip
import pytest
from torch import nn

from models.stseg.clip import build_clip
from models.stseg.settings import ClipConfig


def test_a_model_that_gets_weights_next_is_not_said_to_be_random(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def create_model(name: str, pretrained: str | None) -> nn.Module:
        # As open_clip does, by way of the root logger.
        logging.warning(f"No pretrained weights loaded for model '{name}'. Model initialized randomly.")
        logging.warning("another warning")
        raise InterruptedError

    monkeypatch.setattr(open_clip, "create_model", create_model)
    with pytest.raises(InterruptedError):
        build_clip(ClipConfig(architecture="convnext_base_w_320", weights=None))
    assert [record.message for record in caplog.records] == ["another warning"]
    logging.getLogger().warning("No pretrained weights loaded")
    assert len(caplog.records) == 2, "it is only kept back while a model is built"
