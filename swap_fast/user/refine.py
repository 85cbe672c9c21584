"""`swap_fast.refine`: phases 2 and 3 of Algorithm 1 around a training function of your own.

Phase 1's model is handed in. The function trains a copy of it for each worker, by whatever trainer
(lines 18-27); then the copies are averaged and the batch-norm statistics recomputed (lines 28-29).
A trained copy counts as its state dict alone: hooks, wrappers and the device that a trainer leaves
behind do not reach the average, which is made in a clean copy of the model.
"""

import math
import os
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import nn

from swap_fast.averaging_files.evaluate import Evaluation
from swap_fast.averaging_files.report import BARRIER
from swap_fast.averaging_files.soups import (
    Say,
    Soup,
    average_files,
    farthest_barrier,
    require_basin_settings,
)
from swap_fast.averaging_files.weight_files import (
    WeightFile,
    measure,
    require_alike,
    serialize,
    weights_of,
)
from swap_fast.checkpoint.attempts import Attempt, RunningError
from swap_fast.checkpoint.files import (
    MANIFEST,
    MODEL,
    DamagedError,
    Proof,
    read_json,
    read_tensors,
    write_json,
)
from swap_fast.checkpoint.run_folder import RunInfo
from swap_fast.choices import as_device
from swap_fast.config.checks import require, typed_arguments, whole
from swap_fast.distributed import connect, without_torchrun
from swap_fast.files import write_file
from swap_fast.record import flatten, now
from swap_fast.shutdown import GracefulShutdown, InterruptedRunError
from swap_fast.user.api import leave_ranks, open_folder, refuse_process_group, require_timeout
from swap_fast.user.clean_copy import Forward, Measure, copied, device_of, open_evaluation
from swap_fast.user.data import generators_kept, require_seed, seed_everything, seed_of
from swap_fast.user.method import name_of
from swap_fast.user.net import bare, refuse_extra_state, refuse_wrapped
from swap_fast.user.result import RefineResult, describe_environment, make_refine_result

Train = Callable[[int, nn.Module], nn.Module | Mapping[str, Any] | None]
"""Given a worker's number, from 0, and a copy of the model: trains the copy and returns None, or
returns the trained net or its state dict."""


