"""What a search wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def trials(output: Path) -> list[dict[str, Any]]:
    """What `trials.json` says of each trial, but for the time that it took."""
    content = json.loads((output / "search" / "trials.json").read_text())
    return [{key: value for key, value in trial.items() if key != "seconds"} for trial in content["trials"]]
