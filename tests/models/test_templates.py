"""The prompt templates."""

import pytest
from open_clip import OPENAI_IMAGENET_TEMPLATES

from models.presets import PRESETS
from models.stseg.templates import prompt_templates


def test_the_templates_of_imagenet_are_those_of_open_clip_word_for_word() -> None:
    assert prompt_templates("openai80") == tuple(template("{}") for template in OPENAI_IMAGENET_TEMPLATES)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_template_of_a_preset_has_one_place_for_the_class(preset: str) -> None:
    for template in prompt_templates(PRESETS[preset].templates):
        assert template.format("ring") == template.replace("{}", "ring") != template
        assert template.count("{}") == 1


def test_an_unknown_name_of_templates_is_refused() -> None:
    with pytest.raises(ValueError, match="expected 'tiny8' or 'openai80'"):
        prompt_templates("tiny9")
