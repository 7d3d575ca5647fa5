"""Find pictures that show the same: copied, coded anew, resized, turned, mirrored or cut a little.

Pictures are compared by thumbnails. The few others with the most similar colours, or with light and
dark at the same places, are candidates; for these, the turn and the cut are sought that make one
picture into the other.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

SIDE = 32  # pixels of a thumbnail
NEAREST = 10  # candidates for each picture
LEAST_COLOR, LEAST_SHAPE = 0.95, 0.6  # similarity of copies; all photographs tried have more
LEAST_ROUGH, LEAST_FINE = 0.8, 0.97  # correlation of copies after they are aligned
# Shares of a picture that may be cut off: at its start and at its end.
CUTS = torch.tensor(
    [(0, 0), (0, 0.05), (0.025, 0.025), (0.05, 0), (0, 0.1), (0.05, 0.05), (0.1, 0)]
)
MOST_CUT = 0.15


def thumbnail(picture: Tensor) -> np.ndarray:
    """Return a picture (3, H, W) of uint8 as (3, SIDE, SIDE) of uint8."""
    return F.adaptive_avg_pool2d(picture.float(), SIDE).round().to(torch.uint8).numpy()


def find_copies(
    thumbnails: np.ndarray, after_each: Callable[[], object] = lambda: None
) -> list[tuple[int, int, bool]]:
    """Return the pairs of pictures that show the same: first < second, and whether one is turned.

    thumbnails: uint8 (M, 3, SIDE, SIDE). A mirrored picture counts as turned. The time grows with
    the square of M: half a minute for 25,000 pictures, some minutes for 100,000. after_each: is
    called now and then; what it raises ends the search.
    """
    if len(thumbnails) < 2:
        return []
    images = torch.from_numpy(thumbnails)
    pairs, usual = candidates(images, after_each)
    # Where all pictures look alike, as from one camera, copies are much more alike than others.
    least_fine = max(LEAST_FINE, 1 - (1 - usual) / 10) if len(images) > 3 * NEAREST else LEAST_FINE
    for score, threshold in ((rough_score, LEAST_ROUGH), (fine_score, least_fine)):
        kept = [pairs[:0]]
        for part in pairs.split(500) if len(pairs) else ():
            first, second = images[part].float().unbind(dim=1)
            scores = torch.maximum(score(first, second), score(second, first))
            kept.append(part[scores > threshold])
            after_each()
        pairs = torch.concat(kept)
    return [(int(a), int(b), is_turned(images[a], images[b])) for a, b in pairs]


def is_turned(first: Tensor, second: Tensor) -> bool:
    """Return whether one of two copies has to be turned or mirrored to look like the other."""
    scores = rough_scores(first[None].float(), second[None].float()).amax(dim=(0, 1, 2))  # (8,)
    return bool(scores[0] < scores.max() - 0.02)


def candidates(images: Tensor, after_each: Callable[[], object]) -> tuple[Tensor, float]:
    """Return pairs (P, 2), first < second, that are similar in colours, and in light and dark.

    The number is the similarity of light and dark that pictures usually have to the tenth nearest.
    """
    pairs, usual = [], []
    colors = torch.concat([color_histogram(part.float()) for part in images.split(2000)])
    shapes = torch.concat([shape(part.float()) for part in images.split(2000)])
    for rows in torch.arange(len(images)).split(500):
        by_color = colors[rows] @ colors.T  # (n, M)
        by_shape = torch.full_like(by_color, -1)
        for turned in eight_ways(images[rows].float()).unbind(dim=1):
            torch.maximum(by_shape, shape(turned) @ shapes.T, out=by_shape)
        for similarity in (by_color, by_shape):
            similarity[torch.arange(len(rows)), rows] = -1  # not itself
            near = similarity.topk(min(NEAREST, len(images) - 1), dim=1).indices
            alike = by_color.gather(1, near) > LEAST_COLOR
            alike &= by_shape.gather(1, near) > LEAST_SHAPE
            pair = torch.stack([rows[:, None].expand_as(near), near], dim=2)  # (n, NEAREST, 2)
            pairs.append(pair[alike])
        usual.append(by_shape.gather(1, near[:, -1:]))  # `near` is by shape now
        after_each()
    pairs = torch.concat(pairs).sort(dim=1).values.unique(dim=0)
    return pairs, torch.concat(usual).median().item()


def color_histogram(images: Tensor, bins: int = 5) -> Tensor:
    """Return the square roots of the shares of bins ** 3 colours: (n, 3, S, S) to (n, bins ** 3).

    No turn changes them, and a small cut changes little. A pixel counts for the colours around it.
    """
    place = images.flatten(2) / 255 * (bins - 1)  # (n, 3, pixels)
    low = place.floor().clamp(max=bins - 2)
    counts = torch.zeros(len(images), bins**3)
    for corner in np.ndindex(2, 2, 2):
        step = torch.tensor(corner)[:, None]
        red, green, blue = (low + step).long().unbind(dim=1)
        weights = torch.where(step > 0, place - low, 1 - (place - low)).prod(dim=1)
        counts.scatter_add_(1, (red * bins + green) * bins + blue, weights)
    return F.normalize(counts.sqrt(), dim=1)


def shape(images: Tensor) -> Tensor:
    """Return light and dark at 8 x 8 places: (n, 3, S, S) to (n, 64)."""
    return standardize(F.adaptive_avg_pool2d(images.mean(dim=1), 8).flatten(1))


def standardize(values: Tensor) -> Tensor:
    """Scale the last dimension to mean 0 and norm 1: a product of two is their correlation."""
    values = values - values.mean(dim=-1, keepdim=True)
    return values / (values.norm(dim=-1, keepdim=True) + 1e-3)


def eight_ways(images: Tensor) -> Tensor:
    """Return the four turns of each picture and of its mirror image: (n, 8, 3, S, S)."""
    mirrored = images, images.flip(3)
    return torch.stack([x.rot90(turn, (2, 3)) for x in mirrored for turn in range(4)], dim=1)


def rough_scores(whole: Tensor, turned: Tensor) -> Tensor:
    """Return the correlations (n, 7, 7, 8) of each cut of `whole` with each turn of `turned`.

    Cuts of height and of width. The pictures (n, 3, S, S) are compared at 16 x 16 grey places.
    """
    parts = averages(CUTS, 16)  # (7, 16, S)
    cuts = torch.einsum("aij,njk,blk->nabil", parts, whole.mean(dim=1), parts).flatten(3)
    turns = F.adaptive_avg_pool2d(eight_ways(turned).mean(dim=2), 16).flatten(2)
    products = cuts.flatten(1, 2) @ standardize(turns).mT  # (n, 49, 8)
    norms = 16 * cuts.std(dim=3, correction=0)[..., None]  # (n, 7, 7, 1)
    return products.unflatten(1, (7, 7)) / (norms + 1e-3)


def rough_score(whole: Tensor, turned: Tensor) -> Tensor:
    return rough_scores(whole, turned).flatten(1).amax(dim=1)


def fine_score(whole: Tensor, turned: Tensor) -> Tensor:
    """Return the correlation (n,) for the best turn and the best cut, at 24 x 24 coloured places.

    The cut is improved in small steps of each of its four sides.
    """
    best = rough_scores(whole, turned).flatten(1).argmax(dim=1)
    height, width, turn = np.unravel_index(best.numpy(), (len(CUTS), len(CUTS), 8))
    number = torch.arange(len(best))
    target = standardize(cut(eight_ways(turned)[number, turn], torch.zeros(len(best), 4)))
    sides = torch.concat([CUTS[height], CUTS[width]], dim=1)  # top, bottom, left, right
    scores = (standardize(cut(whole, sides)) * target).sum(dim=1)
    for step in (0.02, 0.02, 0.01, 0.01, 0.005, 0.005):
        for move in torch.concat([torch.eye(4), -torch.eye(4)]):
            moved = (sides + step * move).clamp(0, MOST_CUT)
            new = (standardize(cut(whole, moved)) * target).sum(dim=1)
            sides = torch.where((new > scores)[:, None], moved, sides)
            scores = torch.maximum(scores, new)
    return scores


def cut(images: Tensor, sides: Tensor) -> Tensor:
    """Cut shares off the four sides (n, 4) of each picture: (n, 3, S, S) to (n, 3 * 24 * 24)."""
    rows, columns = averages(sides[:, :2], 24), averages(sides[:, 2:], 24)
    return torch.einsum("nij,ncjk,nlk->ncil", rows, images, columns).flatten(1)


def averages(ends: Tensor, count: int) -> Tensor:
    """Return weights (n, count, SIDE) that turn a row of pixels into `count` averages.

    ends (n, 2): the shares of the row that are cut off before.
    """
    start, end = ends[:, :1], ends[:, 1:]
    edges = SIDE * (start + (1 - start - end) * torch.linspace(0, 1, count + 1))
    pixels = torch.arange(SIDE, dtype=torch.float32)
    right = torch.minimum(edges[:, 1:, None], pixels + 1)
    overlaps = (right - torch.maximum(edges[:, :-1, None], pixels)).clamp(min=0)
    return overlaps / overlaps.sum(dim=2, keepdim=True)
