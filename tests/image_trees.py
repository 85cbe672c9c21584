"""Trees of image files for tests: a texture a class, in every legal form, and damaged ones."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image


def texture(label: int, seed: int, width: int, height: int) -> Image.Image:
    """Stripes in the class's direction and period, at random phase, contrast and colours."""
    random = np.random.default_rng((label, seed))
    # Directions within a quarter turn: a mirrored one is no other class's.
    angle, period = label * np.pi / 10, 6 + 3 * (label % 3)
    y, x = np.mgrid[:height, :width]
    phase = random.uniform(0, 2 * np.pi)
    wave = np.sin((x * np.cos(angle) + y * np.sin(angle)) * 2 * np.pi / period + phase)
    colours = random.uniform(40, 215, size=(2, 3))
    mixed = colours[0] + (wave[..., None] + 1) / 2 * (colours[1] - colours[0])
    noisy = mixed + random.normal(0, 8, size=(height, width, 1))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def encoded(image: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    """The image as the bytes of a file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def legal_forms(image: Image.Image) -> dict[str, bytes]:
    """One image in every form that ImageNet or a folder of one's own may hold."""
    turned = Image.Exif()
    turned[0x112] = 6  # an orientation, which torchvision does not look at
    clear = image.copy()
    clear.putalpha(90)
    return {
        "plain.jpg": encoded(image, quality=90),
        "full_chroma.jpg": encoded(image, quality=95, subsampling=0),
        "progressive.jpeg": encoded(image, quality=90, progressive=True),
        "restarts.JPEG": encoded(image, quality=90, restart_marker_blocks=2),
        "grey.jpg": encoded(image.convert("L"), quality=90),
        "cmyk.jpg": encoded(image.convert("CMYK"), quality=90),
        "turned.jpg": encoded(image, quality=90, exif=turned),
        "png_named.JPEG": encoded(image, "PNG"),
        "grey.png": encoded(image.convert("L"), "PNG"),
        "palette.png": encoded(image.convert("P"), "PNG"),
        "clear.png": encoded(clear, "PNG"),
        "written over.jpg": encoded(image, quality=90) + b"\0" * 700,
        "-dash.jpg": encoded(image, quality=90),
        "ünï🙂 code.jpg": encoded(image, quality=90),
        "new\nline.jpg": encoded(image, quality=90),
    }


def bad_forms(image: Image.Image) -> dict[str, tuple[bytes, str]]:
    """Files that a scan must find, each with words of the reason."""
    whole, png = encoded(image, quality=90), encoded(image, "PNG")
    first_frame = whole.index(b"\xff\xc0")
    huge = whole[: first_frame + 5] + b"\xff\xff\xff\xff" + whole[first_frame + 9 :]
    deep = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    return {
        "empty.jpg": (b"", "empty file"),
        "text.jpg": (b"hello " * 99, "neither JPEG nor PNG"),
        "picture.gif": (encoded(image, "GIF"), "neither JPEG nor PNG"),
        "start.jpg": (whole[:2], "header cut short"),
        "header.jpg": (whole[: first_frame + 3], "header cut short"),
        "no_scan.jpg": (whole[: first_frame + 19], "header cut short"),
        "half.jpg": (whole[: len(whole) // 2], "no end-of-image marker"),
        "no_end.jpg": (whole[:-2], "no end-of-image marker"),
        "half.png": (png[: len(png) // 2], "no end-of-image marker"),
        "header.png": (png[:20], "header cut short"),
        "huge.jpg": (huge, "impossible size: 65,535 x 65,535 pixels"),
        "bad_header.jpg": (whole[:2] + b"\0" * 300 + whole[302:], "damaged header"),
        "deep.png": (encoded(deep, "PNG"), "16 bits"),
    }


def damaged_in_the_middle(image: Image.Image) -> bytes:
    """A JPEG whose header and end are right, with noise over a part of its scan."""
    content = bytearray(encoded(image, quality=90))
    middle = len(content) // 2
    noise = np.random.default_rng(0).integers(256, size=600, dtype=np.uint8)
    content[middle : middle + 600] = noise.tobytes()
    return bytes(content)


def write_tree(
    root: Path,
    *,
    classes: int = 3,
    train_images: int = 8,
    test_images: int = 4,
    test_name: str = "val",
) -> Path:
    """A tree of JPEGs of many shapes; `train_images` and `test_images` a class."""
    for split, count in (("train", train_images), (test_name, test_images)):
        for label in range(classes):
            folder = root / split / f"class{label}"
            folder.mkdir(parents=True)
            for number in range(count):
                seed = number + (0 if split == "train" else 1_000_000)
                random = np.random.default_rng((label, seed, 1))
                width, height = random.integers(70, 140, size=2)
                image = texture(label, seed, int(width), int(height))
                (folder / f"{number:04}.JPEG").write_bytes(encoded(image, quality=90))
    return root
