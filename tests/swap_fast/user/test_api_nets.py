"""`swap_fast.swap` of nets of every kind: frozen, tied, compiled, half precision, with buffers."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from own_nets import (
    Averaging,
    Compiled,
    Tied,
    assert_same_bits,
    bits,
    blobs,
    net,
    partly,
    plain_net,
    small_swap,
)
from small_trainer import calling
from torch import Tensor, nn

from swap_fast.training.weights import Weights


def initial(make: Any, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return make()


def frozen_net() -> nn.Module:
    model = net()
    model[0].requires_grad_(False)
    return model


def test_frozen_parameters_stay_as_they_were() -> None:
    before = initial(frozen_net).state_dict()
    result = small_swap(frozen_net)
    for state in (result.model.state_dict(), *result.worker_states):
        assert torch.equal(state["0.weight"], before["0.weight"])
        assert not torch.equal(state["3.weight"], before["3.weight"])
    assert result.record["settings"]["model"]["parameters"] == 8 + 8 + 32 + 4


def test_tied_weights_stay_tied(tmp_path: Any) -> None:
    result = small_swap(Tied)
    assert result.model.read.weight is result.model.write.weight
    assert result.record["settings"]["model"]["parameters"] == 36
    mean = torch.stack([s["read.weight"].double() for s in result.worker_states]).mean(0)
    torch.testing.assert_close(result.model.read.weight.double(), mean)
    fresh = Tied()
    fresh.load_state_dict(result.worker_states[0])
    assert fresh.read.weight is fresh.write.weight


@pytest.mark.slow
@pytest.mark.parametrize("make", [Compiled.wrapped, Compiled.in_place], ids=["wrapped", "in place"])
def test_a_compiled_net_gives_what_the_net_gives(make: Any) -> None:
    x, y = blobs(20, seed=2)
    plain = small_swap(net, test=(x, y))
    result = small_swap(make, test=(x, y))
    assert result.record["settings"]["model"]["compiled"]
    for ours, theirs in zip(result.worker_states, plain.worker_states, strict=True):
        for name, tensor in theirs.items():
            if "tracked" not in name:
                torch.testing.assert_close(ours[name], tensor, rtol=1e-3, atol=1e-5)
    bare = getattr(result.model, "_orig_mod", result.model)
    torch.testing.assert_close(bare[1].running_var, plain.model[1].running_var, rtol=1e-3, atol=0)
    assert result.accuracy == plain.accuracy


def halved(make: Any, dtype: torch.dtype) -> Any:
    return lambda: make().to(dtype)


HALVES = {
    "bf16": halved(net, torch.bfloat16),
    "fp16": halved(plain_net, torch.float16),
    "bf16 and fp32": partly(torch.bfloat16),
    "fp16 and fp32": partly(torch.float16),
}


@pytest.mark.parametrize("make", HALVES.values(), ids=HALVES.keys())
def test_half_precision_learns_and_keeps_its_types(make: Any) -> None:
    types = {name: t.dtype for name, t in initial(make).state_dict().items()}
    result = small_swap(make, blobs(400), blobs(100, seed=2))
    assert result.accuracy > 0.85
    for state in (result.model.state_dict(), *result.worker_states):
        assert {name: t.dtype for name, t in state.items()} == types


def test_half_precision_is_updated_and_averaged_in_fp32() -> None:
    # Steps far below bf16's spacing: rounded after each of them, the weights would never move.
    phase = {"schedule1": lambda epoch: 1e-4, "schedule2": lambda epoch: 1e-4}
    make = halved(plain_net, torch.bfloat16)
    plain_sgd = {"optimizer": lambda p: torch.optim.SGD(p, lr=1.0)}
    result = small_swap(make, blobs(400), **phase, **plain_sgd)
    before = initial(make).state_dict()["0.weight"]
    assert not torch.equal(result.model[0].weight, before)
    # And the average is the rounded mean of the workers, not the mean of rounded ones.
    model = initial(make)
    weights = Weights(model)
    theta = torch.full_like(weights.theta, 1 + 2**-9)  # half way between two bf16 numbers, and up
    weights.load_(theta, weights.statistics)
    assert weights.copy()[0].dtype == torch.float32
    assert torch.equal(weights.copy()[0], theta)
    assert torch.equal(model[0].weight, theta[:48].reshape(8, 6).to(torch.bfloat16))


def test_gradients_of_fp16_parameters_do_not_underflow() -> None:
    def tiny(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(model(batch[0].half()).float(), batch[1]) * 1e-7

    make = halved(plain_net, torch.float16)
    sgd = {"optimizer": lambda p: torch.optim.SGD(p, lr=1.0), "schedule1": lambda epoch: 1e5}
    result = small_swap(make, loss=tiny, **sgd)
    moved = result.model[0].weight - initial(make).state_dict()["0.weight"]
    assert (moved != 0).float().mean() > 0.9


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_autocast_precisions_train(precision: str) -> None:
    result = small_swap(net, blobs(400), blobs(100, seed=2), precision=precision)
    assert result.accuracy > 0.85
    assert result.model[0].weight.dtype == torch.float32


def test_each_worker_has_buffers_of_its_own_and_their_mean_is_taken() -> None:
    result = small_swap(Averaging)
    means = [state["mean"] for state in result.worker_states]
    assert not torch.equal(*means)
    torch.testing.assert_close(result.model.mean, torch.stack(means).mean(0))
    assert result.model.mask.tolist() == [0.0, -torch.inf]
    # Worker 1 goes on from phase 1's, not from worker 0's: alone it would end the same.
    x, _ = blobs()
    torch.manual_seed(0)
    expected = Averaging()

    def order(*where: int) -> Tensor:
        return torch.from_numpy(
            np.random.default_rng(np.random.SeedSequence((0, *where))).permutation(44)
        )

    replicas = [torch.zeros(6), torch.zeros(6)]
    for epoch in range(2):
        for step in range(2):
            for replica in range(2):
                chosen = order(1, 0, epoch)[step * 16 + replica * 8 :][:8]
                replicas[replica] = 0.9 * replicas[replica] + 0.1 * x[chosen].mean(0)
    expected.mean = torch.stack(replicas).mean(0)
    for epoch in range(2):
        for step in range(5):
            expected.mean = 0.9 * expected.mean + 0.1 * x[order(2, 1, epoch)[step * 8 :][:8]].mean(
                0
            )
    torch.testing.assert_close(means[1], expected.mean)


class Counting(nn.Module):
    """A step counter, and a trace that is not saved, both read in the forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.body = net()
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))
        self.register_buffer("trace", torch.zeros(()), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.steps += 1
            self.trace += 2
        return self.body(x) + torch.sin(self.steps + self.trace) * torch.eye(4)[0]


def test_each_worker_begins_with_phase_1_s_counters_and_keeps_its_own() -> None:
    trainers: list[Any] = []
    began = {}

    def note(progress: Any) -> None:
        model = trainers[0].weights.model
        began[progress.phase, progress.worker] = (int(model.steps), int(model.trace))

    noting = calling(on_start=trainers.append, on_begin=note)
    result = small_swap(Counting, test=blobs(20, seed=2), callbacks=[noting])
    (phase1, trace), first, second = (began[key] for key in ((1, 0), (2, 0), (2, 1)))
    assert (phase1, trace) == (0, 0)
    assert first == second == (8, 16)  # two epochs of two updates with two replicas
    assert [int(state["steps"]) for state in result.worker_states] == [18, 18]
    assert int(result.model.steps) == 18
    x, y = blobs(20, seed=2)
    for worker, accuracy in enumerate(result.worker_accuracies):
        tested = result.worker_model(worker).eval()
        tested.trace.fill_(36)  # in no state dict
        assert (tested(x).argmax(1) == y).sum().item() == round(accuracy * len(y))


def test_gradients_that_a_user_drops_or_makes_do_not_reach_the_update() -> None:
    trainers: list[Any] = []

    def plain(model: nn.Module, batch: Any) -> Tensor:
        x, y = batch
        return nn.functional.cross_entropy(model(x), y)

    def adversarial(model: nn.Module, batch: Any) -> Tensor:
        x, y = batch
        if torch.is_grad_enabled():  # not in tests, nor in the batch-norm pass
            nn.functional.cross_entropy(model.eval()(x), y).backward()  # for its inputs' gradient
            model.train().zero_grad()
        return plain(model, batch)

    def drop(row: Any) -> None:
        trainers[0].weights.model.zero_grad()

    dropping = calling(on_start=trainers.append, on_epoch_end=drop)
    result = small_swap(net, loss=adversarial, callbacks=[dropping])
    assert_same_bits(bits(result), bits(small_swap(net, loss=plain)))


def test_a_callback_that_tests_the_net_does_not_end_its_training() -> None:
    trainers: list[Any] = []
    modes = []

    def test(row: Any) -> None:
        trainers[0].weights.model.eval()

    def note(images: int) -> None:
        modes.append(all(module.training for module in trainers[0].weights.model.modules()))

    small_swap(net, callbacks=[calling(on_start=trainers.append, on_epoch_end=test, on_step=note)])
    assert len(modes) == 24
    assert all(modes)


class Frozen(nn.Module):
    """A batch norm that stays in eval mode, as in fine tuning."""

    def __init__(self) -> None:
        super().__init__()
        self.body = net()

    def train(self, mode: bool = True) -> Frozen:
        super().train(mode)
        self.body[1].eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


def test_a_batch_norm_in_eval_mode_keeps_its_statistics() -> None:
    result = small_swap(Frozen)
    assert torch.equal(result.model.body[1].running_mean, torch.zeros(8))
    assert torch.equal(result.model.body[1].running_var, torch.ones(8))


def test_dropout_follows_from_the_seed() -> None:
    def make() -> nn.Module:
        return nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.Linear(8, 4))

    runs = [bits(small_swap(make, seed=seed)) for seed in (1, 1, 2)]
    assert_same_bits(*runs[:2])
    assert not torch.equal(runs[0]["averaged.0.weight"], runs[2]["averaged.0.weight"])


