"""Every code has a planted recipe that triggers it, and nothing else."""

from __future__ import annotations

import re

import pytest

from paft_plugin.errors import PaftError
from paft_plugin.fusion.lint import errors
from paft_plugin.fusion.lint.rules import CODES, explain
from tests.fusion.lint import planted_folders  # noqa: F401  (its recipes enter themselves into CASES)
from tests.fusion.lint.conftest import Bench
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
        assert finding.severity == CODES[finding.name].severity


def test_every_code_has_a_planted_recipe() -> None:
    assert set(CASES) == set(CODES)


def test_codes_are_unique_and_explained_by_number_or_name() -> None:
    codes = [code.code for code in CODES.values()]
    assert len(set(codes)) == len(codes)
    assert all(re.fullmatch(r"PAFT[1-5]\d\d", code) for code in codes)
    assert explain("paft102") == explain("unknown-key") == [CODES["unknown-key"]]
    assert len(explain("all")) == len(CODES)
    with pytest.raises(PaftError, match="Did you mean unknown-key"):
        explain("unknown-keys")


def test_a_finding_names_line_place_and_the_likeliest_word(bench: Bench) -> None:
    text = "merge_method: ties\nbase_model: /b\nmodels:\n  - model: /c\n    parameters:\n      desnity: 0.5\n      weight: 1\n"
    (finding,) = [finding for finding in errors(bench.lint(text)) if finding.name == "unknown-parameter"]
    assert (finding.line, finding.where) == (6, "models[0].parameters.desnity")
    assert finding.fix == "Did you mean `density`?"
