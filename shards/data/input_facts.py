"""What was found of a run's images and labels when it was made: the content of `inputs.json`."""

import json
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from shards.files.atomic import write_bytes_atomic
from shards.files.untrusted import MAX_TEXT_BYTES, read_regular
from shards.formats.records import sealed, unsealed


class InputFacts(BaseModel):
    """What was found, in words; nothing depends on it.

    Attributes:
        lines: What images and labels were taken for, and what was left out.
        warnings: What may be wrong, each with the setting or step that mends it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    lines: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def told(self) -> tuple[str, ...]:
        """All of it as a command prints it."""
        return (*self.lines, *(f"warning: {warning}" for warning in self.warnings))

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read an `inputs.json`.

        Raises:
            FileNotFoundError: There is none.
            ValueError: It is damaged.
        """
        try:
            return cls.model_validate_json(unsealed(read_regular(path, MAX_TEXT_BYTES)))
        except ValidationError as error:
            first = error.errors()[0]
            raise ValueError(f"{path} is damaged: {'.'.join(map(str, first['loc']))} {first['msg']}") from error
        except ValueError as error:
            raise ValueError(f"{path} is not as it was written: {error}") from error

    def save(self, path: Path) -> None:
        """Write it as JSON, atomically; the first field is a checksum of the rest."""
        # ASCII: file names that are not UTF-8 appear in messages as lone surrogates.
        write_bytes_atomic(path, sealed((json.dumps(self.model_dump(mode="json"), indent=1) + "\n").encode()))
