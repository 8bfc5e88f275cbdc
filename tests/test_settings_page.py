"""`docs/settings.md` says of every setting what its docstring says, and nothing else; `make options` writes it."""

import re
from pathlib import Path
from typing import Final

import pytest
import settings_page
from pydantic import BaseModel

from pipeline.commands.pretrain import PretrainConfig
from pipeline.config import RunConfig
from pipeline.setting_comments import sentences
from pipeline.settings import dotted_names

PAGE: Final = Path(__file__).resolve().parents[1] / "docs" / "settings.md"


def test_the_page_is_what_the_docstrings_say() -> None:
    assert PAGE.read_text(encoding="utf-8") == settings_page.page(), "run `make options` and commit docs/settings.md"


@pytest.mark.parametrize(("command", "model"), [("", RunConfig), ("pretrain", PretrainConfig)])
def test_the_page_has_every_setting_and_no_other(command: str, model: type[BaseModel]) -> None:
    known = set(dotted_names(model))
    leaves = {name for name in known if not any(other.startswith(f"{name}.") for other in known)}
    rows = [row for _, lines in settings_page.sections() for row in lines]
    named = [name for row in rows for name in row.names]
    prefix = f"{command} " if command else ""
    own = {name.removeprefix(prefix) for name in named if name.startswith(prefix) and " " not in name[len(prefix) :]}
    assert leaves <= own <= known


def test_each_line_has_a_type_a_default_and_a_sentence() -> None:
    lines = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    assert len(lines) > 120
    for line in lines:
        cells = re.split(r"(?<!\\) \| ", line.strip("| "))
        assert len(cells) == 4 and all(cells), line
        assert re.match(r"[A-Z0-9`\"]", cells[3]) and cells[3].endswith("."), line


def test_a_setting_without_a_sentence_stops_the_page() -> None:
    class Section(BaseModel):
        """A section.

        Attributes:
            known: A setting
                on two lines.
        """

        known: int = 1
        unknown: int = 2

    assert sentences(Section) == {"known": "A setting on two lines."}
    here = settings_page.Occurrence("", "section.", {"known": 1, "unknown": 2}, {"known": 1, "unknown": 2})
    with pytest.raises(ValueError, match="the docstring has no sentence on 'unknown'"):
        settings_page.rows(Section, [here])


if __name__ == "__main__":
    PAGE.write_text(settings_page.page(), encoding="utf-8")
