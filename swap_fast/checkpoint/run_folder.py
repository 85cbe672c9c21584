"""A run's folder: what the run is, which checkpoints it keeps, and from which it resumes."""

import hashlib
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from swap_fast.checkpoint.attempts import Attempt, is_running, locked
from swap_fast.checkpoint.files import (
    MANIFEST,
    MODEL,
    STATE,
    Checkpoint,
    CheckpointInfo,
    DamagedError,
    Laps,
    Proof,
    file_of,
    load_state_,
    load_theta,
    on_host,
    read_checkpoint,
    read_json,
    read_manifest,
    save_weights,
    write_checkpoint,
    write_json,
)
from swap_fast.clock import TRAINING, Clock, total
from swap_fast.config.step_choice import StepChoice
from swap_fast.files import remove_parts
from swap_fast.record import EpochRow, flatten
from swap_fast.training.state import Progress, TrainingState
from swap_fast.training.weights import Weights

RUN_FILE = "run.json"
ENTRY = "entry.lock"
"""Held while a process enters the folder."""
KEPT = 2
"""States of one model that are kept while it trains: should the last be damaged, there is one."""


# What the run of a folder is: `swap_fast.swap` and the recipes' runs keep the same file.


@dataclass(frozen=True, kw_only=True)
class RunInfo:
    """run.json."""

    created: str
    """When the run was started: UTC, ISO 8601."""
    settings: dict[str, Any]
    """All that must be the same for it to be resumed."""
    machine: dict[str, Any]
    """Where it ran last; another one may resume it."""
    step_choice: StepChoice | None = None
    """The step that its warm-up chose: a resumed run keeps to it."""


def read_run_info(folder: Path) -> RunInfo | None:
    """What the folder's run is; None where there is none.

    Raises:
        ValueError: a damaged file, one of another schema version, or one that cannot be read now.
    """
    if not (folder / RUN_FILE).exists():
        return None
    try:
        return read_json(folder / RUN_FILE, RunInfo)
    except DamagedError as error:
        raise ValueError(
            f"{folder}: {error}; delete this folder, or start a new run in another one"
        ) from None


