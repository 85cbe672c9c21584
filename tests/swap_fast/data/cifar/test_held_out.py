"""The held-out part of the training images."""

import numpy as np
import pytest
from small_trainer import make_dataset

from swap_fast.data.cifar.dataset import hold_out

DATA = make_dataset(train_images=44, test_images=30)


def test_the_last_training_images_are_tested_on_and_no_test_image_is_left() -> None:
    held = hold_out(DATA, 14)
    assert (len(held.train), len(held.test)) == (30, 14)
    whole = np.concatenate([held.train.images, held.test.images])
    np.testing.assert_array_equal(whole, DATA.train.images)
    labels = np.concatenate([held.train.labels, held.test.labels])
    np.testing.assert_array_equal(labels, DATA.train.labels)
    assert (held.mean, held.std) == (DATA.mean, DATA.std)


def test_it_is_known_as_what_it_is() -> None:
    held = hold_out(DATA, 14)
    assert held.kind == "held-out"
    assert len({DATA.sha256, held.sha256, hold_out(DATA, 15).sha256}) == 3
    assert hold_out(DATA, 14).sha256 == held.sha256


@pytest.mark.parametrize("count", [-1, 0, 44, 45])
def test_a_part_that_leaves_nothing_is_refused(count: int) -> None:
    with pytest.raises(ValueError, match=rf"^held_out: expected 1 to 43 .*, got {count}$"):
        hold_out(DATA, count)
