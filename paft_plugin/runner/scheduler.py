"""Runs stages: each as soon as what it needs is done and there is room, none twice, none left behind.

A stage that fails takes only those along that need it: a night's training does not end because something beside it broke.
"""

from __future__ import annotations

import contextlib
import errno
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from paft_plugin.errors import EndedBySignal, PaftError, raise_if_any, signals_noted
from paft_plugin.runner import logs
from paft_plugin.runner.executor import Ended, Executor, Job, Running, StageResult, Watcher
from paft_plugin.runner.identity import identities
from paft_plugin.runner.lock import locked
from paft_plugin.runner.markers import forget, outdated, prepare_folder, read_marker, write_marker
from paft_plugin.runner.stages import Stage, absolute, in_order, log_path, needing

POLL = 0.05  # seconds
_GRACE_EXTRA = 5.0  # seconds beyond the grace that a stage may take to end before we stop waiting for it
_ATTEMPTS = 4  # of a stage whose place goes away under it


class StagesFailedError(PaftError):
    """Stages failed, and all that does not need them is through."""


def run_stages(
    wanted: Sequence[Stage],
    run_dir: Path,
    executor: Executor,
    watchers: Sequence[Watcher] = (),
    *,
    prepare: Callable[[], None] | None = None,
    variables: Mapping[str, str] | None = None,
    reader: logs.LogReader = logs.NO_READER,
) -> list[StageResult]:
    """Run what is not up to date; results come in the order of `wanted`.

    Args:
        wanted: The stages, in any order.
        run_dir: Holds everything: output folders, `logs/`, the markers, the lock. Commands start in it.
        executor: Where they run; it decides what runs at once. Closed in the end.
        watchers: Are told what happens.
        prepare: Writes the stages' inputs that belong into the run directory; called under the lock, before they are read.
        variables: For every command; they do not matter to results (thread counts, offline mode).
        reader: Knows causes of failures.

    Raises:
        PaftError: mistakes in the stages, or another run at work.
        StagesFailedError: all stages that failed, once everything that does not need them is through. What was finished is kept.
        EndedBySignal: after SIGINT, SIGTERM or SIGHUP, once every process of the run is gone.
    """
    run_dir = absolute(Path.cwd(), run_dir)
    try:
        ordered = in_order(wanted, run_dir)
        raise_if_any([f"Stage {stage.name!r}: {why}" for stage in ordered if (why := executor.check(stage))])
        run_dir.mkdir(parents=True, exist_ok=True)
        with locked(run_dir, patience=executor.grace + _GRACE_EXTRA) as lock:
            if prepare:
                prepare()
            run = _Run(ordered, run_dir, executor, watchers, variables or {}, reader, lock)
            with contextlib.ExitStack() as stack:
                interrupts = stack.enter_context(_interrupts())
                for watcher in watchers:
                    stack.enter_context(watcher)
                run.execute(interrupts)
            return [run.results[stage.name] for stage in wanted]
    except OSError as error:
        raise PaftError(_explain(error, run_dir)) from error
    finally:
        executor.close()


def _explain(error: OSError, run_dir: Path) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"The disk is full at {run_dir}: make room, then run the same command again. Finished stages are kept."
    where = f" ({error.filename})" if error.filename and str(error.filename) != str(run_dir) else ""
    return f"Cannot work in the run directory {run_dir}: {error.strerror or error}{where}."


@contextlib.contextmanager
def _interrupts() -> Iterator[list[int]]:
    """The signals that came to end the run, noted and not raised wherever Python stands: so clean-up is never cut short."""
    came: list[int] = []
    with signals_noted((signal.SIGINT, signal.SIGTERM, signal.SIGHUP), lambda signum, _frame: came.append(signum)):
        yield came
    if came:
        raise EndedBySignal(came[0])  # it came when the last stage was through, and the caller must hear of it, too


@dataclass(frozen=True)
class _Attempt:
    """A stage under way, which attempt it is, and since when (monotonic seconds)."""

    stage: Stage
    running: Running
    number: int
    since: float = field(default_factory=time.monotonic)


