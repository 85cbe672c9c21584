"""Tables from records: Table 1, and the seconds to an accuracy. No torch.

Nothing measured on one kind of machine stands in another's table. Runs that differ from the
published setting are in none (`bench.lists` has them).
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from bench.paper import Paper, PaperValue, PublishedTime
from bench.places import TABLE_1_RECIPES, number_machines, place_of
from bench.rendering import (
    EMULATED,
    EMULATED_NOTE,
    NOTHING,
    UNSTABLE,
    UNSTABLE_NOTE,
    Table,
    plus_minus,
)
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
from swap_fast.record import RunRecord


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of Table 1: whose runs, and which of their figures."""

    label: str
    """As the paper prints it."""
    recipe: str
    """Whose runs: a key of `TABLE_1_RECIPES`' entries."""
    accuracy: Callable[[RunRecord], float | None]
    """The row's test accuracy, a fraction."""
    time_s: Callable[[RunRecord], float | None]
    """By the paper's reading, as measured."""
    modelled_s: Callable[[RunRecord], float | None]
    """Had the workers of phase 2 run at the same time; None without phase 2."""


TABLE_1 = (
    Row(
        label="SGD (small-batch)",
        recipe="small",
        accuracy=lambda record: record.test_accuracy,
        time_s=lambda record: record.times.after_averaging_s,
        modelled_s=lambda record: None,
    ),
    Row(
        label="SGD (large-batch)",
        recipe="large",
        accuracy=lambda record: record.test_accuracy,
        time_s=lambda record: record.times.after_averaging_s,
        modelled_s=lambda record: None,
    ),
    Row(
        label="SWAP (before averaging)",
        recipe="swap",
        accuracy=lambda record: record.accuracy_before_averaging,
        time_s=lambda record: record.times.before_averaging_s,
        modelled_s=lambda record: record.times.modelled_before_averaging_s,
    ),
    Row(
        label="SWAP (after averaging)",
        recipe="swap",
        accuracy=lambda record: record.test_accuracy,
        time_s=lambda record: record.times.after_averaging_s,
        modelled_s=lambda record: record.times.modelled_after_averaging_s,
    ),
)
"""Table 1's rows, in the paper's order."""

TABLE_1_COLUMNS = (
    "CIFAR-10",
    "Paper: test accuracy (%)",
    "Ours: test accuracy (%)",
    "Paper: time (s)",
    "Ours: time (s), measured",
    "Ours: parallel time (s), modelled",
    "n",
    "Runs at target",
    "Phase 1 (mean epochs)",
    "Machine",
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
    rows: list[tuple[str, ...]] = []
    configurations: list[str] = []
    for row in TABLE_1:
        runs = [record for record in records if record.recipe == TABLE_1_RECIPES[place][row.recipe]]
        groups = list(group_by(runs, accuracy_key).values())
        for i, group in enumerate(groups or [[]], start=1):
            mark = f" [{i}]" if len(groups) > 1 else ""
            rows.append(_table_1_row(row, f"{row.label}{mark}", group, paper))
            if mark:
                ids = ", ".join(record.run_id for record in group)
                configurations.append(f"{row.label}{mark}: {ids}; not the same recipe or data.")
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
            *_marks(rows),
            *configurations,
        ),
    )


def _table_1_row(
    row: Row, label: str, records: Sequence[RunRecord], paper: Paper
) -> tuple[str, ...]:
    published = [paper.value("Table 1", row.label, c) for c in ("test_accuracy", "train_time")]
    accuracy_of_paper, time_of_paper = (plus_minus(each.mean, each.sd) for each in published)
    if not records:
        return (label, accuracy_of_paper, NOTHING, time_of_paper, *[NOTHING] * 6)
    return (
        label,
        accuracy_of_paper,
        _accuracy(pool_accuracies(records, row.accuracy)),
        time_of_paper,
        _time(pool_times(records, row.time_s), emulated=_any_emulated(records)),
        _time(pool_times(records, row.modelled_s), emulated=False),
        str(len(records)),
        _at_target(records, row.accuracy),
        f"{summarize(record.phase1_epochs for record in records).mean:.1f}",
        machine_key(records[0]).short,
    )


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
                _time(summarize(reached) if reached else None, emulated=_any_emulated(group)),
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
        footnotes=tuple(_marks(rows)),
    )


def _published_row(name: str, time: PublishedTime) -> tuple[str, ...]:
    accuracy = _short_percent(time.target_accuracy)
    return (name, f"{time.time_s:g}", accuracy, time.hardware, time.source, time.note or NOTHING)


def _accuracy(summary: Summary | None) -> str:
    if summary is None:
        return NOTHING
    return plus_minus(100 * summary.mean, None if summary.std is None else 100 * summary.std)


def _time(summary: Summary | None, *, emulated: bool) -> str:
    if summary is None:
        return NOTHING
    marks = EMULATED * emulated + UNSTABLE * summary.unstable
    return plus_minus(summary.mean, summary.std) + (f" {marks}" if marks else "")


def _at_target(records: Sequence[RunRecord], accuracy: Callable[[RunRecord], float | None]) -> str:
    target = target_of(records[0])
    present = [value for value in map(accuracy, records) if value is not None]
    count = count_reaching(present, target)
    return f"{count} of {len(records)} ≥ {_short_percent(target)}%"


def _any_emulated(records: Sequence[RunRecord]) -> bool:
    return any(record.emulated_workers for record in records)


def _marks(rows: Iterable[Sequence[str]]) -> list[str]:
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
        phase2 = f"{recipe['phase2']['max_epochs']} of each of {recipe['num_workers']} workers"
        return f"at most {text} + {phase2}"
    return text


def _short_percent(fraction: float) -> str:
    return f"{100 * fraction:.10g}"


def _or(texts: Iterable[str]) -> str:
    return " or ".join(texts)
