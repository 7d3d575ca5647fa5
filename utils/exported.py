"""A trained model for other programs: pictures in, probabilities out, all of it in one graph."""

import torch
from torch import Tensor, nn

from data.transforms import eval_transforms
from utils.trained import Task

DOUBLE = torch.float64


class Exported(nn.Module):
    """Pictures of one size, uint8 (N, H, W, 3), to probabilities (N, K).

    side: of the data set, pixels that `shrink` leaves; None if pictures are prepared already.
    """

    def __init__(
        self, model: nn.Module, task: Task, mirror: bool, image_size: int, side: int | None
    ) -> None:
        super().__init__()
        self.model, self.task, self.mirror = model, task, mirror
        self.prepare = PrepareLikeVal(image_size, side) if side else nn.Identity()
        self.register_buffer("mean", 255 * torch.tensor(task.mean).view(3, 1, 1))
        self.register_buffer("factor", 1 / (255 * torch.tensor(task.std).view(3, 1, 1)))

    def forward(self, pictures: Tensor) -> Tensor:
        images = self.prepare(pictures.permute(0, 3, 1, 2).float())  # (N, 3, image_size, …)
        images = (images - self.mean) * self.factor
        logits = self.model(images)
        if self.mirror:
            logits = (logits + self.model(images.flip(3))) / 2
        return self.task.probabilities(logits)


class PrepareLikeVal(nn.Module):
    """What val does with a picture, `shrink` and `MiddleSquare`, for graphs that know neither.

    (N, 3, H, W) to (N, 3, image_size, image_size): floats that are whole numbers of 0 … 255, the
    same to the bit (but see tests/test_export.py for very large pictures). Both resizes are
    products with matrices that are computed from H and W. No other shape depends on H and W: the
    matrices have as many rows as the largest square that can be cut out.
    """

    def __init__(self, image_size: int, side: int) -> None:
        super().__init__()
        self.image_size, self.side = image_size, side
        self.share = eval_transforms(image_size).share
        self.most = int(1.5 * side * self.share) + 1  # `shrink` leaves less than 1.5 * side

    def forward(self, pictures: Tensor) -> Tensor:
        height, width = (torch.scalar_tensor(n, dtype=DOUBLE) for n in pictures.shape[2:])
        # `shrink`: the shorter side becomes `side`, if it has 1.5 times that.
        factor = self.side / torch.minimum(height, width)
        new_height, new_width = (
            torch.where(factor > 2 / 3, n, (factor * n).round().clamp(min=self.side))
            for n in (height, width)
        )
        # `MiddleSquare`: `share` of the shorter side
        square = (self.share * torch.minimum(new_height, new_width)).round().clamp(min=1)
        top, left = ((n - square).div(2).floor() for n in (new_height, new_width))
        rows = torch.arange(self.most, dtype=DOUBLE)
        pictures = resize(
            pictures,
            resize_weights(height, new_height, top + rows, pictures.shape[2]),
            resize_weights(width, new_width, left + rows, pictures.shape[3]),
        )
        rows = torch.arange(self.image_size, dtype=DOUBLE)
        weights = resize_weights(square, torch.tensor(self.image_size), rows, self.most)
        return resize(pictures, weights, weights)


Weights = tuple[Tensor, Tensor]  # whole numbers (rows, columns), and what they add up to in a row


def resize_weights(old_size: Tensor, new_size: Tensor, rows: Tensor, columns: int) -> Weights:
    """Return the weights with which torch resizes uint8 from old_size to new_size, antialiased.

    rows: the new pixels that are wanted. columns: of the matrix, old_size or more.
    """
    scale = old_size / new_size
    # The first row may have the largest weight of all, wanted or not.
    rows = torch.concat([torch.zeros(1, dtype=DOUBLE), rows])
    pixels = torch.arange(columns, dtype=DOUBLE)
    distances = (pixels + 0.5 - (scale * (rows + 0.5))[:, None]).abs()
    weights = (1 - distances / scale.clamp(min=1)).clamp(min=0)
    weights = torch.where((pixels < old_size) & (rows < new_size)[:, None], weights, 0.0)
    weights = weights / weights.sum(1, keepdim=True).clamp(min=1e-9)
    # torch takes the smallest power of 2 with which the largest weight does not fit in 15 bits.
    powers = 2.0 ** torch.arange(22, dtype=DOUBLE)
    fits = (weights.max() * 2 * powers + 0.5).floor() < 2**15
    total = 2.0 ** fits.sum().to(DOUBLE)
    return (weights[1:] * total + 0.5).floor().float(), total.float()


def resize(pictures: Tensor, vertical: Weights, horizontal: Weights) -> Tensor:
    """Return (N, 3, H, W) resized along each row, then along each column, rounded after both."""
    (across, across_total), (down, down_total) = horizontal, vertical
    pictures = (pictures @ across.T / across_total + 0.5).floor().clamp(0, 255)
    return (down @ pictures / down_total + 0.5).floor().clamp(0, 255)
