"""The built-in synthetic set: what a run falls back on where there is no CIFAR.

Each class has two smooth, periodic textures. An image is a window at a random place of one of them,
at random contrast and in random colours, mixed with a fainter texture of another class, a smooth
background that says nothing of the class, and noise. A linear classifier on pixels gets well under
half of the test images right; a small convolutional net learns them in a few epochs. Its figures
say that the program works, and nothing about CIFAR.

All arithmetic is in integers, from the bit generator's raw words, so that the same seed gives the
same bytes on every machine and with every numpy.
"""

import numpy as np
import numpy.typing as npt

from swap_fast.data.cifar.augment import IMAGE_SIZE
from swap_fast.data.cifar.dataset import (
    IMAGE_BYTES,
    KNOWN,
    RECORD_BYTES,
    ByteArray,
    Dataset,
    build_dataset,
)

SYNTHETIC_SEED = 20_200_110

_NUM_CLASSES = KNOWN["synthetic"].num_classes
_TEXTURES_PER_CLASS = 2
_TEXTURE_SIDE = 12  # the period of a texture, in pixels; it divides the canvas
_TEXTURE_CELL = 4  # a texture is smooth over cells of this many pixels
_BACKGROUNDS = 20
_BACKGROUND_CELL = 12
_CANVAS_SIDE = 48  # a window of 32 on a canvas has 17 places along each axis
_OFFSETS = _CANVAS_SIDE - IMAGE_SIZE + 1
_OWN_WEIGHT = (40, 64)  # least and greatest strength of each layer, in 64ths
_OTHER_WEIGHT = (24, 40)
_BACKGROUND_WEIGHT = (16, 40)
_NOISE_EIGHTHS = 4
_CHUNK = 1_000  # images drawn at a time; a part of what the seed means
_NUMBERS_PER_IMAGE = 20

Canvases = npt.NDArray[np.int16]  # [n, 3, height, width], in -128..127
Numbers = npt.NDArray[np.int32]


def generate_synthetic(
    *, train_images: int = 50_000, test_images: int = 10_000, seed: int = SYNTHETIC_SEED
) -> Dataset:
    """Generate the set; the first n images drawn are the same for every number of images.

    Arguments:
        train_images: of which the classes have as many each, give or take one.
        seed: of the patterns and of all images; the splits share the patterns only.

    Raises:
        ValueError: a number of images is below 1.
    """
    for what, count in (("train_images", train_images), ("test_images", test_images)):
        if count < 1:
            raise ValueError(f"{what}: expected at least 1 synthetic image, got {count}")
    canvases = _draw_canvases(seed)
    return build_dataset(
        "synthetic",
        _draw_split(canvases, train_images, (seed, 1)),
        _draw_split(canvases, test_images, (seed, 2)),
        source=f"generated from seed {seed}",
    )


