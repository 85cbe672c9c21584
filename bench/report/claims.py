"""The paper's claims, each with its figures, ours, and whether it held at this size. No torch.

An outcome is computed from the runs; none is written by hand.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from statistics import fmean
from typing import Literal

from bench.document import EMULATED, NOTHING, Table, interval_cell, mark_notes
from bench.landscape.records import Basin, CosineRecord, PlaneRecord, basin, on_other_sides
from bench.plots.training import averages_against_workers
from bench.records.grouping import (
    Host,
    accuracy_key,
    data_of,
    group_by,
    host_of,
    machine_key,
    timed_alone,
)
from bench.records.paper import ACCURACY_MARGIN, TIME_MARGIN, Paper, PaperValue
from bench.records.paper_tables import (
    ACCURACY,
    AFTER,
    AT_SIZE,
    BEFORE,
    RUN_TABLES,
    SGD_LARGE,
    SGD_SMALL,
    SWA_LARGE,
    SWA_LARGE_SMALL,
    SWA_SMALL,
    SWAP_10,
    SWAP_40,
    SWAP_AFTER,
    SWAP_BEFORE,
    TOP_1,
    Column,
    PaperRow,
    Size,
    places_of,
)
from bench.statistics import (
    DID_NOT_HOLD,
    HELD,
    NO_RUNS,
    Values,
    contrast,
    exponential,
    logarithms,
    outcome,
    summarize,
    t_interval,
)
from swap_fast.record import RunRecord

Rule = Literal["higher", "at least as high", "longer by a factor"]
"""How the first side of a claim is said to compare with the second."""


@dataclass(frozen=True)
class PaperCell:
    """A cell of one of the paper's tables, in the row of that label."""

    table: int
    label: str
    column: Column | None = None
    """Which accuracy; None: the time."""

    @cached_property
    def row(self) -> PaperRow:
        """Whose runs."""
        (found,) = (row for row in RUN_TABLES[self.table].rows if row.label == self.label)
        return found

    def published(self, paper: Paper) -> PaperValue:
        """The paper's own figure."""
        column = "train_time" if self.column is None else self.column.name
        return paper.value(RUN_TABLES[self.table].name, self.label, column)

    def has(self, record: RunRecord, size: Size) -> bool:
        """Whether the run is in this row."""
        table = RUN_TABLES[self.table]
        is_of_row = record.recipe == self.row.recipes.get(size)
        return is_of_row and table.place(size) in places_of(record)

    def value(self, record: RunRecord, *, modelled: bool = False) -> float | None:
        """The run's figure: a fraction, or seconds; modelled, had its workers run at once."""
        if self.column is not None:
            return self.row.accuracy(self.column, record)
        modelled_s = self.row.modelled_s(record) if modelled else None
        return self.row.time_s(record) if modelled_s is None else modelled_s


@dataclass(frozen=True)
class Claim:
    """The paper says that the first figure is higher than the second, or as high, or longer."""

    rule: Rule
    first: PaperCell
    second: PaperCell
    source: str
    says: str
    """In the paper's words."""

    @property
    def is_of_one_row(self) -> bool:
        """Whether both are figures of the same runs."""
        return self.first.row.recipes == self.second.row.recipes

    @property
    def is_of_times(self) -> bool:
        """Whether times are compared, as a ratio; else accuracies, as a difference."""
        return self.first.column is None


def _claims_of(
    table: int,
    section: str,
    column: Column,
    *,
    large: str = "Training with small batches achieves higher testing accuracy than with large "
    "batches",
    swap: str = "SWAP achieves accuracies on par with small-batch training, or better",
) -> list[Claim]:
    """The three claims that the paper makes of Tables 1, 2 and 3 alike."""
    source = f"Section {section}, Table {table}"
    averaging = "Test accuracy improves when the models are averaged"
    small, big, before, after = (
        PaperCell(table, label, column) for label in (SGD_SMALL, SGD_LARGE, SWAP_BEFORE, SWAP_AFTER)
    )
    return [
        Claim("higher", after, before, source, averaging),
        Claim("at least as high", after, small, source, swap),
        Claim("higher", small, big, source, large),
    ]


