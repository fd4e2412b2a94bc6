"""Finding devices, with answers of NVML's of our own; no GPU is needed.

What it answers, and what it refuses, follows NVIDIA's documents ("NVML API Reference", "MIG User Guide"), not a run here.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pynvml
import pytest

from paft_plugin.errors import PaftError
from paft_plugin.runner import devices
from paft_plugin.runner.devices import Device, choose_devices, find_devices, main_memory

MIB, GB = 1 << 20, 10**9
A, B = "GPU-aaaa1111-0000-0000-0000-000000000000", "GPU-bbbb2222-0000-0000-0000-000000000000"
MIG = "MIG-cccc3333-0000-0000-0000-000000000000"


@dataclass(frozen=True)
class Memory:
    total: int
    used: int


@dataclass(frozen=True)
class Gpu:
    """What NVML has a handle of: a device, or an instance of one."""

    uuid: str
    memory: Memory | None = None
    """None: it has none of its own."""
    instances: tuple[Gpu | None, ...] = ()
    """None: there could be one."""
    lost: bool = False


TWO = (Gpu(A, Memory(24576 * MIB, 3 * MIB)), Gpu(B, Memory(81559 * MIB, 1024 * MIB)))
SLICED = (
    TWO[0],
    Gpu(B, None, (Gpu(MIG, Memory(10 * GB, 0)), None, Gpu(f"{MIG[:-1]}1", Memory(40 * GB, 2 * GB)), None)),
)


class Nvml:
    """The functions of `pynvml` that are used; `old` drivers know neither MIG nor the newer kind of answer."""

    def __init__(self, gpus: tuple[Gpu, ...], *, old: bool = False) -> None:
        self.gpus, self.old = gpus, old
        self.open = 0

    def nvmlInit(self) -> None:  # noqa: N802
        self.open += 1

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.open -= 1

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Gpu:  # noqa: N802
        if self.gpus[index].lost:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)
        return self.gpus[index]

    def nvmlDeviceGetUUID(self, gpu: Gpu) -> str:  # noqa: N802
        return gpu.uuid

    def nvmlDeviceGetMemoryInfo(self, gpu: Gpu, version: int | None = None) -> Memory:  # noqa: N802
        if version and self.old:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_FUNCTION_NOT_FOUND)
        if gpu.memory is None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return gpu.memory

    def nvmlDeviceGetMaxMigDeviceCount(self, gpu: Gpu) -> int:  # noqa: N802
        if self.old:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_FUNCTION_NOT_FOUND)
        return len(gpu.instances)

    def nvmlDeviceGetMigDeviceHandleByIndex(self, gpu: Gpu, number: int) -> Gpu:  # noqa: N802
        if (instance := gpu.instances[number]) is None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return instance


class Driver:
    """Puts answers of our own in the place of NVML's."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.patch = patch

    def answers(self, nvml: object) -> None:
        for name in (name for name in dir(nvml) if name.startswith("nvml")):
            self.patch.setattr(pynvml, name, getattr(nvml, name))


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    return Driver(monkeypatch)


@pytest.fixture
def two(driver: Driver) -> Iterator[Nvml]:
    nvml = Nvml(TWO)
    driver.answers(nvml)
    yield nvml
    assert nvml.open == 0, "what was opened is closed"


@pytest.fixture
def nowhere(tmp_path: Path) -> Path:
    return tmp_path / "no driver"


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    """A driver's `/proc/driver/nvidia/gpus`, of two devices."""
    for bus, uuid in (("0000:01:00.0", A), ("0000:02:00.0", B)):
        file = tmp_path / "gpus" / bus / "information"
        file.parent.mkdir(parents=True)
        file.write_text(f"Model: \t\t NVIDIA A100\nIRQ:   \t\t 16\nGPU UUID: \t {uuid}\n")
    return tmp_path / "gpus"


def ids(devices: list[Device]) -> list[str]:
    return [device.id for device in devices]


@pytest.mark.usefixtures("two")
def test_all_devices_with_their_memory(nowhere: Path) -> None:
    assert find_devices({}, nowhere) == [
        Device(A, "GPU 0", 24576 * MIB, 3 * MIB),
        Device(B, "GPU 1", 81559 * MIB, 1024 * MIB),
    ]


@pytest.mark.parametrize(
    ("allowed", "found"),
    [
        ("", []),
        ("-1", []),
        ("1", ["1"]),
        ("1,0", ["1", "0"]),
        ("0,7,1", ["0"]),
        ("1,-1,0", ["1"]),
        ("0,0", ["0"]),
        ("GPU-bbbb", [B]),
        ("GPU-", []),
        (f" {B} , {A}", [B, A]),
        ("GPU-dddd,0", []),
        (f"MIG-{A}/1/0", [f"MIG-{A}/1/0"]),
    ],
)
@pytest.mark.usefixtures("two")
def test_an_inherited_list_counts_as_cuda_reads_it(nowhere: Path, allowed: str, found: list[str]) -> None:
    assert ids(find_devices({"CUDA_VISIBLE_DEVICES": allowed}, nowhere)) == found


