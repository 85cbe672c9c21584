"""What the report says: its summary, its figures and tables, and their sections. No torch.

The same records give the same document: nothing holds the present time, and the order is fixed.
matplotlib is an extra: without it there are no figures, and the report says so.
"""

import importlib.util
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from bench.document.page import Block, Bullets, Document, Figure, Folded, Paragraph, Section
from bench.document.table import Table, counted, plus_minus, summary_cell
from bench.landscape.plots import cosine_figure, plane_figure
from bench.landscape.records import LandscapeRecord
from bench.micro.records import MicroRecord
from bench.micro.tables import micro_figures, micro_tables
from bench.planner.check import check_table
from bench.planner.command import scalings
from bench.planner.scaling import scaling_figure, scaling_table
from bench.plots.schedules import figure_5, figure_6
from bench.plots.training import figure_1, timing_figure
from bench.records.grouping import data_of, group_by, host_of, machine_key, pool_accuracies
from bench.records.paper import judge
from bench.records.paper_tables import (
    OTHER,
    TIME_TO_TARGET,
    deal,
    number_machines,
    place_of,
    table_groups,
    why_other,
)
from bench.records.timing import all_laps_table, energy_table, lap_table, readings_table
from bench.report.claims import claims_tables
from bench.report.comparison import pair_tables
from bench.report.content import Content, warning
from bench.report.paper_tables import recipe_tables, time_to_target
from bench.report.run_lists import (
    configurations,
    machines_table,
    other_runs,
    runs_table,
    stability_table,
)
from bench.report.sampling import sampling_blocks
from bench.report.statistics_table import statistics_tables
from swap_fast.record import RunRecord

Drawn = dict[str, list[Path]]
"""The files of each figure, SVG first, by what it shows."""

TIMING, SPEED, SCALING = "Laps", "Speed", "Scaling"
"""The report's own figures: where each second went, of the measurements of single
parts, and phase 1 on more and more devices, as planned."""

MOST_LAP_TABLES = 200
"""More runs than this have no table of their own laps in the report, which would only be slow."""

SHOWN = {
    2: "train and test error on the plane through LB, SGD and SWAP",
    3: "train and test error on the plane through three workers",
    4: "cosine of -g and the direction to the output of SWAP",
}
"""What the figures of landscapes show."""


def draw_figures(content: Content, folder: Path, figure_run: str | None) -> dict[str, Drawn]:
    """Draw all figures: the paper's by number in its order, then the report's own."""
    paper = [f"Figure {number}" for number in range(1, 7)]
    if importlib.util.find_spec("matplotlib") is None:
        return {what: {} for what in (*paper, TIMING, SPEED, SCALING)}
    numbers, records = number_machines(content.records), content.records
    drawn = {"Figure 1": _figures_1(records, folder, figure_run)}
    for number in (2, 3):
        planes = [plane for plane in content.planes if plane.figure == number]
        drawn[f"Figure {number}"] = {_of_run(each): plane_figure(each, folder) for each in planes}
    drawn["Figure 4"] = {_of_run(path): cosine_figure(path, folder) for path in content.cosines}
    drawn["Figure 5"] = {"ImageNet's schedules, from the recipes": figure_5(folder)}
    drawn["Figure 6"] = {"schedules of SWA and SWAP, from the recipes": figure_6(folder)}
    drawn[TIMING] = {
        f"machine {numbers[host]}": timing_figure(group, folder, f"timing-machine{numbers[host]}")
        for host, group in group_by(records, host_of).items()
    }
    drawn[SPEED] = micro_figures(content.micro, folder)
    drawn[SCALING] = {
        f"phase 1 of {each.work.name}, modelled": scaling_figure(each, folder)
        for each in scalings(content.paper)
    }
    return drawn


def figure_blocks(what: str, drawn: Drawn) -> list[Block]:
    """Each figure with a caption that says what it is; or a line that says why there is none."""
    if not drawn:
        why = "no figure (no run of its kind, or matplotlib is not installed)"
        return [Paragraph(text=f"{what}: {why}.")]
    return [
        Figure(caption=f"{what}: {title}", svg=svg, png=png) for title, (svg, png) in drawn.items()
    ]


