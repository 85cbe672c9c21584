"""The launching process: choose the devices, find the data, start the ranks of each run."""

import fcntl
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from multiprocessing.connection import wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch

from bench.hardware.machine import available_cores, core_numbers, describe_code, has_compiler
from bench.options import RunOptions
from bench.runner.launch import end_with_parent, launch, under_torchrun
from bench.runner.progress import follow_run, line_printer
from bench.runner.rank import run_rank
from bench.runner.run_folders import RunSpec
from swap_fast.callbacks.progress import Form
from swap_fast.callbacks.trackers import require_trackers
from swap_fast.checkpoint.run_folder import last_of
from swap_fast.choices import choose_device
from swap_fast.config.execution import default_execution
from swap_fast.config.recipe import LoaderName, Recipe, SWAPRecipe
from swap_fast.data.cifar.files import locate_dataset, locate_tree
from swap_fast.files import write_file
from swap_fast.record import flatten
from swap_fast.record_files import read_record, write_json_record
from swap_fast.shutdown import EXIT_STATUS, InterruptedRunError
from swap_fast.tasks.cifar import choose_decoder, choose_loader


def automatic_recipe(*, quick: bool) -> str:
    """The recipe that `run auto` takes on this machine."""
    if quick:
        return "cifar10_quick"
    return "cifar10_dawnbench" if torch.cuda.is_available() else "cifar10_speed_half"


