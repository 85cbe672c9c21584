"""The networks of the paper's experiments."""

from swap_fast.models.resnet9 import ResNet9

__all__ = ["ResNet9"]
