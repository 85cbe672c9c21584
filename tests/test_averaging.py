"""Averages and distances of weight vectors against float64."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from swap_fast.averaging import average, pairwise_distances


def vectors(count: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(1000, generator=generator) * (i + 1) for i in range(count)]


@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_the_average_is_the_mean(count: int) -> None:
    models = vectors(count)
    kept = [theta.clone() for theta in models]
    mean = average(models, count)
    expected = np.stack([theta.double().numpy() for theta in models]).mean(0)
    np.testing.assert_allclose(mean.numpy(), expected, rtol=1e-5, atol=1e-6)
    assert mean.dtype == torch.float32
    assert all(torch.equal(a, b) for a, b in zip(models, kept, strict=True))


def test_models_are_taken_one_at_a_time() -> None:
    made = []

    def lazily() -> Iterator[Tensor]:
        for number in range(3):
            made.append(number)
            yield torch.full((2,), float(number))

    assert average(lazily(), 3).tolist() == [1.0, 1.0]
    assert made == [0, 1, 2]


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_model_that_is_not_finite_is_refused_by_name(bad: float) -> None:
    models = vectors(4)
    models[2][7] = bad
    with pytest.raises(ValueError, match=r"^worker 2: expected finite") as refused:
        average(models, 4)
    assert "\n" not in str(refused.value)


def test_distances_are_euclidean() -> None:
    models = vectors(4)
    distances = pairwise_distances(models)
    arrays = [theta.double().numpy() for theta in models]
    expected = [[np.sqrt(((a - b) ** 2).sum()) for b in arrays] for a in arrays]
    np.testing.assert_allclose(distances, expected, rtol=1e-12)
    assert pairwise_distances([]) == []
