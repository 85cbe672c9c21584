"""Batch-norm statistics against direct moments of the activations, and against torch's own."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from small_trainer import SmallNet
from torch import Tensor, nn

from swap_fast.distributed import ALONE
from swap_fast.models.resnet9 import GhostBatchNorm
from swap_fast.training.batchnorm import (
    BatchNormRecompute,
    ReplicaStatistics,
    recompute_statistics_,
)
from swap_fast.training.weights import Weights

Array = NDArray[np.float64]


def small_weights() -> Weights:
    torch.manual_seed(0)
    weights = Weights(SmallNet())
    weights.statistics.uniform_(0.5, 2)  # far from what any data has
    return weights


def image_batches(*sizes: int) -> list[Tensor]:
    """Batches of very different mean and spread, so that the moments between them matter."""
    generator = torch.Generator().manual_seed(1)
    return [
        torch.randn(n, 3, 32, 32, generator=generator) * (1 + i) + 2 * i
        for i, n in enumerate(sizes)
    ]


def activations(model: nn.Module, batches: list[Tensor]) -> list[list[Array]]:
    """For each batch norm, its input in every batch as [values, channels], in train mode."""
    model = copy.deepcopy(model).train()
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    seen: list[list[Array]] = [[] for _ in norms]

    def keep(layer: int, x: Tensor) -> None:
        seen[layer].append(x.detach().double().transpose(0, 1).flatten(1).T.numpy().copy())

    for layer, norm in enumerate(norms):
        norm.register_forward_pre_hook(lambda _, inputs, layer=layer: keep(layer, inputs[0]))
    for batch in batches:
        model(batch)
    return seen


def direct_moments(seen: list[list[Array]]) -> Array:
    """[means, unbiased variances] of every layer over all that it saw."""
    whole = [np.concatenate(layer) for layer in seen]
    return np.concatenate([x.mean(0) for x in whole] + [x.var(0, ddof=1) for x in whole])


def test_merge_gives_the_moments_of_equal_shards() -> None:
    random = np.random.default_rng(0)
    shards = random.normal(size=(4, 50, 10)) * np.arange(1, 5)[:, None, None] + 3
    weights = small_weights()
    replicas = ReplicaStatistics(weights, 4, ALONE)
    for replica, shard in enumerate(shards):
        weights.statistics.copy_(torch.from_numpy(np.concatenate([shard.mean(0), shard.var(0)])))
        replicas.swap_out(replica)
    replicas.merge_()
    whole = shards.reshape(200, 10)
    expected = np.concatenate([whole.mean(0), whole.var(0)])
    np.testing.assert_allclose(weights.statistics.numpy(), expected, rtol=2e-6)


def test_merging_leaves_the_replicas_as_they_were() -> None:
    weights = small_weights()
    replicas = ReplicaStatistics(weights, 2, ALONE)
    for replica in range(2):
        weights.statistics.fill_(replica + 1)
        replicas.swap_out(replica)
    replicas.merge_()
    first = weights.statistics.clone()
    replicas.merge_()
    assert torch.equal(weights.statistics, first)
    for replica in range(2):
        replicas.swap_in(replica)
        assert (weights.statistics == replica + 1).all()


def test_one_replica_merges_to_its_own_bits() -> None:
    weights = small_weights()
    replicas = ReplicaStatistics(weights, 1, ALONE)
    kept = weights.statistics.clone()
    weights.statistics.zero_()
    replicas.merge_()
    assert torch.equal(weights.statistics, kept)


def test_each_replica_runs_as_torch_s_own_batch_norm() -> None:
    weights = small_weights()
    replicas = ReplicaStatistics(weights, 3, ALONE)
    alone = [copy.deepcopy(weights.model) for _ in range(3)]
    for batch in image_batches(4, 4, 4, 4):
        for replica, reference in enumerate(alone):
            replicas.swap_in(replica)
            weights.model(batch + replica)
            replicas.swap_out(replica)
            reference(batch + replica)
    for replica, reference in enumerate(alone):
        replicas.swap_in(replica)
        for name, buffer in reference.named_buffers():
            if "running" in name:
                assert torch.equal(weights.model.get_buffer(name), buffer), name


def test_reset_starts_every_replica_from_the_model() -> None:
    weights = small_weights()
    replicas = ReplicaStatistics(weights, 2, ALONE)
    weights.statistics.fill_(7)
    replicas.reset_()
    weights.statistics.fill_(0)
    for replica in range(2):
        replicas.swap_in(replica)
        assert (weights.statistics == 7).all()
        weights.statistics.fill_(0)


@pytest.mark.parametrize("sizes", [(8, 8, 8), (9, 4, 2), (5,), (2, 30)])
def test_recomputed_statistics_are_the_moments_of_all_activations(sizes: tuple[int, ...]) -> None:
    weights, batches = small_weights(), image_batches(*sizes)
    expected = direct_moments(activations(weights.model, batches))
    recompute_statistics_(weights, iter(batches))
    np.testing.assert_allclose(weights.statistics.numpy(), expected, rtol=1e-5, atol=1e-6)


def test_recomputing_twice_gives_the_same_bits() -> None:
    weights, batches = small_weights(), image_batches(6, 3)
    recompute_statistics_(weights, batches)
    first = weights.statistics.clone()
    recompute_statistics_(weights, batches)
    assert torch.equal(weights.statistics, first)


def test_beside_torch_s_update_bn() -> None:
    # On equal batches the means agree. update_bn's variance is the mean of the batches' unbiased
    # variances; with m values a channel in a batch and n in all, ours is
    #     n / (n - 1) * ((m - 1) / m * update_bn's + the variance of the batches' means).
    weights, batches = small_weights(), image_batches(6, 6, 6)
    reference = copy.deepcopy(weights.model)
    torch.optim.swa_utils.update_bn(batches, reference)
    recompute_statistics_(weights, batches)
    seen = activations(weights.model, batches)
    for layer, index in enumerate((1, 4)):
        ours, torchs = weights.model.body[index], reference.body[index]
        np.testing.assert_allclose(ours.running_mean, torchs.running_mean, rtol=1e-5, atol=1e-6)
        m = len(seen[layer][0])
        n = 3 * m
        between = np.stack([x.mean(0) for x in seen[layer]]).var(0)
        within = (m - 1) / m * torchs.running_var.double().numpy()
        np.testing.assert_allclose(
            ours.running_var, n / (n - 1) * (within + between), rtol=1e-5, atol=1e-6
        )
        assert (between > 0.01 * within).any()  # the difference is there to be seen


class Shapes(nn.Module):
    """Batch norm of rows [B, C], of sequences [B, C, L] and of all positions [B * L, C]."""

    def __init__(self) -> None:
        super().__init__()
        self.line, self.rows, self.flat = nn.BatchNorm1d(3), nn.BatchNorm1d(3), nn.BatchNorm1d(3)
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        positions = self.rows((self.line(x) * 3 + x).transpose(1, 2).reshape(-1, 3))
        return self.flat(positions.view(len(x), -1, 3).amax(1)) * self.scale


class Twice(Shapes):
    """One of them is used twice, another stays in eval mode, a third is not used."""

    def train(self, mode: bool = True) -> Twice:
        super().train(mode)
        self.rows.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.rows((self.line(2 * self.line(x) + x)).amax(2)) * self.scale


class Sometimes(Shapes):
    """The batch decides which of them are used."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.line(x).amax(2)
        return self.flat(x) * self.scale if len(x) == 2 else self.rows(self.flat(x)) * self.scale


