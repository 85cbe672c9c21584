"""Two groups of runs against each other: accuracies, times, laps, settings, machines. No torch.

A difference of accuracies gets Welch's 95% interval. A ratio of times is one of geometric means:
Welch's interval of the difference of their logarithms, made a ratio again. Noise that multiplies a
time becomes even in its logarithm, neither spread nor number of runs need be equal, and unlike a
bootstrap it does not get too narrow with few runs. One run says nothing of its spread: no interval.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from bench.document.table import NOTHING, UNSTABLE, UNSTABLE_NOTE, Table, interval_cell, plus_minus
from bench.records.grouping import accuracy_key, flatten, group_by, host_of, machine_key, scale_note
from bench.records.paper_tables import RUN_TABLES, SIZES, number_machines, places_of
from bench.records.timing import dawnbench_time, laps_of_slowest_rank, unattributed_s
from bench.statistics import (
    Contrast,
    Interval,
    Summary,
    contrast,
    exponential,
    logarithms,
    summarize,
)
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


# A comparison as tables and as JSON; and the pairs of a report's tables. No torch.


METHOD_NOTE = (
    "Differences: Welch's t, 95%. Ratios: of geometric means, Welch's t of the logarithms, 95%. "
    "A single run gives no interval."
)


def comparison_tables(found: Comparison) -> list[Table]:
    """The figures, the laps, and what differs; in the order of reading."""
    runs = (*found.first.runs, *found.second.runs)
    tables = [
        Table(
            name="comparison",
            title=f"{found.first.name} and {found.second.name}",
            caption=sides_line(found) + scale_note(runs),
            columns=("Quantity", "A", "B", "B - A", "B / A", "95% interval"),
            rows=tuple(_quantity_row(quantity) for quantity in found.quantities),
            footnotes=(METHOD_NOTE, *([UNSTABLE_NOTE] if _any_unstable(found) else [])),
        ),
        Table(
            name="comparison_laps",
            title="Laps, side by side",
            caption="Seconds of the slowest rank, mean over the runs.",
            columns=("Lap", "A (s)", "B (s)", "B - A (s)"),
            rows=tuple(
                (
                    lap.name,
                    *(NOTHING if s is None else f"{s:.2f}" for s in (lap.first_s, lap.second_s)),
                    f"{(lap.second_s or 0.0) - (lap.first_s or 0.0):.2f}",
                )
                for lap in found.laps
            ),
        ),
    ]
    for name, title, pairs in (
        ("comparison_configuration", "Configuration: what differs", found.configuration),
        ("comparison_machine", "Machine and code: what differs", found.machine),
    ):
        if pairs:
            tables.append(
                Table(
                    name=name,
                    title=title,
                    caption="What is alike on both sides is left out.",
                    columns=("Field", "A", "B"),
                    rows=tuple(_field_row(pair) for pair in pairs),
                )
            )
    return tables


def sides_line(found: Comparison) -> str:
    """What A and B are."""
    told = (f"{label}: {side.name} (n = {len(side.runs)})" for label, side in _sides(found))
    return "; ".join(told) + "."


def comparison_json(found: Comparison) -> dict[str, Any]:
    """The same as plain values, with every run's name."""
    return {
        **{
            label: {
                "name": side.name,
                "runs": [run.run_id for run in side.runs],
                "machines": list(side.machines),
            }
            for label, side in _sides(found)
        },
        "cautions": list(found.cautions),
        "quantities": [
            {
                "name": quantity.name,
                "A": _summary_json(quantity.first),
                "B": _summary_json(quantity.second),
                "kind": "ratio" if quantity.is_ratio else "difference",
                "change": quantity.change,
                "interval": _interval_json(quantity.interval),
            }
            for quantity in found.quantities
        ],
        "laps_s": {lap.name: {"A": lap.first_s, "B": lap.second_s} for lap in found.laps},
        "configuration": _pairs_json(found.configuration),
        "machine": _pairs_json(found.machine),
        "method": METHOD_NOTE,
    }


