"""TensorBoard, Weights & Biases and MLflow as listeners of a run's events.

Events go through a queue to a thread for each tracker: it may wait for a network, training does
not.
"""

import queue
import threading
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Protocol

from swap_fast.callbacks.events import ENDINGS, Event, seconds_of
from swap_fast.config.checks import one_line
from swap_fast.record import flatten

TrackerName = Literal["tensorboard", "wandb", "mlflow"]

PROJECT = "swap_fast"
"""W&B's project and MLflow's experiment, where the environment (WANDB_PROJECT,
MLFLOW_EXPERIMENT_NAME) names no other."""
FIRST_WAIT_S = LAST_WAIT_S = 30.0
"""The longest that a run waits for a tracker: at its start for imports and the first connection,
which would cost training time later; at its end for events that are still in the queue."""
EPOCH_VALUES = (
    *("train_loss", "train_accuracy", "test_accuracy"),
    *("learning_rate", "noise_scale", "images_per_s", "time_s"),
)
FINAL_VALUES = (
    *("test_accuracy", "accuracy_before_averaging"),
    *("phase1_epochs", "training_time_s"),
)
CONFIGURATION = ("recipe", "seed", "world_size", "machine")
"""What trackers get of each epoch, of a run's last event, and of its first one."""


class Tracker(Protocol):
    """Keeps curves. Called by one thread."""

    def begin(self, run: str, configuration: dict[str, Any]) -> None:
        """Start a run, or resume it."""

    def log(self, group: str, values: Mapping[str, float], step: int, time_s: float) -> None:
        """Keep values, named GROUP/NAME, of "phase1", "phase2/worker3" or "final" at an epoch."""

    def end(self, *, well: bool) -> None:
        """End the run."""


class TensorBoard:
    """Event files for TensorBoard.

    Arguments:
        folder: each run has a folder of its name in it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def begin(self, run: str, configuration: dict[str, Any]) -> None:
        import json

        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(self._folder / run))
        text = json.dumps(configuration, indent=1)
        self._writer.add_text("configuration", "    " + text.replace("\n", "\n    "))

    def log(self, group: str, values: Mapping[str, float], step: int, time_s: float) -> None:
        for name, value in values.items():
            self._writer.add_scalar(f"{group}/{name}", value, step, walltime=time_s)
        self._writer.flush()

    def end(self, *, well: bool) -> None:
        self._writer.close()


class WandB:
    """A run of Weights & Biases; `WANDB_MODE=offline` keeps it on disk, for `wandb sync`.

    Arguments:
        folder: holds `wandb/`.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def begin(self, run: str, configuration: dict[str, Any]) -> None:
        import os

        import wandb

        self._folder.mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            id=run,
            name=run,
            resume="allow",
            dir=str(self._folder),
            config=configuration,
            # Else it replaces standard output by its own, and prints there.
            settings=wandb.Settings(silent=True, console="off"),
        )
        self._groups: set[str] = set()

    def log(self, group: str, values: Mapping[str, float], step: int, time_s: float) -> None:
        """Log values named GROUP/NAME over GROUP/epoch: several models train at once."""
        if group not in self._groups:
            self._groups.add(group)
            self._run.define_metric(f"{group}/epoch", hidden=True)
            self._run.define_metric(f"{group}/*", step_metric=f"{group}/epoch")
        self._run.log(
            {f"{group}/{name}": value for name, value in values.items()} | {f"{group}/epoch": step}
        )

    def end(self, *, well: bool) -> None:
        self._run.finish(exit_code=0 if well else 1)


class MLflow:
    """A run of MLflow, at MLFLOW_TRACKING_URI or MLflow's default place."""

    def begin(self, run: str, configuration: dict[str, Any]) -> None:
        import os

        from mlflow import MlflowClient

        self._client = MlflowClient()
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        experiment = self._client.get_experiment_by_name(name)
        number = (
            self._client.create_experiment(name) if experiment is None else experiment.experiment_id
        )
        found = self._client.search_runs([number], f"attributes.run_name = '{run}'")
        made = found[0] if found else self._client.create_run(number, run_name=run)
        self._id = made.info.run_id
        if not found:
            for key, value in flatten(configuration).items():
                self._client.log_param(self._id, key, str(value)[:500])
        self._client.update_run(self._id, status="RUNNING")

    def log(self, group: str, values: Mapping[str, float], step: int, time_s: float) -> None:
        for name, value in values.items():
            self._client.log_metric(self._id, f"{group}/{name}", value, int(time_s * 1000), step)

    def end(self, *, well: bool) -> None:
        self._client.set_terminated(self._id, "FINISHED" if well else "FAILED")


class Tracking:
    """Gives a tracker the epochs and the result of a run; a listener.

    Arguments:
        name: of the tracker.
        warn: prints a warning if the tracker fails, once.
    """

    def __init__(self, tracker: Tracker, name: str, warn: Callable[[str], None]) -> None:
        self.name, self._tracker, self._warn = name, tracker, warn
        self._events: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def __call__(self, event: Event) -> None:
        """Put it into the queue if trackers need it."""
        if event["event"] in ("began", "epoch", *ENDINGS):
            self._events.put(event)
        if event["event"] == "began":
            self._ready.wait(FIRST_WAIT_S)

    def close(self) -> None:
        """Wait for the events in the queue, up to a limit."""
        self._events.put(None)
        self._thread.join(LAST_WAIT_S)
        if self._thread.is_alive():
            self._warn(f"{self.name} did not take everything within {LAST_WAIT_S:.0f} s")

    def _work(self) -> None:
        try:
            while (event := self._events.get()) is not None:
                self._pass_on(event)
        except Exception as error:
            words = f"{self.name} failed, and gets no more events of the run: {one_line(error)}"
            self._warn(words)
        finally:
            self._ready.set()

    def _pass_on(self, event: Event) -> None:
        kind = event["event"]
        if kind == "began":
            configuration = {name: event[name] for name in CONFIGURATION}
            self._tracker.begin(event["run"], configuration)
            self._ready.set()
        elif kind == "epoch":
            group = "phase1" if event["phase"] == 1 else f"phase2/worker{event['worker']}"
            values = {name: event[name] for name in EPOCH_VALUES if event[name] is not None}
            self._tracker.log(group, values, event["epoch"], seconds_of(event))
        else:
            if kind == "done":
                values = {name: event[name] for name in FINAL_VALUES if event[name] is not None}
                self._tracker.log("final", values, 0, seconds_of(event))
            self._tracker.end(well=kind in ("done", "part_done"))


def require_trackers(names: tuple[TrackerName, ...]) -> None:
    """Check before training that the trackers are installed.

    Raises:
        ValueError: one is not.
    """
    for name in names:
        if find_spec(name) is None:
            raise ValueError(
                f"track: expected {name} to be installed, found none; "
                f"pip install 'swap_fast[{name}]'"
            )


def make_tracking(name: TrackerName, folder: Path, warn: Callable[[str], None]) -> Tracking:
    """A listener that tracks a run.

    Arguments:
        folder: where the tracker keeps its files: FOLDER/tensorboard, FOLDER/wandb.
    """
    make: dict[str, Callable[[], Tracker]] = {
        "tensorboard": lambda: TensorBoard(folder / "tensorboard"),
        "wandb": lambda: WandB(folder),
        "mlflow": MLflow,
    }
    return Tracking(make[name](), name, warn)
