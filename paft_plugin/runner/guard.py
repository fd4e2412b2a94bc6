"""Runs one command and takes all of its processes down with itself: `python guard.py [apart] LOCK_FD GRACE COMMAND…`.

Standard input is a lifeline: its other end is held by the executor alone, so it ends even when the executor is killed
with SIGKILL. At its end, or at STOP on it, every process under this one gets SIGTERM and, after GRACE seconds, SIGKILL;
at KILL, SIGKILL at once. The guard lives until all of them are gone and holds LOCK_FD open for as long, so that the run
directory stays locked. Last it writes on the lifeline, if that goes both ways, how much memory the largest of them held.

`PR_SET_PDEATHSIG` alone would not do: it is cleared on fork, so data-loading workers would live on. On Linux the guard is
a *subreaper* instead: whatever is orphaned below it, in whatever session, becomes its child. Elsewhere it reaches the
command's process group. Standard library only, and run by path: it must start fast and must not depend on any package.

With `apart` the guard is a grandchild of whoever starts it, with a process in between that only waits and ends as it does. Ray
sends SIGKILL to the children of a worker that it ends (not to theirs); a guard that it hit could end nothing any more.
"""

from __future__ import annotations

import contextlib
import os
import resource
import select
import signal
import sys
import time
from typing import NamedTuple, NoReturn

LIFELINE = 0
STOP, KILL = b"s", b"k"  # what the executor may write on it
APART = "apart"
KILL_EVERY = 0.05  # seconds between two rounds of SIGKILL: a process may fork while we look
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Process(NamedTuple):
    pid: int
    parent: int
    session: int


def processes() -> list[Process]:
    """All processes that `/proc` shows (Linux; empty elsewhere)."""
    found = []
    try:
        pids = [int(name) for name in os.listdir("/proc") if name.isdecimal()]  # noqa: PTH208 - nothing more is imported
    except OSError:
        return []
    for pid in pids:
        try:
            with open(f"/proc/{pid}/stat", errors="replace") as file:  # noqa: PTH123
                # The command's name, in parentheses, may itself hold spaces and parentheses.
                _state, parent, _group, session = file.read().rpartition(")")[2].split()[:4]
        except (OSError, ValueError):
            continue  # ended while we looked
        found.append(Process(pid, int(parent), int(session)))
    return found


def kill_session(leader: int) -> None:
    """SIGKILL to every process of the session that `leader` opened (Linux): for a guard that was killed itself."""
    for process in processes():
        if process.session == leader:
            _signal(process.pid, signal.SIGKILL)


def _descendants() -> list[int]:
    children: dict[int, list[int]] = {}
    for process in processes():
        children.setdefault(process.parent, []).append(process.pid)
    found: list[int] = []
    waiting = [os.getpid()]
    while waiting:
        below = children.pop(waiting.pop(), [])
        found += below
        waiting += below
    return found


def _signal(pid: int, signum: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, signum)


def _signal_all(child: int, signum: int) -> None:
    below = _descendants()
    for pid in below:
        _signal(pid, signum)
    if not below:  # no /proc here
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child, signum)


def _prctl(option: int, value: int) -> bool:
    if not sys.platform.startswith("linux"):
        return False
    try:
        import ctypes
    except ImportError:  # a Python built without libffi: process groups still work
        return False
    return ctypes.CDLL(None).prctl(option, value, 0, 0, 0) == 0


def _start(command: list[str], lock: int) -> int:
    """Start `command` in a process group of its own, with standard input closed; return its process id."""
    guard = os.getpid()
    child = os.fork()
    if child:
        with contextlib.suppress(OSError):  # both sides set the group, so that it exists whoever runs first
            os.setpgid(child, child)
        return child
    try:
        os.setpgid(0, 0)
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # in case the guard itself is killed
        if os.getppid() != guard:
            os._exit(1)
        for ignored in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores these two, and a command expects them
            signal.signal(ignored, signal.SIG_DFL)
        os.dup2(os.open(os.devnull, os.O_RDONLY), LIFELINE)
        os.close(lock)
        os.execvp(command[0], command)  # noqa: S606 - an argument list, no shell
    except OSError as error:
        os.write(2, f"cannot run {command[0]}: {error.strerror}\n".encode())
    finally:
        os._exit(127)  # whatever happened, this copy must not go on as a second guard


