"""Checks of the ranks, over NCCL (on a CPU over gloo), and of whole runs: they end, and resume.

A run that was stopped resumes to the same weights.
"""

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from bench.data_tools import write_cifar10
from bench.runner.launch import launch
from bench.verify.check import Form, UnavailableError
from bench.verify.equivalence import fp16_execution, relative_difference, same_kernels
from swap_fast.algorithm import swap
from swap_fast.checkpoint.run_folder import RunFolder
from swap_fast.clock import Clock
from swap_fast.config.execution import Execution, default_execution
from swap_fast.config.phase import Optimizer, Phase
from swap_fast.config.recipe import SWAPRecipe
from swap_fast.data.cifar.dataset import Split
from swap_fast.data.cifar.synthetic import generate_synthetic
from swap_fast.distributed import ALONE, Comm, connect
from swap_fast.models import ResNet9, net_maker
from swap_fast.recipes.cifar10 import cifar10_quick
from swap_fast.shutdown import GracefulShutdown, InterruptedRunError
from swap_fast.tasks.cifar import CifarSource
from swap_fast.training.callback import Callback
from swap_fast.training.capture import Captures
from swap_fast.training.optimizer import MomentumSGD
from swap_fast.training.step import Step
from swap_fast.training.trainer import build_trainer
from swap_fast.training.weights import Weights, average

REPLICAS, MICRO_BATCH = 4, 16
"""Of the update that ranks share."""
TIMEOUT_S = 60.0
"""How long a collective may last."""
FP32_LIMIT, FP16_LIMIT = 1e-4, 4 * 2.0**-11
"""Relative differences allowed. Half precision keeps 11 bits of each rank's part, and of the sum;
the factor 4 leaves room for the order of the sum too."""


SUMS: tuple[tuple[Literal["fp32", "fp16"], Literal[1, 3]], ...] = (
    *(("fp32", 1), ("fp16", 1)),
    *(("fp32", 3), ("fp16", 3)),
)
"""Of gradients: the type, and in how many buckets."""


def devices_for(form: Form, on_cpu: int) -> int:
    """How many ranks can have a device each."""
    return torch.cuda.device_count() if form.device_type == "cuda" else on_cpu


def _require_two(form: Form) -> None:
    if devices_for(form, on_cpu=2) < 2:
        raise UnavailableError("two CUDA devices")


def _transport(form: Form) -> str:
    return "NCCL, in the graph" if form.device_type == "cuda" else "gloo"


def together(form: Form) -> str:
    """Compare an update of two ranks, its all-reduce inside the graph, with one process's."""
    _require_two(form)
    with TemporaryDirectory() as folder, same_kernels():
        launch(_save_update, form.device_type, folder, num_ranks=2)
        two = torch.load(f"{folder}/theta.pt", weights_only=True)
        one, _ = _update(_fp32(form.device_type), ALONE, REPLICAS)
    difference = relative_difference(two, one)
    assert difference < FP32_LIMIT, f"two ranks differ from one process by {difference:.1e}"
    return f"two ranks ({_transport(form)}) within {difference:.1e} of one process"


def _fp32(device_type: str) -> Execution:
    return replace(default_execution(device_type), precision="fp32")


def _save_update(device_type: str, folder: str) -> None:
    torch.set_num_threads(1)
    comm = connect(device_type, timeout_s=TIMEOUT_S)
    with Captures() as captures, same_kernels():
        theta, _ = _update(_fp32(device_type), comm, REPLICAS, captures=captures)
        if comm.rank == 0:
            torch.save(theta, f"{folder}/theta.pt")
    comm.close()


def _update(
    execution: Execution,
    comm: Comm,
    num_replicas: int,
    *,
    first_seed: int = 0,
    captures: Captures | None = None,
) -> tuple[Tensor, Tensor]:
    """theta and the summed gradient, on the host, of one update.

    Arguments:
        first_seed: of replica 0's batch; the others' follow, so that a batch depends on its replica
            alone, whichever rank has it.
    """
    torch.manual_seed(0)
    device = torch.device(execution.device_type)
    weights = Weights(execution.place(ResNet9(width=4), device))
    scaled = execution.precision == "fp16"
    optimizer = MomentumSGD(weights, Optimizer(loss_scale=1024.0), scale_gradients=scaled)
    size = num_replicas * MICRO_BATCH
    phase = Phase(global_batch_size=size, peak_lr=1.0, max_epochs=1, gpus_per_model=num_replicas)
    step = Step(weights, optimizer, phase, comm, execution)
    weights.model.train()
    step.warm_up(captures=captures)
    replicas, labels = comm.replicas(num_replicas), torch.arange(size).view(num_replicas, -1) % 10
    for replica, images in zip(replicas, step.images.chunk(len(replicas)), strict=True):
        random = torch.Generator().manual_seed(first_seed + replica)
        images.copy_(torch.randn(images.shape, generator=random))
    step.labels.copy_(labels[list(replicas)].flatten())
    step.set_learning_rate(0.01)
    step()
    return weights.theta.detach().cpu(), weights.gradient.cpu()


