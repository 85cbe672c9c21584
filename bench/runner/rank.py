"""One rank's part in one run of a recipe, from its `RunSpec` to its record."""

import gc
import importlib
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bench.hardware.machine import (
    OtherWork,
    describe_machine,
    device_uuid,
    on_own_core,
    other_cores,
    peak_device_memory_gib,
    peak_memory_gib,
)
from bench.hardware.telemetry import Sampler, missing_line
from bench.runner.launch import end_rank, set_status
from bench.runner.profiler import Profiler, was_profiled
from bench.runner.progress import line_printer, log_start, make_logger, part_of, warn
from bench.runner.run_folders import RunDir, RunSpec, describe_run, find_place
from swap_fast.algorithm import large_batch_phase, sgd, small_batch_phase, swa, swap
from swap_fast.callbacks.events import merge_events
from swap_fast.callbacks.watchdog import Watchdog
from swap_fast.checkpoint.run_folder import RunFolder, enter_folder, keep_step, prune
from swap_fast.clock import Clock
from swap_fast.config.recipe import AveragingRecipe, SWAPRecipe, SWARecipe, method_of
from swap_fast.data.cifar.dataset import Dataset, hold_out
from swap_fast.data.cifar.files import load_dataset
from swap_fast.data.imagenet.scan import ImageTree, scan_tree
from swap_fast.distributed import Comm, connect
from swap_fast.files import remove_parts
from swap_fast.host_memory import keep_freed_memory
from swap_fast.models import make_tree_net, net_maker
from swap_fast.outcome import (
    average_by_cycle,
    gather_rows,
    gather_times,
    running_average,
    workers_on_first,
)
from swap_fast.record import (
    QUIET_CORES,
    AverageRow,
    Data,
    EpochRow,
    Flag,
    Interruptions,
    RunRecord,
    Start,
    Telemetry,
    flatten,
    plain,
)
from swap_fast.record_files import write_record
from swap_fast.shutdown import GracefulShutdown, InterruptedRunError
from swap_fast.tasks.cifar import CifarSource
from swap_fast.tasks.imagenet import TreeSource
from swap_fast.training.callback import Callback
from swap_fast.training.capture import Captures
from swap_fast.training.loop import ImageSource
from swap_fast.training.state import Progress, Result
from swap_fast.training.trainer import Trainer, build_trainer
from swap_fast.training.weights import displacements, pairwise_distances


