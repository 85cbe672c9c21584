"""`python -m bench plan`: a recipe's steps, memory, communication, time and cost. No torch.

The time is the physical model's; for a recipe of the paper the rate model's is given too.
`bench.planner.measure` needs torch, and is imported only for --hardware this.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench.document import NOTHING, Table, show_table, write_table
from bench.options import PlanOptions
from bench.planner.check import check_table, paper_efficiency
from bench.planner.forms import forms_table
from bench.planner.model import (
    FLOOR,
    HARDWARE,
    Modelled,
    RunTime,
    Speed,
    estimate,
    memory_bytes,
    predict,
    read_rates,
    sent_bytes,
)
from bench.planner.overlap import OVERLAP_ASSUMED, overlap_line
from bench.planner.scaling import Scaling, scale, scaling_figure, scaling_table
from bench.planner.workload import PhaseWork, Workload, workload_of
from bench.records.paper import Paper, load_paper
from swap_fast.choices import choose
from swap_fast.config.recipe import Recipe
from swap_fast.recipes.cifar10 import RECIPES


def run_plan(options: PlanOptions) -> int:
    """Check the models, plan a recipe, or scale its phase 1.

    Raises:
        ValueError: no such recipe, or it cannot be planned on these devices.
    """
    from rich.console import Console
    from rich.text import Text

    paper = load_paper()
    tables: list[Table] = []
    figures: list[Scaling] = []
    if options.check_paper or options.forms:
        tables += [check_table(paper)] * options.check_paper
        tables += [forms_table(paper)] * options.forms
    else:
        assert options.recipe is not None
        recipe = RECIPES[choose("recipe", options.recipe, RECIPES)]()
        if options.scaling:
            speed = modelled(options.hardware, _gpus_per_node(options), paper)
            figures = [scale(workload_of(recipe, paper, options.phase1_epochs), speed)]
            tables = [scaling_table(figures[0])]
        else:
            plan = _plan_of(recipe, options, paper)
            tables = [plan_table(plan, options.price_per_gpu_hour)]
            if options.json:
                print(json.dumps(plan_object(plan, options.price_per_gpu_hour), indent=1))
                return 0
    console = Console()
    for table in tables:
        show_table(table, console)
        console.print(Text(table.caption))
    out = Path("results") if options.out is None and options.scaling else options.out
    if out is not None:
        written = [path for table in tables for path in write_table(table, out / "tables")]
        written += [scaling_figure(scaling, out / "plots") for scaling in figures]
        print("written:", *written, sep="\n  ")
    return 0


def _gpus_per_node(options: PlanOptions) -> int | None:
    return options.gpus if options.nodes > 1 else None


def _plan_of(recipe: Recipe, options: PlanOptions, paper: Paper) -> Plan:
    speed: Speed
    if options.hardware == "this":
        from bench.planner.measure import measure

        workload_of(recipe, paper, options.phase1_epochs)  # refuse it before measuring
        if recipe.dataset == "imagenet":
            raise ValueError(
                f"hardware: expected a recipe of 32 px images to measure here, got {recipe.name}"
            )
        print("measuring this machine for some seconds", flush=True, file=sys.stderr)
        speed = measure(recipe)
    else:
        speed = modelled(options.hardware, _gpus_per_node(options), paper)
    gpus = None if options.gpus is None else options.gpus * options.nodes
    if options.hardware == "this" and gpus is None:
        gpus = min(speed.hardware.gpus_per_node, workload_of(recipe, paper).replicas)
    return make_plan(recipe, speed, gpus, paper, options.phase1_epochs)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A recipe's workload on some devices, and its time."""

    work: Workload
    speed: Speed
    """Of one device, and of the links between them."""
    gpus: int
    expected: RunTime
    """With the efficiency of the paper's runs, or as measured."""
    floor: RunTime
    """No program without fused layers is faster."""
    rate_model_s: float | None
    """By the paper's rates, on its own machine."""

    def cost(self, price_per_gpu_hour: float) -> float:
        """Of the expected time, in the currency of the price."""
        return price_per_gpu_hour * self.gpus * self.expected.total_s / 3600


def make_plan(
    recipe: Recipe, speed: Speed, gpus: int | None, paper: Paper, phase1_epochs: float | None = None
) -> Plan:
    """Plan a recipe.

    Arguments:
        gpus: devices in all; None: as many as the recipe can use.

    Raises:
        ValueError: more devices than the recipe can use, or a net without a counted cost.
    """
    work = workload_of(recipe, paper, phase1_epochs)
    gpus = work.replicas if gpus is None else gpus
    if not 1 <= gpus <= work.replicas:
        raise ValueError(
            f"gpus: expected 1 to {work.replicas}, which {work.name} can use at once, got {gpus}; "
            "--scaling shows phase 1 on more"
        )
    rate_model_s = None
    if "V100" in speed.hardware.name and gpus == work.replicas and recipe.width == 64:
        try:
            rate_model_s = predict(read_rates(paper), work).total_s
        except ValueError:
            rate_model_s = None  # no row of the paper has this setting
    return Plan(
        work=work,
        speed=speed,
        gpus=gpus,
        expected=estimate(work, speed, gpus),
        floor=estimate(work, Modelled(hardware=speed.hardware, efficiency=FLOOR), gpus),
        rate_model_s=rate_model_s,
    )


def modelled(hardware: str, gpus_per_node: int | None, paper: Paper) -> Modelled:
    """A kind of device, with the efficiency of the paper's runs."""
    described = HARDWARE[hardware]
    if gpus_per_node is not None:
        described = replace(described, gpus_per_node=gpus_per_node)
    return Modelled(hardware=described, efficiency=paper_efficiency(paper, read_rates(paper)))


