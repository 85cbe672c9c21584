"""Which runs a table needs, which of them there are, and how long the others take. No torch."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from bench.document import counted
from bench.net_cost import resnet9
from bench.planner.command import make_plan, modelled
from bench.planner.workload import TRAIN_IMAGES
from bench.records.grouping import MachineKey, accuracy_key, machine_key, recipe_of
from bench.records.paper import Paper
from bench.records.paper_tables import OTHER, RunTable, Size, place_of
from swap_fast.config.recipe import AveragingRecipe, Recipe
from swap_fast.recipes.cifar10 import RECIPES
from swap_fast.record import RunRecord, plain

_TEXTS = frozenset({"summary", "table"})
"""Fields of a recipe that describe it and do not change its runs."""


@dataclass(frozen=True, kw_only=True)
class RunToDo:
    """One run that a table needs."""

    recipe: str
    seed: int
    start: str | None
    """The recipe from whose phase 1, of the same seed, this run starts; None: from its own."""
    record: RunRecord | None
    """The run, where it has been made."""


def jobs_of(
    table: RunTable,
    size: Size,
    runs: int,
    records: Sequence[RunRecord],
    machine: Callable[[Recipe], MachineKey],
    data: str | None,
) -> list[RunToDo]:
    """All runs of a table, those with a common start behind it, one seed after another.

    A start that is in another table is among them only where a run that needs it is missing.

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
            RunToDo(recipe=name, seed=seed, start=start, record=made[name])
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


PRECISION = {"cuda": "fp16", "cpu": "fp32"}
"""Of a table's runs: `default_execution`'s, which needs torch."""


def find_run(
    recipe: Recipe, seed: int, machine: MachineKey, records: Iterable[RunRecord], data: str | None
) -> RunRecord | None:
    """A run of the recipe as it is now that a table takes and that is what would be run here.

    It was made on that kind of machine with as many of its devices, in the precision that such
    devices have by default, on data of that content. Where
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
            and accuracy_key(record).precision == PRECISION[machine.host.device_type]
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


# How long a run will take: by earlier runs, else by the planner.

PLANNED_AS = {"v100": "v100", "a100": "a100", "h100": "h100", "h200": "h100"}
"""The hardware that the planner knows, by what a device's name holds."""


@dataclass(frozen=True, kw_only=True)
class Eta:
    """How long a run will take."""

    seconds: float | None
    """From its start to its record; None where it is not known."""
    by: str
    """How that is known: "by ..."; else why it is not."""
    shares: bool
    """Whether it begins from another run's phase 1."""


def eta(
    job: RunToDo,
    size: Size,
    others: Sequence[str],
    records: Sequence[RunRecord],
    machine: MachineKey,
    paper: Paper,
    *,
    shares: bool,
) -> Eta:
    """How long a run will take on this machine.

    By the mean of its recipe's runs here; else by the images a second of other rows here; else, at
    the paper's size, by the planner; else by the arithmetic of any runs here, which says little of
    narrow nets; else by the recipe's runs on other machines.

    Arguments:
        others: recipes with the same net, by which a rate may be taken.
        machine: the kind of machine that it would run on.
        shares: whether it begins from another run's phase 1.
    """
    recipe = RECIPES[job.recipe]()
    here = [record for record in records if machine_key(record) == machine]
    same = [record for record in records if is_run_of(record, recipe)]
    alike = [r for r in same if r in here and (r.start is not None) == shares]
    rows = [r for r in here if r.recipe in others and is_run_of(r, RECIPES[r.recipe]())]
    nets = [r for r in here if recipe.net == "resnet9" == r.settings.net]
    epochs, bound = (0.0, "") if shares else phase1_epochs(recipe, records)
    images = images_of(recipe, epochs, records)
    seconds: float | None
    if alike:
        seconds = fmean(record.times.wall_s for record in alike)
        by = f"by the mean of {_runs(alike)} of it here"
    elif rows:
        seconds = images / images_per_s(rows)
        by = f"by the images/s of {_runs(rows)} of {_names(rows)} here{bound}"
    elif size == "paper":
        seconds, by = _planned(recipe, machine, paper, shares=shares)
    elif nets:
        seconds = images * image_flop(recipe.width) / flop_per_s(nets)
        by = f"by the arithmetic of {_runs(nets)} of other nets here, roughly{bound}"
    elif same:
        seconds = images / images_per_s(same)
        by = f"by the images/s of {_runs(same)} of it on other machines{bound}"
    else:
        seconds, by = None, "there is no run of a like net yet"
    return Eta(seconds=seconds, by=by, shares=shares)


