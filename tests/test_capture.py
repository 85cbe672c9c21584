"""What a CUDA graph would freeze, found without a GPU.

A traced step is, like a graph, the tensor operations of one call and nothing else: replayed beside
the eager step, over everything that changes between calls, it must stay equal to the bit. The test
is itself tested: a step that keeps something on the host must fail it.
"""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

from swap_fast.batchnorm import StatisticsPass
from swap_fast.comm import ALONE
from swap_fast.config import Optimizer, Phase
from swap_fast.execution import Execution
from swap_fast.models import ResNet9
from swap_fast.optimizer import NesterovSGD
from swap_fast.step import Step
from swap_fast.weights import Weights

BATCH = 16


class Trained:
    """A small net with its step, always from the same weights."""

    def __init__(self, *, scaled: bool, step_type: type[Step] = Step) -> None:
        torch.manual_seed(0)
        execution = Execution()
        self.weights = Weights(execution.place(ResNet9(width=2), torch.device("cpu")))
        self.optimizer = NesterovSGD(self.weights, Optimizer(), scale_gradients=scaled)
        phase = Phase(global_batch_size=BATCH, peak_lr=1.0, max_epochs=1, gpus_per_model=2)
        self.step = step_type(self.weights, self.optimizer, phase, ALONE, execution)
        self.weights.model.train()
        self.step.warm_up()
        self._start = self.weights.copy()

    def restart(self) -> None:
        """Go back to the first weights with no history, as at the switch between phases."""
        self.weights.load_(*self._start)
        self.optimizer.reset_()
        self.step.statistics.reset_()

    def state(self) -> list[Tensor]:
        """Everything that a step writes."""
        scale = self.optimizer.scaler.state_dict().get("scale", 1.0)
        return [
            self.weights.theta.detach().clone(),
            self.weights.gradient.clone(),
            self.optimizer.velocity.clone(),
            self.step.statistics._values.clone(),
            self.step._loss_sum.clone(),
            self.step._correct.clone(),
            torch.tensor(scale),
        ]


def traced(trained: Trained) -> Callable[[], None]:
    """The step's operations as a graph, on the same tensors; tracing runs the step once."""
    trained.step.set_learning_rate(0.0)
    graph = make_fx(lambda: trained.step.update_no_sync())()
    trained.step._seen = 1
    trained.step.read_metrics()
    trained.restart()

    def replay() -> None:
        with torch.no_grad():
            graph()

    return replay


def follows_eager(step_type: type[Step] = Step, *, scaled: bool = True) -> bool:
    """Whether a traced step stays equal to an eager one for 20 steps of a varied run."""
    eager, replayed = (Trained(scaled=scaled, step_type=step_type) for _ in range(2))
    replay = traced(replayed)
    random = torch.Generator().manual_seed(1)
    for number in range(20):
        images = torch.randn(BATCH, 3, 32, 32, generator=random)
        labels = torch.randint(10, (BATCH,), generator=random)
        if number == 0 or number == 7:
            images[3] = torch.inf  # the very first update overflows, and a later one
        for trained in (eager, replayed):
            trained.step.images.copy_(images)
            trained.step.labels.copy_(labels)
            trained.step.set_learning_rate(0.02 * (number + 1))
        eager.step.update_no_sync()
        replay()
        if number == 7:  # an overflow leaves batch norm's statistics not finite: start them again
            for trained in (eager, replayed):
                trained.step.statistics.reset_()
        if number == 10:  # an epoch ends
            for trained in (eager, replayed):
                trained.step._seen = 1
                trained.step.read_metrics()
        if number == 14:  # the phases switch
            for trained in (eager, replayed):
                trained.restart()
        pairs = zip(eager.state(), replayed.state(), strict=True)
        if not all(torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0)) for a, b in pairs):
            return False
    return True


@pytest.mark.parametrize("scaled", [False, True])
def test_the_step_is_what_a_graph_would_replay(scaled: bool) -> None:
    # Without a scaler an overflow is an overflow: what follows it is NaN on both sides.
    assert follows_eager(scaled=scaled)


def test_an_overflowing_first_update_is_left_out() -> None:
    trained = Trained(scaled=True)
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
        self._weights.theta.detach().mul_(1 - 1e-3 * self._correct.item())


