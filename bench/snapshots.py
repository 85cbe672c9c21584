"""The weights that a run saves, in a folder of its own."""

from pathlib import Path

from torch import Tensor

from swap_fast.checkpoint import load_theta, save_weights
from swap_fast.comm import Comm
from swap_fast.config import AveragingRecipe, Recipe
from swap_fast.weights import Weights


class Snapshots:
    """Files `phase1`, `worker{w}-epoch{e}` and `final`, each `.safetensors`.

    Arguments:
        folder: made on the first save.
        comm: rank 0 saves what all ranks share, each rank its own workers.
    """

    def __init__(self, folder: Path, comm: Comm) -> None:
        self._folder, self._comm = folder, comm

    def save(self, weights: Weights, phase: int, worker: int, epoch: int) -> None:
        """Save the model at the end of phase 1, or of an epoch of a worker."""
        if phase == 2:
            save_weights(weights, self._worker_file(worker, epoch))
        elif self._comm.rank == 0:
            save_weights(weights, self._folder / "phase1.safetensors")

    def load(self, weights: Weights, worker: int, epoch: int) -> Tensor:
        """Load a worker into the model, and return its theta [P]."""
        return load_theta(weights, self._worker_file(worker, epoch))

    def keep_last(self, recipe: Recipe) -> None:
        """Delete this rank's workers as they were before their last epoch."""
        if isinstance(recipe, AveragingRecipe):
            for worker in self._comm.workers(recipe.num_workers):
                for epoch in range(1, recipe.phase2.max_epochs):
                    # Of ranks that ran a worker together, one has saved it.
                    self._worker_file(worker, epoch).unlink(missing_ok=True)

    def save_final(self, weights: Weights) -> None:
        """Save the run's result."""
        if self._comm.rank == 0:
            save_weights(weights, self._folder / "final.safetensors")

    def _worker_file(self, worker: int, epoch: int) -> Path:
        return self._folder / f"worker{worker}-epoch{epoch}.safetensors"
