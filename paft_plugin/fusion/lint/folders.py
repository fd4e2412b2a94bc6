"""Checks of the folders that a recipe names: are they there, and do the branches belong to the base."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from paft_plugin.deltas.adapter import open_adapter
from paft_plugin.deltas.belongs import check_branch, check_finite
from paft_plugin.deltas.delta import open_delta
from paft_plugin.deltas.fit import has_other_vocabulary
from paft_plugin.deltas.proof import why_unproven
from paft_plugin.deltas.quantised import quantised
from paft_plugin.deltas.store import FLOATS, is_adapter, open_model
from paft_plugin.deltas.tokenizer import same_tokenizer
from paft_plugin.errors import PaftError, raise_if_any, some
from paft_plugin.files import PROOF_FILE, looks_local, read_json
from paft_plugin.fusion.lint.findings import Finding, Rule
from paft_plugin.fusion.lint.recipe import MergeInput, SoundRecipe, exists, recipe_check, same_folder, weight_check
from paft_plugin.fusion.merge.fusion import UnlistedError, open_fusion
from paft_plugin.schema import Keys

FOLDER_MISSING = Rule.error(301, "folder-missing", "A model's or an adapter's folder is not there.")
NOT_CHECKED = Rule.warning(
    302, "not-checked", "Something could not be looked at, so what depends on it was not checked."
)
RELATIVE_PATH = Rule.warning(
    303, "relative-path", "A relative path means another folder wherever the merge is run, or a name on the hub."
)
HOME_IN_PATH = Rule.error(305, "home-in-path", "mergekit does not expand `~`: it looks for a folder of that name.")
WRONG_FOLDER = Rule.error(306, "wrong-folder", "An adapter where a model belongs, or a model where an adapter belongs.")


@recipe_check
def paths(recipe: SoundRecipe) -> Iterator[Finding]:
    """Folders that are missing, relative, on the hub, or not what they should be."""
    told = set()
    for keys, reference in recipe.references:
        named = [(reference.model.path, False)] + ([(reference.lora.path, True)] if reference.lora else [])
        for path, as_adapter in named:
            if (path, as_adapter) not in told:
                told.add((path, as_adapter))
                yield from _path(recipe, keys, path, as_adapter)
    for path in recipe.document.header.paths if recipe.document.header else ():
        if not Path(path).is_absolute():
            message = f"The header's command names {path}, which is another place in every folder it is run from."
            yield recipe.finding(RELATIVE_PATH, (), message, "Write absolute paths there.")


OTHER_BASE = Rule.error(308, "other-base", "The adapter says that it was trained on another base model.")
VOCABULARY_GREW = Rule.error(
    309, "vocabulary-grew", "Training added tokens, so the branch's embedding no longer has the base's shape."
)
DOES_NOT_FIT = Rule.error(310, "does-not-fit", "The branch's tensors are not those of the base model.")
READ_AS = Rule.warning(
    330, "read-as", "An adapter's tensors or base bear other names than usual, and fit in one way: so they are read."
)
TWO_BASES = Rule.warning(
    311, "two-bases", "An adapter stands on another model than base_model: its delta holds their difference, too."
)


@recipe_check
def belonging(recipe: SoundRecipe) -> Iterator[Finding]:
    """Branches that do not belong to the base: their difference from it would be no delta of a training."""
    pretrained = recipe.pretrained
    if pretrained is None:
        return
    for entry in recipe.groups[0].branches:
        folder, reference = entry.folder, entry.reference
        if folder == pretrained or not folder.is_dir() or bool(reference.lora) != is_adapter(folder):
            continue  # the base itself, or `paths` says what is wrong with it
        base = pretrained
        if reference.lora and exists(reference.model.path):
            base = Path(reference.model.path)
            if base != pretrained and not same_folder(base, pretrained):
                message = (
                    f"The adapter stands on {base}, and base_model is {pretrained}: its delta is also their difference."
                )
                yield recipe.finding(TWO_BASES, entry.keys, message, "Name the same model in both places.")
        yield from _belongs(recipe, entry, base)


UNREADABLE = Rule.error(
    307, "unreadable", "The folder's weights cannot be read: pickled, truncated, quantised or of an unknown kind."
)


@recipe_check
def readable(recipe: SoundRecipe) -> Iterator[Finding]:
    """Whole models that cannot be opened, where there is no base to compare them with."""
    for keys, reference in () if recipe.pretrained else recipe.references:
        folder = Path(reference.model.path)
        if folder.is_dir() and not is_adapter(folder):
            try:
                raise_if_any(quantised(open_model(folder)))
            except PaftError as error:
                yield recipe.finding(UNREADABLE, keys, *halves(error.problems[0]))


LAYER_RANGE = Rule.error(
    331,
    "layer-range",
    "A layer_range takes no layers, layers that the model does not have, or not as many as its neighbours.",
)


@recipe_check
def layer_ranges(recipe: SoundRecipe) -> Iterator[Finding]:
    """Slices of layers that are not there; mergekit would look for their tensors, or write a model without layers."""
    for index, piece in enumerate(recipe.config.slices or []):
        for place, source in enumerate(piece.sources):
            keys: Keys = ("slices", index, "sources", place, "layer_range")
            (start, stop), layers = source.layer_range, _layers(Path(source.model.model.path))
            first = piece.sources[0].layer_range
            if start < 0 or stop <= start:
                message = f"[{start}, {stop}] takes no layer: the second number is the first layer that is left out."
            elif layers is not None and stop > layers:
                message = f"[{start}, {stop}] goes beyond {source.model.model.path}, which has {layers} layers."
            elif stop - start != first[1] - first[0]:
                message = (
                    f"[{start}, {stop}] takes {stop - start} layers, the first of this slice {first[1] - first[0]}."
                )
            else:
                continue
            fix = (
                f"Write at most [0, {layers}], of the same length for all of a slice."
                if layers
                else "Correct the range."
            )
            yield recipe.finding(LAYER_RANGE, keys, message, fix)


def _layers(folder: Path) -> int | None:
    """How many layers a model has, as its config says; None if it is not here, or says nothing."""
    try:
        config = read_json(folder / "config.json")
    except PaftError:
        return None
    text = config.get("text_config")
    places = (config, text if isinstance(text, dict) else {})
    said = (place.get(key) for place in places for key in ("num_hidden_layers", "num_layers", "n_layer", "n_layers"))
    return next((count for count in said if isinstance(count, int)), None)


UNPROVEN = Rule.warning(312, "unproven", "No branch has a paft.json that proves that the L1 penalty shaped it.")


@recipe_check
def proofs(recipe: SoundRecipe) -> Iterator[Finding]:
    """No branch has a file that proves that the penalty shaped it, from its first step to its last."""
    folders = [entry.folder for group in recipe.groups for entry in group.branches]
    if not folders or not all(folder.is_dir() for folder in folders):
        return  # the one that is not here may be the one with the proof
    reasons = {folder: why_unproven(folder) for folder in folders}
    if any(reason is None for reason in reasons.values()):
        return
    unfinished = [reason for folder, reason in reasons.items() if (folder / PROOF_FILE).is_file() and reason]
    message = f"No branch has a {PROOF_FILE}: nothing proves that the L1 penalty ran, and deltas may well be dense."
    if unfinished:
        message = unfinished[0].rstrip(".") + "."
    fix = "Train the SFT branch with paft_l1_lambda, or fuse knowing that it is dense."
    yield recipe.finding(UNPROVEN, (), message, fix)


NOT_FINITE = Rule.error(
    401, "not-finite", "NaN or infinity in a branch: its training diverged, and the merge would hold it too."
)


@weight_check
def finite(recipe: SoundRecipe) -> Iterator[Finding]:
    """NaN or infinity in an adapter, or in a whole model that the survey of deltas does not look at."""
    surveyed = {delta.branch.resolve() for delta in recipe.deltas.values()}
    entries = {entry.folder: entry for group in recipe.groups for entry in group.entries}
    for folder, entry in entries.items():
        if not folder.is_dir() or bool(entry.reference.lora) != is_adapter(folder):
            continue
        try:
            if entry.reference.lora:
                for problem in check_finite(folder):
                    yield recipe.finding(NOT_FINITE, entry.keys, *halves(problem))
            elif folder.resolve() not in surveyed:
                store = open_model(folder)
                raise_if_any(quantised(store))
                broken = [name for name in store.names if not torch.isfinite(store.tensor(name)).all()]
                if broken:
                    yield not_finite(recipe, entry, broken)
        except PaftError:
            continue  # other checks say why it cannot be opened


def not_finite(recipe: SoundRecipe, entry: MergeInput, tensors: list[str]) -> Finding:
    """The finding for a model or an adapter's delta with NaN or infinity in these tensors."""
    kind = "its delta of " if entry.reference.lora else ""
    message = f"{entry.folder}: NaN or infinity in {kind}{some(tensors)}."
    return recipe.finding(NOT_FINITE, entry.keys, message, "Retrain it with a lower learning rate.")


