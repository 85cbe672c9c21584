"""What the report says: its summary, its tables, and the sections that they stand in. No torch.

The same records give the same document: nothing holds the present time, and the order is fixed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from bench.analysis.claims import claims_tables
from bench.analysis.comparison import pair_tables
from bench.analysis.energy import energy_table
from bench.analysis.sampling import sampling_blocks
from bench.analysis.stability import stability_table
from bench.document.page import Block, Bullets, Document, Folded, Paragraph, Section
from bench.document.table import Table, counted, plus_minus, summary_cell
from bench.micro.records import MicroRecord
from bench.micro.tables import micro_tables
from bench.planner.check import check_table
from bench.planner.command import scalings
from bench.planner.scaling import scaling_table
from bench.records.grouping import data_of, pool_accuracies
from bench.records.paper_tables import TIME_TO_TARGET, deal, number_machines, table_groups
from bench.records.timing import all_laps_table, lap_table, readings_table
from bench.report.content import Content, warning
from bench.report.figures import Drawn, figure_blocks
from bench.report.paper_tables import judge, time_to_target
from bench.report.recipe_tables import recipe_tables
from bench.report.run_lists import configurations, machines_table, other_runs, runs_table
from bench.report.statistics_table import statistics_tables


@dataclass(frozen=True, kw_only=True)
class ReportFigures:
    """All figures of a report."""

    paper: dict[str, Drawn]
    """The paper's, by their numbers."""
    timing: Drawn
    """Where each second went."""
    speed: Drawn
    """Of the measurements of single parts."""
    scaling: Drawn
    """Phase 1 on more and more devices, as planned."""


def build_document(content: Content, figures: ReportFigures) -> tuple[Document, list[Table]]:
    """Every section of a results folder's report, and every table that gets files of its own.

    These are the sections' own, and those that they have no room for.
    """
    records, skipped = content.records, content.skipped
    headline, warned = speed_table(content.micro), stability_table(records)
    runs, others, laps = runs_table(records), other_runs(records), all_laps_table(records)
    published = [table for table in content.main if table.name == TIME_TO_TARGET]
    beside = [*content.main, *([] if published else [time_to_target(records, content.paper)])]
    energy = energy_table(records)
    figures_of_paper = [
        block for what, drawn in figures.paper.items() for block in figure_blocks(what, drawn)
    ]
    sections = [
        _section("Beside the paper", [*beside, *statistics_tables(records, content.paper)]),
        _section(
            "The paper's claims",
            claims_tables(records, content.paper, content.planes, content.cosines),
        ),
        _section("Independent runs or one (Section 4.1)", sampling_blocks(records)),
        _section("The paper's figures", figures_of_paper),
        _section("The paper's settings", recipe_tables(content.paper)),
        _section("Comparisons", pair_tables(records)),
        _section("Stability", _stability(content, warned)),
        _section("Runs", [table for table in (runs, others) if table.rows]),
        _section(
            "Timing: where each second went",
            [
                *figure_blocks("Laps", figures.timing),
                readings_table(records),
                *([energy] if energy.rows else []),
                *(Folded(summary=r.run_id, table=lap_table(r)) for r in records),
            ],
        ),
        _section(
            "Speed of the parts",
            [
                *([] if headline is None else [headline]),
                *micro_tables(content.micro),
                *(figure_blocks("Speed", figures.speed) if figures.speed else []),
            ],
        ),
        _section(
            "Planned, not measured",
            [
                check_table(content.paper),
                *(scaling_table(each) for each in scalings(content.paper)),
                *(figure_blocks("Scaling", figures.scaling) if figures.scaling else []),
            ],
        ),
        _section("Machines", [machines_table(records)]),
        _section("Configuration", configurations(records)),
        Section(
            title=f"Records left out: {len(skipped)}",
            blocks=(Bullets(items=tuple(skipped)),) if skipped else (),
        ),
        _section(
            "What does not agree in the paper",
            [
                Bullets(
                    items=tuple(
                        f"{each.source}: {each.statement}" for each in content.paper.inconsistencies
                    )
                )
            ],
        ),
    ]
    document = Document(
        title="Results",
        opening=(
            Paragraph(text=warning(content), strong=True),
            summary(content, warned),
            Paragraph(
                text=f"Made from {len(records)} records by python -m bench report; "
                f"{len(skipped)} left out. The same records give the same report."
            ),
        ),
        sections=tuple(each for each in sections if each is not None),
    )
    shown = [b for section in document.sections for b in section.blocks if isinstance(b, Table)]
    files = {table.name: table for table in [*shown, runs, others, laps]}
    return document, list(files.values())


def _stability(content: Content, warned: Table) -> list[Block]:
    if warned.rows or not content.records:
        return [warned] if warned.rows else []
    return [Paragraph(text=f"No warnings. {warned.caption}")]


def _section(title: str, blocks: Sequence[Block]) -> Section | None:
    """A section; None where it would be empty."""
    return Section(title=title, blocks=tuple(blocks)) if blocks else None


# The summary: what was measured, on what, the verdicts, and how sure they are.


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
    """SWAP's final accuracy in each table that has runs of it, beside the published one."""
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
            lines.append(
                f"{table.title(group.size)}, {each.label}, {column.short}: "
                f"{summary_cell(ours, 100)}% on {each.machine.used} (n = {ours.n}), the paper's "
                f"{plus_minus(published.mean, published.sd)}%: "
                f"{judge(ours.scaled(100), published, runs)}."
            )
    return lines


# The speed summary: the few rows of the measurements of single parts that come first.


WHATS = ("step", "data", "jpeg")
"""The order of the measurements."""


def speed_table(records: Sequence[MicroRecord]) -> Table | None:
    """Whole training and batch making, ours and others'; None where neither was measured."""
    rows = [
        row for what in WHATS for record in records if record.what == what for row in _rows(record)
    ]
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
            "Work",
            "Machine",
            "Ours (images/s)",
            "Compared with",
            "Images/s",
            "Times as fast",
        ),
        rows=tuple(rows),
    )


def _rows(record: MicroRecord) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for title, ways in record.results.items():
        others = [way for way in ways if way.is_headline]
        for number, way in enumerate(others):
            least, median, most = way.ratio
            rows.append(
                (
                    *((title, _machine(record)) if number == 0 else ("", "")),
                    f"{ways[0].median:,.0f}" if number == 0 else "",
                    way.name,
                    f"{way.median:,.0f}",
                    f"{median:.2f} ({least:.2f} to {most:.2f})",
                )
            )
    return rows


def _machine(record: MicroRecord) -> str:
    return f"{record.machine['device']}, {counted(record.threads, 'thread')}"
