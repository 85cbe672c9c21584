"""One run of a recipe on one rank: load the data, run the method, write the record."""

import importlib
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from bench.hardware.machine import (
    describe_machine,
    device_uuid,
    peak_device_memory_gib,
    peak_memory_gib,
)
from bench.hardware.telemetry import Sampler, missing_line
from bench.runner.attempts import Attempt
from bench.runner.launch import end_rank, say_where
from bench.runner.profiler import Profiler, around, was_profiled
from bench.runner.progress import complain, make_narrator, part_of, speaker, track_workers
from bench.runner.run_folders import RunDir, RunSpec, describe_run, find_place, write_description
from swap_fast.algorithm import Result, large_batch_phase, sgd, small_batch_phase, swa, swap
from swap_fast.callbacks.emitter import EventLogger
from swap_fast.callbacks.events import merge_events
from swap_fast.checkpoint.run_folder import RunFolder, tidy
from swap_fast.config.recipe import AveragingRecipe, SWAPRecipe, SWARecipe
from swap_fast.data.cifar.dataset import Dataset, hold_out
from swap_fast.data.cifar.files import load_dataset
from swap_fast.data.imagenet.scan import ImageTree, scan_tree
from swap_fast.distributed import Comm, connect
from swap_fast.models import make_tree_net, net_maker
from swap_fast.outcome import average_by_cycle, gather_times, running_average
from swap_fast.record import (
    AverageRow,
    Data,
    EpochRow,
    Interruptions,
    RunRecord,
    Start,
    Telemetry,
    plain,
    write_record,
)
from swap_fast.tasks.cifar import CifarSource
from swap_fast.tasks.imagenet import TreeSource
from swap_fast.training.capture import Captures, keep_freed_memory
from swap_fast.training.clock import TRAINING, Clock, total
from swap_fast.training.parts import Source, Trainer, Watch, build_trainer
from swap_fast.training.shutdown import GracefulShutdown, InterruptedRunError
from swap_fast.training.state import Progress
from swap_fast.training.watchdog import Watchdog
from swap_fast.training.weights import displacements, pairwise_distances

# From a finished run on all ranks to its record.


def make_record(
    request: RunSpec,
    trainer: Trainer,
    result: Result,
    rows: list[EpochRow],
    averages: list[AverageRow],
    data: Data,
    *,
    start: Start | None,
    interruptions: Interruptions | None,
    name: str,
    created: str,
    telemetry: Telemetry | None,
) -> RunRecord:
    """Gather what the ranks know into one record; every rank must call."""
    recipe, comm = request.recipe, trainer.comm
    num_workers = recipe.num_workers if isinstance(recipe, AveragingRecipe) else 0
    is_swap = isinstance(recipe, SWAPRecipe)
    speaks = trainer.group.is_first
    all_rows = [
        row for rank in comm.gather(rows if speaks else []) for row in rank if row.phase == 2
    ]
    phase1_rows = [row for row in rows if row.phase == 1]
    phase2_rows = sorted(all_rows, key=lambda row: (row.worker, row.epoch))
    last_rows = {row.worker: row for row in phase2_rows or phase1_rows}
    accuracies = [row.test_accuracy or 0.0 for _, row in sorted(last_rows.items())]
    models = _models_on_first(trainer, result)
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
        emulated_workers=is_swap and comm.world_size < recipe.num_replicas,
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
        times=gather_times(trainer, result),
        peak_memory_gib=max(comm.gather(peak_memory_gib())),
        peak_device_reserved_gib=reserved,
        peak_device_allocated_gib=allocated,
        telemetry=None if telemetry is None else comm.gather(telemetry),
        start=start,
        interruptions=interruptions,
        flags=list(request.flags),
        notes=list(request.notes),
    )


def _models_on_first(trainer: Trainer, result: Result) -> list[Tensor]:
    """The averaged models [P] in the workers' order, on rank 0's host; elsewhere none."""
    own = [
        (worker.number, [theta.cpu() for theta in worker.samples])
        for worker in (result.workers if trainer.group.is_first else [])
    ]
    gathered = sorted(
        (pair for rank in trainer.comm.gather_on_first(own) for pair in rank),
        key=lambda pair: pair[0],
    )
    return [theta for _, samples in gathered for theta in samples]


