"""From a finished run on all ranks to its record."""

from dataclasses import asdict
from typing import Any

from torch import Tensor

from bench.hardware.machine import describe_machine, peak_device_memory_gib, peak_memory_gib
from bench.runner.request import Request
from swap_fast.algorithm import Result
from swap_fast.config.recipe import AveragingRecipe, SWAPRecipe
from swap_fast.record import AverageRow, EpochRow, RunRecord, Telemetry, plain
from swap_fast.times import gather_times
from swap_fast.training.averaging import displacements, pairwise_distances
from swap_fast.training.parts import Parts


def make_record(
    request: Request,
    parts: Parts,
    result: Result,
    rows: list[EpochRow],
    averages: list[AverageRow],
    data: dict[str, Any],
    *,
    start: dict[str, Any] | None,
    interruptions: dict[str, Any] | None,
    name: str,
    created: str,
    telemetry: Telemetry | None,
) -> RunRecord:
    """Gather what the ranks know into one record; every rank must call."""
    recipe, comm = request.recipe, parts.comm
    num_workers = recipe.num_workers if isinstance(recipe, AveragingRecipe) else 0
    is_swap = isinstance(recipe, SWAPRecipe)
    speaks = parts.group.is_first
    all_rows = [
        row for rank in comm.gather(rows if speaks else []) for row in rank if row.phase == 2
    ]
    phase1_rows = [row for row in rows if row.phase == 1]
    phase2_rows = sorted(all_rows, key=lambda row: (row.worker, row.epoch))
    last_rows = {row.worker: row for row in phase2_rows or phase1_rows}
    accuracies = [row.test_accuracy or 0.0 for _, row in sorted(last_rows.items())]
    models = _models_on_first(parts, result)
    norms, cosines = displacements(models, result.phase1.theta.cpu())
    peaks = comm.gather(peak_device_memory_gib(request.execution.device_type))
    reserved, allocated = (
        max((gib for gib in of_ranks if gib is not None), default=None)
        for of_ranks in zip(*peaks, strict=True)
    )
    return RunRecord(
        run_id=name,
        recipe=recipe.name,
        method="swap" if is_swap else "swa" if num_workers else "sgd",
        seed=request.seed,
        created=created,
        configuration=plain({"recipe": asdict(recipe), "execution": asdict(request.execution)}),
        overrides=list(request.overrides),
        code=request.code,
        data=data,
        machine=describe_machine(request.execution.device_type),
        world_size=comm.world_size,
        threads=request.threads,
        emulated_workers=is_swap and comm.world_size < recipe.num_slots,
        stopped_by=result.phase1.stopped_by,
        phase1_epochs=len(phase1_rows),
        epochs=phase1_rows + phase2_rows,
        worker_accuracies=accuracies,
        accuracy_before_averaging=sum(accuracies) / len(accuracies) if num_workers else None,
        test_accuracy=result.accuracies.top1,
        test_top5_accuracy=result.accuracies.top5,
        pairwise_distances=pairwise_distances(models),
        displacement_norms=norms,
        displacement_cosines=cosines,
        average_by_epoch=averages,
        times=gather_times(parts, result),
        peak_memory_gib=max(comm.gather(peak_memory_gib())),
        peak_device_reserved_gib=reserved,
        peak_device_allocated_gib=allocated,
        telemetry=None if telemetry is None else comm.gather(telemetry),
        start=start,
        interruptions=interruptions,
        notes=list(request.notes),
    )


def _models_on_first(parts: Parts, result: Result) -> list[Tensor]:
    """The averaged models [P] in the workers' order, on rank 0's host; elsewhere none."""
    own = [
        (worker.number, [theta.cpu() for theta in worker.samples])
        for worker in (result.workers if parts.group.is_first else [])
    ]
    gathered = sorted(
        (pair for rank in parts.comm.gather_on_first(own) for pair in rank),
        key=lambda pair: pair[0],
    )
    return [theta for _, samples in gathered for theta in samples]
