"""Draw cats and dogs that only their shapes tell apart: the demo's data set."""

import math
import random
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFilter

Color = str | tuple[int, ...]
Points = Sequence | np.ndarray  # (..., 2): x and y

KINDS = ("cat", "dog")  # what is drawn, and the species of Oxford's pets; the index is the label
SCALE = 2  # draw at twice the size, then reduce: smooth edges
INK, WHITE, PINK = "#231c1e", "#f5f5f5", "#de6e78"
FURS = ["#3d3b42", "#66656b", "#8f8d92", "#efe9df", "#e3c79b", "#d98b45", "#a8622f", "#6b4630"]
LIGHT_FURS, EYES = ["#f2ebdf", "#e3c79b", "#b9b4b0"], ["#8fbf3f", "#e0b02e", "#5aa5d6", "#c27a2c"]
CIRCLE = np.array([(math.cos(k * math.pi / 16), math.sin(k * math.pi / 16)) for k in range(32)])
THINGS: list[Points] = [
    CIRCLE,
    [(-1, -1), (1, -1), (1, 1), (-1, 1)],
    [(-1, 0.9), (0, -0.9), (1, 0.9)],
]
# How far the animal reaches from the middle of its head, in head radii: left, right, down.
POSES = {"head": (-1.4, 1.4, 1.4), "sit": (-1.7, 1.6, 2.9), "stand": (-3.3, 1.4, 2.6)}
TOP = -1.5  # the tip of an ear


class Pen:
    """Draw in an animal's own frame: 1 = its head's radius, x = where it looks, y = down."""

    def __init__(self, image: Image.Image, origin: Points, matrix: np.ndarray) -> None:
        self.image, self.origin, self.matrix = image, np.asarray(origin), matrix

    def moved(self, x: float, y: float, angle: float = 0.0, scale: float = 1.0) -> "Pen":
        """Return a pen whose frame stands at x, y, is turned by `angle` radians and scaled."""
        origin = np.array([x, y]) @ self.matrix + self.origin
        return Pen(self.image, origin, scale * rotation(angle) @ self.matrix)

    def polygon(self, points: Points, color: Color, line: bool = True) -> None:
        path = (np.asarray(points) @ self.matrix + self.origin).ravel().tolist()
        outline, width = (INK, SCALE) if line else (None, 1)
        ImageDraw.Draw(self.image).polygon(path, color, outline, width)

    def oval(self, center: Points, radii: Points, color: Color, line: bool = True) -> None:
        self.polygon(CIRCLE * radii + center, color, line)

    def line(self, points: Points, width: float, color: Color) -> None:
        path = (np.asarray(points) @ self.matrix + self.origin).ravel().tolist()
        pixels = max(SCALE, round(width * np.hypot(*self.matrix[0])))
        ImageDraw.Draw(self.image).line(path, color, pixels, joint="curve")


def rotation(angle: float) -> np.ndarray:
    """Return the matrix that turns row vectors by `angle` radians."""
    return np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])


def vary(color: str, rng: random.Random, spread: int = 12) -> Color:
    """Return the colour, each channel up to `spread` darker or brighter."""
    channels = ImageColor.getrgb(color)
    return tuple(min(255, max(0, c + rng.randint(-spread, spread))) for c in channels)


def any_color(rng: random.Random) -> Color:
    return vary(f"hsl(0, 0%, {rng.randint(15, 88)}%)", rng, 45)


