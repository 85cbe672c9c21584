"""The command line: each command parses its arguments and calls what does the work.

Modules that are slow to load are imported when the arguments are known to be right, so that every
`--help` is quick.
"""

import json
import os
import select
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from itertools import zip_longest
from typing import Annotated, Any, Generic, Literal, TypeVar

import tyro

from bench.export.options import FORMATS
from bench.options import JobOptions, ReportOptions, RunOptions, VerifyOptions
from bench.search.grid import SearchOptions, parse_grid
from swap_fast import __version__
from swap_fast.choices import choose
from swap_fast.config.recipe import (
    Recipe,
    SGDRecipe,
    SWAPRecipe,
    SWARecipe,
    method_of,
)
from swap_fast.options import flow, name_the_user, parse_options
from swap_fast.recipes.cifar10 import RECIPES
from swap_fast.shutdown import EXIT_STATUS, InterruptedRunError

Command = Callable[[list[str]], int]
"""Given the arguments behind its name; returns the exit status."""


def main(arguments: list[str] | None = None) -> int:
    """Run one command; the exit status: 0, 2 for bad input, 75 interrupted, 1 for a failed run."""
    arguments = sys.argv[1:] if arguments is None else arguments
    name_the_user()
    if arguments == ["--version"]:
        print(f"swap_fast {__version__}")
        return 0
    if asks_for_usage(arguments):
        print("usage: python -m bench COMMAND ...\n")
        _print_summaries(COMMANDS)
        return 0 if arguments else 2
    try:
        name, rest = choose("command", arguments[0], COMMANDS), arguments[1:]
        if name in USAGE and asks_for_usage(rest):
            print(f"usage: python -m bench {name} {USAGE[name]}")
            if name in ("run", "submit"):
                _print_recipe_names()
            elif name == "export":
                _print_summaries(FORMATS)
            return 0 if rest else 2
        return COMMANDS[name][0](rest)
    except (ValueError, FileNotFoundError, PermissionError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    except InterruptedRunError as error:
        again = " with --resume" if arguments[0] == "run" and "--resume" not in arguments else ""
        print(
            f"bench: interrupted ({error}); the same command{again} continues it", file=sys.stderr
        )
        return EXIT_STATUS
    except KeyboardInterrupt:
        print("bench: interrupted", file=sys.stderr)
        return 130
    except (RuntimeError, FloatingPointError, OSError) as error:
        if isinstance(error, BrokenPipeError) and _output_is_closed():
            return 141  # what a shell reports for other programs
        print(f"bench: {error}", file=sys.stderr)
        return 1


def _output_is_closed() -> bool:
    """Whether the reader of standard output, such as `head`, has ended."""
    poll = select.poll()
    poll.register(sys.stdout, 0)
    if not any(event & select.POLLERR for _, event in poll.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at the exit
    return True


def asks_for_usage(arguments: list[str]) -> bool:
    """Whether a command that needs a name got none."""
    return not arguments or arguments[0] in ("-h", "--help")


def _print_summaries(names: Mapping[str, tuple[Any, str]]) -> None:
    for name, (_, summary) in names.items():
        print(f"  {name:<11} {summary}")


USAGE = {
    "run": """RECIPE [OPTIONS]

`run RECIPE --help` shows the options, and the recipe's own fields, each of
which can be overridden: --phase1.peak-lr 1.5. RECIPE is `auto` (cifar10_quick
with --quick, else cifar10_dawnbench on CUDA devices, else cifar10_speed_half)
or one of these, of which `python -m bench recipes` says more:
""",
    "submit": """RECIPE [OPTIONS]

Runs RECIPE as jobs of SLURM, by submitit: phase 1, an array of phase 2's
workers, and phase 3 after them. `submit RECIPE --help` shows the options;
RECIPE is one of these, of which `python -m bench recipes` says more:
""",
    "search": """RECIPE --grid NAME=VALUE,VALUE [OPTIONS]

`search RECIPE --help` shows the options, and the recipe's own fields, each of
which can be overridden for all runs. RECIPE is any of CIFAR's that `recipes`
lists.""",
    "export": """FORMAT [RUN ...] [-o FILE]

RUN is a record's path, a run id, or a recipe for all of its runs; without any,
all of --results. `export FORMAT --help` shows the options; FORMAT is one of
""",
}
"""Of the commands that need a name first."""


# Commands with a recipe. Its fields are options too.


@dataclass(frozen=True, kw_only=True)
class RecipesOptions:
    """List the recipes, with the paper's table and what each needs."""

    json: bool = False
    """Print a JSON array, with an object a recipe."""


def recipes(arguments: list[str]) -> int:
    """List the recipes."""
    options = parse_options(RecipesOptions, arguments, "python -m bench recipes")
    made = [make() for make in RECIPES.values()]
    if options.json:
        print(json.dumps([_described(recipe) for recipe in made], indent=1))
        return 0
    width = max(map(len, RECIPES))
    for recipe in made:
        many = recipe.phase1.gpus_per_model
        needs = f"{many} {recipe.devices if many > 1 else recipe.devices.rstrip('s')}"
        print(flow(f"{recipe.name:<{width}}  {needs:<7}  {recipe.table}", " " * (width + 11)))
        print(flow(f"    {recipe.summary}", "    "))
    return 0


def _described(recipe: Recipe) -> dict[str, Any]:
    return {
        "name": recipe.name,
        "method": method_of(recipe),
        "table": recipe.table,
        "summary": recipe.summary,
        "dataset": recipe.dataset,
        "devices": recipe.phase1.gpus_per_model,
        "device": recipe.devices.rstrip("s"),
    }


def _print_recipe_names() -> None:
    names, width = list(RECIPES), max(map(len, RECIPES))
    half = (len(names) + 1) // 2
    for left, right in zip_longest(names[:half], names[half:], fillvalue=""):
        print(f"  {left:<{width}}  {right}".rstrip())


def run(arguments: list[str]) -> int:
    """Run a recipe as often as asked."""
    given, words = choose("recipe", arguments[0], [*RECIPES, "auto"]), arguments[1:]
    name = given
    if given == "auto":
        name = "cifar10_speed_half"
        if "-h" not in words and "--help" not in words:
            from bench.runner.session import automatic_recipe

            name = automatic_recipe(quick="--quick" in words)
        words = [word for word in words if word != "--quick"]
    recipe = RECIPES[name]()
    form = parse("run", given, recipe, words)
    from bench.runner.session import run_session

    return run_session(form.options, form.recipe, recipe)


def submit(arguments: list[str]) -> int:
    """Submit a recipe's jobs to a cluster."""
    name = choose("recipe", arguments[0], RECIPES)
    recipe = RECIPES[name]()
    form = parse("submit", name, recipe, arguments[1:])
    from bench.runner.slurm import submit as submit_jobs

    return submit_jobs(form.options, form.jobs, form.recipe, recipe)


def search(arguments: list[str]) -> int:
    """Search a recipe's settings on held-out training images."""
    name = choose("recipe", arguments[0], RECIPES)
    recipe = RECIPES[name]()
    form = parse("search", name, recipe, arguments[1:])
    grid = parse_grid(form.recipe, form.options.grid)
    from bench.search.command import run_search

    return run_search(form.options, grid, form.recipe, recipe)


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


METHODS = {SWAPRecipe: "a SWAP recipe", SWARecipe: "an SWA recipe", SGDRecipe: "an SGD recipe"}


def parse(
    command: Literal["run", "submit", "search"], name: str, recipe: Recipe, arguments: list[str]
) -> Any:
    """Parse what follows the recipe's name; options that are not given stay as the recipe has them.

    Arguments:
        name: of the recipe, as it was given.
    """
    kind = type(recipe)
    options = SearchOptions() if command == "search" else RunOptions()
    default: Form[Any, Any] = Form(options=options, recipe=recipe)
    description = f"Run {METHODS[kind]} and write its record."
    if command == "submit":
        default = JobForm(options=options, recipe=recipe, jobs=JobOptions())
        description = f"Submit {METHODS[kind]} as one job."
        if kind is SWAPRecipe:
            description = (
                "Submit a SWAP recipe: phase 1, an array of workers, and the average after them."
            )
    elif command == "search":
        description = f"Search settings of {METHODS[kind]}."
    form: Any = type(default)
    parsed = parse_options(
        form[type(options), kind],
        arguments,
        f"python -m bench {command} {name}",
        default=default,
        description=description,
    )
    # The parser sets fields that no constructor takes, such as the sums of a phase's stages, to
    # the default's values, after the constructor has computed them: compute them again.
    phases = enumerate(parsed.recipe.phases, start=1)
    summed = {f"phase{number}": replace(phase) for number, phase in phases}
    return replace(parsed, recipe=replace(parsed.recipe, **summed))


# Commands without a recipe.


def report(arguments: list[str]) -> int:
    """Draw the report."""
    options = parse_options(ReportOptions, arguments, "python -m bench report")
    from bench.report.content import collect
    from bench.report.write import print_summary, update_performance, update_readme, write_report

    content = collect(options.results)
    path = write_report(content, appendix=options.appendix)
    print_summary(content)
    if options.readme is not None:
        update_readme(options.readme, content)
    if options.performance is not None:
        update_performance(options.performance, content)
    print(f"report: {path}")
    return 0


def export(arguments: list[str]) -> int:
    """Write runs in a format of others."""
    name = choose("format", arguments[0], FORMATS)
    form, _ = FORMATS[name]
    options = parse_options(form, arguments[1:], f"python -m bench export {name}")
    from bench.export.command import run_export

    return run_export(options)


def verify_gpu(arguments: list[str]) -> int:
    """Confirm on a GPU what only a GPU can."""
    options = parse_options(VerifyOptions, arguments, "python -m bench verify-gpu")
    from bench.verify.command import verify

    return verify(
        options.device,
        options.out,
        data=options.data,
        small=options.small,
        everything=options.everything,
        only=options.only,
    )


def plain_command(name: str, options: str, function: str) -> Command:
    """A command that calls a function with its options alone.

    Arguments:
        options: the module and the name of their class, "bench.options:PlanOptions".
        function: of the function, which returns the exit status.
    """

    def load(place: str) -> Any:
        module, _, attribute = place.partition(":")
        return getattr(import_module(module), attribute)

    def command(arguments: list[str]) -> int:
        parsed = parse_options(load(options), arguments, f"python -m bench {name}")
        return int(load(function)(parsed))

    return command


table = plain_command("table", "bench.options:TableOptions", "bench.report.run_table:run_table")
figure = plain_command(
    "figure", "bench.options:FigureOptions", "bench.landscape.figure:make_figure"
)
micro = plain_command("micro", "bench.options:MicroOptions", "bench.micro.command:measure")
plan = plain_command("plan", "bench.options:PlanOptions", "bench.planner.command:run_plan")
prepare = plain_command("prepare", "bench.options:PrepareOptions", "bench.data_tools:prepare")
watch = plain_command("watch", "bench.runner.watch:WatchOptions", "bench.runner.watch:watch")
compare = plain_command(
    "compare", "bench.report.compare:CompareOptions", "bench.report.compare:compare_runs"
)
small_tree = plain_command(
    "small-tree", "bench.options:SmallTreeOptions", "bench.data_tools:make_small_tree"
)

COMMANDS: dict[str, tuple[Command, str]] = {
    "recipes": (recipes, "list the recipes, with the paper's table and what each needs"),
    "run": (run, "run a recipe and write its record: run RECIPE --help"),
    "watch": (watch, "follow a run in the terminal, from another process"),
    "submit": (submit, "run a recipe as jobs of SLURM, which go on when pre-empted"),
    "table": (table, "run what a table of the paper lacks, and draw it: 1 to 6, or all"),
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
