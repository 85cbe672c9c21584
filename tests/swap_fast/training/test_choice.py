"""The step that the warm-up chooses: the fastest that agrees, and nothing has changed after it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from small_trainer import SWAP, SmallNet, run_processes, small_trainer
from torch import Tensor, nn

from bench.hardware.machine import has_compiler
from swap_fast.algorithm import swap
from swap_fast.config.execution import Execution
from swap_fast.config.phase import Optimizer, Phase
from swap_fast.config.step_choice import ChosenStep, StepChoice
from swap_fast.distributed import ALONE, Comm
from swap_fast.models.layers import Convolution
from swap_fast.training import choice, trainer
from swap_fast.training.choice import Candidate, choose_step, phase_shapes
from swap_fast.training.optimizer import MomentumSGD
from swap_fast.training.step import Forward
from swap_fast.training.weights import Weights

CPU = torch.device("cpu")
AUTO = Execution(step="auto")
NAMED_CUDA = replace(AUTO, device_type="cuda")
"""Of tensors on the CPU: the names alone are a CUDA device's."""
PHASES = (
    Phase(global_batch_size=16, peak_lr=0.1, max_epochs=2, gpus_per_model=2),
    Phase(global_batch_size=8, peak_lr=0.1, max_epochs=3),
)
ALL: tuple[ChosenStep, ...] = ("eager", "compiled", "fused")


class Slow(Candidate):
    """Waits for 20 ms."""

    def update_no_sync(self) -> None:
        time.sleep(0.02)
        super().update_no_sync()


class VerySlow(Candidate):
    """Waits for 60 ms."""

    def update_no_sync(self) -> None:
        time.sleep(0.06)
        super().update_no_sync()


class Wrong(Candidate):
    """Has gradients that are a fifth too long."""

    def forward(self, replica: int) -> Forward:
        found = super().forward(replica)
        return found._replace(loss=found.loss * 1.2)


class WrongStatistics(Candidate):
    """Leaves the running variances out by a little."""

    def update_no_sync(self) -> None:
        super().update_no_sync()
        self.statistics.values *= 1.01


class WrongWeights(Candidate):
    """Moves the weights a tenth too far."""

    def update_no_sync(self) -> None:
        before, _ = self._weights.copy()
        super().update_no_sync()
        with torch.no_grad():
            self._weights.theta += 0.1 * (self._weights.theta - before)


class NotANumber(Candidate):
    """Has no loss."""

    def forward(self, replica: int) -> Forward:
        found = super().forward(replica)
        return found._replace(loss=found.loss * math.nan)


class Fails(Candidate):
    """Cannot be built."""

    def first_pass(self) -> None:
        raise NotImplementedError("no kernel\nfor this device")


Kinds = dict[str, type[Candidate]]


@dataclass
class Made:
    """A net, and candidates of these kinds in place of the real ones."""

    kinds: Kinds

    def __post_init__(self) -> None:
        torch.manual_seed(0)
        self.weights = Weights(AUTO.place(SmallNet(), CPU))
        self.optimizer = MomentumSGD(self.weights, Optimizer(), scale_gradients=True)

    def make(self, phase: Phase, ranks: Comm, *, execution: Execution, shape: Any) -> Candidate:
        """A candidate that stands for the execution's step."""
        kind = self.kinds[execution.step]
        eager = replace(execution, step="eager")
        return kind(self.weights, self.optimizer, phase, ranks, eager, shape=shape)

    def choose(self, comm: Comm = ALONE) -> StepChoice:
        """The choice among all kinds."""
        of_run = phase_shapes(
            [(PHASES[0], comm), (PHASES[1], ALONE)], 2, num_images=40, image_size=32
        )
        names = [name for name in ALL if name in self.kinds]
        parts: dict[str, Any] = {"weights": self.weights, "optimizer": self.optimizer}
        return choose_step(self.make, NAMED_CUDA, of_run, names, comm=comm, **parts)

    def state(self) -> list[Tensor]:
        """All that an update changes or depends on."""
        optimizer = self.optimizer
        scale = torch.tensor([optimizer.scaler.get_scale(), float(optimizer.skipped)])
        model = [value.clone() for value in self.weights.model.state_dict().values()]
        theta = self.weights.copy()
        rates = torch.stack([group["lr"] for group in optimizer._torch.param_groups])
        return [*model, *theta, optimizer.velocity.clone(), scale, rates, torch.get_rng_state()]