@typed_arguments("batches")
def refine(
    model: nn.Module,
    train: Train,
    workers: int = 8,
    *,
    batches: Iterable[Any] | None = None,
    forward: Forward | None = None,
    evaluate: Measure | None = None,
    basin_points: int = 5,
    max_barrier: float = BARRIER,
    device: torch.device | str | None = None,
    seed: int = 0,
    folder: str | Path | None = None,
    resume: bool = False,
    progress: bool = True,
    timeout_s: float = 86_400.0,
) -> RefineResult:
    """Train copies of a model by a function of yours, and average them: SWAP from phase 2 on.

    One process trains the workers in turn. Under torchrun each rank trains its share; a trainer
    sees one process, since torchrun's variables are hidden from it. With a `folder`, processes that
    are started by themselves with the same call and resume=True share the workers too: each takes
    the next one that no other process is at.

    Arguments:
        model: phase 1's, which stays as it is.
        train: called with a worker's number and a copy of the model. Before each call torch's,
            numpy's and Python's generators are seeded by (seed, worker). A trainer that sets a
            seed of its own has to be given one that depends on the worker.
        workers: W, 2 or more.
        batches: training batches for the batch-norm statistics, to be gone through several times:
            a DataLoader, or a list of batches. Not needed by a net without batch norm.
        forward: runs a model on a batch. None: the model is called with a tensor, with all of a
            tuple or list but its last entry (the targets), or with a mapping's entries by name.
        evaluate: measures a model, such as its accuracy on test data, as a fraction; called
            without gradients on the model handed in, each worker, and the average before and after
            the batch-norm pass. Of the first it must give a finite number; NaN or infinity later
            is not measured.
        basin_points: of the straight line between the two workers that lie farthest apart, both
            among them, on which `evaluate` shows whether they share a basin. 0: none.
        max_barrier: drop of the accuracy along this line above which they do not.
        device: of the batch-norm pass and `evaluate`; None: where the model is.
        seed: with a worker's number, what its generators are seeded by.
        folder: keeps each worker that is done. None: nothing is written.
        resume: take the workers that are in `folder`, and train the others.
        progress: print a line for each worker and each measurement.
        timeout_s: how long a rank waits for the others at the end.

    Returns:
        The averaged model, each worker's, accuracies and times, to be looked at or saved.

    Raises:
        ValueError: something of this cannot be, or a worker's weights are not finite or of other
            names, shapes or types than the model's; the line says what, and what to do.
        InterruptedRunError: with a folder, a signal ended the training.
    """
    ranks, local_rank = (int(os.environ.get(name, "0")) for name in ("WORLD_SIZE", "LOCAL_RANK"))
    whole("workers", workers)
    require(workers > 1, "workers", "2 or more models to average", workers)
    refuse_wrapped(model, "model")
    refuse_extra_state(bare(model), "model")
    require_seed(seed)
    require(folder is not None or not resume, "resume", "a folder= to go on from", resume)
    require_timeout(timeout_s)
    require_basin_settings(basin_points, max_barrier)
    if ranks > 1:
        leave_ranks()
        refuse_process_group()
    if ranks > workers:
        raise ValueError(
            f"processes: expected 1 to {workers}, one a worker, got {ranks}; start fewer"
        )
    if ranks > 1 and local_rank < torch.cuda.device_count():
        torch.cuda.set_device(local_rank)
    where = device_of(model) if device is None else as_device(device)
    say: Say = partial(print, flush=True) if progress else lambda line: None
    with generators_kept("cuda" if torch.cuda.is_initialized() else "cpu"):
        evaluation = open_evaluation(model, batches, forward, evaluate, where)
        evaluation.recompute_(images=1)  # what fails does so before anything is trained
        start = weights_of("the model", bare(model))
        evaluation.load_(start.tensors, start.path)
        phase1_accuracy = evaluation.accuracies().get("test")
        is_finite = phase1_accuracy is None or math.isfinite(phase1_accuracy)
        require(is_finite, "evaluate", "a finite number", phase1_accuracy)
        del evaluation  # its memory is the trainer's
        settings = {
            "num_workers": workers,
            "seed": seed,
            "train": name_of(train),
            "model": {
                "name": type(bare(model)).__name__,
                "parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
                "sha256": start.sha256,
            },
        }
        machine = describe_environment(where) | {"world_size": max(ranks, 1)}
        info = RunInfo(created=now(), settings=settings, machine=machine)
        first = connect("cpu", timeout_s=timeout_s, settings=flatten(settings))
        place = None if folder is None else Path(folder)
        if place is not None:
            with open_folder(place, info, first, resume=resume) or nullcontext():
                pass  # each worker has a lock of its own
        first.close()  # a trainer that found a process group would train one net on all ranks
        phase2 = _Phase2(model, train, start, seed, place)
        with without_torchrun(), nullcontext() if place is None else _resumable(place):
            own = phase2.run(first.workers(workers), say)
            if ranks > 1 and dist.is_initialized():
                dist.destroy_process_group()  # a trainer's own
        comm = connect("cpu", timeout_s=timeout_s)
        done = {w: worker for rank in comm.gather_on_first(own) for w, worker in rank.items()}
        soup, barrier, times_s = comm.on_first(
            lambda: _phase3(
                [done[worker] for worker in range(workers)],
                start,
                open_evaluation(model, batches, forward, evaluate, where),
                basin_points=0 if evaluate is None else basin_points,
                max_barrier=max_barrier,
                say=say,
            )
        )
        comm.barrier()
        comm.close()
    for note in soup.report.notes if comm.rank == 0 else ():
        warnings.warn(note, stacklevel=3)  # the caller of the decorated function
    return make_refine_result(
        copied(bare(model)).to(where),
        soup.tensors,
        soup.report,
        [done[worker].weights.tensors for worker in sorted(done)],
        times_s,
        barrier,
        info,
        metric="accuracy" if evaluate is None else name_of(evaluate),
        phase1_accuracy=phase1_accuracy,
        is_first=comm.rank == 0,
    )


# Phase 2.


class _Worker(NamedTuple):
    """A worker that is done."""

    weights: WeightFile
    time_s: float


@dataclass(frozen=True, kw_only=True)
class _WorkerProof(Proof):
    """Proves a worker's file, and tells how long it was trained."""

    time_s: float


