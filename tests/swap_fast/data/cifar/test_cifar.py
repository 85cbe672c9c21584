"""Reading CIFAR: every layout gives the same set, and every damage one line that names the file."""

import gzip
import hashlib
import io
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
from conftest import FakeCifar, archive, fake_cifar

from swap_fast.data.cifar.files import find_cifar, load_arrays, read_cifar

NAMES = ("cifar10", "cifar100")


def one_line(error: BaseException) -> str:
    text = str(error)
    assert "\n" not in text
    return text


@pytest.mark.parametrize("name", NAMES)
def test_folder_archive_python_and_reordered_copies_are_one_set(name, tmp_path: Path) -> None:
    fake = fake_cifar(name)
    binary = fake.write_binary(tmp_path / "a")
    python, md5s = fake.write_python(tmp_path / "b")
    shuffled = FakeCifar(name, fake.train[::-1], np.roll(fake.test, 3, axis=0))
    sets = [
        read_cifar(name, binary),
        read_cifar(name, binary.parent),
        read_cifar(name, archive(binary)),
        read_cifar(name, python, python_md5=md5s),
        read_cifar(name, archive(python), python_md5=md5s),
        read_cifar(name, shuffled.write_binary(tmp_path / "c")),
    ]
    assert len({each.sha256 for each in sets}) == 1
    for each in sets:
        assert each.kind == "subset"
        np.testing.assert_array_equal(each.train.images, sets[0].train.images)
        np.testing.assert_array_equal(each.test.labels, sets[0].test.labels)


@pytest.mark.parametrize("name", NAMES)
def test_every_record_is_there_with_its_own_pixels(name, tmp_path: Path) -> None:
    fake = fake_cifar(name)
    read = read_cifar(name, fake.write_binary(tmp_path))
    expected = sorted(
        (int(r[0]), r[1:].reshape(3, 32, 32).transpose(1, 2, 0).tobytes()) for r in fake.train
    )
    got = zip(read.train.labels.tolist(), read.train.images, strict=True)
    assert sorted((label, image.tobytes()) for label, image in got) == expected


def test_another_pixel_is_another_hash(tmp_path: Path) -> None:
    fake = fake_cifar()
    before = read_cifar("cifar10", fake.write_binary(tmp_path / "a")).sha256
    fake.train[7, 100] ^= 1
    assert read_cifar("cifar10", fake.write_binary(tmp_path / "b")).sha256 != before


DAMAGE = {
    "a part of a record": (
        *("data_batch_3.bin", lambda file: file.write_bytes(file.read_bytes()[:10_000])),
        r"data_batch_3\.bin: expected a whole number of 3,073-byte records, "
        r"got 10,000 bytes \(3 records and 781 bytes over\)",
    ),
    "an empty file": (
        *("data_batch_1.bin", lambda file: file.write_bytes(b"")),
        r"data_batch_1\.bin: .*got an empty file",
    ),
    "no test file": ("test_batch.bin", Path.unlink, r"expected test_batch\.bin, got no such file"),
}


