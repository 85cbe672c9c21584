"""The measurements run from end to end, at the smallest size, and leave a record."""

import json
from pathlib import Path

import numpy as np
import pytest

from bench import micro, micro_data, micro_step
from bench.cli import main
from bench.micro import data_ways
from bench.options import MicroOptions


@pytest.mark.parametrize("compiled", [False])
@pytest.mark.parametrize("channels_last", [False, True])
def test_the_steps_take_the_images_they_count(compiled: bool, channels_last: bool) -> None:
    assert micro_step.our_step("cpu", 2, 4)() == 4 * micro_step.STEPS
    assert micro_step.our_loop("cpu", 2, 4)() == 4 * micro_step.STEPS
    assert micro_step.torch_step("cpu", 2, 4, compiled, channels_last)() == 4 * micro_step.STEPS


@pytest.mark.parametrize("ours", [False, True])
def test_the_batch_norm_pass_takes_the_images_it_counts(ours: bool) -> None:
    assert micro_step.batch_norm_pass("cpu", 2, 4, ours)() == 4 * micro_step.STEPS


def test_the_input_ways_make_the_images_they_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(micro_data, "NUM_IMAGES", 64)
    monkeypatch.setattr(micro_data, "LOADER_IMAGES", 32)
    for dtype in micro_data.DTYPES:
        assert micro_data.our_batches("tensor", "cpu", 16, dtype)() == 64
        assert micro_data.our_batches("torchvision", "cpu", 16, dtype)() == 32
        assert micro_data.whole_epoch_crop("cpu", 16, dtype)() == 64
        assert micro_data.copy_floor("cpu", 16, dtype)() == 64
        assert micro_data.torchvision_loader(16, dtype, 0)() == 32


@pytest.mark.parametrize("dtype", list(micro_data.DTYPES))
def test_the_ways_of_dali_make_the_images_they_count(
    monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    monkeypatch.setattr(micro_data, "NUM_IMAGES", 70)
    for work in (
        micro_data.our_batches("dali", "cpu", 16, dtype),
        micro_data.bare_dali("cpu", 16, dtype, 1),
        micro_data.stock_dali("cpu", 16, dtype, 1),
    ):
        assert [work(), work()] == [64, 64]


def test_each_group_of_input_ways_has_our_own_first() -> None:
    options = MicroOptions(what="data")
    groups = data_ways(options, "cpu", 2)
    forms = [f"{dtype}, {n}" for dtype in micro_data.DTYPES for n in ("1 thread", "2 threads")]
    assert [title for title in groups if title.startswith("augmented")] == [
        f"augmented batches, {form}" for form in forms
    ]
    for ways in groups.values():
        assert ways[0].name.startswith("ours, ")
        assert len({way.name for way in ways}) == len(ways)


def test_without_dali_its_ways_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(micro, "missing_for_dali", lambda device: "DALI is not there")
    for ways in data_ways(MicroOptions(what="data"), "cpu", 1).values():
        assert not any("dali" in way.name.lower() for way in ways)


@pytest.mark.slow
def test_a_measurement_leaves_a_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--rounds", "2", "--width", "2", "--batch-size", "8", "--threads", "1"]
    assert main(["micro", "step", *arguments, "--out", str(tmp_path)]) == 0
    assert "torch's update_bn" in capsys.readouterr().out
    (path,) = tmp_path.glob("micro-step-cpu-*.json")
    record = json.loads(path.read_text())
    for timings in record["results"].values():
        for timing in timings:
            assert len(timing["images_per_s"]) == 2
            assert np.isfinite(timing["images_per_s"]).all()
