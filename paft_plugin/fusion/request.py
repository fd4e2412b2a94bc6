"""What a user asks of a recipe, its checks, and the recipe that it comes to."""

from __future__ import annotations

import math
import unicodedata
from dataclasses import dataclass
from pathlib import Path

from paft_plugin.errors import raise_if_any
from paft_plugin.fusion.methods import METHODS

SEEDS = 2**32  # numpy's range, which mergekit seeds too


@dataclass(frozen=True)
class RecipeRequest:
    """A recipe as asked for; None leaves a choice to the method's default.

    An option that the method does not take must stay None.
    """

    base: Path
    """Folder of the base model θ_pre."""
    sft: Path
    """Folder of the SFT branch: an adapter or a whole model."""
    preference: Path
    """Folder of the preference branch: an adapter or a whole model."""
    method: str
    """A key of `METHODS`."""
    output: Path
    """The recipe's file."""
    density: float | None = None
    """Share of each delta's entries to keep, in (0, 1]; for DARE in (0, 1)."""
    weight_sft: float | None = None
    weight_preference: float | None = None
    scale: float | None = None
    """Factor on the merged delta (TIES' λ), > 0; 1 if None."""
    normalize: bool | None = None
    """Whether the summed deltas are divided by the weights of those that take part."""
    seed: int = 0
    merged: Path | None = None
    """Where the merged model goes; the recipe's path without its suffix if None."""


@dataclass(frozen=True)
class Branch:
    """A branch in a recipe."""

    path: Path
    is_adapter: bool


@dataclass(frozen=True)
class Recipe:
    """A recipe in full: every choice made, every path absolute. Pure data, so it renders without touching a disk."""

    method: str
    base: Path
    sft: Branch
    preference: Branch
    weights: tuple[float, float]
    """Of the SFT and the preference branch."""
    weights_given: bool
    """Whether the user chose a weight; decides TIES' default of `normalize`, and the comment on it."""
    density: float | None
    normalize: bool | None
    """None for a method that does not take it."""
    scale: float
    out_dtype: str
    """torch's word for the base's dtype (`bfloat16`, `float16`, `float32`, `float64`)."""
    seed: int
    file: Path
    merged: Path
    tokenizer_named: bool
    """Whether mergekit must be told to take the base's tokenizer."""
    lora_cache: Path | None
    """Where mergekit writes each adapter as a whole model; None where both branches are models."""

    @property
    def branches(self) -> tuple[Branch, Branch]:
        """SFT first, as in every table of this project."""
        return self.sft, self.preference


def settle(
    request: RecipeRequest,
    *,
    sft_is_adapter: bool,
    preference_is_adapter: bool,
    dtype: str,
    cache: str,
    tokenizer_named: bool = False,
) -> Recipe:
    """Fill in every default of a request; touches no disk.

    Args:
        request: With absolute paths.
        sft_is_adapter: Whether the SFT branch is an adapter rather than a model.
        preference_is_adapter: The same of the preference branch.
        dtype: The base's own dtype, in torch's word.
        cache: Fingerprint of the base's and the adapters' contents.
        tokenizer_named: Whether the recipe must name the base's tokenizer.

    Raises:
        PaftError: Options that are out of range, or that the method does not take (all of them in one error).
    """
    raise_if_any(option_problems(request))
    method = METHODS[request.method]
    given = request.weight_sft is not None or request.weight_preference is not None
    normalize = request.normalize
    if normalize is None and method.on_deltas:
        # Published TIES has no weights and takes the mean over the branches that agree; written weights act as written.
        normalize = request.method == "ties" and not given
    return Recipe(
        method=request.method,
        base=request.base,
        sft=Branch(request.sft, sft_is_adapter),
        preference=Branch(request.preference, preference_is_adapter),
        weights=_weights(request),
        weights_given=given,
        density=method.density if request.density is None else request.density,
        normalize=normalize,
        scale=1.0 if request.scale is None else request.scale,
        out_dtype=dtype,
        seed=request.seed,
        file=request.output,
        merged=merged_folder(request),
        tokenizer_named=tokenizer_named,
        lora_cache=request.output.parent / f".lora-cache-{cache}" if sft_is_adapter or preference_is_adapter else None,
    )


