"""Tables from records: the paper's Tables 1 to 4, and the seconds to an accuracy. No torch.

Nothing measured on one kind of machine stands in another's table; rows on one, two or eight devices
of a machine stand in one, each with how many it used. Runs that differ from the published setting
are in none (`bench.report.lists` has them).
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial

from bench.analysis.verdicts import NOT_COMPARED, VERDICT_NOTE, is_comparable, verdict
from bench.document.table import (
    EMULATED,
    EMULATED_NOTE,
    NOTHING,
    SHARED,
    SHARED_NOTE,
    UNSTABLE,
    UNSTABLE_NOTE,
    Table,
    interval_cell,
    plus_minus,
)
from bench.records.grouping import (
    Host,
    accuracy_key,
    count_reaching,
    group_by,
    host_of,
    machine_key,
    pool_accuracies,
    pool_times,
    recipe_of,
    target_of,
)
from bench.records.paper import Paper, PaperValue, PublishedTime
from bench.records.paper_tables import (
    RUN_TABLES,
    SIZES,
    TIME_TO_TARGET,
    TOP_5,
    Column,
    RowRuns,
    RunTable,
    Size,
    deal,
    number_machines,
    place_of,
    places_of,
)
from bench.records.timing import dawnbench_time
from bench.statistics import Summary, share_interval, summarize, t_interval
from swap_fast.record import RunRecord

# What a reader must know before a table's figures: hardware, net, epochs, data. No torch.


NETS = {"resnet9": "ResNet-9", "resnet50": "ResNet-50"}
"""As printed."""
WHOLE_RESNET50 = (3, 4, 6, 3)
"""Its blocks."""


def cpu_warning(records: Sequence[RunRecord]) -> str:
    """What the CPU forms are, in place of the paper's hardware and net; from the records."""
    machines = sorted({machine_key(record).used for record in records})
    return (
        f"Not the paper's hardware or net: {_and(_nets(records))} on {_or(machines)}, with fewer "
        "epochs. The paper's columns are printed for orientation only."
    )


def cpu_caption(dealt: Sequence[RowRuns], dataset: str) -> str:
    """The warning with the epochs of every recipe, and the data."""
    records = [record for each in dealt for record in each.records]
    epochs = sorted({f"{_epochs(record)} ({record.recipe})" for record in records})
    return f"{cpu_warning(records)} Epochs: {'; '.join(epochs)}. {_data_note(dealt, dataset)}"


def paper_caption(paper: Paper, table: RunTable) -> str:
    """Which table of the paper stands beside ours, and what it was measured on."""
    values = [value for value in paper.values if value.table == table.name]
    by_hardware: dict[str, list[PaperValue]] = {}
    for value in values:
        by_hardware.setdefault(value.hardware, []).append(value)
    on = "; ".join(
        hardware
        if len(by_hardware) == 1
        else f"{hardware} for {', '.join(dict.fromkeys(value.row for value in those))}"
        for hardware, those in by_hardware.items()
    )
    return f"Paper: {table.name}, {values[0].n} runs, {on}."


def phase1_note(paper: Paper, dataset: str) -> str:
    """How many epochs the paper's phase 1 took."""
    mean = paper.phase1_mean(dataset)
    return (
        "Phase 1 (mean epochs): SGD has no other phase. The paper's phase 1 of SWAP took "
        f"{mean.epochs:g} ({mean.source})."
    )


def start_notes(dealt: Iterable[RowRuns]) -> list[str]:
    """For each row with runs that began from another run's phase 1: how many, and whose."""
    notes = []
    for each in dealt:
        starts = [str(record.start["run_id"]) for record in each.records if record.start]
        if starts:
            of = f"{len(starts)} of {len(each.records)} runs"
            notes.append(f"{each.label}: {of} began from the phase 1 of {', '.join(starts)}.")
    return notes


def _nets(records: Iterable[RunRecord]) -> list[str]:
    """Such as "ResNet-9 of width 8 or 16", a net each."""
    named = group_by(records, _net)
    return [
        f"{net} of width {_or(str(w) for w in sorted({recipe_of(r)['width'] for r in named[key]}))}"
        + (f" with {', '.join(map(str, blocks))} blocks" if blocks else "")
        for key in sorted(named)
        for _, net, blocks in [key]
    ]