def plan_object(plan: Plan, price_per_gpu_hour: float | None = None) -> dict[str, Any]:
    """A plan as --json prints it: the table's figures unrounded, with their units in the names."""
    work, hardware = plan.work, plan.speed.hardware
    return {
        "recipe": work.name,
        "hardware": hardware.name,
        "gpus": plan.gpus,
        "phases": [
            {
                "name": phase.name,
                "models": phase.num_models,
                "gpus_per_model": phase.gpus_per_model,
                "epochs": phase.epochs,
                "steps": phase.steps,
                "images": phase.images_trained,
                "flop": phase.flop,
                "time_s": time_s,
                "floor_s": floor_s,
            }
            for phase, time_s, floor_s in zip(
                work.phases, plan.expected.phases_s, plan.floor.phases_s, strict=True
            )
        ],
        "averaging_s": plan.expected.averaging_s,
        "flop": work.flop,
        "time_s": plan.expected.total_s,
        "floor_s": plan.floor.total_s,
        "rate_model_s": plan.rate_model_s,
        "memory_bytes_per_gpu": memory_bytes(work, hardware),
        "gpu_memory_bytes": hardware.memory_bytes,
        "sent_bytes_per_gpu": sent_bytes(work, plan.gpus),
        "cost": None if price_per_gpu_hour is None else plan.cost(price_per_gpu_hour),
        "phase1_epochs_source": work.epochs_source,
    }


def plan_table(plan: Plan, price_per_gpu_hour: float | None = None) -> Table:
    """A row for each phase, and the sum."""
    work = plan.work
    rows = [
        _phase_row(phase, expected_s, floor_s)
        for phase, expected_s, floor_s in zip(
            work.phases, plan.expected.phases_s, plan.floor.phases_s, strict=True
        )
    ]
    if work.averages:
        rows.append(
            (
                "averaging",
                *[NOTHING] * 3,
                _millions(work.last_phase.images),
                f"{work.batch_norm_flop / 1e15:.3f}",
                f"{plan.expected.averaging_s:.2f}",
                f"{plan.floor.averaging_s:.2f}",
            )
        )
    images = sum(phase.images_trained for phase in work.phases) + work.averages * (
        work.last_phase.images
    )
    rows.append(
        (
            *("whole", NOTHING, NOTHING, NOTHING, _millions(images), f"{work.flop / 1e15:.3f}"),
            *(f"{plan.expected.total_s:.2f}", f"{plan.floor.total_s:.2f}"),
        )
    )
    return Table(
        name=f"plan_{work.name}",
        title=f"Plan of {work.name} on {plan.gpus} x {plan.speed.hardware.name}",
        caption=f"Epochs of phase 1: {work.epochs_source}.",
        columns=(
            *("Phase", "Models x GPUs", "Epochs", "Steps", "Images (M)", "PFLOP"),
            *("Time (s)", "Floor (s)"),
        ),
        rows=tuple(rows),
        footnotes=_facts(plan, price_per_gpu_hour),
    )


def _phase_row(phase: PhaseWork, expected_s: float, floor_s: float) -> tuple[str, ...]:
    return (
        phase.name,
        f"{phase.num_models} x {phase.gpus_per_model}",
        f"{phase.epochs:g}",
        f"{phase.steps:,.0f}",
        _millions(phase.images_trained),
        f"{phase.flop / 1e15:.3f}",
        f"{expected_s:.2f}",
        f"{floor_s:.2f}",
    )


def _millions(images: float) -> str:
    return f"{images / 1e6:.3f}"


def _facts(plan: Plan, price_per_gpu_hour: float | None) -> tuple[str, ...]:
    work, hardware = plan.work, plan.speed.hardware
    needed = memory_bytes(work, hardware)
    facts = [
        f"Memory a GPU: {needed / 2**30:.2f} GiB of {hardware.memory_bytes / 2**30:.1f}, without "
        "the driver's own and the libraries' buffers"
        + ("" if needed < hardware.memory_bytes else ": it does not fit")
        + ".",
        f"Sent by each GPU: {sent_bytes(work, plan.gpus) / 1e9:.2f} GB, float32.",
    ]
    if isinstance(plan.speed, Modelled):
        efficiency = plan.speed.efficiency
        facts.append(
            f"Time: steps {efficiency.slowdown:.2f} times the floor and {efficiency.epoch_s:.2f} s "
            "an epoch besides, as in the paper's CIFAR runs; another program differs."
        )
        if line := overlap_line(work, plan.speed, plan.gpus):
            facts += [line, OVERLAP_ASSUMED]
    else:
        facts.append(
            f"Time: from updates measured here, one device alone; matrix product "
            f"{hardware.matrix_flop_s / 1e9:,.0f} GFLOP/s, copy "
            f"{hardware.memory_bytes_s / 1e9:,.1f} GB/s. The input and evaluation are not in it."
        )
    if plan.rate_model_s is not None:
        facts.append(f"By the paper's own rates: {plan.rate_model_s:.2f} s.")
    if price_per_gpu_hour is not None:
        cost = plan.cost(price_per_gpu_hour)
        facts.append(f"Cost at {price_per_gpu_hour:g} a GPU and hour: {cost:.4g}.")
    return tuple(facts)


SCALED = ("cifar10_swap", "imagenet_swap")
"""The recipes whose scaling the report shows."""


def scalings(paper: Paper) -> list[Scaling]:
    """Phase 1 of each on up to 1,024 of the paper's devices, by the physical model."""
    speed = modelled("v100", None, paper)
    return [scale(workload_of(RECIPES[name](), paper), speed) for name in SCALED]
