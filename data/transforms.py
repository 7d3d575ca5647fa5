"""What happens to a picture: on the CPU up to a uint8 tensor, the rest batch by batch."""

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
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


def eval_transforms(image_size: int, share: float = 0.875) -> Transform:
    """Take the middle, the same each time: to uint8 (3, image_size, image_size)."""
    return v2.Compose(
        [
            v2.Lambda(partial(middle_square, share=share)),
            v2.Resize((image_size, image_size)),
            v2.PILToTensor(),
        ]
    )


def crop_and_flip(size: int, crop_scale: float, images: Tensor, seed: int) -> Tensor:
    """`train_transforms` for a batch on its device: (N, 3, H, W) to float32 (N, 3, size, size).

    The boxes are drawn on the CPU, so that they are the same on every device.
    """
    generator, count = torch.Generator().manual_seed(seed), len(images)
    area, ratio, flip, x, y = torch.rand(5, count, generator=generator)
    area = crop_scale + (1 - crop_scale) * area
    ratio = (math.log(3 / 4) + 2 * math.log(4 / 3) * ratio).exp()
    boxes = torch.zeros(count, 2, 3)  # from a crop's -1 … 1 to the picture's
    boxes[:, 0, 0] = (area * ratio).sqrt().clamp(max=1)
    boxes[:, 1, 1] = (area / ratio).sqrt().clamp(max=1)
    boxes[:, 0, 2] = (2 * x - 1) * (1 - boxes[:, 0, 0])
    boxes[:, 1, 2] = (2 * y - 1) * (1 - boxes[:, 1, 1])
    boxes[:, 0, 0] *= torch.where(flip < 0.5, -1, 1)
    boxes = boxes.to(images.device)
    grid = F.affine_grid(boxes, [count, 3, size, size], align_corners=False)
    return F.grid_sample(images.float(), grid, padding_mode="border", align_corners=False)


def middle_square(image: Image.Image, share: float) -> Image.Image:
    """Cut the middle square, `share` of the shorter side wide (Resize(256) + CenterCrop(224)).

    Cutting first keeps memory small for a picture of 1 x 10,000 pixels too.
    """
    side = max(1, round(share * min(image.size)))
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


class Normalize:
    """uint8 images (N, 3, H, W) of 0 … 255 to floats around 0, `mean` and `std` of 0 … 1.

    In the layout in which convolutions are fastest; for a whole batch, on its device.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], device: torch.device) -> None:
        self.mean = 255 * torch.tensor(mean, device=device).view(3, 1, 1)
        self.factor = 1 / (255 * torch.tensor(std, device=device).view(3, 1, 1))

    def __call__(self, images: Tensor) -> Tensor:
        floats = images.to(torch.float32, memory_format=torch.channels_last)
        return floats.sub_(self.mean).mul_(self.factor)
