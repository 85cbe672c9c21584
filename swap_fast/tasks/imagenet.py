"""ImageNet's data of a run on this rank: files, decoded as they are needed."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from swap_fast.config.execution import Execution
from swap_fast.config.phase import BatchShape, Phase
from swap_fast.data.imagenet.batches import (
    Decoder,
    DecoderName,
    TreeBatches,
    deal,
    decoder_class,
    make_decoder,
    one_pass,
)
from swap_fast.data.imagenet.crops import Crops, centre_crops, rectangular_batches
from swap_fast.data.imagenet.scan import ImageSplit, ImageTree
from swap_fast.distributed import ALONE, Comm
from swap_fast.training.evaluate import Accuracies
from swap_fast.training.weights import Weights

# Top-1 and top-5 accuracy on the test images of a tree, each shown once.


def evaluation_batches(
    split: ImageSplit, *, px: int, batch_size: int, rectangular: bool
) -> list[Crops]:
    """All test images: resized to a shorter side of int(1.14 * px), the centre cut out.

    Arguments:
        rectangular: sort by aspect ratio and cut each batch to its mean ratio, as the original
            does at 288 px; else all crops are px by px.
    """
    if rectangular:
        return list(rectangular_batches(split.sizes, px=px, batch_size=batch_size))
    crops = centre_crops(split.sizes, px=px)
    return [crops[start : start + batch_size] for start in range(0, len(crops), batch_size)]


class TreeEvaluator:
    """Accuracy of a model on the test images.

    Arguments:
        decoder: decodes the batches; made for this split, `centred`.
        px: the crop's side, or its shorter one.
        batch_size: images a forward pass.
    """

    def __init__(
        self,
        model: nn.Module,
        split: ImageSplit,
        decoder: Decoder,
        execution: Execution,
        device: torch.device,
        *,
        px: int,
        rectangular: bool = False,
        batch_size: int,
    ) -> None:
        self._model, self._split, self._decoder = model, split, decoder
        self._execution, self._device = execution, device
        self._batches = evaluation_batches(
            split, px=px, batch_size=batch_size, rectangular=rectangular
        )

    @torch.no_grad()
    def __call__(self, comm: Comm = ALONE) -> Accuracies:
        """The model's accuracies in eval mode.

        With a `comm` all its ranks must call, and all get those over the whole split.
        """
        model, was_training = self._model, self._model.training
        model.eval()
        correct = torch.zeros(2, dtype=torch.int64, device=self._device)
        try:
            dealt = deal(self._decoder, self._batches, self._execution, self._device, comm)
            for images, crops in dealt:
                labels = torch.from_numpy(self._split.labels[crops.image]).to(self._device)
                with self._execution.autocast():
                    logits = model(images)
                best = logits.topk(min(5, logits.shape[1])).indices  # [n, 5]
                hits = best == labels[:, None]
                correct += torch.stack([hits[:, 0].sum(), hits.sum()])
        finally:
            model.train(was_training)
        top1, top5 = comm.all_reduce_(correct).tolist()
        return Accuracies(top1 / len(self._split), top5 / len(self._split))


TEST_BATCH_SIZE = 128


class TreeSource:
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
        decoder_class(self._loader)

    def open_(self, weights: Weights, execution: Execution, *, seed: int) -> None:
        """Note where the images go, and make the decoder of test images, which all stages share."""
        self._weights, self._execution, self._seed = weights, execution, seed
        self._device = weights.theta.device
        self._testing = self._make(self._tree.test, TEST_BATCH_SIZE, centred=True)

    def batches(
        self, phase: Phase, shape: BatchShape, *, number: int, replicas: range
    ) -> TreeBatches:
        """Decodes and crops a stage's batches."""
        batch_size = shape.global_batch_size // phase.gpus_per_model * len(replicas)
        return TreeBatches(
            self._tree.train,
            self._decoder(batch_size),
            px=shape.image_size,
            min_scale=shape.min_scale,
            global_batch_size=shape.global_batch_size,
            num_replicas=phase.gpus_per_model,
            replicas=replicas,
            seed=self._seed,
            number=number,
            device=self._device,
        )

    def batch_norm_batches(self, buffer: Tensor, shape: BatchShape, comm: Comm) -> Iterable[Tensor]:
        """Every training image once, cropped as in the last stage."""
        return one_pass(
            self._tree.train,
            self._decoder(len(buffer)),
            buffer,
            min_scale=shape.min_scale,
            seed=self._seed,
            comm=comm,
        )

    def evaluator(self, shape: BatchShape) -> TreeEvaluator:
        """Top-1 and top-5 accuracy at the size of a stage."""
        return TreeEvaluator(
            self._weights.model,
            self._tree.test,
            self._testing,
            self._execution,
            self._device,
            px=shape.image_size,
            rectangular=shape.rectangular_test,
            batch_size=TEST_BATCH_SIZE,
        )

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
