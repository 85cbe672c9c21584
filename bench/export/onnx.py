"""A run's final model as an ONNX file: the net from its record, the weights from its folder."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from bench.data_tools import CLASSES
from bench.export.options import OnnxOptions
from bench.records.grouping import recipe_of
from swap_fast.config.checks import one_line
from swap_fast.data.cifar.augment import IMAGE_SIZE
from swap_fast.data.cifar.dataset import KNOWN
from swap_fast.data.cifar.files import load_dataset, locate_dataset
from swap_fast.data.imagenet.scan import IMAGENET_MEAN, IMAGENET_STD
from swap_fast.models import ResNet9, ResNet50, SpeedNet, WhitenedResNet9
from swap_fast.onnx_export import export_onnx
from swap_fast.record import RunRecord


def export_final_model(record: RunRecord, weights: Path, path: Path, options: OnnxOptions) -> str:
    """Write the final model of a run, and say in one line how far onnxruntime is from torch.

    Raises:
        ValueError: the weights are not the record's net's, or as `export_onnx`.
    """
    model = final_model(record, weights)
    images, what = check_images(record, options)
    difference = export_onnx(model, path, images, metadata=about(record))
    return (
        f"{path}: logits of onnxruntime within {difference:.1e} of torch's on {len(images)} {what}"
    )


def final_model(record: RunRecord, weights: Path) -> nn.Module:
    """The net of the record's recipe with these weights, in evaluation mode.

    Raises:
        ValueError: not a safetensors file, or another net's weights.
    """
    recipe, name = recipe_of(record), record.data["name"]
    width = recipe["width"]
    classes = int(record.data["classes"]) if name == "imagenet" else KNOWN[name].num_classes
    # The filters of whitening are saved with the weights.
    nets: dict[str, Callable[[], nn.Module]] = {
        "resnet9": lambda: ResNet9(classes, width),
        "resnet50": lambda: ResNet50(classes, width, blocks=tuple(recipe["blocks"])),
        "whitened_resnet9": lambda: WhitenedResNet9(classes, width, torch.zeros(27, 3, 3, 3)),
        "speed_net": lambda: SpeedNet(classes, width, torch.zeros(12, 3, 2, 2)),
    }
    model = nets[recipe["net"]]()
    try:
        model.load_state_dict(load_file(weights))
    except (SafetensorError, RuntimeError) as error:
        net, got = f"{recipe['net']} of width {width}", one_line(error, 200)
        raise ValueError(f"{weights}: expected the weights of {net}, got {got}") from None
    return model.eval()


def check_images(record: RunRecord, options: OnnxOptions) -> tuple[Tensor, str]:
    """Normalised images [B, 3, H, W] to check on, and what they are."""
    name, recipe = record.data["name"], recipe_of(record)
    has_data = options.data is not None or os.environ.get("SWAP_DATA")
    if name in ("cifar10", "cifar100") and has_data:
        test = load_dataset(name, locate_dataset(name, options.data)).test
        pixels = torch.from_numpy(test.images[: options.images].copy()).float()
        mean, std = (torch.tensor(values) for values in (KNOWN[name].mean, KNOWN[name].std))
        return ((pixels - mean) / std).permute(0, 3, 1, 2).contiguous(), f"test images of {name}"
    side = IMAGE_SIZE
    if name == "imagenet":
        last = recipe["phase2"] if "phase2" in recipe else recipe["phase1"]
        side = last["stages"][-1]["image_size"]
    generator = torch.Generator().manual_seed(record.seed)
    return torch.randn(options.images, 3, side, side, generator=generator), "random images"


def about(record: RunRecord) -> dict[str, Any]:
    """What the file says of itself: what goes in, what comes out, and the run."""
    name = record.data["name"]
    mean, std = IMAGENET_MEAN, IMAGENET_STD
    if name != "imagenet":
        mean, std = KNOWN[name].mean, KNOWN[name].std
    return {
        "run_id": record.run_id,
        "recipe": record.recipe,
        "test_accuracy": record.test_accuracy,
        "data": name,
        "data_kind": record.data["kind"],
        "input": "[batch, 3, height, width], red, green, blue: (pixel - mean) / std, pixels 0..255",
        "mean": mean,
        "std": std,
        "output": "logits [batch, classes]; the class is the place of the largest",
        **({"class_names": CLASSES} if name == "cifar10" else {}),
    }
