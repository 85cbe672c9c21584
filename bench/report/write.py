"""The report: what it says, and every table and figure of a results folder's records. No torch.

The same records give the same document: nothing holds the present time, and the order is fixed.
matplotlib is an extra: without it there are no figures, and the report says so.
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING

from bench.document import (
    MARKS,
    NOTHING,
    Block,
    Bullets,
    Document,
    Figure,
    Folded,
    Paragraph,
    Section,
    Table,
    document_to_html,
    document_to_markdown,
    escape_markdown,
    mark_notes,
    percent,
    show_table,
    to_markdown,
    write_table,
)
from bench.landscape.plots import cosine_figure, plane_figure
from bench.landscape.records import LandscapeRecord, PlaneRecord
from bench.micro.tables import micro_figures, micro_tables
from bench.planner.check import check_table
from bench.planner.command import scalings
from bench.planner.forms import headline_table
from bench.planner.scaling import scaling_figure, scaling_table
from bench.plots.schedules import figure_5, figure_6
from bench.plots.training import figure_1, timing_figure
from bench.records.grouping import group_by, host_of, machine_key
from bench.records.paper_tables import (
    LANDSCAPES,
    OTHER,
    TIME_TO_TARGET,
    number_machines,
    place_of,
    table_groups,
    why_other,
)
from bench.records.timing import all_laps_table, energy_table, lap_table, readings_table
from bench.report.claims_tables import claims_of
from bench.report.content import Content, overview, speed_table, summary, warning
from bench.report.paper_tables import AT_TARGET, N, recipe_tables, time_to_target
from bench.report.run_lists import (
    RECIPE,
    configurations,
    machines_table,
    other_runs,
    runs_table,
    stability_table,
)
from bench.report.sampling import sampling_blocks
from bench.report.statistics_table import pair_tables, statistics_tables
from swap_fast.record import RunRecord

if TYPE_CHECKING:
    from rich.console import Console

Drawn = dict[str, Path]
"""The file of each figure, by what it shows."""

TIMING, SPEED, SCALING = "Laps", "Speed", "Scaling"
"""The report's own figures: where each second went, of the measurements of single
parts, and phase 1 on more and more devices, as planned."""

MOST_LISTED = 20
"""More runs than this are listed in the appendix, not in the report."""

MOST_LAP_TABLES = 200
"""More runs than this have no table of their own laps in the appendix."""

SHOWN = {
    2: "train and test error on the plane through LB (the end of phase 1), SGD (a worker's end) "
    "and SWAP (the average)",
    3: "train and test error on the plane through three workers",
    4: "cosine of -g and the direction to the output of SWAP, at the end of each epoch",
}
"""What the figures of landscapes show."""

OFF_PLANE = 0.01
"""A distance from the plane, in weight space, that is no rounding."""

LIMITS = "Limits"
"""A section of what is written by hand about a folder's runs."""


def draw_figures(content: Content, folder: Path) -> dict[str, Drawn]:
    """Draw all figures: the paper's by number in its order, then the report's own."""
    paper = [f"Figure {number}" for number in range(1, 7)]
    if importlib.util.find_spec("matplotlib") is None:
        return {what: {} for what in (*paper, TIMING, SPEED, SCALING)}
    numbers, records = number_machines(content.records), content.records
    shown = group_by(records, attrgetter("recipe"))
    # The first of each is shown first: of a run in the first table, or shown for its size.
    in_tables = [
        record.run_id
        for group in table_groups(records)
        for record in (*group.records, *shown.get(LANDSCAPES.get(group.size), ()))
    ]
    place = {run: i for i, run in enumerate(dict.fromkeys(in_tables))}

    def order(record: RunRecord | LandscapeRecord) -> int:
        return place.get(record.run_id, len(place))

    drawn = {"Figure 1": _figures_1(sorted(records, key=order), folder)}
    for number in (2, 3):
        planes = sorted((p for p in content.planes if p.figure == number), key=order)
        drawn[f"Figure {number}"] = {_of_plane(each): plane_figure(each, folder) for each in planes}
    drawn["Figure 4"] = {
        f"{SHOWN[4]}. {path.run_id}": cosine_figure(path, folder)
        for path in sorted(content.cosines, key=order)
    }
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
    return [Figure(caption=f"{what}: {title}", svg=svg) for title, svg in drawn.items()]


