"""`python -m paft_plugin.pipeline.held_out REQUEST`: hold rows out, and write what is left for the trainings."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from paft_plugin.errors import BAD_INPUT, PaftError
from paft_plugin.pipeline.held_out.stage import hold_out, read_request


def main(arguments: list[str]) -> int:
    """The exit code: 2 for a user's mistake."""
    if len(arguments) != 1:
        print("Usage: python -m paft_plugin.pipeline.held_out REQUEST", file=sys.stderr)
        return BAD_INPUT
    logging.disable(logging.INFO)
    try:
        summary = hold_out(read_request(Path(arguments[0])))
    except PaftError as error:
        print("\n".join(f"Error: {problem}" for problem in error.problems), file=sys.stderr)
        return BAD_INPUT
    for name, counts in summary.branches.items():
        print(f"{name}: of {counts.rows} rows {counts.test} for the test and {counts.validation} for validation")
    print("\n".join(summary.notes))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
