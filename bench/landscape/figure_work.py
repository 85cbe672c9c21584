"""What measuring a figure takes: points, images, processes, and how long. No torch at import."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.landscape.figure_runs import image_s, saved_models
from bench.options import FigureOptions
from swap_fast.record import RunRecord

if TYPE_CHECKING:
    from swap_fast.landscape import Counts

CPU_GRID, CUDA_GRID = 15, 31
"""Points along each side."""
CPU_COUNTS = (2048, 4096, 2000)
"""Images of a point on CPUs: batch-norm pass, train error, test error."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """What measuring a figure asks for."""

    points: int
    """Of the grid and the models marked on it, or models of a path."""
    images: int
    """Of each point."""
    passes: int
    """Of each image: a backward pass counts as two."""
    processes: int
    """That share them."""

    def seconds(self, record: RunRecord) -> float | None:
        """At the speed of the run's own batch-norm pass; None where it had none."""
        each_s = image_s(record)
        whole = self.points * self.images * self.passes / self.processes
        return None if each_s is None else each_s * whole


def grid_of(options: FigureOptions, device: str) -> int:
    """Points along each side of the grid."""
    return options.grid or (CUDA_GRID if device == "cuda" else CPU_GRID)


def counts_of(options: FigureOptions, record: RunRecord, device: str) -> Counts:
    """Images of each point: as asked for, or the device's default; no more than there are."""
    from swap_fast.landscape import Counts

    train, test = record.data["train_images"], record.data["test_images"]
    passed, on_train, on_test = (train, train, test) if device == "cuda" else CPU_COUNTS
    return Counts(
        batch_norm_images=options.batch_norm_images or passed,
        train_images=options.train_images or on_train,
        test_images=options.test_images or on_test,
    ).within(train, test)


def processes_of(options: FigureOptions, device: str) -> int:
    """Processes that measure: one a device, or one a core.

    Raises:
        ValueError: more than there are CUDA devices.
    """
    from bench.hardware.machine import available_cores

    if device == "cpu":
        return options.processes or available_cores()
    import torch

    units = torch.cuda.device_count()
    if options.processes is not None and options.processes > units:
        raise ValueError(
            f"processes: expected at most one a CUDA device, {units}, got {options.processes}"
        )
    return options.processes or units


def work_of(options: FigureOptions, record: RunRecord, device: str) -> Work:
    """What Figure 2, 3 or 4 of a run asks for."""
    from swap_fast.landscape import GRADIENT_IMAGES

    models, processes = (
        len(saved_models(options.number, record, options.out)),
        processes_of(options, device),
    )
    if options.number == 4:
        images = min(options.train_images or GRADIENT_IMAGES, record.data["train_images"])
        return Work(points=models - 1, images=images, passes=3, processes=processes)
    grid, counts = grid_of(options, device), counts_of(options, record, device)
    return Work(points=models + grid**2, images=counts.total, passes=1, processes=processes)
