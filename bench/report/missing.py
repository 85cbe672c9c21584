"""Which runs a table needs, in which order, and which of them there are. No torch."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from bench.records.grouping import MachineKey, machine_key, recipe_of
from bench.records.paper_tables import RunTable, Size
from bench.records.places import OTHER, place_of
from swap_fast.config.recipe import Recipe
from swap_fast.recipes.cifar10 import RECIPES
from swap_fast.record import RunRecord, plain

_TEXTS = frozenset({"summary", "table"})
"""Fields of a recipe that say what it is, and change nothing of it."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run that a table needs."""

    recipe: str
    """Whose."""
    seed: int
    """Of the run."""
    start: str | None
    """The recipe whose run of the same seed has the phase 1 that this one begins with."""
    record: RunRecord | None
    """The run, where it has been made."""


def jobs_of(
    table: RunTable,
    size: Size,
    runs: int,
    records: Sequence[RunRecord],
    machine: Callable[[Recipe], MachineKey],
    data: str | None,
) -> list[Job]:
    """All runs of a table, those with a common start behind it, one seed after another.

    A start that stands in another table is among them only where a run that needs it is missing.

    Arguments:
        runs: of each row, with seeds from 0.
        records: what there is.
        machine: the kind of machine that a recipe would run on here, and the devices that it
            would use.
        data: the content hash of the data that it would train on here; None where it is not known.
    """
    starts = starts_of(table, size)
    own = set(table.recipes(size))
    jobs = []
    for seed in range(runs):
        made = {
            name: find_run(RECIPES[name](), seed, machine(RECIPES[name]()), records, data)
            for name in starts
        }
        needed = {starts[name] for name in own if made[name] is None}
        jobs += [
            Job(recipe=name, seed=seed, start=start, record=made[name])
            for name, start in starts.items()
            if name in own or (made[name] is None and name in needed)
        ]
    return jobs


def starts_of(table: RunTable, size: Size) -> dict[str, str | None]:
    """The recipes of a table and of what its rows begin from, which come first; each's start."""
    found: dict[str, str | None] = {}
    for row in table.rows:
        start = None if row.start is None else row.start[size]
        if start is not None:
            found.setdefault(start, None)
        found[row.recipes[size]] = start
    return found


def find_run(
    recipe: Recipe,
    seed: int,
    machine: MachineKey,
    records: Iterable[RunRecord],
    data: str | None,
) -> RunRecord | None:
    """A run of the recipe as it is now that may stand in a table and is what would be run here.

    It was made on that kind of machine with as many of its devices, on data of that content. Where
    the content is not known (a set that is yet to be downloaded, a tree of images, which takes
    minutes to look through), only the kind of its data is compared, with the kinds that the table
    takes: then a run on another subset or tree counts.

    Arguments:
        data: the SHA-256 of the content as `RunRecord.data` keeps it; None where it is not known.
    """
    for record in records:
        if (
            (record.recipe, record.seed) == (recipe.name, seed)
            and machine_key(record) == machine
            and data in (None, record.data.get("sha256"))
            and place_of(record) != OTHER
            and is_run_of(record, recipe)
        ):
            return record
    return None


def is_run_of(record: RunRecord, recipe: Recipe) -> bool:
    """Whether the record's recipe has today's values.

    A field that the record does not know came later, with a value that leaves older recipes as
    they were.
    """
    now = plain(asdict(recipe))
    return agrees({k: v for k, v in recipe_of(record).items() if k not in _TEXTS}, now)


def agrees(known: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether every known field has the same value now, within fields too."""
    return all(
        name in now
        and (
            agrees(value, now[name])
            if isinstance(value, dict) and isinstance(now[name], dict)
            else value == now[name]
        )
        for name, value in known.items()
    )