# A run's data on one rank: images of CIFAR's size in memory, or the files of a tree.


IMAGENET = (1_281_167, 50_000, 1_000)
"""Training images, test images and classes of ImageNet as published."""


@dataclass(frozen=True, kw_only=True)
class RunData:
    """What a run needs of its data."""

    source: Source
    """Makes the batches."""
    make_model: Callable[[], nn.Module]
    """The recipe's net for these classes."""
    description: Data
    """The data as a record keeps it: by its content, not by its place on a machine."""


def load_run_data(request: RunSpec, comm: Comm, say: Callable[[str], None]) -> RunData:
    """Read the data set, or look through the tree; every rank must call.

    Raises:
        ValueError: damaged or different data.
    """
    if request.recipe.dataset == "imagenet":
        return _tree(request, comm, say)
    dataset = load_dataset(request.recipe.dataset, request.data)
    if request.held_out:
        dataset = hold_out(dataset, request.held_out)
    if len(set(comm.gather(dataset.sha256))) > 1:
        raise ValueError(
            f"{request.recipe.dataset}: expected the same data on every rank, got sets of "
            "different content; give all of them --data DIR"
        )
    return RunData(
        source=CifarSource(request.recipe, dataset),
        make_model=net_maker(request.recipe, dataset),
        description=_describe_dataset(dataset, request),
    )


def _describe_dataset(dataset: Dataset, request: RunSpec) -> Data:
    described: Data = {
        "name": dataset.name,
        "kind": dataset.kind,
        "sha256": dataset.sha256,
        "train_images": request.recipe.train_images or len(dataset.train),
        "test_images": len(dataset.test),
    }
    if request.held_out:
        described["held_out"] = request.held_out
    return described


def _tree(request: RunSpec, comm: Comm, say: Callable[[str], None]) -> RunData:
    """One rank looks at the files, and tells the others: all have the same list."""
    assert request.data is not None, "a tree has no stand-in"
    root: Path = request.data

    def scan() -> ImageTree:
        tree = scan_tree(
            root,
            skip_bad_files=request.skip_bad_files,
            on_bad_file=lambda bad: say(f"bad file: {bad}"),
        )
        say(f"{root.name}: {tree.describe()}")
        return tree

    tree: ImageTree = comm.on_first(scan)
    loader = request.execution.loader
    assert loader != "tensor", "a tree's images are not resident"
    counts = (len(tree.train), len(tree.test), len(tree.classes))
    return RunData(
        source=TreeSource(tree, loader=loader, threads=request.threads),
        make_model=partial(make_tree_net, request.recipe, len(tree.classes)),
        description={
            "name": "imagenet",
            # By its counts: there is no published hash of the files.
            "kind": "published" if counts == IMAGENET else "own",
            "sha256": tree.sha256,
            "train_images": len(tree.train),
            "test_images": len(tree.test),
            "classes": len(tree.classes),
            "prepared_size": tree.prepared_size,
            "skipped_files": len(tree.skipped),
        },
    )


@dataclass(frozen=True, kw_only=True)
class Rank:
    """One process of a run, and what measures it."""

    request: RunSpec
    """What it was told."""
    device: torch.device
    """Its own."""
    comm: Comm
    """The others."""
    clock: Clock
    """Its laps."""
    sampler: Sampler
    """Watches the device."""
    shutdown: GracefulShutdown
    """Says when it is to end."""
    captures: Captures
    """Owns its CUDA graphs."""
    watchdog: Watchdog | None
    """Ends it where a rank hangs; None: there are no others, or their collectives do so."""
    profiler: Profiler | None
    """Traces some of its steps."""


