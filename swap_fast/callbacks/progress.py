"""A run's progress on a screen: a bar a phase and worker, or plain lines, or JSON; from its events.

Each form is a listener, so that a run shows itself and a run of another process by the same code.
"""

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from swap_fast.callbacks.events import Event, to_line
from swap_fast.callbacks.run_view import ModelView, RunView, num_epochs

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live

MOST_BARS = 16
"""More models than these, and those that are not being trained are counted in one line."""

Form = Literal["auto", "lines", "json", "none"]


def print_line(line: str) -> None:
    """Print a line at once."""
    print(line, flush=True)


def progress(form: Form = "auto") -> "Screen | Lines | JsonLines | None":
    """The listener that shows a run's progress on standard output.

    Arguments:
        form: auto draws bars on a terminal and prints lines elsewhere; None is returned for none.
    """
    if form == "none":
        return None
    if form == "json":
        return JsonLines()
    return Screen() if form == "auto" and sys.stdout.isatty() else Lines()


class JsonLines:
    """Prints each event as a line of JSON."""

    def __call__(self, event: Event) -> None:
        """Print it, whole."""
        sys.stdout.write(f"{to_line(event)}\n")
        sys.stdout.flush()


class Lines:
    """Prints a line for each event that says something to a reader: epochs, beginnings, ends.

    Arguments:
        say: prints a line.
    """

    def __init__(self, say: Callable[[str], None] = print_line) -> None:
        self._say, self.view = say, RunView()

    def __call__(self, event: Event) -> None:
        """Print its line, if it has one."""
        self.view(event)
        if (line := line_of(event, self.view)) is not None:
            self._say(line)


class Screen:
    """Draws a bar for each model, below the lines of what has happened.

    Drawn anew when there is an event, and by nothing else, so that nothing flickers; what this
    process prints meanwhile comes above the bars.

    Arguments:
        console: rich's; by default on standard output.
    """

    def __init__(self, console: "Console | None" = None) -> None:
        self.view = RunView()
        self._console = console
        self._live: Live | None = None

    def __call__(self, event: Event) -> None:
        """Print its line, if it has one, and draw the bars anew."""
        self.view(event)
        if self._live is None:
            self._live = self._begin()
        if (line := line_of(event, self.view)) is not None:
            self._live.console.print(line, highlight=False, markup=False, soft_wrap=True)
        self._live.update(bars(self.view), refresh=True)

    def close(self) -> None:
        """Take the bars off the screen; the lines stay."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _begin(self) -> "Live":
        from rich.console import Console
        from rich.live import Live

        live = Live(console=self._console or Console(), auto_refresh=False, transient=True)
        live.start()
        return live


def who(phase: int, worker: int) -> str:
    """A model as a reader calls it."""
    return "phase 1" if phase == 1 else f"phase 2, worker {worker}"


def line_of(event: Event, view: RunView) -> str | None:
    """What an event says to a reader; None: nothing that the bars do not show.

    Arguments:
        view: of the run, the event included.
    """
    kind = event["event"]
    if kind == "note":
        return str(event["text"])
    if kind == "epoch":
        return _epoch_line(event, view)
    if kind == "training" and event["restored"]:
        goes_on = "done" if event["stopped_by"] else "goes on"
        name = who(event["phase"], event["worker"])
        return f"{name:<17} {goes_on} after epoch {event['epoch']}, as it was saved"
    if kind == "phase_end" and event["stopped_by"] != "max_epochs":
        name = who(event["phase"], event["worker"])
        why = event["stopped_by"].replace("_", " ")
        return f"{name:<17} ended after epoch {event['epoch']} by its {why}"
    if kind == "failed" and event["part"] != "run":
        return (
            f"{event['part']} failed: {event['error']}"  # of the run itself, its own line says it
        )
    return None


def _epoch_line(event: Event, view: RunView) -> str:
    model = view.models.get((event["phase"], event["worker"]))
    epochs = f"/{num_epochs(view.phase(model))}" if model is not None else ""
    names = ("train_accuracy", "test_accuracy", "noise_scale", "images_per_s")
    train, test, noise, rate = (event[name] for name in names)
    parts = [
        f"{who(event['phase'], event['worker']):<17} epoch {event['epoch']:>3}{epochs}",
        f"lr {event['learning_rate']:.4f}",
        f"loss {event['train_loss']:.4f}",
        *([] if train is None else [f"train {train:7.2%}"]),
        *([] if test is None else [tested(test, view, width=7)]),
        *([] if noise is None else [f"noise scale {noise:,.0f}"]),
        f"{event['time_s']:7.1f} s",
        *([] if rate is None else [f"{rate:,.0f} images/s"]),
    ]
    to_go = remaining(view)
    return "  ".join([*parts, *([to_go] if to_go else [])])


def tested(value: float, view: RunView, *, width: int) -> str:
    """What the test data, or held-out ones, gave: an accuracy, or the user's metric by its name."""
    metric = view.plan.get("metric")
    if metric is not None:
        return f"{metric} {value:.4g}"
    split = "held out" if (view.began or {}).get("held_out") else "test"
    return f"{split} {value:{width}.2%}"


def remaining(view: RunView) -> str:
    """How long the run still takes: "at most" where phase 1 may end before; "" if not known."""
    seconds = view.all_seconds_to_go()
    if seconds is None or seconds < 0.5:
        return ""
    return f"{'at most' if view.is_at_most else 'about'} {duration(seconds)} to go"


def duration(seconds: float) -> str:
    """Some seconds as a reader says them: "45 s", "12 min", "3 h 20 min"."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def fields_of(model: ModelView, view: RunView) -> list[str]:
    """What is known of a model, as words: epoch, images/s, train and test accuracy, time to go."""
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
    """A line for each model, with a bar, and how long the whole still takes."""
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    shown = shown_models(view)
    for model in shown:
        done, total = view.images(model)
        share = f"{done / total:>4.0%}" if total else ""
        bar = ProgressBar(total=max(total, 1), completed=done, width=24)
        table.add_row(who(model.phase, model.worker), bar, share, *fields_of(model, view))
    return Group(table, *(Text(line) for line in last_lines(view)))


def state_lines(view: RunView) -> list[str]:
    """The same as `bars`, in plain lines."""
    lines = []
    for model in shown_models(view):
        done, total = view.images(model)
        words = [text for text in fields_of(model, view) if text]
        share = f"{done / total:4.0%}" if total else "    "
        lines.append("  ".join([f"{who(model.phase, model.worker):<17} {share}", *words]))
    return lines + last_lines(view)


def shown_models(view: RunView) -> list[ModelView]:
    """The models that have a line: all, or of very many those that are trained now."""
    models = [model for _, model in sorted(view.models.items())]
    if len(models) <= MOST_BARS:
        return models
    return [model for model in models if model.state == "running" or model.phase == 1]


def last_lines(view: RunView) -> list[str]:
    """What stands below the models' lines."""
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
