"""A run's folder: its checkpoints by name, which are kept, and where an interrupted run goes on."""

import hashlib
import math
import re
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from swap_fast.checkpoint.files import (
    MANIFEST,
    MODEL,
    STATE,
    Checkpoint,
    load_state_,
    load_theta,
    model_state,
    read_about,
    read_checkpoint,
    save_weights,
    write_checkpoint,
)
from swap_fast.record import EpochRow
from swap_fast.training.clock import Clock
from swap_fast.training.evaluate import Accuracies
from swap_fast.training.state import Progress, TrainingState
from swap_fast.training.weights import Weights

KEPT = 2
"""States of one model that are kept while it trains: should the last be damaged, there is one."""

Laps = dict[str, float]


class RunFolder:
    """Files `phase1`, `phase1-epoch{e}`, `worker{w}-epoch{e}` and `final` of one run.

    A checkpoint holds the laps of its own phase and worker alone, so that a run which goes on, on
    whatever ranks, counts one set-up, its own, and all training that was kept.

    Arguments:
        path: the folder; made on the first save.
        clock: of this rank.
        start: another run's folder, whose phase 1 this one takes over.
        keep_epochs: keep the weights of every epoch of phase 1 too.
        on_restore: told of each position that is gone on from.
        on_save: told of each position that is saved.
        say: told of damaged files.
    """

    def __init__(
        self,
        path: Path,
        clock: Clock,
        *,
        start: Path | None = None,
        keep_epochs: bool = False,
        on_restore: Callable[[Progress], None] = lambda position: None,
        on_save: Callable[[Progress], None] = lambda position: None,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.path, self._clock, self._offered = path, clock, start
        self._keep_epochs, self._on_restore, self._say = keep_epochs, on_restore, say
        self._on_save = on_save
        self._rows: dict[tuple[int, int], list[EpochRow]] = {}
        self._begun: dict[tuple[int, int], Laps] = {}
        self._weights: Weights | None = None
        self._origin: str | None = None
        # The run whose phase 1 was taken over.
        self.taken_from: str | None = None
        # Seconds of this rank's clock that were not measured in this process.
        self.restored_s = 0.0

    @property
    def rows(self) -> list[EpochRow]:
        """Of every epoch that this rank knows of, in their order."""
        return [row for _, rows in sorted(self._rows.items()) for row in rows]

    @property
    def origin(self) -> str | None:
        """Names the model that phase 1 ended with, by its content; None before that."""
        return self._origin

    def restore_(self, position: Progress, state: TrainingState) -> Progress:
        """Put back the newest whole state of this phase and worker.

        Raises:
            ValueError: the state is of another model, or of a worker that began from another one.
        """
        key = (position.phase, position.worker)
        self._begun[key], self._rows[key] = dict(self._clock.laps), []
        self._weights = state.weights
        found: Checkpoint | None = state.comm.on_first(lambda: self._newest(*key))
        if found is None:
            return position
        about = found.about
        restored = _position(about)
        if restored.phase == 2 and about["origin"] != self._origin:
            raise ValueError(
                f"worker {restored.worker}: expected one that began from this run's phase 1, got "
                f"one of another; remove its files from {self.path.name}"
            )
        if restored.step:
            sums = about["sums_by_rank"][state.comm.rank % len(about["sums_by_rank"])]
            restored = replace(restored, sums=tuple(sums))
        load_state_(state.weights, found.model, _stem(restored))
        state.scatter_(found.state, about, goes_on=restored.stopped_by is None)
        laps = about["laps_by_rank"]
        for lap, seconds in laps[state.comm.rank % len(laps)].items():
            self._clock.add(lap, seconds)
            self.restored_s += seconds
        self._rows[key] = [EpochRow(**row) for row in about["rows"]]
        self._note_origin(restored, state)
        self.taken_from = about.get("taken_from", self.taken_from)
        if about.get("is_offered") and state.is_first:
            # So that the folder is whole by itself.
            kept = {name: value for name, value in about.items() if name != "is_offered"}
            write_checkpoint(self.path / _stem(restored), replace(found, about=kept))
        state.comm.barrier()
        self._on_restore(restored)
        return restored

    def save(self, position: Progress, state: TrainingState, row: EpochRow | None) -> None:
        """Keep the state at an epoch's end or within one; every rank that shares it must call.

        Raises:
            OSError: the disk is full, or the folder cannot be written to.
        """
        key = (position.phase, position.worker)
        if row is not None:
            self._rows[key].append(row)
        self._note_origin(position, state)
        tensors, values = state.gather()
        laps_by_rank = state.comm.gather(self._laps_since_begun(key))
        sums_by_rank = state.comm.gather(position.sums)
        if state.is_first:
            about = values | {
                "position": {
                    "phase": position.phase,
                    "worker": position.worker,
                    "epoch": position.epoch,
                    "step": position.step,
                    "stopped_by": position.stopped_by,
                },
                "accuracies": list(position.accuracies),
                "origin": self._origin,
                "laps_by_rank": laps_by_rank,
                "sums_by_rank": sums_by_rank,
                "rows": [asdict(each) for each in self._rows[key]],
            }
            checkpoint = Checkpoint(model=model_state(state.weights), state=tensors, about=about)
            write_checkpoint(self.path / _stem(position), checkpoint)
            if position.phase == 1 and position.stopped_by and self._keep_epochs:
                save_weights(state.weights, self.path / f"phase1-epoch{position.epoch}{MODEL}")
            self._prune(position)
            self._on_save(position)
        state.comm.barrier()

    def theta(self, worker: int, epoch: int) -> Tensor:
        """The weights [P] of a worker after an epoch; the model then holds them too."""
        assert self._weights is not None, "what was saved had a model"
        return load_theta(self._weights, self.path / f"worker{worker}-epoch{epoch}{MODEL}")

    def save_final(self, weights: Weights) -> None:
        """Save the run's result."""
        save_weights(weights, self.path / f"final{MODEL}")

    def _newest(self, phase: int, worker: int) -> Checkpoint | None:
        stems = [self.path / name for name in reversed(_saved(self.path, phase, worker))]
        if phase == 1 and self._offered is not None:
            stems.append(self._offered / "phase1")
        for stem in stems:
            try:
                found = read_checkpoint(stem)
                if stem.parent == self._offered:
                    found.about["is_offered"] = True
                    found.about.setdefault("taken_from", self._offered.name)
                return found
            except ValueError as error:
                self._say(f"a damaged checkpoint is left out: {error}")
        return None

    def _note_origin(self, position: Progress, state: TrainingState) -> None:
        """Name phase 1's result, once it is there, by the bytes of theta."""
        if position.phase == 1 and position.stopped_by is not None:
            theta = state.weights.theta.detach().cpu().numpy()
            self._origin = hashlib.sha256(theta.tobytes()).hexdigest()

    def _laps_since_begun(self, key: tuple[int, int]) -> Laps:
        begun = self._begun[key]
        return {
            lap: seconds - begun.get(lap, 0.0)
            for lap, seconds in self._clock.laps.items()
            if seconds > begun.get(lap, 0.0)
        }

    def _prune(self, position: Progress) -> None:
        """Delete what a newer state has made useless."""
        names = _saved(self.path, position.phase, position.worker)
        for name in names[:-1] if position.stopped_by else names[:-KEPT]:
            stem = self.path / name
            # A worker's weights after each epoch are averaged after the run, for Figure 1.
            keeps_model = (position.phase == 2 or self._keep_epochs) and "-step" not in name
            for ending in (MANIFEST, STATE, *([] if keeps_model else [MODEL])):
                _file(stem, ending).unlink(missing_ok=True)


def _stem(position: Progress) -> str:
    """A checkpoint's name."""
    within = f"-step{position.step}" if position.step else ""
    if position.phase == 2:
        return f"worker{position.worker}-epoch{position.epoch}{within}"
    return "phase1" if position.stopped_by else f"phase1-epoch{position.epoch}{within}"


def _saved(folder: Path, phase: int, worker: int) -> list[str]:
    """The names of a model's checkpoints that have a manifest, oldest first."""
    number = r"epoch(\d+)(?:-step(\d+))?"
    named = f"phase1(?:-{number})?" if phase == 1 else f"worker{worker}-{number}"
    found = []
    for path in folder.glob(f"*{MANIFEST}"):
        if match := re.fullmatch(named, path.stem):
            epoch = math.inf if match[1] is None else int(match[1])
            found.append((epoch, int(match[2] or 0), path.stem))
    return [name for _, _, name in sorted(found)]


def _file(stem: Path, ending: str) -> Path:
    return stem.with_name(stem.name + ending)


def tidy(folder: Path, *, keep_epochs: bool) -> None:
    """Of a run that is done keep the ends of phase 1 and of each worker, and the result.

    Arguments:
        keep_epochs: keep the weights of every epoch too.
    """
    named = re.compile(r"(worker\d+|phase1)-epoch(\d+)")
    last: dict[str, int] = {}
    found = [(path, match) for path in folder.glob("*") if (match := named.match(path.name))]
    for path, match in found:
        if path.name == match[0] + MODEL:
            last[match[1]] = max(last.get(match[1], 0), int(match[2]))
    for path, match in found:
        is_last = match[1] != "phase1" and int(match[2]) == last.get(match[1])
        if path.name != match[0] + MODEL or not (is_last or keep_epochs):
            path.unlink(missing_ok=True)
    for path in [*folder.glob("attempt*"), *folder.glob("*.part")]:
        path.unlink(missing_ok=True)


def last_of(folder: Path, *, phase: int, worker: int = 0) -> Progress | None:
    """Where the last state of a model was saved, by its manifest; None where there is none."""
    for name in reversed(_saved(folder, phase, worker)):
        try:
            return _position(read_about(folder / name))
        except (ValueError, TypeError, KeyError):
            continue
    return None


def _position(about: dict[str, Any]) -> Progress:
    return Progress(**{**about["position"], "accuracies": Accuracies(*about["accuracies"])})
