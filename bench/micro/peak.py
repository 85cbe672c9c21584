"""A step's observed facts, the device's measured peak, and a step's counted cost."""

import os
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import repeat
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from bench.hardware.machine import resident_bytes
from bench.micro.interleave import Cost, ObservedTurn, Turn, Variant
from bench.net_cost import INDEX_BYTES, UPDATE_PASSES, WEIGHT_BYTES
from swap_fast.config.execution import DTYPES
from swap_fast.models.resnet9 import Block, Residual

# Observed facts: the first update, the memory, the launch count.

STEPS = 4  # updates in a turn

_HOST_LAUNCHES = (
    *("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx"),
    "cudaGraphLaunch",
)
"""Calls of the driver that start a kernel or a graph."""


def observe(
    device: torch.device,
    make: Callable[[], Callable[[], None]],
    images: int,
    *,
    prepare: Callable[[], None] = lambda: None,
    steps: int = STEPS,
) -> ObservedTurn:
    """Make a step, time its first update, and return a turn of several updates.

    Arguments:
        images: of one update.
        prepare: what the step does before its first update in a real run; timed with it.
        steps: updates in a turn.
    """
    before = resident_bytes()[0]
    step = make()
    synchronize(device)
    started = time.perf_counter()
    prepare()
    step()
    synchronize(device)
    first_step_s = time.perf_counter() - started

    def turn() -> int:
        for _ in repeat(None, steps):
            step()
        synchronize(device)
        return steps * images

    def facts() -> dict[str, float]:
        # Memory first, since profiling allocates some.
        peak = (
            torch.cuda.max_memory_allocated(device)
            if device.type == "cuda"
            else resident_bytes()[1] - before
        )
        return {
            "first_step_s": first_step_s,
            "peak_memory_bytes": peak,
            **_launches(device, step),
        }

    turn()
    return ObservedTurn(turn=turn, facts=facts)


def synchronize(device: torch.device) -> None:
    """Wait until the device has done its work, before a clock is read."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def count_launches(events: Iterable[tuple[str, bool, bool]], device_type: str) -> dict[str, float]:
    """Launch counts of a profile of one step.

    Arguments:
        events: (name, whether it ran on a CUDA device, whether no operator of torch called it).

    Returns:
        On CUDA `kernels`, those that ran, and `host_launches`, the calls that started them (a
        graph is one call). On a CPU `operators`: torch's operators that no other operator called;
        the fused loops of a compiled step are not operators of torch, and not counted.
    """
    seen = list(events)
    if device_type == "cuda":
        ran = [name for name, on_device, _ in seen if on_device]
        return {
            "kernels": sum(not name.startswith(("Memcpy", "Memset")) for name in ran),
            "host_launches": sum(name in _HOST_LAUNCHES for name, on_device, _ in seen),
        }
    return {"operators": sum(outer and name.startswith("aten::") for name, _, outer in seen)}


def _launches(device: torch.device, step: Callable[[], None]) -> dict[str, float]:
    # Without a CUDA device the profiler would print an error that means nothing.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities, acc_events=True) as profiled:
        step()
        synchronize(device)
    return count_launches(
        (
            (event.name, event.device_type == DeviceType.CUDA, not _called_by_operator(event))
            for event in profiled.events()
        ),
        device.type,
    )


def _called_by_operator(event: Any) -> bool:
    """Whether an operator of torch is above the event in the profile."""
    above = event.cpu_parent
    while above is not None:
        if above.name.startswith("aten::"):
            return True
        above = above.cpu_parent
    return False


# The device's peak: a matrix product and a copy, which take turns with the steps.

MATRIX_SIZE = {"cpu": 4096, "cuda": 8192}
"""Rows of the square matrices: large enough that larger ones are no faster."""
COPIED_BYTES = {"cpu": 2**28, "cuda": 2**30}
"""Size of the copy's source: larger than any cache."""
PRODUCTS = {"cpu": 1, "cuda": 20}  # in a turn


