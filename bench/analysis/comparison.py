"""Two groups of runs against each other: accuracies, times, laps, settings, machines. No torch.

A difference of accuracies gets Welch's 95% interval. A ratio of times is one of geometric means:
Welch's interval of the difference of their logarithms, made a ratio again. Noise that multiplies a
time becomes even in its logarithm, neither spread nor number of runs need be equal, and unlike a
bootstrap it does not get too narrow with few runs. One run says nothing of its spread: no interval.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from bench.intervals import Interval
from bench.records.grouping import Summary, accuracy_key, host_of, machine_key, summarize
from bench.records.timing import dawnbench_time, laps_of_slowest_rank, unattributed_s
from bench.report.lists import flatten
from bench.statistics import Contrast, contrast, exponential, logarithms
from swap_fast.record import RunRecord
from swap_fast.training.clock import LAPS

TIMES: dict[str, Callable[[RunRecord], float | None]] = {
    "train time (s), measured": lambda run: run.times.after_averaging_s,
    # Of SGD the modelled time is the measured one.
    "parallel time (s), modelled": lambda run: run.times.modelled_after_averaging_s,
    "time to the target (s)": dawnbench_time,
    "wall clock (s)": lambda run: run.times.wall_s,
}
"""What of the clock is compared; None where a run has no such time."""

ACCURACIES: dict[str, Callable[[RunRecord], float | None]] = {
    "test accuracy (%)": lambda run: run.test_accuracy,
    "before averaging (%)": lambda run: run.accuracy_before_averaging,
}
"""Fractions, printed as percent."""


@dataclass(frozen=True, kw_only=True)
class Side:
    """One of the two groups: runs of one recipe."""

    name: str
    """As the user gave it."""
    runs: tuple[RunRecord, ...]
    """One at least, that agree in recipe, data, precision and type of device."""

    def __post_init__(self) -> None:
        """Refuse what cannot be put together."""
        if not self.runs:
            raise ValueError(f"{self.name}: expected one run or more, got none")
        kinds = len({(run.recipe, accuracy_key(run)) for run in self.runs})
        if kinds > 1:
            raise ValueError(
                f"{self.name}: expected runs of one recipe with one configuration, data set and "
                f"precision, got {kinds} kinds among {len(self.runs)} runs; name a run instead"
            )

    @property
    def machines(self) -> tuple[str, ...]:
        """The kinds of machine that its runs were made on, and the devices that they used."""
        return tuple(sorted({machine_key(run).label for run in self.runs}))


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """One measured quantity of both sides."""

    name: str
    """With its unit."""
    first: Summary | None
    """Of A; None where a run of it has no such value."""
    second: Summary | None
    """Of B."""
    is_ratio: bool
    """Whether B is divided by A; else A is subtracted from B."""
    change: float | None
    """B / A of the geometric means, or B - A of the means; None where it may not be formed."""
    interval: Interval | None
    """95% of `change`; None where one side is a single run."""


@dataclass(frozen=True, kw_only=True)
class LapPair:
    """One lap of the slowest rank, mean over a side's runs, in seconds."""

    name: str
    """The clock's; "unattributed" is the harness's own time."""
    first_s: float | None
    """Of A; None where it has no such lap."""
    second_s: float | None
    """Of B."""


