"""The recipes: Table 5, DAWNBench, and forms of them for a CPU; and all recipes by name.

Each is a function named for data set and method. Steps an epoch leave out the images that fill no
whole batch; "gpus_per_model" is Table 5's "GPUs used per model".
"""

from collections.abc import Callable
from dataclasses import replace

from swap_fast.config.phase import Augmentation, Optimizer, Phase
from swap_fast.config.recipe import Recipe, SGDRecipe, SWAPRecipe
from swap_fast.recipes.cifar100 import CIFAR100_RECIPES, SWA_RECIPES
from swap_fast.recipes.imagenet import IMAGENET_RECIPES
from swap_fast.recipes.narrow import NARROW_RECIPES
from swap_fast.recipes.speed import SPEED_RECIPES


def cifar10_sgd_small() -> SGDRecipe:
    """Table 5, column 1."""
    return SGDRecipe(
        name="cifar10_sgd_small",
        summary="SGD with small batches: 512, 100 epochs",
        table="Table 1, SGD (small-batch)",
        phase1=Phase(
            global_batch_size=512, peak_lr=0.3, max_epochs=100, warmup_epochs=30, gpus_per_model=2
        ),
    )


def cifar10_sgd_large() -> SGDRecipe:
    """Table 5, column 2."""
    return SGDRecipe(
        name="cifar10_sgd_large",
        summary="SGD with large batches: 4096, 150 epochs",
        table="Table 1, SGD (large-batch)",
        phase1=Phase(
            global_batch_size=4096, peak_lr=1.2, max_epochs=150, warmup_epochs=30, gpus_per_model=8
        ),
    )


def cifar10_swap() -> SWAPRecipe:
    """Table 5, columns 3 and 4."""
    return SWAPRecipe(
        name="cifar10_swap",
        summary="SWAP: 4096 to 98% train accuracy, then 8 workers, 512, 30 epochs",
        table="Table 1, SWAP",
        num_workers=8,
        phase1=Phase(
            global_batch_size=4096,
            peak_lr=1.2,
            max_epochs=150,
            warmup_epochs=30,
            stopping_accuracy=0.98,
            gpus_per_model=8,
        ),
        phase2=Phase(global_batch_size=512, peak_lr=0.12, max_epochs=30),
    )


def cifar10_dawnbench() -> SWAPRecipe:
    """Section 5.1, "Achieving state of the art training speeds": 94% in 27 s on 8 V100.

    The paper gives batches and epochs; the learning rates are our choice: phase 1 rises to its peak
    over 5.6 epochs towards 0 at epoch 30 and is left at 28. Both peaks were the best of four at
    width 16 on 5,000 held-out training images: 1.2 of 0.6, 1.2, 1.8 and 2.4 (89.0, 89.9, 89.7 and
    89.8%), 0.08 of 0.04, 0.08, 0.16 and 0.32 (89.9, 89.9, 89.2 and 87.1%).
    """
    return SWAPRecipe(
        name="cifar10_dawnbench",
        summary="SWAP for time to 94%: 28 epochs at 2048, then 8 workers, one at 256",
        table="Section 5.1, 27 seconds",
        num_workers=8,
        phase1=Phase(
            global_batch_size=2048,
            peak_lr=1.2,
            max_epochs=28,
            warmup_epochs=5.6,
            horizon_epochs=30,
            gpus_per_model=8,
        ),
        phase2=Phase(global_batch_size=256, peak_lr=0.08, max_epochs=1),
        loader="dali",
    )


def cifar10_large_18() -> SGDRecipe:
    """The SWAP authors' own later entry: 18 epochs at 2048 with another net (apple's
    ml-cifar-10-faster; 9.43 s in DAWNBench, 94% in 41 of 50 runs).

    The numbers are those of their code in terms of the mean loss: peak 1.5 at epoch 3.6, 0.15
    from epoch 16 on, weight decay 7.5e-4, and for biases 64 times the learning rate. Their
    partition of the data among the GPUs was fixed; ours is drawn again in each epoch. Their
    velocity has the learning rate in it (v = m v + a g), ours has not: they differ as it changes.
    Their 94% are with mirrored test images, which the record has as a value of its own.
    """
    return SGDRecipe(
        name="cifar10_large_18",
        summary="SGD with large batches for time to 94%: 18 epochs at 2048, whitened net",
        table="none: the authors' later DAWNBench entry",
        paper_scale=False,
        net="whitened_resnet9",
        phase1=Phase(
            global_batch_size=2048,
            peak_lr=1.5,
            max_epochs=18,
            warmup_epochs=3.6,
            horizon_epochs=16,
            final_lr=0.15,
            gpus_per_model=8,
        ),
        optimizer=Optimizer(weight_decay=7.5e-4, bias_lr_factor=64),
        augmentation=Augmentation(cutout=0),
        label_smoothing=0.2,
        mirrored_evaluation=True,
    )