UNLISTED_REFUSED = Rule.error(
    340,
    "unlisted-refused",
    "mergekit's definition of the architecture lacks tensors of the base, and this recipe cannot merge them by their names.",
)
UNLISTED = Rule.warning(
    341,
    "unlisted",
    "mergekit's definition of the architecture lacks tensors of the base: mergekit-yaml loses them, `axolotl paft merge` not.",
)


@weight_check
def unlisted(recipe: SoundRecipe) -> Iterator[Finding]:
    """Tensors of the base that plain `mergekit-yaml` would lose without a word."""
    named = [path for _, one in recipe.references for path in (one.model, one.lora) if path is not None]
    if not all(Path(path.path).exists() for path in named):
        return  # to look at it, models would be fetched
    try:
        fusion = open_fusion(recipe.document.file, device="cpu")
    except UnlistedError as error:
        for problem in error.problems:
            yield recipe.finding(UNLISTED_REFUSED, (), *halves(problem.removeprefix(f"{recipe.document.file}: ")))
        return
    except PaftError:
        return  # other checks say why it cannot be opened
    if lacking := fusion.lacking:
        message = f"mergekit's definition of this architecture lacks {some(lacking)}."
        fix = "Merge with `axolotl paft merge`, which keeps them: mergekit-yaml would write the model without."
        yield recipe.finding(UNLISTED, (), message, fix)


