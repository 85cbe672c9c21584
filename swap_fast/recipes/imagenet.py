"""Table 3 and Figure 5: ImageNet with ResNet-50, in stages of growing images.

The stages, batches and learning rates are those of the DAWNBench entry that the paper starts from:
a device's batch is the same in the large run, which has twice the devices and twice the rate. That
entry also trains on the images that fill no whole batch: 313 updates of an epoch at 4,096 images,
of which ours are the first 312, since a captured step has one shape.
"""

from dataclasses import replace

from swap_fast.config.phase import Optimizer, Stage, StagedPhase
from swap_fast.config.recipe import SGDRecipe, SWAPRecipe

OPTIMIZER = Optimizer(
    nesterov=False,
    weight_decay=1e-4,
    without_decay="norms",
    loss_scale=1024.0,
    loss_scale_grows=False,
)


Row = tuple[int, int, float, int, float, float]
"""Epochs, px, least share of an image's area, batch a device, first and last learning rate."""

ROWS: tuple[Row, ...] = (
    (7, 128, 0.08, 512, 1.0, 2.0),
    (6, 128, 0.08, 512, 2.0, 0.25),
    (9, 224, 0.087, 224, 0.4375, 0.04375),
    (3, 224, 0.087, 224, 0.04375, 0.004375),
    (3, 288, 0.5, 128, 0.0025, 0.00025),
)
"""All five rows of the table, whose learning rates are those of 8 devices."""


def scaled(rows: tuple[Row, ...], devices: int, *, base: int) -> tuple[Stage, ...]:
    """Rows as stages of `devices` devices, with rates in proportion to them.

    The last stage is tested on rectangles.

    Arguments:
        base: the devices whose learning rates the rows have.
    """
    factor = devices / base
    return tuple(
        Stage(
            epochs=epochs,
            image_size=px,
            min_scale=min_scale,
            global_batch_size=batch * devices,
            first_lr=first * factor,
            last_lr=last * factor,
            rectangular_test=px == rows[-1][1],
        )
        for epochs, px, min_scale, batch, first, last in rows
    )


def stages(gpus: int) -> tuple[Stage, ...]:
    """The table's stages on `gpus` devices."""
    return scaled(ROWS, gpus, base=8)


def imagenet_sgd_small() -> SGDRecipe:
    """Table 3, SGD (small-batch)."""
    return SGDRecipe(
        name="imagenet_sgd_small",
        summary="SGD with the original batches, 28 epochs at 128, 224 and 288 px on 8 GPUs",
        table="Table 3, SGD (small-batch)",
        dataset="imagenet",
        net="resnet50",
        target_accuracy=0.75,
        phase1=StagedPhase(stages=stages(8), gpus_per_model=8),
        optimizer=OPTIMIZER,
    )


def imagenet_sgd_large() -> SGDRecipe:
    """Table 3, SGD (large-batch)."""
    return replace(
        imagenet_sgd_small(),
        name="imagenet_sgd_large",
        summary="SGD with doubled batches and rates, 28 epochs at 128, 224 and 288 px on 16 GPUs",
        table="Table 3, SGD (large-batch)",
        phase1=StagedPhase(stages=stages(16), gpus_per_model=16),
    )


def imagenet_swap() -> SWAPRecipe:
    """Table 3, SWAP: 22 large-batch epochs on 16 devices, then 2 workers of 8 for 6 epochs."""
    return SWAPRecipe(
        name="imagenet_swap",
        summary="SWAP: 22 large-batch epochs on 16 GPUs, then 2 workers of 8 GPUs for 6 epochs",
        table="Table 3, SWAP",
        dataset="imagenet",
        net="resnet50",
        target_accuracy=0.75,
        num_workers=2,
        phase1=StagedPhase(stages=stages(16)[:3], gpus_per_model=16),
        phase2=StagedPhase(stages=stages(8)[3:], gpus_per_model=8),
        optimizer=OPTIMIZER,
        batch_norm_batch_size=128,
    )


CPU_WIDTH, CPU_BLOCKS = 8, (1, 1, 1, 1)
"""An eighth of the net's width and a block a group: what two cores train in minutes."""


CPU_ROWS: tuple[Row, ...] = (
    (4, 48, 0.35, 64, 0.05, 0.4),
    (4, 48, 0.35, 64, 0.4, 0.1),
    (5, 64, 0.35, 32, 0.05, 0.01),
    (2, 64, 0.35, 32, 0.05, 0.02),
    (2, 72, 0.35, 32, 0.02, 0.001),
)
"""The five rows at sizes for a CPU and a tree of some thousand images; rates of 2 replicas."""


def cpu_stages(replicas: int) -> tuple[Stage, ...]:
    """The stages of a CPU on `replicas` replicas."""
    return scaled(CPU_ROWS, replicas, base=2)


def imagenet_swap_cpu() -> SWAPRecipe:
    """Table 3's SWAP with its two workers, each of two replicas, through three image sizes."""
    return replace(
        imagenet_swap(),
        name="imagenet_swap_cpu",
        summary="SWAP on two CPU cores: a narrow, shallow ResNet-50 at 48, 64 and 72 px, 2 workers",
        table="Table 3, SWAP, at CPU size",
        paper_scale=False,
        devices="cores",
        width=CPU_WIDTH,
        blocks=CPU_BLOCKS,
        target_accuracy=0.50,
        phase1=StagedPhase(stages=cpu_stages(4)[:3], gpus_per_model=4),
        phase2=StagedPhase(stages=cpu_stages(2)[3:], gpus_per_model=2),
    )


def imagenet_sgd_small_cpu() -> SGDRecipe:
    """Table 3's SGD with small batches, at the same sizes."""
    return replace(
        imagenet_sgd_small(),
        name="imagenet_sgd_small_cpu",
        summary="SGD with small batches on two CPU cores: the net and sizes of imagenet_swap_cpu",
        table="Table 3, SGD (small-batch), at CPU size",
        paper_scale=False,
        devices="cores",
        width=CPU_WIDTH,
        blocks=CPU_BLOCKS,
        target_accuracy=0.50,
        phase1=StagedPhase(stages=cpu_stages(2), gpus_per_model=2),
    )


def imagenet_sgd_large_cpu() -> SGDRecipe:
    """Table 3's SGD with large batches, at the same sizes."""
    return replace(
        imagenet_sgd_small_cpu(),
        name="imagenet_sgd_large_cpu",
        summary="SGD with doubled batches on two CPU cores: the net and sizes of imagenet_swap_cpu",
        table="Table 3, SGD (large-batch), at CPU size",
        phase1=StagedPhase(stages=cpu_stages(4), gpus_per_model=4),
    )


IMAGENET_RECIPES = (
    imagenet_sgd_small,
    imagenet_sgd_large,
    imagenet_swap,
    imagenet_sgd_small_cpu,
    imagenet_sgd_large_cpu,
    imagenet_swap_cpu,
)
