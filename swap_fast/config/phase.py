"""A phase, its schedule, its optimizer and its augmentation: frozen, typed, checked."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Annotated, Literal

from tyro.conf import Suppress

from swap_fast.config.checks import check, typed, typed_fields, whole

Schedule = Callable[[float], float]
"""Learning rate as a pure function of the position in epochs."""


def piecewise_linear(knots: Sequence[tuple[float, float]]) -> Schedule:
    """A schedule that joins (epoch, learning rate) knots by straight lines.

    It is constant before the first knot and after the last one. Steps are counted from 1: step i of
    an epoch of n steps has the position `epoch + i / n`, and the last step of a schedule that ends
    in 0 has the learning rate 0.

    Raises:
        ValueError: no knot, or epochs that do not rise.
    """
    if not knots:
        raise ValueError("a schedule needs at least one (epoch, learning rate) knot, got none")
    for (before, _), (after, _) in pairwise(knots):
        if not before < after:
            raise ValueError(f"a schedule's epochs must rise, got {before:g} before {after:g}")

    def learning_rate(epoch: float) -> float:
        if epoch <= knots[0][0]:
            return knots[0][1]
        for (x0, y0), (x1, y1) in pairwise(knots):
            if epoch <= x1:
                t = (epoch - x0) / (x1 - x0)
                return (1 - t) * y0 + t * y1  # exact at a knot
        return knots[-1][1]

    return learning_rate


def triangle(
    peak_lr: float, warmup_epochs: float, horizon_epochs: float, final_lr: float = 0.0
) -> Schedule:
    """Up from 0 over the warm-up, then down to `final_lr` at the horizon (Tables 5 and 6).

    Without warm-up it starts at the peak, as in phase 2.
    """
    rise = [(0.0, 0.0)] if warmup_epochs > 0 else []
    return piecewise_linear([*rise, (warmup_epochs, peak_lr), (horizon_epochs, final_lr)])


def cyclic(peak_lr: float, cycle_epochs: float, final_lr: float = 0.0) -> Schedule:
    """In each cycle from the peak down to `final_lr`: SWA's schedule (Figure 6).

    Izmailov et al.'s a(i) = (1 - t) a1 + t a2 with t = (mod(i - 1, c) + 1) / c, for steps i from
    1 and cycles of c steps: the last step of a cycle, after which a model is sampled, has
    `final_lr`, and the next step is close to the peak again.
    """

    def learning_rate(epoch: float) -> float:
        cycles = epoch / cycle_epochs
        t = cycles - max(math.ceil(cycles) - 1, 0)
        return (1 - t) * peak_lr + t * final_lr

    return learning_rate


def pieces(parts: Sequence[tuple[float, float, float]]) -> Schedule:
    """Straight pieces, one after another, that need not meet (Figure 5).

    Arguments:
        parts: the length of each piece in epochs, and its learning rate at both ends. A position
            between two pieces belongs to the first: an epoch's last update ends its piece.
    """
    parts = tuple(parts)

    def learning_rate(epoch: float) -> float:
        start = 0.0
        for length, first, last in parts:
            if epoch <= start + length:
                t = (epoch - start) / length
                return (1 - t) * first + t * last
            start += length
        return parts[-1][2]

    return learning_rate


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One phase of training: its batch size, learning-rate schedule and end."""

    global_batch_size: int
    """Images in one update of one model (Tables 5 and 6, "Batch-size")."""
    peak_lr: float
    """The schedule's highest learning rate ("Learning-rate Peak")."""
    max_epochs: int
    """Epochs after which the phase ends in any case ("Maximum Epochs")."""
    warmup_epochs: float = 0.0
    """Epochs over which the learning rate rises from 0 ("Warm-up Epochs"); 0 starts at the peak."""
    horizon_epochs: float | None = None
    """Epoch at which the learning rate reaches `final_lr`; None means `max_epochs`."""
    final_lr: float = 0.0
    """The learning rate at the horizon and after it."""
    stopping_accuracy: float | None = None
    """Train accuracy (a fraction) above which the phase ends: Algorithm 1's tau. None: never."""
    stop: Literal["accuracy", "auto"] = "accuracy"
    """What ends the phase before `max_epochs`: the accuracy above, or the gradient's noise."""
    stopping_noise_ratio: float = 2.0
    """With `stop` auto: the phase ends where an epoch's gradient noise scale is above this many
    global batches."""
    gpus_per_model: int = 1
    """Replicas that share one update, each with its slice of the batch ("GPUs used per model")."""
    cycles: int = 1
    """Times that the schedule runs from its peak to `final_lr`; a model is sampled after each."""

    def __post_init__(self) -> None:
        typed_fields(self)
        for name in ("global_batch_size", "max_epochs", "gpus_per_model", "cycles"):
            whole(name, getattr(self, name))
        check(self, "peak_lr", 0 < self.peak_lr < math.inf, "a finite number > 0")
        for name in ("warmup_epochs", "final_lr"):
            check(self, name, 0 <= getattr(self, name) < math.inf, "a finite number >= 0")
        horizon = self.max_epochs if self.horizon_epochs is None else self.horizon_epochs
        if not self.warmup_epochs < horizon < math.inf:
            raise ValueError(
                f"horizon_epochs: expected a finite number of more than the "
                f"{self.warmup_epochs:g} warm-up epochs, got {horizon!r}"
            )
        tau, auto = self.stopping_accuracy, self.stop == "auto"
        fraction = "a fraction between 0 and 1"
        check(self, "stopping_accuracy", tau is None or 0 < tau < 1, fraction)
        expected = "None with stop auto, which replaces it (--phase1.stopping-accuracy None)"
        check(self, "stopping_accuracy", tau is None or not auto, expected)
        ratio = self.stopping_noise_ratio
        check(self, "stopping_noise_ratio", 0 < ratio < math.inf, "a finite number > 0")
        expected = "2 or more where stop is auto, which compares the replicas' gradients"
        check(self, "gpus_per_model", self.gpus_per_model >= 2 or not auto, expected)
        is_multiple = self.global_batch_size % self.gpus_per_model == 0
        expected = f"a multiple of gpus_per_model = {self.gpus_per_model}"
        check(self, "global_batch_size", is_multiple, expected)
        plain = self.warmup_epochs == 0 and self.horizon_epochs is None and tau is None and not auto
        check(
            self,
            "cycles",
            self.cycles == 1 or (plain and self.max_epochs % self.cycles == 0),
            f"1, or a divisor of the {self.max_epochs} epochs of a phase without warm-up, horizon "
            "and an end of its own",
        )

    @property
    def cycle_epochs(self) -> int:
        """Epochs of one cycle of the learning rate."""
        return self.max_epochs // self.cycles

    @property
    def micro_batch_size(self) -> int:
        """Images in one replica's share of an update: B1 / W in Algorithm 1, line 11."""
        return self.global_batch_size // self.gpus_per_model

    @property
    def peak_epoch(self) -> float:
        """The epoch at which the learning rate is at its peak and begins to fall."""
        return self.warmup_epochs

    @property
    def schedule(self) -> Schedule:
        """Learning rate as a function of the position in epochs."""
        if self.cycles > 1:
            return cyclic(self.peak_lr, self.cycle_epochs, self.final_lr)
        horizon = self.max_epochs if self.horizon_epochs is None else self.horizon_epochs
        return triangle(self.peak_lr, self.warmup_epochs, horizon, self.final_lr)


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Drawn for each image in each epoch (Section 5.1, with cifar10-fast's numbers)."""

    pad: int = 4
    """Pixels of reflected border; the crop then has (2 * pad + 1)^2 places."""
    flip: Literal["random", "alternating", "none"] = "random"
    """Mirror left and right with probability 1/2; alternating: so in the first epoch, and in each
    later one the other way than in the epoch before."""
    cutout: int = 8
    """Side in pixels of the square in the image that is set to 0 after normalisation."""

    def __post_init__(self) -> None:
        typed_fields(self)
        check(self, "pad", 0 <= self.pad < 32, "0 to 31 pixels")
        check(self, "cutout", 0 <= self.cutout <= 32, "0 to 32 pixels")


GroupName = Literal["filters", "biases", "norms", "norms_and_biases", "others"]


@dataclass(frozen=True, kw_only=True)
class ParameterGroup:
    """Parameters that are updated alike."""

    lr_factor: float = 1.0
    """Of their learning rate to the phase's."""
    weight_decay: float
    """L2: added to the gradient, times the weights."""
    momentum: float
    """In torch's form: the learning rate is not in the velocity."""
    orthogonalize: bool = False
    """Whether they have Muon's update."""


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """SGD with momentum on the mean loss (Section 5.1), or Muon for the filters and SGD else."""

    kind: Literal["sgd", "muon"] = "sgd"
    """Muon takes the filters of convolutions; the peak learning rate is theirs."""
    momentum: float = 0.9
    """As in torch, without the learning rate in the velocity. With Muon the filters' momentum."""
    sgd_momentum: float | None = None
    """With Muon, the momentum of all other parameters; None: as `momentum`."""
    nesterov: bool = True
    """Nesterov's momentum, which CIFAR's recipes have and ImageNet's do not."""
    weight_decay: float = 5e-4
    """L2 on all parameters, batch norm's included; Muon's filters have none."""
    without_decay: Literal["nothing", "norms", "norms_and_biases"] = "nothing"
    """What has no weight decay: of ImageNet's nets batch norm's parameters."""
    bias_lr_factor: float = 1.0
    """Factor on the learning rate of biases, whose weight decay is divided by it; with Muon also
    of batch norm's weights."""
    head_lr_factor: float = 1.0
    """With Muon, factor on the learning rate of the head and other matrices."""
    loss_scale: float = 65536.0
    """In fp16, the first factor on the loss; it is halved where a gradient overflows."""
    loss_scale_grows: bool = True
    """Whether the loss scale doubles after 2,000 updates without an overflow."""

    def __post_init__(self) -> None:
        typed_fields(self)
        is_muon, decay, scale = self.kind == "muon", self.weight_decay, self.loss_scale
        check(self, "momentum", 0 < self.momentum < 1, "between 0 and 1")
        others = self.sgd_momentum
        check(self, "sgd_momentum", others is None or 0 < others < 1, "between 0 and 1")
        check(self, "sgd_momentum", others is None or is_muon, "None for kind sgd")
        check(self, "nesterov", self.nesterov or not is_muon, "True for kind muon")
        check(self, "weight_decay", 0 <= decay < math.inf, "a finite number >= 0")
        for name in ("bias_lr_factor", "head_lr_factor"):
            check(self, name, 0 < getattr(self, name) < math.inf, "a finite number > 0")
        fits = self.without_decay != "norms" or not is_muon
        check(self, "without_decay", fits, "nothing or norms_and_biases for kind muon")
        fits = self.without_decay == "nothing" or self.bias_lr_factor == 1
        check(self, "bias_lr_factor", fits, "1 where parameters have no weight decay")
        check(self, "head_lr_factor", self.head_lr_factor == 1 or is_muon, "1 for kind sgd")
        check(self, "loss_scale", 1 <= scale < math.inf, "a finite number of 1 or more")

    @property
    def groups(self) -> dict[GroupName, ParameterGroup]:
        """Parameters that are updated alike, in the order of their places in theta."""
        momentum = self.sgd_momentum or self.momentum

        def group(factor: float) -> ParameterGroup:
            """The decay of an update, learning rate times weight decay, is that of all others."""
            decay = self.weight_decay / factor
            return ParameterGroup(lr_factor=factor, weight_decay=decay, momentum=momentum)

        apart = group(self.bias_lr_factor)
        if self.without_decay != "nothing":
            apart = replace(apart, weight_decay=0.0)
        others = group(self.head_lr_factor)
        if self.kind == "muon":
            filters = ParameterGroup(weight_decay=0.0, momentum=self.momentum, orthogonalize=True)
            return {"filters": filters, "norms_and_biases": apart, "others": others}
        if self.without_decay != "nothing":
            return {"others": others, self.without_decay: apart}
        if self.bias_lr_factor != 1:
            return {"others": others, "biases": apart}
        return {"others": others}


# A phase in stages, each with its own image size and batch size (ImageNet).


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One row of the table of ImageNet's stages, which is also Figure 5's."""

    epochs: int
    image_size: int
    """Side of a training crop, and of a test crop, in pixels."""
    min_scale: float = 0.08
    """Least share of an image's area in a training crop."""
    global_batch_size: int
    """Images in one update of one model."""
    first_lr: float
    """The learning rate at the stage's start."""
    last_lr: float
    """At the stage's end; it is linear in the updates between."""
    rectangular_test: bool = False
    """Test on crops of each batch's mean aspect ratio instead of squares."""

    def __post_init__(self) -> None:
        typed_fields(self)
        for name, fits, expected in (
            ("epochs", self.epochs >= 1, "1 or more"),
            ("image_size", self.image_size >= 33, "33 pixels or more"),
            ("min_scale", 0 < self.min_scale <= 1, "a share above 0 and up to 1"),
            ("global_batch_size", self.global_batch_size >= 1, "1 or more"),
            ("first_lr", 0 <= self.first_lr < math.inf, "a finite number >= 0"),
            ("last_lr", 0 <= self.last_lr < math.inf, "a finite number >= 0"),
        ):
            check(self, name, fits, expected)


@dataclass(frozen=True, kw_only=True)
class StagedPhase(Phase):
    """A phase whose epochs, batch and learning rate are those of its stages."""

    stages: tuple[Stage, ...]
    global_batch_size: Annotated[int, Suppress] = field(init=False)
    """The largest of any stage."""
    peak_lr: Annotated[float, Suppress] = field(init=False)
    """The highest learning rate of any stage."""
    max_epochs: Annotated[int, Suppress] = field(init=False)
    """The sum over the stages."""
    warmup_epochs: Annotated[float, Suppress] = field(init=False, default=0.0)
    """Not used: the first stage's learning rate may rise."""
    horizon_epochs: Annotated[float | None, Suppress] = field(init=False, default=None)
    """Not used: the last stage's learning rate is the end."""
    final_lr: Annotated[float, Suppress] = field(init=False, default=0.0)
    """Not used: the last stage's learning rate is the end."""
    cycles: Annotated[int, Suppress] = field(init=False, default=1)
    """Not used: the stages have the learning rate."""

    def __post_init__(self) -> None:
        stages = typed("stages", self.stages, tuple[Stage, ...])
        if not stages:
            raise ValueError("stages: expected one or more, got none")
        derived = {
            "stages": stages,
            "global_batch_size": max(stage.global_batch_size for stage in stages),
            "peak_lr": max(max(stage.first_lr, stage.last_lr) for stage in stages),
            "max_epochs": sum(stage.epochs for stage in stages),
        }
        for name, value in derived.items():
            object.__setattr__(self, name, value)  # the dataclass is frozen
        super().__post_init__()
        for number, stage in enumerate(stages):
            if stage.global_batch_size % self.gpus_per_model:
                raise ValueError(
                    f"stages.{number}.global_batch_size: expected a multiple of gpus_per_model = "
                    f"{self.gpus_per_model}, got {stage.global_batch_size}"
                )

    @property
    def peak_epoch(self) -> float:
        """The epoch at which the learning rate is at its peak and begins to fall."""
        start, at = 0, 0
        for stage in self.stages:
            if stage.first_lr == self.peak_lr:
                at = start
            start += stage.epochs
            if stage.last_lr == self.peak_lr:
                at = start
        return at

    @property
    def schedule(self) -> Schedule:
        """Learning rate as a function of the position in epochs: one straight piece a stage."""
        return pieces([(stage.epochs, stage.first_lr, stage.last_lr) for stage in self.stages])


@dataclass(frozen=True, kw_only=True)
class BatchShape:
    """The image and batch size of some epochs of a phase: everything that a step depends on."""

    epochs: range
    """Of the phase, from 0."""
    image_size: int
    """Side of the images in pixels."""
    global_batch_size: int
    """Images in one update of one model."""
    min_scale: float = 1.0
    """Least share of an image's area in a crop."""
    rectangular_test: bool = False
    """Whether test crops have their batch's mean aspect ratio."""


def shapes(phase: Phase, image_size: int) -> tuple[BatchShape, ...]:
    """A phase's shapes in order; stages that differ only in the learning rate share one.

    Arguments:
        image_size: of a phase without stages.
    """
    if not isinstance(phase, StagedPhase):
        epochs, batch = range(phase.max_epochs), phase.global_batch_size
        return (BatchShape(epochs=epochs, image_size=image_size, global_batch_size=batch),)
    found: list[BatchShape] = []
    start = 0
    for stage in phase.stages:
        shape = BatchShape(
            epochs=range(start, start + stage.epochs),
            image_size=stage.image_size,
            global_batch_size=stage.global_batch_size,
            min_scale=stage.min_scale,
            rectangular_test=stage.rectangular_test,
        )
        start += stage.epochs
        if found and replace(found[-1], epochs=shape.epochs) == shape:
            shape = replace(shape, epochs=range(found.pop().epochs.start, start))
        found.append(shape)
    return tuple(found)
