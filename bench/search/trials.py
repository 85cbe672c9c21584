"""The runs of one point of a search, one for each seed; points may share a phase 1."""

import hashlib
import json
import shutil
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from bench.runner.launch import launch
from bench.runner.rank import run_rank
from bench.runner.run_folders import RunSpec, finish_run
from bench.runner.session import differences
from bench.search.grid import TAU, Grid, Point, Scores, recipe_at
from swap_fast.checkpoint.files import MODEL, read_checkpoint, read_tensors, write_checkpoint
from swap_fast.config.recipe import AveragingRecipe, Recipe, SGDRecipe
from swap_fast.files import remove_parts
from swap_fast.record import RunRecord, plain
from swap_fast.record_files import read_record, read_records
from swap_fast.training.evaluate import Accuracies

LABELS = ("name", "summary", "table")
"""Fields of a recipe that do not change its training."""


def shares_phase1(recipe: Recipe, grid: Grid) -> bool:
    """Whether points of the grid have a phase 1 in common.

    Raises:
        ValueError: tau is searched with keep_momentum, which needs a phase 1 for each run.
    """
    keeps_momentum = isinstance(recipe, AveragingRecipe) and (
        recipe.keep_momentum or True in grid.values.get("keep_momentum", ())
    )
    if TAU in grid.values and keeps_momentum:
        raise ValueError(
            f"--grid {TAU}: expected keep_momentum off, got it on; the epochs of one phase 1, at "
            "which each value begins, are kept without momentum"
        )
    ones = [phase_one(recipe_at(recipe, point), None) for point in grid.points]
    return not keeps_momentum and any(ones.count(one) > 1 for one in ones)


def phase_one(recipe: Recipe, tau: float | None) -> SGDRecipe:
    """Phase 1 alone, up to tau, as a recipe of SGD."""
    values = {field.name: getattr(recipe, field.name) for field in fields(SGDRecipe)}
    phase1 = replace(recipe.phase1, stopping_accuracy=tau)
    return SGDRecipe(**values | {"phase1": phase1})


@dataclass(frozen=True, kw_only=True)
class SearchRuns:
    """Makes the runs of a search in its folder, `spec.out`, and finds those that are there."""

    spec: RunSpec
    """Of all runs, except recipe, seed and start."""
    original: Recipe
    """The recipe without changes, to list the overrides."""
    data: str
    """The SHA-256 of the data, which all runs must have."""
    num_ranks: int
    seeds: tuple[int, ...]
    taus: tuple[Any, ...]
    """All values of tau in the grid."""
    shared: bool
    """Whether points share a phase 1."""

    def measure(self, point: Point) -> Scores:
        """Run a point with each seed; an interrupted run resumes.

        Raises:
            FloatingPointError: training diverged.
            RuntimeError: a run failed.
        """
        records = [self._run(point, seed) for seed in self.seeds]
        return Scores(
            accuracies=tuple(record.test_accuracy for record in records),
            times_s=tuple(record.times.after_averaging_s for record in records),
            phase1_epochs=tuple(record.phase1_epochs for record in records),
            run_ids=tuple(record.run_id for record in records),
        )

    def _run(self, point: Point, seed: int) -> RunRecord:
        """One run; a finished or interrupted one of an earlier trial is taken."""
        recipe = recipe_at(self.spec.recipe, point)
        record = self._find(recipe, seed)
        if record is None:
            start = self._start(recipe, seed) if self.shared else None
            # Each run of a search has its own name, even if two start in the same second, and keeps
            # it from trial to trial, so that it is found again.
            name = f"{recipe.name}-point-{_key(recipe)}"
            record = self._launch(replace(recipe, name=name), seed, start=start)
        shutil.rmtree(self._weights_of(record), ignore_errors=True)  # an earlier trial may have
        return record

    def _start(self, recipe: Recipe, seed: int) -> Path | None:
        """A folder with the end of the run's phase 1; None if the longest one diverges."""
        tau, taus = recipe.phase1.stopping_accuracy, [*self.taus, recipe.phase1.stopping_accuracy]
        one = phase_one(recipe, None if None in taus else max(taus))
        key = _key(one)
        folder = self.spec.out / "phase1"
        folder.mkdir(exist_ok=True)
        diverged = folder / f"{key}-seed{seed}.diverged"
        with FileLock(diverged.with_suffix(".lock")):
            if diverged.exists():
                return None
            record = self._find(one, seed)
            if record is None or not self._weights_of(record).is_dir():
                name = f"{one.name}-phase1-{key}"
                try:
                    record = self._launch(replace(one, name=name), seed, keep_epochs=True)
                except FloatingPointError:
                    # This tau may have been reached before that, so the run trains its own.
                    diverged.touch()
                    return None
            finish_run(self._weights_of(record), keep_epochs=True)
            start = folder / str(tau) / record.run_id
            remove_parts(start)
            write_start(self._weights_of(record), tau, start)
        return start

    def _launch(
        self, recipe: Recipe, seed: int, *, start: Path | None = None, keep_epochs: bool = False
    ) -> RunRecord:
        spec = replace(
            self.spec,
            recipe=recipe,
            overrides=tuple(differences(_labelless(self.original), _labelless(recipe))),
            seed=seed,
            start=start,
            keep_epochs=keep_epochs,
            resume="if_same",
        )
        path = launch(run_rank, spec, num_ranks=self.num_ranks)
        assert path is not None, "rank 0 writes the record"
        return read_record(path)

    def _find(self, recipe: Recipe, seed: int) -> RunRecord | None:
        """The record of a run of this recipe on these data."""
        records, _ = read_records(self.spec.out / "runs")
        wanted = (_labelless(recipe), seed, self.data)
        for record in records:
            found = _without_labels(record.configuration["recipe"])
            if (found, record.seed, record.data["sha256"]) == wanted:
                return record
        return None

    def _weights_of(self, record: RunRecord) -> Path:
        return self.spec.out / "checkpoints" / record.run_id