def run_session(
    options: RunOptions, recipe: Recipe, original: Recipe, *, resume: bool = False
) -> int:
    """Run a recipe as often as asked, each run with a seed of its own; the exit status.

    Arguments:
        resume: go on with a run that was interrupted, if it was started with the same settings.

    Raises:
        ValueError: a device, a number of processes or data that are not available.
    """
    prepared = prepare(options, recipe, original)
    spec, say = prepared.spec, prepared.say
    if resume:
        spec = replace(spec, resume="if_same")
    for number in range(options.runs):
        if number > 0:
            spec = replace(spec, seed=spec.seed + 1, first=False, started=time.monotonic())
        say(f"run {number + 1} of {options.runs}, seed {spec.seed}")
        if options.phase2 == "separate":
            path = run_separately(spec, options.min_workers, prepared.num_ranks, say)
        else:
            path = launch(run_rank, spec, num_ranks=prepared.num_ranks)
        if path is not None:
            _summarize(path, say)
    return 0


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What is the same for all runs of a session."""

    spec: RunSpec
    """Of its first run."""
    num_ranks: int
    """Processes of each."""
    say: Callable[[str], None]
    """Prints a line on the first process, but not with --quiet."""


def prepare(options: RunOptions, recipe: Recipe, original: Recipe) -> Prepared:
    """Choose the devices, the processes and the loader, and find the data; prints its choices.

    Raises:
        ValueError: one of them is not available.
    """
    started = time.monotonic()
    device_type = choose_device(options.device)
    cores = choose_cores(options, device_type)
    ranks, threads = processes(options, recipe, device_type)
    loader: LoaderName
    if recipe.dataset == "imagenet":
        loader, note = choose_decoder(options.loader, device_type)
    else:
        loader, note = choose_loader(options.loader, recipe.loader, device_type)
    default = default_execution(device_type)
    execution = replace(
        default,
        memory_format=options.memory_format,
        step=options.step,
        precision=options.precision or default.precision,
        all_reduce=options.all_reduce,
        all_reduce_buckets=options.all_reduce_buckets,
        capture=default.capture if options.capture == "auto" else options.capture == "on",
        loader=loader,
    )
    _check_writable(options.out)
    first = os.environ.get("RANK", "0") == "0"
    form: Form = "none" if options.quiet else "json" if options.json else "auto"
    say = line_printer(form if first else "none")
    require_trackers(options.track)
    if execution.step == "compiled" and device_type == "cpu" and not has_compiler():
        say("no C++ compiler was found, which torch.compile needs on a CPU: the step runs eagerly")
        execution = replace(execution, step="eager")
    if not recipe.paper_scale:
        say(
            f"not the paper's hardware or net: {recipe.name} has {recipe.net} of width "
            f"{recipe.width}"
        )
    if note is not None:
        say(note)
    data = (
        locate_tree(options.data)
        if recipe.dataset == "imagenet"
        else locate_dataset(recipe.dataset, options.data, announce=say)
    )
    say(
        f"{recipe.summary}; {ranks} process{'es' if ranks > 1 else ''} of {threads} "
        f"thread{'s' if threads > 1 else ''}, {execution.precision}, {execution.memory_format}, "
        f"loader {loader}"
    )
    spec = RunSpec(
        recipe=recipe,
        overrides=tuple(differences(asdict(original), asdict(recipe))),
        seed=options.seed,
        data=data,
        out=options.out,
        execution=execution,
        threads=threads,
        cores=cores,
        code=describe_code(),
        started=started,
        skip_bad_files=options.skip_bad_files,
        resume="yes" if options.resume else "no",
        share_phase1=options.share_phase1,
        keep_epochs=options.keep_epochs,
        profile=options.profile,
        timeout_s=options.timeout_s,
        notes=() if note is None else (note,),
        progress=form,
        track=options.track,
    )
    return Prepared(spec=spec, num_ranks=ranks, say=say)


def differences(original: dict[str, Any], changed: dict[str, Any]) -> list[str]:
    """What a command line changed: "phase1.peak_lr=1.5", one entry a field."""
    before = flatten(original)
    return [f"{name}={now}" for name, now in flatten(changed).items() if now != before[name]]


def processes(options: RunOptions, recipe: Recipe, device_type: str) -> tuple[int, int]:
    """Processes, and CPU threads of each.

    On a CPU a device is a process of one thread, so that times on one and on two devices compare
    as the paper's do. Such processes also share out a convolution's work better than one process of
    several threads does: 18% more images/s on two cores, at the width of the CPU recipes.
    """
    is_cuda = device_type == "cuda"
    chosen = len(options.cores) if isinstance(options.cores, tuple) else available_cores()
    units = torch.cuda.device_count() if is_cuda else chosen
    replicas = recipe.num_replicas
    workers = recipe.num_workers if isinstance(recipe, SWAPRecipe) else 1
    ranks = int(os.environ["WORLD_SIZE"]) if under_torchrun() else options.ranks
    if ranks is None:
        ranks = min(replicas, units)
        if ranks > workers:
            ranks -= ranks % workers
    check_ranks(recipe, ranks)
    here = int(os.environ.get("LOCAL_WORLD_SIZE", ranks)) if under_torchrun() else ranks
    if is_cuda and here > units:
        raise ValueError(f"ranks: expected at most one a CUDA device, {units}, got {here}")
    return ranks, options.threads or (max(1, available_cores() // here) if is_cuda else 1)


def check_ranks(recipe: Recipe, ranks: int) -> None:
    """Refuse a number of processes that a recipe cannot use.

    Raises:
        ValueError: more than its phase 1 has replicas, or no multiple of its workers.
    """
    replicas = recipe.num_replicas
    workers = recipe.num_workers if isinstance(recipe, SWAPRecipe) else 1
    if not 1 <= ranks <= replicas:
        raise ValueError(
            f"ranks: expected 1 to {replicas}, one a replica of {recipe.name}'s phase 1, "
            f"got {ranks}"
        )
    if ranks > workers and ranks % workers:
        raise ValueError(
            f"ranks: expected at most one a worker, or a multiple of the {workers} workers of "
            f"{recipe.name}, got {ranks}"
        )


def choose_cores(options: RunOptions, device_type: str) -> tuple[int, ...]:
    """The CPU cores that a run's processes choose from; none where they may run on any.

    Raises:
        ValueError: cores that this process may not use, a CUDA device, or a platform that cannot
            pin a thread to a core.
    """
    if options.cores == "any":
        return ()
    if device_type == "cuda" or not hasattr(os, "sched_setaffinity"):
        has = "a CUDA device" if device_type == "cuda" else "no way to pin a thread here"
        raise ValueError(f"cores: expected any with {has}, got {options.cores}")
    available = tuple(sorted(core_numbers()))
    wanted = available if options.cores == "own" else options.cores
    if unknown := sorted(set(wanted) - set(available)):
        usable = ", ".join(map(str, available))
        raise ValueError(f"cores: expected some of {usable}, got {unknown[0]}")
    return wanted


def _check_writable(out: Path) -> None:
    """Fail before the training, not after it: write as a run does, where it does."""
    name = f".probe-{uuid4().hex}"
    try:
        out.mkdir(parents=True, exist_ok=True)
        with _locked(out) as is_alone:
            if is_alone:  # what processes left that were killed right here
                for left in [*out.glob("runs/*.probe-*"), *out.glob("checkpoints/*.probe-*")]:
                    left.unlink()
            write_json_record({}, out / "runs", name).unlink()
            probe = out / "checkpoints" / name
            for content in (b"former", b"new"):
                write_file(probe, content)
            probe.unlink()
    except OSError as error:
        raise ValueError(f"out: expected a folder that can be written to, got {error}") from None


@contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    """Whether no other process is in here for this folder; some file systems cannot tell."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX)
        except OSError:
            yield False
        else:
            yield True
    finally:
        os.close(opened)


def _summarize(path: Path, say: Callable[[str], None]) -> None:
    record = read_record(path)
    times = record.times
    if record.accuracy_before_averaging is not None:
        say(
            f"before averaging {record.accuracy_before_averaging:.2%} (mean of workers, best "
            f"{max(record.worker_accuracies):.2%}), after averaging {record.test_accuracy:.2%}"
        )
    else:
        say(f"test accuracy {record.test_accuracy:.2%}")
    if (mirrored := record.mirrored_test_accuracy) is not None:
        before = record.mirrored_accuracy_before_averaging
        first = "" if before is None else f"before averaging {before:.2%}, after "
        say(f"with mirrored test images {first}{mirrored:.2%}")
    reserved = record.peak_device_reserved_gib
    device = "" if reserved is None else f", of a device {reserved:.2f} GiB"
    say(
        f"training time {times.after_averaging_s:.1f} s, phase 1 {record.phase1_epochs} epochs "
        f"({record.stopped_by}), peak memory of the host {record.peak_memory_gib:.2f} GiB a "
        f"process{device}; record: {path}"
    )
    if record.had_other_work:
        say(
            f"other programs used {record.other_work} CPU cores meanwhile: its times count in no "
            "table that has a run without"
        )


