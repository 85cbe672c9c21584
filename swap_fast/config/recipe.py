"""The classes of recipes, a method with all its numbers: frozen, typed, checked."""

from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal, TypeVar

from msgspec import ValidationError, convert, to_builtins
from tyro.conf import Suppress

from swap_fast.config.checks import check, typed_fields, whole
from swap_fast.config.phase import Augmentation, Optimizer, Phase, StagedPhase

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
    """The paper's table and row that it reproduces, or what else it is."""
    dataset: Literal["cifar10", "cifar100", "synthetic", "imagenet"] = "cifar10"
    """Which images; imagenet is any tree of image files, a folder a class."""
    train_images: int | None = None
    """Train on only this many images, the first in the data's order; None: all."""
    net: Literal["resnet9", "whitened_resnet9", "speed_net", "resnet50"] = "resnet9"
    """The paper's ResNet-9, its authors' later one with whitened input, the net of the public
    speed runs, or ResNet-50."""
    width: int = 64
    """Channels of the net's first convolution; the paper's nets have 64."""
    blocks: tuple[int, int, int, int] = RESNET50_BLOCKS
    """Blocks in each of ResNet-50's groups; other nets have none."""
    paper_scale: Annotated[bool, Suppress] = True
    """Whether net, data and epochs are the paper's, so that its figures may be compared."""
    devices: Annotated[Literal["GPUs", "cores"], Suppress] = "GPUs"
    """What `gpus_per_model` counts: CPU cores in forms for a CPU."""
    target_accuracy: float = 0.94
    """Test accuracy (a fraction) for time-to-accuracy and the share of runs that reach it."""
    phase1: Phase
    """The only phase."""
    optimizer: Optimizer = field(default_factory=Optimizer)
    """Momentum and weight decay."""
    augmentation: Augmentation = field(default_factory=Augmentation)
    """Crop, flip and cutout."""
    label_smoothing: float = 0.0
    """Share of the target (a fraction) that is divided evenly over all classes."""
    mirrored_evaluation: bool = False
    """Whether test accuracy is measured a second time, by the mean logits of an image and its
    mirror image. It has a column of its own; `target_accuracy` is of the first."""
    loader: Annotated[LoaderName | None, Suppress] = None
    """What `--loader auto` takes on GPUs; None: the fastest."""

    def __post_init__(self) -> None:
        typed_fields(self)
        whole("width", self.width)
        is_tree = self.dataset == "imagenet"
        expected = f"{'resnet50' if is_tree else 'a ResNet-9 or speed_net'} for {self.dataset}"
        check(self, "net", (self.net == "resnet50") == is_tree, expected)
        check(self, "blocks", min(self.blocks) >= 1, "1 or more in each group")
        has_blocks = self.net == "resnet50" or self.blocks == RESNET50_BLOCKS
        expected = (
            f"{RESNET50_BLOCKS}, which have no effect: they are ResNet-50's, not {self.net}'s"
        )
        check(self, "blocks", has_blocks, expected)
        size, largest = self.train_images, self.largest_batch_size
        expected = "None for a tree of files, which is trained on whole"
        check(self, "train_images", size is None or not is_tree, expected)
        expected = "its defaults for a tree of files, whose crops are the stages'"
        check(self, "augmentation", self.augmentation == Augmentation() or not is_tree, expected)
        mirrored = self.mirrored_evaluation
        check(self, "mirrored_evaluation", not (mirrored and is_tree), "False for a tree of files")
        fraction = "a fraction between 0 and 1"
        check(self, "target_accuracy", 0 < self.target_accuracy < 1, fraction)
        check(self, "label_smoothing", 0 <= self.label_smoothing < 1, "0 to below 1")
        expected = f"at least one batch of {largest}"
        check(self, "train_images", size is None or size >= largest, expected)

    @property
    def phases(self) -> tuple[Phase, ...]:
        """In their order."""
        return (self.phase1,)

    @property
    def largest_batch_size(self) -> int:
        """The largest global batch of any phase."""
        return max(phase.global_batch_size for phase in self.phases)

    @property
    def num_replicas(self) -> int:
        """Devices that the recipe can use at once."""
        return self.phase1.gpus_per_model


