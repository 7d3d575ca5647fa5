"""Pictures and numbers of what a model does: from logits, labels and weights, not from a run."""

from collections.abc import Sequence
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import Tensor

CELL = 128  # pixels a side of a picture in a gallery
# Fonts for letters that Pillow's own font does not have; Pillow looks for them by these names.
OTHER_FONTS = ["NotoSansCJK-Regular.ttc", "wqy-zenhei.ttc", "DroidSansFallbackFull.ttf"]
OTHER_FONTS += ["msyh.ttc", "PingFang.ttc", "Arial Unicode.ttf", "DejaVuSans.ttf"]


def denormalize(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """Return what a normalised batch (N, 3, H, W) shows: uint8 (N, H, W, 3)."""
    pixels = images.detach().float().cpu().permute(0, 2, 3, 1).numpy()
    return np.clip((pixels * std + mean) * 255 + 0.5, 0, 255).astype(np.uint8)


def gallery(pictures: Sequence[np.ndarray] | np.ndarray, captions: Sequence[str]) -> Image.Image:
    """Lay out pictures, uint8 (H, W, 3), in a grid with a caption of some lines below each."""
    columns = min(8, len(pictures))
    lines = max(caption.count("\n") + 1 for caption in captions)
    height = CELL + 14 * lines + 6
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * (CELL + 4), rows * height), "white")
    draw = ImageDraw.Draw(sheet)
    for number, (pixels, caption) in enumerate(zip(pictures, captions, strict=True)):
        x, y = number % columns * (CELL + 4), number // columns * height
        sheet.paste(ImageOps.contain(Image.fromarray(pixels), (CELL, CELL)), (x, y))
        for line, words in enumerate(caption.split("\n")):
            draw_text(draw, (x, y + CELL + 14 * line), words, CELL)
    return sheet


def confusion_picture(counts: Sequence[Sequence[int]], classes: Sequence[str]) -> Image.Image:
    """Draw a confusion matrix (K, K): a row per true class; the colour is the share of the row.

    With more than a hundred classes there is no room for names and counts. The picture has a
    palette, which makes a small file.
    """
    table = np.asarray(counts)
    shares = table / table.sum(axis=1, keepdims=True).clip(min=1)
    if len(classes) > 100:
        whole = Image.fromarray((255 * (1 - shares)).astype(np.uint8))
        side = max(1, 1200 // len(classes)) * len(classes)
        return whole.resize((side, side), Image.Resampling.NEAREST).convert("P")
    side = 64 if len(classes) <= 8 else 36 if len(classes) <= 20 else 26
    corner = "true ↓ given →"
    margin = 8 + min(180, max(round(text_width(name)) for name in (corner, *classes)))
    size = margin + side * len(classes) + 8
    sheet = Image.new("RGB", (size, size), "white")
    draw = ImageDraw.Draw(sheet)
    draw_text(draw, (4, 4), corner, margin - 8)
    for k, name in enumerate(classes):
        start = margin + side * k
        draw_text(draw, (4, start + side // 2 - 7), name, margin - 8)
        label = Image.new("RGB", (margin - 8, 14), "white")
        draw_text(ImageDraw.Draw(label), (0, 0), name, margin - 8)
        sheet.paste(label.rotate(90, expand=True), (start + side // 2 - 7, 4))
    for true, row in enumerate(table.tolist()):
        for given, count in enumerate(row):
            x, y = margin + side * given, margin + side * true
            share = shares[true, given]
            draw.rectangle((x, y, x + side - 2, y + side - 2), fill=blue(share))
            if count:
                color = "white" if share > 0.6 else "black"
                middle = x + side / 2 - 1, y + side / 2 - 1
                draw.text(middle, f"{count}", color, font(count > 999), anchor="mm")
    return sheet.quantize(palette=palette(), dither=Image.Dither.NONE)


def blue(share: float) -> tuple[int, ...]:
    """Return a colour between white, for a share of 0, and dark blue."""
    return tuple(round(255 - share * (255 - end)) for end in (31, 119, 180))


@cache
def palette() -> Image.Image:
    """Return a picture that has the colours of the palette: shades of blue and of grey."""
    found = Image.new("P", (1, 1))
    blues = [blue(k / 100) for k in range(101)]
    found.putpalette([x for color in blues for x in color] + [15 * (k // 3) for k in range(54)])
    return found


def draw_text(draw: ImageDraw.ImageDraw, place: tuple[int, int], words: str, width: int) -> None:
    """Write a line, with … in its middle if it is wider than `width` pixels."""
    words = words.encode("utf-8", "replace").decode()  # the name of a file may have odd bytes
    used = font() if can_show(words) else other_font() or font()
    shorter, left = words, len(words)
    while used.getlength(shorter) > width and left > 2:
        left -= 1
        shorter = words[: (left + 1) // 2] + "…" + words[len(words) - left // 2 :]
    draw.text(place, shorter, "black", used)


def text_width(words: str) -> float:
    return font().getlength(words.encode("utf-8", "replace").decode())


@cache
def font(small: bool = False) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(8 if small else 11)


@cache
def can_show(words: str) -> bool:
    """Tell whether Pillow's own font has all letters."""
    if words.isascii():
        return True
    missing = bytes(font().getmask("\uffff"))
    return all(bytes(font().getmask(letter)) != missing for letter in words if letter.strip())


@cache
def other_font() -> ImageFont.FreeTypeFont | None:
    """Return a font of this machine that has more letters, or None."""
    for name in OTHER_FONTS:
        try:
            return ImageFont.truetype(name, 11)
        except OSError:
            continue
    return None


def confidences(logits: Tensor, labels: Tensor) -> dict[str, np.ndarray]:
    """Return the largest probability of each picture: of all, right and wrong ones."""
    largest, given = logits.float().softmax(dim=1).max(dim=1)
    right = (given == labels).numpy()
    confidence = largest.numpy()
    return {"all": confidence, "right": confidence[right], "wrong": confidence[~right]}
