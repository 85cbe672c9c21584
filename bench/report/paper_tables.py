"""The paper's Tables 1 to 6 with our figures, and the seconds to an accuracy. No torch.

Tables 1 to 4 are one for each kind of machine; rows on one, two or eight devices of a machine are
in one table, each with how many it used. Runs that differ from the published setting are in none
(`bench.report.run_lists` has them).
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from statistics import fmean

from bench.document import (
    EMULATED,
    NOTHING,
    OTHER_WORK,
    SHARED,
    UNSTABLE,
    Table,
    interval_cell,
    mark_notes,
    plus_minus,
    summary_cell,
)
from bench.records.grouping import (
    GPUS,
    NETS,
    Host,
    Measure,
    accuracy_key,
    count_reaching,
    group_by,
    machine_key,
    pool_accuracies,
    pool_times,
    recipe_of,
    timed_alone,
)
from bench.records.paper import (
    NOT_COMPARED,
    VERDICT_NOTE,
    Paper,
    PaperSetting,
    PaperValue,
    PublishedTime,
    judge,
)
from bench.records.paper_tables import (
    AT_SIZE,
    RUN_TABLES,
    TIME_TO_TARGET,
    TOP_5,
    RowRuns,
    RunTable,
    Size,
    TableGroup,
    deal,
    number_machines,
    place_of,
    table_groups,
)
from bench.records.timing import dawnbench_time
from bench.statistics import Summary, share_interval, summarize, t_interval
from swap_fast.config.phase import Phase
from swap_fast.config.recipe import RESNET50_BLOCKS
from swap_fast.recipes.cifar10 import RECIPES
from swap_fast.record import RunRecord

UNITS = {"seconds": ("s", 1.0), "minutes": ("min", 1 / 60)}
"""Of the paper's times: as printed, and how many of them a second is."""
INTERVAL, N, AT_TARGET = "Ours: 95% interval (%)", "n", "Runs at target"
MIRRORED = "Ours: with mirrored test images (%)"
PHASE1_EPOCHS, PAPER_GPUS, VERDICT = "Phase 1 (mean epochs)", f"Paper: {GPUS}", "Verdict"
"""Heads of columns."""
MODELLED_NOTE = (
    "Modelled: had all workers of phase 2 run at the same time, phase 1 as measured. "
    "Not a measurement."
)
NOT_RECORDED = " Of some of these runs it was not recorded whether other programs ran beside them."
SHARE_NOTE = "; behind the runs at target, of their share, by Wilson's score."


def all_run_tables(
    records: Sequence[RunRecord], paper: Paper, first_looks: bool | None = None
) -> list[Table]:
    """Tables 1 to 4 in all their forms that have runs.

    Arguments:
        first_looks: only those at CPU size where there are runs at another, or only the others.
    """
    groups = table_groups(records)
    return [_run_table(g, paper) for g in groups if first_looks in (None, g.is_first_look)]


def run_tables(
    table: RunTable, size: Size, records: Sequence[RunRecord], paper: Paper
) -> list[Table]:
    """One of Tables 1 to 4, at one size, once for each kind of machine that has runs.

    Arguments:
        records: all that there are, so that a machine has one number in all tables.
    """
    groups = table_groups(records)
    return [_run_table(g, paper) for g in groups if (g.table, g.size) == (table, size)]


