"""Each mistake planted once is found, all at once, and a healthy set-up has none."""

from __future__ import annotations

import json
import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from paft_plugin.deltas.skeleton import build_model
from paft_plugin.demo.data import write_data, write_tasks
from paft_plugin.demo.pretrain import new_model
from paft_plugin.errors import Findings
from paft_plugin.pipeline.preflight import preflight
from tests.deltas.architectures import save
from tests.pipeline.room import Room

Preflight = Callable[..., Findings]
PLUGIN = "paft_plugin.PAFTPlugin"
TEMPLATE = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"


def one(problems: list[str], *words: str) -> None:
    """There is one problem, and it holds `words`."""
    assert len(problems) == 1, problems
    for word in words:
        assert word in problems[0]


@pytest.mark.parametrize("rl", ["dpo", "orpo"])
def test_nothing_is_said_of_a_healthy_setup(check: Preflight, rl: str) -> None:
    assert check(rl=rl, sequential=True) == Findings()


def test_everything_is_said_at_once(check: Preflight, room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    full(monkeypatch)
    other = room.data("other.jsonl", [{"prompt": "a", "response": "b"}], type="chat_template")
    found = check(
        sft={"datasets": other, "learning_rat": 1e-4, "base_model": "some/other"},
        preference={
            "paft_l1_lambda": 1e-4,
            "lora_alpha": "many",
            "datasets": [{"path": "gone.jsonl", "type": "chatml.ultra"}],
        },
    )
    for words in (
        "base_model: some/other",
        "learning_rat: axolotl has no such key",
        "axolotl cannot read this row",
        "The penalty belongs to the SFT branch",
        "lora_alpha: Input should be a valid integer",
        "gone.jsonl: no such file",
        "free. Make room",
    ):
        assert [words in problem for problem in found.problems].count(True) == 1, (words, found.problems)
    assert len(found.problems) == 7


# --- what branches share ------------------------------------------------------------------------------------------------


def test_other_base(check: Preflight, demo: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(demo / "base", tmp_path / "copy")
    assert check(sft={"base_model": str(copy)}).problems == []  # the same content
    weights = copy / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    one(check(sft={"base_model": str(copy)}).problems, "sft.yml: base_model:", "is not the base of")


def test_new_tokens(check: Preflight) -> None:
    new = {"tokens": ["<new>"], "lora_modules_to_save": ["embed_tokens", "lm_head"]}
    one(check(preference=new).problems, "preference.yml", "'<new>'", "embeddings are resized")
    found = check(sft={"special_tokens": {"pad_token": "<padding>"}})
    one(found.problems, "sft.yml", "'<padding>'")


@pytest.mark.parametrize(
    ("padded", "keys", "words"),
    [
        (0, {"resize_token_embeddings_to_32x": True}, "embeddings of the base become"),
        (64, {"shrink_embeddings": True}, "shrink_embeddings"),
        (64, {"shrink_embeddings": True, "resize_token_embeddings_to_32x": True}, " and shrink_embeddings"),
        (-5, {}, "embeddings, so that axolotl resizes them"),
        (64, {}, ""),
        (64, {"resize_token_embeddings_to_32x": True}, ""),
    ],
)
def test_resized_embeddings(room: Room, check: Preflight, tmp_path: Path, padded: int, keys: Any, words: str) -> None:
    """The base has so many embeddings more than its tokenizer has tokens."""
    base = shutil.copytree(room.demo / "base", tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"vocab_size": config["vocab_size"] + padded}))
    problems = check(sft={"base_model": None}, preference={"base_model": None, **keys}, base=str(base)).problems
    mine = [problem for problem in problems if "preference.yml" in problem]
    assert len(mine) == bool(words), problems
    assert all(words in problem for problem in mine)


