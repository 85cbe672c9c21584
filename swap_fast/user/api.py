"""`swap_fast.swap`: SWAP of any net, on any data, with any optimizer."""

import atexit
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import nn

from swap_fast.algorithm import swap as run_algorithm
from swap_fast.callbacks.emitter import EventLogger
from swap_fast.callbacks.events import Listener, merge_events
from swap_fast.callbacks.progress import Form, make_plan, print_line, progress_listener
from swap_fast.checkpoint.attempts import Attempt
from swap_fast.checkpoint.run_folder import (
    RunFolder,
    RunInfo,
    enter_folder,
    prune,
    read_run_info,
)
from swap_fast.choices import choose_device
from swap_fast.clock import Clock
from swap_fast.config.checks import require, typed_arguments
from swap_fast.config.execution import Execution
from swap_fast.config.phase import Phase, Schedule
from swap_fast.distributed import ALONE, Comm, connect
from swap_fast.record import flatten, now, plain, run_id
from swap_fast.shutdown import NEVER, GracefulShutdown, InterruptedRunError
from swap_fast.training.batchnorm import BatchNormRecompute, is_compiled
from swap_fast.training.callback import Callback
from swap_fast.training.state import NoCheckpoints
from swap_fast.training.trainer import assemble
from swap_fast.training.weights import Weights, refuse_synchronized
from swap_fast.user.data import (
    Augment,
    Collate,
    Placement,
    digest_of,
    generators_kept,
    num_examples,
    open_data,
    require_seed,
    require_use,
)
from swap_fast.user.method import (
    describe_method,
    name_of,
    opening_lines,
    order_lines,
    structure_of,
    user_method,
)
from swap_fast.user.net import FrozenValues, bare, make_net, mark_trained, refuse_lone_examples
from swap_fast.user.objective import Loss, Metric, Objective, counts_right
from swap_fast.user.optimizer import Groups, Make, UserOptimizer
from swap_fast.user.parts import UserSource, UserStep
from swap_fast.user.result import SwapResult, describe_environment, make_result

# The run's folder.


def open_folder(folder: Path, info: RunInfo, comm: Comm, *, resume: bool) -> Attempt | None:
    """Lock the folder, and start a run there or see that the one there is the same.

    Returns:
        On the first rank the attempt, which the run has to close.

    Raises:
        ValueError: on every rank, as `enter_folder`; or the folder cannot be written to.
    """
    attempt: Attempt | None = None

    def enter() -> str | None:
        nonlocal attempt
        try:
            attempt = enter_folder(folder, info, resume=resume)
        except ValueError as error:
            return str(error)
        except OSError as error:
            return f"folder: expected one that can be written to, got {error}"
        return None

    if (problem := comm.on_first(enter)) is not None:
        raise ValueError(problem)
    return attempt


# The processes of a user's script, where torchrun started them.


def join_ranks(device_type: str, timeout_s: float) -> Comm:
    """This process among those that torchrun started; alone where there are no others.

    Raises:
        ValueError: as `refuse_process_group`.
    """
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return ALONE
    if (device_type, timeout_s) not in _JOINED:
        leave_ranks()
        refuse_process_group()
        _JOINED[device_type, timeout_s] = connect(device_type, timeout_s=timeout_s)
        atexit.register(leave_ranks)
    return _JOINED[device_type, timeout_s]


_JOINED: dict[tuple[str, float], Comm] = {}
"""What this process is connected to, from one run to the next; one at a time."""


def leave_ranks() -> None:
    """Leave the process group that an earlier run has joined."""
    while _JOINED:
        _, comm = _JOINED.popitem()
        if dist.is_initialized():
            comm.close()


def require_timeout(timeout_s: float) -> None:
    """Refuse a time limit that torch cannot have."""
    require(0 < timeout_s < 1e9, "timeout_s", "seconds above 0 and below 1e9", timeout_s)


def refuse_process_group() -> None:
    """Refuse processes that the script has joined already.

    Raises:
        ValueError: there is a process group.
    """
    if dist.is_initialized():
        raise ValueError(
            "processes: expected no process group but swap_fast's own, got one that is "
            "initialized; leave out init_process_group"
        )


