"""Where models lie in bowls whose centres are known."""

from __future__ import annotations

import math

import pytest
from landscape_factory import make_plane

from bench.landscape.records import angle_at_centre, basin, best


def _bowl(alpha: float, beta: float) -> float:
    return 0.1 + 0.01 * (alpha**2 + beta**2)


def test_centre_of_a_bowl_and_distances_from_it() -> None:
    points = {"LB": (-3.0, 0.0), "SGD": (0.0, 2.0), "SWAP": (0.3, 0.4)}
    found = basin(make_plane(_bowl, points, count=17))
    assert (found.alpha, found.beta) == pytest.approx((0, 0), abs=1e-12)
    assert found.distances == pytest.approx({"LB": 3, "SGD": 2, "SWAP": 0.5})
    assert found.nearest == "SWAP"
    assert not found.cut_off
    # A quarter of an 8 x 8 square (with the border's half steps) is a disc of this radius.
    radius = math.sqrt((found.level - 0.1) / 0.01)
    assert radius == pytest.approx(math.sqrt(0.25 * 8.5**2 / math.pi), abs=0.25)


def test_centre_moves_with_the_bowl_and_a_bowl_over_the_border_is_said_to_be() -> None:
    points = {"LB": (-3.0, 0.0), "SGD": (2.0, 1.0), "SWAP": (0.0, 0.0)}
    moved = basin(make_plane(lambda a, b: _bowl(a - 1, b + 1), points, count=33))
    assert (moved.alpha, moved.beta) == pytest.approx((1, -1), abs=0.05)
    assert basin(make_plane(lambda a, b: _bowl(a - 4, b), points)).cut_off


def test_a_flat_plane_is_all_basin() -> None:
    flat = basin(make_plane(lambda a, b: 0.2, {"LB": (1.0, 0), "SGD": (0, 1.0), "SWAP": (2.0, 2)}))
    assert (flat.alpha, flat.beta) == pytest.approx((0, 0))
    assert flat.level == 0.2


def test_angles_are_seen_from_the_centre() -> None:
    points = {"LB": (-3.0, 0.0), "SGD": (2.0, 2.0), "SWAP": (-0.1, 2.0)}
    record = make_plane(_bowl, points)
    assert angle_at_centre(record, "LB", "SGD") == pytest.approx(135)
    assert angle_at_centre(record, "SGD", "LB") == pytest.approx(135)
    assert angle_at_centre(record, "LB", "SWAP") == pytest.approx(math.degrees(math.atan(20)))
    with pytest.raises(KeyError):
        angle_at_centre(record, "LB", "SGD1")


def test_best_is_the_grids_lowest_test_error() -> None:
    points = {"SGD1": (0.0, 0.0), "SGD2": (3.0, 0.0), "SGD3": (0.0, 3.0)}
    found = best(make_plane(lambda a, b: _bowl(a - 2, b + 3), points, figure=3))
    assert (found.alpha, found.beta, found.error) == pytest.approx((2, -3, 0.15))
