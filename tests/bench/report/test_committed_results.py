"""What is committed in results/ and in the pages is what the committed records give."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from repository import ROOT

from bench.report.content import collect
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