def pair_tables(records: Sequence[RunRecord]) -> list[Table]:
    """Each two recipes of each of the paper's tables, where both ran on one kind of machine.

    Runs of one recipe on other numbers of its devices are a side of their own.
    """
    numbers = number_machines(records)
    tables = []
    for paper_table in RUN_TABLES.values():
        for size in SIZES:
            place = paper_table.place(size)
            standing = [record for record in records if place in places_of(record)]
            for host, runs in group_by(standing, host_of).items():
                sides = _sides_of(runs)
                rows = [_pair_row(a, b) for a, b in combinations(sides, 2)]
                if not rows:
                    continue
                number = numbers[host]
                tables.append(
                    Table(
                        name=f"pairs_{place}_machine{number}",
                        title=f"Pairs of {paper_table.title(size)}, machine {number}",
                        caption=f"Any two: python -m bench compare A B. On {host.label}."
                        + scale_note(runs),
                        columns=(
                            "A",
                            "B",
                            "Runs",
                            host.devices_head,
                            "Accuracy, B - A (points)",
                            "its 95% interval",
                            "Time, measured, B / A",
                            "its 95% interval (ratio)",
                        ),
                        rows=tuple(rows),
                        footnotes=(METHOD_NOTE,),
                    )
                )
    return tables


def _sides(found: Comparison) -> Iterable[tuple[str, Side]]:
    return (("A", found.first), ("B", found.second))


def _sides_of(runs: Sequence[RunRecord]) -> list[Side]:
    """A side a recipe; a recipe whose runs do not agree in all has one for each kind."""
    groups = group_by(runs, lambda run: (run.recipe, accuracy_key(run), machine_key(run)))
    return [Side(name=group[0].recipe, runs=tuple(group)) for group in groups.values()]


def _pair_row(a: Side, b: Side) -> tuple[str, ...]:
    found = compare(a, b)
    by_name = {quantity.name: quantity for quantity in found.quantities}
    accuracy, time = by_name["test accuracy (%)"], by_name["train time (s), measured"]
    return (
        a.name,
        b.name,
        f"{len(a.runs)} and {len(b.runs)}",
        " and ".join(machine_key(side.runs[0]).devices_cell for side in (a, b)),
        _number(accuracy.change),
        interval_cell(accuracy.interval),
        _number(time.change),
        interval_cell(time.interval),
    )


def _quantity_row(quantity: Quantity) -> tuple[str, ...]:
    change = _number(quantity.change)
    return (
        quantity.name,
        *(_summary_cell(each, quantity.is_ratio) for each in (quantity.first, quantity.second)),
        NOTHING if quantity.is_ratio else change,
        change if quantity.is_ratio else NOTHING,
        interval_cell(quantity.interval),
    )


def _summary_cell(summary: Summary | None, is_time: bool) -> str:
    if summary is None:
        return NOTHING
    mark = f" {UNSTABLE}" if is_time and summary.unstable else ""
    return plus_minus(summary.mean, summary.std) + mark


def _any_unstable(found: Comparison) -> bool:
    return any(
        each is not None and each.unstable
        for quantity in found.quantities
        if quantity.is_ratio
        for each in (quantity.first, quantity.second)
    )


def _field_row(pair: FieldPair) -> tuple[str, ...]:
    return (pair.name, *("; ".join(each) or NOTHING for each in (pair.first, pair.second)))


def _number(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.2f}"


def _summary_json(summary: Summary | None) -> dict[str, Any] | None:
    if summary is None:
        return None
    return {
        "n": summary.n,
        "mean": summary.mean,
        "std": summary.std,
        "values": list(summary.values),
    }


def _interval_json(interval: Interval | None) -> list[float] | None:
    return None if interval is None else [interval.low, interval.high]


def _pairs_json(pairs: Iterable[FieldPair]) -> dict[str, Any]:
    return {pair.name: {"A": list(pair.first), "B": list(pair.second)} for pair in pairs}
