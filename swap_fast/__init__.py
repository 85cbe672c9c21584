"""Stochastic Weight Averaging in Parallel (Gupta, Serrano, DeCoste, ICLR 2020), fast and faithful.

`swap_fast.swap` trains a net of yours; `swap_fast.refine` does phases 2 and 3 around a trainer of
yours. The algorithm is in `swap_fast.algorithm`; names are imported on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

_HOME = {
    "swap": "user.api",
    "refine": "user.refine",
    "SwapResult": "user.result",
    "RefineResult": "user.result",
    "InterruptedRunError": "shutdown",
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
    "export_onnx": "onnx_export",
    "keep_freed_memory": "host_memory",
}

__all__ = list(_HOME)


def __dir__() -> list[str]:
    """What completion offers."""
    return sorted([*globals(), *_HOME])


if TYPE_CHECKING:  # what type checkers and editors see; a name that is not here is an error
    from swap_fast.averaging_files.soups import average_files as average_files
    from swap_fast.averaging_files.soups import average_models as average_models
    from swap_fast.config.phase import Phase as Phase
    from swap_fast.config.recipe import SGDRecipe as SGDRecipe
    from swap_fast.config.recipe import SWAPRecipe as SWAPRecipe
    from swap_fast.host_memory import keep_freed_memory as keep_freed_memory
    from swap_fast.models import ResNet9 as ResNet9
    from swap_fast.onnx_export import export_onnx as export_onnx
    from swap_fast.recipes.cifar10 import RECIPES as RECIPES
    from swap_fast.shutdown import InterruptedRunError as InterruptedRunError
    from swap_fast.training.callback import Callback as Callback
    from swap_fast.training.muon import Muon as Muon
    from swap_fast.training.trainer import Trainer as Trainer
    from swap_fast.training.trainer import build_trainer as build_trainer
    from swap_fast.training.weights import Weights as Weights
    from swap_fast.training.weights import average as average
    from swap_fast.user.api import swap as swap
    from swap_fast.user.clean_copy import recompute_batchnorm as recompute_batchnorm
    from swap_fast.user.refine import refine as refine
    from swap_fast.user.result import RefineResult as RefineResult
    from swap_fast.user.result import SwapResult as SwapResult
else:

    def __getattr__(name: str) -> object:
        """Import a public name from the module that defines it."""
        if name not in _HOME:
            raise AttributeError(f"module 'swap_fast' has no attribute {name!r}")
        return getattr(import_module(f"swap_fast.{_HOME[name]}"), name)
