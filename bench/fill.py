"""A table of the paper by its number: runs what is missing of it, then draws it."""

import os
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from bench.contents import Content, collect, warning
from bench.expected import Expected, expect
from bench.launch import under_torchrun
from bench.machine import choose_device, describe_machine
from bench.missing import Job, jobs_of, starts_of
from bench.options import RunOptions, TableOptions
from bench.paper import load_paper
from bench.recipe_tables import RUNS_OF, recipe_table
from bench.report import write_report
from bench.rows import RUN_TABLES, RunTable, Size
from bench.screen import show_table
from bench.session import processes, run_session
from bench.stats import MachineKey, kind_of_machine
from bench.tables import run_tables
from swap_fast.data.find import load_dataset, locate_dataset, locate_tree
from swap_fast.recipe import Recipe
from swap_fast.recipes import RECIPES
from swap_fast.record import RunRecord


def run_table(options: TableOptions) -> int:
    """The command: run what a table lacks and draw it; the exit status.

    Raises:
        ValueError: a device, a number of processes or data that cannot be had.
        RuntimeError: a run failed.
    """
    if options.number in RUNS_OF:
        size: Size = "cpu" if options.size == "cpu" else "paper"
        show_table(recipe_table(options.number, load_paper(options.out), size), Console())
        return 0
    if under_torchrun():
        raise ValueError(
            f"table: expected one process, which starts the others, got rank {os.environ['RANK']} "
            "of torchrun's; run each recipe by `torchrun ... -m bench run`, then draw the table"
        )
    table = RUN_TABLES[options.number]
    device_type = choose_device(options.device)
    size = size_for(options, device_type)
    content = collect(options.out)
    machine = describe_machine(device_type)

    def machine_of(recipe: Recipe) -> MachineKey:
        ranks, threads = processes(run_options(options), recipe, device_type)
        return kind_of_machine(machine, ranks, threads)

    def expectations(jobs: Sequence[Job], records: Sequence[RunRecord]) -> list[Expected]:
        return [
            expect(
                job,
                size,
                list(starts_of(table, size)),
                records,
                machine_of(RECIPES[job.recipe]()),
                content.paper,
                shares=begins_from_another(job, jobs, options.out),
            )
            for job in jobs
        ]

    jobs = jobs_of(table, size, options.runs, content.records, machine_of)
    lines = plan_lines(table, size, jobs, expectations(jobs, content.records))
    print(*lines, sep="\n", flush=True)
    if options.dry_run:
        return 0
    missing = [i for i, job in enumerate(jobs) if job.record is None]
    if missing:
        require_data(table, size, options.data)
    for done, i in enumerate(missing):
        # Anew each time: the runs that were made meanwhile tell more of those that follow.
        expected = expectations(jobs, collect(options.out).records)
        if not options.quiet:
            left = total([expected[later] for later in missing[done:]])
            print(f"{table.name}: run {done + 1} of {len(missing)}; to go: {left}", flush=True)
        recipe = RECIPES[jobs[i].recipe]()
        run_session(run_options(options, jobs[i].seed), recipe, recipe, goes_on=True)
    report = write_report(options.out)
    draw(table, size, collect(options.out), Console())
    print(f"report: {report}")
    return 0


def size_for(options: TableOptions, device_type: str) -> Size:
    """The size asked for; by itself, the paper's where there is a CUDA device."""
    if options.size != "auto":
        return options.size
    return "paper" if device_type == "cuda" else "cpu"


def run_options(options: TableOptions, seed: int = 0) -> RunOptions:
    """How one run of a table is made."""
    return RunOptions(
        seed=seed,
        data=options.data,
        out=options.out,
        device=options.device,
        ranks=options.ranks,
        threads=options.threads,
        share_phase1=True,
        keep_epochs=options.keep_epochs,
        quiet=options.quiet,
    )


def begins_from_another(job: Job, jobs: Sequence[Job], out: Path) -> bool:
    """Whether a phase 1 for the run is kept already, or will be before its turn comes."""
    if job.start is None:
        return False
    for other in jobs:
        if (other.recipe, other.seed) == (job.start, job.seed):
            return other.record is None or _keeps_phase1(other.record, out)
    return False


def _keeps_phase1(record: RunRecord, out: Path) -> bool:
    return any((out / "checkpoints" / record.run_id).glob("phase1.*"))


def plan_lines(
    table: RunTable, size: Size, jobs: Sequence[Job], expected: Sequence[Expected]
) -> list[str]:
    """What there is of a table, and what will run, in order, with the time that it will take."""
    missing = [each for job, each in zip(jobs, expected, strict=True) if job.record is None]
    lines = [f"{table.title(size)}: {len(missing)} of {len(jobs)} runs to make"]
    for job, each in zip(jobs, expected, strict=True):
        line = f"  {job.recipe:<28} seed {job.seed}  "
        if job.record is not None:
            line += f"is there  {job.record.run_id}, {job.record.data['kind']} data"
        else:
            line += f"{duration(each.seconds):>8}  {each.by}"
            line += f"; phase 1 of {job.start}" if each.shares else ""
        lines.append(line)
    if missing:
        lines.append(f"in all {total(missing)}; cut short, the same command goes on")
    return lines


def total(expected: Sequence[Expected]) -> str:
    """The sum as text, with what it leaves out."""
    known = [each.seconds for each in expected if each.seconds is not None]
    parts = [duration(sum(known))] if known else []
    if unknown := len(expected) - len(known):
        parts.append(f"{unknown} run{'s' if unknown > 1 else ''} of unknown time")
    return ", and ".join(parts)


def duration(seconds: float | None) -> str:
    """In the unit that suits it."""
    if seconds is None:
        return "unknown"
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def require_data(table: RunTable, size: Size, data: Path | None) -> None:
    """Refuse, before hours of training, data whose runs may not stand in the table.

    Raises:
        ValueError: there is none of the data set, or not the kind that the table takes.
    """
    name = RECIPES[table.recipes(size)[0]]().dataset
    if name == "imagenet":
        locate_tree(data)
        return
    found = locate_dataset(name, data)
    kinds = table.data_kinds(size)
    kind = load_dataset(name, found).kind
    if kind not in kinds:
        raise ValueError(
            f"--data: expected {table.dataset}, {' or '.join(kinds)}, for {table.title(size)}, "
            f"got {kind} data; give the folder that holds it"
        )


def draw(table: RunTable, size: Size, content: Content, console: Console) -> None:
    """Print the table of each kind of machine."""
    console.print(warning(content), style="bold", markup=False)
    for drawn in run_tables(table, size, content.records, content.paper):
        show_table(drawn, console)
