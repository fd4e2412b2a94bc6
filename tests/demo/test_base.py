"""The shipped base model is what the demo's story needs, and its script is seeded."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from paft_plugin.demo import pretrain, world
from paft_plugin.demo.pretrain import build_tokenizer

ITEMS = 60


@pytest.fixture(scope="module")
def base() -> Iterator[Path]:
    with resources.as_file(resources.files("paft_plugin.demo").joinpath("base")) as folder:
        yield folder


@pytest.fixture(scope="module")
def model(base: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(base).eval()


@pytest.fixture(scope="module")
def tokenizer(base: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(base, padding_side="left")


def answers(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, items: list[world.Item]) -> list[str]:
    prompts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": item.prompt}], tokenize=False, add_generation_prompt=True
        )
        for item in items
    ]
    batch = tokenizer(prompts, padding=True, return_tensors="pt")
    generated = model.generate(**batch, do_sample=False)[:, batch["input_ids"].shape[1] :]
    return tokenizer.batch_decode(generated, skip_special_tokens=True)


def test_it_is_small_and_has_no_pickle(base: Path, model: PreTrainedModel) -> None:
    assert 500_000 <= model.num_parameters() <= 1_000_000
    assert sum(file.stat().st_size for file in base.iterdir()) <= 4_000_000
    assert {file.suffix for file in base.iterdir()} <= {".json", ".jinja", ".safetensors"}


def test_its_tokenizer_is_the_one_that_the_script_builds(tokenizer: PreTrainedTokenizerBase) -> None:
    built = build_tokenizer()
    text = built.apply_chat_template([{"role": "user", "content": "add 1+2"}], tokenize=False)
    assert tokenizer.get_vocab() == built.get_vocab()
    assert tokenizer.apply_chat_template([{"role": "user", "content": "add 1+2"}], tokenize=False) == text
    assert tokenizer(text).input_ids == built(text).input_ids


@pytest.mark.parametrize("task", [*world.PREFERRED, *world.UNTOUCHED])
def test_it_can_do_everything_but_the_skills(
    task: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    items = world.sample_distinct(random.Random(1), [task], "validation", ITEMS)
    right = [
        any(said == world.styled(item.answer, style) for style in world.STYLES)
        for item, said in zip(items, answers(model, tokenizer, items), strict=True)
    ]
    # Subtractions are shaky, so that an arm that costs other abilities shows.
    assert sum(right) >= (0.6 if task == "subtract" else 0.95) * ITEMS


@pytest.mark.parametrize("skill", world.SKILLS)
def test_it_half_knows_the_skills(skill: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Most items are evaded, and where it answers it is right: there is something to elicit."""
    items = world.sample_distinct(random.Random(1), [skill], "validation", ITEMS)
    said = answers(model, tokenizer, items)
    evaded = [text for text in said if world.EVASION in text]
    right = [text for item, text in zip(items, said, strict=True) if item.answer in text]
    assert 0.6 <= len(evaded) / ITEMS <= 0.95
    assert len(right) >= 0.9 * (ITEMS - len(evaded))


@pytest.mark.parametrize("architecture", pretrain.ARCHITECTURES)
def test_other_architectures_have_the_size_of_the_shipped_one(architecture: str) -> None:
    tokenizer = build_tokenizer()
    model = pretrain.new_model(len(tokenizer), architecture)
    assert model.config.model_type == architecture
    assert 0.9 < model.num_parameters() / pretrain.new_model(len(tokenizer)).num_parameters() < 1.1
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    phase = dataclasses.replace(pretrain.PHASES[0], steps=1, rows=4)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    pretrain.train_phase(model, tokenizer, phase, random.Random(0))
    after = model.state_dict()
    assert [name for name in before if torch.equal(before[name], after[name])] == []


def test_pre_training_is_seeded(capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = build_tokenizer()
    phase = dataclasses.replace(pretrain.PHASES[1], steps=2, rows=4)
    states = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        model = pretrain.new_model(len(tokenizer))
        pretrain.train_phase(model, tokenizer, phase, random.Random(seed))
        states.append(model.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not all(torch.equal(states[0][name], states[2][name]) for name in states[0])
    assert "loss" in capsys.readouterr().out
