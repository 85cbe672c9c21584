"""A line for each epoch of a user's run."""

from swap_fast.comm import Comm
from swap_fast.own.method import OwnMethod
from swap_fast.parts import Watch
from swap_fast.record import EpochRow


def printing(method: OwnMethod, comm: Comm) -> Watch:
    """Prints each epoch: phase 1's on the first process, a worker's on the one that runs it."""

    def on_epoch(row: EpochRow) -> None:
        if row.phase == 2 or comm.rank == 0:
            print(epoch_line(row, method), flush=True)

    return Watch(on_epoch=on_epoch)


def epoch_line(row: EpochRow, method: OwnMethod) -> str:
    """How an epoch went."""
    phase = method.phase1 if row.phase == 1 else method.phase2
    who = "phase 1" if row.phase == 1 else f"phase 2, worker {row.worker}"
    counted = row.train_accuracy == row.train_accuracy
    train = f"  train {row.train_accuracy:7.2%}" if counted else ""
    test = "" if row.test_accuracy is None else f"  test {row.test_accuracy:.4f}"
    return (
        f"{who:<17} epoch {row.epoch:>3}/{phase.max_epochs}  lr {row.learning_rate:.4g}  "
        f"loss {row.train_loss:.4f}{train}{test}  {row.time_s:7.1f} s"
    )