def forget_earlier_runs(device: torch.device) -> None:
    """Drop what runs before in this process left: their memory's peak, and what was compiled.

    torch compiles a function for 8 shapes at most, and then runs it eagerly with a line in its log.
    """
    gc.collect()
    torch.compiler.reset()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def run_rank(spec: RunSpec) -> Path | None:
    """Run the recipe on this rank.

    Returns:
        On rank 0 the path of the record; of a part of a run, the run's folder. Elsewhere None.

    Raises:
        ValueError: the run cannot be made as asked.
        FloatingPointError: training diverged.
        InterruptedRunError: a signal asked it to end.
    """
    torch.set_num_threads(spec.threads)
    keep_freed_memory()
    torch.backends.cudnn.benchmark = True  # shapes repeat; kernel warm-up tries the kernels
    device = torch.device(spec.execution.device_type)
    # The core first: threads and processes stay on the core of the thread that starts them.
    with on_own_core(spec.cores) as has_core, _connected(spec) as comm, ExitStack() as stack:
        # In no lap that counts: CUDA's start, and the hundreds of modules of torch's compiler that
        # torch imports with the first optimizer.
        torch.zeros(1, device=device)
        importlib.import_module("torch._dynamo")
        forget_earlier_runs(device)
        imports_s = time.monotonic() - spec.started

        # The clock, and what watches this process. The stack resets the CUDA graphs before the
        # process group is closed, after an error too: see `Captures`.
        synchronize = torch.cuda.synchronize if device.type == "cuda" else lambda: None
        sampler, shutdown = Sampler(), GracefulShutdown(synchronize)
        callbacks: list[Callback] = [Status()]
        profiler = Profiler() if spec.profile and comm.rank == 0 else None
        clock = Clock(synchronize, around=_meters(sampler, profiler))
        clock.add("imports", imports_s)
        captures = stack.enter_context(Captures())
        if spec.execution.capture and comm.world_size > 1:
            watchdog = Watchdog(comm, timeout_s=spec.timeout_s, on_hang=end_rank)
            callbacks.append(stack.enter_context(watchdog))
        stack.enter_context(shutdown.installed())
        stack.enter_context(sampler.watching(device_uuid(device.type)))

        # The data, and the folder of the run.
        say = line_printer(spec.progress if comm.rank == 0 else "none")
        with clock.lap("data_loading"):
            data = load_run_data(spec, comm, say)
        missing = missing_line(comm.gather(sampler.missing))
        if missing is not None and spec.first:
            say(missing)
        is_pinned = all(comm.gather(has_core))
        if spec.cores and not is_pinned:
            say("other runs have the CPU cores: not each process has one of its own")
        description = describe_run(spec, data.description, comm.world_size)
        place: RunDir = comm.on_first(lambda: find_place(spec, description))
        if place.record is not None:
            _finalize(spec, comm, place)
            say(f"{place.folder.name} is done already")
            return place.record if comm.rank == 0 else None
        attempt = None
        if comm.rank == 0:
            info = replace(description, created=place.created, step_choice=place.step_choice)
            attempt = stack.enter_context(enter_folder(place.folder, info, part=part_of(spec)))
            remove_parts(spec.out / "runs", f"{place.folder.name}.json")

        # The trainer and its callbacks.
        with make_logger(spec, comm, clock, place.folder, data.source.num_images) as logger:
            if attempt is not None:
                log_start(logger, spec, place, comm.world_size, resumed=attempt.resumed)
            folder = RunFolder(
                place.folder,
                clock,
                start=place.start,
                keep_epochs=spec.keep_epochs,
                attempt=attempt,
                on_save=lambda progress: trainer.callbacks.on_save(progress),
                say=logger.note,
            )
            callbacks.append(logger)
            if attempt is not None:
                callbacks.append(attempt)
            if profiler is not None:
                traces = spec.out / "profiles" / place.folder.name
                profiler.begin(spec.recipe, data.source.num_images, traces, logger.note)
                callbacks.append(profiler)
            trainer = build_trainer(
                spec.recipe,
                data.make_model,
                data.source,
                seed=spec.seed,
                device=device,
                execution=spec.execution,
                comm=comm,
                clock=clock,
                callbacks=callbacks,
                checkpoints=folder,
                shutdown=shutdown,
                workers=spec.workers,
                captures=captures,
                step_choice=place.step_choice,
                say=logger.note,
            )
            if comm.rank == 0 and trainer.step_choice not in (None, place.step_choice):
                keep_step(place.folder, trainer.step_choice)
            if profiler is not None:
                trainer = profiler.trace_batch_norm(trainer)

            # The algorithm, and the record.
            if spec.part != "all":
                _run_part(spec, trainer)
                logger.emit("part_done")
                comm.barrier()
                return place.folder
            other_work = OtherWork()
            result, averages = _run_method(spec, trainer, logger.note)
            used_by_others = other_cores(comm.gather(other_work.read()))
            with clock.lap("checkpoint"):
                if comm.rank == 0:
                    folder.save_final(trainer.weights)
            record = make_record(
                spec,
                trainer,
                result,
                averages,
                data.description,
                place,
                folder,
                is_pinned=is_pinned,
                interruptions=attempt.interruptions() if attempt else None,
                other_work=used_by_others,
                telemetry=sampler.finish(),
            )
            path = None
            if comm.rank == 0:
                path = write_record(record, spec.out / "runs")
                logger.emit_done(
                    result,
                    worker_accuracies=record.worker_accuracies,
                    accuracy_before_averaging=record.accuracy_before_averaging,
                    training_time_s=record.times.after_averaging_s,
                    record=str(path),
                )
            comm.barrier()
        _finalize(spec, comm, place)
        return path


@contextmanager
def _connected(spec: RunSpec) -> Iterator[Comm]:
    """The ranks. After a failure they are not closed: that would wait for ranks that are gone."""
    comm = connect(
        spec.execution.device_type, timeout_s=spec.timeout_s, settings=common_settings(spec)
    )
    try:
        yield comm
    except FloatingPointError as error:
        raise FloatingPointError(f"seed {spec.seed}, {error}") from None
    except InterruptedRunError as error:
        if error.together:
            comm.close()
        raise
    comm.close()


def common_settings(spec: RunSpec) -> dict[str, Any]:
    """What every rank has to be started with, by name: all that decides the weights, and the code.

    Of the data the ranks compare the content, once it is read.
    """
    settings = {
        "recipe": asdict(spec.recipe),
        "seed": spec.seed,
        "held_out": spec.held_out,
        "execution": asdict(spec.execution),
        "code": spec.code,
        "libraries": describe_machine(spec.execution.device_type)["libraries"],
    }
    return flatten(plain(settings))


