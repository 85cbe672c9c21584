"""Weights on disk."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_trainer import SmallNet
from torch import nn

from swap_fast.checkpoint.files import load_theta, save_weights
from swap_fast.config.execution import Execution
from swap_fast.models import ResNet9
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
        with pytest.raises(OSError, match="File too large"):
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
