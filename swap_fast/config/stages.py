"""A phase in stages: stretches of epochs with an image size and a batch of their own (ImageNet)."""

import math
from dataclasses import dataclass, field, replace
from typing import Annotated

from tyro.conf import Suppress

from swap_fast.config.phase import Phase
from swap_fast.config.schedules import Schedule, pieces


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
        """Sum the stages up, and refuse batches that the slots cannot share."""
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
        """Position in epochs at which the learning rate is at its peak and begins to fall."""
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
class Shape:
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


def shapes(phase: Phase, image_size: int) -> tuple[Shape, ...]:
    """A phase's shapes in their order; stages that differ in the learning rate alone share one.

    Arguments:
        image_size: of a phase without stages.
    """
    if not isinstance(phase, StagedPhase):
        epochs, batch = range(phase.max_epochs), phase.global_batch_size
        return (Shape(epochs=epochs, image_size=image_size, global_batch_size=batch),)
    found: list[Shape] = []
    start = 0
    for stage in phase.stages:
        shape = Shape(
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