@pytest.mark.parametrize(("file", "damage", "message"), DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_folder_is_refused_in_one_line(file, damage, message, tmp_path: Path) -> None:
    damage(fake_cifar().write_binary(tmp_path) / file)
    with pytest.raises(ValueError, match=message) as caught:
        read_cifar("cifar10", tmp_path)
    one_line(caught.value)


def test_fewer_training_files_are_a_subset(tmp_path: Path) -> None:
    folder = fake_cifar().write_binary(tmp_path)
    (folder / "data_batch_5.bin").unlink()
    read = read_cifar("cifar10", tmp_path)
    assert read.kind == "subset"
    assert len(read.train) == 43  # 53 = 11 + 11 + 11 + 10 + 10
    assert "43 + 20 images" in read.describe()


def test_a_label_out_of_range_is_refused(tmp_path: Path) -> None:
    fake = fake_cifar()
    fake.test[4, 0] = 10
    with pytest.raises(ValueError, match=r"label in 0\.\.9, got 10 in record 4") as caught:
        read_cifar("cifar10", fake.write_binary(tmp_path))
    assert "test_batch.bin" in one_line(caught.value)


def test_a_python_file_of_another_md5_is_never_unpickled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = fake_cifar().write_python(tmp_path)

    def unpickled(*_: object) -> None:
        raise AssertionError("unpickled before its hash was right")

    monkeypatch.setattr("swap_fast.data.cifar.files.load_arrays", unpickled)
    with pytest.raises(ValueError, match="expected the file with MD5 c99cafc152") as caught:
        read_cifar("cifar10", folder)
    assert "data_batch_1" in one_line(caught.value)


class _Hostile:
    """A pickle that would make a file, were it loaded by pickle itself."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


def test_a_hostile_pickle_does_nothing(tmp_path: Path) -> None:
    target = tmp_path / "made"
    content = pickle.dumps({b"data": _Hostile(target)})
    with pytest.raises(ValueError, match="arrays and lists only") as caught:
        load_arrays(content, "batch")
    one_line(caught.value)
    assert not target.exists()
    pickle.loads(content)
    assert target.exists(), "the pickle must be able to do harm, or this test shows nothing"


def test_arrays_of_every_protocol_are_loaded() -> None:
    array = np.arange(6, dtype=np.uint8).reshape(2, 3)
    for protocol in range(5):
        loaded = load_arrays(pickle.dumps({b"data": array, "n": [1]}, protocol), "batch")
        np.testing.assert_array_equal(loaded["data"], array)
        assert loaded["n"] == [1]


@pytest.mark.parametrize("damage", ["cut", "bytes", "empty"])
def test_a_damaged_archive_is_named_in_one_line(damage: str, tmp_path: Path) -> None:
    path = archive(fake_cifar().write_binary(tmp_path))
    content = path.read_bytes()
    middle = len(content) // 2
    path.write_bytes(
        {
            "cut": content[:middle],
            "bytes": content[:middle] + bytes(64) + content[middle + 64 :],
            "empty": b"",
        }[damage]
    )
    with pytest.raises(ValueError, match=r"cifar-10-binary\.tar\.gz") as caught:
        read_cifar("cifar10", path)
    one_line(caught.value)


def test_a_link_in_an_archive_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(3073))
    path = tmp_path / "in" / "cifar-10-binary.tar.gz"
    path.parent.mkdir()
    with tarfile.open(path, "w:gz") as tar:
        escape = tarfile.TarInfo("../escaped.bin")
        escape.size = 4
        tar.addfile(escape, io.BytesIO(b"evil"))
        link = tarfile.TarInfo("cifar-10-batches-bin/test_batch.bin")
        link.type, link.linkname = tarfile.SYMTYPE, str(secret)
        tar.addfile(link)
    with pytest.raises(ValueError, match="got a link or a device"):
        read_cifar("cifar10", path)
    assert sorted(p.name for p in tmp_path.rglob("*")) == [path.name, "in", "secret"]


def test_a_member_larger_than_any_of_the_data_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "cifar-10-binary.tar.gz"
    huge = tarfile.TarInfo("cifar-10-batches-bin/test_batch.bin")
    huge.size = 2**40
    with gzip.open(path, "wb") as tar:
        tar.write(huge.tobuf())
    with pytest.raises(ValueError, match=r"expected 268,435,456 bytes or less, got 1,099,511,627"):
        read_cifar("cifar10", path)


def test_find_looks_at_names_only(tmp_path: Path) -> None:
    assert find_cifar("cifar10", tmp_path) is None
    folder = fake_cifar().write_binary(tmp_path)
    assert find_cifar("cifar10", tmp_path) == folder
    assert find_cifar("cifar10", folder) == folder
    assert find_cifar("cifar100", tmp_path) is None


def test_the_real_set_is_known_by_its_content(cifar10_dir: Path) -> None:
    read = read_cifar("cifar10", cifar10_dir)
    assert read.kind == "published"
    assert (len(read.train), len(read.test)) == (50_000, 10_000)
    assert np.bincount(read.train.labels).tolist() == [5_000] * 10
    assert np.bincount(read.test.labels).tolist() == [1_000] * 10
    pixels = read.train.images.reshape(-1, 3)
    np.testing.assert_allclose(pixels.mean(0), read.mean, atol=0.02)
    np.testing.assert_allclose(pixels.std(0), read.std, atol=0.02)
    # Its order is as good as random: any part is a fair sample.
    first = np.bincount(read.train.labels[:10_000], minlength=10)
    assert np.square(first - 1_000).sum() / 1_000 < 27.9  # chi-square, 9 degrees, p = 0.001


CIFAR100_FILES = {
    "train.bin": "f31298fc616915fa142368359df1c4ca2ae984d6915ca468b998a5ec6aeebf29",
    "test.bin": "d8b1e6b7b3bee4020055f0699b111f60b1af1e262aeb93a0b659061746f8224a",
}
"""SHA-256 of the published binary files, by which the pinned content is known to be theirs."""


def test_the_whole_cifar100_is_known_by_its_content(shared_cifar: Path, tmp_path: Path) -> None:
    folder = shared_cifar / "cifar-100-binary"
    for file, sha256 in CIFAR100_FILES.items():
        assert hashlib.sha256((folder / file).read_bytes()).hexdigest() == sha256
    read = read_cifar("cifar100", shared_cifar)
    assert read.kind == "published"
    assert "not verified" not in read.describe()
    assert np.bincount(read.train.labels).tolist() == [500] * 100
    assert np.bincount(read.test.labels).tolist() == [100] * 100
    # One byte of one image, the last, is enough to be another set.
    changed = bytearray((folder / "test.bin").read_bytes())
    changed[-1] ^= 1
    copy = tmp_path / folder.name
    copy.mkdir()
    (copy / "train.bin").symlink_to(folder / "train.bin")
    (copy / "test.bin").write_bytes(changed)
    other = read_cifar("cifar100", copy)
    assert other.kind == "subset"
    assert other.describe().startswith(
        "CIFAR-100, subset, 50,000 + 10,000 images, not verified as published, sha256 "
    )
