"""Takes a recipe through every check: first its structure, then what it says and names, then what the weights hold."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from paft_plugin.errors import PaftError
from paft_plugin.files import write_text
from paft_plugin.fusion.lint import cache, merging, parameters, shape  # noqa: F401  (checks enter themselves)
from paft_plugin.fusion.lint.document import Document, read
from paft_plugin.fusion.lint.findings import CODES, Finding, codes_document, errors
from paft_plugin.fusion.lint.folders import NOT_CHECKED, UNREADABLE, halves
from paft_plugin.fusion.lint.recipe import RECIPE_CHECKS, WEIGHT_CHECKS, Check, SoundRecipe, method_named
from paft_plugin.fusion.lint.survey import survey
from paft_plugin.fusion.lint.weights import DELTA_CHECKS


def lint_recipe(path: Path, *, read_weights: bool = True) -> list[Finding]:
    """Look for everything that is wrong, or not as it seems, in a mergekit recipe and in what it names.

    One step is taken where the last is sound: structure, parameters, then (with `read_weights`, tensor by tensor) what the
    method makes of the branches' weights. Findings come in the order of the file.
    """
    document = read(path)
    if isinstance(document, Finding):
        return [document]
    findings = [*shape.structure(document)]
    if any(finding.name == shape.SEPARATOR_IN_PATH.name for finding in findings):
        return findings  # whatever follows would be about paths that nobody wrote
    recipe, more = as_recipe(document, explained=bool(errors(findings)))
    findings += more
    if recipe is not None:
        findings += _checked(recipe, RECIPE_CHECKS)
        # An error in a parameter keeps mergekit's own resolver, which the survey asks, from answering.
        if read_weights and not any(finding.code.startswith("PAFT2") for finding in errors(findings)):
            findings += _checked(recipe, (*WEIGHT_CHECKS, _of_deltas))
    unique = dict.fromkeys(findings)
    return sorted(unique, key=lambda finding: (finding.line or 0, finding.code))


def method_in(path: Path) -> str:
    """The merge method that a recipe names; empty if it cannot be read."""
    document = read(path)
    return "" if isinstance(document, Finding) else str(document.content.get("merge_method", ""))


def as_recipe(document: Document, explained: bool) -> tuple[SoundRecipe | None, list[Finding]]:
    """The recipe for the checks, or what keeps it from being one; `explained` if an error in its structure may be why."""
    config, findings = shape.wrong_kinds(document, explained)
    if config is None:
        return None, findings
    method = method_named(config.merge_method)
    if method is None:
        return None, [shape.unknown_method(document, config.merge_method)]
    return SoundRecipe(document, config, method), []


def _checked(recipe: SoundRecipe, checks: Iterable[Check]) -> Iterator[Finding]:
    """What the checks find; a file that one of them cannot read is a finding, too, and keeps no other from looking."""
    for check in checks:
        try:
            yield from check(recipe)
        except PaftError as error:
            for problem in error.problems:
                yield recipe.finding(UNREADABLE, (), *halves(problem))


def _of_deltas(recipe: SoundRecipe) -> Iterator[Finding]:
    if recipe.config.slices or recipe.config.modules:
        message = "What the weights hold is looked at for `models:` alone."
        yield recipe.finding(NOT_CHECKED, (), message, "Look at the deltas yourself.")
        return
    facts = list(survey(recipe))
    if facts:
        for check in DELTA_CHECKS:
            yield from check(recipe, facts)


if __name__ == "__main__":
    write_text(CODES, codes_document())
