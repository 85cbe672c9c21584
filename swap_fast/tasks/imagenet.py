"""ImageNet's data of a run on this rank: files, decoded as they are needed."""

import importlib
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from swap_fast.config.execution import Execution
from swap_fast.config.phase import BatchShape, Phase
from swap_fast.data.cifar.batches import Batch
from swap_fast.data.imagenet.batches import (
    Decoder,
    DecoderName,
    TreeBatches,
    make_decoder,
    one_pass,
    pass_buffer,
)
from swap_fast.data.imagenet.crops import Crops, evaluation_batches, plan_crops
from swap_fast.data.imagenet.scan import ImageSplit, ImageTree
from swap_fast.distributed import Comm
from swap_fast.training.evaluate import Accuracies, Count, Evaluate, Evaluator
from swap_fast.training.loop import ImageSource
from swap_fast.training.weights import Weights

TEST_BATCH_SIZE = 128


def tree_evaluator(
    model: nn.Module,
    split: ImageSplit,
    decoder: Decoder,
    execution: Execution,
    device: torch.device,
    *,
    px: int,
    rectangular: bool = False,
    batch_size: int,
) -> Evaluator:
    """Top-1 and top-5 accuracy of a model on the test images.

    Arguments:
        decoder: decodes the batches; made for this split, `centred`.
        px: the crop's side, or its shorter one.
        rectangular: see `evaluation_batches`.
        batch_size: images a forward pass.
    """
    crops = evaluation_batches(split.sizes, px=px, batch_size=batch_size, rectangular=rectangular)

    def batches(comm: Comm) -> Iterator[tuple[Tensor, Crops]]:
        return one_pass(decoder, crops, pass_buffer(crops, execution, device), execution, comm)

    def count(batch: tuple[Tensor, Crops]) -> Count:
        images, shown = batch
        labels = torch.from_numpy(split.labels[shown.image]).to(device)
        logits = model(images)
        best = logits.topk(min(5, logits.shape[1])).indices  # [n, 5]
        hits = best == labels[:, None]
        return hits[:, 0].sum(), hits.sum(), len(labels)

    return Evaluator(model, batches, count, execution.autocast, device, second="top5")


class TreeSource(ImageSource):
    """A tree's training and test images, at the size and batch of each stage.

    A stage has a decoder of its own, made when it begins and after the last one's is gone: decoders
    are large.

    Arguments:
        tree: the scanned files.
        loader: which kind of decoder.
        threads: of each decoder.
    """

    image_size = 224  # of a phase without stages

    def __init__(self, tree: ImageTree, *, loader: DecoderName, threads: int) -> None:
        self.num_images = len(tree.train)
        self._tree, self._loader, self._threads = tree, loader, threads
        self._training: tuple[int, Decoder] | None = None

    def warm_up(self, weights: Weights, execution: Execution) -> None:
        """Import the decoder; what it builds on the device it builds when a stage begins."""
        importlib.import_module(f"swap_fast.data.imagenet.{self._loader}")

    def open_(self, weights: Weights, execution: Execution, *, seed: int) -> None:
        """Note where the images go, and make the decoder of test images, which all stages share."""
        self._weights, self._execution, self._seed = weights, execution, seed
        self._device = weights.theta.device
        self._testing = self._make(self._tree.test, TEST_BATCH_SIZE, centred=True)

    def batches(
        self, phase: Phase, shape: BatchShape, *, number: int, replicas: range, into: Batch
    ) -> TreeBatches:
        return TreeBatches(
            self._tree.train,
            self._decoder(len(into.labels)),
            px=shape.image_size,
            min_scale=shape.min_scale,
            global_batch_size=shape.global_batch_size,
            num_replicas=phase.gpus_per_model,
            replicas=replicas,
            seed=self._seed,
            number=number,
            into=into,
        )

    def batch_norm_batches(self, buffer: Tensor, shape: BatchShape, comm: Comm) -> Iterable[Tensor]:
        """Every training image once, cropped as in the last stage."""
        plan = plan_crops(
            self._tree.train.sizes,
            px=shape.image_size,
            min_scale=shape.min_scale,
            seed=self._seed,
            phase=3,
            worker=0,
            epoch=0,
        )
        size = len(buffer)
        batches = [plan[start : start + size] for start in range(0, len(plan), size)]
        shown = one_pass(self._decoder(size), batches, buffer, self._execution, comm)
        return (images for images, _ in shown)

    def evaluator(self, shape: BatchShape) -> Evaluate:
        """Accuracies on the test images; cuDNN tries no kernels: rectangular ones vary in shape."""
        evaluate = tree_evaluator(
            self._weights.model,
            self._tree.test,
            self._testing,
            self._execution,
            self._device,
            px=shape.image_size,
            rectangular=shape.rectangular_test,
            batch_size=TEST_BATCH_SIZE,
        )

        def measure(comm: Comm) -> Accuracies:
            cudnn = torch.backends.cudnn
            before, cudnn.benchmark = cudnn.benchmark, False
            try:
                return evaluate(comm)
            finally:
                cudnn.benchmark = before

        return measure

    def _decoder(self, batch_size: int) -> Decoder:
        """The decoder of training images: the last one, where it has this batch."""
        if self._training is None or self._training[0] != batch_size:
            self._training = None  # before the next one is made
            self._training = batch_size, self._make(self._tree.train, batch_size, centred=False)
        return self._training[1]

    def _make(self, split: ImageSplit, batch_size: int, *, centred: bool) -> Decoder:
        return make_decoder(
            self._loader,
            split,
            batch_size=batch_size,
            execution=self._execution,
            device=self._device,
            threads=self._threads,
            centred=centred,
        )
