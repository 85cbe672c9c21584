"""The built-in set: the same for ever, balanced, learnable but not by a linear model."""

import numpy as np
import pytest

from swap_fast.data.cifar.synthetic import generate_synthetic


def test_it_is_the_same_for_ever() -> None:
    generated = generate_synthetic(train_images=100, test_images=50)
    assert generated.kind == generated.name == "synthetic"
    assert generated.sha256 == "ee45331d550fb756e883809b6cff42716f7e269021c6919422cd46e5b5419d95"


def test_classes_are_balanced_and_splits_differ() -> None:
    generated = generate_synthetic(train_images=205, test_images=100)
    counts = np.bincount(generated.train.labels, minlength=10)
    assert counts.max() - counts.min() <= 1
    assert counts.sum() == 205
    train = {image.tobytes() for image in generated.train.images}
    assert not train & {image.tobytes() for image in generated.test.images}


def test_another_seed_is_another_set() -> None:
    one = generate_synthetic(train_images=20, test_images=10, seed=1)
    two = generate_synthetic(train_images=20, test_images=10, seed=2)
    assert one.sha256 != two.sha256


def test_a_linear_model_learns_something_and_far_from_all() -> None:
    generated = generate_synthetic(train_images=3_000, test_images=1_000)

    def features(split) -> np.ndarray:
        small = split.images.reshape(-1, 16, 2, 16, 2, 3).mean((2, 4)).reshape(len(split), -1)
        return np.concatenate([small / 128 - 1, np.ones((len(split), 1))], axis=1)

    train, test = features(generated.train), features(generated.test)
    targets = np.eye(10)[generated.train.labels]
    weights = np.linalg.solve(train.T @ train + 10 * np.eye(train.shape[1]), train.T @ targets)
    accuracy = ((test @ weights).argmax(1) == generated.test.labels).mean()
    assert 0.12 < accuracy < 0.7


def test_no_images_are_refused() -> None:
    with pytest.raises(ValueError, match="train_images: expected at least 1"):
        generate_synthetic(train_images=0)