CPU_WIDTH = 16
"""A quarter of the paper's net: a sixteenth of its arithmetic."""


def cifar10_cpu() -> SWAPRecipe:
    """Algorithm 1 on real CIFAR-10 at a size for two cores, chosen by measurement."""
    return SWAPRecipe(
        name="cifar10_cpu",
        summary="SWAP on two CPU cores: width 16; 1024 to 73% train accuracy, then 4 workers, 128",
        table="Table 1, SWAP, at CPU size",
        paper_scale=False,
        devices="cores",
        target_accuracy=0.80,
        width=CPU_WIDTH,
        num_workers=4,
        phase1=Phase(
            global_batch_size=1024,
            peak_lr=1.0,
            max_epochs=7,
            warmup_epochs=1.5,
            stopping_accuracy=0.73,
            gpus_per_model=4,
        ),
        phase2=Phase(global_batch_size=128, peak_lr=0.1, max_epochs=2),
    )


def cifar10_sgd_small_cpu() -> SGDRecipe:
    """Small batches alone, for as many epochs as a model of `cifar10_cpu` sees: 4 and 2."""
    return SGDRecipe(
        name="cifar10_sgd_small_cpu",
        summary="SGD with small batches on two CPU cores: width 16, 128, 6 epochs",
        table="Table 1, SGD (small-batch), at CPU size",
        paper_scale=False,
        devices="cores",
        target_accuracy=0.80,
        width=CPU_WIDTH,
        phase1=Phase(
            global_batch_size=128, peak_lr=0.2, max_epochs=6, warmup_epochs=1.5, gpus_per_model=2
        ),
    )


def cifar10_sgd_large_cpu() -> SGDRecipe:
    """Large batches alone, for as many epochs as a model of `cifar10_cpu` sees: 4 and 2."""
    return replace(
        cifar10_sgd_small_cpu(),
        name="cifar10_sgd_large_cpu",
        summary="SGD with large batches on two CPU cores: width 16, 1024, 6 epochs",
        table="Table 1, SGD (large-batch), at CPU size",
        phase1=Phase(
            global_batch_size=1024, peak_lr=1.0, max_epochs=6, warmup_epochs=1.5, gpus_per_model=4
        ),
    )


def cifar10_quick() -> SWAPRecipe:
    """A minute's first look at `cifar10_cpu`: a sixth of the images, half the width."""
    return SWAPRecipe(
        name="cifar10_quick",
        summary="SWAP for a first look in a minute: a net of width 8, 8,192 images, 4 workers",
        table="none: a first look",
        paper_scale=False,
        devices="cores",
        target_accuracy=0.50,
        train_images=8192,
        width=8,
        num_workers=4,
        phase1=Phase(
            global_batch_size=512,
            peak_lr=0.6,
            max_epochs=6,
            warmup_epochs=1.5,
            horizon_epochs=8,
            gpus_per_model=4,
        ),
        phase2=Phase(global_batch_size=64, peak_lr=0.05, max_epochs=1),
    )


RECIPES: dict[str, Callable[[], Recipe]] = {
    make.__name__: make
    for make in (
        cifar10_sgd_small,
        cifar10_sgd_large,
        cifar10_swap,
        cifar10_dawnbench,
        cifar10_large_18,
        cifar10_cpu,
        cifar10_sgd_small_cpu,
        cifar10_sgd_large_cpu,
        cifar10_quick,
        *SPEED_RECIPES,
        *CIFAR100_RECIPES,
        *IMAGENET_RECIPES,
        *SWA_RECIPES,
        *NARROW_RECIPES,
    )
}
"""All recipes by name."""
