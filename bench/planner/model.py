"""The planner's two models, of the time of a recipe: the paper's own rates, and a physical model.

The physical model takes for each layer the longer of arithmetic and memory traffic; their sum is
the floor. Two more numbers, a factor on each step and a fixed cost of each epoch, are fitted to the
rates of the paper's CIFAR rows. With these the model predicts a program with the paper's efficiency
on other devices; another program has other numbers.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from bench.net_cost import UPDATE_PASSES, WEIGHT_BYTES, Layer, Net
from bench.planner.workload import PhaseWork, Workload, workload_of
from bench.records.paper import Paper
from swap_fast.recipes.cifar10 import RECIPES

# Devices, with their makers' figures.


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """One kind of device, and the links between several."""

    name: str
    matrix_flop_s: float
    """Peak of dense matrix work in the training type, operations a second."""
    memory_bytes_s: float
    memory_bytes: float
    link_bytes_s: float
    """To the other devices of its node, one way."""
    network_bytes_s: float
    """Of a whole node to other nodes, one way."""
    gpus_per_node: int = 8
    activation_bytes: int = 2
    """Of one activation: fp16 on GPUs."""
    hop_s: float = 1e-5
    """Time of each step of an all-reduce, whatever its size: our assumption."""


HARDWARE = {
    "v100": Hardware(
        name="V100 SXM2 (NVLink 2, 4 x 100 Gb/s a node)",
        matrix_flop_s=125e12,
        memory_bytes_s=900e9,
        memory_bytes=16e9,
        link_bytes_s=150e9,
        network_bytes_s=50e9,
    ),
    "a100": Hardware(
        name="A100 SXM 80 GB (NVLink 3, 8 x 200 Gb/s a node)",
        matrix_flop_s=312e12,
        memory_bytes_s=2.039e12,
        memory_bytes=80e9,
        link_bytes_s=300e9,
        network_bytes_s=200e9,
    ),
    "h100": Hardware(
        name="H100 SXM (NVLink 4, 8 x 400 Gb/s a node)",
        matrix_flop_s=989e12,
        memory_bytes_s=3.35e12,
        memory_bytes=80e9,
        link_bytes_s=450e9,
        network_bytes_s=400e9,
    ),
}
"""By the name on the command line: NVIDIA's data sheets, and the networks of its DGX-1, DGX A100
and DGX H100."""
V100 = HARDWARE["v100"]

DEVICE_NAMES = {"V100-SXM": "v100", "A100-SXM": "a100", "H100 80GB HBM3": "h100"}
"""A part of the driver's name of a device. The PCIe cards of these devices are slower."""


def by_device_name(name: str) -> str | None:
    """The key in `HARDWARE` for a driver's name; None: unknown, or a slice of a device."""
    found = [key for part, key in DEVICE_NAMES.items() if part in name and "MIG" not in name]
    return found[0] if found else None


# The rate model: seconds an epoch, from seven rows of the paper (Table 1 rows 1 to 3, Table 2 rows
# 1 and 2, Table 3 rows 1 and 2). Each gives the seconds of an epoch at one batch size and number of
# V100. CIFAR-10 and CIFAR-100 share their rates: they have as many images of the same size, and the
# nets differ only in the last layer.

PASS_SHARE = 1 / 3
"""Of an epoch's time: the pass after averaging has no backward, which costs twice the forward."""


@dataclass(frozen=True, kw_only=True)
class Rate:
    """Seconds an epoch of one setting on the paper's machine."""

    source: str
    """The paper's row."""
    images: int
    """Training images: CIFAR's or ImageNet's."""
    gpus: int
    """V100 that train the model."""
    global_batch_size: int | None
    """None for ImageNet: the mean epoch of all stages."""
    seconds: float


def read_rates(paper: Paper) -> list[Rate]:
    """The seven rates."""
    rates = [
        _sgd_rate(paper, table, row, recipe)
        for table, row, recipe in (
            ("Table 1", "SGD (small-batch)", "cifar10_sgd_small"),
            ("Table 1", "SGD (large-batch)", "cifar10_sgd_large"),
            ("Table 2", "SGD (small-batch)", "cifar100_sgd_small"),
            ("Table 2", "SGD (large-batch)", "cifar100_sgd_large"),
            ("Table 3", "SGD (small-batch)", "imagenet_sgd_small"),
            ("Table 3", "SGD (large-batch)", "imagenet_sgd_large"),
        )
    ]
    phase1, phase2 = workload_of(RECIPES["cifar10_swap"](), paper).phases
    whole_s = paper.time_s("Table 1", "SWAP (before averaging)")
    phase2_s = whole_s - phase1.epochs * phase_rate(rates, phase1)
    return [
        *rates,
        Rate(
            source="Table 1, SWAP (before averaging), less phase 1",
            images=phase2.images,
            gpus=phase2.gpus_per_model,
            global_batch_size=phase2.global_batch_size,
            seconds=phase2_s / phase2.epochs,
        ),
    ]


