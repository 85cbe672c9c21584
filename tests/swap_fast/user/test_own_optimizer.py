"""Any torch optimizer on the weights: its rates, its resets, and its history in a checkpoint."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from own_nets import plain_net
from torch import Tensor, nn

from swap_fast.training.state import pack, unpack
from swap_fast.training.weights import Weights
from swap_fast.user.optimizer import UserOptimizer


def weights_of(dtype: torch.dtype = torch.float32) -> Weights:
    torch.manual_seed(0)
    return Weights(plain_net().to(dtype))


def updates(optimizer: UserOptimizer, weights: Weights, seed: int, count: int = 3) -> None:
    draw = torch.Generator().manual_seed(seed)
    for number in range(count):
        weights.gradient.copy_(torch.randn(weights.gradient.shape, generator=draw))
        optimizer.set_learning_rate(0.1 / (number + 1))
        optimizer.step()


KINDS: dict[str, Any] = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.1, amsgrad=True),
    "a rate in a tensor": lambda p: torch.optim.AdamW(p, lr=torch.tensor(0.1), foreach=False),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1),
    "rprop": lambda p: torch.optim.Rprop(p, lr=0.1),
    "asgd": lambda p: torch.optim.ASGD(p, lr=0.1),
    "nadam": lambda p: torch.optim.NAdam(p, lr=0.1),
}


@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS.keys())
def test_kept_as_json_and_tensors_it_goes_on_to_the_same_bits(make: Any) -> None:
    weights = weights_of()
    optimizer = UserOptimizer(weights, make)
    updates(optimizer, weights, 1)
    tensors: dict[str, Tensor] = {}
    values = json.loads(json.dumps(pack(optimizer.state_dict(), "optimizer", tensors)))
    kept = weights.copy()
    updates(optimizer, weights, 2)
    expected = weights.copy()[0]
    other = UserOptimizer(weights, make)
    weights.load_(*kept)
    other.load_state_dict(unpack(values, tensors, weights.theta.device))
    updates(other, weights, 2)
    assert torch.equal(weights.copy()[0], expected)


@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS.keys())
def test_a_reset_forgets_everything(make: Any) -> None:
    weights = weights_of()
    optimizer, start = UserOptimizer(weights, make), weights.copy()
    updates(optimizer, weights, 2)
    expected = weights.copy()[0]
    updates(optimizer, weights, 3)
    weights.load_(*start)
    optimizer.reset_()
    updates(optimizer, weights, 2)
    assert torch.equal(weights.copy()[0], expected)


def test_updates_are_torchs_own() -> None:
    weights = weights_of()
    optimizer = UserOptimizer(weights, KINDS["nadam"])
    theirs = nn.Parameter(weights.theta.detach().clone())
    torchs = torch.optim.NAdam([theirs], lr=0.1)
    draw = torch.Generator().manual_seed(5)
    for number in range(3):
        theirs.grad = torch.randn(theirs.shape, generator=draw)
        torchs.param_groups[0]["lr"] = 0.1 / (number + 1)
        torchs.step()
    updates(optimizer, weights, 5)
    torch.testing.assert_close(weights.theta.detach(), theirs.detach())


def test_an_overflow_in_fp16_leaves_the_update_out_and_halves_the_scale() -> None:
    weights = weights_of()
    optimizer = UserOptimizer(weights, KINDS["adamw"], scale_gradients=True, largest_norm=1.0)
    before, scale = weights.copy()[0], optimizer.scaler.get_scale()
    weights.gradient.fill_(torch.inf)
    optimizer.set_learning_rate(0.1)
    optimizer.step()
    assert torch.equal(weights.copy()[0], before)
    assert optimizer.scaler.get_scale() == scale / 2
    optimizer.reset_()
    assert optimizer.scaler.get_scale() == scale


def test_a_scaled_gradient_is_clipped_as_it_is() -> None:
    plain, scaled = weights_of(), weights_of()
    draw = torch.randn(plain.gradient.shape, generator=torch.Generator().manual_seed(1))
    make = KINDS["adagrad"]
    for weights, factor, scales in ((plain, 1.0, False), (scaled, 65536.0, True)):
        optimizer = UserOptimizer(weights, make, scale_gradients=scales, largest_norm=0.5)
        weights.gradient.copy_(draw * factor)
        optimizer.set_learning_rate(0.1)
        optimizer.step()
        assert weights.gradient.norm() == pytest.approx(0.5, rel=1e-4)
    torch.testing.assert_close(scaled.theta.detach(), plain.theta.detach())


def test_of_half_precision_it_updates_the_float32_copy() -> None:
    weights = weights_of(torch.bfloat16)
    optimizer = UserOptimizer(weights, lambda p: torch.optim.SGD(p, lr=1.0))
    before = weights.copy()[0]
    weights.gradient.fill_(1.0)
    optimizer.set_learning_rate(2.0**-12)
    optimizer.step()
    assert torch.equal(weights.copy()[0], before - 2.0**-12)
    parameter = weights.model[0].weight
    assert torch.equal(parameter, (before[:48] - 2.0**-12).reshape(8, 6).to(torch.bfloat16))


def test_a_state_that_no_checkpoint_can_keep_is_refused() -> None:
    class Odd(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            for parameter in self.param_groups[0]["params"]:
                self.state[parameter]["odd"] = object()
            return super().step(closure)

    weights = weights_of()
    optimizer = UserOptimizer(weights, lambda p: Odd(p, lr=0.1))
    updates(optimizer, weights, 1)
    with pytest.raises(ValueError, match=r"^optimizer: expected a state of .* got a object in it"):
        pack(optimizer.state_dict(), "optimizer", {})


def test_it_is_described_by_name_and_options() -> None:
    weights = weights_of()
    about = UserOptimizer(weights, lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.5)).describe()
    assert about["name"] == "SGD"
    (group,) = about["groups"]
    assert (group["momentum"], group["lr_ratio"], group["parameters"]) == (0.5, 1.0, 92)
    assert "lr" not in group
    assert json.loads(json.dumps(about))["groups"]


@pytest.mark.parametrize(("default", "ratio"), [(0.0, 1.0), (0.5, 1.0), (torch.tensor(0.0), 1.0)])
def test_an_optimizers_own_rate_has_no_effect(default: Any, ratio: float) -> None:
    weights = weights_of()
    optimizer = UserOptimizer(weights, lambda p: torch.optim.SGD(p, lr=default))
    assert optimizer.describe()["groups"][0]["lr_ratio"] == ratio
    before = weights.copy()[0]
    updates(optimizer, weights, 1)
    assert not torch.equal(weights.copy()[0], before)


def views(tensor: Tensor, of: Tensor) -> bool:
    return tensor.untyped_storage().data_ptr() == of.untyped_storage().data_ptr()


def test_float32_parameters_are_views_and_half_ones_are_not() -> None:
    for dtype, are in ((torch.float32, True), (torch.bfloat16, False), (torch.float64, True)):
        weights = weights_of(dtype)
        assert all(views(p, weights.theta) == are for p in weights.model.parameters())
    weights.release_()
    assert not any(views(p, weights.theta) for p in weights.model.parameters())
