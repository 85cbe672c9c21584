"""Lists of a report: runs, machines, whole configurations, and warnings. No torch."""

import statistics
from collections.abc import Callable, Iterator, Sequence

from bench.document import (
    EMULATED,
    NOTHING,
    Folded,
    Table,
    counted,
    mark_notes,
    number_cell,
    percent,
    rows_of,
)
from bench.records.grouping import (
    Host,
    accuracy_key,
    group_by,
    host_of,
    machine_key,
    scale_note,
    timed_alone,
    values_by_field,
)
from bench.records.paper_tables import OTHER, number_machines, place_of, why_other
from bench.statistics import UNSTABLE_SHARE, summarize
from swap_fast.record import RunRecord

Columns = dict[str, Callable[[RunRecord], str]]
"""How each column's cell is made of a run."""

RECIPE = "Recipe"
"""Head of a column."""


def runs_table(records: Sequence[RunRecord]) -> Table:
    """Every run that is in another table, one a line, so that no mean hides its values."""
    return _list_of_runs(
        [record for record in records if place_of(record) != OTHER],
        {"Workers (%), lowest to highest": _workers, "Best by epoch (%)": _best_by_epoch},
        number_machines(records),
        name="runs",
        title="Runs",
        caption="Best by epoch: the highest test accuracy of what a run returns, over its epochs: "
        "of SGD's model, of SWAP's average after each epoch of phase 2, of SWA's after each cycle. "
        "It is chosen on the test set and stands in no other table.",
    )


def other_runs(records: Sequence[RunRecord]) -> Table:
    """Runs that cannot be compared with published figures, and why."""
    return _list_of_runs(
        [record for record in records if place_of(record) == OTHER],
        {"Why": why_other},
        number_machines(records),
        name="other_runs",
        title="Other runs",
        caption="These are compared with no published figure, and are in no mean.",
        details=("Before averaging (%)",),
    )


def _list_of_runs(
    runs: Sequence[RunRecord],
    more: Columns,
    numbers: dict[Host, int],
    *,
    name: str,
    title: str,
    caption: str,
    details: tuple[str, ...] = (),
) -> Table:
    """One line a run.

    Arguments:
        more: the columns that only this list has.
        numbers: of the machines.
        details: columns that a narrow screen leaves out of this list, too.
    """
    mirrored: Columns = {
        "With mirrored test images (%)": lambda run: number_cell(
            run.mirrored_test_accuracy, factor=100
        )
    }
    columns: Columns = {
        "Run": lambda run: run.run_id,
        RECIPE: lambda run: run.recipe,
        "Phase 1 ended by": lambda run: run.stopped_by,
        "Phase 1 (epochs)": lambda run: str(run.phase1_epochs),
        "Before averaging (%)": lambda run: number_cell(run.accuracy_before_averaging, factor=100),
        "Final test accuracy (%)": lambda run: percent(run.test_accuracy),
        "Time (s), measured": lambda run: (
            number_cell(run.times.after_averaging_s) + EMULATED * run.emulated_workers
        ),
        **(mirrored if any(run.mirrored_test_accuracy is not None for run in runs) else {}),
        **more,
        "Machine": lambda run: str(numbers[host_of(run)]),
        "Devices": lambda run: machine_key(run).used,
    }
    rows = rows_of(columns, runs)
    return Table(
        name=name,
        title=title,
        caption=caption + scale_note(runs),
        columns=tuple(columns),
        rows=rows,
        footnotes=tuple(mark_notes(rows)),
        details=(*details, RECIPE, "Phase 1 ended by", "Phase 1 (epochs)", "Machine", "Devices"),
    )


def _workers(run: RunRecord) -> str:
    accuracies = sorted(run.worker_accuracies)
    if run.method != "swap" or not accuracies:
        return NOTHING
    return f"{percent(accuracies[0])} to {percent(accuracies[-1])}"


def _best_by_epoch(run: RunRecord) -> str:
    rows = run.epochs if run.method == "sgd" else run.average_by_epoch
    seen = [row.test_accuracy for row in rows if row.test_accuracy is not None]
    return number_cell(max(seen, default=None), factor=100)


