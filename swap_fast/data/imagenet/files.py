"""Reads the headers of JPEG and PNG files, and checks that they are whole, without decoding.

The type follows from the content, not from the file's name. Every legal image becomes RGB at
decoding, as in torchvision: grey, CMYK, palettes, transparency (dropped). 16-bit PNGs are refused,
because decoders do not agree on them.
"""

import os
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass

MAX_PIXELS = 89_478_485
"""Pillow's own limit: a larger image is taken for an attack on the memory."""

_HEAD_BYTES = 4096  # holds most headers, so that one read is enough
_TAIL_BYTES = 4096  # some programs write a little after the end of the image
_MAX_FILL_BYTES = 1024  # JPEG has no limit; a file of nothing else must not stop the scan

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_END = b"\0\0\0\0IEND\xaeB`\x82"

_JPEG_START, _JPEG_END = b"\xff\xd8", b"\xff\xd9"
_START_OF_SCAN, _RESTART_INTERVAL, _END_OF_IMAGE = 0xDA, 0xDD, 0xD9
# Baseline, extended and progressive, with Huffman codes: what every decoder reads.
_FRAMES = (0xC0, 0xC1, 0xC2)
_OTHER_FRAMES = (0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF)
# What may stand between two scans: tables, comments, application data, number of lines.
_BETWEEN_SCANS = frozenset({0xC4, 0xDA, 0xDB, 0xDC, 0xDD, 0xFE, *range(0xE0, 0xF0)})
# In a scan's data 0xFF is followed by 0, or by a restart marker, or fills up with more 0xFF.
_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
_MARKER_OR_RESTART = re.compile(rb"\xff[^\x00\xff]")

Read = Callable[[int, int], bytes]
"""(offset, count) -> as many of those bytes as the file has."""


class BadImageError(ValueError):
    """A file that cannot be used; the message is the reason, without the file's name."""


@dataclass(frozen=True, kw_only=True)
class ImageHeader:
    """The header of an image file."""

    width: int
    """Columns, without EXIF's orientation, as torchvision decodes."""
    height: int
    body: int
    """Offset of the first scan's data in a JPEG, of the first chunk after IHDR in a PNG."""
    is_jpeg: bool
    """False for a PNG."""
    has_restarts: bool = False
    """Whether a JPEG's scans are divided by restart markers."""


def inspect_image(path: str | bytes | os.PathLike[str]) -> tuple[ImageHeader, int]:
    """Read a file's head and tail: its header, and its size in bytes.

    Raises:
        BadImageError: it cannot be read, is empty, is no JPEG or PNG, or is cut short.
    """
    try:
        # Not blocking: to open a pipe without a writer would block for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        try:
            size = os.fstat(descriptor).st_size

            def read(offset: int, count: int) -> bytes:
                return os.pread(descriptor, count, offset)

            header = read_header(read)
            _require_end(read, header, size)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise BadImageError(f"cannot be read: {error.strerror or error}") from None
    return header, size


def read_image(path: str | bytes | os.PathLike[str]) -> tuple[ImageHeader, bytes]:
    """A file's header and content, checked for damage that decoders ignore.

    Raises:
        BadImageError: it cannot be read, or is damaged.
    """
    try:
        with open(path, "rb", buffering=0) as file:
            content = file.read()
    except OSError as error:
        raise BadImageError(f"cannot be read: {error.strerror or error}") from None
    return require_whole(content), content


