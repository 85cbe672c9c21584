"""The command line: finds the command, and leaves its arguments to it."""

import os
import select
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar

import tyro

from bench.export.options import FORMATS
from bench.options import (
    FigureOptions,
    JobOptions,
    MicroOptions,
    PlanOptions,
    PrepareOptions,
    RunOptions,
    SmallTreeOptions,
    TableOptions,
)
from bench.search.grid import SearchOptions, parse_grid
from swap_fast.choices import choose
from swap_fast.config.recipe import AveragingRecipe, Recipe, SGDRecipe, SWAPRecipe, SWARecipe
from swap_fast.recipes.cifar10 import RECIPES
from swap_fast.training.shutdown import EXIT_STATUS, InterruptedRunError

# What the line of a command that names a recipe holds: its options, and the recipe's fields.


Flat = tyro.conf.arg(name="")
OptionsT = TypeVar("OptionsT", bound=RunOptions)
RecipeT = TypeVar("RecipeT", bound=Recipe)


@dataclass(frozen=True, kw_only=True)
class Form(Generic[OptionsT, RecipeT]):
    """How a recipe is run, and those of its fields that can be overridden."""

    options: Annotated[OptionsT, Flat]
    recipe: Annotated[RecipeT, Flat]


@dataclass(frozen=True, kw_only=True)
class JobForm(Form[OptionsT, RecipeT]):
    """The same, and the jobs that run it."""

    jobs: Annotated[JobOptions, Flat]


WHAT = {
    ("run", SWAPRecipe): "Run a SWAP recipe and write its record.",
    ("run", SWARecipe): "Run an SWA recipe and write its record.",
    ("run", SGDRecipe): "Run an SGD recipe and write its record.",
    ("submit", SWAPRecipe): (
        "Submit a SWAP recipe: phase 1, an array of workers, and the average after them."
    ),
    ("submit", SWARecipe): "Submit an SWA recipe as one job.",
    ("submit", SGDRecipe): "Submit an SGD recipe as one job.",
    ("search", SWAPRecipe): "Search settings of a SWAP recipe.",
    ("search", SWARecipe): "Search settings of an SWA recipe.",
    ("search", SGDRecipe): "Search settings of an SGD recipe.",
}
"""The first line of `--help`, by command and method."""


def parse(
    command: Literal["run", "submit", "search"], name: str, recipe: Recipe, arguments: list[str]
) -> Any:
    """A command's line after the recipe's name; what it does not say stays as the recipe has it.

    Arguments:
        name: of the recipe, as it was given.
    """
    kind = type(recipe)
    options = SearchOptions() if command == "search" else RunOptions()
    default: Form[Any, Any] = Form(options=options, recipe=recipe)
    if command == "submit":
        default = JobForm(options=options, recipe=recipe, jobs=JobOptions())
    form: Any = type(default)
    parsed = tyro.cli(
        form[type(options), kind],
        args=arguments,
        default=default,
        description=WHAT[command, kind],
        prog=f"python -m bench {command} {name}",
    )
    return replace(parsed, recipe=_derived(parsed.recipe))


def _derived(recipe: Recipe) -> Recipe:
    """The recipe with the sums of each phase's stages made anew.

    The parser sets fields that no constructor takes to the default's values, after the constructor
    has summed the new stages up. As properties the sums would be missing from records.
    """
    phases = ("phase1", "phase2") if isinstance(recipe, AveragingRecipe) else ("phase1",)
    return replace(recipe, **{name: replace(getattr(recipe, name)) for name in phases})


# The commands: each parses its arguments and calls what does the work.
#
# Nothing heavy is imported before the arguments are known to be right.


def recipes(arguments: list[str]) -> int:
    """List the recipes."""
    tyro.cli(_nothing, args=arguments, prog="python -m bench recipes")
    for name, make in RECIPES.items():
        recipe = make()
        needs = f"{recipe.phase1.gpus_per_model} GPUs" if recipe.paper_scale else "CPU"
        print(f"{name:<24} {needs:<7} {recipe.table:<48} {recipe.summary}")
    return 0


def _nothing() -> None:
    """List the recipes, with the paper's table and what each needs."""


