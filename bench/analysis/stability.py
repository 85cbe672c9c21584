"""Warnings: what makes figures less sure than they look, and what to do. No torch."""

import statistics
from collections.abc import Iterator, Sequence

from bench.document.table import Table
from bench.records.grouping import accuracy_key, group_by, host_of, machine_key
from bench.records.paper_tables import number_machines
from bench.statistics import UNSTABLE_SHARE, summarize
from swap_fast.record import RunRecord

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

Warned = tuple[str, str, str]
"""The runs, the warning, what to do."""


def stability_table(records: Sequence[RunRecord]) -> Table:
    """A line a warning: spread, few runs, unlike runs, throttling, interruptions, outliers."""
    numbers = number_machines(records)
    rows: list[Warned] = []
    for (recipe, machine), runs in group_by(records, lambda r: (r.recipe, machine_key(r))).items():
        where = f"{recipe}, machine {numbers[machine.host]}, {machine.used}"
        rows += [(where, what, remedy) for what, remedy in _of_group(runs)]
        rows += [
            (
                run.run_id,
                f"its {run.times.after_averaging_s:.2f} s stand apart from the other runs' times",
                "look at its laps; repeat it rather than leave it out",
            )
            for run in _outliers(runs)
        ]
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
            f"{OUTLIER:g}. "
            "A record does not know what else ran on its machine."
        ),
        columns=("Runs", "What", "What to do"),
        rows=tuple(rows),
    )


def _of_group(runs: Sequence[RunRecord]) -> Iterator[tuple[str, str]]:
    """Warnings of one recipe's runs on one machine, each with what to do."""
    kinds = len({accuracy_key(run) for run in runs})
    if kinds > 1:
        yield (
            f"{len(runs)} runs of {kinds} configurations, data sets or overrides",
            "they are not pooled; repeat them alike, or keep them in folders of their own",
        )
    commits = len({run.code.get("commit") for run in runs})
    if commits > 1:
        yield (
            f"runs of {commits} commits in one mean",
            "repeat them at one commit, if the code between them changed what is timed",
        )
    if any(run.code.get("changed") for run in runs):
        yield "the code had changes that its commit does not hold", "commit, and repeat the runs"
    if kinds > 1:
        return  # neither spread nor number says anything of unlike runs
    times = summarize(run.times.after_averaging_s for run in runs)
    if times.n < FEWEST_RUNS:
        yield (
            f"n = {times.n}, fewer than {FEWEST_RUNS}",
            f"--runs {FEWEST_RUNS} or more, with seeds of their own",
        )
    if times.unstable and times.std is not None:
        yield (
            f"time {times.mean:.2f} ± {times.std:.2f} s: the deviation is "
            f"{times.std / times.mean:.0%} of the mean",
            "leave the machine to the run, and repeat it",
        )


def _outliers(runs: Sequence[RunRecord]) -> list[RunRecord]:
    """Runs whose time has a modified z-score, 0.6745 |x - median| / MAD, above the bound."""
    if len(runs) < FEWEST_FOR_OUTLIERS or len({accuracy_key(run) for run in runs}) > 1:
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
        counts = ", ".join(f"{name} {value}" for name, value in run.interruptions.items())
        yield (
            f"was interrupted and went on ({counts})",
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
