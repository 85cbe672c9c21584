"""A run's final model as ONNX: the net from its record, the weights from its folder."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import fake_cifar
from record_factory import make_record, with_recipe
from repository import RECORDED_RUNS
from safetensors.torch import save_file
from torch import nn

from bench.cli import main
from bench.export.onnx import check_images, final_model
from bench.export.options import OnnxOptions
from swap_fast.models import ResNet9, ResNet50, SpeedNet, WhitenedResNet9
from swap_fast.record import RunRecord
from swap_fast.record_files import read_record, write_record

TREE = {
    "name": "imagenet",
    "kind": "own",
    "sha256": "cd" * 32,
    "train_images": 40,
    "test_images": 20,
    "classes": 7,
}


def _keep(record: RunRecord, net: nn.Module, results: Path) -> Path:
    """The record and weights of a finished run, where a run leaves them."""
    write_record(record, results / "runs")
    weights = results / "checkpoints" / record.run_id / "final.safetensors"
    weights.parent.mkdir(parents=True)
    state = {name: tensor.clone().contiguous() for name, tensor in net.state_dict().items()}
    save_file(state, weights)
    return weights


def _nets() -> list[tuple[RunRecord, nn.Module]]:
    torch.manual_seed(3)
    small = {"width": 4}
    swap = with_recipe(make_record("cifar10_cpu"), **small)
    whitened = with_recipe(make_record("cifar10_sgd_small_cpu"), net="whitened_resnet9", **small)
    speed = with_recipe(make_record("cifar10_sgd_small_cpu"), net="speed_net", **small)
    tree = with_recipe(make_record("imagenet_swap_cpu", data=TREE), width=8, blocks=[1, 1, 1, 1])
    return [
        (swap, ResNet9(10, 4)),
        (whitened, WhitenedResNet9(10, 4, torch.randn(27, 3, 3, 3))),
        (speed, SpeedNet(10, 4, torch.randn(12, 3, 2, 2))),
        (tree, ResNet50(7, 8, blocks=(1, 1, 1, 1))),
    ]


@pytest.mark.parametrize("number", range(4), ids=["resnet9", "whitened", "speed", "resnet50"])
def test_the_final_model_is_rebuilt_from_the_record(number: int, tmp_path: Path) -> None:
    record, net = _nets()[number]
    for tensor in net.state_dict().values():  # statistics as training leaves them, not 0 and 1
        if tensor.is_floating_point():
            tensor.add_(0.1 * torch.rand_like(tensor))
    again = final_model(record, _keep(record, net, tmp_path))
    images = torch.randn(2, 3, 64, 64) if number == 3 else torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(again(images), net.eval()(images))


def test_another_nets_weights_are_refused(tmp_path: Path) -> None:
    record, _ = _nets()[0]
    weights = _keep(record, ResNet9(10, 8), tmp_path)
    with pytest.raises(ValueError, match=r"expected the weights of resnet9 of width 4, got"):
        final_model(record, weights)
    weights.write_bytes(b"short")
    with pytest.raises(ValueError, match=r"expected the weights of resnet9 of width 4, got"):
        final_model(record, weights)


def test_the_command_writes_a_model_that_onnxruntime_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SWAP_DATA", raising=False)
    record, net = _nets()[0]
    _keep(record, net, tmp_path)
    path = tmp_path / "model.onnx"
    export = ["export", "onnx", "--results", str(tmp_path), "-o", str(path), "--images", "8"]
    assert main(export) == 0
    line = capsys.readouterr().out.strip()
    assert line.startswith(f"{path}: logits of onnxruntime within ")
    assert line.endswith("of torch's on 8 random images")
    images = torch.randn(5, 3, 32, 32)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"images": images.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(logits, net.eval()(images).numpy(), atol=1e-5)
    told = {each.key: each.value for each in onnx.load(path).metadata_props}
    assert json.loads(told["class_names"])[3] == "cat"
    assert json.loads(told["mean"]) == [125.31, 122.95, 113.87]
    assert told["run_id"] == record.run_id


def test_real_images_are_normalised_as_in_training(tmp_path: Path) -> None:
    cifar = fake_cifar()
    cifar.write_binary(tmp_path)
    record, _ = _nets()[0]
    images, what = check_images(record, OnnxOptions(data=tmp_path, images=7))
    assert (tuple(images.shape), what) == ((7, 3, 32, 32), "test images of cifar10")
    planes = cifar.test[:, 1:].reshape(-1, 3, 32, 32)
    mean = np.array([125.31, 122.95, 113.87]).reshape(3, 1, 1)
    std = np.array([62.99, 62.09, 66.70]).reshape(3, 1, 1)
    known = (planes - mean) / std
    for image in images.numpy():  # the data set has an order of its own
        assert np.abs(known - image).max((1, 2, 3)).min() < 1e-5


def test_a_tree_is_checked_at_its_last_stages_size() -> None:
    (path,) = RECORDED_RUNS.glob("imagenet_swap_cpu-seed0-*.json")
    stages = json.loads(path.read_text())["configuration"]["recipe"]["phase2"]["stages"]
    side = stages[-1]["image_size"]
    images, what = check_images(read_record(path), OnnxOptions(images=3))
    assert (tuple(images.shape), what) == ((3, 3, side, side), "random images")
