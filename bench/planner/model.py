"""The physical model: time from arithmetic, traffic with memory, all-reduces and a fixed cost.

Of each layer the longer of arithmetic and traffic counts, one layer after another: the floor. How
far the paper's runs were from it, and what each of their epochs cost besides, are two numbers,
fitted to the rates of the paper's CIFAR rows; with them the model says what a program as efficient
as the paper's would take on other devices. They hold for no other program.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from bench.net_cost import UPDATE_PASSES, WEIGHT_BYTES, Net
from bench.planner.hardware import Hardware
from bench.planner.workload import PhaseWork, Workload


@dataclass(frozen=True, kw_only=True)
class Efficiency:
    """How far a program is from the floor."""

    slowdown: float
    """Factor on every step."""
    epoch_s: float
    """What an epoch costs besides its steps."""


FLOOR = Efficiency(slowdown=1.0, epoch_s=0.0)
"""No program is faster without fusing layers."""


class Speed(Protocol):
    """How fast one device is, and how several are joined."""

    @property
    def hardware(self) -> Hardware:
        """Gives the links between devices."""

    @property
    def efficiency(self) -> Efficiency:
        """Of communication, and the fixed cost of an epoch."""

    def micro_batch_s(self, phase: PhaseWork) -> float:
        """Forward and backward of one micro-batch."""

    def update_s(self, phase: PhaseWork) -> float:
        """From the gradient to new weights."""

    def pass_image_s(self, phase: PhaseWork) -> float:
        """An image of the pass after averaging."""


@dataclass(frozen=True, kw_only=True)
class Modelled:
    """A device by its maker's figures."""

    hardware: Hardware
    """Which."""
    efficiency: Efficiency
    """Of the program."""

    def micro_batch_s(self, phase: PhaseWork) -> float:
        """Forward and backward of one micro-batch."""
        image_s = layers_s(phase.net, self.hardware)
        return self.efficiency.slowdown * phase.micro_batch_size * image_s

    def update_s(self, phase: PhaseWork) -> float:
        """From the gradient to new weights."""
        moved = UPDATE_PASSES * phase.net.parameters * WEIGHT_BYTES
        return self.efficiency.slowdown * moved / self.hardware.memory_bytes_s

    def pass_image_s(self, phase: PhaseWork) -> float:
        """An image of the pass after averaging."""
        return self.efficiency.slowdown * layers_s(phase.net, self.hardware, forward_only=True)


def layers_s(net: Net, hardware: Hardware, *, forward_only: bool = False) -> float:
    """The floor of an image: of each layer, arithmetic or traffic, whichever takes longer."""
    total = 0.0
    for layer in net.layers:
        passes = [(layer.forward_flop, layer.forward_values)]
        if not forward_only:
            passes.append((layer.backward_flop, layer.backward_values))
        for flop, values in passes:
            traffic_s = values * hardware.activation_bytes / hardware.memory_bytes_s
            total += max(flop / hardware.matrix_flop_s, traffic_s)
    return total


def all_reduce_bytes(num_bytes: float, gpus: int) -> float:
    """What each device sends for a ring all-reduce."""
    return 2 * (gpus - 1) / gpus * num_bytes


def all_reduce_s(num_bytes: float, gpus: int, hardware: Hardware) -> float:
    """A ring within each node, and a ring of nodes in which every device has its share."""
    if gpus == 1:
        return 0.0
    inside = min(gpus, hardware.gpus_per_node)
    nodes = math.ceil(gpus / hardware.gpus_per_node)
    seconds = all_reduce_bytes(num_bytes, inside) / hardware.link_bytes_s
    if nodes > 1:
        seconds += all_reduce_bytes(num_bytes, nodes) / hardware.network_bytes_s
    # Trees need twice the logarithm of hops where rings need as many as there are devices.
    return seconds + 2 * math.ceil(math.log2(gpus)) * hardware.hop_s


def turns(slots: int, gpus: int) -> int:
    """How often a device's turn comes where there are fewer devices than slots."""
    return math.ceil(slots / gpus)


