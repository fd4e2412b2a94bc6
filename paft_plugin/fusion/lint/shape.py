"""Checks of a recipe's structure: which keys stand where, and of which kind their values are.

The known keys and kinds are those of the installed mergekit's own configuration classes, so they follow its versions.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from mergekit.common import ModelPath, ModelReference
from mergekit.config import MergeConfiguration
from mergekit.merge_methods import registered_methods
from pydantic import BaseModel, ValidationError

from paft_plugin.errors import closest
from paft_plugin.fusion.lint.document import Document
from paft_plugin.fusion.lint.findings import Finding, Rule
from paft_plugin.fusion.lint.recipe import exists
from paft_plugin.schema import Keys, MayBe, dotted, names_of, places, unknown_keys

UNKNOWN_KEY = Rule.error(
    102, "unknown-key", "mergekit ignores keys that it does not know, at every level and without a word."
)
DUPLICATE_KEY = Rule.error(
    103, "duplicate-key", "A key that stands twice in one mapping: YAML silently keeps the last one."
)
ONE_OF_THREE = Rule.error(106, "one-of-three", "A recipe has exactly one of `models`, `slices` and `modules`.")
TWO_TOKENIZERS = Rule.error(107, "two-tokenizers", "A recipe has `tokenizer` or `tokenizer_source`, not both.")
SEPARATOR_IN_PATH = Rule.error(
    304, "separator-in-path", "In a text, mergekit reads `+` as model+adapter and `@` as path@revision."
)


def structure(document: Document) -> Iterator[Finding]:
    """Findings of the structure alone."""
    for keys in document.duplicates:
        message = f"`{keys[-1]}` stands here twice; the last one counts."
        yield document.finding(DUPLICATE_KEY, keys, message, "Delete one of them.")
    unknown = list(unknown_keys([MergeConfiguration], document.content))
    for keys, owners in unknown:
        yield _unknown_key(document, keys, owners)
    given = [key for key in ("models", "slices", "modules") if document.content.get(key)]
    if len(given) != 1 and not _explained(unknown, (), ("models", "slices", "modules")):
        found = " and ".join(given) if given else "none of them"
        message = f"A recipe has exactly one of models, slices and modules; here is {found}."
        yield document.finding(ONE_OF_THREE, tuple(given[-1:]), message, "For two branches of one base, keep `models`.")
    if document.content.get("tokenizer") and document.content.get("tokenizer_source"):
        message = "mergekit takes tokenizer or tokenizer_source, and stops at both."
        yield document.finding(TWO_TOKENIZERS, ("tokenizer_source",), message, "Delete one of them.")
    yield from _separators(document)


WRONG_KIND = Rule.error(
    104, "wrong-kind", "A value is of another kind than mergekit reads there, or a required key is missing."
)


def wrong_kinds(document: Document, explained: bool) -> tuple[MergeConfiguration | None, list[Finding]]:
    """The recipe as mergekit reads it, or what keeps mergekit from reading it (each place once).

    mergekit's own words on the structure as a whole are only of use where `structure` found nothing that explains them.
    """
    try:
        return MergeConfiguration.model_validate(document.content), []
    except ValidationError as error:
        return None, list(_kinds(document, error))
    except RuntimeError as error:
        message = f"mergekit cannot read it: {str(error).rstrip('.')}."
        return None, [] if explained else [document.finding(WRONG_KIND, (), message, "Mend it.")]


UNKNOWN_METHOD = Rule.error(105, "unknown-method", "The installed mergekit has no merge method of this name.")


def unknown_method(document: Document, name: str) -> Finding:
    """The finding for a merge method that mergekit does not have."""
    names = sorted(method.spec.name for method in registered_methods())
    match = closest(name, names)
    fix = f"Did you mean {match}?" if match else f"Take one of {', '.join(names)}."
    return document.finding(UNKNOWN_METHOD, ("merge_method",), f"mergekit has no merge method {name!r}.", fix)


def texts(content: dict[Any, Any]) -> Iterator[tuple[Keys, str, type[BaseModel]]]:
    """Every model reference of a recipe that is written as a text, with the class that takes it apart."""
    for keys, value, kinds, _ in places([MergeConfiguration], content):
        for kind in MayBe.of(kinds).models:
            if isinstance(value, str) and kind in (ModelReference, ModelPath):
                yield keys, value, kind


def _unknown_key(document: Document, keys: Keys, owners: Sequence[type[BaseModel]]) -> Finding:
    key, fields = str(keys[-1]), names_of(owners)
    if match := closest(key, fields):
        fix = f"Did you mean `{match}`?"
    elif key == "path" and ModelReference in owners:
        fix = "In this form a model is written `model: {model: {path: …}, lora: {path: …}}`."
    elif "parameters" in fields and any(one.name == key for way in registered_methods() for one in way.spec.parameters):
        fix = f"Put it into `{dotted((*keys[:-1], 'parameters', key))}`."
    else:
        fix = f"Delete it; the keys here are {', '.join(fields)}."
    return document.finding(UNKNOWN_KEY, keys, f"`{key}` means nothing here: mergekit ignores it.", fix)


def _explained(unknown: Iterable[tuple[Keys, Any]], at: Keys, missing: Iterable[str]) -> bool:
    """Whether a misspelt key beside it explains why a key is missing."""
    beside = [str(keys[-1]) for keys, _ in unknown if keys[:-1] == at]
    return any(closest(key, missing) for key in beside)


def _kinds(document: Document, error: ValidationError) -> Iterator[Finding]:
    unknown = list(unknown_keys([MergeConfiguration], document.content))
    told: set[Keys] = set()
    for one in error.errors():
        keys = _keys_of_fault(document, one["loc"])
        missing = str(one["loc"][-1]) if one["type"] == "missing" else None
        if keys in told or (missing and _explained(unknown, keys, [missing])):
            continue
        told.add(keys)
        if missing:
            yield document.finding(WRONG_KIND, keys, f"`{missing}` is missing here.", f"Add `{missing}`.")
        else:
            reason = one["msg"][0].lower() + one["msg"][1:]
            yield document.finding(WRONG_KIND, keys, f"mergekit cannot read this value: {reason}.", "Mend it.")


def _keys_of_fault(document: Document, location: tuple[str | int, ...]) -> Keys:
    """The part of pydantic's location that is in the document: it also names the kinds that it tried."""
    keys: Keys = ()
    for part in location:
        if (*keys, part) in document.lines:
            keys = (*keys, part)
    return keys


def _separators(document: Document) -> Iterator[Finding]:
    """`+` and `@` in a text that mergekit takes apart, where what comes out is not what was meant."""
    for keys, text, kind in texts(document.content):
        plus = text.split("+") if kind is ModelReference else [text]
        crashes = len(plus) > 2 or any(part.count("@") > 1 for part in plus)
        parts = [part.split("@")[0] for part in plus]
        if crashes or (exists(text) and parts != [text] and not all(exists(part) for part in parts)):
            wrong = "stops at it" if crashes else f"reads {' and '.join(parts)} here"
            form = "{model: {path: …}, lora: {path: …}}" if kind is ModelReference else "{path: …}"
            message = f"In a text, + and @ separate adapter and revision: mergekit {wrong}."
            fix = f"Write {text!r} as a mapping, `{form}`, or rename the folder."
            yield document.finding(SEPARATOR_IN_PATH, keys, message, fix)