def _labelless(recipe: Recipe) -> dict[str, Any]:
    """A recipe as its record has it, without the labels."""
    return _without_labels(plain(asdict(recipe)))


def _without_labels(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in LABELS}


def _key(recipe: Recipe) -> str:
    text = json.dumps(_labelless(recipe), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


# A phase 1 with a lower tau, made from the epochs of a longer one. Orders and augmentation of an
# epoch do not depend on later epochs, and tau is compared with the epoch's own train accuracy, so
# the shorter phase 1 is the beginning of the longer one.


def write_start(run: Path, tau: float | None, start: Path) -> None:
    """Write `start/phase1`: the phase 1 of `run`, cut at its first epoch above tau.

    A run that starts from it trains like one with its own phase 1 and that tau, with the same
    epochs and time. It has no velocity; in fp16 its loss scale is that of the longer phase.

    Arguments:
        run: the folder of a run that kept every epoch of its phase 1.
        tau: at most the longer phase's own; None: to its last epoch.

    Raises:
        ValueError: a damaged checkpoint, or an epoch's weights are missing.
        OSError: the folder cannot be written to.
    """
    whole = read_checkpoint(run / "phase1")
    rows = whole.about.rows
    above = [row.epoch for row in rows if tau is not None and row.train_accuracy > tau]
    epochs, stopped_by = (above[0], "stopping_accuracy") if above else (len(rows), "max_epochs")
    last = rows[epochs - 1]
    assert last.test_accuracy is not None, "each epoch of phase 1 is tested"
    about = replace(
        whole.about,
        progress=replace(
            whole.about.progress,
            epoch=epochs,
            stopped_by=stopped_by,
            accuracies=Accuracies(last.test_accuracy),
        ),
        origin=None,
        rows=rows[:epochs],
        laps_by_rank=[
            _laps_until(laps, epochs / len(rows), not_trained_s=rows[-1].time_s - last.time_s)
            for laps in whole.about.laps_by_rank
        ],
    )
    state = {
        name: torch.zeros_like(tensor)
        for name, tensor in whole.state.items()
        if name.startswith("optimizer.")
    }
    path = run / f"phase1-epoch{epochs}{MODEL}"
    model = read_tensors(path, whole.about.weights_sha256.get(path.name.removesuffix(MODEL)))
    write_checkpoint(start / "phase1", replace(whole, model=model, state=state, about=about))


def _laps_until(laps: dict[str, float], share: float, *, not_trained_s: float) -> dict[str, float]:
    """Laps up to an epoch: training's by the rows, of the others an equal share for each epoch."""
    return {
        lap: seconds - not_trained_s if lap == "phase1" else seconds * share
        for lap, seconds in laps.items()
    }
