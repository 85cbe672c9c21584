"""Behind Tables 1 to 4: intervals, tests against the paper, each two rows compared. No torch."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import combinations

from bench.document import (
    NOTHING,
    OTHER_WORK,
    Table,
    interval_cell,
    mark_notes,
    number_cell,
    plus_minus,
    rows_of,
    summary_cell,
)
from bench.records.grouping import (
    accuracy_key,
    count_reaching,
    group_by,
    machine_key,
    pool_accuracies,
    pool_times,
    scale_note,
    timed_alone,
)
from bench.records.paper import (
    NOT_COMPARED,
    VERDICT_NOTE,
    Paper,
    PaperValue,
    difference_from,
    is_comparable,
    judge,
)
from bench.records.paper_tables import RowRuns, RunTable, TableGroup, deal, table_groups
from bench.records.timing import dawnbench_time
from bench.report.compare import (
    METHOD_NOTE,
    TEST_ACCURACY,
    TRAIN_TIME,
    Comparison,
    Quantity,
    Side,
    compare,
)
from bench.report.paper_tables import marks_of, time_cell, time_unit
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


def statistics_tables(records: Sequence[RunRecord], paper: Paper) -> list[Table]:
    """One for each form of Tables 1 to 4 and each kind of machine that has runs."""
    return [_statistics_of(group, paper) for group in table_groups(records)]


def _statistics_of(group: TableGroup, paper: Paper) -> Table:
    table, host = group.table, group.host
    dealt = [each for each in deal(table, group.size, group.records) if each.records]
    rows = [row for each in dealt for row in _rows_of(table, each, paper)]
    return Table(
        name=f"statistics_{group.name}",
        title=f"Statistics of {group.title}",
        caption=f"Every measured quantity of the runs on machine {group.number}, {host.label}.",
        columns=(
            "Row",
            host.devices_head,
            "Quantity",
            "n",
            "Mean ± std",
            "95% interval, t",
            "95% interval, BCa",
            "Paper",
            "Difference, 95%",
            "p",
            "Verdict",
        ),
        rows=tuple(rows),
        footnotes=(
            f"BCa: bootstrap with bias correction and acceleration, {RESAMPLES:,} resamples, seed "
            f"{BOOTSTRAP_SEED}; of few runs it is too narrow. Of the share: Wilson's score. "
            "Difference and p: Welch's test against the paper's mean, deviation and n.",
            VERDICT_NOTE,
            "Times: of the runs beside which no other programs ran, where a row has any.",
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
            ours = accuracy.scaled(100)
            published = paper.value(table.name, row.label, column.name)
            cells = _ours(column.title, ours, summary_cell(ours))
            rows.append((*cells, *_against_paper(ours, records, published)))
    unit, factor = time_unit(table, paper)
    time, marks = pool_times(records, row.time_s), marks_of(records)
    if time is not None:
        ours = time.scaled(factor)
        published = paper.value(table.name, row.label, "train_time")
        cells = _ours(f"time ({unit}), measured", ours, time_cell(ours, marks))
        rows.append((*cells, *_against_paper(ours, records, published)))
    if row.is_final:
        target = records[0].settings.target_accuracy
        at_target = pool_accuracies(records, partial(row.accuracy, table.target))
        rows.append(_share(at_target, target))
        reached = [t for t in map(dawnbench_time, timed_alone(records)) if t is not None]
        if reached:
            name = f"time (s) to {100 * target:g}%, DAWNBench's reading"
            ours = summarize(reached)
            rows.append((*_ours(name, ours, time_cell(ours, marks)), *[NOTHING] * 4))
    return [(runs.label, runs.machine.devices_cell, *row) for row in rows]


def _ours(name: str, ours: Summary, cell: str) -> tuple[str, ...]:
    """The first five cells of a quantity."""
    bca = interval_cell(bootstrap_interval(ours.values))
    return (name, str(ours.n), cell, interval_cell(t_interval(ours)), bca)


def _against_paper(
    ours: Summary, records: Sequence[RunRecord], published: PaperValue
) -> tuple[str, ...]:
    """The last four: the published figure, and ours against it where it is comparable."""
    paper = f"{plus_minus(published.mean, published.sd)} (n = {published.n})"
    if not is_comparable(records, published):
        return (paper, NOTHING, NOTHING, NOT_COMPARED)
    difference = difference_from(ours, published)
    return (
        paper,
        interval_cell(difference.interval if difference else None),
        f"{difference.p_value:.2g}" if difference else NOTHING,
        judge(ours, published, records),
    )


def _share(accuracy: Summary | None, target: float) -> tuple[str, ...]:
    values = accuracy.values if accuracy else ()
    count, n = count_reaching(values, target), len(values)
    share = f"{100 * count / n:.0f}" if n else NOTHING
    interval = interval_cell(share_interval(count, n) if n else None, 100, decimals=0)
    name = f"share at {100 * target:g}% or more (%)"
    return (name, str(n), share, interval, *[NOTHING] * 5)


# Each two rows of a table, compared.


def pair_tables(records: Sequence[RunRecord]) -> list[Table]:
    """Each two recipes of each of the paper's tables, where both ran on one kind of machine.

    Runs of one recipe in another precision, or on other numbers of its devices, are a side of
    their own. Two sides of unlike precision are no pair.
    """
    tables = [_pair_table(group) for group in table_groups(records)]
    return [table for table in tables if table.rows]


def _pair_table(group: TableGroup) -> Table:
    def sides(cell: Callable[[Side], str]) -> Callable[[Comparison], str]:
        return lambda found: f"{cell(found.first)} and {cell(found.second)}"

    def of(name: str, cell: Callable[[Quantity], str]) -> Callable[[Comparison], str]:
        return lambda found: cell(next(q for q in found.quantities if q.name == name))

    def ratio(found: Comparison) -> str:
        text = of(TRAIN_TIME, lambda q: number_cell(q.change))(found)
        return text if text == NOTHING else text + _mark(found)

    all_sides = _sides_of(group.records)
    pairs = [
        compare(*two) for two in combinations(all_sides, 2) if len({*map(_precision, two)}) == 1
    ]
    columns: dict[str, Callable[[Comparison], str]] = {
        "A": lambda found: found.first.name,
        "B": lambda found: found.second.name,
        "Runs": sides(lambda side: str(len(side.runs))),
        group.host.devices_head: sides(lambda side: machine_key(side.runs[0]).devices_cell),
        "Accuracy, B - A (points)": of(TEST_ACCURACY, lambda q: number_cell(q.change)),
        "its 95% interval": of(TEST_ACCURACY, lambda q: interval_cell(q.interval)),
        "Time, measured, B / A": ratio,
        "its 95% interval (ratio)": of(TRAIN_TIME, lambda q: interval_cell(q.interval)),
    }
    return Table(
        name=f"pairs_{group.name}",
        title=f"Pairs of {group.title}",
        caption=f"Any two: python -m bench compare A B. On {group.host.label}."
        + scale_note(group.records),
        columns=tuple(columns),
        rows=rows_of(columns, pairs),
        footnotes=(
            METHOD_NOTE,
            *([BESIDE_NOTE] if any(map(_mark, pairs)) else []),
            *(
                f"{side.name}: times of {len(side.timed)} of {len(side.runs)} runs; other programs "
                "ran beside the rest."
                for side in all_sides
                if len(side.timed) < len(side.runs)
            ),
        ),
    )


BESIDE_NOTE = (
    f"{OTHER_WORK} other_work: other programs ran on the machine meanwhile, in every run of A, of "
    "B, or of both."
)


def _mark(found: Comparison) -> str:
    """Behind the ratio of two times."""
    return f" {OTHER_WORK}" if found.first.mark or found.second.mark else ""


def _precision(side: Side) -> str:
    return accuracy_key(side.runs[0]).precision


def _sides_of(runs: Sequence[RunRecord]) -> list[Side]:
    """A side a recipe; a recipe whose runs do not agree in all has one for each kind."""
    groups = group_by(runs, lambda run: (run.recipe, accuracy_key(run), machine_key(run)))
    in_several = len({accuracy_key(run).precision for run in runs}) > 1
    return [
        Side(name=f"{recipe}, {key.precision}" if in_several else recipe, runs=tuple(group))
        for (recipe, key, _), group in groups.items()
    ]
