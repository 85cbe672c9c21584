"""A run that is interrupted and goes on from its folder, against one that was not."""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from unittest import mock

import pytest
import torch
from small_trainer import (
    SGD,
    SWA,
    SWAP,
    make_dataset,
    run_processes,
    small_trainer,
    with_phases,
)
from torch import Tensor

from swap_fast.algorithm import sgd, swa, swap
from swap_fast.checkpoint import files
from swap_fast.checkpoint.attempts import Attempt
from swap_fast.checkpoint.files import known_sha256, read_manifest, write_json
from swap_fast.checkpoint.run_folder import RunFolder, RunInfo, enter_folder, prune
from swap_fast.clock import Clock
from swap_fast.config.phase import Phase
from swap_fast.config.recipe import Recipe, SWAPRecipe
from swap_fast.distributed import ALONE, Comm
from swap_fast.outcome import running_average
from swap_fast.record import AverageRow, EpochRow
from swap_fast.training.state import Progress, Result, TrainingState
from swap_fast.training.trainer import Trainer

DATA = make_dataset()
CYCLES = replace(SWAP, phase2=Phase(global_batch_size=8, peak_lr=0.1, max_epochs=4, cycles=2))
SWAP_3 = with_phases(phase1={"max_epochs": 3})


class CutError(Exception):
    """The run ends here."""


class CutFolder(RunFolder):
    """Ends the run after so many checkpoints were saved."""

    saves_left = 10**6

    def save(self, progress: Progress, state: TrainingState, row: EpochRow | None) -> None:
        """Save, and perhaps end."""
        super().save(progress, state, row)
        self.saves_left -= 1
        if self.saves_left == 0:
            raise CutError


@dataclass
class Done:
    """What a run came to."""

    trainer: Trainer
    result: Result
    rows: list[EpochRow]
    averages: list[AverageRow]

    def bits(self) -> list[Tensor]:
        """All that must be equal to the last bit."""
        samples = [theta for worker in self.result.workers for theta in worker.samples]
        return [*self.trainer.weights.copy(), self.trainer.optimizer.velocity, *samples]


def run(
    recipe: Recipe,
    folder: Path,
    *,
    saves: int = 10**6,
    start: Path | None = None,
    comm: Comm = ALONE,
    say: Callable[[str], None] = lambda line: None,
) -> Done:
    """Run the recipe with its checkpoints in the folder, until so many were saved."""
    clock = Clock()
    kept = CutFolder(folder, clock, start=start, say=say)
    kept.saves_left = saves
    trainer = small_trainer(recipe, dataset=DATA, clock=clock, comm=comm, checkpoints=kept)
    averages: list[AverageRow] = []
    if isinstance(recipe, SWAPRecipe):
        result = swap(recipe, trainer)
        averages = running_average(recipe, trainer, result)
    else:
        result = (sgd if recipe is SGD else swa)(recipe, trainer)  # type: ignore[operator]
    if comm.rank == 0:
        kept.save_final(trainer.weights)
    comm.barrier()
    prune(folder)
    return Done(trainer, result, [replace(row, time_s=0.0) for row in kept.rows], averages)


def assert_same(one: Done, other: Done) -> None:
    for a, b in zip(one.bits(), other.bits(), strict=True):
        assert torch.equal(a, b)
    assert one.rows == other.rows
    assert one.result.accuracies == other.result.accuracies
    assert one.result.phase1.progress.stopped_by == other.result.phase1.progress.stopped_by
    assert one.averages == other.averages


@pytest.mark.parametrize(
    ("recipe", "total"),
    [(SWAP_3, 7), (CYCLES, 10), (SWA, 8), (SGD, 2)],
    ids=["swap", "cycles", "swa", "sgd"],
)
def test_cut_after_any_checkpoint_it_ends_with_the_same_bits(
    recipe: Recipe, total: int, tmp_path: Path
) -> None:
    whole = run(recipe, tmp_path / "whole")
    for saves in range(1, total + 1):
        folder = tmp_path / str(saves)
        with pytest.raises(CutError):
            run(recipe, folder, saves=saves)
        assert_same(run(recipe, folder), whole)
        assert sorted(p.name for p in folder.iterdir()) == sorted(
            p.name for p in (tmp_path / "whole").iterdir()
        )