class Rebinds(Step):
    """Puts another tensor in a buffer's place."""

    def update_no_sync(self) -> None:
        """Rebind the count."""
        super().update_no_sync()
        self._correct = self._correct + 1


@pytest.mark.parametrize("step_type", [FloatRate, ReadsBack, Rebinds])
def test_the_contract_can_fail(step_type: type[Step]) -> None:
    try:
        held = follows_eager(step_type)
    except RuntimeError:  # tracing itself may refuse a read of the device
        held = False
    assert not held


def test_the_batch_norm_pass_is_what_a_graph_would_replay() -> None:
    results = []
    for replayed in (False, True):
        torch.manual_seed(0)
        weights = Weights(ResNet9(width=2))
        statistics_pass = StatisticsPass(weights)
        buffer = torch.empty(BATCH, 3, 32, 32)
        statistics_pass.warm_up(buffer, captured=False)
        if replayed:
            with torch.no_grad(), statistics_pass._passing():
                statistics_pass._run = make_fx(lambda p=statistics_pass: p._add_buffer_no_sync())()

        def batches(buffer: Tensor = buffer) -> Iterator[Tensor]:
            random = torch.Generator().manual_seed(1)
            for size in (BATCH, BATCH, BATCH // 2):  # the short one is never a replay
                buffer[:size] = torch.randn(size, 3, 32, 32, generator=random)
                yield buffer[:size]

        for _ in range(2):  # sums start anew each time
            statistics_pass(batches())
        results.append(weights.statistics.clone())
    assert torch.equal(*results)
    assert results[0].isfinite().all()


def test_the_batch_norm_pass_does_not_wait_for_the_device() -> None:
    weights = Weights(ResNet9(width=2))
    statistics_pass = StatisticsPass(weights)
    buffer = torch.empty(BATCH, 3, 32, 32)
    statistics_pass.warm_up(buffer, captured=False)
    with torch.no_grad(), statistics_pass._passing(), NoSync():
        statistics_pass._add_buffer_no_sync()


class NoSync(TorchDispatchMode):
    """Raises on what waits for the device: values read on the host, sizes that depend on data."""

    FORBIDDEN = ("_local_scalar_dense", "nonzero", "is_nonzero", "masked_select", "item", "unique")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """Let through, or raise."""
        name = func.overloadpacket.__name__
        if name in self.FORBIDDEN:
            raise AssertionError(f"{name} waits for the device")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("scaled", [False, True])
def test_no_step_waits_for_the_device(scaled: bool) -> None:
    trained = Trained(scaled=scaled)
    with NoSync():
        for _ in range(2):
            trained.step.set_learning_rate(0.1)
            trained.step()


def test_the_watch_for_waits_can_fail() -> None:
    trained = Trained(scaled=True, step_type=ReadsBack)
    with NoSync(), pytest.raises(AssertionError, match="_local_scalar_dense waits"):
        trained.step()


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
def test_a_captured_step_is_the_eager_one() -> None:
    device = torch.device("cuda")
    steps = []
    for captured in (False, True):
        torch.manual_seed(0)
        execution = Execution(device_type="cuda", precision="fp16", capture=captured)
        weights = Weights(execution.place(ResNet9(width=8), device))
        optimizer = NesterovSGD(weights, Optimizer(), scale_gradients=True)
        phase = Phase(global_batch_size=64, peak_lr=1.0, max_epochs=1, gpus_per_model=2)
        step = Step(weights, optimizer, phase, ALONE, execution)
        weights.model.train()
        step.warm_up()
        steps.append((step, weights))
    for number in range(20):
        images = torch.randn(64, 3, 32, 32, device=device)
        labels = torch.randint(10, (64,), device=device)
        for step, _ in steps:
            step.images.copy_(images)
            step.labels.copy_(labels)
            step.set_learning_rate(0.001 * (number + 1))
            step()
    torch.testing.assert_close(steps[0][1].theta, steps[1][1].theta, rtol=1e-2, atol=1e-3)
    assert steps[0][0].read_metrics() == pytest.approx(steps[1][0].read_metrics(), rel=1e-2)