@pytest.fixture(autouse=True)
def few_replays(monkeypatch: pytest.MonkeyPatch) -> None:
    """A median of a few is enough here."""
    monkeypatch.setattr(choice, "REPLAYS", 5)


@pytest.mark.parametrize(
    ("kinds", "chosen"),
    [
        ({"eager": Slow, "compiled": VerySlow, "fused": Candidate}, "fused"),
        ({"eager": Slow, "compiled": Candidate, "fused": VerySlow}, "compiled"),
        ({"eager": Candidate, "compiled": Slow, "fused": VerySlow}, "eager"),
    ],
)
def test_the_fastest_is_chosen(kinds: Kinds, chosen: str) -> None:
    found = Made(kinds).choose()
    assert (found.chosen, found.dropped) == (chosen, {})
    names = [f"phase {n} images of 32x32" for n in ("1, 2 x 8", "2, 1 x 8")]
    assert {name: [*times] for name, times in found.times_s.items()} == dict.fromkeys(ALL, names)
    slow = next(name for name, kind in kinds.items() if kind is VerySlow)
    assert all(seconds > 0.06 for seconds in found.times_s[slow].values())
    (line,) = choice.describe(found)
    assert line.startswith(f"step {chosen} is used: eager ")
    assert "an update of phase 1, 2 x 8 images of 32x32; phase 2" in line


def test_the_run_s_updates_are_weighed() -> None:
    one, two = phase_shapes(
        [(PHASES[0], ALONE), (PHASES[1], ALONE)], 2, num_images=40, image_size=32
    )
    assert (one.updates, two.updates) == (2 * 2, 2 * 3 * 5)


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        (Wrong, "ValueError: it differs from the eager step by 0.2 after 3 updates, allowed 0.05"),
        (WrongStatistics, "ValueError: it differs from the eager step by "),
        (WrongWeights, "ValueError: it differs from the eager step by 0.1 after 3 updates"),
        (NotANumber, "ValueError: the gradients of 40 updates overflow torch.float32"),
        (Fails, "NotImplementedError: no kernel for this device"),
    ],
)
def test_one_that_fails_or_is_wrong_is_dropped(kind: type[Candidate], why: str) -> None:
    found = Made({"eager": Slow, "compiled": kind, "fused": Candidate}).choose()
    assert found.chosen == "fused"
    assert [*found.dropped] == ["compiled"]
    assert found.dropped["compiled"].startswith(why)
    assert [*found.times_s] == ["eager", "fused"]
    assert choice.describe(found)[0] == f"step compiled is not used: {found.dropped['compiled']}"


def test_the_eager_step_must_not_fail() -> None:
    with pytest.raises(RuntimeError, match="the eager step failed: NotImplementedError: no kernel"):
        Made({"eager": Fails, "fused": Candidate}).choose()


@pytest.mark.parametrize("kind", [Candidate, Wrong, NotANumber, Fails])
def test_nothing_has_changed_afterwards(kind: type[Candidate]) -> None:
    made = Made({"eager": Candidate, "fused": kind})
    made.weights.theta.data.add_(0.1)
    made.optimizer.velocity.normal_()
    made.optimizer.set_learning_rate(0.3)
    before = made.state()
    made.choose()
    assert all(map(torch.equal, made.state(), before))


def test_which_are_candidates() -> None:
    narrow, wide = Convolution(128, 256), Convolution(256, 256)
    contiguous = replace(NAMED_CUDA, memory_format="contiguous")
    assert choice.candidates(AUTO, narrow) == ("eager",)
    assert choice.candidates(AUTO, wide) == ("eager", "winograd")
    assert choice.candidates(replace(AUTO, precision="bf16"), wide) == ("eager",)
    assert choice.candidates(replace(AUTO, memory_format="contiguous"), wide) == ("eager",)
    assert choice.candidates(contiguous, wide) == ("eager", "compiled")
    pytest.importorskip("triton")
    assert choice.candidates(NAMED_CUDA, wide) == ALL