def groups(form: Form) -> str:
    """Compare updates of workers of two ranks each, summed in fp32 and fp16, with one process's."""
    _require_two(form)
    ranks = 4 if devices_for(form, on_cpu=4) >= 4 else 2
    num_workers = ranks // 2
    with TemporaryDirectory() as folder, same_kernels():
        launch(_save_group_updates, form.device_type, folder, num_workers, num_ranks=ranks)
        seen = []
        for all_reduce, buckets in SUMS:
            limit = FP32_LIMIT if all_reduce == "fp32" else FP16_LIMIT
            execution = fp16_execution(form.device_type)
            alone = [
                _update(execution, ALONE, 2, first_seed=2 * worker)[1]
                for worker in range(num_workers)
            ]
            expected = [*alone, torch.stack(alone).mean(0)]
            made = torch.load(f"{folder}/{all_reduce}-{buckets}.pt", weights_only=True)
            pairs = zip(made, expected, strict=True)
            largest = max(relative_difference(ours, theirs) for ours, theirs in pairs)
            name = all_reduce if buckets == 1 else f"{all_reduce} and {buckets} buckets"
            assert largest <= limit, (
                f"summed in {name}: differs from one process by {largest:.1e}, allowed {limit:.1e}"
            )
            seen.append(f"{name} within {largest:.1e}")
    many = f"{num_workers} worker{'s' if num_workers > 1 else ''} of 2 ranks ({_transport(form)})"
    return f"{many}, gradients summed in {', in '.join(seen)} of one process"


def _save_group_updates(device_type: str, folder: str, num_workers: int) -> None:
    """Save a list: each worker's summed gradient, and the average over the workers."""
    torch.set_num_threads(1)
    comm = connect(device_type, timeout_s=TIMEOUT_S)
    group = comm.worker_group(num_workers)
    (worker,) = group.workers
    with Captures() as captures, same_kernels():
        for all_reduce, buckets in SUMS:
            execution = fp16_execution(device_type)
            _, gradient = _update(
                replace(execution, all_reduce=all_reduce, all_reduce_buckets=buckets),
                group.inside,
                2,
                first_seed=2 * worker,
                captures=captures,
            )
            mean = average([(worker, gradient.to(device_type))], group.across).cpu()
            ours = gradient if group.inside.rank == 0 else None
            made = [each for each in comm.gather(ours) if each is not None]
            if comm.rank == 0:
                torch.save([*made, mean], f"{folder}/{all_reduce}-{buckets}.pt")
    comm.close()


def teardown(form: Form) -> str:
    """Close process groups of one rank and of all after a collective was captured in a graph."""
    _close_alone(form.device_type)
    ranks = devices_for(form, on_cpu=2)
    if ranks > 1:
        launch(_close, form.device_type, num_ranks=ranks)
    what = "a graph of NCCL's was reset first" if form.device_type == "cuda" else "gloo, no graph"
    return f"1 rank{f' and {ranks}' if ranks > 1 else ''} ended ({what})" + (
        "" if ranks > 1 else "; NCCL keeps nothing in the graph of a single rank"
    )


def _close_alone(device_type: str) -> None:
    """Close a process group of one rank, which `connect` would not make."""
    device = torch.device(device_type, 0) if device_type == "cuda" else None
    dist.init_process_group(
        "nccl" if device_type == "cuda" else "gloo",
        store=dist.HashStore(),
        rank=0,
        world_size=1,
        device_id=device,
    )
    held = _reduce_in_a_graph(dist.all_reduce, 1, device_type)
    dist.destroy_process_group()
    del held


def _close(device_type: str) -> None:
    torch.set_num_threads(1)
    comm = connect(device_type, timeout_s=TIMEOUT_S)
    held = _reduce_in_a_graph(comm.all_reduce_, comm.world_size, device_type)
    comm.close()
    del held