def peak_variants(
    device_type: str, precision: str, shapes: list[tuple[int, int]]
) -> Iterator[Variant]:
    """A matrix product and a copy for each (processes, threads) that a step was given."""
    product = (device_type, precision, MATRIX_SIZE[device_type])
    for processes, threads in shapes:
        yield Variant(
            f"peak: {precision} matrix product",
            matrix_product,
            product,
            processes=processes,
            threads=threads,
            unit="FLOP",
        )
        yield Variant(
            "peak: copy in memory",
            memory_copy,
            (device_type, COPIED_BYTES[device_type] // processes),
            processes=processes,
            threads=threads,
            unit="bytes",
        )


def matrix_product(device_type: str, precision: str, size: int) -> Turn:
    """Products of two square matrices, into a third: 2 size^3 operations each."""
    device, dtype = torch.device(device_type), DTYPES[precision]
    products = PRODUCTS[device_type]
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    product = torch.empty_like(left)

    def turn() -> int:
        for _ in range(products):
            torch.mm(left, right, out=product)
        synchronize(device)
        return products * 2 * size**3

    turn()
    return turn


def memory_copy(device_type: str, num_bytes: int) -> Turn:
    """A copy of that many bytes: each is read once and written once, and counted twice."""
    device = torch.device(device_type)
    # Ones, since zeros that were never written may share one page of memory.
    source = torch.ones(num_bytes // 4, device=device)
    target = torch.ones_like(source)

    def turn() -> int:
        target.copy_(source)
        synchronize(device)
        return 2 * source.numel() * 4

    turn()
    return turn


# Counted cost.


def step_flop(model: nn.Module, images: Tensor) -> tuple[int, int]:
    """Operations of a forward pass, and of a forward and backward pass, over a batch [B, ...].

    Torch's count: convolutions and linear layers, two operations for each multiplication and
    addition. The images need no gradient, so the first layer has one backward convolution, not two.
    """
    with FlopCounterMode(display=False) as counter:
        logits = model(images)
        forward = counter.get_total_flops()
        logits.sum().backward()
        return forward, counter.get_total_flops()


def step_bytes(
    model: nn.Module, images: Tensor, *, activation_bytes: int = 4, fused: bool = False
) -> int:
    """Bytes read and written by one step over a batch [B, ...], from the shapes of its tensors.

    Each pass over a tensor is one read or one write of all its values, as if no cache kept any
    between two kernels. With a large cache or a small batch the real traffic is less, so a share
    of the copy's bandwidth may be over 100%. `bench.net_cost` has the same count without torch; a
    test compares them.

    For each layer from x to y, with d for a gradient, w for weights:

    | layer | forward | backward |
    |---|---|---|
    | convolution, linear | read x, w; write y | read dy, w, write dx; read x, dy, write dw |
    | batch norm | read x; read x, write y | read x, dy; read x, dy, write dx |
    | ReLU in place | read, write y | read y, dy, write dx |
    | max pool | read x, write y, places | read dy, places, write dx |
    | x + f(x) | read x, f, write y | read both gradients, write their sum |

    The first layer's dx is not needed. The update of P weights: write g = 0; read and write g and
    read dw to add it; read theta, v, g, write theta, v; where activations are narrower, read w and
    write it narrow. The loss over 10 classes is left out.

    Arguments:
        activation_bytes: 4 in fp32, 2 in fp16 and bf16.
        fused: in each `Block`, one kernel for batch norm's second pass, pool and ReLU, and
            backward one for their sums and one for dx, which read the convolution's output and
            choose again; the residual sum in the last of them. A compiler can make these.
    """
    counts = {"activations": 0, "weights": 0, "places": 0}  # values read and written
    layers = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    joined = [m for m in model.modules() if isinstance(m, Block)] if fused else []
    inside = [m for block in joined for m in (block.bn, block.pool, block.relu)]

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        x, y = inputs[0].numel(), output.numel()
        if module in inside:
            return
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            passes = 2 if module is layers[0] else 3
            counts["activations"] += passes * (x + y)
            counts["weights"] += passes * module.weight.numel()
        elif isinstance(module, nn.BatchNorm2d):
            counts["activations"] += (x + 2 * x) + (2 * x + 3 * x)
        elif isinstance(module, nn.ReLU):
            counts["activations"] += 2 * y + 3 * y
        elif isinstance(module, nn.MaxPool2d):
            counts["activations"] += (x + y) + (y + x)
            counts["places"] += 2 * y
        elif isinstance(module, Residual):
            # Fused, the kernel that makes f(x) makes the sum: it reads x in addition.
            counts["activations"] += (y if fused else 3 * y) + 3 * y
        elif module in joined:
            conv = module.conv
            between = x // conv.in_channels * conv.out_channels  # from convolution to batch norm
            forward = between + (between + y)
            counts["activations"] += forward + (between + y) + (2 * between + y)

    handles = [module.register_forward_hook(count) for module in model.modules()]
    try:
        with torch.no_grad():
            model(images)
    finally:
        for handle in handles:
            handle.remove()
    parameters = sum(p.numel() for p in model.parameters())
    update = UPDATE_PASSES * parameters * WEIGHT_BYTES
    if activation_bytes != WEIGHT_BYTES:
        update += parameters * (WEIGHT_BYTES + activation_bytes)
    narrow = counts["activations"] + counts["weights"]
    return narrow * activation_bytes + counts["places"] * INDEX_BYTES + update


def step_cost(
    model: nn.Module,
    batch_size: int,
    *,
    activation_bytes: int = 4,
    fused: bool = False,
    image_shape: tuple[int, int, int] = (3, 32, 32),
) -> Cost:
    """An image's share of a step's cost, counted on meta tensors: nothing is computed."""
    model = model.to("meta")
    images = torch.empty((batch_size, *image_shape), device="meta")
    _, flop = step_flop(model, images)
    moved = step_bytes(model, images, activation_bytes=activation_bytes, fused=fused)
    return Cost(flop=flop / batch_size, bytes=moved / batch_size)
