"""A recipe as it is asked for, checked against what the folders hold, settled in every choice and written."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path

import torch

from paft_plugin.deltas.adapter import open_adapter
from paft_plugin.deltas.belongs import check_belongs, examine
from paft_plugin.deltas.delta import Delta, delta_of
from paft_plugin.deltas.proof import why_unproven
from paft_plugin.deltas.store import FLOATS, TensorStore, is_adapter, open_model
from paft_plugin.deltas.tokenizer import VOCABULARY_FILES, same_tokenizer
from paft_plugin.errors import PaftError, raise_if_any, some
from paft_plugin.files import fingerprint, write_text
from paft_plugin.fusion.recipe.methods import METHODS
from paft_plugin.fusion.recipe.parameters import parameters
from paft_plugin.fusion.recipe.render import MATERIALIZED, MERGE_DTYPE, MOST_SEED, Recipe, RecipeBranch, render_recipe
from paft_plugin.fusion.recipe.setting_problems import number_problems, setting_problems
from paft_plugin.fusion.recipe.settings import DEPTH, NAME, ROLES, RecipeSettings


@dataclass(frozen=True)
class RecipeRequest:
    """A recipe as asked for."""

    base: Path
    """Folder of the base model θ_pre."""
    branches: tuple[RecipeBranch, ...]
    """At least one."""
    method: str
    """A key of `METHODS`."""
    output: Path
    """The recipe's file."""
    settings: RecipeSettings = field(default_factory=RecipeSettings)
    seed: int = 0
    merged: Path | None = None
    """Where the merged model goes; the recipe's path without its suffix if None."""
    materialize: bool = False
    """Whether adapters are written as whole models beside the recipe, so that mergekit needs no flags for them."""

    @property
    def merged_folder(self) -> Path:
        """Where the merged model goes."""
        if self.merged is not None:
            return self.merged
        return self.output.with_suffix("") if self.output.suffix else Path(f"{self.output}-merged")

    def absolute(self) -> RecipeRequest:
        """The same request with absolute paths."""
        paths = {name: value.resolve() for name, value in vars(self).items() if isinstance(value, Path)}
        branches = tuple(replace(branch, path=branch.path.resolve()) for branch in self.branches)
        return replace(self, branches=branches, **paths)  # type: ignore[arg-type]


def write_recipe(request: RecipeRequest, problems: Sequence[str] = ()) -> Recipe:
    """Check a request, write its recipe (whole or not at all; with the branches as models, if asked for), and return it.

    Raises:
        PaftError: As `describe`, and as `materialize`.
        OSError: The recipe's folder cannot be written to.
    """
    recipe = describe(request, problems)
    if request.materialize:
        from paft_plugin.fusion.recipe.materialize import materialize  # mergekit takes seconds to import

        recipe = materialize(recipe)
    write_text(recipe.file, render_recipe(recipe))
    return recipe


def describe(request: RecipeRequest, problems: Sequence[str] = ()) -> Recipe:
    """Check a request against what the folders hold, and settle every choice.

    Raises:
        PaftError: `problems` (known already), every wrong option, and all that keeps a branch from belonging to the base.
    """
    request = request.absolute()
    found = [*problems, *request_problems(request)]
    if request.output.is_dir():
        found.append(
            f"--output {request.output}: a folder. Give the recipe's file name, such as {request.output}/ties.yml."
        )
    folders = [branch.path for branch in request.branches]
    try:
        base = open_model(request.base)
    except PaftError:
        # The base's faults come once for each branch; shown once.
        faults = [problem for folder in folders for problem in check_belongs(request.base, folder)]
        raise PaftError(found + list(dict.fromkeys(faults))) from None
    findings = examine(request.base, list(dict.fromkeys(folders)))
    findings.warn(*(why for branch in request.branches if branch.role == "sft" and (why := why_unproven(branch.path))))
    found += findings.problems + _filters_without_tensors(request, base)
    raise_if_any(list(dict.fromkeys(found)))
    branches = tuple(replace(branch, is_adapter=is_adapter(branch.path)) for branch in request.branches)
    request = replace(request, branches=branches)
    raise_if_any([problem for branch in branches for problem in _missing_tokenizer(request, branch)])
    adapters = [open_adapter(branch.path).fingerprint for branch in branches if branch.is_adapter]
    recipe = settle(
        request,
        dtype=FLOATS[base.main_dtype],
        tokenizer_named=_needs_tokenizer(request),
        cache=fingerprint([base.fingerprint, MERGE_DTYPE, *adapters]) if adapters and not request.materialize else "",
        idle=_idle(request, base),
        behind=_behind_layers(request, base),
    )
    return replace(recipe, warnings=tuple(findings.warnings))


def settle(
    request: RecipeRequest,
    *,
    dtype: str,
    cache: str,
    tokenizer_named: bool = False,
    idle: Sequence[bool] = (),
    behind: Sequence[str] = (),
) -> Recipe:
    """Fill in every default of a request that has absolute paths and no `request_problems`; touches no disk.

    `dtype` is the base's own, `cache` a fingerprint of what base and adapters hold, `idle` and `behind` as in `parameters`; the
    others are fields of `Recipe`.
    """
    trims_globally = request.settings.trim == "global"
    # `axolotl paft merge` needs neither flags nor models for adapters.
    reads_adapter = any(branch.is_adapter for branch in request.branches) and not (
        request.materialize or trims_globally
    )
    return Recipe(
        method=request.method,
        base=request.base,
        branches=request.branches,
        parameters=tuple(parameters(METHODS[request.method], request.settings, request.branches, idle, behind)),
        out_dtype=dtype,
        seed=request.seed,
        file=request.output,
        merged=request.merged_folder,
        tokenizer_named=tokenizer_named,
        trims_globally=trims_globally,
        lora_cache=request.output.parent / f".lora-cache-{cache}" if reads_adapter else None,
    )


