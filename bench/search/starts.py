"""Phase 1 as it would have ended at a lower tau: a checkpoint made from the epochs of a longer one.

Orders and augmentation of an epoch depend on nothing that comes after it, and tau on no more than
the epoch's own train accuracy, so that the shorter phase 1 is the beginning of the longer one.
"""

from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file

from swap_fast.checkpoint.files import MODEL, read_checkpoint, write_checkpoint
from swap_fast.record import EpochRow


def write_start(run: Path, tau: float | None, start: Path) -> None:
    """Write `start/phase1`: the phase 1 of `run`, had it ended at its first epoch above tau.

    A run that takes it over trains as one of its own with that tau, and counts the same epochs and
    the same time. It holds no velocity; in fp16 the scale of the loss is that of the longer phase.

    Arguments:
        run: the folder of a run that kept every epoch of its phase 1.
        tau: at most the longer phase's own; None: to its last epoch.

    Raises:
        ValueError: a damaged checkpoint.
        OSError: an epoch's weights are not there, or the folder cannot be written to.
    """
    whole = read_checkpoint(run / "phase1")
    rows = [EpochRow(**row) for row in whole.about["rows"]]
    above = [row.epoch for row in rows if tau is not None and row.train_accuracy > tau]
    epochs, stopped_by = (above[0], "stopping_accuracy") if above else (len(rows), "max_epochs")
    last = rows[epochs - 1]
    about = whole.about | {
        "position": whole.about["position"] | {"epoch": epochs, "stopped_by": stopped_by},
        "accuracies": [last.test_accuracy, None],
        "origin": None,
        "rows": whole.about["rows"][:epochs],
        "laps_by_rank": [
            _laps_until(laps, epochs / len(rows), not_trained_s=rows[-1].time_s - last.time_s)
            for laps in whole.about["laps_by_rank"]
        ],
    }
    state = {"velocity": torch.zeros_like(whole.state["velocity"])}
    model = load_file(run / f"phase1-epoch{epochs}{MODEL}")
    write_checkpoint(start / "phase1", replace(whole, model=model, state=state, about=about))


def _laps_until(laps: dict[str, float], share: float, *, not_trained_s: float) -> dict[str, float]:
    """Laps up to an epoch: training's is known by the rows; of the others, an equal part each."""
    return {
        lap: seconds - not_trained_s if lap == "phase1" else seconds * share
        for lap, seconds in laps.items()
    }
