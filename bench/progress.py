"""Progress of a run: a bar on a terminal, plain lines elsewhere, from every rank's own work."""

import sys
import time
from typing import TYPE_CHECKING

from swap_fast.comm import Comm
from swap_fast.config import Phase
from swap_fast.data.augment import IMAGE_SIZE
from swap_fast.recipe import AveragingRecipe, Recipe
from swap_fast.record import EpochRow
from swap_fast.stages import shapes
from swap_fast.state import Position

if TYPE_CHECKING:
    import rich.progress


class Progress:
    """Counts this rank's updates; rank 0 shows the bar, each rank prints its workers' epochs.

    Arguments:
        train_images: that the recipe trains on.
        quiet: print nothing.
    """

    def __init__(self, recipe: Recipe, comm: Comm, train_images: int, *, quiet: bool) -> None:
        self._recipe, self._comm = recipe, comm
        self._quiet, self._started = quiet, time.monotonic()
        # Work is counted in images: of an update that ranks share, this rank's part.
        slots = len(comm.slots(recipe.num_slots))
        self._phase1_epochs = self._images_of(recipe.phase1, train_images, slots)
        self._total = sum(self._phase1_epochs)
        if isinstance(recipe, AveragingRecipe):
            each = recipe.phase2.gpus_per_model
            ranks = max(1, min(each, comm.world_size // recipe.num_workers))
            slots = len(range(comm.rank % ranks, each, ranks))
            self._phase2_epochs = self._images_of(recipe.phase2, train_images, slots)
            self._total += len(comm.workers(recipe.num_workers)) * sum(self._phase2_epochs)
        self._done = 0
        self._restored = 0  # of these, done before this process began
        self._bar: rich.progress.Progress | None = None

    def __enter__(self) -> "Progress":
        """Put the bar on the screen."""
        self._started = time.monotonic()
        if not self._quiet and self._comm.rank == 0 and sys.stdout.isatty():
            self._bar = self._make_bar()
        return self

    def __exit__(self, *_: object) -> None:
        """Take the bar off the screen."""
        if self._bar is not None:
            self._bar.stop()

    def on_step(self, images: int) -> None:
        """Count one update."""
        self._done += images
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done)

    def on_epoch(self, row: EpochRow) -> None:
        """Say how an epoch went."""
        recipe = self._recipe
        epochs = recipe.phase1.max_epochs
        who = "phase 1"
        if row.phase == 2 and isinstance(recipe, AveragingRecipe):
            epochs, who = recipe.phase2.max_epochs, f"phase 2, worker {row.worker}"
        elif self._comm.rank > 0:
            return  # phase 1's model is the same on every rank
        test = "" if row.test_accuracy is None else f"  test {row.test_accuracy:7.2%}"
        noise = "" if row.noise_scale is None else f"  noise scale {row.noise_scale:,.0f}"
        self.say(
            f"{who:<17} epoch {row.epoch:>3}/{epochs}  lr {row.learning_rate:.4f}  "
            f"loss {row.train_loss:.4f}  train {row.train_accuracy:7.2%}{test}{noise}  "
            f"{row.time_s:7.1f} s  {self._remaining()}"
        )

    def on_restore(self, position: Position) -> None:
        """Say where an interrupted run, or one that shares a phase 1, goes on."""
        epochs = self._phase1_epochs if position.phase == 1 else self._phase2_epochs
        done = sum(epochs[: position.epoch])
        self._done, self._restored = self._done + done, self._restored + done
        if position.phase == 1 and self._comm.rank > 0:
            return
        who = "phase 1" if position.phase == 1 else f"phase 2, worker {position.worker}"
        goes_on = "done" if position.stopped_by else "goes on"
        self.say(f"{who:<17} {goes_on} after epoch {position.epoch}, as it was saved")

    def phase1_ended(self, epochs: int) -> None:
        """Take the epochs that phase 1 did not need out of what remains."""
        self._total -= sum(self._phase1_epochs[epochs:])
        if self._bar is not None:
            self._bar.update(self._task, total=self._total)

    def say(self, line: str) -> None:
        """Print a line above the bar."""
        if self._quiet:
            return
        if self._bar is not None:
            self._bar.console.print(line, highlight=False, markup=False)
        else:
            print(line, flush=True)

    @staticmethod
    def _images_of(phase: Phase, train_images: int, slots: int) -> list[int]:
        """The images that a rank with so many slots is given in each epoch of a phase."""
        share = slots / phase.gpus_per_model
        return [
            round(train_images // shape.global_batch_size * shape.global_batch_size * share)
            for shape in shapes(phase, IMAGE_SIZE)
            for _ in shape.epochs
        ]

    def _remaining(self) -> str:
        elapsed = time.monotonic() - self._started
        trained = self._done - self._restored
        if not (trained > 0 and self._done < self._total):
            return ""
        seconds = elapsed * (self._total - self._done) / trained
        return f"about {seconds / 60:.0f} min to go" if seconds > 90 else f"{seconds:.0f} s to go"

    def _make_bar(self) -> "rich.progress.Progress":
        import rich.progress as rp

        bar = rp.Progress(
            rp.TextColumn("training"),
            rp.BarColumn(),
            rp.TextColumn("{task.percentage:>3.0f}%"),
            rp.TimeRemainingColumn(),
            refresh_per_second=2,
            transient=True,
        )
        self._task = bar.add_task("training", total=self._total)
        bar.start()
        return bar
