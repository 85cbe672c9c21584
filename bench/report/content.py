"""What a results folder holds, and the report at one look. No torch."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from bench.document import NOTHING, Bullets, Table, counted, plus_minus, summary_cell
from bench.landscape.records import (
    CosineRecord,
    LandscapeRecord,
    PlaneRecord,
    read_all_cosines,
    read_planes,
)
from bench.micro.records import MicroRecord, read_micro_records
from bench.records.grouping import (
    data_of,
    host_of,
    machine_key,
    pool_accuracies,
    pool_times,
    scale_note,
    timed_alone,
)
from bench.records.paper import NOT_COMPARED, Paper, judge, load_paper
from bench.records.paper_tables import (
    OTHER,
    SGD_SMALL,
    SWA_SMALL,
    SWAP_AFTER,
    TIME_TO_TARGET,
    RowRuns,
    RunTable,
    deal,
    number_machines,
    place_of,
    table_groups,
)
from bench.report.paper_tables import all_run_tables, cpu_warning, time_to_target
from bench.statistics import DID_NOT_HOLD, HELD
from swap_fast.record import RunRecord
from swap_fast.record_files import read_records

L = TypeVar("L", bound=LandscapeRecord)


@dataclass(frozen=True, kw_only=True)
class Content:
    """What a results folder holds, read and checked once."""

    results: Path
    paper: Paper
    records: list[RunRecord]
    """By recipe, seed and time."""
    planes: list[PlaneRecord]
    """Of runs among the records, as `cosines`, in the order of their names."""
    cosines: list[CosineRecord]
    micro: list[MicroRecord]
    """The newest of each kind."""
    skipped: list[str]
    """Why other files were left out."""
    main: list[Table]
    """Tables 1 to 4 in their forms that have runs; the times to an accuracy where we have one."""
    first_looks: list[Table]
    """Those at CPU size of which there is another form, which is in `main`."""


def collect(results: Path) -> Content:
    """Read a results folder; records that cannot be read, or twice the same, are left out.

    Raises:
        ValueError: the published figures cannot be read.
    """
    paper = load_paper(results)
    found, skipped = read_records(results / "runs")
    records: dict[str, RunRecord] = {}
    for record in found:
        if record.run_id in records:
            name = " ".join(record.run_id.split())
            skipped.append(f"{name}: expected one record of this run, got another")
        else:
            records[record.run_id] = record
    ordered = sorted(records.values(), key=lambda r: (r.recipe, r.seed, r.created, r.run_id))
    planes, odd_planes = read_planes(results)
    cosines, odd_cosines = read_all_cosines(results)
    micro, odd_micro = read_micro_records(results / "micro")
    skipped += [*odd_planes, *odd_cosines]
    main = all_run_tables(ordered, paper, first_looks=False)
    if any(place_of(record) == TIME_TO_TARGET for record in ordered):
        main.append(time_to_target(ordered, paper))
    return Content(
        results=results,
        paper=paper,
        records=ordered,
        planes=_of_runs(planes, records, skipped),
        cosines=_of_runs(cosines, records, skipped),
        micro=micro,
        skipped=[*skipped, *odd_micro],
        main=main,
        first_looks=all_run_tables(ordered, paper, first_looks=True),
    )


def _of_runs(
    landscapes: Sequence[L], records: Mapping[str, RunRecord], skipped: list[str]
) -> list[L]:
    """Those of runs that are there; why others are not goes to `skipped`."""
    skipped += [
        f"{each.name}: expected a run of this folder, got {each.run_id}"
        for each in landscapes
        if each.run_id not in records
    ]
    return [each for each in landscapes if each.run_id in records]


def warning(content: Content) -> str:
    """The report's first line: how far its figures are from the paper's setting."""
    shown = [record for record in content.records if place_of(record) != OTHER]
    cpu = [record for record in shown if not record.comparable]
    full = [record for record in shown if record.comparable]
    lines = []
    if cpu:
        lines.append(cpu_warning(cpu))
    device = content.paper.values[0].device
    machines = sorted({machine_key(r).used for r in full if device not in host_of(r).device})
    if machines:
        lines.append(f"Not the paper's hardware, NVIDIA {device}: {' and '.join(machines)}.")
    if not content.records:
        lines.append("There are no runs yet.")
    elif not shown:
        lines.append("No run here can be compared with published figures; the list says why.")
        lines.append(scale_note(content.records).strip())
    return " ".join(filter(None, lines)) or "On the paper's hardware."


# The report at one look: what was measured, on what, how it compares, how sure and how fast it is.


def summary(content: Content, warned: Table, outcomes: Sequence[str]) -> Bullets:
    """A few sentences, each from the records.

    Arguments:
        outcomes: of the paper's claims that have runs.
    """
    records = content.records
    if not records:
        return Bullets(items=("Measured: nothing yet.",))
    recipes = {record.recipe for record in records}
    count = len(warned.rows)
    machines = (f"machine {n}: {host.label}" for host, n in number_machines(records).items())
    return Bullets(
        items=(
            *_claims(outcomes),
            f"Measured: {len(records)} runs of {len(recipes)} recipes on {data_of(records)}; "
            f"{'; '.join(machines)}.",
            f"Stability: {counted(count, 'warning')}; see what to do."
            if count
            else "Stability: no warnings.",
        )
    )


COMPARED = {1: SGD_SMALL, 2: SGD_SMALL, 3: SGD_SMALL, 4: SWA_SMALL}
"""The row of each table that SWAP is to equal in less time."""


def overview(content: Content) -> Table | None:
    """SWAP's accuracies and times beside those that it is to equal, of each table with runs."""
    rows = tuple(_overview_rows(content))
    if not rows:
        return None
    return Table(
        name="overview",
        title="SWAP, and what it is to equal in less time",
        caption="Test accuracies (%), top-1 in Table 3; times as measured, one over the other.",
        columns=(
            *("Table", "SWAP", "Compared", "SWAP's share of the time", "n", "Compared with", "On"),
            *("Paper: SWAP", "Paper: compared", "Paper: share"),
        ),
        rows=rows,
        details=("Paper: SWAP", "Paper: compared", "Paper: share"),
    )