def _net(record: RunRecord) -> tuple[int, str, tuple[int, ...]]:
    """Where it stands among the nets, its name, and its blocks where they are not the paper's."""
    recipe = recipe_of(record)
    name = str(recipe.get("net", "resnet9"))
    blocks = tuple(recipe.get("blocks", WHOLE_RESNET50))
    is_whole = name != "resnet50" or blocks == WHOLE_RESNET50
    place = list(NETS).index(name) if name in NETS else len(NETS)
    return place, NETS.get(name, name), () if is_whole else blocks


def _epochs(record: RunRecord) -> str:
    recipe = recipe_of(record)
    text = str(recipe["phase1"]["max_epochs"])
    if recipe.get("phase2"):
        phase2 = str(recipe["phase2"]["max_epochs"])
        if workers := recipe.get("num_workers"):  # SWA has none
            phase2 = f"{phase2} of each of {workers} workers"
        text = f"{text} + {phase2}"
    may_stop = recipe["phase1"].get("stopping_accuracy") is not None
    return f"at most {text}" if may_stop else text


def _data_note(dealt: Sequence[RowRuns], dataset: str) -> str:
    """The data of the rows; by rows where they are not all alike."""
    labels: dict[str, list[str]] = {}
    for each in dealt:
        for record in each.records[:1]:  # all of a row have the same
            labels.setdefault(_data(record, dataset), []).append(each.label)
    if len(labels) == 1:
        return f"Data: {next(iter(labels))}."
    rows = "; ".join(f"{data} for {', '.join(those)}" for data, those in labels.items())
    return f"Data differ, and rows with other data are no comparison: {rows}."


def _data(record: RunRecord, dataset: str) -> str:
    data = record.data
    train, test = int(data["train_images"]), int(data["test_images"])
    counts = f"{train:,} training and {test:,} test images"
    content = str(data.get("sha256", ""))[:8]
    if data["kind"] == "own":
        classes = f" in {data['classes']} classes" if "classes" in data else ""
        return f"a tree of images that is not {dataset}, {counts}{classes} (content {content})"
    if data["kind"] == "subset":
        return f"a part of {dataset}, not the whole, {counts} (content {content})"
    first = "the first " if recipe_of(record).get("train_images") else ""
    return f"{first}{counts} of {dataset}"


def _and(texts: Iterable[str]) -> str:
    return " and ".join(texts)


def _or(texts: Iterable[str]) -> str:
    return " or ".join(texts)


UNITS = {"seconds": ("s", 1.0), "minutes": ("min", 1 / 60)}
"""Of the paper's times: as printed, and how many of them a second is."""


def run_tables(
    table: RunTable, size: Size, records: Sequence[RunRecord], paper: Paper
) -> list[Table]:
    """One of Tables 1 to 4, of the paper's size or at CPU size, once for each kind of machine.

    Arguments:
        records: all that there are, so that a machine has one number in all tables.

    Returns:
        A table for each kind of machine that has runs.
    """
    place, numbers = table.place(size), number_machines(records)
    groups = group_by((r for r in records if place in places_of(r)), host_of)
    return [
        _drawn(table, size, host, numbers[host], groups[host], paper) for host in sorted(groups)
    ]


def all_run_tables(records: Sequence[RunRecord], paper: Paper) -> list[Table]:
    """Tables 1 to 4 in all their forms that have runs."""
    return [
        drawn
        for table in RUN_TABLES.values()
        for size in SIZES
        for drawn in run_tables(table, size, records, paper)
    ]


