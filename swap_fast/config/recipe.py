"""What a run's method is, with all its numbers: the recipes' classes, frozen, typed, checked."""

from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal, TypeVar

from msgspec import ValidationError, convert, to_builtins
from tyro.conf import Suppress

from swap_fast.config.phase import Augmentation, Optimizer, Phase, StagedPhase, require, whole

LoaderName = Literal["tensor", "dali", "torchvision"]
"""What makes the batches: torch or a kernel on resident images, DALI, or a DataLoader."""


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
        whole("width", self.width)
        require(
            self.dataset in ("cifar10", "cifar100", "synthetic", "imagenet"),
            "dataset",
            "cifar10, cifar100, synthetic or imagenet",
            self.dataset,
        )
        require(
            (self.net == "resnet50") == (self.dataset == "imagenet"),
            "net",
            f"{'resnet50' if self.dataset == 'imagenet' else 'a ResNet-9'} for {self.dataset}",
            self.net,
        )
        require(min(self.blocks) >= 1, "blocks", "1 or more in each group", self.blocks)
        require(
            self.net == "resnet50" or self.blocks == RESNET50_BLOCKS,
            "blocks",
            f"{RESNET50_BLOCKS}, which have no effect: they are ResNet-50's and not {self.net}'s",
            self.blocks,
        )
        require(
            self.train_images is None or self.dataset != "imagenet",
            "train_images",
            "None for a tree of files, which is trained on whole",
            self.train_images,
        )
        require(
            self.augmentation == Augmentation() or self.dataset != "imagenet",
            "augmentation",
            "its defaults for a tree of files, whose crops are the stages'",
            self.augmentation,
        )
        require(
            not self.mirrored_evaluation or self.dataset != "imagenet",
            "mirrored_evaluation",
            "False for a tree of files",
            self.mirrored_evaluation,
        )
        require(
            0 < self.target_accuracy < 1,
            "target_accuracy",
            "a fraction between 0 and 1",
            self.target_accuracy,
        )
        require(
            0 <= self.label_smoothing < 1, "label_smoothing", "0 to below 1", self.label_smoothing
        )
        size = self.train_images
        require(
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
    def num_replicas(self) -> int:
        """Devices that the recipe can use at once."""
        return self.phase1.gpus_per_model


def _check_statistics_pass(net: str, batch_size: int, *, augmented: bool) -> None:
    """Refuse what the batch-norm pass after averaging cannot do."""
    expected = "resnet9 or resnet50: phase 3 knows no statistics of groups within a batch"
    require(net != "whitened_resnet9", "net", expected, net)
    expected = ">= 2: batch norm needs more than one image"
    require(batch_size >= 2, "batch_norm_batch_size", expected, batch_size)
    expected = "True for a tree of files, which are cropped as in the last stage"
    require(augmented or net != "resnet50", "batch_norm_augmented", expected, augmented)


def _check_fixed_length(phase2: Phase) -> None:
    """Refuse a phase 2 that would end by itself."""
    expected = "accuracy: phase 1 alone ends by itself, phase 2 after its epochs (line 19)"
    require(phase2.stop == "accuracy", "phase2.stop", expected, phase2.stop)


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
        whole("num_workers", self.num_workers)
        require(
            self.phase2.stopping_accuracy is None,
            "phase2.stopping_accuracy",
            "None: every worker trains for all of phase 2's epochs (line 19)",
            self.phase2.stopping_accuracy,
        )
        _check_fixed_length(self.phase2)
        workers, each = self.num_workers, self.gpus_per_worker
        require(
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
        """Replicas that share a worker's updates in phase 2; ImageNet has 2 workers of 8."""
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
        require(
            self.phase2.gpus_per_model in (1, self.phase1.gpus_per_model),
            "phase2.gpus_per_model",
            f"1, or phase 1's {self.phase1.gpus_per_model}",
            self.phase2.gpus_per_model,
        )
        _check_fixed_length(self.phase2)
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


RECIPE_KINDS: dict[str, type[Recipe]] = {"swap": SWAPRecipe, "swa": SWARecipe, "sgd": SGDRecipe}
"""By a record's method."""

T = TypeVar("T")
R = TypeVar("R", bound=SGDRecipe)


def recipe_from(values: dict[str, Any], kind: type[R], where: str) -> R:
    """A recipe from its fields as JSON keeps them, checked as a new one is.

    Raises:
        ValueError: a field that is missing, unknown, of another type, or that no run could have.
    """
    try:
        recipe = convert(values, kind)
        staged: dict[str, Any] = {
            name: convert(values[name], StagedPhase)
            for name in ("phase1", "phase2")
            if "stages" in values.get(name, {})
        }
        recipe = replace(recipe, **staged)
    except ValidationError as error:
        raise ValueError(f"{where}: expected a recipe, got {error}") from None
    _refuse_unknown(values, recipe, where)
    return recipe


def checked(content: Any, kind: type[T], where: str) -> T:
    """A dataclass from what JSON has of it.

    Raises:
        ValueError: a field that is missing, unknown or of another type.
    """
    try:
        value = convert(content, kind)
    except ValidationError as error:
        raise ValueError(" ".join(f"{where}: {error}".split())) from None
    _refuse_unknown(content, value, where)
    return value


def _refuse_unknown(content: Any, value: Any, where: str) -> None:
    """Refuse fields that a value read from the content does not have, at any depth."""
    if odd := _unknown(content, to_builtins(value), "$"):
        raise ValueError(f"{where}: unknown fields {', '.join(odd)}")


def _unknown(content: Any, known: Any, at: str) -> list[str]:
    if isinstance(content, dict):
        odd = [f"{at}.{name}" for name in content.keys() - known.keys()]
        inside = [
            (content[name], known[name], f"{at}.{name}") for name in content.keys() & known.keys()
        ]
    elif isinstance(content, list):
        odd, inside = [], [(*pair, f"{at}[...]") for pair in zip(content, known, strict=True)]
    else:
        return []
    return sorted({*odd, *(name for each in inside for name in _unknown(*each))})
