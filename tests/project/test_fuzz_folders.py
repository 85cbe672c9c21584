"""Random damage of what a run goes on from: a line, an older state that is named, or the same end.

Of checkpoints and their manifests, run.json, events, and the database of a search.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import event_factory
import pytest
import torch
from hypothesis import strategies as st
from random_damage import CASES, copied, damage, one_line, try_many
from small_trainer import SWAP, small_trainer
from torch import Tensor

from bench.runner.watch import WatchOptions, watch
from bench.search import study as search_study
from bench.search.grid import Grid, Outcome, Point, Scores
from swap_fast.algorithm import swap
from swap_fast.callbacks.events import EventFile, read_events
from swap_fast.checkpoint.files import (
    Checkpoint,
    CheckpointInfo,
    DamagedError,
    read_checkpoint,
    write_checkpoint,
)
from swap_fast.checkpoint.run_folder import RunFolder, RunInfo, enter_folder, read_run_info
from swap_fast.clock import Clock
from swap_fast.outcome import running_average
from swap_fast.record import EpochRow
from swap_fast.training.state import Progress, TrainingState

pytestmark = pytest.mark.slow

# A run's folder: checkpoints with their manifests, run.json, events.


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    stem = tmp_path_factory.mktemp("checkpoint") / "worker0-epoch1"
    random = torch.Generator().manual_seed(0)
    write_checkpoint(
        stem,
        Checkpoint(
            model={"linear.weight": torch.randn(5, 3, generator=random)},
            state={"velocity": torch.randn(15, generator=random), "replicas.0": torch.zeros(1, 4)},
            about=CheckpointInfo(
                progress=Progress(phase=2, epoch=1),
                origin="ab",
                optimizer={},
                laps_by_rank=[{"phase2": 1.5}],
                sums_by_rank=[[]],
                rows=[],
            ),
        ),
    )
    return stem


@CASES
def test_a_damaged_checkpoint_is_refused_or_whole(
    checkpoint: Path, tmp_path: Path, cases: int
) -> None:
    """Weights that are read are those that were written, to the last bit."""
    names = sorted(path.name for path in checkpoint.parent.iterdir())
    whole = read_checkpoint(checkpoint)

    def check(data: st.DataObject) -> None:
        copied(checkpoint.parent, tmp_path)
        victim = tmp_path / data.draw(st.sampled_from(names))
        victim.write_bytes(damage(victim.read_bytes(), data.draw))
        try:
            read = read_checkpoint(tmp_path / checkpoint.name)
        except ValueError as error:
            one_line(error)
            return
        assert read.about == whole.about
        for ours, expected in ((read.model, whole.model), (read.state, whole.state)):
            assert ours.keys() == expected.keys()
            assert all(torch.equal(ours[name], tensor) for name, tensor in expected.items())
        assert sorted(path.name for path in tmp_path.iterdir()) == names

    try_many(check, cases)


class CutError(Exception):
    """The run ends here."""


class CutFolder(RunFolder):
    """Ends a run of two workers in the second one's phase 2."""

    def save(self, progress: Progress, state: TrainingState, row: EpochRow | None) -> None:
        super().save(progress, state, row)
        if (progress.phase, progress.worker, progress.epoch) == (2, 1, 1):
            raise CutError


def train(folder: RunFolder, clock: Clock) -> list[Tensor]:
    """A run of two workers with its checkpoints there, to the end: all that must be the same."""
    trainer = small_trainer(SWAP, clock=clock, checkpoints=folder)
    result = swap(SWAP, trainer)
    averages = [row.test_accuracy for row in running_average(SWAP, trainer, result)]
    return [*trainer.weights.copy(), torch.tensor(averages)]


@CASES
def test_a_run_with_a_damaged_folder_ends_with_the_same_bits_or_in_a_line(
    tmp_path: Path, cases: int
) -> None:
    """An older state is used where the last of a model is damaged, and is said to be."""
    clock = Clock()
    whole = train(RunFolder(tmp_path / "whole", clock), clock)
    with pytest.raises(CutError):
        train(CutFolder(tmp_path / "cut", clock), clock)
    names = sorted(path.name for path in (tmp_path / "cut").iterdir())
    last = ("phase1", "worker0-epoch2", "worker1-epoch1")
    assert {f"{stem}.json" for stem in last} == {name for name in names if name.endswith(".json")}

    def is_damaged(stem: str) -> bool:
        try:
            read_checkpoint(tmp_path / "tried" / stem)
        except DamagedError:
            return True
        return False

    def check(data: st.DataObject) -> None:
        copied(tmp_path / "cut", tmp_path / "tried")
        victim = tmp_path / "tried" / data.draw(st.sampled_from(names))
        victim.write_bytes(damage(victim.read_bytes(), data.draw))
        damaged, said = [stem for stem in last if is_damaged(stem)], []
        clock = Clock()
        try:
            ours = train(RunFolder(tmp_path / "tried", clock, say=said.append), clock)
        except ValueError as error:
            one_line(error)
            return
        assert all(torch.equal(a, b) for a, b in zip(ours, whole, strict=True))
        assert len(said) == len(damaged)
        for stem, line in zip(damaged, said, strict=True):
            assert line.startswith(f"a damaged checkpoint is left out: {stem}")

    try_many(check, cases)


