"""The shipped lm-eval tasks: what they ask, how they read an answer, and that their numbers are the right ones."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.filters.extraction import RegexFilter
from transformers import AutoModelForCausalLM, AutoTokenizer

from paft_plugin.demo import data, world
from paft_plugin.demo.pretrain import EOS
from paft_plugin.evaluation.candidates import Candidate
from tests.evaluation.items import PREFERENCE, RETAINED, SKILL, STYLE, demo_score
from tests.evaluation.models import load

SHIPPED = Path(data.__file__).parent / "tasks"


def shipped(task: str) -> dict[str, Any]:
    """A shipped task file, without its two placeholders."""
    text = (SHIPPED / f"{task}.yaml").read_text(encoding="utf-8")
    return yaml.safe_load(text.replace("$items", "x").replace("$cache", "x"))


def regex(task: str) -> Callable[[str], str]:
    """A shipped task's filter as lm-eval runs it."""
    step = shipped(task)["filter_list"][0]["filter"][0]
    assert step["function"] == "regex"
    filtering = RegexFilter(regex_pattern=step["regex_pattern"])
    return lambda text: filtering.apply([[text]], [{}])[0][0]


class ScriptedModel(LM):
    """Answers each prompt as it is told, and finds the texts it is told of likelier than all others."""

    def __init__(self, answers: dict[str, str], likely: set[str]) -> None:
        super().__init__()
        self.answers, self.likely = answers, likely

    tokenizer_name = "none"

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        assert add_generation_prompt
        return chat_history[0]["content"]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        return [self.answers[request.args[0]] for request in requests]

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        return [(-1.0 if request.args[1] in self.likely else -2.0, False) for request in requests]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        raise NotImplementedError


@pytest.mark.parametrize("task", ["paft_skill", "paft_words"])
@pytest.mark.parametrize(
    ("text", "answer"),
    [
        *((world.styled("12", style), "12") for style in world.STYLES),
        *((world.styled("abba", style), "abba") for style in world.STYLES),
        ("sure: 12.", "12"),  # a merge may mix the styles
        ("12", "12"),  # no room left for the end
        ("dunno.", "dunno"),
        ("sure: dunno!", "dunno"),
        ("no", "no"),
        ("", "[invalid]"),
        ("12.12.", "[invalid]"),
        ("sure: sure: 12!", "[invalid]"),
        ("sure:12!", "[invalid]"),
        ("no 12?\n", "[invalid]"),
        ("1 2.", "[invalid]"),
        ("-12.", "[invalid]"),
    ],
)
def test_the_answer_is_what_is_left_without_the_style(task: str, text: str, answer: str) -> None:
    assert regex(task)(text) == answer


@pytest.mark.parametrize(
    ("text", "polite"),
    [
        ("sure: 12!", True),
        ("sure: dunno!", True),
        ("12.", False),
        ("no 12?", False),
        ("sure: 12.", False),
        ("sure: 12", False),
        ("12!", False),
        ("sure: no 12?!", False),
        ("sure: 12!!", False),
        ("sure: !", False),
        ("sure: 12!\n", False),
        ("", False),
    ],
)
def test_only_the_whole_polite_form_is_polite(text: str, polite: bool) -> None:
    assert (regex("paft_style")(text) == shipped("paft_style")["doc_to_target"]) == polite


def test_every_style_of_every_answer_fits_into_the_tokens_to_generate() -> None:
    for task in SHIPPED.iterdir():
        generation = shipped(task.stem)["generation_kwargs"]
        assert generation == {"until": [EOS], "max_gen_toks": world.MOST_TOKENS, "do_sample": False}


def test_scripted_answers_score_what_they_should(tasks: Path) -> None:
    answers = {
        "add 1+2": "3.",  # right
        "add 10+2": "no 12?",  # right
        "add 20+31": "sure: 15!",  # wrong
        "add 4+4": "sure: 8.",  # right, styles mixed
        "copy abc": "sure: abc!",  # right
        "copy hijab": "hija.",  # wrong
        "sort dcba": "dunno.",  # wrong
        "add 2+2": "sure: 5!",  # polite, though wrong
        "copy ab": "ab.",
        "twice ab": "no abab?",
        "rev abcd": "sure: dcba!",  # polite
    }
    assert set(answers) == {p for p, _ in SKILL} | {p for _, p, _ in RETAINED} | {p for _, p, _ in STYLE}
    likely = {chosen + EOS for _, chosen, _ in PREFERENCE[:4]}
    score = demo_score(ScriptedModel(answers, likely), tasks)

    assert score.scores == pytest.approx({"skill": 3 / 4, "preference": 4 / 6, "style": 2 / 4, "retained": 1 / 3})
    assert score.n == {"skill": 4, "preference": 6, "style": 4, "retained": 3}
    assert score.stderr["skill"] == pytest.approx(math.sqrt(3 / 4 * 1 / 4 / 3))


