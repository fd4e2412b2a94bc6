"""Asks the system for the tensors that come next while others are worked on, so that the disk and the processor work at once."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType

from paft_plugin.deltas import Delta

AHEAD = 1 << 27
"""Entries of tensors that were asked for and are not begun: a quarter of a gigabyte in bf16, of the system's cache only."""


class ReadAhead:
    """A thread that asks for each tensor in turn, and waits while `AHEAD` entries wait to be begun.

    Args:
        names: the tensors, in the order in which they are worked on.
        deltas: a tensor's name → those that change it.
    """

    def __init__(self, names: Sequence[str], deltas: Callable[[str], Mapping[str, Delta]]) -> None:
        self._names, self._deltas = names, deltas
        self._begun: set[str] = set()
        self._moved = threading.Condition()
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="read ahead", daemon=True)

    def release(self, name: str) -> None:
        """A tensor is begun."""
        with self._moved:
            self._begun.add(name)
            self._moved.notify()

    def __enter__(self) -> ReadAhead:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._moved:
            self._stopped = True
            self._moved.notify()
        self._thread.join()

    def _run(self) -> None:
        asked: dict[str, int] = {}

        def may_go_on() -> bool:
            for name in self._begun & asked.keys():
                del asked[name]
            return self._stopped or sum(asked.values()) < AHEAD

        for name in self._names:
            with self._moved:
                self._moved.wait_for(may_go_on)
                if self._stopped:
                    return
                if name in self._begun:
                    continue
            deltas = list(self._deltas(name).values())
            asked[name] = math.prod(deltas[0].base.shape(name))
            for read_ahead in (deltas[0].base.read_ahead, *(delta.read_ahead for delta in deltas)):
                read_ahead(name)
