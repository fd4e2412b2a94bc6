"""What a branch's `paft.json` proves."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path

import pytest

from paft_plugin.deltas.proof import PACKAGES, Measurement, Proof, Record, why_unproven

WHOLE = {"schema": 1, "finished": True, "steps_penalised": 200, "lambda": 1e-4}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "has no paft.json"),
        ("{", "cannot be read"),
        ("[]", "cannot be read"),
        (json.dumps(WHOLE | {"finished": False}), "did not end"),
        (json.dumps(WHOLE | {"steps_penalised": 0, "lambda": 0}), "no step had the L1 penalty"),
        (json.dumps(WHOLE | {"lambda": 0, "l2_lambda": 1e-3}), "no step had the L1 penalty"),
    ],
    ids=["missing", "cut off", "something else", "unfinished", "measured only", "L2 alone"],
)
def test_what_proves_nothing_says_why(tmp_path: Path, content: str | None, reason: str) -> None:
    if content is not None:
        (tmp_path / "paft.json").write_text(content)
    assert reason in (why_unproven(tmp_path) or "")


def test_a_finished_penalised_run_is_proven(tmp_path: Path) -> None:
    (tmp_path / "paft.json").write_text(json.dumps(WHOLE))
    assert why_unproven(tmp_path) is None


def test_what_is_not_known_is_left_out_and_what_is_missing_has_a_default(tmp_path: Path) -> None:
    file = tmp_path / "paft.json"
    file.write_text(json.dumps(WHOLE | {"mood": "good", "history": [{"step": 3, "lambda": 0.1, "mood": "better"}]}))
    proof = Proof.read(file)
    assert (proof.strength, proof.target_sparsity, proof.sparsity) == (1e-4, None, None)
    assert [(point.step, point.strength) for point in proof.history] == [(3, 0.1)]


TARGET = {"target_sparsity": 0.9, "target_threshold": 1e-5}


@pytest.mark.parametrize("target", [{}, TARGET], ids=["constant", "steered"])
@pytest.mark.parametrize("norm", [12.5, float("inf"), None], ids=["ended", "diverged", "unfinished"])
def test_the_file_is_what_it_always_was(tmp_path: Path, target: dict[str, float], norm: float | None) -> None:
    """Byte for byte what versions before the model wrote, key after key."""
    chosen = {"lambda": 1e-4, "l1_on": "delta", "mode": "subgradient", "warmup_ratio": 0.1, **target}
    record = Record(chosen, tensors=["a", "b"], entries=10, steps_penalised=7, resumed_at_step=2)
    record.remember(5, 3e-5, Measurement(13.0, {1e-5: 0.5, 0.5: 1.0}, 10))
    if norm is not None:
        record.final = Measurement(norm, {1e-5: 0.75}, 10)
    record.write(tmp_path)
    expected = {
        "schema": 1,
        "finished": norm is not None,
        **chosen,
        "steps_penalised": 7,
        "resumed_at_step": 2,
        "l1_norm": 12.5 if norm == 12.5 else None,
        "sparsity": None if norm is None else {"1e-05": 0.75},
        "entries": 10,
        "tensors": ["a", "b"],
        "history": [{"step": 5, "lambda": 3e-5, "l1_norm": 13.0, "sparsity": {"1e-05": 0.5, "0.5": 1.0}}],
        "versions": {package: version(package) for package in PACKAGES},
    }
    assert (tmp_path / "paft.json").read_text() == json.dumps(expected, indent=2, ensure_ascii=False) + "\n"
    assert Proof.read(tmp_path / "paft.json") == record.proof()