def require_whole(content: bytes) -> ImageHeader:
    """Refuse content that is cut short, or a JPEG whose scans have markers that no scan may have.

    A decoder makes some image of a damaged scan. Random bytes in a scan, other than zeros, have an
    invalid marker within a few hundred bytes.

    Raises:
        BadImageError: with the reason.
    """
    header = read_header(lambda offset, count: content[offset : offset + count])
    if not header.is_jpeg:
        # A PNG's chunks carry checksums, which decoders compare.
        _require_end(lambda at, count: content[at : at + count], header, len(content))
        return header
    pattern = _MARKER if header.has_restarts else _MARKER_OR_RESTART
    position = header.body
    while found := pattern.search(content, position):
        marker, position = content[found.end() - 1], found.end()
        if marker == _END_OF_IMAGE:
            return header
        if marker not in _BETWEEN_SCANS:
            raise BadImageError(f"damaged: marker ff {marker:02x} at byte {found.start():,}")
        if marker == _RESTART_INTERVAL:
            pattern = _MARKER
        position += int.from_bytes(content[position : position + 2])
    raise BadImageError("cut short: no end-of-image marker")


def read_header(read: Read) -> ImageHeader:
    """Parse a file's header.

    Raises:
        BadImageError: an empty file, neither JPEG nor PNG, or a header that is cut short.
    """
    head = read(0, _HEAD_BYTES)
    if not head:
        raise BadImageError("empty file")
    if head.startswith(_JPEG_START):
        header = _read_jpeg_header(head, read)
    elif head.startswith(_PNG_SIGNATURE):
        header = _read_png_header(head)
    else:
        raise BadImageError("neither JPEG nor PNG")
    pixels = header.width * header.height
    if not 0 < pixels <= MAX_PIXELS:
        size = f"{header.width:,} x {header.height:,} pixels"
        raise BadImageError(f"impossible size: {size}, expected 1 to {MAX_PIXELS:,} in all")
    return header


def _read_png_header(head: bytes) -> ImageHeader:
    if len(head) < 33 or head[8:16] != b"\0\0\0\x0dIHDR":
        raise BadImageError("header cut short")
    width, height, depth = struct.unpack(">IIB", head[16:25])
    if depth == 16:
        raise BadImageError("PNG of 16 bits a channel, expected 8 or fewer")
    return ImageHeader(width=width, height=height, body=33, is_jpeg=False)


def _read_jpeg_header(head: bytes, read: Read) -> ImageHeader:
    """Read the segments up to the first scan."""
    size: tuple[int, int] | None = None
    has_restarts = False
    position, fill_bytes = 2, 0
    while True:
        segment = head[position : position + 9]
        if len(segment) < 9:
            segment = read(position, 9)
        if len(segment) < 4:
            raise BadImageError("header cut short")
        marker, length = segment[1], int.from_bytes(segment[2:4])
        if segment[0] != 0xFF or fill_bytes > _MAX_FILL_BYTES:
            raise BadImageError(f"damaged header: no marker at byte {position:,}")
        if marker == 0xFF:
            fill_bytes += 1
            position += 1
            continue
        if marker in _OTHER_FRAMES:
            raise BadImageError(f"JPEG of a kind that decoders do not share: frame ff {marker:02x}")
        if marker in _FRAMES:
            if len(segment) < 9:
                raise BadImageError("header cut short")
            size = (int.from_bytes(segment[7:9]), int.from_bytes(segment[5:7]))
        elif marker == _RESTART_INTERVAL:
            has_restarts = segment[4:6] != b"\0\0"
        elif marker not in _BETWEEN_SCANS or length < 2:
            raise BadImageError(f"damaged header: marker ff {marker:02x} at byte {position:,}")
        position += 2 + length
        if marker == _START_OF_SCAN:
            break
    if size is None:
        raise BadImageError("header without an image size")
    return ImageHeader(
        width=size[0], height=size[1], body=position, is_jpeg=True, has_restarts=has_restarts
    )


def _require_end(read: Read, header: ImageHeader, size: int) -> None:
    """Look for the end-of-image marker in the tail, then in all of the image's data."""
    end = _JPEG_END if header.is_jpeg else _PNG_END
    for start in (max(header.body, size - _TAIL_BYTES), header.body):
        if end in read(start, size - start):
            return
    raise BadImageError("cut short: no end-of-image marker")