def enter_folder(folder: Path, info: RunInfo, *, resume: bool = True, part: str = "run") -> Attempt:
    """Lock a run's folder, and start the run there or see that the one there is the same.

    Arguments:
        resume: a run may be there already.
        part: of the run that this process does; parts may run side by side.

    Raises:
        ValueError: another process is at it, run.json is damaged, or the run there may not be
            resumed or has other settings.
        OSError: the folder cannot be written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / ENTRY):  # of two that start there at once, one sees the other's run
        found = read_run_info(folder)
        if found is not None:
            if not resume:
                raise ValueError(
                    f"folder: expected one without a run, got {folder} with {RUN_FILE}; pass "
                    "resume=True to resume it, or choose another folder"
                )
            require_same(folder, found, info)
            info = replace(info, created=found.created)
        attempt = Attempt(folder, part)
        if not is_running(folder, without=part):
            remove_litter(folder)
        if info != found:
            write_json(folder / RUN_FILE, info)
        return attempt


def keep_step(folder: Path, choice: StepChoice) -> None:
    """Note in run.json which step the warm-up chose."""
    info = read_run_info(folder)
    assert info is not None, "the run has entered its folder"
    write_json(folder / RUN_FILE, replace(info, step_choice=choice))


def require_same(folder: Path, found: RunInfo, info: RunInfo) -> None:
    """Refuse to resume a run that was started with other settings.

    Raises:
        ValueError: names up to five settings that differ.
    """
    if changed := differences(found, info):
        more = f"; and {len(changed) - 5} more" if len(changed) > 5 else ""
        raise ValueError(
            f"resume: expected the settings with which {folder.name} was started, got "
            f"{'; '.join(changed[:5])}{more}; give it the same again, or start a new run in "
            "another folder"
        )


def differences(found: RunInfo, info: RunInfo) -> list[str]:
    """Each setting that differs: "recipe.phase1.peak_lr 1.0 in place of 1.2"."""
    before, now = flatten(found.settings), flatten(info.settings)
    return [
        f"{name} {now.get(name)!r} in place of {before.get(name)!r}"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    ]


# Its checkpoints.


class RunFolder:
    """Files `phase1`, `phase1-epoch{e}`, `worker{w}-epoch{e}` and `final` of one run.

    A checkpoint holds the laps of its own phase and worker alone, so that a resumed run, on
    whatever ranks, counts one set-up, its own, and all training that was kept.

    Arguments:
        path: the folder; made on the first save.
        clock: of this rank.
        start: another run's folder, whose phase 1 this one takes over.
        keep_epochs: keep the weights of every epoch of phase 1 too.
        keep_every: of phase 2 keep the weights of the epochs that this divides; of all, as
            Figure 1 needs them, by default.
        attempt: on the first rank, notes how much training is saved.
        on_save: is given the progress at each save.
        say: is given a line about each damaged file.
    """

    def __init__(
        self,
        path: Path,
        clock: Clock,
        *,
        start: Path | None = None,
        keep_epochs: bool = False,
        keep_every: int = 1,
        attempt: Attempt | None = None,
        on_save: Callable[[Progress], None] = lambda progress: None,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.path, self._clock, self._start = path, clock, start
        self._keep_epochs, self._keep_every, self._attempt = keep_epochs, keep_every, attempt
        self._on_save, self._say = on_save, say
        self._rows: dict[tuple[int, int], list[EpochRow]] = {}
        self._laps_before: dict[tuple[int, int], Laps] = {}
        self._sha256: dict[tuple[int, int], dict[str, str]] = {}
        self._damaged: set[str] = set()  # checkpoints that were left out, by name
        self._weights: Weights | None = None
        self.origin: str | None = None
        """The sha256 of the theta with which phase 1 ended; None before its end."""
        self.taken_from: str | None = None
        """The run whose phase 1 was taken over."""
        self.restored_s = 0.0
        """Seconds of this rank's clock that were measured in earlier processes."""

    @property
    def rows(self) -> list[EpochRow]:
        """Of every epoch that this rank knows of, in their order."""
        return [row for _, rows in sorted(self._rows.items()) for row in rows]

    def restore_(self, progress: Progress, state: TrainingState) -> Progress:
        """Put back the newest whole state of this phase and worker.

        Raises:
            ValueError: the state is of another model, or of a worker that began from another one.
        """
        key = (progress.phase, progress.worker)
        self._laps_before[key], self._rows[key] = dict(self._clock.laps), []
        self._sha256[key] = {}
        self._weights = state.weights
        found: tuple[Path, Checkpoint] | None = state.comm.on_first(lambda: self._newest(*key))
        if found is None:
            return progress
        stem, checkpoint = found
        about, rank = checkpoint.about, state.comm.rank
        progress = replace(
            about.progress, sums=tuple(about.sums_by_rank[rank % len(about.sums_by_rank)])
        )
        if progress.phase == 2 and about.origin != self.origin:
            raise ValueError(
                f"worker {progress.worker}: expected one that began from this run's phase 1, got "
                f"one of another; remove its files from {self.path.name}"
            )
        load_state_(state.weights, checkpoint.model, stem.name)
        state.load_checkpoint_(
            checkpoint.state, about.optimizer, unfinished=progress.stopped_by is None
        )
        for lap, seconds in about.laps_by_rank[rank % len(about.laps_by_rank)].items():
            self._clock.add(lap, seconds)
            self.restored_s += seconds
        self._rows[key], self._sha256[key] = about.rows, about.weights_sha256
        self._note_origin(progress, state)
        if progress.phase == 1:
            self.taken_from = about.taken_from
        if stem.parent != self.path and state.is_first:
            write_checkpoint(self.path / stem.name, checkpoint)  # the folder is whole by itself
        state.comm.barrier()
        return progress

    def save(self, progress: Progress, state: TrainingState, row: EpochRow | None) -> None:
        """Keep the state at an epoch's end or within one; every rank that shares it must call.

        Raises:
            OSError: the disk is full, or the folder cannot be written to.
        """
        key = (progress.phase, progress.worker)
        if row is not None:
            self._rows[key].append(row)
        self._note_origin(progress, state)
        tensors, values = state.gather_for_checkpoint()
        laps_by_rank = state.comm.gather(self._laps_of(key))
        sums_by_rank = state.comm.gather(progress.sums)
        if state.is_first:
            if progress.phase == 1 and progress.stopped_by and self._keep_epochs:
                name = f"phase1-epoch{progress.epoch}"
                self._sha256[key][name] = save_weights(state.weights, self.path / f"{name}{MODEL}")
            about = CheckpointInfo(
                progress=replace(progress, sums=()),
                origin=self.origin,
                optimizer=values,
                laps_by_rank=laps_by_rank,
                sums_by_rank=sums_by_rank,
                rows=self._rows[key],
                weights_sha256=self._sha256[key],
            )
            checkpoint = Checkpoint(
                model=on_host(state.weights.state_dict()), state=tensors, about=about
            )
            about = write_checkpoint(self.path / _stem(progress), checkpoint)
            self._sha256[key] = about.weights_sha256
            self._damaged.discard(_stem(progress))
            self._prune(progress)
            if self._attempt is not None:
                self._attempt.keep(total(self._clock.laps, TRAINING) - self.restored_s)
            self._on_save(progress)
        state.comm.barrier()

    def theta(self, worker: int, epoch: int) -> Tensor:
        """The weights [P] of a worker after an epoch; the model then holds them too.

        Raises:
            ValueError: a damaged file.
        """
        assert self._weights is not None, "what was saved had a model"
        stem = f"worker{worker}-epoch{epoch}"
        # On the rank that saved it and, of a resumed worker, on every rank of the worker.
        sha256 = self._sha256.get((2, worker), {}).get(stem)
        try:
            if sha256 is None:
                raise DamagedError(f"{stem}{MODEL}: expected its sha256 in a manifest, got none")
            return load_theta(self._weights, self.path / f"{stem}{MODEL}", sha256)
        except DamagedError as error:
            raise ValueError(
                f"{error}; delete the files worker{worker}-* of {self.path} and resume: it is "
                "trained again"
            ) from None

    def save_final(self, weights: Weights) -> None:
        """Save the run's result, and its proof."""
        sha256 = save_weights(weights, self.path / f"final{MODEL}")
        write_json(self.path / f"final{MANIFEST}", Proof(sha256_by_ending={MODEL: sha256}))

    def _newest(self, phase: int, worker: int) -> tuple[Path, Checkpoint] | None:
        """The last checkpoint that is whole."""
        stems = [self.path / name for name in reversed(_saved(self.path, phase, worker))]
        if phase == 1 and self._start is not None:
            stems.append(self._start / "phase1")
        for stem in stems:
            try:
                found = read_checkpoint(stem)
            except DamagedError as error:
                self._say(f"a damaged checkpoint is left out: {error}")
                self._damaged.add(stem.name)
                continue
            if stem.parent != self.path:
                taken_from = found.about.taken_from or stem.parent.name
                found = replace(found, about=replace(found.about, taken_from=taken_from))
            return stem, found
        return None

    def _note_origin(self, progress: Progress, state: TrainingState) -> None:
        """Name phase 1's result, once it is there, by the bytes of theta."""
        if progress.phase == 1 and progress.stopped_by is not None:
            theta = state.weights.copy()[0].cpu().numpy()
            self.origin = hashlib.sha256(theta.tobytes()).hexdigest()

    def _laps_of(self, key: tuple[int, int]) -> Laps:
        """This model's own."""
        before = self._laps_before[key]
        return {
            lap: seconds - before.get(lap, 0.0)
            for lap, seconds in self._clock.laps.items()
            if seconds > before.get(lap, 0.0)
        }

    def _prune(self, progress: Progress) -> None:
        """Delete what a newer state has made useless."""
        # A damaged one may be of a later epoch: it is no newer state.
        saved = _saved(self.path, progress.phase, progress.worker)
        names = [name for name in saved if name not in self._damaged]
        for name in names[:-1] if progress.stopped_by else names[:-KEPT]:
            stem = self.path / name
            # A worker's weights after an epoch may be averaged with later ones.
            keeps_model = "-step" not in name and (
                int(name.rpartition("epoch")[2]) % self._keep_every == 0
                if progress.phase == 2
                else self._keep_epochs
            )
            for ending in (MANIFEST, STATE, *([] if keeps_model else [MODEL])):
                file_of(stem, ending).unlink(missing_ok=True)


