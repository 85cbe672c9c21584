"""Records of landscapes: written whole, read again, and left out with a reason."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from landscape_factory import make_cosines, make_plane

from bench.landscape.records import (
    read_all_cosines,
    read_cosines,
    read_plane,
    read_planes,
    write_landscape,
)

POINTS = {"LB": (-3.0, 0.0), "SGD": (2.0, 1.0), "SWAP": (0.0, 0.0)}


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    plane, cosines = make_plane(lambda a, b: 0.25 + a / 100, POINTS), make_cosines([0.5, 0.25], 1)
    path = write_landscape(plane, tmp_path)
    assert path == tmp_path / "planes" / "figure2-cifar10_cpu-seed0-20260101000000.json"
    assert read_plane(path) == plane
    assert read_cosines(write_landscape(cosines, tmp_path)) == cosines
    assert read_planes(tmp_path) == ([plane], [])
    assert read_all_cosines(tmp_path) == ([cosines], [])
    assert [p.name for p in (tmp_path / "planes").iterdir()] == [path.name]


def _without_a_point(content: dict[str, Any]) -> None:
    content["test_error"][2].pop()


def _other_version(content: dict[str, Any]) -> None:
    content["schema_version"] = 99


def _other_field(content: dict[str, Any]) -> None:
    content["colour"] = content.pop("recipe")


def _not_a_number(content: dict[str, Any]) -> None:
    content["train_error"][0][0] = float("nan")


def _falling(content: dict[str, Any]) -> None:
    content["alphas"].reverse()


def _text(content: dict[str, Any]) -> None:
    content["train_error"][0][0] = "low"


def _two_points(content: dict[str, Any]) -> None:
    content["marked"].pop()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_without_a_point, "a grid with holes"),
        (_other_version, "expected schema version 3, got 99"),
        (_other_field, "required field `recipe`"),
        (_not_a_number, "expected a JSON record"),
        (_falling, "alphas: expected rising numbers"),
        (_text, "Expected `float`, got `str`"),
        (_two_points, "expected the three points of the figure"),
    ],
)
def test_damaged_records_are_left_out_with_a_reason(
    tmp_path: Path, damage: Callable[[dict[str, Any]], None], words: str
) -> None:
    path = write_landscape(make_plane(lambda a, b: 0.5, POINTS), tmp_path)
    content = json.loads(path.read_text())
    damage(content)
    path.write_text(json.dumps(content))
    (tmp_path / "planes" / "zzz.json").write_text("{")
    planes, (reason, no_json) = read_planes(tmp_path)
    assert planes == []
    assert words in reason
    assert path.name in reason
    assert no_json.startswith("zzz.json: expected a JSON record")


def test_a_plane_is_no_record_of_cosines(tmp_path: Path) -> None:
    path = write_landscape(make_plane(lambda a, b: 0.5, POINTS), tmp_path)
    with pytest.raises(ValueError, match="Invalid enum value 2"):
        read_cosines(path)
