"""Where a stage may start on one machine: decisions alone, no processes.

The rules, which tests/runner/test_placement.py holds against random plans:

- At most `workers` stages run at once.
- A stage gets as many devices as it wants, empty ones if there are. It joins others on a device only where sharing is allowed,
  all of their estimates are known, and these together stay within the device's memory, less what other people hold and a margin
  of 10 %. Alone it always may run: an estimate can be wrong, and trying is the user's choice.
- The same margin holds for main memory, to which unknown estimates add nothing. Where there are no devices, what a stage would
  take on them counts as main memory.
- Nobody starves: for each stage that found no room the emptiest devices that it could use are kept free of later stages, and
  so is its main memory. As what runs there ends, they become its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from paft_plugin.runner.devices import Device
from paft_plugin.runner.stages import Resources

MARGIN = 0.1
"""Share of a memory that estimates may not fill: fragments, and what they missed."""


@dataclass(frozen=True)
class Machine:
    """What there is to run on."""

    workers: int
    devices: tuple[Device, ...] = ()
    memory: int = 0
    """Bytes of main memory; 0: unknown, and then no limit."""
    share: bool = True
    """Whether two stages may be on one device at once."""


@dataclass(frozen=True)
class Placed:
    """A stage that runs."""

    wants: Resources
    devices: tuple[int, ...]
    """Indices into the machine's devices."""


def impossible(machine: Machine, wants: Resources) -> str:
    """Why what `wants` this can never run on `machine`; empty if it can."""
    usable = _usable(machine, wants)
    if not machine.devices or wants.devices <= len(usable):
        return ""
    if wants.devices <= len(machine.devices):
        return f"it wants {wants.devices} devices at once, and a process can use only one MIG instance."
    there = "1 device" if len(machine.devices) == 1 else f"{len(machine.devices)} devices"
    return f"it wants {wants.devices} devices at once, and this run has {there}."


def place(
    machine: Machine, running: Sequence[Placed], wants: Resources, waiting: Sequence[Resources]
) -> tuple[int, ...] | None:
    """The devices on which what `wants` this may start now, as indices; none are a place, too. None: it has to wait.

    `waiting` is what those before it in the plan take that have found no room yet.
    """
    if len(running) >= machine.workers or not _main_memory_allows(machine, running, wants, waiting):
        return None
    kept: set[int] = set()
    for earlier in waiting:
        free = [index for index in _usable(machine, earlier) if index not in kept]
        kept.update(_emptiest(free, running)[: earlier.devices])
    usable = [index for index in _usable(machine, wants) if index not in kept]
    open_ones = [index for index in usable if _may_join(machine, running, wants, index)]
    count = wants.devices if machine.devices else 0
    return tuple(sorted(_emptiest(open_ones, running)[:count])) if len(open_ones) >= count else None


def fit_together(device: Device, estimates: Sequence[int]) -> bool:
    """Whether stages with these estimates (bytes) may be on `device` at once."""
    if len(estimates) < 2:
        return True
    return device.memory > 0 and 0 not in estimates and sum(estimates) <= device.memory * (1 - MARGIN) - device.used


def main_memory_of(machine: Machine, wants: Resources) -> int:
    """Bytes of main memory that a stage is estimated to take on `machine`."""
    return wants.memory + (0 if machine.devices else wants.devices * wants.device_memory)


def _usable(machine: Machine, wants: Resources) -> list[int]:
    """A process that wants several devices cannot use MIG instances."""
    return [index for index, device in enumerate(machine.devices) if wants.devices < 2 or not device.instance]


def _emptiest(indices: Sequence[int], running: Sequence[Placed]) -> list[int]:
    """By how many stages are there, then in the order of the machine."""
    return sorted(indices, key=lambda index: (sum(index in placed.devices for placed in running), index))


def _may_join(machine: Machine, running: Sequence[Placed], wants: Resources, index: int) -> bool:
    there = [placed.wants.device_memory for placed in running if index in placed.devices]
    return not there or (machine.share and fit_together(machine.devices[index], [*there, wants.device_memory]))


def _main_memory_allows(
    machine: Machine, running: Sequence[Placed], wants: Resources, waiting: Sequence[Resources]
) -> bool:
    mine = main_memory_of(machine, wants)
    others = sum(main_memory_of(machine, each) for each in [*(placed.wants for placed in running), *waiting])
    return not (machine.memory and mine and others) or mine + others <= machine.memory * (1 - MARGIN)