TOKENIZER_UNION = Rule.warning(
    313, "tokenizer-union", "A union of tokenizers reorders and resizes the embeddings; padding rows go."
)
TOKENIZER_OPEN = Rule.warning(
    314, "tokenizer-open", "Without base_model and tokenizer, the tokenizer comes from any of the models."
)


@recipe_check
def tokenizers(recipe: SoundRecipe) -> Iterator[Finding]:
    """A union of tokenizers, or a tokenizer that is left to chance."""
    config = recipe.config
    keys: Keys = ("tokenizer",) if config.tokenizer else ("tokenizer_source",)
    source = config.tokenizer.source if config.tokenizer else config.tokenizer_source
    here = [Path(reference.model.path) for _, reference in recipe.references]
    differ = any(one.is_dir() and here[0].is_dir() and not same_tokenizer(one, here[0]) for one in here)
    if source == "union":
        default = "" if config.tokenizer_source else " (the default of `tokenizer:`)"
        message = f"A union of tokenizers{default} gives tokens new numbers and drops the vocabulary's padding rows."
        fix = "Branches of one base share its tokenizer: delete this, or name the base as the source."
        if differ:
            fix = "`source: base` would keep the base's tokens and their numbers."
        yield recipe.finding(TOKENIZER_UNION, keys, message, fix)
    if config.base_model is None and source in (None, "base") and differ:
        message = "The models' tokenizers differ, and without base_model mergekit takes any one of them."
        fix = "Add `tokenizer: {source: {model: {path: …}}}` with the base's folder."
        yield recipe.finding(TOKENIZER_OPEN, keys if source else (), message, fix)


OUT_DTYPE_MISSING = Rule.warning(
    315, "out-dtype-missing", "Merged in float32 and written so: twice the size of a bf16 base."
)