def _drawn(
    table: RunTable,
    size: Size,
    host: Host,
    number: int,
    records: Sequence[RunRecord],
    paper: Paper,
) -> Table:
    dealt = deal(table, size, records)
    rows = [_row(table, each, host, paper) for each in dealt]
    configurations = [
        f"{each.label}: {', '.join(record.run_id for record in each.records)}; "
        "not the same recipe, data or number of devices."
        for each in dealt
        if each.label != each.row.label
    ]
    caption = f"Ours: machine {number}, {host.label}. {paper_caption(paper, table)}"
    if size == "cpu":
        caption = f"{cpu_caption(dealt, table.dataset)} {caption}"
    unit, _ = time_unit(table, paper)
    return Table(
        name=f"{table.place(size)}_machine{number}",
        title=f"{table.title(size)}, machine {number}",
        caption=caption,
        columns=columns_of(table, unit, host),
        rows=tuple(rows),
        footnotes=(
            "mean ± sample standard deviation over n runs; accuracy of the last epoch; times "
            "count preprocessing and not test evaluation.",
            "Modelled: had all workers of phase 2 run at the same time, phase 1 as measured. "
            "Not a measurement.",
            f"95% interval: of the mean {_without_unit(table.target)}, by Student's t; behind the "
            "runs at target, of their share, by Wilson's score.",
            *([phase1_note(paper, _dataset_of(records))] if table.counts_phase1 else []),
            *(["Top-5 is of the final model alone."] if TOP_5 in table.accuracies else []),
            VERDICT_NOTE,
            *mark_notes(rows),
            *start_notes(dealt),
            *configurations,
        ),
    )


def columns_of(table: RunTable, unit: str, host: Host) -> tuple[str, ...]:
    """The heads, in the order of a row's cells."""
    accuracies = []
    for column in table.accuracies:
        accuracies += [f"Paper: {column.title}", f"Ours: {column.title}"]
        if column is table.target:
            accuracies.append("Ours: 95% interval (%)")
    return (
        table.dataset,
        *accuracies,
        f"Paper: time ({unit})",
        f"Ours: time ({unit}), measured",
        f"Ours: parallel time ({unit}), modelled",
        "n",
        "Runs at target",
        *(["Phase 1 (mean epochs)"] if table.counts_phase1 else []),
        host.devices_head,
        "Verdict",
    )


def time_unit(table: RunTable, paper: Paper) -> tuple[str, float]:
    """The paper's unit of a table's times as printed, and how many of them a second is."""
    return UNITS[paper.value(table.name, table.rows[0].label, "train_time").units]


def _row(table: RunTable, runs: RowRuns, host: Host, paper: Paper) -> tuple[str, ...]:
    row, records = runs.row, runs.records
    unit, factor = time_unit(table, paper)
    accuracies: list[str] = []
    judged: list[tuple[str, Summary | None, PaperValue]] = []
    for column in table.accuracies:
        published = paper.value(table.name, row.label, column.name)
        pooled = _pooled(runs, column)
        accuracies += [plus_minus(published.mean, published.sd), accuracy_cell(pooled)]
        if column is table.target:
            accuracies.append(interval_cell(t_interval(pooled) if pooled else None, 100))
        judged.append((column.short, pooled and pooled.scaled(100), published))
    published = paper.value(table.name, row.label, "train_time")
    time_of_paper = plus_minus(published.mean, published.sd)
    if runs.machine is None:
        missing = [NOTHING] * (len(columns_of(table, unit, host)) - len(accuracies) - 2)
        return (runs.label, *accuracies, time_of_paper, *missing)
    time, modelled = (
        pooled and pooled.scaled(factor)
        for pooled in (pool_times(records, row.time_s), pool_times(records, row.modelled_s))
    )
    judged.append(("time", time, published))
    marks = marks_of(records)
    epochs = f"{summarize(record.phase1_epochs for record in records).mean:.1f}"
    return (
        runs.label,
        *accuracies,
        time_of_paper,
        time_cell(time, marks),
        time_cell(modelled, marks.replace(EMULATED, "")),
        str(len(records)),
        _at_target(records, partial(row.accuracy, table.target)),
        *([epochs] if table.counts_phase1 else []),
        runs.machine.devices_cell,
        _verdict_cell(records, judged),
    )


def _pooled(runs: RowRuns, column: Column) -> Summary | None:
    """A row's accuracies in a column, fractions; None where there are none."""
    if not runs.records:
        return None
    return pool_accuracies(runs.records, partial(runs.row.accuracy, column))


