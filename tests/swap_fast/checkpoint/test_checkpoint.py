"""Weights and manifests on disk."""

from __future__ import annotations

import math
import os
import resource
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_trainer import SmallNet
from torch import nn

from swap_fast.checkpoint.files import (
    SCHEMA_VERSION,
    Checkpoint,
    CheckpointInfo,
    DamagedError,
    load_theta,
    read_checkpoint,
    read_json,
    save_weights,
    write_checkpoint,
    write_json,
)
from swap_fast.checkpoint.run_folder import RunInfo, read_run_info
from swap_fast.config.execution import Execution
from swap_fast.models import ResNet9
from swap_fast.record import EpochRow
from swap_fast.training.evaluate import Accuracies
from swap_fast.training.state import Progress
from swap_fast.training.weights import Weights

CPU = torch.device("cpu")


def small_weights(seed: int, memory_format: str = "channels_last") -> Weights:
    torch.manual_seed(seed)
    execution = Execution(memory_format=memory_format)  # type: ignore[arg-type]
    weights = Weights(execution.place(SmallNet(), CPU))
    weights.model(torch.randn(4, 3, 32, 32))
    return weights


@pytest.mark.parametrize("memory_format", ["channels_last", "contiguous"])
def test_round_trip_is_bit_equal(tmp_path: Path, memory_format: str) -> None:
    saved, other = small_weights(0, memory_format), small_weights(1)
    path = tmp_path / "deeper" / "worker0.safetensors"
    save_weights(saved, path)
    theta = load_theta(other, path)
    for name, tensor in saved.model.state_dict().items():
        # Counts of batches, which depend on the number of processes, are not kept.
        expected = torch.zeros_like(tensor) if name.endswith("tracked") else tensor
        assert torch.equal(other.model.state_dict()[name], expected), name
    assert torch.equal(theta, other.theta.detach())
    assert torch.equal(other.statistics, saved.statistics)
    with torch.no_grad():
        other.theta.zero_()
    assert theta.abs().sum() > 0  # it is a copy
    assert os.listdir(path.parent) == [path.name]


def test_the_file_has_the_model_s_own_names(tmp_path: Path) -> None:
    weights = small_weights(0)
    path = tmp_path / "w.safetensors"
    save_weights(weights, path)
    plain = SmallNet()
    plain.load_state_dict(load_file(path))
    assert torch.equal(plain.linear.weight, weights.model.get_parameter("linear.weight"))


