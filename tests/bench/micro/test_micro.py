"""The measurements run from end to end, at the smallest size, and leave a record."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.cli import main
from bench.hardware.machine import has_compiler
from bench.micro import comparisons, peak
from bench.micro import data as micro_data
from bench.micro import step as micro_step
from bench.micro.comparisons import data_groups, step_groups
from bench.micro.peak import STEPS
from bench.micro.records import read_micro_records
from bench.options import MicroNet, MicroOptions
from swap_fast.config.execution import Execution
from swap_fast.data.imagenet.scan import scan_tree
from swap_fast.models.layers import Convolution

EAGER = Execution()
NCHW = Execution(memory_format="contiguous")


def test_the_steps_take_the_images_they_count() -> None:
    assert micro_step.our_step(EAGER, 2, 4)() == 4 * STEPS
    assert micro_step.our_loop(EAGER, 2, 4)() == 4 * STEPS
    for execution in (EAGER, NCHW):
        assert micro_step.torch_step(execution, 2, 4)() == 4 * STEPS


@pytest.mark.parametrize("name", ["resnet9", "speed_net"])
def test_others_have_the_same_net_with_torch_s_convolutions(name: MicroNet) -> None:
    net, images = micro_step.make_net(name, 4), torch.randn(2, 3, 32, 32)
    before = net(images)
    assert any(isinstance(module, Convolution) for module in net.modules())
    other = micro_step.with_torch_convolutions(net)
    assert not any(isinstance(module, Convolution) for module in other.modules())
    assert torch.equal(other(images), before)


@pytest.mark.slow
@pytest.mark.skipif(not has_compiler(), reason="no C++ compiler")
def test_compiled_steps_take_the_images_they_count() -> None:
    execution = Execution(step="compiled")
    assert micro_step.our_step(execution, 2, 4)() == 4 * STEPS
    assert micro_step.torch_step(execution, 2, 4)() == 4 * STEPS


@pytest.mark.parametrize("ours", [False, True])
def test_the_batch_norm_pass_takes_the_images_it_counts(ours: bool) -> None:
    assert micro_step.batch_norm_pass(EAGER, 2, 4, ours)() == 4 * STEPS


def test_the_peak_variants_count_their_own_work() -> None:
    assert peak.matrix_product("cpu", "fp32", 16)() == peak.PRODUCTS["cpu"] * 2 * 16**3
    assert peak.memory_copy("cpu", 64)() == 128  # read and written


def test_each_variant_of_the_step_has_a_peak_of_its_own_shape() -> None:
    groups = step_groups(EAGER, 2, 4, (8, 16))
    for size in (8, 16):
        variants = groups[f"the step, batch {size}"]
        for unit in ("images", "FLOP", "bytes"):
            shapes = {(v.processes, v.threads) for v in variants if v.unit == unit}
            assert shapes == {(2, 1), (1, 2)}
        assert variants[0].name == "ours, eager, 2 processes of 1 thread"
        assert all(v.cost is not None for v in variants if v.unit == "images")


def test_the_speed_net_s_step_is_timed_beside_the_same_net_in_torch() -> None:
    bf16 = replace(EAGER, precision="bf16")
    groups = step_groups(bf16, 1, 4, (4,), "speed_net")
    assert list(groups) == ["the step, batch 4"]
    variants = [v for v in groups["the step, batch 4"] if "eager" in v.name]
    assert [v.name for v in variants] == [
        "ours, eager",
        "torch, eager, NCHW",
        "torch, eager, channels_last",
    ]
    for variant in variants:
        assert variant.arguments[0].precision == "bf16"  # type: ignore[attr-defined]
        assert variant.make(*variant.arguments)() == 4 * STEPS


def test_a_net_and_a_precision_are_the_step_s() -> None:
    message = r"^net and precision: expected resnet9 and auto but for step without --peers, got "
    with pytest.raises(ValueError, match=message + "speed_net and auto$"):
        MicroOptions(what="data", net="speed_net")
    with pytest.raises(ValueError, match=message + "resnet9 and bf16$"):
        MicroOptions(what="step", precision="bf16", peers=True)


def test_the_input_variants_make_the_images_they_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(micro_data, "NUM_IMAGES", 64)
    monkeypatch.setattr(micro_data, "LOADER_IMAGES", 32)
    for dtype in micro_data.DTYPES:
        assert micro_data.our_batches("tensor", "cpu", 16, dtype)() == 64
        assert micro_data.our_batches("torchvision", "cpu", 16, dtype)() == 32
        assert micro_data.whole_epoch_crop("cpu", 16, dtype)() == 64
        assert micro_data.copy_floor("cpu", 16, dtype)() == 64
        assert micro_data.torchvision_loader(16, dtype, 0)() == 32


@pytest.mark.parametrize("dtype", list(micro_data.DTYPES))
def test_the_variants_of_dali_make_the_images_they_count(
    monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    monkeypatch.setattr(micro_data, "NUM_IMAGES", 70)
    for turn in (
        micro_data.our_batches("dali", "cpu", 16, dtype),
        micro_data.bare_dali("cpu", 16, dtype, 1),
        micro_data.stock_dali("cpu", 16, dtype, 1),
    ):
        assert [turn(), turn()] == [64, 64]


def test_each_group_of_input_variants_has_our_own_first() -> None:
    groups = data_groups("cpu", 256, 2)
    forms = [f"{dtype}, {n}" for dtype in micro_data.DTYPES for n in ("1 thread", "2 threads")]
    assert [title for title in groups if title.startswith("augmented")] == [
        f"augmented batches, {form}" for form in forms
    ]
    for variants in groups.values():
        assert variants[0].name.startswith("ours, ")
        assert len({v.name for v in variants}) == len(variants)


def test_without_dali_its_variants_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparisons, "missing_for_dali", lambda device: "DALI is not there")
    for variants in data_groups("cpu", 256, 1).values():
        assert not any("dali" in v.name.lower() for v in variants)


def test_the_jpeg_variants_make_the_images_they_count(tmp_path: Path) -> None:
    root = str(micro_data.write_jpegs(tmp_path, 10))
    for turn in (
        micro_data.our_jpegs("dali", root, "cpu", 4, 1),
        micro_data.our_jpegs("torchvision", root, "cpu", 4, 0),
        micro_data.torchvision_jpeg_loader(root, 4, 0),
    ):
        assert [turn(), turn()] == [8, 8]


def test_the_files_are_as_large_as_imagenets(tmp_path: Path) -> None:
    train = scan_tree(micro_data.write_jpegs(tmp_path, 8)).train
    assert (train.sizes == (375, 500)).all()
    assert 105_000 < train.file_bytes.mean() < 115_000


@pytest.mark.slow
def test_a_measurement_leaves_a_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--rounds", "2", "--width", "2", "--batch-sizes", "8", "--threads", "1"]
    peers = ["--peers", "--dataset", "synthetic", "--images", "16"]
    assert main(["micro", "step", *arguments, *peers, "--out", str(tmp_path)]) == 0
    assert "torch's update_bn" in capsys.readouterr().out
    ((record,), skipped) = read_micro_records(tmp_path)
    assert skipped == []
    assert (record.schema_version, record.width, record.batch_size) == (3, 2, 8)
    titles = ["whole training, input included, batch 8", "the step, batch 8"]
    assert [title for title in record.results if "batch " in title] == titles
    for group in record.results.values():
        for timing in group:
            assert len(timing.per_s) == 2
            assert np.isfinite(timing.per_s).all()
    for timing in record.results["the step, batch 8"]:
        if timing.unit == "images":
            assert timing.facts["operators"] > 50
            assert 0 < timing.facts["first_step_s"] < 600
            assert timing.facts["peak_memory_bytes"] > 0
    assert "synthetic images" in record.notes[0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["step", "--batch-sizes", "8", "0"], "batch_sizes: expected 1 or more each, got (8, 0)"),
        (["step", "--rounds", "0"], "rounds: expected 1 or more, got 0"),
        (["collective", "--ranks", "1"], "ranks: expected 2 or more, got 1"),
        (["step", "--peers", "--dataset", "synthetic", "--images", "9"], "one batch of 256, got 9"),
    ],
)
def test_what_cannot_be_measured_is_refused_with_exit_2(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = main(["micro", *arguments, "--device", "cpu"])
    except SystemExit as exit_:
        code = exit_.code
    assert code == 2
    error = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert words in error