def _overview_rows(content: Content) -> Iterator[tuple[str, ...]]:
    for group in (g for g in table_groups(content.records) if not g.is_first_look):
        table = group.table
        rows = [each for each in deal(table, group.size, group.records) if each.records]
        for swap in rows:
            if not swap.row.is_final or swap.records[0].method != "swap":
                continue
            label = COMPARED[table.number]
            compared = next(
                (e for e in rows if (e.row.label, e.precision) == (label, swap.precision)), None
            )
            ratio = compared and _time_ratio(swap, compared)
            name = "" if swap.row.label == SWAP_AFTER else f", {swap.row.label}"
            seconds = [content.paper.time_s(table.name, row) for row in (swap.row.label, label)]
            yield (
                f"{table.title(group.size)}{name}{swap.mark}",
                _accuracy(swap, table, content.paper),
                NOTHING if compared is None else _accuracy(compared, table, content.paper),
                NOTHING if not ratio else f"{ratio:.2f}",
                str(len(swap.records)),
                label,
                machine_key(swap.records[0]).used,
                *(_published(row, table, content.paper) for row in (swap.row.label, label)),
                f"{seconds[0] / seconds[1]:.2f}",
            )


def _accuracy(each: RowRuns, table: RunTable, paper: Paper) -> str:
    """A row's accuracy, and how it compares with the paper's where it can be compared."""
    ours = pool_accuracies(each.records, partial(each.row.accuracy, table.target))
    if ours is None:
        return NOTHING
    published = paper.value(table.name, each.row.label, table.target.name)
    verdict = judge(ours.scaled(100), published, each.records)
    return summary_cell(ours, 100) + f" ({verdict})" * (verdict != NOT_COMPARED)


def _published(label: str, table: RunTable, paper: Paper) -> str:
    value = paper.value(table.name, label, table.target.name)
    return plus_minus(value.mean, value.sd)


def _time_ratio(first: RowRuns, second: RowRuns) -> float | None:
    """Of the mean times of two rows, each of runs that were timed alone."""
    if any(run.had_other_work for e in (first, second) for run in timed_alone(e.records)):
        return None
    means = [pool_times(each.records, each.row.time_s) for each in (first, second)]
    return None if None in means else means[0].mean / means[1].mean  # type: ignore[union-attr]


def _claims(outcomes: Sequence[str]) -> list[str]:
    """How many of the paper's claims held."""
    if not outcomes:
        return []
    held, failed = (outcomes.count(each) for each in (HELD, DID_NOT_HOLD))
    return [
        f"Of the paper's claims, {len(outcomes)} have runs here: {held} held, {failed} did not "
        f"hold, {len(outcomes) - held - failed} cannot be told from so few runs."
    ]


WHATS = ("step", "data", "jpeg")
"""The order of the measurements."""


def speed_table(records: Sequence[MicroRecord]) -> Table | None:
    """Whole training and batch making, ours and others'; None where neither was measured."""
    ordered = [record for what in WHATS for record in records if record.what == what]
    rows = tuple(row for record in ordered for row in _speed_rows(record))
    if not rows:
        return None
    return Table(
        name="micro_speed",
        title="Ours and other implementations",
        caption=(
            "Variants that took turns; how many times as fast ours is, round by round, as the "
            "median and the range of the rounds."
        ),
        columns=(
            *("Work", "Machine", "Ours (images/s)"),
            *("Compared with", "Images/s", "Times as fast"),
        ),
        rows=rows,
    )


def _speed_rows(record: MicroRecord) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for title, timings in record.results.items():
        first = (title, _machine(record), f"{timings[0].median:,.0f}")
        for timing in (timing for timing in timings if timing.is_headline):
            least, median, most = timing.ratio
            times = f"{median:.2f} ({least:.2f} to {most:.2f})"
            rows.append((*first, timing.name, f"{timing.median:,.0f}", times))
            first = ("", "", "")
    return rows


def _machine(record: MicroRecord) -> str:
    return f"{record.machine['device']}, {counted(record.threads, 'thread')}"
