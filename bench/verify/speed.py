"""Images/s on a GPU, held against half of what the planner expects of it."""

import time
from collections.abc import Callable
from dataclasses import replace

import torch

from bench.micro.data import MEAN, STD, random_split
from bench.micro.footprint import synchronize
from bench.micro.step import make_step, training_loop
from bench.net_cost import resnet9
from bench.planner.command import modelled
from bench.planner.hardware import by_device_name
from bench.planner.model import epoch_s
from bench.planner.workload import workload_of
from bench.records.paper import load_paper
from bench.verify.check import Check, Form
from swap_fast.config.execution import Execution, default_execution
from swap_fast.recipes.cifar10 import cifar10_swap
from swap_fast.training.capture import Captures

SHARE = 0.5
"""Of the planner's images/s, which are those of a program as efficient as the paper's."""


def planned(name: str) -> tuple[float, float]:
    """The planner's images/s of a device that trains batches of 512: in steps, and in epochs.

    Arguments:
        name: the planner's, of the device.
    """
    paper = load_paper()
    speed = modelled(name, None, paper)
    # Phase 2's, a device a model; a device's share of phase 1's batch is as large.
    phase = workload_of(cifar10_swap(), paper).last_phase
    step_s = speed.micro_batch_s(phase) + speed.update_s(phase)
    images = phase.steps_per_epoch * phase.global_batch_size
    return phase.global_batch_size / step_s, images / epoch_s(phase, speed, 1)


def speed(form: Form) -> str:
    """Images/s of the step alone, and of whole epochs; eager, captured, and compiled as well."""
    cuda = form.device_type == "cuda"
    width, batch_size, images, least_s = (8, 32, 128, 0.1) if form.small else (64, 512, 50_000, 2.0)
    device, best = torch.device(form.device_type), default_execution(form.device_type)
    kind = by_device_name(torch.cuda.get_device_name()) if cuda and not form.small else None
    ways = {"eager": replace(best, capture=False)}
    if best.capture:
        ways["captured"] = best
    if best.capture and not form.small:
        ways["captured and compiled"] = replace(best, compile=True)
    flop, seen, slow = resnet9(width, 10).train_flop, [], []
    for way, execution in ways.items():
        steps = _step_rate(execution, width, batch_size, least_s)
        text = f"{way} {steps:,.0f} images/s in steps ({steps * flop / 1e12:.3g} TFLOP/s)"
        rates = [steps]
        if way != "eager" or not cuda:
            loop = training_loop(execution, width, batch_size, random_split(images), MEAN, STD)
            rates.append(_rate(loop, device, least_s))
            text += f", {rates[1]:,.0f} in epochs"
        seen.append(text)
        if kind is not None and way != "eager":
            slow += too_slow(kind, way, *rates)
    assert not slow, "; ".join(slow)
    if kind is None:
        judged = "not judged: the planner does not know this device, or not at this size"
    else:
        expected = " and ".join(f"{rate:,.0f}" for rate in planned(kind))
        judged = f"the planner expects {expected} of {kind}"
    return f"width {width}, batch {batch_size}: {'; '.join(seen)}; {judged}"


def too_slow(kind: str, way: str, steps: float, epochs: float) -> list[str]:
    """What of a device's images/s is below the share of the planner's; a line each."""
    rates = {"steps": steps, "epochs": epochs}
    return [
        f"{way}: {rate:,.0f} images/s in {what}, expected {SHARE * expected:,.0f} or more"
        for (what, rate), expected in zip(rates.items(), planned(kind), strict=True)
        if rate < SHARE * expected
    ]


def _step_rate(execution: Execution, width: int, batch_size: int, least_s: float) -> float:
    """Images/s of the step on one batch again and again."""
    device = torch.device(execution.device_type)
    step, _ = make_step(execution, width, batch_size)
    turn = 20 if device.type == "cuda" else 1

    def work() -> int:
        for _ in range(turn):
            step()
        synchronize(device)  # so that the clock is of work done, and no queue grows
        return turn * batch_size

    with Captures() as captures:
        step.warm_up(captures=captures)
        step.images.normal_()
        step.labels.zero_()
        step.set_learning_rate(0.0)
        return _rate(work, device, least_s)


def _rate(work: Callable[[], int], device: torch.device, least_s: float) -> float:
    """Images/s over at least so long, after one call that does not count."""
    work()
    synchronize(device)
    started, images = time.perf_counter(), 0
    while time.perf_counter() - started < least_s:
        images += work()
    return images / (time.perf_counter() - started)


SPEED_CHECKS = (
    Check(
        name="speed",
        claim="steps and epochs reach half the images/s that the planner expects of the device",
        confirm=speed,
        limit_s=240,
    ),
)
