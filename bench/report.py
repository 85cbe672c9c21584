"""The report: every table and figure of a results folder, from its records alone. No torch.

The same records give the same bytes: nothing holds the present time, and the order is fixed.
"""

from __future__ import annotations

import html
import importlib.util
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bench.contents import collect, warning
from bench.energy import energy_table
from bench.lists import machines_table, other_runs, runs_table
from bench.micro_tables import micro_figures, micro_tables
from bench.places import number_machines, place_of, why_other
from bench.plots import figure_1, timing_figure
from bench.rendering import RENDERINGS, Table, escape_markdown, to_markdown
from bench.statistics_table import statistics_tables
from bench.stats import group_by, machine_key
from bench.tables import time_to_target
from bench.timing import all_laps_table, lap_table, readings_table
from swap_fast.record import RunRecord

if TYPE_CHECKING:
    from rich.console import Console

BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"
"""What stands between these lines of a README is generated."""
MICRO_BEGIN, MICRO_END = "<!-- micro:begin -->", "<!-- micro:end -->"
"""Likewise in a page about performance."""

_GENERATED = re.compile(
    r"(table1|statistics|time_to_target|micro|runs|other_runs|timing|laps|energy|machines|figure[1-6]|"
    r"roofline|collective)[\w-]*"
    r"\.(md|csv|tex|svg|png)"
)
_WIDE = 120
"""Characters of a screen that has room for all columns."""

_LEFT_OUT = frozenset(
    {
        "n",
        "Ours: 95% interval (%)",
        "Verdict",
        "Phase 1 (mean epochs)",
        "Machine",
        "Source",
        "Note",
        "Recipe",
        "Phase 1 ended by",
        "Phase 1 (epochs)",
    }
)
"""Columns that a narrower one has no room for: the report has them."""


def write_report(results: Path, figure_run: str | None = None) -> Path:
    """Write `results/tables`, `results/plots` and `results/report.md`.

    Arguments:
        results: the folder whose `runs` holds the records.
        figure_run: the run that Figure 1 shows for its recipe and machine; by default the one
            with the lowest seed.

    Returns:
        The path of report.md.

    Raises:
        ValueError: no such run, or the published figures cannot be read.
        OSError: the folder cannot be written to.
    """
    content = collect(results)
    if figure_run is not None and figure_run not in {r.run_id for r in content.records}:
        raise ValueError(f"figure: expected a run of {results / 'runs'}, got {figure_run!r}")
    records = content.records
    lists = [runs_table(records), other_runs(records)]
    timing = [readings_table(records), all_laps_table(records)]
    published = time_to_target(records, content.paper)
    statistics = statistics_tables(records, content.paper)
    tables = {t.name: t for t in [*content.main, published, *statistics, *lists, *timing]}
    energy = energy_table(records)
    if energy.rows:
        tables[energy.name] = energy
    tables["machines"] = machines_table(records)
    measured, unmeasured = micro_tables(results / "micro")
    tables |= {table.name: table for table in measured}
    skipped = [*content.skipped, *unmeasured]
    written = [
        _write(results / "tables" / f"{table.name}.{ending}", render(table))
        for table in tables.values()
        for ending, render in RENDERINGS.items()
    ]
    figures, timing_figures = _draw(records, results / "plots", figure_run)
    speed_figures: dict[str, list[Path]] = {}
    if importlib.util.find_spec("matplotlib") is not None:
        speed_figures = micro_figures(results / "micro", results / "plots")
    for paths in [*figures.values(), *timing_figures.values(), *speed_figures.values()]:
        written += paths
    _remove_stale(results, written)
    lines = [
        "# Results",
        "",
        f"**{escape_markdown(warning(content))}**",
        "",
        f"Made from {len(records)} records by `python -m bench report`; "
        f"{len(skipped)} left out. The same records give the same report.",
        "",
        "## Beside the paper",
        "",
        *(to_markdown(table) for table in content.main),
        *([] if published in content.main else [to_markdown(published)]),
        *(to_markdown(table) for table in statistics),
        *_figure_lines("Figure 1", figures),
        "## Runs",
        "",
        *(to_markdown(table) for table in lists if table.rows),
        "## Timing: where each second went",
        "",
        *_figure_lines("Laps", timing_figures),
        to_markdown(timing[0]),
        *([to_markdown(energy)] if energy.rows else []),
        *(_folded(lap_table(record), record) for record in records),
        *(["## Speed of the parts", ""] if measured else []),
        *(to_markdown(table) for table in measured),
        *(_figure_lines("Speed", speed_figures) if speed_figures else []),
        "## Machines",
        "",
        to_markdown(tables["machines"]),
        f"## Records left out: {len(skipped)}",
        "",
        *(f"- {escape_markdown(reason)}" for reason in skipped),
        *([""] if skipped else []),
        "## What does not agree in the paper",
        "",
        *(
            f"- {escape_markdown(f'{each.source}: {each.statement}')}"
            for each in content.paper.inconsistencies
        ),
    ]
    return _write(results / "report.md", "\n".join(lines) + "\n")