class Own(nn.BatchNorm1d):
    """With a forward pass of its own, which leaves the moments of half a batch."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([super(Own, self).forward(half) for half in x.chunk(1 + (len(x) > 2))])


def sequences(*sizes: int) -> list[Tensor]:
    draw = torch.Generator().manual_seed(0)
    return [i + (2 + i) * torch.randn(n, 3, 5, generator=draw) for i, n in enumerate(sizes)]


NETS = {"plain": Shapes, "twice and frozen": Twice, "not always": Sometimes}
NETS["own forward"] = lambda: nn.Sequential(nn.Flatten(), nn.Linear(15, 4), Own(4))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("make", NETS.values(), ids=NETS.keys())
def test_each_layer_has_the_moments_of_all_that_went_into_it(
    make: Callable[[], nn.Module], dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    model, batches = make().to(dtype), [batch.to(dtype) for batch in sequences(6, 2, 10, 4)]
    weights = Weights(model)
    weights.set_statistics_(torch.rand_like(weights.statistics).bfloat16().float() + 1)
    seen: dict[str, list[Tensor]] = {}
    reference = copy.deepcopy(model).train()
    for name, norm in reference.named_modules():
        if isinstance(norm, nn.BatchNorm1d) and norm.training:
            norm.register_forward_pre_hook(
                lambda _, given, name=name: seen.setdefault(name, []).append(given[0])
            )
    before = {name: buffer.double() for name, buffer in model.named_buffers()}
    for batch in batches:
        reference(batch)
    results = []
    for forward in (None, model):
        BatchNormRecompute(weights, forward=forward)(batches)
        results.append(weights.copy()[1])
        for name, norm in model.named_modules():
            if not isinstance(norm, nn.BatchNorm1d):
                continue
            if name in seen:
                rows = [x.detach().double().transpose(0, 1).flatten(1) for x in seen[name]]
                values = torch.cat(rows, dim=1).numpy()
                expected = values.mean(1), values.var(1, ddof=1)
            else:
                expected = before[f"{name}.running_mean"], before[f"{name}.running_var"]
            rounding = 1e-5 if dtype == torch.float32 else 4e-3
            for got, wanted in zip((norm.running_mean, norm.running_var), expected, strict=True):
                np.testing.assert_allclose(got.double(), wanted, rtol=rounding, atol=rounding)
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-6)


def test_a_ghost_batch_norm_has_the_moments_of_each_group() -> None:
    torch.manual_seed(0)
    weights, batches = Weights(GhostBatchNorm(3, 2)), image_batches(4, 2, 6)
    recompute_statistics_(weights, batches)
    groups = [torch.cat(batches)[group::2].double().numpy() for group in range(2)]
    expected = [x.mean((0, 2, 3)) for x in groups] + [x.var((0, 2, 3), ddof=1) for x in groups]
    np.testing.assert_allclose(weights.statistics.numpy(), np.concatenate(expected), rtol=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_mode_momenta_weights_and_hooks_are_put_back(training: bool) -> None:
    weights = small_weights()
    weights.model.train(training)
    weights.norms[0].momentum, weights.norms[1].momentum = 0.3, None
    theta = weights.theta.detach().clone()
    recompute_statistics_(weights, image_batches(4))
    assert weights.model.training is training
    assert all(m.training is training for m in weights.model.modules())
    assert [norm.momentum for norm in weights.norms] == [0.3, None]
    assert torch.equal(weights.theta.detach(), theta)
    assert not any(norm._forward_pre_hooks for norm in weights.norms)
    assert (weights.gradient == 0).all()


@pytest.mark.parametrize("training", [True, False])
def test_an_exception_half_way_leaves_the_model_as_it_was(training: bool) -> None:
    weights = small_weights()
    weights.model.train(training)
    kept = weights.statistics.clone()

    def broken() -> Iterator[Tensor]:
        yield image_batches(4)[0]
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        recompute_statistics_(weights, broken())
    assert torch.equal(weights.statistics, kept)
    assert weights.model.training is training
    assert [norm.momentum for norm in weights.norms] == [0.1, 0.1]
    assert not any(norm._forward_pre_hooks for norm in weights.norms)


def test_no_data_is_an_error_and_changes_nothing() -> None:
    weights = small_weights()
    kept = weights.statistics.clone()
    with pytest.raises(ValueError, match=r"^batch-norm statistics: expected .*, got 0; [^\n]+$"):
        recompute_statistics_(weights, [])
    assert torch.equal(weights.statistics, kept)
    assert [norm.momentum for norm in weights.norms] == [0.1, 0.1]


def test_a_batch_of_one_value_a_channel_is_an_error_and_changes_nothing() -> None:
    weights = Weights(nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5)))
    kept = weights.statistics.clone()
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        recompute_statistics_(weights, [torch.randn(4, 3), torch.randn(1, 3)])
    assert torch.equal(weights.statistics, kept)


def test_statistics_that_are_not_finite_do_not_outlive_the_pass() -> None:
    weights, batches = small_weights(), image_batches(4, 4)
    expected = direct_moments(activations(weights.model, batches))
    weights.statistics[0], weights.statistics[-1] = torch.nan, torch.inf
    recompute_statistics_(weights, batches)
    np.testing.assert_allclose(weights.statistics.numpy(), expected, rtol=1e-5, atol=1e-6)


def test_a_net_without_batch_norm_is_left_alone() -> None:
    weights = Weights(nn.Linear(3, 2))

    def never() -> Iterator[Tensor]:
        raise AssertionError("no pass is needed")
        yield

    recompute_statistics_(weights, never())
