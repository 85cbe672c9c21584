"""What only a GPU can confirm of memory: graphs share theirs, and ImageNet's stages fit."""

import gc
from collections.abc import Iterable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from bench.micro.step import make_step
from bench.planner.hardware import V100
from bench.planner.model import memory_bytes
from bench.planner.workload import NUM_CLASSES, workload_of
from bench.records.paper import load_paper
from bench.verify.check import Check, Form, UnavailableError
from bench.verify.contract import same_kernels
from swap_fast.config.execution import Execution, default_execution
from swap_fast.config.phase import Phase
from swap_fast.config.recipe import SWAPRecipe
from swap_fast.config.stages import Shape, StagedPhase
from swap_fast.data.cifar.batches import Loader
from swap_fast.distributed import Comm
from swap_fast.models import make_tree_net
from swap_fast.recipes.imagenet import CPU_ROWS, ROWS, imagenet_swap, imagenet_swap_cpu, scaled
from swap_fast.training.capture import Captures
from swap_fast.training.clock import Clock
from swap_fast.training.evaluate import Accuracies
from swap_fast.training.parts import Evaluate, Watch, make_parts
from swap_fast.training.weights import Weights

GIB = 2**30
POOL_GROWTH = 0.25
"""Share of the first graph's memory that a second of the same shape, and a smaller one, may add."""


def _require_cuda(form: Form) -> None:
    if form.device_type != "cuda":
        raise UnavailableError("a CUDA device")


def _graph_bytes() -> int:
    """What all graphs' pools have reserved."""
    gc.collect()
    torch.cuda.empty_cache()
    segments = torch.cuda.memory_snapshot()
    return sum(s["total_size"] for s in segments if tuple(s["segment_pool_id"]) != (0, 0))


def shared_pool(form: Form) -> str:
    """Three captures with one owner: what each adds, and whether their replays stay apart."""
    _require_cuda(form)
    width, batches = (4, (64, 32, 64)) if form.small else (32, (512, 256, 512))
    with same_kernels():
        eager, _ = _train_in_turn(width, batches, None)
        with Captures() as captures:
            captured, sizes = _train_in_turn(width, batches, captures)
    first, added = sizes[0], max(sizes[1:])
    assert first > 0, "the first graph reserved no memory of its own"
    assert added <= POOL_GROWTH * first, (
        f"the first graph reserved {first / GIB:.3f} GiB, another {added / GIB:.3f} more: the "
        "pool shares nothing"
    )
    apart = max(abs(ours / theirs - 1) for ours, theirs in zip(captured, eager, strict=True))
    assert apart <= 1e-3, f"replayed in turn, a step's loss is {apart:.1e} off the eager one's"
    return (
        f"the first graph reserved {first / GIB:.3f} GiB, two more added {sum(sizes[1:]) / GIB:.3f}"
        f"; replayed in turn, their losses are within {apart:.1e} of eager steps"
    )


def _train_in_turn(
    width: int, batches: tuple[int, ...], captures: Captures | None
) -> tuple[list[float], list[int]]:
    """Each step's mean loss over two rounds of an update of each; and what its capture reserved."""
    execution = replace(default_execution("cuda"), capture=captures is not None)
    steps, sizes = [], []
    for number, batch_size in enumerate(batches):
        torch.manual_seed(number)
        step, _ = make_step(execution, width, batch_size)
        before = _graph_bytes()
        step.warm_up(captures=captures)
        sizes.append(_graph_bytes() - before)
        random = torch.Generator().manual_seed(number)
        step.images.copy_(torch.randn(step.images.shape, generator=random))
        step.set_learning_rate(0.1)
        steps.append(step)
    for step in (*steps, *steps):
        step()
    return [step.read_metrics().loss for step in steps], sizes


class _NoImages:
    """The data of a run that is made and never trained."""

    image_size = 224

    def __init__(self, num_images: int) -> None:
        self.num_images = num_images

    def warm_up(self, weights: Weights, execution: Execution) -> None:
        """Nothing."""

    def open_(self, weights: Weights, execution: Execution, *, seed: int) -> None:
        """Nothing."""

    def batches(self, phase: Phase, shape: Shape, *, number: int, slots: range) -> Loader:
        """None."""
        raise AssertionError("nothing is trained")

    def batch_norm_batches(self, buffer: Tensor, shape: Shape, comm: Comm) -> Iterable[Tensor]:
        """None."""
        return ()

    def evaluator(self, shape: Shape) -> Evaluate:
        """Tests nothing."""
        return lambda comm: Accuracies(float("nan"))


def imagenet_memory(form: Form) -> str:
    """ImageNet's run as one of the paper's devices has it, made up to its captured steps."""
    _require_cuda(form)
    recipe = _one_device(form)
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before, benchmark = torch.cuda.memory_reserved(), torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True  # as in a run: what is tried needs memory too
    try:
        with Captures() as captures:
            make_parts(
                recipe,
                partial(make_tree_net, recipe, NUM_CLASSES["imagenet"]),
                _NoImages(2 * recipe.largest_batch_size + 1),
                seed=0,
                device=torch.device("cuda"),
                execution=default_execution("cuda"),
                clock=Clock(),
                watch=Watch(),
                captures=captures,
            )
            torch.cuda.synchronize()
            peak = torch.cuda.max_memory_reserved() - before
            graphs = _graph_bytes()
    finally:
        torch.backends.cudnn.benchmark = benchmark
    total = torch.cuda.get_device_properties(0).total_memory
    text = (
        f"at most {peak / GIB:.2f} GiB reserved of the device's {total / GIB:.1f}, "
        f"{graphs / GIB:.2f} of them by the graphs"
    )
    assert peak < total, text
    if form.small:
        return f"{text}: a narrow net on small images"
    planned = memory_bytes(workload_of(imagenet_swap(), load_paper()), V100)
    return f"{text}; the planner counts {planned / GIB:.2f} without the libraries' buffers"


def _one_device(form: Form) -> SWAPRecipe:
    """One worker of one slot, whose batches are those of a device in the paper's 16."""
    recipe, rows = (
        (imagenet_swap_cpu(), tuple((*row[:3], 8, *row[4:]) for row in CPU_ROWS))
        if form.small
        else (imagenet_swap(), ROWS)
    )
    stages = scaled(rows, 1, base=8)
    return replace(
        recipe,
        num_workers=1,
        phase1=StagedPhase(stages=stages[:3], gpus_per_model=1),
        phase2=StagedPhase(stages=stages[3:], gpus_per_model=1),
        batch_norm_batch_size=8 if form.small else recipe.batch_norm_batch_size,
    )


MEMORY_CHECKS = (
    Check(
        name="shared-pool",
        claim="graphs share one pool: it is as large as the largest needs, not as their sum",
        confirm=shared_pool,
        limit_s=60,
    ),
    Check(
        name="imagenet-memory",
        claim="the captured steps of all of ImageNet's stages fit the device's memory together",
        confirm=imagenet_memory,
        limit_s=240,
    ),
)
