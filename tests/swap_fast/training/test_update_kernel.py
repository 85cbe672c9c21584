"""The update's kernels without a GPU: values by Triton's interpreter, code by the compiler.

The interpreter must be chosen before Triton is imported, so that it runs in a process of its own:
this file, as a script, compares the kernels with torch's SGD and GradScaler, and with their
formulas in float64, and those of Muon with `Muon`.
"""

from __future__ import annotations

from itertools import accumulate, product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from triton_kernels import assert_interpreted_equal, compile_kernel

from swap_fast.config.phase import Optimizer
from swap_fast.training.optimizer import FlatOptimizer, MomentumSGD, recipe_optimizer
from swap_fast.training.weights import Weights

SIZES = ((1,), (3, 1), (1023,), (1024,), (1025, 7), (16, 2049))
"""Of the parameters of a net, each: none fills its programs, one or more do."""
RATE = 0.1


class Vectors(nn.Module):
    """Parameters of odd lengths: the even ones in a linear layer, which may be rounded."""

    def __init__(self, sizes: tuple[int, ...]) -> None:
        super().__init__()
        for number, size in enumerate(sizes):
            layer = nn.Linear(size, 1, bias=number % 2 == 1)
            layer.weight.data.normal_()
            self.add_module(f"layer{number}", layer)
        self.scale = nn.Parameter(torch.randn(3))


def make(
    sizes: tuple[int, ...], config: Optimizer, *, scaled: bool, device: str = "cpu"
) -> tuple[Weights, MomentumSGD]:
    torch.manual_seed(0)
    weights = Weights(Vectors(sizes).to(device))
    optimizer = MomentumSGD(weights, config, scale_gradients=scaled)
    optimizer.set_learning_rate(RATE)
    return weights, optimizer


def give_(weights: Weights, values: Tensor, how: str) -> None:
    """Hand on a gradient [P]: in the vector, or as autograd leaves it at each parameter."""
    if how == "vector":
        weights.gradient.copy_(values)
        return
    for parameter, part in weights.loose:
        own = values.as_strided(part.shape, part.stride(), part.storage_offset())
        parameter.grad = own.to(parameter.dtype)


def expected(
    theta: Tensor, velocity: Tensor, gradient: Tensor, scale: float, config: Optimizer
) -> tuple[Tensor, Tensor]:
    """An update in float64, rounded to float32 where torch's CUDA kernel rounds."""

    def rounded(x: Tensor) -> Tensor:
        return x.float().double()

    theta, velocity, gradient = theta.double(), velocity.double(), gradient.double()
    gradient = rounded(gradient / scale)
    if config.weight_decay:
        gradient = rounded(gradient + config.weight_decay * theta)
    new = config.momentum * velocity + gradient
    step = rounded(gradient + config.momentum * new) if config.nesterov else rounded(new)
    rate = float(torch.tensor(RATE))
    return (theta - rate * step).float(), new.float()


def compare(
    sizes: tuple[int, ...], dtype: torch.dtype, how: str, device: str, *, scaled: bool
) -> None:
    """Six updates, one of which overflows; an AssertionError where they differ."""
    growing = scaled and sizes == SIZES[-1]
    for config in (Optimizer(), Optimizer(weight_decay=0.0, nesterov=False)):
        weights, optimizer = make(sizes, config, scaled=scaled, device=device)
        theirs, torch_s = make(sizes, config, scaled=scaled, device=device)
        optimizer.fuse_(dtype)
        if growing:
            for each in (optimizer, torch_s):
                each.scaler.set_growth_interval(2)
        assert optimizer.is_fused
        generator = torch.Generator().manual_seed(1)
        for number in range(6):
            scale = float(optimizer.scaler.get_scale())
            values = torch.randn(len(weights.theta), generator=generator) * min(scale, 1024.0)
            values = values.to(device)
            if number == 2:
                values *= 3e4 / scale / values.abs().max()  # as large as fp16 holds
            if number == 3 and scaled:
                values[-1 if sizes[0] > 1 else 0] = torch.inf if dtype == torch.half else torch.nan
            if how == "parameters":
                give_(weights, values, how)
                values = torch.cat([p.grad.float().flatten() for p, _ in weights.loose])
            else:
                give_(weights, values, how)
            before = weights.theta.detach().clone(), optimizer.velocity.clone()
            exact = expected(*before, values, scale, config)
            theirs.gradient.copy_(values)
            optimizer.step()
            torch_s.step()
            now = weights.theta.detach(), optimizer.velocity
            left_out = number == 3 and scaled
            for one, other in zip(now, before if left_out else exact, strict=True):
                # A GPU rounds a product and a sum in float64 once: a last digit in 10^8 differs.
                tolerance = 0.0 if device == "cpu" or left_out else 2e-7
                torch.testing.assert_close(one, other, rtol=tolerance, atol=0.0)
            for one, other in zip(now, (theirs.theta.detach(), torch_s.velocity), strict=True):
                torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
            assert all(parameter.grad is None for parameter, _ in weights.loose)
            for parameter, trained in weights.trained.items():
                if dtype == torch.bfloat16:  # which the interpreter cuts off, and does not round
                    torch.testing.assert_close(parameter.float(), trained, rtol=2**-7, atol=0)
                else:
                    assert torch.equal(parameter, trained.to(parameter.dtype))
            assert optimizer.scaler.state_dict() == torch_s.scaler.state_dict()
            assert optimizer.skipped == torch_s.skipped == (scaled and number >= 3)
        optimizer.fuse_(None)  # back: torch's optimizer goes on from the same state
        for one, other in ((weights, optimizer), (theirs, torch_s)):
            one.gradient.fill_(float(other.scaler.get_scale()))
            other.step()
        assert all(p.dtype == torch.float32 and p.grad is not None for p in weights.trained)
        torch.testing.assert_close(weights.theta, theirs.theta, rtol=1e-5, atol=1e-6)