def draw_background(size: tuple[int, int], rng: random.Random) -> Image.Image:
    """Draw a wall, plain or striped, and a floor."""
    width, height = size
    image = Image.new("RGB", size, any_color(rng))
    canvas, step, stripe = ImageDraw.Draw(image), rng.randint(20, 60), any_color(rng)
    for x in range(0, width, step) if rng.random() < 0.3 else []:
        canvas.rectangle((x, 0, x + step // 2, height), fill=stripe)
    if rng.random() < 0.6:
        canvas.rectangle((0, height * rng.uniform(0.5, 0.85), width, height), fill=any_color(rng))
    return image


def draw_thing(image: Image.Image, rng: random.Random) -> None:
    place = image.width * rng.random(), image.height * rng.random()
    turned = image.height * rng.uniform(0.05, 0.2) * rotation(rng.uniform(-0.4, 0.4))
    Pen(image, place, turned).polygon(rng.choice(THINGS), any_color(rng))


def draw_body(pen: Pen, rng: random.Random, kind: str, pose: str, colors: list[Color]) -> None:
    """Draw tail, body and legs: a cat's tail is long and thin, a dog's short and thick."""
    fur, light, _ = colors
    build, bend = rng.uniform(0.85, 1.15), rng.uniform(-0.1, 0.3)
    root = (-2.7, 0.8) if pose == "stand" else (-0.9, 2.5)
    step, width = (rng.uniform(0.25, 0.35), 0.25) if kind == "cat" else (0.15, 0.4)
    turns = 3 - bend * np.arange(7)
    tail = np.cumsum([root, *step * np.stack([np.cos(turns), -np.sin(turns)], axis=1)], axis=0)
    for wider, color in ((0.08, INK), (0, fur)):
        pen.line(tail, width + wider, color)
        pen.oval(tail[-1], [(width + wider) / 2] * 2, color, line=False)
    if pose == "stand":
        for x in (-2.5, -2.0, -0.7, -0.2):
            pen.oval((x, 1.8), (0.25, 0.85), fur)
            pen.oval((x + 0.1, 2.55), (0.3, 0.14), light)
        pen.oval((-1.35, 1), (1.6, 0.75 * build), fur)
        return
    pen.oval((0, 1.9), (1.05 * build, 1.15), fur)
    pen.oval((0, 1.7), (0.5 * build, 0.8), light, line=False)
    for side in (-1, 1):
        pen.oval((side * 0.85 * build, 2.5), (0.45, 0.45), fur)
        pen.oval((side * 0.3, 2.3), (0.24, 0.65), fur)
        pen.oval((side * 0.34, 2.8), (0.3, 0.17), light)


def draw_head(pen: Pen, rng: random.Random, kind: str, colors: list[Color]) -> None:
    """Draw ears, skull, markings and eyes, then the face of a cat or a dog."""
    fur, light, mark = colors
    turn, size = rng.choice([0.2, 0.8]) * rng.random(), rng.uniform(0.85, 1.15)
    for side in (1, -1):
        if kind == "cat":
            ear = np.array([(-0.5, 0), (0.2, -1.05), (0.5, 0.1)]) * size * (side, 1)
            ear += (0.55 * side + 0.1 * turn, -0.45)
            pen.polygon(ear, fur)
            pen.polygon(0.55 * ear + 0.45 * ear.mean(axis=0), vary(PINK, rng, 30), line=False)
        else:
            pen.moved(0.9 * side, 0.1, -0.25 * side).oval((0, 0), (0.36 * size, 0.8 * size), mark)
    pen.oval((0, 0), (1.08, 0.86) if kind == "cat" else (0.9, 0.98), fur)
    x, iris = 0.4 * turn, vary(rng.choice(EYES), rng)
    if rng.random() < 0.5:  # a patch over an eye
        pen.oval((x - 0.42, -0.2), (0.32, 0.36), mark, line=False)
    else:  # stripes on the forehead
        for at in (-0.25, 0, 0.25):
            pen.line([(at, -0.8), (0.8 * at + 0.1 * turn, -0.5)], 0.1, mark)
    for side in (-1, 1):
        eye = pen.moved(x + side * 0.4, -0.12, scale=0.2)
        eye.oval((0, 0), (1, 0.9), iris)
        eye.oval((0, 0), (0.3 if kind == "cat" else 0.65, 0.75), INK)
        eye.oval((-0.3, -0.35), (0.25, 0.25), WHITE, line=False)
    {"cat": draw_cat_face, "dog": draw_dog_face}[kind](pen, rng, x, light)


def draw_cat_face(pen: Pen, rng: random.Random, x: float, light: Color) -> None:
    """Draw a small nose and whiskers."""
    whiskers = rng.choice([WHITE, INK])
    for side in (-1, 1):
        pen.oval((x + side * 0.15, 0.45), (0.2, 0.17), light, line=False)
        for k in (-1, 0, 1):
            end = x + side * rng.uniform(0.9, 1.2), 0.4 + 0.22 * k
            pen.line([(x + side * 0.22, 0.42 + 0.05 * k), end], 0.02, whiskers)
    pen.polygon([(x - 0.13, 0.24), (x + 0.13, 0.24), (x, 0.38)], PINK)


def draw_dog_face(pen: Pen, rng: random.Random, x: float, light: Color) -> None:
    """Draw a long muzzle with a big nose, and perhaps a tongue."""
    x, y = x * rng.uniform(1.2, 1.6), rng.uniform(0.35, 0.5)
    if rng.random() < 0.4:
        pen.oval((x, y + 0.5), (0.18, 0.35), PINK)
    pen.oval((x, y + 0.1), (0.46, 0.42), light)
    for side in (-1, 1):
        pen.line([(x, y), (x, y + 0.3), (x + side * 0.25, y + 0.25)], 0.05, INK)
    pen.oval((x, y - 0.1), (0.26, 0.18), INK)


def draw_animal(image: Image.Image, kind: str, rng: random.Random) -> None:
    """Draw the animal at a random place, in a random size and pose."""
    pose = rng.choices(list(POSES), [5, 3, 2])[0]
    left, right, bottom = POSES[pose]
    fit = min(image.width / (right - left), image.height / (bottom - TOP))
    unit, flip = fit * rng.uniform(0.75, 1.05), rng.choice([-1, 1])
    x = image.width * rng.uniform(0.42, 0.58) - flip * unit * (left + right) / 2
    y = image.height * rng.uniform(0.42, 0.58) - unit * (TOP + bottom) / 2
    pen = Pen(image, (x, y), unit * rotation(rng.gauss(0, 0.1)) * (flip, 1))
    colors = [vary(rng.choice(choices), rng) for choices in (FURS, LIGHT_FURS, FURS)]
    draw_body(pen.moved(0, 0, scale=rng.uniform(0.8, 0.95)), rng, kind, pose=pose, colors=colors)
    draw_head(pen.moved(0, 0, rng.gauss(0, 0.2)), rng, kind, colors)


def expose(image: Image.Image, rng: random.Random) -> Image.Image:
    """Return the image in another light, some blurred, some noisy."""
    if rng.random() < 0.4:
        image = image.filter(ImageFilter.BoxBlur(rng.uniform(0.3, 1.1)))
    gain = rng.uniform(0.8, 1.2) * np.array([rng.uniform(0.9, 1.1) for _ in range(3)])
    grain = np.random.default_rng(rng.getrandbits(32)).normal(size=(image.height, image.width, 1))
    pixels = np.asarray(image) * gain + grain * rng.choice([0, 3, 6, 9])
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def draw(kind: str, seed: int) -> Image.Image:
    """Return the picture of `kind`, one of KINDS, and `seed`: RGB, 160 to 220 pixels a side."""
    rng = random.Random(f"{kind} {seed}")
    size = SCALE * rng.randint(160, 220), SCALE * rng.randint(160, 220)
    image = draw_background(size, rng)
    for _ in range(rng.choice([0, 0, 1, 2, 3, 5])):
        draw_thing(image, rng)
    draw_animal(image, kind, rng)
    if rng.random() < 0.3:
        draw_thing(image, rng)  # it may hide a face: even a good model makes a mistake then
    return expose(image.reduce(SCALE), rng)
