"""Stochastic Weight Averaging in Parallel (Gupta, Serrano, DeCoste, ICLR 2020), fast and faithful.

`swap_fast.swap` trains a net of yours; `swap_fast.refine` does phases 2 and 3 around a trainer of
yours. The algorithm is in `swap_fast.algorithm`; names are
imported on first use.
"""

from importlib import import_module
from typing import Any

_HOME = {
    "swap": "user.api",
    "refine": "user.refine",
    "SwapResult": "user.result",
    "RefineResult": "user.result",
    "InterruptedRunError": "training.shutdown",
    "Callback": "training.callback",
    "SGDRecipe": "config.recipe",
    "SWAPRecipe": "config.recipe",
    "Phase": "config.phase",
    "RECIPES": "recipes.cifar10",
    "ResNet9": "models",
    "Muon": "training.muon",
    "Trainer": "training.trainer",
    "build_trainer": "training.trainer",
    "Weights": "training.weights",
    "average": "training.weights",
    "average_models": "averaging_files.soups",
    "average_files": "averaging_files.soups",
    "recompute_batchnorm": "user.clean_copy",
    "recompute_statistics_": "training.batchnorm",
    "export_onnx": "onnx_export",
}

__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    """Import a public name from the module that defines it."""
    if name not in _HOME:
        raise AttributeError(f"module 'swap_fast' has no attribute {name!r}")
    return getattr(import_module(f"swap_fast.{_HOME[name]}"), name)