@dataclass(frozen=True, kw_only=True)
class FieldPair:
    """What is not alike on both sides."""

    name: str
    """Its place, dotted."""
    first: tuple[str, ...]
    """A's values."""
    second: tuple[str, ...]
    """B's."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """All that is said of two groups of runs."""

    first: Side
    """A."""
    second: Side
    """B."""
    quantities: tuple[Quantity, ...]
    """Accuracies, then times."""
    laps: tuple[LapPair, ...]
    """Where each second went."""
    configuration: tuple[FieldPair, ...]
    """What of recipe, execution and data differs."""
    machine: tuple[FieldPair, ...]
    """What of machine and code differs."""
    cautions: tuple[str, ...]
    """What a reader must know before the figures."""


def compare(first: Side, second: Side) -> Comparison:
    """B against A, from their records alone."""
    # Devices may differ between the sides, as between the paper's rows, and not within one.
    alike = len({host_of(run) for run in (*first.runs, *second.runs)}) == 1 and all(
        len(side.machines) == 1 for side in (first, second)
    )
    quantities = [_difference(name, first, second, of) for name, of in ACCURACIES.items()]
    quantities += [_ratio(name, first, second, of, alike) for name, of in TIMES.items()]
    laps = [_laps(side) for side in (first, second)]
    return Comparison(
        first=first,
        second=second,
        quantities=tuple(q for q in quantities if q.first or q.second),
        laps=tuple(
            LapPair(name=name, first_s=laps[0].get(name), second_s=laps[1].get(name))
            for name in dict.fromkeys([*LAPS, *laps[0], *laps[1]])
            if name in laps[0] or name in laps[1]
        ),
        configuration=_unlike(first, second, _settings),
        machine=_unlike(first, second, lambda run: {"machine": run.machine, "code": run.code}),
        cautions=tuple(_cautions(first, second, alike)),
    )


def _difference(
    name: str, first: Side, second: Side, of: Callable[[RunRecord], float | None]
) -> Quantity:
    values = [_values(side, of, 100) for side in (first, second)]
    found = _contrast(*values) if all(values) else None
    return Quantity(
        name=name,
        first=summarize(values[0]) if values[0] else None,
        second=summarize(values[1]) if values[1] else None,
        is_ratio=False,
        change=found.mean if found else None,
        interval=found.interval if found else None,
    )


def _ratio(
    name: str, first: Side, second: Side, of: Callable[[RunRecord], float | None], alike: bool
) -> Quantity:
    values = [_values(side, of) for side in (first, second)]
    formed = alike and all(values) and all(each > 0 for each in (*values[0], *values[1]))
    found = _contrast(*values, in_logarithms=True) if formed else None
    return Quantity(
        name=name,
        first=summarize(values[0]) if values[0] else None,
        second=summarize(values[1]) if values[1] else None,
        is_ratio=True,
        change=math.exp(found.mean) if found else None,
        interval=exponential(found.interval) if found else None,
    )


def _contrast(
    first: Sequence[float], second: Sequence[float], *, in_logarithms: bool = False
) -> Contrast:
    """B less A by Welch: keys of their own keep runs of one seed from being paired."""
    one = [(("A", i), value) for i, value in enumerate(first)]
    other = [(("B", i), value) for i, value in enumerate(second)]
    if in_logarithms:
        return contrast(logarithms(other), logarithms(one))
    return contrast(other, one)


def _values(
    side: Side, of: Callable[[RunRecord], float | None], factor: float = 1
) -> tuple[float, ...]:
    """Of every run, or none where one lacks it: a mean over some would mislead."""
    found = [of(run) for run in side.runs]
    return (
        tuple(factor * value for value in found if value is not None) if None not in found else ()
    )


def _laps(side: Side) -> dict[str, float]:
    laps = [{**laps_of_slowest_rank(run), "unattributed": unattributed_s(run)} for run in side.runs]
    names = dict.fromkeys(name for each in laps for name in each)
    return {name: sum(each.get(name, 0.0) for each in laps) / len(laps) for name in names}


def _settings(run: RunRecord) -> dict[str, Any]:
    return {**run.configuration, "overrides": ", ".join(run.overrides) or None, "data": run.data}


def _unlike(
    first: Side, second: Side, told: Callable[[RunRecord], dict[str, Any]]
) -> tuple[FieldPair, ...]:
    sides = []
    for side in (first, second):
        facts: dict[str, dict[str, None]] = {}
        for run in side.runs:
            for name, value in flatten(told(run)):
                facts.setdefault(name, {})[value] = None
        sides.append({name: tuple(values) for name, values in facts.items()})
    return tuple(
        FieldPair(name=name, first=sides[0].get(name, ()), second=sides[1].get(name, ()))
        for name in dict.fromkeys([*sides[0], *sides[1]])
        if set(sides[0].get(name, ())) != set(sides[1].get(name, ()))
    )


def _cautions(first: Side, second: Side, alike: bool) -> list[str]:
    cautions = []
    if not alike:
        hosts = {host_of(run) for run in (*first.runs, *second.runs)}
        what = "machines differ" if len(hosts) > 1 else "devices differ within a side"
        cautions.append(
            f"Times are not compared, as the {what}: "
            f"A on {' and '.join(first.machines)}; B on {' and '.join(second.machines)}. "
            "Run both on one machine to compare them; accuracies are shown all the same."
        )
    elif first.machines != second.machines:
        cautions.append(
            f"The devices differ: A on {first.machines[0]}; B on {second.machines[0]}. "
            "The ratios of times are of these."
        )
    single = [label for label, side in (("A", first), ("B", second)) if len(side.runs) == 1]
    if single:
        cautions.append(
            f"{' and '.join(single)}: a single run says nothing of its spread, so that no interval "
            "can be given; repeat with --runs 3 or more."
        )
    shared = {run.run_id for run in first.runs} & {run.run_id for run in second.runs}
    if shared:
        cautions.append(
            f"{len(shared)} of the runs stand on both sides: the two are not independent."
        )
    if first.runs[0].data.get("sha256") != second.runs[0].data.get("sha256"):
        cautions.append("The data differ, so that the accuracies are of different tests.")
    emulated = {run.emulated_workers for run in (*first.runs, *second.runs)}
    if len(emulated) == 2:
        cautions.append(
            "Workers took turns on one side alone: its measured time holds their sum; the modelled "
            "parallel time does not."
        )
    return cautions
