"""The measurements run from end to end, at the smallest size, and leave a record."""

import json
from pathlib import Path

import numpy as np
import pytest

from bench import micro_data, micro_step
from bench.cli import main


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
    assert micro_data.our_batches("cpu", 16)() == 64
    assert micro_data.whole_epoch_crop("cpu", 16)() == 64
    assert micro_data.copy_floor("cpu", 16)() == 64
    assert micro_data.torchvision_loader(16, 0)() == 32


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
