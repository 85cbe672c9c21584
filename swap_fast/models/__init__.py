"""The networks of the experiments."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import nn

from swap_fast.models.layers import whitening_filters
from swap_fast.models.resnet9 import ResNet9, WhitenedResNet9
from swap_fast.models.resnet50 import ResNet50
from swap_fast.models.speed_net import EPSILON, FILTER_SIDE, SpeedNet

if TYPE_CHECKING:
    from swap_fast.config.recipe import Recipe
    from swap_fast.data.cifar.dataset import Dataset

__all__ = [
    "ResNet9",
    "ResNet50",
    "SpeedNet",
    "WhitenedResNet9",
    "make_net",
    "make_tree_net",
    "net_maker",
    "whitening_filters",
]

WHITENING_IMAGES = 10_000


def make_tree_net(recipe: Recipe, num_classes: int) -> nn.Module:
    """The recipe's net for trees of images, with fresh weights."""
    return ResNet50(num_classes, recipe.width, blocks=recipe.blocks)


def make_net(recipe: Recipe, dataset: Dataset) -> nn.Module:
    """The recipe's net with fresh weights; a whitened net has filters from the data."""
    return net_maker(recipe, dataset)()


def net_maker(recipe: Recipe, dataset: Dataset) -> Callable[[], nn.Module]:
    """A function that makes the recipe's net, without a reference to the data set."""
    num_classes, mean, std = dataset.num_classes, dataset.mean, dataset.std
    if recipe.net == "resnet9":
        return partial(ResNet9, num_classes, recipe.width)
    sample = torch.from_numpy(dataset.train.images[:WHITENING_IMAGES].copy())

    def make() -> nn.Module:
        images = sample.permute(0, 3, 1, 2).float()
        centre, spread = (torch.tensor(values).view(1, 3, 1, 1) for values in (mean, std))
        images = (images - centre) / spread
        if recipe.net == "speed_net":
            filters = whitening_filters(images, FILTER_SIDE, EPSILON)
            return SpeedNet(num_classes, recipe.width, filters)
        return WhitenedResNet9(num_classes, recipe.width, whitening_filters(images))

    return make
