"""A run's progress from its events: bars for each phase and worker, plain lines, or JSON.

Each form is a listener, so that a run of this process and one of another are shown by the same
code. Nothing here needs torch.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from swap_fast.callbacks.events import ENDINGS, Event, seconds_of, to_line
from swap_fast.config.phase import Phase, shapes
from swap_fast.config.recipe import AveragingRecipe, Recipe

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live


# The plan of a run, and its state so far.

Plan = dict[str, Any]
"""As `began` events have it: `workers` of phase 2, and for each of `phases` its `epochs`, as
[epochs, updates of each, images of each update], the `replicas` of a model, and whether it
`may_end_early`. `metric`, if there, is the name of what the test data give in place of an
accuracy."""


def plan_of(recipe: Recipe, num_images: int) -> Plan:
    """What a recipe does at most.

    Arguments:
        num_images: trained on.
    """
    workers = recipe.num_workers if isinstance(recipe, AveragingRecipe) else 0
    return make_plan(recipe.phases, workers, num_images)


def make_plan(phases: Sequence[Phase], workers: int, num_images: int, **more: Any) -> Plan:
    """What these phases do at most."""
    return {"workers": workers, "phases": [_plan_phase(p, num_images) for p in phases], **more}


def _plan_phase(phase: Phase, num_images: int) -> dict[str, Any]:
    """What one model does at most in a phase."""
    # Only the number of images counts here, not their size.
    batches = [(len(s.epochs), s.global_batch_size) for s in shapes(phase, image_size=0)]
    return {
        "epochs": [[epochs, num_images // batch, batch] for epochs, batch in batches],
        "replicas": phase.gpus_per_model,
        "may_end_early": phase.stopping_accuracy is not None or phase.stop == "auto",
    }


def images_until(plan_phase: dict[str, Any], epoch: int, step: int = 0) -> int:
    """The images that a model was trained on after `epoch` epochs and `step` updates."""
    images = 0
    for epochs, steps, batch in plan_phase["epochs"]:
        whole = min(epoch, epochs)
        images += whole * steps * batch
        epoch -= whole
        if epoch == 0 and whole < epochs:
            return images + step * batch
    return images


def num_epochs(plan_phase: dict[str, Any]) -> int:
    """The epochs of a phase, at most."""
    return sum(epochs for epochs, _, _ in plan_phase["epochs"])


@dataclass(kw_only=True)
class ModelView:
    """The state of one model: phase 1's, or a worker's."""

    phase: int
    worker: int
    """From 0; 0 in phase 1."""
    state: Literal["waiting", "running", "ended"] = "waiting"
    epoch: int = 0
    """Epochs done."""
    step: int = 0
    """Updates done of the next one."""
    images_per_s: float | None = None
    """Of the last updates, by all ranks that share it."""
    train_accuracy: float | None = None
    """Of its last epoch, as is the next one."""
    test_accuracy: float | None = None
    stopped_by: str | None = None
    started: tuple[float, int] = (0.0, 0)
    """When its process started or resumed it, and the images that were done by then."""
    seen: tuple[float, int] = (0.0, 0)
    """When its last event was, and the images that were done by then."""

    @property
    def pace(self) -> float | None:
        """Images per second since `started`, evaluation and checkpoints included."""
        seconds, images = (b - a for a, b in zip(self.started, self.seen, strict=True))
        return images / seconds if seconds > 0 and images > 0 else None


@dataclass(kw_only=True)
class RunView:
    """The state of a run; a listener."""

    run: str = ""
    recipe: str = ""
    """The recipe's name."""
    began: Event | None = None
    """Its last `began` event."""
    plan: Plan = field(default_factory=lambda: {"workers": 0, "phases": []})
    models: dict[tuple[int, int], ModelView] = field(default_factory=dict)
    """By phase and worker."""
    averaging: bool = False
    """Whether it is in phase 3."""
    parts: dict[str, Event | None] = field(default_factory=dict)
    """For each part of it that was started, its last event once it has ended."""
    last: Event | None = None

    def __call__(self, event: Event) -> None:
        kind, self.last = event["event"], event
        if kind == "began":
            self._begin(event)
        elif kind in ENDINGS:
            self.parts[event["part"]] = event
            self.stop(event["part"])
        elif kind == "averaging":
            self.averaging = True
        elif (event.get("phase"), event.get("worker")) in self.models:
            self._model(self.models[event["phase"], event["worker"]], event)

    @property
    def ending(self) -> Event | None:
        """Its end: `done`, or the last `failed` or `interrupted` of its parts."""
        ended = [event for event in self.parts.values() if event is not None]
        found = [event for event in ended if event["event"] != "part_done"]
        return max(found, key=lambda event: (event["event"] == "done", event["time"]), default=None)

    def phase(self, model: ModelView) -> dict[str, Any]:
        """The plan of a model's phase."""
        phase: dict[str, Any] = self.plan["phases"][model.phase - 1]
        return phase

    def images(self, model: ModelView) -> tuple[int, int]:
        """The images that a model was trained on, and the most that it will be trained on."""
        phase = self.phase(model)
        done = images_until(phase, model.epoch, model.step)
        return done, done if model.state == "ended" else images_until(phase, num_epochs(phase))

    @property
    def is_at_most(self) -> bool:
        """Whether it may end before its last epoch: phase 1 may."""
        return any(
            model.state != "ended" and self.phase(model)["may_end_early"]
            for model in self.models.values()
        )

    def seconds_to_go(self, model: ModelView) -> float | None:
        """The most seconds that a model still takes at its pace; None: not known."""
        done, total = self.images(model)
        pace = model.pace
        return None if model.state != "running" or pace is None else (total - done) / pace

    def all_seconds_to_go(self) -> float | None:
        """The most seconds that training still takes; None: not known.

        Phase 2 is expected at phase 1's images per second until it has a pace of its own.
        """
        running = [model for model in self.models.values() if model.state == "running"]
        paces = [model.pace for model in running if model.pace is not None]
        if not running or len(paces) < len(running):
            return None
        own = [self.seconds_to_go(model) or 0.0 for model in running]
        pace = sum(paces)
        others = [m for m in self.models.values() if m.state == "waiting" and m.phase == 2]
        images = sum(self.images(model)[1] for model in others)
        if running[0].phase == 2:
            together = sum(total - done for done, total in map(self.images, running)) + images
            return max(*own, together / pace)
        if others:
            ranks = (self.began or {}).get("world_size", 1)
            used = min(ranks, len(others) * self.phase(others[0])["replicas"])
            return own[0] + images / (pace * used / ranks)
        return own[0]

    def _begin(self, event: Event) -> None:
        self.run, self.recipe = event["run"], event["recipe"]["name"]
        self.began, self.plan = event, event["plan"]
        self.parts[event["part"]] = None
        self.stop(event["part"])  # a former process may have been killed
        keys = [(1, 0)] if self.plan["phases"] else []
        if len(self.plan["phases"]) > 1:
            keys += [(2, worker) for worker in range(self.plan["workers"])]
        for phase, worker in keys:
            self.models.setdefault((phase, worker), ModelView(phase=phase, worker=worker))

    def stop(self, part: str) -> None:
        """Mark the running models of a part as waiting."""
        self.averaging = False
        for model in self.models.values():
            if model.state == "running" and part in ("run", f"worker{model.worker}"):
                model.state = "waiting"

    def _model(self, model: ModelView, event: Event) -> None:
        kind = event["event"]
        if kind == "checkpoint":
            return
        if kind == "training":
            model.stopped_by = model.images_per_s = None
        for name in ("epoch", "train_accuracy", "test_accuracy", "images_per_s", "stopped_by"):
            if event.get(name) is not None:
                setattr(model, name, event[name])
        model.step = event.get("step", 0)
        model.state = "running" if model.stopped_by is None else "ended"
        model.seen = seconds_of(event), images_until(self.phase(model), model.epoch, model.step)
        if kind == "training":
            model.started = model.seen