def phase_rate(rates: list[Rate], phase: PhaseWork) -> float:
    """Seconds an epoch of a phase on the paper's machine.

    The rate of the row with the same devices and batch; between two rows with the same devices,
    interpolated linearly in the steps an epoch.

    Raises:
        ValueError: no row has as many devices, or the batch is outside of their range.
    """
    here = [r for r in rates if (r.images, r.gpus) == (phase.images, phase.gpus_per_model)]
    same = {1 / (rate.global_batch_size or phase.global_batch_size): rate.seconds for rate in here}
    at = 1 / phase.global_batch_size
    below, above = (
        max((x for x in same if x <= at), default=0),
        min((x for x in same if x >= at), default=0),
    )
    if not below or not above:
        raise ValueError(
            f"{phase.name}: expected a setting of the paper, got a batch of "
            f"{phase.global_batch_size} on {phase.gpus_per_model} GPUs a model"
        )
    if below == above:
        return same[below]
    part = (at - below) / (above - below)
    return same[below] + part * (same[above] - same[below])


@dataclass(frozen=True, kw_only=True)
class RunTime:
    """A model's time of a run."""

    phases_s: tuple[float, ...]
    """Of each phase, its models in parallel where there are devices for that."""
    averaging_s: float
    """Of averaging, and of the pass over the training data after it."""

    @property
    def before_s(self) -> float:
        """Before averaging."""
        return sum(self.phases_s)

    @property
    def total_s(self) -> float:
        """After averaging: the whole run."""
        return self.before_s + self.averaging_s


def predict(rates: list[Rate], work: Workload) -> RunTime:
    """The rate model's time of a recipe on the paper's machine; averaging alone is taken as 0.

    Raises:
        ValueError: the paper has no rate for a phase.
    """
    seconds = [phase_rate(rates, phase) for phase in work.phases]
    phases_s = tuple(s * phase.epochs for s, phase in zip(seconds, work.phases, strict=True))
    return RunTime(phases_s=phases_s, averaging_s=work.averages * PASS_SHARE * seconds[-1])


def _sgd_rate(paper: Paper, table: str, row: str, recipe: str) -> Rate:
    phases = workload_of(RECIPES[recipe](), paper).phases
    return Rate(
        source=f"{table}, {row}",
        images=phases[0].images,
        gpus=phases[0].gpus_per_model,
        global_batch_size=phases[0].global_batch_size if len(phases) == 1 else None,
        seconds=paper.time_s(table, row) / sum(phase.epochs for phase in phases),
    )


# The physical model.


@dataclass(frozen=True, kw_only=True)
class Efficiency:
    """A program's time against the floor."""

    slowdown: float
    """Factor on every step."""
    epoch_s: float
    """Time of an epoch in addition to its steps."""


FLOOR = Efficiency(slowdown=1.0, epoch_s=0.0)
"""No program is faster without fusing layers."""


class Speed(Protocol):
    """The speed of one device, and the links between several."""

    @property
    def hardware(self) -> Hardware: ...

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
    """The speed of a device by its maker's figures."""

    hardware: Hardware
    efficiency: Efficiency
    """Of the program."""

    def micro_batch_s(self, phase: PhaseWork) -> float:
        image_s = layers_s(phase.net, self.hardware)
        return self.efficiency.slowdown * phase.micro_batch_size * image_s

    def update_s(self, phase: PhaseWork) -> float:
        moved = UPDATE_PASSES * phase.net.parameters * WEIGHT_BYTES
        return self.efficiency.slowdown * moved / self.hardware.memory_bytes_s

    def pass_image_s(self, phase: PhaseWork) -> float:
        return self.efficiency.slowdown * layers_s(phase.net, self.hardware, forward_only=True)


def layers_s(net: Net, hardware: Hardware, *, forward_only: bool = False) -> float:
    """The floor of an image: the longer of arithmetic and memory traffic of each layer, summed."""
    size = hardware.activation_bytes
    total = sum(
        _pass_s(each.forward_flop, each.forward_bytes(size), hardware) for each in net.layers
    )
    if not forward_only:
        total += sum(backward_s(layer, hardware) for layer in net.layers)
    return total


def backward_s(layer: Layer, hardware: Hardware) -> float:
    """The floor of a layer's backward pass for an image."""
    moved = layer.backward_bytes(hardware.activation_bytes)
    return _pass_s(layer.backward_flop, moved, hardware)


def _pass_s(flop: float, moved_bytes: float, hardware: Hardware) -> float:
    return max(flop / hardware.matrix_flop_s, moved_bytes / hardware.memory_bytes_s)


