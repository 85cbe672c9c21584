"""What a configuration refuses, in one line that names field, expectation and value."""

from __future__ import annotations

import json
import math
from dataclasses import FrozenInstanceError, asdict, replace
from typing import Any

import numpy as np
import pytest
from small_trainer import PHASE1, PHASE2, SGD, SWA, SWAP, make_dataset

from swap_fast.config.phase import Augmentation, Optimizer, Phase
from swap_fast.recipes.imagenet import imagenet_swap_cpu
from swap_fast.tasks.cifar import CifarSource

STAGE = imagenet_swap_cpu().phase1.stages[0]
BAD: list[tuple[Any, dict[str, Any], str]] = [
    (PHASE1, {"global_batch_size": 0}, "global_batch_size"),
    (PHASE1, {"global_batch_size": 15}, "global_batch_size"),
    (PHASE1, {"peak_lr": 0.0}, "peak_lr"),
    (PHASE1, {"peak_lr": -0.1}, "peak_lr"),
    (PHASE1, {"peak_lr": math.nan}, "peak_lr"),
    (PHASE1, {"max_epochs": 0}, "max_epochs"),
    (PHASE1, {"warmup_epochs": -1.0}, "warmup_epochs"),
    (PHASE1, {"warmup_epochs": 2.0}, "horizon_epochs"),
    (PHASE1, {"warmup_epochs": math.nan}, "warmup_epochs"),
    (PHASE1, {"horizon_epochs": 0.5}, "horizon_epochs"),
    (PHASE1, {"horizon_epochs": math.nan}, "horizon_epochs"),
    (PHASE1, {"final_lr": -1e-9}, "final_lr"),
    (PHASE1, {"stopping_accuracy": 0.0}, "stopping_accuracy"),
    (PHASE1, {"stopping_accuracy": 1.0}, "stopping_accuracy"),
    (PHASE1, {"stopping_accuracy": 98.0}, "stopping_accuracy"),
    (PHASE1, {"stop": "never"}, "stop"),
    (PHASE1, {"stop": "auto", "stopping_accuracy": 0.9}, "stopping_accuracy"),
    (PHASE1, {"stop": "auto", "gpus_per_model": 1}, "gpus_per_model"),
    (PHASE1, {"stopping_noise_ratio": 0.0}, "stopping_noise_ratio"),
    (PHASE1, {"stopping_noise_ratio": math.inf}, "stopping_noise_ratio"),
    (PHASE2, {"cycles": 2, "stop": "auto", "gpus_per_model": 2}, "cycles"),
    (SWAP, {"phase2": replace(PHASE2, stop="auto", gpus_per_model=2)}, "phase2.stop"),
    (SWA, {"phase2": replace(PHASE2, stop="auto", gpus_per_model=2)}, "phase2.stop"),
    (PHASE1, {"gpus_per_model": 0}, "gpus_per_model"),
    (PHASE1, {"gpus_per_model": -2}, "gpus_per_model"),
    (PHASE2, {"cycles": 0}, "cycles"),
    (PHASE2, {"cycles": 3}, "cycles"),
    (PHASE1, {"cycles": 2}, "cycles"),
    (PHASE2, {"cycles": 2, "horizon_epochs": 3}, "cycles"),
    (PHASE2, {"cycles": 2, "stopping_accuracy": 0.9}, "cycles"),
    (
        SWA,
        {"phase2": replace(PHASE2, global_batch_size=9, gpus_per_model=3)},
        "phase2.gpus_per_model",
    ),
    (SWA, {"batch_norm_batch_size": 1}, "batch_norm_batch_size"),
    (SWA, {"net": "whitened_resnet9"}, "net"),
    (SWA, {"phase2": replace(PHASE2, global_batch_size=400), "train_images": 300}, "train_images"),
    (Augmentation(), {"pad": -1}, "pad"),
    (Augmentation(), {"pad": 32}, "pad"),
    (Augmentation(), {"cutout": -1}, "cutout"),
    (Augmentation(), {"cutout": 33}, "cutout"),
    (Optimizer(), {"momentum": 0.0}, "momentum"),
    (Optimizer(), {"momentum": 1.0}, "momentum"),
    (Optimizer(), {"weight_decay": -1e-4}, "weight_decay"),
    (Optimizer(), {"bias_lr_factor": 0.0}, "bias_lr_factor"),
    (Optimizer(), {"kind": "adam"}, "kind"),
    (Optimizer(), {"head_lr_factor": 2.0}, "head_lr_factor"),
    (Optimizer(), {"sgd_momentum": 0.8}, "sgd_momentum"),
    (Optimizer(kind="muon"), {"sgd_momentum": 1.0}, "sgd_momentum"),
    (Optimizer(kind="muon"), {"head_lr_factor": math.inf}, "head_lr_factor"),
    (Optimizer(kind="muon"), {"nesterov": False}, "nesterov"),
    (Augmentation(), {"flip": "mirror"}, "flip"),
    (SGD, {"label_smoothing": 1.0}, "label_smoothing"),
    (SGD, {"label_smoothing": -0.1}, "label_smoothing"),
    (SGD, {"width": 0}, "width"),
    (SGD, {"target_accuracy": 94.0}, "target_accuracy"),
    (SGD, {"target_accuracy": 0.0}, "target_accuracy"),
    (SGD, {"train_images": 15}, "train_images"),
    (SWAP, {"train_images": 15}, "train_images"),
    (SWAP, {"num_workers": 0}, "num_workers"),
    (SWAP, {"num_workers": 4}, "phase1.gpus_per_model"),
    (SWAP, {"phase2": replace(PHASE2, gpus_per_model=2)}, "phase1.gpus_per_model"),
    (SWAP, {"phase2": replace(PHASE2, global_batch_size=400), "train_images": 300}, "train_images"),
    (SWAP, {"batch_norm_batch_size": 1}, "batch_norm_batch_size"),
    # Of another type.
    (PHASE1, {"peak_lr": "0.1"}, "peak_lr"),
    (PHASE1, {"peak_lr": True}, "peak_lr"),
    (PHASE1, {"global_batch_size": True}, "global_batch_size"),
    (PHASE1, {"max_epochs": 2.0}, "max_epochs"),
    (PHASE1, {"stopping_accuracy": "0.9"}, "stopping_accuracy"),
    (PHASE1, {"stop": 3}, "stop"),
    (Augmentation(), {"pad": 1.5}, "pad"),
    (Optimizer(), {"nesterov": "yes"}, "nesterov"),
    (Optimizer(), {"loss_scale": math.nan}, "loss_scale"),
    (STAGE, {"first_lr": "0.1"}, "first_lr"),
    (STAGE, {"rectangular_test": 1}, "rectangular_test"),
    (imagenet_swap_cpu().phase1, {"stages": 3}, "stages"),
    (SGD, {"width": "64"}, "width"),
    (SGD, {"dataset": "mnist"}, "dataset"),
    (SGD, {"train_images": 320.0}, "train_images"),
    (SGD, {"phase1": 3}, "phase1"),
    (SGD, {"blocks": 3}, "blocks"),
    (SWAP, {"keep_momentum": 1}, "keep_momentum"),
    (SWAP, {"num_workers": 2.5}, "num_workers"),
]


