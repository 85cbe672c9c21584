"""The tables of claims: each claim's outcome at each size, and why one did not hold. No torch."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from bench.document import EMULATED, NOTHING, Table, interval_cell, mark_notes
from bench.landscape.records import Basin, CosineRecord, PlaneRecord, angle_at_centre, basin
from bench.plots.training import averages_against_workers
from bench.records.grouping import Host, data_of, group_by, host_of, machine_key
from bench.records.paper import ACCURACY_MARGIN, TIME_MARGIN, Paper
from bench.records.paper_tables import AT_SIZE, LANDSCAPES, SWAP_AFTER, Size
from bench.report.claims import (
    ACCURACY_CLAIMS,
    TIME_CLAIMS,
    Claim,
    Pair,
    PaperCell,
    pairs_of,
    values_of,
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

# The claims of the loss's landscape, which planes and cosines show.


@dataclass(frozen=True)
class Fact:
    """A claim that each plane or path of a landscape shows to hold or not."""

    source: str
    says: str
    shown: dict[str, tuple[str, bool]]
    """By the run of each plane or path: its figures, and whether the claim holds."""
    why: str | None = None
    """What the figures say of the reason, where it does not hold."""


def landscape_facts(planes: Sequence[PlaneRecord], cosines: Sequence[CosineRecord]) -> list[Fact]:
    """The paper's claims of Figures 2 to 4, each over all planes or paths that there are."""
    second, third = ({p.run_id: p for p in planes if p.figure == number} for number in (2, 3))
    return [
        Fact(
            "Section 4, Figure 2",
            "The final model (SWAP) is closer to the center of the training error's basin "
            "than the output of phase 1 and a worker",
            {run: _is_swap_nearest(basin(plane)) for run, plane in second.items()},
        ),
        Fact(
            "Section 4, Figure 2",
            "During phase 2 the model traversed to a different side of the basin",
            {run: _is_crossing(plane) for run, plane in second.items()},
            why="; ".join(map(_way_past_the_centre, second.values())),
        ),
        Fact(
            "Section 4, Figure 3",
            "SWAP is closer to the center than three workers",
            {run: _is_swap_nearest(basin(plane)) for run, plane in third.items()},
        ),
        Fact(
            "Section 4.2, Figure 4",
            "The cosine similarity of -g and the direction to the output of SWAP decreases as "
            "the training enters its later stages",
            {path.run_id: _is_falling(path) for path in cosines},
            why="; ".join(map(_course, cosines)),
        ),
    ]


def _is_crossing(plane: PlaneRecord) -> tuple[str, bool]:
    angle = angle_at_centre(plane, "LB", "SGD")
    return f"LB and SGD at {angle:.0f} degrees, seen from the center", angle > 90


def _way_past_the_centre(plane: PlaneRecord) -> str:
    """Where the way from LB, the plane's origin, to SGD, on its first axis, passes the centre."""
    centre, (sgd,) = basin(plane), [point for point in plane.marked if point.name == "SGD"]
    return (
        f"different sides begin at 90 degrees; the way from LB to SGD, {sgd.alpha:.2f} long, "
        f"passes the center after {centre.alpha:.2f}, at a distance of {abs(centre.beta):.2f}"
    )


