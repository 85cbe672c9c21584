"""Batch-norm statistics against direct moments of the activations, and against torch's own."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from small_trainer import SmallNet
from torch import Tensor, nn

from swap_fast.distributed import ALONE
from swap_fast.training.batchnorm import ReplicaStatistics, recompute_statistics_
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


def test_batch_norm_1d() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 2))
    weights = Weights(model)
    batches = [torch.randn(n, 3) * n for n in (7, 2, 4)]
    expected = direct_moments(activations(model, batches))
    recompute_statistics_(weights, batches)
    np.testing.assert_allclose(weights.statistics.numpy(), expected, rtol=1e-5, atol=1e-6)


def test_batch_norm_1d_over_sequences() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(2, 4, 3), nn.BatchNorm1d(4))
    weights = Weights(model)
    batches = [torch.randn(n, 2, 9) for n in (3, 1)]  # one sequence has seven values a channel
    expected = direct_moments(activations(model, batches))
    recompute_statistics_(weights, batches)
    np.testing.assert_allclose(weights.statistics.numpy(), expected, rtol=1e-5, atol=1e-6)


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