@typed_arguments("make_model", "phase1", "phase2", "optimizer")
def swap(
    make_model: Callable[[], nn.Module],
    train_data: Any,
    test_data: Any = None,
    *,
    workers: int = 8,
    phase1: Phase | None = None,
    phase2: Phase | None = None,
    schedule1: Schedule | None = None,
    schedule2: Schedule | None = None,
    optimizer: Make | None = None,
    parameter_groups: Groups | None = None,
    clip_gradient_norm: float | None = None,
    keep_momentum: bool = False,
    loss: Loss | None = None,
    metric: Metric | None = None,
    augment: Augment | None = None,
    collate: Collate | None = None,
    loader_processes: int = 0,
    data_on_device: bool = True,
    precision: Literal["fp32", "bf16", "fp16"] = "fp32",
    device: Literal["auto", "cpu", "cuda"] = "auto",
    seed: int = 0,
    folder: str | Path | None = None,
    resume: bool = False,
    progress: bool = True,
    listeners: Sequence[Listener] = (),
    callbacks: Sequence[Callback] = (),
    timeout_s: float = 1800.0,
) -> SwapResult:
    """Train a net with Stochastic Weight Averaging in Parallel (Algorithm 1).

    Phase 1 trains one model with large batches until its train accuracy is above tau; phase 2
    refines a copy of it on each of W workers with small batches; phase 3 averages their weights
    and recomputes the batch-norm statistics. Under torchrun the processes share phase 1's batches
    and phase 2's workers; alone, one takes all of them in turn, to the same arithmetic.

    Arguments:
        make_model: makes the net, a new one at each call. Parameters that need no gradient stay as
            they are. torch.compile may have been asked for; the net is not wrapped otherwise.
        train_data: (inputs, ..., targets) or a mapping of tensors [N, ...]; a map-style data set
            of examples; or batches that can be gone through again and again, such as a DataLoader.
        test_data: the same; None: nothing is tested.
        workers: W.
        phase1: of all workers' devices together; its `gpus_per_model` may be left out. None:
            derived from `phase2`, or from the number of examples.
        phase2: of each worker. None: derived from phase 1.
        schedule1: the learning rate of phase 1 at a position in epochs, in place of the phase's.
        schedule2: the same of phase 2.
        optimizer: makes a torch optimizer of a list of parameters; called again for each phase and
            worker. None: SGD with Nesterov's momentum 0.9 and weight decay 5e-4.
        parameter_groups: of the net, what `optimizer` is given in place of that list. Groups with
            learning rates of their own keep their ratio to the optimizer's.
        clip_gradient_norm: the largest norm of an update's gradient.
        keep_momentum: carry phase 1's optimizer state into phase 2.
        loss: of the model and a batch, the mean loss, or (the mean loss, how many were right, of
            how many); or a criterion of model(inputs) and targets: a module, such as
            nn.CrossEntropyLoss(label_smoothing=0.1), or a function of torch's. None: the cross
            entropy.
        metric: of the model and a test batch, (a sum, over how many), in place of the accuracy.
        augment: of a batch on its device and a torch.Generator, the batch to train on.
        collate: makes a batch of a list of a data set's examples. None: torch's default.
        loader_processes: that read a data set's examples ahead.
        data_on_device: move tensors to the device once, whole; else batch by batch.
        precision: of the forward pass, by autocast; the weights stay as they are.
        device: auto is CUDA where there is one.
        seed: of all that is drawn.
        folder: keeps a checkpoint after each epoch there, and handles SIGTERM and Ctrl-C: the run
            then ends after a step, and can be resumed. None: nothing is written.
        resume: the run in `folder`, if there is one.
        progress: print what is trained, draw a bar for each model on a terminal, print a line for
            each epoch elsewhere, and one where phase 1 misses tau or averaging does not help.
        listeners: functions of one event, such as trackers: see `swap_fast.callbacks.events`. The
            first process calls them, for the others' workers too where there is a folder.
        callbacks: called by the training itself, on every process, one after another.
        timeout_s: after which a process that does not answer ends the run: more than a process
            with fewer workers has to wait for the others.

    Returns:
        The averaged model, each worker's, accuracies and times, to be looked at or saved.

    Raises:
        ValueError: something of this cannot be; the line says what, and what to do.
        FloatingPointError: the loss is not finite.
        InterruptedRunError: a signal ended the run; what it had done is in `folder`.
    """
    require_seed(seed)
    norm = clip_gradient_norm
    require(norm is None or norm > 0, "clip_gradient_norm", "a number > 0, or None", norm)
    require(loader_processes >= 0, "loader_processes", "0 or more", loader_processes)
    require(folder is not None or not resume, "resume", "a folder= to go on from", resume)
    require_timeout(timeout_s)
    kind = choose_device(device)
    synchronize = torch.cuda.synchronize if kind == "cuda" else lambda: None
    clock = Clock(synchronize)
    comm = join_ranks(kind, timeout_s)
    with generators_kept(kind):
        where = torch.device("cpu")
        if kind == "cuda":
            where = torch.device("cuda", torch.cuda.current_device())
        with clock.lap("data_preparation"):
            opened = partial(
                open_data,
                collate=collate,
                processes=loader_processes,
                device=where if data_on_device else None,
                say=print_line if progress and comm.rank == 0 else lambda line: None,
            )
            train = opened(train_data, "train_data")
            test = None if test_data is None else opened(test_data, "test_data")
            require_use((train, test), collate=collate, processes=loader_processes)
        with clock.lap("model_init"):
            model = make_net(make_model, seed, where)
            weights = Weights(bare(model), may_move=True)
            refuse_synchronized(weights.norms)
            own_optimizer = UserOptimizer(
                weights,
                optimizer or default_optimizer,
                parameter_groups,
                scale_gradients=precision == "fp16" or weights.has_fp16,
                largest_norm=clip_gradient_norm,
            )
        method = user_method(
            train,
            workers=workers,
            phase1=phase1,
            phase2=phase2,
            schedules=(schedule1, schedule2),
            learning_rate=own_optimizer.learning_rate if optimizer else None,
            counts=counts_right(loss),
            keep_momentum=keep_momentum,
        )
        if comm.world_size > (replicas := method.phase1.gpus_per_model):
            raise ValueError(
                f"processes: expected 1 to {replicas}, one a worker's device, got "
                f"{comm.world_size}; start fewer, or raise `workers`"
            )
        data = {
            "train_examples": num_examples(train),
            "test_examples": None if test is None else num_examples(test),
            "train_digest": digest_of(train),
            "test_digest": None if test is None else digest_of(test),
        }
        settings = {
            **describe_method(method),
            "seed": seed,
            "precision": precision,
            "optimizer": own_optimizer.describe(),
            "clip_gradient_norm": clip_gradient_norm,
            "loss": "cross entropy" if loss is None else name_of(loss),
            "metric": None if metric is None else name_of(metric),
            "augment": None if augment is None else name_of(augment),
            "collate": None if collate is None else name_of(collate),
            "model": {
                "name": type(bare(model)).__name__,
                "made_by": name_of(make_model),
                "parameters": len(weights.theta),
                "structure": structure_of(bare(model)),
                "compiled": bare(model) is not model or is_compiled(model),
                "wrapped": bare(model) is not model,
            },
        }
        info = RunInfo(
            created=now(),
            settings=plain(settings | data),
            machine=describe_environment(where) | {"world_size": comm.world_size},
        )
        environment = {name: info.machine[name] for name in ("python", "libraries")}
        comm.require_same(flatten(info.settings | environment))
        with clock.lap("model_init"):
            comm.broadcast_(weights.theta.detach())
            if len(weights.statistics):
                comm.broadcast_(weights.statistics)
            weights.load_(weights.theta.detach(), weights.statistics)
            own_optimizer.reset_()  # a new one, should it hold a copy of the weights
        objective = Objective(model, loss)
        execution = Execution(device_type=kind, precision=precision, memory_format="contiguous")
        by_name = {"phase1": method.phase1, "phase2": method.phase2}
        largest = max(phase.micro_batch_size for phase in by_name.values())
        source = UserSource(
            model, train, test, objective, metric=metric, augment=augment, batch_size=largest
        )
        with clock.lap("data_preparation"):
            source.open_(weights, execution, seed=seed)
            source.try_batches()
            here = Placement(device=where, seed=seed, augment=augment)
            refuse_lone_examples(by_name, weights, objective, train, here)
        group = comm.worker_group(workers)
        phases = [(method.phase1, comm), (method.phase2, group.inside)]
        place = None if folder is None else Path(folder)
        attempt = None if place is None else open_folder(place, info, comm, resume=resume)
        shutdown = NEVER if place is None else GracefulShutdown(synchronize)
        # Rank 0 shows all workers where it can read the others' events in the folder; else each
        # rank prints the lines of its own.
        is_heard = comm.rank == 0 or place is None
        form: Form = ("auto" if comm.rank == 0 else "lines") if progress and is_heard else "none"
        logger = EventLogger(
            [progress_listener(form), *(listeners if comm.rank == 0 else ())],
            make_plan(
                (method.phase1, method.phase2),
                workers,
                num_examples(train),
                metric=settings["metric"],
            ),
            reading=clock.reading,
            rank=comm.rank,
            folder=place,
            follows=comm.rank == 0,
        )
        checkpoints: RunFolder | NoCheckpoints = NoCheckpoints()
        if place is not None:
            checkpoints = RunFolder(
                place,
                clock,
                keep_every=method.phase2.cycle_epochs,
                attempt=attempt,
                on_save=lambda progress: trainer.callbacks.on_save(progress),
                say=logger.note,
            )
        with attempt or nullcontext(), logger:
            net, begun = settings["model"]["name"], info
            if place is not None and comm.rank == 0:  # a resumed run keeps its name
                begun = read_run_info(place) or info
            if is_heard:
                logger.emit_began(
                    run_id(net, seed, begun.created),
                    {"name": net, **settings},
                    seed=seed,
                    world_size=comm.world_size,
                    machine=info.machine,
                    resumed=attempt is not None and attempt.resumed,
                )
            if comm.rank == 0:
                size_mb = sum(each.nbytes for each in weights.copy()) / 1e6
                lines = opening_lines(method, where, precision, size_mb) + order_lines(
                    train, method
                )
                if test is not None and not source.measures:
                    lines.append(
                        "nothing is measured on test_data: the loss does not count what is right; "
                        "pass metric=, or let it return that too"
                    )
                for line in lines:
                    logger.note(line)
            trainer = assemble(
                source,
                phases,
                [
                    [UserStep(weights, own_optimizer, phase, ranks, execution, objective)]
                    for phase, ranks in phases
                ],
                weights=weights,
                optimizer=own_optimizer,
                recompute_batchnorm=BatchNormRecompute(
                    weights,
                    execution.autocast,
                    forward=Objective(weights.model, loss),
                    leave_out_lone=True,
                ),
                buffer=None,
                seed=seed,
                execution=execution,
                comm=comm,
                group=group,
                clock=clock,
                callbacks=[
                    *(logger, FrozenValues(weights.model), *callbacks),
                    *([] if attempt is None else [attempt]),
                ],
                checkpoints=checkpoints,
                shutdown=shutdown,
            )
            # The script or notebook around this run may continue after a signal.
            handled: AbstractContextManager[None]
            handled = nullcontext() if place is None else shutdown.installed(always_uninstall=True)
            mark_trained(model)
            try:
                with handled:
                    done = run_algorithm(method, trainer)
            except InterruptedRunError as signal:
                how = f"{signal}; the same call with resume=True continues it"
                raise InterruptedRunError(how, together=signal.together) from None
            rows = checkpoints.rows
            result = make_result(trainer, done, rows, model, settings=settings, data=data)
            if comm.rank == 0:
                for note in result.notes:
                    logger.note(note)
                logger.emit_done(
                    done,
                    worker_accuracies=result.worker_accuracies,
                    accuracy_before_averaging=result.accuracy_before_averaging,
                    training_time_s=result.times.after_averaging_s,
                )
        comm.barrier()
        if place is not None and comm.rank == 0:
            with suppress(OSError):  # its events then stay in several files
                merge_events(place)
            prune(place, every=method.phase2.cycle_epochs, resumable=True)
        return result


def default_optimizer(parameters: Any) -> torch.optim.Optimizer:
    """The paper's of CIFAR: SGD with Nesterov's momentum and weight decay (Section 5.1)."""
    return torch.optim.SGD(parameters, lr=1.0, momentum=0.9, nesterov=True, weight_decay=5e-4)
