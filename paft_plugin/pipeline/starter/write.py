"""Writes `paft.yml`, `sft.yml` and `preference.yml`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from paft_plugin.errors import PaftError
from paft_plugin.files import write_text
from paft_plugin.penalty.strength import ENOUGH_STEPS
from paft_plugin.pipeline.branches import PLUGIN
from paft_plugin.pipeline.starter.model import BaseModel, look_at, sequence_length
from paft_plugin.pipeline.starter.render import Line, Section, entry, render
from paft_plugin.pipeline.starter.rows import Reading, read_preference, read_sft

Adapter = Literal["lora", "qlora", "full"]
Strategy = Literal["dpo", "orpo", "simpo"]
ENOUGH_TO_HOLD_OUT = 1000
MICRO = 2

# (adapter, large) → learning rate: common starting points, not measured optima.
SFT_RATES = {("adapter", False): 2e-4, ("adapter", True): 1e-4, ("full", False): 2e-5, ("full", True): 1e-5}
PREFERENCE_RATES = {
    "dpo": {("adapter", False): 2e-5, ("adapter", True): 5e-6, ("full", False): 1e-6, ("full", True): 5e-7},
    "orpo": {("adapter", False): 5e-5, ("adapter", True): 2e-5, ("full", False): 8e-6, ("full", True): 5e-6},
    "simpo": {("adapter", False): 1e-5, ("adapter", True): 5e-6, ("full", False): 1e-6, ("full", True): 5e-7},
}


@dataclass(frozen=True)
class Wish:
    """What a person asks for."""

    base: str
    sft_data: str
    preference_data: str
    output: Path
    adapter: Adapter = "lora"
    rl: Strategy = "dpo"


def write_starter(wish: Wish, gpu: bool, force: bool = False) -> list[Path]:
    """Write the three files.

    Args:
        wish: The base, the data, and where to.
        gpu: Whether they are for a machine with a GPU.
        force: Write over files that are there.

    Returns:
        The files.

    Raises:
        PaftError: All at once: base or data cannot be read or have an unknown shape, files that are there already.
    """
    files = [wish.output / name for name in ("paft.yml", "sft.yml", "preference.yml")]
    problems = [f"{file} is there already. Choose another --output, or --force." for file in files if file.exists()]
    problems = [] if force else problems
    base = sft = preference = None
    try:
        base = look_at(wish.base)
    except PaftError as error:
        problems += error.problems
    try:
        sft = read_sft(wish.sft_data)
    except PaftError as error:
        problems += error.problems
    try:
        preference = read_preference(wish.preference_data, wish.rl)
    except PaftError as error:
        problems += error.problems
    if problems or base is None or sft is None or preference is None:
        raise PaftError(problems)
    wish.output.mkdir(parents=True, exist_ok=True)
    texts = [_paft(wish, base), _sft(wish, base, sft, gpu), _preference(wish, base, sft, preference, gpu)]
    for file, text in zip(files, texts, strict=True):
        write_text(file, text)
    return files


# --- paft.yml -----------------------------------------------------------------------------------------------------------

EVALUATION = """\
# What every arm is scored on, by lm-eval: name tasks (or groups) that measure what the branches teach.
# evaluation:
#   measures: [gsm8k, truthfulqa_mc2]
#   skill: gsm8k                  # what the SFT branch teaches: the alignment tax is paid in it
#   preference: truthfulqa_mc2    # what the preference branch teaches
"""
FURTHER = """\
# sequential: true      # also the baseline: SFT without the penalty, then the preference training on top
# executor: ray         # on a Ray cluster that shares output_dir, instead of this machine
"""


def _paft(wish: Wish, base: BaseModel) -> str:
    return render(
        "One base model, two branches trained in parallel, fused, scored: arXiv 2406.17923.\n"
        "  axolotl paft run paft.yml --dry-run    what it would do\n"
        "  axolotl paft run paft.yml              do it; an interrupted run goes on with the same command\n"
        "Paths are meant from this file's folder.",
        [
            [Line("base", base.name, "both branches start from it, and their deltas are added to it")],
            [
                Line("sft", "sft.yml", "an axolotl config, with the penalty that makes its delta sparse"),
                Line("preference", "preference.yml", f"a stock axolotl config: {wish.rl.upper()}"),
                Line("output_dir", "run"),
            ],
            [
                "fusion:\n",
                "  methods: [ties, dare_ties]  # cheap to try both; `axolotl paft search` finds their settings\n",
            ],
            [EVALUATION],
            [FURTHER],
        ],
    )


# --- the two branches ---------------------------------------------------------------------------------------------------


def _sft(wish: Wish, base: BaseModel, data: Reading, gpu: bool) -> str:
    length, why = sequence_length(base, data.texts)
    rate = SFT_RATES[_kind(wish), base.large]
    return render(
        "The SFT branch, with the penalty λ‖δ‖₁. `axolotl paft run` sets output_dir.",
        [
            [_base(base), *_template(base, data.alpaca)],
            [
                Line("plugins", [PLUGIN]),
                Line(
                    "paft_target_sparsity",
                    0.9,
                    "λ finds itself; the paper reports 90 %, and |δ| ≤ 1e-5 is our measure",
                ),
            ],
            [entry(data.entry, data.why), *_held_out(data)],
            _adapter(wish),
            [
                Line("sequence_len", length, why),
                Line("excess_length_strategy", "truncate", "what fits still teaches; the default drops the whole row"),
                *_batch(data.count),
            ],
            _optimizer(gpu, rate, "the penalty is to be the only thing that shrinks the delta"),
            _machine(gpu),
            _checkpoints(),
        ],
    )


def _preference(wish: Wish, base: BaseModel, sft: Reading, data: Reading, gpu: bool) -> str:
    length, why = sequence_length(base, data.texts)
    rate = PREFERENCE_RATES[wish.rl][_kind(wish), base.large]
    return render(
        f"The preference branch, stock axolotl: {wish.rl.upper()}. `axolotl paft run` sets output_dir.",
        [
            [_base(base), *_template(base, sft.alpaca)],
            STRATEGIES[wish.rl],
            [entry(data.entry, data.why), *_held_out(data)],
            _adapter(wish),
            [
                Line("sequence_len", length, why),
                Line("excess_length_strategy", "drop", "a truncated answer would teach not to end"),
                *_batch(data.count),
            ],
            _optimizer(gpu, rate, "as in the SFT branch"),
            _machine(gpu),
            _checkpoints(),
        ],
    )


STRATEGIES: dict[str, Section] = {
    "dpo": [Line("rl", "dpo"), Line("rl_beta", 0.1, "the usual start: higher stays closer to the base")],
    "orpo": [
        Line("rl", "orpo"),
        Line("orpo_alpha", 0.1, "as in the ORPO paper"),
        Line("remove_unused_columns", False, "ORPO's collator reads columns that the model's forward does not take"),
    ],
    "simpo": [
        Line("rl", "simpo"),
        Line("rl_beta", 2.0, "as in the SimPO paper's first setting, like the two below"),
        Line("simpo_gamma", 1.0),
        Line("cpo_alpha", 0.0, "no further SFT term"),
    ],
}


def _base(base: BaseModel) -> Line:
    return Line("base_model", base.name, "as in paft.yml")


def _kind(wish: Wish) -> str:
    return "full" if wish.adapter == "full" else "adapter"


def _template(base: BaseModel, alpaca: bool) -> Section:
    if base.has_template and not alpaca:
        template = Line("chat_template", "tokenizer_default", "the base's own; both branches must speak the same")
    elif alpaca:
        template = Line(
            "chat_template", "alpaca", "the SFT rows are read with its markers; both branches must speak the same"
        )
    else:
        why = "the base has none; this one is plain text and adds no tokens, so that embeddings keep their size"
        template = Line("chat_template", "alpaca", why)
    if base.pad_token is None:
        return [template]
    why = "the tokenizer names none; this one is in its vocabulary already"
    return [template, "special_tokens:\n", f'  pad_token: "{base.pad_token}"  # {why}\n']


def _held_out(data: Reading) -> Section:
    if data.count is None or data.count >= ENOUGH_TO_HOLD_OUT:
        return [Line("val_set_size", 0.01, "rows that are held out, for eval_loss"), Line("evals_per_epoch", 4)]
    return [Line("val_set_size", 0, f"all {data.count} rows are trained on: too few to hold some out")]


def _adapter(wish: Wish) -> Section:
    if wish.adapter == "full":
        return []
    quantised = [Line("load_in_4bit", True, "NF4 while training; the delta is added to the whole base")]
    return [
        Line("adapter", wish.adapter),
        *(quantised if wish.adapter == "qlora" else []),
        Line("lora_r", 16),
        Line("lora_alpha", 32),
        Line("lora_dropout", 0, "dropout would train another function than that of the penalised s·BA"),
        Line("lora_target_linear", True),
    ]


def _batch(rows: int | None) -> Section:
    accumulated, epochs = _effort(rows)
    together = MICRO * accumulated
    steps = "" if rows is None else f": {rows} rows make {-(-rows // together) * epochs} steps"
    why = f"fewer than {ENOUGH_STEPS} steps would be few for λ to find itself, and for any training"
    return [
        Line(
            "sample_packing", False, "true packs short rows for speed, in SFT alone: axolotl refuses it for preferences"
        ),
        Line("micro_batch_size", MICRO, "lower it, and raise the next one, if memory does not suffice"),
        Line("gradient_accumulation_steps", accumulated, f"{together} rows a step{steps}"),
        Line("num_epochs", epochs, why if epochs > 1 else ""),
    ]


def _effort(rows: int | None) -> tuple[int, int]:
    """Micro-batches a step and epochs: the usual 16 rows a step and one epoch; of few rows, fewer a step, then more epochs."""
    accumulated = 8
    if rows is None:
        return accumulated, 1
    while accumulated > 1 and rows < ENOUGH_STEPS * MICRO * accumulated:
        accumulated //= 2
    return accumulated, -(-ENOUGH_STEPS // -(-rows // (MICRO * accumulated)))


def _optimizer(gpu: bool, rate: float, decay: str) -> Section:
    return [
        Line("optimizer", "adamw_torch_fused" if gpu else "adamw_torch"),
        Line("lr_scheduler", "cosine"),
        Line(
            "learning_rate", rate, "a common start for this kind of training and size of model, not a measured optimum"
        ),
        Line("warmup_steps", 10),
        Line("weight_decay", 0.0, decay),
        Line("max_grad_norm", 1.0),
        Line("seed", 42),
    ]


def _machine(gpu: bool) -> Section:
    if gpu:
        return [
            Line("bf16", True, "not auto, which means fp16 on an old GPU: branches must not differ in precision"),
            Line("tf32", False, "small entries of the delta are what it is about"),
            Line("attn_implementation", "sdpa", "part of torch"),
            Line("gradient_checkpointing", True, "less memory for more time"),
            "gradient_checkpointing_kwargs:\n",
            "  use_reentrant: false  # axolotl's default is true for SFT and false for preferences: one for both\n",
        ]
    kernels = [f"lora_{part}_kernel" for part in ("mlp", "qkv", "o", "embedding")]
    return [
        Line(
            "bf16",
            False,
            "there is no GPU here: a CPU has neither these precisions nor these kernels, which axolotl turns on",
        ),
        *(Line(key, False) for key in ("fp16", "tf32", *kernels)),
    ]


def _checkpoints() -> Sequence[Line]:
    return [
        Line("logging_steps", 1),
        Line("saves_per_epoch", 10, "a training that is killed goes on from the last one"),
        Line("save_total_limit", 2),
    ]
