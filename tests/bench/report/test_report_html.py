"""The report as one HTML file, and its sameness wherever and whenever it is made."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import asdict, replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from landscape_factory import bowl, cosine_path
from record_factory import cpu_runs, make_record, write_results
from repository import ROOT

from bench.document import document_to_html
from bench.landscape.records import write_landscape
from bench.report.content import collect
from bench.report.write import write_report
from swap_fast.record import RunRecord

VOID = {"meta", "img", "br", "link", "input", "hr"}
HOSTILE = "<script>alert('1')</script>\" onload=\"x&amp;{{ 7 * 7 }}"


class Page(HTMLParser):
    """Every element of a page, its attributes and text; refuses one that is not closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, (tag, self.open)

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def _write(results: Path, records: list[RunRecord]) -> Path:
    write_results(results, records)
    plane = bowl(2, LB=(-1.5, 0.2), SGD=(1.5, 0.0), SWAP=(0.1, 0.0))
    for landscape in (plane, cosine_path(0.5, 0.3, 0.1)):
        write_landscape(landscape, results)
    return results


def _page(results: Path, name: str = "report") -> Page:
    write_report(collect(results), appendix=True)
    return Page((results / f"{name}.html").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("name", "figures", "folded"),
    [
        ("report", 5, 0),  # Figures 1, 2, 4, 5 and 6
        ("appendix", 3, 9),  # the laps, and two of scaling; one a run, one a recipe
    ],
)
def test_page_holds_all_that_it_needs(tmp_path: Path, name: str, figures: int, folded: int) -> None:
    page = _page(_write(tmp_path, cpu_runs()), name)
    assert {"script", "link", "iframe", "object"}.isdisjoint(tag for tag, _ in page.elements)
    images = page.all("img")
    assert len(images) == figures
    for image in images:
        kind, _, content = (image["src"] or "").partition(";base64,")
        assert kind == "data:image/svg+xml"
        assert ElementTree.fromstring(base64.b64decode(content)).tag.endswith("svg")
        assert image["alt"]
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(set(ids)) == len(ids)
    links = [attributes["href"] for attributes in page.all("a")]
    assert links
    assert all(link is not None and link[0] == "#" and link[1:] in ids for link in links)
    assert len(page.all("figcaption")) == len(images)
    assert len(page.all("details")) == len(page.all("summary")) == folded
    assert {"class": "right"} in page.all("td")


def test_page_says_what_the_markdown_says(tmp_path: Path) -> None:
    page = _page(_write(tmp_path, cpu_runs()))
    lines = (tmp_path / "report.md").read_text(encoding="utf-8").splitlines()
    text = " ".join(page.text)
    headings = [line.removeprefix("## ") for line in lines if line.startswith("## ")]
    assert "The paper's claims" in headings
    assert all(text.count(heading) >= 2 for heading in headings)  # in the contents too
    assert len(page.all("table")) == sum(line.startswith("| -") for line in lines)


def test_every_name_of_a_record_is_escaped(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    machine = {**make_record().machine, "device": HOSTILE}
    record = replace(
        make_record(), run_id=HOSTILE, notes=[HOSTILE], overrides=[HOSTILE], machine=machine
    )
    (tmp_path / "runs" / "odd.json").write_text(json.dumps(asdict(record)), encoding="utf-8")
    (tmp_path / "runs" / "<b>.json").write_text("not JSON", encoding="utf-8")
    page = _page(tmp_path)
    assert not page.all("script")
    assert not page.all("b")
    assert not any("onload" in attributes for _, attributes in page.elements)
    assert any(HOSTILE in text for text in page.text)  # as text, and not rendered as a template


def test_an_empty_report_is_a_page_too(tmp_path: Path) -> None:
    page = _page(tmp_path)
    assert "There are no runs yet." in page.text
    assert len(page.all("img")) == 2  # Figures 5 and 6 need no runs


def test_a_figure_that_is_gone_is_an_error(tmp_path: Path) -> None:
    from bench.document import Document, Figure, Section

    figure = Figure(caption="gone", svg=tmp_path / "gone.svg")
    section = Section(title="one", blocks=(figure,))
    with pytest.raises(OSError, match=r"gone\.svg"):
        document_to_html(Document(title="Results", opening=(), sections=(section,)))


_ELSEWHERE = """
import datetime, sys, time
seconds = float(sys.argv[2])
class Day(datetime.datetime):
    @classmethod
    def now(cls, tz=None): return cls.fromtimestamp(seconds, tz)
    @classmethod
    def today(cls): return cls.fromtimestamp(seconds)
datetime.datetime = Day
time.time = lambda: seconds
from pathlib import Path
from bench.report.content import collect
from bench.report.write import write_report
write_report(collect(Path(sys.argv[1])), appendix=True)
"""


def _make_elsewhere(results: Path, folder: Path, seconds: int, **environment: str) -> None:
    """The report made by a process of its own, at that time, in that folder."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", _ELSEWHERE, str(results), str(seconds)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def _contents(results: Path) -> dict[str, bytes]:
    """Every generated file."""
    return {
        path.relative_to(results).as_posix(): path.read_bytes()
        for path in sorted(results.rglob("*"))
        if path.suffix in (".md", ".csv", ".html", ".svg")
    }


@pytest.mark.slow
def test_same_records_give_the_same_bytes_anywhere(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "an other folder"
    _write(one, cpu_runs())
    _write(other, cpu_runs()[::-1])
    for number, path in enumerate(sorted((other / "runs").iterdir())):
        os.utime(path, (number, number))
    style = tmp_path / "style"
    style.mkdir()
    # What a user may have chosen for all of his figures.
    (style / "matplotlibrc").write_text(
        "font.family: serif\nfont.serif: STIXGeneral\nfont.size: 17\nsvg.fonttype: none\n"
        "svg.hashsalt: mine\nsavefig.bbox: tight\nfigure.facecolor: black\naxes.grid: True\n"
        "lines.linewidth: 5\nsavefig.transparent: True\ntimezone: Asia/Tokyo\n",
        encoding="utf-8",
    )
    _make_elsewhere(one, ROOT, 1_000_000_000, PYTHONHASHSEED="1", TZ="UTC", LC_ALL="C.UTF-8")
    _make_elsewhere(
        other,
        tmp_path,
        1_900_000_000,
        PYTHONHASHSEED="2",
        TZ="Asia/Kathmandu",
        # As plain as it can be: what is read and written by the locale's encoding would fail.
        LC_ALL="C",
        PYTHONCOERCECLOCALE="0",
        PYTHONUTF8="0",
        MATPLOTLIBRC=str(style / "matplotlibrc"),
    )
    first, second = _contents(one), _contents(other)
    assert {"report.md", "report.html", "appendix.html", "tables/claims.csv",
            "plots/timing-machine1.svg", "plots/figure6.svg"} <= first.keys()  # fmt: skip
    assert first.keys() == second.keys()
    assert [name for name in first if first[name] != second[name]] == []


def test_figures_hold_their_own_font(tmp_path: Path) -> None:
    _page(_write(tmp_path, cpu_runs()))
    for path in sorted((tmp_path / "plots").glob("*.svg")):
        text = path.read_text(encoding="utf-8")
        assert "<text" not in text, path.name  # letters are paths of the bundled font
        assert "DejaVuSans" in text, path.name
        assert "<dc:date>" not in text, path.name
