"""Every code has a planted recipe that triggers it, and nothing else."""

from __future__ import annotations

import re

import pytest

from paft_plugin.errors import PaftError
from paft_plugin.fusion.lint import linter  # noqa: F401  (rules enter themselves into RULES)
from paft_plugin.fusion.lint.findings import CODES, RULES, codes_document, errors, explain_rules
from tests.fusion.lint import planted_folders  # noqa: F401  (its recipes enter themselves into CASES)
from tests.fusion.lint.bench import Bench
from tests.fusion.lint.planted import ALSO, CASES


@pytest.mark.parametrize(("name", "number"), [(name, number) for name in CASES for number in range(len(CASES[name]))])
def test_a_planted_fault_is_found_and_nothing_else(
    bench: Bench, name: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir("/")
    planted = CASES[name][number](bench)
    findings = bench.lint(*planted) if isinstance(planted, tuple) else bench.lint(planted)
    names = {finding.name for finding in findings}
    assert name in names, findings
    assert names <= {name} | ALSO.get(name, set()), findings
    for finding in findings:
        assert finding.message.endswith((".", "?", ")")), finding
        assert finding.fix
        assert finding.severity == RULES[finding.name].severity


def test_every_code_has_a_planted_recipe() -> None:
    assert set(CASES) == set(RULES)


def test_the_document_of_codes_is_up_to_date() -> None:
    assert CODES.read_text(encoding="utf-8") == codes_document(), "python -m paft_plugin.fusion.lint.linter"


def test_codes_are_unique_and_explained_by_code_or_name() -> None:
    codes = [rule.code for rule in RULES.values()]
    assert len(set(codes)) == len(codes)
    assert all(re.fullmatch(r"PAFT[1-5]\d\d", code) for code in codes)
    (heading, *_) = explain_rules("paft102", 80)
    assert heading == "PAFT102 unknown-key: error"
    assert explain_rules("unknown-key", 80) == explain_rules("paft102", 80)
    headings = [line.split()[0] for line in explain_rules("all", 80) if not line.startswith(" ")]
    assert headings == sorted(codes)
    with pytest.raises(PaftError, match="Did you mean unknown-key"):
        explain_rules("unknown-keys", 80)


def test_a_finding_names_line_place_and_the_likeliest_word(bench: Bench) -> None:
    text = "merge_method: ties\nbase_model: /b\nmodels:\n  - model: /c\n    parameters:\n      desnity: 0.5\n      weight: 1\n"
    (finding,) = [finding for finding in errors(bench.lint(text)) if finding.name == "unknown-parameter"]
    assert (finding.line, finding.where) == (6, "models[0].parameters.desnity")
    assert finding.fix == "Did you mean `density`?"
