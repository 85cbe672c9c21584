"""Tables from records: Table 1, and the seconds to an accuracy. No torch.

Nothing measured on one kind of machine stands in another's table. Runs that differ from the
published setting are in none (`bench.lists` has them).
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Literal

from bench.intervals import share_interval, t_interval
from bench.paper import Paper, PaperValue, PublishedTime
from bench.places import number_machines, place_of
from bench.rendering import (
    EMULATED,
    EMULATED_NOTE,
    NOTHING,
    UNSTABLE,
    UNSTABLE_NOTE,
    Table,
    interval_cell,
    plus_minus,
)
from bench.rows import Row, table_1_runs
from bench.stats import (
    MachineKey,
    Summary,
    accuracy_key,
    count_reaching,
    group_by,
    machine_key,
    pool_accuracies,
    pool_times,
    recipe_of,
    summarize,
    target_of,
)
from bench.timing import dawnbench_time
from bench.verdicts import NOT_COMPARED, VERDICT_NOTE, is_comparable, verdict
from swap_fast.record import RunRecord

TABLE_1_COLUMNS = (
    "CIFAR-10",
    "Paper: test accuracy (%)",
    "Ours: test accuracy (%)",
    "Ours: 95% interval (%)",
    "Paper: time (s)",
    "Ours: time (s), measured",
    "Ours: parallel time (s), modelled",
    "n",
    "Runs at target",
    "Phase 1 (mean epochs)",
    "Machine",
    "Verdict",
)


def table_1(
    records: Sequence[RunRecord], paper: Paper, place: Literal["table1", "table1_cpu"]
) -> list[Table]:
    """Table 1, of the paper's size or at CPU size, once for each kind of machine that has runs."""
    numbers = number_machines(records)
    groups = group_by((r for r in records if place_of(r) == place), machine_key)
    return [_table_1_of(place, key, numbers[key], groups[key], paper) for key in sorted(groups)]


def _table_1_of(
    place: str, machine: MachineKey, number: int, records: Sequence[RunRecord], paper: Paper
) -> Table:
    dealt = table_1_runs(place, records)
    rows = [_table_1_row(each.row, each.label, each.records, paper) for each in dealt]
    configurations = [
        f"{each.label}: {', '.join(record.run_id for record in each.records)}; "
        "not the same recipe or data."
        for each in dealt
        if each.label != each.row.label
    ]
    title = "Table 1 at CPU size" if place == "table1_cpu" else "Table 1"
    caption = f"Ours: machine {number}, {machine.label}. {_paper_caption(paper)}"
    if place == "table1_cpu":
        caption = f"{cpu_warning(records)} {caption}"
    return Table(
        name=f"{place}_machine{number}",
        title=f"{title}, machine {number}",
        caption=caption,
        columns=TABLE_1_COLUMNS,
        rows=tuple(rows),
        footnotes=(
            "mean ± sample standard deviation over n runs; accuracy of the last epoch; times "
            "count preprocessing and not test evaluation.",
            "Modelled: had all workers of phase 2 run at the same time, phase 1 as measured. "
            "Not a measurement.",
            "95% interval: of the mean, by Student's t; behind the runs at target, of their share, "
            "by Wilson's score.",
            VERDICT_NOTE,
            *mark_notes(rows),
            *configurations,
        ),
    )


def _table_1_row(
    row: Row, label: str, records: Sequence[RunRecord], paper: Paper
) -> tuple[str, ...]:
    published = [paper.value("Table 1", row.label, c) for c in ("test_accuracy", "train_time")]
    accuracy_of_paper, time_of_paper = (plus_minus(each.mean, each.sd) for each in published)
    if not records:
        return (label, accuracy_of_paper, *[NOTHING] * 2, time_of_paper, *[NOTHING] * 7)
    accuracy, time_s = pool_accuracies(records, row.accuracy), pool_times(records, row.time_s)
    return (
        label,
        accuracy_of_paper,
        _accuracy(accuracy),
        interval_cell(t_interval(accuracy) if accuracy else None, 100),
        time_of_paper,
        time_cell(time_s, emulated=_any_emulated(records)),
        time_cell(pool_times(records, row.modelled_s), emulated=False),
        str(len(records)),
        _at_target(records, row.accuracy),
        f"{summarize(record.phase1_epochs for record in records).mean:.1f}",
        machine_key(records[0]).short,
        _verdict_cell(records, [accuracy and accuracy.scaled(100), time_s], published),
    )