def _reduce_in_a_graph(
    all_reduce: Callable[[Tensor], object], ranks: int, device_type: str
) -> Callable[[], None]:
    """Sum ones over the ranks in a replayed graph, reset it, and return the replay, still held."""
    ones, total = torch.ones(1024, device=device_type), torch.empty(1024, device=device_type)

    def update() -> None:
        total.copy_(ones)
        all_reduce(total)

    with Captures() as captures:
        replay = captures.capture(update) if device_type == "cuda" else update
        for _ in range(3):
            total.zero_()
            replay()
            seen = total.unique().tolist()
            assert seen == [ranks], f"a sum of {ranks} ones gave {seen}"
    if device_type == "cuda":
        try:
            replay()
        except RuntimeError:
            return replay
        raise AssertionError("a graph that was reset could be replayed")
    return replay


IMAGES, TEST_IMAGES = 640, 200
EPOCHS = 3
"""Of phase 1; of phase 2 one."""
BATCH = 32
"""Images of a replica in phase 1, and of a worker in phase 2."""
STOPPED_AFTER = (7, 9)
"""Updates after which the first and the second attempt get a signal to end. With one or two ranks
of two workers the first is in phase 1, and the second in phase 2."""
CONTROL_LIMIT = 0.02
"""Share of the distance that the weights move in a run: one lost or repeated update of the 20 would
be about 5%."""


def _workers(ranks: int) -> int:
    """At least 2; each is also a replica of phase 1."""
    return max(2, ranks)


def _ranks(ranks: int) -> str:
    return f"{ranks} rank{'s' if ranks > 1 else ''}"


def whole_run(form: Form) -> str:
    """Start `bench run` as a user does, for two runs in a row, on one rank and on all."""
    most = devices_for(form, on_cpu=2)
    with TemporaryDirectory() as folder:
        data, seen = Path(folder) / "data", []
        dataset = generate_synthetic(train_images=IMAGES, test_images=TEST_IMAGES)
        write_cifar10(data, _records(dataset.train), _records(dataset.test))
        for ranks in sorted({1, most}):
            records = _run_twice(form, ranks, data, Path(folder) / f"on{ranks}")
            for record in records:
                losses = [row["train_loss"] for row in record["epochs"]]
                assert all(map(math.isfinite, losses)), f"{_ranks(ranks)}: losses {losses}"
                first, last = (losses[at] for at in (0, EPOCHS - 1))
                assert last < first, f"{_ranks(ranks)}: phase 1's loss went from {first} to {last}"
                assert record["world_size"] == ranks, f"{record['world_size']} ranks, not {ranks}"
            accuracies = ", ".join(f"{record['test_accuracy']:.1%}" for record in records)
            seen.append(f"{_ranks(ranks)}: {accuracies} of test images right")
    return "; ".join(seen)


def _records(split: Split) -> NDArray[np.uint8]:
    """Labels and images as CIFAR-10's files have them: uint8 [n, 3073]."""
    planes = split.images.transpose(0, 3, 1, 2).reshape(len(split), -1)
    return np.concatenate([split.labels[:, None], planes], axis=1)


def _run_twice(form: Form, ranks: int, data: Path, out: Path) -> list[dict[str, Any]]:
    """The records of two runs in one session, a process of its own."""
    workers = _workers(ranks)
    settings = {
        "train-images": IMAGES,
        "width": 4 if form.small else 16,
        "num-workers": workers,
        "batch-norm-batch-size": 256,
        "phase1.gpus-per-model": workers,
        "phase1.global-batch-size": BATCH * workers,
        "phase1.max-epochs": EPOCHS,
        "phase1.horizon-epochs": EPOCHS + 1,
        "phase1.warmup-epochs": 1,
        "phase1.peak-lr": 0.1,
        "phase2.global-batch-size": BATCH,
        "device": form.device_type,
        "step": "eager" if form.small else "auto",  # a stand-in has no values of inductor's kernels
        "ranks": ranks,
        "threads": 1,
        "runs": 2,
        "timeout-s": TIMEOUT_S,
        "data": data,
        "out": out,
    }
    words = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "bench", "run", "cifar10_quick", "--quiet", *words]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{_ranks(ranks)}: status {done.returncode}: {done.stderr[-200:]}"
    records = [json.loads(path.read_text()) for path in sorted((out / "runs").glob("*.json"))]
    assert len(records) == 2, f"{_ranks(ranks)}: two runs made {len(records)} records"
    return records


