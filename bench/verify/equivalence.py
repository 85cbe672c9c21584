"""The equivalence check of a captured step: a replayed graph does what the eager step does.

A CUDA graph is the kernels of one call and nothing else; so is the trace of one call, which needs
no GPU. The check runs either and the eager step from the same weights over everything that changes
from call to call: batches, learning rates, a first update that overflows and a later one, the end
of an epoch, the switch between phases.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from bench.micro.data import make_loader, random_split
from swap_fast.config.execution import Execution, default_execution
from swap_fast.config.phase import Optimizer, Phase
from swap_fast.data.cifar.batches import Batches
from swap_fast.distributed import ALONE
from swap_fast.models import ResNet9
from swap_fast.training.optimizer import MomentumSGD
from swap_fast.training.step import Step
from swap_fast.training.weights import Weights

BATCH, STEPS = 16, 20
OVERFLOWS, EPOCH_END, SWITCH = (0, 7), 10, 14
"""The updates before which each of these happens."""


def fp16_execution(device_type: str) -> Execution:
    """The device's default execution, in fp16 with its loss scale on a CPU too."""
    return replace(default_execution(device_type), precision="fp16")


def relative_difference(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference, relative to the largest value."""
    return float((ours - theirs).abs().max() / theirs.abs().max())


class Trained:
    """A small net with its step, always from the same weights.

    Arguments:
        loads: images of noise, of which each update itself makes its batch; 0: the host loads it.
    """

    def __init__(
        self,
        execution: Execution,
        *,
        scaled: bool,
        measured: bool = False,
        step_type: type[Step] = Step,
        loads: int = 0,
    ) -> None:
        torch.manual_seed(0)
        device = torch.device(execution.device_type)
        self.weights = Weights(execution.place(ResNet9(width=2), device))
        self.optimizer = MomentumSGD(self.weights, Optimizer(), scale_gradients=scaled)
        phase = Phase(
            global_batch_size=BATCH,
            peak_lr=1.0,
            max_epochs=1,
            gpus_per_model=2,
            stop="auto" if measured else "accuracy",
        )
        self.step = step_type(self.weights, self.optimizer, phase, ALONE, execution)
        if loads:
            batches = make_loader(random_split(loads), execution, phase, self.step.batch)
            assert isinstance(batches, Batches), "by default the images are resident"
            self.step.load_from_(batches)
        self.weights.model.train()
        self.step.warm_up()
        self._start = self.weights.copy()

    def restart(self) -> None:
        """Go back to the first weights and no optimizer state, as at the switch between phases."""
        self.weights.load_(*self._start)
        self.optimizer.reset_()
        self.step.statistics.reset_()

    def rates(self) -> list[Tensor]:
        """The learning rates, on the device."""
        return [group["lr"] for group in self.optimizer._torch.param_groups]

    def state(self) -> list[Tensor]:
        """Everything that a step writes."""
        tensors = [
            self.weights.theta.detach(),
            self.weights.gradient,
            self.optimizer.velocity,
            self.step.statistics.values,
            self.step.loss_sum,
            self.step.correct.double(),
            torch.tensor(self.optimizer.scaler.get_scale()),
        ]
        if self.step.noise_meter is not None:
            tensors.append(self.step.noise_meter.sums)
        return [tensor.clone() for tensor in tensors]


def trace_(trained: Trained) -> None:
    """Make a call of the step run a trace of one update, as a replayed graph would."""
    trained.step.set_learning_rate(0.0)
    graph = make_fx(lambda: trained.step.update_no_sync())()

    def replay() -> None:
        with torch.no_grad():
            graph()

    trained.step.replay = replay
    trained.step()
    trained.step.read_metrics()
    trained.restart()


def largest_difference(
    execution: Execution, *, scaled: bool, measured: bool = False, step_type: type[Step] = Step
) -> float:
    """The replayed step's largest difference from the eager one, over a varied run of 20 updates.

    Relative to the largest value of each tensor that a step writes; 0.0 means equal to the bit.
    On a CUDA device a captured graph is replayed, elsewhere a trace.

    Arguments:
        scaled: the loss is scaled, as in fp16.
        measured: the gradient's noise is measured.

    Raises:
        RuntimeError: the step cannot be traced or captured.
    """
    captures = execution.device_type == "cuda"
    eager, replayed = (
        Trained(
            replace(execution, capture=capture),
            scaled=scaled,
            measured=measured,
            step_type=step_type,
        )
        for capture in (False, captures)
    )
    if not captures:
        trace_(replayed)
    pair, largest = (eager, replayed), 0.0
    random = torch.Generator().manual_seed(1)
    for number in range(STEPS):
        images = torch.randn(BATCH, 3, 32, 32, generator=random)
        labels = torch.randint(10, (BATCH,), generator=random)
        if number in OVERFLOWS:
            images[3] = torch.inf
        for trained in pair:
            if number == EPOCH_END:
                trained.step.read_metrics()
            if number == SWITCH:
                trained.restart()
            trained.step.images.copy_(images)
            trained.step.labels.copy_(labels)
            trained.step.set_learning_rate(0.02 * (number + 1))
            trained.step()
            if number in OVERFLOWS:  # batch norm's statistics are not finite now
                trained.step.statistics.reset_()
        for ours, theirs in zip(eager.state(), replayed.state(), strict=True):
            ours, theirs = ours.nan_to_num(7.0), theirs.nan_to_num(7.0)
            scale = float(ours.abs().max()) or 1.0
            largest = max(largest, float((ours - theirs).abs().max()) / scale)
    return largest


class _NoWait(TorchDispatchMode):
    """Raises on operators that wait for the device: reads on the host, data-dependent sizes."""

    FORBIDDEN = ("_local_scalar_dense", "nonzero", "is_nonzero", "masked_select", "item", "unique")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        name = func.overloadpacket.__name__
        if name in self.FORBIDDEN:
            raise AssertionError(f"{name} waits for the device")
        return func(*args, **(kwargs or {}))


@contextmanager
def no_wait(device_type: str) -> Iterator[None]:
    """Within the block, raise on operations that wait for the device."""
    if device_type != "cuda":
        with _NoWait():
            yield
        return
    before = torch.cuda.get_sync_debug_mode()
    try:
        _set_sync_debug_mode("error")
        yield
    finally:
        _set_sync_debug_mode(before)


def _set_sync_debug_mode(mode: int | str) -> None:
    """Set torch's mode, without the warning that the first call gives."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Synchronization debug mode is a prototype feature")
        torch.cuda.set_sync_debug_mode(mode)


@contextmanager
def same_kernels() -> Iterator[None]:
    """Within the block, a CPU works with one thread, and cuDNN takes deterministic kernels.

    With another number of threads a CPU's kernels sum in another order, and so round differently.
    """
    before = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    threads = torch.get_num_threads()
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = before
        torch.set_num_threads(threads)


@contextmanager
def may_wait(device_type: str) -> Iterator[None]:
    """Within a `no_wait` block: allow operations that wait for the device."""
    if device_type != "cuda":
        with _disable_current_modes():
            yield
        return
    before = torch.cuda.get_sync_debug_mode()
    _set_sync_debug_mode("default")
    try:
        yield
    finally:
        _set_sync_debug_mode(before)


def growth(work: Callable[[], None], allocated: Callable[[], float], *, times: int) -> float:
    """The relative growth of `allocated()` over `times` calls of `work`, after 20 calls."""
    for _ in range(20):
        work()
    before = allocated()
    for _ in range(times):
        work()
    return allocated() / before - 1