def all_reduce_bytes(num_bytes: float, gpus: int) -> float:
    """Bytes that each device sends in a ring all-reduce."""
    return 2 * (gpus - 1) / gpus * num_bytes


def all_reduce_s(num_bytes: float, gpus: int, hardware: Hardware) -> float:
    """A ring within each node, then a ring of nodes for each device's part."""
    if gpus == 1:
        return 0.0
    inside = min(gpus, hardware.gpus_per_node)
    nodes = math.ceil(gpus / hardware.gpus_per_node)
    seconds = all_reduce_bytes(num_bytes, inside) / hardware.link_bytes_s
    if nodes > 1:
        seconds += all_reduce_bytes(num_bytes, nodes) / hardware.network_bytes_s
    # The hops are those of a tree, twice the logarithm; a ring has one for each device.
    return seconds + 2 * math.ceil(math.log2(gpus)) * hardware.hop_s


def epoch_s(phase: PhaseWork, speed: Speed, gpus: int) -> float:
    """Seconds an epoch of all models of a phase on that many devices.

    With fewer devices than a model has replicas, each takes several micro-batches in turn; with
    fewer than all models need, models take turns.
    """
    together = min(gpus, phase.gpus_per_model)
    at_once = max(1, min(gpus // phase.gpus_per_model, phase.num_models))
    gradient_bytes = phase.net.parameters * WEIGHT_BYTES
    step_s = (
        math.ceil(phase.gpus_per_model / together) * speed.micro_batch_s(phase)
        + speed.update_s(phase)
        + speed.efficiency.slowdown * all_reduce_s(gradient_bytes, together, speed.hardware)
    )
    one_model_s = phase.steps_per_epoch * step_s + speed.efficiency.epoch_s
    return math.ceil(phase.num_models / at_once) * one_model_s


def estimate(work: Workload, speed: Speed, gpus: int) -> RunTime:
    """The physical model's time of a run on that many devices; they share the pass among them."""
    phases_s = tuple(phase.epochs * epoch_s(phase, speed, gpus) for phase in work.phases)
    averaging_s = 0.0
    if work.averages:
        last, used = work.last_phase, min(gpus, work.replicas)
        weights_bytes = last.net.parameters * WEIGHT_BYTES
        averaging_s = last.images / used * speed.pass_image_s(last)
        averaging_s += all_reduce_s(weights_bytes, used, speed.hardware)
    return RunTime(phases_s=phases_s, averaging_s=averaging_s)


def fit(settings: Sequence[tuple[PhaseWork, int, float]], hardware: Hardware) -> Efficiency:
    """The slowdown and the fixed cost whose relative errors have the smallest sum of squares.

    Arguments:
        settings: (phase, devices, measured seconds an epoch), two or more.

    Raises:
        ValueError: the settings allow no such fit.
    """
    floor = Modelled(hardware=hardware, efficiency=FLOOR)
    # In units of the measured time: slowdown * steps + epoch_s * 1 is to be 1.
    shares = [
        (epoch_s(phase, floor, gpus) / measured_s, 1 / measured_s)
        for phase, gpus, measured_s in settings
    ]
    (slowdown, fixed_s), _, rank, _ = np.linalg.lstsq(np.array(shares), np.ones(len(shares)))
    if rank < 2:
        raise ValueError(f"fit: expected two settings or more that differ, got {len(settings)}")
    return Efficiency(slowdown=float(slowdown), epoch_s=float(fixed_s))


def memory_bytes(work: Workload, hardware: Hardware) -> float:
    """A device's largest memory, without the driver's and the libraries' buffers.

    Weights, gradients, velocity; the copies of weights and velocity that phase 1 leaves to phase 2;
    the activations that one micro-batch keeps; the data set.
    """
    copies = 3 + 2 * (len(work.phases) > 1)
    parameters = max(phase.net.parameters for phase in work.phases)
    activations = max(
        phase.micro_batch_size * phase.net.saved_bytes(hardware.activation_bytes)
        for phase in work.phases
    )
    return copies * WEIGHT_BYTES * parameters + activations + work.resident_bytes


def sent_bytes(work: Workload, gpus: int) -> float:
    """Bytes that each device sends: in phases with several devices a model, and in averaging."""
    total = 0.0
    for phase in work.phases:
        together = min(gpus, phase.gpus_per_model)
        gradient_bytes = phase.net.parameters * WEIGHT_BYTES
        total += phase.steps * all_reduce_bytes(gradient_bytes, together)
    if work.averages:
        used = min(gpus, work.last_phase.replicas)
        total += all_reduce_bytes(work.last_phase.net.parameters * WEIGHT_BYTES, used)
    return total