@CASES
def test_a_damaged_run_file_is_refused_or_read_as_it_was(tmp_path: Path, cases: int) -> None:
    """run.json: what a run was started with, of the command line as of `swap(folder=...)`."""
    info = RunInfo(
        created="2026-11-22T12:00:00+00:00",
        settings={"seed": 3, "phase1": {"peak_lr": 0.25}, "optimizer": "SGD"},
        machine={"torch": "2.10.0", "world_size": 2},
    )
    with enter_folder(tmp_path, info):
        whole = (tmp_path / "run.json").read_bytes()

    def check(data: st.DataObject) -> None:
        (tmp_path / "run.json").write_bytes(damage(whole, data.draw))
        try:
            with enter_folder(tmp_path, info):
                assert read_run_info(tmp_path) == info
        except ValueError as error:
            one_line(error)

    try_many(check, cases)


@CASES
def test_a_damaged_line_of_events_is_left_out_and_no_other(
    tmp_path: Path, cases: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """`watch` shows what is left, or says in a line that there is nothing."""
    events = [
        event_factory.began(),
        event_factory.training(1, 1),
        *(event_factory.epoch(2 + number, 1, 0, number) for number in (1, 2)),
        event_factory.phase_end(5, 1, 0, 2, "stopping_accuracy"),
        *(event_factory.training(6, 2, worker) for worker in (0, 1)),
        event_factory.progress(7, 2, 1, 0, 10),
        event_factory.epoch(8, 2, 0, 1),
        event_factory.at(9, "averaging"),
        event_factory.done(10),
    ]
    file = EventFile(tmp_path, part="run", rank=0)
    for event in events:
        file(event)
    file.close()
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()

    def check(data: st.DataObject) -> None:
        path.write_bytes(damage(whole, data.draw))
        assert all(event in events for event in read_events(tmp_path))
        try:
            watch(WatchOptions(run=str(tmp_path), once=True))
        except ValueError as error:
            one_line(error)

    try_many(check, cases)
    capsys.readouterr()


# The database of a search.

GRID = Grid(values={"phase1.peak_lr": (0.25, 0.5, 1.0), "width": (4,)})
OUTCOMES = {
    rate: Scores(
        accuracies=(rate / 2, rate / 4),
        times_s=(8 * rate, 3.0),
        phase1_epochs=(2, 3),
        run_ids=("a", "b"),
    )
    for rate in (0.25, 0.5)
}
"""Of the rates that do not diverge."""


def measure(point: Point) -> Scores:
    rate = float(point["phase1.peak_lr"])  # type: ignore[arg-type]
    if rate not in OUTCOMES:
        raise FloatingPointError("the loss is nan")
    return OUTCOMES[rate]


def right(outcome: Outcome) -> bool:
    rate = outcome.point["phase1.peak_lr"]
    if outcome.state == "done":
        return outcome.scores == OUTCOMES.get(rate)  # type: ignore[arg-type]
    return outcome.state != "diverged" or rate == 1.0


@CASES
def test_a_damaged_database_of_a_search_is_refused_or_gives_the_right_outcomes(
    tmp_path: Path, cases: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A point whose outcome is damaged waits, and is measured again."""
    pytest.importorskip("optuna", reason="Optuna is not installed")
    monkeypatch.setattr(search_study, "OPENINGS", 1)
    file = tmp_path / "s.db"
    study = partial(search_study.GridStudy, f"sqlite:///{file}", "s", GRID, {"held_out": 10})
    study().work(measure)
    whole = file.read_bytes()
    near = (b"accuracies", b"times_s", b"run_ids", b"diverged", b"sha256", b"peak_lr", b"COMPLETE")

    def check(data: st.DataObject) -> None:
        file.write_bytes(damage(whole, data.draw, near))
        try:
            opened = study()
            assert all(map(right, opened.outcomes))
            opened.work(measure)
            ended = {outcome.point["phase1.peak_lr"]: outcome for outcome in opened.outcomes}
        except ValueError as error:
            one_line(error)
            return
        assert all(map(right, ended.values()))
        assert [ended[rate].state for rate in (0.25, 0.5, 1.0)] == ["done", "done", "diverged"]

    try_many(check, cases)
