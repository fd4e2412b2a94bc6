"""Diagnosis of a run: the three failure signatures, each with its evidence, threshold, confidence and remedy.

diagnosis = diagnose(Path("outputs/run"))
for check in diagnosis.findings: ...
"""

from __future__ import annotations

from paft_plugin.inspection.diagnosis.checks import diagnose

__all__ = ["diagnose"]
