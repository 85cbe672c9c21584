"""Top-1 and top-5 accuracy on the test images of a tree, each shown once."""

import torch
from torch import nn

from swap_fast.config.execution import Execution
from swap_fast.data.imagenet.batches import Decoder, deal
from swap_fast.data.imagenet.crops import Crops, centre_crops, rectangular_batches
from swap_fast.data.imagenet.scan import ImageSplit
from swap_fast.distributed import ALONE, Comm
from swap_fast.training.evaluate import Accuracies


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
