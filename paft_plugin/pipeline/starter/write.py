"""Writes `paft.yml`, `sft.yml` and `preference.yml` from templates, with the reason for each choice as a comment."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import yaml

from paft_plugin.deltas.proof import why_unproven
from paft_plugin.errors import PaftError, as_written, collecting
from paft_plugin.evaluation.arms import Role
from paft_plugin.files import is_hub_name, resolved, write_text
from paft_plugin.fusion.recipe.settings import NAME
from paft_plugin.penalty.strength import ENOUGH_STEPS
from paft_plugin.pipeline.arms import PAFT, PARALLEL, SPARSE
from paft_plugin.pipeline.branches import PLUGIN
from paft_plugin.pipeline.held_out.choice import MOST, SHARE
from paft_plugin.pipeline.starter.model import UNKNOWN, BaseModel, Size, look_at, sequence_length, with_system
from paft_plugin.pipeline.starter.rows import Reading, read_preference, read_sft
from paft_plugin.templates import render

Adapter = Literal["lora", "qlora", "full"]
Strategy = Literal["dpo", "orpo", "simpo"]
HERE = "paft_plugin.pipeline.starter"
ENOUGH_TO_HOLD_OUT = 1000
MICRO = 2
METHODS = ["task_arithmetic", "dare_ties", "ties", "ram"]
_TAKEN = ("sft", "preference", "base", "sequential", "joint", "disjoint")
WIDTH = 120

SIZES: tuple[Size, ...] = ("small", "medium", "large")
RATES: Mapping[Strategy | None, Mapping[str, tuple[float, float, float]]] = {
    None: {"adapter": (1e-3, 2e-4, 1e-4), "full": (2e-5, 2e-5, 1e-5)},
    "dpo": {"adapter": (2e-4, 2e-5, 5e-6), "full": (1e-6, 1e-6, 5e-7)},
    "orpo": {"adapter": (5e-4, 5e-5, 2e-5), "full": (8e-6, 8e-6, 5e-6)},
    "simpo": {"adapter": (1e-5, 1e-5, 5e-6), "full": (1e-6, 1e-6, 5e-7)},
}
"""Learning rates of SFT (None) and of preferences, by `SIZES`."""
MEASURED = ((None, "adapter", "small"), ("dpo", "adapter", "small"), ("orpo", "adapter", "small"))
"""Among the best of several on validation items of a model of 135 M (`studies/smollm2`); the others are common starts."""


@dataclass(frozen=True)
class TrainedBranch:
    """A branch that is trained already."""

    name: str
    role: Role
    place: str
    """A folder, or a hub name."""

    @property
    def folder(self) -> Path:
        return resolved(Path(self.place))

    @property
    def entry(self) -> dict[str, str]:
        """What stands under `branches:`."""
        return {"trained": str(self.folder) if self.folder.is_dir() else self.place, "role": self.role}

    @property
    def problems(self) -> list[str]:
        """Why it cannot be one."""
        said = f"--branch {self.name}"
        if self.name in _TAKEN or not NAME.fullmatch(self.name):
            return [
                f"{said}: cannot be a branch's name here. Use letters, digits, '.', '_' and '-', and not a branch's of this run."
            ]
        if not self.folder.is_dir() and not is_hub_name(self.place, self.folder):
            return [f"{said}: {self.place} is neither a folder nor a hub name. Give the output of a finished training."]
        return []


@dataclass(frozen=True)
class Wish:
    """What a person asks for."""

    base: str
    sft_data: str
    preference_data: str
    output: Path
    adapter: Adapter = "lora"
    rl: Strategy = "dpo"
    branches: tuple[TrainedBranch, ...] = ()


ROWS_ALIKE = "Write all of its rows alike, a message as {role: …, content: …}."


def write_starter(wish: Wish, gpu: bool, force: bool = False) -> list[Path]:
    """Write the three files, for a machine with a GPU or without, and name them; `force`: over files that are there.

    Raises:
        PaftError: All at once: base or data cannot be read or have an unknown shape, files that are there already.
    """
    files = [wish.output / name for name in ("paft.yml", "sft.yml", "preference.yml")]
    problems = [f"{file} is there already. Choose another --output, or --force." for file in files if file.exists()]
    problems = [] if force else problems
    base = sft = preference = None
    problems += [problem for branch in wish.branches for problem in branch.problems]
    with collecting(problems), as_written(wish.base, "Download it again."):
        base = look_at(wish.base)
    with collecting(problems), as_written(wish.sft_data, ROWS_ALIKE):
        sft = read_sft(wish.sft_data, base.template if base else None)
    with collecting(problems), as_written(wish.preference_data, ROWS_ALIKE):
        alpaca = sft is not None and sft.alpaca
        complete = partial(with_system, base or UNKNOWN, alpaca)
        preference = read_preference(wish.preference_data, wish.rl, complete)
    if problems or base is None or sft is None or preference is None:
        raise PaftError(problems)
    wish.output.mkdir(parents=True, exist_ok=True)
    with as_written(wish.base, "Download it again."):
        texts = [
            render(
                HERE,
                "paft.yml.jinja",
                methods=METHODS,
                key=_key,
                base=base,
                rl=wish.rl,
                branches=wish.branches,
                arms=_further_arms(wish.branches),
                held_out=_held_out(sft, preference) | {branch.name: 0 for branch in wish.branches},
            ),
            _branch(wish, base, sft, gpu, None, sft.alpaca),
            _branch(wish, base, preference, gpu, wish.rl, sft.alpaca),
        ]
    for file, text in zip(files, texts, strict=True):
        write_text(file, text)
    return files


def _further_arms(branches: Sequence[TrainedBranch]) -> list[str]:
    """The arms of branches that are trained already, and of all fused, which have PAFT's name with a penalised one among them."""
    sparse = [each for each in branches if each.role == "sft" and why_unproven(each.folder) is None]
    names = [f"{each.name}{SPARSE}" if each in sparse else each.name for each in branches]
    return [*names, f"{PAFT if sparse else PARALLEL}*", f"without-*-{METHODS[0]}"]


