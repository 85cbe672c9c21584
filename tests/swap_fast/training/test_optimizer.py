"""The update against its formula in numpy and against torch's plain SGD."""

from __future__ import annotations

import copy
from typing import Literal

import numpy as np
import pytest
import torch
from small_trainer import SmallNet

from swap_fast.config.phase import Optimizer
from swap_fast.training.optimizer import MomentumSGD
from swap_fast.training.weights import Weights

RATES = [0.1, 0.3, 0.0, 0.02]


def small_weights() -> Weights:
    torch.manual_seed(0)
    return Weights(SmallNet())


def gradients(size: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(size, generator=generator) for _ in RATES]


@pytest.mark.parametrize("scale_gradients", [True, False])
@pytest.mark.parametrize(("momentum", "decay"), [(0.9, 5e-4), (0.5, 0.1), (0.9, 0.0)])
def test_updates_are_the_formula(momentum: float, decay: float, scale_gradients: bool) -> None:
    weights = small_weights()
    config = Optimizer(momentum=momentum, weight_decay=decay)
    optimizer = MomentumSGD(weights, config, scale_gradients=scale_gradients)
    theta = weights.theta.detach().double().numpy().copy()
    velocity = np.zeros_like(theta)
    for rate, gradient in zip(RATES, gradients(len(theta)), strict=True):
        g = gradient.double().numpy() + decay * theta
        velocity = momentum * velocity + g
        theta = theta - rate * (g + momentum * velocity)
        optimizer.set_learning_rate(rate)
        weights.gradient.copy_(optimizer.scale(gradient))
        optimizer.step()
        np.testing.assert_allclose(weights.theta.detach().numpy(), theta, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(optimizer.velocity.numpy(), velocity, rtol=1e-5, atol=1e-6)


def test_updates_are_those_of_torch_parameter_by_parameter() -> None:
    weights = small_weights()
    reference = copy.deepcopy(weights.model)
    optimizer = MomentumSGD(weights, Optimizer(), scale_gradients=False)
    torchs = torch.optim.SGD(
        reference.parameters(), lr=1.0, momentum=0.9, weight_decay=5e-4, nesterov=True, fused=False
    )
    for rate, gradient in zip(RATES, gradients(len(weights.theta)), strict=True):
        weights.gradient.copy_(gradient)
        for ours, theirs in zip(weights.model.parameters(), reference.parameters(), strict=True):
            assert ours.grad is not None
            theirs.grad = ours.grad.clone()
        torchs.param_groups[0]["lr"] = rate
        torchs.step()
        optimizer.set_learning_rate(rate)
        optimizer.step()
    for ours, theirs in zip(weights.model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


def test_a_step_at_rate_zero_moves_nothing_but_the_velocity() -> None:
    weights = small_weights()
    optimizer = MomentumSGD(weights, Optimizer(weight_decay=0.0), scale_gradients=False)
    before = weights.theta.detach().clone()
    weights.gradient.fill_(2.0)
    optimizer.step()
    assert torch.equal(weights.theta.detach(), before)
    assert (optimizer.velocity == 2.0).all()


@pytest.mark.parametrize("bad", [torch.inf, -torch.inf, torch.nan])
def test_a_first_step_that_overflows_is_left_out_exactly(bad: float) -> None:
    weights = small_weights()
    optimizer = MomentumSGD(weights, Optimizer(weight_decay=0.0), scale_gradients=True)
    before = weights.theta.detach().clone()
    scale = optimizer.scaler.get_scale()
    optimizer.set_learning_rate(0.5)
    weights.gradient.fill_(1.0)
    weights.gradient[3] = bad
    optimizer.step()
    assert torch.equal(weights.theta.detach(), before)
    assert torch.equal(optimizer.velocity, torch.zeros_like(before))
    assert optimizer.scaler.get_scale() == scale / 2
    weights.gradient.copy_(optimizer.scale(torch.full_like(before, 0.25)))
    optimizer.step()
    # From no velocity: v = g, theta - a (g + m v) = theta - 0.5 * 1.9 * 0.25.
    torch.testing.assert_close(weights.theta.detach(), before - 0.2375, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(optimizer.velocity, torch.full_like(before, 0.25))


def test_a_later_step_that_overflows_keeps_the_velocity() -> None:
    weights = small_weights()
    optimizer = MomentumSGD(weights, Optimizer(), scale_gradients=True)
    optimizer.set_learning_rate(0.1)
    weights.gradient.copy_(optimizer.scale(gradients(len(weights.theta))[0]))
    optimizer.step()
    theta, velocity = weights.theta.detach().clone(), optimizer.velocity.clone()
    weights.gradient.fill_(torch.inf)
    optimizer.step()
    assert torch.equal(weights.theta.detach(), theta)
    assert torch.equal(optimizer.velocity, velocity)


@pytest.mark.parametrize("scale_gradients", [True, False])
def test_reset_forgets_the_history_in_place(scale_gradients: bool) -> None:
    weights = small_weights()
    optimizer = MomentumSGD(weights, Optimizer(), scale_gradients=scale_gradients)
    start = weights.theta.detach().clone()
    gradient = gradients(len(start))[0]
    optimizer.set_learning_rate(0.1)
    pointer, scale = optimizer.velocity.data_ptr(), optimizer.scaler.get_scale()

    def one_update() -> torch.Tensor:
        with torch.no_grad():
            weights.theta.copy_(start)
        weights.gradient.copy_(optimizer.scale(gradient))
        optimizer.step()
        return weights.theta.detach().clone()

    first = one_update()
    weights.gradient.fill_(torch.inf if scale_gradients else 1.0)
    optimizer.step()
    assert not torch.equal(one_update(), first)
    optimizer.reset_()
    assert optimizer.velocity.data_ptr() == pointer
    assert optimizer.scaler.get_scale() == scale
    assert torch.equal(one_update(), first)


def test_a_loaded_velocity_goes_on_in_place() -> None:
    weights = small_weights()
    optimizer = MomentumSGD(weights, Optimizer(weight_decay=0.0), scale_gradients=False)
    before = weights.theta.detach().clone()
    state = optimizer.state_dict()
    state["state"][0]["momentum_buffer"].fill_(2.0)
    address = optimizer.velocity.data_ptr()
    optimizer.load_state_dict(state)
    state["state"][0]["momentum_buffer"].fill_(99.0)  # it was copied
    assert optimizer.velocity.data_ptr() == address
    optimizer.set_learning_rate(0.1)
    weights.gradient.fill_(1.0)
    optimizer.step()
    # v = 0.9 * 2 + 1 = 2.8; the step is 0.1 * (1 + 0.9 * 2.8).
    torch.testing.assert_close(weights.theta.detach(), before - 0.352, rtol=1e-6, atol=1e-6)


def test_biases_with_a_rate_of_their_own_are_torch_s_second_group() -> None:
    torch.manual_seed(0)
    weights = Weights(SmallNet(), groups=("others", "biases"))
    reference = copy.deepcopy(weights.model)
    optimizer = MomentumSGD(
        weights, Optimizer(weight_decay=0.01, bias_lr_factor=64), scale_gradients=False
    )
    groups: dict[bool, list[torch.nn.Parameter]] = {True: [], False: []}
    for name, parameter in reference.named_parameters():
        groups[name.endswith("bias")].append(parameter)
    torchs = torch.optim.SGD(
        [
            {"params": groups[False], "weight_decay": 0.01},
            {"params": groups[True], "weight_decay": 0.01 / 64},
        ],
        lr=1.0,
        momentum=0.9,
        nesterov=True,
        fused=False,
    )
    for rate, gradient in zip(RATES, gradients(len(weights.theta)), strict=True):
        weights.gradient.copy_(gradient)
        for ours, theirs in zip(weights.model.parameters(), reference.parameters(), strict=True):
            assert ours.grad is not None
            theirs.grad = ours.grad.clone()
        torchs.param_groups[0]["lr"], torchs.param_groups[1]["lr"] = rate, 64 * rate
        torchs.step()
        optimizer.set_learning_rate(rate)
        optimizer.step()
    for ours, theirs in zip(weights.model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    optimizer.reset_()
    assert (optimizer.velocity == 0).all()


@pytest.mark.parametrize("without", ["norms", "norms_and_biases"])
def test_imagenet_s_form_decays_no_norm_and_has_plain_momentum(
    without: Literal["norms", "norms_and_biases"],
) -> None:
    config = Optimizer(nesterov=False, weight_decay=0.1, without_decay=without)
    torch.manual_seed(0)
    model = SmallNet()
    reference = copy.deepcopy(model)
    weights = Weights(model, groups=config.groups)
    optimizer = MomentumSGD(weights, config, scale_gradients=False)
    named = dict(reference.named_parameters())
    # Of the net's layers 1 and 4 are batch norms.
    plain = ["body.1.weight", "body.1.bias", "body.4.weight", "body.4.bias"]
    if without == "norms_and_biases":
        plain.append("linear.bias")
    assert set(plain) <= set(named)
    assert len(weights.theta[weights.places[without]]) == sum(named[n].numel() for n in plain)
    sgd = torch.optim.SGD(
        [
            {"params": [p for n, p in named.items() if n not in plain], "weight_decay": 0.1},
            {"params": [named[n] for n in plain], "weight_decay": 0.0},
        ],
        lr=0.05,
        momentum=0.9,
    )
    optimizer.set_learning_rate(0.05)
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        for ours, theirs in zip(model.parameters(), named.values(), strict=True):
            gradient = torch.randn(ours.shape, generator=generator)
            assert ours.grad is not None
            ours.grad.copy_(gradient)
            theirs.grad = gradient
        optimizer.step()
        sgd.step()
        for name, ours in model.named_parameters():
            torch.testing.assert_close(ours, named[name], rtol=1e-6, atol=1e-7)


def test_a_static_loss_scale_halves_at_an_overflow_and_does_not_grow() -> None:
    config = Optimizer(loss_scale=1024.0, loss_scale_grows=False)
    weights = Weights(SmallNet())
    optimizer = MomentumSGD(weights, config, scale_gradients=True)
    assert optimizer.scale(torch.ones(())).item() == 1024
    for _ in range(3):
        weights.gradient.fill_(1.0)
        optimizer.step()
    assert optimizer.scaler.get_scale() == 1024
    assert optimizer.scaler.get_growth_interval() == 2**31 - 1
    weights.gradient.fill_(torch.inf)
    optimizer.step()
    assert optimizer.scaler.get_scale() == 512
