"""A step's observed facts, and the device's measured peak."""

import os
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import repeat
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from bench.hardware.machine import resident_bytes
from bench.micro.interleave import ObservedTurn, Turn, Variant
from swap_fast.config.execution import DTYPES

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
) -> ObservedTurn:
    """Make a step, time its first update, and return a turn of several updates.

    Arguments:
        images: of one update.
        prepare: what the step does before its first update in a real run; timed with it.
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
        for _ in repeat(None, STEPS):
            step()
        synchronize(device)
        return STEPS * images

    def facts() -> dict[str, float]:
        # Memory first, since profiling allocates some.
        peak = (
            torch.cuda.max_memory_allocated(device)
            if device.type == "cuda"
            else resident_bytes()[1] - before
        )
        launches = _launches(device, step)
        return {"first_step_s": first_step_s, "peak_memory_bytes": peak, **launches}

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
    return above is not None and (above.name.startswith("aten::") or _called_by_operator(above))


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
