"""The baselines that a sceptic asks for, as changes of the branches' own configs: what each trains, on what, in which order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path

from paft_plugin.errors import raise_if_any, some
from paft_plugin.inspection.inspected import place_of
from paft_plugin.pipeline.branches import Branch, without_penalty
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