def run_rank(request: RunSpec) -> Path | None:
    """Run the recipe on this rank; rank 0 returns the path of the record it wrote.

    Raises:
        ValueError: what was asked for cannot be run.
        FloatingPointError: training diverged.
        InterruptedRunError: it was told to end.
    """
    torch.set_num_threads(request.threads)
    keep_freed_memory()
    torch.backends.cudnn.benchmark = True  # every shape comes again; the warm-up tries the kernels
    device = torch.device(request.execution.device_type)
    comm = connect(device.type, timeout_s=request.timeout_s)
    # What would else fall into a lap that counts: CUDA's start, and torch's compiler, hundreds of
    # modules that torch imports with the first optimizer.
    torch.zeros(1, device=device)
    importlib.import_module("torch._dynamo")
    imports_s = time.time() - request.started
    synchronize = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    sampler = Sampler()
    profiler = Profiler() if request.profile and comm.rank == 0 else None
    laps = sampler.lap if profiler is None else around(sampler.lap, profiler.lap)
    rank = Rank(
        request=request,
        device=device,
        comm=comm,
        clock=Clock(synchronize, around=laps),
        sampler=sampler,
        shutdown=GracefulShutdown(synchronize),
        captures=Captures(),
        watchdog=Watchdog(comm, timeout_s=request.timeout_s, on_hang=end_rank)
        if request.execution.capture and comm.world_size > 1
        else None,
        profiler=profiler,
    )
    rank.clock.add("imports", imports_s)
    try:
        # The graphs are reset before the processes part, in an error too: see `Captures`.
        with (
            rank.captures,
            rank.watchdog or nullcontext(),
            rank.shutdown.listening(),
            sampler.watching(device_uuid(device.type)),
        ):
            path = _run(rank)
    except FloatingPointError as error:
        raise FloatingPointError(f"seed {request.seed}, {error}") from None
    except InterruptedRunError as error:
        if error.together:
            comm.close()
        raise
    comm.close()
    return path


def _run(rank: Rank) -> Path | None:
    """Load the data, find the run's folder, and train there; or leave a run that is done."""
    request, comm = rank.request, rank.comm

    say = speaker(request.progress if comm.rank == 0 else "none")
    with rank.clock.lap("data_loading"):
        data = load_run_data(request, comm, say)
    line = missing_line(comm.gather(rank.sampler.missing))
    if line is not None and request.first:
        say(line)
    about = describe_run(request, data.description, comm.world_size)
    place: RunDir = comm.on_first(lambda: find_place(request, about))
    if place.record is not None:
        _put_away(rank, place)
        say(f"{place.folder.name} is done already")
        return place.record if comm.rank == 0 else None
    if comm.rank > 0:
        return _narrate(rank, data, place)
    with Attempt(place.folder, part_of(request)) as attempt:
        write_description(place.folder, {**about, "created": place.created})
        return _narrate(rank, data, place, attempt)


def _narrate(
    rank: Rank, data: RunData, place: RunDir, attempt: Attempt | None = None
) -> Path | None:
    """Train, and tell of it while it goes on; rank 0 has the attempt.

    Returns:
        The record; of a part of a run, the run's folder.
    """
    request, comm, folder = rank.request, rank.comm, place.folder
    with make_narrator(request, comm, rank.clock, folder, data.source.num_images) as logger:
        if attempt is not None:
            logger.began(
                folder.name,
                plain(asdict(request.recipe)),
                seed=request.seed,
                machine=describe_machine(request.execution.device_type),
                world_size=comm.world_size,
                goes_on=attempt.goes_on,
                held_out=request.held_out,
            )
            track_workers(logger, folder)
            if attempt.goes_on:
                logger.note(f"{folder.name} goes on")
            if place.start is not None:
                logger.note(f"phase 1 is that of {place.start.name}; its time counts")
        path = _train(rank, data, place, logger, attempt)
        comm.barrier()
    if request.part == "all":
        _put_away(rank, place)
    return path


def _put_away(rank: Rank, place: RunDir) -> None:
    """Of a run that is done keep what is of use: one file of events, the ends of the phases."""
    if rank.comm.rank == 0:
        try:
            merge_events(place.folder)
        except OSError as error:
            complain(f"the events stay in several files: {error}")
    rank.comm.barrier()  # what is half written is not left over
    tidy(place.folder, keep_epochs=rank.request.keep_epochs)