# How it is shown.

MOST_BARS = 16
"""With more models than this, those that are not being trained are counted in one line."""

Form = Literal["auto", "lines", "json", "none"]


def print_line(line: str) -> None:
    """Print a line at once."""
    print(line, flush=True)


def progress_listener(form: Form = "auto") -> "Screen | Lines | JsonLines | None":
    """The listener that shows a run on standard output; None for "none".

    Arguments:
        form: auto draws bars on a terminal and prints lines elsewhere.
    """
    if form == "none":
        return None
    if form == "json":
        return JsonLines()
    return Screen() if form == "auto" and sys.stdout.isatty() else Lines()


class JsonLines:
    """Prints each event as a line of JSON, whole."""

    def __call__(self, event: Event) -> None:
        sys.stdout.write(f"{to_line(event)}\n")
        sys.stdout.flush()


class Lines:
    """Prints a line for each event that a reader needs: epochs, starts, ends.

    Arguments:
        say: prints a line.
    """

    def __init__(self, say: Callable[[str], None] = print_line) -> None:
        self._say, self.view = say, RunView()

    def __call__(self, event: Event) -> None:
        self.view(event)
        if (line := line_of(event, self.view)) is not None:
            self._say(line)


class Screen:
    """Draws a bar for each model, below the lines of what has happened.

    The bars are drawn again at each event and at no other time, so that they do not flicker. Other
    output of this process comes above them.

    Arguments:
        console: rich's; by default on standard output.
    """

    def __init__(self, console: "Console | None" = None) -> None:
        self.view = RunView()
        self._console = console
        self._live: Live | None = None

    def __call__(self, event: Event) -> None:
        self.view(event)
        if self._live is None:
            from rich.console import Console
            from rich.live import Live

            console = self._console or Console()
            self._live = Live(console=console, auto_refresh=False, transient=True)
            self._live.start()
        if (line := line_of(event, self.view)) is not None:
            self._live.console.print(line, highlight=False, markup=False, soft_wrap=True)
        self._live.update(bars(self.view), refresh=True)

    def close(self) -> None:
        """Remove the bars; the lines stay."""
        if self._live is not None:
            self._live.stop()
            self._live = None