MUON = Optimizer(kind="muon", momentum=0.6, sgd_momentum=0.85, bias_lr_factor=2.0)


def make_filters(*, scaled: bool, fp32: bool, device: str) -> tuple[Weights, FlatOptimizer]:
    """Matrices that are alike side by side and apart, a tall one, and what has SGD."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(5, 7, 3, bias=True),
        *(nn.Conv2d(7, 7, 3, bias=False) for _ in range(2)),
        nn.BatchNorm2d(7),
        nn.Conv2d(7, 20, 1, bias=False),
        nn.Conv2d(5, 7, 3, bias=False),
        nn.Linear(11, 3, bias=False),
    )
    net.to(device).to(memory_format=torch.channels_last)
    weights = Weights(net, groups=MUON.groups)
    optimizer = recipe_optimizer(weights, MUON, scale_gradients=scaled)
    optimizer._torch.param_groups[0]["fp32"] = fp32
    optimizer.set_learning_rate(RATE)
    return weights, optimizer


def compare_muon(
    dtype: torch.dtype, how: str, device: str, *, scaled: bool, fp32: bool = True
) -> None:
    """Five updates, one of which overflows; an AssertionError where they differ."""
    weights, optimizer = make_filters(scaled=scaled, fp32=fp32, device=device)
    theirs, eager = make_filters(scaled=scaled, fp32=fp32, device=device)
    optimizer.fuse_(dtype)
    assert optimizer.is_fused
    generator = torch.Generator().manual_seed(1)
    for number in range(5):
        scale = min(float(optimizer.scaler.get_scale()), 1024.0)
        values = (torch.randn(len(weights.theta), generator=generator) * scale).to(device)
        if number < 2:  # a matrix without a gradient keeps its direction
            values[: 7 * 45] = 0.0
        if number == 2 and scaled:
            values[10 if how == "vector" else -1] = torch.inf  # of a matrix, and of SGD's
        give_(weights, values, how)
        if how == "parameters":
            values = torch.cat(
                [
                    p.grad.float().as_strided((p.numel(),), (1,))
                    for p, _ in weights.loose
                    if p.grad is not None
                ]
            )
        theirs.gradient.copy_(values)
        before = weights.theta.detach().clone()
        optimizer.step()
        eager.step()
        assert torch.equal(before, weights.theta.detach()) == (scaled and number == 2)
        tolerance = {"rtol": 1e-4, "atol": 1e-5} if fp32 else {"rtol": 0.1, "atol": 1e-2}
        torch.testing.assert_close(optimizer.velocity, eager.velocity, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(weights.theta, theirs.theta, **tolerance)
        for parameter, trained in weights.trained.items():
            assert torch.equal(parameter, trained.to(parameter.dtype))
        assert optimizer.scaler.state_dict() == eager.scaler.state_dict()
        assert optimizer.skipped == eager.skipped == (scaled and number >= 2)
    assert not any(muon._counters.any() for muon in optimizer._own_kernel._muon)  # type: ignore


def compare_all(device: str) -> None:
    """Every form of the kernels."""
    from swap_fast.training import update_kernel

    block = update_kernel.BLOCK
    for update_kernel.BLOCK in (block, 16):  # also more programs than are added up at once
        for how in ("vector", "parameters"):
            compare_muon(torch.float16, how, device, scaled=True)
            compare_muon(torch.float32, how, device, scaled=False)
        compare_muon(torch.float32, "parameters", device, scaled=True, fp32=False)
    update_kernel.BLOCK = block
    for sizes, how in product(SIZES, ("vector", "parameters")):
        compare(sizes, torch.float16, how, device, scaled=True)
        compare(sizes, torch.float32, how, device, scaled=False)
    compare(SIZES[-1], torch.bfloat16, "parameters", device, scaled=False)
    compare(SIZES[-1], torch.float32, "parameters", device, scaled=True)


def test_the_interpreted_kernels_are_torch_s_sgd() -> None:
    pytest.importorskip("triton", reason="no Triton")
    assert_interpreted_equal(__file__)


FILTERS = [9 * i * o for i, o in ((3, 64), (64, 128), (128, 128), (256, 512), (512, 512))]
"""Of the paper's net, some: what the kernels' tables are made of."""


def table(sizes: list[int]) -> dict[str, Any]:
    """Of parts that follow one another."""
    programs = [-(-size // 1024) for size in sizes]
    return {
        "FIRST": (0, *accumulate(programs[:-1])),
        "START": (0, *accumulate(sizes[:-1])),
        "SIZE": tuple(sizes),
        "COUNT": len(sizes),
        "BLOCK": 1024,
    }


SGD = {"WEIGHT_DECAY": 5e-4, "MOMENTUM": 0.9, "NESTEROV": True, "SCALED": True, "ROUNDS": True}
GRADIENTS = ("*fp16",) * len(FILTERS)
KERNELS: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
    "overflow_kernel": ((GRADIENTS, "*fp32"), table(FILTERS)),
    "update_kernel": (
        (GRADIENTS, *["*fp32"] * 2, "*fp16", *["*fp32"] * 3),
        {**table(FILTERS), **SGD},
    ),
    "update_kernel of a vector": (
        (("*fp32",), *["*fp32"] * 2, "*fp16", *["*fp32"] * 3),
        {**table([sum(FILTERS)]), **SGD},
    ),
    "scale_kernel": (("*fp32", "*i32", "*fp32", "*fp64", "fp32", "fp32", "i32"), {}),
    "muon_norms_kernel": (
        (GRADIENTS, *["*fp32"] * 2, "*fp64", *["*fp32"] * 2, "*i32", *["*fp32"] * 2),
        {**table(FILTERS), **SGD},
    ),
    "muon_direction_kernel": (
        (GRADIENTS, "*fp32", "*bf16", *["*fp32"] * 3, "i32"),
        {**table(FILTERS), **SGD},
    ),
    "muon_update_kernel": (
        (("*bf16",) * len(FILTERS), "*fp32", "*fp16", *["*fp32"] * 3),
        {**table(FILTERS), **SGD, "NORMALIZE": True},
    ),
}
"""Each with the types of its arguments, and its constants."""


@pytest.mark.slow
@pytest.mark.parametrize("capability", [70, 80, 90])
@pytest.mark.parametrize("name", KERNELS)
def test_they_compile_for_each_gpu_without_spills(
    name: str, capability: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("triton", reason="no Triton")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    from swap_fast.training import update_kernel

    kernel = getattr(update_kernel, name.split()[0])
    types, constants = KERNELS[name]
    aligned = [
        each for each, kind in zip(kernel.arg_names, types, strict=False) if "*" in str(kind)
    ]
    made = compile_kernel(
        kernel,
        types,
        {each: constants[each] for each in kernel.arg_names if each in constants},
        capability,
        tmp_path,
        aligned=aligned,
    )
    assert made.registers <= 64  # 8 programs of 128 threads on a multiprocessor
    assert made.spills == ["0", "0"]
    if name != "scale_kernel":  # 16 bytes of a thread's 8 values at once, or a vector of 4
        assert "ld.global" in made.ptx
        assert ".v4.b32" in made.ptx


@pytest.mark.gpu
def test_the_kernels_on_a_device_are_torch_s_sgd() -> None:
    compare_all("cuda")


if __name__ == "__main__":
    compare_all("cpu")
    print("all equal")
