"""The rate model: seconds an epoch as the paper's own rows give them. No torch.

Seven rows are read: Table 1 rows 1 to 3, Table 2 rows 1 and 2, Table 3 rows 1 and 2. Each gives
the seconds of an epoch at one batch on so many V100. CIFAR-10 and CIFAR-100 have images of one
size and number, and the net differs in its last layer alone: they share their rates.
"""

from dataclasses import dataclass

from bench.paper import Paper
from bench.workload import PhaseWork, Workload, workload_of
from swap_fast.recipes import RECIPES

PASS_SHARE = 1 / 3
"""Of an epoch's time: the pass after averaging is forward alone, and backward costs two of it."""

IMAGENET_EPOCHS, IMAGENET_PHASE_2 = 28, 6
"""Section 5.2: epochs of every row of Table 3; the last of SWAP's, in phase 2."""


@dataclass(frozen=True, kw_only=True)
class Rate:
    """Seconds an epoch of one setting on the paper's machine."""

    source: str
    """The row that it is read from."""
    images: str
    """"CIFAR" or "ImageNet"."""
    gpus: int
    """V100 that train the model."""
    global_batch_size: int
    """Images an update; of ImageNet, whose batch changes with the stage, the first."""
    seconds: float
    """An epoch's."""


def read_rates(paper: Paper) -> list[Rate]:
    """The seven rates."""
    rates = [
        _cifar_rate(paper, table, row, recipe)
        for table, row, recipe in (
            ("Table 1", "SGD (small-batch)", "cifar10_sgd_small"),
            ("Table 1", "SGD (large-batch)", "cifar10_sgd_large"),
            ("Table 2", "SGD (small-batch)", "cifar100_sgd_small"),
            ("Table 2", "SGD (large-batch)", "cifar100_sgd_large"),
        )
    ]
    swap = workload_of(RECIPES["cifar10_swap"](), paper)
    phase1, phase2 = swap.phases
    whole_s = paper.value("Table 1", "SWAP (before averaging)", "train_time").mean
    phase2_s = whole_s - phase1.epochs * phase_rate(rates, phase1)
    rates.append(
        Rate(
            source="Table 1, SWAP (before averaging), less phase 1",
            images="CIFAR",
            gpus=phase2.gpus_per_model,
            global_batch_size=phase2.global_batch_size,
            seconds=phase2_s / phase2.epochs,
        )
    )
    for row, gpus in (("SGD (small-batch)", 8), ("SGD (large-batch)", 16)):
        whole_min = paper.value("Table 3", row, "train_time").mean
        rates.append(
            Rate(
                source=f"Table 3, {row}",
                images="ImageNet",
                gpus=gpus,
                global_batch_size=512 * gpus,
                seconds=60 * whole_min / IMAGENET_EPOCHS,
            )
        )
    return rates


def phase_rate(rates: list[Rate], phase: PhaseWork) -> float:
    """Seconds an epoch of a CIFAR phase on the paper's machine.

    That of the row with the same devices and batch; between two rows with the same devices, on
    the line through them over the steps an epoch.

    Raises:
        ValueError: no row has as many devices, or the batch is outside of those that do.
    """
    same = {
        1 / rate.global_batch_size: rate.seconds
        for rate in rates
        if rate.images == "CIFAR" and rate.gpus == phase.gpus_per_model
    }
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
    """The time of a recipe for CIFAR on the paper's machine.

    Raises:
        ValueError: a phase that the paper has no rate for.
    """
    seconds = [phase_rate(rates, phase) for phase in work.phases]
    phases_s = tuple(s * phase.epochs for s, phase in zip(seconds, work.phases, strict=True))
    return Predicted(phases_s=phases_s, averaging_s=work.averages * PASS_SHARE * seconds[-1])


def predict_imagenet_swap(rates: list[Rate]) -> Predicted:
    """The time of Table 3's SWAP: phase 1 on 16 GPUs, two workers on 8 each side by side."""
    small, large = (rate.seconds for rate in rates if rate.images == "ImageNet")
    return Predicted(
        phases_s=((IMAGENET_EPOCHS - IMAGENET_PHASE_2) * large, IMAGENET_PHASE_2 * small),
        averaging_s=PASS_SHARE * small,
    )


def _cifar_rate(paper: Paper, table: str, row: str, recipe: str) -> Rate:
    (phase,) = workload_of(RECIPES[recipe](), paper).phases
    return Rate(
        source=f"{table}, {row}",
        images="CIFAR",
        gpus=phase.gpus_per_model,
        global_batch_size=phase.global_batch_size,
        seconds=paper.value(table, row, "train_time").mean / phase.epochs,
    )