# `--phase2 separate`: each worker of phase 2 is a process of its own; one that dies costs no other.


def run_separately(
    spec: RunSpec, min_workers: int | None, num_ranks: int, say: Callable[[str], None]
) -> Path | None:
    """Phase 1 on all ranks; the workers, as many at once as there are ranks; phase 3 on all ranks.

    Arguments:
        min_workers: average this many if others are missing; None: all are needed.

    Raises:
        ValueError: a recipe whose workers cannot run separately.
        RuntimeError: workers are missing; the others' checkpoints are kept.
        InterruptedRunError: a signal ended this process and the workers.
    """
    recipe = spec.recipe
    if not isinstance(recipe, SWAPRecipe) or recipe.gpus_per_worker > 1 or under_torchrun():
        raise ValueError(
            "phase2: separate is for SWAP with one device a worker, started without torchrun, got "
            f"{recipe.name}; use together"
        )
    place = launch(run_rank, replace(spec, part="phase1"), num_ranks=num_ranks)
    assert place is not None, "the launching process has rank 0's answer"
    if place.suffix == ".json":
        return place  # the record of a run that is done
    spec = replace(spec, folder=place, started=time.monotonic())
    workers = range(recipe.num_workers)
    missing = [w for w in workers if not _is_done(place, w)]
    with follow_run(place, spec.progress):
        # They share this process's screen, where it alone may draw.
        own = replace(spec, progress="none", track=())
        failures = _run_workers(own, missing, num_ranks)
    done = [w for w in workers if _is_done(place, w)]
    for worker, why in failures.items():
        say(f"worker {worker} is missing: {why}")
    if len(done) < len(workers) and len(done) < (min_workers or len(workers)):
        names = ", ".join(str(w) for w in workers if w not in done)
        raise RuntimeError(
            f"worker {names} missing; the same command with --resume runs it alone"
            + ("" if min_workers else f", and with --min-workers {max(1, len(done))} leaves it out")
        )
    if len(done) == len(workers):
        return launch(run_rank, spec, num_ranks=num_ranks)
    say(f"degraded: averaged {len(done)} of {len(workers)} workers")
    return launch(
        run_rank,
        replace(spec, workers=tuple(done), flags=(*spec.flags, "degraded")),
        num_ranks=1,
    )


def _is_done(folder: Path, worker: int) -> bool:
    progress = last_of(folder, phase=2, worker=worker)
    return progress is not None and progress.stopped_by is not None


def _run_workers(spec: RunSpec, workers: Sequence[int], at_once: int) -> dict[int, str]:
    """Run each in a process; why those that did not finish have ended, by worker.

    Raises:
        InterruptedRunError: a signal ended this process or a worker.
    """
    context = multiprocessing.get_context("spawn")
    waiting, running, failures = list(workers), dict[int, tuple[int, SpawnProcess]](), {}
    devices = list(range(at_once))

    def stop(number: int, frame: object) -> None:
        for _, process in running.values():
            if process.pid is not None:
                os.kill(process.pid, signal.SIGTERM)
        waiting.clear()
        raise InterruptedRunError(signal.Signals(number).name)

    before = {n: signal.signal(n, stop) for n in (signal.SIGTERM, signal.SIGINT)}
    try:
        while waiting or running:
            while waiting and devices:
                worker, device = waiting.pop(0), devices.pop(0)
                own = replace(spec, part="workers", workers=(worker,))
                process = context.Process(target=_worker, args=(own, device))
                process.start()
                running[worker] = device, process
            wait([process.sentinel for _, process in running.values()])
            for worker, (device, process) in list(running.items()):
                if process.exitcode is None:
                    continue
                devices.append(device)
                del running[worker]
                if process.exitcode == EXIT_STATUS:
                    raise InterruptedRunError(f"worker {worker} got a signal to end")
                if process.exitcode:
                    failures[worker] = _why(process.exitcode)
    finally:
        for _, process in running.values():
            process.join()
        for number, handler in before.items():
            signal.signal(number, handler)
    return failures


def _worker(spec: RunSpec, device: int) -> None:
    """One worker in this process, which sees one device."""
    end_with_parent()
    if spec.execution.device_type == "cuda":
        seen = os.environ.get("CUDA_VISIBLE_DEVICES")
        names = seen.split(",") if seen else [str(i) for i in range(device + 1)]
        os.environ["CUDA_VISIBLE_DEVICES"] = names[device]
    try:
        run_rank(spec)
    except InterruptedRunError:
        raise SystemExit(EXIT_STATUS) from None


def _why(exitcode: int) -> str:
    if exitcode < 0:
        return f"ended by {signal.Signals(-exitcode).name}"
    return f"ended with status {exitcode}"
