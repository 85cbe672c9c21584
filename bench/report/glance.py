"""The report at one look: what was measured, on what, the verdict, and how sure it is. No torch."""

from functools import partial

from bench.analysis.stability import stability_table
from bench.analysis.verdicts import NOT_COMPARED, is_comparable, verdict
from bench.document.page import Bullets
from bench.document.table import plus_minus
from bench.records.grouping import group_by, host_of, pool_accuracies
from bench.records.paper_tables import RUN_TABLES, SIZES, deal
from bench.records.places import number_machines, places_of
from bench.report.content import Content


def glance(content: Content) -> Bullets:
    """A few sentences, each from the records."""
    records = content.records
    recipes = sorted({record.recipe for record in records})
    data = sorted({f"{r.data.get('name')} ({r.data.get('kind')})" for r in records})
    lines = [
        f"Measured: {len(records)} runs of {len(recipes)} recipes on {', '.join(data)}."
        if records
        else "Measured: nothing yet.",
        *(f"Machine {number}: {host.label}." for host, number in number_machines(records).items()),
        *_verdicts(content),
    ]
    warned = stability_table(records).rows
    if records:
        lines.append(
            f"Stability: {len(warned)} warning{'' if len(warned) == 1 else 's'}; see what to do."
            if warned
            else "Stability: no warnings."
        )
    return Bullets(items=tuple(lines))


def _verdicts(content: Content) -> list[str]:
    """SWAP's final accuracy in each table that has runs of it, beside the published one."""
    lines = []
    for table in RUN_TABLES.values():
        for size in SIZES:
            standing = [r for r in content.records if table.place(size) in places_of(r)]
            for runs in group_by(standing, host_of).values():
                for each in deal(table, size, runs):
                    if each.machine is None:
                        continue
                    if not (each.row.is_final and each.records[0].method == "swap"):
                        continue
                    column = table.target
                    ours = pool_accuracies(each.records, partial(each.row.accuracy, column))
                    if ours is None:
                        continue
                    published = content.paper.value(table.name, each.row.label, column.name)
                    percent = plus_minus(100 * ours.mean, ours.scaled(100).std)
                    judged = (
                        verdict(ours.scaled(100), published)
                        if is_comparable(each.records, published)
                        else NOT_COMPARED
                    )
                    lines.append(
                        f"{table.title(size)}, {each.label}, {column.short}: "
                        f"{percent}% on {each.machine.used} "
                        f"(n = {ours.n}), the paper's {plus_minus(published.mean, published.sd)}%: "
                        f"{judged}."
                    )
    return lines