def test_cut_again_and_again(tmp_path: Path) -> None:
    whole, cuts = run(SWAP_3, tmp_path / "whole"), 0
    while True:
        try:
            cut = run(SWAP_3, tmp_path / "cut", saves=1)
            break
        except CutError:
            cuts += 1
    assert cuts == 7
    assert_same(cut, whole)


def test_training_that_was_kept_is_counted_once(tmp_path: Path) -> None:
    with pytest.raises(CutError):
        run(SWAP_3, tmp_path, saves=4)  # phase 1, and an epoch of worker 0
    kept = {
        name: json.loads((tmp_path / f"{name}.json").read_text())["about"]["laps_by_rank"]
        for name in ("phase1", "worker0-epoch1")
    }
    done = run(SWAP_3, tmp_path)
    laps = done.trainer.clock.laps
    assert laps["phase1"] == pytest.approx(kept["phase1"][0]["phase1"], rel=0.2)
    assert laps["phase2"] > kept["worker0-epoch1"][0]["phase2"]
    assert set(kept["phase1"][0]) == {"phase1", "evaluation", "checkpoint"}
    assert "model_init" not in kept["phase1"][0]  # one set-up counts: that of the last process
    own = sum(worker.time_s for worker in done.result.workers)
    assert own == pytest.approx(laps["phase2"], rel=1e-6)


def test_another_run_s_phase_1_is_taken_over(tmp_path: Path) -> None:
    before = run(SWAP_3, tmp_path / "before")
    alone = run(replace(CYCLES, phase1=SWAP_3.phase1), tmp_path / "alone")
    shared = run(
        replace(CYCLES, phase1=SWAP_3.phase1), tmp_path / "shared", start=tmp_path / "before"
    )
    assert_same(shared, alone)
    assert [row.epoch for row in shared.rows if row.phase == 1] == [1, 2, 3]
    assert torch.equal(shared.result.phase1.theta, before.result.phase1.theta)
    assert (tmp_path / "shared" / "phase1.json").exists()
    # Its time is there as well.
    kept = json.loads((tmp_path / "before" / "phase1.json").read_text())["about"]
    assert shared.trainer.clock.laps["phase1"] >= kept["laps_by_rank"][0]["phase1"]


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize("ending", [".safetensors", ".state.safetensors", ".json"])
@pytest.mark.parametrize("damage", ["flipped", "short", "empty", "gone"])
def test_a_damaged_checkpoint_is_left_out(ending: str, damage: str, tmp_path: Path) -> None:
    whole = run(SWAP_3, tmp_path / "whole")
    folder = tmp_path / "cut"
    with pytest.raises(CutError):
        run(SWAP_3, folder, saves=2)
    path = folder / f"phase1-epoch2{ending}"
    match damage:
        case "flipped":
            flip_a_bit(path)
        case "short":
            path.write_bytes(path.read_bytes()[:50])
        case "empty":
            path.write_bytes(b"")
        case "gone":
            path.unlink()
    said: list[str] = []
    assert_same(run(SWAP_3, folder, say=said.append), whole)
    if (damage, ending) != ("gone", ".json"):  # without a manifest it was never finished
        assert len(said) == 1
        assert said[0].startswith("a damaged checkpoint is left out: phase1-epoch2")
        assert "\n" not in said[0]


