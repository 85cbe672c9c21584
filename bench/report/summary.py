"""The report at one look: what was measured, on what, how it compares, how sure and how fast it is.

No torch.
"""

from collections.abc import Sequence
from functools import partial

from bench.document import Bullets, Table, counted, plus_minus, summary_cell
from bench.micro.records import MicroRecord
from bench.records.grouping import data_of, pool_accuracies
from bench.records.paper import NOT_COMPARED, judge
from bench.records.paper_tables import deal, number_machines, table_groups
from bench.report.content import Content


def summary(content: Content, warned: Table) -> Bullets:
    """A few sentences, each from the records."""
    records = content.records
    if not records:
        return Bullets(items=("Measured: nothing yet.",))
    recipes = {record.recipe for record in records}
    count = len(warned.rows)
    return Bullets(
        items=(
            f"Measured: {len(records)} runs of {len(recipes)} recipes on {data_of(records)}.",
            *(f"Machine {n}: {host.label}." for host, n in number_machines(records).items()),
            *_verdicts(content),
            f"Stability: {counted(count, 'warning')}; see what to do."
            if count
            else "Stability: no warnings.",
        )
    )


def _verdicts(content: Content) -> list[str]:
    """SWAP's final accuracy in each table that has runs of it, and the published one."""
    lines = []
    for group in table_groups(content.records):
        table, column = group.table, group.table.target
        for each in deal(table, group.size, group.records):
            row, runs = each.row, each.records
            if each.machine is None or not row.is_final or runs[0].method != "swap":
                continue
            ours = pool_accuracies(runs, partial(row.accuracy, column))
            if ours is None:
                continue
            published = content.paper.value(table.name, row.label, column.name)
            verdict = judge(ours.scaled(100), published, runs)
            lines.append(
                f"{table.title(group.size)}, {each.label}, {column.short}: "
                f"{summary_cell(ours, 100)}% on {each.machine.used} (n = {ours.n}), the paper's "
                f"{plus_minus(published.mean, published.sd)}%"
                + (f": {verdict}." if verdict != NOT_COMPARED else ".")
            )
    return lines


# The speed summary: the few rows of the measurements of single parts that come first.


WHATS = ("step", "data", "jpeg")
"""The order of the measurements."""


def speed_table(records: Sequence[MicroRecord]) -> Table | None:
    """Whole training and batch making, ours and others'; None where neither was measured."""
    ordered = [record for what in WHATS for record in records if record.what == what]
    rows = tuple(row for record in ordered for row in _speed_rows(record))
    if not rows:
        return None
    return Table(
        name="micro_speed",
        title="Ours and other implementations",
        caption=(
            "Variants that took turns; how many times as fast ours is, round by round, as the "
            "median and the range of the rounds."
        ),
        columns=(
            *("Work", "Machine", "Ours (images/s)"),
            *("Compared with", "Images/s", "Times as fast"),
        ),
        rows=rows,
    )


def _speed_rows(record: MicroRecord) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for title, timings in record.results.items():
        first = (title, _machine(record), f"{timings[0].median:,.0f}")
        for timing in (timing for timing in timings if timing.is_headline):
            least, median, most = timing.ratio
            times = f"{median:.2f} ({least:.2f} to {most:.2f})"
            rows.append((*first, timing.name, f"{timing.median:,.0f}", times))
            first = ("", "", "")
    return rows


def _machine(record: MicroRecord) -> str:
    return f"{record.machine['device']}, {counted(record.threads, 'thread')}"
