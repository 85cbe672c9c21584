"""What a step takes beside its time: its first update, its memory, its launches."""

import os
import time
from collections.abc import Callable, Iterable
from itertools import repeat
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from bench.hardware.machine import resident_bytes
from bench.micro.interleave import Observed

STEPS = 4  # updates a turn

_HOST_LAUNCHES = (
    *("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx"),
    "cudaGraphLaunch",
)
"""Calls of the driver that start a kernel, or a graph of them."""


def observe(
    device: torch.device,
    make: Callable[[], Callable[[], None]],
    images: int,
    *,
    prepare: Callable[[], None] = lambda: None,
    steps: int = STEPS,
) -> Observed:
    """Make a step, time its first update, and return the work of several.

    Arguments:
        make: makes the step.
        images: that one update takes.
        prepare: what the step does before its first update in a real run; timed with it.
        steps: updates a turn.
    """
    before = resident_bytes()[0]
    step = make()
    synchronize(device)
    started = time.perf_counter()
    prepare()
    step()
    synchronize(device)
    first_step_s = time.perf_counter() - started

    def portion() -> int:
        for _ in repeat(None, steps):
            step()
        synchronize(device)
        return steps * images

    def facts() -> dict[str, float]:
        # Memory first: a profile takes some of its own.
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

    portion()
    return Observed(work=portion, facts=facts)


def synchronize(device: torch.device) -> None:
    """Wait for the device, so that a clock read next has seen its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def count_launches(events: Iterable[tuple[str, bool, bool]], device_type: str) -> dict[str, float]:
    """What a profile of one step started.

    Arguments:
        events: (name, whether it ran on a CUDA device, whether no operator of torch called it).

    Returns:
        On CUDA `kernels`, those that ran, and `host_launches`, the calls that started them (a
        graph is one); on a CPU `operators`, those of torch that no other called. A compiled way's
        own fused loops are no operators of torch, and not among them.
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
    # Where there is no CUDA device, the profiler would print an error that is none.
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
    """Whether one of torch's operators stands above an event of the profile."""
    above = event.cpu_parent
    while above is not None:
        if above.name.startswith("aten::"):
            return True
        above = above.cpu_parent
    return False
