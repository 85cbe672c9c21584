"""The tables of claims: each claim's outcome at each size, and why one did not hold. No torch."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from bench.document import EMULATED, NOTHING, OTHER_WORK, Table, interval_cell, mark_notes
from bench.landscape.records import (
    CosineRecord,
    PlaneRecord,
)
from bench.plots.training import averages_against_workers
from bench.records.grouping import (
    accuracy_key,
    group_by,
    host_of,
    machine_key,
    timed_alone,
)
from bench.records.paper import ACCURACY_MARGIN, TIME_MARGIN, Paper
from bench.records.paper_tables import (
    AT_SIZE,
    LANDSCAPES,
    SWAP_AFTER,
    Size,
    number_machines,
)
from bench.report.claims import (
    ACCURACY_CLAIMS,
    TIME_CLAIMS,
    Claim,
    Pair,
    PaperCell,
    pairs_of,
    values_of,
)
from bench.report.claims_landscape import Fact, landscape_facts
from bench.report.paper_tables import MODELLED_NOTE
from bench.statistics import (
    DID_NOT_HOLD,
    HELD,
    NO_RUNS,
    WELCH,
    Values,
    contrast,
    exponential,
    independent,
    logarithms,
    outcome,
    summarize,
    t_interval,
)
from swap_fast.record import RunRecord

NO_FIGURES = (*[NOTHING] * 5, NO_RUNS)
"""The last cells of a claim without runs."""

NOTE = (
    f"Outcome of 'higher': {HELD} where the 95% interval of the difference is above 0, "
    f"{DID_NOT_HOLD} where it is below; of 'on par', 'reaches', 'recovers', 'unable to improve': "
    f"{HELD} where it is above -{ACCURACY_MARGIN:g} points, else {DID_NOT_HOLD} where it is below "
    f"0; of times: {HELD} where the interval of the ratio is above the paper's less "
    f"{TIME_MARGIN:.0%} (of 'takes longer': above 1), else {DID_NOT_HOLD} where it is below the "
    "paper's (1); else undecided. Ratios are geometric means, of the runs beside which no other "
    "programs ran where there are any."
)
PAIRING_NOTE = (
    "Paired by run: two figures of the same runs. Paired by seed: runs of both rows with the same "
    f"seeds, each once, differences by seed; {WELCH} of the same runs is given behind it, and "
    "decides nothing. Welch's: rows whose seeds are not the same. Equal differences have no "
    "interval."
)
NOT_TESTED = "not tested"
NOT_TESTED_NOTE = (
    f"{NOT_TESTED.capitalize()}, of times: SWAP's workers took turns; or SWAP had more devices "
    "than the other row in the paper, and has no more here."
)
UNDECIDED = "undecided"
"""Where figures of a landscape say both, or planes do not agree."""


@dataclass(frozen=True, kw_only=True)
class Claims:
    """What the runs say of the paper's claims."""

    table: Table | None
    """Of all sizes; None where no claim has runs."""
    nearest: Table | None
    """Of each claim the size that decides it, and those that came out the other way."""
    outcomes: list[tuple[str, str]]
    """What each claim that has runs is of, and its outcome at the nearest size that decides it."""
    modelled: int
    """How many of them were decided by modelled times."""
    contradicted: int
    """Of the decided ones, how many came out the other way at another size."""


def claims_of(
    records: Sequence[RunRecord],
    paper: Paper,
    planes: Sequence[PlaneRecord] = (),
    cosines: Sequence[CosineRecord] = (),
) -> Claims:
    """Every claim at each size and on each machine with runs, the nearest to the paper first.

    Arguments:
        planes: errors around some of the runs' models (Figures 2 and 3).
        cosines: of gradients along some of the runs (Figure 4).
    """
    cells = [cell for claim in ACCURACY_CLAIMS for cell in (claim.first, claim.second)]
    by_claim: dict[tuple[str, ...], list[_Row]] = {}
    numbers = number_machines(records)
    for size in AT_SIZE:
        claimed = (
            r
            for r in records
            if r.recipe == LANDSCAPES.get(size) or any(cell.has(r, size) for cell in cells)
        )
        for host, group in sorted(group_by(claimed, host_of).items(), key=lambda item: item[0]):
            where = f"{AT_SIZE[size]}, machine {numbers[host]}"
            for row in _rows(size, group, paper, planes, cosines):
                by_claim.setdefault(row.claim, []).append(replace(row, where=where))
    found = {claim: [r for r in rows if r.runs] for claim, rows in by_claim.items()}
    found = {claim: rows for claim, rows in found.items() if rows}
    nearest = {claim: _nearest(rows) for claim, rows in found.items()}
    against = {
        claim: [row for row in rows if row.is_decided and row.outcome != nearest[claim].outcome]
        for claim, rows in found.items()
    }
    absent = len(by_claim) - len(found)
    short = {claim: [row, *against[claim]] for claim, row in nearest.items()}
    return Claims(
        table=_table(found, absent) if found else None,
        nearest=_table(short, absent) if found else None,
        outcomes=[(row.kind, row.outcome) for row in nearest.values()],
        modelled=sum(row.is_modelled and row.is_decided for row in nearest.values()),
        contradicted=sum(nearest[c].is_decided and bool(rows) for c, rows in against.items()),
    )