def _train(
    rank: Rank, data: RunData, place: RunDir, logger: EventLogger, attempt: Attempt | None
) -> Path | None:
    """Train, and write the record."""
    request, recipe, comm, clock = rank.request, rank.request.recipe, rank.comm, rank.clock

    shares_updates = False

    def on_step(images: int) -> None:
        logger.on_step(images)
        if attempt is not None:
            attempt.beat()
        if rank.watchdog is not None and shares_updates:
            rank.watchdog.beat()

    def on_begin(position: Progress) -> None:
        nonlocal shares_updates
        ranks = comm if position.phase == 1 else trainer.group.inside
        shares_updates = ranks.world_size > 1
        if position.phase == 1 and position.stopped_by is not None:
            say_where("phase 2")
        logger.on_begin(position)

    def on_epoch(row: EpochRow) -> None:
        if rank.watchdog is not None and shares_updates:
            rank.watchdog.alive()
        worker = f" of worker {row.worker}" if row.phase == 2 else ""
        say_where(f"phase {row.phase} after epoch {row.epoch}{worker}")
        logger.on_epoch(row)

    def on_end(position: Progress) -> None:
        if rank.watchdog is not None:
            rank.watchdog.rest()
        if position.phase == 1:
            say_where("phase 2")
        logger.on_end(position)

    def on_averaging() -> None:
        if rank.watchdog is not None:
            rank.watchdog.rest()
        logger.on_averaging()

    def on_save(position: Progress) -> None:
        logger.on_save(position)
        if attempt is not None:
            attempt.keep(total(clock.laps, TRAINING) - folder.restored_s)

    folder = RunFolder(
        place.folder,
        clock,
        start=place.start,
        keep_epochs=request.keep_epochs,
        on_save=on_save,
        say=logger.note,
    )
    trainer = build_trainer(
        recipe,
        data.make_model,
        data.source,
        seed=request.seed,
        device=rank.device,
        execution=request.execution,
        comm=comm,
        clock=clock,
        watch=Watch(
            on_begin=on_begin,
            on_step=on_step if rank.profiler is None else rank.profiler.after(on_step),
            on_epoch=on_epoch,
            on_end=on_end,
            on_averaging=on_averaging,
        ),
        checkpoints=folder,
        shutdown=rank.shutdown,
        workers=request.workers,
        captures=rank.captures,
    )
    traces = request.out / "profiles" / place.folder.name
    if rank.profiler is not None:
        trainer = rank.profiler.begin(trainer, recipe, data.source.num_images, traces, logger.note)
    say_where("phase 1")
    if request.part != "all":
        assert isinstance(recipe, SWAPRecipe), "only SWAP's parts are run apart"
        start = large_batch_phase(recipe, trainer)
        if request.part == "workers":
            small_batch_phase(recipe, trainer, start)
        logger.tell("part_done")
        return place.folder
    averages: list[AverageRow] = []
    if isinstance(recipe, SWAPRecipe):
        result = swap(recipe, trainer)
        with clock.lap("analysis"):
            if comm.rank == 0:
                logger.note("averaging the workers' epochs of phase 2, for Figure 1")
            averages = running_average(recipe, trainer, result)
    elif isinstance(recipe, SWARecipe):
        result = swa(recipe, trainer)
        with clock.lap("analysis"):
            averages = average_by_cycle(recipe, trainer, result)
    else:
        result = sgd(recipe, trainer)
    with clock.lap("checkpoint"):
        if comm.rank == 0:
            folder.save_final(trainer.weights)
    taken: Start | None = None
    if folder.taken_from is not None and folder.origin is not None:
        taken = {"run_id": folder.taken_from, "origin": folder.origin}
    if was_profiled(request.out, place.folder.name, folder.taken_from):
        request = replace(request, flags=(*request.flags, "profiled"))
    record = make_record(
        request,
        trainer,
        result,
        folder.rows,
        averages,
        data.description,
        start=taken,
        interruptions=attempt.interruptions() if attempt else None,
        name=place.folder.name,
        created=place.created,
        telemetry=rank.sampler.finish(),
    )
    if comm.rank > 0:
        return None
    path = write_record(record, request.out / "runs")
    logger.tell(
        "done",
        test_accuracy=record.test_accuracy,
        accuracy_before_averaging=record.accuracy_before_averaging,
        worker_accuracies=record.worker_accuracies,
        phase1_epochs=record.phase1_epochs,
        stopped_by=record.stopped_by,
        training_time_s=record.times.after_averaging_s,
        record=str(path),
    )
    return path
