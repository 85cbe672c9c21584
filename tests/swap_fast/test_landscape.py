"""Planes through models, errors on them, the angle of descent: beside numpy and autograd."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from small_trainer import MEAN, STD, SWAP, SmallNet, make_dataset, oracle_batch, small_trainer
from torch import nn

from swap_fast.algorithm import swap
from swap_fast.config.execution import Execution
from swap_fast.data.cifar.augment import plan_epoch
from swap_fast.landscape import (
    GRADIENT_PLAN,
    Counts,
    FixedBatch,
    Landscape,
    cosine,
    cut,
    grid_around,
    plane_through,
)
from swap_fast.training.weights import Weights


def _vectors(count: int, size: int = 500, seed: int = 0) -> list[torch.Tensor]:
    random = np.random.default_rng(seed)
    return [torch.from_numpy(random.normal(size=size)).float() for _ in range(count)]


def test_basis_is_orthonormal_and_spans_the_three_models() -> None:
    first, second, third = _vectors(3)
    plane = plane_through(first, second, third)
    basis = np.stack([plane.u.double().numpy(), plane.v.double().numpy()])
    np.testing.assert_allclose(basis @ basis.T, np.eye(2), atol=1e-6)
    for theta in (first, second, third):
        place = plane.coordinates(theta)
        torch.testing.assert_close(plane.at(place.alpha, place.beta), theta, atol=1e-5, rtol=0)
        assert place.off_plane < 1e-5
    assert plane.coordinates(first).alpha == plane.coordinates(first).beta == 0
    assert plane.coordinates(second).beta == pytest.approx(0, abs=1e-5)
    assert plane.coordinates(second).alpha == pytest.approx(
        float((second - first).norm()), rel=1e-6
    )


def test_projection_is_the_least_squares_solution() -> None:
    first, second, third, other = _vectors(4)
    place = plane_through(first, second, third).coordinates(other)
    sides = torch.stack([second - first, third - first], dim=1).double().numpy()
    target = (other - first).double().numpy()
    solution, *_ = np.linalg.lstsq(sides, target, rcond=None)
    rest = target - sides @ solution
    assert place.off_plane == pytest.approx(np.linalg.norm(rest), rel=1e-6)
    along = plane_through(first, second, third).at(place.alpha, place.beta).double().numpy()
    np.testing.assert_allclose(along - first.double().numpy(), sides @ solution, atol=1e-5)


def test_plane_by_hand() -> None:
    # A 3-4-5 triangle in a plane of its own.
    origin = torch.tensor([1.0, 1.0, 1.0])
    plane = plane_through(
        origin, origin + torch.tensor([0, 3.0, 0]), origin + torch.tensor([4.0, 3.0, 0])
    )
    assert plane.u.tolist() == [0, 1, 0]
    assert plane.v.tolist() == [1, 0, 0]
    place = plane.coordinates(origin + torch.tensor([2.0, 5.0, -7.0]))
    assert (place.alpha, place.beta, place.off_plane) == (5, 2, 7)


def test_a_quadratic_has_its_own_values_on_the_plane() -> None:
    # f(theta) = |theta - c|^2 is f's minimum on the plane plus the squared distance from c's place.
    first, second, third, centre = _vectors(4, seed=1)
    plane = plane_through(first, second, third)
    lowest = plane.coordinates(centre)
    for alpha, beta in ((0.0, 0.0), (3.0, -2.0), (lowest.alpha, lowest.beta)):
        value = float((plane.at(alpha, beta) - centre).double().square().sum())
        flat = (alpha - lowest.alpha) ** 2 + (beta - lowest.beta) ** 2
        assert value == pytest.approx(lowest.off_plane**2 + flat, rel=1e-5)


def test_models_on_one_line_are_refused() -> None:
    first, step = _vectors(2)
    for third in (first + 2 * step, first, first + step):
        with pytest.raises(ValueError, match="not on one line"):
            plane_through(first, first + step, third)


def test_grid_has_sixty_percent_of_the_largest_distance_around_it() -> None:
    # The largest distance is 5, from (0, 0) to (4, 3), so that the margin is 3.
    alphas, betas = grid_around([(0, 0), (4, 3), (4, 0)], 8)
    np.testing.assert_allclose(alphas, np.linspace(-3, 7, 8))
    np.testing.assert_allclose(betas, np.linspace(-3, 6, 8))


def test_output_of_swap_has_the_error_of_its_run() -> None:
    # Over all images the pass and the test are those of the run itself.
    dataset = make_dataset()
    parts = small_trainer(dataset=dataset)
    result = swap(SWAP, parts)
    theta, _ = parts.weights.copy()
    # theta is in the order of the memory format.
    weights = Weights(Execution().place(SmallNet(), torch.device("cpu")))
    counts = Counts(batch_norm_images=44, train_images=44, test_images=30)
    landscape = Landscape(SWAP, dataset, weights, Execution(), counts, seed=3)
    errors = landscape.errors(theta)
    assert errors.test == 1 - result.accuracies.top1
    torch.testing.assert_close(weights.statistics, parts.weights.statistics)


def test_errors_are_those_of_a_plain_model_in_torch() -> None:
    dataset = make_dataset()
    recipe = replace(SWAP, batch_norm_batch_size=40)  # one batch, whose moments are the data's
    torch.manual_seed(5)
    weights = Weights(SmallNet())
    counts = Counts(batch_norm_images=40, train_images=33, test_images=21)
    theta = weights.theta.detach() + 0.02
    errors = Landscape(recipe, dataset, weights, Execution(), counts, seed=3).errors(theta)

    model = SmallNet()
    nn.utils.vector_to_parameters(theta, model.parameters())
    plan = plan_epoch(40, SWAP.augmentation, seed=3, phase=3, worker=0, epoch=0)
    images, _ = oracle_batch(dataset.train, SWAP.augmentation, plan, range(40))
    torch.optim.swa_utils.update_bn([images], model)
    model.eval()
    for split, count, got in (
        (dataset.train, 33, errors.train),
        (dataset.test, 21, errors.test),
    ):
        values = (split.images[:count].astype(np.float64) - MEAN) / STD
        logits = model(torch.from_numpy(values).float().permute(0, 3, 1, 2))
        wrong = logits.argmax(1).numpy() != split.labels[:count]
        assert got == pytest.approx(wrong.mean())


def test_counts_are_no_more_than_there_are_and_not_none() -> None:
    counts = Counts(batch_norm_images=9, train_images=9, test_images=9)
    assert counts.within(5, 7) == Counts(batch_norm_images=5, train_images=5, test_images=7)
    assert counts.total == 27
    with pytest.raises(ValueError, match="batch_norm_images: expected 2 or more, got 1"):
        Counts(batch_norm_images=1, train_images=9, test_images=9)
    short = cut(make_dataset(), 8, 6)
    assert (len(short.train), len(short.test), short.sha256) == (8, 6, "0" * 64)


@pytest.mark.parametrize("micro_batch_size", [20, 16])
def test_gradient_is_autograds_over_the_same_slices(micro_batch_size: int) -> None:
    dataset = make_dataset()
    torch.manual_seed(6)
    weights = Weights(SmallNet())
    weights.model.eval()
    before = [each.clone() for each in weights.copy()]
    theta = before[0] + 0.01
    batch = FixedBatch(
        SWAP, dataset, weights, seed=3, num_images=40, micro_batch_size=micro_batch_size
    )
    got = batch.gradient(theta)

    model = SmallNet().train()
    nn.utils.vector_to_parameters(theta, model.parameters())
    plan = plan_epoch(40, SWAP.augmentation, seed=3, phase=GRADIENT_PLAN, worker=0, epoch=0)
    loss = torch.zeros(())
    for start in range(0, 40, micro_batch_size):
        positions = range(start, min(start + micro_batch_size, 40))
        images, labels = oracle_batch(dataset.train, SWAP.augmentation, plan, positions)
        loss = loss + nn.functional.cross_entropy(model(images), labels) * len(positions) / 40
    expected = torch.autograd.grad(loss, list(model.parameters()))
    torch.testing.assert_close(
        got, torch.cat([g.flatten() for g in expected]), rtol=1e-4, atol=1e-6
    )
    # Neither the weights nor the statistics nor the mode are another's.
    torch.testing.assert_close(weights.copy(), tuple(before), rtol=0, atol=0)
    assert not weights.model.training
    torch.testing.assert_close(batch.gradient(theta), got, rtol=0, atol=0)


def test_cosine_by_hand() -> None:
    assert cosine(torch.tensor([3.0, 4.0]), torch.tensor([1.0, 0.0])) == pytest.approx(0.6)
    assert cosine(torch.tensor([2.0, 0.0]), torch.tensor([-5.0, 0.0])) == pytest.approx(-1)
