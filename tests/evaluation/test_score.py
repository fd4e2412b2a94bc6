"""Scoring: the same every time, adapters as well as models, no finished arm lost, and one clear line for bad input."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from paft_plugin.errors import PaftError
from paft_plugin.evaluation import score as scoring
from paft_plugin.evaluation.candidates import Candidate, Loader, dtype_name, parse_all
from paft_plugin.evaluation.config import EvaluationConfig
from paft_plugin.evaluation.held_out_rows import write_rows as write_held_out
from paft_plugin.evaluation.items import read_items
from paft_plugin.evaluation.results import Measure, read_scores
from paft_plugin.evaluation.score import main, score
from paft_plugin.evaluation.scorer import Scorer, TaskScore
from paft_plugin.files import write_json
from tests.deltas.builders import edit_config
from tests.evaluation.items import demo_config
from tests.evaluation.models import build_model, load
from tests.evaluation.rows import random_rows

ADAPTER_WEIGHTS = "adapter_model.safetensors"


def build_adapter(base: Path, directory: Path, *, spread: float) -> Path:
    """Save a LoRA on `base` with B normal of standard deviation `spread`."""
    torch.manual_seed(1)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base), LoraConfig(r=2, target_modules=["q_proj", "o_proj"])
    )
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter.data, std=spread)
    model.save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_adapter(base, tmp_path_factory.mktemp("adapters") / "loud", spread=3.0)


def likelihoods(candidate: Candidate, dtype: str = "float32") -> list[float]:
    from lm_eval.api.instance import Instance

    texts = [("<s><|user|>copy ab<|assistant|>", "ab.</s>"), ("<s><|user|>add 1+2<|assistant|>", "sure: 3!</s>")]
    requests = [Instance("loglikelihood", {}, text, index) for index, text in enumerate(texts)]
    return [value for value, _ in load(candidate, batch_size=64, dtype=dtype).loglikelihood(requests)]


@pytest.fixture
def config(tasks: Path) -> EvaluationConfig:
    return demo_config(tasks)


@pytest.fixture
def there(config: EvaluationConfig, tmp_path: Path) -> list[str]:
    """Options that say what to score on and where to write."""
    write_json(tmp_path / "measures.json", config.model_dump(mode="json"))
    return ["--measures", str(tmp_path / "measures.json"), "--output-dir", str(tmp_path / "new")]


def test_the_same_every_time_and_what_is_in_it(
    base: Path, adapter: Path, config: EvaluationConfig, tmp_path: Path
) -> None:
    contents = []
    for name in ("first", "second"):
        score(parse_all([f"base={base}", f"sft={adapter}"]), config, tmp_path / name)
        files = [tmp_path / name / arm / "scores.json" for arm in ("base", "sft")]
        contents.append([json.loads(file.read_text()) for file in files])
        assert all(
            each["scores"][arm].pop("seconds") > 0 for arm, each in zip(("base", "sft"), contents[-1], strict=True)
        )
    (content, other), again = contents
    assert [content, other] == again
    assert content["schema"] == 2
    assert [measure["name"] for measure in content["measures"]] == ["skill", "preference", "style", "retained"]
    assert content["measures"][0] == {
        "name": "skill",
        "task": "paft_skill",
        "metric": "exact_match",
        "filter": "answer",
        "higher_is_better": True,
        "margin": None,
    }
    assert (list(content["scores"]), list(other["scores"])) == (["base"], ["sft"])
    for each in (content["scores"]["base"], other["scores"]["sft"]):
        assert set(each) == {"scores", "stderr", "n"}
        assert all(0 <= value <= 1 for value in each["scores"].values())
        assert list(each["scores"]) == list(each["stderr"]) == list(each["n"])


def test_an_adapter_is_scored_on_its_base(base: Path, adapter: Path, tmp_path: Path) -> None:
    plain = likelihoods(Candidate("base", base))
    assert parse_all([f"sft={adapter}"]) == [Candidate("sft", base, adapter)]
    assert likelihoods(Candidate("sft", base, adapter)) != pytest.approx(plain, abs=0.1)
    silent = build_adapter(base, tmp_path / "silent", spread=0.0)
    assert likelihoods(Candidate("silent", base, silent)) == plain


def test_a_half_precision_model_is_scored_in_float32(base: Path, tmp_path: Path) -> None:
    half = tmp_path / "half"
    shutil.copytree(base, half)
    AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16).save_pretrained(half)
    candidate = Candidate("half", half)
    assert load(candidate, batch_size=1).model.dtype == torch.float32
    assert load(Candidate("base", base), batch_size=1, dtype="auto").model.dtype == torch.float32
    assert load(Candidate("base", base), batch_size=1, dtype="float16").model.dtype == torch.float16


def test_likelihoods_of_a_half_precision_model_are_not_rounded_to_it(base: Path) -> None:
    """Of two answers to choose from, many would come out equal."""
    found = torch.tensor(likelihoods(Candidate("base", base), "bfloat16"))
    assert (found.bfloat16().float() != found).all()


def test_without_a_chat_template_prompts_are_plain_text_if_that_is_wanted(
    base: Path, tasks: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(base, folder)
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(PaftError, match=r"no chat template\..* set evaluation\.apply_chat_template: false"):
        score([Candidate("x", folder)], demo_config(tasks), tmp_path / "scores")
    plain = demo_config(tasks, apply_chat_template=False)
    assert score([Candidate("x", folder)], plain, tmp_path / "scores")["x"].scores


def test_a_limit_is_of_each_task(base: Path, tasks: Path, tmp_path: Path) -> None:
    scores = score([Candidate("x", base)], demo_config(tasks, limit=2), tmp_path / "scores")
    assert set(scores["x"].n.values()) == {2}


def test_a_number_that_is_not_finite_is_left_out_with_a_warning(
    base: Path, there: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = Scorer.score
    nan = TaskScore({"acc,none": math.nan}, {"acc,none": math.nan})
    monkeypatch.setattr(Scorer, "score", lambda self: found(self) | {"paft_preference": nan})
    assert main([*there, f"base={base}"]) == 0
    written = json.loads((tmp_path / "new" / "base" / "scores.json").read_text())["scores"]["base"]
    assert list(written["scores"]) == list(written["stderr"]) == ["skill", "style", "retained"]
    assert "Warning: arm base: preference is no finite number" in capsys.readouterr().err


def test_a_later_failure_costs_no_finished_arm(
    base: Path, adapter: Path, config: EvaluationConfig, tmp_path: Path
) -> None:
    wider, output = build_model(tmp_path / "wider", hidden=48), tmp_path / "scores"
    with pytest.raises(PaftError, match=r"^arm other: .*can't be loaded: .*size mismatch"):
        score([Candidate("base", base), Candidate("other", wider, adapter)], config, output)
    assert sorted(path.name for path in output.iterdir()) == ["base"]


def drop_tensor(file: Path) -> None:
    tensors = load_file(file)
    del tensors[next(name for name in tensors if name.endswith("q_proj.weight"))]
    save_file(tensors, file, {"format": "pt"})


def rename_tensors(file: Path) -> None:
    save_file({name.replace("q_proj", "query"): tensor for name, tensor in load_file(file).items()}, file)


def cut_short(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("kind", "spoil", "message"),
    [
        ("model", lambda folder: cut_short(folder / "model.safetensors"), "model.safetensors is corrupt"),
        ("model", lambda folder: (folder / "model.safetensors").unlink(), "no weights in"),
        ("model", lambda folder: (folder / "config.json").unlink(), "no model in"),
        ("model", lambda folder: (folder / "config.json").write_text("{"), "can't be loaded"),
        ("model", lambda folder: drop_tensor(folder / "model.safetensors"), "lacks 1 tensors .*q_proj"),
        ("model", lambda folder: (folder / "tokenizer.json").unlink(), "can't be loaded"),
        ("model", lambda folder: (folder / "chat_template.jinja").unlink(), "has no chat template"),
        ("adapter", lambda folder: cut_short(folder / ADAPTER_WEIGHTS), "adapter_model.safetensors is corrupt"),
        ("adapter", lambda folder: (folder / ADAPTER_WEIGHTS).unlink(), "no weights in"),
        ("adapter", lambda folder: (folder / "adapter_config.json").unlink(), "no adapter in"),
        ("adapter", lambda folder: rename_tensors(folder / ADAPTER_WEIGHTS), "missing adapter keys"),
        ("adapter", lambda folder: edit_config(folder, r=4), "size mismatch"),
    ],
)
def test_a_spoilt_folder_is_one_line_that_names_the_arm(
    kind: str, spoil: Any, message: str, base: Path, adapter: Path, config: EvaluationConfig, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(base if kind == "model" else adapter, tmp_path / kind))
    spoil(folder)
    candidate = Candidate("sft", folder) if kind == "model" else Candidate("sft", base, folder)
    with pytest.raises(PaftError, match=f"^arm sft: .*{message}") as caught:
        score([candidate], config, tmp_path / "scores")
    assert "\n" not in str(caught.value)


def test_all_mistakes_at_once_before_anything_is_scored(
    base: Path, tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Loader, "load", lambda *_: pytest.fail("loaded although another arm is wrong"))
    candidates = [Candidate("base", base), Candidate("dpo", tmp_path / "a"), Candidate("dpo", base, tmp_path / "b")]
    config = demo_config(tasks, measures=["paft_skil"], skill=None, preference=None, device="nonsense")
    with pytest.raises(PaftError) as caught:
        score(candidates, config, tmp_path / "scores")
    assert [problem.split(" (")[0] for problem in caught.value.problems] == [
        "arm dpo: named 2 times",
        f"arm dpo: no model in {tmp_path / 'a'}",
        f"arm dpo: no adapter in {tmp_path / 'b'}",
        "evaluation.device: nonsense is not to be had here",
        f"evaluation.measures.paft_skil: no such task in {tasks} nor of lm-eval. Did you mean paft_skill?",
    ]


def test_the_command_line_explains_and_returns_2(
    base: Path, adapter: Path, there: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    homeless = tmp_path / "homeless"
    shutil.copytree(adapter, homeless)
    edit_config(homeless, base_model_name_or_path="some/hub-model")

    assert main([*there, "sft", "=x", f"dpo={homeless}"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert all(line.startswith("Error: ") for line in lines)
    assert f"--adapter dpo BASE {homeless}" in lines[2]

    assert main(there) == 2
    assert "name at least one" in capsys.readouterr().err
    measures = tmp_path / "measures.json"
    edit_config(measures.parent, measures.name, tasks=str(tmp_path / "nowhere"), skill="skil", held_out=False)
    assert main([*there, f"base={base}"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        f"Error: {measures}: tasks: {tmp_path / 'nowhere'} is no folder. Check the path.",
        f"Error: {measures}: skill: no such measure. Did you mean skill?",
    ]
    measures.write_text("{")
    assert main([*there, f"base={base}"]) == 2
    assert "no valid JSON" in capsys.readouterr().err
    measures.unlink()
    assert main([*there, f"base={base}"]) == 2
    assert "no such file" in capsys.readouterr().err
    assert main([*there, "--adapter", "dpo", str(base)]) == 2


def test_the_command_line_scores(
    base: Path, adapter: Path, there: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*there, "--adapter", "dpo", str(base), str(adapter), f"base={base}"]) == 0
    files = {arm: tmp_path / "new" / arm / "scores.json" for arm in ("base", "dpo")}
    scores = {arm: json.loads(file.read_text())["scores"][arm] for arm, file in files.items()}
    shown = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("base: ", "dpo: "))]
    assert len(shown) == 2
    assert f"preference {scores['base']['scores']['preference']:.3f}" in shown[0]


@pytest.mark.slow
def test_lm_eval_by_hand_agrees(base: Path, adapter: Path, tasks: Path, tmp_path: Path) -> None:
    score([Candidate("sft", base, adapter)], demo_config(tasks), tmp_path / "scores")
    content = json.loads((tmp_path / "scores" / "sft" / "scores.json").read_text())
    ours, measures = content["scores"]["sft"], [Measure(**each) for each in content["measures"]]
    names = ",".join(measure.task for measure in measures)
    command = [sys.executable, "-m", "lm_eval", "--model", "hf", "--tasks", names, "--include_path", str(tasks)]
    command += ["--model_args", f"pretrained={base},peft={adapter},dtype=float32", "--apply_chat_template"]
    command += ["--batch_size", "64", "--device", "cpu", "--output_path", str(tmp_path / "by_hand.json")]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, cwd=tmp_path, env=environment, capture_output=True)
    (written,) = tmp_path.rglob("by_hand*.json")
    theirs = json.loads(written.read_text())["results"]
    for measure in measures:
        assert theirs[measure.task][measure.key] == ours["scores"][measure.name]
        assert theirs[measure.task][measure.key.replace(",", "_stderr,")] == ours["stderr"][measure.name]


def test_held_out_rows_and_tasks_are_scored_item_by_item_and_compared_with_the_base(
    base: Path, adapter: Path, tasks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In one process with the base, and later from what was kept of it; a measure's name that the user gave is the user's."""
    rows = random_rows()
    for name, own in {**rows.answers, **rows.pairs}.items():
        write_held_out(tmp_path / "held_out" / f"{name}.jsonl", own)
    measures = {"paft_skill": {"name": "skill"}, "paft_preference": {"name": "dpo_gained", "metric": "acc"}}
    config = demo_config(tasks, measures=measures, skill=None, preference=None, dtype="auto", keep_texts=True)
    write_json(tmp_path / "measures.json", config.model_dump(mode="json"))
    there = ["--measures", str(tmp_path / "measures.json"), "--held-out", str(tmp_path / "held_out")]
    there += ["--sft", "sft", "--preference", "dpo", "--sft", "none"]
    together, alone = tmp_path / "together", tmp_path / "alone"
    assert main([*there, "--output-dir", str(together), f"base={base}", f"sft={adapter}"]) == 0
    assert "none.jsonl: no rows of the test split" in capsys.readouterr().err
    assert main([*there, "--output-dir", str(alone), "--base-scores", str(together / "base"), f"sft={adapter}"]) == 0
    assert (alone / "sft" / "items.jsonl").read_bytes() == (together / "sft" / "items.jsonl").read_bytes()

    items = read_items(together / "sft" / "items.jsonl")
    measures, scores = read_scores([together / "base" / "scores.json", alone / "sft" / "scores.json"])
    assert [measure.name for measure in measures] == [
        *(
            "sft_match",
            "sft_nll",
            "dpo",
            "dpo_by_total",
            "dpo_by_token",
            "kl_to_base",
            "retained",
            "skill",
            "dpo_gained",
        )
    ]
    for name, value in scores["sft"].scores.items():
        values = [item.value for item in items if item.measure == name]
        assert sum(values) / len(values) == pytest.approx(value, abs=1e-9)
        assert len(values) == scores["sft"].n[name] > 1
    assert (scores["base"].scores["dpo"], scores["base"].scores["kl_to_base"]) == (0, 0)
    assert abs(scores["sft"].scores["dpo"]) > 0.1
    assert scores["sft"].scores["kl_to_base"] > 0.1
    assert all((item.answer is None) == (item.measure not in ("sft_match", "skill", "dpo_gained")) for item in items)