def _of_plane(plane: PlaneRecord) -> str:
    """What a figure shows, of which run, and how it was measured."""
    off, settings = max(point.off_plane for point in plane.marked), plane.settings
    grid = f"{len(plane.betas)} x {len(plane.alphas)} points"
    images = ", ".join(
        f"{settings[name]:,} {name.replace('_', ' ')}"
        for name in ("train_images", "test_images")
        if name in settings
    )
    beside = f"; SWAP is {off:.1f} off the plane" if off > OFF_PLANE else ""
    return f"{SHOWN[plane.figure]}{beside}. {grid}, {images}. {plane.run_id}"


def _figures_1(records: Sequence[RunRecord], folder: Path) -> Drawn:
    """Figure 1 for each SWAP recipe and machine: of the run with the lowest seed."""
    figures: Drawn = {}
    numbers = number_machines(records)
    swap = [record for record in records if record.method == "swap"]
    for (recipe, host, other), group in group_by(
        swap, lambda r: (r.recipe, host_of(r), place_of(r) == OTHER)
    ).items():
        shown = group[0]
        name = f"figure1-{re.sub(r'[^A-Za-z0-9_-]', '-', recipe)}-machine{numbers[host]}"
        why = f" ({why_other(shown)})" if other else ""
        title = f"{_of_training(shown)} {shown.run_id}{why}, {machine_key(shown).label}"
        figures[title] = figure_1(shown, folder, f"{name}-other" if other else name)
    return figures


def _of_training(record: RunRecord) -> str:
    """What Figure 1 shows, and what its run ended with."""
    workers, before = record.worker_accuracies, record.accuracy_before_averaging
    assert before is not None, "SWAP averages"
    ends = f"{percent(min(workers))} to {percent(max(workers))}%, on average {percent(before)}%"
    return (
        f"learning rates and test accuracies of one run of SWAP. Its {len(workers)} workers end "
        f"at {ends}; their average at {percent(record.test_accuracy)}%."
    )


# The document.


def build_document(
    content: Content, figures: dict[str, Drawn]
) -> tuple[Document, Document, list[Table]]:
    """The report, its appendix, and every table that gets files of its own.

    The report begins with what most readers want: the first main table and Figure 1. The appendix
    has what a few look up: tables at CPU size of which there is a nearer form, statistics,
    settings, laps, whole configurations, and the other figures.
    """
    records, skipped = content.records, content.skipped
    at_one_look = overview(content)
    speed, warned = speed_table(content.micro), stability_table(records)
    runs, others, laps = runs_table(records), other_runs(records), all_laps_table(records)
    main = content.main
    if not any(table.name == TIME_TO_TARGET for table in main):
        main = [*main, time_to_target(records, content.paper)]
    claims = claims_of(records, content.paper, content.planes, content.cosines)
    energy, plans = energy_table(records), scalings(content.paper)
    headline = headline_table(content.paper)
    drawn = {what: figure_blocks(what, figures[what]) for what in figures}
    paper = [blocks for what, blocks in drawn.items() if what.startswith("Figure ")]
    # A run's name begins with its recipe's.
    listed = [without(fold_constants(table), {RECIPE}) for table in (runs, others) if table.rows]
    is_long = len(records) > MOST_LISTED
    lists = [f"tables/{table.name}.md and .csv" for table in (runs, others) if table.rows]
    left_out = f"Records left out: {len(skipped)}"
    document = _document(
        "Results",
        (
            Paragraph(text=warning(content), strong=True),
            summary(content, claims, warned),
            *([] if at_one_look is None else [fold_constants(at_one_look)]),
            paper[0][0],
            fold_constants(main[0]),
        ),
        {
            LIMITS: [Bullets(items=content.limits)] if content.limits else [],
            "The paper's claims": [] if claims.nearest is None else [claims.nearest],
            "Compared with the paper": [fold_constants(table) for table in notes_once(main)[1:]],
            "Planned": [fold_constants(headline)],
            "Independent runs or one (Section 4.1)": sampling_blocks(records),
            "The paper's other figures": [blocks[0] for blocks in paper[1:]],
            "Speed of the parts": [] if speed is None else [speed],
            "Runs": [Paragraph(text=f"All {len(records):,} runs are in {' and '.join(lists)}.")]
            if is_long
            else listed,
            left_out: [Bullets(items=tuple(skipped))] if skipped else [],
            "What does not agree in the paper": [
                Bullets(
                    items=tuple(
                        f"{it.source}: {it.statement}" for it in content.paper.inconsistencies
                    )
                )
            ],
            "How this was made": [
                Paragraph(
                    text=f"From {len(records)} records by python -m bench report; {len(skipped)} "
                    "left out. The same records give the same report. With --appendix it also "
                    "writes first looks, statistics, settings, laps and the other figures."
                )
            ],
        },
        always=left_out,
    )
    appendix = _document(
        "Appendix of the results",
        (Paragraph(text=warning(content), strong=True),),
        {
            "The paper's claims at all sizes": [] if claims.table is None else [claims.table],
            "First looks: at CPU size": [*map(fold_constants, content.first_looks)],
            "Statistics": statistics_tables(records, content.paper),
            "Comparisons": pair_tables(records),
            "The paper's settings": recipe_tables(content.paper),
            "Figures": [block for blocks in paper for block in blocks[1:]],
            "Timing: where each second went": [
                *drawn[TIMING],
                readings_table(records),
                *([energy] if energy.rows else []),
                *_laps_by_run(records),
            ],
            "Speed of the parts": [
                *micro_tables(content.micro),
                *(drawn[SPEED] if figures[SPEED] else []),
            ],
            "Planned, not measured": [
                check_table(content.paper),
                *map(scaling_table, plans),
                *(drawn[SCALING] if figures[SCALING] else []),
            ],
            "Stability": _stability(content, warned),
            "Machines": [machines_table(records)],
            "Runs": listed if is_long else [],
            "Configuration": configurations(records),
        },
    )
    shown = [
        *main,
        headline,
        *content.first_looks,
        *([] if claims.table is None else [claims.table]),
        *([] if speed is None else [speed]),
    ]
    shown += [runs, others, laps]
    shown += [
        block
        for each in (document, appendix)
        for section in each.sections
        for block in section.blocks
        if isinstance(block, Table)
    ]
    # The first of a name: whole, as files have room for constant columns.
    files = {table.name: table for table in reversed(shown)}
    return document, appendix, list(files.values())


