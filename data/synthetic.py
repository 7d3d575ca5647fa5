"""Draw cats and dogs that only their shapes tell apart: a data set for the demo and the tests."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

Color = tuple[int, int, int]
Fur = Image.Image  # as large as the picture: shapes are cut out of it
Coat = tuple[Fur, Fur, Fur]  # the pattern, the same in shade, the light fur of muzzle and chest
Points = Sequence[tuple[float, float]] | np.ndarray

SCALE = 2  # draw at twice the size, then reduce: smooth edges
INK, WHITE, PINK = (35, 28, 30), (245, 245, 245), (222, 110, 120)
FURS = ["3d3b42", "66656b", "8f8d92", "efe9df", "e3c79b", "d98b45", "a8622f", "6b4630"]
EYES = ["8fbf3f", "e0b02e", "5aa5d6", "7a4a22", "c27a2c"]
# The room that a pose needs around the head, in head radii: left, top, right, bottom.
POSES = {
    "head": (-1.4, -1.5, 1.4, 1.4),
    "sit": (-1.5, -1.5, 1.4, 2.8),
    "lie": (-3.0, -1.5, 1.4, 1.7),
    "stand": (-3.0, -1.5, 1.4, 2.5),
}
# Outlines of a right ear around its root.
EARS = {
    "pointed": [(-0.45, 0), (-0.25, -0.5), (0.2, -1), (0.4, -0.4), (0.42, 0.3), (0, 0.4)],
    "folded": [(-0.42, 0), (-0.2, -0.3), (0.25, -0.35), (0.5, 0.1), (0.1, 0.1), (0, 0.2)],
    "hanging": [(-0.35, -0.1), (0.1, -0.25), (0.4, 0.3), (0.4, 1.2), (0.05, 1.2), (-0.05, 0.4)],
    "tipped": [(-0.45, 0), (-0.2, -0.5), (0.3, -0.45), (0.6, 0.3), (0.4, 0.35), (0.1, 0.1)],
    "spread": [(-0.4, 0), (-0.1, -0.35), (0.5, -0.3), (0.8, 0.05), (0.45, 0.2), (0, 0.3)],
}
CIRCLE = np.array([(math.cos(k * math.pi / 12), math.sin(k * math.pi / 12)) for k in range(24)])
THINGS = [
    CIRCLE,
    np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]),
    np.array([(-1, 0.9), (0, -0.9), (1, 0.9)]),
    CIRCLE * (0.65 + 0.35 * np.cos(np.arange(24) * math.pi / 3))[:, None],
]
# Weights of four neighbouring points at six steps along a Catmull-Rom curve.
POWERS = (np.arange(6)[:, None] / 6) ** np.arange(4)
BASIS = POWERS @ [[0, 1, 0, 0], [-0.5, 0, 0.5, 0], [1, -2.5, 2, -0.5], [-0.5, 1.5, -1.5, 0.5]]


@dataclass
class Pen:
    """Paint in an animal's own frame: unit = its head's radius, x = where it looks, y = down."""

    image: Image.Image
    origin: np.ndarray
    matrix: np.ndarray
    ink: Color = INK  # outline of fur
    width: int = 0  # of the outline, in pixels
    fluff: float = 0.0

    def moved(self, x: float, y: float, angle: float = 0, scale: float = 1) -> "Pen":
        """Return a pen whose frame stands at x, y, is turned by `angle` radians and scaled."""
        origin = np.array([x, y]) @ self.matrix + self.origin
        return replace(self, origin=origin, matrix=scale * rotation(angle) @ self.matrix)

    def polygon(self, points: Points, paint: Color | Fur) -> None:
        """Fill a polygon with a colour, or with fur and its outline."""
        path = np.asarray(points) @ self.matrix + self.origin
        canvas = ImageDraw.Draw(self.image)
        if not isinstance(paint, Image.Image):
            canvas.polygon(path.ravel().tolist(), fill=paint)
            return
        tufts = self.fluff * np.sin(5 * np.arange(len(path)))[:, None] ** 2
        path += tufts * (path - path.mean(0))
        left, top = np.floor(path.min(0)).astype(int).tolist()
        right, bottom = np.ceil(path.max(0)).astype(int).tolist()
        mask = Image.new("1", (right - left + 1, bottom - top + 1))
        ImageDraw.Draw(mask).polygon((path - (left, top)).ravel().tolist(), fill=1)
        self.image.paste(paint.crop((left, top, right + 1, bottom + 1)), (left, top), mask)
        if self.width:
            closed = np.concatenate([path, path[:1]])
            canvas.line(closed.ravel().tolist(), fill=self.ink, width=self.width)

    def blob(self, points: Points, paint: Color | Fur) -> None:
        """Fill the smooth closed curve through the points."""
        p = np.asarray(points, float)
        around = p[(np.arange(len(p))[:, None] + (-1, 0, 1, 2)) % len(p)]  # (points, 4, 2)
        self.polygon((BASIS @ around).reshape(-1, 2), paint)

    def oval(self, x: float, y: float, rx: float, ry: float, paint: Color | Fur) -> None:
        """Fill an ellipse around x, y."""
        self.polygon(CIRCLE * (rx, ry) + (x, y), paint)

    def band(self, points: Points, start: float, end: float, paint: Color | Fur) -> None:
        """Fill a band along the points whose half width goes from `start` to `end`."""
        middle = np.array(points, float)
        along = np.gradient(middle, axis=0)
        across = along[:, ::-1] * (-1, 1) / np.hypot(*along.T)[:, None]
        across *= np.linspace(start, end, len(middle))[:, None]
        self.blob(np.concatenate([middle + across, (middle - across)[::-1]]), paint)


def rotation(angle: float) -> np.ndarray:
    """Return the matrix that turns row vectors by `angle` radians."""
    return np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])


def vary(color: str | Color, rng: random.Random, spread: int = 12, gain: float = 1.0) -> Color:
    """Return the colour times `gain`, each channel a little off."""
    channels = bytes.fromhex(color) if isinstance(color, str) else color
    return tuple(min(255, max(0, int(gain * c) + rng.randint(-spread, spread))) for c in channels)


def any_color(rng: random.Random) -> Color:
    """Return a colour of a room or a garden."""
    return vary((rng.randint(40, 225),) * 3, rng, 45)


def draw_thing(image: Image.Image, x: float, y: float, size: float, rng: random.Random) -> None:
    """Draw a ball, a box, a tent or a plant, half of them with a second colour inside."""
    pen = Pen(image, np.array([x, y]), size * rotation(rng.uniform(-0.4, 0.4)))
    shape = rng.choice(THINGS) * (rng.uniform(0.5, 1.2), rng.uniform(0.5, 1.2))
    for scale in (1, 0.75)[: rng.randint(1, 2)]:
        pen.polygon(scale * shape, any_color(rng))


def draw_background(size: tuple[int, int], rng: random.Random) -> Image.Image:
    """Draw a plain or graded wall, sometimes wallpaper, a floor and a few things."""
    width, height = size
    image = Image.new("RGB", size, any_color(rng))
    canvas = ImageDraw.Draw(image)
    if rng.random() < 0.4:
        ramp = Image.linear_gradient("L").rotate(rng.choice([0, 90, 180, 270])).resize(size)
        image.paste(any_color(rng), (0, 0), ramp)
    elif rng.random() < 0.3:
        step, stripe = rng.randint(20, 60), any_color(rng)
        for x in range(0, width, step):
            canvas.rectangle((x, 0, x + step // 2, height), fill=stripe)
    if rng.random() < 0.5:
        canvas.rectangle((0, height * rng.uniform(0.5, 0.85), width, height), fill=any_color(rng))
    for _ in range(rng.choice([0, 0, 1, 2, 3, 5])):
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        draw_thing(image, x, y, height * rng.uniform(0.05, 0.25), rng)
    return image


def draw_coat(size: tuple[int, int], unit: float, rng: random.Random) -> Coat:
    """Draw plain, striped, spotted or patched fur in one or two colours."""
    color = vary(rng.choice(FURS), rng, gain=rng.uniform(0.85, 1.15))
    mark = vary(rng.choice(FURS), rng)
    coat = Image.new("RGB", size, color)
    pen = Pen(coat, np.array(size) / 2, unit * rotation(rng.uniform(-1, 1)))
    pattern = rng.choice(["plain", "plain", "stripes", "spots", "patches"])
    if pattern == "stripes":
        step, width = rng.uniform(0.4, 0.7), rng.uniform(0.05, 0.11)
        for k in range(-9, 10):
            wave = [(k * step + rng.uniform(-0.12, 0.12), y) for y in range(-5, 6)]
            pen.band(wave, width, width, mark)
    elif pattern != "plain":
        count, radius = (90, 0.16) if pattern == "spots" else (14, 0.7)
        for _ in range(count):
            x, y, r = rng.uniform(-4, 4), rng.uniform(-4, 4), radius * rng.uniform(0.6, 1.4)
            pen.oval(x, y, r, r * rng.uniform(0.6, 1), mark)
    light = Image.new("RGB", size, vary(rng.choice([color, "f2ebdf"]), rng, 6, 1.08))
    return coat, coat.point([int(0.82 * v) for v in range(256)] * 3), light


def draw_body(
    pen: Pen, pose: str, tail: tuple[float, float, float], coat: Coat, rng: random.Random
) -> None:
    """Draw tail, body and legs; `tail` is its length and its half widths at root and tip."""
    fur, shade, light = coat
    build, upright = rng.uniform(0.85, 1.15), pose in ("sit", "head")
    length, root, tip = tail
    x, y = (-0.9, 2.8) if upright else (-2.9, 0.9)
    bend, lift = rng.uniform(-0.5, 0.7), rng.uniform(0, 1) * (pose != "lie")
    path = [(0, 0), (-0.4, -0.3 * lift), (-0.7, -0.9 * lift), (-0.8 + bend, -1.4 * lift)]
    path.append((-0.6 + 1.6 * bend, -1.7 * lift - 0.2))
    pen.band([(x + length * a, y + length * b) for a, b in path], root, tip, shade)
    if upright:
        half = [(0.5, 0.4), (0.7 * build, 1.2), (1.05 * build, 2.2), (0.9 * build, 3)]
        pen.blob([*half, *((-x, y) for x, y in reversed(half))], fur)
        pen.oval(0.05, 1.6, 0.4 * build, 0.75, light)
        for side in (-1, 1):
            pen.oval(side * 0.9 * build, 2.65, 0.42, 0.5, fur)
            pen.band([(side * 0.32, 1.7), (side * 0.34, 2.4), (side * 0.36, 3)], 0.22, 0.2, fur)
            pen.oval(side * 0.4, 3.05, 0.3, 0.17, light)
        return
    if pose == "stand":
        for x, paint in ((-2.75, shade), (-2.3, fur), (-0.75, shade), (-0.25, fur)):
            stride = rng.uniform(-0.25, 0.25)
            pen.band([(x, 1.1), (x + stride, 1.9), (x + 1.4 * stride, 2.7)], 0.27, 0.17, paint)
            pen.oval(x + 1.4 * stride + 0.1, 2.7, 0.26, 0.14, light)
    h = 0.72 * build
    back = [(0.35, 0.3), (-0.5, 0.95 - h), (-1.6, 1 - h), (-2.6, 0.95 - h), (-3.1, 1)]
    pen.blob([*back, (-2.6, 1 + h), (-1.4, 0.9 + h), (-0.2, 1 + h), (0.4, 0.9)], fur)
    if pose == "lie":
        pen.oval(-2.4, 1.15, 0.62, 0.55, fur)
        for x in (-1.7, 0.2):
            pen.band([(x - 0.5, 1.4), (x, 1.55), (x + 0.5, 1.6)], 0.22, 0.2, fur)


def draw_ear(
    pen: Pen, name: str, side: int, turn: float, w: float, h: float, paint: Color | Fur
) -> None:
    """Draw one ear; a turned head shows the far one (side 1) narrower."""
    ear = pen.moved(0.62 * side + 0.1 * turn, -0.5)
    ear.blob(np.array(EARS[name]) * (side * w * (1 - 0.35 * turn * (side > 0)), h), paint)


def draw_skull(pen: Pen, w: float, h: float, fur: Fur) -> None:
    """Draw a head without its features."""
    half = [(0.35 * w, -h), (0.85 * w, -0.55 * h), (w, 0.1), (0.65 * w, 0.95 * h)]
    pen.blob([*half, *((-x, y) for x, y in reversed(half))], fur)


def draw_eyes(pen: Pen, x: float, y: float, gap: float, slit: bool, rng: random.Random) -> None:
    """Draw two eyes with slit or round pupils, now and then closed."""
    iris, asleep, pupil = vary(rng.choice(EYES), rng), rng.random() < 0.08, rng.uniform(0.5, 0.8)
    size = rng.uniform(0.13, 0.2)
    for side in (-1, 1):
        eye = pen.moved(x + side * gap, y, side * 0.2 * slit, size)
        if asleep:
            eye.band([(-1, 0), (0, 0.6), (1, 0)], 0.2, 0.2, INK)
            continue
        eye.oval(0, 0, 1.2, 1.05, INK)
        eye.oval(0, 0, 1, 0.85, iris)
        eye.oval(0, 0, 0.35 * pupil if slit else pupil, 0.8 if slit else pupil, INK)
        eye.oval(-0.3, -0.35, 0.25, 0.25, WHITE)


def draw_cat(pen: Pen, turn: float, coat: Coat, rng: random.Random) -> None:
    """Draw a cat's head: a short round face, pointed ears, a small nose and whiskers."""
    fur, shade, light = coat
    ears = rng.choices(["pointed", "folded"], [19, 1])[0]
    w, h, inner = rng.uniform(0.95, 1.2), rng.uniform(0.85, 1.15), vary(PINK, rng, 30, 0.9)
    for side in (1, -1):
        draw_ear(pen, ears, side, turn, w, h, fur)
        draw_ear(pen, ears, side, turn, 0.6 * w, 0.6 * h, inner if ears == "pointed" else shade)
    draw_skull(pen, rng.uniform(0.95, 1.15), rng.uniform(0.78, 0.9), fur)
    x, y = 0.38 * turn, rng.uniform(0.25, 0.35)
    draw_eyes(pen, x, y - 0.38, 0.42 - 0.08 * turn, True, rng)
    pen.oval(x, y + 0.3, 0.18, 0.14, light)
    for side in (-1, 1):
        pen.oval(x + side * 0.15, y + 0.14, 0.2, 0.16, light)
    whiskers = rng.choice([WHITE, INK])
    for side in (-1, 1):
        for k in (-1, 0, 1):
            tip = (x + side * rng.uniform(0.9, 1.2), y + 0.1 + 0.22 * k)
            pen.band([(x + side * 0.22, y + 0.12 + 0.05 * k), tip], 0.015, 0.01, whiskers)
        pen.band([(x, y), (x, y + 0.12), (x + side * 0.15, y + 0.2)], 0.02, 0.02, INK)
    pen.polygon([(x - 0.1, y - 0.06), (x + 0.1, y - 0.06), (x, y + 0.06)], rng.choice([PINK, INK]))


