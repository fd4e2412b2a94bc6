"""The card of a fused model: what huggingface_hub reads of it, and what people do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest
from huggingface_hub import ModelCard

from paft_plugin.evaluation.arms import Arm, Role
from paft_plugin.evaluation.results import ArmResult, read_results
from paft_plugin.report.model_card import made, read_base, read_data, write_model_cards
from tests.report.runs import PROVENANCE

Run = Callable[..., Path]


def written(run: Path) -> Path:
    (card,) = write_model_cards(run)
    return card


def test_the_hub_reads_base_tags_data_licence_and_scores(make_run: Run) -> None:
    run = make_run()
    (card_file,) = write_model_cards(run)
    card = ModelCard.load(card_file)
    data = card.data
    assert data.base_model == "owner/base-7b"
    assert data.tags == ["merge", "mergekit", "paft", "ties"]
    assert data.library_name == "transformers"
    assert data.license == "apache-2.0"
    assert data.datasets == ["owner/dpo-data", "owner/sft-data", "owner/sft-l1-data"]
    assert data.model_name == "paft-ties"
    assert {result.metric_name: result.metric_value for result in data.eval_results or []} == {
        "skill": 1.0,
        "preference": 1.0,
        "retained": 1.0,
    }
    assert ModelCard(str(card)).data.to_dict() == data.to_dict()


def test_people_read_table_plot_recipe_and_provenance(make_run: Run) -> None:
    run = make_run()
    text = written(run).read_text()
    rows = [[cell.strip() for cell in line.split("|")[1:3]] for line in text.splitlines() if line.startswith("| ")]
    assert ["**paft-ties**", "**1.000 ± 0.019**"] in rows
    assert ["sequential", "0.900 ± 0.049"] in rows
    assert "![Line chart: sparsity at 1e-5" in text
    assert (run / "models" / "paft-ties" / "sparsity.png").read_bytes().startswith(b"\x89PNG")
    assert "merge_method: ties" in text
    assert PROVENANCE.strip() in text
    assert "`apache-2.0`, inherited from the base model" in text
    assert "As mergekit says" not in text
    assert str(run) not in text  # a card is for other machines


def test_data_are_the_user_s_own_of_the_branches_that_the_model_is_made_of(tmp_path: Path) -> None:
    """Rows that a run holds out leave files of its own for training, which nobody else has."""
    given = {"sft": ["owner/chats", "my rows.jsonl"], "taste": ["pairs.jsonl"]}
    held_out = [
        {"name": name, "content": {"datasets": [{"path": path} for path in paths]}} for name, paths in given.items()
    ]
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "hold-out.json").write_text(json.dumps({"branches": held_out}))
    for name, rows in {"sft-l1": ["sft-0", "sft-1"], "dpo": ["taste-0"], "joint": ["other"]}.items():
        (tmp_path / "branches" / name).mkdir(parents=True)
        sets = [{"path": f"{tmp_path}/held_out/training/{row}.parquet"} for row in rows]
        (tmp_path / "configs" / f"{name}.yml").write_text(json.dumps({"datasets": sets}))
    data = read_data(tmp_path, Arm(name="x", kind="fused", branches=("sft-l1", "dpo")))
    assert {each.branch: list(each.paths) for each in data} == {"dpo": given["taste"], "sft-l1": given["sft"]}
    assert [name for each in data for name in each.hub_names] == ["owner/chats"]


@pytest.mark.parametrize(
    ("kind", "roles", "said"),
    [
        ("fused", {"sft": "sft", "dpo": "preference"}, "the deltas of an SFT branch and a preference branch fused"),
        ("fused", {"math": "sft", "code": "sft"}, "the deltas of `math` and `code` fused"),
        ("sequential", {"sft": "sft", "dpo": "preference"}, "trained as its branches `sft` and `dpo`, one on top of"),
    ],
)
def test_it_says_how_the_model_was_made(
    make_run: Run, kind: Literal["fused", "sequential"], roles: dict[str, Role], said: str
) -> None:
    run = make_run()
    results = read_results(run)
    assert results is not None
    known = {
        name: replace_arm(results.arms[0], Arm(name=name, kind="branch", role=role, branches=(name,)))
        for name, role in roles.items()
    }
    arm = Arm(name="x", kind=kind, branches=tuple(roles), order=tuple(roles) if kind == "sequential" else ())
    assert said in made(results.model_copy(update={"arms": tuple(known.values())}), arm, "ties")


def replace_arm(result: ArmResult, arm: Arm) -> ArmResult:
    return result.model_copy(update={"arm": arm})


def test_again_is_the_same(make_run: Run) -> None:
    run = make_run()
    first = written(run).read_bytes()
    assert written(run).read_bytes() == first


def test_an_unknown_base_licence_or_inspection_is_said_and_not_guessed(make_run: Run) -> None:
    run = make_run(with_branches=False)
    for file in ("base/README.md", "base/config.json", "inspection/branches/inspection.json"):
        (run / file).unlink()
    (run / "models" / "paft-ties" / "README.md").unlink()
    found = ModelCard.load(written(run))
    assert found.data.license is None
    assert found.data.base_model is None
    assert found.data.datasets is None
    for said in (
        "a local folder that names no model on the hub", "names a licence", "were not inspected", "data sets are not known",
        "left no fingerprints of its inputs. mergekit 0.1.5.",
    ):  # fmt: skip
        assert said in found.text


def test_an_adapter_is_for_peft_and_a_method_without_base_keeps_its_base(make_run: Run) -> None:
    run = make_run()
    folder = run / "models" / "paft-ties"
    (folder / "adapter_config.json").write_text("{}")
    (folder / "mergekit_config.yml").write_text(f"# base model: {run}/base\nmerge_method: linear\nmodels: []\n")
    data = ModelCard.load(written(run)).data
    assert data.library_name == "peft"
    assert data.base_model == "owner/base-7b"
    assert data.tags is not None
    assert data.tags[-1] == "linear"


def test_only_what_the_run_merged_has_a_card(make_run: Run) -> None:
    assert written(make_run()).parent.name == "paft-ties"


def test_a_base_s_hub_name(tmp_path: Path) -> None:
    cached = tmp_path / "hub" / "models--Qwen--Qwen2.5-0.5B" / "snapshots" / "0123"
    assert read_base(str(cached)).hub_name == "Qwen/Qwen2.5-0.5B"
    assert read_base("mistralai/Mistral-7B-v0.1").hub_name == "mistralai/Mistral-7B-v0.1"


def test_a_named_licence_is_inherited_whole(tmp_path: Path) -> None:
    block = "license: other\nlicense_name: llama3\nlicense_link: LICENSE"
    (tmp_path / "README.md").write_text(f"---\n{block}\n---\n# Llama\n")
    assert read_base(str(tmp_path)).licence == {"license": "other", "license_name": "llama3", "license_link": "LICENSE"}
    (tmp_path / "README.md").write_text("---\n[\n---\n")
    assert read_base(str(tmp_path)).licence == {}