def test_validation_rows_are_scored_beside_the_test_rows_which_come_out_as_they_do_alone(
    base: Path, adapter: Path, tmp_path: Path
) -> None:
    """Each is what it would be as a test row; in one process with the base, and from what was kept of it."""
    rows = random_rows()
    found = {}
    for name in ("alone", "beside", "none"):
        folder = tmp_path / name
        for branch, own in {**rows.answers, **rows.pairs}.items():
            split = [row for place, row in enumerate(own) if name != "alone" or place < 3]
            split = [
                row.model_copy(update={"split": "validation" if name == "beside" and place < 3 else "test"})
                for place, row in enumerate(split)
            ]
            write_held_out(folder / "held_out" / f"{branch}.jsonl", split)
        write_json(folder / "measures.json", {"device": "cpu", "batch_size": 4, "validation": name == "beside"})
        words = ["--measures", str(folder / "measures.json"), "--held-out", str(folder / "held_out")]
        words += ["--sft", "sft", "--preference", "dpo", "--output-dir"]
        assert main([*words, str(folder / "scores"), f"base={base}", f"sft={adapter}"]) == 0
        kept = ["--base-scores", str(folder / "scores" / "base")]
        assert main([*words, str(folder / "later"), *kept, f"sft={adapter}"]) == 0
        items = (folder / "scores" / "sft" / "items.jsonl").read_bytes()
        assert (folder / "later" / "sft" / "items.jsonl").read_bytes() == items
        found[name] = {
            (one.measure, one.item): one.value for one in read_items(folder / "later" / "sft" / "items.jsonl")
        }
    beside = {key: value for key, value in found["beside"].items() if not key[0].endswith("_validation")}
    chosen_on = {(key[0].removesuffix("_validation"), key[1]): value for key, value in found["beside"].items()}
    chosen_on = {key: value for key, value in chosen_on.items() if key not in beside}
    assert beside.keys() | chosen_on.keys() == found["none"].keys()
    assert len({item for _, item in chosen_on}) == 6
    assert chosen_on.keys() == found["alone"].keys()
    assert all(value == found["alone"][key] for key, value in chosen_on.items())


