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