def _verdict_cell(
    records: Sequence[RunRecord], ours: Sequence[Summary | None], published: Sequence[PaperValue]
) -> str:
    """Of accuracy and time, or once where neither is compared."""
    of_accuracy, of_time = (
        verdict(each, cell) if each and is_comparable(records, cell) else NOT_COMPARED
        for each, cell in zip(ours, published, strict=True)
    )
    if of_accuracy == of_time == NOT_COMPARED:
        return NOT_COMPARED
    return f"accuracy: {of_accuracy}; time: {of_time}"


def cpu_warning(records: Sequence[RunRecord]) -> str:
    """What the CPU forms are, in place of the paper's hardware and net; from the records."""
    machines = sorted({machine_key(record).short for record in records})
    widths = sorted({int(recipe_of(record)["width"]) for record in records})
    epochs = sorted({f"{_epochs(record)} ({record.recipe})" for record in records})
    return (
        f"Not the paper's hardware or net: ResNet-9 of width {_or(map(str, widths))} on "
        f"{_or(machines)}, epochs: {'; '.join(epochs)}. "
        "The paper's columns are printed for orientation only."
    )


def time_to_target(records: Sequence[RunRecord], paper: Paper) -> Table:
    """Seconds to an accuracy on CIFAR-10: published ones, then ours by DAWNBench's reading."""
    ours = group_by(
        (record for record in records if place_of(record) == "time_to_target"),
        lambda record: (machine_key(record), accuracy_key(record)),
    )
    numbers = number_machines(records)
    rows = [_published_row(f"Paper: {paper.claim.name}", paper.claim)]
    peers = sorted(paper.peers, key=lambda peer: (peer.target_accuracy, peer.time_s))
    rows += [_published_row(peer.name, peer) for peer in peers]
    by_machine = sorted(ours.items(), key=lambda item: (item[0][0], item[1][0].recipe))
    for (machine, _), group in by_machine:
        reached = [t for t in map(dawnbench_time, group) if t is not None]
        rows.append(
            (
                f"Ours: {group[0].recipe}",
                time_cell(summarize(reached) if reached else None, emulated=_any_emulated(group)),
                _short_percent(target_of(group[0])),
                machine.short,
                f"machine {numbers[machine]}",
                f"{len(reached)} of {len(group)} runs; "
                f"final {_accuracy(pool_accuracies(group, lambda record: record.test_accuracy))}%",
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


def _accuracy(summary: Summary | None) -> str:
    if summary is None:
        return NOTHING
    return plus_minus(100 * summary.mean, None if summary.std is None else 100 * summary.std)


def time_cell(summary: Summary | None, *, emulated: bool) -> str:
    """`mean ± std` in seconds, with its marks."""
    if summary is None:
        return NOTHING
    marks = EMULATED * emulated + UNSTABLE * summary.unstable
    return plus_minus(summary.mean, summary.std) + (f" {marks}" if marks else "")


def _at_target(records: Sequence[RunRecord], accuracy: Callable[[RunRecord], float | None]) -> str:
    target = target_of(records[0])
    present = [value for value in map(accuracy, records) if value is not None]
    count = count_reaching(present, target)
    interval = interval_cell(share_interval(count, len(records)), 100, decimals=0)
    return f"{count} of {len(records)} ≥ {_short_percent(target)}% ({interval}%)"


def _any_emulated(records: Sequence[RunRecord]) -> bool:
    return any(record.emulated_workers for record in records)


def mark_notes(rows: Iterable[Sequence[str]]) -> list[str]:
    """The footnotes of those marks that the rows hold."""
    text = "".join(cell for row in rows for cell in row)
    notes = {EMULATED: EMULATED_NOTE, UNSTABLE: UNSTABLE_NOTE}
    return [note for mark, note in notes.items() if mark in text]


def _paper_caption(paper: Paper) -> str:
    values = [value for value in paper.values if value.table == "Table 1"]
    by_hardware: dict[str, list[PaperValue]] = {}
    for value in values:
        by_hardware.setdefault(value.hardware, []).append(value)
    on = "; ".join(
        f"{hardware} for {', '.join(dict.fromkeys(value.row for value in those))}"
        for hardware, those in by_hardware.items()
    )
    return f"Paper: Table 1, {values[0].n} runs, {on}."


def _epochs(record: RunRecord) -> str:
    recipe = recipe_of(record)
    text = str(recipe["phase1"]["max_epochs"])
    if recipe.get("phase2"):
        phase2 = str(recipe["phase2"]["max_epochs"])
        if workers := recipe.get("num_workers"):  # SWA has none
            phase2 = f"{phase2} of each of {workers} workers"
        return f"at most {text} + {phase2}"
    return text


def _short_percent(fraction: float) -> str:
    return f"{100 * fraction:.10g}"


def _or(texts: Iterable[str]) -> str:
    return " or ".join(texts)