@dataclass(frozen=True, kw_only=True)
class _Row:
    """A claim at one size, on one kind of machine."""

    cells: tuple[str, ...]
    kind: str
    """What the claim is of: accuracies, times or landscapes."""
    runs: Sequence[RunRecord]
    """Behind it; none: the claim has none at this size."""
    where: str = ""
    """The size and the machine."""
    is_modelled: bool = False
    """Whether SWAP's times are modelled: had its workers run at the same time."""
    note: str | None = None
    why: str | None = None
    """What its runs say of the reason, where it did not hold."""

    @property
    def claim(self) -> tuple[str, ...]:
        """What the paper says, where, and its figures."""
        return self.cells[:3]

    @property
    def outcome(self) -> str:
        """The last cell."""
        return self.cells[-1]

    @property
    def is_decided(self) -> bool:
        """Whether the claim held or did not."""
        return self.outcome in (HELD, DID_NOT_HOLD)


def _nearest(rows: Sequence[_Row]) -> _Row:
    """The first that decides a claim, else the first; a modelled one where nothing is measured."""
    measured = [row for row in rows if not row.is_modelled and row.outcome != NOT_TESTED] or rows
    return next((row for row in measured if row.is_decided), measured[0])


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
            in_turn = any(map(_takes_turns, (*pair.first, *pair.second)))
            for modelled in (False, True) if claim.is_of_times and in_turn else (False,):
                cells = _claim_row(claim, pair, paper, modelled=modelled)
                runs = () if cells[-1] == NO_RUNS else (*pair.first, *pair.second)
                kind = "times" if claim.is_of_times else "accuracies"
                row = _Row(cells=cells, kind=kind, runs=runs, is_modelled=modelled, note=note)
                # Two figures of the same runs were trained alike.
                asks = row.outcome == DID_NOT_HOLD and not claim.is_of_one_row
                why = _why(claim, pair, paper, is_modelled=modelled) if asks else None
                rows.append(replace(row, why=why))
        if claim is ACCURACY_CLAIMS[0]:
            rows += _figure_1_rows(records, size)
    by_id = {record.run_id: record for record in records}
    facts = landscape_facts(
        [plane for plane in planes if plane.run_id in by_id],
        [path for path in cosines if path.run_id in by_id],
    )
    for fact in facts:
        shown = [by_id[run] for run in fact.shown]
        row = _Row(cells=_fact_row(fact), kind="landscapes", runs=shown)
        asks = row.outcome in (DID_NOT_HOLD, UNDECIDED) and fact.why is not None
        why = f"Why not ({fact.source}, {fact.says}): {fact.why}."
        rows.append(replace(row, why=why) if asks else row)
    return rows


