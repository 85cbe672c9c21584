"""Figures 2 to 6: what they draw, and that the same records give the same bytes."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from landscape_factory import make_cosines, make_plane

from bench.landscape.plots import error_levels
from bench.landscape.records import read_all_cosines, read_planes, write_landscape
from bench.report.content import Content, collect
from bench.report.write import draw_figures

TWO = {"LB": (-2.0, 0.0), "SGD": (2.0, 0.0), "SWAP": (0.5, 1.0)}
THREE = {"SGD1": (-2.0, 0.0), "SGD2": (2.0, 0.0), "SGD3": (0.0, 2.0), "SWAP": (0.0, 0.5)}


def _results(folder: Path) -> Path:
    for plane in (
        make_plane(lambda a, b: 0.1 + 0.01 * (a * a + b * b), TWO),
        make_plane(lambda a, b: 0.1 + 0.01 * (a * a + b * b), THREE, figure=3, off_plane=0.5),
        make_plane(lambda a, b: 0.25, TWO, run_id="flat"),
        make_cosines([0.3, 0.2, 0.05, -0.01], 3),
    ):
        write_landscape(plane, folder)
    return folder


def _content(results: Path) -> Content:
    """All that is there, as if every landscape were of a run of the folder."""
    (planes, _), (cosines, _) = read_planes(results), read_all_cosines(results)
    return replace(collect(results), planes=planes, cosines=cosines)


@pytest.mark.slow
def test_same_records_give_the_same_bytes(tmp_path: Path) -> None:
    results = _results(tmp_path)
    built = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        figures = draw_figures(_content(results), folder)
        assert [(name, len(drawn)) for name, drawn in figures.items()] == [
            *(("Figure 1", 0), ("Figure 2", 2), ("Figure 3", 1)),
            *(("Figure 4", 1), ("Figure 5", 1), ("Figure 6", 1)),
            *(("Laps", 0), ("Speed", 0), ("Scaling", 2)),
        ]
        paths = [path for drawn in figures.values() for path in drawn.values()]
        assert {path.suffix for path in paths} == {".svg"}
        assert len({*paths}) == 8
        built.append([path.read_bytes() for path in paths])
    assert built[0] == built[1]
    for path in (tmp_path / "a").glob("*.svg"):
        text = path.read_text(encoding="utf-8")
        ElementTree.fromstring(text)
        assert "<dc:date>" not in text


def test_without_records_only_the_schedules_are_drawn(tmp_path: Path) -> None:
    figures = draw_figures(_content(tmp_path), tmp_path / "plots")
    assert [name for name, drawn in figures.items() if drawn] == ["Figure 5", "Figure 6", "Scaling"]


def test_levels_go_from_the_lowest_error_to_the_highest_and_are_close_at_the_floor() -> None:
    levels = error_levels([[0.05, 0.25], [0.10, 0.45]], count=4)
    assert levels == pytest.approx([5, 7.5, 15, 27.5, 45])
    flat = error_levels([[0.25, 0.25]])
    assert all(a < b for a, b in pairwise(flat))