class Constrained(nn.Linear):
    """A layer with a largest norm, which it keeps by another tensor in each forward pass."""

    def forward(self, x: Tensor) -> Tensor:
        self.weight.data = torch.renorm(self.weight.data, p=2, dim=0, maxnorm=0.5)
        return super().forward(x)


def test_a_layer_that_replaces_its_weights_is_trained_by_each_worker_and_averaged() -> None:
    result = small_swap(lambda: nn.Sequential(nn.Linear(6, 8), nn.Tanh(), Constrained(8, 4)))
    first, second = (state["2.weight"] for state in result.worker_states)
    assert not torch.equal(first, second)
    torch.testing.assert_close(result.model[2].weight.detach(), (first + second) / 2)


class Teacher(nn.Module):
    """A frozen copy follows the net."""

    def __init__(self) -> None:
        super().__init__()
        self.student, self.teacher = nn.Linear(6, 4), nn.Linear(6, 4).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            for own, other in zip(
                self.teacher.parameters(), self.student.parameters(), strict=True
            ):
                own.data = 0.9 * own.data + 0.1 * other.data
        return self.student(x)


def test_frozen_parameters_that_the_net_changes_are_refused_after_an_epoch() -> None:
    rows: list[Any] = []
    line = r"^parameter teacher\.weight: expected a frozen one to keep its values, .* as a buffer"
    with pytest.raises(ValueError, match=line):
        small_swap(Teacher, callbacks=[calling(on_epoch_end=rows.append)])
    assert len(rows) == 0  # the first epoch was the last


