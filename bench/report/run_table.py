"""`python -m bench table NUMBER`: makes the runs that a table of the paper lacks, and draws it."""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console

from bench.document import counted, show_table
from bench.hardware.machine import describe_machine
from bench.options import RunOptions, TableOptions
from bench.records.grouping import MachineKey, kind_of_machine
from bench.records.paper import load_paper
from bench.records.paper_tables import RUN_TABLES, RunTable, Size
from bench.report.content import Content, collect, warning
from bench.report.paper_tables import RUNS_OF, recipe_table, run_tables
from bench.report.runs_to_do import Eta, RunToDo, eta, jobs_of, starts_of
from bench.report.write import write_report
from bench.runner.launch import under_torchrun
from bench.runner.run_folders import finish_run
from bench.runner.session import processes, run_session
from swap_fast.callbacks.progress import duration
from swap_fast.choices import choose_device
from swap_fast.config.recipe import Recipe
from swap_fast.data.cifar.dataset import DatasetName
from swap_fast.data.cifar.files import find_at_hand, load_dataset, locate_dataset, locate_tree
from swap_fast.options import flow
from swap_fast.recipes.cifar10 import RECIPES
from swap_fast.record import RunRecord


@dataclass(frozen=True, kw_only=True)
class TableData:
    """The data that a table's runs would train on, without the images."""

    kind: str
    sha256: str
    """Of the content, as a record keeps it."""
    text: str


def run_table(options: TableOptions) -> int:
    """The command: run what a table lacks and draw it, or all tables, those with data.

    Returns:
        The exit status: 1 where a table was left out.

    Raises:
        ValueError: a device, a number of processes or data that cannot be had.
        RuntimeError: a run failed.
    """
    if options.number != "all":
        _run_one(options, options.number)
        return 0
    for table in RUN_TABLES.values():
        size_for(options, table, "cuda")  # refused now, not hours later
    status = 0
    for number in (*RUN_TABLES, *RUNS_OF):
        try:
            _run_one(options, number)
        except NoDataError as error:
            print(flow(f"Table {number} is left out: {error}"), file=sys.stderr, flush=True)
            status = 1
    return status


class NoDataError(ValueError):
    """Data that a table's runs need and that cannot be had."""