def _run_table(group: TableGroup, paper: Paper) -> Table:
    table, host = group.table, group.host
    rows_of_paper = deal(table, group.size, group.records)
    dealt = [each for each in rows_of_paper if each.records]
    absent = [each.label for each in rows_of_paper if not each.records]
    cells = [_cells(table, each, host, paper) for each in dealt]
    without = {
        *([] if any(r.mirrored_test_accuracy for r in group.records) else [MIRRORED]),
        # Where all workers ran at once, what would be modelled was measured.
        *([] if any(r.emulated_workers for r in group.records) else [_modelled(table, paper)]),
        *([AT_TARGET] if group.size in ("narrow", "cpu") else []),  # whose target is no one else's
        *([VERDICT] if {each[VERDICT] for each in cells} == {NOT_COMPARED} else []),
    }
    columns = [name for name in cells[0] if name not in without]
    rows = [tuple(each[name] for name in columns) for each in cells]
    configurations = [
        f"{each.label}: {', '.join(record.run_id for record in each.records)}; "
        "not the same recipe, data or number of devices."
        for each in dealt
        if each.number is not None
    ]
    caption = f"Ours: machine {group.number}, {host.label}. {paper_caption(paper, table)}"
    if group.size != "paper":
        caption = f"{form_caption(dealt, table.dataset)} {caption}"
    dataset = group.records[0].settings.dataset
    return Table(
        name=group.name,
        title=group.title,
        caption=caption,
        columns=tuple(columns),
        rows=tuple(rows),
        footnotes=(
            "mean ± sample standard deviation over n runs; times (k of n) without those beside "
            "which other programs ran; accuracy of the last epoch; times count preprocessing and "
            "not test evaluation."
            + (NOT_RECORDED if any(r.other_work is None for r in group.records) else ""),
            *([] if _modelled(table, paper) in without else [MODELLED_NOTE]),
            f"95% interval: of the mean {table.target.title.removesuffix(' (%)')}, by Student's t"
            + ("." if AT_TARGET in without else SHARE_NOTE),
            *([phase1_note(paper, dataset)] if table.counts_phase1 else []),
            *(["Top-5: of the final model only."] if TOP_5 in table.accuracies else []),
            *([] if VERDICT in without else [VERDICT_NOTE]),
            *mark_notes(rows),
            *([f"No runs of: {', '.join(absent)}."] if absent else []),
            *start_notes(dealt),
            *configurations,
        ),
        details=(
            INTERVAL,
            MIRRORED,
            N,
            PHASE1_EPOCHS,
            PAPER_GPUS,
            f"Ours: {host.devices_name}",
            VERDICT,
        ),
    )


def time_unit(table: RunTable, paper: Paper) -> tuple[str, float]:
    """The paper's unit of a table's times as printed, and how many of them a second is."""
    return UNITS[paper.value(table.name, table.rows[0].label, "train_time").units]


def _modelled(table: RunTable, paper: Paper) -> str:
    """The head of the column of modelled times."""
    return f"Ours: parallel time ({time_unit(table, paper)[0]}), modelled"


def _cells(table: RunTable, runs: RowRuns, host: Host, paper: Paper) -> dict[str, str]:
    """A row's cells by the heads of all columns that a table may have, in their order."""
    row, records = runs.row, runs.records
    cells = {table.dataset: runs.label}
    judged: list[tuple[str, Summary | None, PaperValue]] = []
    for column in table.accuracies:
        published = paper.value(table.name, row.label, column.name)
        pooled = pool_accuracies(records, partial(row.accuracy, column))
        judged.append((column.short, pooled and pooled.scaled(100), published))
        cells[f"Paper: {column.title}"] = plus_minus(published.mean, published.sd)
        cells[f"Ours: {column.title}"] = summary_cell(pooled, 100)
        if column is table.target:
            cells[INTERVAL] = interval_cell(t_interval(pooled) if pooled else None, 100)
    cells[MIRRORED] = summary_cell(pool_accuracies(records, row.mirrored_accuracy), 100)
    published = paper.value(table.name, row.label, "train_time")
    unit, factor = time_unit(table, paper)
    time, modelled = (
        pooled and pooled.scaled(factor)
        for pooled in (pool_times(records, of) for of in (row.time_s, row.modelled_s))
    )
    judged.append(("time", time, published))
    marks, machine = marks_of(records), runs.machine
    cells[f"Paper: time ({unit})"] = plus_minus(published.mean, published.sd)
    cells[f"Ours: time ({unit}), measured"] = time_cell(time, marks) + _of_all(time, records)
    not_in_turn = marks.replace(EMULATED, "")
    cells[_modelled(table, paper)] = time_cell(modelled, not_in_turn) + _of_all(modelled, records)
    cells[N] = str(len(records))
    cells[AT_TARGET] = _at_target(records, partial(row.accuracy, table.target))
    if table.counts_phase1:
        cells[PHASE1_EPOCHS] = f"{fmean(record.phase1_epochs for record in records):.1f}"
    cells[PAPER_GPUS] = published.devices_cell
    assert machine is not None, "a row without runs is not shown"
    cells[f"Ours: {host.devices_name}"] = machine.devices_cell
    cells[VERDICT] = _verdict_cell(records, judged)
    return cells


