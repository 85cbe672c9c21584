"""The fused batch norm without a GPU: its values by Triton's interpreter, its code by the compiler.

The interpreter must be chosen before Triton is imported, so that it runs in a process of its own:
this file, as a script, compares the kernels with torch's operators in float64.
"""

from __future__ import annotations

import os
import re
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
FEW_ROWS = 16
"""Of a part: a map then has more parts than are merged at once."""


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
    first: float = 0.0,
    uses: int = 1,
    tolerance: float,
) -> None:
    """Values, running statistics and gradients; an AssertionError where they differ.

    Arguments:
        mean: of the map; `first` is added to that of the first image.
        uses: of the result, 1 or 2.
    """
    from swap_fast.models.fused_norm import new_counter, norm_relu

    torch.manual_seed(0)
    n, c, h, w = shape
    small = (n, c, h // 2, w // 2) if pool else shape
    x = torch.randn(shape) + mean
    x[0] += first
    x = x.to(dtype)
    skip = torch.randn(small).to(dtype) if has_skip else None
    weight, bias, given = torch.rand(c) - 0.3, torch.randn(c), torch.randn(small).to(dtype)
    running = torch.zeros(c, device=device), torch.ones(c, device=device)
    leaves = [
        None if each is None else each.to(device).requires_grad_()
        for each in (x.to(memory_format=torch.channels_last), skip, weight, bias)
    ]
    counter = new_counter(c, torch.device(device))
    made, again = norm_relu(
        leaves[0],
        *leaves[2:],
        running,
        counter,
        momentum=MOMENTUM,
        epsilon=EPSILON,
        pool=pool,
        skip=leaves[1],
    )
    assert made.dtype == dtype
    assert made.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(made, again)
    other = torch.randn(small).to(dtype) if uses == 2 else torch.zeros(small)
    of_uses = [(made, given), (again, other)][:uses]
    torch.autograd.backward(*zip(*((out, g.to(device)) for out, g in of_uses), strict=True))
    assert not counter.any()
    exact = [
        None if each is None else each.detach().double().requires_grad_()
        for each in (x, skip, weight, bias)
    ]
    expected, *statistics = reference(*exact, rounded=dtype, pool=pool)
    expected.backward(given.double() + other.double())
    pairs = [(made, expected), *zip(running, statistics, strict=True)]
    pairs += [
        (leaf.grad, one.grad)
        for leaf, one in zip(leaves, exact, strict=True)
        if leaf is not None and one is not None
    ]
    for one, wanted in pairs:
        away = (one.detach().double().cpu() - wanted.detach()).abs().max()
        assert away <= tolerance * max(1.0, float(wanted.detach().abs().max())), (shape, away)


def compare_all(device: str) -> None:
    """Every form of the kernels."""
    from swap_fast.models import fused_norm

    types = ((torch.float32, 2e-5), (torch.float16, 2e-3))
    for shape, (dtype, tolerance) in product(SHAPES, types):
        for pool, has_skip in product((False, True), repeat=2):
            form: dict[str, Any] = {"pool": pool, "has_skip": has_skip, "device": device}
            # With each pool either number of uses: interpreted, a form takes a second.
            compare(shape, dtype, tolerance=tolerance, uses=1 + (pool == has_skip), **form)
    rows = fused_norm.ROWS, fused_norm.MOMENT_ROWS
    for fused_norm.ROWS, fused_norm.MOMENT_ROWS in (rows, (FEW_ROWS, FEW_ROWS)):
        form = {"pool": False, "has_skip": False, "device": device}
        # A mean of 300 deviations: a sum of squares in float32 would lose all digits but three.
        compare((5, 2, 16, 16), torch.float32, mean=300.0, tolerance=5e-4, **form)
        # The first image is unlike all others: no mean of a part is near the mean of all.
        compare((5, 3, 16, 16), torch.float32, first=100.0, tolerance=5e-5, **form)
        compare((5, 70, 16, 16), torch.float16, tolerance=2e-3, **form | {"pool": True}, uses=2)
    fused_norm.ROWS, fused_norm.MOMENT_ROWS = rows
    if {"TRITON_INTERPRET", "STANDIN_VALUES"} & os.environ.keys():  # one program after another
        return
    for _ in range(20):  # whichever program is the last
        first, second = (result_and_gradients((5, 70, 32, 32), device) for _ in range(2))
        assert all(map(torch.equal, first, second))


def result_and_gradients(shape: tuple[int, ...], device: str) -> list[Tensor]:
    """A result and its gradients."""
    from swap_fast.models.fused_norm import new_counter, norm_relu

    torch.manual_seed(0)
    x = torch.randn(shape, device=device).to(memory_format=torch.channels_last).requires_grad_()
    weight, bias = (torch.randn(shape[1], device=device).requires_grad_() for _ in range(2))
    running = torch.zeros(shape[1], device=device), torch.ones(shape[1], device=device)
    made, _ = norm_relu(
        *(x, weight, bias, running, new_counter(shape[1], x.device)), momentum=0.1, epsilon=EPSILON
    )
    made.square().sum().backward()
    return [made.detach(), *(each.grad for each in (x, weight, bias)), *running]


def test_the_interpreted_kernels_are_torch_s_operators() -> None:
    pytest.importorskip("triton", reason="no Triton")
    assert_interpreted_equal(__file__)


KERNELS: dict[str, tuple[str, ...]] = {
    "moments_kernel": ("*fp16", *["*fp32"] * 6, "*i32", "i32", "i32", "fp32", "fp32"),
    "values_kernel": (*["*fp16"] * 3, *["*fp32"] * 4, "i32", "i32"),
    "sums_kernel": (*["*fp16"] * 3, *["*fp32"] * 4, "*i32", *["*fp32"] * 4, "i32", "i32"),
    "gradient_kernel": (*["*fp16"] * 4, *["*fp32"] * 6, "i32", "i32", "fp32"),
}
"""Each with the types of its arguments before the constants."""


@pytest.mark.slow
@pytest.mark.parametrize("capability", [70, 80, 90])
@pytest.mark.parametrize("name", KERNELS)
def test_they_compile_for_each_gpu_without_spills_and_with_wide_accesses(
    name: str, capability: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("triton", reason="no Triton")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    from swap_fast.models import fused_norm

    kernel = getattr(fused_norm, name)
    names, types = kernel.arg_names, KERNELS[name]
    values = {"POOL": True, "HEIGHT": 32, "WIDTH": 32, "HAS_SKIP": True, "HAS_SECOND": True} | {
        each: getattr(fused_norm, each) for each in ("ROWS", "BLOCK_ROWS", "BLOCK_CHANNELS")
    }
    own_rows = {"moments_kernel": "MOMENT_ROWS", "gradient_kernel": "GRADIENT_ROWS"}
    if name in own_rows:
        values["BLOCK_ROWS"] = getattr(fused_norm, own_rows[name])
    made = compile_kernel(
        kernel,
        types,
        {each: values[each] for each in names[len(types) :]},
        capability,
        tmp_path,
        aligned=[
            each
            for each, kind in zip(names, types, strict=False)
            if kind[0] == "*" or each == "num_channels"
        ],
    )
    # The maps' values are in fp16, and no other's: 4 or 8 of them at once.
    wide = "v2" if name == "gradient_kernel" else "v4"
    assert re.search(rf"ld\.global\.(?:\w+\.)*{wide}\.b32", made.ptx)
    assert not re.search(r"(?:ld|st)\.global\.(?:\w+\.)*[bu]16\b", made.ptx)
    assert not re.search(r"\b(?:div|rem)\.[su](?:32|64)\b", made.ptx)
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