def _held_out(sft: Reading, preference: Reading) -> dict[str, int]:
    """How many rows of each branch to hold out, of those whose rows were counted."""
    counts = {"sft": sft.count, "preference": preference.count}
    return {name: min(MOST, math.ceil(count * SHARE)) for name, count in counts.items() if count is not None}


def _branch(wish: Wish, base: BaseModel, data: Reading, gpu: bool, rl: Strategy | None, alpaca: bool) -> str:
    """The axolotl config of a branch; `alpaca`: the SFT rows are read with that template's markers."""
    length, why_length = sequence_length(base, data.texts)
    kind = "full" if wish.adapter == "full" else "adapter"
    return render(
        HERE,
        "branch.yml.jinja",
        key=_key,
        base=base,
        data=data,
        rl=rl,
        alpaca=alpaca,
        gpu=gpu,
        adapter=wish.adapter,
        plugin=PLUGIN,
        held_out=data.count is None or data.count >= ENOUGH_TO_HOLD_OUT,
        length=length,
        why_length=why_length,
        training=_training_length(data.count),
        enough_steps=ENOUGH_STEPS,
        rate=RATES[rl][kind][SIZES.index(base.size)],
        measured=(rl, kind, base.size) in MEASURED,
    )


@dataclass(frozen=True)
class TrainingLength:
    """Rows a step and passes over the data."""

    micro: int
    accumulated: int
    epochs: int
    steps: int | None
    """None where the rows were not counted."""

    @property
    def together(self) -> int:
        """Rows an optimizer step."""
        return self.micro * self.accumulated


def _training_length(rows: int | None) -> TrainingLength:
    """The usual 16 rows a step and one epoch; of few rows, fewer a step, then more epochs."""
    accumulated = 8
    if rows is None:
        return TrainingLength(MICRO, accumulated, 1, None)
    while accumulated > 1 and rows < ENOUGH_STEPS * MICRO * accumulated:
        accumulated //= 2
    steps = -(-rows // (MICRO * accumulated))
    epochs = -(-ENOUGH_STEPS // steps)
    return TrainingLength(MICRO, accumulated, epochs, steps * epochs)


def _key(name: str, value: Any, why: str = "", indent: str = "") -> str:
    """`name: value  # why` as YAML, without the last line's end; a reason that is too long stands above."""
    # Lists of plain values stay on their line, as people write them.
    flow = isinstance(value, (list, dict)) and not any(isinstance(each, (list, dict)) for each in value)
    text = yaml.safe_dump(value, default_flow_style=flow, allow_unicode=True, width=10_000, sort_keys=False)
    line = (
        f"{indent}{name}: {_float(value) if isinstance(value, float) else text.removesuffix('...' + chr(10)).rstrip()}"
    )
    if not why or len(line) + len(why) + 4 <= WIDTH:
        return f"{line}  # {why}" if why else line
    beside = " " * len(indent)
    above = textwrap.wrap(why, WIDTH - len(beside) - 2, break_long_words=False, break_on_hyphens=False)
    return "\n".join([*(f"{beside}# {each}" for each in above), line])


def _float(value: float) -> str:
    """`2.0e-5`: without the point YAML takes it for a word."""
    text = f"{value:.1e}".replace("e-0", "e-").replace("e+0", "e+")
    return text if 0 < abs(value) < 1e-2 else repr(value)
