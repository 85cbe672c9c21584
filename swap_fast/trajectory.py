"""Figure 1's running average: the average model, were phase 2 to stop after each of its epochs.

Computed after the run from the weights that each worker saved, never by communication in phase 2.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from swap_fast.averaging import average
from swap_fast.config import SWAPRecipe
from swap_fast.parts import Parts
from swap_fast.record import AverageRow
from swap_fast.swap import Result


def running_average(
    recipe: SWAPRecipe, parts: Parts, result: Result, saved: Callable[[int, int], Tensor]
) -> list[AverageRow]:
    """The test accuracy of the workers' average after each epoch of phase 2.

    Leaves the model with the final weights.

    Arguments:
        result: of this run; its accuracy is the last row.
        saved: gives theta [P] of one of this group's workers after an epoch counted from 1; called
            on the group's first rank.
    """
    rows, final, group = [], parts.weights.copy(), parts.group
    for epoch in range(1, recipe.phase2.max_epochs):
        thetas = (
            group.inside.broadcast_(
                saved(worker.number, epoch) if group.is_first else torch.empty_like(worker.theta)
            )
            for worker in result.workers
        )
        theta = average(thetas, recipe.num_workers, group.across)
        parts.weights.load_(theta, final[1])
        parts.statistics_pass(parts.batch_norm_batches(), parts.comm)
        rows.append(AverageRow(epoch=epoch, test_accuracy=parts.evaluate(parts.comm)))
    parts.weights.load_(*final)
    last = AverageRow(epoch=recipe.phase2.max_epochs, test_accuracy=result.test_accuracy)
    return [*rows, last]
