"""Phase 1 on 1 to 1,024 devices by the model: where it stops scaling, and W should grow. No torch.

Weak scaling keeps the images of a device, so that the batch grows with the devices; strong scaling
keeps the recipe's batch. The model does not predict accuracy: the paper trains with batches of up
to 4,096 images on CIFAR, and says that larger ones generalise worse.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

from bench.document import NOTHING, Table
from bench.planner.model import Modelled, epoch_s
from bench.planner.workload import PhaseWork, Workload
from bench.plots.training import figure_style, save_figure

LARGEST = 1024
"""Devices."""

WORTH_IT = 1.5
"""Least speed-up of twice the devices; below it, phase 1 no longer scales."""


@dataclass(frozen=True, kw_only=True)
class ScalingPoint:
    """Phase 1 on one number of devices."""

    gpus: int
    weak_batch: int
    """In proportion to the devices."""
    weak_s: float | None
    """Seconds an epoch with that batch; None where it is larger than the training set."""
    strong_s: float | None
    """Seconds an epoch with the recipe's batch; None where a device would have no images."""


@dataclass(frozen=True, kw_only=True)
class Scaling:
    """Phase 1 of a recipe from one device to `LARGEST`."""

    work: Workload
    speed: Modelled
    points: tuple[ScalingPoint, ...]
    """Each with twice the devices of the one before."""

    @property
    def weak_limit(self) -> int:
        """Devices at which weak scaling ends."""
        return _limit([(point.gpus, point.weak_s) for point in self.points])

    @property
    def strong_limit(self) -> int:
        """Devices at which strong scaling ends."""
        return _limit([(point.gpus, point.strong_s) for point in self.points])


def scale(work: Workload, speed: Modelled) -> Scaling:
    """Phase 1 on 1, 2, 4, ... devices."""
    phase, points, gpus = work.phases[0], [], 1
    while gpus <= LARGEST:
        batch = phase.micro_batch_size * gpus
        points.append(
            ScalingPoint(
                gpus=gpus,
                weak_batch=batch,
                weak_s=_epoch_s(phase, speed, gpus, batch),
                strong_s=_epoch_s(phase, speed, gpus, phase.global_batch_size),
            )
        )
        gpus *= 2
    return Scaling(work=work, speed=speed, points=tuple(points))


def _epoch_s(phase: PhaseWork, speed: Modelled, gpus: int, batch: int) -> float | None:
    if batch > phase.images or batch < gpus:
        return None
    return epoch_s(replace(phase, gpus_per_model=gpus, global_batch_size=batch), speed, gpus)


def _limit(seconds: Sequence[tuple[int, float | None]]) -> int:
    for (gpus, now), (_, then) in pairwise(seconds):
        if now is None or then is None or now < WORTH_IT * then:
            return gpus
    return seconds[-1][0]


def advice(scaling: Scaling) -> str:
    """Where phase 1 stops scaling, and how to use further devices."""
    phase, limit = scaling.work.phases[0], scaling.weak_limit
    text = (
        f"Phase 1 stops scaling at {scaling.strong_limit} GPUs with the recipe's batch of "
        f"{phase.global_batch_size:,}, and at {limit} with {phase.micro_batch_size} images a GPU: "
        f"there, twice the GPUs make an epoch less than {WORTH_IT:g} times as fast."
    )
    last = scaling.work.last_phase
    if last.num_models == 1:
        return text
    each = f"{last.gpus_per_model} GPU{'s' * (last.gpus_per_model > 1)}"
    return (
        f"{text} Beyond, W should grow: a worker of phase 2 needs {each} and no other worker, so "
        f"that {LARGEST:,} GPUs refine {LARGEST // last.gpus_per_model:,} models in the time of "
        f"{last.num_models}."
    )


