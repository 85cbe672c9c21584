"""What a phase is, its optimizer and its augmentation: frozen, typed, checked."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Annotated, Literal

from tyro.conf import Suppress

# Learning-rate schedules: pure functions of the position in epochs.


Schedule = Callable[[float], float]


def piecewise_linear(knots: Sequence[tuple[float, float]]) -> Schedule:
    """A schedule that joins (epoch, learning rate) knots by straight lines.

    Before the first knot and after the last one it is constant. Steps are counted from 1, so
    that step i of an epoch of n steps has the position `epoch + i / n`, and the last step of a
    schedule that ends in 0 has the learning rate 0.

    Raises:
        ValueError: fewer than one knot, or epochs that do not rise.
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
                return (1 - t) * y0 + t * y1  # at a knot its own rate, to the bit
        return knots[-1][1]

    return learning_rate


def triangle(
    peak_lr: float, warmup_epochs: float, horizon_epochs: float, final_lr: float = 0.0
) -> Schedule:
    """Up from 0 over the warm-up, then down to `final_lr` at the horizon (Tables 5 and 6).

    Without warm-up it starts at its peak: the schedule of phase 2.
    """
    rise = [(0.0, 0.0)] if warmup_epochs > 0 else []
    return piecewise_linear([*rise, (warmup_epochs, peak_lr), (horizon_epochs, final_lr)])


def cyclic(peak_lr: float, cycle_epochs: float, final_lr: float = 0.0) -> Schedule:
    """Again and again from the peak down to `final_lr`: SWA's schedule (Figure 6).

    Izmailov et al.'s a(i) = (1 - t) a1 + t a2 with t = (mod(i - 1, c) + 1) / c, for steps i from
    1 and cycles of c steps: the last step of a cycle, after which a model is sampled, has
    `final_lr`, and the next one is nearly at the peak again.
    """

    def learning_rate(epoch: float) -> float:
        cycles = epoch / cycle_epochs
        t = cycles - max(math.ceil(cycles) - 1, 0)
        return (1 - t) * peak_lr + t * final_lr

    return learning_rate


