"""The paper's claims, each with its figures, ours, and whether it held at this size. No torch.

An outcome is computed from the runs; none is written by hand.
"""

import math
from collections.abc import Sequence

from bench.analysis.claim_pairs import Pair, pairs_of, values_of
from bench.analysis.landscape_claims import Fact, landscape_facts
from bench.analysis.paper_claims import ACCURACY_CLAIMS, SWAP_AFTER, TIME_CLAIMS, Claim, Side
from bench.analysis.verdicts import ACCURACY_MARGIN, TIME_MARGIN
from bench.document.table import EMULATED, EMULATED_NOTE, NOTHING, Table, interval_cell
from bench.intervals import t_interval
from bench.landscape.records import CosineRecord, PlaneRecord
from bench.plots.training import averages_shown
from bench.records.grouping import Host, group_by, host_of, summarize
from bench.records.paper import Paper
from bench.records.paper_tables import ACCURACY, SIZES, Size
from bench.statistics import (
    DID_NOT_HOLD,
    HELD,
    NO_RUNS,
    Values,
    contrast,
    exponential,
    logarithms,
    outcome,
)
from swap_fast.record import RunRecord

COLUMNS = (
    "The paper says",
    "Where",
    "Paper",
    "Ours",
    "n",
    "Difference (points) or ratio",
    "95% interval",
    "Test",
    "Outcome",
)
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
    tables = []
    for size in SIZES:
        standing = [record for record in records if _stands(record, size)]
        groups = group_by(standing, host_of)
        for number, host in enumerate(sorted(groups), start=1):
            ids = {record.run_id for record in groups[host]}
            facts = landscape_facts(
                [plane for plane in planes if plane.run_id in ids],
                [path for path in cosines if path.run_id in ids],
            )
            tables.append(_table(size, number, host, groups[host], paper, facts))
    return tables


def averages_against_workers(record: RunRecord) -> list[float]:
    """Figure 1 of a SWAP run: at each epoch of phase 2, the average less the best worker."""
    best: dict[int, float] = {}
    for row in record.epochs:
        if row.phase == 2 and row.test_accuracy is not None:
            best[row.epoch] = max(row.test_accuracy, best.get(row.epoch, 0.0))
    return [
        row.test_accuracy - best[row.epoch] for row in averages_shown(record) if row.epoch in best
    ]


def _table(
    size: Size,
    number: int,
    host: Host,
    records: Sequence[RunRecord],
    paper: Paper,
    facts: Sequence[Fact],
) -> Table:
    rows: list[tuple[str, ...]] = []
    marks: dict[str, None] = {}
    for claim in ACCURACY_CLAIMS:
        for pair in pairs_of(claim, records, size):
            rows.append(_accuracy_row(claim, pair, paper))
            marks |= dict.fromkeys(_mark_notes(pair))
        if claim is ACCURACY_CLAIMS[0]:
            rows.append(_figure_1_row(records, size))
    for claim in TIME_CLAIMS:
        for pair in pairs_of(claim, records, size):
            ways = (False, True) if pair.first and pair.second else (False,)
            rows += [_time_row(claim, pair, paper, modelled=modelled) for modelled in ways]
            marks |= dict.fromkeys(_mark_notes(pair))
    rows += [_fact_row(fact) for fact in facts]
    emulated = [EMULATED_NOTE] if any(EMULATED in cell for row in rows for cell in row) else []
    at = "at the paper's size" if size == "paper" else "at CPU size"
    data = sorted({f"{r.data.get('name')} ({r.data.get('kind')})" for r in records})
    return Table(
        name=f"claims_{size}_{number}",
        title=f"The paper's claims {at}, {host.label}",
        caption=(
            f"{len(records)} runs on {', '.join(data)}. Each outcome is of these runs at this "
            "size: it says nothing of another. Accuracies in percent, times in seconds."
        ),
        columns=COLUMNS,
        rows=tuple(rows),
        footnotes=(NOTE, PAIRING_NOTE, MODELLED_NOTE, *emulated, *marks),
    )


