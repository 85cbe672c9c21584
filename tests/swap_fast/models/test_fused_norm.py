"""The fused batch norm without a GPU: its values by Triton's interpreter, its code by the compiler.

The interpreter must be chosen before Triton is imported, so that it runs in a process of its own:
this file, as a script, compares the kernels with torch's operators in float64.
"""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from triton_kernels import assert_interpreted_equal, compile_kernel

from swap_fast.config.execution import Execution
from swap_fast.models import ResNet9

MOMENTUM, EPSILON = 0.2, 1e-5
SHAPES = (
    (2, 3, 4, 4),
    (1, 5, 2, 2),  # one image, odd channels
    (3, 70, 4, 6),  # more channels than a block has
    (5, 2, 16, 16),  # more rows than a part has
)


def reference(
    x: Tensor,
    skip: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    *,
    rounded: torch.dtype,
    pool: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """In float64: the result, and the running mean and variance, which begin at 0 and 1."""
    mean, var = torch.zeros_like(weight), torch.ones_like(weight)
    y = functional.batch_norm(x, mean, var, weight, bias, True, MOMENTUM, EPSILON)
    y = y + (y.to(rounded).double() - y).detach()  # as torch's kernels hand it on
    y = functional.relu(functional.max_pool2d(y, 2) if pool else y)
    return (y if skip is None else skip + y), mean, var


def compare(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    *,
    pool: bool,
    has_skip: bool,
    device: str = "cpu",
    mean: float = 0.0,
    tolerance: float,
) -> None:
    """Values, running statistics and gradients; an AssertionError where they differ."""
    from swap_fast.models.fused_norm import norm_relu

    torch.manual_seed(0)
    n, c, h, w = shape
    small = (n, c, h // 2, w // 2) if pool else shape
    x = (torch.randn(shape) + mean).to(dtype)
    skip = torch.randn(small).to(dtype) if has_skip else None
    weight, bias, given = torch.rand(c) - 0.3, torch.randn(c), torch.randn(small).to(dtype)
    running = torch.zeros(c, device=device), torch.ones(c, device=device)
    leaves = [
        None if each is None else each.to(device).requires_grad_()
        for each in (x.to(memory_format=torch.channels_last), skip, weight, bias)
    ]
    made = norm_relu(
        leaves[0],
        *leaves[2:],
        running,
        momentum=MOMENTUM,
        epsilon=EPSILON,
        pool=pool,
        skip=leaves[1],
    )
    assert made.dtype == dtype
    assert made.is_contiguous(memory_format=torch.channels_last)
    made.backward(given.to(device))
    exact = [
        None if each is None else each.detach().double().requires_grad_()
        for each in (x, skip, weight, bias)
    ]
    expected, *statistics = reference(*exact, rounded=dtype, pool=pool)
    expected.backward(given.double())
    pairs = [(made, expected), *zip(running, statistics, strict=True)]
    pairs += [
        (leaf.grad, one.grad)
        for leaf, one in zip(leaves, exact, strict=True)
        if leaf is not None and one is not None
    ]
    for one, other in pairs:
        away = (one.detach().double().cpu() - other.detach()).abs().max()
        assert away <= tolerance * max(1.0, float(other.detach().abs().max())), (shape, away)


def compare_all(device: str) -> None:
    """Every form of the kernels."""
    types = ((torch.float32, 2e-5), (torch.float16, 2e-3))
    for shape, (dtype, tolerance) in product(SHAPES, types):
        for pool, has_skip in product((False, True), repeat=2):
            form: dict[str, Any] = {"pool": pool, "has_skip": has_skip, "device": device}
            compare(shape, dtype, tolerance=tolerance, **form)
    # A mean of 300 deviations: a sum of squares in float32 would lose all digits but three.
    form = {"pool": False, "has_skip": False, "device": device}
    compare((5, 2, 16, 16), torch.float32, mean=300.0, tolerance=5e-4, **form)


def test_the_interpreted_kernels_are_torch_s_operators() -> None:
    pytest.importorskip("triton", reason="no Triton")
    assert_interpreted_equal(__file__)


KERNELS: dict[str, tuple[str, ...]] = {
    "moments_kernel": ("*fp16", "*fp32", "*fp32", "i32", "i32"),
    "statistics_kernel": (*["*fp32"] * 6, "i32", "i32", "fp32", "fp32"),
    "values_kernel": (*["*fp16"] * 3, *["*fp32"] * 4, *["i32"] * 4),
    "sums_kernel": ("*fp16", "*fp16", *["*fp32"] * 6, *["i32"] * 4),
    "gradient_kernel": (*["*fp16"] * 3, *["*fp32"] * 6, *["i32"] * 4, "fp32"),
}
"""Each with the types of its arguments before the constants."""


@pytest.mark.slow
@pytest.mark.parametrize("capability", [70, 80, 90])
@pytest.mark.parametrize("name", KERNELS)
def test_they_compile_for_each_gpu_without_spills(
    name: str, capability: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("triton", reason="no Triton")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    from swap_fast.models import fused_norm

    kernel = getattr(fused_norm, name)
    names, types = kernel.arg_names, KERNELS[name]
    values = {"POOL": True, "HAS_SKIP": True, "PARTS": 256} | {
        each: getattr(fused_norm, each) for each in ("ROWS", "BLOCK_ROWS", "BLOCK_CHANNELS")
    }
    if name == "gradient_kernel":
        values["BLOCK_ROWS"] = fused_norm.GRADIENT_ROWS
    made = compile_kernel(
        kernel,
        types,
        {each: values[each] for each in names[len(types) :]},
        capability,
        tmp_path,
        aligned=[each for each, kind in zip(names, types, strict=False) if kind[0] == "*"],
    )
    assert made.shared_bytes <= 16 * 2**10
    assert made.registers <= 128  # 4 programs of 128 threads on a multiprocessor
    assert made.spills == ["0", "0"]


def test_only_a_training_net_on_a_cuda_device_is_fused() -> None:
    with pytest.raises(
        ValueError, match="fused: expected a CUDA device and channels_last, got cpu"
    ):
        Execution(step="fused")
    net = Execution(device_type="cuda", step="fused").place(ResNet9(width=1), torch.device("cpu"))
    norm = net.prep.bn
    assert norm.is_fused
    assert not net.eval().prep.bn.is_fused
    assert not Execution().place(net.train(), torch.device("cpu")).prep.bn.is_fused


def compare_nets(device: str) -> None:
    """A training pass of the whole net, fused and not, from the same weights."""
    torch.manual_seed(0)
    fused, plain = ResNet9(width=1).to(device), ResNet9(width=1).to(device)
    plain.load_state_dict(fused.state_dict())
    for module in fused.modules():
        if hasattr(module, "fused"):
            module.fused = True
    images = torch.randn(2, 3, 32, 32, device=device)
    for net in (fused, plain):
        net(images).square().sum().backward()
    for (name, one), other in zip(fused.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=2e-3, atol=2e-4, msg=name)
    for (name, one), other in zip(fused.named_buffers(), plain.buffers(), strict=True):
        if "batches" not in name:
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.gpu
def test_the_kernels_on_a_device_are_torch_s_operators() -> None:
    compare_all("cuda")
    compare_nets("cuda")


if __name__ == "__main__":
    compare_all("cpu")
    compare_nets("cpu")
    print("all equal")