@recipe_check
def out_dtype(recipe: SoundRecipe) -> Iterator[Finding]:
    """A model that would be written in float32 though its base is smaller."""
    dtype = recipe.config.dtype
    if recipe.config.out_dtype or dtype not in ("float32", "float64"):
        return
    own = next(filter(None, (_stored_dtype(Path(reference.model.path)) for _, reference in recipe.references)), "")
    if own not in ("float32", "float64"):
        message = f"Without out_dtype the merged model is written in {dtype}."
        fix = f"Add `out_dtype: {own}`." if own else "Add the base's own, such as `out_dtype: bfloat16`."
        yield recipe.finding(OUT_DTYPE_MISSING, ("dtype",), message, fix)


def _path(recipe: SoundRecipe, keys: Keys, path: str, as_adapter: bool) -> Iterator[Finding]:
    kind = "adapter" if as_adapter else "model"
    beside = recipe.document.file.parent / path
    if path.startswith("~"):
        message = f"mergekit looks for a folder named ~ in {path}."
        yield recipe.finding(HOME_IN_PATH, keys, message, f"Write {Path.home()} for it.")
    elif exists(path):
        if not Path(path).is_absolute():
            message = f"{path} is another folder wherever the merge is run, and mergekit may ask the hub for it."
            yield recipe.finding(RELATIVE_PATH, keys, message, f"Write {Path(path).resolve()}.")
        if is_adapter(Path(path)) != as_adapter:
            found, wanted = ("a whole model", "an adapter") if as_adapter else ("an adapter", "a model")
            fix = (
                "Write an adapter as `model: {model: {path: BASE}, lora: {path: ADAPTER}}`, a model as `model: MODEL`."
            )
            yield recipe.finding(WRONG_FOLDER, keys, f"{path} is {found}, and stands here as {wanted}.", fix)
    elif exists(str(beside)):
        message = f"{path} is beside the recipe, but mergekit looks for it in the folder in which it runs."
        yield recipe.finding(RELATIVE_PATH, keys, message, f"Write {beside.resolve()}.")
    elif looks_local(path):
        fix = f"Check the path of this {kind}, or train it first."
        yield recipe.finding(FOLDER_MISSING, keys, f"{path}: no such folder.", fix)
    else:
        message = f"{path} is no folder here; mergekit would look for it on the hub, so its weights were not checked."
        yield recipe.finding(NOT_CHECKED, keys, message, "Download it and give its folder, to have them checked.")


def _belongs(recipe: SoundRecipe, entry: MergeInput, base: Path) -> Iterator[Finding]:
    found = check_branch(base, entry.folder)
    for warning in found.warnings:
        yield recipe.finding(READ_AS, entry.keys, *halves(warning))
    if not found.problems:
        return
    whole = not entry.reference.lora and _opens(base) and _opens(entry.folder)
    if whole and has_other_vocabulary(open_model(base), open_model(entry.folder)):
        if not (recipe.config.tokenizer or recipe.config.tokenizer_source):
            fix = (
                "Add `tokenizer: {source: union}`, which aligns the vocabularies, or `base` to keep the base's tokens."
            )
            yield recipe.finding(DOES_NOT_FIT, entry.keys, halves(found.problems[0])[0], fix)
        return  # mergekit takes its rows by the tokenizers
    try:
        delta = open_delta(base, entry.folder)
    except PaftError:
        # Either one of them cannot be opened, or they do not fit each other; the first says so of a file or a dtype.
        rule = DOES_NOT_FIT if _opens(base) and _opens(entry.folder) else UNREADABLE
    else:
        rule = VOCABULARY_GREW if delta.grown else OTHER_BASE
    for problem in found.problems:
        yield recipe.finding(rule, entry.keys, *halves(problem))


def _stored_dtype(folder: Path) -> str | None:
    """The dtype of most of a model's weights, by torch's name; None where the model is not here or cannot be read."""
    try:
        return FLOATS.get(open_model(folder).main_dtype)
    except PaftError:
        return None


def _opens(folder: Path) -> bool:
    """Whether deltas can be taken of what is in a folder."""
    try:
        if is_adapter(folder):
            open_adapter(folder)
            return True
        read_json(folder / "config.json")
        return not quantised(open_model(folder))
    except PaftError:
        return False


def halves(problem: str) -> tuple[str, str]:
    """A problem that `deltas` found, in two: its first sentence says what is wrong, the others what to do."""
    head, dot, tail = problem.partition(". ")
    return (head + ".", tail) if dot else (problem, "Mend it.")