@pytest.mark.parametrize("ending", [".state.safetensors", ".json"])
def test_a_file_that_cannot_be_read_now_is_no_damage(
    ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(CutError):
        run(SWAP_3, tmp_path, saves=2)
    before = sorted(path.name for path in tmp_path.iterdir())
    read = Path.read_bytes

    def stale(path: Path) -> bytes:
        if path.name.endswith(ending):
            raise OSError(errno.ESTALE, "Stale file handle")
        return read(path)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "read_bytes", stale)
        line = rf"phase1-epoch2{ending}: could not be read: Stale file handle; nothing was changed"
        with pytest.raises(ValueError, match=line):
            run(SWAP_3, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert_same(run(SWAP_3, tmp_path), run(SWAP_3, tmp_path / "whole"))


def test_new_checkpoints_are_kept_beside_damaged_ones_of_later_epochs(tmp_path: Path) -> None:
    recipe = with_phases(phase1={"max_epochs": 6})
    with pytest.raises(CutError):
        run(recipe, tmp_path, saves=5)
    for epoch in (4, 5):
        flip_a_bit(tmp_path / f"phase1-epoch{epoch}.state.safetensors")
    with pytest.raises(CutError):
        run(recipe, tmp_path, saves=2)
    assert {f"phase1-epoch{n}.json" for n in (1, 2)} < {path.name for path in tmp_path.iterdir()}
    said: list[str] = []
    done = run(recipe, tmp_path, say=said.append)
    assert [line.partition(":")[2].split(".")[0].strip() for line in said] == [
        *("phase1-epoch5", "phase1-epoch4"),
    ]
    assert [row.epoch for row in done.rows if row.phase == 1] == [1, 2, 3, 4, 5, 6]
    assert not list(tmp_path.glob("phase1-epoch*"))


def test_of_phase_2_the_weights_of_the_cycles_ends_may_be_enough(tmp_path: Path) -> None:
    kept = RunFolder(tmp_path, clock := Clock(), keep_every=2)
    trainer = small_trainer(CYCLES, dataset=DATA, clock=clock, checkpoints=kept)
    swap(CYCLES, trainer)
    files = {path.stem for path in tmp_path.glob("worker0-epoch?.safetensors")}
    assert files == {"worker0-epoch2", "worker0-epoch4"}


@pytest.mark.parametrize("saves", [8, 9])  # in the second cycle of worker 1, or at its end
def test_a_damaged_sample_of_an_earlier_cycle_is_refused(saves: int, tmp_path: Path) -> None:
    recipe = replace(CYCLES, phase1=SWAP_3.phase1)
    with pytest.raises(CutError):
        run(recipe, tmp_path, saves=saves)
    assert not (tmp_path / "worker0-epoch2.json").exists()
    flip_a_bit(tmp_path / "worker0-epoch2.safetensors")
    with pytest.raises(ValueError, match=r"^worker0-epoch2\.safetensors: .* delete .* worker0-\*"):
        run(recipe, tmp_path)
    for path in tmp_path.glob("worker0-*"):
        path.unlink()
    assert_same(run(recipe, tmp_path), run(recipe, tmp_path / "whole"))


def test_a_sample_that_no_manifest_knows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CutError):
        run(CYCLES, tmp_path, saves=7)
    manifest = read_manifest(tmp_path / "worker0-epoch4")
    about = replace(manifest.about, weights_sha256={})
    write_json(tmp_path / "worker0-epoch4.json", replace(manifest, about=about))
    with pytest.raises(ValueError, match=r"^worker0-epoch2.*: expected its sha256 in a manifest"):
        run(CYCLES, tmp_path)


def test_a_run_that_is_done_knows_the_bytes_of_all_its_models(tmp_path: Path) -> None:
    run(SWAP_3, tmp_path)
    for name in ("phase1", "worker0-epoch2", "worker1-epoch2", "final"):
        path = tmp_path / f"{name}.safetensors"
        assert known_sha256(path) == hashlib.sha256(path.read_bytes()).hexdigest()
    epochs = [known_sha256(tmp_path / f"worker0-epoch{n}.safetensors") for n in (1, 2)]
    assert None not in epochs
    assert epochs[0] != epochs[1]
    assert known_sha256(tmp_path / "worker0-epoch3.safetensors") is None


def test_a_checkpoint_of_a_later_version_ends_the_run(tmp_path: Path) -> None:
    """It is no damage: to train over it would lose what a later version has done."""
    with pytest.raises(CutError):
        run(SWAP_3, tmp_path, saves=2)
    manifest = read_manifest(tmp_path / "phase1-epoch2")
    with mock.patch.object(files, "SCHEMA_VERSION", files.SCHEMA_VERSION + 1):
        write_json(tmp_path / "phase1-epoch2.json", manifest)
    with pytest.raises(ValueError, match=r"^phase1-epoch2.json: expected schema_version 1, got 2"):
        run(SWAP_3, tmp_path)


def test_a_worker_of_another_start_is_refused(tmp_path: Path) -> None:
    run(SWAP_3, tmp_path / "one")
    with pytest.raises(CutError):
        run(SWAP_3, tmp_path / "cut", saves=4)
    other = replace(SWAP_3, phase1=replace(SWAP_3.phase1, peak_lr=0.2))
    run(other, tmp_path / "other")
    for path in (tmp_path / "other").glob("phase1.*"):
        shutil.copy(path, tmp_path / "cut")
    with pytest.raises(ValueError, match=r"^worker 0: expected one that began from this run's"):
        run(SWAP_3, tmp_path / "cut")