def on_two_ranks(kind: str, comm: Comm, folder: Path) -> None:
    """A candidate that is slow, or fails, on rank 1 alone."""
    choice.REPLAYS = 5
    odd = {"slow": VerySlow, "fails": Fails}[kind] if comm.rank == 1 else Candidate
    made = Made({"eager": Slow, "compiled": odd, "fused": Slow})
    found = made.choose(comm)
    (folder / str(comm.rank)).write_text(repr(found))


@pytest.mark.parametrize("kind", ["slow", "fails"])
def test_ranks_choose_alike_by_the_slowest(kind: str, tmp_path: Path) -> None:
    run_processes(partial(on_two_ranks, kind), 2, tmp_path)
    first, second = ((tmp_path / str(rank)).read_text() for rank in (0, 1))
    assert first == second
    assert "chosen='compiled'" not in first
    assert ("no kernel for this device" in first) == (kind == "fails")


def run(execution: Execution, **options: Any) -> tuple[Tensor, StepChoice | None]:
    """The weights of a small SWAP, and its choice."""
    parts = small_trainer(SWAP, execution=execution, **options)
    swap(SWAP, parts)
    return torch.cat(parts.weights.copy()), parts.step_choice


def test_on_a_cpu_auto_is_eager() -> None:
    eager, none = run(Execution())
    found, chosen = run(AUTO)
    assert torch.equal(found, eager)
    assert none is None
    assert chosen is None


def test_a_run_that_chose_is_the_run_that_was_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer, "candidates", lambda execution, model: ("eager", "compiled"))
    # Not compiled, but other arithmetic: which of both has run can be told from the bits.
    monkeypatch.setattr(torch, "compile", lambda function, **options: in_float64(function))
    seconds: list[float] = []
    monkeypatch.setattr(choice, "median_s", lambda step, device: seconds.pop(0))
    told = {name: run(Execution(step=name))[0] for name in ("eager", "compiled")}  # type: ignore[arg-type]
    assert not torch.equal(told["eager"], told["compiled"])
    for times, expected in (([2.0, 2.0, 1.0, 1.0], "compiled"), ([1.0, 1.0, 2.0, 2.0], "eager")):
        seconds += times
        found, chosen = run(AUTO)
        assert chosen is not None
        assert chosen.chosen == expected
        assert torch.equal(found, told[expected])


def in_float64(function: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., Any]:
    """The function, its loss rounded once more: gradients differ in their last digits."""

    def changed(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        loss, correct = function(images, labels)
        return loss * (1 + 1e-6), correct

    return changed


@pytest.mark.slow
@pytest.mark.skipif(not has_compiler(), reason="no C++ compiler")
def test_a_compiled_run_agrees_with_an_eager_one() -> None:
    eager, compiled = (run(Execution(step=name))[0] for name in ("eager", "compiled"))  # type: ignore[arg-type]
    torch.testing.assert_close(compiled, eager, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.skipif(not has_compiler(), reason="no C++ compiler")
def test_later_runs_of_a_process_compile_nothing() -> None:
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    for seed in range(10):  # more than the 8 after which torch gives up
        small_trainer(SWAP, execution=Execution(step="compiled"), seed=seed)
        if seed == 0:
            compiled = counters["stats"]["unique_graphs"]
            assert compiled > 0
    assert counters["stats"]["unique_graphs"] == compiled


class WideNet(SmallNet):
    """A small net, between whose convolutions one of 256 channels stands."""

    def __init__(self) -> None:
        super().__init__()
        wide = (nn.Conv2d(4, 256, 1), Convolution(256, 256), nn.Conv2d(256, 4, 1))
        self.body = nn.Sequential(*self.body[:3], *wide, *self.body[3:])


def test_a_wide_net_on_a_cpu_is_timed_with_winograd_s_convolutions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told = {
        name: run(Execution(step=name), make_model=WideNet)[0]  # type: ignore[arg-type]
        for name in ("eager", "winograd")
    }
    assert not torch.equal(told["eager"], told["winograd"])
    torch.testing.assert_close(told["winograd"], told["eager"], rtol=0, atol=1e-3)
    seconds = [2.0, 2.0, 1.0, 1.0]
    monkeypatch.setattr(choice, "median_s", lambda step, device: seconds.pop(0))
    found, chosen = run(AUTO, make_model=WideNet)
    assert chosen is not None
    assert (chosen.chosen, [*chosen.times_s]) == ("winograd", ["eager", "winograd"])
    assert torch.equal(found, told["winograd"])