def phase1_epochs(recipe: Recipe, records: Sequence[RunRecord]) -> tuple[float, str]:
    """How many epochs phase 1 will take, and a remark where this is but an upper bound."""
    most = float(recipe.phase1.max_epochs)
    if recipe.phase1.stopping_accuracy is None:
        return most, ""
    now = plain({"phase1": asdict(recipe.phase1), "width": recipe.width, "net": recipe.net})
    now |= {"dataset": recipe.dataset, "train_images": recipe.train_images}
    taken = [
        record.phase1_epochs
        for record in records
        if agrees({k: v for k, v in recipe_of(record).items() if k in now}, now)
    ]
    return (fmean(taken), "") if taken else (most, f", phase 1 at most {most:g} epochs")


def images_of(recipe: Recipe, phase1: float, records: Sequence[RunRecord]) -> float:
    """Images that a run trains on, over all epochs and workers.

    Arguments:
        phase1: its epochs of phase 1.
        records: by which the size of a tree of images is known.
    """
    sizes = [
        int(record.data["train_images"])
        for record in records
        if record.settings.dataset == recipe.dataset
    ]
    each = recipe.train_images or (sizes[-1] if sizes else TRAIN_IMAGES[recipe.dataset])
    epochs = phase1
    if isinstance(recipe, AveragingRecipe):
        epochs += recipe.num_workers * recipe.phase2.max_epochs
    return epochs * each


def images_by(record: RunRecord) -> int:
    """Images that the run trained on by itself."""
    epochs = sum(row.phase == 2 or record.start is None for row in record.epochs)
    return epochs * int(record.data["train_images"])


def images_per_s(records: Sequence[RunRecord]) -> float:
    """Images that these runs trained on by themselves, over all their time."""
    return sum(map(images_by, records)) / sum(record.times.wall_s for record in records)


def flop_per_s(records: Sequence[RunRecord]) -> float:
    """Operations of these runs of ResNet-9 over all their time."""
    flop = sum(images_by(r) * image_flop(r.settings.width) for r in records)
    return flop / sum(record.times.wall_s for record in records)


def image_flop(width: int) -> float:
    """Operations of an image forward and backward through ResNet-9."""
    return resnet9(width, 10).train_flop


def _planned(
    recipe: Recipe, machine: MachineKey, paper: Paper, *, shares: bool
) -> tuple[float, str]:
    """By the planner: on these devices, or, where there is none that it knows, on the paper's."""
    name = machine.host.device.lower()
    found = next((known for part, known in PLANNED_AS.items() if part in name), None)
    gpus = machine.devices if found else None
    plan = make_plan(recipe, modelled(found or "v100", None, paper), gpus, paper)
    seconds = plan.expected.total_s
    if shares:
        phases = zip(plan.work.phases, plan.expected.phases_s, strict=True)
        seconds -= sum(phase_s for phase, phase_s in phases if phase.number == 1)
    where = "" if found else ", not this machine"
    hardware = plan.speed.hardware.name.partition(" (")[0]
    return seconds, f"by the planner, {plan.gpus} x {hardware}{where}"


def _names(records: Sequence[RunRecord]) -> str:
    return ", ".join(dict.fromkeys(record.recipe for record in records))


def _runs(records: Sequence[RunRecord]) -> str:
    return counted(len(records), "run")