def test_a_net_that_cannot_be_copied_has_its_workers_states() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's, of this form of weight norm
        result = small_swap(lambda: nn.Sequential(nn.utils.weight_norm(nn.Linear(6, 4))))
    with pytest.raises(
        ValueError, match=r"^model: expected one that copy\.deepcopy copies, got Ru"
    ):
        result.worker_model(0)


# What cannot be.


class Extra(nn.Linear):
    def __init__(self) -> None:
        super().__init__(6, 4)

    def get_extra_state(self) -> Any:
        return {"version": 1}

    def set_extra_state(self, state: Any) -> None: ...


class Lazy(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.LazyLinear(4))


def shared_memory() -> nn.Module:
    model = Tied()
    model.read.weight = nn.Parameter(torch.empty(0))
    model.read.weight.data = model.write.weight.data
    return model


def cumulative() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4, momentum=None))


def synchronised() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 4), nn.SyncBatchNorm(4))


BAD = {
    "all frozen": (lambda: net().requires_grad_(False), "model: expected trainable parameters"),
    "lazy": (Lazy, "parameter 0.weight: expected one with a shape, got a lazy one"),
    "shared memory": (shared_memory, "parameter read.weight: expected memory of its own"),
    "complex": (lambda: nn.Linear(6, 4, dtype=torch.cfloat), "parameter weight: expected real"),
    "cumulative": (cumulative, "batch norm: expected a momentum such as 0.1"),
    "synchronised": (synchronised, "batch norm: expected one of each worker's own"),
    "a module": (net(), "make_model: expected a function that makes the net, got a Sequential"),
    "no module": (lambda: 3, "make_model: expected a function that returns an nn.Module"),
    "in parallel": (lambda: nn.DataParallel(net()), "make_model: expected the bare net"),
    "more than tensors": (Extra, "make_model: expected a net whose state is tensors, got a dict"),
    "no logits": (lambda: nn.Sequential(net(), nn.Flatten(0)), "model: expected logits"),
}


@pytest.mark.parametrize(("make", "message"), BAD.values(), ids=BAD.keys())
def test_a_net_that_cannot_be_is_refused_in_one_line(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}") as refused:
        small_swap(make)
    assert "\n" not in str(refused.value)


def test_a_net_that_was_trained_is_no_new_start() -> None:
    model = net()
    small_swap(lambda: model)
    with pytest.raises(ValueError, match=r"^make_model: expected a new net .* copy\.deepcopy"):
        small_swap(lambda: model)


def test_a_diverging_run_says_so() -> None:
    with pytest.raises(
        FloatingPointError, match=r"^phase 1, worker 0, epoch [12] .*: the loss is "
    ):
        small_swap(schedule1=lambda epoch: 1e30)
