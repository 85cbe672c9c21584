"""The workload of a recipe: models, devices, images and steps of its phases. No torch."""

from dataclasses import dataclass

from bench.net_cost import Net, resnet9, resnet50, speed_net
from bench.records.paper import Paper
from swap_fast.config.phase import Phase, StagedPhase, shapes
from swap_fast.config.recipe import AveragingRecipe, Recipe

IMAGE_SIZE = 32
"""Of CIFAR, in pixels."""
TRAIN_IMAGES = {"cifar10": 50_000, "cifar100": 50_000, "synthetic": 50_000, "imagenet": 1_281_167}
TEST_IMAGES = 10_000
"""Of CIFAR-10 and CIFAR-100."""
NUM_CLASSES = {"cifar10": 10, "cifar100": 100, "synthetic": 10, "imagenet": 1000}


@dataclass(frozen=True, kw_only=True)
class PhaseWork:
    """Epochs of one batch size and one image size: a phase, or an ImageNet stage of one."""

    number: int
    """1 or 2."""
    name: str
    """Such as "phase 1"."""
    net: Net
    """At this phase's image size."""
    epochs: float
    """Expected, where the phase stops at an accuracy."""
    images: int
    """Training images."""
    global_batch_size: int
    """Images in one update of one model."""
    gpus_per_model: int
    """Devices that share an update."""
    num_models: int = 1
    """W in phase 2."""

    @property
    def steps_per_epoch(self) -> int:
        """Updates of one model; images that fill no whole batch are left out."""
        return self.images // self.global_batch_size

    @property
    def micro_batch_size(self) -> int:
        """Images of one device in an update."""
        return self.global_batch_size // self.gpus_per_model

    @property
    def steps(self) -> float:
        """Updates of one model."""
        return self.epochs * self.steps_per_epoch

    @property
    def images_trained(self) -> float:
        """By all models together."""
        return self.num_models * self.steps * self.global_batch_size

    @property
    def flop(self) -> float:
        """Operations of all models together."""
        return self.images_trained * self.net.train_flop

    @property
    def replicas(self) -> int:
        """Devices that the phase can use at once."""
        return self.num_models * self.gpus_per_model


@dataclass(frozen=True, kw_only=True)
class Workload:
    """The phases of a recipe, and its averaging."""

    name: str
    """The recipe's."""
    phases: tuple[PhaseWork, ...]
    averages: bool
    """Whether weights are averaged, which needs one pass over the training data for batch norm."""
    resident_bytes: int
    """Of the data set on each device."""
    epochs_source: str
    """The source of phase 1's epochs."""

    @property
    def last_phase(self) -> PhaseWork:
        """The phase with the averaged model's net and devices."""
        return self.phases[-1]

    @property
    def batch_norm_flop(self) -> float:
        """Operations of the pass after averaging."""
        last = self.last_phase
        return self.averages * last.images * last.net.forward_flop

    @property
    def flop(self) -> float:
        """Operations of the whole run."""
        return sum(phase.flop for phase in self.phases) + self.batch_norm_flop

    @property
    def replicas(self) -> int:
        """Devices that the recipe can use at once."""
        return max(phase.replicas for phase in self.phases)


def workload_of(
    recipe: Recipe, paper: Paper, phase1_epochs: float | None = None, *, fused: bool = False
) -> Workload:
    """The workload of a recipe.

    Arguments:
        fused: whether batch norm and what follows it are one kernel; of 32 px nets.
        phase1_epochs: of phase 1; by default the paper's mean for a recipe of the paper that
            stops at an accuracy, else the recipe's maximum.

    Raises:
        ValueError: a net or a data set whose cost is not known here.
    """
    if recipe.net == "whitened_resnet9":
        raise ValueError(
            f"plan: expected a recipe of resnet9, speed_net or resnet50, got {recipe.net} in "
            f"{recipe.name}"
        )
    if recipe.dataset == "imagenet" and not recipe.paper_scale:
        raise ValueError(
            f"plan: expected a recipe whose data have a known size, got {recipe.name}, which is "
            "for any tree of images"
        )
    if phase1_epochs is not None and not 0 < phase1_epochs <= recipe.phase1.max_epochs:
        raise ValueError(
            f"phase1_epochs: expected more than 0 and at most {recipe.phase1.max_epochs}, "
            f"got {phase1_epochs:g}"
        )
    epochs, source = float(recipe.phase1.max_epochs), "the recipe's maximum"
    if phase1_epochs is not None:
        epochs, source = phase1_epochs, "as given"
    elif recipe.phase1.stopping_accuracy is not None and recipe.paper_scale:
        mean = paper.phase1_mean(recipe.dataset)
        epochs, source = mean.epochs, f"the paper's mean, {mean.source}"

    phases = _stages(1, recipe, recipe.phase1, epochs, fused=fused)
    if isinstance(recipe, AveragingRecipe):
        phases += _stages(
            *(2, recipe, recipe.phase2, float(recipe.phase2.max_epochs), recipe.num_workers),
            fused=fused,
        )
    resident = 0
    if recipe.dataset != "imagenet":
        # Both orientations of each training image, padded; the test images as they are.
        side = IMAGE_SIZE + 2 * recipe.augmentation.pad
        resident = 3 * (2 * side**2 * phases[0].images + 2 * IMAGE_SIZE**2 * TEST_IMAGES)
    return Workload(
        name=recipe.name,
        phases=tuple(phases),
        averages=isinstance(recipe, AveragingRecipe),
        resident_bytes=resident,
        epochs_source=source,
    )


def _stages(
    number: int,
    recipe: Recipe,
    phase: Phase,
    epochs: float,
    num_models: int = 1,
    *,
    fused: bool,
) -> list[PhaseWork]:
    """The parts of a phase: one for each image size and batch."""
    staged = isinstance(phase, StagedPhase)
    name, works = f"phase {number}", []
    for shape in shapes(phase, IMAGE_SIZE):
        of_shape = min(epochs, shape.epochs.stop) - shape.epochs.start
        if of_shape <= 0:
            break
        works.append(
            PhaseWork(
                number=number,
                name=f"{name}, {shape.image_size} px" if staged else name,
                net=_net(recipe, shape.image_size, fused=fused),
                epochs=of_shape,
                images=recipe.train_images or TRAIN_IMAGES[recipe.dataset],
                global_batch_size=shape.global_batch_size,
                gpus_per_model=phase.gpus_per_model,
                num_models=num_models,
            )
        )
    return works


def _net(recipe: Recipe, side: int, *, fused: bool) -> Net:
    num_classes = NUM_CLASSES[recipe.dataset]
    if recipe.net == "resnet50":
        return resnet50(side, width=recipe.width, num_classes=num_classes, blocks=recipe.blocks)
    count = speed_net if recipe.net == "speed_net" else resnet9
    return count(recipe.width, num_classes, fused=fused)
