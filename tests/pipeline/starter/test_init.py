"""What `axolotl paft init` writes passes its own preflight, says why, and overwrites nothing."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from shlex import quote
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from paft_plugin.cli import paft
from paft_plugin.errors import PaftError
from paft_plugin.penalty.strength import ENOUGH_STEPS
from paft_plugin.pipeline.arms import Setup, resolve
from paft_plugin.pipeline.config import read_config
from paft_plugin.pipeline.preflight import preflight
from paft_plugin.pipeline.starter import TrainedBranch, Wish, write_starter
from paft_plugin.pipeline.starter.model import look_at
from paft_plugin.pipeline.starter.write import MICRO
from tests.pipeline.rows import ALPACA, CHAT, PAIR, SHAREGPT, WHOLE


def rows_file(folder: Path, name: str, row: dict[str, Any]) -> str:
    file = folder / name
    file.write_text((json.dumps(row) + "\n") * 20, encoding="utf-8")
    return str(file)


def setup_of(folder: Path) -> Setup:
    file = folder / "paft.yml"
    config = read_config(file)
    return resolve(config, file, Path(config.base))


@pytest.mark.usefixtures("forked")
@pytest.mark.parametrize(("adapter", "rl"), [("lora", "dpo"), ("qlora", "orpo"), ("full", "dpo"), ("lora", "simpo")])
def test_passes_preflight(demo: Path, tmp_path: Path, adapter: Any, rl: Any) -> None:
    data = demo / "data"
    write_starter(
        Wish(str(demo / "base"), str(data / "sft.jsonl"), str(data / "preference.jsonl"), tmp_path, adapter, rl),
        gpu=False,
    )
    found = preflight(setup_of(tmp_path))
    assert found.problems == []
    assert [
        warning
        for warning in found.warnings
        if "rows are held out for the test" not in warning and "another row" not in warning
    ] == []


@pytest.mark.usefixtures("forked")
@pytest.mark.parametrize("sft", [CHAT, SHAREGPT, ALPACA])
@pytest.mark.parametrize(("rl", "pair"), [("dpo", PAIR), ("dpo", WHOLE), ("orpo", WHOLE)])
def test_reads_rows_of_many_shapes(demo: Path, tmp_path: Path, sft: Any, rl: Any, pair: Any) -> None:
    files = rows_file(tmp_path, "sft.jsonl", sft), rows_file(tmp_path, "pairs.jsonl", pair)
    write_starter(Wish(str(demo / "base"), *files, tmp_path, "lora", rl), gpu=False)
    (said,) = preflight(setup_of(tmp_path)).problems
    assert said.startswith("evaluation: no row can be held out"), "they are one row, copied"


def turn_penalty_on(sft: Path) -> None:
    """Take the # away, as the comment says."""
    text = sft.read_text(encoding="utf-8")
    sft.write_text(re.sub("^# (?=plugins:|paft_)", "", text, flags=re.MULTILINE), encoding="utf-8")


def test_every_choice_that_depends_on_what_was_seen_says_why(demo: Path, tmp_path: Path) -> None:
    files = rows_file(tmp_path, "sft.jsonl", SHAREGPT), rows_file(tmp_path, "pairs.jsonl", PAIR)
    write_starter(Wish(str(demo / "base"), *files, tmp_path), gpu=False)
    text = (tmp_path / "sft.yml").read_text(encoding="utf-8")
    for key in (
        "chat_template",
        "type",
        "sequence_len",
        "val_set_size",
        "learning_rate",
        "bf16",
    ):
        line = next(line for line in text.splitlines() if line.strip(" -").startswith(f"{key}:"))
        assert "#" in line, key
    assert "# paft_target_sparsity: 0.9  # λ finds itself" in text
    assert max(map(len, text.splitlines())) <= 120
    content = yaml.safe_load(text)
    assert content["learning_rate"] == 1e-3  # a number, not a word
    assert content["datasets"][0]["message_property_mappings"] == {"role": "from", "content": "value"}


@pytest.mark.parametrize(
    ("parameters", "rate"), [(None, 1e-4), (5e8, 1e-3), (5e8 + 1, 2e-4), (2e9, 2e-4), (2e9 + 1, 1e-4)]
)
def test_rates_fall_with_the_size_and_say_whether_they_were_measured(
    demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parameters: float | None, rate: float
) -> None:
    found = replace(look_at(str(demo / "base")), parameters=parameters)
    monkeypatch.setattr("paft_plugin.pipeline.starter.write.look_at", lambda _: found)
    files = rows_file(tmp_path, "sft.jsonl", CHAT), rows_file(tmp_path, "pairs.jsonl", PAIR)
    write_starter(Wish(str(demo / "base"), *files, tmp_path), gpu=False)
    text = (tmp_path / "sft.yml").read_text(encoding="utf-8")
    assert yaml.safe_load(text)["learning_rate"] == rate
    assert ("among the best of several" in text) == (rate == 1e-3)


