"""What a results folder holds, and the report at one look. No torch."""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from bench.document import (
    NOTHING,
    Bullets,
    Table,
    counted,
    interval_cell,
    plus_minus,
    summary_cell,
)
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
    AT_SIZE,
    OTHER,
    SGD_LARGE,
    SGD_SMALL,
    SIZES,
    SWA_SMALL,
    SWAP_AFTER,
    TIME_TO_TARGET,
    RowRuns,
    RunTable,
    Size,
    TableGroup,
    deal,
    number_machines,
    place_of,
    table_groups,
)
from bench.report.claims import conditions
from bench.report.claims_tables import NOT_TESTED, Claims
from bench.report.paper_tables import all_run_tables, nets, time_to_target
from bench.statistics import DID_NOT_HOLD, HELD, Summary, Values, contrast, summarize
from swap_fast.config.recipe import AveragingRecipe
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
    limits: tuple[str, ...] = ()
    """What a reader must know of these runs and no record says: the items of `limits.md`."""
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
        limits=_items(results / "limits.md"),
        main=main,
        first_looks=all_run_tables(ordered, paper, first_looks=True),
    )


def _items(page: Path) -> tuple[str, ...]:
    """The items of a list in Markdown, each on one line; none without the page."""
    if not page.is_file():
        return ()
    text = page.read_text(encoding="utf-8")
    return tuple(" ".join(item.split()) for item in re.split(r"^- ", text, flags=re.M)[1:])


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
    records = content.records
    if not records:
        return "There are no runs yet."
    shown = [record for record in records if place_of(record) != OTHER]
    if not shown:
        words = "No run here can be compared with published figures; the list says why."
        return f"{words}{scale_note(records)}"
    machines = " or ".join(sorted({machine_key(record).used for record in shown}))
    device = content.paper.values[0].device
    lines = []
    if all(record.machine["device_type"] == "cpu" for record in shown):
        counts = sorted({machine_key(record).devices for record in shown})
        lines.append(f"No GPU was used: the runs are on {' or '.join(map(str, counts))} CPU cores.")
    elif any(device not in host_of(record).device for record in shown):
        lines.append(f"Not the paper's hardware, NVIDIA {device}: {machines}.")
    if small := sum(not record.comparable for record in shown):
        of = f"{small} of the {len(shown)} runs in the paper's tables"
        lines.append(
            f"{'All runs' if small == len(shown) else of} are of smaller nets, fewer epochs or "
            "fewer images than the paper's, whose columns are printed for orientation only."
        )
    return " ".join(lines) or "On the paper's hardware."


# The report at one look: what was measured, on what, how it compares, how sure and how fast it is.


def summary(content: Content, claims: Claims, warned: Table) -> Bullets:
    """A few sentences, each from the records.

    Arguments:
        warned: the warnings, which have files of their own.
    """
    records = content.records
    if not records:
        return Bullets(items=("Measured: nothing yet.",))
    groups = [group for group in table_groups(records) if not group.is_first_look]
    recipes = {record.recipe for record in records}
    machines = (f"machine {n}: {host.label}" for host, n in number_machines(records).items())
    return Bullets(
        items=(
            *(line for g in groups if g.table is groups[0].table for line in _accuracies(g)),
            *_to_target(records),
            *_times(content),
            *_claims(claims),
            f"Measured: {len(records)} runs of {len(recipes)} recipes on {data_of(records)}; "
            f"{'; '.join(machines)}. {_alone(records)}",
            f"Stability: {counted(len(warned.rows), 'warning')}, in tables/{warned.name}.md."
            if warned.rows
            else "Stability: no warnings.",
        )
    )


def _alone(records: Sequence[RunRecord]) -> str:
    """How many runs had their machine to themselves."""
    beside = sum(record.had_other_work for record in records)
    unknown = sum(record.other_work is None for record in records)
    return (
        f"Of these {len(records) - beside - unknown} had the machine to themselves, {beside} had "
        f"other programs beside them, and of {unknown} it was not recorded."
    )


def _accuracies(group: TableGroup) -> Iterator[str]:
    """What SWAP's runs ended with and took, beside SGD's; a line for each precision."""
    rows = [each for each in deal(group.table, group.size, group.records) if each.records]
    for swap in (each for each in rows if each.row.label == SWAP_AFTER):
        sides = [
            (label, each)
            for label in (SGD_SMALL, SGD_LARGE)
            for each in rows
            if each.row.label == label
            and conditions(each.records[0]) == conditions(swap.records[0])
        ]
        ended = ", ".join(
            f"{name} {summary_cell(accuracy, 100)}% (n = {accuracy.n}){_took(each)}"
            for name, each in (("SWAP", swap), *sides)
            if (accuracy := _final(each, group.table)) is not None
        )
        less = "".join(
            f" Difference to {label}, in points: {_difference(swap, each, group.table)}."
            for label, each in sides[:1]
        )
        yield (
            f"{group.title}{swap.mark} ({' and '.join(nets(swap.records))}): {ended}.{less} "
            f"{_gain(swap.records)}"
        )


