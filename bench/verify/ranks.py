"""Checks of the ranks, over NCCL; on a CPU over gloo."""

from collections.abc import Callable
from dataclasses import replace
from tempfile import TemporaryDirectory
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

from bench.runner.launch import launch
from bench.verify.check import Form, UnavailableError
from bench.verify.equivalence import fp16_execution, relative_difference, same_kernels
from swap_fast.config.execution import Execution, default_execution
from swap_fast.config.phase import Optimizer, Phase
from swap_fast.distributed import ALONE, Comm, connect
from swap_fast.models import ResNet9
from swap_fast.training.capture import Captures
from swap_fast.training.optimizer import MomentumSGD
from swap_fast.training.step import Step
from swap_fast.training.weights import Weights, average

REPLICAS, MICRO_BATCH = 4, 16
"""Of the update that ranks share."""
TIMEOUT_S = 60.0
"""How long a collective may last."""
FP32_LIMIT, FP16_LIMIT = 1e-4, 4 * 2.0**-11
"""Relative differences allowed. Half precision keeps 11 bits of each rank's part, and of the sum;
the factor 4 leaves room for the order of the sum too."""


ALL_REDUCES: tuple[Literal["fp32", "fp16"], ...] = ("fp32", "fp16")


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
        for all_reduce, limit in zip(ALL_REDUCES, (FP32_LIMIT, FP16_LIMIT), strict=True):
            execution = fp16_execution(form.device_type)
            alone = [
                _update(execution, ALONE, 2, first_seed=2 * worker)[1]
                for worker in range(num_workers)
            ]
            expected = [*alone, torch.stack(alone).mean(0)]
            made = torch.load(f"{folder}/{all_reduce}.pt", weights_only=True)
            pairs = zip(made, expected, strict=True)
            largest = max(relative_difference(ours, theirs) for ours, theirs in pairs)
            assert largest <= limit, (
                f"summed in {all_reduce}: differs from one process by {largest:.1e}, allowed "
                f"{limit:.1e}"
            )
            seen.append(f"{all_reduce} within {largest:.1e}")
    many = f"{num_workers} worker{'s' if num_workers > 1 else ''} of 2 ranks ({_transport(form)})"
    return f"{many}, gradients summed in {' and in '.join(seen)} of one process"


def _save_group_updates(device_type: str, folder: str, num_workers: int) -> None:
    """Save a list: each worker's summed gradient, and the average over the workers."""
    torch.set_num_threads(1)
    comm = connect(device_type, timeout_s=TIMEOUT_S)
    group = comm.worker_group(num_workers)
    (worker,) = group.workers
    with Captures() as captures, same_kernels():
        for all_reduce in ALL_REDUCES:
            _, gradient = _update(
                replace(fp16_execution(device_type), all_reduce=all_reduce),
                group.inside,
                2,
                first_seed=2 * worker,
                captures=captures,
            )
            mean = average([(worker, gradient.to(device_type))], group.across).cpu()
            ours = gradient if group.inside.rank == 0 else None
            made = [each for each in comm.gather(ours) if each is not None]
            if comm.rank == 0:
                torch.save([*made, mean], f"{folder}/{all_reduce}.pt")
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
