"""The model as one vector: views, gradients, statistics, and what is refused."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from small_trainer import SmallNet
from torch import nn

from swap_fast.models import ResNet9
from swap_fast.training.weights import Weights

IMAGES = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 3, 4, 5])


def small_net(*, channels_last: bool = False) -> nn.Module:
    torch.manual_seed(0)
    model = SmallNet()
    if channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model


@pytest.mark.parametrize(
    ("model", "groups", "message"),
    [
        (3, ["others"], r"^model: expected a Module, got 3$"),
        (SmallNet, ["others"], r"^model: expected a Module, got a type$"),
        (SmallNet(), 3, r"^groups: expected an iterable, got 3$"),
        (
            SmallNet(),
            "others",
            r"^groups: expected a list, each filters, .* or others, got 'o' in it",
        ),
        (SmallNet(), [], r"^groups: expected \"others\" among them, got \[\]$"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(model: Any, groups: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Weights(model, groups=groups)


@pytest.mark.parametrize("channels_last", [True, False])
def test_the_model_is_as_it_was(channels_last: bool) -> None:
    model = small_net(channels_last=channels_last)
    before = copy.deepcopy(model)
    Weights(model)
    for (name, now), then in zip(model.named_parameters(), before.parameters(), strict=True):
        assert torch.equal(now, then), name
        assert now.stride() == then.stride(), name
    for name, buffer in before.named_buffers():
        assert torch.equal(model.get_buffer(name), buffer), name
    assert torch.equal(model(IMAGES), before(IMAGES))


@pytest.mark.parametrize("channels_last", [True, False])
def test_writing_theta_changes_the_model_and_back(channels_last: bool) -> None:
    model = small_net(channels_last=channels_last)
    weights = Weights(model)
    with torch.no_grad():
        weights.theta.copy_(torch.arange(len(weights.theta)))
        seen = torch.cat([p.flatten() for p in model.parameters()]).sort().values
        assert torch.equal(seen, torch.arange(len(weights.theta)).float())
        for number, parameter in enumerate(model.parameters()):
            parameter.fill_(number)
    counts = [p.numel() for p in model.parameters()]
    expected = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    assert torch.equal(weights.theta.detach(), expected.float())


def test_theta_is_in_the_order_of_memory() -> None:
    model = small_net(channels_last=True)
    first = next(model.parameters()).detach().clone()
    theta = Weights(model).theta.detach()
    assert torch.equal(theta[: first.numel()], first.permute(0, 2, 3, 1).flatten())


@pytest.mark.parametrize("channels_last", [True, False])
def test_gradients_add_up_in_the_vector(channels_last: bool) -> None:
    model = small_net(channels_last=channels_last).double().float()
    reference = copy.deepcopy(model)
    weights = Weights(model)
    pointer = weights.gradient.data_ptr()
    for factor in (1.0, 0.5):
        (factor * nn.functional.cross_entropy(model(IMAGES), LABELS)).backward()
    loss = nn.functional.cross_entropy(reference(IMAGES), LABELS)
    expected = torch.autograd.grad(loss, list(reference.parameters()))
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, 1.5 * gradient)
    assert weights.gradient.data_ptr() == pointer == weights.theta.grad.data_ptr()  # type: ignore
    norm = torch.cat([g.flatten() for g in expected]).norm()
    torch.testing.assert_close(weights.gradient.norm(), 1.5 * norm)
    weights.gradient.zero_()
    assert all((p.grad == 0).all() for p in model.parameters() if p.grad is not None)


def test_tied_parameters_are_counted_once() -> None:
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    model[1].weight = model[0].weight
    weights = Weights(model)
    assert len(weights.theta) == 9
    x = torch.randn(2, 3)
    model(x).sum().backward()
    w = model[0].weight.detach().clone().requires_grad_()
    (expected,) = torch.autograd.grad((x @ w.T @ w.T).sum(), w)
    torch.testing.assert_close(weights.gradient.view(3, 3), expected)


def test_frozen_parameters_stay_outside() -> None:
    model = small_net()
    frozen = model.get_parameter("body.0.weight").requires_grad_(False)
    before = frozen.clone()
    weights = Weights(model)
    assert len(weights.theta) == sum(p.numel() for p in model.parameters()) - frozen.numel()
    with torch.no_grad():
        weights.theta.zero_()
    assert torch.equal(frozen, before)
    assert frozen.grad is None


def test_statistics_are_all_means_then_all_variances() -> None:
    model = small_net()
    weights = Weights(model)
    assert torch.equal(weights.statistics, torch.cat([torch.zeros(10), torch.ones(10)]))
    weights.statistics.copy_(torch.arange(20))
    for name, expected in (
        ("body.1.running_mean", range(4)),
        ("body.4.running_mean", range(4, 10)),
        ("body.1.running_var", range(10, 14)),
        ("body.4.running_var", range(14, 20)),
    ):
        assert model.get_buffer(name).tolist() == list(expected), name
    model.get_buffer("body.4.running_mean").fill_(-1)
    assert weights.statistics.tolist() == [*range(4), *[-1] * 6, *range(10, 20)]


def test_norms_without_running_statistics_are_left_out() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3, track_running_stats=False))
    weights = Weights(model)
    assert weights.norms == []
    assert weights.statistics.shape == (0,)
    no_affine = Weights(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3, affine=False)))
    assert (len(no_affine.theta), len(no_affine.statistics)) == (9, 6)


def test_copies_are_independent_and_load_back() -> None:
    model = small_net()
    weights = Weights(model)
    model(IMAGES)
    output = model.eval()(IMAGES)
    theta, statistics = weights.copy()
    assert not theta.requires_grad
    with torch.no_grad():
        weights.theta.zero_()
        weights.statistics.fill_(9)
    assert not torch.equal(model(IMAGES), output)
    weights.load_(theta, statistics)
    assert torch.equal(model(IMAGES), output)


def test_state_dict_round_trip() -> None:
    model, other = small_net(channels_last=True), ResNet9(width=2)
    weights = Weights(model)
    model(IMAGES)
    torch.manual_seed(5)
    fresh = SmallNet()
    into = Weights(fresh)
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh.eval()(IMAGES), model.eval()(IMAGES))
    assert torch.equal(into.statistics, weights.statistics)
    assert torch.equal(into.theta.sort().values, weights.theta.sort().values)
    kept = {name: t.clone() for name, t in other.state_dict().items()}
    Weights(other)
    assert all(torch.equal(t, kept[name]) for name, t in other.state_dict().items())


def test_theta_is_float64_where_a_parameter_is_and_half_precision_is_rounded_from_it() -> None:
    model = small_net()
    model.get_submodule("linear").to(torch.float64)
    model.get_submodule("body.0").to(torch.float16)
    expected = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    weights = Weights(model)
    assert weights.theta.dtype == weights.gradient.dtype == torch.float64
    assert weights.has_fp16
    theta, statistics = weights.copy()
    weights.load_(2 * theta, statistics)
    for name, parameter in model.named_parameters():
        assert parameter.dtype == expected[name].dtype, name
        assert torch.equal(parameter, 2 * expected[name]), name
    kept = {name: tensor.clone() for name, tensor in weights.state_dict().items()}
    weights.load_(theta, statistics)
    weights.load_state_dict(kept)
    assert torch.equal(weights.copy()[0], 2 * theta)


def test_what_a_net_puts_in_place_of_a_parameter_is_theta_s() -> None:
    model = nn.Linear(3, 2)
    weights = Weights(model, may_move=True)
    model.weight.data = torch.full((2, 3), 7.0)
    theta, statistics = weights.copy()
    assert theta[:6].tolist() == 6 * [7.0]
    with torch.no_grad():
        weights.theta.fill_(2.0)
    assert (model.weight == 2).all()  # a part of theta again
    model.weight.data = torch.zeros(2, 3)
    weights.load_(theta, statistics)
    assert (model.weight == 7).all()
    model.weight.data = torch.zeros(2, 3)
    weights.load_state_dict({"weight": torch.ones(2, 3), "bias": torch.ones(2)})
    assert weights.copy()[0].tolist() == 8 * [1.0]


def test_where_theta_is_updated_a_net_may_not_move_its_parameters() -> None:
    model = nn.Linear(3, 2)
    weights = Weights(model)
    model.weight.data = torch.zeros(2, 3)
    line = (
        r"^parameter weight: expected the tensor that updates write to, got another one, .*copy_$"
    )
    for read in (weights.copy, lambda: weights.load_(weights.theta, weights.statistics)):
        with pytest.raises(ValueError, match=line):
            read()


@pytest.mark.parametrize(
    ("buffer", "got"),
    [
        (torch.eye(2).to_sparse(), r"a sparse one; register its to_dense\(\)"),
        (torch.ones(1).expand(2), r"one that expand\(\) has made, .*; register its clone\(\)"),
    ],
)
def test_buffers_without_a_value_for_each_place_are_refused(buffer: Any, got: str) -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    model[0].register_buffer("graph", buffer)
    with pytest.raises(
        ValueError, match=f"^buffer 0.graph: expected one with memory .*, got {got}"
    ):
        Weights(model)


def test_a_model_without_trainable_parameters_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^model: expected trainable parameters, got none; "):
        Weights(nn.ReLU())
    with pytest.raises(ValueError, match="trainable parameters"):
        Weights(small_net().requires_grad_(False))


def test_a_group_of_biases_stands_at_the_end_where_asked_for() -> None:
    model = small_net()
    before = copy.deepcopy(model)
    weights = Weights(model, groups=("others", "biases"))
    biases = [p for name, p in before.named_parameters() if name.endswith("bias")]
    size = len(weights.theta)
    assert weights.places == {"others": slice(0, size - 20), "biases": slice(size - 20, size)}
    assert [p.numel() for p in weights.groups["biases"]] == [4, 6, 10]
    assert torch.equal(weights.theta[-20:], torch.cat(biases))
    assert torch.equal(model(IMAGES), before(IMAGES))
    assert Weights(small_net()).places == {"others": slice(0, size)}
