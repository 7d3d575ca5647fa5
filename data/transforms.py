"""Crops, flips and resizing of one picture, normalising of a batch."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Transform = Callable[[Tensor], Tensor]  # uint8 pictures (3, H, W)


def train_transforms(image_size: int, crop_scale: float, augment: str | None = None) -> Transform:
    """What a training picture goes through; v2.Compose([this, v2.ColorJitter(0.4)]) adds more.

    augment: names of --augment. Mixup and cutmix mix whole batches: see `batch_mixer`.
    """
    crop = RandomCropAndFlip(image_size, crop_scale)
    names = [name for name in (augment or "").split(",") if name in PICTURE_AUGMENTATIONS]
    if not names:
        return crop
    from torchvision.transforms import v2  # here: it loads slowly

    return v2.Compose([crop, *(PICTURE_AUGMENTATIONS[name](v2) for name in names)])


PICTURE_AUGMENTATIONS: dict[str, Callable[[Any], Transform]] = {  # by torchvision.transforms.v2
    "trivialaugment": lambda v2: v2.TrivialAugmentWide(),  # Müller and Hutter, 2021
    "randaugment": lambda v2: v2.RandAugment(),  # Cubuk et al., 2019
    "augmix": lambda v2: v2.AugMix(),  # Hendrycks et al., 2020; slow
    # Zhong et al., 2017; to ImageNet's mean colour
    "erasing": lambda v2: v2.RandomErasing(value=[124, 116, 104]),
}


def batch_mixer(augment: str | None, num_classes: int) -> Callable | None:
    """Return what mixes pairs of pictures of a batch, by mixup, cutmix, or one of both at random.

    It takes images (N, 3, H, W) and labels (N,), and returns labels (N, K): the shares of both
    classes (Zhang et al., 2018, arXiv:1710.09412; Yun et al., 2019, arXiv:1905.04899).
    """
    names = [name for name in (augment or "").split(",") if name in ("mixup", "cutmix")]
    if not names:
        return None
    from torchvision.transforms import v2

    mixers = {"mixup": v2.MixUp, "cutmix": v2.CutMix}
    return v2.RandomChoice([mixers[name](num_classes=num_classes) for name in names])


def eval_transforms(image_size: int) -> "MiddleSquare":
    """What a picture goes through in val and test, the same each time."""
    return MiddleSquare(image_size)


class RandomCropAndFlip:
    """Crop, flip and resize at random: uint8 (3, H, W) to (3, image_size, image_size).

    Like RandomResizedCrop and RandomHorizontalFlip of torchvision: a crop shows crop_scale to 1 of
    the picture's area, with a ratio of its sides from 3/4 to 4/3. numbers: the five random numbers
    of 0 … 1 that decide it; None draws them from torch's generator.
    """

    count = 5  # of the random numbers

    def __init__(self, image_size: int, crop_scale: float) -> None:
        self.image_size, self.crop_scale = image_size, crop_scale

    def __call__(self, picture: Tensor, numbers: Sequence[float] | None = None) -> Tensor:
        numbers = torch.rand(5).tolist() if numbers is None else numbers
        random_area, random_ratio, random_top, random_left, random_flip = numbers
        _, full_height, full_width = picture.shape
        area = (self.crop_scale + (1 - self.crop_scale) * random_area) * full_height * full_width
        ratio = math.exp((2 * random_ratio - 1) * math.log(4 / 3))
        height = min(full_height, max(1, round(math.sqrt(area / ratio))))
        width = min(full_width, max(1, round(math.sqrt(area * ratio))))
        top = int(random_top * (full_height - height + 1))
        left = int(random_left * (full_width - width + 1))
        crop = picture[:, top : top + height, left : left + width]
        return resize(crop, self.image_size, self.image_size, flip=random_flip < 0.5)


class MiddleSquare:
    """Take the middle square, `share` of the shorter side wide: uint8 (3, H, W) to image_size.

    It is Resize(256) and CenterCrop(224) of torchvision for 224 pixels, but cuts before it resizes,
    which needs little memory even for a picture of 1 x 10,000 pixels.
    """

    count = 0  # random numbers

    def __init__(self, image_size: int, share: float = 0.875) -> None:
        self.image_size, self.share = image_size, share

    def __call__(self, picture: Tensor, numbers: Sequence[float] = ()) -> Tensor:
        _, height, width = picture.shape
        side = max(1, round(self.share * min(height, width)))
        top, left = (height - side) // 2, (width - side) // 2
        crop = picture[:, top : top + side, left : left + side]
        return resize(crop, self.image_size, self.image_size)


def resize(picture: Tensor, height: int, width: int, flip: bool = False) -> Tensor:
    """Resize with antialiasing, and flip if asked to: uint8 (3, H, W) to (3, height, width).

    The colours of a pixel lie side by side in memory, as in files, before and after. That is why
    it does not call torch.nn.functional.interpolate, which calls the same operation but moves them.
    """
    pixels = picture.permute(1, 2, 0)
    pixels = (pixels.flip(1) if flip else pixels).contiguous()
    resized = torch.empty(1, height, width, 3, dtype=torch.uint8).permute(0, 3, 1, 2)
    torch.ops.aten._upsample_bilinear2d_aa.out(
        pixels.permute(2, 0, 1)[None],
        [height, width],
        False,  # align_corners
        None,  # scale of the height: that of the sizes
        None,  # scale of the width
        out=resized,
    )
    return resized[0]


class Normalize:
    """Turn images (N, 3, H, W) of 0 … 255 into floats around 0, by the mean and std of 0 … 1."""

    def __init__(self, mean: Sequence[float], std: Sequence[float], device: torch.device) -> None:
        self.mean = 255 * torch.tensor(mean, device=device)
        self.factor = 1 / (255 * torch.tensor(std, device=device))

    def __call__(self, images: Tensor) -> Tensor:
        # Convolutions are fastest in this memory format.
        floats = images.to(torch.float32, memory_format=torch.channels_last, copy=True)
        floats = floats.permute(0, 2, 3, 1)  # (N, H, W, 3), as they lie in memory
        rows, width = floats.flatten(2), floats.shape[2]  # (N, H, 3 W): faster than single pixels
        rows.sub_(self.mean.repeat(width)).mul_(self.factor.repeat(width))
        return floats.permute(0, 3, 1, 2)