@pytest.mark.parametrize(("good", "changed", "name"), BAD, ids=lambda value: str(value)[:60])
def test_a_bad_value_is_refused_in_one_line(good: Any, changed: dict[str, Any], name: str) -> None:
    with pytest.raises(ValueError, match="expected") as refused:
        replace(good, **changed)
    message = str(refused.value)
    assert message.startswith(f"{name}: expected ")
    assert "\n" not in message
    value = changed.get(name)
    assert message.split(", got ")[-1]
    if value is not None:
        assert message.endswith(f", got {value!r}")


@pytest.mark.parametrize(
    ("good", "changed"),
    [
        (PHASE1, {"global_batch_size": 2}),
        (PHASE1, {"stopping_accuracy": 0.999}),
        (PHASE1, {"horizon_epochs": 0.75}),
        (PHASE1, {"final_lr": 0.0}),
        (Augmentation(), {"pad": 31, "cutout": 32}),
        (Augmentation(), {"pad": 0, "cutout": 0}),
        (Optimizer(), {"weight_decay": 0.0}),
        (SWAP, {"train_images": 16}),
    ],
    ids=lambda value: str(value)[:60],
)
def test_the_limits_are_allowed(good: Any, changed: dict[str, Any]) -> None:
    replace(good, **changed)


