"""What a phase is, its optimizer and its augmentation: frozen, typed, checked."""

import math
from dataclasses import dataclass
from typing import Literal

from swap_fast.config.schedules import Schedule, cyclic, triangle


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
    """Slots that share one update, each with its slice of the batch ("GPUs used per model")."""
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
            "2 or more where stop is auto, which compares the slots' gradients",
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
        """Images in one slot's share of an update: B1 / W in Algorithm 1, line 11."""
        return self.global_batch_size // self.gpus_per_model

    @property
    def peak_epoch(self) -> float:
        """Position in epochs at which the learning rate is at its peak and begins to fall."""
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
