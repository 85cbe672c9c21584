"""The report: every table and figure of a results folder, from its records alone. No torch."""

import re
from collections.abc import Sequence
from pathlib import Path

from bench.document.html import document_to_html
from bench.document.markdown import document_to_markdown
from bench.document.table import RENDERINGS
from bench.report.content import collect
from bench.report.figures import paper_figures, planned_figures, speed_figures, timing_figures
from bench.report.sections import ReportFigures, build_document, tables_of

_GENERATED = re.compile(
    r"(table\d|statistics|time_to_target|claims|sampling|micro|runs|other_runs|timing|laps|energy|"
    r"machines|stability|pairs_table\d|figure\d|roofline|collective|plan_check_paper|scaling_(?:cifar10|imagenet)_swap)[\w-]*"
    r"\.(md|csv|tex|svg|png)"
)


def write_report(results: Path, figure_run: str | None = None) -> Path:
    """Write `results/tables`, `results/plots`, `results/report.md` and `results/report.html`.

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
    plots = results / "plots"
    figures = ReportFigures(
        paper=paper_figures(content.records, content.planes, content.cosines, plots, figure_run),
        timing=timing_figures(content.records, plots),
        speed=speed_figures(results / "micro", plots),
        scaling=planned_figures(content.paper, plots),
    )
    document = build_document(content, results, figures)
    written = [
        _write(results / "tables" / f"{table.name}.{ending}", render(table))
        for table in tables_of(document, content)
        for ending, render in RENDERINGS.items()
    ]
    for drawn in (*figures.paper.values(), figures.timing, figures.speed, figures.scaling):
        written += [path for paths in drawn.values() for path in paths]
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