def draw_dog(pen: Pen, turn: float, coat: Coat, rng: random.Random) -> None:
    """Draw a dog's head: a long muzzle, a big nose, some breed's ears and perhaps a tongue."""
    fur, shade, light = coat
    breed = rng.choices(["hanging", "tipped", "spread", "pointed"], [11, 5, 3, 1])[0]
    w, h, paint = rng.uniform(0.8, 1.2), rng.uniform(0.8, 1.2), rng.choice([fur, shade, shade])
    draw_ear(pen, breed, 1, turn, w, h, paint)
    if breed != "hanging":
        draw_ear(pen, breed, -1, turn, w, h, paint)
    draw_skull(pen, rng.uniform(0.8, 0.95), rng.uniform(0.85, 1), fur)
    draw_eyes(pen, 0.4 * turn, -0.2, 0.38 - 0.08 * turn, False, rng)
    long, wide, nose = rng.uniform(0.5, 0.9), rng.uniform(0.4, 0.52), rng.uniform(0.22, 0.3)
    x, y = turn * (0.4 + long), 0.25 + 0.3 * long * (1 - turn)
    if rng.random() < 0.4:
        tip = y + rng.uniform(0.7, 1)
        pen.band([(x, y + 0.3), (x, y + 0.6), (x, tip)], 0.2, 0.18, vary(PINK, rng))
    pen.oval(0.9 * x, y + 0.32, 0.3, 0.25, shade)
    muzzle = [(x + 0.32, y - 0.1), (x + wide, y + 0.3), (x, y + 0.4), (x - wide, y + 0.3)]
    bridge = [(x - 0.32, y - 0.1), (0.45 * turn - 0.22, -0.2), (0.45 * turn + 0.22, -0.2)]
    pen.blob([*muzzle, *bridge], light)
    for side in (-1, 1):
        smile = [(x, y), (x + side * 0.08, y + 0.27), (x + side * 0.32, y + 0.22)]
        pen.band(smile, 0.03, 0.03, INK)
    pen.oval(x + 0.1 * turn, y - 0.06, nose, 0.7 * nose, INK)
    pen.oval(x + 0.1 * turn - 0.07, y - 0.12, 0.06, 0.04, (150, 150, 150))
    if breed == "hanging":
        draw_ear(pen, breed, -1, turn, w, h, paint)