def print_summary(results: Path, console: Console | None = None) -> None:
    """Print the main tables on the screen; without one, the list of other runs."""
    import rich.console
    from rich import box
    from rich.table import Table as ScreenTable
    from rich.text import Text

    if console is None:
        console = rich.console.Console()
    narrow = console.width < _WIDE
    content = collect(results)
    console.print(Text(warning(content), style="bold"))
    for table in content.main or [other_runs(content.records)]:
        # Text, not str: a name with brackets is no markup.
        screen = ScreenTable(title=Text(table.title), title_justify="left", box=box.SIMPLE_HEAD)
        left_out = _LEFT_OUT if narrow else frozenset()
        kept = [i for i, column in enumerate(table.columns) if column not in left_out]
        cells = [[column[i] for column in (table.columns, *table.rows)] for i in kept]
        tight = sum(max(map(len, each)) + 2 for each in cells) > console.width
        for i, each in zip(kept, cells, strict=True):
            screen.add_column(
                Text(table.columns[i]),
                justify="left" if i == 0 else "right",
                # Where not all fits, lines break between words, and within none but long names.
                width=min(_longest_word(each), 40 if i == 0 else 12) if tight else None,
                overflow="fold",
            )
        for row in table.rows:
            screen.add_row(*(Text(row[i]) for i in kept))
        console.print(screen)
        for note in table.footnotes:
            console.print(Text(note))


def update_readme(readme: Path, results: Path) -> None:
    """Put the main tables between the results markers of a README; the rest stays as it is.

    Raises:
        ValueError: the markers are not there once each, in order.
    """
    content = collect(results)
    report = Path(os.path.relpath(results / "report.md", readme.parent)).as_posix()
    lines = [
        f"**{escape_markdown(warning(content))}**",
        "",
        *(to_markdown(table) for table in content.main),
        f"All runs, figures and times: [the report]({report}).",
        "",
    ]
    _replace_between(readme, BEGIN, END, lines)


def update_performance(page: Path, results: Path) -> None:
    """Put the tables of measurements between the micro markers of a page.

    Raises:
        ValueError: the markers are not there once each, in order.
    """
    tables, _ = micro_tables(results / "micro")
    plots = results / "plots"
    figures = sorted([*plots.glob("roofline-*.svg"), *plots.glob("collective-*.svg")])
    linked = [Path(os.path.relpath(path, page.parent)).as_posix() for path in figures]
    lines = [
        *([to_markdown(table) for table in tables] or ["No measurement has been recorded yet.\n"]),
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


def _draw(
    records: Sequence[RunRecord], folder: Path, figure_run: str | None
) -> tuple[dict[str, list[Path]], dict[str, list[Path]]]:
    """Figure 1 for each SWAP recipe and machine, and the laps of each machine, by their titles."""
    figures: dict[str, list[Path]] = {}
    timing: dict[str, list[Path]] = {}
    if importlib.util.find_spec("matplotlib") is None:
        return figures, timing
    numbers = number_machines(records)
    swap = [record for record in records if record.method == "swap"]
    for (recipe, machine, other), group in group_by(
        swap, lambda r: (r.recipe, machine_key(r), place_of(r) == "other")
    ).items():
        shown = next((r for r in group if r.run_id == figure_run), group[0])
        name = f"figure1-{re.sub(r'[^A-Za-z0-9_-]', '-', recipe)}-machine{numbers[machine]}"
        why = f" ({why_other(shown)})" if other else ""
        title = f"{shown.run_id}{why}, {machine.label}"
        figures[title] = figure_1(shown, folder, f"{name}-other" if other else name)
    for machine, group in group_by(records, machine_key).items():
        name = f"timing-machine{numbers[machine]}"
        timing[f"machine {numbers[machine]}"] = timing_figure(group, folder, name)
    return figures, timing


def _figure_lines(what: str, figures: dict[str, list[Path]]) -> list[str]:
    if not figures:
        return [f"{what}: no figure (no run of SWAP, or matplotlib is not installed).", ""]
    lines = []
    for title, (svg, png) in figures.items():
        text = escape_markdown(f"{what}: {title}")
        lines += [f"![{text}](plots/{svg.name})", "", f"{text} ([PNG](plots/{png.name})).", ""]
    return lines


def _folded(table: Table, record: RunRecord) -> str:
    name = html.escape(record.run_id)  # within HTML, Markdown's escapes are not read
    return f"<details><summary>{name}</summary>\n\n{to_markdown(table)}\n</details>\n"


def _longest_word(texts: Iterable[str]) -> int:
    return max(len(word) for text in texts for word in text.split())


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
