"""What the line of a command that names a recipe consists of: its options, and the recipe's fields.

A class for each command and method, since the fields that can be overridden differ; their first
lines are what `--help` shows.
"""

from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import tyro

from bench.options import JobOptions, RunOptions
from bench.search_options import SearchOptions
from swap_fast.recipe import AveragingRecipe, Recipe, SGDRecipe, SWAPRecipe, SWARecipe

Flat = tyro.conf.arg(name="")


@dataclass(frozen=True, kw_only=True)
class RunSWAP:
    """Run a SWAP recipe and write its record."""

    options: Annotated[RunOptions, Flat]
    recipe: Annotated[SWAPRecipe, Flat]


@dataclass(frozen=True, kw_only=True)
class RunSWA:
    """Run an SWA recipe and write its record."""

    options: Annotated[RunOptions, Flat]
    recipe: Annotated[SWARecipe, Flat]


@dataclass(frozen=True, kw_only=True)
class RunSGD:
    """Run an SGD recipe and write its record."""

    options: Annotated[RunOptions, Flat]
    recipe: Annotated[SGDRecipe, Flat]


@dataclass(frozen=True, kw_only=True)
class SubmitSWAP(RunSWAP):
    """Submit a SWAP recipe: phase 1, an array of workers, and the average after them."""

    jobs: Annotated[JobOptions, Flat]


@dataclass(frozen=True, kw_only=True)
class SubmitSWA(RunSWA):
    """Submit an SWA recipe as one job."""

    jobs: Annotated[JobOptions, Flat]


@dataclass(frozen=True, kw_only=True)
class SubmitSGD(RunSGD):
    """Submit an SGD recipe as one job."""

    jobs: Annotated[JobOptions, Flat]


@dataclass(frozen=True, kw_only=True)
class SearchSWAP:
    """Search settings of a SWAP recipe."""

    options: Annotated[SearchOptions, Flat]
    recipe: Annotated[SWAPRecipe, Flat]


@dataclass(frozen=True, kw_only=True)
class SearchSWA:
    """Search settings of an SWA recipe."""

    options: Annotated[SearchOptions, Flat]
    recipe: Annotated[SWARecipe, Flat]


@dataclass(frozen=True, kw_only=True)
class SearchSGD:
    """Search settings of an SGD recipe."""

    options: Annotated[SearchOptions, Flat]
    recipe: Annotated[SGDRecipe, Flat]


FORMS: dict[str, dict[type[Recipe], Any]] = {
    "run": {SWAPRecipe: RunSWAP, SWARecipe: RunSWA, SGDRecipe: RunSGD},
    "submit": {SWAPRecipe: SubmitSWAP, SWARecipe: SubmitSWA, SGDRecipe: SubmitSGD},
    "search": {SWAPRecipe: SearchSWAP, SWARecipe: SearchSWA, SGDRecipe: SearchSGD},
}


def parse(
    command: Literal["run", "submit", "search"], name: str, recipe: Recipe, arguments: list[str]
) -> Any:
    """A command's line after the recipe's name; what it does not say stays as the recipe has it.

    Arguments:
        name: of the recipe, as it was given.
    """
    form = FORMS[command][type(recipe)]
    options = SearchOptions() if command == "search" else RunOptions()
    jobs = {"jobs": JobOptions()} if command == "submit" else {}
    parsed = tyro.cli(
        form,
        args=arguments,
        default=form(options=options, recipe=recipe, **jobs),
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