def machines_table(records: Sequence[RunRecord]) -> Table:
    """What each kind of machine is, and with which code and data its runs were made."""
    rows: list[tuple[str, str, str]] = []
    groups = group_by(records, host_of)
    for host, number in number_machines(records).items():
        facts = values_by_field(
            groups[host],
            lambda run: {
                "processes": run.world_size,
                "threads a process": run.threads,
                "machine": run.machine,
                "code": run.code,
                "data": run.data,
            },
        )
        rows.append((str(number), "kind", host.label))
        rows += [(str(number), name, "; ".join(values)) for name, values in facts.items()]
    return Table(
        name="machines",
        title="Machines, code and data",
        caption="Where runs of one kind of machine differ, all values are given.",
        columns=("Machine", "What", "Value"),
        rows=tuple(rows),
    )


def configurations(records: Sequence[RunRecord]) -> list[Folded]:
    """Whole configurations: a table for all runs of a recipe that agree in it and in machine."""
    groups = group_by(records, lambda run: (run.recipe, accuracy_key(run), machine_key(run)))
    return [
        Folded(summary=f"{runs[0].recipe}: {counted(len(runs), 'run')}", table=_configuration(runs))
        for runs in groups.values()
    ]


def _configuration(runs: Sequence[RunRecord]) -> Table:
    facts = values_by_field(
        runs,
        lambda run: {
            **run.configuration,
            **{name: getattr(run, name) for name in ("seed", "world_size", "threads")},
            "overrides": ", ".join(run.overrides) or None,
            **{name: getattr(run, name) for name in ("data", "machine", "code")},
        },
    )
    return Table(
        name="configuration",
        title=f"Configuration of {runs[0].recipe}",
        caption=f"Of {', '.join(run.run_id for run in runs)}. Where they differ, all values.",
        columns=("Field", "Value"),
        rows=tuple((name, "; ".join(values)) for name, values in facts.items()),
    )


# Warnings: what makes figures less sure than they look, and what to do.

FEWEST_RUNS = 3
"""Below this many, an interval is too wide or absent."""
OUTLIER = 3.5
"""Modified z-score (Iglewicz and Hoaglin) above which a time is an outlier."""
FEWEST_FOR_OUTLIERS = 5
"""A median absolute deviation of fewer runs says too little."""
HARMLESS_THROTTLING = frozenset({"idle", "application clocks", "display clocks"})
"""Reasons for lower clocks that do not slow a training."""
THROTTLED_SHARE = 0.05
"""Of a lap's samples; a smaller share is not reported."""


def stability_table(records: Sequence[RunRecord]) -> Table:
    """A line a warning: spread, few runs, unlike runs, throttling, interruptions, outliers."""
    numbers = number_machines(records)
    precisions = {
        recipe: {accuracy_key(run).precision for run in runs}
        for recipe, runs in group_by(records, lambda run: run.recipe).items()
    }
    rows: list[tuple[str, str, str]] = []
    for (recipe, precision, machine), runs in group_by(
        records, lambda run: (run.recipe, accuracy_key(run).precision, machine_key(run))
    ).items():
        name = recipe if len(precisions[recipe]) == 1 else f"{recipe}, {precision}"
        where = f"{name}, machine {numbers[machine.host]}, {machine.used}"
        kinds = group_by(runs, accuracy_key)
        if len(kinds) > 1:
            what = f"{len(runs)} runs of {len(kinds)} configurations, data sets or overrides"
            remedy = "they are not pooled; repeat them alike, or keep them in folders of their own"
            rows.append((where, what, remedy))
        for pooled in kinds.values():
            if place_of(pooled[0]) == OTHER:
                continue  # in no mean
            which = where if len(kinds) == 1 else f"{where}, runs like {pooled[0].run_id}"
            rows += [(which, what, remedy) for what, remedy in _of_pooled(pooled)]
            for run in _outliers(timed_alone(pooled)):
                seconds = f"{run.times.after_averaging_s:.2f} s"
                what = f"its {seconds} stand apart from the other runs' times"
                remedy = "look at its laps; repeat it rather than leave it out"
                rows.append((run.run_id, what, remedy))
    for recipe, runs in group_by(records, lambda run: run.recipe).items():
        machines = sorted({numbers[host_of(run)] for run in runs})
        if len(machines) > 1:
            which = ", ".join(map(str, machines))
            what = f"ran on machines {which}: their times are never pooled"
            rows.append((recipe, what, "compare times within one machine only"))
    rows += [(run.run_id, what, remedy) for run in records for what, remedy in _of_run(run)]
    return Table(
        name="stability",
        title="Stability warnings",
        caption=(
            f"Spread: the standard deviation of the times is {UNSTABLE_SHARE:.0%} of their mean or "
            f"more. Outlier: of {FEWEST_FOR_OUTLIERS} runs or more, a modified z-score above "
            f"{OUTLIER:g}."
        ),
        columns=("Runs", "What", "What to do"),
        rows=tuple(rows),
    )