def _verdict_cell(
    records: Sequence[RunRecord], judged: Sequence[tuple[str, Summary | None, PaperValue]]
) -> str:
    """Of each accuracy and of the time, or once where none is compared."""
    verdicts = {
        name: verdict(ours, published) if is_comparable(records, published) else NOT_COMPARED
        for name, ours, published in judged
        if ours is not None
    }
    if set(verdicts.values()) == {NOT_COMPARED}:
        return NOT_COMPARED
    return "; ".join(f"{name}: {of_it}" for name, of_it in verdicts.items())


def time_to_target(records: Sequence[RunRecord], paper: Paper) -> Table:
    """Seconds to an accuracy on CIFAR-10: published ones, then ours by DAWNBench's reading."""
    ours = group_by(
        (record for record in records if place_of(record) == TIME_TO_TARGET),
        lambda record: (machine_key(record), accuracy_key(record)),
    )
    numbers = number_machines(records)
    rows = [_published_row(f"Paper: {paper.claim.name}", paper.claim)]
    peers = sorted(paper.peers, key=lambda peer: (peer.target_accuracy, peer.time_s))
    rows += [_published_row(peer.name, peer) for peer in peers]
    by_machine = sorted(ours.items(), key=lambda item: (item[0][0], item[1][0].recipe))
    for (machine, _), group in by_machine:
        reached = [t for t in map(dawnbench_time, group) if t is not None]
        final = pool_accuracies(group, lambda record: record.test_accuracy)
        rows.append(
            (
                f"Ours: {group[0].recipe}",
                time_cell(summarize(reached) if reached else None, marks_of(group)),
                _short_percent(target_of(group[0])),
                machine.used,
                f"machine {numbers[machine.host]}",
                f"{len(reached)} of {len(group)} runs; final {accuracy_cell(final)}%",
            )
        )
    return Table(
        name="time_to_target",
        title="Seconds to an accuracy on CIFAR-10",
        caption=(
            "Published times are on the hardware named, and are no measurement of ours. Ours: "
            "DAWNBench's reading, mean ± sample standard deviation over the runs that reach it."
        ),
        columns=("Who", "Time (s)", "Test accuracy (%)", "Hardware", "Source", "Note"),
        rows=tuple(rows),
        footnotes=tuple(mark_notes(rows)),
    )


def _published_row(name: str, time: PublishedTime) -> tuple[str, ...]:
    accuracy = _short_percent(time.target_accuracy)
    return (name, f"{time.time_s:g}", accuracy, time.hardware, time.source, time.note or NOTHING)


def accuracy_cell(summary: Summary | None) -> str:
    """`mean ± std` of fractions, in percent."""
    if summary is None:
        return NOTHING
    return plus_minus(100 * summary.mean, None if summary.std is None else 100 * summary.std)


def time_cell(summary: Summary | None, marks: str) -> str:
    """`mean ± std` with the marks of its runs, and with its own."""
    if summary is None:
        return NOTHING
    marks += UNSTABLE * summary.unstable
    return plus_minus(summary.mean, summary.std) + (f" {marks}" if marks else "")


def _at_target(records: Sequence[RunRecord], accuracy: Callable[[RunRecord], float | None]) -> str:
    target = target_of(records[0])
    present = [value for value in map(accuracy, records) if value is not None]
    count = count_reaching(present, target)
    interval = interval_cell(share_interval(count, len(records)), 100, decimals=0)
    return f"{count} of {len(records)} ≥ {_short_percent(target)}% ({interval}%)"


def marks_of(records: Sequence[RunRecord]) -> str:
    """What stands behind a measured time of these runs."""
    emulated = any(record.emulated_workers for record in records)
    shared = any(record.start is not None for record in records)
    return EMULATED * emulated + SHARED * shared


def mark_notes(rows: Iterable[Sequence[str]]) -> list[str]:
    """The footnotes of those marks that the rows hold."""
    text = "".join(cell for row in rows for cell in row)
    notes = {EMULATED: EMULATED_NOTE, SHARED: SHARED_NOTE, UNSTABLE: UNSTABLE_NOTE}
    return [note for mark, note in notes.items() if mark in text]


def _short_percent(fraction: float) -> str:
    return f"{100 * fraction:.10g}"


def _without_unit(column: Column) -> str:
    return column.title.removesuffix(" (%)")


def _dataset_of(records: Sequence[RunRecord]) -> str:
    return str(recipe_of(records[0])["dataset"])