def _document(
    title: str,
    opening: tuple[Block, ...],
    sections: dict[str, Sequence[Block]],
    always: str = "",
) -> Document:
    """A document of the sections that are not empty, and of one that may be."""
    return Document(
        title=title,
        opening=opening,
        sections=tuple(
            Section(title=name, blocks=tuple(blocks))
            for name, blocks in sections.items()
            if blocks or name == always
        ),
    )


def _laps_by_run(records: Sequence[RunRecord]) -> list[Block]:
    if len(records) > MOST_LAP_TABLES:
        return [Paragraph(text=f"The laps of all {len(records):,} runs are in tables/laps.csv.")]
    return [Folded(summary=record.run_id, table=lap_table(record)) for record in records]


def _stability(content: Content, warned: Table) -> list[Block]:
    if warned.rows or not content.records:
        return [warned] if warned.rows else []
    return [Paragraph(text=f"No warnings. {warned.caption}")]


def without(table: Table, left_out: Collection[str]) -> Table:
    """The table without those of its columns."""
    kept = [i for i, column in enumerate(table.columns) if column not in left_out]
    return replace(
        table,
        columns=tuple(table.columns[i] for i in kept),
        rows=tuple(tuple(row[i] for i in kept) for row in table.rows),
    )


def fold_constants(table: Table) -> Table:
    """A table without the columns that have one and the same cell: the caption has it instead."""
    if len(table.rows) < 2:
        return table
    columns = zip(table.columns, zip(*table.rows, strict=True), strict=True)
    constant = {name: cells[0] for name, cells in list(columns)[1:] if len({*cells}) == 1}
    said = [f"{column}: {cell}." for column, cell in constant.items() if cell != NOTHING]
    return replace(without(table, constant), caption=" ".join([table.caption, *said]))


def notes_once(tables: Iterable[Table]) -> list[Table]:
    """Tables on one page: a note that stood under one is left out below, but for those on marks."""
    seen: set[str] = set()
    once = []
    for table in tables:
        kept = tuple(n for n in table.footnotes if n not in seen or n[:1] in MARKS)
        if len(kept) < len(table.footnotes):
            kept += ("Further notes: as under the tables above.",)
        seen |= {*table.footnotes}
        once.append(replace(table, footnotes=kept))
    return once


# Pages that are written by hand but for what is between two markers.

BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"
"""What is between these lines of a README is generated."""
SPEED_BEGIN, SPEED_END = "<!-- speed:begin -->", "<!-- speed:end -->"
"""Likewise, of a README that has them."""
MICRO_BEGIN, MICRO_END = "<!-- micro:begin -->", "<!-- micro:end -->"
"""Likewise in a page about performance."""


