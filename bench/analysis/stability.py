"""What makes figures less sure than they look, and what to do about it. No torch."""

import statistics
from collections.abc import Sequence

from bench.document.table import Table
from bench.records.grouping import accuracy_key, group_by, host_of, machine_key
from bench.records.paper_tables import number_machines
from bench.statistics import UNSTABLE_SHARE, summarize
from swap_fast.record import RunRecord

FEWEST_RUNS = 3
"""Below this many, an interval is too wide or absent."""
OUTLIER = 3.5
"""Modified z-score (Iglewicz and Hoaglin) from which a time stands apart from its fellows'."""
FEWEST_FOR_OUTLIERS = 5
"""Of fewer runs, a median absolute deviation says too little."""
HARMLESS_THROTTLING = frozenset({"idle", "application clocks", "display clocks"})
"""Reasons for lower clocks that no training is slowed by unawares."""
THROTTLED_SHARE = 0.05
"""Of a lap's samples: less is the odd moment."""

Warned = tuple[str, str, str]
"""Which runs, what of them, what to do."""


def stability_table(records: Sequence[RunRecord]) -> Table:
    """A line a warning: spread, few runs, unlike runs, throttling, interruptions, outliers."""
    numbers = number_machines(records)
    rows: list[Warned] = []
    for (recipe, machine), runs in group_by(
        records, lambda run: (run.recipe, machine_key(run))
    ).items():
        where = f"{recipe}, machine {numbers[machine.host]}, {machine.used}"
        rows += _of_group(where, runs)
    for recipe, runs in group_by(records, lambda run: run.recipe).items():
        machines = sorted({numbers[host_of(run)] for run in runs})
        if len(machines) > 1:
            rows.append(
                (
                    recipe,
                    f"ran on machines {', '.join(map(str, machines))}: their times are never "
                    "pooled",
                    "compare times within one machine only",
                )
            )
    for run in records:
        rows += _of_run(run)
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


def _of_group(where: str, runs: Sequence[RunRecord]) -> list[Warned]:
    found: list[Warned] = []
    times = summarize(run.times.after_averaging_s for run in runs)
    kinds = len({accuracy_key(run) for run in runs})
    if kinds > 1:
        found.append(
            (
                where,
                f"{len(runs)} runs of {kinds} configurations, data sets or overrides",
                "they are not pooled; repeat them alike, or keep them in folders of their own",
            )
        )
    commits = {(run.code.get("commit"), run.code.get("changed")) for run in runs}
    if len({commit for commit, _ in commits}) > 1:
        found.append(
            (
                where,
                f"runs of {len({commit for commit, _ in commits})} commits in one mean",
                "repeat them at one commit, if the code between them changed what is timed",
            )
        )
    if any(changed for _, changed in commits):
        found.append(
            (
                where,
                "the code had changes that its commit does not hold",
                "commit, and repeat the runs",
            )
        )
    if kinds > 1:
        return found  # neither spread nor number says anything of unlike runs
    if times.n < FEWEST_RUNS:
        found.append(
            (
                where,
                f"n = {times.n}, fewer than {FEWEST_RUNS}",
                f"--runs {FEWEST_RUNS} or more, with seeds of their own",
            )
        )
    if times.unstable and times.std is not None:
        found.append(
            (
                where,
                f"time {times.mean:.2f} ± {times.std:.2f} s: the deviation is "
                f"{times.std / times.mean:.0%} of the mean",
                "leave the machine to the run, and repeat it",
            )
        )
    found += [
        (
            run.run_id,
            f"its {run.times.after_averaging_s:.2f} s stand apart from the other runs' times",
            "look at its laps; repeat it rather than leave it out",
        )
        for run in _outliers(runs)
    ]
    return found


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


def _of_run(run: RunRecord) -> list[Warned]:
    found: list[Warned] = []
    if run.interruptions:
        told = ", ".join(f"{name} {value}" for name, value in run.interruptions.items())
        found.append(
            (
                run.run_id,
                f"was interrupted and went on ({told})",
                "its clock counts what was kept; for a time to publish, run it in one piece",
            )
        )
    for rank, telemetry in enumerate(run.telemetry or []):
        held = {
            (lap, reason): share
            for lap, told in telemetry.laps.items()
            for reason, share in (told.throttle_reasons or {}).items()
            if reason not in HARMLESS_THROTTLING and share >= THROTTLED_SHARE
        }
        if held:
            told_of = "; ".join(
                f"{lap}: {reason} in {share:.0%} of the samples"
                for (lap, reason), share in held.items()
            )
            found.append(
                (
                    run.run_id,
                    f"the device of rank {rank} was throttled ({told_of})",
                    "look after its cooling or power limit, and repeat the run",
                )
            )
    return found