def draw_animal(image: Image.Image, kind: str, rng: random.Random) -> None:
    """Draw the animal at a random place, size and pose, then perhaps a thing in front of it."""
    pose = rng.choices(list(POSES), [5, 3, 2, 2])[0]
    left, top, right, bottom = POSES[pose]
    fit = min(image.width / (right - left), image.height / (bottom - top))
    unit, flip = fit * rng.uniform(0.8, 1.05), rng.choice([-1, 1])
    x = image.width * rng.uniform(0.42, 0.58) - flip * unit * (left + right) / 2
    y = image.height * rng.uniform(0.42, 0.58) - unit * (top + bottom) / 2
    coat = draw_coat(image.size, unit, rng)
    ink = vary(coat[0].getpixel((0, 0)), rng, 5, 0.45)
    frame = unit * rotation(rng.gauss(0, 0.1)) * (flip, 1)
    fluff, width = rng.choice([0, 0, 0.06, 0.12]), rng.choice([1, 2, 3, 4])
    pen = Pen(image, np.array([x, y]), frame, ink, width, fluff)
    if kind == "cat":
        tail = (rng.uniform(1, 1.5), 0.14, 0.1)
    else:
        tail = (rng.uniform(0.5, 1), rng.uniform(0.25, 0.35), rng.uniform(0.05, 0.2))
    draw_body(pen.moved(0, 0, 0, rng.uniform(0.75, 0.95)), pose, tail, coat, rng)
    turn = rng.choice([0.2, 1]) * rng.random()
    draw_head = {"cat": draw_cat, "dog": draw_dog}[kind]
    draw_head(pen.moved(0, 0, rng.gauss(0, 0.2)), turn, coat, rng)
    if rng.random() < 0.3:
        angle, reach = rng.uniform(0, 2 * math.pi), unit * rng.uniform(1.2, 1.8)
        draw_thing(image, x + reach * math.cos(angle), y + reach * math.sin(angle), unit / 2, rng)


