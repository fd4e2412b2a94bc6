"""Holds rows out: every branch's data is read in a process of its own, since what axolotl loads for one stays for good."""

from __future__ import annotations

import importlib
import json
import multiprocessing
import tempfile
import traceback
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from paft_plugin.errors import Findings, PaftError, raise_if_any
from paft_plugin.evaluation.held_out_rows import SUMMARY, HeldOutCounts, HeldOutSummary, write_rows
from paft_plugin.files import write_json
from paft_plugin.pipeline.held_out.choice import FEW, FOR_VALIDATION, Chosen, RowIdentity, choose, choose_all
from paft_plugin.pipeline.held_out.request import AXOLOTL, PROMPTS, RETAINED, Question, Request, rest_file
from paft_plugin.reading import read_json_file


def read_request(file: Path) -> Request:
    """What the stage is given.

    Raises:
        PaftError: No such file, or no JSON.
    """
    return Request.model_validate(read_json_file(file, "Run `axolotl paft run` again."))


def hold_out(request: Request) -> HeldOutSummary:
    """Write the rows that are held out, and every data set without them.

    Raises:
        PaftError: All that axolotl cannot read, or too much was asked for.
    """
    with _readers(request) as readers:
        if request.apart_from is not None:
            held, chosen = set(read_json_file(request.apart_from)), {name: Chosen() for name in readers}
        else:
            chosen = _chosen(request, readers)
            held = {readers[name].rows[index].prompt for name, each in chosen.items() for index in each.rows}
            raise_if_any(_said(request, readers, chosen).problems)
            write_json(request.folder / PROMPTS, sorted(filter(None, held)))
        for name, reader in readers.items():
            reader.write(request, chosen[name], sorted(filter(None, held)))
        notes = () if request.apart_from else tuple(_said(request, readers, chosen).warnings)
        summary = HeldOutSummary(
            branches={name: _counts(readers[name].rows, chosen[name]) for name in readers}, notes=notes
        )
        summary.write(request.folder / SUMMARY)
        return summary


def look(request: Request) -> Findings:
    """What would be wrong or surprising about it; nothing is written."""
    findings = Findings()
    try:
        with _readers(request) as readers:
            chosen = _chosen(request, readers)
            findings.take(_said(request, readers, chosen))
            if request.nothing_else and not any(found.count("test") for found in chosen.values()):
                findings.problem(
                    "evaluation: no row can be held out, so that there is nothing to score on. Add rows, name lm-eval tasks "
                    "under `measures:`, or set `evaluation: false`."
                )
    except PaftError as error:
        findings.problem(*error.problems)
    return findings


# --- what is chosen, and what is said of it -----------------------------------------------------------------------------


def _chosen(request: Request, readers: Mapping[str, _Reading]) -> dict[str, Chosen]:
    asked = {each.name: each.amount for each in request.branches}
    rows = {name: readers[name].rows for name in asked}
    chosen = choose(rows, asked)
    if request.retained:
        taught = {row.prompt for each in rows.values() for row in each}
        chosen[RETAINED] = choose_all(readers[RETAINED].rows, taught)
    return chosen


def _counts(rows: Sequence[RowIdentity], chosen: Chosen) -> HeldOutCounts:
    return HeldOutCounts(
        rows=len(rows),
        test=chosen.count("test"),
        validation=chosen.count("validation"),
        shared=chosen.shared,
        unfit=dict(Counter(row.unfit for row in rows if row.unfit)),
    )


def _said(request: Request, readers: Mapping[str, _Reading], chosen: Mapping[str, Chosen]) -> Findings:
    findings = Findings()
    asked = [*request.branches, *([request.retained] if request.retained else [])]
    for question in asked:
        rows, found = readers[question.name].rows, chosen[question.name]
        if question.amount == 0:
            continue
        for reason, count in Counter(row.unfit for row in rows if row.unfit).items():
            findings.warn(f"{question.where}: {count} of {len(rows)} rows {reason}: they are not held out.")
        if question is request.retained:
            _say_of_retained(question, found, findings)
        else:
            _say_of_branch(question, rows, found, findings)
    return findings


def _say_of_retained(question: Question, found: Chosen, findings: Findings) -> None:
    if found.shared:
        findings.warn(
            f"{question.where}: {found.shared} rows have a prompt that a branch is trained on: no model is scored on them."
        )
    if not found.rows:
        findings.problem(
            f"{question.where}: no row of it can be scored. Give rows like those of the SFT branch, on other prompts."
        )


