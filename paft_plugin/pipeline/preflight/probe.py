"""A process that looks at the configs of a run through axolotl's eyes: `python -m paft_plugin.pipeline.preflight.probe REQUEST`.

A process of its own, because axolotl may open the GPU, and its plugins and patches stay for good; and one for all branches,
because it takes seconds to import: each branch is looked at in a fork.
"""

from __future__ import annotations

import importlib
import json
import logging
import multiprocessing
import os
import sys
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import Any

from paft_plugin.files import write_json
from paft_plugin.pipeline.held_out.request import AXOLOTL
from paft_plugin.pipeline.preflight.ask import HELD_OUT_ANSWER, HELD_OUT_REQUEST


def main(request: Path) -> None:
    """Answer every question in the file `request`, each in a file beside it."""
    questions = json.loads(request.read_text(encoding="utf-8"))
    for module in AXOLOTL if questions else ():
        importlib.import_module(module)

    fork = multiprocessing.get_context("fork")
    children = [fork.Process(target=_answer, args=(question, request.parent)) for question in questions]
    if (request.parent / HELD_OUT_REQUEST).is_file():
        children.append(fork.Process(target=_look, args=(request.parent,)))
    for child in children:
        child.start()
    for child in children:
        child.join()


def _answer(question: dict[str, Any], folder: Path) -> None:
    import datasets

    from paft_plugin.pipeline.preflight.ask import Answer
    from paft_plugin.pipeline.preflight.view import view

    logging.disable(logging.WARNING)
    datasets.disable_progress_bars()
    os.chdir(folder)  # whatever a plugin writes beside itself
    try:
        answer = view(question["content"], question["where"], folder / question["name"], question["here"])
    except Exception:  # said to the parent, which says it to the user
        last = traceback.format_exc().strip().splitlines()[-1]
        traceback.print_exc()
        answer = Answer(problems=[f"{question['where']}: axolotl cannot look at this config: {last}"])
    write_json(folder / f"{question['name']}.json", asdict(answer))


def _look(folder: Path) -> None:
    from paft_plugin.pipeline.held_out.stage import look, read_request

    logging.disable(logging.WARNING)
    write_json(folder / HELD_OUT_ANSWER, asdict(look(read_request(folder / HELD_OUT_REQUEST))))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
