"""The baselines that a sceptic asks for, as changes of the branches' own configs: what each trains, on what, in which order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from paft_plugin.errors import PaftError, raise_if_any, some
from paft_plugin.inspection.inspected import place_of
from paft_plugin.pipeline.branches import Branch, without_penalty
from paft_plugin.pipeline.config import BranchSpec, ControlSpec
from paft_plugin.pipeline.estimate.shapes import is_linear, weight_shapes
from paft_plugin.schema import suggestion

# --- disjoint: modules of its own for each branch -----------------------------------------------------------------------

ATTENTION, MLP = "attention", "mlp"
OF_ROLE = {"sft": MLP, "preference": ATTENTION}
"""What a branch trains unless it is said."""
_ATTENTION = {"self_attn", "self_attention", "attn", "attention", "linear_attn", "cross_attn"}
"""How architectures call the module that holds a layer's attention."""
_WHOLE = ("lora_modules_to_save", "lora_target_parameters", "lora_target_linear")
"""Keys that have an adapter train more than the modules that `lora_target_modules` names."""


def linear_modules(base: Path) -> dict[str, str]:
    """The linear layers within a base model's decoder layers, such as `mlp.up_proj` → `mlp` or `attention`; no folder, none."""
    places = (place_of(name) for name, shape in weight_shapes(base).items() if is_linear(name, shape))
    kinds = dict.fromkeys(kind for layer, kind in places if layer is not None)
    return {kind: ATTENTION if _ATTENTION & set(kind.split(".")) else MLP for kind in kinds}


