"""Averages and distances of weight vectors against float64."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from swap_fast.training.weights import average, displacements, pairwise_distances


def vectors(count: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(1000, generator=generator) * (i + 1) for i in range(count)]


@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_the_average_is_the_mean(count: int) -> None:
    models = vectors(count)
    kept = [theta.clone() for theta in models]
    mean = average(enumerate(models))
    expected = np.stack([theta.double().numpy() for theta in models]).mean(0)
    np.testing.assert_allclose(mean.numpy(), expected, rtol=1e-5, atol=1e-6)
    assert mean.dtype == torch.float32
    assert all(torch.equal(a, b) for a, b in zip(models, kept, strict=True))


def test_models_are_taken_one_at_a_time() -> None:
    made = []

    def lazily() -> Iterator[tuple[int, Tensor]]:
        for number in range(3):
            made.append(number)
            yield number, torch.full((2,), float(number))

    assert average(lazily()).tolist() == [1.0, 1.0]
    assert made == [0, 1, 2]


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_model_that_is_not_finite_is_refused_by_name(bad: float) -> None:
    models = vectors(4)
    models[2][7] = bad
    with pytest.raises(ValueError, match=r"^worker 2: expected finite") as refused:
        average(enumerate(models))
    assert "\n" not in str(refused.value)


def test_a_missing_worker_is_neither_counted_nor_renumbered() -> None:
    models = dict(enumerate(vectors(4)))
    del models[1]
    expected = np.stack([theta.double().numpy() for theta in models.values()]).mean(0)
    np.testing.assert_allclose(average(models.items()).numpy(), expected, rtol=1e-5, atol=1e-6)
    models[3][0] = torch.nan
    with pytest.raises(ValueError, match=r"^worker 3: expected finite"):
        average(models.items())


def test_displacements_are_norms_and_cosines_from_the_start() -> None:
    models, origin = vectors(3), torch.full((1000,), 0.25)
    norms, cosines = displacements(models, origin)
    ways = np.stack([(theta - origin).double().numpy() for theta in models])
    np.testing.assert_allclose(norms, np.linalg.norm(ways, axis=1), rtol=1e-6)
    unit = ways / np.linalg.norm(ways, axis=1, keepdims=True)
    np.testing.assert_allclose(cosines, unit @ unit.T, atol=1e-6)
    # One that never moved has no direction.
    assert displacements([origin, models[0]], origin)[1][0] == [0.0, 0.0]
    assert displacements([], origin) == ([], [])


def test_distances_are_euclidean() -> None:
    models = vectors(4)
    distances = pairwise_distances(models)
    arrays = [theta.double().numpy() for theta in models]
    expected = [[np.sqrt(((a - b) ** 2).sum()) for b in arrays] for a in arrays]
    np.testing.assert_allclose(distances, expected, rtol=1e-12)
    assert pairwise_distances([]) == []
