"""The report: every table and figure of a results folder, from its records alone. No torch."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from bench.document.page import document_to_html, document_to_markdown
from bench.document.table import (
    Table,
    escape_markdown,
    mark_notes,
    show_table,
    to_markdown,
    write_table,
)
from bench.micro.tables import micro_tables
from bench.report.content import Content, warning
from bench.report.paper_tables import N
from bench.report.run_lists import other_runs
from bench.report.sections import build_document, draw_figures, speed_table

if TYPE_CHECKING:
    from rich.console import Console


# Pages that are written by hand but for what is between two markers.

BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"
"""What is between these lines of a README is generated."""
SPEED_BEGIN, SPEED_END = "<!-- speed:begin -->", "<!-- speed:end -->"
"""Likewise, of a README that has them."""
MICRO_BEGIN, MICRO_END = "<!-- micro:begin -->", "<!-- micro:end -->"
"""Likewise in a page about performance."""


def update_readme(readme: Path, content: Content) -> None:
    """Put the first main table, without its details, between the results markers of a README.

    What is between its speed markers, if it has them, is generated too; the rest stays as it is.

    Raises:
        ValueError: the markers are not there once each, in order.
    """
    report = Path(os.path.relpath(content.results / "report.md", readme.parent)).as_posix()
    lines = [
        *([] if content.main else [f"**{escape_markdown(warning(content))}**\n"]),
        *(to_markdown(_short(table)) for table in content.main[:1]),
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
    left_out = {*table.details, *table.more_details} - {N}
    kept = [i for i, column in enumerate(table.columns) if column not in left_out]
    rows = tuple(tuple(row[i] for i in kept) for row in table.rows)
    return replace(
        table,
        columns=tuple(table.columns[i] for i in kept),
        rows=rows,
        footnotes=(table.footnotes[0], *mark_notes(rows)),
    )


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
    for table in content.main or [other_runs(content.records)]:
        show_table(table, console)


_GENERATED = re.compile(
    r"(table\d|statistics|time_to_target|claims|sampling|micro|runs|other_runs|timing|laps|energy"
    r"|machines|stability|pairs_table\d|figure\d|roofline|collective|plan_check_paper"
    r"|scaling_(?:cifar10|imagenet)_swap)[\w-]*\.(md|csv|tex|svg|png)"
)
"""Names of files that a report writes."""


def write_report(content: Content, figure_run: str | None = None) -> Path:
    """Write `tables`, `plots`, `report.md` and `report.html` into the results folder.

    Arguments:
        figure_run: the run that Figure 1 shows for its recipe and machine; by default the one
            with the lowest seed.

    Returns:
        The path of report.md.

    Raises:
        ValueError: no such run.
        OSError: the folder cannot be written to.
    """
    results = content.results
    if figure_run is not None and figure_run not in {r.run_id for r in content.records}:
        raise ValueError(f"figure: expected a run of {results / 'runs'}, got {figure_run!r}")
    figures = draw_figures(content, results / "plots", figure_run)
    document, tables = build_document(content, figures)
    written = [path for table in tables for path in write_table(table, results / "tables")]
    written += [path for drawn in figures.values() for paths in drawn.values() for path in paths]
    _remove_stale(results, written)
    _write(results / "report.html", document_to_html(document))
    return _write(results / "report.md", document_to_markdown(document, results))


def _remove_stale(results: Path, written: Sequence[Path]) -> None:
    """Remove what an earlier report left and this one did not write."""
    for folder in (results / "tables", results / "plots"):
        for path in sorted(folder.glob("*")):
            if path not in written and _GENERATED.fullmatch(path.name):
                path.unlink()


def _write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8", newline="\n")
    return path