def test_a_multimodal_base_without_its_processor(check: Preflight, room: Room, tmp_path: Path) -> None:
    base = shutil.copytree(room.demo / "base", tmp_path / "base")
    text = json.loads((base / "config.json").read_text())
    vision = {"model_type": "clip_vision_model", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    content = {"model_type": "llava", "text_config": text, "vision_config": vision}
    (base / "config.json").write_text(json.dumps(content))
    problems = check(sft={"base_model": None}, preference={"base_model": None}, base=str(base)).problems
    for name in ("sft.yml", "preference.yml"):
        one([problem for problem in problems if name in problem], "multimodal", "processor_config.json")


def test_a_tied_head_among_all_linear_modules(check: Preflight, demo: Path, tmp_path: Path) -> None:
    """axolotl 0.19 knows the head of NeoX by the name that it had in transformers 4; DPO then ended when it was to be saved."""
    from axolotl.loaders.adapter import find_all_linear_names

    base = shutil.copytree(demo / "base", tmp_path / "base")
    save(lambda: new_model(52, "gpt_neox"), base)
    (base / "generation_config.json").unlink()
    places = {"base": str(base), "sft": {"base_model": str(base)}, "preference": {"base_model": str(base)}}
    problems = check(**places).problems
    wanted = "Name lora_target_modules: [dense, dense_4h_to_h, dense_h_to_4h, query_key_value] instead."
    trains_it = "lm_head" in find_all_linear_names(build_model(base))
    assert [problem.endswith(wanted) for problem in problems] == [True, True] * trains_it, problems


def test_other_special_tokens(check: Preflight, demo: Path) -> None:
    from transformers import AutoTokenizer

    word = AutoTokenizer.from_pretrained(demo / "base").convert_ids_to_tokens(5)
    special, template = check(sft={"special_tokens": {"eos_token": word}}).problems
    assert "different special tokens (eos_token" in special
    assert "different chat templates" in template  # it writes the EOS token


@pytest.mark.parametrize("place", ["config", "dataset"])
def test_other_chat_template(check: Preflight, room: Room, place: str) -> None:
    keys: dict[str, Any] = {"chat_template": "jinja", "chat_template_jinja": TEMPLATE}
    sft = room.config("sft", {})
    changes = keys if place == "config" else {"datasets": [{**sft["datasets"][0], **keys}]}
    one(check(sft=changes).problems, "different chat templates", "sft.yml", "preference.yml")


@pytest.mark.parametrize("in_chat", [True, False])
def test_tasks_are_asked_in_the_template_of_the_base(check: Preflight, tmp_path: Path, in_chat: bool) -> None:
    write_tasks(tmp_path / "tasks", tmp_path / "data" / "test")
    write_data(tmp_path / "data", 0, sft_rows=8, preference_rows=8, items=60)
    asked = {"tasks": str(tmp_path / "tasks"), "measures": ["paft_skill"], "apply_chat_template": in_chat}
    keys: dict[str, Any] = {"chat_template": "jinja", "chat_template_jinja": TEMPLATE}
    found = check(sft=keys, preference=keys, evaluation={**asked, "held_out": False})
    assert found.problems == []
    said = [warning for warning in found.warnings if "another chat template than the base's own" in warning]
    assert len(said) == 2 * in_chat


def test_same_text_from_another_template_is_the_same_template(check: Preflight, demo: Path) -> None:
    own = (demo / "base" / "chat_template.jinja").read_text(encoding="utf-8")
    assert check(sft={"chat_template": "jinja", "chat_template_jinja": own + "{# the same #}"}) == Findings()


def test_a_preference_type_with_its_own_format(check: Preflight, room: Room) -> None:
    rows = [{"prompt": f"Sort {n}.", "chosen": "Sure: 1", "rejected": "2"} for n in range(20)]
    data = room.data("pairs.jsonl", rows, type="chatml.prompt_pairs")
    found = check(preference={"datasets": data, "sequence_len": 128})
    assert found.problems == []
    one(found.warnings, "lead over to an answer differently", "<|im_start|>assistant")


def test_other_precision_is_a_warning(check: Preflight) -> None:
    found = check(sft={"adapter": "qlora", "load_in_4bit": True})
    assert found.problems == []
    one(found.warnings, "different precisions (4 bits and whole)")


# --- the penalty --------------------------------------------------------------------------------------------------------


def test_penalty_is_missing(check: Preflight) -> None:
    without = check(sft={"plugins": None, "paft_l1_lambda": None})
    assert not without.problems  # dense ways are compared as well
    one(without.warnings, "the SFT branch has no penalty, so all arms are dense")
    one(check(sft={"plugins": None}).problems, "paft_l1_lambda", f"`- {PLUGIN}`")
    one(check(sft={"paft_l1_lambda": None}).problems, "paft_l1_lambda is not set")


def test_penalty_that_only_measures(check: Preflight) -> None:
    found = check(sft={"paft_l1_lambda": 0})
    assert found.problems == []
    one(found.warnings, "only measures")


def test_the_plugin_by_its_module(check: Preflight) -> None:
    assert check(sft={"plugins": ["paft_plugin.plugin.PAFTPlugin"]}).problems == []


def test_penalty_on_the_preference_branch(check: Preflight) -> None:
    one(check(preference={"paft_l1_lambda": 1e-4}).problems, "belongs to the SFT branch")
    assert check(preference={"plugins": [PLUGIN], "paft_l1_lambda": 1e-4}).problems == []


# --- axolotl's own validation -------------------------------------------------------------------------------------------


def test_what_axolotl_refuses(check: Preflight) -> None:
    found = check(sft={"sequence_len": "long"}, preference={"sample_packing": True})
    assert any("sft.yml: sequence_len:" in problem for problem in found.problems)
    assert any("preference.yml" in problem and "sample_packing" in problem for problem in found.problems)


def test_unknown_keys(check: Preflight, room: Room) -> None:
    one(check(sft={"lora_alhpa": 8}).problems, "lora_alhpa: axolotl has no such key", "Did you mean lora_alpha?")
    one(check(sft={"paft_l1_lamda": 1e-4}).problems, "paft_l1_lamda", "paft_l1_lambda")
    entry = {**room.config("sft", {})["datasets"][0], "field_mesages": "messages"}
    one(check(sft={"datasets": [entry]}).problems, "datasets[0].field_mesages", "field_messages")
    found = check(sft={"x-shared": 1})
    assert found.problems == []
    one(found.warnings, "x-shared")


def test_a_key_that_a_strategy_drops(check: Preflight, room: Room) -> None:
    entry = {**room.config("dpo", {})["datasets"][0], "roles": {"user": ["user"]}}
    one(check(preference={"datasets": [entry]}).problems, "datasets[0].roles: axolotl drops this key under rl: dpo")


def test_a_plugin_that_cannot_be_imported(check: Preflight) -> None:
    one(check(sft={"plugins": [PLUGIN, "no_such.Plugin"]}).problems, "no_such.Plugin cannot be loaded")


# --- restart, disk, further checks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"save_strategy": "no", "save_steps": None},
        {"save_only_model": True},
        {"auto_resume_from_checkpoints": False},
        {"save_steps": 500, "max_steps": 100},
        {"save_steps": None, "max_steps": None, "num_epochs": 1},
    ],
)
def test_trainings_that_start_again(check: Preflight, changes: dict[str, Any]) -> None:
    found = check(sft=changes)
    assert found.problems == []
    one(found.warnings, "sft.yml", "starts again from the beginning", "save_steps")


def full(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9 - 10**6, 10**6))


def test_full_disk(check: Preflight, monkeypatch: pytest.MonkeyPatch) -> None:
    full(monkeypatch)
    one(check().problems, "output_dir", "1 MB free. Make room")


def test_trained_branches(check: Preflight, tmp_path: Path) -> None:
    (tmp_path / "done").mkdir()
    found = check(compare={"done": {"trained": "done"}})
    one(found.problems, "done")


@pytest.mark.slow
def test_the_probe_as_a_process_of_its_own(room: Room) -> None:
    found = preflight(room.setup(sft={"learning_rat": 1}))
    one(found.problems, "learning_rat")