def epoch_s(phase: PhaseWork, speed: Speed, gpus: int) -> float:
    """Seconds an epoch of a phase on so many devices, of all its models.

    With fewer devices than a model has slots, each takes several micro-batches in turn; with fewer
    than all models together, models take turns.
    """
    together = min(gpus, phase.gpus_per_model)
    at_once = max(1, min(gpus // phase.gpus_per_model, phase.num_models))
    gradient_bytes = phase.net.parameters * WEIGHT_BYTES
    step_s = (
        turns(phase.gpus_per_model, together) * speed.micro_batch_s(phase)
        + speed.update_s(phase)
        + speed.efficiency.slowdown * all_reduce_s(gradient_bytes, together, speed.hardware)
    )
    one_model_s = phase.steps_per_epoch * step_s + speed.efficiency.epoch_s
    return turns(phase.num_models, at_once) * one_model_s


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Seconds of a run."""

    phases_s: tuple[float, ...]
    """Of each phase."""
    averaging_s: float
    """Of averaging, and the pass over the training data shared out among the devices."""

    @property
    def total_s(self) -> float:
        """The whole."""
        return sum(self.phases_s) + self.averaging_s


def estimate(work: Workload, speed: Speed, gpus: int) -> Estimate:
    """The time of a run on so many devices."""
    phases_s = tuple(phase.epochs * epoch_s(phase, speed, gpus) for phase in work.phases)
    averaging_s = 0.0
    if work.averages:
        last, used = work.last_phase, min(gpus, work.slots)
        weights_bytes = last.net.parameters * WEIGHT_BYTES
        averaging_s = last.images / used * speed.pass_image_s(last)
        averaging_s += all_reduce_s(weights_bytes, used, speed.hardware)
    return Estimate(phases_s=phases_s, averaging_s=averaging_s)


def fit(settings: Sequence[tuple[PhaseWork, int, float]], hardware: Hardware) -> Efficiency:
    """The slowdown and the fixed cost whose relative errors have the smallest sum of squares.

    Arguments:
        settings: (phase, devices, measured seconds an epoch), two or more.

    Raises:
        ValueError: the settings allow no such fit.
    """
    floor = Modelled(hardware=hardware, efficiency=FLOOR)
    a11 = a12 = a22 = b1 = b2 = 0.0
    for phase, gpus, measured_s in settings:
        steps, one = epoch_s(phase, floor, gpus) / measured_s, 1 / measured_s
        a11, a12, a22 = a11 + steps * steps, a12 + steps * one, a22 + one * one
        b1, b2 = b1 + steps, b2 + one
    determinant = a11 * a22 - a12 * a12
    if determinant <= 0:
        raise ValueError(f"fit: expected two settings or more that differ, got {len(settings)}")
    return Efficiency(
        slowdown=(b1 * a22 - b2 * a12) / determinant, epoch_s=(a11 * b2 - a12 * b1) / determinant
    )


def memory_bytes(work: Workload, hardware: Hardware) -> float:
    """What a device must hold at the most, without the driver's own and the libraries' buffers.

    Weights, gradients, velocity, and the copies of the first and last that phase 1 leaves to
    phase 2; the activations that one micro-batch keeps; the data set.
    """
    copies = 3 + 2 * (len(work.phases) > 1)
    parameters = max(phase.net.parameters for phase in work.phases)
    activations = max(
        phase.micro_batch_size * phase.net.saved_bytes(hardware.activation_bytes)
        for phase in work.phases
    )
    return copies * WEIGHT_BYTES * parameters + activations + work.resident_bytes


def sent_bytes(work: Workload, gpus: int) -> float:
    """What each device sends in all: phases whose models have several devices, and averaging."""
    total = 0.0
    for phase in work.phases:
        together = min(gpus, phase.gpus_per_model)
        gradient_bytes = phase.net.parameters * WEIGHT_BYTES
        total += phase.steps * all_reduce_bytes(gradient_bytes, together)
    if work.averages:
        used = min(gpus, work.last_phase.slots)
        total += all_reduce_bytes(work.last_phase.net.parameters * WEIGHT_BYTES, used)
    return total
