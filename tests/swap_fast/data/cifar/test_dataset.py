"""The canonical order and the content hash, against their own definition written out again."""

import hashlib

import numpy as np
import pytest
from conftest import fake_cifar
from small_trainer import make_dataset

from swap_fast.data.cifar.dataset import Split, build_dataset, hold_out


def test_order_and_hash_follow_their_definition() -> None:
    fake = fake_cifar()
    built = build_dataset("cifar10", [fake.train], [fake.test], source="here")

    def sorted_records(records: np.ndarray) -> list[tuple[bytes, bytes]]:
        return sorted(
            (hashlib.blake2b(r.tobytes(), digest_size=16).digest(), r.tobytes()) for r in records
        )

    train, test = sorted_records(fake.train), sorted_records(fake.test)
    assert built.train.labels.tolist() == [record[0] for _, record in train]
    for image, (_, record) in zip(built.train.images, train, strict=True):
        planes = np.frombuffer(record[1:], dtype=np.uint8).reshape(3, 32, 32)
        np.testing.assert_array_equal(image, planes.transpose(1, 2, 0))
    content = b"cifar10 10\ntrain 53\n" + b"".join(d for d, _ in train)
    content += b"test 20\n" + b"".join(d for d, _ in test)
    assert built.sha256 == hashlib.sha256(content).hexdigest()


def test_blocks_do_not_matter() -> None:
    fake = fake_cifar()
    whole = build_dataset("cifar10", [fake.train], [fake.test], source="here")
    apart = build_dataset(
        "cifar10", [fake.train[30:], fake.train[:30]], [fake.test], source="there"
    )
    assert whole.sha256 == apart.sha256
    np.testing.assert_array_equal(whole.train.images, apart.train.images)


def test_train_and_test_are_told_apart() -> None:
    fake = fake_cifar()
    one = build_dataset("cifar10", [fake.train], [fake.test], source="here")
    other = build_dataset("cifar10", [fake.test], [fake.train], source="here")
    assert one.sha256 != other.sha256


def test_a_split_of_other_shapes_is_refused() -> None:
    with pytest.raises(ValueError, match="expected images"):
        Split(images=np.zeros((2, 3, 32, 32), np.uint8), labels=np.zeros(2, np.uint8))
    with pytest.raises(ValueError, match="expected uint8"):
        Split(images=np.zeros((2, 32, 32, 3), np.float32), labels=np.zeros(2, np.uint8))


# The held-out part of the training images.


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
