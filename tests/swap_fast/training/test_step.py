"""One update against a plain implementation with a copy of the model for every replica."""

from __future__ import annotations

import copy
import shutil

import pytest
import torch
from small_trainer import SmallNet
from torch import Tensor, nn

from swap_fast.config.execution import Execution
from swap_fast.config.phase import Optimizer, Phase
from swap_fast.distributed import ALONE
from swap_fast.training.optimizer import MomentumSGD
from swap_fast.training.step import Step
from swap_fast.training.weights import Weights


def small_step(
    replicas: int, batch: int, *, compiled: bool = False
) -> tuple[Step, Weights, MomentumSGD]:
    torch.manual_seed(0)
    execution = Execution(step="compiled" if compiled else "eager")
    weights = Weights(execution.place(SmallNet(), torch.device("cpu")))
    optimizer = MomentumSGD(weights, Optimizer(), scale_gradients=False)
    phase = Phase(global_batch_size=batch, peak_lr=0.1, max_epochs=1, gpus_per_model=replicas)
    return Step(weights, optimizer, phase, ALONE, execution), weights, optimizer


def draw(step: Step, seed: int) -> tuple[Tensor, Tensor]:
    """Fill the step's batch with replicas that differ much, and give a copy."""
    generator = torch.Generator().manual_seed(seed)
    ramp = torch.linspace(0.5, 3, len(step.images)).view(-1, 1, 1, 1)
    step.images.copy_(torch.randn(step.images.shape, generator=generator) * ramp + ramp)
    step.labels.copy_(torch.randint(10, step.labels.shape, generator=generator))
    return step.images.clone(), step.labels.clone()


