"""Section 4.1: the average of independent runs compared with that of one run's samples. No torch.

SWAP's workers each give one model; SWA's one worker gives as many in sequence, as many epochs
apart. Both begin from the same phase 1.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

from bench.document import NOTHING, Block, Paragraph, Table, interval_cell, percent, summary_cell
from bench.records.grouping import Host, accuracy_key, group_by, host_of
from bench.records.paper_tables import AT_SIZE, SWA_LARGE_SMALL, SWAP_10, Size
from bench.report.claims import PaperCell
from bench.statistics import contrast, summarize
from swap_fast.config.recipe import AveragingRecipe
from swap_fast.record import RunRecord

PARALLEL, SEQUENTIAL = PaperCell(4, SWAP_10), PaperCell(4, SWA_LARGE_SMALL)
"""The rows of Table 4 whose runs average independent workers, and samples of one run."""


@dataclass(frozen=True, kw_only=True)
class Sampled:
    """What one run averaged."""

    models: int
    epochs: float
    """Of phase 2, from one sample of a worker to its next."""
    before: float
    """Mean test accuracy of the workers at their end, a fraction."""
    after: float
    """Of the average, a fraction."""
    distance: float | None
    """Mean Euclidean distance of two of the models."""
    norm: float | None
    """Mean norm of theta_w - theta_T; None in older records."""
    cosine: float | None
    """Mean cosine of two of these differences; None in older records."""


def sampled(record: RunRecord) -> Sampled:
    """What a run of SWAP or SWA averaged.

    Raises:
        ValueError: the run averaged nothing.
    """
    if record.accuracy_before_averaging is None:
        raise ValueError(f"{record.run_id}: expected a run that averages models, got one of SGD")
    recipe = record.settings
    assert isinstance(recipe, AveragingRecipe), "only these have an accuracy before averaging"
    return Sampled(
        models=recipe.num_workers * recipe.phase2.cycles,
        epochs=recipe.phase2.cycle_epochs,
        before=record.accuracy_before_averaging,
        after=record.test_accuracy,
        distance=_mean_of_pairs(record.pairwise_distances),
        norm=fmean(record.displacement_norms) if record.displacement_norms else None,
        cosine=_mean_of_pairs(record.displacement_cosines),
    )


def _mean(
    of: Callable[[Sampled], float | None], decimals: int
) -> Callable[[Sequence[Sampled]], str]:
    """The cell of a quantity: its mean over the runs, or nothing where a run lacks it."""

    def cell(runs: Sequence[Sampled]) -> str:
        present = [value for value in map(of, runs) if value is not None]
        is_whole = len(present) == len(runs)
        return summary_cell(summarize(present) if is_whole else None, decimals=decimals)

    return cell


COLUMNS: dict[str, Callable[[Sequence[Sampled]], str]] = {
    "n models": lambda runs: " or ".join(map(str, sorted({run.models for run in runs}))),
    "Epochs a sample": lambda runs: " or ".join(
        f"{epochs:g}" for epochs in sorted({run.epochs for run in runs})
    ),
    "Before averaging (%)": _mean(lambda run: 100 * run.before, 2),
    "After averaging (%)": _mean(lambda run: 100 * run.after, 2),
    "Distance": _mean(lambda run: run.distance, 3),
    "Displacement norm": _mean(lambda run: run.norm, 3),
    "Cosine of displacements": _mean(lambda run: run.cosine, 3),
}
"""The cells of one or more runs."""


def sampling_blocks(records: Sequence[RunRecord]) -> list[Block]:
    """A table and a sentence for each size and machine that has runs of both kinds."""
    blocks: list[Block] = []
    for size in AT_SIZE:
        runs = (r for r in records if PARALLEL.has(r, size) or SEQUENTIAL.has(r, size))
        for group in group_by(runs, _setting).values():
            parallel, sequential = (
                [record for record in group if row.has(record, size)]
                for row in (PARALLEL, SEQUENTIAL)
            )
            if parallel and sequential:
                number = 1 + sum(isinstance(b, Table) and f"_{size}_" in b.name for b in blocks)
                blocks.append(_table(size, number, parallel, sequential))
                blocks.append(Paragraph(text=_sentence(parallel, sequential)))
    return blocks


def _table(
    size: Size, number: int, parallel: Sequence[RunRecord], sequential: Sequence[RunRecord]
) -> Table:
    rows = []
    for label, runs in (("independent workers", parallel), ("samples of one run", sequential)):
        rows += [_row(label, str(record.seed), [sampled(record)]) for record in runs]
        if len({accuracy_key(record) for record in runs}) == 1:
            rows.append(_row(label, "mean", [sampled(record) for record in runs]))
    return Table(
        name=f"sampling_{size}_{number}",
        title=f"Sampling from independent runs or from one, {AT_SIZE[size]}",
        caption=(
            f"Section 4.1, on {host_of(parallel[0]).label}: models from {parallel[0].recipe} "
            f"and models from {sequential[0].recipe}, both from a phase 1 that ends alike. "
            "Distances, norms and cosines are means over the models or their pairs."
        ),
        columns=("Models", "Seed", *COLUMNS),
        rows=tuple(rows),
        footnotes=(
            "Displacement: theta_w - theta_T, from the end of phase 1 to each averaged model. "
            f"{NOTHING}: records of before it was measured. Means: ± sample standard deviation "
            "over seeds.",
        ),
    )


def _row(label: str, seed: str, runs: Sequence[Sampled]) -> tuple[str, ...]:
    return (label, seed, *(cell(runs) for cell in COLUMNS.values()))


def _sentence(parallel: Sequence[RunRecord], sequential: Sequence[RunRecord]) -> str:
    """Which of the two gave the higher accuracy, computed."""
    both = (parallel, sequential)
    if any(len({accuracy_key(run) for run in runs}) > 1 for runs in both):
        return "Runs of unlike recipes or precision are not put together: no mean is compared."
    first, second = ([(run.seed, run.test_accuracy) for run in runs] for runs in both)
    found = contrast(first, second)
    ours, theirs = (percent(fmean(value for _, value in each)) for each in (first, second))
    if found.interval is None or found.interval.low <= 0 <= found.interval.high:
        word = f"not distinguishable from that of one run's samples at n = {found.n}"
    else:
        word = f"{'higher' if found.mean > 0 else 'lower'} than that of one run's samples"
    one, other = sampled(parallel[0]), sampled(sequential[0])
    if (one.models, one.epochs) == (other.models, other.epochs):
        epochs = f"At equal epochs, {one.models} models of {one.epochs:g} epochs each"
    else:
        epochs = (
            f"Not at equal epochs ({one.models} models of {one.epochs:g} epochs, and "
            f"{other.models} of {other.epochs:g})"
        )
    interval = ""
    if found.interval is not None:
        interval = f", 95% interval {interval_cell(found.interval, 100)} ({found.test})"
    return (
        f"{epochs}: the accuracy of the average of independent workers is {word}: {ours}% against "
        f"{theirs}%, a difference of {100 * found.mean:.2f} points{interval}."
    )


def _setting(record: RunRecord) -> tuple[Host, str, str]:
    """What must be equal for runs of the two kinds to be in one table."""
    key = accuracy_key(record)
    return host_of(record), key.precision, key.data_hash


def _mean_of_pairs(matrix: Sequence[Sequence[float]]) -> float | None:
    """Mean over the pairs of two unlike models; None without any."""
    pairs = [matrix[i][j] for i in range(len(matrix)) for j in range(i)]
    return fmean(pairs) if pairs else None