@dataclass(frozen=True, kw_only=True)
class _TwoPhases(SGDRecipe):
    """What SWAP and SWA have in common: a phase 2 whose models are averaged."""

    phase1: Phase
    """Large batches: of SWAP by all workers together, until tau (lines 7-17)."""
    phase2: Phase
    """Continues from phase 1: each worker of SWAP alone (lines 18-27), SWA with cyclic learning
    rates (Figure 6)."""
    keep_momentum: bool = False
    """Carry phase 1's momentum into phase 2; by default it is zeroed at the switch."""
    batch_norm_batch_size: int = 512
    """Images a batch of the pass over the training data after averaging (line 29)."""
    batch_norm_augmented: bool = True
    """Whether that pass sees augmented images, as is SWA's convention, or clean ones."""

    def __post_init__(self) -> None:
        super().__post_init__()
        expected = "accuracy: only phase 1 ends by itself, phase 2 after its epochs (line 19)"
        check(self, "phase2.stop", self.phase2.stop == "accuracy", expected)
        expected = "another net: phase 3 has no statistics of groups within a batch"
        check(self, "net", self.net != "whitened_resnet9", expected)
        expected = ">= 2: batch norm needs more than one image"
        check(self, "batch_norm_batch_size", self.batch_norm_batch_size >= 2, expected)
        fits = self.batch_norm_augmented or self.net != "resnet50"
        expected = "True for a tree of files, which are cropped as in the last stage"
        check(self, "batch_norm_augmented", fits, expected)

    @property
    def phases(self) -> tuple[Phase, ...]:
        return self.phase1, self.phase2


@dataclass(frozen=True, kw_only=True)
class SWAPRecipe(_TwoPhases):
    """Stochastic Weight Averaging in Parallel: Algorithm 1."""

    num_workers: int = 8
    """W: the models that phase 2 refines and phase 3 averages."""

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("num_workers", self.num_workers)
        expected = "None: every worker trains for all of phase 2's epochs (line 19)"
        name = "phase2.stopping_accuracy"
        check(self, name, self.phase2.stopping_accuracy is None, expected)
        workers, each = self.num_workers, self.gpus_per_worker
        check(
            self,
            "phase1.gpus_per_model",
            self.phase1.gpus_per_model == workers * each,
            f"num_workers * phase2.gpus_per_model = {workers} * {each} = {workers * each}: the "
            "workers of phase 2 train phase 1 together",
        )

    @property
    def gpus_per_worker(self) -> int:
        """Replicas that share a worker's updates in phase 2; ImageNet has 2 workers of 8."""
        return self.phase2.gpus_per_model


@dataclass(frozen=True, kw_only=True)
class SWARecipe(_TwoPhases):
    """Stochastic Weight Averaging (Izmailov et al.): one model sampled in sequence (Table 4)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        fits = self.phase2.gpus_per_model in (1, self.phase1.gpus_per_model)
        expected = f"1, or phase 1's {self.phase1.gpus_per_model}"
        check(self, "phase2.gpus_per_model", fits, expected)

    @property
    def num_workers(self) -> int:
        """One: its models are of one sequence."""
        return 1


AveragingRecipe = SWAPRecipe | SWARecipe
"""Recipes with a phase 2 whose models are averaged."""

Recipe = AveragingRecipe | SGDRecipe


Method = Literal["swap", "swa", "sgd"]
"""As records have it."""
RECIPE_KINDS: dict[Method, type[Recipe]] = {"swap": SWAPRecipe, "swa": SWARecipe, "sgd": SGDRecipe}
"""The kind of recipe of each method."""


def method_of(recipe: Recipe) -> Method:
    """The method of a recipe: each is of one of the three kinds."""
    return next(method for method, kind in RECIPE_KINDS.items() if type(recipe) is kind)


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
        _refuse_unknown(content, value, where)
    except (ValidationError, RecursionError) as error:
        raise ValueError(" ".join(f"{where}: {error}".split())) from None
    return value


def _refuse_unknown(content: Any, value: Any, where: str) -> None:
    """Refuse fields that a value read from the content does not have, at any depth."""
    if odd := _unknown(content, to_builtins(value), "$"):
        raise ValueError(
            f"{where}: expected the fields of a {type(value).__name__}, got unknown fields "
            f"{', '.join(odd)}"
        )


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