def _is_falling(path: CosineRecord) -> tuple[str, bool]:
    """The mean cosine over the first and over the last third of a path's epochs, or one of each."""
    values = [row.cosine for row in path.rows]
    count = max(1, len(values) // 3)
    first, last = fmean(values[:count]), fmean(values[-count:])
    return (
        f"mean of the first third of the epochs {first:.3f}, of the last {last:.3f}",
        last < first,
    )


def _course(path: CosineRecord) -> str:
    """Where a path's cosine begins, is highest and ends."""
    top, last = max(path.rows, key=lambda row: row.cosine), path.rows[-1]
    return (
        f"it begins at {path.rows[0].cosine:.3f}, is highest at {top.cosine:.3f} "
        f"(phase {top.phase}, epoch {top.epoch}) and ends at {last.cosine:.3f} "
        f"(phase {last.phase}, epoch {last.epoch})"
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


@dataclass(frozen=True, kw_only=True)
class Claims:
    """What the runs say of the paper's claims."""

    tables: list[Table]
    first_looks: list[Table]
    """Of claims at CPU size that a nearer size has runs of."""
    outcomes: list[str]
    """Of each claim in the tables, at the nearest size at which its runs decide it."""


def claims_tables(
    records: Sequence[RunRecord],
    paper: Paper,
    planes: Sequence[PlaneRecord] = (),
    cosines: Sequence[CosineRecord] = (),
) -> Claims:
    """Every claim, once for each size and machine that has runs of any.

    Arguments:
        planes: errors around some of the runs' models (Figures 2 and 3).
        cosines: of gradients along some of the runs (Figure 4).
    """
    cells = [cell for claim in ACCURACY_CLAIMS for cell in (claim.first, claim.second)]
    tables: dict[bool, list[Table]] = {False: [], True: []}
    nearer: dict[tuple[str, ...], str] = {}  # of each claim its outcome
    for size in AT_SIZE:
        claimed = (
            r
            for r in records
            if r.recipe == LANDSCAPES.get(size) or any(cell.has(r, size) for cell in cells)
        )
        groups = group_by(claimed, host_of)
        rows_of = {host: _rows(size, groups[host], paper, planes, cosines) for host in groups}
        is_far = size == "cpu"
        seen = {*nearer} if is_far else set()
        for is_first_look in tables if is_far else (False,):
            for number, host in enumerate(sorted(groups), start=1):
                rows = [row for row in rows_of[host] if (row.claim in seen) is is_first_look]
                if any(row.runs for row in rows):
                    name = f"claims_{size}_{number}" + "_first_looks" * is_first_look
                    tables[is_first_look].append(_table(name, size, host, rows))
        for row in (row for host in sorted(groups) for row in rows_of[host] if row.runs):
            if row.claim not in seen and nearer.get(row.claim) not in (HELD, DID_NOT_HOLD):
                nearer[row.claim] = row.outcome
    return Claims(tables=tables[False], first_looks=tables[True], outcomes=[*nearer.values()])


@dataclass(frozen=True, kw_only=True)
class _Row:
    """A claim's row."""

    cells: tuple[str, ...]
    runs: Sequence[RunRecord]
    """Behind it; none: the claim has none at this size."""
    note: str | None = None
    why: str | None = None
    """What its runs say of the reason, where it did not hold."""

    @property
    def claim(self) -> tuple[str, ...]:
        """What the paper says, and where."""
        return self.cells[:2]

    @property
    def outcome(self) -> str:
        """The last cell."""
        return self.cells[-1]


def _rows(
    size: Size,
    records: Sequence[RunRecord],
    paper: Paper,
    planes: Sequence[PlaneRecord],
    cosines: Sequence[CosineRecord],
) -> list[_Row]:
    """All claims on one kind of machine at one size."""
    rows: list[_Row] = []
    for claim in (*ACCURACY_CLAIMS, *TIME_CLAIMS):
        for pair in pairs_of(claim, records, size):
            note = _pair_note(pair) if pair.mark else None
            both = claim.is_of_times and pair.first and pair.second
            for modelled in (False, True) if both else (False,):
                cells = _claim_row(claim, pair, paper, modelled=modelled)
                runs = () if cells[-1] == NO_RUNS else (*pair.first, *pair.second)
                row = _Row(cells=cells, runs=runs, note=note)
                # Two figures of the same runs were trained alike.
                asks = row.outcome == DID_NOT_HOLD and not claim.is_of_one_row
                rows.append(replace(row, why=_why(claim, pair, paper)) if asks else row)
        if claim is ACCURACY_CLAIMS[0]:
            rows.append(_figure_1_row(records, size))
    by_id = {record.run_id: record for record in records}
    facts = landscape_facts(
        [plane for plane in planes if plane.run_id in by_id],
        [path for path in cosines if path.run_id in by_id],
    )
    for fact in facts:
        row = _Row(cells=_fact_row(fact), runs=[by_id[run] for run in fact.shown])
        asks = row.outcome == DID_NOT_HOLD and fact.why is not None
        why = f"Why not ({fact.source}, {fact.says}): {fact.why}."
        rows.append(replace(row, why=why) if asks else row)
    return rows


def _table(name: str, size: Size, host: Host, rows: Sequence[_Row]) -> Table:
    shown = [row.cells for row in rows if row.runs]
    runs = {run.run_id: run for row in rows for run in row.runs}.values()
    notes = dict.fromkeys(row.note for row in rows if row.note is not None)
    absent = len(rows) - len(shown)
    return Table(
        name=name,
        title=f"The paper's claims {AT_SIZE[size]}, {host.label}",
        caption=(
            f"{len(runs)} runs on {data_of([*runs])}. Each outcome is of these runs at this "
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
        footnotes=(
            *(NOTE, PAIRING_NOTE, MODELLED_NOTE, *mark_notes(shown), *notes),
            *([f"Of {absent} further claims there are no runs at this size."] if absent else []),
            *dict.fromkeys(row.why for row in rows if row.why is not None),
        ),
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


def _figure_1_row(records: Sequence[RunRecord], size: Size) -> _Row:
    """Held where the average is above every worker at every epoch of every run."""
    cells = (
        "The averaged model performs consistently better than each individual model",
        "Section 3, Figure 1",
        "at every epoch of the one run shown",
    )
    runs = [r for r in records if PaperCell(1, SWAP_AFTER).has(r, size)]
    leads = [lead for lead in map(averages_against_workers, runs) if lead]
    if not leads:
        return _Row(cells=(*cells, *NO_FIGURES), runs=())
    ahead, epochs = sum(each > 0 for lead in leads for each in lead), sum(map(len, leads))
    of_runs = summarize(summarize(lead).mean for lead in leads)
    least = min(min(lead) for lead in leads)
    found = (
        *cells,
        f"above the best worker at {ahead} of {epochs} epochs, by {100 * least:.2f} or more",
        str(len(leads)),
        f"{100 * of_runs.mean:.2f}",
        interval_cell(t_interval(of_runs), 100),
        "t, of each run's mean over epochs; the outcome counts epochs",
        HELD if ahead == epochs else DID_NOT_HOLD,
    )
    return _Row(cells=found, runs=[r for r in runs if r.average_by_epoch])


def _fact_row(fact: Fact) -> tuple[str, ...]:
    """Held where it holds of every plane or path."""
    if not fact.shown:
        return (fact.says, fact.source, NOTHING, *NO_FIGURES)
    count, n = sum(holds for _, holds in fact.shown.values()), len(fact.shown)
    return (
        fact.says,
        fact.source,
        "shown, without figures",
        "; ".join(ours for ours, _ in fact.shown.values()),
        str(n),
        *[NOTHING] * 2,
        f"holds of {count} of {n}",
        HELD if count == n else DID_NOT_HOLD,
    )


def _why(claim: Claim, pair: Pair, paper: Paper) -> str:
    """What the runs say of the reason for which a claim did not hold."""
    if claim.is_of_times:
        gpus, cores = claim.second.published(paper).devices, machine_key(pair.second[0]).devices
        return (
            f"Why not, of times: SWAP is faster by workers side by side. The paper's had {gpus} "
            f"GPUs; of ours {len(pair.second[0].worker_accuracies)} shared {cores} cores, and "
            "where the time is modelled each had one."
        )
    opening = f"Why not ({claim.source}, {claim.says}):"
    first, second = (
        fmean(_last_train_accuracy(record) for record in runs) for runs in (pair.first, pair.second)
    )
    found = (
        f"{opening} of the training images, in their last epochs, {first:.1%} were right against "
        f"{second:.1%}."
    )
    if first < second:
        return f"{found} It is behind in training already, not in generalization alone."
    return f"{found} It is not behind in training, but in generalization."


def _last_train_accuracy(record: RunRecord) -> float:
    """Of the last epoch's augmented training images; the mean over workers."""
    last = {
        row.worker: row.train_accuracy
        for row in record.epochs
        if row.phase == record.epochs[-1].phase
    }
    return fmean(last.values())


def _means(first: Values, second: Values, factor: float = 1) -> str:
    means = (factor * fmean(value for _, value in values) for values in (first, second))
    return " against ".join(f"{mean:.2f}" for mean in means)


def _pair_note(pair: Pair) -> str:
    runs = ", ".join(dict.fromkeys(record.run_id for record in (*pair.first, *pair.second)))
    return f"{pair.mark.strip()} {runs}; not the same recipe, data or devices as the other pairs."
