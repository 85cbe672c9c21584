"""What the report says of runs that nobody made: the planner beside the paper, and its scaling.

No torch. Nothing here is measured; every table says that it is modelled.
"""

from bench.planner.command import modelled
from bench.planner.scaling import Scaling, scale
from bench.planner.workload import workload_of
from bench.records.paper import Paper
from swap_fast.recipes.cifar10 import RECIPES

SCALED = ("cifar10_swap", "imagenet_swap")
"""The recipes whose phase 1 is shown on more and more devices."""


def scalings(paper: Paper) -> list[Scaling]:
    """Phase 1 of each on up to 1,024 of the paper's devices, by the physical model."""
    speed = modelled("v100", None, paper)
    return [scale(workload_of(RECIPES[name](), paper), speed) for name in SCALED]