def who(phase: int, worker: int) -> str:
    """A model's name for a reader."""
    return "phase 1" if phase == 1 else f"phase 2, worker {worker}"


def line_of(event: Event, view: RunView) -> str | None:
    """The line of an event; None: the bars show all of it.

    Arguments:
        view: the run's state after the event.
    """
    kind = event["event"]
    if kind == "note":
        return str(event["text"])
    if kind == "epoch":
        return _epoch_line(event, view)
    if kind == "training" and event["restored"]:
        state = "done" if event["stopped_by"] else "resumed"
        name = who(event["phase"], event["worker"])
        return f"{name:<17} {state} after epoch {event['epoch']}, as it was saved"
    if kind == "phase_end":
        return _end_line(event, view)
    if kind == "failed" and event["part"] != "run":
        # The launching process prints the error of the run itself.
        return f"{event['part']} failed: {event['error']}"
    return None


def _end_line(event: Event, view: RunView) -> str | None:
    """Why a phase ended, where its last epoch is not all that it was to end by."""
    name, why = who(event["phase"], event["worker"]), event["stopped_by"]
    if why != "max_epochs":
        return f"{name:<17} ended after epoch {event['epoch']} by its {why.replace('_', ' ')}"
    model = view.models.get((event["phase"], event["worker"]))
    if model is None or not view.phase(model)["may_end_early"]:
        return None
    train = model.train_accuracy
    reached = "" if train is None else f", at a train accuracy of {train:.2%}"
    return (
        f"{name:<17} ended by its last epoch{reached}, before what was to end it: give it more "
        "epochs, or a lower stopping accuracy"
    )


def _epoch_line(event: Event, view: RunView) -> str:
    model = view.models.get((event["phase"], event["worker"]))
    epochs = f"/{num_epochs(view.phase(model))}" if model is not None else ""
    names = ("train_accuracy", "test_accuracy", "noise_scale", "images_per_s")
    train, test, noise, rate = (event[name] for name in names)
    skipped = event.get("skipped_updates")  # older events have none
    parts = [
        f"{who(event['phase'], event['worker']):<17} epoch {event['epoch']:>3}{epochs}",
        f"lr {_rate(event['learning_rate'])}",
        f"loss {event['train_loss']:.4f}",
        *([] if train is None else [f"train {train:7.2%}"]),
        *([] if test is None else [tested(test, view, width=7)]),
        *([] if noise is None else [f"noise scale {noise:,.0f}"]),
        *([f"{skipped} updates skipped"] if skipped else []),
        f"{event['time_s']:7.1f} s",
        *([] if rate is None else [f"{rate:,.0f} images/s"]),
    ]
    to_go = remaining(view)
    return "  ".join([*parts, *([to_go] if to_go else [])])