ACCURACY_CLAIMS = (
    *_claims_of(1, "5.1", ACCURACY),
    *_claims_of(2, "5.1", ACCURACY),
    *_claims_of(
        3,
        "5.2",
        TOP_1,
        large="Doubling the batch size reduces the test accuracy of the small-batch run",
        swap="SWAP recovers the generalization performance of the small-batch run",
    ),
    Claim(
        "at least as high",
        PaperCell(4, SWA_LARGE, BEFORE),
        PaperCell(4, SWA_LARGE, AFTER),
        "Section 5.3, Table 4",
        "SWA was unable to improve a large-batch run: before averaging it is as high",
    ),
    Claim(
        "at least as high",
        PaperCell(4, SWA_LARGE_SMALL, AFTER),
        PaperCell(2, SGD_SMALL, ACCURACY),
        "Section 5.3, Tables 4 and 2",
        "Large-batch followed by small-batch SWA reaches the test accuracy of a small-batch run",
    ),
    Claim(
        "higher",
        PaperCell(4, SWA_SMALL, AFTER),
        PaperCell(4, SWAP_10, AFTER),
        "Section 5.3, Table 4",
        "Small-batch SWA achieves better accuracy than SWAP (by around 0.9%)",
    ),
    Claim(
        "at least as high",
        PaperCell(4, SWAP_40, AFTER),
        PaperCell(4, SWA_SMALL, AFTER),
        "Section 5.3, Table 4",
        "SWAP with two longer cycles and two models a worker reaches the precision of small-batch "
        "SWA",
    ),
)
"""Of test accuracies, in the paper's order."""

TIME_CLAIMS = tuple(
    Claim("longer by a factor", PaperCell(4, slow), PaperCell(4, fast), "Section 5.3, Table 4", it)
    for slow, fast, it in (
        (
            *(SWA_LARGE_SMALL, SWAP_10),
            "Large-batch followed by small-batch SWA requires more than three times longer than "
            "SWAP",
        ),
        (SWA_SMALL, SWAP_10, "Small-batch SWA needs 6.8x more training time than SWAP"),
        (SWA_SMALL, SWAP_40, "SWAP reaches small-batch SWA's accuracy in 3.5x less time"),
    )
)
"""Of training times, in the paper's order."""


# The runs that a claim compares, and their figures.


@dataclass(frozen=True, kw_only=True)
class Pair:
    """The runs of a claim's two sides that may be compared."""

    first: list[RunRecord]
    """Of one recipe, kind of machine, number of devices, precision and data; as `second`."""
    second: list[RunRecord]
    mark: str
    """A number where there is more than one such pair; else nothing."""


def pairs_of(claim: Claim, records: Sequence[RunRecord], size: Size) -> Iterator[Pair]:
    """Every two groups of runs that may be compared; an empty pair without any."""
    sides = []
    for cell in (claim.first, claim.second):
        runs = [record for record in records if cell.has(record, size)]
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
    """What must be equal for runs of two recipes to be compared."""
    key = accuracy_key(record)
    return (key.precision, key.data_hash, record.settings.train_images)


def values_of(claim: Claim, pair: Pair, *, modelled: bool = False) -> tuple[Values, Values]:
    """Each side's figures; by run where both are of the same runs, else by seed."""

    def of(cell: PaperCell, runs: Sequence[RunRecord]) -> Values:
        return [
            (run.run_id if claim.is_of_one_row else run.seed, value)
            for run in (timed_alone(runs) if claim.is_of_times else runs)
            if (value := cell.value(run, modelled=modelled)) is not None
        ]

    return of(claim.first, pair.first), of(claim.second, pair.second)


# The claims of the loss's landscape, which planes and cosines show.


@dataclass(frozen=True)
class Fact:
    """A claim that each plane or path of a landscape shows to hold or not."""

    source: str
    says: str
    shown: list[tuple[str, bool]]
    """Of each plane or path: its figures, and whether the claim holds."""


def landscape_facts(planes: Sequence[PlaneRecord], cosines: Sequence[CosineRecord]) -> list[Fact]:
    """The paper's claims of Figures 2 to 4, each over all planes or paths that there are."""
    second, third = ([plane for plane in planes if plane.figure == number] for number in (2, 3))
    crossed = [on_other_sides(plane, "LB", "SGD") for plane in second]
    return [
        Fact(
            "Section 4, Figure 2",
            "The final model (SWAP) is closer to the center of the training error's basin "
            "than the output of phase 1 and a worker",
            [_is_swap_nearest(basin(plane)) for plane in second],
        ),
        Fact(
            "Section 4, Figure 2",
            "During phase 2 the model traversed to a different side of the basin",
            [(f"LB and SGD on {'unlike sides' if c else 'one side'}", c) for c in crossed],
        ),
        Fact(
            "Section 4, Figure 3",
            "SWAP is closer to the center than three workers",
            [_is_swap_nearest(basin(plane)) for plane in third],
        ),
        Fact(
            "Section 4.2, Figure 4",
            "The cosine similarity of -g and the direction to the output of SWAP decreases as "
            "the training enters its later stages",
            [_is_falling(path) for path in cosines],
        ),
    ]


