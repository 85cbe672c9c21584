"""The gather kernel without a GPU: its results by Triton's interpreter, its code by the compiler.

The interpreter must be chosen before Triton is imported, so that it runs in a process of its own:
this file, as a script, compares every form of the kernel with the oracle.
"""

from __future__ import annotations

import re
import sys
import warnings
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from small_trainer import MEAN, STD, make_split, oracle_image
from torch import Tensor
from triton_kernels import assert_interpreted_equal, compile_kernel

from swap_fast.config.phase import Augmentation
from swap_fast.data.cifar import resident as images_module
from swap_fast.data.cifar.augment import AugmentationPlan, plain_plan, plan_epoch
from swap_fast.data.cifar.resident import DeviceImages, DevicePlan, WindowGather

N = 13
SPLIT = make_split(N, 4)
FORMATS = (torch.channels_last, torch.contiguous_format)
TYPES = ((torch.float32, 2e-6), (torch.float16, 2e-3), (torch.bfloat16, 2e-2))
AUGMENTATIONS = (
    Augmentation(),
    Augmentation(pad=31, cutout=31),
    Augmentation(pad=1, cutout=32),
    Augmentation(pad=0, flip="none", cutout=0),
)


def affine(*, raw: bool = False, device: str = "cpu") -> Tensor:
    """Factor and summand of each channel, [2, 3]; raw: those that leave the pixels as they are."""
    mean, std = (np.zeros(3), np.ones(3)) if raw else (np.array(MEAN), np.array(STD))
    return torch.tensor(np.stack([1 / std, -mean / std]), dtype=torch.float32, device=device)


def draw(augmentation: Augmentation) -> AugmentationPlan:
    return plan_epoch(N, augmentation, seed=2, phase=1, worker=0, epoch=0)


def uploaded(plan: AugmentationPlan, pad: int) -> DevicePlan:
    split = DeviceImages(SPLIT, mean=MEAN, std=STD, device=torch.device("cpu"), pad=pad)
    return split.upload(plan)


def kernel_batch(
    plan: AugmentationPlan,
    pad: int,
    positions: list[int] | slice,
    dtype: torch.dtype,
    memory_format: torch.memory_format,
    *,
    raw: bool = False,
    device: str = "cpu",
) -> tuple[Tensor, Tensor]:
    """A batch in the midst of a larger buffer whose rest must stay as it is."""
    from swap_fast.data.cifar.gather_kernel import KernelGather

    labels = torch.from_numpy(SPLIT.labels).to(device, torch.int64)
    images = torch.from_numpy(SPLIT.images).to(device)
    gather = KernelGather(images, labels, affine(raw=raw, device=device), pad)
    n = len(range(N)[positions]) if isinstance(positions, slice) else len(positions)
    buffer = torch.full((n + 2, 3, 32, 32), 77.0, dtype=dtype, device=device)
    buffer = buffer.to(memory_format=memory_format)
    numbers = torch.full((n + 2,), -1, device=device)
    at = positions if isinstance(positions, slice) else torch.tensor(positions, device=device)
    columns = uploaded(plan, pad).columns.to(device)
    gather(DevicePlan(columns, plan.cutout), at, buffer[1:-1], numbers[1:-1])
    assert (buffer[[0, -1]] == 77.0).all()
    assert numbers[0] == numbers[-1] == -1
    return buffer[1:-1].cpu(), numbers[1:-1].cpu()


def compare_all(device: str) -> None:
    """Every form of the kernel against the oracle; an AssertionError where one differs."""
    positions = [5, N - 1, 5]
    forms = [(Augmentation(), *form) for form in product(TYPES, FORMATS)]
    forms += [(augmentation, TYPES[0], FORMATS[0]) for augmentation in AUGMENTATIONS[1:]]
    for augmentation, (dtype, tolerance), memory_format in forms:
        plan = draw(augmentation)
        form = (dtype, memory_format)
        made = kernel_batch(plan, augmentation.pad, positions, *form, device=device)
        for row, position in enumerate(positions):
            number = plan.order[position]
            _, values = oracle_image(SPLIT.images[number], augmentation, plan, position)
            np.testing.assert_allclose(
                made[0][row].double().numpy(), values, rtol=0, atol=tolerance
            )
            assert made[1][row] == SPLIT.labels[number]
            top, left, side = plan.cutout_y[position], plan.cutout_x[position], plan.cutout
            assert (made[0][row][:, top : top + side, left : left + side] == 0).all()
    for augmentation in AUGMENTATIONS:  # the geometry, to the pixel
        plan = draw(augmentation)
        uncut = AugmentationPlan(**{**vars(plan), "cutout": 0})
        form = (torch.float16, torch.channels_last)
        made = kernel_batch(uncut, augmentation.pad, slice(6, 9), *form, raw=True, device=device)
        for row, position in enumerate(range(6, 9)):
            crop, _ = oracle_image(SPLIT.images[plan.order[position]], augmentation, plan, position)
            assert np.array_equal(made[0][row].permute(1, 2, 0).numpy(), crop)
    for pad in (0, 4):
        form = (torch.float32, torch.contiguous_format)
        made = kernel_batch(plain_plan(N, pad), pad, slice(0, N), *form, raw=True, device=device)
        assert np.array_equal(made[0].permute(0, 2, 3, 1).numpy(), SPLIT.images)
        assert made[1].tolist() == SPLIT.labels.tolist()


