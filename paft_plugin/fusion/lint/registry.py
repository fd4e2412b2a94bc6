"""All checks in one place, in the order in which a recipe is looked at."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from paft_plugin.errors import PaftError
from paft_plugin.fusion.lint import cache, folders, merging, parameters, shape
from paft_plugin.fusion.lint.document import Document, read
from paft_plugin.fusion.lint.findings import Finding, errors
from paft_plugin.fusion.lint.subject import Subject, method_named
from paft_plugin.fusion.lint.survey import survey
from paft_plugin.fusion.lint.weights import WEIGHT_CHECKS

Check = Callable[[Subject], Iterator[Finding]]

CHECKS: tuple[Check, ...] = (
    parameters.known,
    parameters.valued,
    parameters.required,
    parameters.conditional,
    parameters.gradients,
    parameters.on_base,
    merging.models,
    merging.dtypes,
    merging.chat_template,
    merging.idle_parameters,
    merging.sums,
    merging.drops,
    folders.paths,
    folders.belonging,
    folders.readable,
    folders.proofs,
    folders.tokenizers,
    folders.out_dtype,
    cache.flags,
    cache.entries,
)
"""Checks that read the recipe, and of the folders only headers and small files."""

READING_CHECKS: tuple[Check, ...] = (folders.finite, cache.contents)
"""Checks that read weights, outside of the survey of the deltas."""


def look(path: Path, read_weights: bool) -> list[Finding]:
    """`lint_recipe`, which imports this module, and mergekit with it, when it is first called."""
    document = read(path)
    if isinstance(document, Finding):
        return [document]
    findings = [*shape.structure(document)]
    if any(finding.name == "separator-in-path" for finding in findings):
        return findings  # whatever follows would be about paths that nobody wrote
    subject, more = as_subject(document, explained=bool(errors(findings)))
    findings += more
    if subject is not None:
        findings += _checked(subject, CHECKS)
        # An error in a parameter keeps mergekit's own resolver, which the survey asks, from answering.
        if read_weights and not any(finding.code.startswith("PAFT2") for finding in errors(findings)):
            findings += _checked(subject, (*READING_CHECKS, _of_weights))
    unique = dict.fromkeys(findings)
    return sorted(unique, key=lambda finding: (finding.line or 0, finding.code))


def as_subject(document: Document, explained: bool) -> tuple[Subject | None, list[Finding]]:
    """The recipe for the checks, or what keeps it from being one; `explained` if an error in its structure may be why."""
    config, findings = shape.wrong_kinds(document, explained)
    if config is None:
        return None, findings
    method = method_named(config.merge_method)
    if method is None:
        return None, [shape.unknown_method(document, config.merge_method)]
    return Subject(document, config, method), []


def _checked(subject: Subject, checks: Iterable[Check]) -> Iterator[Finding]:
    """What the checks find; a file that one of them cannot read is a finding, too, and keeps no other from looking."""
    for check in checks:
        try:
            yield from check(subject)
        except PaftError as error:
            for problem in error.problems:
                yield subject.finding("unreadable", (), *folders.halves(problem))


def _of_weights(subject: Subject) -> Iterator[Finding]:
    if subject.config.slices or subject.config.modules:
        yield subject.finding(
            "not-checked", (), "What the weights hold is looked at for `models:` alone.", "Look at the deltas yourself."
        )
        return
    facts = list(survey(subject))
    if facts:
        for check in WEIGHT_CHECKS:
            yield from check(subject, facts)