def _say_of_branch(question: Question, rows: Sequence[RowIdentity], found: Chosen, findings: Findings) -> None:
    test, where, key = found.count("test"), question.where, f"evaluation.held_out.{question.name}"
    if found.shared:
        but = f", but for {found.taken}, for want of others: all rows with their prompts leave the training"
        findings.warn(
            f"{where}: {found.shared} of {len(rows)} rows have a prompt that another row of a branch has, too: they are not held "
            f"out{but if found.taken else ''}."
        )
    most = len(rows) // 2 * FOR_VALIDATION // (FOR_VALIDATION + 1)
    if isinstance(question.amount, int) and question.amount > most:
        findings.problem(
            f"{where}: {key}: {question.amount} rows for the test and a quarter as many for validation are more than half of "
            f"{len(rows)}. Ask for at most {most}, or add rows."
        )
    elif not test:
        findings.warn(
            f"{where}: none of its {len(rows)} rows can be held out, so no model is scored on its data. Add rows."
        )
    elif test < found.wanted:
        findings.warn(
            f"{where}: {test} of its {len(rows)} rows are held out for the test, since no more can be; not {found.wanted}."
        )
    if 0 < test < FEW:
        findings.warn(
            f"{where}: {test} of its {len(rows)} rows are held out for the test, too few to show any but large differences. Add "
            f"rows, or set {key} higher."
        )


# --- a process for each branch ------------------------------------------------------------------------------------------


class _Reading:
    """A process that has read one branch's rows, and waits to be told which are held out."""

    def __init__(self, question: Question, request: Request) -> None:
        fork = multiprocessing.get_context("fork")
        self.pipe, other = fork.Pipe()
        self.where = question.where
        self.rows: list[RowIdentity] = []
        self.process = fork.Process(target=_serve, args=(question, request, other), daemon=True)
        self.process.start()
        other.close()

    def receive(self) -> Any:
        """Its next answer.

        Raises:
            PaftError: What it could not do.
        """
        try:
            answer = json.loads(self.pipe.recv_bytes())
        except EOFError:
            raise PaftError(f"{self.where}: the process that read its rows has died. Is there enough memory?") from None
        raise_if_any(answer["problems"])
        return answer["result"]

    def write(self, request: Request, chosen: Chosen, prompts: Sequence[str]) -> None:
        """Have it write its files."""
        self.pipe.send_bytes(json.dumps({"splits": chosen.rows, "prompts": prompts}).encode())
        self.receive()


@contextmanager
def _readers(request: Request) -> Iterator[dict[str, _Reading]]:
    """A reader for each branch, once it has read; none outlives the block."""
    for module in AXOLOTL:
        importlib.import_module(module)
    asked = [*request.branches, *([request.retained] if request.retained else [])]
    readers = {question.name: _Reading(question, request) for question in asked}
    problems: list[str] = []
    try:
        for reader in readers.values():
            try:
                reader.rows = [RowIdentity(*row) for row in reader.receive()]
            except PaftError as error:
                problems += error.problems
        raise_if_any(problems)
        yield readers
    finally:
        for reader in readers.values():
            reader.process.kill()
            reader.process.join()


def _serve(question: Question, request: Request, pipe: Connection) -> None:
    """What such a process does."""
    try:
        with tempfile.TemporaryDirectory(prefix="paft-held-out-") as folder:
            _read_and_write(question, request, pipe, Path(folder))
    except PaftError as error:
        pipe.send_bytes(json.dumps({"problems": error.problems}).encode())
    except Exception as error:  # said to the parent, which says it to the user
        traceback.print_exc()
        pipe.send_bytes(json.dumps({"problems": [f"{question.where}: {type(error).__name__}: {error}"]}).encode())


def _read_and_write(question: Question, request: Request, pipe: Connection, folder: Path) -> None:
    import datasets

    from paft_plugin.pipeline.held_out.data import read_branch_rows
    from paft_plugin.pipeline.starter.rows import read_sft

    datasets.disable_progress_bars()
    datasets.disable_caching()  # which would write beside a data set that a user has saved
    content = question.content
    if question is request.retained:
        (given,) = content["datasets"]
        content = {**content, "datasets": [read_sft(given["path"], None, question.where).entry]}
    data = read_branch_rows(content, question.where, request.base, folder)
    rows = [(row.prompt, row.content, row.unfit) for row in data.candidates]
    pipe.send_bytes(json.dumps({"problems": [], "result": rows}).encode())
    told = json.loads(pipe.recv_bytes())
    splits = {int(index): split for index, split in told["splits"].items()}
    if splits or (request.apart_from is None and question.amount != 0):
        write_rows(request.folder / f"{question.name}.jsonl", data.held_out(splits))
    if question is not request.retained:
        data.write_rest(set(told["prompts"]), lambda index: rest_file(request.folder, question.name, index))
    pipe.send_bytes(json.dumps({"problems": [], "result": None}).encode())
