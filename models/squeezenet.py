"""SqueezeNet 1.1 (Iandola et al., 2016, arXiv:1602.07360): 0.7 million parameters."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .basic_module import BasicModule


class Fire(nn.Module):
    """Squeeze to few channels, then expand by 1 x 1 and 3 x 3 filters side by side.

    The input is added to the output; channels that it lacks count as 0. This is the paper's bypass,
    here at every module, with the shortcut without parameters of He et al. (2015).
    """

    def __init__(self, in_channels: int, squeeze: int, expand: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(in_channels, squeeze, kernel_size=1)
        self.expand1x1 = nn.Conv2d(squeeze, expand, kernel_size=1)
        self.expand3x3 = nn.Conv2d(squeeze, expand, kernel_size=3, padding=1)
        self.missing_channels = 2 * expand - in_channels
        self.bypass = True

    def forward(self, x: Tensor) -> Tensor:  # (N, in_channels, H, W)
        squeezed = self.squeeze(x).relu_()
        out = torch.concat([self.expand1x1(squeezed), self.expand3x3(squeezed)], dim=1)
        if self.bypass:
            missing = (0, 0, 0, 0, 0, self.missing_channels)
            out = out + (F.pad(x, missing) if self.missing_channels else x)
        return out.relu_()  # (N, 2 expand, H, W)


class SqueezeNet(BasicModule):
    """Images (N, 3, H, W), any size from 64 up, to logits (N, K).

    Parameters and their names are those of torchvision's `squeezenet1_1`. Two changes let it learn
    from scratch: there is no ReLU after the last layer (with it, the loss stays at ln K for
    epochs), and there is the bypass. Weights that were trained without the bypass, torchvision's
    and the book's, switch it off: the state dict has an entry for it.
    """

    pretrained_url = "https://download.pytorch.org/models/squeezenet1_1-b8a52dc0.pth"

    def __init__(self, num_classes: int, dropout: float = 0.5) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 64, kernel_size=3, stride=2),
            nn.MaxPool2d(3, stride=2, ceil_mode=True),
            nn.ReLU(inplace=True),  # after the pooling: the same numbers for a quarter of the work
            Fire(64, 16, 64),
            Fire(128, 16, 64),
            nn.MaxPool2d(3, stride=2, ceil_mode=True),
            Fire(128, 32, 128),
            Fire(256, 32, 128),
            nn.MaxPool2d(3, stride=2, ceil_mode=True),
            Fire(256, 48, 192),
            Fire(384, 48, 192),
            Fire(384, 64, 256),
            Fire(512, 64, 256),
        )
        last = nn.Conv2d(512, num_classes, 1)
        self.classifier = nn.Sequential(nn.Dropout(dropout), last)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d) and layer.bias is not None:
                nn.init.kaiming_normal_(layer.weight)
                nn.init.zeros_(layer.bias)
        for fire in self.fires:  # close to the identity at first, so the signal passes all of them
            fire.expand1x1.weight.data *= 0.25
            fire.expand3x3.weight.data *= 0.25
        nn.init.normal_(last.weight, std=0.001)  # first loss: ln K
        self.register_load_state_dict_pre_hook(without_bypass)

    @property
    def fires(self) -> list[Fire]:
        return [layer for layer in self.features if isinstance(layer, Fire)]

    def forward(self, images: Tensor) -> Tensor:
        pooled = self.features(images).mean(dim=(2, 3), keepdim=True)  # (N, 512, 1, 1)
        return self.classifier(pooled).flatten(1)  # (N, K)

    def get_extra_state(self) -> Tensor:
        return torch.tensor(all(fire.bypass for fire in self.fires))

    def set_extra_state(self, bypass: Tensor) -> None:
        for fire in self.fires:
            fire.bypass = bool(bypass)


def without_bypass(module: nn.Module, state: dict, prefix: str, *_: Any) -> None:
    """Before loading: weights without an entry for the bypass were trained without it."""
    state.setdefault(f"{prefix}_extra_state", torch.tensor(False))
