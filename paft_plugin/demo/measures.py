"""What the demo scores its arms on: its four lm-eval tasks, in the terms of `evaluation:` in a `paft.yml`."""

from __future__ import annotations

from pathlib import Path

from paft_plugin.evaluation.config import EvaluationConfig

TASKS = Path("evaluation") / "tasks"
MEASURES_FILE = Path("evaluation") / "measures.json"
EVALUATION = {
    "tasks": TASKS.as_posix(),
    "measures": {
        "paft_skill": {"name": "skill"},
        "paft_preference": {"name": "preference"},
        "paft_style": {"name": "style"},
        "paft_retained": {"name": "retained"},
    },
    "skill": "skill",
    "preference": "preference",
    "batch_size": 64,
    "device": "cpu",
    "dtype": "float32",
}


def evaluation_config(run_dir: Path) -> EvaluationConfig:
    """`EVALUATION` in a run directory, whose tasks must be written."""
    return EvaluationConfig.model_validate(EVALUATION, context={"folder": run_dir})