class _Run:
    """One call of `run_stages`."""

    def __init__(
        self,
        ordered: list[Stage],
        run_dir: Path,
        executor: Executor,
        watchers: Sequence[Watcher],
        variables: Mapping[str, str],
        reader: logs.LogReader,
        lock: int,
    ) -> None:
        self.ordered, self.run_dir, self.executor, self.watchers = ordered, run_dir, executor, watchers
        self.variables, self.reader, self.lock = variables, reader, lock
        self.identities = identities(ordered, run_dir)
        self.reasons = outdated(ordered, run_dir, self.identities)
        self.pending = {stage.name: stage for stage in ordered if stage.name in self.reasons}
        self.attempts: dict[str, int] = {}
        self.running: dict[str, _Attempt] = {}
        self.results: dict[str, StageResult] = {}
        self.failures: list[str] = []

    def execute(self, interrupts: list[int]) -> None:
        """Skip what is up to date and run the rest, as far as it can run; whatever goes wrong, nothing runs on afterwards."""
        self._tell(lambda watcher: watcher.planned(self.ordered, self.reasons))
        for stage in self.ordered:
            marker = read_marker(self.run_dir, stage.name)
            if stage.name not in self.pending and marker:
                self._through(stage, "skipped", marker.seconds)
        forget(self.pending.values(), self.run_dir)
        try:
            while self.pending or self.running:
                self._launch(interrupts)
                self._collect()
                if interrupts:
                    raise EndedBySignal(interrupts[0])
                self._tell(lambda watcher: watcher.refresh())
                time.sleep(POLL)
        finally:
            self._stop(interrupts)
        if self.failures:
            raise StagesFailedError([*self.failures[:-1], f"{self.failures[-1]}\n{logs.GO_ON}"])

    def _tell(self, what: Callable[[Watcher], None]) -> None:
        for watcher in self.watchers:
            what(watcher)

    def _through(self, stage: Stage, status: Literal["done", "skipped"], seconds: float) -> None:
        result = StageResult(stage.name, stage.title, status, seconds, log_path(self.run_dir, stage.name))
        self.results[stage.name] = result
        self._tell(lambda watcher: watcher.ended(result))

    def _launch(self, interrupts: list[int]) -> None:
        waiting: list[Stage] = []
        for stage in [stage for stage in self.ordered if stage.name in self.pending]:
            if interrupts:
                return
            if not self.results.keys() >= set(stage.needs):
                continue
            if self.executor.has_room(stage, waiting):
                del self.pending[stage.name]
                self._start(stage)
            else:
                waiting.append(stage)

    def _start(self, stage: Stage) -> None:
        kept = prepare_folder(stage, self.run_dir, self.identities[stage.name].fingerprint)
        log = log_path(self.run_dir, stage.name)
        log.parent.mkdir(exist_ok=True)
        number = self.attempts.get(stage.name, 0) + 1
        self.attempts[stage.name] = number
        running = self.executor.start(Job(stage, self.run_dir, log, kept or number > 1, self.variables), self.lock)
        self.running[stage.name] = _Attempt(stage, running, number)
        self._tell(lambda watcher: watcher.started(stage, log, running.where))

    def _collect(self) -> None:
        """Mark what ended well, and give up what needs a stage that did not."""
        for name, attempt in list(self.running.items()):
            ended = attempt.running.poll()
            if ended is None:
                continue
            del self.running[name]
            if ended.code == 0 and not ended.lost:
                self._done(attempt, ended)
            elif ended.lost and attempt.number < _ATTEMPTS:
                self.pending[name] = attempt.stage
                for watcher in self.watchers:
                    watcher.lost(attempt.stage, ended.lost)
            else:
                self._failed(attempt, ended)

    def _done(self, attempt: _Attempt, ended: Ended) -> None:
        stage = attempt.stage
        seconds = time.monotonic() - attempt.since
        identity = self.identities[stage.name]
        marker = write_marker(self.run_dir, stage.name, identity, seconds, ended.peak_memory)
        self._through(stage, "done", marker.seconds)

    def _failed(self, attempt: _Attempt, ended: Ended) -> None:
        stage = attempt.stage
        for name in needing(stage.name, {each.name: each.needs for each in self.ordered}):
            self.pending.pop(name, None)
        log = log_path(self.run_dir, stage.name)
        lost = f"lost its place {attempt.number} times, at last: {ended.lost}"
        why = lost if ended.lost else logs.how_it_ended(ended.code)
        self._tell(lambda watcher: watcher.failed(stage, why))
        self.failures.append(logs.failure(stage.name, stage.title, why, log, self.reader))

    def _stop(self, interrupts: list[int]) -> None:
        """End what still runs, with all its processes: SIGTERM, after the grace or a second Ctrl-C SIGKILL."""
        if not self.running:
            return
        left = [attempt.running for attempt in self.running.values()]
        seen, hurried = len(interrupts), False
        deadline = time.monotonic() + self.executor.grace + _GRACE_EXTRA
        for running in left:
            running.stop()
        for watcher in self.watchers:
            # rich's answer to a closed standard output: maybe why we are here
            with contextlib.suppress(OSError, SystemExit):
                watcher.stopping()
        while left := [running for running in left if running.poll() is None]:
            if time.monotonic() > deadline:
                break
            if len(interrupts) > seen and not hurried:
                hurried = True
                for running in left:
                    running.kill()
            time.sleep(POLL)
        for running in left:
            running.let_go()
        self.running.clear()
