"""`design.json`: what a study compares and how it will be judged, written down before anything is scored."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from paft_plugin.files import JsonFile
from paft_plugin.fusion.recipe.methods import METHODS

DESIGN_FILE, SEEDS = Path("design.json"), Path("seeds")
"""Below the study's folder: the design, and a run folder for each seed."""
PRIMARY = "primary"
"""What contrasts call the mean of the primary measures."""
BEST, CONTROL = "best:", "control:"
"""How a contrast names what is chosen on validation."""
FUSION = "fusion"
"""Instead of a way: every merge method."""
Group = Literal["base", "branch", "way", "control", "curve"]


class Match(BaseModel):
    """Of several candidates the one is taken that comes nearest to an arm in a measure, on validation."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    measure: str
    to: str
    """An arm."""


class StudyArm(BaseModel):
    """What an arm is in the study. One that is several things, such as a default and a point of a curve, is there as often."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: str
    """The arm's, in the run of every seed."""
    group: Group
    """`branch`: one training. `way`: one trial of a way of combining. `control`: see there. `curve`: a point of one."""
    way: str | None = None
    """How it combines the branches: `sequential`, `sequential-reverse`, `joint`, `disjoint`, `alpha` or a merge method."""
    form: str | None = None
    """What the skill's delta in it is: `dense`, `l1`, or a control's name."""
    of: str | None = None
    """The arm of the skill's branch that it is made of, as far as it is one; a branch is made of itself."""
    settings: Mapping[str, float | str] = Field(default_factory=dict)
    """What is tuned in it."""
    trial: int | None = None
    """Which trial of its way and form it is; 1 is the default."""
    control: str | None = None
    """The control that it belongs to: the delta itself, or where `way` says so a fusion of it at the default settings."""
    match: Match | None = None
    """How one of the candidates of a control is chosen."""
    curve: str | None = None
    """The curve that it is a point of: `density`, or what says how strong the penalty is."""
    x: float | None = None
    """Where on the curve."""


class Contrast(BaseModel):
    """A question that is answered by one difference between two arms, asked before anything is scored.

    `one` and `other` name an arm; or `best:WAY/FORM`, the trial that is best on validation (both may be patterns, and the way
    `fusion`, any merge method); or `control:NAME`, the candidate of a control that matches best on validation, and
    `control:NAME/WAY`, its fusion.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    question: str = ""
    one: str
    other: str
    measure: str = Field(description="A measure of the items of the test, or `primary`.")
    margin: float | None = Field(default=None, gt=0, description="The largest difference that does not matter.")


class Design(JsonFile):
    """`design.json`, in the study's folder."""

    SCHEMA: ClassVar[int] = 1
    AGAIN: ClassVar[str] = "Run `axolotl paft study` again."

    description: str = ""
    seeds: tuple[int, ...]
    skill: str
    """The measure of what the SFT branch teaches."""
    preference: str
    """The measure of what the preference branch teaches."""
    retained: tuple[str, ...] = ()
    """The measures of what no branch teaches."""
    primary: tuple[str, ...]
    """The measures whose mean is called `primary`, and by which the best trial is chosen."""
    arms: tuple[StudyArm, ...]
    contrasts: tuple[Contrast, ...] = ()
    margins: Mapping[str, float] | None = None
    """Measure → the largest difference that does not matter, where no contrast says it; that of `""` is of all shares. None in
    files of older versions."""
    changes: tuple[str, ...] = ()
    """What was changed of all this after scores existed, a sentence each."""

    def run_dir(self, folder: Path, seed: int) -> Path:
        """Where the run of a seed lies, of the study in `folder`."""
        return folder / SEEDS / str(seed)

    def named(self, reference: str) -> list[StudyArm]:
        """The arms that `one` or `other` of a contrast may mean: several where one is chosen on validation."""
        kind = next((word for word in (BEST, CONTROL) if reference.startswith(word)), "")
        first, _, second = reference.removeprefix(kind).partition("/")
        if kind == BEST:
            trials = [arm for arm in self.arms if arm.group == "way"]
            ways = METHODS if first == FUSION else {arm.way for arm in trials if _fits(arm.way, first)}
            return [arm for arm in trials if arm.way in ways and _fits(arm.form, second or "*")]
        if kind == CONTROL:
            own = [arm for arm in self.arms if arm.group == "control" and arm.control == first]
            return [arm for arm in own if arm.way == (second or None)]
        return [arm for arm in self.arms if arm.name == reference][:1]

    @property
    def measures(self) -> list[str]:
        """The measures that it names, each once."""
        asked = [contrast.measure for contrast in self.contrasts if contrast.measure != PRIMARY]
        return list(dict.fromkeys([self.skill, self.preference, *self.retained, *self.primary, *asked]))

    @property
    def choices(self) -> list[str]:
        """What may be chosen on validation: of every way and form, and of every control, alone and fused."""
        ways = [f"{BEST}{arm.way}/{arm.form}" for arm in self.arms if arm.group == "way"]
        own = [arm for arm in self.arms if arm.group == "control"]
        controls = [f"{CONTROL}{arm.control}{f'/{arm.way}' if arm.way else ''}" for arm in own]
        return list(dict.fromkeys([*ways, *controls]))

    @property
    def frozen(self) -> Mapping[str, Any]:
        """What must not change once a test item is scored, by what it is called."""
        content = self.model_dump(mode="json")
        return {
            "seeds": content["seeds"],
            "contrasts": content["contrasts"],
            "primary measure": [content["skill"], content["preference"], content["primary"]],
            "retained measures": content["retained"],
            **({} if self.margins is None else {"margins": content["margins"]}),
        }


def _fits(word: str | None, pattern: str) -> bool:
    return word is not None and fnmatchcase(word, pattern)