def run_ranks(comm: Comm, folder: Path) -> None:
    """Be cut in phase 1, in phase 2, and then go on; save the end."""
    for saves in (2, 2):
        with pytest.raises(CutError):
            run(SWAP_3, folder / "cut", saves=saves, comm=comm)
        comm.barrier()
    done = run(SWAP_3, folder / "cut", comm=comm)
    torch.save(done.bits()[:2], folder / f"cut{comm.rank}.pt")
    whole = run(SWAP_3, folder / "whole", comm=comm)
    torch.save(whole.bits()[:2], folder / f"whole{comm.rank}.pt")


def share_phase_1(comm: Comm, folder: Path) -> None:
    """Take phase 1 over from a run of the same ranks."""
    run(SWAP_3, folder / "before", comm=comm)
    recipe = replace(CYCLES, phase1=SWAP_3.phase1)
    shared = run(recipe, folder / "shared", start=folder / "before", comm=comm)
    alone = run(recipe, folder / "alone", comm=comm)
    assert_same(shared, alone)
    (folder / f"same{comm.rank}").touch()


@pytest.mark.slow
def test_two_ranks_take_a_phase_1_over(tmp_path: Path) -> None:
    run_processes(share_phase_1, 2, tmp_path)
    assert (tmp_path / "same0").exists()
    assert (tmp_path / "same1").exists()


@pytest.mark.slow
def test_two_ranks_go_on_together(tmp_path: Path) -> None:
    run_processes(run_ranks, 2, tmp_path)
    for rank in range(2):
        cut, whole = (
            torch.load(tmp_path / f"cut{rank}.pt"),
            torch.load(tmp_path / f"whole{rank}.pt"),
        )
        assert all(torch.equal(a, b) for a, b in zip(cut, whole, strict=True))


def cut_in_phase(comm: Comm, folder: Path) -> None:
    """Be cut after an epoch of phase 1 in one folder, and of phase 2 in another."""
    with pytest.raises(CutError):
        run(SWAP_3, folder / "phase1", saves=1, comm=comm)
    with pytest.raises(CutError):
        run(SWAP_3, folder / "phase2", saves=4, comm=comm)


@pytest.mark.slow
def test_the_number_of_ranks_may_change_between_phases_alone(tmp_path: Path) -> None:
    run_processes(cut_in_phase, 2, tmp_path)
    with pytest.raises(ValueError, match=r"^ranks: expected 2, which shared this model .* got 1"):
        run(SWAP_3, tmp_path / "phase1")
    done = run(SWAP_3, tmp_path / "phase2")
    assert [worker.worker for worker in done.result.workers] == [0, 1]


def test_what_a_killed_process_left_is_removed_at_the_next_start(tmp_path: Path) -> None:
    litter = [".phase1.json.12ab.part", "phase1-epoch2.state.safetensors"]
    litter += [f"phase1-epoch2-step5{ending}" for ending in (".safetensors", ".state.safetensors")]
    kept = [f"phase1-epoch1-step3{e}" for e in (".safetensors", ".state.safetensors", ".json")]
    kept += ["worker0-epoch1.safetensors", "attempt-run-0001.json"]
    for name in litter + kept:
        (tmp_path / name).touch()
    info = RunInfo(created="now", settings={}, machine={})

    def names() -> set[str]:
        return {path.name for path in tmp_path.iterdir()}

    # Another part of the run may be writing its own files.
    with Attempt(tmp_path, "worker1"), enter_folder(tmp_path, info):
        assert set(litter + kept) < names()
    with enter_folder(tmp_path, info):
        assert names() & set(litter + kept) == set(kept)


def test_of_two_that_start_in_a_folder_at_once_one_sees_the_others_run(tmp_path: Path) -> None:
    # The other starts while the first is about to write run.json.
    failed: list[str] = []

    def enter(seed: int, part: str) -> None:
        try:
            enter_folder(
                tmp_path, RunInfo(created="", settings={"seed": seed}, machine={}), part=part
            )
        except ValueError as error:
            failed.append(str(error))

    other = threading.Thread(target=enter, args=(1, "worker1"))

    def write(path: Path, content: object) -> None:
        if not other.ident:
            other.start()
            other.join(0.5)
        write_json(path, content)

    with mock.patch("swap_fast.checkpoint.run_folder.write_json", write):
        enter(0, "worker0")
        other.join(30)
    assert failed == [
        f"resume: expected the settings with which {tmp_path.name} was started, got seed 1 in "
        "place of 0; give it the same again, or start a new run in another folder"
    ]