def merged_folder(request: RecipeRequest) -> Path:
    """Where the merged model goes."""
    if request.merged is not None:
        return request.merged
    path = request.output
    return path.with_suffix("") if path.suffix else path.with_name(f"{path.name}-merged")


def option_problems(request: RecipeRequest) -> list[str]:
    """What is wrong with a request's options and paths as such, whatever the folders hold."""
    method = METHODS.get(request.method)
    if method is None:
        return [f"--method {request.method}: not one of {', '.join(METHODS)}."]
    problems = []
    if request.density is not None:
        problems += _density_problems(request.density, request.method)
    if request.normalize is not None and not method.on_deltas:
        problems.append(
            f"--normalize/--no-normalize: {method.name} always averages. Leave it out, or take task_arithmetic."
        )
    for option, value in (("--weight-sft", request.weight_sft), ("--weight-preference", request.weight_preference)):
        if value is not None and not math.isfinite(value):
            problems.append(f"{option} {value}: not a finite number. Give one like 0.5.")
    if request.scale is not None and not (math.isfinite(request.scale) and request.scale > 0):
        problems.append(
            f"--scale {request.scale}: must be a finite number above 0. 1 leaves the merged delta as it is."
        )
    if not 0 <= request.seed < SEEDS:
        problems.append(f"--seed {request.seed}: must be from 0 to {SEEDS - 1}.")
    problems += _weight_problems(request, averages=not method.on_deltas)
    return problems + _path_problems(request)


def _weights(request: RecipeRequest) -> tuple[float, float]:
    default = METHODS[request.method].weight
    sft = default if request.weight_sft is None else request.weight_sft
    preference = default if request.weight_preference is None else request.weight_preference
    return sft, preference


def _density_problems(density: float, name: str) -> list[str]:
    method = METHODS[name]
    if method.density is None:
        takers = ", ".join(other.name for other in METHODS.values() if other.density is not None)
        return [f"--density: {name} keeps every entry. Leave it out, or take one of {takers}."]
    if not 0 < density <= 1:
        return [f"--density {density}: must be above 0 and at most 1: the share of entries to keep."]
    if method.drops_at_random and density == 1:
        return [f"--density 1: {name} would drop nothing. Take ties or task_arithmetic, or give less than 1."]
    return []


def _weight_problems(request: RecipeRequest, averages: bool) -> list[str]:
    sft, preference = _weights(request)
    if sft == 0 and preference == 0:
        return [
            "--weight-sft and --weight-preference are both 0: the merged model would be the base. Give one a weight."
        ]
    if (averages or request.normalize) and sft + preference == 0:
        return [f"weights {sft} and {preference} add up to 0, and {request.method} divides by their sum. Change one."]
    return []


def _path_problems(request: RecipeRequest) -> list[str]:
    problems = []
    merged = merged_folder(request)
    branches = {"--base": request.base, "--sft": request.sft, "--preference": request.preference}
    for option, path in {**branches, "--output": request.output}.items():
        # Such characters would break the header's command line, or YAML itself.
        if any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in str(path)):
            problems.append(
                f"{option} {str(path)!r}: a line break or control character in the path. Rename the folder."
            )
    options = list(branches)
    for index, option in enumerate(options):
        for other in options[index + 1 :]:
            if branches[option] == branches[other]:
                problems.append(
                    f"{option} and {other} are the same folder, {branches[option]}. Give two different ones."
                )
    for option, path in branches.items():
        if merged == path:
            problems.append(
                f"--output {request.output}: the merged model would be written to {merged}, which is {option}. Give another name."
            )
    return problems
