"""How long a run is expected to take: by earlier runs, else by the planner. No torch."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean

from bench.net_cost import resnet9
from bench.planner.command import make_plan, modelled
from bench.planner.workload import TRAIN_IMAGES
from bench.records.grouping import MachineKey, machine_key, recipe_of
from bench.records.paper import Paper
from bench.records.paper_tables import Size
from bench.report.missing import Job, agrees, is_run_of
from swap_fast.config.recipe import AveragingRecipe, Recipe
from swap_fast.recipes.cifar10 import RECIPES
from swap_fast.record import RunRecord, plain

PLANNED_AS = {"v100": "v100", "a100": "a100", "h100": "h100", "h200": "h100"}
"""The hardware that the planner knows, by what a device's name holds."""


@dataclass(frozen=True, kw_only=True)
class Expected:
    """How long a run is expected to take."""

    seconds: float | None
    """From its start to its record; None where nothing tells."""
    by: str
    """What tells: "by ..."; else why nothing does."""
    shares: bool
    """Whether it begins from another run's phase 1."""


def expect(
    job: Job,
    size: Size,
    others: Sequence[str],
    records: Sequence[RunRecord],
    machine: MachineKey,
    paper: Paper,
    *,
    shares: bool,
) -> Expected:
    """How long a run is expected to take on this machine.

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
    if alike:
        seconds = fmean(record.times.wall_s for record in alike)
        return Expected(
            shares=shares, seconds=seconds, by=f"by the mean of {_runs(alike)} of it here"
        )
    epochs, bound = phase1_epochs(recipe, records)
    images = images_of(recipe, 0.0 if shares else epochs, records)
    note = "" if shares else bound
    rows = [r for r in here if r.recipe in others and is_run_of(r, RECIPES[r.recipe]())]
    if rows:
        by = f"by the images/s of {_runs(rows)} of {_names(rows)} here{note}"
        return Expected(shares=shares, seconds=images / images_per_s(rows), by=by)
    if size == "paper":
        return _planned(recipe, machine, paper, shares=shares)
    nets = [r for r in here if recipe.net == "resnet9" == recipe_of(r).get("net", "resnet9")]
    if nets:
        by = f"by the arithmetic of {_runs(nets)} of other nets here, roughly{note}"
        return Expected(
            shares=shares, seconds=images * image_flop(recipe.width) / flop_per_s(nets), by=by
        )
    if same:
        by = f"by the images/s of {_runs(same)} of it on other machines{note}"
        return Expected(shares=shares, seconds=images / images_per_s(same), by=by)
    return Expected(shares=shares, seconds=None, by="there is no run of a like net yet")


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
        if recipe_of(record)["dataset"] == recipe.dataset
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
    flop = sum(images_by(r) * image_flop(int(recipe_of(r)["width"])) for r in records)
    return flop / sum(record.times.wall_s for record in records)


def image_flop(width: int) -> float:
    """Operations of an image forward and backward through ResNet-9."""
    return resnet9(width, 10).train_flop


def _planned(recipe: Recipe, machine: MachineKey, paper: Paper, *, shares: bool) -> Expected:
    """By the planner: on these devices, or, where there is none that it knows, on the paper's."""
    name = machine.host.device.lower()
    found = next((known for part, known in PLANNED_AS.items() if part in name), None)
    gpus = machine.devices if found else None
    plan = make_plan(recipe, modelled(found or "v100", None, paper), gpus, paper)
    seconds = plan.expected.total_s
    if shares:
        seconds -= sum(
            phase_s
            for phase, phase_s in zip(plan.work.phases, plan.expected.phases_s, strict=True)
            if phase.name.startswith("phase 1")
        )
    where = "" if found else ", not this machine"
    hardware = plan.speed.hardware.name.partition(" (")[0]
    return Expected(
        shares=shares, seconds=seconds, by=f"by the planner, {plan.gpus} x {hardware}{where}"
    )


def _names(records: Sequence[RunRecord]) -> str:
    return ", ".join(dict.fromkeys(record.recipe for record in records))


def _runs(records: Sequence[RunRecord]) -> str:
    return f"{len(records)} run{'s' if len(records) > 1 else ''}"
