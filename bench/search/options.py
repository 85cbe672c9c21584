"""How a recipe is searched: the options that are no part of the recipe."""

from dataclasses import dataclass
from typing import Annotated

from tyro.conf import Suppress, UseAppendAction

from bench.options import RunOptions


@dataclass(frozen=True, kw_only=True)
class SearchOptions(RunOptions):
    """Which settings are tried, and how each is run."""

    grid: UseAppendAction[tuple[str, ...]] = ()
    """NAME=VALUE,VALUE,...: a setting of the recipe and the values to try. Given several times,
    every combination is tried. A short name, such as peak_lr, is phase 1's where both have it."""
    held_out: int = 5000
    """So many of the training images are not trained on, and choose; no test image does."""
    seeds: int = 1
    """Runs of each combination, with seeds SEED, SEED + 1, ...; their mean accuracy counts."""
    storage: str | None = None
    """Database of the study, such as postgresql://USER:PASSWORD@HOST/NAME for many machines; by
    default an SQLite file, OUT/search/NAME.db, for the processes of one machine."""
    name: str | None = None
    """Of the study and its folder, OUT/search/NAME; by default made of the recipe and settings."""
    trials: int | None = None
    """Combinations that this call measures at most; by default all that are left."""
    dry_run: bool = False
    """Print what would be run, and run nothing."""
    runs: Annotated[int, Suppress] = 1
    """Always 1: `seeds` says how many."""
    json: Annotated[bool, Suppress] = False
    """A search says what it found as a table."""
    resume: Annotated[bool, Suppress] = False
    """A search goes on by itself."""
    share_phase1: Annotated[bool, Suppress] = False
    """A search shares by itself."""
    keep_epochs: Annotated[bool, Suppress] = False
    """A search keeps what it needs."""

    def __post_init__(self) -> None:
        """Refuse counts below one, and names that are no file's."""
        super().__post_init__()
        for name in ("held_out", "seeds", "trials"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}: expected 1 or more, got {value}")
        if self.name is not None and (not self.name or set(self.name) & set("/\\\0")):
            raise ValueError(f"name: expected a file's name, got {self.name!r}")