def run(arguments: list[str]) -> int:
    """Run a recipe as often as asked."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(
            "usage: python -m bench run RECIPE [OPTIONS]\n\n"
            "`run RECIPE --help` shows the options, and the recipe's own fields, each of which\n"
            "can be overridden: --phase1.peak-lr 1.5. RECIPE is `auto` (cifar10_dawnbench with\n"
            "CUDA devices, else cifar10_cpu, or cifar10_quick after --quick) or one of\n"
        )
        recipes([])
        return 0 if arguments else 2
    name = choose("recipe", arguments[0], [*RECIPES, "auto"])
    if name == "auto":
        if "-h" in arguments or "--help" in arguments:
            name = "cifar10_cpu"
        else:
            from bench.runner.session import automatic_recipe

            name = automatic_recipe(quick="--quick" in arguments)
    recipe = RECIPES[name]()
    words = [a for a in arguments[1:] if not (arguments[0] == "auto" and a == "--quick")]
    form = parse("run", arguments[0], recipe, words)
    from bench.runner.session import run_session

    return run_session(form.options, form.recipe, recipe)


def submit(arguments: list[str]) -> int:
    """Submit a recipe's jobs to a cluster."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(
            "usage: python -m bench submit RECIPE [OPTIONS]\n\n"
            "Runs RECIPE as jobs of SLURM, by submitit: phase 1, an array of phase 2's workers,\n"
            "and phase 3 after them. `submit RECIPE --help` shows the options; RECIPE is one of\n"
        )
        recipes([])
        return 0 if arguments else 2
    name = choose("recipe", arguments[0], RECIPES)
    recipe = RECIPES[name]()
    form = parse("submit", name, recipe, arguments[1:])
    from bench.runner.slurm import submit as submit_jobs

    return submit_jobs(form.options, form.jobs, form.recipe, recipe)


def search(arguments: list[str]) -> int:
    """Search a recipe's settings on held-out training images."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(
            "usage: python -m bench search RECIPE --grid NAME=VALUE,VALUE [OPTIONS]\n\n"
            "`search RECIPE --help` shows the options, and the recipe's own fields, each of which\n"
            "can be overridden for all runs. RECIPE is any of CIFAR's that `recipes` lists."
        )
        return 0 if arguments else 2
    name = choose("recipe", arguments[0], RECIPES)
    recipe = RECIPES[name]()
    form = parse("search", name, recipe, arguments[1:])
    grid = parse_grid(form.recipe, form.options.grid)
    from bench.search.command import run_search

    return run_search(form.options, grid, form.recipe, recipe)


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """Draw the tables, the figures and the report (Markdown and HTML) from the records alone."""

    results: Path = Path("results")
    """Results folder: records are read from RESULTS/runs."""
    readme: Path | None = None
    """Also write the main table between the results markers of this file."""
    performance: Path | None = None
    """Also write the tables of measurements between the micro markers of this file."""


def report(arguments: list[str]) -> int:
    """Draw the report."""
    options = tyro.cli(ReportOptions, args=arguments, prog="python -m bench report")
    from bench.report.write import print_summary, update_performance, update_readme, write_report

    path = write_report(options.results)
    print_summary(options.results)
    if options.readme is not None:
        update_readme(options.readme, options.results)
    if options.performance is not None:
        update_performance(options.performance, options.results)
    print(f"report: {path}")
    return 0


def compare(arguments: list[str]) -> int:
    """Compare two groups of runs."""
    from bench.report.compare import CompareOptions, compare_runs

    return compare_runs(tyro.cli(CompareOptions, args=arguments, prog="python -m bench compare"))


def export(arguments: list[str]) -> int:
    """Write runs in a format of others."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(
            "usage: python -m bench export FORMAT [RUN ...] [-o FILE]\n\n"
            "RUN is a record's path, a run id, or a recipe for all of its runs; without any, all\n"
            "of --results. `export FORMAT --help` shows the options; FORMAT is one of\n"
        )
        for name, (_, summary) in FORMATS.items():
            print(f"  {name:<10} {summary}")
        return 0 if arguments else 2
    name = choose("format", arguments[0], FORMATS)
    form, _ = FORMATS[name]
    options = tyro.cli(form, args=arguments[1:], prog=f"python -m bench export {name}")
    from bench.export.command import run_export

    return run_export(options)


def table(arguments: list[str]) -> int:
    """Fill and draw one of the paper's tables."""
    options = tyro.cli(TableOptions, args=arguments, prog="python -m bench table")
    from bench.report.run_table import run_table

    return run_table(options)


def figure(arguments: list[str]) -> int:
    """Draw a figure of the paper."""
    options = tyro.cli(FigureOptions, args=arguments, prog="python -m bench figure")
    from bench.landscape.figure import make_figure

    return make_figure(options)


def micro(arguments: list[str]) -> int:
    """Measure."""
    options = tyro.cli(MicroOptions, args=arguments, prog="python -m bench micro")
    from bench.micro.command import measure

    return measure(options)


def plan(arguments: list[str]) -> int:
    """Plan a recipe, or hold the planner against the paper."""
    options = tyro.cli(PlanOptions, args=arguments, prog="python -m bench plan")
    from bench.planner.command import run_plan

    return run_plan(options)