def test_tied_weights_are_saved(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    weights = Weights(model)
    save_weights(weights, tmp_path / "w.safetensors")
    kept = weights.theta.detach().clone()
    with torch.no_grad():
        weights.theta.zero_()
    assert torch.equal(load_theta(weights, tmp_path / "w.safetensors"), kept)


def test_a_second_save_replaces_the_first(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    for seed in (0, 1):
        save_weights(small_weights(seed), path)
    expected = small_weights(1).theta.detach()
    assert torch.equal(load_theta(small_weights(2), path), expected)
    assert os.listdir(tmp_path) == [path.name]


def test_other_shapes_and_names_are_refused_and_the_model_is_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_weights(Weights(ResNet9(width=2)), path)
    wider = Weights(ResNet9(width=3))
    before = wider.copy()
    with pytest.raises(ValueError, match=r"^w\.safetensors, layer1\.0\.bn\.bias: expected \(6,\)"):
        load_theta(wider, path)
    assert all(torch.equal(a, b) for a, b in zip(wider.copy(), before, strict=True))
    with pytest.raises(ValueError, match="no such tensor"):
        load_theta(small_weights(0), path)


def test_a_damaged_file_is_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_weights(small_weights(0), path)
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(ValueError, match=r"^w\.safetensors: expected a safetensors file") as caught:
        load_theta(small_weights(0), path)
    assert "\n" not in str(caught.value)


def test_a_file_that_may_not_grow_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_weights(small_weights(0), path)
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limits[1]))
    try:
        said = r"File too large: [\d,]+ bytes of w\.safetensors could not be written"
        with pytest.raises(OSError, match=said):
            save_weights(small_weights(1), path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == [path.name]


def test_a_disk_that_fails_to_sync_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "w.safetensors"
    save_weights(small_weights(0), path)
    before = path.read_bytes()

    def failing(descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(OSError, match="Input/output error"):
        save_weights(small_weights(1), path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == [path.name]


# Manifests and run.json: JSON with a schema version and a checksum of itself.

ROW = EpochRow(
    **{"phase": 2, "worker": 1, "epoch": 3, "learning_rate": 0.1, "train_loss": 1e-7},
    **{"train_accuracy": 1 / 3, "time_s": 12.5, "noise_scale": 7.0},
)
INFO = CheckpointInfo(
    progress=Progress(phase=2, worker=1, epoch=3, step=2, accuracies=Accuracies(0.5, 1.0)),
    origin="ab",
    optimizer={"scaler": {"scale": 65536.0}, "steps": [1, 2]},
    laps_by_rank=[{"phase2": 1.5}, {}],
    sums_by_rank=[[0.1, 3.0], []],
    rows=[ROW],
)


def small_checkpoint(folder: Path, info: CheckpointInfo = INFO) -> Path:
    stem = folder / "worker1-epoch3-step2"
    tensor = torch.arange(3.0)
    write_checkpoint(stem, Checkpoint(model={"a": tensor}, state={"b": tensor + 1}, about=info))
    return stem


def without_hashes(checkpoint: Checkpoint) -> CheckpointInfo:
    return replace(checkpoint.about, weights_sha256={})


def test_a_checkpoint_comes_back_with_its_types(tmp_path: Path) -> None:
    read = read_checkpoint(small_checkpoint(tmp_path))
    assert without_hashes(read) == INFO
    assert read.about.weights_sha256.keys() == {"worker1-epoch3-step2"}
    assert isinstance(read.about.progress.accuracies, Accuracies)
    assert read.model["a"].tolist() == [0, 1, 2]
    assert read.state["b"].tolist() == [1, 2, 3]
    untested = replace(INFO, progress=Progress(phase=1, accuracies=Accuracies(math.nan)))
    again = read_checkpoint(small_checkpoint(tmp_path, untested)).about.progress
    assert again.accuracies.tested is None


def test_a_flipped_bit_of_any_byte_of_a_manifest_is_seen_or_changes_nothing(
    tmp_path: Path,
) -> None:
    path = small_checkpoint(tmp_path).with_name("worker1-epoch3-step2.json")
    stem, whole, unseen = path.with_suffix(""), path.read_bytes(), 0
    for at in range(len(whole)):
        content = bytearray(whole)
        content[at] ^= 1 << at % 8
        path.write_bytes(content)
        try:
            read = read_checkpoint(stem)
        except DamagedError:
            continue
        unseen += 1
        assert (without_hashes(read), read.model["a"].tolist()) == (INFO, [0, 1, 2])
    assert unseen < len(whole) / 50  # of white space, and the case of an exponent's e


def test_a_manifest_cut_anywhere_is_damaged(tmp_path: Path) -> None:
    path = small_checkpoint(tmp_path).with_name("worker1-epoch3-step2.json")
    whole = path.read_bytes()
    for length in range(len(whole) - 1):  # the last byte is a line's end
        path.write_bytes(whole[:length])
        with pytest.raises(DamagedError):
            read_checkpoint(path.with_suffix(""))


FOREIGN = {
    "empty": b"",
    "list": b"[]",
    "number": b"3",
    "object": b"{}",
    "deep": b"[" * 100_000,
    "deep object": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "latin-1": '{"name": "\u00e9"}'.encode("latin-1"),
    "zeros": bytes(500),
    "long number": b"1" * 10_000,
}


@pytest.mark.parametrize("content", FOREIGN.values(), ids=FOREIGN.keys())
def test_other_content_is_damaged_in_one_line(content: bytes, tmp_path: Path) -> None:
    stem = small_checkpoint(tmp_path)
    (tmp_path / "worker1-epoch3-step2.json").write_bytes(content)
    (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(DamagedError, match=r"^worker1-epoch3-step2\.json: expected JSON") as seen:
        read_checkpoint(stem)
    with pytest.raises(ValueError, match=r"run\.json: expected JSON .*; delete this folder") as run:
        read_run_info(tmp_path)
    for error in (seen, run):
        assert "\n" not in str(error.value)
        assert len(str(error.value)) < 400


def test_whole_json_of_another_layout_is_damaged(tmp_path: Path) -> None:
    write_json(tmp_path / "run.json", INFO)
    with pytest.raises(DamagedError, match="missing required field `created`"):
        read_json(tmp_path / "run.json", RunInfo)


def test_another_version_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("swap_fast.checkpoint.files.SCHEMA_VERSION", 7)
    write_json(tmp_path / "run.json", RunInfo(created="", settings={}, machine={}))
    monkeypatch.undo()
    line = rf"^run\.json: expected schema_version {SCHEMA_VERSION}, got 7; use the version of"
    with pytest.raises(ValueError, match=line) as refused:
        read_run_info(tmp_path)
    assert not isinstance(refused.value, DamagedError)
