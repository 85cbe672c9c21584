"""CIFAR-10 as fast as the public speed runs train it, with SWAP and without.

Net, optimizer and augmentation are those of Keller Jordan's airbench94_muon: 8 epochs at 2000 with
Muon's peak 0.24, momentum 0.6, and for the other parameters Nesterov SGD with momentum 0.85 and
learning rates of 0.053 (biases) and 0.67 (head) on the loss summed over the batch. Ours are on the
mean loss, 2000 times as large, and stand as factors on the filters' rate. Batches, epochs and peak
rates are our choice.
"""

from dataclasses import replace

from swap_fast.config.phase import Augmentation, Optimizer, Phase
from swap_fast.config.recipe import SGDRecipe, SWAPRecipe

OPTIMIZER = Optimizer(
    kind="muon",
    momentum=0.6,
    sgd_momentum=0.85,
    weight_decay=0.004 / 0.24,  # 0.004 of the weights an update, at the peak
    bias_lr_factor=2000 * 0.053 / 0.24,
    head_lr_factor=2000 * 0.67 / 0.24,
)
AUGMENTATION = Augmentation(pad=2, flip="alternating", cutout=0)


def cifar10_speed_sgd_small() -> SGDRecipe:
    """One device, small batches: as many epochs as a model of `cifar10_speed` sees."""
    return SGDRecipe(
        name="cifar10_speed_sgd_small",
        summary="Muon with small batches for time to 94%: 250, 12 epochs, speed_net",
        table="none: a recipe of the public speed runs",
        paper_scale=False,
        net="speed_net",
        phase1=Phase(global_batch_size=250, peak_lr=0.06, max_epochs=12),
        optimizer=OPTIMIZER,
        augmentation=AUGMENTATION,
        label_smoothing=0.2,
    )


def cifar10_speed_sgd_large() -> SGDRecipe:
    """Two devices that share every update."""
    return replace(
        cifar10_speed_sgd_small(),
        name="cifar10_speed_sgd_large",
        summary="Muon with large batches for time to 94%: 500 on 2 devices, 12 epochs, speed_net",
        phase1=Phase(global_batch_size=500, peak_lr=0.09, max_epochs=12, gpus_per_model=2),
    )


def cifar10_speed() -> SWAPRecipe:
    """Two devices: 9 epochs together, 3 apart, and the mean."""
    return SWAPRecipe(
        name="cifar10_speed",
        summary="SWAP for time to 94%: 9 epochs at 500, then 2 workers, 3 at 250, speed_net",
        table="none: a recipe of the public speed runs",
        paper_scale=False,
        net="speed_net",
        num_workers=2,
        phase1=Phase(
            global_batch_size=500, peak_lr=0.09, max_epochs=9, horizon_epochs=12, gpus_per_model=2
        ),
        phase2=Phase(global_batch_size=250, peak_lr=0.02, max_epochs=3),
        optimizer=OPTIMIZER,
        augmentation=AUGMENTATION,
        label_smoothing=0.2,
    )


def cifar10_speed_8() -> SWAPRecipe:
    """Eight devices."""
    return replace(
        cifar10_speed(),
        name="cifar10_speed_8",
        summary="SWAP for time to 94%: 9 epochs at 2000, then 8 workers, 3 at 250, speed_net",
        num_workers=8,
        phase1=Phase(
            global_batch_size=2000, peak_lr=0.24, max_epochs=9, horizon_epochs=12, gpus_per_model=8
        ),
    )


SPEED_RECIPES = (cifar10_speed, cifar10_speed_8, cifar10_speed_sgd_small, cifar10_speed_sgd_large)
