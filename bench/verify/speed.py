"""Checks of a GPU's memory, and of its images/s against the planner's."""

import gc
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from bench.micro.data import MEAN, STD, random_split
from bench.micro.peak import synchronize
from bench.micro.step import make_step, training_loop
from bench.net_cost import resnet9
from bench.planner.command import modelled
from bench.planner.model import V100, by_device_name, epoch_s, memory_bytes
from bench.planner.workload import NUM_CLASSES, workload_of
from bench.records.paper import load_paper
from bench.verify.check import Form, UnavailableError
from bench.verify.equivalence import same_kernels
from swap_fast.clock import Clock
from swap_fast.config.execution import Execution, default_execution
from swap_fast.config.phase import BatchShape, Phase, StagedPhase
from swap_fast.config.recipe import SWAPRecipe
from swap_fast.data.cifar.batches import Batch, Loader
from swap_fast.distributed import Comm
from swap_fast.models import make_tree_net
from swap_fast.recipes.cifar10 import cifar10_swap
from swap_fast.recipes.imagenet import CPU_ROWS, ROWS, imagenet_swap, imagenet_swap_cpu, scaled
from swap_fast.training.capture import Captures
from swap_fast.training.evaluate import Accuracies, Evaluate
from swap_fast.training.loop import ImageSource
from swap_fast.training.trainer import build_trainer
from swap_fast.training.weights import Weights

# Memory: the graphs share one pool, and ImageNet's stages fit.

GIB = 2**30
POOL_GROWTH = 0.25
"""Share of the first graph's memory that a further one, of the same shape or smaller, may add."""


def _require_cuda(form: Form) -> None:
    if form.device_type != "cuda":
        raise UnavailableError("a CUDA device")


def _graph_bytes() -> int:
    """Bytes reserved by the pools of all graphs."""
    gc.collect()
    torch.cuda.empty_cache()
    segments = torch.cuda.memory_snapshot()
    return sum(s["total_size"] for s in segments if tuple(s["segment_pool_id"]) != (0, 0))


def shared_pool(form: Form) -> str:
    """Capture three steps in one pool: what each adds, and whether their replays mix."""
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
    """Each step's mean loss over two rounds of an update each; the bytes each capture reserved."""
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


class _NoImages(ImageSource):
    """The data of a run that is made and never trained."""

    image_size = 224

    def __init__(self, num_images: int) -> None:
        self.num_images = num_images

    def warm_up(self, weights: Weights, execution: Execution) -> None: ...

    def open_(self, weights: Weights, execution: Execution, *, seed: int) -> None: ...

    def batches(
        self, phase: Phase, shape: BatchShape, *, number: int, replicas: range, into: Batch
    ) -> Loader:
        raise AssertionError("nothing is trained")

    def batch_norm_batches(self, buffer: Tensor, shape: BatchShape, comm: Comm) -> Iterable[Tensor]:
        return ()

    def evaluator(self, shape: BatchShape) -> Evaluate:
        return lambda comm: Accuracies(float("nan"))


def imagenet_memory(form: Form) -> str:
    """Capture the steps of ImageNet's run with the batches of one of the paper's devices."""
    _require_cuda(form)
    recipe = _one_device(form)
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before, benchmark = torch.cuda.memory_reserved(), torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True  # as in a run: the kernels it tries need memory too
    try:
        with Captures() as captures:
            build_trainer(
                recipe,
                partial(make_tree_net, recipe, NUM_CLASSES["imagenet"]),
                _NoImages(2 * recipe.largest_batch_size + 1),
                seed=0,
                device=torch.device("cuda"),
                execution=default_execution("cuda"),
                clock=Clock(),
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
    """One worker of one replica, with the batches of one of the paper's 16 devices."""
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


# Speed.

SHARE = 0.5
"""Least share of the planner's images/s, which assume a program as efficient as the paper's."""


def planned(name: str) -> tuple[float, float]:
    """The planner's images/s of a device that trains batches of 512: in steps, and in epochs.

    Arguments:
        name: the planner's name of the device.
    """
    paper = load_paper()
    speed = modelled(name, None, paper)
    # Phase 2, one device a model; a device's share of phase 1's batch is of the same size.
    phase = workload_of(cifar10_swap(), paper).last_phase
    step_s = speed.micro_batch_s(phase) + speed.update_s(phase)
    images = phase.steps_per_epoch * phase.global_batch_size
    return phase.global_batch_size / step_s, images / epoch_s(phase, speed, 1)


def speed(form: Form) -> str:
    """Measure images/s of the step alone and of whole epochs: eager, captured, also compiled."""
    cuda = form.device_type == "cuda"
    width, batch_size, images, least_s = (8, 32, 128, 0.1) if form.small else (64, 512, 50_000, 2.0)
    device, best = torch.device(form.device_type), default_execution(form.device_type)
    kind = by_device_name(torch.cuda.get_device_name()) if cuda and not form.small else None
    variants = {"eager": replace(best, capture=False)}
    if best.capture:
        variants["captured"] = best
    if best.capture and not form.small:
        variants["captured and compiled"] = replace(best, step="compiled")
        variants["captured and fused"] = replace(best, step="fused")
    flop, seen, slow = resnet9(width, 10).train_flop, [], []
    for variant, execution in variants.items():
        steps = _step_rate(execution, width, batch_size, least_s)
        text = f"{variant} {steps:,.0f} images/s in steps ({steps * flop / 1e12:.3g} TFLOP/s)"
        rates = [steps]
        if variant != "eager" or not cuda:
            loop = training_loop(execution, width, batch_size, random_split(images), MEAN, STD)
            rates.append(_rate(loop, device, least_s))
            text += f", {rates[1]:,.0f} in epochs"
        seen.append(text)
        if kind is not None and variant != "eager":
            slow += too_slow(kind, variant, *rates)
    assert not slow, "; ".join(slow)
    if kind is None:
        judged = "not judged: the planner does not know this device, or not at this size"
    else:
        expected = " and ".join(f"{rate:,.0f}" for rate in planned(kind))
        judged = f"the planner expects {expected} of {kind}"
    return f"width {width}, batch {batch_size}: {'; '.join(seen)}; {judged}"


def too_slow(kind: str, variant: str, steps: float, epochs: float) -> list[str]:
    """A line for each rate of a device that is below the share of the planner's."""
    rates = {"steps": steps, "epochs": epochs}
    return [
        f"{variant}: {rate:,.0f} images/s in {what}, expected {SHARE * expected:,.0f} or more"
        for (what, rate), expected in zip(rates.items(), planned(kind), strict=True)
        if rate < SHARE * expected
    ]


def _step_rate(execution: Execution, width: int, batch_size: int, least_s: float) -> float:
    """Images/s of the step on one batch."""
    device = torch.device(execution.device_type)
    step, _ = make_step(execution, width, batch_size)
    turn = 20 if device.type == "cuda" else 1

    def work() -> int:
        for _ in range(turn):
            step()
        synchronize(device)  # the clock must see finished work, and the queue must not grow
        return turn * batch_size

    with Captures() as captures:
        step.warm_up(captures=captures)
        step.images.normal_()
        step.labels.zero_()
        step.set_learning_rate(0.0)
        return _rate(work, device, least_s)


def _rate(work: Callable[[], int], device: torch.device, least_s: float) -> float:
    """Images/s over at least `least_s`, after one call that is not counted."""
    work()
    synchronize(device)
    started, images = time.perf_counter(), 0
    while time.perf_counter() - started < least_s:
        images += work()
    return images / (time.perf_counter() - started)
