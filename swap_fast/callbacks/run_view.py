"""What events say of a run: how far each model is, how fast, and how long it still takes.

No torch: events may be read on a machine that has none.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

from swap_fast.callbacks.events import ENDINGS, Event, seconds_of
from swap_fast.config.phase import Phase
from swap_fast.config.recipe import AveragingRecipe, Recipe
from swap_fast.config.stages import shapes

Plan = dict[str, Any]
"""`workers` of phase 2, and of each phase: `epochs`, as [epochs, updates of each, images of each
update]; `slots` of each model; and whether it `may_end_early`. `metric`, if there, names what the
test data give in place of an accuracy. As events carry it."""


def plan_of(recipe: Recipe, num_images: int) -> Plan:
    """What a recipe does at most.

    Arguments:
        num_images: trained on.
    """
    phases = [recipe.phase1]
    if isinstance(recipe, AveragingRecipe):
        phases.append(recipe.phase2)
    return {
        "workers": recipe.num_workers if isinstance(recipe, AveragingRecipe) else 0,
        "phases": [plan_of_phase(phase, num_images) for phase in phases],
    }


def plan_of_phase(phase: Phase, num_images: int) -> dict[str, Any]:
    """What one model does at most in a phase."""
    # The images' size, which makes another shape, is of no meaning here.
    batches = [(len(s.epochs), s.global_batch_size) for s in shapes(phase, image_size=0)]
    return {
        "epochs": [[epochs, num_images // batch, batch] for epochs, batch in batches],
        "slots": phase.gpus_per_model,
        "may_end_early": phase.stopping_accuracy is not None or phase.stop == "auto",
    }


def images_until(plan_phase: dict[str, Any], epoch: int, step: int = 0) -> int:
    """The images that a model has been trained on after so many epochs and updates."""
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
    """What is known of one model: phase 1's, or a worker's."""

    phase: int
    """1 or 2."""
    worker: int
    """From 0; 0 in phase 1."""
    state: Literal["waiting", "running", "ended"] = "waiting"
    """Whether it is trained."""
    epoch: int = 0
    """Epochs done."""
    step: int = 0
    """Updates done of the next one."""
    images_per_s: float | None = None
    """Of late, by all ranks that share it."""
    train_accuracy: float | None = None
    """Of its last epoch."""
    test_accuracy: float | None = None
    """After its last epoch."""
    stopped_by: str | None = None
    """What ended it."""
    begun: tuple[float, int] = (0.0, 0)
    """When its process began with it, and the images that were done by then."""
    seen: tuple[float, int] = (0.0, 0)
    """When it was last heard of, and the images by then."""

    @property
    def pace(self) -> float | None:
        """Images per second since its process began with it, tests and checkpoints included."""
        seconds, images = (b - a for a, b in zip(self.begun, self.seen, strict=True))
        return images / seconds if seconds > 0 and images > 0 else None


@dataclass(kw_only=True)
class RunView:
    """What is known of a run; a listener."""

    run: str = ""
    """Its name."""
    recipe: str = ""
    """The recipe's."""
    began: Event | None = None
    """The last beginning of a process that speaks for others."""
    plan: Plan = field(default_factory=lambda: {"workers": 0, "phases": []})
    """What it does at most."""
    models: dict[tuple[int, int], ModelView] = field(default_factory=dict)
    """By phase and worker."""
    averaging: bool = False
    """Whether it is in phase 3."""
    parts: dict[str, Event | None] = field(default_factory=dict)
    """Of each part of it that a process has begun with, the event with which that ended."""
    last: Event | None = None
    """Its last event."""

    def __call__(self, event: Event) -> None:
        """Take an event in."""
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
        """With what it ended: done, or the last of its parts that failed or was interrupted."""
        ended = [event for event in self.parts.values() if event is not None]
        found = [event for event in ended if event["event"] != "part_done"]
        return max(found, key=lambda event: (event["event"] == "done", event["time"]), default=None)

    def phase(self, model: ModelView) -> dict[str, Any]:
        """The plan of a model's phase."""
        phase: dict[str, Any] = self.plan["phases"][model.phase - 1]
        return phase

    def images(self, model: ModelView) -> tuple[int, int]:
        """The images that a model was trained on, and those that it will have been at most."""
        phase = self.phase(model)
        done = images_until(phase, model.epoch, model.step)
        return done, done if model.state == "ended" else images_until(phase, num_epochs(phase))

    @property
    def is_at_most(self) -> bool:
        """Whether it may end earlier than is foreseen: phase 1 may."""
        return any(
            model.state != "ended" and self.phase(model)["may_end_early"]
            for model in self.models.values()
        )

    def seconds_to_go(self, model: ModelView) -> float | None:
        """How long a model still takes at most at the pace it had; None: that is not known."""
        done, total = self.images(model)
        pace = model.pace
        return None if model.state != "running" or pace is None else (total - done) / pace

    def all_seconds_to_go(self) -> float | None:
        """How long training still takes, at most; None: that is not known.

        Phase 2 is foreseen at the pace of phase 1, image for image, until it has one of its own.
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
            used = min(ranks, len(others) * self.phase(others[0])["slots"])
            return own[0] + images / (pace * used / ranks)
        return own[0]

    def _begin(self, event: Event) -> None:
        self.run, self.recipe = event["run"], event["recipe"]["name"]
        self.began, self.plan = event, event["plan"]
        self.parts[event["part"]] = None
        self.stop(event["part"])  # where a former process ended without a word
        keys = [(1, 0)] if self.plan["phases"] else []
        if len(self.plan["phases"]) > 1:
            keys += [(2, worker) for worker in range(self.plan["workers"])]
        for phase, worker in keys:
            self.models.setdefault((phase, worker), ModelView(phase=phase, worker=worker))

    def stop(self, part: str) -> None:
        """Nothing of a part is trained any more."""
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
            model.begun = model.seen
