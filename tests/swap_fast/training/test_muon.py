"""Muon against its formula parameter by parameter, an SVD, and torch's SGD."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import swap_fast
from swap_fast.config.phase import Optimizer, Phase
from swap_fast.models import SpeedNet, whitening_filters
from swap_fast.training.muon import Muon, orthogonalize
from swap_fast.training.optimizer import MuonAndSGD, recipe_optimizer
from swap_fast.training.weights import Weights

Array = NDArray[np.float64]
SHAPES = [(8, 3, 3, 3), (16, 4), (8, 3, 3, 3), (4, 6, 1, 1), (6, 4)]
RATES = [0.1, 0.05, 0.2, 0.01]


def draws(seed: int = 0) -> list[list[Tensor]]:
    """Of weights, then of the gradients of four updates."""
    generator = torch.Generator().manual_seed(seed)
    return [[torch.randn(s, generator=generator) for s in SHAPES] for _ in range(5)]


def reference_orthogonal(g: Array, steps: int) -> Array:
    """Newton and Schulz's quintic with Jordan's coefficients, without a transposition."""
    x = g / np.linalg.norm(g)
    for _ in range(steps):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x


def reference(
    momentum: float, steps: int = 3, *, normalize: bool = True, rates: list[float] = RATES
) -> tuple[list[Array], list[Array]]:
    """Weights and velocities after the updates, in float64."""
    first, *gradients = (([each.double().numpy() for each in of]) for of in draws())
    weights, velocities = [], []
    for number, w in enumerate(first):
        w, v, rows = w.reshape(len(w), -1), np.zeros_like(w), len(w)
        for rate, of in zip(rates, gradients, strict=True):
            g = of[number]
            v = momentum * v + g
            update = reference_orthogonal((g + momentum * v).reshape(rows, -1), steps)
            w = w * (rows**0.5 / np.linalg.norm(w)) if normalize else w
            w = w - rate * update
        weights.append(w.reshape(first[number].shape))
        velocities.append(v)
    return weights, velocities


def parameters() -> list[nn.Parameter]:
    """Filters in channels_last memory."""
    first = [d.to(memory_format=torch.channels_last) if d.dim() == 4 else d for d in draws()[0]]
    return [nn.Parameter(each) for each in first]


def train(optimizer: Muon, trained: list[nn.Parameter], *, tensor_rate: bool = False) -> None:
    for rate, gradients in zip(RATES, draws()[1:], strict=True):
        for parameter, gradient in zip(trained, gradients, strict=True):
            parameter.grad = gradient.clone()
        optimizer.param_groups[0]["lr"] = torch.tensor(rate) if tensor_rate else rate
        optimizer.step()


@pytest.mark.parametrize(("momentum", "steps"), [(0.6, 3), (0.95, 5)])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("tensor_rate", [True, False])
def test_updates_are_the_formula(
    momentum: float, steps: int, normalize: bool, tensor_rate: bool
) -> None:
    trained = parameters()
    optimizer = Muon(
        trained, momentum=momentum, ns_steps=steps, normalize_weights=normalize, fp32=True
    )
    train(optimizer, trained, tensor_rate=tensor_rate)
    weights, velocities = reference(momentum, steps, normalize=normalize)
    for parameter, w, v in zip(trained, weights, velocities, strict=True):
        np.testing.assert_allclose(parameter.detach().numpy(), w, rtol=1e-4, atol=1e-5)
        buffer = optimizer.state[parameter]["momentum_buffer"]
        np.testing.assert_allclose(buffer.numpy(), v, rtol=1e-5, atol=1e-5)


def test_half_precision_is_near_the_formula() -> None:
    trained = parameters()
    train(Muon(trained, momentum=0.6), trained)
    for parameter, w in zip(trained, reference(0.6)[0], strict=True):
        assert np.abs(parameter.detach().numpy() - w).max() < 0.02


@pytest.mark.parametrize("shape", [(3, 16, 40), (2, 40, 16)])
def test_it_comes_near_to_the_orthogonal_factor_of_the_svd(shape: tuple[int, ...]) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    u, _, vh = torch.linalg.svd(matrices, full_matrices=False)
    found = orthogonalize(matrices, 5, torch.float32)
    # U S' V^T with S' near 1: seen from U and V it is diagonal.
    inner = u.mT @ found @ vh.mT
    diagonal = torch.diagonal(inner, dim1=1, dim2=2)
    assert diagonal.min() > 0.65
    assert diagonal.max() < 1.25
    assert (inner - torch.diag_embed(diagonal)).abs().max() < 1e-4
    alike = (found * (u @ vh)).sum((1, 2)) / (found.norm(dim=(1, 2)) * (u @ vh).norm(dim=(1, 2)))
    assert alike.min() > 0.97


def test_matrices_together_are_those_one_by_one() -> None:
    matrices = torch.randn(3, 8, 20, generator=torch.Generator().manual_seed(1))
    one_by_one = torch.cat([orthogonalize(m[None], 3, torch.float32) for m in matrices])
    torch.testing.assert_close(orthogonalize(matrices, 3, torch.float32), one_by_one)
    assert (orthogonalize(torch.zeros(2, 3, 4), 3, torch.bfloat16) == 0).all()


def test_other_groups_are_torch_s_sgd() -> None:
    torch.manual_seed(0)
    ours = [nn.Parameter(torch.randn(4, 3)), nn.Parameter(torch.randn(5))]
    theirs = copy.deepcopy(ours)
    options = {"momentum": 0.8, "weight_decay": 0.1}
    muon = Muon(ours, 0.3, orthogonalize=False, **options)
    sgd = torch.optim.SGD(theirs, lr=0.3, nesterov=True, **options)
    for _ in range(4):
        for mine, other in zip(ours, theirs, strict=True):
            mine.grad = torch.randn(mine.shape)
            other.grad = mine.grad.clone()
        muon.step()
        sgd.step()
        torch.testing.assert_close(ours, theirs)


def speed_weights(config: Optimizer) -> Weights:
    torch.manual_seed(0)
    net = SpeedNet(10, 4, whitening_filters(torch.randn(20, 3, 32, 32), 2, 5e-4))
    return Weights(net.to(memory_format=torch.channels_last), groups=config.groups)


CONFIG = Optimizer(
    kind="muon",
    momentum=0.6,
    sgd_momentum=0.85,
    weight_decay=0.02,
    bias_lr_factor=40.0,
    head_lr_factor=5.0,
)


def updates(optimizer: MuonAndSGD, weights: Weights, count: int = 3, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        gradient = torch.randn(len(weights.theta), generator=generator)
        weights.gradient.copy_(optimizer.scale(gradient))
        optimizer.set_learning_rate(0.1)
        optimizer.step()


def recipe_muon(*, scaled: bool) -> tuple[MuonAndSGD, Weights]:
    weights = speed_weights(CONFIG)
    optimizer = recipe_optimizer(weights, CONFIG, scale_gradients=scaled)
    assert isinstance(optimizer, MuonAndSGD)
    return optimizer, weights


def test_theta_has_filters_then_biases_then_the_head() -> None:
    weights = speed_weights(CONFIG)
    named = dict(weights.model.named_parameters())
    filters = [p for p in named.values() if p.dim() == 4 and p.requires_grad]
    ends = [sum(p.numel() for p in filters), len(weights.theta) - 160]
    assert [weights.places[g] for g in ("filters", "norms_and_biases", "others")] == [
        slice(0, ends[0]),
        slice(ends[0], ends[1]),
        slice(ends[1], len(weights.theta)),
    ]
    assert weights.groups["filters"] == filters
    assert torch.equal(weights.theta[ends[1] :], named["head.weight"].flatten())


@pytest.mark.parametrize("scaled", [True, False])
def test_a_recipe_s_update_is_muon_s_and_sgd_s_with_rates_of_their_own(scaled: bool) -> None:
    optimizer, weights = recipe_muon(scaled=scaled)
    other = copy.deepcopy(weights.model)
    named = {n: p for n, p in other.named_parameters() if p.requires_grad}
    filters = {n: p for n, p in named.items() if p.dim() == 4}
    biases = [p for n, p in named.items() if n.endswith("bias")]
    muon = Muon(filters.values(), 0.1, momentum=0.6)
    # The decay of an update is 0.1 * 0.02 whatever the factor.
    sgd = torch.optim.SGD(
        [
            {"params": biases, "lr": 0.1 * 40, "weight_decay": 0.02 / 40},
            {"params": [named["head.weight"]], "lr": 0.1 * 5, "weight_decay": 0.02 / 5},
        ],
        momentum=0.85,
        nesterov=True,
    )
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        weights.gradient.copy_(torch.randn(len(weights.theta), generator=generator))
        for name, parameter in weights.model.named_parameters():
            if parameter.grad is not None:
                named[name].grad = parameter.grad.clone()
        weights.gradient.copy_(optimizer.scale(weights.gradient))
        optimizer.set_learning_rate(0.1)
        optimizer.step()
        muon.step()
        sgd.step()
    for name, parameter in weights.model.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(parameter, named[name], rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("before", [0, 2])
def test_an_overflow_leaves_weights_and_momentum_as_they_were(before: int) -> None:
    optimizer, weights = recipe_muon(scaled=True)
    updates(optimizer, weights, before)
    theta, velocity = weights.theta.detach().clone(), optimizer.velocity.clone()
    scale = optimizer.scaler.get_scale()
    for place in (3, len(theta) - 1):  # in a filter, in the head
        weights.gradient.fill_(1.0)
        weights.gradient[place] = torch.inf
        optimizer.set_learning_rate(0.1)
        optimizer.step()
        assert torch.equal(weights.theta.detach(), theta)
        assert torch.equal(optimizer.velocity, velocity)
    assert optimizer.scaler.get_scale() == scale / 4
    updates(optimizer, weights, 1)
    assert torch.isfinite(weights.theta).all()
    assert not torch.equal(weights.theta.detach(), theta)


def test_its_state_goes_on_in_place_and_is_reset() -> None:
    optimizer, weights = recipe_muon(scaled=True)
    start, address = weights.theta.detach().clone(), optimizer.velocity.data_ptr()
    updates(optimizer, weights)
    kept, middle = optimizer.state_dict(), weights.theta.detach().clone()
    updates(optimizer, weights, seed=1)
    expected = weights.theta.detach().clone()
    optimizer.reset_()
    weights.theta.data.copy_(start)
    updates(optimizer, weights)
    assert torch.equal(weights.theta.detach(), middle)
    optimizer.reset_()
    optimizer.load_state_dict(kept)
    updates(optimizer, weights, seed=1)
    assert torch.equal(weights.theta.detach(), expected)
    assert optimizer.velocity.data_ptr() == address


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"params": [nn.Parameter(torch.ones(3))]}, r"^Muon: expected parameters of 2 or more dim"),
        ({"lr": -0.1}, r"^Muon: lr: expected 0 or more, got -0.1$"),
        ({"momentum": 1.0}, r"^Muon: momentum: expected between 0 and 1, got 1.0$"),
        ({"ns_steps": 0}, r"^Muon: ns_steps: expected 1 or more, got 0$"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Muon(**{"params": [nn.Parameter(torch.ones(3, 2))]} | options)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_swap_trains_the_net_with_it(precision: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(64) % 4
    images = torch.randn(64, 3, 32, 32, generator=generator) * 0.3
    images[torch.arange(64), 0, labels * 8] += 3.0  # a row of its own for each class
    filters = whitening_filters(images, 2, 5e-4)

    def groups(net: nn.Module) -> list[dict[str, Any]]:
        trained = [p for p in net.parameters() if p.requires_grad]
        return [
            {"params": [p for p in trained if p.dim() == 4]},
            {"params": [p for p in trained if p.dim() < 4], "lr": 0.5, "orthogonalize": False},
        ]

    result = swap_fast.swap(
        lambda: SpeedNet(4, 4, filters),
        (images, labels),
        test_data=(images, labels),
        optimizer=lambda given: swap_fast.Muon(given, lr=0.1, momentum=0.6),
        parameter_groups=groups,
        phase1=Phase(global_batch_size=32, peak_lr=0.1, max_epochs=6, gpus_per_model=2),
        phase2=Phase(global_batch_size=16, peak_lr=0.05, max_epochs=2),
        workers=2,
        precision=precision,
        device="cpu",
        progress=False,
    )
    assert result.accuracy is not None
    assert result.accuracy > 0.9
