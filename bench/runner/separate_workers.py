"""Phase 2 without a common fate: each worker a process of its own, averaged from files."""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from multiprocessing.connection import wait
from multiprocessing.context import SpawnProcess
from pathlib import Path

from bench.records.grouping import DEGRADED
from bench.runner.launch import end_with_parent, launch, under_torchrun
from bench.runner.progress import following
from bench.runner.rank import run_rank
from bench.runner.request import Request
from swap_fast.checkpoint.run_folder import last_of
from swap_fast.config.recipe import SWAPRecipe
from swap_fast.training.interruption import EXIT_STATUS, InterruptedRunError


def run_separately(
    request: Request, min_workers: int | None, num_ranks: int, say: Callable[[str], None]
) -> Path | None:
    """Phase 1 on all ranks, each worker by itself, as many at once as there are ranks, then 3.

    Arguments:
        min_workers: average so many, should others be missing; None: all.

    Raises:
        ValueError: a recipe whose workers cannot run apart.
        RuntimeError: workers are missing; what the others did is kept.
        InterruptedRunError: it was told to end, and so were the workers.
    """
    recipe = request.recipe
    if not isinstance(recipe, SWAPRecipe) or recipe.gpus_per_worker > 1 or under_torchrun():
        raise ValueError(
            "phase2: separate is for SWAP with one device a worker, started without torchrun, got "
            f"{recipe.name}; use together"
        )
    place = launch(run_rank, replace(request, part="phase1"), num_ranks=num_ranks)
    assert place is not None, "the launching process has rank 0's answer"
    if place.suffix == ".json":
        return place  # the record of a run that is done
    request = replace(request, folder=place, started=time.time())
    workers = range(recipe.num_workers)
    missing = [w for w in workers if not _is_done(place, w)]
    with following(place, request.progress):
        # They share this process's screen, so that it alone may draw there.
        own = replace(request, progress="none", track=())
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
        return launch(run_rank, request, num_ranks=num_ranks)
    note = f"{DEGRADED}: averaged {len(done)} of {len(workers)} workers"
    say(note)
    return launch(
        run_rank,
        replace(request, workers=tuple(done), notes=(*request.notes, note)),
        num_ranks=1,
    )


def _is_done(folder: Path, worker: int) -> bool:
    position = last_of(folder, phase=2, worker=worker)
    return position is not None and position.stopped_by is not None


def _run_workers(request: Request, workers: Sequence[int], at_once: int) -> dict[int, str]:
    """Run each in a process; what ended those that did not finish.

    Raises:
        InterruptedRunError: this process was told to end.
    """
    context = multiprocessing.get_context("spawn")
    waiting, running, failures = list(workers), dict[int, tuple[int, SpawnProcess]](), {}
    devices = list(range(at_once))

    def told(number: int, frame: object) -> None:
        for _, process in running.values():
            if process.pid is not None:
                os.kill(process.pid, signal.SIGTERM)
        waiting.clear()
        raise InterruptedRunError(signal.Signals(number).name)

    before = {n: signal.signal(n, told) for n in (signal.SIGTERM, signal.SIGINT)}
    try:
        while waiting or running:
            while waiting and devices:
                worker, device = waiting.pop(0), devices.pop(0)
                own = replace(request, part="workers", workers=(worker,))
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
                    raise InterruptedRunError(f"worker {worker} was told to end")
                if process.exitcode:
                    failures[worker] = _why(process.exitcode)
    finally:
        for _, process in running.values():
            process.join()
        for number, handler in before.items():
            signal.signal(number, handler)
    return failures


def _worker(request: Request, device: int) -> None:
    """One worker in a process of its own, which sees one device."""
    end_with_parent()
    if request.execution.device_type == "cuda":
        seen = os.environ.get("CUDA_VISIBLE_DEVICES")
        names = seen.split(",") if seen else [str(i) for i in range(device + 1)]
        os.environ["CUDA_VISIBLE_DEVICES"] = names[device]
    try:
        run_rank(request)
    except InterruptedRunError:
        raise SystemExit(EXIT_STATUS) from None


def _why(exitcode: int) -> str:
    if exitcode < 0:
        return f"ended by {signal.Signals(-exitcode).name}"
    return f"ended with status {exitcode}"
