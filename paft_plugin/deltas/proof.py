"""Whether an SFT branch can prove that the penalty shaped it: its `paft.json`."""

from __future__ import annotations

import json
from pathlib import Path

from paft_plugin.files import PROOF_FILE


def why_unproven(branch: Path) -> str | None:
    """Why nothing proves that the penalty ran for `branch`, in one sentence; None if its `paft.json` does."""
    file = branch / PROOF_FILE
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        finished, steps = bool(record["finished"]), int(record["steps_penalised"])
    except FileNotFoundError:
        return f"{branch} has no {PROOF_FILE}: nothing proves that the L1 penalty ran, its delta may well be dense."
    except (OSError, ValueError, KeyError, TypeError):
        return f"{file} cannot be read: nothing proves that the L1 penalty ran, its delta may well be dense."
    if not finished:
        return f"{file} says that training did not end: the delta may not be what the penalty would have made of it."
    if steps == 0:
        return f"{file} says that no step was penalised (λ = {record.get('lambda')}): its delta may well be dense."
    return None
