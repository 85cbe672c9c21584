"""Measures this machine in a few seconds: its peak, and the steps of a recipe's phases."""

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from bench.hardware.machine import available_cores, describe_machine
from bench.micro.interleave import Turn
from bench.micro.peak import COPIED_BYTES, MATRIX_SIZE, matrix_product, memory_copy, synchronize
from bench.micro.step import make_net, make_step
from bench.options import MicroNet
from bench.planner.model import FLOOR, Efficiency, Hardware
from bench.planner.workload import NUM_CLASSES, PhaseWork
from swap_fast.choices import choose_device
from swap_fast.config.execution import DTYPES, Execution, default_execution
from swap_fast.config.recipe import AveragingRecipe, Recipe
from swap_fast.host_memory import keep_freed_memory
from swap_fast.training.batchnorm import recompute_statistics_
from swap_fast.training.weights import Weights

LEAST_S = 0.5
"""Least time of each measurement."""


@dataclass(frozen=True, kw_only=True)
class MeasuredSpeed:
    """The speed of one device of this machine, by measured steps."""

    hardware: Hardware
    """With the measured peak."""
    micro_batches_s: Mapping[int, float]
    """Seconds of one step with its update, by the images in it."""
    pass_s: float
    """Seconds an image of the batch-norm pass."""
    efficiency: Efficiency = FLOOR
    """The measured steps have it already."""

    def micro_batch_s(self, phase: PhaseWork) -> float:
        return self.micro_batches_s[phase.micro_batch_size]

    def update_s(self, phase: PhaseWork) -> float:
        return 0.0  # in the micro-batch's time

    def pass_image_s(self, phase: PhaseWork) -> float:
        return self.pass_s


def measure(recipe: Recipe, device: str = "auto") -> MeasuredSpeed:
    """Time the device's peak, a step of each phase's micro-batch, and the batch-norm pass.

    Raises:
        ValueError: there is no such device.
    """
    device_type = choose_device(device)
    torch.set_num_threads(available_cores())
    torch.backends.cudnn.benchmark = True
    keep_freed_memory()
    execution, place = default_execution(device_type), torch.device(device_type)
    phases = [recipe.phase1]
    if isinstance(recipe, AveragingRecipe):
        phases.append(recipe.phase2)
    num_classes = NUM_CLASSES[recipe.dataset]
    net: MicroNet = "speed_net" if recipe.net == "speed_net" else "resnet9"
    weights = Weights(execution.place(make_net(net, recipe.width, num_classes), place))
    sizes = sorted({phase.micro_batch_size for phase in phases})
    return MeasuredSpeed(
        hardware=_hardware(place, execution),
        micro_batches_s={
            size: _update_s(execution, recipe.width, size, num_classes, net) for size in sizes
        },
        pass_s=_pass_image_s(weights, phases[-1].micro_batch_size, execution),
    )


def _update_s(
    execution: Execution, width: int, batch_size: int, num_classes: int, net: MicroNet
) -> float:
    step, _ = make_step(execution, width, batch_size, num_classes=num_classes, net=net)
    step.warm_up()
    step.images.normal_()

    def update() -> int:
        step()
        return 1

    return 1 / _per_s(update, torch.device(execution.device_type))


def _pass_image_s(weights: Weights, batch_size: int, execution: Execution) -> float:
    device = weights.theta.device
    images = execution.empty_images((batch_size, 3, 32, 32), device).normal_()

    def one_pass() -> int:
        recompute_statistics_(weights, [images], autocast=execution.autocast)
        return batch_size

    return 1 / _per_s(one_pass, device)


def _hardware(device: torch.device, execution: Execution) -> Hardware:
    product = matrix_product(device.type, execution.precision, MATRIX_SIZE[device.type])
    matrix_flop_s = _per_s(product, device)
    copied_bytes = COPIED_BYTES[device.type]
    memory_bytes_s = _per_s(memory_copy(device.type, copied_bytes), device)
    link_bytes_s = memory_bytes_s / 2  # a copy reads and writes each byte
    others = torch.cuda.device_count() if device.type == "cuda" else 1
    if others > 1:
        near = torch.ones(copied_bytes // 4, device=device)
        far = near.to("cuda:1")

        def send() -> int:
            far.copy_(near)
            return copied_bytes

        link_bytes_s = _per_s(send, device)
    memory_bytes = (
        torch.cuda.get_device_properties(device).total_memory
        if device.type == "cuda"
        else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    )
    model = describe_machine(execution.device_type)["device"]
    return Hardware(
        name=f"this machine: {model}, {execution.precision}",
        matrix_flop_s=matrix_flop_s,
        memory_bytes_s=memory_bytes_s,
        memory_bytes=memory_bytes,
        link_bytes_s=link_bytes_s,
        network_bytes_s=link_bytes_s,
        gpus_per_node=others,
        activation_bytes=DTYPES[execution.precision].itemsize,
    )


def _per_s(turn: Turn, device: torch.device) -> float:
    """Units a second of the fastest of several calls: other programs only make a call slower."""
    turn()
    synchronize(device)
    best, spent = 0.0, 0.0
    while spent < LEAST_S:
        started = time.perf_counter()
        units = turn()
        synchronize(device)
        took = time.perf_counter() - started
        best, spent = max(best, units / took), spent + took
    return best