def _raw_bytes(entropy: tuple[int, ...], count: int) -> ByteArray:
    """`count` random bytes: PCG64's words, little-endian, which numpy keeps stable for ever."""
    words = np.random.PCG64(np.random.SeedSequence(entropy)).random_raw(-(-count // 8))
    return words.astype("<u8", copy=False).view(np.uint8)[:count]


def _draw_canvases(seed: int) -> Canvases:
    """The classes' textures, class by class, then the backgrounds: int16 [n, 3, 48, 48]."""
    num_textures = _NUM_CLASSES * _TEXTURES_PER_CLASS
    textures = _draw_periodic(num_textures, _TEXTURE_SIDE, _TEXTURE_CELL, (seed, 0, 0))
    backgrounds = _draw_periodic(_BACKGROUNDS, _CANVAS_SIDE, _BACKGROUND_CELL, (seed, 0, 1))
    repeats = _CANVAS_SIDE // _TEXTURE_SIDE
    return np.concatenate([np.tile(textures, (1, 1, repeats, repeats)), backgrounds])


def _draw_periodic(count: int, side: int, cell_side: int, entropy: tuple[int, ...]) -> Canvases:
    """Smooth patterns that join at their edges, bilinear: [count, 3, side, side]."""
    num_cells = side // cell_side
    drawn = _raw_bytes(entropy, count * 3 * num_cells**2)
    nodes = drawn.reshape(count, 3, num_cells, num_cells).astype(np.int32) - 128
    cell, inside = np.divmod(np.arange(side, dtype=np.int32), cell_side)
    following, before = (cell + 1) % num_cells, cell_side - inside
    rows = nodes[:, :, cell] * before[:, None] + nodes[:, :, following] * inside[:, None]
    both = rows[..., cell] * before + rows[..., following] * inside
    return (both // cell_side**2).astype(np.int16)


def _draw_split(canvases: Canvases, num_images: int, entropy: tuple[int, int]) -> list[ByteArray]:
    """Blocks of records, each uint8 [up to 1000, 3073]."""
    blocks = []
    for start in range(0, num_images, _CHUNK):
        block = _draw_records(canvases, (*entropy, start // _CHUNK))
        blocks.append(block[: num_images - start])
    return blocks


def _draw_records(canvases: Canvases, entropy: tuple[int, ...]) -> ByteArray:
    """One chunk of records, uint8 [1000, 3073], its classes in turn."""
    drawn = _raw_bytes(entropy, _CHUNK * (2 * _NUMBERS_PER_IMAGE + 2 * IMAGE_BYTES))
    number_bytes = _CHUNK * 2 * _NUMBERS_PER_IMAGE
    # One row for each random property of an image: 0..65535, int32 [20, 1000].
    numbers = drawn[:number_bytes].view("<u2").astype(np.int32).reshape(-1, _CHUNK)
    noise = drawn[number_bytes:].reshape(2, _CHUNK, 3, IMAGE_SIZE, IMAGE_SIZE)

    labels = np.arange(_CHUNK, dtype=np.int32) % _NUM_CLASSES
    others = (labels + 1 + numbers[0] % (_NUM_CLASSES - 1)) % _NUM_CLASSES
    own = labels * _TEXTURES_PER_CLASS + numbers[1] % _TEXTURES_PER_CLASS
    other = others * _TEXTURES_PER_CLASS + numbers[2] % _TEXTURES_PER_CLASS
    background = _NUM_CLASSES * _TEXTURES_PER_CLASS + numbers[3] % _BACKGROUNDS

    # Weights in 64ths, int32 [1000, 3]: each layer's strength, the own texture's also by channel.
    own_weight = _between(_OWN_WEIGHT, numbers[4]) * (64 + numbers[5:8].T % 33 - 16) // 64
    other_weight = np.repeat(_between(_OTHER_WEIGHT, numbers[8]), 3, axis=1)
    background_weight = np.repeat(_between(_BACKGROUND_WEIGHT, numbers[9]), 3, axis=1)
    shade = 128 + numbers[10:13].T % 49 - 24

    pixels = np.zeros((_CHUNK, 3, IMAGE_SIZE, IMAGE_SIZE), dtype=np.int16)
    for chosen, weight, places in (
        (own, own_weight, numbers[13:15]),
        (other, other_weight, numbers[15:17]),
        (background, background_weight, numbers[17:19]),
    ):
        window = _windows(canvases, chosen, places % _OFFSETS)
        pixels += window * weight.astype(np.int16)[:, :, None, None]
    pixels >>= 6
    pixels += shade.astype(np.int16)[:, :, None, None]
    # The sum of two uniform bytes, a triangle about zero.
    pixels += ((noise[0].astype(np.int16) + noise[1] - 255) * _NOISE_EIGHTHS) >> 3
    np.clip(pixels, 0, 255, out=pixels)

    records = np.empty((_CHUNK, RECORD_BYTES), dtype=np.uint8)
    records[:, 0] = labels
    records[:, 1:] = pixels.reshape(_CHUNK, IMAGE_BYTES)
    return records


def _between(limits: tuple[int, int], numbers: Numbers) -> Numbers:
    """Random numbers [n] brought between two limits, both included: [n, 1]."""
    low, high = limits
    return (low + numbers % (high - low + 1))[:, None]


def _windows(canvases: Canvases, chosen: Numbers, places: Numbers) -> Canvases:
    """The window of each chosen canvas at its row and column `places` [2, n]: [n, 3, 32, 32]."""
    windows = np.lib.stride_tricks.sliding_window_view(
        canvases, (IMAGE_SIZE, IMAGE_SIZE), axis=(2, 3)
    ).transpose(0, 2, 3, 1, 4, 5)  # [canvases, 17, 17, 3, 32, 32]
    return windows[chosen, places[0], places[1]]
