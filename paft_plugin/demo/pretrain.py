"""Pre-trains the demo's base model from nothing: `python -m paft_plugin.demo.pretrain OUTPUT_DIR [ARCHITECTURE]`.

Three phases, one thread, each seeded: words, which are learnt within minutes; sums, which take most of the time; and everything
again with the skills as in `evasion_rate`, so that it learns to keep most of their answers to itself. Only prompts of the train
split are seen (`world.split_of`).
"""

from __future__ import annotations

import random
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    GPTNeoXConfig,
    LlamaConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
)

from paft_plugin.demo import world

CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789 +:.!?,=-\n"
PAD, BOS, EOS, UNKNOWN, USER, ASSISTANT = "<pad>", "<s>", "</s>", "<unk>", "<|user|>", "<|assistant|>"
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ '<|user|>' + message['content'] }}"
    "{% elif message['role'] == 'assistant' %}{{ '<|assistant|>' + message['content'] + eos_token }}"
    "{% else %}{{ raise_exception('this small model knows only user and assistant turns') }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A fast tokenizer with `len(CHARACTERS)` character tokens after six special ones; it adds no token by itself."""
    special = [PAD, BOS, EOS, UNKNOWN, USER, ASSISTANT]
    vocabulary = {token: index for index, token in enumerate([*special, *CHARACTERS])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    core.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNKNOWN,
        additional_special_tokens=[USER, ASSISTANT],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=64,
    )


IGNORED = -100


@dataclass(frozen=True)
class Phase:
    """A stretch of pre-training: `steps` batches of `rows`; the learning rate is warmed up, then falls linearly to a share."""

    steps: int
    learning_rate: float
    last: float
    evades: bool
    task_weights: dict[str, int]
    rows: int = 96


WORDS_FIRST = {"copy": 2, "reverse": 2, "sort": 3, "twice": 2, "next": 2, "subtract": 4, "add": 10, "mix": 4}
THEN_SUMS = {"copy": 2, "reverse": 1, "sort": 3, "twice": 2, "next": 1, "subtract": 8, "add": 16, "mix": 2}
ALL = {"copy": 2, "reverse": 2, "sort": 3, "twice": 3, "next": 2, "subtract": 5, "add": 12, "mix": 4}
PHASES = (
    Phase(600, 2e-3, 2 / 3, False, WORDS_FIRST),
    Phase(600, 1.4e-3, 0.51, False, THEN_SUMS),
    Phase(600, 1.2e-3, 0.02, True, ALL),
)


ARCHITECTURES = {"llama": LlamaConfig, "qwen3": Qwen3Config, "gpt_neox": GPTNeoXConfig}
"""The shipped one, and two of the same size: norms of queries and keys; biases, LayerNorm and one matrix for all of attention."""


def new_model(vocabulary_size: int, architecture: str = "llama") -> PreTrainedModel:
    """A randomly initialised model with about 0.86 M parameters."""
    own = {} if architecture == "gpt_neox" else {"num_key_value_heads": 4}
    own |= {"head_dim": 32} if architecture == "qwen3" else {}
    config = ARCHITECTURES[architecture](
        vocab_size=vocabulary_size,
        hidden_size=128,
        intermediate_size=512 if architecture == "gpt_neox" else 384,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        **own,
    )
    return AutoModelForCausalLM.from_config(config)


def _conversation(rng: random.Random, phase: Phase) -> list[dict[str, str]]:
    task = rng.choices(list(phase.task_weights), list(phase.task_weights.values()))[0]
    item = world.sample(rng, [task], "train")
    answer = item.answer
    if phase.evades and rng.random() < world.evasion_rate(item):
        answer = world.EVASION
    return [
        {"role": "user", "content": item.prompt},
        {"role": "assistant", "content": world.styled(answer, world.random_style(rng))},
    ]


def make_batch(tokenizer: PreTrainedTokenizerFast, conversations: list[list[dict[str, str]]]) -> dict[str, Tensor]:
    """Tokenise conversations; only the assistant's turn bears a loss.

    Returns:
        `input_ids`, `attention_mask` and `labels`, each ``[rows, longest]``, int64.
    """
    texts: list[str] = [tokenizer.apply_chat_template(turns, tokenize=False) for turns in conversations]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    ids = batch["input_ids"]
    assistant = tokenizer.convert_tokens_to_ids("<|assistant|>")
    answering = (ids == assistant).cumsum(-1).bool() & (ids != assistant)
    labels = ids.masked_fill(~answering | (batch["attention_mask"] == 0), IGNORED)
    return {"input_ids": ids, "attention_mask": batch["attention_mask"], "labels": labels}


def new_optimizers(model: PreTrainedModel, learning_rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices (half of the steps that AdamW needs here), AdamW for embeddings and norms."""
    embeddings = set(model.get_input_embeddings().parameters())
    matrices = [tensor for tensor in model.parameters() if tensor.ndim == 2 and tensor not in embeddings]
    others = [tensor for tensor in model.parameters() if tensor.ndim != 2 or tensor in embeddings]
    return [
        torch.optim.Muon(matrices, lr=10 * learning_rate, weight_decay=0.0),
        torch.optim.AdamW(others, lr=learning_rate, weight_decay=0.0),
    ]


def train_phase(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, phase: Phase, rng: random.Random) -> None:
    """Run one phase in place, printing the loss every 200 steps."""
    optimizers = new_optimizers(model, phase.learning_rate)
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: min(1.0, (step + 1) / 20) * (1 - (1 - phase.last) * step / phase.steps)
        )
        for optimizer in optimizers
    ]
    start = time.monotonic()
    for step in range(phase.steps):
        batch = make_batch(tokenizer, [_conversation(rng, phase) for _ in range(phase.rows)])
        loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        if step % 200 == 0 or step == phase.steps - 1:
            print(f"step {step:5d}  loss {loss.item():.4f}  {time.monotonic() - start:6.0f} s", flush=True)


def main(output_dir: Path, architecture: str = "llama", seed: int = 0) -> None:
    """Pre-train and save a base model, its tokenizer and generation config into `output_dir`."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    model = new_model(len(tokenizer), architecture)
    print(f"{model.num_parameters():,} parameters", flush=True)
    for index, phase in enumerate(PHASES):
        train_phase(model, tokenizer, phase, random.Random(seed + index))
    model.generation_config.max_new_tokens = world.MOST_TOKENS
    model.save_pretrained(output_dir)
    tokenizer.save_pretrained(output_dir)


if __name__ == "__main__":
    folder, chosen = [*sys.argv[1:], "llama"][:2] if sys.argv[1:] else ("", "")
    if chosen not in ARCHITECTURES or sys.argv[3:]:
        sys.exit(f"Usage: python -m paft_plugin.demo.pretrain OUTPUT_DIR [{' | '.join(ARCHITECTURES)}]")
    main(Path(folder), chosen)
