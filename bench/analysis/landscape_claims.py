"""What the paper claims of the loss's landscape, held against planes and cosines. No torch."""

from collections.abc import Sequence
from dataclasses import dataclass

from bench.landscape.basin import Basin, basin, on_other_sides
from bench.landscape.records import CosineRecord, PlaneRecord
from bench.records.grouping import summarize


@dataclass(frozen=True, kw_only=True)
class Fact:
    """A claim of which every plane or path tells whether it holds."""

    says: str
    """In the paper's words."""
    source: str
    """Where it says so."""
    ours: tuple[str, ...]
    """The figures behind it, one text a plane or path."""
    holds: tuple[bool, ...]
    """Whether it holds, for each of them."""


def landscape_facts(planes: Sequence[PlaneRecord], cosines: Sequence[CosineRecord]) -> list[Fact]:
    """The paper's claims of Figures 2 to 4, each over all planes or paths that there are."""
    second, third = ([(p, basin(p)) for p in planes if p.figure == number] for number in (2, 3))
    crossed = tuple(on_other_sides(plane, "LB", "SGD") for plane, _ in second)
    return [
        Fact(
            says="The final model (SWAP) is closer to the center of the training error's basin "
            "than the output of phase 1 and a worker",
            source="Section 4, Figure 2",
            ours=tuple(_distances(found) for _, found in second),
            holds=tuple(found.nearest == "SWAP" for _, found in second),
        ),
        Fact(
            says="During phase 2 the model traversed to a different side of the basin",
            source="Section 4, Figure 2",
            ours=tuple(
                f"LB and SGD on {'unlike sides' if is_so else 'one side'}" for is_so in crossed
            ),
            holds=crossed,
        ),
        Fact(
            says="SWAP is closer to the center than three workers",
            source="Section 4, Figure 3",
            ours=tuple(_distances(found) for _, found in third),
            holds=tuple(found.nearest == "SWAP" for _, found in third),
        ),
        Fact(
            says="The cosine similarity of -g and the direction to the output of SWAP decreases as "
            "the training enters its later stages",
            source="Section 4.2, Figure 4",
            ours=tuple(
                f"mean of the first third of the epochs {first:.3f}, of the last {last:.3f}"
                for first, last in map(thirds, cosines)
            ),
            holds=tuple(last < first for first, last in map(thirds, cosines)),
        ),
    ]


def thirds(record: CosineRecord) -> tuple[float, float]:
    """The mean cosine over the first and over the last third of a path's epochs, or one of each."""
    values = [row.cosine for row in record.rows]
    count = max(1, len(values) // 3)
    return summarize(values[:count]).mean, summarize(values[-count:]).mean


def _distances(found: Basin) -> str:
    each = ", ".join(f"{name} {distance:.2f}" for name, distance in found.distances.items())
    cut_off = "; the basin reaches the grid's border" if found.cut_off else ""
    return f"from the center: {each}{cut_off}"
