"""What only several GPUs can confirm of the ranks, over NCCL; on a CPU over gloo."""

from collections.abc import Callable
from dataclasses import replace
from tempfile import TemporaryDirectory

import torch
import torch.distributed as dist
from torch import Tensor

from bench.runner.launch import launch
from bench.verify.check import Check, Form, UnavailableError
from bench.verify.contract import same_kernels
from swap_fast.config.execution import Execution, default_execution
from swap_fast.config.phase import Optimizer, Phase
from swap_fast.distributed import ALONE, Comm, connect
from swap_fast.models import ResNet9
from swap_fast.training.capture import Captures
from swap_fast.training.optimizer import MomentumSGD
from swap_fast.training.step import Step
from swap_fast.training.weights import Weights, average

SLOTS, MICRO_BATCH = 4, 16
"""Of the update that ranks share."""
TIMEOUT_S = 60.0
"""How long one of their collectives may last."""
FP32_LIMIT, FP16_LIMIT = 1e-4, 4 * 2.0**-11
"""Relative differences allowed. Half precision keeps 11 bits of each rank's part, and of the sum;
the fourth bit is for the sum's own order."""


def devices_for(form: Form, on_cpu: int) -> int:
    """Ranks that can have a device each."""
    return torch.cuda.device_count() if form.device_type == "cuda" else on_cpu


def _require_two(form: Form) -> None:
    if devices_for(form, on_cpu=2) < 2:
        raise UnavailableError("two CUDA devices")


def _way(form: Form) -> str:
    return "NCCL, in the graph" if form.device_type == "cuda" else "gloo"


def together(form: Form) -> str:
    """An update of two ranks, its all-reduce inside the graph, beside that of one process."""
    _require_two(form)
    with TemporaryDirectory() as folder, same_kernels():
        launch(_save_update, form.device_type, folder, num_ranks=2)
        two = torch.load(f"{folder}/theta.pt", weights_only=True)
        one, _ = _update(_fp32(form.device_type), ALONE, SLOTS)
    difference = _difference(two, one)
    assert difference < FP32_LIMIT, f"two ranks differ from one process by {difference:.1e}"
    return f"two ranks ({_way(form)}) within {difference:.1e} of one process"


def _fp32(device_type: str) -> Execution:
    return replace(default_execution(device_type), precision="fp32")


def _save_update(device_type: str, folder: str) -> None:
    torch.set_num_threads(1)
    comm = connect(device_type, timeout_s=TIMEOUT_S)
    with Captures() as captures, same_kernels():
        theta, _ = _update(_fp32(device_type), comm, SLOTS, captures=captures)
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


def _difference(ours: Tensor, theirs: Tensor) -> float:
    """The largest, relative to the largest value."""
    return float((ours - theirs).abs().max() / theirs.abs().max())


def groups(form: Form) -> str:
    """Updates of workers of two ranks each, summed in fp32 and in fp16, beside one process's."""
    _require_two(form)
    ranks = 4 if devices_for(form, on_cpu=4) >= 4 else 2
    num_workers = ranks // 2
    with TemporaryDirectory() as folder, same_kernels():
        launch(_save_group_updates, form.device_type, folder, num_workers, num_ranks=ranks)
        seen = []
        for all_reduce, limit in (("fp32", FP32_LIMIT), ("fp16", FP16_LIMIT)):
            execution = _fp16(form.device_type, "fp32")
            alone = [
                _update(execution, ALONE, 2, first_seed=2 * worker)[1]
                for worker in range(num_workers)
            ]
            expected = [*alone, torch.stack(alone).mean(0)]
            made = torch.load(f"{folder}/{all_reduce}.pt", weights_only=True)
            pairs = zip(made, expected, strict=True)
            largest = max(_difference(ours, theirs) for ours, theirs in pairs)
            assert largest <= limit, (
                f"summed in {all_reduce}: differs from one process by {largest:.1e}, allowed "
                f"{limit:.1e}"
            )
            seen.append(f"{all_reduce} within {largest:.1e}")
    many = f"{num_workers} worker{'s' if num_workers > 1 else ''} of 2 ranks ({_way(form)})"
    return f"{many}, gradients summed in {' and in '.join(seen)} of one process"


def _fp16(device_type: str, all_reduce: str) -> Execution:
    execution = replace(default_execution(device_type), precision="fp16")
    return replace(execution, all_reduce="fp16") if all_reduce == "fp16" else execution


def _save_group_updates(device_type: str, folder: str, num_workers: int) -> None:
    """Save each worker's summed gradient, and the average of all workers', as one list."""
    torch.set_num_threads(1)
    comm = connect(device_type, timeout_s=TIMEOUT_S)
    group = comm.worker_group(num_workers)
    (worker,) = group.workers
    with Captures() as captures, same_kernels():
        for all_reduce in ("fp32", "fp16"):
            _, gradient = _update(
                _fp16(device_type, all_reduce),
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
    """Process groups of one rank and of all, closed after a collective was captured in a graph."""
    _close_alone(form.device_type)
    ranks = devices_for(form, on_cpu=2)
    if ranks > 1:
        launch(_close, form.device_type, num_ranks=ranks)
    what = "a graph of NCCL's was reset first" if form.device_type == "cuda" else "gloo, no graph"
    return f"1 rank{f' and {ranks}' if ranks > 1 else ''} ended ({what})" + (
        "" if ranks > 1 else "; NCCL keeps nothing in the graph of a single rank"
    )


def _close_alone(device_type: str) -> None:
    """`connect` gives a rank alone no process group; here it has one."""
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
    """Sum ones over the ranks in a replayed graph, reset it, and return the replay: still held."""
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


RANK_CHECKS = (
    Check(
        name="together",
        claim="ranks whose all-reduce is in the graph agree with one process",
        confirm=together,
        limit_s=120,
    ),
    Check(
        name="groups",
        claim="workers of several ranks agree with one process, summed in fp32 and in fp16",
        confirm=groups,
        limit_s=120,
    ),
    Check(
        name="teardown",
        claim="process groups end after their collectives were in a graph",
        confirm=teardown,
        limit_s=120,
    ),
)
