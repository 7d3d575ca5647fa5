"""Crops, flips and resizing, one picture at a time; crops, flips and normalising of batches."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import v2

Transform = Callable[[Tensor], Tensor]  # uint8 pictures (3, H, W)


def train_transforms(image_size: int, crop_scale: float) -> Transform:
    """Crop and flip at random: uint8 (3, H, W) to (3, image_size, image_size)."""
    crop = RandomResizedCrop(image_size, scale=(crop_scale, 1.0))
    return v2.Compose([crop, v2.RandomHorizontalFlip()])


def eval_transforms(image_size: int, share: float = 0.875) -> Transform:
    """Take the middle square: uint8 (3, H, W) to (3, image_size, image_size)."""
    middle = v2.Lambda(partial(middle_square, share=share))
    return v2.Compose([middle, v2.Resize((image_size, image_size))])


def on_batches(transforms: Transform) -> Callable[[Tensor, int], Tensor] | None:
    """Return what does the same for (images, seed); None if there is more than crop and flip."""
    match getattr(transforms, "transforms", None):
        case [RandomResizedCrop(size=[side, _], scale=[least, 1]), v2.RandomHorizontalFlip(p=0.5)]:
            return partial(crop_and_flip, side, least)
    return None


def crop_and_flip(size: int, crop_scale: float, images: Tensor, seed: int) -> Tensor:
    """Crop and flip each picture of a batch: (N, 3, H, W) to float32 (N, 3, size, size)."""
    generator, count = torch.Generator().manual_seed(seed), len(images)  # the same on all devices
    area, ratio, flip, x, y = torch.rand(5, count, generator=generator)
    area = crop_scale + (1 - crop_scale) * area
    ratio = (math.log(3 / 4) + 2 * math.log(4 / 3) * ratio).exp()
    boxes = torch.zeros(count, 2, 3)  # affine maps from a crop's -1 … 1 to the picture's -1 … 1
    boxes[:, 0, 0] = (area * ratio).sqrt().clamp(max=1)
    boxes[:, 1, 1] = (area / ratio).sqrt().clamp(max=1)
    boxes[:, 0, 2] = (2 * x - 1) * (1 - boxes[:, 0, 0])
    boxes[:, 1, 2] = (2 * y - 1) * (1 - boxes[:, 1, 1])
    boxes[:, 0, 0] *= torch.where(flip < 0.5, -1, 1)
    boxes = boxes.to(images.device)
    grid = F.affine_grid(boxes, [count, 3, size, size], align_corners=False)
    return F.grid_sample(images.float(), grid, padding_mode="border", align_corners=False)


def middle_square(image: Tensor, share: float) -> Tensor:
    """Return the middle square, `share` of the shorter side wide (Resize(256) + CenterCrop(224)).

    Cutting before resizing needs little memory, even for a picture of 1 x 10,000 pixels.
    """
    height, width = image.shape[1:]
    side = max(1, round(share * min(height, width)))
    top, left = (height - side) // 2, (width - side) // 2
    return packed(image[:, top : top + side, left : left + side])


class RandomResizedCrop(v2.RandomResizedCrop):
    """torchvision's crop, but packed before it is resized, which saves a third of the time."""

    def transform(self, image: Tensor, params: dict[str, Any]) -> Tensor:
        crop = packed(v2.functional.crop(image, **params))
        return v2.functional.resize(crop, self.size, self.interpolation, antialias=self.antialias)


def packed(image: Tensor) -> Tensor:
    """Return the same picture with the colours of a pixel side by side in memory, as in files."""
    return image.permute(1, 2, 0).contiguous().permute(2, 0, 1)


class Normalize:
    """Turn images (N, 3, H, W) of 0 … 255 into floats around 0, by the mean and std of 0 … 1."""

    def __init__(self, mean: Sequence[float], std: Sequence[float], device: torch.device) -> None:
        self.mean = 255 * torch.tensor(mean, device=device)
        self.factor = 1 / (255 * torch.tensor(std, device=device))

    def __call__(self, images: Tensor) -> Tensor:
        # Convolutions are fastest in this memory format.
        floats = images.to(torch.float32, memory_format=torch.channels_last, copy=True)
        floats = floats.permute(0, 2, 3, 1)  # (N, H, W, 3), as they lie in memory
        rows, width = floats.flatten(2), floats.shape[2]  # (N, H, 3 W): a CPU likes long rows
        rows.sub_(self.mean.repeat(width)).mul_(self.factor.repeat(width))
        return floats.permute(0, 3, 1, 2)