def _rate(learning_rate: float) -> str:
    """Six characters: 0.2500, and 2.0e-5 below 0.001."""
    if learning_rate == 0 or learning_rate >= 0.001:
        return f"{learning_rate:.4f}"
    return f"{learning_rate:.1e}".replace("e-0", "e-")


def tested(value: float, view: RunView, *, width: int) -> str:
    """The result on test or held-out data: an accuracy, or the user's metric by its name."""
    metric = view.plan.get("metric")
    if metric is not None:
        return f"{metric} {value:.4g}"
    split = "held out" if (view.began or {}).get("held_out") else "test"
    return f"{split} {value:{width}.2%}"


def remaining(view: RunView) -> str:
    """The time that the run still takes: "at most" where phase 1 may end early; "" if not known."""
    seconds = view.all_seconds_to_go()
    if seconds is None or seconds < 0.5:
        return ""
    return f"{'at most' if view.is_at_most else 'about'} {duration(seconds)} to go"


def duration(seconds: float) -> str:
    """A number of seconds as text: "45 s", "12 min", "3 h 20 min"."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def fields_of(model: ModelView, view: RunView) -> list[str]:
    """A model's state as text: epoch, images/s, train and test accuracy, time to go."""
    epochs, at_most = num_epochs(view.phase(model)), view.phase(model)["may_end_early"]
    to_go = view.seconds_to_go(model)
    if model.state == "waiting" and model.epoch == 0 and model.step == 0:
        return ["waiting", "", "", "", ""]
    rate = model.images_per_s if model.state == "running" else None
    state = {"running": "", "waiting": "stopped", "ended": "done"}[model.state]
    return [
        f"epoch {model.epoch}/{epochs}",
        "" if rate is None else f"{rate:,.0f} images/s",
        "" if model.train_accuracy is None else f"train {model.train_accuracy:.2%}",
        "" if model.test_accuracy is None else tested(model.test_accuracy, view, width=0),
        state if to_go is None else f"{'at most' if at_most else 'about'} {duration(to_go)}",
    ]


def bars(view: RunView) -> "RenderableType":
    """A line with a bar for each model, and the time that the run still takes."""
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    for model in shown_models(view):
        done, total = view.images(model)
        share = f"{done / total:>4.0%}" if total else ""
        bar = ProgressBar(total=max(total, 1), completed=done, width=24)
        table.add_row(who(model.phase, model.worker), bar, share, *fields_of(model, view))
    return Group(table, *(Text(line) for line in last_lines(view)))


def state_lines(view: RunView) -> list[str]:
    """The same as `bars`, as plain lines."""
    lines = []
    for model in shown_models(view):
        done, total = view.images(model)
        words = [text for text in fields_of(model, view) if text]
        share = f"{done / total:4.0%}" if total else "    "
        lines.append("  ".join([f"{who(model.phase, model.worker):<17} {share}", *words]))
    return lines + last_lines(view)


def shown_models(view: RunView) -> list[ModelView]:
    """The models that have a line: all, or of more than `MOST_BARS` those in training."""
    models = [model for _, model in sorted(view.models.items())]
    if len(models) <= MOST_BARS:
        return models
    return [model for model in models if model.state == "running" or model.phase == 1]


def last_lines(view: RunView) -> list[str]:
    """The lines below the models'."""
    lines = []
    hidden = [model for model in view.models.values() if model not in shown_models(view)]
    if hidden:
        ended = sum(model.state == "ended" for model in hidden)
        lines.append(f"workers: {ended} done, {len(hidden) - ended} waiting")
    if view.averaging:
        lines.append("phase 3: averaging")
    elif to_go := remaining(view):
        lines.append(f"training: {to_go}")
    return lines