def _of_run(record: LandscapeRecord) -> str:
    return f"{SHOWN[record.figure]}, {record.run_id}"


def _figures_1(records: Sequence[RunRecord], folder: Path, figure_run: str | None) -> Drawn:
    """Figure 1 for each SWAP recipe and machine."""
    figures: Drawn = {}
    numbers = number_machines(records)
    swap = [record for record in records if record.method == "swap"]
    for (recipe, host, other), group in group_by(
        swap, lambda r: (r.recipe, host_of(r), place_of(r) == OTHER)
    ).items():
        shown = next((r for r in group if r.run_id == figure_run), group[0])
        name = f"figure1-{re.sub(r'[^A-Za-z0-9_-]', '-', recipe)}-machine{numbers[host]}"
        why = f" ({why_other(shown)})" if other else ""
        title = f"{shown.run_id}{why}, {machine_key(shown).label}"
        figures[title] = figure_1(shown, folder, f"{name}-other" if other else name)
    return figures


# The document.


def build_document(content: Content, figures: dict[str, Drawn]) -> tuple[Document, list[Table]]:
    """Every section of a results folder's report, and every table that gets files of its own.

    These are the sections' own, and those that they have no room for.
    """
    records, skipped = content.records, content.skipped
    headline, warned = speed_table(content.micro), stability_table(records)
    runs, others, laps = runs_table(records), other_runs(records), all_laps_table(records)
    main = content.main
    if not any(table.name == TIME_TO_TARGET for table in main):
        main = [*main, time_to_target(records, content.paper)]
    energy = energy_table(records)
    drawn = {what: figure_blocks(what, figures[what]) for what in figures}
    sections: dict[str, Sequence[Block]] = {
        "Compared with the paper": [*main, *statistics_tables(records, content.paper)],
        "The paper's claims": claims_tables(
            records, content.paper, content.planes, content.cosines
        ),
        "Independent runs or one (Section 4.1)": sampling_blocks(records),
        "The paper's figures": [
            block for what in drawn if what.startswith("Figure ") for block in drawn[what]
        ],
        "The paper's settings": recipe_tables(content.paper),
        "Comparisons": pair_tables(records),
        "Stability": _stability(content, warned),
        "Runs": [table for table in (runs, others) if table.rows],
        "Timing: where each second went": [
            *drawn[TIMING],
            readings_table(records),
            *([energy] if energy.rows else []),
            *_laps_by_run(records),
        ],
        "Speed of the parts": [
            *([] if headline is None else [headline]),
            *micro_tables(content.micro),
            *(drawn[SPEED] if figures[SPEED] else []),
        ],
        "Planned, not measured": [
            check_table(content.paper),
            *(scaling_table(each) for each in scalings(content.paper)),
            *(drawn[SCALING] if figures[SCALING] else []),
        ],
        "Machines": [machines_table(records)],
        "Configuration": configurations(records),
    }
    left_out = f"Records left out: {len(skipped)}"
    sections[left_out] = [Bullets(items=tuple(skipped))] if skipped else []
    sections["What does not agree in the paper"] = [
        Bullets(items=tuple(f"{it.source}: {it.statement}" for it in content.paper.inconsistencies))
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
        sections=tuple(
            Section(title=title, blocks=tuple(blocks))
            for title, blocks in sections.items()
            if blocks or title == left_out
        ),
    )
    shown = [b for section in document.sections for b in section.blocks if isinstance(b, Table)]
    files = {table.name: table for table in [*shown, runs, others, laps]}
    return document, list(files.values())


def _laps_by_run(records: Sequence[RunRecord]) -> list[Block]:
    if len(records) > MOST_LAP_TABLES:
        return [Paragraph(text=f"The laps of all {len(records):,} runs are in tables/laps.csv.")]
    return [Folded(summary=record.run_id, table=lap_table(record)) for record in records]


def _stability(content: Content, warned: Table) -> list[Block]:
    if warned.rows or not content.records:
        return [warned] if warned.rows else []
    return [Paragraph(text=f"No warnings. {warned.caption}")]


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
