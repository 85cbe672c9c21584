"""The step chosen in the warm-up: each candidate is timed off the clock, the fastest is used."""

import importlib.util
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from textwrap import shorten
from typing import Any

import torch
from torch import Tensor, nn

from swap_fast.config.execution import Execution
from swap_fast.config.phase import BatchShape, Phase, shapes
from swap_fast.config.step_choice import ChosenStep, StepChoice
from swap_fast.distributed import ALONE, Comm
from swap_fast.models.layers import Convolution
from swap_fast.training.all_reduce import GradientSum
from swap_fast.training.capture import Captures
from swap_fast.training.optimizer import FlatOptimizer
from swap_fast.training.step import Step
from swap_fast.training.weights import Weights, split

UPDATES, RATE_SHARE = 3, 1e-3
"""What a candidate trains before it is compared with the eager step: updates, and their learning
rate in shares of the phase's peak. Only the last has the peak itself, so that its change is above
the weights' rounding, and no update follows to amplify what differs: SpeedNet with Muon from
weights 1e-6 apart is 0.3 apart after five updates at a hundredth of the peak, 0.01 at a thousandth.
"""
TOLERANCE = {"fp32": 0.05, "fp16": 0.1, "bf16": 0.1}
"""How far each tensor of a candidate may be from the eager step's, in shares of its length. Kernels
round differently, fp32 in the TF32 of matrix units: with Winograd's convolutions in fp32 ResNet-9
of width 64 is 0.003 off, and SpeedNet, whose Muon multiplies in bf16, 0.02. A kernel that is wrong
is off by about 1."""
REPLAYS, SETTLE_S = 30, 0.2
"""Updates that are timed, and how long untimed ones run before, until the device's clock is up."""
CPU_S = 3.0
"""On a CPU, where an update may take seconds, no more are timed than fit in this time, and one."""
MOST_UPDATES = 40
"""Of which some may overflow, until the scale of the loss fits."""


@dataclass(frozen=True, kw_only=True)
class PhaseShape:
    """One shape of a phase's batches, with what decides its share of the run."""

    number: int
    """The phase, 1 or 2."""
    phase: Phase
    ranks: Comm
    """That share its updates."""
    shape: BatchShape
    updates: int
    """Of the whole run on this rank, at most."""

    @property
    def name(self) -> str:
        """As the record has it."""
        replicas = len(self.ranks.replicas(self.phase.gpus_per_model))
        each = self.shape.global_batch_size // self.phase.gpus_per_model
        side = self.shape.image_size
        return f"phase {self.number}, {replicas} x {each} images of {side}x{side}"


