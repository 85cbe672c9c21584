"""The statistics behind Tables 1 to 4: intervals, and Welch's test against the paper. No torch."""

from collections.abc import Sequence
from functools import partial

from bench.analysis.verdicts import (
    NOT_COMPARED,
    VERDICT_NOTE,
    difference_from,
    is_comparable,
    verdict,
)
from bench.document.table import NOTHING, Table, interval_cell, plus_minus
from bench.records.grouping import (
    Host,
    count_reaching,
    group_by,
    host_of,
    pool_accuracies,
    pool_times,
    target_of,
)
from bench.records.paper import Paper, PaperValue
from bench.records.paper_tables import (
    RUN_TABLES,
    SIZES,
    RowRuns,
    RunTable,
    Size,
    deal,
    number_machines,
    places_of,
)
from bench.records.timing import dawnbench_time
from bench.report.paper_tables import mark_notes, marks_of, time_cell, time_unit
from bench.statistics import (
    BOOTSTRAP_SEED,
    RESAMPLES,
    Summary,
    bootstrap_interval,
    share_interval,
    summarize,
    t_interval,
)
from swap_fast.record import RunRecord

_COLUMNS = (
    "Row",
    "Quantity",
    "n",
    "Mean ± std",
    "95% interval, t",
    "95% interval, BCa",
    "Paper",
    "Difference, 95%",
    "p",
    "Verdict",
)


def statistics_tables(records: Sequence[RunRecord], paper: Paper) -> list[Table]:
    """One for each form of Tables 1 to 4 and each kind of machine that has runs."""
    numbers = number_machines(records)
    groups = [
        (
            table,
            size,
            group_by((r for r in records if table.place(size) in places_of(r)), host_of),
        )
        for table in RUN_TABLES.values()
        for size in SIZES
    ]
    return [
        _statistics_of(table, size, host, numbers[host], runs[host], paper)
        for table, size, runs in groups
        for host in sorted(runs)
    ]


def _statistics_of(
    table: RunTable,
    size: Size,
    host: Host,
    number: int,
    records: Sequence[RunRecord],
    paper: Paper,
) -> Table:
    dealt = [each for each in deal(table, size, records) if each.records]
    rows = [row for each in dealt for row in _rows_of(table, each, paper)]
    return Table(
        name=f"statistics_{table.place(size)}_machine{number}",
        title=f"Statistics of {table.title(size)}, machine {number}",
        caption=f"Every measured quantity of the runs on machine {number}, {host.label}.",
        columns=(_COLUMNS[0], host.devices_head, *_COLUMNS[1:]),
        rows=tuple(rows),
        footnotes=(
            f"BCa: bootstrap with bias correction and acceleration, {RESAMPLES:,} resamples, seed "
            f"{BOOTSTRAP_SEED}; of few runs it is too narrow. Of the share: Wilson's score. "
            "Difference and p: Welch's test against the paper's mean, deviation and n.",
            VERDICT_NOTE,
            *mark_notes(rows),
        ),
    )


def _rows_of(table: RunTable, runs: RowRuns, paper: Paper) -> list[tuple[str, ...]]:
    row, records = runs.row, runs.records
    assert runs.machine is not None, "a row without runs has no statistics"
    rows: list[tuple[str, ...]] = []
    for column in table.accuracies:
        accuracy = pool_accuracies(records, partial(row.accuracy, column))
        if accuracy is not None:
            published = paper.value(table.name, row.label, column.name)
            rows.append(_measured(column.title, accuracy.scaled(100), records, published))
    unit, factor = time_unit(table, paper)
    time = pool_times(records, row.time_s)
    if time is not None:
        published = paper.value(table.name, row.label, "train_time")
        name = f"time ({unit}), measured"
        rows.append(_measured(name, time.scaled(factor), records, published))
    if row.is_final:
        target = target_of(records[0])
        at_target = pool_accuracies(records, partial(row.accuracy, table.target))
        rows.append(_share(at_target, target))
        reached = [t for t in map(dawnbench_time, records) if t is not None]
        if reached:
            name = f"time (s) to {100 * target:g}%, DAWNBench's reading"
            rows.append(_unpublished(name, summarize(reached), records))
    return [(runs.label, runs.machine.devices_cell, *row) for row in rows]


def _measured(
    name: str, ours: Summary, records: Sequence[RunRecord], published: PaperValue
) -> tuple[str, ...]:
    paper = f"{plus_minus(published.mean, published.sd)} (n = {published.n})"
    if not is_comparable(records, published):
        return (*_unpublished(name, ours, records)[:5], paper, NOTHING, NOTHING, NOT_COMPARED)
    difference = difference_from(ours, published)
    return (
        *_unpublished(name, ours, records)[:5],
        paper,
        interval_cell(difference.interval if difference else None),
        f"{difference.p_value:.2g}" if difference else NOTHING,
        verdict(ours, published),
    )


def _unpublished(name: str, ours: Summary, records: Sequence[RunRecord]) -> tuple[str, ...]:
    is_time = name.startswith("time")
    return (
        name,
        str(ours.n),
        time_cell(ours, marks_of(records)) if is_time else plus_minus(ours.mean, ours.std),
        interval_cell(t_interval(ours)),
        interval_cell(bootstrap_interval(ours.values)),
        *[NOTHING] * 4,
    )


def _share(accuracy: Summary | None, target: float) -> tuple[str, ...]:
    values = accuracy.values if accuracy else ()
    count, n = count_reaching(values, target), len(values)
    share = f"{100 * count / n:.0f}" if n else NOTHING
    interval = interval_cell(share_interval(count, n) if n else None, 100, decimals=0)
    name = f"share at {100 * target:g}% or more (%)"
    return (name, str(n), share, interval, *[NOTHING] * 5)