def _took(each: RowRuns) -> str:
    """A row's mean time and its devices, if any run was timed alone."""
    if any(run.had_other_work for run in timed_alone(each.records)):
        return ""
    time = pool_times(each.records, each.row.time_s)
    devices = machine_key(each.records[0]).used
    return "" if time is None else f" in {time.mean:,.0f} s on {devices}"


def _gain(runs: Sequence[RunRecord]) -> str:
    """What averaging added, in a sentence."""
    gain = summarize(
        run.test_accuracy - before
        for run in runs
        if (before := run.accuracy_before_averaging) is not None
    )
    return f"Averaging added {summary_cell(gain, 100)} points to the workers' mean."


def _to_target(records: Sequence[RunRecord]) -> Iterator[str]:
    """What SWAP's runs for time to an accuracy ended with; a line for each recipe."""
    recipes: dict[str, list[RunRecord]] = {}
    for record in records:
        if record.method == "swap" and place_of(record) == TIME_TO_TARGET:
            recipes.setdefault(record.recipe, []).append(record)
    for recipe, runs in recipes.items():
        ended = summarize(run.test_accuracy for run in runs)
        target = runs[0].settings.target_accuracy
        reached = sum(run.test_accuracy >= target for run in runs)
        yield (
            f"{runs[0].settings.table}, {recipe} ({' and '.join(nets(runs))}): SWAP "
            f"{summary_cell(ended, 100)}% (n = {ended.n}); {reached} of {ended.n} reached "
            f"{target:.0%}. {_gain(runs)}"
        )


def _times(content: Content) -> Iterator[str]:
    """SWAP's time as a share of its baseline's, on more devices and on as many."""
    kinds: dict[tuple[str, bool], list[float]] = {}
    for each in _compared(content):
        if each.ratio is not None and each.baseline is not None:
            more = _devices(each.swap) > _devices(each.baseline)
            kinds.setdefault((each.baseline.row.label, more), []).append(each.ratio)
    found = [
        f"of {label}'s {min(ratios):.2f}"
        + f" to {max(ratios):.2f}" * (len(ratios) > 1)
        + (" on more devices" if more else " on as many devices")
        for (label, more), ratios in kinds.items()
    ]
    if found:
        yield f"SWAP's time as a share: {'; '.join(found)}."


COMPARED = {1: SGD_SMALL, 2: SGD_SMALL, 3: SGD_SMALL, 4: SWA_SMALL}
"""The row of each table that SWAP is to equal in less time: its baseline."""
SHARE = "Time: SWAP's share"


@dataclass(frozen=True, kw_only=True)
class _Compared:
    """SWAP's runs in a table, and those of its baseline."""

    group: TableGroup
    swap: RowRuns
    baseline: RowRuns | None

    @property
    def ratio(self) -> float | None:
        """Of the mean times, each of runs that were timed alone."""
        return None if self.baseline is None else _time_ratio(self.swap, self.baseline)


def _compared(content: Content) -> Iterator[_Compared]:
    for group in table_groups(content.records):
        rows = [e for e in deal(group.table, group.size, group.records) if e.records]
        for swap in rows:
            if swap.row.is_final and swap.records[0].method == "swap":
                label, alike = COMPARED[group.table.number], conditions(swap.records[0])
                sides = (e for e in rows if e.row.label == label)
                baseline = next((e for e in sides if conditions(e.records[0]) == alike), None)
                yield _Compared(group=group, swap=swap, baseline=baseline)


def overview(content: Content) -> Table | None:
    """SWAP's accuracies and times beside those that it is to equal, of each table with runs."""
    compared = [each for each in _compared(content) if not each.group.is_first_look]
    if not compared:
        return None
    paper = ("Paper: SWAP", "Paper: baseline", "Paper: share")
    return Table(
        name="overview",
        title="SWAP and its baseline",
        caption=(
            "SWAP should be as accurate as its baseline in less time. Test accuracies (%), top-1 "
            "in Table 3. Time: the measured mean of SWAP's runs over the baseline's, without runs "
            "beside which other programs ran. Expected: this share if all epochs took equal work, "
            "divided over the devices."
        ),
        columns=(
            *("Table", "SWAP", "Baseline", "Difference (points), 95%", SHARE, "expected"),
            *("Devices", "n", "Baseline is", *paper),
        ),
        rows=tuple(_overview_row(each, content.paper) for each in compared),
        footnotes=(
            *_sizes({each.group.size for each in compared}),
            "Devices, n: of SWAP and of its baseline.",
        ),
        details=("expected", "n", *paper),
    )


