"""A search's options, the settings of a recipe, the points of a grid, and their outcomes.

No torch: names and values are checked before it is imported.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, is_dataclass, replace
from itertools import product
from statistics import fmean
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from tyro.conf import Suppress, UseAppendAction

from bench.options import RunOptions, require_counts
from swap_fast.choices import choose
from swap_fast.config.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class SearchOptions(RunOptions):
    """The settings to try, and how to run each."""

    grid: UseAppendAction[tuple[str, ...]] = ()
    """NAME=VALUE,VALUE,...: a setting of the recipe and the values to try. Given several times,
    every combination is tried. A short name, such as peak_lr, is phase 1's where both have it."""
    held_out: int = 5000
    """Training images that are not trained on and choose the best; no test image does."""
    seeds: int = 1
    """Runs of each combination, with seeds SEED, SEED + 1, ...; their mean accuracy counts."""
    storage: str | None = None
    """Database of the study, such as postgresql://USER:PASSWORD@HOST/NAME for many machines; by
    default an SQLite file, OUT/search/NAME.db, for the processes of one machine."""
    name: str | None = None
    """The study's, and its folder's, OUT/search/NAME; by default made of recipe and settings."""
    trials: int | None = None
    """Combinations that this call measures at most; by default all that are left."""
    dry_run: bool = False
    """Print what would be run, and run nothing."""
    runs: Annotated[int, Suppress] = 1
    """Always 1: `seeds` says how many."""
    json: Annotated[bool, Suppress] = False
    """A search says what it found as a table."""
    resume: Annotated[bool, Suppress] = False
    """A search always resumes."""
    share_phase1: Annotated[bool, Suppress] = False
    """A search shares by itself."""
    phase2: Annotated[Literal["together", "separate"], Suppress] = "together"
    """Its runs are short."""
    min_workers: Annotated[int | None, Suppress] = None
    """All of them."""
    keep_epochs: Annotated[bool, Suppress] = False
    """A search keeps what it needs."""

    def __post_init__(self) -> None:
        """Refuse counts below 1, and names that cannot be a file's."""
        super().__post_init__()
        require_counts(self, "held_out", "seeds", "trials")
        if self.name is not None and (not self.name or set(self.name) & set("/\\\0")):
            raise ValueError(f"name: expected a file's name, got {self.name!r}")


Value = bool | int | float | str | None
"""Of a setting."""

Point = Mapping[str, Value]
"""One value for each setting, by the setting's whole name: "phase1.peak_lr"."""

TAU = "phase1.stopping_accuracy"
"""The setting whose values are epochs of one phase 1."""