def _stem(progress: Progress) -> str:
    """A checkpoint's name."""
    within = f"-step{progress.step}" if progress.step else ""
    if progress.phase == 2:
        return f"worker{progress.worker}-epoch{progress.epoch}{within}"
    return "phase1" if progress.stopped_by else f"phase1-epoch{progress.epoch}{within}"


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


def remove_litter(folder: Path) -> None:
    """Delete what killed processes left: half-written files, and states without a manifest.

    The weights after an epoch need none: a later manifest knows them.
    """
    remove_parts(folder)
    for path in folder.glob(f"*{MODEL}"):  # STATE ends so too
        stem = path.name.removesuffix(STATE).removesuffix(MODEL)
        is_epoch = path.name == stem + MODEL and "-step" not in stem
        if not is_epoch and not file_of(folder / stem, MANIFEST).exists():
            path.unlink(missing_ok=True)


def prune(folder: Path, *, every: int | None = None, resumable: bool = False) -> None:
    """Of a run that is done keep the ends of phase 1 and of each worker, and the result.

    Their manifests stay: they prove the weights of the earlier epochs too.

    Arguments:
        every: keep the weights of each epoch that this divides too.
        resumable: keep the states with which the run gives its result again.
    """
    named = re.compile(r"(worker\d+|phase1)-epoch(\d+)")
    last: dict[str, int] = {}
    found = [(path, match) for path in folder.glob("*") if (match := named.match(path.name))]
    for path, match in found:
        if path.name == match[0] + MODEL:
            last[match[1]] = max(last.get(match[1], 0), int(match[2]))
    for path, match in found:
        epoch = int(match[2])
        is_last = match[1] != "phase1" and epoch == last.get(match[1])
        is_model = path.name == match[0] + MODEL
        is_proof = path.name == match[0] + MANIFEST
        is_kept = is_last and (is_model or is_proof or resumable)
        if not is_kept and not (is_model and every is not None and epoch % every == 0):
            path.unlink(missing_ok=True)
    for path in (*folder.glob("attempt*"), folder / ENTRY):
        path.unlink(missing_ok=True)
    remove_litter(folder)


def last_of(folder: Path, *, phase: int, worker: int = 0) -> Progress | None:
    """Where the last state of a model was saved, by its manifest; None where there is none.

    Raises:
        ValueError: a manifest of another schema version.
    """
    for name in reversed(_saved(folder, phase, worker)):
        try:
            return read_manifest(folder / name).about.progress
        except DamagedError:
            continue
    return None