def _table(found: Mapping[tuple[str, ...], Sequence[_Row]], absent: int) -> Table:
    cells = tuple(
        (*(claim if number == 0 else [""] * len(claim)), row.where, *row.cells[len(claim) :])
        for claim, rows in found.items()
        for number, row in enumerate(rows)
    )
    rows = [row for each in found.values() for row in each]
    return Table(
        name="claims",
        title="The paper's claims",
        caption=(
            "Each at the size nearest to the paper that decides it, by modelled times only where "
            "none were measured; below it, other sizes. An outcome is of its own runs. Accuracies "
            "in percent, times in seconds."
        ),
        columns=(
            "The paper says",
            "Where",
            "Paper",
            "Ours: size",
            "Ours",
            "n",
            "Difference (points) or ratio",
            "95% interval",
            "Test",
            "Outcome",
        ),
        rows=cells,
        footnotes=(
            *(NOTE, PAIRING_NOTE),
            *([MODELLED_NOTE] if any(row.is_modelled for row in rows) else []),
            *([NOT_TESTED_NOTE] if any(row.outcome == NOT_TESTED for row in rows) else []),
            *mark_notes(cells),
            *dict.fromkeys(row.note for row in rows if row.note is not None),
            *([f"Of {absent} further claims there are no runs."] if absent else []),
            *dict.fromkeys(row.why for row in rows if row.why is not None),
        ),
        details=("Where", "Paper", "Test"),
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
        ours = _means(first, second) + f" {EMULATED}" * (emulated and not modelled)
        ours = f"modelled: {ours}" if modelled else ours
        figure, interval = f"{math.exp(found.mean):.2f}", interval_cell(exponential(found.interval))
        test = f"{found.test}, of logarithms"
        is_by = claim.rule == "longer by a factor"
        least, enough = (math.log((1 - TIME_MARGIN) * ratio), math.log(ratio)) if is_by else (0, 0)
        is_beside = any(
            run.had_other_work for side in (pair.first, pair.second) for run in timed_alone(side)
        )
        ours += f" {OTHER_WORK}" * is_beside
    else:
        found = contrast(first, second, paired_by="run" if claim.is_of_one_row else "seed")
        ours = _means(first, second, 100)
        figure, interval = f"{100 * found.mean:.2f}", interval_cell(found.interval, 100)
        test = found.test
        if found.paired_by == "seed":
            test += f"; {WELCH} {interval_cell(independent(first, second).interval, 100)}"
        least, enough = 0.0 if claim.rule == "higher" else -ACCURACY_MARGIN / 100, 0.0
    ours += pair.mark
    if found.paired_by is not None and not claim.is_of_times:
        other = dict(second)
        ours += f"; higher in {sum(v > other[key] for key, v in first)} of {len(first)}"
    held = outcome(found, least=least, enough=enough)
    if claim.is_of_times:
        fewer, more = first_paper.devices, second_paper.devices
        devices = [machine_key(side[0]).devices for side in (pair.first, pair.second)]
        in_turn = not modelled and any(map(_takes_turns, pair.second))
        if in_turn or (fewer < more and devices[0] >= devices[1]):
            held = NOT_TESTED
    return (claim.says, claim.source, published, ours, found.n, figure, interval, test, held)


def _takes_turns(run: RunRecord) -> bool:
    """Whether its workers did not all run at the same time."""
    return run.method == "swap" and len(run.worker_accuracies) > run.world_size


def _figure_1_rows(records: Sequence[RunRecord], size: Size) -> list[_Row]:
    """Held where the average is above every worker at every epoch of every run."""
    cells = (
        "The averaged model performs consistently better than each individual model",
        "Section 3, Figure 1",
        "at every epoch of the one run shown",
    )
    followed = [r for r in records if PaperCell(1, SWAP_AFTER).has(r, size) and r.average_by_epoch]
    rows = []
    for runs in group_by(followed, lambda r: (accuracy_key(r), machine_key(r))).values():
        leads = [lead for lead in map(averages_against_workers, runs) if lead]
        ahead, epochs = sum(each > 0 for lead in leads for each in lead), sum(map(len, leads))
        of_runs = summarize(summarize(lead).mean for lead in leads)
        least = min(min(lead) for lead in leads)
        found = (
            *cells,
            f"above the best worker at {ahead} of {epochs} epochs, by {100 * least:.2f} or more",
            str(len(leads)),
            f"{100 * of_runs.mean:.2f}",
            interval_cell(t_interval(of_runs), 100),
            "t, of means over epochs; the outcome counts epochs",
            HELD if ahead == epochs else DID_NOT_HOLD,
        )
        rows.append(_Row(cells=found, kind="accuracies", runs=runs))
    return rows or [_Row(cells=(*cells, *NO_FIGURES), kind="accuracies", runs=())]


def _fact_row(fact: Fact) -> tuple[str, ...]:
    """Held where it holds of every plane or path."""
    if not fact.shown:
        return (fact.says, fact.source, NOTHING, *NO_FIGURES)
    verdicts, n = [holds for _, holds in fact.shown.values()], len(fact.shown)
    count, failed = verdicts.count(True), verdicts.count(False)
    return (
        fact.says,
        fact.source,
        "shown, without figures",
        "; ".join(ours for ours, _ in fact.shown.values()),
        str(n),
        *[NOTHING] * 2,
        f"holds of {count} of {n}",
        HELD if count == n else DID_NOT_HOLD if failed == n else UNDECIDED,
    )


def _why(claim: Claim, pair: Pair, paper: Paper, *, is_modelled: bool) -> str:
    """What the runs say of the reason for which a claim did not hold."""
    if claim.is_of_times:
        gpus, ours = claim.second.published(paper).devices, machine_key(pair.second[0]).used
        workers = len(pair.second[0].worker_accuracies)
        alone = ", and where the time is modelled each had one" if is_modelled else ""
        return (
            f"Why not, of times: SWAP is faster by workers side by side. The paper's had {gpus} "
            f"GPUs; our {workers} shared {ours}{alone}."
        )
    opening = f"Why not ({claim.source}, {claim.says}):"
    first, second = (
        fmean(_last_train_accuracy(record) for record in runs) for runs in (pair.first, pair.second)
    )
    found = (
        f"{opening} of the augmented training images, in the last epochs, {first:.1%} were right "
        f"against {second:.1%}."
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