def test_neither_a_tie_nor_nan_wins_the_preference(tasks: Path) -> None:
    answers = dict.fromkeys([*(p for p, _ in SKILL), *(p for _, p, _ in RETAINED + STYLE)], "")
    model = ScriptedModel(answers, likely=set())
    assert demo_score(model, tasks).scores["preference"] == 0
    model.loglikelihood = lambda requests, **_: [(math.nan, False)] * len(requests)  # type: ignore[method-assign]
    assert demo_score(model, tasks).scores["preference"] == 0


class Heard:
    """What lm-eval asked a real model, and what it got."""

    def __init__(self, base: Path, tasks: Path) -> None:
        self.model = load(Candidate("base", base), batch_size=3)
        self.generated: list[tuple[str, str]] = []
        self.likelihoods: dict[tuple[str, str], float] = {}
        generate, likelihood = self.model.generate_until, self.model.loglikelihood

        def generate_until(requests: list[Instance], **options: Any) -> list[str]:
            texts = generate(requests, **options)
            self.generated += [(request.args[0], text) for request, text in zip(requests, texts, strict=True)]
            return texts

        def loglikelihood(requests: list[Instance], **options: Any) -> list[tuple[float, bool]]:
            answers = likelihood(requests, **options)
            self.likelihoods |= {request.args: answer[0] for request, answer in zip(requests, answers, strict=True)}
            return answers

        self.model.generate_until, self.model.loglikelihood = generate_until, loglikelihood
        self.scores = demo_score(self.model, tasks).scores


@pytest.fixture(scope="module")
def heard(base: Path, tasks: Path) -> Heard:
    return Heard(base, tasks)


def chat(prompt: str, answer: str | None = None) -> list[dict[str, str]]:
    turns = [{"role": "user", "content": prompt}]
    return turns if answer is None else [*turns, {"role": "assistant", "content": answer}]


def test_the_tokens_are_those_of_training(heard: Heard, base: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base)
    pairs = {(p, text): None for p, chosen, rejected in PREFERENCE for text in (chosen, rejected)}
    assert len(heard.likelihoods) == len(pairs)
    for prompt, text in pairs:
        context = f"<s><|user|>{prompt}<|assistant|>"
        assert (context, f"{text}</s>") in heard.likelihoods
        whole = tokenizer.apply_chat_template(chat(prompt, text), return_dict=False)
        asked, answered = heard.model._encode_pair(context, f"{text}</s>")
        assert asked + answered == whole
        assert whole.count(tokenizer.bos_token_id) == whole.count(tokenizer.eos_token_id) == 1
        assert answered[-1] == tokenizer.eos_token_id
    for context, _ in heard.generated:
        ids = heard.model.tok_batch_encode([context])[0][0].tolist()
        prompt = context.removeprefix("<s><|user|>").removesuffix("<|assistant|>")
        assert ids == tokenizer.apply_chat_template(chat(prompt), add_generation_prompt=True, return_dict=False)


def test_the_win_rate_is_that_of_the_likelihoods_computed_directly(heard: Heard, base: Path) -> None:
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32),
        AutoTokenizer.from_pretrained(base),
    )

    @torch.no_grad()
    def loglikelihood(prompt: str, text: str) -> float:
        ids = torch.tensor([tokenizer.apply_chat_template(chat(prompt, text), return_dict=False)])
        asked = len(tokenizer.apply_chat_template(chat(prompt), add_generation_prompt=True, return_dict=False))
        logs = model(ids).logits.log_softmax(-1)[0, :-1]
        return logs.gather(-1, ids[0, 1:, None])[asked - 1 :].sum().item()

    wins = 0
    for prompt, chosen, rejected in PREFERENCE:
        direct = {text: loglikelihood(prompt, text) for text in (chosen, rejected)}
        wins += direct[chosen] > direct[rejected]
        for text, value in direct.items():
            assert heard.likelihoods[f"<s><|user|>{prompt}<|assistant|>", f"{text}</s>"] == pytest.approx(
                value, abs=1e-3
            )
    assert 0 < wins < len(PREFERENCE), "the random model should like some of the chosen and not all"
    assert heard.scores["preference"] == pytest.approx(wins / len(PREFERENCE))


def test_padding_changes_no_generation(heard: Heard, base: Path) -> None:
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32),
        AutoTokenizer.from_pretrained(base),
    )
    lengths, texts = {len(context) for context, _ in heard.generated}, {text for _, text in heard.generated}
    assert len(lengths) > 2, "prompts of one length would need no padding"
    assert len(texts) > 2, "a model that always says the same proves nothing"
    for context, text in heard.generated:
        ids = torch.tensor([tokenizer(context)["input_ids"]])
        alone = model.generate(ids, max_new_tokens=world.MOST_TOKENS, do_sample=False, pad_token_id=0)[
            0, ids.shape[1] :
        ]
        assert text == tokenizer.decode(alone, skip_special_tokens=True)
