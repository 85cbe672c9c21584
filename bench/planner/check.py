"""Compares both models with every published time, to say how accurate a plan is. No torch."""

from dataclasses import dataclass
from statistics import fmean

from bench.document import NOTHING, Table
from bench.planner.model import V100, Efficiency, Modelled, Rate, estimate, fit, predict, read_rates
from bench.planner.workload import TRAIN_IMAGES, workload_of
from bench.records.paper import Paper
from swap_fast.recipes.cifar10 import RECIPES

LEFT_OUT = {
    ("Table 1", "SWAP (after averaging)"): "all but the averaging of it is read",
    ("Table 4", "Large-batch SWA"): "by the rate of Table 2, row 2, it takes half the time: the "
    "paper contradicts itself",
    ("Table 4", "SWAP (10 small-batch epochs)"): "it is Table 2's run again",
}
"""Rows that the rate model predicts but that do not count, and why."""

AVERAGED = {"Table 1": "cifar10_swap", "Table 2": "cifar100_swap", "Table 3": "imagenet_swap"}
"""Tables with SWAP's time before and after averaging, and our recipes of it."""

IMAGENET_TABLE = "Table 3"


@dataclass(frozen=True, kw_only=True)
class CheckedRow:
    """One published time and the models' predictions."""

    table: str
    """A table, or a section."""
    row: str
    """Of the table."""
    published_s: float
    rate_s: float | None
    """By the rate model; None for the rows that its rates are read from."""
    physical_s: float
    """By the physical model."""
    counts: bool
    """Whether the row is in the rate model's mean error."""

    @property
    def rate_error(self) -> float | None:
        """As a share of the published time."""
        return None if self.rate_s is None else self.rate_s / self.published_s - 1

    @property
    def physical_error(self) -> float:
        """As a share of the published time."""
        return self.physical_s / self.published_s - 1


def check_paper(paper: Paper) -> list[CheckedRow]:
    """Every row of Tables 1 to 4 and the 27 seconds."""
    rates = read_rates(paper)
    speed = Modelled(hardware=V100, efficiency=paper_efficiency(paper, rates))
    rows = []
    for table, row, recipe, is_after, is_read in (
        ("Table 1", "SGD (small-batch)", "cifar10_sgd_small", True, True),
        ("Table 1", "SGD (large-batch)", "cifar10_sgd_large", True, True),
        ("Table 1", "SWAP (before averaging)", "cifar10_swap", False, True),
        ("Table 1", "SWAP (after averaging)", "cifar10_swap", True, False),
        ("Table 2", "SGD (small-batch)", "cifar100_sgd_small", True, True),
        ("Table 2", "SGD (large-batch)", "cifar100_sgd_large", True, True),
        ("Table 2", "SWAP (before averaging)", "cifar100_swap", False, False),
        ("Table 2", "SWAP (after averaging)", "cifar100_swap", True, False),
        ("Table 3", "SGD (small-batch)", "imagenet_sgd_small", True, True),
        ("Table 3", "SGD (large-batch)", "imagenet_sgd_large", True, True),
        ("Table 3", "SWAP (before averaging)", "imagenet_swap", False, False),
        ("Table 3", "SWAP (after averaging)", "imagenet_swap", True, False),
        ("Table 4", "Large-batch SWA", "cifar100_swa_large", True, False),
        (
            *("Table 4", "Large-batch followed by small-batch SWA"),
            *("cifar100_swa_large_small", True, False),
        ),
        ("Table 4", "Small-batch SWA", "cifar100_swa_small", True, False),
        ("Table 4", "SWAP (10 small-batch epochs)", "cifar100_swap", True, False),
        ("Table 4", "SWAP (40 small-batch epochs)", "cifar100_swap_40", True, False),
        ("Section 5.1", "27 seconds", "cifar10_dawnbench", True, False),
    ):
        work = workload_of(RECIPES[recipe](), paper)
        predicted = predict(rates, work)
        physical = estimate(work, speed, work.replicas)
        rows.append(
            CheckedRow(
                table=table,
                row=row,
                published_s=paper.claim.time_s
                if table == "Section 5.1"
                else paper.time_s(table, row),
                rate_s=None if is_read else predicted.total_s if is_after else predicted.before_s,
                physical_s=physical.total_s if is_after else physical.before_s,
                counts=not is_read and (table, row) not in LEFT_OUT,
            )
        )
    return rows