class _Phase2:
    """Trains workers by the user's function, from the weights `start`, and keeps those done."""

    def __init__(
        self, model: nn.Module, train: Train, start: WeightFile, seed: int, folder: Path | None
    ) -> None:
        self._model, self._train, self._start = model, train, start
        self._seed, self._folder = seed, folder

    def run(self, workers: Sequence[int], say: Say) -> dict[int, _Worker]:
        """Train these workers, but for those that the folder has, or gets from another process."""
        done: dict[int, _Worker] = {}
        while missing := [worker for worker in workers if worker not in done]:
            for worker in missing:
                try:
                    attempt = Attempt(self._folder, f"worker{worker}") if self._folder else None
                except RunningError:
                    continue  # another process is at it: look again, after others
                with attempt or nullcontext():
                    others = [self._start, *(each.weights for each in done.values())]
                    done[worker] = self._kept(worker, say) or self._trained(worker, others)
                say(f"worker {worker}: trained in {done[worker].time_s:.1f} s")
        return done

    def _kept(self, worker: int, say: Say) -> _Worker | None:
        """A worker that is in the folder, to the byte."""
        if self._folder is None or not self._file(worker, MANIFEST).exists():
            return None
        try:
            proof = read_json(self._file(worker, MANIFEST), _WorkerProof)
            sha256 = proof.sha256_by_ending[MODEL]
            tensors = read_tensors(self._file(worker, MODEL), sha256)
        except DamagedError as error:
            say(f"worker {worker} is trained again: {error}")
            return None
        path = Path(f"worker {worker}")
        weights = WeightFile(path=path, sha256=sha256, tensors=tensors, left_out=())
        return _Worker(weights, proof.time_s)

    def _trained(self, worker: int, others: Sequence[WeightFile]) -> _Worker:
        """Train a worker, which may be equal to none of the others, and keep it."""
        net, seed = copied(self._model), seed_of(self._seed, 2, worker)
        seed_everything(seed)
        torch.manual_seed(seed)  # of CUDA devices too, which the trainer may be the first to use
        started = time.perf_counter()
        made = self._train(worker, net)
        time_s = time.perf_counter() - started
        if made is not None and not isinstance(made, (nn.Module, Mapping)):
            raise ValueError(
                "train: expected None, a net or a state dict, got a "
                f"{type(made).__name__}; train the model in place, or return the trained net"
            )
        weights = weights_of(f"worker {worker}", net if made is None else made)
        require_alike([self._start, weights])
        measure([weights, self._start], None)  # whether all are finite
        if twin := next((each for each in others if each.sha256 == weights.sha256), None):
            raise ValueError(
                f"worker {worker}: expected weights of its own, got those of {twin.path}; have "
                "train return what it trained, and give its trainer a seed that depends on the "
                "worker"
            )
        if self._folder is not None:
            write_file(self._file(worker, MODEL), serialize(weights.tensors, {}))
            proof = _WorkerProof(sha256_by_ending={MODEL: weights.sha256}, time_s=time_s)
            write_json(self._file(worker, MANIFEST), proof)
        return _Worker(weights, time_s)

    def _file(self, worker: int, ending: str) -> Path:
        assert self._folder is not None, "there is a folder"
        return self._folder / f"refined-worker{worker}{ending}"


# Phase 3.


def _phase3(
    workers: Sequence[_Worker],
    start: WeightFile,
    evaluation: Evaluation,
    *,
    basin_points: int,
    max_barrier: float,
    say: Say,
) -> tuple[Soup, float | None, tuple[float, ...]]:
    """Average the workers; the barrier between two of them; and the time of each."""
    files, times_s = zip(*workers, strict=True)
    soup = average_files(files, evaluation=evaluation, start=start, basin_points=0, say=say)
    measured = {each.name: each.accuracies for each in soup.report.ingredients}
    odd = [
        name
        for name, found in (measured | {"the average": soup.report.after}).items()
        if not all(map(math.isfinite, found.values()))
    ]
    notes, drop = [*soup.report.notes], None
    if basin_points > 0:
        distances = soup.report.distances
        first, second, fall = farthest_barrier(evaluation, files, distances, basin_points)
        between = f"workers {first} and {second}"
        if math.isnan(fall):
            odd.append(f"the line between {between}")
        else:
            drop = fall
            say(f"{between}: a barrier of {100 * drop:.2f} points")
        if fall > max_barrier:
            notes.append(
                f"{between} lie in different basins: between them the accuracy falls "
                f"{100 * fall:.2f} points below the straight line; train the model longer before, "
                "or the workers at a lower learning rate"
            )
    if odd:
        notes.append(
            f"evaluate gave no finite number for {', '.join(odd)}: this counts as not measured"
        )
    return replace(soup, report=replace(soup.report, notes=tuple(notes))), drop, times_s


@contextmanager
def _resumable(folder: Path) -> Iterator[None]:
    """Turn SIGTERM and Ctrl-C into one line that says how to go on."""
    try:
        with GracefulShutdown().installed(always_uninstall=True):
            yield
    except InterruptedRunError as signal:
        raise InterruptedRunError(
            f"{signal}: the workers that are done are in {folder}; call refine again with "
            "resume=True, which trains the others"
        ) from None
