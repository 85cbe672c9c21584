"""Headers, ends and damage of image files, against what Pillow reads and what was done to them."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from image_trees import bad_forms, damaged_in_the_middle, encoded, legal_forms, texture
from PIL import Image

from swap_fast.data.imagenet.files import (
    MAX_PIXELS,
    BadImageError,
    inspect_image,
    read_image,
    require_whole,
)

IMAGE = texture(1, 0, 131, 97)


@pytest.mark.parametrize("name", legal_forms(IMAGE))
def test_a_legal_file_has_pillows_size(name: str, tmp_path: Path) -> None:
    content = legal_forms(IMAGE)[name]
    path = tmp_path / name
    path.write_bytes(content)
    header, size = inspect_image(path)
    assert (header.width, header.height) == Image.open(io.BytesIO(content)).size == (131, 97)
    assert size == len(content)
    assert read_image(path) == (header, content)


@pytest.mark.parametrize("name", bad_forms(IMAGE))
def test_a_bad_file_is_refused_with_the_reason(name: str, tmp_path: Path) -> None:
    content, words = bad_forms(IMAGE)[name]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(BadImageError, match=words):
        inspect_image(path)
    with pytest.raises(BadImageError, match=words):
        read_image(path)


def test_a_header_longer_than_one_read_is_followed(tmp_path: Path) -> None:
    profile = np.random.default_rng(0).integers(256, size=150_000, dtype=np.uint8).tobytes()
    path = tmp_path / "profile.jpg"
    path.write_bytes(encoded(IMAGE, icc_profile=profile, comment=b"\xff\xd9" * 100))
    header, _ = inspect_image(path)
    assert (header.width, header.height) == (131, 97)
    assert header.body > 150_000


def test_the_end_of_a_thumbnail_is_not_the_end_of_the_image(tmp_path: Path) -> None:
    whole = encoded(IMAGE, comment=b"\xff\xd9")
    path = tmp_path / "cut.jpg"
    path.write_bytes(whole[: len(whole) * 2 // 3])
    with pytest.raises(BadImageError, match="no end-of-image marker"):
        inspect_image(path)


def test_much_written_after_the_end_does_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "long.jpg"
    path.write_bytes(encoded(IMAGE) + b"\0" * 50_000)
    inspect_image(path)


def test_every_way_to_cut_a_jpeg_short_is_seen() -> None:
    small = encoded(texture(0, 0, 24, 20), quality=70, comment=b"\xff\xd9")
    require_whole(small)
    for length in range(len(small)):
        with pytest.raises(BadImageError):
            require_whole(small[:length])


def test_damage_in_the_middle_passes_the_scan_and_is_found_at_reading(tmp_path: Path) -> None:
    path = tmp_path / "damaged.jpg"
    path.write_bytes(damaged_in_the_middle(IMAGE))
    inspect_image(path)
    with pytest.raises(BadImageError, match=r"damaged: marker ff \w\w at byte [\d,]+"):
        read_image(path)


@pytest.mark.parametrize("form", ["plain.jpg", "progressive.jpeg", "restarts.JPEG"])
def test_noise_of_600_bytes_is_nearly_always_found(form: str) -> None:
    whole = legal_forms(IMAGE)[form]
    random = np.random.default_rng(7)
    found = 0
    for _ in range(200):
        content = bytearray(whole)
        start = int(random.integers(len(whole) // 2, len(whole) - 700))
        content[start : start + 600] = random.integers(256, size=600, dtype=np.uint8).tobytes()
        try:
            require_whole(bytes(content))
        except BadImageError:
            found += 1
    assert found >= 170


def test_whatever_a_file_holds_there_is_an_answer() -> None:
    """Bytes changed at random: a header, or a reason, and never another error or a long wait."""
    random = np.random.default_rng(11)
    small = texture(0, 0, 24, 20)
    refused = 0
    for whole in (encoded(small, quality=70), encoded(small, "PNG")):
        for _ in range(1_500):
            content = bytearray(whole)
            for place in random.integers(len(whole), size=3):
                content[place] = random.integers(256)
            try:
                header = require_whole(bytes(content))
            except BadImageError:
                refused += 1
            else:
                assert 0 < header.width * header.height <= MAX_PIXELS
    assert 200 < refused < 2_800


def test_a_file_of_fill_bytes_alone_does_not_hold_the_scan_up(tmp_path: Path) -> None:
    path = tmp_path / "fill.jpg"
    path.write_bytes(b"\xff\xd8" + b"\xff" * 3_000_000)
    with pytest.raises(BadImageError, match="damaged header: no marker at byte 1,02"):
        inspect_image(path)


def test_what_is_no_file_is_bad(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing.jpg"):
        with pytest.raises(BadImageError, match="cannot be read"):
            inspect_image(path)
