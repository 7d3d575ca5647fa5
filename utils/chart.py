"""Charts as SVG text: sharp in print, dark or light like the page, and drawn in a millisecond."""

import html
import math
from collections.abc import Mapping, Sequence

WIDTH, HEIGHT = 520, 300
LEFT, RIGHT, TOP, BOTTOM = 62, 10, 26, 38  # pixels around the area of the curves
MOST_DOTS = 200  # longer curves are lines without dots
COLORS = {"train": 0, "val": 1}  # the same in all charts

Points = Sequence[tuple[float, float]]  # (x, y)


def line_chart(
    title: str,
    lines: Mapping[str, Points],
    x_label: str,
    x_limits: tuple[float, float] | None = None,
    y_limits: tuple[float, float] | None = None,
    sizes: Mapping[str, Sequence[float]] | None = None,
    x_log: bool = False,
    x_names: Sequence[str] = (),
) -> str:
    """Draw lines by their names; a point that is not finite is left out.

    Each dot has its numbers as data-x and data-y, and shows them to the mouse. sizes: of the dots
    of a name, 0 … 1, which no line connects. x_log: the x axis is logarithmic. x_names: words for
    x = 0, 1, 2 …, which are then choices, not numbers.
    """
    finite = {
        name: [point for point in points if all(map(math.isfinite, point))]
        for name, points in lines.items()
    }
    xs = [x for points in finite.values() for x, _ in points] or [0.0]
    ys = [y for points in finite.values() for _, y in points] or [0.0]
    low_x, high_x = x_limits or (min(xs), max(xs))
    x_ticks = ticks(low_x, high_x, whole=all(x == int(x) for x in xs))
    if x_log:
        x_ticks = log_ticks(low_x, high_x)
    if x_names:
        low_x, high_x = -0.5, len(x_names) - 0.5
        x_ticks = list(map(float, range(len(x_names))))
    y_ticks = ticks(*(y_limits or (min(ys), max(ys))))
    low_y, high_y = y_limits or (y_ticks[0], y_ticks[-1])

    def place(x: float, y: float) -> tuple[float, float]:
        if x_log:
            right = math.log(x / low_x) / (math.log(high_x / low_x) or 1)
        else:
            right = (x - low_x) / (high_x - low_x or 1)
        up = (y - low_y) / (high_y - low_y or 1)
        across, down = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
        return round(LEFT + right * across, 1), round(HEIGHT - BOTTOM - up * down, 1)

    parts = []
    for tick in y_ticks:
        x, y = place(low_x, tick)
        parts.append(f'<path class="grid" d="M{x} {y}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{x - 6}" y="{y + 4}" text-anchor="end">{tick:.4g}</text>')
    for tick in (tick for tick in x_ticks if low_x <= tick <= high_x):
        x, y = place(tick, low_y)
        parts.append(f'<path class="grid" d="M{x} {y}V{TOP}"/>')
        words = html.escape(x_names[int(tick)]) if x_names else f"{tick:.6g}"
        parts.append(f'<text x="{x}" y="{y + 16}" text-anchor="middle">{words}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 4}" text-anchor="middle">{x_label}</text>')
    legend_x = LEFT
    for number, (name, points) in enumerate(finite.items()):
        color = f"c{COLORS.get(name, number % 8)}"
        areas = (sizes or {}).get(name)
        name = html.escape(name)
        if not areas:
            path = " ".join(f"{x},{y}" for x, y in (place(*point) for point in points))
            parts.append(f'<polyline class="{color}" points="{path}"/>')
        for k, point in enumerate(points if len(points) <= MOST_DOTS else []):
            x, y = place(*point)
            radius = 2.5 + 9 * math.sqrt(areas[k]) if areas else 2.5
            words = f"{name} {point[1]:.6g} at {x_label} {point[0]:.6g}".strip()
            parts.append(
                f'<circle class="{color}" cx="{x}" cy="{y}" r="{radius:.1f}" data-line="{name}" '
                f'data-x="{point[0]!r}" data-y="{point[1]!r}"><title>{words}</title></circle>'
            )
        if name:
            parts.append(f'<path class="{color}" d="M{legend_x} 12h18"/>')
            parts.append(f'<text x="{legend_x + 23}" y="16">{name}</text>')
            legend_x += 40 + 7 * len(name)
    return svg(title, WIDTH, HEIGHT, parts)


def svg(title: str, width: int, height: int, parts: Sequence[str]) -> str:
    label = html.escape(title)
    start = f'<svg role="img" aria-label="{label}" viewBox="0 0 {width} {height}">'
    return f"{start}{''.join(parts)}</svg>"


def ticks(low: float, high: float, count: int = 5, whole: bool = False) -> list[float]:
    """Return about `count` round numbers from at most `low` to at least `high`."""
    span = (high - low) or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(span / count))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor * count >= span)
    step = max(1.0, step) if whole else step
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 12) for number in range(first, max(last, first + 1) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Return the powers of ten from `low` to `high`, with their 2 and 5 times if these are few."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1,) if high / low > 1000 else (1, 2, 5)
    return [float(f"{factor}e{power}") for power in powers for factor in factors]
