"""Pages that are written by hand but for what stands between two markers. No torch."""

import os
from pathlib import Path

from bench.document.table import escape_markdown, to_markdown
from bench.micro.tables import micro_tables, showable
from bench.report.content import collect, warning
from bench.report.headline import speed_table

BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"
"""What stands between these lines of a README is generated."""
SPEED_BEGIN, SPEED_END = "<!-- speed:begin -->", "<!-- speed:end -->"
"""Likewise, of a README that has them."""
MICRO_BEGIN, MICRO_END = "<!-- micro:begin -->", "<!-- micro:end -->"
"""Likewise in a page about performance."""


def update_readme(readme: Path, results: Path) -> None:
    """Put the main tables between the results markers of a README; the rest stays as it is.

    What is between its speed markers, if it has them, is generated too.

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
    if SPEED_BEGIN in readme.read_text(encoding="utf-8"):
        speed = speed_table([record for record, _ in showable(results / "micro")[0]])
        words = "No measurement has been recorded yet.\n" if speed is None else to_markdown(speed)
        _replace_between(readme, SPEED_BEGIN, SPEED_END, [words])


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