def request_problems(request: RecipeRequest) -> list[str]:
    """Every mistake in a request that can be seen without a disk; one sentence each, with what to do."""
    problems = setting_problems(request.method, request.settings, request.branches)
    if request.method not in METHODS:
        return problems
    problems += _branch_problems(request)
    if not 0 <= request.seed <= MOST_SEED:
        problems.append(f"--seed {request.seed}: must be from 0 to {MOST_SEED}.")
    # One for each name: a second branch of the same name is told of already.
    branches = {"--base": request.base, **{branch.option: branch.path for branch in request.branches}}
    for option, path in {**branches, "--output": request.output}.items():
        # Such characters would break the header's command line, or YAML itself.
        if any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in str(path)):
            problems.append(
                f"{option} {str(path)!r}: a line break or control character in the path. Rename the folder."
            )
    problems += [
        f"{option} and {other} are the same folder, {path}. Give two different ones."
        for (option, path), (other, second) in combinations(branches.items(), 2)
        if path == second
    ]
    merged = request.merged_folder
    if request.materialize and merged == request.output.parent / MATERIALIZED:
        problems.append(f"--output {request.output}: the adapters' whole models go to {merged}. Give another name.")
    return problems + [
        f"--output {request.output}: the merged model would be written to {merged}, which is {option}. Give another name."
        for option, path in branches.items()
        if merged == path
    ]


def _branch_problems(request: RecipeRequest) -> list[str]:
    """Too few or too many branches for the method, two of one name, or one that is called like a role that it has not."""
    names = [branch.name for branch in request.branches]
    problems = [
        f"--branch {name}: {names.count(name)} branches have this name. Give each its own."
        for name in dict.fromkeys(names)
        if names.count(name) > 1
    ]
    problems += [
        f"--branch {branch.name}: has the role {branch.role} and the name of the other. Name it otherwise."
        for branch in request.branches
        if branch.name in ROLES and branch.name != branch.role
    ]
    problems += [
        f"--branch {name}: use letters, digits, '.', '_' and '-' for a name."
        for name in dict.fromkeys(names)
        if not NAME.fullmatch(name)
    ]
    if not names:
        problems.append("No branch is given. Give --sft and --preference, or a --branch NAME=DIR for each.")
    return problems + number_problems(request.method, len(names))


def _needs_tokenizer(request: RecipeRequest) -> bool:
    """Whether a recipe must name the base's tokenizer.

    With a `base_model` mergekit copies the base's files. Without one (linear) it takes the tokenizer of whichever model
    comes first out of a set: harmless for adapters, which stand for their base, but not for models with another tokenizer.
    Naming the source always would cost a base whose vocabulary is padded its padding rows.
    """
    if METHODS[request.method].on_deltas:
        return False
    return not all(same_tokenizer(branch.path, request.base) for branch in request.branches if not branch.is_adapter)


def _missing_tokenizer(request: RecipeRequest, branch: RecipeBranch) -> list[str]:
    """A problem if the merge may look for a tokenizer in a model's folder that has none."""
    looks_there = not METHODS[request.method].on_deltas and not branch.is_adapter
    if not looks_there or any((branch.path / file).is_file() for file in VOCABULARY_FILES):
        return []
    return [
        f"{branch.path}: no tokenizer, and {request.method} may take it from any model. Copy the base's tokenizer files there."
    ]


def _idle(request: RecipeRequest, base: TensorStore) -> tuple[bool, ...]:
    """For each branch, whether nothing was said of its density, and the method's default would trim nothing of it."""
    method, settings = METHODS[request.method], request.settings
    # Breadcrumbs at density 1 would not take its outliers away either.
    if method.selects != "largest" or method.density is None or settings.extras.get("gamma"):
        return (False,) * len(request.branches)
    return tuple(
        not settings.says_density(branch) and _trims_nothing(delta_of(base, branch.path), method.density)
        for branch in request.branches
    )


def _behind_layers(request: RecipeRequest, base: TensorStore) -> list[str]:
    """The tensors behind the last layer that a branch changes, for weights that are said by depth."""
    if not request.settings.given(DEPTH):
        return []
    from paft_plugin.fusion.merge.fusion import behind_layers  # mergekit takes seconds to import

    changed = {name for branch in request.branches for name in delta_of(base, branch.path).names}
    return [name for name in behind_layers(base) if name in changed]


def _trims_nothing(delta: Delta, density: float) -> bool:
    """Whether keeping the largest `density` of each tensor's entries keeps all of its non-zero ones; stops where it doesn't."""
    return all(int(torch.count_nonzero(change)) <= int(density * change.numel()) for _, change in delta.tensors())


def _filters_without_tensors(request: RecipeRequest, base: TensorStore) -> list[str]:
    names = dict.fromkeys(one.name for one in request.settings.filter)
    modules = dict.fromkeys(part for name in base.names for part in name.split(".")[:-1] if not part.isdigit())
    return [
        f"--filter {name}: no tensor of {request.base} has it in its name. Its modules are {some(list(modules), most=20)}."
        for name in names
        if not any(name in tensor for tensor in base.names)
    ]
