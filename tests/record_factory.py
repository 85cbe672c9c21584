"""Small run records with round figures, for the tests of the report."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from swap_fast.clock import READINGS
from swap_fast.config.phase import Phase
from swap_fast.config.recipe import RECIPE_KINDS, Recipe, SWAPRecipe
from swap_fast.recipes.cifar10 import RECIPES
from swap_fast.record import AverageRow, EpochRow, LapTelemetry, RunRecord, Telemetry, Times, plain
from swap_fast.record_files import write_record

CPU = {
    "device_type": "cpu",
    "device": "Example CPU @ 2.0GHz",
    "device_count": 2,
    "cpu": "Example CPU @ 2.0GHz",
    "cpu_count": 2,
    "memory_gib": 8.0,
    "system": "Linux 6.1",
    "python": "3.11.9",
    "driver": None,
    "cuda": None,
    "libraries": {"torch": "2.10.0+cpu", "numpy": "2.4.6"},
}
V100 = {
    **CPU,
    "device_type": "cuda",
    "device": "Tesla V100-SXM2-16GB",
    "device_count": 8,
    "driver": "550.1",
    "libraries": {"torch": "2.10.0+cu128", "numpy": "2.4.6"},
}
EXECUTION = {
    "device_type": "cpu",
    "precision": "fp32",
    "memory_format": "channels_last",
    "step": "eager",
    "capture": False,
    "all_reduce": "fp32",
    "loader": "tensor",
}
DATA = {
    "name": "cifar10",
    "kind": "published",
    "sha256": "ab" * 32,
    "train_images": 50_000,
    "test_images": 10_000,
}
IMAGENET = {**DATA, "name": "imagenet", "train_images": 1_281_167, "test_images": 50_000}
IMAGENET |= {"classes": 1000}
LAPS = {
    "data_loading": 2.0,
    "data_preparation": 1.0,
    "model_init": 0.5,
    "phase1": 60.0,
    "phase2": 32.0,
    "averaging": 0.25,
    "batch_norm": 4.25,
    "evaluation": 10.0,
    "checkpoint": 0.5,
    "imports": 3.0,
    "analysis": 6.0,
}
"""Of SWAP; of SGD all but phase 2, averaging and the batch-norm pass."""

PHASE1_ACCURACIES = (0.40, 0.55, 0.66, 0.72, 0.76)


def make_record(recipe: str = "cifar10_cpu", seed: int = 0, **changed: Any) -> RunRecord:
    """A run of the recipe: each seed adds a tenth of a percent and a second to phase 1.

    Its last epoch of phase 1 is at 76.0%, its four workers end between 79.0 and 79.6%, their
    average at 81.0%; SGD ends at 76.0%. Phase 1's five epochs take 12 s each.
    """
    made = _fixed(RECIPES[recipe]())
    is_swap = isinstance(made, SWAPRecipe)
    more = seed / 1000
    laps = dict(LAPS) if is_swap else {n: s for n, s in LAPS.items() if n in _SGD_LAPS}
    laps["phase1"] += seed
    rows = [
        EpochRow(
            phase=1,
            worker=0,
            epoch=epoch,
            learning_rate=0.1 * epoch,
            train_loss=2.0 / epoch,
            train_accuracy=accuracy - 0.05,
            time_s=1.5 + laps["phase1"] * epoch / 5,
            test_accuracy=accuracy + more,
        )
        for epoch, accuracy in enumerate(PHASE1_ACCURACIES, start=1)
    ]
    readings = {name: sum(laps.get(n, 0.0) for n in names) for name, names in READINGS.items()}
    whole_s = readings["paper"]
    times = Times(
        before_averaging_s=whole_s - 4.5 if is_swap else None,
        after_averaging_s=whole_s,
        modelled_before_averaging_s=whole_s - 4.5 - 24.0 if is_swap else None,
        modelled_after_averaging_s=whole_s - 24.0 if is_swap else whole_s,
        readings_s=readings,
        reading_laps={name: list(names) for name, names in READINGS.items()},
        laps_by_rank=[laps],
        worker_phase2_s=[8.0] * 4 if is_swap else [],
        wall_s=sum(laps.values()) + 1.25,
    )
    record = RunRecord(
        run_id=f"{recipe}-seed{seed}-20261122120000",
        recipe=recipe,
        method=next(name for name, kind in RECIPE_KINDS.items() if isinstance(made, kind)),
        seed=seed,
        created="2026-11-22T12:00:00+00:00",
        configuration={
            "recipe": plain(asdict(made)),
            "execution": EXECUTION,
        },
        overrides=[],
        code={"version": "0.1.0", "commit": "0" * 40, "changed": False},
        data=DATA,
        machine=CPU,
        world_size=1,
        threads=2,
        emulated_workers=is_swap,
        stopped_by="stopping_accuracy" if is_swap else "max_epochs",
        phase1_epochs=5,
        epochs=rows + (_phase2_rows(laps, more) if is_swap else []),
        worker_accuracies=[0.790 + worker * 0.002 + more for worker in range(4)]
        if is_swap
        else [0.76 + more],
        accuracy_before_averaging=0.793 + more if is_swap else None,
        test_accuracy=(0.81 if is_swap else 0.76) + more,
        pairwise_distances=[[float(i != j) for j in range(4)] for i in range(4)] if is_swap else [],
        average_by_epoch=[
            AverageRow(epoch=1, test_accuracy=0.80 + more),
            AverageRow(epoch=2, test_accuracy=0.81 + more),
        ]
        if is_swap
        else [],
        times=times,
        peak_memory_gib=1.25,
    )
    return replace(record, **changed)


def cpu_runs(num_seeds: int = 2) -> list[RunRecord]:
    """Runs of the three recipes of Table 1 at CPU size."""
    recipes = ("cifar10_cpu", "cifar10_sgd_small_cpu", "cifar10_sgd_large_cpu")
    return [make_record(recipe, seed) for recipe in recipes for seed in range(num_seeds)]


def write_results(folder: Path, records: Iterable[RunRecord]) -> Path:
    """A results folder that holds these records."""
    for record in records:
        write_record(record, folder / "runs")
    return folder


def make_telemetry(*, energy_j: float | None = 6000.0, **phase1: Any) -> Telemetry:
    """A device's: 60 s of phase 1 at 100 W, 10 s of evaluation at 50 W, loading too short to see.

    Arguments:
        phase1: other values of that lap.
    """
    unseen = LapTelemetry(
        samples=0,
        energy_j=None,
        mean_power_w=None,
        mean_sm_clock_mhz=None,
        lowest_sm_clock_mhz=None,
        mean_memory_clock_mhz=None,
        mean_utilization=None,
        peak_memory_used_gib=None,
        peak_temperature_c=None,
        throttle_reasons=None,
    )
    training = LapTelemetry(
        samples=120,
        energy_j=energy_j,
        mean_power_w=104.0,
        mean_sm_clock_mhz=1400.0,
        lowest_sm_clock_mhz=1200.0,
        mean_memory_clock_mhz=877.0,
        mean_utilization=0.9,
        peak_memory_used_gib=3.5,
        peak_temperature_c=61.0,
        throttle_reasons={"idle": 0.1, "software power cap": 0.5},
    )
    return Telemetry(
        device="Tesla V100-SXM2-16GB",
        driver="550.1",
        interval_s=0.5,
        laps={
            "evaluation": replace(unseen, energy_j=500.0),
            "data_loading": unseen,
            "phase1": replace(training, **phase1),
        },
        missing={} if energy_j is not None else {"energy": "Not Supported"},
    )


def with_recipe(record: RunRecord, **changed: Any) -> RunRecord:
    """The record with other values in its recipe."""
    recipe = {**record.configuration["recipe"], **changed}
    return replace(record, configuration={**record.configuration, "recipe": recipe})


def _fixed(recipe: Recipe) -> Recipe:
    """A recipe of CPU size with figures of the tests' own: the real ones may be tuned."""
    if recipe.paper_scale:
        return recipe
    phase1 = Phase(
        global_batch_size=1024, peak_lr=1.0, max_epochs=8, warmup_epochs=1.5, gpus_per_model=4
    )
    fixed = replace(recipe, width=16, target_accuracy=0.8, train_images=None)
    if not isinstance(fixed, SWAPRecipe):
        return replace(fixed, phase1=phase1)
    phase2 = Phase(global_batch_size=128, peak_lr=0.1, max_epochs=2)
    return replace(fixed, phase1=phase1, phase2=phase2, num_workers=4)


_SGD_LAPS = set(LAPS) - {"phase2", "averaging", "batch_norm"}


def _phase2_rows(laps: dict[str, float], more: float) -> list[EpochRow]:
    return [
        EpochRow(
            phase=2,
            worker=worker,
            epoch=epoch,
            learning_rate=0.05 * (2 - epoch),
            train_loss=0.5,
            train_accuracy=0.80,
            time_s=1.5 + laps["phase1"] + 8 * worker + 4 * epoch,
            test_accuracy=0.78 + 0.01 * (epoch - 1) + 0.002 * worker + more,
        )
        for worker in range(4)
        for epoch in (1, 2)
    ]
