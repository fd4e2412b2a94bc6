"""`python -m paft_plugin.pipeline.held_out REQUEST`: hold rows out, and write what is left for the trainings."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from paft_plugin.errors import run_request
from paft_plugin.pipeline.held_out.stage import hold_out, read_request


def work(file: Path) -> None:
    """Hold out what a request asks for."""
    logging.disable(logging.INFO)
    summary = hold_out(read_request(file))
    for name, counts in summary.branches.items():
        print(f"{name}: of {counts.rows} rows {counts.test} for the test and {counts.validation} for validation")
    print("\n".join(summary.notes))


if __name__ == "__main__":
    sys.exit(run_request(sys.argv[1:], "paft_plugin.pipeline.held_out", work))
