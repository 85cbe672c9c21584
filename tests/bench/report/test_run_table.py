"""The table command, with runs that are recorded at once in place of trained ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from conftest import FakeCifar, fake_cifar
from record_factory import make_record, with_recipe

from bench.cli import main
from bench.hardware.machine import describe_machine
from bench.options import RunOptions, TableOptions
from bench.records.paper_tables import RUN_TABLES
from bench.report import run_table as module
from bench.report.run_table import run_table, total
from bench.report.runs_to_do import Eta, RunToDo
from bench.runner.session import processes
from swap_fast.config.recipe import Recipe, SWARecipe
from swap_fast.data.cifar.files import load_dataset, locate_dataset
from swap_fast.record import plain
from swap_fast.record_files import write_record


@pytest.fixture
def cifar(tmp_path: Path) -> Path:
    fake: FakeCifar = fake_cifar("cifar100")
    folder = tmp_path / "data"
    folder.mkdir()
    fake.write_binary(folder)
    return folder


class Session:
    """Stands for `run_session`: writes the record of each run, and keeps what it was asked."""

    def __init__(self) -> None:
        self.locate: Callable[..., Path | None] = locate_dataset
        self.fail_at: int | None = None
        self.asked: list[tuple[str, int]] = []

    def __call__(
        self, options: RunOptions, recipe: Recipe, original: Recipe, *, resume: bool
    ) -> int:
        assert resume  # with a run that was interrupted
        assert options.share_phase1
        if len(self.asked) == self.fail_at:
            raise KeyboardInterrupt
        assert recipe == original
        assert options.runs == 1
        self.asked.append((recipe.name, options.seed))
        ranks, threads = processes(options, recipe, "cpu")
        record = make_record(recipe.name, options.seed, machine=describe_machine("cpu"))
        record = with_recipe(record, **plain(asdict(recipe)))
        dataset = load_dataset("cifar100", self.locate("cifar100", options.data))
        data = {"kind": dataset.kind, "sha256": dataset.sha256, "train_images": 10_000}
        data = record.data | data
        record = replace(record, data=data, world_size=ranks, threads=threads)
        record = replace(record, run_id=f"{record.run_id}-{dataset.sha256[:8]}")
        if isinstance(recipe, SWARecipe):
            record = replace(record, method="swa", accuracy_before_averaging=0.75)
        write_record(record, options.out / "runs")
        return 0


@pytest.fixture
def session(monkeypatch: pytest.MonkeyPatch) -> Session:
    made = Session()
    monkeypatch.setattr(module, "run_session", made)
    return made


@pytest.fixture
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of what runs: to draw the report takes most of their time."""
    monkeypatch.setattr(module, "write_report", lambda content: content.results / "report.md")