def _accuracy_row(claim: Claim, pair: Pair, paper: Paper) -> tuple[str, ...]:
    cells = (claim.says, claim.source, _published(claim, paper))
    first, second = values_of(claim, pair)
    if not first or not second:
        return (*cells, *[NOTHING] * 5, NO_RUNS)
    found = contrast(first, second, paired_by="run" if claim.is_of_one_row else "seed")
    ours = f"{_mean(first, 100)} against {_mean(second, 100)}{pair.mark}"
    if found.paired_by is not None:
        other = dict(second)
        count = sum(value > other[key] for key, value in first)
        ours += f"; higher in {count} of {len(first)}"
    least = 0.0 if claim.rule == "higher" else -ACCURACY_MARGIN / 100
    return (
        *cells,
        ours,
        found.n,
        f"{100 * found.mean:.2f}",
        interval_cell(found.interval, 100),
        found.test,
        outcome(found, least=least),
    )


def _time_row(claim: Claim, pair: Pair, paper: Paper, *, modelled: bool) -> tuple[str, ...]:
    how = "modelled" if modelled else "measured"
    cells = (claim.says, claim.source, _published(claim, paper))
    first, second = values_of(claim, pair, modelled=modelled)
    if not first or not second:
        return (*cells, *[NOTHING] * 5, NO_RUNS)
    found = contrast(logarithms(first), logarithms(second))
    claimed = _paper_ratio(claim, paper)
    emulated = any(record.emulated_workers for record in (*pair.first, *pair.second))
    mark = f" {EMULATED}" if emulated and not modelled else ""
    return (
        *cells,
        f"{how}: {_mean(first)} against {_mean(second)}{mark}{pair.mark}",
        found.n,
        f"{math.exp(found.mean):.2f}",
        interval_cell(exponential(found.interval)),
        f"{found.test}, of logarithms",
        outcome(found, least=math.log((1 - TIME_MARGIN) * claimed), enough=math.log(claimed)),
    )


def _figure_1_row(records: Sequence[RunRecord], size: Size) -> tuple[str, ...]:
    """Held where the average is above every worker at every epoch of every run."""
    cells = (
        "The averaged model performs consistently better than each individual model",
        "Section 3, Figure 1",
        "at every epoch of the one run shown",
    )
    side = Side(table=1, label=SWAP_AFTER, column=ACCURACY)
    leads = [averages_against_workers(record) for record in records if side.has(record, size)]
    leads = [lead for lead in leads if lead]
    if not leads:
        return (*cells, *[NOTHING] * 5, NO_RUNS)
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
    if not fact.holds:
        return (fact.says, fact.source, NOTHING, *[NOTHING] * 5, NO_RUNS)
    count, n = sum(fact.holds), len(fact.holds)
    return (
        fact.says,
        fact.source,
        "shown, without figures",
        "; ".join(fact.ours),
        str(n),
        *[NOTHING] * 2,
        f"holds of {count} of {n}",
        HELD if count == n else DID_NOT_HOLD,
    )


def _published(claim: Claim, paper: Paper) -> str:
    first, second = (side.published(paper) for side in (claim.first, claim.second))
    text = f"{first.mean:.2f} against {second.mean:.2f} (n = {first.n})"
    return text if claim.first.column is not None else f"{_paper_ratio(claim, paper):.2f}: {text}"


def _paper_ratio(claim: Claim, paper: Paper) -> float:
    return claim.first.published(paper).mean / claim.second.published(paper).mean


def _mean(values: Values, factor: float = 1) -> str:
    return f"{factor * summarize(value for _, value in values).mean:.2f}"


def _mark_notes(pair: Pair) -> list[str]:
    if not pair.mark:
        return []
    runs = ", ".join(dict.fromkeys(record.run_id for record in (*pair.first, *pair.second)))
    return [f"{pair.mark.strip()} {runs}; not the same recipe, data or devices as the other pairs."]


def _stands(record: RunRecord, size: Size) -> bool:
    """Whether any claim is about the run's row."""
    sides = (side for claim in ACCURACY_CLAIMS for side in (claim.first, claim.second))
    return any(side.has(record, size) for side in sides)