@pytest.mark.parametrize(("replicas", "batch"), [(1, 6), (2, 8), (4, 12)])
def test_updates_are_those_of_replicas_with_their_own_batch_norm(replicas: int, batch: int) -> None:
    step, weights, _ = small_step(replicas, batch)
    copies = [copy.deepcopy(weights.model) for _ in range(replicas)]
    sgd = [
        torch.optim.SGD(m.parameters(), lr=0.2, momentum=0.9, weight_decay=5e-4, nesterov=True)
        for m in copies
    ]
    step.set_learning_rate(0.2)
    loss_sum, correct = 0.0, 0
    for seed in range(3):
        images, labels = draw(step, seed)
        step()
        taken = []
        for model, x, y in zip(copies, images.chunk(replicas), labels.chunk(replicas), strict=True):
            logits = model(x)
            loss = nn.functional.cross_entropy(logits, y)
            taken.append(torch.autograd.grad(loss, list(model.parameters())))
            loss_sum += loss.item() * len(y)
            correct += sum(
                int(row.index(max(row)) == label)
                for row, label in zip(logits.tolist(), y.tolist(), strict=True)
            )
        means = [torch.stack(values).mean(0) for values in zip(*taken, strict=True)]
        for ours, mean in zip(weights.model.parameters(), means, strict=True):
            torch.testing.assert_close(ours.grad, mean, rtol=1e-4, atol=1e-6)
        for model, optimizer in zip(copies, sgd, strict=True):
            for parameter, mean in zip(model.parameters(), means, strict=True):
                parameter.grad = mean
            optimizer.step()
        for ours, theirs in zip(weights.model.parameters(), copies[0].parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    for replica, model in enumerate(copies):
        step.statistics.swap_in(replica)
        for name, buffer in model.named_buffers():
            if "running" in name:
                torch.testing.assert_close(weights.model.get_buffer(name), buffer)
    metrics = step.read_metrics()
    assert metrics.loss == pytest.approx(loss_sum / (3 * batch), rel=1e-6)
    assert metrics.accuracy == correct / (3 * batch)
    assert 0 < correct < 3 * batch


def test_a_reading_starts_the_metrics_anew() -> None:
    step, weights, _ = small_step(2, 8)
    draw(step, 0)
    step()
    step.read_metrics()
    images, labels = draw(step, 1)
    reference = copy.deepcopy(weights.model)
    step()
    losses = [
        nn.functional.cross_entropy(reference(x), y, reduction="sum").item()
        for x, y in zip(images.chunk(2), labels.chunk(2), strict=True)
    ]
    assert step.read_metrics().loss == pytest.approx(sum(losses) / 8, rel=1e-6)


def test_a_step_does_not_read_what_the_last_one_left_in_the_gradient() -> None:
    step, weights, optimizer = small_step(2, 8)
    draw(step, 0)
    step()
    first = weights.gradient.clone()
    weights.gradient.fill_(1e9)
    optimizer.reset_()
    step()  # the learning rate is 0: the same weights, the same batch
    torch.testing.assert_close(weights.gradient, first)


def test_warm_up_leaves_no_trace() -> None:
    step, weights, optimizer = small_step(2, 8)
    untouched, other_weights, other_optimizer = small_step(2, 8)
    # Not a fresh model's: a warm-up before a continued phase must be as harmless.
    for s in (step, untouched):
        s.set_learning_rate(0.1)
        draw(s, 0)
        s()
        s.read_metrics()
    for o in (optimizer, other_optimizer):
        o.reset_()
    for w, s in ((weights, step), (other_weights, untouched)):
        s.statistics.merge_()
        s.statistics.reset_()
        assert w.model.training
    theta, statistics = weights.copy()
    step.warm_up(3)
    assert torch.equal(weights.theta.detach(), theta)
    assert torch.equal(weights.statistics, statistics)
    assert torch.equal(optimizer.velocity, torch.zeros_like(theta))
    for replica in range(2):
        step.statistics.swap_in(replica)
        assert torch.equal(weights.statistics, statistics)
    for s in (step, untouched):
        s.set_learning_rate(0.1)
        for seed in (1, 2):
            draw(s, seed)
            s()
    assert step.read_metrics() == untouched.read_metrics()
    assert torch.equal(weights.theta, other_weights.theta)
    assert torch.equal(optimizer.velocity, other_optimizer.velocity)


def test_a_first_pass_over_memory_of_nan_leaves_no_trace() -> None:
    step, weights, optimizer = small_step(2, 8)
    (theta, statistics), random = weights.copy(), torch.get_rng_state()
    step.images.fill_(torch.nan)
    step.labels.fill_(-1)
    step.first_pass()
    assert torch.equal(weights.theta.detach(), theta)
    assert torch.equal(torch.stack(weights.copy()[1:]), statistics[None])
    assert torch.equal(step.statistics.values, statistics.expand(2, -1))
    assert not weights.gradient.any()
    assert not optimizer.velocity.any()
    assert torch.equal(torch.get_rng_state(), random)


def test_warm_up_leaves_the_gradient_s_scale_as_it_was() -> None:
    _, weights, _ = small_step(1, 4)
    optimizer = MomentumSGD(weights, Optimizer(), scale_gradients=True)
    phase = Phase(global_batch_size=4, peak_lr=0.1, max_epochs=1)
    step = Step(weights, optimizer, phase, ALONE, Execution())
    before = optimizer.scaler.state_dict()
    step.warm_up()
    assert optimizer.scaler.state_dict() == before


def test_the_batch_is_that_of_all_replicas() -> None:
    step, _, _ = small_step(2, 8)
    assert step.images.shape == (8, 3, 32, 32)
    assert step.images.is_contiguous(memory_format=torch.channels_last)
    assert (step.labels.shape, step.labels.dtype) == ((8,), torch.int64)


def test_label_smoothing_spreads_its_share_over_all_classes() -> None:
    _, weights, optimizer = small_step(2, 8)
    phase = Phase(global_batch_size=8, peak_lr=0.1, max_epochs=1, gpus_per_model=2)
    step = Step(weights, optimizer, phase, ALONE, Execution(), label_smoothing=0.2)
    images, labels = draw(step, 0)
    reference = copy.deepcopy(weights.model)
    step()
    losses = []
    for x, y in zip(images.chunk(2), labels.chunk(2), strict=True):
        targets = 0.8 * nn.functional.one_hot(y, 10) + 0.02
        losses.append(-(targets * reference(x).log_softmax(1)).sum(1).mean())
    loss = sum(losses) / 2
    gradients = torch.autograd.grad(loss, list(reference.parameters()))
    for ours, expected in zip(weights.model.parameters(), gradients, strict=True):
        torch.testing.assert_close(ours.grad, expected, rtol=1e-4, atol=1e-6)
    assert step.read_metrics().loss == pytest.approx(loss.item(), rel=1e-6)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")
def test_a_compiled_step_is_the_eager_one() -> None:
    (eager, expected, _), (step, weights, _) = small_step(2, 8), small_step(2, 8, compiled=True)
    for each in (eager, step):
        each.warm_up()
    for number in range(3):
        images, labels = draw(step, number)
        eager.images.copy_(images)
        eager.labels.copy_(labels)
        for each in (eager, step):
            each.set_learning_rate(0.05)
            each()
    torch.testing.assert_close(weights.theta, expected.theta, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(weights.statistics, expected.statistics, rtol=1e-4, atol=1e-5)
    ours, theirs = step.read_metrics(), eager.read_metrics()
    assert ours.accuracy == theirs.accuracy
    assert ours.loss == pytest.approx(theirs.loss, rel=1e-5)
