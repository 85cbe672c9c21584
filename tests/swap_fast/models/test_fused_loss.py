"""The fused loss without a GPU: its values by Triton's interpreter, its code by the compiler.

The interpreter must be chosen before Triton is imported, so that it runs in a process of its own:
this file, as a script, compares the kernel with torch's cross-entropy in float64, and its gradient
with differences of its own losses.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional
from triton_kernels import assert_interpreted_equal, compile_kernel

SHAPES = (
    (1, 1),  # one image of the only class
    (1, 10),
    (3, 7),
    (257, 10),  # more images than a program takes
    (30, 1000),
)
MOST = (600, 900)
"""More programs than are added up at once."""


def run(
    logits: Tensor, labels: Tensor, *, smoothing: float, scale: float | None, replicas: int
) -> tuple[Tensor, list[float]]:
    """The gradient, and the three sums, which begin at 1, 2 and 3, of a second call."""
    from swap_fast.models.fused_loss import FusedLoss

    sums = [torch.zeros((), dtype=torch.float64, device=logits.device) for _ in range(3)]
    loss = FusedLoss((sums[0], sums[1], sums[2]), smoothing)
    factor = None if scale is None else torch.tensor(scale, device=logits.device)
    loss(logits, labels, factor, num_replicas=replicas)
    for number, each in enumerate(sums, start=1):
        each.fill_(number)
    gradient = loss(logits, labels, factor, num_replicas=replicas)
    assert not loss._counter.any()
    return gradient, [float(each) for each in sums]


def compare(
    shape: tuple[int, int],
    dtype: torch.dtype,
    device: str,
    *,
    smoothing: float = 0.0,
    scale: float | None = None,
    replicas: int = 1,
    size: float = 1.0,
) -> None:
    """An AssertionError where the kernel differs from torch's operators in float64."""
    torch.manual_seed(0)
    logits, labels = (torch.randn(shape) * size).to(dtype), torch.randint(shape[1], shape[:1])
    exact = logits.double().requires_grad_()
    losses = functional.cross_entropy(exact, labels, label_smoothing=smoothing, reduction="none")
    (losses.mean() / replicas * (scale or 1.0)).backward()
    assert exact.grad is not None
    made, sums = run(
        *(logits.to(device), labels.to(device)), smoothing=smoothing, scale=scale, replicas=replicas
    )
    assert made.dtype == dtype
    tolerance = 1e-3 if dtype == torch.float16 else 2e-6
    largest = float(exact.grad.abs().max())
    torch.testing.assert_close(
        made.cpu().double(), exact.grad, rtol=tolerance, atol=tolerance * largest
    )
    right = int((logits.argmax(1) == labels).sum())
    assert sums[0] - 1.0 == pytest.approx(float(losses.detach().sum()), rel=1e-6, abs=1e-5)
    assert sums[1:] == [2.0 + right, 3.0 + shape[0]]


def compare_all(device: str) -> None:
    """Every form of the kernel."""
    for shape in SHAPES:
        for dtype in (torch.float32, torch.float16):
            compare(shape, dtype, device)
            compare(shape, dtype, device, smoothing=0.2, scale=128.0, replicas=3, size=4.0)
    compare(MOST, torch.float16, device, smoothing=0.1, scale=65536.0)
    # Logits as large as fp16 holds: one class has all, and exp() of none is infinite.
    compare((9, 10), torch.float16, device, smoothing=0.2, size=1e4)
    # Of equal logits the first is the answer, as torch's argmax has it on a CPU.
    labels = torch.tensor([0, 1, 2], device=device)
    equal = torch.zeros(3, 5, device=device)
    assert run(equal, labels, smoothing=0.0, scale=None, replicas=1)[1][1] == 2.0 + 1
    # An overflow is handed on, and the search for it finds it.
    equal[1, 2] = torch.inf
    with np.errstate(invalid="ignore"):  # the interpreter's
        gradient, _ = run(equal, labels, smoothing=0.2, scale=65536.0, replicas=1)
    assert not gradient[1].isfinite().any()
    assert gradient[[0, 2]].isfinite().all()
    differences(device)
    torch.manual_seed(0)
    logits, labels = torch.randn(600, 900, device=device), torch.arange(600, device=device)
    of = {"smoothing": 0.1, "scale": None, "replicas": 1}
    for _ in range(1 if device == "cpu" else 20):  # whichever program is the last
        (one, sums), (other, again) = (run(logits, labels, **of) for _ in range(2))
        assert torch.equal(one, other)
        assert sums == again


def differences(device: str) -> None:
    """The gradient against differences of the kernel's own sum of losses."""
    torch.manual_seed(1)
    logits, labels = torch.randn(4, 6, device=device), torch.tensor([0, 5, 2, 2], device=device)
    of: dict[str, Any] = {"smoothing": 0.3, "scale": None, "replicas": 1}
    gradient, _ = run(logits, labels, **of)
    for image in range(4):
        for column in range(6):
            ends = []
            for away in (0.05, -0.05):
                moved = logits.clone()
                moved[image, column] += away
                ends.append(run(moved, labels, **of)[1][0] / len(logits))
            slope = (ends[0] - ends[1]) / 0.1
            assert abs(slope - float(gradient[image, column])) < 1e-4


def test_the_interpreted_kernel_is_torch_s_cross_entropy() -> None:
    pytest.importorskip("triton", reason="no Triton")
    assert_interpreted_equal(__file__)


@pytest.mark.slow
@pytest.mark.parametrize("capability", [70, 80, 90])
@pytest.mark.parametrize("classes", [16, 128, 1024])
def test_it_compiles_for_each_gpu_without_spills(
    classes: int, capability: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("triton", reason="no Triton")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    from swap_fast.models.fused_loss import TILE, loss_kernel

    types = ("*fp16", "*i64", "*fp16", *["*fp64"] * 4, "*fp32", "*i32", "i32", "i32", "fp32")
    constants = {"SMOOTHING": 0.2, "SCALED": True, "ROWS": TILE // classes, "CLASSES": classes}
    pointers = [
        name for name, kind in zip(loss_kernel.arg_names, types, strict=False) if "*" in kind
    ]
    made = compile_kernel(loss_kernel, types, constants, capability, tmp_path, aligned=pointers)
    assert made.shared_bytes <= 16 * 2**10
    assert made.registers <= 128
    assert made.spills == ["0", "0"]


@pytest.mark.gpu
def test_the_kernel_on_a_device_is_torch_s_cross_entropy() -> None:
    compare_all("cuda")


if __name__ == "__main__":
    compare_all("cpu")
    print("all equal")
