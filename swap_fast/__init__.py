"""Stochastic Weight Averaging in Parallel (Gupta, Serrano, DeCoste, ICLR 2020), fast and faithful.

The algorithm is in `swap_fast.algorithm`; names are imported on first use.
"""

from importlib import import_module
from typing import Any

_HOME = {
    "SGDRecipe": "recipe",
    "SWAPRecipe": "recipe",
    "Phase": "config",
    "RECIPES": "recipes",
    "ResNet9": "models",
    "Parts": "parts",
    "make_parts": "parts",
    "Weights": "weights",
    "average": "averaging",
    "average_files": "soups",
    "recompute_statistics_": "batchnorm",
    "export_onnx": "onnx_export",
}

__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    """Import a public name from the module that defines it."""
    if name not in _HOME:
        raise AttributeError(f"module 'swap_fast' has no attribute {name!r}")
    return getattr(import_module(f"swap_fast.{_HOME[name]}"), name)
