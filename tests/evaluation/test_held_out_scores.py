"""Held-out rows: what a plain pass over one row at a time says, however they are batched, whatever the model is."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
)

from paft_plugin.errors import PaftError
from paft_plugin.evaluation.held_out_rows import write_rows
from paft_plugin.evaluation.held_out_scores import HeldOut, HeldOutScorer, Kept, read_held_out, summarised
from paft_plugin.evaluation.items import ItemScore
from paft_plugin.evaluation.likelihood import AnswerModel
from tests.evaluation.models import build_model
from tests.evaluation.rows import END, divergence, greedy, likelihood, random_rows

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 52}


def llama(folder: Path, seed: int) -> Any:
    return AutoModelForCausalLM.from_pretrained(build_model(folder / f"llama{seed}", seed=seed))


def gpt2(_folder: Path, seed: int) -> Any:
    """Tied embeddings, learned positions."""
    torch.manual_seed(seed)
    return GPT2LMHeadModel(
        GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=52, n_positions=64, initializer_range=0.4)
    )


def gemma(_folder: Path, seed: int) -> Any:
    """Logits that are squeezed behind the output layer, and a sliding window."""
    torch.manual_seed(seed)
    more = {"intermediate_size": 64, "num_key_value_heads": 1, "head_dim": 16, "final_logit_softcapping": 2.0}
    return Gemma2ForCausalLM(Gemma2Config(**SIZES, **more, sliding_window=8, initializer_range=0.4, pad_token_id=0))


@pytest.fixture(scope="module")
def tokenizer(base: Path) -> Any:
    return AutoTokenizer.from_pretrained(base)


def by_measure(items: list[ItemScore]) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for item in items:
        found.setdefault(item.measure, {})[item.item] = item.value
    return found


@pytest.mark.parametrize("architecture", [llama, gpt2, gemma])
@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_every_number_is_that_of_a_plain_pass(
    architecture: Any, batch_size: int, tokenizer: Any, tmp_path: Path
) -> None:
    base, model = (architecture(tmp_path, seed).eval() for seed in (0, 1))
    rows = random_rows(count=5)
    of_base, kept = HeldOutScorer(AnswerModel(base, batch_size), tokenizer, rows).score_base()
    of_model = HeldOutScorer(AnswerModel(model, batch_size), tokenizer, rows).score(kept)
    for scored, items in ((base, of_base), (model, of_model)):
        found = by_measure(items)
        for row in rows.answers["sft"]:
            assert found["sft_nll"][row.id] == pytest.approx(
                -likelihood(scored, row.prompt, row.answer) / len(row.answer), abs=1e-4
            )
            assert found["sft_match"][row.id] == (greedy(scored, row.prompt, len(row.answer)) == row.answer)
            assert found["kl_to_base"][row.id] == pytest.approx(
                divergence(base, scored, row.prompt, row.answer), abs=1e-4
            )
        for row in rows.pairs["dpo"]:
            (better, worse), (was_better, was_worse) = (
                [likelihood(each, row.prompt, answer) for answer in row.answers] for each in (scored, base)
            )
            assert found["dpo"][row.id] == pytest.approx(better - worse - (was_better - was_worse), abs=1e-3)
            assert found["dpo_by_total"][row.id] == (better > worse)
            assert found["dpo_by_token"][row.id] == (better / len(row.chosen) > worse / len(row.rejected))
            assert found["kl_to_base"][row.id] == pytest.approx(
                divergence(base, scored, row.prompt, row.chosen), abs=1e-4
            )
            (answer,) = (each.answer for each in kept.retained if each.id == row.id)
            assert answer[:12] == greedy(base, row.prompt, 12)
            assert len(answer) >= 64 - 22 or answer[-1] == END
            assert found["retained"][row.id] == pytest.approx(
                -likelihood(scored, row.prompt, answer) / len(answer), abs=1e-4
            )
    assert set(by_measure(of_model)) == {measure.name for measure in rows.measures()}


def test_the_base_is_no_step_away_from_itself(base: Path, tokenizer: Any) -> None:
    model, rows = AutoModelForCausalLM.from_pretrained(base), random_rows()
    items, kept = HeldOutScorer(AnswerModel(model, 4), tokenizer, rows).score_base()
    silent = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "lm_head"]))
    again = HeldOutScorer(AnswerModel(silent, 4), tokenizer, rows).score(kept)
    for found in (by_measure(items), by_measure(again)):
        assert set(found["kl_to_base"].values()) == set(found["dpo"].values()) == {0.0}
        assert set(found["dpo_gained"].values()) == {0.5}
    assert items == again


def test_an_adapter_is_what_it_is_merged(base: Path, tokenizer: Any) -> None:
    rows = random_rows()
    _, kept = HeldOutScorer(AnswerModel(AutoModelForCausalLM.from_pretrained(base), 4), tokenizer, rows).score_base()
    torch.manual_seed(3)
    adapted = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base),
        LoraConfig(
            r=2, target_modules=["v_proj", "lm_head"], modules_to_save=["embed_tokens"], init_lora_weights=False
        ),
    )
    found = HeldOutScorer(AnswerModel(adapted, 4), tokenizer, rows).score(kept)
    merged = HeldOutScorer(AnswerModel(adapted.merge_and_unload(), 4), tokenizer, rows).score(kept)
    assert [item.value for item in found] == pytest.approx([item.value for item in merged], abs=1e-3)
    assert summarised(found).scores["kl_to_base"] > 0.01


def test_order_of_the_rows_changes_nothing(base: Path, tokenizer: Any) -> None:
    rows = random_rows()
    mixed = HeldOut(
        {"sft": random.Random(1).sample(rows.answers["sft"], 9)}, {"dpo": random.Random(2).sample(rows.pairs["dpo"], 9)}
    )
    model = AnswerModel(AutoModelForCausalLM.from_pretrained(base), 4)
    one, other = (by_measure(HeldOutScorer(model, tokenizer, each).score_base()[0]) for each in (rows, mixed))
    assert one == other


@pytest.fixture(scope="module")
def talkative(base: Path) -> Any:
    """Random, but it comes to an end now and then."""
    model = AutoModelForCausalLM.from_pretrained(base)
    model.lm_head.weight.data[END] *= 1.8
    # What a checkpoint may bring along, and greedy decoding must not heed.
    model.generation_config.repetition_penalty, model.generation_config.eos_token_id = 1.7, [END, 9]
    return model.eval()


@pytest.mark.parametrize("keep_texts", [True, False])
def test_an_answer_matches_whatever_its_whitespace(talkative: Any, tokenizer: Any, keep_texts: bool) -> None:
    spelled = {
        "same": "{}",
        "space before": " {}",
        "space behind": "{} ",
        "lines": "\n\n{}\n",
        "other": "{}a",
        "cut": "b{}",
    }
    rows, expected = [], {}
    for row in random_rows(count=40).answers["sft"]:
        own = greedy(talkative, row.prompt, 40)
        if own[-1] == END and len(own) > 2 and not {0, 1, 3, 4, 5, 42, 51} & set(own):
            for how, text in spelled.items():
                answer = (*tokenizer.encode(text.format(tokenizer.decode(own[:-1]))), END)
                rows.append(row.model_copy(update={"id": f"{row.id} {how}", "answer": answer}))
                expected[rows[-1].id] = float(how not in ("other", "cut"))
    assert len(rows) > 20
    scorer = HeldOutScorer(AnswerModel(talkative, 8), tokenizer, HeldOut({"sft": rows}), keep_texts=keep_texts)
    items = [item for item in scorer.score_base()[0] if item.measure == "sft_match"]
    assert {item.item: item.value for item in items} == expected
    assert all((item.answer is not None) == keep_texts for item in items)
    if keep_texts:
        assert items[0].answer == tokenizer.decode(rows[0].answer[:-1])


def test_a_model_that_never_ends_is_wrong(base: Path, tokenizer: Any) -> None:
    model = AutoModelForCausalLM.from_pretrained(base).eval()
    for parameter in model.model.parameters():
        parameter.data.zero_()  # so that all tokens are equally likely, and the first is the likeliest
    model.lm_head.weight.data.zero_()
    rows = [row.model_copy(update={"answer": (42, *row.answer)}) for row in random_rows().answers["sft"]]
    items, _ = HeldOutScorer(AnswerModel(model, 4), tokenizer, HeldOut({"sft": rows}), keep_texts=True).score_base()
    assert {item.value for item in items if item.measure == "sft_match"} == {0.0}


def test_another_process_compares_with_the_same_base(base: Path, tokenizer: Any, tmp_path: Path) -> None:
    rows = random_rows()
    model = AnswerModel(gpt2(tmp_path, 1).eval(), 4)
    _, kept = HeldOutScorer(AnswerModel(AutoModelForCausalLM.from_pretrained(base), 4), tokenizer, rows).score_base()
    kept.write(tmp_path / "base", "float32")
    scorer = HeldOutScorer(model, tokenizer, rows)
    assert scorer.score(Kept.read(tmp_path / "base")) == scorer.score(kept)
    with pytest.raises(PaftError, match="scored on other held-out rows"):
        HeldOutScorer(model, tokenizer, random_rows(1, 3)).score(kept)
    (tmp_path / "base" / "kept.safetensors").write_bytes(b"{}")
    with pytest.raises(PaftError, match=r"kept.safetensors: cannot be read .*Score the base again"):
        Kept.read(tmp_path / "base")


@pytest.mark.parametrize("more", [-2, 0, 3])
def test_the_distance_is_over_the_tokens_that_both_know(more: int, base: Path, tokenizer: Any) -> None:
    """A fused model may have lost the padding rows of its vocabulary, a branch may have added tokens."""
    model, rows = AutoModelForCausalLM.from_pretrained(base), random_rows()
    rows = HeldOut(rows.answers, rows.pairs, rows.answers["sft"])
    _, kept = HeldOutScorer(AnswerModel(model, 4), tokenizer, rows).score_base()
    model.resize_token_embeddings(52 + more, mean_resizing=False)
    found = by_measure(HeldOutScorer(AnswerModel(model, 4), tokenizer, rows).score(kept))
    assert max(found["kl_to_base"].values()) < 1e-5
    row = rows.answers["sft"][1]
    assert found["sft_nll"][row.id] == pytest.approx(
        -likelihood(model, row.prompt, row.answer) / len(row.answer), abs=1e-4
    )


def test_a_match_is_asked_for_where_most_references_are_short() -> None:
    short, long = (
        [row.model_copy(update={"answer": row.answer * n}) for row in random_rows().answers["sft"]] for n in (1, 65)
    )
    for rows, names in ((short * 2 + long, {"a", "a_match"}), (short + long * 2, {"a"})):
        assert {measure.name for measure in HeldOut({"a": rows}).measures()} == {"a_nll", "kl_to_base", *names} - {"a"}


def test_bad_rows_are_a_line_each(base: Path, tokenizer: Any, tmp_path: Path) -> None:
    rows, model = random_rows(), AnswerModel(AutoModelForCausalLM.from_pretrained(base), 4)
    assert (model.context, model.vocabulary) == (64, 52)
    known = rows.answers["sft"][0]
    strange = HeldOut({"sft": [known, known.model_copy(update={"answer": (7, 52)})]}, rows.pairs)
    with pytest.raises(
        PaftError, match=r"^held_out/sft: 1 of 2 rows have tokens that the model does not know \(it has 52\)"
    ):
        HeldOutScorer(model, tokenizer, strange)

    long = known.model_copy(update={"prompt": (7,) * 63, "answer": (8, END), "id": "long"})
    left, lines = HeldOut({"sft": [known, long]}, rows.pairs).readable(64)
    assert left.rows == {"sft": [known], **rows.pairs}
    assert lines == ["held_out/sft: 1 of 2 rows are longer than the model's 64 tokens, and left out."]
    with pytest.raises(PaftError, match=r"^held_out/sft: 1 of 1 rows are longer .* Hold out shorter rows"):
        HeldOut({"sft": [long]}).readable(64)

    write_rows(tmp_path / "sft.jsonl", [known.model_copy(update={"split": "validation"})])
    found, lines = read_held_out(tmp_path, ["sft"], ["dpo"])
    assert not found
    assert [line.removeprefix(f"{tmp_path}/") for line in lines] == [
        f"{name}.jsonl: no rows of the test split, so no model is scored on this branch's data."
        for name in ("sft", "dpo")
    ]
    assert read_held_out(tmp_path, ["sft"], [], "validation")[0].answers["sft"][0].id == known.id
    with pytest.raises(PaftError, match=r"sft\.jsonl: line 2 is damaged"):
        read_held_out(tmp_path, [], ["sft"])


def test_summaries_are_means_with_standard_errors() -> None:
    items = [ItemScore(measure="m", item=str(n), value=value) for n, value in enumerate([1.0, 2.0, 6.0])]
    found = summarised([*items, ItemScore(measure="one", item="0", value=2.0)])
    assert found.scores == {"m": 3.0, "one": 2.0}
    assert found.stderr == {"m": pytest.approx((7 / 3) ** 0.5)}
    assert found.n == {"m": 3, "one": 1}
