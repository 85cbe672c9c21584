"""`swap_fast.recompute_batchnorm` against the moments of all inputs at once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from own_nets import BATCHES, X, Y, net, plain_net
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import swap_fast


def test_the_batch_norm_pass_takes_batches_of_every_kind() -> None:
    torch.manual_seed(0)
    model = net()
    nn.functional.cross_entropy(model(X), Y).backward()
    expected = model[0](X).detach().double()
    before = {n: t.clone() for n, t in model.state_dict().items() if "running" not in n}
    gradients = {n: p.grad.clone() for n, p in model.named_parameters()}

    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = model

        def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
            return self.body(x)

    kinds: list[tuple[nn.Module, Any, Any]] = [
        (model, BATCHES, None),
        (model, X.split(24), None),
        (model, [(x,) for x in X.split(24)], None),
        (model, DataLoader(TensorDataset(X, Y), batch_size=20, shuffle=True), None),
        (Named(), [{"x": x, "labels": y} for x, y in BATCHES], None),
        (model, [{"pixels": x} for x, _ in BATCHES], lambda net, batch: net(batch["pixels"])),
        (torch.compile(model, backend="eager"), BATCHES, None),
    ]
    for given, batches, forward in kinds:
        model[1].reset_running_stats()
        model[1].num_batches_tracked.copy_(before["1.num_batches_tracked"])
        swap_fast.recompute_batchnorm(given, batches, forward=forward)
        torch.testing.assert_close(model[1].running_mean.double(), expected.mean(0))
        torch.testing.assert_close(model[1].running_var.double(), expected.var(0))
    assert model.training
    assert all(torch.equal(model.state_dict()[name], t) for name, t in before.items())
    assert all(torch.equal(p.grad, gradients[n]) for n, p in model.named_parameters())
    swap_fast.recompute_batchnorm(plain_net(), BATCHES)  # nothing to be done
    with pytest.raises(ValueError, match=r"^batches: expected a DataLoader"):
        swap_fast.recompute_batchnorm(model, TensorDataset(X, Y))
    before = [t.clone() for t in model.state_dict().values()]
    with pytest.raises(ValueError, match=r"^batch-norm statistics: expected finite ones, got NaN"):
        swap_fast.recompute_batchnorm(model, [X * torch.nan])
    assert all(map(torch.equal, before, model.state_dict().values()))


def test_a_last_batch_of_one_example_is_left_out() -> None:
    found = []
    for batches in ([*BATCHES, (X[:1], Y[:1])], BATCHES):
        model = net()
        model[0].weight.data.fill_(0.1)
        swap_fast.recompute_batchnorm(model, batches)
        found.append(model[1].running_var)
    assert torch.equal(*found)