def _sizes(found: Collection[Size]) -> Iterator[str]:
    """What the sizes in the tables' titles mean."""
    words = [f"{AT_SIZE[size]}: {means}" for size, means in SIZES.items() if size in found]
    if words:
        yield f"Sizes: {'; '.join(words)}."


def _overview_row(each: _Compared, paper: Paper) -> tuple[str, ...]:
    swap, baseline, table = each.swap, each.baseline, each.group.table
    labels = swap.row.label, COMPARED[table.number]
    name = "" if swap.row.label == SWAP_AFTER else f", {swap.row.label}, ours {_apart(swap)}"
    seconds = [paper.time_s(table.name, label) for label in labels]
    both = [swap] if baseline is None else [swap, baseline]
    expected = [_device_epochs(side) for side in both]
    return (
        f"{each.group.title}{name}{swap.mark}",
        _accuracy(swap, table, paper),
        NOTHING if baseline is None else _accuracy(baseline, table, paper),
        NOTHING if baseline is None else _difference(swap, baseline, table),
        NOTHING if not each.ratio else f"{each.ratio:.2f}",
        NOTHING if not each.ratio else f"{expected[0] / expected[-1]:.2f}",
        " and ".join(str(_devices(side)) for side in both),
        " and ".join(str(len(side.records)) for side in both),
        labels[1],
        *(_published(label, table, paper) for label in labels),
        f"{seconds[0] / seconds[1]:.2f}",
    )


def _devices(each: RowRuns) -> int:
    return machine_key(each.records[0]).devices


def _apart(each: RowRuns) -> int:
    """Epochs of each worker in phase 2."""
    recipe = each.records[0].settings
    assert isinstance(recipe, AveragingRecipe), "a row of SWAP or SWA"
    return recipe.phase2.max_epochs


def _device_epochs(each: RowRuns) -> float:
    """Epochs of all models that a row's runs train, over their devices."""
    epochs = summarize(run.phase1_epochs for run in each.records).mean
    recipe = each.records[0].settings
    if isinstance(recipe, AveragingRecipe):
        epochs += recipe.num_workers * _apart(each)
    return epochs / _devices(each)


def _final(each: RowRuns, table: RunTable) -> Summary | None:
    return pool_accuracies(each.records, partial(each.row.accuracy, table.target))


def _difference(first: RowRuns, second: RowRuns, table: RunTable) -> str:
    """Of two rows' accuracies, in points, with its 95% interval."""

    def of(side: RowRuns) -> Values:
        found = ((run.seed, side.row.accuracy(table.target, run)) for run in side.records)
        return [(seed, value) for seed, value in found if value is not None]

    found = contrast(of(first), of(second))
    interval = "" if found.interval is None else f" ({interval_cell(found.interval, 100)})"
    return f"{100 * found.mean:.2f}{interval}"


def _accuracy(each: RowRuns, table: RunTable, paper: Paper) -> str:
    """A row's accuracy, and how it compares with the paper's where it can be compared."""
    ours = _final(each, table)
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


def _claims(claims: Claims) -> Iterator[str]:
    """How many of the paper's claims held, by what they are of."""
    outcomes = claims.outcomes
    if not outcomes:
        return
    found = []
    for kind in dict.fromkeys(kind for kind, _ in outcomes):
        of = [outcome for other, outcome in outcomes if other == kind]
        counts = [of.count(each) for each in (HELD, DID_NOT_HOLD, NOT_TESTED)]
        words = ("held", "did not", "not tested", "undecided")
        each = zip((*counts, len(of) - sum(counts)), words, strict=True)
        found.append(f"of {kind} {', '.join(f'{count} {word}' for count, word in each if count)}")
    modelled = f" {claims.modelled} of them by modelled times." * bool(claims.modelled)
    elsewhere = f" At another size {claims.contradicted} came out the other way." * bool(
        claims.contradicted
    )
    yield (
        f"{counted(len(outcomes), 'claim')} of the paper, each at the nearest size that decides "
        f"it: {'; '.join(found)}.{modelled}{elsewhere}"
    )


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
        first = (record.work(title), _machine(record), f"{timings[0].median:,.0f}")
        for timing in (timing for timing in timings if timing.is_headline):
            least, median, most = timing.ratio
            times = f"{median:.2f} ({least:.2f} to {most:.2f})"
            rows.append((*first, timing.name, f"{timing.median:,.0f}", times))
            first = ("", "", "")
    return rows


def _machine(record: MicroRecord) -> str:
    return f"{record.machine['device']}, {counted(record.threads, 'thread')}"