def _of_pooled(runs: Sequence[RunRecord]) -> Iterator[tuple[str, str]]:
    """Warnings of runs that a table puts into one mean, each with what to do."""
    alone = timed_alone(runs)
    commits = len({run.code.get("commit") for run in runs})
    if commits > 1:
        yield (
            f"runs of {commits} commits in one mean",
            "repeat them at one commit, if the code between them changed what is timed",
        )
    if any(run.code.get("changed") for run in runs):
        yield "the code had changes that its commit does not hold", "commit, and repeat the runs"
    if beside := [run.other_work or 0.0 for run in runs if run.had_other_work]:
        rest = "" if len(alone) == len(runs) else f"; the time is of the rest, n = {len(alone)}"
        yield (
            f"other programs ran beside {len(beside)} of {counted(len(runs), 'run')}, with up to "
            f"{max(beside):g} CPU cores{rest}",
            "such a time counts where its row has no other; leave the machine to the run",
        )
    if len(runs) < FEWEST_RUNS:
        yield (
            f"n = {len(runs)}, fewer than {FEWEST_RUNS}",
            f"--runs {FEWEST_RUNS} or more, with seeds of their own",
        )
    times = summarize(run.times.after_averaging_s for run in alone)
    if times.unstable and times.std is not None:
        yield (
            f"time {times.mean:.2f} ± {times.std:.2f} s: the deviation is "
            f"{times.std / times.mean:.0%} of the mean",
            "leave the machine to the run, and repeat it",
        )


def _outliers(runs: Sequence[RunRecord]) -> list[RunRecord]:
    """Runs whose time has a modified z-score, 0.6745 |x - median| / MAD, above the bound."""
    if len(runs) < FEWEST_FOR_OUTLIERS:
        return []
    times = [run.times.after_averaging_s for run in runs]
    median = statistics.median(times)
    deviation = statistics.median(abs(time - median) for time in times)
    return [
        run
        for run, time in zip(runs, times, strict=True)
        if deviation > 0 and 0.6745 * abs(time - median) / deviation > OUTLIER
    ]


def _of_run(run: RunRecord) -> Iterator[tuple[str, str]]:
    """Warnings of one run, each with what to do."""
    if run.interruptions:
        count, lost_s = run.interruptions["count"], run.interruptions["lost_s"]
        often = "once" if count == 1 else f"{count} times"
        yield (
            f"was interrupted and resumed {often}; {lost_s:.1f} s were lost",
            "its clock counts what was kept; for a time to publish, run it in one piece",
        )
    for rank, telemetry in enumerate(run.telemetry or []):
        throttled = "; ".join(
            f"{lap}: {reason} in {share:.0%} of the samples"
            for lap, seen in telemetry.laps.items()
            for reason, share in (seen.throttle_reasons or {}).items()
            if reason not in HARMLESS_THROTTLING and share >= THROTTLED_SHARE
        )
        if throttled:
            yield (
                f"the device of rank {rank} was throttled ({throttled})",
                "look after its cooling or power limit, and repeat the run",
            )
