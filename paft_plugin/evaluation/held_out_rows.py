"""Rows that a run holds out of its branches' own data to score every arm on: `held_out/<branch>.jsonl`.

Each is tokenised as the training would have seen it, prompt and answer apart, so that every arm is asked in its own format.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from paft_plugin.files import JsonFile, read_json_lines, write_json_lines

HELD_OUT = Path("held_out")
"""Below the folder of a run: a file for each branch."""
RETAINED = "retained"
"""Instead of a branch: what no branch should change."""
KL = "kl_to_base"
"""The metric that says how far an arm is from the base, over the rows of all branches."""
SUMMARY = "summary.json"
Split = Literal["validation", "test"]
"""Something may be chosen on the first; on the other, arms are judged."""
SCHEMA = 1
Tokens = tuple[int, ...]


class HeldOutRow(BaseModel):
    """What all rows that are held out have in common."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: str
    """Fingerprint of the row's content."""
    split: Split
    source: str
    """The data set that it comes from."""
    prompt: Tokens = Field(min_length=1)
    """Token ids of everything before the answer, the template's own included."""

    @property
    def answers(self) -> tuple[Tokens, ...]:
        """What may follow."""
        raise NotImplementedError


class AnswerRow(HeldOutRow):
    """A prompt with its right answer: of an SFT branch, or what shall be retained."""

    answer: Tokens = Field(min_length=1)
    """Token ids of the last assistant turn, with the end of turn that training would teach."""

    @property
    def answers(self) -> tuple[Tokens, ...]:
        return (self.answer,)


class PairRow(HeldOutRow):
    """A prompt with a better and a worse answer: of a preference branch."""

    chosen: Tokens = Field(min_length=1)
    rejected: Tokens = Field(min_length=1)

    @property
    def answers(self) -> tuple[Tokens, ...]:
        return (self.chosen, self.rejected)


class HeldOutCounts(BaseModel):
    """What became of one branch's rows."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    rows: int
    test: int
    validation: int
    shared: int
    """Rows that could be scored, but share their prompt with another row that a branch is trained on."""
    unfit: dict[str, int]
    """Why rows cannot be scored → how many."""


class HeldOutSummary(JsonFile):
    """`held_out/summary.json`: how many rows there are of each branch, and what surprises about them."""

    SCHEMA: ClassVar[int] = 1
    AGAIN: ClassVar[str] = "Run `axolotl paft run` again."

    branches: dict[str, HeldOutCounts]
    notes: tuple[str, ...] = ()


Row = TypeVar("Row", bound=HeldOutRow)


def write_rows(file: Path, rows: Iterable[HeldOutRow]) -> None:
    """Write `rows`, atomically."""
    write_json_lines(file, rows, SCHEMA)


def read_rows(file: Path, kind: type[Row]) -> list[Row]:
    """The rows in a file, each of which must be of `kind`.

    Raises:
        PaftError: It is missing, damaged, of another kind or version; names the line.
    """
    return read_json_lines(file, kind, SCHEMA, "Run `axolotl paft run` again.")
