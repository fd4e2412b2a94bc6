"""Which NVIDIA devices this process may use, and how much memory they have; torch is not imported, CUDA is not touched.

What the driver's management library (NVML) says counts; without it, as in a container that is given no more than CUDA,
`/proc/driver/nvidia` names the devices, and their memory stays unknown. An inherited
`CUDA_VISIBLE_DEVICES` is obeyed as CUDA obeys it (CUDA C++ Programming Guide, "CUDA Environment Variables"): indices, UUIDs or
beginnings of them, MIG instances; the first entry that names no device ends the list.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from paft_plugin.errors import raise_if_any

VISIBLE = "CUDA_VISIBLE_DEVICES"
_PROC = Path("/proc/driver/nvidia/gpus")
_PATIENCE = 30.0  # seconds: a driver that has to wake its devices first takes many


@dataclass(frozen=True)
class Device:
    """A GPU, or a MIG instance of one."""

    id: str
    """What `CUDA_VISIBLE_DEVICES` calls it: an index or a UUID."""
    label: str
    """What a person calls it: `GPU 0`."""
    memory: int = 0
    """Bytes in all; 0: unknown."""
    used: int = 0
    """Bytes that others held when it was found."""

    @property
    def instance(self) -> bool:
        """Whether it is a MIG instance; CUDA gives a process one of these at most."""
        return self.id.startswith("MIG-")


def find_devices(environment: Mapping[str, str] | None = None, proc: Path = _PROC) -> list[Device]:
    """The devices that a command started with `environment` (default: this process's) may use; empty without a driver."""
    environment = os.environ if environment is None else environment
    present = _answered(_from_nvml) or _from_proc(proc)
    allowed = environment.get(VISIBLE)
    return present if allowed is None else _visible(allowed, present, environment)


def choose_devices(wanted: Sequence[str], found: Sequence[Device]) -> list[Device]:
    """Of the devices `found`, those `wanted` by id, label or number.

    Raises:
        PaftError: Naming every one that is not there, or there twice.
    """
    chosen, problems = [], []
    for name in wanted:
        fitting = [device for device in found if name in (device.id, device.label, device.label.removeprefix("GPU "))]
        if not fitting:
            there = ", ".join(device.label for device in found) or "none"
            problems.append(f"There is no device {name!r} that this process may use. There are: {there}.")
        elif fitting[0] in chosen:
            problems.append(f"Device {name!r} is named twice. Name it once.")
        else:
            chosen.append(fitting[0])
    raise_if_any(problems)
    return chosen


def main_memory(meminfo: Path = Path("/proc/meminfo"), limit: Path = Path("/sys/fs/cgroup/memory.max")) -> int:
    """Bytes of main memory that this process may count on: the machine's, or its control group's limit; 0: unknown."""
    amounts = []
    try:
        found = re.search(r"^MemTotal:\s+(\d+) kB", meminfo.read_text(), re.MULTILINE)
        amounts += [int(found[1]) * 1024] if found else []
        amounts.append(int(limit.read_text()))
    except (OSError, ValueError):  # not Linux, or no limit (`max`)
        pass
    return min(amounts, default=0)


# --- what there is ----------------------------------------------------------------------------------------------------


def _answered(ask: Callable[[], list[Device]]) -> list[Device]:
    """What `ask` finds; nothing if that takes too long, since a driver in trouble may never answer."""
    found: list[Device] = []
    thread = threading.Thread(target=lambda: found.extend(ask()), daemon=True)
    thread.start()
    thread.join(_PATIENCE)
    return list(found)


def _from_nvml() -> list[Device]:
    """Every device of the machine; one that is cut into MIG instances is replaced by them."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:  # no driver, or its library without it
        return []
    try:
        return [device for index in range(pynvml.nvmlDeviceGetCount()) for device in _at(index)]
    finally:
        pynvml.nvmlShutdown()


def _at(index: int) -> list[Device]:
    import pynvml

    try:
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        whole = _as_device(handle, f"GPU {index}")
    except pynvml.NVMLError:  # it has fallen off its bus, or is kept from us
        return []
    instances = []
    with contextlib.suppress(pynvml.NVMLError):  # a device, or a driver, that knows no MIG
        for number in range(pynvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
            with contextlib.suppress(pynvml.NVMLError):  # there could be more instances than there are
                instance = pynvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, number)
                instances.append(_as_device(instance, f"GPU {index}.{number}"))
    return instances or [whole]


def _as_device(handle: Any, label: str) -> Device:
    import pynvml

    uuid = pynvml.nvmlDeviceGetUUID(handle)
    # The newer kind of answer does not count as used what the driver keeps for itself; drivers before 510 know the older alone.
    for version in (pynvml.nvmlMemory_v2, None):
        with contextlib.suppress(pynvml.NVMLError):
            memory = pynvml.nvmlDeviceGetMemoryInfo(handle, version)
            return Device(uuid, label, memory.total, memory.used)
    return Device(uuid, label)  # it shares the machine's memory


def _from_proc(proc: Path) -> list[Device]:
    found: list[Device] = []
    for file in sorted(proc.glob("*/information")):
        try:
            uuid = re.search(r"^GPU UUID:\s*(GPU-[0-9a-f-]+)", file.read_text(), re.MULTILINE)
        except OSError:
            continue
        if uuid:
            found.append(Device(uuid[1], f"GPU {len(found)}"))
    return found


# --- what of it we may use ------------------------------------------------------------------------------------------------


def _visible(allowed: str, present: Sequence[Device], environment: Mapping[str, str]) -> list[Device]:
    devices: list[Device] = []
    for entry in (part.strip() for part in allowed.split(",")):
        device = _named(entry, present, environment)
        if device is None or device in devices:  # CUDA stops at the first that it does not know
            break
        devices.append(device)
    return devices


def _named(entry: str, present: Sequence[Device], environment: Mapping[str, str]) -> Device | None:
    if entry.isdecimal():
        return _numbered(entry, present, environment)
    fitting = [device for device in present if entry and device.id.startswith(entry)]
    if len(fitting) == 1:
        return fitting[0]
    # `MIG-GPU-…/1/0`, the name that older drivers give an instance, stands in no list.
    return Device(entry, entry) if entry.startswith("MIG-GPU-") and present else None


def _numbered(entry: str, present: Sequence[Device], environment: Mapping[str, str]) -> Device | None:
    """CUDA counts the fastest device first unless told otherwise, NVML by bus: a number may mean another device there."""
    if int(entry) >= len(present):
        return None
    device = Device(entry, f"GPU {entry}", present[int(entry)].memory, present[int(entry)].used)
    if environment.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID":
        return device
    return replace(device, memory=min(each.memory for each in present), used=max(each.used for each in present))
