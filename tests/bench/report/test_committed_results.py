"""What is committed in results/ and in the pages is what the committed records give."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import pytest
from repository import ROOT
from rich.console import Console

from bench.document import show_table
from bench.records.paper_tables import RUN_TABLES
from bench.report.content import collect
from bench.report.paper_tables import RUNS_OF, recipe_table, run_tables
from bench.report.write import update_performance, update_readme, write_report

MAKE_AGAIN = (
    "run python -m bench report --readme README.md --performance docs/performance.md, and commit "
    "what changes"
)
PAGES = {"README.md": update_readme, "docs/performance.md": update_performance}


def _texts(folder: Path) -> dict[str, str]:
    """Every generated text by its path, and the names of the plots."""
    paths = [*folder.glob("results/report.*"), *folder.glob("results/tables/*")]
    paths += [folder / page for page in PAGES]
    texts = {path.relative_to(folder).as_posix(): path.read_text("utf-8") for path in paths}
    return texts | {path.name: "" for path in folder.glob("results/plots/*")}


def test_nobody_forgot_to_make_the_report_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(ROOT / "results", tmp_path / "results")
    (tmp_path / "docs").mkdir()
    # To draw takes most of a report's time: the page is made of the committed drawings.
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda *_, **__: None)
    content = collect(tmp_path / "results")
    write_report(content)
    for page, update in PAGES.items():
        shutil.copy(ROOT / page, tmp_path / page)
        update(tmp_path / page, content)
    made, committed = _texts(tmp_path), _texts(ROOT)
    assert made.keys() == committed.keys(), MAKE_AGAIN
    assert [name for name in made if made[name] != committed[name]] == [], MAKE_AGAIN


def test_no_table_breaks_a_word_on_a_screen_of_80_columns() -> None:
    content = collect(ROOT / "results")
    tables = [recipe_table(number, content.paper) for number in RUNS_OF]
    for table in RUN_TABLES.values():
        for size in table.sizes:
            tables += run_tables(table, size, content.records, content.paper)
    assert len(tables) > len(RUNS_OF)
    for drawn in tables:
        screen = io.StringIO()
        show_table(drawn, Console(file=screen, width=80))
        text = screen.getvalue()
        assert max(map(len, text.splitlines())) <= 80
        shown = [i for i, column in enumerate(drawn.columns) if column not in drawn.details]
        cells = [line[i] for line in (drawn.columns, *drawn.rows) for i in shown]
        assert {word for cell in cells for word in cell.split()} <= {*text.split()}, drawn.name
