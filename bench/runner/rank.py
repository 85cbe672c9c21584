"""One run of a recipe on one rank: load the data, run the method, write the record."""

import importlib
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from bench.hardware.machine import describe_machine, device_uuid
from bench.hardware.telemetry import Sampler, missing_line
from bench.runner.attempts import Attempt
from bench.runner.launch import end_rank, say_where
from bench.runner.profiler import NOTE, Profiler, around, was_profiled
from bench.runner.progress import complain, make_narrator, part_of, speaker, track_workers
from bench.runner.recording import make_record
from bench.runner.request import Request
from bench.runner.run_data import RunData, load_run_data
from bench.runner.run_folders import Place, describe_run, find_place, write_description
from swap_fast.algorithm import large_batch_phase, small_batch_phase, swap
from swap_fast.baselines import sgd, swa
from swap_fast.callbacks.emitter import Narrator
from swap_fast.callbacks.events import merge_events
from swap_fast.checkpoint.run_folder import RunFolder, tidy
from swap_fast.config.recipe import SWAPRecipe, SWARecipe
from swap_fast.distributed import Comm, connect
from swap_fast.outcome import average_by_cycle, running_average
from swap_fast.record import AverageRow, EpochRow, plain, write_record
from swap_fast.training.capture import Captures
from swap_fast.training.clock import TRAINING, Clock, total
from swap_fast.training.interruption import InterruptedRunError, Interruption
from swap_fast.training.memory import keep_freed_memory
from swap_fast.training.parts import Watch, make_parts
from swap_fast.training.state import Position
from swap_fast.training.watchdog import Watchdog


@dataclass(frozen=True, kw_only=True)
class Rank:
    """One process of a run, and what measures it."""

    request: Request
    """What it was told."""
    device: torch.device
    """Its own."""
    comm: Comm
    """The others."""
    clock: Clock
    """Its laps."""
    sampler: Sampler
    """Watches the device."""
    interruption: Interruption
    """Says when it is to end."""
    captures: Captures
    """Owns its CUDA graphs."""
    watchdog: Watchdog | None
    """Ends it where a rank hangs; None: there are no others, or their collectives do so."""
    profiler: Profiler | None
    """Traces some of its steps."""


def run_rank(request: Request) -> Path | None:
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
        interruption=Interruption(synchronize),
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
            rank.interruption.listening(),
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
    place: Place = comm.on_first(lambda: find_place(request, about))
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
    rank: Rank, data: RunData, place: Place, attempt: Attempt | None = None
) -> Path | None:
    """Train, and tell of it while it goes on; rank 0 has the attempt.

    Returns:
        The record; of a part of a run, the run's folder.
    """
    request, comm, folder = rank.request, rank.comm, place.folder
    with make_narrator(request, comm, rank.clock, folder, data.source.num_images) as narrator:
        if attempt is not None:
            narrator.began(
                folder.name,
                plain(asdict(request.recipe)),
                seed=request.seed,
                machine=describe_machine(request.execution.device_type),
                world_size=comm.world_size,
                goes_on=attempt.goes_on,
                held_out=request.held_out,
            )
            track_workers(narrator, folder)
            if attempt.goes_on:
                narrator.note(f"{folder.name} goes on")
            if place.start is not None:
                narrator.note(f"phase 1 is that of {place.start.name}; its time counts")
        path = _train(rank, data, place, narrator, attempt)
        comm.barrier()
    if request.part == "all":
        _put_away(rank, place)
    return path


def _put_away(rank: Rank, place: Place) -> None:
    """Of a run that is done keep what is of use: one file of events, the ends of the phases."""
    if rank.comm.rank == 0:
        try:
            merge_events(place.folder)
        except OSError as error:
            complain(f"the events stay in several files: {error}")
    rank.comm.barrier()  # what is half written is not left over
    tidy(place.folder, keep_epochs=rank.request.keep_epochs)


def _train(
    rank: Rank, data: RunData, place: Place, narrator: Narrator, attempt: Attempt | None
) -> Path | None:
    """Train, and write the record."""
    request, recipe, comm, clock = rank.request, rank.request.recipe, rank.comm, rank.clock

    shares_updates = False

    def on_step(images: int) -> None:
        narrator.on_step(images)
        if attempt is not None:
            attempt.beat()
        if rank.watchdog is not None and shares_updates:
            rank.watchdog.beat()

    def on_begin(position: Position) -> None:
        nonlocal shares_updates
        ranks = comm if position.phase == 1 else parts.group.inside
        shares_updates = ranks.world_size > 1
        if position.phase == 1 and position.stopped_by is not None:
            say_where("phase 2")
        narrator.on_begin(position)

    def on_epoch(row: EpochRow) -> None:
        if rank.watchdog is not None and shares_updates:
            rank.watchdog.alive()
        worker = f" of worker {row.worker}" if row.phase == 2 else ""
        say_where(f"phase {row.phase} after epoch {row.epoch}{worker}")
        narrator.on_epoch(row)

    def on_end(position: Position) -> None:
        if rank.watchdog is not None:
            rank.watchdog.rest()
        if position.phase == 1:
            say_where("phase 2")
        narrator.on_end(position)

    def on_averaging() -> None:
        if rank.watchdog is not None:
            rank.watchdog.rest()
        narrator.on_averaging()

    def on_save(position: Position) -> None:
        narrator.on_save(position)
        if attempt is not None:
            attempt.keep(total(clock.laps, TRAINING) - folder.restored_s)

    folder = RunFolder(
        place.folder,
        clock,
        start=place.start,
        keep_epochs=request.keep_epochs,
        on_save=on_save,
        say=narrator.note,
    )
    parts = make_parts(
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
        interruption=rank.interruption,
        workers=request.workers,
        captures=rank.captures,
    )
    traces = request.out / "profiles" / place.folder.name
    if rank.profiler is not None:
        parts = rank.profiler.begin(parts, recipe, data.source.num_images, traces, narrator.note)
    say_where("phase 1")
    if request.part != "all":
        assert isinstance(recipe, SWAPRecipe), "only SWAP's parts are run apart"
        start = large_batch_phase(recipe, parts)
        if request.part == "workers":
            small_batch_phase(recipe, parts, start)
        narrator.tell("part_done")
        return place.folder
    averages: list[AverageRow] = []
    if isinstance(recipe, SWAPRecipe):
        result = swap(recipe, parts)
        with clock.lap("analysis"):
            if comm.rank == 0:
                narrator.note("averaging the workers' epochs of phase 2, for Figure 1")
            averages = running_average(recipe, parts, result)
    elif isinstance(recipe, SWARecipe):
        result = swa(recipe, parts)
        with clock.lap("analysis"):
            averages = average_by_cycle(recipe, parts, result)
    else:
        result = sgd(recipe, parts)
    with clock.lap("checkpoint"):
        if comm.rank == 0:
            folder.save_final(parts.weights)
    taken = None
    if folder.taken_from is not None:
        taken = {"run_id": folder.taken_from, "origin": folder.origin}
    if was_profiled(request.out, place.folder.name, folder.taken_from):
        request = replace(request, notes=(*request.notes, NOTE))
    record = make_record(
        request,
        parts,
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
    narrator.tell(
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
