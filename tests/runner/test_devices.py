"""Finding devices, by scripts that answer as `nvidia-smi` does; no GPU is needed.

What the scripts print is laid out as in NVIDIA's documents ("nvidia-smi.txt", "MIG User Guide"), not taken from a run here.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from paft_plugin.errors import PaftError
from paft_plugin.runner.devices import Device, choose_devices, find_devices, main_memory

MIB, GB = 1 << 20, 10**9
A, B = "GPU-aaaa1111-0000-0000-0000-000000000000", "GPU-bbbb2222-0000-0000-0000-000000000000"
MIG = "MIG-cccc3333-0000-0000-0000-000000000000"
TWO = f"0, {A}, 24576, 3\n1, {B}, 81559, 1024\n"
LISTED = f"GPU 0: NVIDIA GeForce RTX 4090 (UUID: {A})\nGPU 1: NVIDIA H100 80GB HBM3 (UUID: {B})\n"
SLICED = LISTED + f"  MIG 1g.10gb     Device  0: (UUID: {MIG})\n  MIG 3g.40gb+me  Device  1: (UUID: {MIG[:-1]}1)\n"


class Tool:
    """A folder with a `nvidia-smi` of our own, to be the whole PATH."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def answers(self, query: str, listed: str = LISTED, code: int = 0) -> dict[str, str]:
        script = self.folder / "nvidia-smi"
        script.write_text(
            f"#!/bin/sh\nif [ \"$1\" = -L ]; then printf '%b' '{listed}'; else printf '%b' '{query}'; fi\nexit {code}\n"
        )
        script.chmod(0o755)
        return {"PATH": f"{self.folder}{os.pathsep}/usr/bin{os.pathsep}/bin"}


@pytest.fixture
def tool(tmp_path: Path) -> Tool:
    return Tool(tmp_path)


@pytest.fixture
def nowhere(tmp_path: Path) -> Path:
    return tmp_path / "no driver"


def ids(devices: list[Device]) -> list[str]:
    return [device.id for device in devices]


def test_all_devices_with_their_memory(tool: Tool, nowhere: Path) -> None:
    assert find_devices(tool.answers(TWO), nowhere) == [
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
def test_an_inherited_list_counts_as_cuda_reads_it(tool: Tool, nowhere: Path, allowed: str, found: list[str]) -> None:
    environment = {**tool.answers(TWO), "CUDA_VISIBLE_DEVICES": allowed}
    assert ids(find_devices(environment, nowhere)) == found


def test_a_number_is_trusted_with_the_smallest_memory_unless_the_order_is_that_of_the_bus(
    tool: Tool, nowhere: Path
) -> None:
    environment = {**tool.answers(TWO), "CUDA_VISIBLE_DEVICES": "1"}
    assert find_devices(environment, nowhere) == [Device("1", "GPU 1", 24576 * MIB, 1024 * MIB)]
    by_bus = {**environment, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    assert find_devices(by_bus, nowhere) == [Device("1", "GPU 1", 81559 * MIB, 1024 * MIB)]


def test_instances_stand_for_the_device_that_they_are_cut_from(tool: Tool, nowhere: Path) -> None:
    found = find_devices(tool.answers(TWO, SLICED), nowhere)
    assert found[1:] == [Device(MIG, "GPU 1.0", 10 * GB), Device(f"{MIG[:-1]}1", "GPU 1.1", 40 * GB)]
    assert [device.instance for device in found] == [False, True, True]
    assert ids(find_devices({**tool.answers(TWO, SLICED), "CUDA_VISIBLE_DEVICES": MIG}, nowhere)) == [MIG]


def test_memory_that_is_not_told_is_unknown(tool: Tool, nowhere: Path) -> None:
    assert find_devices(tool.answers(f"0, {A}, [N/A], [N/A]\n"), nowhere) == [Device(A, "GPU 0")]


def test_without_the_tool_or_its_driver_proc_names_the_devices(tool: Tool, tmp_path: Path) -> None:
    for bus, uuid in (("0000:01:00.0", A), ("0000:02:00.0", B)):
        file = tmp_path / "gpus" / bus / "information"
        file.parent.mkdir(parents=True)
        file.write_text(f"Model: \t\t NVIDIA A100\nIRQ:   \t\t 16\nGPU UUID: \t {uuid}\n")
    expected = [Device(A, "GPU 0"), Device(B, "GPU 1")]
    assert find_devices({"PATH": str(tmp_path)}, tmp_path / "gpus") == expected
    broken = tool.answers("NVIDIA-SMI has failed\n", "", code=9)
    assert find_devices(broken, tmp_path / "gpus") == expected
    assert find_devices(broken, tmp_path / "none") == []
    assert find_devices({"PATH": str(tmp_path), "CUDA_VISIBLE_DEVICES": "0"}, tmp_path / "none") == []


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
