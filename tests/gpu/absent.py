"""A Python in which libraries that a GPU machine may lack cannot be imported, whatever is installed."""

from __future__ import annotations

import os
from pathlib import Path

ABSENT = ("axolotl", "datasets", "trl", "lm_eval")


def without_axolotl(folder: Path) -> dict[str, str]:
    """Variables for a process, and for those that it starts; `folder` gets what Python runs first."""
    lines = ["import sys", *(f"sys.modules[{name!r}] = None" for name in ABSENT)]
    (folder / "sitecustomize.py").write_text("\n".join(lines) + "\n", encoding="utf-8")
    path = [str(folder), str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"PYTHONPATH": os.pathsep.join(path)}