def resume(form: Form) -> str:
    """Compare a run that is stopped in each phase and resumed with one that is not stopped."""
    ranks = devices_for(form, on_cpu=2)
    many = f"{_ranks(ranks)}, interrupted in both phases"
    with TemporaryDirectory() as name:
        folder = Path(name)
        for number, stop_after in enumerate((*STOPPED_AFTER, None)):
            before = {"alone": None} if number == 0 else {}
            try:
                launch(_run_all, form, folder, {**before, "stopped": stop_after}, num_ranks=ranks)
                was_stopped = False
            except InterruptedRunError:
                was_stopped = True
            expected = stop_after is not None
            assert was_stopped == expected, f"attempt {number + 1} of 3 ended by itself"
        start, alone = _saved(folder, "alone")
        _, resumed = _saved(folder, "stopped")
        moved = _distance(alone, start)
        apart = _distance(resumed, alone) / moved
        if apart == 0:
            return f"{many}: equal to the bit"
        # Some kernels sum in no fixed order: two undisturbed runs show how much that is.
        launch(_run_all, form, folder, {"again": None}, num_ranks=ranks)
        control = _distance(_saved(folder, "again")[1], alone) / moved
    text = (
        f"{many}: {apart:.1e} of the way from the undisturbed run, another undisturbed one "
        f"{control:.1e}"
    )
    assert control < CONTROL_LIMIT, f"{text}: too far to judge"
    assert apart <= 3 * control, text
    return text


def _saved(folder: Path, run: str) -> tuple[Tensor, Tensor]:
    """The weights at a run's start and end."""
    start, end = torch.load(folder / f"{run}.pt", weights_only=True)
    return start, end


def _distance(ours: Tensor, theirs: Tensor) -> float:
    return float((ours.double() - theirs.double()).norm())


def _recipe(ranks: int, width: int) -> SWAPRecipe:
    recipe, workers = cifar10_quick(), _workers(ranks)
    return replace(
        recipe,
        train_images=None,
        width=width,
        num_workers=workers,
        batch_norm_batch_size=256,
        phase1=replace(
            recipe.phase1,
            global_batch_size=IMAGES // 5 // workers * workers,
            gpus_per_model=workers,
            max_epochs=2,
            horizon_epochs=3,
            warmup_epochs=1,
            peak_lr=0.05,
        ),
        phase2=replace(recipe.phase2, global_batch_size=IMAGES // 10, peak_lr=0.01),
    )


def _run_all(form: Form, folder: Path, stop_after: dict[str, int | None]) -> None:
    """Run one after another, each to its end or until SIGTERM after that many updates."""
    torch.set_num_threads(1)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        with same_kernels():
            comm = connect(form.device_type, timeout_s=TIMEOUT_S)
            try:
                for run, updates in stop_after.items():
                    _run(form, comm, folder, run, updates)
            finally:
                comm.close()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


class _EndAfter(Callback):
    """Sends this process SIGTERM after a number of updates."""

    def __init__(self, updates: int | None) -> None:
        self._left = updates or 0

    def on_step(self, images: int) -> None:
        """Count down."""
        self._left -= 1
        if self._left == 0:
            os.kill(os.getpid(), signal.SIGTERM)


def _run(form: Form, comm: Comm, folder: Path, run: str, stop_after: int | None) -> None:
    """Train in the folder `run`, and save the weights at the start and at the end."""
    device_type = form.device_type
    synchronize = torch.cuda.synchronize if device_type == "cuda" else lambda: None
    clock, shutdown = Clock(), GracefulShutdown(synchronize)
    dataset = generate_synthetic(train_images=IMAGES, test_images=TEST_IMAGES)
    recipe = _recipe(comm.world_size, 4 if form.small else 16)

    with Captures() as captures, shutdown.installed():
        trainer = build_trainer(
            recipe,
            net_maker(recipe, dataset),
            CifarSource(recipe, dataset),
            seed=0,
            device=torch.device(device_type),
            execution=default_execution(device_type),
            comm=comm,
            clock=clock,
            callbacks=[_EndAfter(stop_after)],
            checkpoints=RunFolder(folder / run, clock),
            shutdown=shutdown,
            captures=captures,
        )
        start = torch.cat(trainer.weights.copy()).cpu()
        swap(recipe, trainer)
        if comm.rank == 0:
            end = torch.cat(trainer.weights.copy()).cpu()
            torch.save((start, end), folder / f"{run}.pt")