def test_numbers_of_numpy_are_python_s_and_lists_are_tuples() -> None:
    said = {"global_batch_size": np.int64(16), "peak_lr": np.float32(0.5), "final_lr": 0}
    phase = replace(PHASE1, **said)
    assert phase == replace(PHASE1, global_batch_size=16, peak_lr=0.5)
    assert (type(phase.global_batch_size), type(phase.peak_lr)) == (int, float)
    json.dumps(asdict(phase))
    staged = imagenet_swap_cpu()
    assert replace(staged, blocks=[1, 1, 1, 1]) == staged
    assert replace(staged.phase1, stages=list(staged.phase1.stages)) == staged.phase1


def test_configurations_are_frozen_and_keyword_only() -> None:
    with pytest.raises(FrozenInstanceError):
        PHASE1.peak_lr = 1.0  # type: ignore[misc]
    with pytest.raises(TypeError):
        Phase(16, 0.3, 2)  # type: ignore[misc]


def test_a_replica_has_its_share_of_the_batch() -> None:
    assert replace(PHASE1, global_batch_size=4096, gpus_per_model=8).micro_batch_size == 512


def test_sizes_of_a_recipe() -> None:
    assert (SGD.largest_batch_size, SGD.num_replicas) == (16, 2)
    wide = replace(SWAP, phase2=replace(PHASE2, global_batch_size=64))
    assert (SWAP.largest_batch_size, wide.largest_batch_size, SWAP.num_replicas) == (16, 64, 2)


def test_the_paper_s_defaults() -> None:
    assert Optimizer() == Optimizer(momentum=0.9, weight_decay=5e-4)
    assert Augmentation() == Augmentation(pad=4, flip="random", cutout=8)
    assert not SWAP.keep_momentum
    assert SWAP.batch_norm_augmented


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"augmentation": Augmentation(pad=0, flip="none", cutout=0)}, "augmentation"),
        ({"mirrored_evaluation": True}, "mirrored_evaluation"),
        ({"batch_norm_augmented": False}, "batch_norm_augmented"),
        ({"train_images": 50_000}, "train_images"),
    ],
)
def test_a_tree_of_files_refuses_what_only_resident_images_have(
    change: dict[str, Any], name: str
) -> None:
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        replace(imagenet_swap_cpu(), **change)


@pytest.mark.parametrize("net", ["resnet9", "whitened_resnet9", "speed_net"])
def test_blocks_of_a_net_that_has_none_are_refused(net: Any) -> None:
    message = rf"^blocks: expected \(3, 4, 6, 3\), .* not {net}'s, got \(1, 1, 1, 1\)$"
    with pytest.raises(ValueError, match=message):
        replace(SGD, net=net, blocks=(1, 1, 1, 1))


def test_resident_images_have_no_stages() -> None:
    recipe = replace(imagenet_swap_cpu(), dataset="synthetic", net="resnet9", blocks=(3, 4, 6, 3))
    with pytest.raises(ValueError, match=r"^phase1: expected no stages for synthetic"):
        CifarSource(recipe, make_dataset())