def phase_shapes(
    phases: Sequence[tuple[Phase, Comm]], num_models: int, *, num_images: int, image_size: int
) -> list[PhaseShape]:
    """All shapes of a run's batches; `num_models` is how many this rank trains in phase 2."""
    return [
        PhaseShape(
            number=number,
            phase=phase,
            ranks=ranks,
            shape=shape,
            updates=len(shape.epochs)
            * (num_images // shape.global_batch_size)
            * (num_models if number == 2 else 1),
        )
        for number, (phase, ranks) in enumerate(phases, start=1)
        for shape in shapes(phase, image_size)
    ]


WIDE = 256 * 256
"""Pairs of channels of a net's widest 3x3 convolution, from which on auto tries Winograd's form. In
narrower nets little of the step is in such layers, and their runs stay the same to the bit."""


def candidates(execution: Execution, model: nn.Module) -> tuple[ChosenStep, ...]:
    """The steps among which auto chooses, eager first.

    On a CPU the compiled one is none: to compile there takes tens of seconds a shape, and the step
    is not faster where it was measured (docs/performance.md).
    """
    if execution.device_type == "cpu":
        pairs = [module.pairs for module in model.modules() if isinstance(module, Convolution)]
        is_wide = execution.can_be_winograd and max(pairs, default=0) >= WIDE
        return ("eager", "winograd") if is_wide else ("eager",)
    with_triton = importlib.util.find_spec("triton") is not None
    fusable = execution.can_be_fused and with_triton
    return ("eager", "compiled", "fused") if fusable else ("eager", "compiled")


class Candidate(Step):
    """A step without the all-reduce.

    It is the same for all candidates; and where one fails on one rank, no other waits for it there.
    """

    def __init__(self, weights: Weights, *arguments: Any, **named: Any) -> None:
        super().__init__(weights, *arguments, **named)
        self._sum = GradientSum(weights, ALONE)


def choose_step(
    make: Callable[..., Candidate],
    execution: Execution,
    shapes_of_run: Sequence[PhaseShape],
    names: Sequence[ChosenStep],
    *,
    weights: Weights,
    optimizer: FlatOptimizer,
    comm: Comm,
) -> StepChoice:
    """Time the steps named, and choose the one with which the run's updates take least time.

    One that cannot be built, or that does not agree with the eager step after some updates from the
    same weights on the same batch, is dropped. All ranks must call, and all get rank 0's choice, by
    the times of the slowest rank. Weights, statistics, momentum, scale of the loss and random
    numbers are then as they were, to the bit.

    Arguments:
        make: given a phase, its ranks, `execution` and `shape`, makes a candidate.
        names: with eager first, which must not fail.

    Raises:
        RuntimeError: the eager step failed.
    """
    times: dict[str, dict[str, float]] = {}
    dropped: dict[str, str] = {}
    expected: list[Outcome] = []
    with as_it_was(weights, optimizer) as start:
        for name in names:
            tried = replace(execution, step=name)
            tried.choose_kernels_(weights.model)
            found: dict[str, float] = {}
            why: str | None = None
            for at, one in enumerate(shapes_of_run):
                trial = partial(_Trial, make, one, tried, weights, optimizer, start)
                reference = None if name == "eager" else expected[at]
                seconds, outcome, why = _on_all_ranks(trial, reference, comm)
                if why is not None:
                    break
                found[one.name] = seconds
                if name == "eager":
                    expected.append(outcome)
            if why is None:
                times[name] = found
            elif name == "eager":
                raise RuntimeError(f"the eager step failed: {why}")
            else:
                dropped[name] = why
            if weights.theta.is_cuda:
                torch.cuda.empty_cache()  # of the graphs that are gone
    total = {
        name: sum(one.updates * found[one.name] for one in shapes_of_run)
        for name, found in times.items()
    }
    chosen: ChosenStep = comm.on_first(lambda: min(total, key=lambda name: total[name]))
    return StepChoice(chosen=chosen, times_s=times, dropped=dropped)


def describe(choice: StepChoice) -> list[str]:
    """A line with the times of all candidates, and one for each that was dropped."""
    times = [
        f"{name} {', '.join(f'{1e3 * seconds:.3g} ms' for seconds in found.values())}"
        for name, found in choice.times_s.items()
    ]
    of = "; ".join(next(iter(choice.times_s.values())))
    lines = [f"step {name} is not used: {why}" for name, why in choice.dropped.items()]
    return [*lines, f"step {choice.chosen} is used: {'; '.join(times)} an update of {of}"]


def build_in_turn(build: Callable[[], None], comm: Comm) -> None:
    """Let the first rank of each machine compile, and the others then take it from torch's cache.

    Every rank must call.
    """
    if comm.world_size == 1:
        return  # the warm-up builds it
    for is_first in (True, False):
        comm.finish_together(build if (comm.local_rank == 0) is is_first else lambda: None)


Outcome = list[list[Tensor]]
"""What updates left behind: of each parameter the momentum and the change; the change of the
running means and variances; the mean loss."""


class _Trial:
    """One candidate on one shape of batches."""

    def __init__(
        self,
        make: Callable[..., Candidate],
        shape: PhaseShape,
        execution: Execution,
        weights: Weights,
        optimizer: FlatOptimizer,
        start: tuple[Tensor, Tensor],
    ) -> None:
        weights.load_(*start)  # one that failed has left them anywhere
        self.step = make(shape.phase, shape.ranks, execution=execution, shape=shape.shape)
        self._execution, self._weights, self._optimizer = execution, weights, optimizer
        self._start, self._peak_lr = start, shape.phase.peak_lr
        self.step.prepare_()

    def build(self) -> None:
        """Compile what is compiled."""
        self.step.first_pass()

    def run(self, expected: Outcome | None) -> tuple[float, Outcome]:
        """Seconds of an update, and what some updates left behind.

        Raises:
            ValueError: that is not what is expected.
        """
        step = self.step
        images = torch.randn(step.images.shape, generator=torch.Generator().manual_seed(0))
        step.images.copy_(images)
        step.labels.zero_()
        with Captures() as captures:
            step.set_learning_rate(0.0)
            if self._execution.capture:
                step.replay = captures.capture(step.update_no_sync)
            else:
                step()
            self._restart()
            outcome = self._train()
            if expected is not None:
                difference = largest_difference(outcome, expected)
                allowed = TOLERANCE[self._execution.precision]
                if not difference <= allowed:
                    raise ValueError(
                        f"it differs from the eager step by {difference:.2g} after {UPDATES} "
                        f"updates, allowed {allowed:g}"
                    )
            self._restart()
            step.set_learning_rate(0.0)
            return median_s(step, self._weights.theta.device), outcome

    def _restart(self) -> None:
        """Go back to where all candidates start."""
        self._weights.load_(*self._start)
        self._optimizer.reset_()
        self._optimizer.skipped.zero_()
        self.step.statistics.reset_()
        self.step.loss_sum.zero_()

    def _train(self) -> Outcome:
        step, optimizer = self.step, self._optimizer
        taken = counted = 0
        for number in range(1, MOST_UPDATES + 1):
            is_last = taken == UPDATES - 1
            step.set_learning_rate(self._peak_lr if is_last else RATE_SHARE * self._peak_lr)
            step()
            before, taken = taken, number - int(optimizer.skipped.item())
            counted += 1
            if taken == UPDATES:
                break
            if taken == before:  # rounding decides how often the scale is too large at first
                self._weights.set_statistics_(self._start[1])
                step.statistics.reset_()
                step.loss_sum.zero_()
                counted = 0
        else:
            raise ValueError(
                f"the gradients of {MOST_UPDATES} updates overflow {step.images.dtype}"
            )
        trained = [*self._weights.trained.values()]
        means = sum(norm.num_features for norm in self._weights.norms)
        moved = step.statistics.values - self._start[1]
        return [
            split(optimizer.velocity.clone(), trained),
            split(self._weights.theta.detach() - self._start[0], trained),
            [moved[:, :means], moved[:, means : 2 * means]] if means else [],
            [step.loss_sum / counted],
        ]


def largest_difference(outcome: Outcome, expected: Outcome) -> float:
    """The largest distance of a tensor from what is expected, in shares of that one's length.

    A tensor more than a thousand times shorter than the longest of its kind is all rounding: its
    distance counts in shares of a thousandth of that.
    """
    largest = 0.0
    for ours, theirs in zip(outcome, expected, strict=True):
        lengths = [float(torch.linalg.vector_norm(t, dtype=torch.float64)) for t in theirs]
        for one, other, length in zip(ours, theirs, lengths, strict=True):
            apart = float(torch.linalg.vector_norm(one - other, dtype=torch.float64))
            share = apart / (max(length, 1e-3 * max(lengths)) or 1.0)
            largest = max(largest, share if share == share else float("inf"))
    return largest


def median_s(step: Callable[[], None], device: torch.device) -> float:
    """Seconds of an update, the median; on a CUDA device of updates in a queue, as in training."""
    if device.type != "cuda":
        taken: list[float] = []
        while not taken or (len(taken) < REPLAYS and sum(taken) < CPU_S):
            started = time.perf_counter()
            step()
            taken.append(time.perf_counter() - started)
        return statistics.median(taken)
    started = time.perf_counter()
    while time.perf_counter() - started < SETTLE_S:
        step()
        torch.cuda.synchronize()
    events = [torch.cuda.Event(enable_timing=True) for _ in range(REPLAYS + 1)]
    events[0].record()
    for event in events[1:]:
        step()
        event.record()
    torch.cuda.synchronize()
    spans = [before.elapsed_time(after) for before, after in pairwise(events)]
    return statistics.median(spans) / 1e3


def _on_all_ranks(
    make: Callable[[], _Trial], expected: Outcome | None, comm: Comm
) -> tuple[float, Outcome, str | None]:
    """A candidate built, on the first rank of a machine first, and run: the slowest rank's seconds,
    what its updates left behind here, and why it failed on some rank."""
    trial: _Trial | None = None
    outcome: Outcome = []

    def build(is_first: bool) -> None:
        nonlocal trial
        trial = trial or make()
        if (comm.local_rank == 0) is is_first:
            trial.build()

    def run() -> float:
        nonlocal outcome
        assert trial is not None, "it was built"
        seconds, outcome = trial.run(expected)
        return seconds

    why, found = None, [0.0]
    for work in (partial(build, True), partial(build, False), run):
        found, why = _attempt(work, comm)
        if why is not None:
            return 0.0, [], why
    return max(found), outcome, None


def _attempt(work: Callable[[], Any], comm: Comm) -> tuple[list[Any], str | None]:
    """What each rank's work gives, or in one line why a rank's failed."""

    def attempt() -> tuple[Any, str | None]:
        try:
            return work(), None
        # Whatever a compiler, a driver or the allocator raises: a candidate is not needed.
        except Exception as error:
            text = " ".join(str(error).split())
            return None, f"{type(error).__name__}: {text}" if text else type(error).__name__

    found = comm.gather(comm.finish_together(attempt))
    reasons = [reason for _, reason in found if reason is not None]
    return [value for value, _ in found], shorten(reasons[0], 200) if reasons else None


@contextmanager
def as_it_was(weights: Weights, optimizer: FlatOptimizer) -> Iterator[tuple[Tensor, Tensor]]:
    """Put back weights, buffers, momentum, scale of the loss and random numbers at the end.

    Yields:
        Copies of theta [P] and of the statistics.
    """
    model, device = weights.model, weights.theta.device
    was_training, start = model.training, weights.copy()
    state = {name: value.clone() for name, value in weights.state_dict().items()}
    momentum = optimizer.state_dict()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            yield start
        finally:
            optimizer.fuse_(None)  # the next step has its own form of the update
            weights.load_state_dict(state)
            weights.load_(*start)
            weights.gradient.zero_()
            optimizer.load_state_dict(momentum)
            optimizer.skipped.zero_()
            model.train(was_training)