def _meters(sampler: Sampler, profiler: Profiler | None) -> Callable[[str], Any]:
    """What surrounds each lap of the clock: the sampler, and inside it the profiler."""

    @contextmanager
    def around(lap: str) -> Iterator[None]:
        with sampler.lap(lap), profiler.lap(lap) if profiler is not None else nullcontext():
            yield

    return around


class Status(Callback):
    """Tells the launching process what this rank does, for its message if the rank dies."""

    def on_start(self, trainer: Trainer) -> None:
        """Phase 1 comes first."""
        set_status("phase 1")

    def on_begin(self, progress: Progress) -> None:
        """Phase 1 may have been done before."""
        if progress.phase == 1 and progress.stopped_by is not None:
            set_status("phase 2")

    def on_epoch_end(self, row: EpochRow) -> None:
        """Count the epochs."""
        worker = f" of worker {row.worker}" if row.phase == 2 else ""
        set_status(f"phase {row.phase} after epoch {row.epoch}{worker}")

    def on_end(self, progress: Progress) -> None:
        """Phase 2 follows phase 1."""
        if progress.phase == 1:
            set_status("phase 2")


def _run_part(spec: RunSpec, trainer: Trainer) -> None:
    """Phase 1 alone, or phase 2 of some workers from its checkpoint."""
    assert isinstance(spec.recipe, SWAPRecipe), "only SWAP is run in parts"
    start = large_batch_phase(spec.recipe.phase1, trainer)
    if spec.part == "workers":
        small_batch_phase(spec.recipe, trainer, start)


def _run_method(
    spec: RunSpec, trainer: Trainer, note: Callable[[str], None]
) -> tuple[Result, list[AverageRow]]:
    """The whole method, and off the clock the averages that Figure 1 and Table 4 show."""
    recipe, lap = spec.recipe, partial(trainer.clock.lap, "analysis")
    if isinstance(recipe, SWAPRecipe):
        result = swap(recipe, trainer)
        with lap():
            if trainer.comm.rank == 0:
                note("averaging the workers' epochs of phase 2, for Figure 1")
            return result, running_average(recipe, trainer, result)
    if isinstance(recipe, SWARecipe):
        result = swa(recipe, trainer)
        with lap():
            return result, average_by_cycle(recipe, trainer, result)
    return sgd(recipe, trainer), []


def _finalize(spec: RunSpec, comm: Comm, place: RunDir) -> None:
    """Merge the event files of a finished run, and delete the checkpoints that nothing needs."""
    if comm.rank == 0:
        try:
            merge_events(place.folder)
        except OSError as error:
            warn(f"the events stay in several files: {error}")
    comm.barrier()  # no rank still writes a checkpoint
    prune(place.folder, every=1 if spec.keep_epochs else None)


# The data: a data set of CIFAR's form in memory, or the image files of a tree.

IMAGENET = (1_281_167, 50_000, 1_000)
"""Training images, test images and classes of ImageNet as published."""


@dataclass(frozen=True, kw_only=True)
class RunData:
    """What a run needs of its data."""

    source: ImageSource
    """Makes the batches."""
    make_model: Callable[[], nn.Module]
    """The recipe's net for these classes."""
    description: Data
    """The data as a record keeps it: by its content, not by its place on a machine."""


def load_run_data(spec: RunSpec, comm: Comm, say: Callable[[str], None]) -> RunData:
    """Read the data set, or look through the tree; every rank must call.

    Raises:
        ValueError: damaged or different data.
    """
    if spec.recipe.dataset == "imagenet":
        return _tree(spec, comm, say)
    dataset = load_dataset(spec.recipe.dataset, spec.data)
    if spec.held_out:
        dataset = hold_out(dataset, spec.held_out)
    description = _describe_dataset(dataset, spec)
    comm.require_same(flatten({"data": description}))
    return RunData(
        source=CifarSource(spec.recipe, dataset),
        make_model=net_maker(spec.recipe, dataset),
        description=description,
    )


def _describe_dataset(dataset: Dataset, spec: RunSpec) -> Data:
    described: Data = {
        "name": dataset.name,
        "kind": dataset.kind,
        "sha256": dataset.sha256,
        "train_images": spec.recipe.train_images or len(dataset.train),
        "test_images": len(dataset.test),
    }
    if spec.held_out:
        described["held_out"] = spec.held_out
    return described


