"""Read any picture file as upright RGB, and reduce it to what training needs."""

import math
import os
import zlib
from pathlib import Path

import numpy as np
import PIL
import simplejpeg
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from .transforms import resize

FORMATS = ["JPEG", "PNG", "BMP", "WEBP", "GIF"]  # by content: photos often carry a wrong suffix
MAX_PIXELS = 100_000_000  # larger pictures are taken for decompression bombs
JPEG_START, MAX_BYTES = b"\xff\xd8", 1 << 27  # what a JPEG begins with; no more is read of it
ORIENTATION_MARKS = b"Exif\0", b"tiff:Orientation"  # such a file may say how it is turned
# Changes with this file and with the decoders, so that cached pictures are decoded again.
DECODER = zlib.crc32(
    Path(__file__).read_bytes() + f"{PIL.__version__} {simplejpeg.__version__}".encode()
)


class UnreadableImage(OSError):
    """A picture that cannot be read: one line with its name and the reason."""


def read_image(path: str | Path, side: int | None = None) -> Tensor:
    """Return any picture as upright RGB: uint8 (3, H, W).

    Raises UnreadableImage for a file that is cut off, no picture, or a decompression bomb.

    side: pixels that are enough for the shorter side. A JPEG is decoded at 1/2, 1/4 or 1/8 of its
    size if that leaves enough, which for a camera's picture is ten times as fast.
    """
    try:
        pixels = decode_plain_jpeg(path, side)
        if pixels is None:
            pixels = decode_any(path, side)
        return torch.from_numpy(pixels).permute(2, 0, 1)
    except UnidentifiedImageError as error:
        raise UnreadableImage(
            f"{printable(path)} is left out: no picture of a known kind"
        ) from error
    except Exception as error:  # decoders of damaged files raise exceptions of any type
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UnreadableImage(f"{printable(path)} is left out: {reason}") from error


def decode_plain_jpeg(path: str | Path, side: int | None) -> np.ndarray | None:
    """Return the pixels (H, W, 3) of a JPEG: those that Pillow returns, in half the time.

    None for a file that only Pillow reads well: another format, with information on how it is
    turned, damaged, or in the colours of a printer (CMYK).
    """
    with open(path, "rb", buffering=0) as file:
        data = file.read(len(JPEG_START))
        if data != JPEG_START:
            return None
        data += file.read(MAX_BYTES)
    if any(mark in data for mark in ORIENTATION_MARKS):
        return None
    try:
        height, width, colors, _ = simplejpeg.decode_jpeg_header(data)
        if colors not in ("YCbCr", "Gray") or height * width > MAX_PIXELS:
            return None
        enough = min(height, width) // side if side else 1
        factor = max(factor for factor in (1, 2, 4, 8) if factor <= max(1, enough))
        smaller = {"min_height": math.ceil(height / factor), "min_width": math.ceil(width / factor)}
        return simplejpeg.decode_jpeg(data, **smaller)
    except ValueError:
        return None


def decode_any(path: str | Path, side: int | None) -> np.ndarray:
    """Return the pixels (H, W, 3) of a picture of any format, by Pillow."""
    with Image.open(path, formats=FORMATS) as image:
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(f"{image.width} x {image.height} pixels are too many")
        if side:
            image.draft(None, (side, side))
        ImageOps.exif_transpose(image, in_place=True)
        return np.array(to_rgb(image))


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert palette, CMYK, grey, 16-bit and transparent pictures, the last ones onto white."""
    if image.mode.startswith("I"):  # 16 bits a pixel, which convert() would clip to white
        image = Image.fromarray((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == "RGB" else image.convert("RGB")


def shrink(picture: Tensor, side: int) -> Tensor:
    """Reduce a picture (3, H, W) to `side` pixels of the shorter side, if it has 1.5 times that."""
    _, height, width = picture.shape
    factor = side / min(height, width)
    if factor > 2 / 3:
        return picture
    return resize(picture, max(side, round(factor * height)), max(side, round(factor * width)))


def printable(path: str | Path) -> str:
    r"""Return a path as text in which bytes that are not UTF-8 are written as \xe9."""
    return os.fsencode(path).decode(errors="backslashreplace")
