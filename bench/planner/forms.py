"""The fastest runs by the form of their step, on 1 and 8 devices of each kind: planned. No torch.

Nothing here was measured: the traffic of each form is counted, and the rest is assumed.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import fmean

from bench.document import NOTHING, Table
from bench.planner.check import check_paper, cifar_errors, paper_efficiency
from bench.planner.model import HARDWARE, Efficiency, Modelled, estimate, read_rates
from bench.planner.overlap import OVERLAP_ASSUMED, by_link, overlap
from bench.planner.workload import PhaseWork, workload_of
from bench.records.paper import Paper
from swap_fast.config.recipe import Recipe
from swap_fast.recipes.cifar10 import RECIPES

ASSUMED = Efficiency(slowdown=1 / 0.475, epoch_s=0.006)
"""Of a captured step whose images lie on the device: 45 to 50% of what the arithmetic and the
memory allow, and 6 ms of each epoch for its plan."""


UPDATE_BYTES = {"sgd": {False: 60.0, True: 22.0}, "muon": {False: 296.2, True: 70.6}}
"""Bytes that an update moves for each parameter, by the kind of optimizer and by whether it is
fused, with Muon's matrix products: as `micro step` counts them in fp16 of the nets of width 64."""
GATHERED_BYTES = 10
"""More of a fused one where several devices sum the gradient: it is copied to fp32, and then read
twice."""
RUNS = (
    *(("cifar10_dawnbench", 1), ("cifar10_dawnbench", 8)),
    *(("cifar10_speed", 1), ("cifar10_speed_8", 8)),
)
"""Recipes, each with a number of devices."""


@dataclass(frozen=True, kw_only=True)
class Form:
    """One form of the step."""

    name: str
    fused_norm: bool
    """Whether batch norm, pool, ReLU (GELU) and sum are one kernel."""
    fused_update: bool


def forms_of(recipe: Recipe) -> tuple[Form, ...]:
    """The forms that a recipe's step has: kernels of ours for batch norm in ResNet-9 alone."""
    has_norm = recipe.net == "resnet9"
    joined, fused = "compiled, or fused norm", "fused norm and update"
    if not has_norm:
        joined, fused = "compiled", "fused update"
    return (
        Form(name="eager", fused_norm=False, fused_update=False),
        Form(name=joined, fused_norm=True, fused_update=False),
        Form(name=fused, fused_norm=has_norm, fused_update=True),
    )


@dataclass(frozen=True, kw_only=True)
class Planned(Modelled):
    """The speed of a device with one form of the step."""

    optimizer: str
    """Its kind."""
    fused_update: bool

    def update_s(self, phase: PhaseWork) -> float:
        """By the bytes of this form's update."""
        moved = UPDATE_BYTES[self.optimizer][self.fused_update]
        if self.fused_update and phase.gpus_per_model > 1:
            moved += GATHERED_BYTES
        return (
            self.efficiency.slowdown * moved * phase.net.parameters / self.hardware.memory_bytes_s
        )


def planned_seconds(recipe: Recipe, gpus: int, form: Form, hardware: str, paper: Paper) -> float:
    """Seconds of a run, with `ASSUMED`; on fewer devices than workers these take turns."""
    work = workload_of(recipe, paper, fused=form.fused_norm)
    speed = Planned(
        hardware=HARDWARE[hardware],
        efficiency=ASSUMED,
        optimizer=recipe.optimizer.kind,
        fused_update=form.fused_update,
    )
    return estimate(work, speed, gpus).total_s


def forms_table(paper: Paper) -> Table:
    """A row for each recipe, number of devices and form."""
    return Table(
        name="plan_forms",
        title="Seconds of the fastest runs by the form of their step (planned, not measured)",
        caption="cifar10_dawnbench is the paper's 27-second run, cifar10_speed the modern base.",
        columns=("Recipe", "GPUs", "Epochs", "Step", *map(str.upper, HARDWARE)),
        rows=tuple(_rows(paper)),
        footnotes=(
            "Planned: the floor of each layer is the longer of arithmetic "
            "and traffic, by its maker's figures; every pass over activations and their gradients "
            "is counted, in fp16, and over the places of torch's max pools, in int64; a step's "
            "passes over the weights are not.",
            f"Assumed: {100 / ASSUMED.slowdown:.1f}% of that floor for steps, updates and "
            f"all-reduces; {1e3 * ASSUMED.epoch_s:g} ms an epoch besides; evaluation, which is off "
            "the clock, and input, which is beside training, take nothing.",
            *(
                f"{key.upper()}: {each.matrix_flop_s / 1e12:g} TFLOP/s, "
                f"{each.memory_bytes_s / 1e12:g} TB/s, {each.link_bytes_s / 1e9:g} GB/s to the "
                "other GPUs."
                for key, each in HARDWARE.items()
            ),
            *(
                f"An update by {words} moves {moved[False]:g} bytes a parameter; fused, "
                f"{moved[True]:g}, or {moved[True] + GATHERED_BYTES:g} where replicas sum the "
                "gradient."
                for words, moved in (
                    ("SGD", UPDATE_BYTES["sgd"]),
                    ("Muon, with its matrix products,", UPDATE_BYTES["muon"]),
                )
            ),
            "The rows sum gradients after the backward pass. In buckets beside it, "
            f"cifar10_dawnbench on 8 GPUs would take less: {_saved(paper)}.",
            OVERLAP_ASSUMED,
            "Epochs: of phase 1 and of each worker, times the workers that a GPU trains in turn.",
        ),
    )


