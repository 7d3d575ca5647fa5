"""What happens to a picture: on the CPU up to a uint8 tensor, the rest batch by batch."""

from collections.abc import Callable, Sequence

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

Transform = Callable[[Image.Image], Tensor]


def train_transforms(image_size: int, crop_scale: float) -> Transform:
    """Crop at random, flip at random: (H, W) picture to uint8 (3, image_size, image_size)."""
    return v2.Compose(
        [
            v2.RandomResizedCrop(image_size, scale=(crop_scale, 1.0)),
            v2.RandomHorizontalFlip(),
            v2.PILToTensor(),
        ]
    )


def eval_transforms(image_size: int) -> Transform:
    """Take the middle, the same each time: to uint8 (3, image_size, image_size)."""
    return v2.Compose(
        [
            v2.Lambda(middle_square),
            v2.Resize((image_size, image_size)),
            v2.PILToTensor(),
        ]
    )


def middle_square(image: Image.Image, share: float = 0.875) -> Image.Image:
    """Cut the middle square, `share` of the shorter side wide (Resize(256) + CenterCrop(224)).

    Cutting first keeps memory small for a picture of 1 x 10,000 pixels too.
    """
    side = max(1, round(share * min(image.size)))
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


def normalize(mean: Sequence[float], std: Sequence[float]) -> Callable[[Tensor], Tensor]:
    """Make the step from uint8 (N, 3, H, W) to floats around 0, on the batch's own device."""
    return v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)])
