"""From a request to the recipe that it comes to: every default filled in."""

from __future__ import annotations

from paft_plugin.errors import raise_if_any
from paft_plugin.fusion.methods import METHODS
from paft_plugin.fusion.options import option_problems
from paft_plugin.fusion.request import (
    Branch,
    Recipe,
    RecipeRequest,
    density_settings,
    merged_folder,
    weight_settings,
    weights_given,
)
from paft_plugin.fusion.settings import conditions, parse_filters


def settle(
    request: RecipeRequest,
    *,
    sft_is_adapter: bool,
    preference_is_adapter: bool,
    dtype: str,
    cache: str,
    tokenizer_named: bool = False,
    idle: tuple[bool, bool] = (False, False),
) -> Recipe:
    """Fill in every default of a request; touches no disk.

    Args:
        request: With absolute paths.
        sft_is_adapter: Whether the SFT branch is an adapter rather than a model.
        preference_is_adapter: The same of the preference branch.
        dtype: The base's own dtype, in torch's word.
        cache: Fingerprint of the base's and the adapters' contents.
        tokenizer_named: Whether the recipe must name the base's tokenizer.
        idle: For each branch, whether the method's default density would trim nothing of it.

    Raises:
        PaftError: Options that are out of range, or that the method does not take (all of them in one error).
    """
    raise_if_any(option_problems(request))
    method = METHODS[request.method]
    given = weights_given(request)
    normalize = request.normalize
    if normalize is None and method.normalizes is not None:
        # Published TIES has no weights and takes the mean over the branches that agree; written weights act as written.
        normalize = method.normalizes and not given
    idle = (idle[0] and density_open(request, "sft"), idle[1] and density_open(request, "preference"))
    reads_adapter = (sft_is_adapter or preference_is_adapter) and not request.materialize
    return Recipe(
        method=request.method,
        base=request.base,
        sft=Branch(request.sft, sft_is_adapter),
        preference=Branch(request.preference, preference_is_adapter),
        weights=weight_settings(request),
        weights_given=given,
        densities=density_settings(request, idle),
        idle=idle,
        normalize=normalize,
        scale=1.0 if request.scale is None else request.scale,
        extras={extra.name: request.extras.get(extra.name, extra.default) for extra in method.extras},
        out_dtype=dtype,
        seed=request.seed,
        file=request.output,
        merged=merged_folder(request),
        tokenizer_named=tokenizer_named,
        lora_cache=request.output.parent / f".lora-cache-{cache}" if reads_adapter else None,
    )


def density_open(request: RecipeRequest, branch: str) -> bool:
    """Whether nothing was said about a branch's density."""
    own = request.density_sft if branch == "sft" else request.density_preference
    return (
        own is None and request.density is None and not conditions(parse_filters(request.filters)[0], "density", branch)
    )
