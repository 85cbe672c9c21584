"""The rate model: seconds an epoch as the paper's own rows give them. No torch.

Seven rows are read: Table 1 rows 1 to 3, Table 2 rows 1 and 2, Table 3 rows 1 and 2. Each gives
the seconds of an epoch at one batch on so many V100. CIFAR-10 and CIFAR-100 have images of one
size and number, and the net differs in its last layer alone: they share their rates.
"""

from dataclasses import dataclass

from bench.planner.workload import PhaseWork, Workload, workload_of
from bench.records.paper import Paper
from swap_fast.recipes.cifar10 import RECIPES

PASS_SHARE = 1 / 3
"""Of an epoch's time: the pass after averaging is forward alone, and backward costs two of it."""


@dataclass(frozen=True, kw_only=True)
class Rate:
    """Seconds an epoch of one setting on the paper's machine."""

    source: str
    """The row that it is read from."""
    images: int
    """Training images: those of the CIFAR sets, or ImageNet's."""
    gpus: int
    """V100 that train the model."""
    global_batch_size: int | None
    """Images an update; None for ImageNet: the mean epoch of all stages."""
    seconds: float
    """An epoch's."""


def read_rates(paper: Paper) -> list[Rate]:
    """The seven rates."""
    rates = [
        _sgd_rate(paper, table, row, recipe)
        for table, row, recipe in (
            ("Table 1", "SGD (small-batch)", "cifar10_sgd_small"),
            ("Table 1", "SGD (large-batch)", "cifar10_sgd_large"),
            ("Table 2", "SGD (small-batch)", "cifar100_sgd_small"),
            ("Table 2", "SGD (large-batch)", "cifar100_sgd_large"),
            ("Table 3", "SGD (small-batch)", "imagenet_sgd_small"),
            ("Table 3", "SGD (large-batch)", "imagenet_sgd_large"),
        )
    ]
    phase1, phase2 = workload_of(RECIPES["cifar10_swap"](), paper).phases
    whole_s = paper.time_s("Table 1", "SWAP (before averaging)")
    phase2_s = whole_s - phase1.epochs * phase_rate(rates, phase1)
    return [
        *rates,
        Rate(
            source="Table 1, SWAP (before averaging), less phase 1",
            images=phase2.images,
            gpus=phase2.gpus_per_model,
            global_batch_size=phase2.global_batch_size,
            seconds=phase2_s / phase2.epochs,
        ),
    ]


def phase_rate(rates: list[Rate], phase: PhaseWork) -> float:
    """Seconds an epoch of a phase on the paper's machine.

    That of the row with the same devices and batch; between two rows with the same devices, on
    the line through them over the steps an epoch.

    Raises:
        ValueError: no row has as many devices, or the batch is outside of those that do.
    """
    here = [r for r in rates if (r.images, r.gpus) == (phase.images, phase.gpus_per_model)]
    same = {1 / (rate.global_batch_size or phase.global_batch_size): rate.seconds for rate in here}
    at = 1 / phase.global_batch_size
    below, above = (
        max((x for x in same if x <= at), default=0),
        min((x for x in same if x >= at), default=0),
    )
    if not below or not above:
        raise ValueError(
            f"{phase.name}: expected a setting of the paper, got a batch of "
            f"{phase.global_batch_size} on {phase.gpus_per_model} GPUs a model"
        )
    if below == above:
        return same[below]
    part = (at - below) / (above - below)
    return same[below] + part * (same[above] - same[below])


@dataclass(frozen=True, kw_only=True)
class Predicted:
    """Seconds that the rate model gives a run on the paper's machine."""

    phases_s: tuple[float, ...]
    """Of each phase, its models side by side."""
    averaging_s: float
    """Of the pass after averaging; the averaging itself is taken as nothing."""

    @property
    def before_s(self) -> float:
        """Up to averaging."""
        return sum(self.phases_s)

    @property
    def after_s(self) -> float:
        """The whole."""
        return self.before_s + self.averaging_s


def predict(rates: list[Rate], work: Workload) -> Predicted:
    """The time of a recipe on the paper's machine.

    Raises:
        ValueError: a phase that the paper has no rate for.
    """
    seconds = [phase_rate(rates, phase) for phase in work.phases]
    phases_s = tuple(s * phase.epochs for s, phase in zip(seconds, work.phases, strict=True))
    return Predicted(phases_s=phases_s, averaging_s=work.averages * PASS_SHARE * seconds[-1])


def _sgd_rate(paper: Paper, table: str, row: str, recipe: str) -> Rate:
    phases = workload_of(RECIPES[recipe](), paper).phases
    return Rate(
        source=f"{table}, {row}",
        images=phases[0].images,
        gpus=phases[0].gpus_per_model,
        global_batch_size=phases[0].global_batch_size if len(phases) == 1 else None,
        seconds=paper.time_s(table, row) / sum(phase.epochs for phase in phases),
    )