@pytest.fixture
def no_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty cache, and no SWAP_DATA."""
    monkeypatch.delenv("SWAP_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def _fill(number: int, out: Path, **changed: Any) -> int:
    standard: dict[str, Any] = {"number": number, "size": "cpu", "runs": 1, "device": "cpu"}
    return run_table(TableOptions(**{**standard, "out": out, "quiet": True, **changed}))


def test_a_table_is_filled_drawn_and_not_filled_again(
    tmp_path: Path, cifar: Path, session: Session, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert _fill(2, out, runs=2, data=cifar) == 0
    rows = ("cifar100_sgd_small_cpu", "cifar100_sgd_large_cpu", "cifar100_swap_cpu")
    assert session.asked == [(recipe, seed) for seed in (0, 1) for recipe in rows]
    text = capsys.readouterr().out
    assert "Table 2 at CPU size: 6 of 6 runs to make" in text
    assert "Table 2 at CPU size, machine 1" in text
    assert "81.05" in text
    assert "81.05 ± 0.07" in (out / "report.md").read_text(encoding="utf-8")
    # All is there: nothing runs, and no data are needed.
    assert _fill(2, out, runs=2, data=tmp_path / "nowhere") == 0
    assert len(session.asked) == 6
    assert "0 of 6 runs to make" in capsys.readouterr().out
    # Table 4 has SWAP already, and needs the small- and large-batch models only for new runs.
    assert _fill(4, out, data=cifar) == 0
    assert [recipe for recipe, _ in session.asked[6:]] == [
        *("cifar100_swa_large_cpu", "cifar100_swa_large_small_cpu"),
        *("cifar100_swa_small_cpu", "cifar100_swap_40_cpu"),
    ]


@pytest.mark.usefixtures("no_report")
def test_a_table_that_was_cut_short_goes_on(tmp_path: Path, cifar: Path, session: Session) -> None:
    session.fail_at = 2
    with pytest.raises(KeyboardInterrupt):
        _fill(2, tmp_path, data=cifar)
    session.fail_at = None
    assert _fill(2, tmp_path, data=cifar) == 0
    assert session.asked[2:] == [("cifar100_swap_cpu", 0)]


@pytest.mark.usefixtures("no_report")
def test_runs_on_other_data_are_not_those_of_a_table(
    tmp_path: Path, cifar: Path, session: Session, capsys: pytest.CaptureFixture[str]
) -> None:
    out, other = tmp_path / "out", tmp_path / "other"
    fake_cifar("cifar100", seed=1).write_binary(other)
    assert _fill(2, out, data=cifar) == 0
    capsys.readouterr()
    assert _fill(2, out, data=other, dry_run=True) == 0
    text = " ".join(capsys.readouterr().out.split())
    told = load_dataset("cifar100", other).describe()
    assert text.startswith(f"Table 2 at CPU size: 3 of 3 runs to make; data: {told}")
    for data in (other, other, cifar):
        assert _fill(2, out, data=data) == 0
        assert len(session.asked) == 3 + 3


@pytest.mark.usefixtures("no_report", "no_data")
def test_a_set_that_is_downloaded_only_then_is_compared_before_the_runs(
    tmp_path: Path,
    cifar: Path,
    session: Session,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    assert _fill(2, out, data=cifar) == 0
    folder = fake_cifar("cifar100", seed=1).write_binary(tmp_path / "other")
    monkeypatch.setattr(module, "locate_dataset", lambda name, data: folder)  # downloads it
    session.locate = lambda name, data: folder
    # Seed 0 of the first data stands in for the unknown, until seed 1 asks for the data.
    assert _fill(2, out, runs=2) == 0
    assert len(session.asked) == 3 + 6
    lines = [line for line in capsys.readouterr().out.splitlines() if " runs to make; " in line]
    counts = [line.partition(": ")[2].partition(" runs")[0] for line in lines]
    assert counts == ["3 of 3", "3 of 6", "6 of 6"]


@pytest.mark.usefixtures("no_data")
def test_a_dry_run_says_what_would_run_and_runs_nothing(
    tmp_path: Path,
    session: Session,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    monkeypatch.setenv("COLUMNS", "80")
    assert _fill(4, out, size="paper", dry_run=True) == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80
    monkeypatch.setenv("COLUMNS", "160")
    assert _fill(4, out, size="paper", dry_run=True) == 0
    assert session.asked == []
    assert not out.exists()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == ("Table 4: 7 of 7 runs to make; the content of the data is not compared")
    assert lines[2].split()[:3] == ["cifar100_swa_large", "seed", "0"]
    assert lines[2].endswith("; phase 1 of cifar100_sgd_large")
    assert all("by the planner, " in line for line in lines[1:8])
    assert lines[8].startswith("in all ")


def test_a_phase_1_is_shared_where_it_is_kept_or_comes_first(tmp_path: Path) -> None:
    record = make_record("cifar100_swap_cpu")
    start = RunToDo(recipe=record.recipe, seed=0, start=None, record=None)
    job = RunToDo(recipe="cifar100_swap_40_cpu", seed=0, start=record.recipe, record=None)
    assert module.begins_from_another(job, [start, job], tmp_path)
    assert not module.begins_from_another(start, [start, job], tmp_path)
    there = replace(start, record=record)
    assert not module.begins_from_another(job, [there, job], tmp_path)
    assert not module.begins_from_another(job, [replace(start, seed=1), job], tmp_path)
    folder = tmp_path / "checkpoints" / record.run_id
    folder.mkdir(parents=True)
    (folder / "phase1.safetensors").touch()
    assert module.begins_from_another(job, [there, job], tmp_path)


@pytest.mark.parametrize("number", [5, 6])
def test_settings_are_printed_at_once(number: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["table", str(number)]) == 0
    text = capsys.readouterr().out
    assert f"Table {number}" in text
    assert "Stopping" in text


def test_data_whose_runs_may_not_stand_there_are_refused_before_training(
    tmp_path: Path, cifar: Path, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match=r"expected CIFAR-100, published, for Table 2, got subset"):
        _fill(2, tmp_path / "out", size="paper", data=cifar)
    monkeypatch.setattr(module, "locate_dataset", lambda name, data: None)
    with pytest.raises(ValueError, match=r"for Table 2 at CPU size, got synthetic data"):
        _fill(2, tmp_path / "out")
    assert session.asked == []


def test_torchrun_is_sent_to_the_run_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    assert main(["table", "1", "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "expected one process" in error
    assert error.count("\n") == 1


def _fill_all(out: Path, **changed: Any) -> int:
    standard: dict[str, Any] = {"size": "cpu", "runs": 1, "device": "cpu"}
    return run_table(TableOptions(number="all", out=out, quiet=True, **{**standard, **changed}))


@pytest.mark.usefixtures("no_report", "no_data")
def test_all_tables_but_those_without_data(
    tmp_path: Path, cifar: Path, session: Session, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _fill_all(tmp_path / "out", data=cifar) == 1  # there is CIFAR-100 alone
    assert {recipe for recipe, _ in session.asked} == {
        recipe for number in (2, 4) for recipe in RUN_TABLES[number].recipes("cpu")
    }
    text, error = capsys.readouterr()
    assert [line.split(":")[0] for line in error.splitlines() if line.startswith("Table")] == [
        "Table 1 is left out",
        "Table 3 is left out",
    ]
    assert "Table 5" in text
    assert "Table 6" in text


@pytest.mark.usefixtures("no_data")
def test_a_size_that_one_table_lacks_is_refused_before_all_run(
    tmp_path: Path, session: Session
) -> None:
    with pytest.raises(ValueError, match=r"size: expected one of .* for Table 2, got modern"):
        _fill_all(tmp_path, size="modern")
    assert session.asked == []


@pytest.mark.parametrize("arguments", [["7"], ["1", "--runs", "0"], []])
def test_what_cannot_be_is_refused_with_exit_2(arguments: list[str]) -> None:
    try:
        code: Any = main(["table", *arguments])
    except SystemExit as exit_:
        code = exit_.code
    assert code == 2


def test_the_size_follows_the_device() -> None:
    one, two = RUN_TABLES[1], RUN_TABLES[2]
    assert module.size_for(TableOptions(number=1), one, "cuda") == "paper"
    assert module.size_for(TableOptions(number=1), one, "cpu") == "cpu"
    assert module.size_for(TableOptions(number=1, size="modern"), one, "cuda") == "modern"
    with pytest.raises(ValueError, match="one of paper, narrow, cpu for Table 2, got modern"):
        module.size_for(TableOptions(number=2, size="modern"), two, "cpu")


def test_sums_of_times_as_text() -> None:
    known = Eta(seconds=60.0, by="", shares=False)
    unknown = replace(known, seconds=None)
    assert total([known, known]) == "2 min"
    assert total([known, unknown]) == "60 s, and 1 run of unknown time"
    assert total([unknown, unknown]) == "2 runs of unknown time"