def test_the_run_compares_the_ways_of_combining_on_rows_that_are_held_out(demo: Path, tmp_path: Path) -> None:
    data = demo / "data"
    write_starter(
        Wish(str(demo / "base"), str(data / "sft.jsonl"), str(data / "preference.jsonl"), tmp_path), gpu=False
    )
    assert max(map(len, (tmp_path / "paft.yml").read_text(encoding="utf-8").splitlines())) <= 130
    setup = setup_of(tmp_path)
    fused = [f"parallel-{method}" for method in ("task_arithmetic", "dare_ties", "ties", "ram")]
    assert [arm.name for arm in setup.arms] == ["base", "sft", "dpo", "joint", "sequential", *fused]
    assert [branch.name for branch in setup.trainings] == ["sft", "dpo", "joint"]
    assert setup.config.evaluation is not None
    assert setup.config.evaluation.held_out == {"sft": 10, "preference": 10}


@pytest.mark.parametrize(("way", "trained"), [(0, ["sft-l1", "dpo", "sft", "joint"]), (1, ["sft-l1", "dpo"])])
def test_what_it_says_to_write_for_the_penalty_trains_with_it(
    demo: Path, tmp_path: Path, way: int, trained: list[str]
) -> None:
    data = demo / "data"
    write_starter(
        Wish(str(demo / "base"), str(data / "sft.jsonl"), str(data / "preference.jsonl"), tmp_path), gpu=False
    )
    text = (tmp_path / "paft.yml").read_text(encoding="utf-8")
    arms = [part for part in text.split("`") if part.startswith("arms: ")][way]
    content = yaml.safe_load(text) | yaml.safe_load(arms) | {"sequential": False}
    if way == 1:
        del content["compare"]
    (tmp_path / "paft.yml").write_text(yaml.safe_dump(content), encoding="utf-8")
    with pytest.raises(PaftError, match="arm sft-l1: there is no penalty in the config"):
        setup_of(tmp_path)
    turn_penalty_on(tmp_path / "sft.yml")
    assert [branch.name for branch in setup_of(tmp_path).trainings] == trained


def test_branches_of_other_trainers_are_fused_as_they_are(demo: Path, tmp_path: Path) -> None:
    files = rows_file(tmp_path, "sft.jsonl", CHAT), rows_file(tmp_path, "pairs.jsonl", PAIR)
    (tmp_path / "math lora").mkdir()
    (tmp_path / "math lora" / "adapter_config.json").write_text("{}")
    arguments = [
        "init",
        str(demo / "base"),
        "--sft-data",
        files[0],
        "--preference-data",
        files[1],
        "--output",
        str(tmp_path / "my out"),
    ]
    ended = CliRunner().invoke(
        paft, [*arguments, "--branch", f"math={tmp_path / 'math lora'}", "--branch", "taste={},role=nose"]
    )
    assert ended.exit_code == 2
    assert "nose" in ended.output
    ended = CliRunner().invoke(paft, [*arguments, "--branch", f"math={tmp_path / 'math lora'}"])
    assert ended.exit_code == 0, ended.output
    assert f"axolotl paft run {quote(str(tmp_path / 'my out' / 'paft.yml'))} --dry-run" in ended.output
    setup = setup_of(tmp_path / "my out")
    assert setup.fused == {"sft": "sft", "preference": "dpo", "math": "math"}
    assert [branch.name for branch in setup.trainings] == ["sft", "dpo"]
    names = {arm.name for arm in setup.arms}
    assert {"base", "sft", "dpo", "math", "parallel-ties", "parallel-ram", "without-math-task_arithmetic"} <= names
    with pytest.raises(PaftError, match=r"gone is neither a folder nor a hub name"):
        write_starter(
            Wish(str(demo / "base"), *files, tmp_path / "b", branches=(TrainedBranch("x", "sft", "gone"),)), gpu=False
        )


def test_a_base_without_template_and_padding(demo: Path, tmp_path: Path) -> None:
    base = shutil.copytree(demo / "base", tmp_path / "base")
    (base / "chat_template.jinja").unlink()
    config = json.loads((base / "tokenizer_config.json").read_text())
    config.pop("pad_token")
    (base / "tokenizer_config.json").write_text(json.dumps(config))
    files = rows_file(tmp_path, "sft.jsonl", CHAT), rows_file(tmp_path, "pairs.jsonl", PAIR)
    write_starter(Wish(str(base), *files, tmp_path), gpu=False)
    for name in ("sft", "preference"):
        content = yaml.safe_load((tmp_path / f"{name}.yml").read_text(encoding="utf-8"))
        assert content["chat_template"] == "alpaca"
        assert content["special_tokens"] == {"pad_token": "<pad>"}


