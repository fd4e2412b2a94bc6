"""A device is checked before it is used."""

from __future__ import annotations

import pytest

from paft_plugin.errors import PaftError
from paft_plugin.machine import has_units, is_fast_on_cpu, usable_device


def test_a_device_that_is_not_there_is_one_line() -> None:
    assert usable_device("cpu", "here") == "cpu"
    assert usable_device("auto", "here") in ("cpu", "cuda")
    with pytest.raises(PaftError, match=r"^search\.device: nonsense is not to be had here \(.+\)\. Give cpu"):
        usable_device("nonsense", "search.device")


def test_a_cpu_is_fast_in_half_precision_if_it_says_so() -> None:
    x86 = "processor\t: 0\nflags\t\t: fpu sse2 avx512f {}\n\nprocessor\t: 1\nflags\t\t: fpu\n"
    arm = "processor\t: 0\nFeatures\t: fp asimd {}\nCPU part\t: 0xd40\n"
    for text, flag, dtype in (
        *((x86, "avx512_bf16", "bfloat16"), (x86, "amx_bf16", "bfloat16"), (arm, "bf16", "bfloat16")),
        *((x86, "avx512_fp16", "float16"), (arm, "asimdhp", "float16")),
    ):
        assert has_units(dtype, text.format(flag))
        assert not has_units(dtype, text.format("sve"))
    assert not has_units("bfloat16", "")
    assert isinstance(is_fast_on_cpu("bfloat16"), bool)
