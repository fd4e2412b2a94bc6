"""What the stage is asked: the branches' data sets and how many of their rows; and where the trainings find what is left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from paft_plugin.evaluation.held_out_rows import HELD_OUT
from paft_plugin.pipeline.arms import Setup
from paft_plugin.pipeline.branches import Branch, entries

AXOLOTL = ("axolotl.cli.config", "axolotl.utils.data.sft", "axolotl.utils.data.rl")
"""What every look at a branch needs of it: imported once, before a process for each is forked."""
RETAINED, PROMPTS = "retained", "prompts.json"
REST = Path("training_rows")
"""Below the folder of a run: the rows of the branches that only stand beside the others, without those that are held out."""
_OF_LOADING = ("data_files", "name", "revision", "trust_remote_code", "ds_type")
"""Keys of a data set that say where its rows come from, beside `path` and `split`."""
_OF_TRAINING = (
    *(
        "adam_",
        "adapter",
        "attn_",
        "auto_",
        "batch_size",
        "bf16",
        "bfloat16",
        "comet_",
        "cosine_",
        "cpo_",
        "curriculum_",
    ),
    *(
        "ddp",
        "deepspeed",
        "dpo_",
        "early_",
        "embedding_lr",
        "eval_",
        "evals_",
        "evaluation_",
        "flash_",
        "float16",
        "fp16",
    ),
    *(
        "fp8",
        "fsdp",
        "gpu_",
        "gradient_",
        "greater_is_",
        "group_by_",
        "hub_",
        "kto_",
        "learning_",
        "load_best",
        "load_in_",
    ),
    *(
        "logging_",
        "lora",
        "loss_",
        "lr_",
        "max_grad",
        "max_steps",
        "metric_for",
        "micro_",
        "mlflow_",
        "num_epochs",
        "optim",
    ),
    *("orpo_", "output_", "paft_", "pad_to_", "peft", "precompute_", "qlora", "relora", "resume_", "rl_beta"),
    *(
        "sample_packing",
        "save",
        "sdp_",
        "seed",
        "simpo_",
        "tensorboard_",
        "test_datasets",
        "tf32",
        "torch_compile",
        "torchao",
    ),
    *(
        "trackio_",
        "unfrozen_",
        "use_comet",
        "use_mlflow",
        "use_tensorboard",
        "use_trackio",
        "use_wandb",
        "val_set_size",
    ),
    *("wandb_", "warmup_", "weight_decay", "xformers_"),
)
"""How keys begin that decide how, but not on what, is trained: another value holds out the same rows."""
_VALID = {"micro_batch_size": 1, "gradient_accumulation_steps": 1, "num_epochs": 1, "learning_rate": 1e-5}
"""What axolotl wants in any config."""
_ANY = {"chat_template": "tokenizer_default", "sequence_len": 2048, **_VALID}
"""How rows are read where no branch is trained here."""


class Question(BaseModel):
    """One branch's data."""

    model_config = ConfigDict(frozen=True)

    name: str
    where: str
    """For messages."""
    content: dict[str, Any]
    """As much of its axolotl config as decides what a row becomes."""
    amount: int | float | None = None
    """How many rows to hold out, or what share of them; None: the default."""


class Request(BaseModel):
    """What `python -m paft_plugin.pipeline.held_out` is given."""

    model_config = ConfigDict(frozen=True)

    base: Path
    folder: Path
    """Gets everything."""
    branches: tuple[Question, ...]
    nothing_else: bool = False
    """Whether these rows are all that models are scored on; for preflight alone."""
    retained: Question | None = None
    """Rows that no branch is trained on; all of them are for scoring."""
    apart_from: Path | None = None
    """File of prompts that are held out already: nothing more is, and rows with them are left out."""


def request_of(setup: Setup) -> Request | None:
    """What a run holds out; None if nothing."""
    evaluation = setup.config.evaluation
    if evaluation is None:
        return None
    asked = questions(setup)
    retained = _retained(setup, asked, evaluation.retained) if isinstance(evaluation.retained, Path) else None
    if not asked and retained is None:
        return None
    return Request(
        base=setup.base,
        folder=setup.run_dir / HELD_OUT,
        branches=asked,
        retained=retained,
        nothing_else=not evaluation.by_task,
    )


