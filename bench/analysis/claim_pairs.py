"""Which runs a claim holds against each other, and their figures. No torch."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

from bench.analysis.paper_claims import Claim, Side
from bench.records.grouping import accuracy_key, group_by, machine_key, recipe_of
from bench.records.paper_tables import Size
from bench.statistics import Values
from swap_fast.record import RunRecord


@dataclass(frozen=True, kw_only=True)
class Pair:
    """The runs of a claim's two sides that may be held against each other."""

    first: list[RunRecord]
    """Of one recipe, kind of machine, number of devices, precision and data."""
    second: list[RunRecord]
    """Likewise, with the same precision and data as the first."""
    mark: str
    """A number where there is more than one such pair; else nothing."""


def pairs_of(claim: Claim, records: Sequence[RunRecord], size: Size) -> Iterator[Pair]:
    """Every two groups of runs that may be held against each other; an empty pair without any."""
    sides = []
    for side in (claim.first, claim.second):
        runs = [record for record in records if side.has(record, size)]
        sides.append(list(group_by(runs, lambda r: (accuracy_key(r), machine_key(r))).values()))
    if claim.is_of_one_row:
        fitting = [(group, group) for group in sides[0]]
    else:
        fitting = [
            (first, second)
            for first, second in product(*sides)
            if _conditions(first[0]) == _conditions(second[0])
        ]
    for number, (first, second) in enumerate(fitting, start=1):
        yield Pair(first=first, second=second, mark=f" [{number}]" if len(fitting) > 1 else "")
    if not fitting:
        yield Pair(first=[], second=[], mark="")


def _conditions(record: RunRecord) -> tuple[object, ...]:
    """What must be equal for runs of two recipes to be held against each other."""
    key = accuracy_key(record)
    return (key.precision, key.data_hash, recipe_of(record).get("train_images"))


def values_of(claim: Claim, pair: Pair, *, modelled: bool = False) -> tuple[Values, Values]:
    """Each side's figures; by run where both are of the same runs, else by seed."""

    def of(side: Side, runs: Sequence[RunRecord]) -> Values:
        return [
            (record.run_id if claim.is_of_one_row else record.seed, value)
            for record in runs
            if (value := side.value(record, modelled=modelled)) is not None
        ]

    return of(claim.first, pair.first), of(claim.second, pair.second)