def headline_table(paper: Paper) -> Table:
    """The paper's 27-second run on 8 devices of each kind, beside the paper's seconds."""
    recipe, gpus = RECIPES["cifar10_dawnbench"](), 8
    forms = forms_of(recipe)
    efficiency = paper_efficiency(paper, read_rates(paper))
    errors = cifar_errors(check_paper(paper))
    work = workload_of(recipe, paper)
    fixed_s = efficiency.epoch_s * sum(phase.epochs for phase in work.phases)
    rows = []
    for key, hardware in HARDWARE.items():
        as_paper = estimate(work, Modelled(hardware=hardware, efficiency=efficiency), gpus)
        ours = [planned_seconds(recipe, gpus, form, key, paper) for form in forms]
        rows.append(
            (
                key.upper(),
                f"{paper.claim.time_s:g}" if key == "v100" else NOTHING,
                *(f"{seconds:.1f}" for seconds in (as_paper.total_s, *ours)),
            )
        )
    return Table(
        name="plan_27_seconds",
        title=f"The 27 seconds on {gpus} GPUs (planned, not measured)",
        caption=(
            "cifar10_dawnbench: 28 epochs at 2048 and one at 256. The paper's own figure alone is "
            "measured."
        ),
        columns=(
            f"{gpus} GPUs",
            "Paper (s)",
            "Planned, as efficient as the paper's runs (s)",
            *(f"Planned, our step, {form.name} (s)" for form in forms),
        ),
        rows=tuple(rows),
        footnotes=(
            "The floor of each layer is the longer of arithmetic and traffic, by the devices' "
            f"data sheets. The paper's runs took {efficiency.slowdown:.2f} times that floor and "
            f"{efficiency.epoch_s:.2f} s an epoch besides; of our step {ASSUMED.slowdown:.2f} "
            f"times and {1e3 * ASSUMED.epoch_s:g} ms are assumed.",
            f"The model misses the times of the paper's CIFAR rows by {fmean(errors):.0%} on "
            f"average and up to {max(errors):.0%} (python -m bench plan --check-paper), and "
            f"{fixed_s:.0f} s of the column 'as efficient as the paper's runs' are the "
            f"{efficiency.epoch_s:.2f} s an epoch, fitted to those rows. Whether the recipe "
            f"reaches {100 * recipe.target_accuracy:g}% on a GPU is not known, as the paper gives "
            "no learning rates for it.",
        ),
    )


def _saved(paper: Paper) -> str:
    """Seconds of phase 1 by device and link."""
    phase = workload_of(RECIPES["cifar10_dawnbench"](), paper).phases[0]
    found = []
    for key, hardware in HARDWARE.items():
        links = by_link(Modelled(hardware=hardware, efficiency=ASSUMED))
        seconds = {link: phase.steps * overlap(phase, at, 8).saved_s for link, at in links.items()}
        words = " and ".join(f"{saved:.2f} s by {link}" for link, saved in seconds.items())
        found.append(f"{key.upper()} {words}")
    return ", ".join(found)


def _rows(paper: Paper) -> Iterator[tuple[str, ...]]:
    for name, gpus in RUNS:
        recipe = RECIPES[name]()
        together, apart = workload_of(recipe, paper).phases
        turns = apart.num_models // min(gpus, apart.num_models)
        epochs = f"{together.epochs:g} + {f'{turns} x ' if turns > 1 else ''}{apart.epochs:g}"
        for form in forms_of(recipe):
            seconds = (planned_seconds(recipe, gpus, form, key, paper) for key in HARDWARE)
            yield (name, str(gpus), epochs, form.name, *(f"{s:.1f}" for s in seconds))
