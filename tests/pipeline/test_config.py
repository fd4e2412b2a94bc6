"""`paft.yml` as a person writes it: short forms, relative paths, and every mistake at once."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from paft_plugin.errors import PaftError
from paft_plugin.pipeline.config import read_config
from tests.pipeline.runs import write_run, write_yaml


def problems(file: Path) -> list[str]:
    with pytest.raises(PaftError) as caught:
        read_config(file)
    assert all(problem.startswith(f"{file}: ") for problem in caught.value.problems)
    return [problem.removeprefix(f"{file}: ") for problem in caught.value.problems]


def test_paths_are_meant_from_the_file_wherever_one_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "a run + more"
    file = write_run(folder)
    monkeypatch.chdir("/")
    config = read_config(file)
    assert config.base == str(folder / "base")
    assert config.sft.config == folder / "sft.yml"
    assert config.output_dir == folder / "out"
    assert config.executor.kind == "local"
    assert list(config.fusion.methods) == ["ties"]
    assert not config.base_is_remote


def test_a_branch_is_a_file_a_config_or_a_trained_folder(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    inline = {"config": {"adapter": "lora"}, "overrides": {"lora_r": 4}}
    config = read_config(write_run(tmp_path, sft=inline, compare={"mine": "mine", "other": {"config": "dpo.yml"}}))
    assert config.sft.config == {"adapter": "lora"}
    assert config.compare.branches["mine"].trained == tmp_path / "mine"
    assert config.compare.branches["other"].config == tmp_path / "dpo.yml"


def test_a_hub_name_is_a_base_too(tmp_path: Path) -> None:
    config = read_config(write_run(tmp_path, base="org/model-7B"))
    assert (config.base, config.base_is_remote) == ("org/model-7B", True)


def test_nothing_may_be_scored(tmp_path: Path) -> None:
    assert read_config(write_run(tmp_path, evaluation=False)).evaluation is None


@pytest.mark.parametrize("skill", ["sft_match", "mine"])
def test_a_goal_is_a_task_or_a_measure_of_held_out_rows(tmp_path: Path, skill: str) -> None:
    evaluation = {"measures": ["mine"], "skill": skill, "preference": "preference"}
    assert read_config(write_run(tmp_path, evaluation=evaluation)).evaluation is not None


def test_all_mistakes_are_said_at_once(tmp_path: Path) -> None:
    file = write_run(
        tmp_path,
        base="nowhere/at/all",
        sft="gone.yml",
        preference={"config": "dpo.yml", "trained": "base"},
        outptu_dir="x",
        fusion={"methods": ["tiess"], "recipes": {"ties": "paft.yml", "a/b": "paft.yml"}},
        executor={"kind": "ray", "workers": 2},
        evaluation={"measures": ["a"], "skill": "b", "held_out": {"stf": 5}},
        arms=[],
    )
    said = problems(file)
    for start in (
        "base: nowhere/at/all is neither a folder",
        f"sft.config: {tmp_path / 'gone.yml'}: no such file",
        "preference: give either `config:`",
        "outptu_dir: no such key. Did you mean output_dir?",
        "fusion.methods.tiess: no such method. Did you mean ties?",
        "executor: workers: is not for `kind: ray`",
        "evaluation: skill: no such measure",
        "evaluation: held_out.stf: no such branch. Did you mean sft?",
        "arms: ",
    ):
        assert [problem for problem in said if problem.startswith(start)], (start, said)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("sft", {"trained": "base", "overrides": {"a": 1}}, "takes no other key"),
        ("sft", {"confg": "sft.yml"}, "Did you mean config?"),
        ("sft", 3, "sft: "),
        ("executor", "slurm", "executor.kind: "),
        ("fusion", {"methods": {"ties": {"denisty": 0.5}}}, "Did you mean density?"),
        ("fusion", {"methods": {"ties": {"density": 2}}}, "fusion: methods.ties: --density 2.0: must be above 0"),
        ("fusion", {"methods": {"linear": {"density": 0.5}}}, "methods.linear: --density: linear keeps every entry."),
        (
            "fusion",
            {"methods": {"ties": {"filter": ["mlp"]}}},
            "fusion.methods.ties.filter.0: --filter mlp: not of the form",
        ),
        ("compare", {"a b": "dpo.yml"}, "compare: a b: use letters"),
        (
            "compare",
            {"a": {"config": "sft.yml", "overridess": {}}},
            "compare.a.overridess: no such key. Did you mean overrides",
        ),
        ("fusion", {"recipes": {"mine": "gone.yml"}}, "no such file"),
        ("inspection", {"thresholds": [-1]}, "inspection.thresholds"),
        ("fusion", {"recipes": {"ties": "paft.yml"}, "methods": ["ties"]}, "is also a method here"),
    ],
)
def test_one_mistake_is_one_line(tmp_path: Path, key: str, value: Any, message: str) -> None:
    said = problems(write_run(tmp_path, **{key: value}))
    assert any(message in problem for problem in said), said


def test_a_file_that_is_none(tmp_path: Path) -> None:
    (said,) = problems(tmp_path / "paft.yml")
    assert said.startswith("no such file")
    assert "axolotl paft init" in said
    (said,) = problems(tmp_path)
    assert "a folder, where a file is wanted" in said
    file = tmp_path / "paft.yml"
    write_yaml(file, {})
    assert {problem.partition(":")[0] for problem in problems(file)} == {"base", "sft", "preference", "output_dir"}


def test_the_readme_s_example_is_valid(tmp_path: Path) -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    # The first of them: the other is a study, and `tests/study/test_config.py` reads it.
    example, _ = (block for block in re.findall(r"```yaml\n(.*?)```", readme, re.DOTALL) if block.startswith("base:"))
    for name in ("sft.yml", "preference.yml", "orpo.yml"):
        write_yaml(tmp_path / name, {"adapter": "lora"})
    (tmp_path / "others.jsonl").touch()
    (tmp_path / "paft.yml").write_text(example)
    config = read_config(tmp_path / "paft.yml")
    assert (config.base_is_remote, config.orders, config.evaluation.skill) == (True, ((),), ("skill",))  # type: ignore[union-attr]


def test_a_study_is_told_apart_from_a_run(tmp_path: Path) -> None:
    file = write_run(tmp_path / "a study", seeds=[1, 2])
    assert problems(file) == [f"is a study, which has seeds. Run it with `axolotl paft study '{file}'`."]