def update_readme(readme: Path, content: Content) -> None:
    """Put the forms of the first main table, without details, between the results markers.

    Of each size it is the one with the most runs. What is between the page's speed markers, if it
    has them, is generated too; the rest stays as it is.

    Raises:
        ValueError: the markers are not there once each, in order.
    """
    report = Path(os.path.relpath(content.results / "report.md", readme.parent)).as_posix()
    groups = [group for group in table_groups(content.records) if not group.is_first_look]
    sizes = groupby((g for g in groups if g.table is groups[0].table), attrgetter("size"))
    names = {max(forms, key=lambda group: len(group.records)).name for _, forms in sizes}
    first = [table for table in content.main if table.name in names] or content.main[:1]
    lines = [
        *([] if content.main else [f"**{escape_markdown(warning(content))}**\n"]),
        *(to_markdown(fold_constants(table)) for table in notes_once(map(_short, first))),
        f"All tables, runs, figures and times: [the report]({report}).",
        "",
    ]
    _replace_between(readme, BEGIN, END, lines)
    if SPEED_BEGIN in readme.read_text(encoding="utf-8"):
        speed = speed_table(content.micro)
        words = "No measurement has been recorded yet.\n" if speed is None else to_markdown(speed)
        _replace_between(readme, SPEED_BEGIN, SPEED_END, [words])


def _short(table: Table) -> Table:
    """A table without its details, and with the first of its notes and those on marks alone."""
    short = without(table, {*table.details, AT_TARGET} - {N})
    return replace(short, footnotes=(table.footnotes[0], *mark_notes(short.rows)))


def update_performance(page: Path, content: Content) -> None:
    """Put the tables of measurements between the micro markers of a page.

    Raises:
        ValueError: the markers are not there once each, in order.
    """
    plots = content.results / "plots"
    figures = sorted([*plots.glob("roofline-*.svg"), *plots.glob("collective-*.svg")])
    linked = [Path(os.path.relpath(path, page.parent)).as_posix() for path in figures]
    tables = [to_markdown(table) for table in micro_tables(content.micro)]
    lines = [
        *(tables or ["No measurement has been recorded yet.\n"]),
        *(f"![{path.stem}]({link})\n" for path, link in zip(figures, linked, strict=True)),
    ]
    _replace_between(page, MICRO_BEGIN, MICRO_END, lines)


def _replace_between(page: Path, begin: str, end: str, lines: list[str]) -> None:
    text = page.read_bytes().decode("utf-8")
    start, stop = text.find(begin), text.find(end)
    if not (text.count(begin) == text.count(end) == 1 and start < stop):
        raise ValueError(f"{page.name}: expected one line {begin} and one line {end} after it")
    generated = "\n".join([begin, "", *lines]) + "\n"
    page.write_bytes((text[:start] + generated + text[stop:]).encode("utf-8"))


def print_summary(content: Content, console: Console | None = None) -> None:
    """Print the main tables on the screen; without one, the list of other runs."""
    import rich.console
    from rich.text import Text

    if console is None:
        console = rich.console.Console()
    console.print(Text(warning(content), style="bold"))
    for table in notes_once(content.main) or [other_runs(content.records)]:
        show_table(table, console)


_GENERATED = re.compile(
    r"(table\d|statistics|time_to_target|claims|sampling|micro|runs|other_runs|timing|laps|energy"
    r"|machines|stability|pairs_table\d|figure1(?=-[\w-]+-machine\d)|figure[2-6]|roofline|collective|plan_check_paper|plan_27_seconds"
    r"|scaling_(?:cifar10|imagenet)_swap)[\w-]*\.(md|csv|svg)"
)
"""Names of files that a report writes; not those of `python -m bench figure 1`."""


def write_report(content: Content, *, appendix: bool = False) -> Path:
    """Write `tables`, `plots`, `report.md` and `report.html` into the results folder.

    Arguments:
        appendix: also write `appendix.md` and `appendix.html`.

    Returns:
        The path of report.md.

    Raises:
        OSError: the folder cannot be written to.
    """
    results = content.results
    figures = draw_figures(content, results / "plots")
    document, further, tables = build_document(content, figures)
    written = [path for table in tables for path in write_table(table, results / "tables")]
    written += [path for drawn in figures.values() for path in drawn.values()]
    _remove_stale(results, written)
    documents = {"report": document} | ({"appendix": further} if appendix else {})
    for name, each in documents.items():
        _write(results / f"{name}.html", document_to_html(each))
        _write(results / f"{name}.md", document_to_markdown(each, results))
    return results / "report.md"


def _remove_stale(results: Path, written: Sequence[Path]) -> None:
    """Remove what an earlier report left and this one did not write."""
    for folder in (results / "tables", results / "plots"):
        for path in sorted(folder.glob("*")):
            if path not in written and _GENERATED.fullmatch(path.name):
                path.unlink()


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8", newline="\n")