def test_the_interpreted_kernel_is_the_oracle() -> None:
    pytest.importorskip("triton", reason="no Triton")
    assert_interpreted_equal(__file__)


@pytest.mark.parametrize("capability", [70, 80, 90])
@pytest.mark.parametrize(
    ("dtype", "channels_last"), [("fp16", True), ("fp32", True), ("fp16", False)]
)
def test_it_compiles_for_each_gpu_within_its_means(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capability: int,
    dtype: str,
    channels_last: bool,
) -> None:
    pytest.importorskip("triton", reason="no Triton")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    from swap_fast.data.cifar.gather_kernel import BLOCK, gather_kernel

    made = compile_kernel(
        gather_kernel,
        ["*i64", "*i64", "i32", "*u8", "*i64", "*fp32", f"*{dtype}", "*i64"],
        {"PAD": 4, "CUTOUT": 8, "CHANNELS_LAST": channels_last, "BLOCK": BLOCK},
        capability,
        tmp_path,
        aligned=("images", "images_out", "plan"),
    )
    assert made.shared_bytes == 0
    if channels_last:  # neighbouring values leave in one transaction of 8 or 16 bytes
        assert re.search(r"st\.global\.v[24]\.b32", made.ptx)
    # 64 registers for each of 128 threads leave room for 8 programs on a multiprocessor.
    assert made.registers <= 64
    assert made.spills == ["0", "0"]


def test_no_alignment_makes_the_kernel_anew() -> None:
    pytest.importorskip("triton", reason="no Triton")
    from swap_fast.data.cifar.gather_kernel import gather_kernel

    free = {p.name for p in gather_kernel.params if p.do_not_specialize}
    assert free == {"num_positions"}
    free = {p.name for p in gather_kernel.params if p.do_not_specialize_on_alignment}
    assert free == {"positions", "labels_out"}


def test_where_the_kernel_cannot_be_built_torch_gathers(monkeypatch: pytest.MonkeyPatch) -> None:
    from swap_fast.data.cifar import gather_kernel

    class Broken:
        def __init__(self, *arguments: object) -> None:
            raise RuntimeError("Failed to find C compiler.\nPlease specify")

    monkeypatch.setattr(gather_kernel, "KernelGather", Broken)
    tensors = (torch.zeros(1, 32, 32, 3, dtype=torch.uint8), torch.zeros(1), affine(), 4)
    with pytest.warns(UserWarning, match="RuntimeError: Failed to find C compiler.$"):
        assert images_module._try_kernel(*tensors) is None
    monkeypatch.setitem(sys.modules, "swap_fast.data.cifar.gather_kernel", None)  # no Triton
    with pytest.warns(UserWarning, match="cannot be built: ModuleNotFoundError: "):
        assert images_module._try_kernel(*tensors) is None


def test_a_cpu_never_asks_for_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images_module, "_try_kernel", SimpleNamespace())  # it cannot be called
    with warnings.catch_warnings(action="error"):
        images = DeviceImages(SPLIT, mean=MEAN, std=STD, device=torch.device("cpu"), pad=4)
    assert isinstance(images._gather, WindowGather)


@pytest.mark.gpu
def test_the_kernel_on_a_device_is_the_oracle() -> None:
    compare_all("cuda")


@pytest.mark.gpu
def test_a_captured_gather_reads_each_epoch_s_plan_and_positions() -> None:
    device = torch.device("cuda")
    images = DeviceImages(SPLIT, mean=MEAN, std=STD, device=device, pad=4)
    plan = images.upload(draw(Augmentation()))
    positions = torch.arange(4, device=device)
    batch = torch.empty((4, 3, 32, 32), dtype=torch.float16, device=device)
    batch = batch.to(memory_format=torch.channels_last)
    labels = torch.empty(4, dtype=torch.int64, device=device)
    images.load_(plan, positions, batch, labels)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        images.load_(plan, positions, batch, labels)
    for epoch, start in ((0, 0), (1, 3), (2, 9)):
        drawn = plan_epoch(N, Augmentation(), seed=2, phase=1, worker=0, epoch=epoch)
        images.upload(drawn, plan)
        positions.copy_(torch.arange(start, start + 4))
        graph.replay()
        expected, numbers = torch.empty_like(batch), torch.empty_like(labels)
        images.load_(images.upload(drawn), slice(start, start + 4), expected, numbers)
        assert torch.equal(batch, expected)
        assert torch.equal(labels, numbers)


if __name__ == "__main__":
    compare_all("cpu")
    print("all equal")
