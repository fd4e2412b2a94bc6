"""Which NVIDIA devices this process may use, and how much memory they have; torch is not imported, CUDA is not touched.

What `nvidia-smi` says counts; without it `/proc/driver/nvidia` names the devices, and their memory stays unknown. An inherited
`CUDA_VISIBLE_DEVICES` is obeyed as CUDA obeys it (CUDA C++ Programming Guide, "CUDA Environment Variables"): indices, UUIDs or
beginnings of them, MIG instances; the first entry that names no device ends the list.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from paft_plugin.errors import raise_if_any

VISIBLE = "CUDA_VISIBLE_DEVICES"
_MIB, _GB = 1 << 20, 10**9
_PROC = Path("/proc/driver/nvidia/gpus")
_WSL = "/usr/lib/wsl/lib"  # where Windows' subsystem keeps nvidia-smi, which is not on PATH there
_QUERY = ("--query-gpu=index,uuid,memory.total,memory.used", "--format=csv,noheader,nounits")
_PATIENCE = 30.0  # seconds: a driver that has to wake its devices first takes many
_GPU_LINE = re.compile(r"GPU (\d+): .*\(UUID: (GPU-[^)]+)\)")
# `  MIG 3g.20gb     Device  0: (UUID: MIG-…)`; the profile's name holds its memory.
_MIG_LINE = re.compile(r"\s+MIG \S*?(\d+)gb\S*\s+Device\s+(\d+): \(UUID: (MIG-[^)]+)\)")


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
    present = _from_nvidia_smi(environment) or _from_proc(proc)
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


def _from_nvidia_smi(environment: Mapping[str, str]) -> list[Device]:
    """Every device of the machine; one that is cut into MIG instances is replaced by them."""
    tool = shutil.which("nvidia-smi", path=os.pathsep.join([environment.get("PATH", os.defpath), _WSL]))
    if not tool:
        return []
    devices: list[Device] = []
    instances = _instances(_output(tool, "-L"))
    for line in _output(tool, *_QUERY).splitlines():
        fields = [field.strip() for field in line.split(",")]
        if len(fields) == 4:
            index, uuid, total, used = fields
            whole = Device(uuid, f"GPU {index}", _mebibytes(total), _mebibytes(used))
            devices += instances.get(uuid) or [whole]
    return devices


def _output(tool: str, *arguments: str) -> str:
    try:
        done = subprocess.run([tool, *arguments], capture_output=True, text=True, timeout=_PATIENCE, check=True)
    except (OSError, subprocess.SubprocessError):  # a tool without its driver
        return ""
    return done.stdout


def _mebibytes(text: str) -> int:
    return int(text) * _MIB if text.isdecimal() else 0  # `[N/A]` where devices share the machine's memory


def _instances(listing: str) -> dict[str, list[Device]]:
    """UUID of a GPU → its MIG instances, from what `nvidia-smi -L` lists."""
    found: dict[str, list[Device]] = {}
    index, uuid = "", ""
    for line in listing.splitlines():
        if gpu := _GPU_LINE.match(line):
            index, uuid = gpu[1], gpu[2]
        elif mig := _MIG_LINE.match(line):
            # Gigabytes of ten: the profile's name rounds up what is there (4.75 GiB in a `1g.5gb`).
            found.setdefault(uuid, []).append(Device(mig[3], f"GPU {index}.{mig[2]}", int(mig[1]) * _GB))
    return found


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
    """CUDA counts the fastest device first unless told otherwise, nvidia-smi by bus: a number may mean another device there."""
    if int(entry) >= len(present):
        return None
    device = Device(entry, f"GPU {entry}", present[int(entry)].memory, present[int(entry)].used)
    if environment.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID":
        return device
    return replace(device, memory=min(each.memory for each in present), used=max(each.used for each in present))
