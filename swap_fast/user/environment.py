"""What a run ran on, for its record."""

import platform
from importlib import metadata
from typing import Any

import torch

LIBRARIES = ("swap_fast", "torch", "numpy", "safetensors")


def describe_environment(device: torch.device) -> dict[str, Any]:
    """Device, system and versions."""
    is_cuda = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if is_cuda else platform.machine() + " CPU",
        "device_type": device.type,
        "cuda": torch.version.cuda if is_cuda else None,
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "libraries": {name: _version(name) for name in LIBRARIES},
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
