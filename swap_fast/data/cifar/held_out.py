"""A held-out part of the training images in place of the test images, to choose settings by.

What is chosen by the test images fits the test images; a search looks at none of them.
"""

import hashlib
from dataclasses import replace

from swap_fast.data.cifar.dataset import Dataset, Split


def hold_out(dataset: Dataset, count: int) -> Dataset:
    """The set without its test images: tested on its last `count` training images.

    The canonical order is as good as random with respect to the images, so that its end is a fair
    sample; it is not stratified: each class has about its share of it. Channel means and
    deviations are those fixed for the set's name, so that nothing of the held-out images is learnt.

    Raises:
        ValueError: no image would be left on one side.
    """
    left = len(dataset.train) - count
    if count < 1 or left < 1:
        raise ValueError(
            f"held_out: expected 1 to {len(dataset.train) - 1:,} of the training images, "
            f"got {count:,}"
        )
    images, labels = dataset.train.images, dataset.train.labels
    name = f"{dataset.sha256} without its test images, tested on the last {count}"
    return replace(
        dataset,
        kind="held-out",
        train=Split(images=images[:left], labels=labels[:left]),
        test=Split(images=images[left:], labels=labels[left:]),
        sha256=hashlib.sha256(name.encode()).hexdigest(),
    )