def _verdict_cell(
    records: Sequence[RunRecord], judged: Sequence[tuple[str, Summary | None, PaperValue]]
) -> str:
    """Of each accuracy and of the time, or once where none is compared."""
    verdicts = [(name, judge(ours, of, records)) for name, ours, of in judged if ours is not None]
    if {verdict for _, verdict in verdicts} == {NOT_COMPARED}:
        return NOT_COMPARED
    return "; ".join(f"{name}: {verdict}" for name, verdict in verdicts) or NOTHING


def _of_all(time: Summary | None, records: Sequence[RunRecord]) -> str:
    """Of how many of the runs a time is, where it is not of all."""
    return f" ({time.n} of {len(records)})" if time and time.n < len(records) else ""


def time_cell(summary: Summary | None, marks: str) -> str:
    """`mean ± std` with the marks of its runs, and with its own."""
    if summary is None:
        return NOTHING
    marks += UNSTABLE * summary.unstable
    return summary_cell(summary) + (f" {marks}" if marks else "")


def _at_target(records: Sequence[RunRecord], accuracy: Measure) -> str:
    target = records[0].settings.target_accuracy
    present = [value for value in map(accuracy, records) if value is not None]
    count = count_reaching(present, target)
    interval = interval_cell(share_interval(count, len(records)), 100, decimals=0)
    return f"{count} of {len(records)} ≥ {_short_percent(target)}% ({interval}%)"


def marks_of(records: Sequence[RunRecord]) -> str:
    """The marks behind a measured time of these runs."""
    emulated = any(record.emulated_workers for record in records)
    shared = any(record.start is not None for record in records)
    other_work = all(record.had_other_work for record in records)
    return EMULATED * emulated + SHARED * shared + OTHER_WORK * other_work


def _short_percent(fraction: float) -> str:
    return f"{100 * fraction:.10g}"


# Seconds to an accuracy on CIFAR-10.


def time_to_target(records: Sequence[RunRecord], paper: Paper) -> Table:
    """Published seconds, then ours by DAWNBench's reading."""
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
        alone = timed_alone(group)
        reached = [t for t in map(dawnbench_time, alone) if t is not None]
        final = pool_accuracies(group, lambda record: record.test_accuracy)
        rows.append(
            (
                f"Ours: {group[0].recipe}",
                time_cell(summarize(reached) if reached else None, marks_of(group)),
                _short_percent(group[0].settings.target_accuracy),
                machine.used,
                f"machine {numbers[machine.host]}",
                f"{len(reached)} of {len(alone)} runs; final {summary_cell(final, 100)}%",
            )
        )
    return Table(
        name="time_to_target",
        title="Seconds to an accuracy on CIFAR-10",
        caption="Published times are on the hardware named, and are no measurement of ours."
        + " Ours: DAWNBench's reading, mean ± sample standard deviation over the runs that reach "
        "the accuracy." * bool(ours),
        columns=("Who", "Time (s)", "Test accuracy (%)", "Hardware", "Source", "Note"),
        rows=tuple(rows),
        footnotes=tuple(mark_notes(rows)),
        details=("Source", "Note"),
    )


def _published_row(name: str, time: PublishedTime) -> tuple[str, ...]:
    accuracy = _short_percent(time.target_accuracy)
    return (name, f"{time.time_s:g}", accuracy, time.hardware, time.source, time.note or NOTHING)


# What a reader must know before a table's figures: hardware, net, epochs, data.


def form_caption(dealt: Sequence[RowRuns], dataset: str) -> str:
    """Of other nets than the paper's: which, the epochs of every recipe, and the data."""
    records = [record for each in dealt for record in each.records]
    epochs = sorted({f"{_epochs(record)} ({record.recipe})" for record in records})
    return (
        f"Not the paper's hardware, net or epochs. Net: {' and '.join(nets(records))}. "
        f"Epochs: {'; '.join(epochs)}. {_data_note(dealt, dataset)}"
    )


def paper_caption(paper: Paper, table: RunTable) -> str:
    """Which table of the paper ours is compared with, and what it was measured on."""
    values = [value for value in paper.values if value.table == table.name]
    rows: dict[str, dict[str, None]] = {}  # of each hardware, each once, in order
    for value in values:
        rows.setdefault(value.hardware, {})[value.row] = None
    several = len(rows) > 1
    on = "; ".join(h + f" for {', '.join(those)}" * several for h, those in rows.items())
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


