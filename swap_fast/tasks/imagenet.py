"""ImageNet's data of a run on this rank: files, decoded as they are needed."""

from collections.abc import Iterable

from torch import Tensor

from swap_fast.config.execution import Execution
from swap_fast.config.phase import Phase
from swap_fast.config.stages import Shape
from swap_fast.data.imagenet.batches import (
    Decoder,
    DecoderName,
    TreeBatches,
    decoder_class,
    make_decoder,
    one_pass,
)
from swap_fast.data.imagenet.scan import ImageSplit, ImageTree
from swap_fast.distributed import Comm
from swap_fast.tasks.tree_evaluator import TreeEvaluator
from swap_fast.training.weights import Weights

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

    def batches(self, phase: Phase, shape: Shape, *, number: int, slots: range) -> TreeBatches:
        """Decodes and crops a stage's batches."""
        batch_size = shape.global_batch_size // phase.gpus_per_model * len(slots)
        return TreeBatches(
            self._tree.train,
            self._decoder(batch_size),
            px=shape.image_size,
            min_scale=shape.min_scale,
            global_batch_size=shape.global_batch_size,
            num_slots=phase.gpus_per_model,
            slots=slots,
            seed=self._seed,
            number=number,
            device=self._device,
        )

    def batch_norm_batches(self, buffer: Tensor, shape: Shape, comm: Comm) -> Iterable[Tensor]:
        """Every training image once, cropped as in the last stage."""
        return one_pass(
            self._tree.train,
            self._decoder(len(buffer)),
            buffer,
            min_scale=shape.min_scale,
            seed=self._seed,
            comm=comm,
        )

    def evaluator(self, shape: Shape) -> TreeEvaluator:
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