def _reap(child: int, status: int | None) -> tuple[int | None, bool]:
    """Collect what has ended; return the command's wait status, once known, and whether any process is left."""
    while True:
        try:
            pid, ended = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return status, False
        if pid == 0:
            return status, True
        if pid == child:
            status = ended


def _watch(child: int, grace: float, wakeup: int) -> int:
    """Wait for all processes under this one; end them when told to, or when the command itself has ended."""
    status: int | None = None
    lifeline, deadline = True, float("inf")  # the deadline is set once we are ending them
    while True:
        status, left = _reap(child, status)
        if not left:
            assert status is not None
            return status
        now = time.monotonic()
        if status is not None and deadline == float("inf"):  # the command is done: what it left behind must not stay
            _signal_all(child, signal.SIGTERM)
            deadline = now + grace
        if now >= deadline:
            _signal_all(child, signal.SIGKILL)
        timeout = None if deadline == float("inf") else max(KILL_EVERY, deadline - now)
        readable, _, _ = select.select([wakeup, LIFELINE] if lifeline else [wakeup], [], [], timeout)
        stop = wakeup in readable and not set(os.read(wakeup, 1024)).isdisjoint(_STOP_SIGNALS)
        if LIFELINE in readable:
            message = os.read(LIFELINE, 1)
            lifeline = bool(message)
            if message == KILL:
                deadline = time.monotonic()
            else:
                stop = True
        if stop and deadline == float("inf"):
            _signal_all(child, signal.SIGTERM)
            deadline = time.monotonic() + grace


def _tell_peak_memory() -> None:
    """Write on the lifeline how many bytes the largest of the processes that have ended held at most."""
    most = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    with contextlib.suppress(OSError):
        os.write(LIFELINE, str(most if sys.platform == "darwin" else most * 1024).encode())


def _end_like(status: int) -> NoReturn:
    """End as the command did, by the same signal if it was one, so that the executor sees what happened to it."""
    if os.WIFSIGNALED(status):
        signum = os.WTERMSIG(status)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # the command's core dump is enough
        if signum != signal.SIGKILL:
            signal.signal(signum, signal.SIG_DFL)
        os.kill(os.getpid(), signum)
    os._exit(os.waitstatus_to_exitcode(status) & 0xFF)


def _go_apart() -> None:
    """Go on in a child; this process waits and ends as that one does."""
    if child := os.fork():
        _end_like(os.waitpid(child, 0)[1])


def main(arguments: list[str]) -> NoReturn:
    """Run the command of `[apart] LOCK_FD GRACE COMMAND…` (grace in seconds) and end as it does."""
    if arguments[0] == APART:
        arguments = arguments[1:]
        _go_apart()
    lock, grace, command = int(arguments[0]), float(arguments[1]), arguments[2:]
    wakeup, alarm = os.pipe()
    for end in (wakeup, alarm):
        os.set_blocking(end, False)
    signal.set_wakeup_fd(alarm, warn_on_full_buffer=False)
    for signum in (signal.SIGCHLD, *_STOP_SIGNALS):
        signal.signal(signum, lambda *_: None)  # a handler must exist for the wake-up byte to be written
    reaper = _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    child = _start(command, lock)
    status = _watch(child, grace, wakeup)
    _tell_peak_memory()
    if not reaper:  # what is left of the group is out of `waitpid`'s sight
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child, signal.SIGKILL)
    _end_like(status)


if __name__ == "__main__":
    main(sys.argv[1:])
