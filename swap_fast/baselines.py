"""What SWAP is compared with: the same parts, in another order."""

from swap_fast.config import SGDRecipe
from swap_fast.parts import Parts
from swap_fast.swap import Result, large_batch_phase


def sgd(recipe: SGDRecipe, parts: Parts) -> Result:
    """SGD alone, with small or with large batches: rows 1 and 2 of Tables 1 and 2."""
    phase1 = large_batch_phase(recipe, parts)
    return Result(
        stopped_by=phase1.stopped_by,
        workers=[],
        before_averaging_s=parts.clock.reading(),
        test_accuracy=phase1.accuracies.top1,
        test_top5_accuracy=phase1.accuracies.top5,
    )