@dataclass(frozen=True, kw_only=True)
class VerifyOptions:
    """Confirm what only a GPU can confirm, and write a record of it.

    Each check has a time limit, and the record is written again as each ends. The same command
    given again runs what failed or did not run; --all runs everything.
    """

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """cpu runs the checks that have a form for CPUs."""
    out: Path = Path("results/verify")
    """Folder for the records."""
    data: Path | None = None
    """Folder that holds CIFAR-10; else SWAP_DATA, the cache, the download, synthetic images."""
    small: bool = False
    """Small nets and few images, as on a CPU: confirms how it works, and neither speed nor memory
    nor accuracy."""
    everything: Annotated[bool, tyro.conf.arg(name="all")] = False
    """Also run what an earlier record of this machine and code has as confirmed."""
    only: tuple[str, ...] = ()
    """Names of checks: run these alone, even if confirmed."""


def verify_gpu(arguments: list[str]) -> int:
    """Confirm."""
    options = tyro.cli(VerifyOptions, args=arguments, prog="python -m bench verify-gpu")
    from bench.verify.command import verify

    return verify(
        options.device,
        options.out,
        data=options.data,
        small=options.small,
        everything=options.everything,
        only=options.only,
    )


def watch(arguments: list[str]) -> int:
    """Follow a run."""
    from bench.runner.watch import WatchOptions
    from bench.runner.watch import watch as follow

    return follow(tyro.cli(WatchOptions, args=arguments, prog="python -m bench watch"))


def prepare(arguments: list[str]) -> int:
    """Write a pre-resized tree."""
    options = tyro.cli(PrepareOptions, args=arguments, prog="python -m bench prepare")
    from bench.data_tools import prepare as write_tree

    return write_tree(options)


def small_tree(arguments: list[str]) -> int:
    """Write a small tree."""
    options = tyro.cli(SmallTreeOptions, args=arguments, prog="python -m bench small-tree")
    from bench.data_tools import make_small_tree

    return make_small_tree(options)


COMMANDS: dict[str, tuple[Callable[[list[str]], int], str]] = {
    "recipes": (recipes, "list the recipes, with the paper's table and what each needs"),
    "run": (run, "run a recipe and write its record: run RECIPE --help"),
    "watch": (watch, "follow a run in the terminal, from another process"),
    "submit": (submit, "run a recipe as jobs of SLURM, which go on when pre-empted"),
    "table": (table, "run what a table of the paper lacks, and draw it: table 1 to 6"),
    "figure": (figure, "draw a figure of the paper, 1 to 6; runs what is missing"),
    "report": (report, "draw tables, figures and the report from the records"),
    "compare": (compare, "two recipes, runs or folders: compare A B, with intervals"),
    "export": (export, "write runs as DAWNBench, MLPerf, CSV, LaTeX, ONNX: export --help"),
    "search": (search, "try settings of a recipe on held-out training images"),
    "plan": (plan, "what a recipe will take: time, memory, bytes, cost; plan --help"),
    "verify-gpu": (verify_gpu, "confirm on a GPU what only a GPU can"),
    "small-tree": (small_tree, "write a small tree of JPEGs, to try ImageNet's path on"),
    "prepare": (prepare, "write a tree of images again at a smaller size"),
    "micro": (micro, "measure a part: micro step, data, jpeg, workers, collective"),
}


def main(arguments: list[str] | None = None) -> int:
    """Run one command; the exit status: 0, 2 for bad input, 75 interrupted, 1 for a failed run."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: python -m bench COMMAND ...\n")
        for name, (_, summary) in COMMANDS.items():
            print(f"  {name:<11} {summary}")
        return 0 if arguments else 2
    try:
        command, _ = COMMANDS[choose("command", arguments[0], COMMANDS)]
        return command(arguments[1:])
    except (ValueError, FileNotFoundError, PermissionError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    except InterruptedRunError as error:
        again = " with --resume" if arguments[0] == "run" and "--resume" not in arguments else ""
        print(f"bench: interrupted ({error}); the same command{again} goes on", file=sys.stderr)
        return EXIT_STATUS
    except KeyboardInterrupt:
        print("bench: interrupted", file=sys.stderr)
        return 130
    except (RuntimeError, FloatingPointError, OSError) as error:
        if isinstance(error, BrokenPipeError) and _nobody_reads():
            return 141  # as the shell says it of other programs
        print(f"bench: {error}", file=sys.stderr)
        return 1


def _nobody_reads() -> bool:
    """Whether who read standard output, such as `head`, has seen enough and ended."""
    poll = select.poll()
    poll.register(sys.stdout, 0)
    if not any(event & select.POLLERR for _, event in poll.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at the exit
    return True
