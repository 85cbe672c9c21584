"""What a CUDA graph would freeze, found without a GPU.

A traced step is, like a graph, the tensor operations of one call and nothing else: replayed beside
the eager step, over everything that changes between calls, it must stay equal to the bit. The test
is itself tested: a step that keeps something on the host must fail it.
"""

import warnings
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from bench.verify.check import Check, Form, UnavailableError
from bench.verify.command import CHECKS
from bench.verify.equivalence import BATCH, Trained, largest_difference, no_wait
from swap_fast.config.execution import Execution
from swap_fast.models import ResNet9
from swap_fast.training.batchnorm import BatchNormRecompute
from swap_fast.training.step import Step
from swap_fast.training.weights import Weights


@pytest.mark.parametrize(("scaled", "measured"), [(False, False), (True, False), (True, True)])
def test_the_step_is_what_a_graph_would_replay(scaled: bool, measured: bool) -> None:
    # Without a scaler an overflow is an overflow: what follows it is NaN on both sides.
    assert largest_difference(Execution(), scaled=scaled, measured=measured) == 0.0


def test_an_overflowing_first_update_is_left_out() -> None:
    trained = Trained(Execution(), scaled=True)
    before = trained.state()
    trained.step.images.fill_(torch.inf)
    trained.step.set_learning_rate(0.1)
    trained.step.update_no_sync()
    after = trained.state()
    assert torch.equal(before[0], after[0])
    assert torch.equal(after[2], torch.zeros_like(after[2]))
    assert after[-1] == before[-1] / 2


class FloatRate(Step):
    """Keeps the learning rate on the host."""

    rate = 0.0

    def set_learning_rate(self, learning_rate: float) -> None:
        """Keep it as a number."""
        self.rate = learning_rate

    def update_no_sync(self) -> None:
        """Decay by it."""
        super().update_no_sync()
        self._weights.theta.detach().mul_(1 - self.rate)


class ReadsBack(Step):
    """Reads a value of the device on the host."""

    def update_no_sync(self) -> None:
        """Decay by the first weight."""
        super().update_no_sync()
        self._weights.theta.detach().mul_(1 - 1e-3 * self.correct.item())


class Rebinds(Step):
    """Puts another tensor in a buffer's place."""

    def update_no_sync(self) -> None:
        """Rebind the count."""
        super().update_no_sync()
        self.correct = self.correct + 1


@pytest.mark.parametrize("step_type", [FloatRate, ReadsBack, Rebinds])
def test_the_equivalence_check_can_fail(step_type: type[Step]) -> None:
    try:
        difference = largest_difference(Execution(), scaled=True, step_type=step_type)
    except RuntimeError:  # tracing itself may refuse a read of the device
        difference = 1.0
    assert difference > 0


def traced(recompute_batchnorm: BatchNormRecompute) -> Callable[[], None]:
    """The operations of a pass over a full buffer."""
    graph: Callable[[], None] = make_fx(lambda: recompute_batchnorm.add_buffer_no_sync())()
    return graph