def _tree(spec: RunSpec, comm: Comm, say: Callable[[str], None]) -> RunData:
    """Scan the tree on rank 0, and broadcast the list: all ranks have the same one."""
    assert spec.data is not None, "a tree has no stand-in"
    root: Path = spec.data

    def tell(done: int, total: int) -> None:
        if done % 100_000 == 0:
            say(f"{root.name}: {done:,} of {total:,} files are checked")

    def scan() -> ImageTree:
        tree = scan_tree(
            root,
            skip_bad_files=spec.skip_bad_files,
            on_bad_file=lambda bad: say(f"bad file: {bad}"),
            on_progress=tell,
        )
        say(f"{root.name}: {tree.describe()}")
        return tree

    found = comm.finish_together(lambda: scan() if comm.rank == 0 else None)
    tree: ImageTree = comm.on_first(lambda: found)
    loader = spec.execution.loader
    assert loader != "tensor", "a tree's images are not resident"
    counts = (len(tree.train), len(tree.test), len(tree.classes))
    return RunData(
        source=TreeSource(tree, loader=loader, threads=spec.threads),
        make_model=partial(make_tree_net, spec.recipe, len(tree.classes)),
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


# The record.


def make_record(
    spec: RunSpec,
    trainer: Trainer,
    result: Result,
    averages: list[AverageRow],
    data: Data,
    place: RunDir,
    folder: RunFolder,
    *,
    is_pinned: bool,
    interruptions: Interruptions | None,
    other_work: float | None,
    telemetry: Telemetry | None,
) -> RunRecord:
    """Gather what the ranks know into one record; every rank must call."""
    recipe, comm = spec.recipe, trainer.comm
    num_workers = recipe.num_workers if isinstance(recipe, AveragingRecipe) else 0
    is_swap = isinstance(recipe, SWAPRecipe)
    name, taken_from = place.folder.name, folder.taken_from
    start: Start | None = None
    if taken_from is not None and folder.origin is not None:
        start = {"run_id": taken_from, "origin": folder.origin}
    profiled: list[Flag] = ["profiled"] if was_profiled(spec.out, name, taken_from) else []
    rows = gather_rows(trainer, folder.rows)
    # The rows of phase 2 come last: of SWAP each worker's, of SGD phase 1's.
    last_rows = {row.worker: row for row in rows if row.phase == rows[-1].phase}
    accuracies = [row.test_accuracy or 0.0 for _, row in sorted(last_rows.items())]
    measured = [row.mirrored_test_accuracy for row in last_rows.values()]
    mirrored = [accuracy for accuracy in measured if accuracy is not None]
    models = [theta for samples, _, _ in workers_on_first(trainer, result) for theta in samples]
    norms, cosines = displacements(models, result.phase1.theta.cpu())
    peaks = comm.gather(peak_device_memory_gib(spec.execution.device_type))
    if interruptions is not None and (other_work or 0.0) < QUIET_CORES:
        other_work = None  # nobody saw what ran beside the earlier attempts
    reserved, allocated = (
        max((gib for gib in of_ranks if gib is not None), default=None)
        for of_ranks in zip(*peaks, strict=True)
    )
    return RunRecord(
        run_id=name,
        recipe=recipe.name,
        method=method_of(recipe),
        seed=spec.seed,
        created=place.created,
        configuration=plain({"recipe": asdict(recipe), "execution": spec.execution.settings()}),
        overrides=list(spec.overrides),
        code=spec.code,
        data=data,
        machine=describe_machine(spec.execution.device_type),
        world_size=comm.world_size,
        threads=spec.threads,
        is_pinned=is_pinned,
        emulated_workers=is_swap and comm.world_size < recipe.num_replicas,
        stopped_by=result.phase1.progress.stopped_by or "",
        phase1_epochs=sum(row.phase == 1 for row in rows),
        epochs=rows,
        worker_accuracies=accuracies,
        accuracy_before_averaging=sum(accuracies) / len(accuracies) if num_workers else None,
        test_accuracy=result.accuracies.top1,
        test_top5_accuracy=result.accuracies.top5,
        mirrored_test_accuracy=result.accuracies.mirrored,
        mirrored_accuracy_before_averaging=sum(mirrored) / len(mirrored)
        if mirrored and num_workers
        else None,
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
        other_work=other_work,
        step_choice=trainer.step_choice,
        flags=[*spec.flags, *profiled],
        notes=list(spec.notes),
    )
