"""The machine at hand, measured briefly: its peaks, and the steps of a recipe's phases."""

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from bench.hardware.machine import available_cores, choose_device, describe_machine
from bench.micro.interleave import Work
from bench.micro.peak import COPIED_BYTES, MATRIX_SIZE, matrix_product, memory_copy, synchronize
from bench.planner.model import FLOOR, Efficiency, Hardware
from bench.planner.workload import NUM_CLASSES, PhaseWork
from swap_fast.config.execution import DTYPES, Execution, default_execution
from swap_fast.config.phase import Optimizer, Phase
from swap_fast.config.recipe import AveragingRecipe, Recipe
from swap_fast.distributed import ALONE
from swap_fast.models import ResNet9
from swap_fast.training.batchnorm import recompute_statistics_
from swap_fast.training.capture import keep_freed_memory
from swap_fast.training.optimizer import MomentumSGD
from swap_fast.training.step import Step
from swap_fast.training.weights import Weights

LEAST_S = 0.5
"""How long each thing is measured."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One device of this machine, by its own steps: what a step costs on it is in them."""

    hardware: Hardware
    """Its measured peaks."""
    micro_batches_s: Mapping[int, float]
    """Seconds of one update, by the images in it."""
    pass_s: float
    """Seconds an image of the batch-norm pass."""
    efficiency: Efficiency = FLOOR
    """Nothing is left to be added."""

    def micro_batch_s(self, phase: PhaseWork) -> float:
        """Forward and backward of one micro-batch, with the update."""
        return self.micro_batches_s[phase.micro_batch_size]

    def update_s(self, phase: PhaseWork) -> float:
        """Nothing: it is in the micro-batch's."""
        return 0.0

    def pass_image_s(self, phase: PhaseWork) -> float:
        """An image of the pass after averaging."""
        return self.pass_s


def measure(recipe: Recipe, device: str = "auto") -> Measured:
    """Some seconds' work: peaks, one update of each phase's micro-batch, the batch-norm pass.

    Raises:
        ValueError: the device is not there.
    """
    device_type = choose_device(device)
    torch.set_num_threads(available_cores())
    torch.backends.cudnn.benchmark = True
    keep_freed_memory()
    execution, place = default_execution(device_type), torch.device(device_type)
    phases = [recipe.phase1]
    if isinstance(recipe, AveragingRecipe):
        phases.append(recipe.phase2)
    weights = Weights(
        execution.place(ResNet9(NUM_CLASSES[recipe.dataset], recipe.width), place),
    )
    sizes = {phase.micro_batch_size for phase in phases}
    return Measured(
        hardware=_hardware(place, execution),
        micro_batches_s={size: _update_s(weights, size, execution) for size in sorted(sizes)},
        pass_s=_pass_image_s(weights, phases[-1].micro_batch_size, execution),
    )


def _update_s(weights: Weights, micro_batch_size: int, execution: Execution) -> float:
    optimizer = MomentumSGD(weights, Optimizer(), scale_gradients=execution.precision == "fp16")
    phase = Phase(global_batch_size=micro_batch_size, peak_lr=0.1, max_epochs=1)
    step = Step(weights, optimizer, phase, ALONE, execution)
    step.warm_up()
    step.images.normal_()

    def update() -> int:
        step()
        return 1

    return 1 / _per_s(update, weights.theta.device)


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


def _per_s(work: Work, device: torch.device) -> float:
    """Units a second of the fastest of several calls: other programs can only make one slower."""
    work()
    synchronize(device)
    best, spent = 0.0, 0.0
    while spent < LEAST_S:
        started = time.perf_counter()
        units = work()
        synchronize(device)
        took = time.perf_counter() - started
        best, spent = max(best, units / took), spent + took
    return best
