"""What a recipe asks for: its phases as models, devices, images and steps. No torch."""

from dataclasses import dataclass

from bench.net_cost import Net, resnet9
from bench.paper import Paper
from swap_fast.config import AveragingRecipe, Phase, Recipe

TRAIN_IMAGES = 50_000
"""Of CIFAR-10 and CIFAR-100."""
TEST_IMAGES = 10_000
NUM_CLASSES = {"cifar10": 10, "cifar100": 100, "synthetic": 10}


@dataclass(frozen=True, kw_only=True)
class PhaseWork:
    """Epochs of one batch size and one image size: a phase, or an ImageNet stage of one."""

    name: str
    """Such as "phase 1"."""
    net: Net
    """At this phase's image size."""
    epochs: float
    """How many, or how many are expected."""
    images: int
    """Training images."""
    global_batch_size: int
    """Images in one update of one model."""
    gpus_per_model: int
    """Devices that share an update."""
    num_models: int = 1
    """W in phase 2: models that are trained apart."""

    @property
    def steps_per_epoch(self) -> int:
        """Updates of one model an epoch; images that fill no whole batch are left out."""
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
    def slots(self) -> int:
        """Devices that the phase can use at once."""
        return self.num_models * self.gpus_per_model


@dataclass(frozen=True, kw_only=True)
class Workload:
    """All that a recipe asks for."""

    name: str
    """The recipe's."""
    phases: tuple[PhaseWork, ...]
    """In order."""
    averages: bool
    """Whether weights are averaged, and one pass over the training data renews batch norm."""
    resident_bytes: int
    """The data set on each device."""
    epochs_source: str
    """Where phase 1's epochs are from."""

    @property
    def last_phase(self) -> PhaseWork:
        """Whose net and devices the averaged model has."""
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
    def slots(self) -> int:
        """Devices that the recipe can use at once."""
        return max(phase.slots for phase in self.phases)


def workload_of(recipe: Recipe, paper: Paper, phase1_epochs: float | None = None) -> Workload:
    """What the recipe asks for.

    Arguments:
        phase1_epochs: how many phase 1 will take; by default the paper's mean, where the recipe
            is the paper's and stops at an accuracy, else at most as many as it may.

    Raises:
        ValueError: a net whose layers are not counted here.
    """
    if recipe.net != "resnet9":
        raise ValueError(f"plan: expected a recipe of resnet9, got {recipe.net} in {recipe.name}")
    if phase1_epochs is not None and not 0 < phase1_epochs <= recipe.phase1.max_epochs:
        raise ValueError(
            f"phase1_epochs: expected more than 0 and at most {recipe.phase1.max_epochs}, "
            f"got {phase1_epochs:g}"
        )
    images = recipe.train_images or TRAIN_IMAGES
    net = resnet9(recipe.width, NUM_CLASSES[recipe.dataset])
    epochs, source = float(recipe.phase1.max_epochs), "the recipe's maximum"
    if phase1_epochs is not None:
        epochs, source = phase1_epochs, "as given"
    elif recipe.phase1.stopping_accuracy is not None and recipe.paper_scale:
        mean = paper.phase1_mean(recipe.dataset)
        epochs, source = mean.epochs, f"the paper's mean, {mean.source}"

    def phase_work(name: str, phase: Phase, epochs: float, num_models: int = 1) -> PhaseWork:
        return PhaseWork(
            name=name,
            net=net,
            epochs=epochs,
            images=images,
            global_batch_size=phase.global_batch_size,
            gpus_per_model=phase.gpus_per_model,
            num_models=num_models,
        )

    phases = [phase_work("phase 1", recipe.phase1, epochs)]
    if isinstance(recipe, AveragingRecipe):
        models = recipe.num_workers
        phases.append(phase_work("phase 2", recipe.phase2, float(recipe.phase2.max_epochs), models))
    # Both orientations of each training image, padded; the test images as they are.
    side = 32 + 2 * recipe.augmentation.pad
    return Workload(
        name=recipe.name,
        phases=tuple(phases),
        averages=len(phases) > 1,
        resident_bytes=3 * (2 * side**2 * images + 2 * 32**2 * TEST_IMAGES),
        epochs_source=source,
    )