def expose(image: Image.Image, rng: random.Random) -> Image.Image:
    """Apply uneven light, a colour cast, blur and noise."""
    if rng.random() < 0.4:
        image = image.filter(ImageFilter.BoxBlur(rng.uniform(0.3, 1.1)))
    grain = np.random.default_rng(rng.getrandbits(32))
    rows, columns = (np.linspace(-1, 1, n, dtype=np.float32) for n in image.size[::-1])
    slope = rows[:, None] * rng.uniform(-0.2, 0.2) + columns * rng.uniform(-0.2, 0.2)
    gain = (slope + rng.uniform(0.8, 1.2))[..., None]
    cast = np.array([rng.uniform(0.9, 1.1) for _ in range(3)], np.float32)
    pixels = np.asarray(image) * gain * cast
    pixels += grain.standard_normal(gain.shape, np.float32) * rng.choice([0, 3, 6, 9])
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def draw(kind: str, seed: int) -> Image.Image:
    """Draw the picture named by `kind` ("cat" or "dog") and `seed`: RGB, 160-220 pixels a side."""
    rng = random.Random(f"{kind} {seed}")
    size = SCALE * rng.randint(160, 220), SCALE * rng.randint(160, 220)
    image = draw_background(size, rng)
    draw_animal(image, kind, rng)
    return expose(image.reduce(SCALE), rng)