def pieces(parts: Sequence[tuple[float, float, float]]) -> Schedule:
    """Straight pieces, one after another, that need not meet (Figure 5).

    Arguments:
        parts: of each piece its length in epochs, and its learning rate at both ends. A position
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


def whole(name: str, value: object) -> None:
    """Refuse what is no whole number, or less than 1."""
    is_whole = isinstance(value, int) and not isinstance(value, bool) and value >= 1
    require(is_whole, name, "a whole number >= 1", value)


def require(condition: bool, name: str, expected: str, got: object) -> None:
    """Refuse a value with one line: its name, what was expected, what it is."""
    if not condition:
        raise ValueError(f"{name}: expected {expected}, got {got!r}")


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One phase of training: its batch, its learning-rate schedule, and where it ends."""

    global_batch_size: int
    """Images in one update of one model (Tables 5 and 6, "Batch-size")."""
    peak_lr: float
    """The schedule's highest learning rate ("Learning-rate Peak")."""
    max_epochs: int
    """Epochs after which the phase ends whatever its accuracy ("Maximum Epochs")."""
    warmup_epochs: float = 0.0
    """Epochs over which the learning rate rises from 0 ("Warm-up Epochs"); 0 starts at the peak."""
    horizon_epochs: float | None = None
    """Epoch at which the learning rate reaches `final_lr`; None means `max_epochs`."""
    final_lr: float = 0.0
    """The learning rate at the horizon and after it."""
    stopping_accuracy: float | None = None
    """Train accuracy (a fraction) above which the phase ends: Algorithm 1's tau. None: never."""
    stop: Literal["accuracy", "auto"] = "accuracy"
    """What ends the phase before `max_epochs`: the accuracy above, or, by itself, the gradient."""
    stopping_noise_ratio: float = 2.0
    """With `stop` auto: the phase ends where an epoch's gradient noise scale is above so many
    global batches."""
    gpus_per_model: int = 1
    """Replicas that share one update, each with its slice of the batch ("GPUs used per model")."""
    cycles: int = 1
    """Times that the schedule runs from its peak to `final_lr`; a model is sampled after each."""

    def __post_init__(self) -> None:
        """Refuse values that no run could have."""
        whole("global_batch_size", self.global_batch_size)
        require(0 < self.peak_lr < math.inf, "peak_lr", "a finite number > 0", self.peak_lr)
        whole("max_epochs", self.max_epochs)
        warmup, last = self.warmup_epochs, self.final_lr
        require(0 <= warmup < math.inf, "warmup_epochs", "a finite number >= 0", warmup)
        horizon = self.horizon_epochs
        require(
            math.inf > (self.max_epochs if horizon is None else horizon) > self.warmup_epochs,
            "horizon_epochs",
            f"a finite number of more than the {self.warmup_epochs:g} warm-up epochs",
            self.max_epochs if horizon is None else horizon,
        )
        require(0 <= last < math.inf, "final_lr", "a finite number >= 0", last)
        tau = self.stopping_accuracy
        require(tau is None or 0 < tau < 1, "stopping_accuracy", "a fraction between 0 and 1", tau)
        require(self.stop in ("accuracy", "auto"), "stop", "accuracy or auto", self.stop)
        auto, ratio = self.stop == "auto", self.stopping_noise_ratio
        expected = "None beside stop auto, which takes its place (--phase1.stopping-accuracy None)"
        require(tau is None or not auto, "stopping_accuracy", expected, tau)
        require(0 < ratio < math.inf, "stopping_noise_ratio", "a finite number > 0", ratio)
        whole("gpus_per_model", self.gpus_per_model)
        require(
            self.gpus_per_model >= 2 or not auto,
            "gpus_per_model",
            "2 or more where stop is auto, which compares the replicas' gradients",
            self.gpus_per_model,
        )
        require(
            self.global_batch_size % self.gpus_per_model == 0,
            "global_batch_size",
            f"a multiple of gpus_per_model = {self.gpus_per_model}",
            self.global_batch_size,
        )
        whole("cycles", self.cycles)
        plain = self.warmup_epochs == 0 and horizon is None and tau is None and not auto
        require(
            self.cycles == 1 or (plain and self.max_epochs % self.cycles == 0),
            "cycles",
            f"1, or a divisor of the {self.max_epochs} epochs of a phase without warm-up, horizon "
            "and an end of its own",
            self.cycles,
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
        """Progress in epochs at which the learning rate is at its peak and begins to fall."""
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
    """What is redrawn for each image in each epoch (Section 5.1, with cifar10-fast's numbers)."""

    pad: int = 4
    """Pixels of reflected border; the crop then has (2 * pad + 1)^2 places."""
    flip: bool = True
    """Mirror left and right with probability 1/2."""
    cutout: int = 8
    """Side of the square, wholly inside the image, that is set to 0 after normalisation."""

    def __post_init__(self) -> None:
        """Refuse what does not fit a 32x32 image."""
        require(0 <= self.pad < 32, "pad", "0 to 31 pixels", self.pad)
        require(0 <= self.cutout <= 32, "cutout", "0 to 32 pixels", self.cutout)


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """SGD with momentum on the mean loss (Section 5.1)."""

    momentum: float = 0.9
    """In torch's form: the learning rate stands outside the velocity."""
    nesterov: bool = True
    """Nesterov's momentum, which CIFAR's recipes have and ImageNet's do not."""
    weight_decay: float = 5e-4
    """L2 on all parameters, batch norm's included ..."""
    decay_norms_and_biases: bool = True
    """... or, where this is off, on none of batch norm's and no bias, as for ImageNet."""
    bias_lr_factor: float = 1.0
    """Factor on the learning rate of biases, whose weight decay is divided by it."""
    loss_scale: float = 65536.0
    """In fp16, the loss is multiplied by so much at first; halved where a gradient overflows."""
    loss_scale_grows: bool = True
    """Whether the loss scale doubles after 2,000 updates without an overflow; else it is static."""

    def __post_init__(self) -> None:
        """Refuse values outside their range."""
        require(0 < self.momentum < 1, "momentum", "between 0 and 1", self.momentum)
        decay, factor = self.weight_decay, self.bias_lr_factor
        require(0 <= decay < math.inf, "weight_decay", "a finite number >= 0", decay)
        require(0 < factor < math.inf, "bias_lr_factor", "a finite number > 0", factor)
        require(
            self.decay_norms_and_biases or self.bias_lr_factor == 1,
            "bias_lr_factor",
            "1 where norms and biases are not decayed",
            self.bias_lr_factor,
        )
        scale = self.loss_scale
        require(1 <= scale < math.inf, "loss_scale", "a finite number of 1 or more", scale)

    @property
    def set_apart(self) -> Literal["nothing", "biases", "norms_and_biases"]:
        """The parameters with a learning rate or a weight decay of their own."""
        if not self.decay_norms_and_biases:
            return "norms_and_biases"
        return "biases" if self.bias_lr_factor != 1 else "nothing"


# A phase in stages: stretches of epochs with an image size and a batch of their own (ImageNet).


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One row of the table of ImageNet's stages, which is also Figure 5's."""

    epochs: int
    """How long it lasts."""
    image_size: int
    """Side of a training crop, and of a test crop, in pixels."""
    min_scale: float = 0.08
    """The least share of an image's area that a training crop shows."""
    global_batch_size: int
    """Images in one update of one model."""
    first_lr: float
    """Where the learning rate starts, ..."""
    last_lr: float
    """... and where it is at the stage's end; between, it is linear in the updates."""
    rectangular_test: bool = False
    """Test on crops of each batch's mean aspect ratio instead of squares."""

    def __post_init__(self) -> None:
        """Refuse values that no run could have."""
        for name, fits, expected in (
            ("epochs", self.epochs >= 1, "1 or more"),
            ("image_size", self.image_size >= 33, "33 pixels or more"),
            ("min_scale", 0 < self.min_scale <= 1, "a share above 0 and up to 1"),
            ("global_batch_size", self.global_batch_size >= 1, "1 or more"),
            ("first_lr", 0 <= self.first_lr < math.inf, "a finite number >= 0"),
            ("last_lr", 0 <= self.last_lr < math.inf, "a finite number >= 0"),
        ):
            if not fits:
                raise ValueError(f"{name}: expected {expected}, got {getattr(self, name)!r}")


@dataclass(frozen=True, kw_only=True)
class StagedPhase(Phase):
    """A phase whose epochs, batch and learning rate are those of its stages."""

    stages: tuple[Stage, ...]
    """In their order."""
    global_batch_size: Annotated[int, Suppress] = field(init=False)
    """The largest of any stage."""
    peak_lr: Annotated[float, Suppress] = field(init=False)
    """The highest learning rate of any stage."""
    max_epochs: Annotated[int, Suppress] = field(init=False)
    """Of all stages together."""
    warmup_epochs: Annotated[float, Suppress] = field(init=False, default=0.0)
    """None: the first stage's learning rate may rise."""
    horizon_epochs: Annotated[float | None, Suppress] = field(init=False, default=None)
    """None: the stages say where the learning rate ends."""
    final_lr: Annotated[float, Suppress] = field(init=False, default=0.0)
    """Of no meaning: the last stage's is."""
    cycles: Annotated[int, Suppress] = field(init=False, default=1)
    """One: the stages say how the learning rate goes."""

    def __post_init__(self) -> None:
        """Sum the stages up, and refuse batches that the replicas cannot share."""
        if not self.stages:
            raise ValueError("stages: expected one or more, got none")
        derived = {
            "global_batch_size": max(stage.global_batch_size for stage in self.stages),
            "peak_lr": max(max(stage.first_lr, stage.last_lr) for stage in self.stages),
            "max_epochs": sum(stage.epochs for stage in self.stages),
        }
        for name, value in derived.items():
            object.__setattr__(self, name, value)  # as a frozen dataclass sets its own fields
        super().__post_init__()
        for number, stage in enumerate(self.stages):
            if stage.global_batch_size % self.gpus_per_model:
                raise ValueError(
                    f"stages.{number}.global_batch_size: expected a multiple of gpus_per_model = "
                    f"{self.gpus_per_model}, got {stage.global_batch_size}"
                )

    @property
    def peak_epoch(self) -> float:
        """Progress in epochs at which the learning rate is at its peak and begins to fall."""
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
    """What the updates of some epochs of a phase have in common: all that a step depends on."""

    epochs: range
    """Of the phase, from 0."""
    image_size: int
    """Side of the images in pixels."""
    global_batch_size: int
    """Images in one update of one model."""
    min_scale: float = 1.0
    """The least share of an image's area that a crop shows."""
    rectangular_test: bool = False
    """Whether test crops have their batch's mean aspect ratio."""


def shapes(phase: Phase, image_size: int) -> tuple[BatchShape, ...]:
    """A phase's shapes in their order; stages that differ in the learning rate alone share one.

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
