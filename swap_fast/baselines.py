"""What SWAP is compared with: the same parts, in another order."""

from swap_fast.algorithm import Result, averaging_phase, large_batch_phase, small_batch_phase
from swap_fast.config.recipe import SGDRecipe, SWARecipe
from swap_fast.training.parts import Parts


def sgd(recipe: SGDRecipe, parts: Parts) -> Result:
    """SGD alone, with small or with large batches: rows 1 and 2 of Tables 1 and 2."""
    phase1 = large_batch_phase(recipe, parts)
    return Result(
        workers=[],
        phase1=phase1,
        before_averaging_s=parts.clock.reading(),
        accuracies=phase1.accuracies,
    )


def swa(recipe: SWARecipe, parts: Parts) -> Result:
    """SWA: one model goes on, is sampled at the end of each cycle, and its samples are averaged.

    Rows 1 to 3 of Table 4: phase 1 is a whole large-batch run, one stopped as SWAP's, or a whole
    small-batch run.
    """
    phase1 = large_batch_phase(recipe, parts)
    workers = small_batch_phase(recipe, parts, phase1)
    before_averaging_s = parts.clock.reading()
    with parts.clock.lap("waiting"):
        parts.comm.barrier()
    with parts.clock.lap("averaging"):
        for worker in workers:
            for theta in worker.samples:
                # Ranks that trained the same model may differ in its last digits.
                parts.comm.broadcast_(theta)
    averaging_phase(parts, workers)
    with parts.clock.lap("evaluation"):
        accuracies = parts.evaluate(parts.comm)
    return Result(
        workers=workers,
        phase1=phase1,
        before_averaging_s=before_averaging_s,
        accuracies=accuracies,
    )