@pytest.mark.parametrize(
    ("rows", "accumulated", "epochs"),
    [(None, 8, 1), (5000, 8, 1), (960, 8, 1), (959, 4, 1), (300, 2, 1), (121, 1, 1), (100, 1, 2), (1, 1, 60)],
)
def test_few_rows_still_make_enough_steps(
    demo: Path, tmp_path: Path, rows: int | None, accumulated: int, epochs: int
) -> None:
    data = "org/chats"
    if rows:
        data = str(tmp_path / "rows.jsonl")
        Path(data).write_text((json.dumps(CHAT) + "\n") * rows, encoding="utf-8")
    write_starter(Wish(str(demo / "base"), data, str(demo / "data" / "preference.jsonl"), tmp_path), gpu=False)
    text = (tmp_path / "sft.yml").read_text(encoding="utf-8")
    content = yaml.safe_load(text)
    assert (content["gradient_accumulation_steps"], content["num_epochs"]) == (accumulated, epochs)
    if rows:
        steps = -(-rows // (MICRO * accumulated)) * epochs
        assert steps >= ENOUGH_STEPS
        assert f"{rows} rows make {steps} steps" in text


def test_hub_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    write_starter(Wish("org/model", "org/chats", "org/pairs", tmp_path), gpu=True)
    content = yaml.safe_load((tmp_path / "preference.yml").read_text(encoding="utf-8"))
    assert content["base_model"] == "org/model"
    assert content["datasets"][0]["path"] == "org/pairs"
    assert content["bf16"] is True
    assert "not looked at" in (tmp_path / "sft.yml").read_text(encoding="utf-8")
    assert read_config(tmp_path / "paft.yml").base_is_remote


def test_all_mistakes_at_once(tmp_path: Path) -> None:
    (tmp_path / "sft.yml").write_text("mine")
    pairs = rows_file(tmp_path, "pairs.jsonl", PAIR)
    with pytest.raises(PaftError) as raised:
        write_starter(Wish("./no-model", "gone.jsonl", pairs, tmp_path, rl="orpo"), gpu=False)
    assert len(raised.value.problems) == 4
    for words in ("sft.yml is there already", "./no-model", "gone.jsonl: no such file", "ORPO axolotl wants whole"):
        assert words in str(raised.value)
    assert (tmp_path / "sft.yml").read_text() == "mine"


def test_on_the_command_line(demo: Path, tmp_path: Path) -> None:
    files = rows_file(tmp_path, "sft.jsonl", CHAT), rows_file(tmp_path, "pairs.jsonl", PAIR)
    out = tmp_path / "out"
    arguments = [
        "init",
        str(demo / "base"),
        "--sft-data",
        files[0],
        "--preference-data",
        files[1],
        "--output",
        str(out),
    ]
    first = CliRunner().invoke(paft, arguments)
    assert first.exit_code == 0, first.output
    assert f"axolotl paft run {out}/paft.yml --dry-run" in first.output
    again = CliRunner().invoke(paft, arguments)
    assert again.exit_code == 2
    assert again.output.count("is there already") == 3
    assert CliRunner().invoke(paft, [*arguments, "--force"]).exit_code == 0


@pytest.mark.slow
def test_axolotl_trains_what_it_writes(demo: Path, tmp_path: Path) -> None:
    """With the penalty, and by ORPO; `tests/end_to_end/test_new_user.py` trains without it, and by DPO."""
    data = demo / "data"
    write_starter(
        Wish(str(demo / "base"), str(data / "sft.jsonl"), str(data / "preference.jsonl"), tmp_path, "lora", "orpo"),
        False,
    )
    turn_penalty_on(tmp_path / "sft.yml")
    for name in ("sft", "preference"):
        file = tmp_path / f"{name}.yml"
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
        content |= {
            "max_steps": 3,
            "output_dir": str(tmp_path / name),
            "dataset_prepared_path": str(tmp_path / f"{name}-prepared"),
        }
        file.write_text(yaml.safe_dump(content), encoding="utf-8")
        done = subprocess.run(
            [sys.executable, "-m", "axolotl.cli.main", "train", str(file), "--launcher", "python"],
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        assert (tmp_path / name / "adapter_model.safetensors").is_file()
        assert list((tmp_path / name).glob("checkpoint-*")), "it could not be resumed"
        if name == "sft":
            assert json.loads((tmp_path / "sft" / "paft.json").read_text())["finished"]
