"""`design.json`: what was asked before anything was scored."""

from __future__ import annotations

from pathlib import Path

import pytest

from paft_plugin.errors import PaftError
from paft_plugin.study.design import Contrast, Design, Match, StudyArm

ARMS = (
    StudyArm(name="base", group="base"),
    StudyArm(name="sft", group="branch", form="dense", of="sft"),
    StudyArm(name="parallel-ties", group="way", way="ties", form="dense", of="sft", trial=1),
    StudyArm(name="ties-dense-2", group="way", way="ties", form="dense", of="sft", trial=2, settings={"density": 0.1}),
    StudyArm(name="paft-ties", group="way", way="ties", form="l1", of="sft-l1", trial=1),
    StudyArm(name="joint", group="way", way="joint", form="dense", trial=1),
    StudyArm(name="kl-1", group="control", control="kl", of="kl-1", match=Match(measure="skill", to="sft-l1")),
    StudyArm(name="kl-2", group="control", control="kl", of="kl-2", match=Match(measure="skill", to="sft-l1")),
    StudyArm(name="kl-1-ties", group="control", control="kl", way="ties", form="kl", of="kl-1"),
    StudyArm(name="sft", group="curve", curve="paft_l1_lambda", x=0.0, form="dense", of="sft"),
)


def design(**more: object) -> Design:
    asked = Contrast(name="penalty", question="Does it pay?", one="best:*/l1", other="best:joint", measure="skill")
    measures = {"skill": "skill", "preference": "style", "primary": ("skill", "style")}
    return Design.model_validate({"seeds": (1, 2), **measures, "arms": ARMS, "contrasts": (asked,), **more})


def test_a_design_is_read_as_it_was_written(tmp_path: Path) -> None:
    design(retained=("words",)).write(tmp_path / "design.json")
    assert Design.read(tmp_path / "design.json") == design(retained=("words",))


@pytest.mark.parametrize(
    ("reference", "names"),
    [
        ("sft", ["sft"]),
        ("best:ties/dense", ["parallel-ties", "ties-dense-2"]),
        ("best:*/l1", ["paft-ties"]),
        ("best:fusion/*", ["parallel-ties", "ties-dense-2", "paft-ties"]),
        ("best:joint", ["joint"]),
        ("control:kl", ["kl-1", "kl-2"]),
        ("control:kl/ties", ["kl-1-ties"]),
        ("best:ram/dense", []),
        ("nothing", []),
    ],
)
def test_a_contrast_names_arms(reference: str, names: list[str]) -> None:
    assert [arm.name for arm in design().named(reference)] == names


def test_what_must_not_change_is_told_from_what_may() -> None:
    same = design(arms=ARMS[:2], description="other").frozen
    assert same == design().frozen
    other = design(seeds=(1, 2, 3)).frozen
    assert [name for name in same if same[name] != other[name]] == ["seeds"]


def test_a_contrast_with_a_misspelt_key_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "design.json"
    design().write(file)
    file.write_text(file.read_text(encoding="utf-8").replace('"question"', '"qestion"'), encoding="utf-8")
    with pytest.raises(PaftError, match="damaged"):
        Design.read(file)
