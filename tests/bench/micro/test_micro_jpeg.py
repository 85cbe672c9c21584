"""The ways to make batches of JPEGs take the images they count, at the smallest size."""

from pathlib import Path

from bench.micro import data as micro_jpeg
from swap_fast.data.imagenet.scan import scan_tree


def test_the_ways_make_the_images_they_count(tmp_path: Path) -> None:
    root = str(micro_jpeg.write_jpegs(tmp_path, 10))
    for work in (
        micro_jpeg.our_dali(root, "cpu", 4, 1),
        micro_jpeg.our_torchvision(root, "cpu", 4, 0),
        micro_jpeg.torchvision_jpeg_loader(root, 4, 0),
    ):
        assert [work(), work()] == [8, 8]


def test_the_files_are_as_large_as_imagenets(tmp_path: Path) -> None:
    train = scan_tree(micro_jpeg.write_jpegs(tmp_path, 8)).train
    assert (train.sizes == (375, 500)).all()
    assert 105_000 < train.file_bytes.mean() < 115_000