def test_what_is_scored_of_the_same_contents_is_not_scored_again(
    base: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is added, cut off, trained anew; other rows; the base, with which others are compared, always."""
    rows = tmp_path / "held_out" / "sft.jsonl"
    write_held_out(rows, random_rows().answers["sft"])
    write_json(tmp_path / "measures.json", EvaluationConfig(device="cpu").model_dump(mode="json"))
    there = ["--measures", str(tmp_path / "measures.json"), "--held-out", str(rows.parent), "--sft", "sft"]
    there += ["--output-dir", str(tmp_path / "scores")]
    compared = [*there, "--base-scores", str(tmp_path / "scores" / "base")]
    one = shutil.copytree(adapter, tmp_path / "one")
    loaded: list[str] = []
    load_one = Loader.load
    monkeypatch.setattr(Loader, "load", lambda self, asked: (loaded.append(asked.arm), load_one(self, asked))[1])

    def scored(*words: str) -> list[str]:
        loaded.clear()
        assert main(words) == 0
        return list(loaded)

    for _ in range(2):
        assert scored(*there, f"base={base}") == ["base"]
    assert scored(*compared, f"one={one}", f"two={adapter}") == ["one", "two"]
    assert scored(*compared, f"one={one}", f"two={adapter}") == []
    assert scored(*compared, f"two={adapter}", f"three={base}") == ["three"]
    file = tmp_path / "scores" / "two" / "scores.json"
    file.write_text(file.read_text()[:-9])
    assert scored(*compared, f"one={one}", f"two={adapter}") == ["two"]
    build_adapter(base, one, spread=1.0)
    assert scored(*compared, f"one={one}", f"two={adapter}") == ["one"]
    write_held_out(rows, random_rows().answers["sft"][:-1])
    assert scored(*there, f"base={base}") == ["base"]
    assert scored(*compared, f"one={one}", f"two={adapter}") == ["one", "two"]
    build_adapter(base, one, spread=2.0)
    monkeypatch.setattr(Loader, "load", lambda *_: raise_no_memory())
    assert main([*compared, f"one={one}", f"two={adapter}"]) == 2
    assert [(tmp_path / "scores" / arm / "scores.json").exists() for arm in ("one", "two")] == [False, True]


def raise_no_memory() -> None:
    raise PaftError("no memory is left")


CHANGES: dict[str, dict[str, str]] = {
    "a tokenizer": {"model/tokenizer.json": "{'b'}"},
    "a chat template": {"model/chat_template.jinja": "b"},
    "a further one": {"model/additional_chat_templates/tool.jinja": "b"},
    "how it generates": {"model/generation_config.json": "{'b'}"},
    "an adapter": {"adapter/adapter_model.safetensors": "b"},
    "rows": {"held_out/sft.jsonl": "b"},
    "the base's scores": {"base_scores/validation/kept.json": "b"},
    "a task": {"tasks/one.yaml": "task: two"},
    "its code": {"tasks/code.py": "b"},
    "its items": {"items.jsonl": "b"},
}
NO_CHANGES = {"a log": {"adapter/train.log": "b"}, "what Python compiled": {"tasks/__pycache__/code.pyc": "b"}}


@pytest.mark.parametrize("what", [*CHANGES, *NO_CHANGES, "a setting", "the order of branches", "a library"])
def test_whatever_a_score_depends_on_makes_another_request(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    branches = (("a", "b"), ("c",))

    def request() -> str:
        asked = scoring.Asked(folder=tmp_path / "held_out", branches=branches, base_scores=tmp_path / "base_scores")
        candidate = Candidate("arm", tmp_path / "model", tmp_path / "adapter")
        return scoring._requests([candidate], config, asked)["arm"]

    for changes in (*CHANGES.values(), *NO_CHANGES.values()):
        for name in changes:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text("{}")
    (tmp_path / "tasks" / "one.yaml").write_text(
        f"task: one\ndataset_kwargs: {{data_files: {tmp_path / 'items.jsonl'}}}\n"
    )
    config = EvaluationConfig(device="cpu", tasks=tmp_path / "tasks", measures=["one"])
    before = request()
    assert request() == before
    for name, text in {**CHANGES, **NO_CHANGES}.get(what, {}).items():
        (tmp_path / name).write_text((tmp_path / name).read_text() + text)
    if what == "a setting":
        config = config.model_copy(update={"limit": 3})
    if what == "the order of branches":
        branches = (("b", "a"), ("c",))
    if what == "a library":
        monkeypatch.setattr("paft_plugin.machine.version", lambda _: "0")
    assert (request() == before) == (what in NO_CHANGES)


def test_one_base_is_loaded_once_for_all_its_adapters(
    base: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And again if an adapter leaves something of its own behind."""
    torch.manual_seed(2)
    whole = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base),
        LoraConfig(r=3, target_modules=["v_proj"], modules_to_save=["lm_head"], init_lora_weights=False),
    )
    whole.base_model.model.lm_head.modules_to_save["default"].weight.data.mul_(-1)
    whole.save_pretrained(tmp_path / "whole")
    loads: list[Any] = []
    plainly = AutoModelForCausalLM.from_pretrained
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *a, **k: loads.append(a) or plainly(*a, **k))
    one, other = Candidate("one", base, adapter), Candidate("other", base, tmp_path / "whole")
    ids = torch.tensor([[1, 7, 8, 9]])

    def logits(model: Any) -> list[float]:
        return model(input_ids=ids).logits.flatten().tolist()  # type: ignore[no-any-return]

    alone = {each: logits(Loader("cpu", "float32", False).load(each)[0]) for each in (Candidate("b", base), one, other)}
    loads.clear()
    loader = Loader("cpu", "float32", False)
    for candidate in (Candidate("b", base), one, one, Candidate("b", base), other, one, other):
        assert logits(loader.load(candidate)[0]) == alone[candidate]
    assert len(loads) == 2  # the second time after `other`, which replaces the output layer


@pytest.mark.parametrize("checkpoint", ["bfloat16", "float16"])
def test_auto_is_float32_on_a_cpu_that_is_no_faster_in_half_precision(
    checkpoint: str, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(base, tmp_path / "half")
    AutoModelForCausalLM.from_pretrained(base, dtype=getattr(torch, checkpoint)).save_pretrained(tmp_path / "half")
    candidate = Candidate("half", tmp_path / "half")
    for fast, expected in ((True, checkpoint), (False, "float32")):
        monkeypatch.setattr("paft_plugin.evaluation.candidates.is_fast_on_cpu", lambda _dtype, fast=fast: fast)
        assert dtype_name(load(candidate, batch_size=1, dtype="auto").model) == expected
    monkeypatch.setattr("paft_plugin.evaluation.candidates.free_memory", lambda: 0)
    assert dtype_name(load(candidate, batch_size=1, dtype="auto").model) == checkpoint
