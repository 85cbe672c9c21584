"""What the report says: its tables, and the sections that they stand in. No torch.

The same records give the same document: nothing holds the present time, and the order is fixed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.analysis.claims import claims_tables
from bench.analysis.comparison_tables import pair_tables
from bench.analysis.energy import energy_table
from bench.analysis.stability import stability_table
from bench.document.page import Block, Bullets, Document, Folded, Paragraph, Section
from bench.document.table import Table
from bench.micro.tables import showable
from bench.planner.check import check_table
from bench.planner.planned import scalings
from bench.planner.scaling import scaling_table
from bench.records.timing import all_laps_table, lap_table, readings_table
from bench.report.configurations import configurations
from bench.report.content import Content, warning
from bench.report.figures import Drawn, figure_blocks
from bench.report.glance import glance
from bench.report.headline import speed_table
from bench.report.lists import machines_table, other_runs, runs_table
from bench.report.paper_tables import time_to_target
from bench.report.recipe_tables import recipe_tables
from bench.report.sampling import sampling_blocks
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


def build_document(content: Content, results: Path, figures: ReportFigures) -> Document:
    """Every section of a results folder's report, from its records."""
    records = content.records
    measured, unmeasured = showable(results / "micro")
    headline = speed_table([record for record, _ in measured])
    skipped = [*content.skipped, *unmeasured]
    published = time_to_target(records, content.paper)
    beside = [*content.main, *([] if published in content.main else [published])]
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
        _section("Stability", _stability(content)),
        _section("Runs", [t for t in (runs_table(records), other_runs(records)) if t.rows]),
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
                *(table for _, tables in measured for table in tables),
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
    return Document(
        title="Results",
        opening=(
            Paragraph(text=warning(content), strong=True),
            glance(content),
            Paragraph(
                text=f"Made from {len(records)} records by python -m bench report; "
                f"{len(skipped)} left out. The same records give the same report."
            ),
        ),
        sections=tuple(each for each in sections if each is not None),
    )


def _stability(content: Content) -> list[Block]:
    warned = stability_table(content.records)
    if warned.rows or not content.records:
        return [warned] if warned.rows else []
    return [Paragraph(text=f"No warnings. {warned.caption}")]


def tables_of(document: Document, content: Content) -> list[Table]:
    """Every table that gets files of its own: the document's, and what it has no room for."""
    records = content.records
    shown = [b for section in document.sections for b in section.blocks if isinstance(b, Table)]
    unseen = [runs_table(records), other_runs(records), all_laps_table(records)]
    return list({table.name: table for table in [*shown, *unseen]}.values())


def _section(title: str, blocks: Sequence[Block]) -> Section | None:
    """A section; None where it would be empty."""
    return Section(title=title, blocks=tuple(blocks)) if blocks else None
