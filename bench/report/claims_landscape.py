"""The claims of the loss's landscape, which planes and cosines show (Figures 2 to 4). No torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from bench.landscape.records import (
    SHARE,
    SHARES,
    CosineRecord,
    PlaneRecord,
    angle_at_centre,
    basin,
)


@dataclass(frozen=True)
class Fact:
    """A claim that each plane or path of a landscape shows to hold or not."""

    source: str
    says: str
    shown: dict[str, tuple[str, bool | None]]
    """By the run of each plane or path: its figures, and whether the claim holds; None: they do
    not say."""
    why: str | None = None
    """What the figures say of the reason, where it does not hold."""


def landscape_facts(planes: Sequence[PlaneRecord], cosines: Sequence[CosineRecord]) -> list[Fact]:
    """The paper's claims of Figures 2 to 4, each over all planes or paths that there are."""
    second, third = ({p.run_id: p for p in planes if p.figure == number} for number in (2, 3))
    return [
        Fact(
            "Section 4, Figure 2",
            "The final model (SWAP) is closer to the center of the training error's basin "
            "than the output of phase 1 and a worker",
            {run: _is_swap_nearest(plane) for run, plane in second.items()},
        ),
        Fact(
            "Section 4, Figure 2",
            "During phase 2 the model traversed to a different side of the basin",
            {run: _is_crossing(plane) for run, plane in second.items()},
            why="; ".join(map(_way_past_the_centre, second.values())),
        ),
        Fact(
            "Section 4, Figure 3",
            "SWAP is closer to the center than three workers",
            {run: _is_swap_nearest(plane) for run, plane in third.items()},
        ),
        Fact(
            "Section 4, Figure 3b",
            "Three workers lie in regions of higher testing error than SWAP",
            {run: _has_swap_least_error(plane) for run, plane in third.items()},
        ),
        Fact(
            "Section 4.2, Figure 4",
            "The cosine similarity of -g and the direction to the output of SWAP decreases as "
            "the training enters its later stages",
            {path.run_id: _is_falling(path) for path in cosines},
            why="; ".join(map(_course, cosines)),
        ),
    ]


def _always(found: Sequence[bool]) -> bool | None:
    """Whether a claim holds, if it does so whatever share of the grid is taken for the basin."""
    return found[0] if len({*found}) == 1 else None


OF_GRID = f"basins of {SHARES[0]:.0%} to {SHARES[-1]:.0%} of the grid"


def _is_crossing(plane: PlaneRecord) -> tuple[str, bool | None]:
    angle, *others = (angle_at_centre(plane, "LB", "SGD", share) for share in (SHARE, *SHARES))
    figures = (
        f"LB and SGD at {angle:.0f} degrees, seen from the center; {min(others):.0f} to "
        f"{max(others):.0f} with {OF_GRID}"
    )
    return figures, _always([other > 90 for other in others])


def _has_swap_least_error(plane: PlaneRecord) -> tuple[str, bool]:
    errors = {point.name: point.test_error for point in plane.marked}
    least = min(error for name, error in errors.items() if name != "SWAP")
    figures = ", ".join(f"{name} {100 * error:.2f}%" for name, error in errors.items())
    return f"test errors: {figures}", errors["SWAP"] < least


def _way_past_the_centre(plane: PlaneRecord) -> str:
    """Where the way from LB, the plane's origin, to SGD, on its first axis, passes the centre."""
    centre, (sgd,) = basin(plane), [point for point in plane.marked if point.name == "SGD"]
    return (
        f"different sides begin at 90 degrees; the way from LB to SGD, {sgd.alpha:.2f} long, "
        f"passes the center after {centre.alpha:.2f}, at a distance of {abs(centre.beta):.2f}"
    )


def _is_falling(path: CosineRecord) -> tuple[str, bool | None]:
    """By the first and the last third of the epochs, or one of each: of the run, of phase 2."""
    falls, figures = [], []
    parts = {"the run": path.rows, "phase 2": [row for row in path.rows if row.phase == 2]}
    for what, rows in parts.items():
        if rows is not path.rows and len(rows) < 2:
            continue
        values, count = [row.cosine for row in rows], max(1, len(rows) // 3)
        first, last = fmean(values[:count]), fmean(values[-count:])
        falls.append(last < first)
        figures.append(f"{first:.3f} and {last:.3f} of {what}")
    means = f"means of the first and the last third of the epochs: {', '.join(figures)}"
    return means, _always(falls)


def _course(path: CosineRecord) -> str:
    """Where a path's cosine begins, is highest and ends."""
    top, last = max(path.rows, key=lambda row: row.cosine), path.rows[-1]
    return (
        f"it begins at {path.rows[0].cosine:.3f}, is highest at {top.cosine:.3f} "
        f"(phase {top.phase}, epoch {top.epoch}) and ends at {last.cosine:.3f} "
        f"(phase {last.phase}, epoch {last.epoch})"
    )


def _is_swap_nearest(plane: PlaneRecord) -> tuple[str, bool | None]:
    found = basin(plane)
    each = ", ".join(f"{name} {distance:.2f}" for name, distance in found.distances.items())
    cut_off = "; the basin reaches the grid's border" if found.cut_off else ""
    nearest = [basin(plane, share).nearest == "SWAP" for share in SHARES]
    count = f"SWAP is nearest in {sum(nearest)} of {len(nearest)} {OF_GRID}"
    return f"from the center: {each}{cut_off}; {count}", _always(nearest)
