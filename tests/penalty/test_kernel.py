"""The Triton kernels must agree with torch, in Triton's interpreter here (on a GPU: tests/gpu), and must compile.

Triton decides whether to interpret when a kernel is defined, so the functions named `check_…` below run as tests in a pytest of
their own, which `test_kernels_do_what_torch_does` starts. The rest runs in this process. To run the checks by hand:

    TRITON_INTERPRET=1 pytest tests/penalty/test_kernel.py -o python_functions=check_* -n 0
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from paft_plugin.penalty import kernel
from tests.penalty.kernel_checks import run_checks

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")

DEVICE = "cpu" if kernel.INTERPRETED else "cuda"

INF = float("inf")
SHAPES = [(1, 1, 1), (7, 3, 5), (65, 16, 129), (130, 1, 64), (33, 64, 70), (40, 200, 17)]  # (O, R, I)
PROGRAMS = (
    [1, 3, kernel.TARGET_PROGRAMS] if kernel.INTERPRETED else [3]
)  # each is compiled anew, which takes half a second
ENTRIES = [1, kernel.BLOCK_ENTRIES - 1, kernel.BLOCK_ENTRIES, 2 * kernel.BLOCK_ENTRIES + 3]


@needs_triton
def test_kernels_do_what_torch_does() -> None:
    done = run_checks(interpret=True)
    assert done.returncode == 0, done.stdout + done.stderr


# Checks: run by the test above.


def framed(tensor: Tensor) -> Tensor:
    """The same values as a view without contiguous rows, amid NaN that only a missing mask would read."""
    frame = torch.full([size + 300 for size in tensor.shape], torch.nan, dtype=tensor.dtype, device=DEVICE)
    view = frame[tuple(slice(0, size) for size in tensor.shape)]
    return view.copy_(tensor)


def exact_factors(rows: int, rank: int, columns: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A ``[R, I]`` and B ``[O, R]`` of few bits: sums are exact in fp32 and many entries of BA are exactly 0."""
    torch.manual_seed(0)
    A, B = torch.randint(-3, 4, (rank, columns)) / 8, torch.randint(-3, 4, (rows, rank)) / 8
    return A.to(dtype), B.to(dtype)