def scaling_table(scaling: Scaling) -> Table:
    """One row for each number of devices."""
    phase, last = scaling.work.phases[0], scaling.work.last_phase
    one_s = scaling.points[0].weak_s
    rows = []
    for i, point in enumerate(scaling.points):
        before = scaling.points[i - 1] if i else None
        models = str(max(1, point.gpus // last.gpus_per_model))
        rows.append(
            (
                f"{point.gpus:,}",
                f"{point.weak_batch:,}",
                _seconds(point.weak_s),
                _ratio(before.weak_s if before else None, point.weak_s),
                _efficiency(one_s, point),
                _seconds(point.strong_s),
                _ratio(before.strong_s if before else None, point.strong_s),
                models if last.num_models > 1 else NOTHING,
            )
        )
    efficiency = scaling.speed.efficiency
    return Table(
        name=f"scaling_{scaling.work.name}",
        title=f"Phase 1 of {scaling.work.name} on {scaling.speed.hardware.name}",
        caption=f"By the physical model; nothing here was measured. {advice(scaling)}",
        columns=(
            "GPUs",
            f"Batch, {phase.micro_batch_size} a GPU",
            "Epoch (s)",
            "Gain",
            "Efficiency (%)",
            f"Epoch (s), batch {phase.global_batch_size:,}",
            "Gain at it",
            "W",
        ),
        rows=tuple(rows),
        footnotes=(
            "Gain: over half the GPUs. Efficiency: of one GPU's speed. W: workers of phase 2.",
            f"Steps {efficiency.slowdown:.2f} times the floor, {efficiency.epoch_s:.2f} s an epoch "
            "besides, as in the paper's CIFAR runs; ring all-reduce of float32 gradients that "
            "overlaps with nothing.",
            "Whether a batch of that size still generalises, the model does not know; the paper's "
            "largest on CIFAR is 4,096.",
        ),
    )


def _seconds(seconds: float | None) -> str:
    return NOTHING if seconds is None else f"{seconds:.3f}"


def _ratio(before: float | None, now: float | None) -> str:
    return NOTHING if before is None or now is None else f"{before / now:.2f}"


def _efficiency(one_s: float | None, point: ScalingPoint) -> str:
    if one_s is None or point.weak_s is None:
        return NOTHING
    return f"{100 * one_s / point.gpus / point.weak_s:.0f}"


def scaling_figure(scaling: Scaling, folder: Path) -> Path:
    """Seconds an epoch over devices: weak, strong and perfect scaling.

    Returns:
        The file written, `folder/scaling_RECIPE.svg`.
    """
    with figure_style():
        from matplotlib.figure import Figure
        from matplotlib.ticker import ScalarFormatter

        figure = Figure(figsize=(6.4, 3.8), layout="constrained")
        axes = figure.add_subplot()
        phase, points = scaling.work.phases[0], scaling.points
        weak = [(p.gpus, p.weak_s) for p in points if p.weak_s is not None]
        strong = [(p.gpus, p.strong_s) for p in points if p.strong_s is not None]
        for series, style, label in (
            (weak, "o-", f"{phase.micro_batch_size} images a GPU (weak)"),
            (strong, "s--", f"batch of {phase.global_batch_size:,} (strong)"),
        ):
            color = "#1b3a5c" if series is weak else "#b5541c"
            axes.plot(*zip(*series, strict=True), style, color=color, markersize=4, label=label)
        ideal = [(p.gpus, weak[0][1] / p.gpus) for p in points]
        axes.plot(*zip(*ideal, strict=True), color="0.6", linewidth=0.9, label="perfect scaling")
        axes.axvline(scaling.weak_limit, color="0.35", linewidth=0.9, linestyle=":")
        axes.annotate(
            "phase 1 stops scaling;\nfurther GPUs: more workers",
            (scaling.weak_limit, 1),
            xycoords=("data", "axes fraction"),
            xytext=(4, -4),
            textcoords="offset points",
            va="top",
            fontsize=8,
            color="0.25",
        )
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.set_xlabel("GPUs of phase 1")
        axes.set_ylabel("seconds an epoch, modelled")
        axes.grid()
        axes.legend(loc="lower left", fontsize=8)
        return save_figure(figure, folder, f"scaling_{scaling.work.name}")
