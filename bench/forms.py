"""What the line of a command that names a recipe holds: its options, and the recipe's fields."""

from dataclasses import dataclass, replace
from typing import Annotated, Any, Generic, Literal, TypeVar

import tyro

from bench.options import JobOptions, RunOptions
from bench.search.options import SearchOptions
from swap_fast.config.recipe import AveragingRecipe, Recipe, SGDRecipe, SWAPRecipe, SWARecipe

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