def test_the_batch_norm_pass_is_what_a_graph_would_replay() -> None:
    results = []
    for replayed in (False, True):
        torch.manual_seed(0)
        weights = Weights(ResNet9(width=2))
        recompute_batchnorm = BatchNormRecompute(weights)
        buffer = torch.empty(BATCH, 3, 32, 32)
        recompute_batchnorm.warm_up(buffer)
        if replayed:
            with torch.no_grad(), recompute_batchnorm.passing():
                recompute_batchnorm.replay = traced(recompute_batchnorm)

        def batches(buffer: Tensor = buffer) -> Iterator[Tensor]:
            random = torch.Generator().manual_seed(1)
            for size in (BATCH, BATCH, BATCH // 2):  # the short one is never a replay
                buffer[:size] = torch.randn(size, 3, 32, 32, generator=random)
                yield buffer[:size]

        for _ in range(2):  # sums start anew each time
            recompute_batchnorm(batches())
        results.append(weights.statistics.clone())
    assert torch.equal(*results)
    assert results[0].isfinite().all()


def test_the_batch_norm_pass_does_not_wait_for_the_device() -> None:
    weights = Weights(ResNet9(width=2))
    recompute_batchnorm = BatchNormRecompute(weights)
    buffer = torch.empty(BATCH, 3, 32, 32)
    recompute_batchnorm.warm_up(buffer)
    with torch.no_grad(), recompute_batchnorm.passing(), no_wait("cpu"):
        recompute_batchnorm.add_buffer_no_sync()


@pytest.mark.parametrize(("scaled", "measured"), [(False, False), (True, False), (True, True)])
def test_no_step_waits_for_the_device(scaled: bool, measured: bool) -> None:
    trained = Trained(Execution(), scaled=scaled, measured=measured)
    with no_wait("cpu"):
        for _ in range(2):
            trained.step.set_learning_rate(0.1)
            trained.step()


def test_the_watch_for_waits_can_fail() -> None:
    trained = Trained(Execution(), scaled=True, step_type=ReadsBack)
    with no_wait("cpu"), pytest.raises(AssertionError, match="_local_scalar_dense waits"):
        trained.step()


class SyncDebugMode:
    """torch.cuda's mode: like torch's, it is set before its warning, which may be an error."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.mode, self.refused = 0, False
        monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: self.mode)
        monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", self.set)

    def set(self, mode: int | str) -> None:
        if isinstance(mode, str):
            mode = {"default": 0, "warn": 1, "error": 2}[mode]
        self.mode = mode
        warnings.warn(
            "Synchronization debug mode is a prototype feature and does not yet detect all "
            "synchronizing operations",
            stacklevel=2,
        )
        if self.refused and mode == 2:
            raise RuntimeError("refused")


def test_the_watch_on_a_device_expects_torch_s_warning_and_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    debug = SyncDebugMode(monkeypatch)
    with no_wait("cuda"):
        assert debug.mode == 2
        with pytest.warns(UserWarning, match="mine"):  # all others are let through
            warnings.warn("mine", stacklevel=1)
    assert debug.mode == 0
    debug.mode = 1
    with pytest.raises(ValueError, match="body"), no_wait("cuda"):
        raise ValueError("body")
    assert debug.mode == 1


def test_a_watch_that_fails_to_begin_leaves_the_mode_as_it_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    debug = SyncDebugMode(monkeypatch)
    debug.refused = True
    with pytest.raises(RuntimeError, match="refused"), no_wait("cuda"):
        pass
    assert debug.mode == 0


def test_the_forward_pass_on_a_fake_cuda_device(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    execution = Execution(device_type="cuda", precision="fp16", capture=True)
    seen: list[tuple[str, torch.dtype, bool]] = []
    with FakeTensorMode(), torch.device("cuda"):
        model = ResNet9(width=8)
        for parameter in model.parameters():
            if parameter.dim() == 4:
                parameter.data = parameter.data.to(memory_format=torch.channels_last)
        for name, module in model.named_modules():
            if isinstance(module, nn.Conv2d | nn.BatchNorm2d):
                module.register_forward_hook(
                    lambda _, __, out, name=name: seen.append(
                        (name, out.dtype, out.is_contiguous(memory_format=torch.channels_last))
                    )
                )
        images = torch.empty(4, 3, 32, 32, dtype=execution.dtype, device="cuda")
        images = images.to(memory_format=torch.channels_last)
        with execution.autocast():
            logits = model(images)
    assert logits.device.type == "cuda"
    assert len(seen) == 16
    for name, dtype, is_channels_last in seen:
        assert dtype == torch.float16, name
        assert is_channels_last, name
    assert all(p.dtype == torch.float32 for p in model.parameters())


@pytest.mark.gpu
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name)
def test_on_a_gpu(check: Check) -> None:
    try:
        check.confirm(Form(device_type="cuda"))
    except UnavailableError as missing:
        pytest.skip(str(missing))