def _run_one(options: TableOptions, number: int) -> None:
    """Run what one table lacks and draw it."""
    if number in RUNS_OF:
        size = size_for(options, RUN_TABLES[RUNS_OF[number]], "cuda")
        show_table(recipe_table(number, load_paper(options.out), size), Console())
        return
    if under_torchrun():
        raise ValueError(
            f"table: expected one process, which starts the others, got rank {os.environ['RANK']} "
            "of torchrun's; run each recipe by `torchrun ... -m bench run`, then draw the table"
        )
    table = RUN_TABLES[number]
    device_type = choose_device(options.device)
    size = size_for(options, table, device_type)
    content = collect(options.out)
    machine = describe_machine(device_type)

    def machine_of(recipe: Recipe) -> MachineKey:
        ranks, threads = processes(run_options(options), recipe, device_type)
        return kind_of_machine(machine, ranks, threads)

    def etas(jobs: Sequence[RunToDo], records: Sequence[RunRecord]) -> list[Eta]:
        return [
            eta(
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

    def plan(data: TableData | None) -> list[RunToDo]:
        sha256 = None if data is None else data.sha256
        jobs = jobs_of(table, size, options.runs, content.records, machine_of, sha256)
        lines = plan_lines(table, size, jobs, etas(jobs, content.records), data)
        print(*(flow(line, "    ") for line in lines), sep="\n", flush=True)
        return jobs

    data = data_at_hand(table, size, options.data)
    jobs = plan(data)
    if options.dry_run:
        return
    for job in jobs:
        if job.record is not None:
            folder = options.out / "checkpoints" / job.record.run_id
            finish_run(folder, keep_epochs=options.keep_epochs)
    if any(job.record is None for job in jobs):
        found = require_data(table, size, options.data)
        if found != data:  # downloaded only now: the runs that are there may be of other data
            jobs = plan(found)
    missing = [i for i, job in enumerate(jobs) if job.record is None]
    for done, i in enumerate(missing):
        # Again each time: the runs just made tell how long those that follow will take.
        expected = etas(jobs, collect(options.out).records)
        if not options.quiet:
            left = total([expected[later] for later in missing[done:]])
            print(f"{table.name}: run {done + 1} of {len(missing)}; to go: {left}", flush=True)
        recipe = RECIPES[jobs[i].recipe]()
        run_session(run_options(options, jobs[i].seed), recipe, recipe, resume=True)
    content = collect(options.out)
    report = write_report(content)
    draw(table, size, content, Console())
    print(f"report: {report}")


def size_for(options: TableOptions, table: RunTable, device_type: str) -> Size:
    """The size asked for; by itself, the paper's where there is a CUDA device.

    Raises:
        ValueError: the table has no such recipes.
    """
    if options.size == "auto":
        return "paper" if device_type == "cuda" else "cpu"
    if options.size not in table.sizes:
        expected = ", ".join(table.sizes)
        raise ValueError(f"size: expected one of {expected} for {table.name}, got {options.size}")
    return options.size


def run_options(options: TableOptions, seed: int = 0) -> RunOptions:
    """How one run of a table is made."""
    return RunOptions(
        seed=seed,
        data=options.data,
        out=options.out,
        device=options.device,
        ranks=options.ranks,
        threads=options.threads,
        cores=options.cores,
        share_phase1=True,
        keep_epochs=options.keep_epochs,
        quiet=options.quiet,
    )


def begins_from_another(job: RunToDo, jobs: Sequence[RunToDo], out: Path) -> bool:
    """Whether a phase 1 for the run is kept already, or will be before its turn comes."""
    starts = (other for other in jobs if (other.recipe, other.seed) == (job.start, job.seed))
    return any(
        each.record is None or any((out / "checkpoints" / each.record.run_id).glob("phase1.*"))
        for each in starts
    )


def plan_lines(
    table: RunTable,
    size: Size,
    jobs: Sequence[RunToDo],
    expected: Sequence[Eta],
    data: TableData | None,
) -> list[str]:
    """What there is of a table, and what will run, in order, with the time that it will take.

    Arguments:
        data: of which the runs that are there are; None: of any of the kinds that the table takes.
    """
    missing = [each for job, each in zip(jobs, expected, strict=True) if job.record is None]
    of = f"data: {data.text}" if data else "the content of the data is not compared"
    lines = [f"{table.title(size)}: {len(missing)} of {len(jobs)} runs to make; {of}"]
    for job, each in zip(jobs, expected, strict=True):
        line = f"  {job.recipe:<28} seed {job.seed}  "
        if job.record is not None:
            line += f"{'is there':>10}  {job.record.run_id}, {job.record.data['kind']} data"
        else:
            time = "unknown" if each.seconds is None else duration(each.seconds)
            line += f"{time:>10}  {each.by}"
            line += f"; phase 1 of {job.start}" if each.shares else ""
        lines.append(line)
    if missing:
        lines.append(f"in all {total(missing)}; interrupted, the same command continues")
    return lines


def total(expected: Sequence[Eta]) -> str:
    """The sum as text, and how many runs it leaves out."""
    known = [each.seconds for each in expected if each.seconds is not None]
    parts = [duration(sum(known))] if known else []
    if unknown := len(expected) - len(known):
        parts.append(f"{counted(unknown, 'run')} of unknown time")
    return ", and ".join(parts)


def data_at_hand(table: RunTable, size: Size, data: Path | None) -> TableData | None:
    """The data that a table's runs would train on, without a download.

    None where there is none yet, and of a tree of images, whose every file would be looked at.

    Raises:
        NoDataError: the folder that is named has no such data.
        ValueError: damaged data.
    """
    name = dataset_of(table, size)
    if name == "imagenet":
        return None
    with _no_data():
        found = find_at_hand(name, data)
    return None if found is None else _read(name, found)


def require_data(table: RunTable, size: Size, data: Path | None) -> TableData | None:
    """The data, downloaded if need be; None of a tree of images, which need only be there.

    Refuses, before hours of training, data whose runs the table does not take.

    Raises:
        NoDataError: there is none of the data set, or not the kind that the table takes.
        ValueError: damaged data.
    """
    name = dataset_of(table, size)
    with _no_data():
        place = locate_tree(data) if name == "imagenet" else locate_dataset(name, data)
    if name == "imagenet":
        return None
    found = _read(name, place)
    kinds = table.data_kinds(size)
    if found.kind not in kinds:
        raise NoDataError(
            f"--data: expected {table.dataset}, {' or '.join(kinds)}, for {table.title(size)}, "
            f"got {found.kind} data; give the folder that holds it"
        )
    return found


@contextmanager
def _no_data() -> Iterator[None]:
    """Where data are looked for: what says that there are none."""
    try:
        yield
    except ValueError as error:
        raise NoDataError(str(error)) from None


def dataset_of(table: RunTable, size: Size) -> DatasetName | Literal["imagenet"]:
    """The name of the data set that all of a table's recipes train on."""
    return RECIPES[table.recipes(size)[0]]().dataset


def _read(name: DatasetName, path: Path | None) -> TableData:
    dataset = load_dataset(name, path)
    return TableData(kind=dataset.kind, sha256=dataset.sha256, text=dataset.describe())


def draw(table: RunTable, size: Size, content: Content, console: Console) -> None:
    """Print the table of each kind of machine."""
    console.print(warning(content), style="bold", markup=False)
    for drawn in run_tables(table, size, content.records, content.paper):
        show_table(drawn, console)
