"""A comparison as tables and as JSON; and the pairs of a report's tables. No torch."""

from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import Any

from bench.analysis.comparison import Comparison, FieldPair, Quantity, Side, compare
from bench.document.table import NOTHING, UNSTABLE, UNSTABLE_NOTE, Table, interval_cell, plus_minus
from bench.intervals import Interval
from bench.records.grouping import Summary, accuracy_key, group_by, host_of, machine_key, scale_note
from bench.records.paper_tables import RUN_TABLES, SIZES
from bench.records.places import number_machines, places_of
from swap_fast.record import RunRecord

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