def _is_falling(path: CosineRecord) -> tuple[str, bool]:
    """The mean cosine over the first and over the last third of a path's epochs, or one of each."""
    values = [row.cosine for row in path.rows]
    count = max(1, len(values) // 3)
    first, last = fmean(values[:count]), fmean(values[-count:])
    return (
        f"mean of the first third of the epochs {first:.3f}, of the last {last:.3f}",
        last < first,
    )


def _is_swap_nearest(found: Basin) -> tuple[str, bool]:
    each = ", ".join(f"{name} {distance:.2f}" for name, distance in found.distances.items())
    cut_off = "; the basin reaches the grid's border" if found.cut_off else ""
    return f"from the center: {each}{cut_off}", found.nearest == "SWAP"


# The tables.

NO_FIGURES = (*[NOTHING] * 5, NO_RUNS)
"""The last cells of a claim without runs."""

NOTE = (
    f"Outcome of 'higher': {HELD} where the 95% interval of the difference is above 0, "
    f"{DID_NOT_HOLD} where it is below; of 'on par', 'reaches', 'recovers', 'unable to improve': "
    f"{HELD} where it is above -{ACCURACY_MARGIN:g} points, else {DID_NOT_HOLD} where it is below "
    f"0; of times: {HELD} where the interval of the ratio is above the paper's less "
    f"{TIME_MARGIN:.0%}, else {DID_NOT_HOLD} where it is below the paper's; otherwise not "
    "distinguishable. Ratios are geometric means."
)
PAIRING_NOTE = (
    "Paired by run: two figures of the same runs. Paired by seed: runs of both rows with the same "
    "seeds, each once, differences by seed. Welch's: rows whose seeds are not the same."
)
MODELLED_NOTE = (
    "Modelled: had all workers of phase 2 run at the same time, phase 1 as measured. "
    "Not a measurement."
)


def claims_tables(
    records: Sequence[RunRecord],
    paper: Paper,
    planes: Sequence[PlaneRecord] = (),
    cosines: Sequence[CosineRecord] = (),
) -> list[Table]:
    """Every claim, once for each size and machine that has runs of any.

    Arguments:
        planes: errors around some of the runs' models (Figures 2 and 3).
        cosines: of gradients along some of the runs (Figure 4).
    """
    cells = [cell for claim in ACCURACY_CLAIMS for cell in (claim.first, claim.second)]
    tables = []
    for size in AT_SIZE:
        claimed = (r for r in records if any(cell.has(r, size) for cell in cells))
        groups = group_by(claimed, host_of)
        for number, host in enumerate(sorted(groups), start=1):
            ids = {record.run_id for record in groups[host]}
            facts = landscape_facts(
                [plane for plane in planes if plane.run_id in ids],
                [path for path in cosines if path.run_id in ids],
            )
            tables.append(_table(size, number, host, groups[host], paper, facts))
    return tables


def _table(
    size: Size,
    number: int,
    host: Host,
    records: Sequence[RunRecord],
    paper: Paper,
    facts: Sequence[Fact],
) -> Table:
    rows: list[tuple[str, ...]] = []
    notes: dict[str, None] = {}  # each once, in order
    for claim in (*ACCURACY_CLAIMS, *TIME_CLAIMS):
        for pair in pairs_of(claim, records, size):
            rows.append(_claim_row(claim, pair, paper))
            if claim.is_of_times and pair.first and pair.second:
                rows.append(_claim_row(claim, pair, paper, modelled=True))
            if pair.mark:
                notes[_pair_note(pair)] = None
        if claim is ACCURACY_CLAIMS[0]:
            rows.append(_figure_1_row(records, size))
    rows += [_fact_row(fact) for fact in facts]
    shown = [row for row in rows if row[-1] != NO_RUNS]
    if absent := len(rows) - len(shown):
        notes[f"Of {absent} further claims there are no runs at this size."] = None
    return Table(
        name=f"claims_{size}_{number}",
        title=f"The paper's claims {AT_SIZE[size]}, {host.label}",
        caption=(
            f"{len(records)} runs on {data_of(records)}. Each outcome is of these runs at this "
            "size: it says nothing of another. Accuracies in percent, times in seconds."
        ),
        columns=(
            "The paper says",
            "Where",
            "Paper",
            "Ours",
            "n",
            "Difference (points) or ratio",
            "95% interval",
            "Test",
            "Outcome",
        ),
        rows=tuple(shown),
        footnotes=(NOTE, PAIRING_NOTE, MODELLED_NOTE, *mark_notes(shown), *notes),
    )


def _claim_row(
    claim: Claim, pair: Pair, paper: Paper, *, modelled: bool = False
) -> tuple[str, ...]:
    first_paper, second_paper = (cell.published(paper) for cell in (claim.first, claim.second))
    published = f"{first_paper.mean:.2f} against {second_paper.mean:.2f} (n = {first_paper.n})"
    ratio = first_paper.mean / second_paper.mean
    if claim.is_of_times:
        published = f"{ratio:.2f}: {published}"
    first, second = values_of(claim, pair, modelled=modelled)
    if not first or not second:
        return (claim.says, claim.source, published, *NO_FIGURES)
    if claim.is_of_times:
        found = contrast(logarithms(first), logarithms(second))
        emulated = any(record.emulated_workers for record in (*pair.first, *pair.second))
        how = "modelled" if modelled else "measured"
        ours = f"{how}: {_means(first, second)}" + f" {EMULATED}" * (emulated and not modelled)
        figure, interval = f"{math.exp(found.mean):.2f}", interval_cell(exponential(found.interval))
        test = f"{found.test}, of logarithms"
        least, enough = math.log((1 - TIME_MARGIN) * ratio), math.log(ratio)
    else:
        found = contrast(first, second, paired_by="run" if claim.is_of_one_row else "seed")
        ours = _means(first, second, 100)
        figure, interval = f"{100 * found.mean:.2f}", interval_cell(found.interval, 100)
        test = found.test
        least, enough = 0.0 if claim.rule == "higher" else -ACCURACY_MARGIN / 100, 0.0
    ours += pair.mark
    if found.paired_by is not None and not claim.is_of_times:
        other = dict(second)
        ours += f"; higher in {sum(v > other[key] for key, v in first)} of {len(first)}"
    held = outcome(found, least=least, enough=enough)
    return (claim.says, claim.source, published, ours, found.n, figure, interval, test, held)


def _figure_1_row(records: Sequence[RunRecord], size: Size) -> tuple[str, ...]:
    """Held where the average is above every worker at every epoch of every run."""
    cells = (
        "The averaged model performs consistently better than each individual model",
        "Section 3, Figure 1",
        "at every epoch of the one run shown",
    )
    runs = [r for r in records if PaperCell(1, SWAP_AFTER).has(r, size)]
    leads = [lead for lead in map(averages_against_workers, runs) if lead]
    if not leads:
        return (*cells, *NO_FIGURES)
    ahead, epochs = sum(each > 0 for lead in leads for each in lead), sum(map(len, leads))
    of_runs = summarize(summarize(lead).mean for lead in leads)
    least = min(min(lead) for lead in leads)
    return (
        *cells,
        f"above the best worker at {ahead} of {epochs} epochs, by {100 * least:.2f} or more",
        str(len(leads)),
        f"{100 * of_runs.mean:.2f}",
        interval_cell(t_interval(of_runs), 100),
        "t, of each run's mean over epochs; the outcome counts epochs",
        HELD if ahead == epochs else DID_NOT_HOLD,
    )


def _fact_row(fact: Fact) -> tuple[str, ...]:
    """Held where it holds of every plane or path."""
    if not fact.shown:
        return (fact.says, fact.source, NOTHING, *NO_FIGURES)
    count, n = sum(holds for _, holds in fact.shown), len(fact.shown)
    return (
        fact.says,
        fact.source,
        "shown, without figures",
        "; ".join(ours for ours, _ in fact.shown),
        str(n),
        *[NOTHING] * 2,
        f"holds of {count} of {n}",
        HELD if count == n else DID_NOT_HOLD,
    )


def _means(first: Values, second: Values, factor: float = 1) -> str:
    means = (factor * fmean(value for _, value in values) for values in (first, second))
    return " against ".join(f"{mean:.2f}" for mean in means)


def _pair_note(pair: Pair) -> str:
    runs = ", ".join(dict.fromkeys(record.run_id for record in (*pair.first, *pair.second)))
    return f"{pair.mark.strip()} {runs}; not the same recipe, data or devices as the other pairs."