NOT_SEARCHED = ("dataset", "target_accuracy")
"""Accuracies on two data sets cannot be compared; the target does not change training."""


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The values of each setting, by its whole name, in the order in which they were given."""

    values: dict[str, tuple[Value, ...]]

    @property
    def points(self) -> list[Point]:
        """Their product; the last setting changes fastest."""
        names = list(self.values)
        return [dict(zip(names, each, strict=True)) for each in product(*self.values.values())]


def parse_grid(recipe: Recipe, texts: Sequence[str]) -> Grid:
    """The grid of the command line's texts, such as "peak_lr=0.5,1.0".

    A short name that both phases have is phase 1's.

    Raises:
        ValueError: an unknown name, a value of another type, a point that the recipe refuses, or
            a name or value given twice.
    """
    if not texts:
        raise ValueError("search: expected --grid NAME=VALUE,VALUE once or more, got none")
    settings, values = settings_of(recipe), {}
    for text in texts:
        name, equals, listed = text.partition("=")
        if not equals or not listed.strip():
            raise ValueError(f"--grid: expected NAME=VALUE,VALUE, got {text!r}")
        name = whole_name(name.strip(), settings)
        if name in values:
            raise ValueError(f"--grid: expected each setting once, got {name} twice")
        values[name] = tuple(parse_value(name, one, settings[name]) for one in listed.split(","))
        if len(set(values[name])) < len(values[name]):
            raise ValueError(f"--grid {name}: expected each value once, got {listed}")
    grid = Grid(values=values)
    for point in grid.points:
        recipe_at(recipe, point)
    return grid


def settings_of(recipe: Recipe) -> dict[str, Any]:
    """The type of each setting that can be searched, by its whole name."""
    found: dict[str, Any] = {}

    def walk(at: str, part: Any) -> None:
        for name, annotation in get_type_hints(type(part), include_extras=True).items():
            if get_origin(annotation) is Annotated and Suppress in get_args(annotation):
                continue
            value = getattr(part, name)
            if is_dataclass(value):
                walk(f"{at}{name}.", value)
            elif get_origin(annotation) is not tuple and at + name not in NOT_SEARCHED:
                found[at + name] = annotation

    walk("", recipe)
    return found


def whole_name(name: str, settings: Mapping[str, Any]) -> str:
    """A setting's whole name from a whole or short one, with "_" or "-".

    Raises:
        ValueError: no setting has it.
    """
    name = name.replace("-", "_")
    if name in settings:
        return name
    alike = [whole for whole in settings if whole.endswith(f".{name}")]
    if len(alike) == 1 or f"phase1.{name}" in alike:
        return alike[0] if len(alike) == 1 else f"phase1.{name}"
    short = [whole.rpartition(".")[2] for whole in settings]
    return choose("setting", name, dict.fromkeys([*settings, *short]))


def short_names(names: Sequence[str]) -> dict[str, str]:
    """The last part of each whole name; the whole name where two end the same."""
    last = [name.rpartition(".")[2] for name in names]
    return {
        name: short if last.count(short) == 1 else name
        for name, short in zip(names, last, strict=True)
    }


def parse_value(name: str, text: str, annotation: Any) -> Value:
    """A value from its text.

    Raises:
        ValueError: it is not of the setting's type.
    """
    text = text.strip()
    kinds = get_args(annotation) if NoneType in get_args(annotation) else (annotation,)
    if NoneType in kinds and text.lower() == "none":
        return None
    (kind,) = (kind for kind in kinds if kind is not NoneType)
    if get_origin(kind) is Literal:
        return str(choose(f"value of {name}", text, get_args(kind)))
    if kind is bool:
        return choose(f"value of {name}", text.lower(), ["true", "false"]) == "true"
    try:
        value = int(text) if kind is int else float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        expected = "whole numbers" if kind is int else "numbers"
        raise ValueError(f"--grid {name}: expected {expected}, got {text!r}")
    return value


def recipe_at(recipe: Recipe, point: Point) -> Recipe:
    """The recipe with a point's values.

    Raises:
        ValueError: the recipe refuses them.
    """
    parts: dict[str, dict[str, Any]] = {"": {}}
    for name, value in point.items():
        part, _, field = name.rpartition(".")
        parts.setdefault(part, {})[field] = value
    try:
        changed = {
            part: replace(getattr(recipe, part), **values) for part, values in parts.items() if part
        }
        return replace(recipe, **parts[""], **changed)
    except ValueError as error:
        raise ValueError(f"--grid: {describe(point)}: {error}") from None


def describe(point: Point) -> str:
    """A point in short: "peak_lr=0.5, stopping_accuracy=0.7"."""
    names = short_names(list(point))
    return ", ".join(f"{names[name]}={show(value)}" for name, value in point.items())


def show(value: Value) -> str:
    """A value as written on the command line, with at most 12 digits."""
    return f"{value:.12g}" if isinstance(value, float) else str(value)


def as_flags(point: Point) -> list[str]:
    """A point as the words of a command line: "--phase1.peak-lr", "0.5"."""
    words: list[str] = []
    for name, value in point.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            part, dot, last = flag.rpartition(".")
            words.append(f"--{flag}" if value else f"--{part}{dot}no-{last}")
        else:
            words += [f"--{flag}", show(value)]
    return words


# Outcomes.

State = Literal["done", "running", "waiting", "diverged", "failed"]
"""Of a point; it may be running on any machine."""


@dataclass(frozen=True, kw_only=True)
class Scores:
    """The runs of one point, one value for each seed."""

    accuracies: tuple[float, ...]
    """On the held-out images: after averaging, or of SGD's last epoch."""
    times_s: tuple[float, ...]
    """Of training, with the whole of phase 1, also where it is shared."""
    phase1_epochs: tuple[int, ...]
    run_ids: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One point of the grid, and its scores where it is done."""

    point: Point
    state: State
    scores: Scores | None = None
    why: str | None = None
    """The reason, where it diverged or failed."""


def ranked(outcomes: Iterable[Outcome]) -> list[Outcome]:
    """Best first: by mean accuracy, then by time; points without scores last."""

    def rank(outcome: Outcome) -> tuple[float, float]:
        if outcome.scores is None:
            return 1.0, 0.0
        return -fmean(outcome.scores.accuracies), fmean(outcome.scores.times_s)

    return sorted(outcomes, key=rank)