def own_modules(wanted: Mapping[str, Sequence[str]], linear: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """Branch → the linear modules that it trains, from its words: `attention`, `mlp`, or names such as `q_proj`.

    Raises:
        PaftError: No module is called so, two branches would train the same one, or experts that one parameter holds.
    """
    problems: list[str] = []
    found: dict[str, tuple[str, ...]] = {}
    for branch, words in wanted.items():
        meant = {
            word: [kind for kind, group in linear.items() if word == group or _is_in(word, kind)] for word in words
        }
        names = [ATTENTION, MLP, *linear]
        problems += [
            f"{branch}: {word}: no such module. {suggestion(word, names)}" for word in words if not meant[word]
        ]
        found[branch] = tuple(dict.fromkeys(kind for kinds in meant.values() for kind in kinds))
        if experts := [kind for kind in found[branch] if "*" in kind]:
            problems.append(
                f"{branch}: {some(experts)}: experts are one parameter once they are loaded, which cannot be trained by name. "
                "Name other modules."
            )
    for one, other in combinations(found, 2):
        if shared := [kind for kind in found[one] if kind in found[other]]:
            problems.append(
                f"{other}: {some(shared)}: {one} would train this, too. Give each branch modules of its own."
            )
    raise_if_any(problems)
    return found


def _is_in(word: str, kind: str) -> bool:
    """Whether a module is called `word`, or stands in one that is."""
    return f".{word}." in f".{kind}."


def training_only(branch: Branch, name: str, modules: Sequence[str]) -> Branch:
    """The training of a branch without its penalty, of some modules alone."""
    dense = without_penalty(branch, name)
    content = dict(dense.content)
    if dense.is_adapter:
        content = {key: value for key, value in content.items() if key not in _WHOLE}
        content["lora_target_modules"] = list(modules)
    else:
        # axolotl takes periods literally, but for those before a plus.
        content["unfrozen_parameters"] = [f".+.{each.replace('*', '[0-9]+')}.(weight|bias)$" for each in modules]
    left_out = [key for key in ("lora_modules_to_save", "lora_target_parameters") if branch.content.get(key)]
    notes = tuple(
        f"{name}: {key} of {branch.where} is left out, so that no two branches train the same." for key in left_out
    )
    return replace(dense, content=content, notes=notes, made_of=(branch.name,))


# --- controls: made of a dense delta, without a training ---------------------------------------------------------------

_BESIDE_FACTORS = ("lora_modules_to_save", "peft_trainable_token_indices")
"""Keys by which an adapter holds more than factors."""


class ControlRequest(BaseModel):
    """What `python -m paft_plugin.pipeline.controls` is given."""

    model_config = ConfigDict(frozen=True)

    spec: ControlSpec
    base: Path
    of: Path
    like: Path | None = None
    as_adapter: bool
    """Whether it is to stay an adapter."""
    folder: Path


def control_of(name: str, spec: ControlSpec, source: Branch) -> Branch:
    """A delta that is made of that of `source`; it stays an adapter if only its scale changes."""
    is_adapter = source.is_adapter and not (spec.is_sparse or any(source.content.get(key) for key in _BESIDE_FACTORS))
    content = {"adapter": "lora"} if is_adapter else {}
    role = BranchSpec.model_construct(role=source.role)
    return Branch(name, role, source.source, content, control=spec)


# --- sequential: one training after the other ---------------------------------------------------------------------------


def order_problems(order: Sequence[str], branches: Mapping[str, Branch | None]) -> Iterator[str]:
    """Why branches cannot be trained one after the other; `branches`: name in the file → dense branch, None if there is none."""
    said = f"[{', '.join(order)}]"
    for name in order:
        if name not in branches:
            yield f"{said}: {name}: no such branch. {suggestion(name, list(branches))}"
        elif branches[name] is None:
            yield f"{said}: {name}: was trained with the penalty elsewhere. Name its dense twin under `compare: {{{name}: …}}`."
    if len(order) < 2 or len(set(order)) < len(order):
        yield f"{said}: name two branches or more, each once."
    for name in order[1:]:
        if (branch := branches.get(name)) is not None and branch.trained is not None:
            yield f"{said}: {name}: is given as `trained:`, and only the first of an order can be. Give its config."
        elif branch is not None and branch.control is not None:
            yield f"{said}: {name}: is a control, which is not trained. Name it first, or leave it out."


# --- joint: one training on the rows of all branches --------------------------------------------------------------------

_NOT_JOINT = (
    *("datasets", "pretraining_dataset", "dataset_exact_deduplication", "max_steps", "num_epochs", "test_datasets"),
    *("eval_steps", "evals_per_epoch", "eval_strategy", "eval_sample_packing", "early_stopping_patience"),
    "load_best_model_at_end",
)
"""Keys that the joint training does without: its rows are all that it is given, as often as it shall see them."""

_JOINT_LOSS = ("rl", "dpo_loss_type", "dpo_loss_weights")
"""Keys of its loss that hold the SFT loss beside what `overrides` say of them."""


def joint_training(
    name: str, branches: Sequence[Branch], sft_weight: float | None, overrides: Mapping[str, Any]
) -> Branch:
    """One training on the rows of all branches, with the preference branch's config and loss, and the SFT loss.

    An SFT row is a pair of which both sides are its answer. Of such a pair the gradients of DPO, IPO, ORPO and SimPO cancel,
    and the SFT loss on the answer is left. What is no loss on pairs (KTO) takes the answer for a wanted one.

    Raises:
        PaftError: The branches train preferences by several losses; a weight for a loss that has none.
    """
    preferences = [branch for branch in branches if branch.role == "preference"]
    first, strategies = preferences[0], sorted({branch.strategy for branch in preferences})
    if len(strategies) > 1:
        raise PaftError(f"takes one preference loss, and the branches have {some(strategies)}. Leave {name} out.")
    given = without_penalty(first, name).content if first.penalised else first.content
    content = {key: value for key, value in given.items() if key not in _NOT_JOINT}
    content |= {"num_epochs": joint_epochs(branches), "val_set_size": 0}
    content |= {
        key: value for key in ("learning_rate", "sequence_len") if (value := _largest(key, branches)) is not None
    }
    content |= overrides
    strategy = str(content.get("rl") or first.strategy)
    if (strategy == "kto") != (first.strategy == "kto"):
        raise PaftError(
            f"overrides.rl: {strategy}: its rows are others than those of rl: {first.strategy}. Leave it out."
        )
    # Also of a loss that only `overrides` names: without the SFT loss it would train on pairs alone.
    loss = _joint_loss(content, strategy, sft_weight)
    content |= {key: value for key, value in loss.items() if key in _JOINT_LOSS or key not in overrides}
    content = {key: value for key, value in content.items() if value is not None}
    secrets = {variable: value for branch in branches for variable, value in branch.secrets.items()}
    made_of = tuple(branch.name for branch in branches)
    return replace(
        first, name=name, content=content, notes=_joint_notes(name, branches, content), made_of=made_of, secrets=secrets
    )


def joint_epochs(branches: Sequence[Branch]) -> int:
    """How often the joint training goes through its rows: as often as all branches do, if they go equally often, else once."""
    lengths = {(branch.content.get("max_steps"), _number(branch.content.get("num_epochs", 1))) for branch in branches}
    (steps, epochs), *others = lengths
    return int(epochs) if not others and not steps and epochs.is_integer() and epochs >= 1 else 1


def _joint_loss(content: Mapping[str, Any], strategy: str, weight: float | None) -> dict[str, Any]:
    """The keys that add the SFT loss."""
    if strategy in ("dpo", "ipo"):
        losses = list(content.get("dpo_loss_type") or (["ipo"] if strategy == "ipo" else ["sigmoid"]))
        weights = list(content.get("dpo_loss_weights") or [1.0] * len(losses))
        if "sft" not in losses:
            losses, weights = [*losses, "sft"], [*weights, 1.0]
        if weight is not None:
            weights[losses.index("sft")] = weight
        return {"rl": "dpo", "dpo_loss_type": losses, "dpo_loss_weights": weights, "dpo_use_liger_kernel": None}
    if strategy == "simpo":
        return {"cpo_alpha": weight or _number(content.get("cpo_alpha")) or 1.0}
    if weight is not None:
        own = (
            "its SFT loss has the weight 1, and orpo_alpha is the other one's"
            if strategy == "orpo"
            else "it has no SFT loss"
        )
        raise PaftError(f"sft_weight: not for rl: {strategy}: {own}. Leave it out.")
    return {}


def _joint_notes(name: str, branches: Sequence[Branch], content: Mapping[str, Any]) -> tuple[str, ...]:
    rates = list(dict.fromkeys(str(branch.content.get("learning_rate")) for branch in branches))
    rate = content.get("learning_rate")
    is_told = len(rates) > 1 and rate == _largest("learning_rate", branches)
    said = f"{name}: is trained with learning_rate: {rate}, the larger of the branches' ({some(rates)})."
    kto = f"{name}: KTO has no SFT loss: rows of SFT are answers that are wanted (as in UFT, arXiv 2410.21438)."
    return (
        *([f"{said} `overrides:` sets another."] if is_told else []),
        *([kto] if content.get("rl") == "kto" else []),
    )


def _largest(key: str, branches: Sequence[Branch]) -> Any:
    values = [branch.content[key] for branch in branches if branch.content.get(key) is not None]
    return max(values, key=_number, default=None)


def _number(value: Any) -> float:
    """A number, or what YAML takes for a text (`1e-4`); 0 for anything else, which is preflight's to name."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return 0.0