def autograd(A: Tensor, B: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Norm, both gradients and the whole BA in fp64."""
    A, B = A.double().requires_grad_(), B.double().requires_grad_()
    delta = B @ A
    norm = delta.abs().sum()
    grad_A, grad_B = torch.autograd.grad(norm, (A, B))
    return norm.detach(), grad_A, grad_B, delta.detach()


def counts(delta: Tensor, limits: tuple[float, ...]) -> list[int]:
    return [int((delta.abs() <= limit).sum()) for limit in limits]


@pytest.mark.parametrize("programs", PROGRAMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rows", "rank", "columns"), SHAPES)
def check_product_is_exactly_that_of_autograd(
    rows: int, rank: int, columns: int, dtype: torch.dtype, programs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel, "TARGET_PROGRAMS", programs)
    A, B = exact_factors(rows, rank, columns, dtype)
    expected_norm, expected_A, expected_B, delta = autograd(A, B)
    limits = (0.0, 0.25, INF)
    norm, small = kernel.measure_product(framed(A), framed(B), limits)
    grad_A, grad_B = kernel.subgradient_of_product(framed(A), framed(B))
    assert (norm.dtype, small.dtype, grad_A.dtype, grad_B.dtype) == (torch.float64, torch.int64, *[torch.float32] * 2)
    assert norm.item() == expected_norm.item()
    assert small.tolist() == counts(delta, limits)
    assert torch.equal(grad_A.cpu().double(), expected_A)
    assert torch.equal(grad_B.cpu().double(), expected_B)


def check_product_of_random_factors() -> None:
    torch.manual_seed(0)
    A, B = torch.randn(16, 150), torch.randn(70, 16)
    expected_norm, expected_A, expected_B, _ = autograd(A, B)
    norm, small = kernel.measure_product(A.to(DEVICE), B.to(DEVICE), ())
    grad_A, grad_B = kernel.subgradient_of_product(A.to(DEVICE), B.to(DEVICE))
    assert small.shape == (0,)
    torch.testing.assert_close(norm.cpu(), expected_norm, rtol=1e-6, atol=0)
    torch.testing.assert_close(grad_A.cpu().double(), expected_A, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(grad_B.cpu().double(), expected_B, rtol=1e-5, atol=1e-4)


def check_product_of_transposed_strided_and_mixed_factors() -> None:
    A, B = exact_factors(20, 6, 9, torch.float32)
    expected_norm, expected_A, expected_B, _ = autograd(A, B)
    strided = torch.full((20, 12), torch.nan, device=DEVICE)[:, ::2].copy_(B)
    transposed = A.to(DEVICE).bfloat16().T.contiguous().T
    norm, _ = kernel.measure_product(transposed, strided, ())
    grad_A, grad_B = kernel.subgradient_of_product(transposed, strided)
    assert norm.item() == expected_norm.item()
    assert torch.equal(grad_A.cpu().double(), expected_A)
    assert torch.equal(grad_B.cpu().double(), expected_B)
    assert grad_A.is_contiguous()
    assert grad_B.is_contiguous()


def check_subgradient_of_a_zero_product_is_exactly_zero() -> None:
    A, B = torch.randn(4, 70, device=DEVICE), torch.zeros(65, 4, device=DEVICE)
    norm, small = kernel.measure_product(A, B, (0.0,))
    grad_A, grad_B = kernel.subgradient_of_product(A, B)
    assert norm == 0
    assert small.tolist() == [65 * 70]
    assert torch.count_nonzero(grad_A) == torch.count_nonzero(grad_B) == 0


def check_sign_near_zero_is_that_of_fp32() -> None:
    """BA = 2⁻¹⁴, from factors that TF32 and bf16 cannot tell apart: a dot of lower precision gives sign 0."""
    A = torch.tensor([[1 + 2**-14], [1.0]], device=DEVICE)
    B = torch.tensor([[1.0, -1.0]], device=DEVICE)
    norm, _ = kernel.measure_product(A, B, ())
    grad_A, grad_B = kernel.subgradient_of_product(A, B)
    assert norm == 2**-14
    assert torch.equal(grad_A, B.T)
    assert torch.equal(grad_B, A.T)


def check_two_runs_are_bit_identical() -> None:
    torch.manual_seed(0)
    A, B = torch.randn(16, 150, device=DEVICE), torch.randn(70, 16, device=DEVICE)
    once, again = ((*kernel.measure_product(A, B, (0.5, 1.0)), *kernel.subgradient_of_product(A, B)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))


def check_products_without_rows_or_columns() -> None:
    for rows, columns in [(0, 5), (5, 0)]:
        A, B = torch.ones(3, columns, device=DEVICE), torch.ones(rows, 3, device=DEVICE)
        norm, small = kernel.measure_product(A, B, (1.0,))
        grad_A, grad_B = kernel.subgradient_of_product(A, B)
        assert norm == 0
        assert small.tolist() == [0]
        assert torch.equal(grad_A, torch.zeros_like(A))
        assert torch.equal(grad_B, torch.zeros_like(B))


@pytest.mark.parametrize("with_reference", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("entries", ENTRIES)
def check_difference_is_exactly_that_of_torch(entries: int, dtype: torch.dtype, with_reference: bool) -> None:
    torch.manual_seed(0)
    parameter = (torch.randint(-3, 4, (entries,)) / 8).to(dtype)
    reference = (torch.randint(-3, 4, (entries,)) / 8).bfloat16() if with_reference else None
    delta = parameter.double() - (0 if reference is None else reference.double())
    limits = (0.0, 0.25, INF)
    # The interpreter truncates to bf16 where a GPU rounds to nearest, so there the sums must be exact.
    strength = 0.125 if kernel.INTERPRETED and dtype == torch.bfloat16 else 0.1
    at, before = framed(parameter), (torch.randint(-99, 100, (entries,)) / 8).to(dtype)
    gradient = framed(before)
    base = None if reference is None else framed(reference)
    kernel.add_subgradient_of_difference(at, base, gradient, strength)
    norm, small = kernel.measure_difference(at, base, limits)
    assert (norm.dtype, small.dtype) == (torch.float64, torch.int64)
    assert norm.item() == delta.abs().sum().item()
    assert small.tolist() == counts(delta, limits)
    assert torch.equal(gradient.cpu(), before.add(delta.sign().float(), alpha=strength).to(dtype))
    assert torch.equal(at.cpu(), parameter)
    whole_frame = gradient.as_strided((entries + 300,), (1,))
    assert whole_frame[entries:].isnan().all()


def check_difference_of_matrices() -> None:
    parameter, reference = torch.randn(3, 5, 7, device=DEVICE), torch.randn(3, 7, 5, device=DEVICE).mT
    gradient = torch.zeros(3, 5, 7, device=DEVICE)
    kernel.add_subgradient_of_difference(parameter, reference, gradient, 1.0)
    norm, small = kernel.measure_difference(parameter, reference, ())
    assert small.shape == (0,)
    torch.testing.assert_close(norm, (parameter - reference).abs().sum().double())
    assert torch.equal(gradient, (parameter - reference).sign())


def check_difference_without_entries() -> None:
    norm, small = kernel.measure_difference(torch.zeros(0, device=DEVICE), None, (1.0,))
    assert norm == 0
    assert small.tolist() == [0]


def check_what_is_available() -> None:
    tensor = torch.zeros(1, device=DEVICE)
    assert all(kernel.available(tensor.to(dtype), kernel.MAX_RANK) for dtype in kernel.DTYPES)
    assert not kernel.available(tensor.double())
    assert not kernel.available(tensor, 0)
    assert not kernel.available(tensor, kernel.MAX_RANK + 1)


# Tests of this process.


@pytest.mark.skipif(kernel.INTERPRETED, reason="Triton interprets the kernels on a CPU")
def test_nothing_is_available_on_a_cpu() -> None:
    assert not kernel.available(torch.zeros(1))


def test_the_module_can_be_imported_without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    spec = importlib.util.spec_from_file_location("kernel_without_triton", kernel.__file__)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert not module.available(torch.zeros(1))


class OfflineDriver:
    """Tells Triton which GPU to compile for on a machine without one."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        return self.capability

    def get_current_stream(self, device: int) -> int:
        return 0


class CompileOnly:
    """Stands in for a kernel: compiles what would be launched, and keeps it with its arguments."""

    def __init__(self, jitted: Any, launches: list[tuple[Any, tuple[Any, ...]]]) -> None:
        self.jitted, self.launches = jitted, launches

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return lambda *args, **kwargs: self.launches.append((self.jitted.warmup(*args, grid=grid, **kwargs), args))


@pytest.fixture
def launches(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Any]:
    """Every (compiled kernel, arguments) that a test would have launched on a GPU of compute capability `param`."""
    from triton.runtime import driver

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(driver, "_active", OfflineDriver(request.param))
    seen: list[Any] = []
    for name in ("_product_kernel", "_difference_kernel"):
        monkeypatch.setattr(kernel, name, CompileOnly(getattr(kernel, name), seen))
    return seen


def stack_bytes(compiled: Any, folder: Path) -> int:
    """What one thread keeps outside its registers."""
    from triton import knobs

    cubin = folder / "kernel.cubin"
    cubin.write_bytes(compiled.asm["cubin"])
    told = subprocess.run(
        [knobs.nvidia.cuobjdump.path, "-res-usage", cubin], capture_output=True, text=True, check=True
    )
    (stack,) = re.findall(r"STACK:(\d+)", told.stdout)
    return int(stack)


def assert_launches_fit(launches: list[Any], folder: Path, entries: int) -> None:
    for compiled, arguments in launches:
        assert compiled.metadata.shared <= 99 * 1024  # what a block may use on any GPU since sm_86
        assert stack_bytes(compiled, folder) <= 64
        assert "mma." not in compiled.asm["ptx"]  # a tensor core would round fp32 to TF32
        offsets = [line for line in compiled.asm["ttir"].splitlines() if "tt.addptr" in line and "tensor<" in line]
        assert offsets
        assert all(re.search(r"tensor<[^,]*i64>", line) for line in offsets)
        tensors = [argument for argument in arguments if isinstance(argument, Tensor)]
        assert all(tensor.numel() <= entries for tensor in tensors)


compiles = pytest.mark.skipif(kernel.INTERPRETED or kernel.triton is None, reason="needs Triton's compiler")


@compiles
@pytest.mark.parametrize("launches", [80, 90], indirect=True, ids=["sm_80", "sm_90"])
@pytest.mark.parametrize("rank", [8, *(pytest.param(rank, marks=pytest.mark.slow) for rank in (32, 64, 128, 256))])
def test_product_compiles_without_spills_and_stores_no_product(launches: list[Any], rank: int, tmp_path: Path) -> None:
    A, B = torch.empty(rank, 14336, device="meta"), torch.empty(4096, rank, device="meta")
    kernel.measure_product(A, B, (1e-5, 1e-4))
    kernel.subgradient_of_product(A, B)
    assert len(launches) == 3
    assert_launches_fit(launches, tmp_path, entries=4096 * 14336 // 4)


@compiles
@pytest.mark.parametrize("launches", [80, 90], indirect=True, ids=["sm_80", "sm_90"])
def test_what_only_measures_and_bf16_compile(launches: list[Any], tmp_path: Path) -> None:
    A, B = torch.empty(16, 4096, device="meta").bfloat16(), torch.empty(1024, 16, device="meta").bfloat16()
    kernel.measure_product(A, B, ())
    kernel.subgradient_of_product(A, B.half())
    assert len(launches) == 3
    assert_launches_fit(launches, tmp_path, entries=1024 * 4096 // 4)


@compiles
@pytest.mark.parametrize("launches", [80, 90], indirect=True, ids=["sm_80", "sm_90"])
def test_difference_compiles_beyond_32_bits(launches: list[Any], tmp_path: Path) -> None:
    theta = torch.empty(2**32 + 7, device="meta").bfloat16()
    kernel.measure_difference(theta, None, ())
    kernel.add_subgradient_of_difference(theta, theta.float(), theta, 0.1)
    assert len(launches) == 2
    assert_launches_fit(launches, tmp_path, entries=theta.numel())