def request_beside(setup: Setup, branch: Branch) -> Request | None:
    """What is left of the data of a branch that stands beside the others; None if those are its data, or nothing is held out."""
    if not questions(setup) or not has_rows(branch) or (name := owner(setup, branch)) in owners(setup):
        return None
    return Request(
        base=setup.base,
        folder=setup.run_dir / rest_folder(setup, name),
        branches=(question(setup, name, branch),),
        apart_from=setup.run_dir / HELD_OUT / PROMPTS,
    )


def owners(setup: Setup) -> dict[str, Branch]:
    """Name under `held_out:` → the branch whose rows are meant."""
    return {key: setup.branches[arm] for key, arm in setup.fused.items()}


def owner(setup: Setup, branch: Branch) -> str:
    """The name of the data that a branch is trained on: its own, unless a fused branch is trained on the same."""
    data = question(setup, "", branch).content
    same = (name for name, other in owners(setup).items() if question(setup, "", other).content == data)
    return next(same, branch.name)


def questions(setup: Setup) -> tuple[Question, ...]:
    """Every branch's data of which rows may be held out; none if nothing is to be."""
    evaluation = setup.config.evaluation
    if evaluation is None or evaluation.held_out is False:
        return ()
    asked = tuple(
        question(setup, name, branch).model_copy(update={"amount": evaluation.held_out.get(name)})
        for name, branch in owners(setup).items()
        if has_rows(branch)
    )
    return asked if any(each.amount != 0 for each in asked) else ()


def has_rows(branch: Branch) -> bool:
    """Whether a branch is trained here, on data sets of its own that are read as a whole."""
    content = branch.content
    return (
        branch.trained is None
        and not branch.is_joint
        and bool(content.get("datasets"))
        and not content.get("streaming")
    )


def question(setup: Setup, name: str, branch: Branch) -> Question:
    """What there is to know of a branch's data."""
    content = {key: value for key, value in branch.content.items() if not key.startswith(_OF_TRAINING)}
    plugins = [name for name in content.pop("plugins", None) or [] if not str(name).startswith("paft_plugin")]
    content |= {"base_model": str(setup.base), **_VALID} | ({"plugins": plugins} if plugins else {})
    return Question(name=name, where=branch.where, content=content)


def _retained(setup: Setup, asked: Sequence[Question], file: Path) -> Question:
    """Rows of the user's own, in the branches' own chat template; the stage sees how they are to be read."""
    content = next((each.content for each in asked if not each.content.get("rl")), asked[0].content if asked else _ANY)
    content = {key: value for key, value in content.items() if key != "rl"}
    content |= {"base_model": str(setup.base), "datasets": [{"path": str(file)}]}
    return Question(name=RETAINED, where="evaluation.retained", content=content)


def rest_file(folder: Path, name: str, index: int) -> Path:
    """What is left of a data set."""
    return folder / "training" / f"{name}-{index}.parquet"


def rest_folder(setup: Setup, name: str) -> Path:
    """Below the run's folder: where what is left of a branch's data lies."""
    return HELD_OUT if name in owners(setup) else REST / name


def trained_on_rest(setup: Setup, branch: Branch) -> Branch:
    """The branch with its data sets pointed at what is left of them; all their other keys stay."""
    if not questions(setup) or not has_rows(branch):
        return branch
    name = owner(setup, branch)
    folder = setup.run_dir / rest_folder(setup, name)
    left = [_rest(entry, rest_file(folder, name, index)) for index, entry in entries(branch.content, "datasets")]
    return replace(branch, content={**branch.content, "datasets": left})


def _rest(entry: Mapping[str, Any], file: Path) -> dict[str, Any]:
    kept = {key: value for key, value in entry.items() if key not in _OF_LOADING}
    return kept | {"path": str(file), "split": "train"}