def paper_efficiency(paper: Paper, rates: list[Rate]) -> Efficiency:
    """The efficiency of the paper's CIFAR runs on their machine."""
    works = [
        workload_of(RECIPES[name](), paper)
        for name in ("cifar10_sgd_small", "cifar10_sgd_large", "cifar100_sgd_small",
                     "cifar100_sgd_large", "cifar10_swap")
    ]  # fmt: skip
    # Each rate is of the recipe's only phase; the last rate is of SWAP's phase 2, of one worker.
    cifar = [rate.seconds for rate in rates if rate.images == TRAIN_IMAGES["cifar10"]]
    return fit(
        [(w.last_phase, w.replicas, s) for w, s in zip(works, cifar, strict=True)],
        V100,
    )


def mean_error(rows: list[CheckedRow]) -> float:
    """The rate model's mean absolute error over the rows that count, a share."""
    return fmean(abs(row.rate_error) for row in rows if row.counts and row.rate_error is not None)


def cifar_errors(rows: list[CheckedRow]) -> list[float]:
    """The physical model's absolute errors over CIFAR's rows, shares."""
    return [abs(row.physical_error) for row in rows if row.table != IMAGENET_TABLE]


def check_table(paper: Paper) -> Table:
    """Predicted and published times."""
    rows = check_paper(paper)
    cifar = cifar_errors(rows)
    efficiency = paper_efficiency(paper, read_rates(paper))
    imagenet = [abs(row.physical_error) for row in rows if row.table == IMAGENET_TABLE]
    return Table(
        name="plan_check_paper",
        title="The planner's models beside the paper",
        caption=(
            f"Rate model: mean absolute error {mean_error(rows):.1%} over "
            f"{sum(row.counts for row in rows)} rows that it predicts. Physical model, "
            f"V100: {fmean(cifar):.0%} over CIFAR's rows, {fmean(imagenet):.0%} over Table 3's."
        ),
        columns=(
            "Row",
            "Published (s)",
            "Rate model (s)",
            "Error (%)",
            "Physical (s)",
            "Error (%)",
        ),
        rows=tuple(
            (
                f"{row.table}, {row.row}{_mark(row)}",
                f"{row.published_s:.2f}",
                NOTHING if row.rate_s is None else f"{row.rate_s:.2f}",
                NOTHING if row.rate_error is None else f"{100 * row.rate_error:+.1f}",
                f"{row.physical_s:.2f}",
                f"{100 * row.physical_error:+.1f}",
            )
            for row in rows
        ),
        footnotes=(
            "* Read, not predicted.",
            "** Not in the mean: "
            + "; ".join(f"{table}, {row}: {why}" for (table, row), why in LEFT_OUT.items())
            + ".",
            f"Averaging and batch norm alone, by the rate model: {_averaging(paper)}.",
            f"The physical model's two numbers are fitted to CIFAR's rates: steps take "
            f"{efficiency.slowdown:.2f} times the floor, an epoch {efficiency.epoch_s:.2f} s "
            "besides. Table 3's runs were bound by their input, which it does not know.",
        ),
    )


def _averaging(paper: Paper) -> str:
    """The time from before to after averaging, predicted and published."""
    rates, parts = read_rates(paper), []
    for table, recipe in AVERAGED.items():
        before = paper.time_s(table, "SWAP (before averaging)")
        after = paper.time_s(table, "SWAP (after averaging)")
        predicted = predict(rates, workload_of(RECIPES[recipe](), paper)).averaging_s
        parts.append(f"{predicted:.2f} s of {after - before:.2f} s published ({table})")
    return ", ".join(parts)


def _mark(row: CheckedRow) -> str:
    if row.rate_s is None:
        return " *"
    return "" if row.counts else " **"
