"""What a phase, a run's method and a recipe are: frozen, typed, checked."""

import math
from dataclasses import dataclass, field
from typing import Annotated, Literal

from tyro.conf import Suppress

from swap_fast.schedules import Schedule, cyclic, triangle


def _whole(name: str, value: object) -> None:
    """Refuse what is no whole number, or less than 1."""
    is_whole = isinstance(value, int) and not isinstance(value, bool) and value >= 1
    _require(is_whole, name, "a whole number >= 1", value)


def _require(condition: bool, name: str, expected: str, got: object) -> None:
    if not condition:
        raise ValueError(f"{name}: expected {expected}, got {got!r}")


LoaderName = Literal["tensor", "dali", "torchvision"]
"""What makes the batches: torch or a kernel on resident images, DALI, or a DataLoader."""


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
    gpus_per_model: int = 1
    """Slots that share one update, each with its slice of the batch ("GPUs used per model")."""
    cycles: int = 1
    """Times that the schedule runs from its peak to `final_lr`; a model is sampled after each."""

    def __post_init__(self) -> None:
        """Refuse values that no run could have."""
        _whole("global_batch_size", self.global_batch_size)
        _require(0 < self.peak_lr < math.inf, "peak_lr", "a finite number > 0", self.peak_lr)
        _whole("max_epochs", self.max_epochs)
        _require(self.warmup_epochs >= 0, "warmup_epochs", ">= 0", self.warmup_epochs)
        horizon = self.horizon_epochs
        _require(
            (self.max_epochs if horizon is None else horizon) > self.warmup_epochs,
            "horizon_epochs",
            f"more than the {self.warmup_epochs:g} warm-up epochs",
            self.max_epochs if horizon is None else horizon,
        )
        _require(self.final_lr >= 0, "final_lr", ">= 0", self.final_lr)
        tau = self.stopping_accuracy
        _require(tau is None or 0 < tau < 1, "stopping_accuracy", "a fraction between 0 and 1", tau)
        _whole("gpus_per_model", self.gpus_per_model)
        _require(
            self.global_batch_size % self.gpus_per_model == 0,
            "global_batch_size",
            f"a multiple of gpus_per_model = {self.gpus_per_model}",
            self.global_batch_size,
        )
        _whole("cycles", self.cycles)
        plain = self.warmup_epochs == 0 and horizon is None and tau is None
        _require(
            self.cycles == 1 or (plain and self.max_epochs % self.cycles == 0),
            "cycles",
            f"1, or a divisor of the {self.max_epochs} epochs of a phase without warm-up, horizon "
            "and stopping accuracy",
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
        _require(0 <= self.pad < 32, "pad", "0 to 31 pixels", self.pad)
        _require(0 <= self.cutout <= 32, "cutout", "0 to 32 pixels", self.cutout)


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
        _require(0 < self.momentum < 1, "momentum", "between 0 and 1", self.momentum)
        _require(self.weight_decay >= 0, "weight_decay", ">= 0", self.weight_decay)
        _require(self.bias_lr_factor > 0, "bias_lr_factor", "> 0", self.bias_lr_factor)
        _require(
            self.decay_norms_and_biases or self.bias_lr_factor == 1,
            "bias_lr_factor",
            "1 where norms and biases are not decayed",
            self.bias_lr_factor,
        )
        _require(self.loss_scale >= 1, "loss_scale", "1 or more", self.loss_scale)

    @property
    def set_apart(self) -> Literal["nothing", "biases", "norms_and_biases"]:
        """The parameters with a learning rate or a weight decay of their own."""
        if not self.decay_norms_and_biases:
            return "norms_and_biases"
        return "biases" if self.bias_lr_factor != 1 else "nothing"


RESNET50_BLOCKS = (3, 4, 6, 3)


@dataclass(frozen=True, kw_only=True)
class SGDRecipe:
    """One model trained by SGD alone: the first two rows of Tables 1 and 2."""

    name: Annotated[str, Suppress]
    """The recipe's name on the command line and in records."""
    summary: Annotated[str, Suppress]
    """One line for `python -m bench recipes`."""
    table: Annotated[str, Suppress]
    """The paper's table and row that it reproduces, or what it is instead."""
    dataset: Literal["cifar10", "cifar100", "synthetic", "imagenet"] = "cifar10"
    """Which images; imagenet is any tree of image files, a folder a class."""
    train_images: int | None = None
    """Train on the first so many images of the data's canonical order; None: all."""
    net: Literal["resnet9", "whitened_resnet9", "resnet50"] = "resnet9"
    """The paper's ResNet-9, its authors' later one with whitened input, or ResNet-50."""
    width: int = 64
    """Channels of the net's first convolution; the paper's nets have 64."""
    blocks: tuple[int, int, int, int] = RESNET50_BLOCKS
    """Blocks in each of ResNet-50's groups; other nets have none."""
    paper_scale: Annotated[bool, Suppress] = True
    """Whether net, data and epochs are the paper's; only then may its figures stand beside them."""
    target_accuracy: float = 0.94
    """Test accuracy (a fraction) for time-to-accuracy and the share of runs that reach it."""
    phase1: Phase
    """The only phase."""
    optimizer: Optimizer = field(default_factory=Optimizer)
    """Momentum and weight decay."""
    augmentation: Augmentation = field(default_factory=Augmentation)
    """Crop, flip and cutout."""
    label_smoothing: float = 0.0
    """Share of the target that is spread evenly over all classes."""
    mirrored_evaluation: bool = False
    """Whether test logits are the mean over the image and its mirror image."""
    loader: Annotated[LoaderName | None, Suppress] = None
    """What `--loader auto` takes on GPUs; None: the fastest."""

    def __post_init__(self) -> None:
        """Refuse values that no run could have."""
        _whole("width", self.width)
        _require(
            self.dataset in ("cifar10", "cifar100", "synthetic", "imagenet"),
            "dataset",
            "cifar10, cifar100, synthetic or imagenet",
            self.dataset,
        )
        _require(
            (self.net == "resnet50") == (self.dataset == "imagenet"),
            "net",
            f"{'resnet50' if self.dataset == 'imagenet' else 'a ResNet-9'} for {self.dataset}",
            self.net,
        )
        _require(min(self.blocks) >= 1, "blocks", "1 or more in each group", self.blocks)
        _require(
            self.net == "resnet50" or self.blocks == RESNET50_BLOCKS,
            "blocks",
            f"{RESNET50_BLOCKS}, which have no effect: they are ResNet-50's and not {self.net}'s",
            self.blocks,
        )
        _require(
            self.train_images is None or self.dataset != "imagenet",
            "train_images",
            "None for a tree of files, which is trained on whole",
            self.train_images,
        )
        _require(
            self.augmentation == Augmentation() or self.dataset != "imagenet",
            "augmentation",
            "its defaults for a tree of files, whose crops are the stages'",
            self.augmentation,
        )
        _require(
            not self.mirrored_evaluation or self.dataset != "imagenet",
            "mirrored_evaluation",
            "False for a tree of files",
            self.mirrored_evaluation,
        )
        _require(
            0 < self.target_accuracy < 1,
            "target_accuracy",
            "a fraction between 0 and 1",
            self.target_accuracy,
        )
        _require(
            0 <= self.label_smoothing < 1, "label_smoothing", "0 to below 1", self.label_smoothing
        )
        size = self.train_images
        _require(
            size is None or size >= self.largest_batch_size,
            "train_images",
            f"at least one batch of {self.largest_batch_size}",
            size,
        )

    @property
    def largest_batch_size(self) -> int:
        """The largest global batch of any phase."""
        return self.phase1.global_batch_size

    @property
    def num_slots(self) -> int:
        """Devices that the recipe can use at once."""
        return self.phase1.gpus_per_model


def _check_statistics_pass(net: str, batch_size: int, *, augmented: bool) -> None:
    """Refuse what the batch-norm pass after averaging cannot do."""
    expected = "resnet9 or resnet50: phase 3 knows no statistics of groups within a batch"
    _require(net != "whitened_resnet9", "net", expected, net)
    expected = ">= 2: batch norm needs more than one image"
    _require(batch_size >= 2, "batch_norm_batch_size", expected, batch_size)
    expected = "True for a tree of files, which are cropped as in the last stage"
    _require(augmented or net != "resnet50", "batch_norm_augmented", expected, augmented)


@dataclass(frozen=True, kw_only=True)
class SWAPRecipe(SGDRecipe):
    """Stochastic Weight Averaging in Parallel: Algorithm 1."""

    phase2: Phase
    """Small-batch refinement of each worker, independent of the others (lines 18-27)."""
    num_workers: int = 8
    """W: the models that phase 2 refines and phase 3 averages."""
    keep_momentum: bool = False
    """Carry phase 1's momentum into phase 2; by default it is zeroed at the switch."""
    batch_norm_batch_size: int = 512
    """Images a batch of phase 3's pass over the training data (line 29)."""
    batch_norm_augmented: bool = True
    """Whether that pass sees augmented images, as SWA's convention has it, or clean ones."""

    def __post_init__(self) -> None:
        """Refuse values that no run could have."""
        super().__post_init__()
        _whole("num_workers", self.num_workers)
        _require(
            self.phase2.stopping_accuracy is None,
            "phase2.stopping_accuracy",
            "None: every worker trains for all of phase 2's epochs (line 19)",
            self.phase2.stopping_accuracy,
        )
        workers, each = self.num_workers, self.gpus_per_worker
        _require(
            self.phase1.gpus_per_model == workers * each,
            "phase1.gpus_per_model",
            f"num_workers * phase2.gpus_per_model = {workers} * {each} = {workers * each}: the "
            "workers of phase 2 train phase 1 together",
            self.phase1.gpus_per_model,
        )
        _check_statistics_pass(
            self.net, self.batch_norm_batch_size, augmented=self.batch_norm_augmented
        )

    @property
    def gpus_per_worker(self) -> int:
        """Slots that share a worker's updates in phase 2; ImageNet has 2 workers of 8."""
        return self.phase2.gpus_per_model

    @property
    def largest_batch_size(self) -> int:
        """The largest global batch of any phase."""
        return max(self.phase1.global_batch_size, self.phase2.global_batch_size)


@dataclass(frozen=True, kw_only=True)
class SWARecipe(SGDRecipe):
    """Stochastic Weight Averaging (Izmailov et al.): one model sampled in sequence (Table 4)."""

    phase2: Phase
    """Goes on from phase 1 at its own batch, with cyclic learning rates (Figure 6)."""
    keep_momentum: bool = False
    """Carry phase 1's momentum into phase 2; by default it is zeroed at the switch, as SWAP's."""
    batch_norm_batch_size: int = 512
    """Images a batch of the pass over the training data after averaging."""
    batch_norm_augmented: bool = True
    """Whether that pass sees augmented images, as SWA's convention has it, or clean ones."""

    def __post_init__(self) -> None:
        """Refuse values that no run could have."""
        super().__post_init__()
        _require(
            self.phase2.gpus_per_model in (1, self.phase1.gpus_per_model),
            "phase2.gpus_per_model",
            f"1, or phase 1's {self.phase1.gpus_per_model}",
            self.phase2.gpus_per_model,
        )
        _check_statistics_pass(
            self.net, self.batch_norm_batch_size, augmented=self.batch_norm_augmented
        )

    @property
    def num_workers(self) -> int:
        """One: its models are of one sequence."""
        return 1

    @property
    def largest_batch_size(self) -> int:
        """The largest global batch of any phase."""
        return max(self.phase1.global_batch_size, self.phase2.global_batch_size)


AveragingRecipe = SWAPRecipe | SWARecipe
"""Those with a phase 2 whose models are averaged."""

Recipe = AveragingRecipe | SGDRecipe