def nets(records: Iterable[RunRecord]) -> list[str]:
    """Such as "ResNet-9 of width 8 or 16", a net each."""
    texts = []
    for (_, net, blocks), runs in sorted(group_by(records, _net).items(), key=lambda item: item[0]):
        widths = {run.settings.width for run in runs}
        text = f"{net} of width {' or '.join(map(str, sorted(widths)))}"
        texts.append(text + (f" with {', '.join(map(str, blocks))} blocks" if blocks else ""))
    return texts


def _net(record: RunRecord) -> tuple[int, str, tuple[int, ...]]:
    """Where it stands among the nets, its name, and its blocks where they are not the paper's."""
    recipe = recipe_of(record)
    name = str(recipe.get("net", "resnet9"))
    blocks = tuple(recipe.get("blocks", RESNET50_BLOCKS))
    is_whole = name != "resnet50" or blocks == RESNET50_BLOCKS
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
    first = "the first " if record.settings.train_images else ""
    return f"{first}{counts} of {dataset}"


# Tables 5 and 6: our recipes' settings and the published values.

RUNS_OF = {5: 1, 6: 2}
"""Table 5 lists the settings of Table 1's runs, Table 6 those of Table 2's."""

SETTINGS: dict[str, Callable[[Phase], float]] = {
    "Batch-size": lambda phase: phase.global_batch_size,
    "Learning-rate Peak": lambda phase: phase.peak_lr,
    "Maximum Epochs": lambda phase: phase.max_epochs,
    "Total Epochs": lambda phase: phase.max_epochs,
    "Warm-up Epochs": lambda phase: phase.warmup_epochs,
    "GPUs used per model": lambda phase: phase.gpus_per_model,
    "Stopping Accuracy (%)": lambda phase: (
        100 * (1.0 if phase.stopping_accuracy is None else phase.stopping_accuracy)
    ),
}
"""A recipe's value of each row; Table 6 calls "Total" what Table 5 calls "Maximum"."""

DIFFERS = "*"
"""Mark behind a value of ours that is not the paper's."""


def recipe_tables(paper: Paper, size: Size = "paper") -> list[Table]:
    """Tables 5 and 6, where there are recipes of that size."""
    numbers = [number for number, runs in RUNS_OF.items() if size in RUN_TABLES[runs].sizes]
    return [recipe_table(number, paper, size) for number in numbers]


def recipe_table(number: int, paper: Paper, size: Size = "paper") -> Table:
    """Table 5 or 6: each published value, and below it that of our recipe of that size."""
    runs, name = RUN_TABLES[RUNS_OF[number]], f"Table {number}"
    settings = [each for each in paper.settings if each.table == name]
    cells = {(each.row, each.column): each.value for each in settings}
    labels = list(dict.fromkeys(row for row, _ in cells))
    phases = {each.column: phase_of(runs, each, size) for each in settings}
    columns = list(phases)
    rows: list[tuple[str, ...]] = []
    for label in labels:
        published = [f"{cells[label, column]:g}" for column in columns]
        # By their text: a hundred times a fraction is a whole number only when printed.
        ours = [f"{SETTINGS[label](phases[column]):g}" for column in columns]
        marked = [
            mine if size != "paper" or mine == theirs else f"{mine} {DIFFERS}"
            for mine, theirs in zip(ours, published, strict=True)
        ]
        rows += [(label, "paper", *published), (label, "ours", *marked)]
    notes = [
        f"{DIFFERS} Not the paper's value. {each.statement}"
        for each in paper.inconsistencies
        if name in each.tables
    ]
    recipes = ", ".join(runs.recipes(size))
    is_other = size != "paper"
    forms = ": other nets and settings than the paper's"
    return Table(
        name=f"table{number}" + f"_{size}" * is_other,
        title=name + f" {AT_SIZE[size]}" * is_other,
        caption=f"Settings of the runs of {runs.name}. Ours are read from the recipes {recipes}"
        + f"{forms * is_other}.",
        columns=(runs.dataset, "Whose", *columns),
        rows=tuple(rows),
        footnotes=(
            "Stopping accuracy 100%: all epochs are trained.",
            *(notes if any(DIFFERS in cell for row in rows for cell in row) else []),
        ),
    )


def phase_of(runs: RunTable, setting: PaperSetting, size: Size) -> Phase:
    """The phase of our recipe that a setting of Table 5 or 6 is for."""
    (row,) = (row for row in runs.rows if row.label == setting.run)
    phase = getattr(RECIPES[row.recipes[size]](), f"phase{setting.phase}")
    assert isinstance(phase, Phase), setting
    return phase
