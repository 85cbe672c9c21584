"""Averages of models: line 28 of Algorithm 1."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from swap_fast.distributed import ALONE, Comm


def average(models: Iterable[tuple[int, Tensor]], comm: Comm = ALONE) -> Tensor:
    """The mean of weight vectors [P], those of this rank and of all others.

    One flat fp32 all-reduce; every rank gets the result.

    Arguments:
        models: this rank's workers' numbers, each with its vector; at least one.

    Raises:
        ValueError: on every rank, where a vector of any rank is not finite: one diverged model
            would spoil the average.
    """
    total: Tensor | None = None
    finite: dict[int, bool] = {}
    for worker, theta in models:
        finite[worker] = bool(torch.isfinite(theta).all())
        total = theta.clone() if total is None else total.add_(theta)
    for rank in comm.gather(finite):
        finite |= rank
    diverged = sorted(worker for worker, is_finite in finite.items() if not is_finite)
    if diverged:
        names = ", ".join(map(str, diverged))
        raise ValueError(
            f"worker {names}: expected finite weights to average, got NaN or infinity; "
            "lower the learning rate of phase 2"
        )
    assert total is not None, "a rank without a model to average"
    return comm.all_reduce_(total).div_(len(finite))


def mean_statistics(models: Sequence[Tensor], comm: Comm = ALONE) -> Tensor:
    """The mean of statistics [n], those of this rank's models and of all others.

    In float64, so that what all models have alike is in it to the bit.
    """
    total = torch.stack([*models]).double().sum(0)
    total = comm.all_reduce_(torch.cat([total, total.new_tensor([len(models)])]))
    return (total[:-1] / total[-1]).to(models[0].dtype)


def mean_of(samples: Sequence[Tensor]) -> Tensor:
    """The mean of one worker's samples [P]; of a single one, itself."""
    return samples[0] if len(samples) == 1 else torch.stack(tuple(samples)).mean(0)


def pairwise_distances(models: list[Tensor]) -> list[list[float]]:
    """Euclidean distances [W, W] between weight vectors."""
    return [[float((a.double() - b.double()).norm()) for b in models] for a in models]


def displacements(models: list[Tensor], origin: Tensor) -> tuple[list[float], list[list[float]]]:
    """How far, and in which directions, models went from where they began (Section 4.1).

    Returns:
        Norms [W] of theta_w - theta_T, and the cosines [W, W] among these.
    """
    ways = [model.double() - origin.double() for model in models]
    norms = [float(way.norm()) for way in ways]
    cosines = [
        [float(a @ b) / (m * n) if m * n else 0.0 for b, n in zip(ways, norms, strict=True)]
        for a, m in zip(ways, norms, strict=True)
    ]
    return norms, cosines