@pytest.mark.usefixtures("two")
def test_a_number_is_trusted_with_the_smallest_memory_unless_the_order_is_that_of_the_bus(nowhere: Path) -> None:
    environment = {"CUDA_VISIBLE_DEVICES": "1"}
    assert find_devices(environment, nowhere) == [Device("1", "GPU 1", 24576 * MIB, 1024 * MIB)]
    by_bus = {**environment, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    assert find_devices(by_bus, nowhere) == [Device("1", "GPU 1", 81559 * MIB, 1024 * MIB)]


def test_instances_stand_for_the_device_that_they_are_cut_from(driver: Driver, nowhere: Path) -> None:
    driver.answers(Nvml(SLICED))
    found = find_devices({}, nowhere)
    assert found[1:] == [Device(MIG, "GPU 1.0", 10 * GB), Device(f"{MIG[:-1]}1", "GPU 1.2", 40 * GB, 2 * GB)]
    assert [device.instance for device in found] == [False, True, True]
    assert ids(find_devices({"CUDA_VISIBLE_DEVICES": MIG}, nowhere)) == [MIG]


def test_what_a_driver_does_not_know_is_left_out(driver: Driver, nowhere: Path) -> None:
    driver.answers(Nvml((Gpu(A), TWO[1])))
    assert find_devices({}, nowhere) == [Device(A, "GPU 0"), Device(B, "GPU 1", 81559 * MIB, 1024 * MIB)]
    driver.answers(Nvml(SLICED, old=True))
    assert find_devices({}, nowhere) == [Device(A, "GPU 0", 24576 * MIB, 3 * MIB), Device(B, "GPU 1")]
    driver.answers(Nvml((Gpu(A, lost=True), TWO[1])))
    assert find_devices({}, nowhere) == [Device(B, "GPU 1", 81559 * MIB, 1024 * MIB)]


class NoDriver:
    def nvmlInit(self) -> None:  # noqa: N802
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)


class Hanging:
    def nvmlInit(self) -> None:  # noqa: N802
        threading.Event().wait()


@pytest.mark.parametrize("broken", [NoDriver, Hanging])
def test_without_nvml_or_its_answer_proc_names_the_devices(
    driver: Driver, proc: Path, nowhere: Path, monkeypatch: pytest.MonkeyPatch, broken: type[NoDriver | Hanging]
) -> None:
    monkeypatch.setattr(devices, "_PATIENCE", 0.1 if broken is Hanging else 60.0)
    driver.answers(broken())
    assert find_devices({}, proc) == [Device(A, "GPU 0"), Device(B, "GPU 1")]
    assert find_devices({}, nowhere) == []
    assert find_devices({"CUDA_VISIBLE_DEVICES": "0"}, nowhere) == []


def test_no_torch_and_no_cuda_is_touched() -> None:
    code = """
import sys
from pathlib import Path
from paft_plugin.runner.devices import find_devices
find_devices()
maps = Path('/proc/self/maps')
print('torch' in sys.modules, 'libcuda' in maps.read_text() if maps.exists() else False)
"""
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.split() == ["False", "False"]
    assert shown.stderr == ""


def test_devices_are_chosen_by_number_label_or_uuid_and_all_mistakes_are_told() -> None:
    found = [Device(A, "GPU 0"), Device(B, "GPU 1")]
    assert choose_devices(["1", A], found) == [found[1], found[0]]
    assert choose_devices(["GPU 1"], found) == [found[1]]
    with pytest.raises(PaftError) as caught:
        choose_devices(["0", "2", A], found)
    assert caught.value.problems == [
        "There is no device '2' that this process may use. There are: GPU 0, GPU 1.",
        f"Device {A!r} is named twice. Name it once.",
    ]


def test_main_memory_is_the_machines_or_the_control_groups_limit(tmp_path: Path) -> None:
    meminfo, limit = tmp_path / "meminfo", tmp_path / "memory.max"
    assert main_memory(meminfo, limit) == 0
    meminfo.write_text("MemTotal:       16384 kB\nMemFree:        8192 kB\n")
    assert main_memory(meminfo, limit) == 16 * MIB
    limit.write_text("max\n")
    assert main_memory(meminfo, limit) == 16 * MIB
    limit.write_text(f"{4 * MIB}\n")
    assert main_memory(meminfo, limit) == 4 * MIB
