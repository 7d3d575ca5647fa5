"""ResNet-34 (He et al., 2015, arXiv:1512.03385): 21.3 million parameters."""

from torch import Tensor, nn

from .basic_module import BasicModule


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions; their output is added to the input."""

    def __init__(self, in_channels: int, channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample = None
        if stride != 1 or in_channels != channels:  # the sum needs equal shapes
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:  # (N, in_channels, H, W)
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.bn1(self.conv1(x)).relu_()
        x = self.bn2(self.conv2(x))
        return (x + shortcut).relu_()  # (N, channels, H / stride, W / stride)


class ResNet34(BasicModule):
    """Images (N, 3, H, W), from 64 pixels a side up, to logits (N, K); names are torchvision's."""

    pretrained_url = "https://download.pytorch.org/models/resnet34-b627a593.pth"

    def __init__(self, num_classes: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, kernel_size=7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = stage(64, 64, blocks=3, stride=1)
        self.layer2 = stage(64, 128, blocks=4, stride=2)
        self.layer3 = stage(128, 256, blocks=6, stride=2)
        self.layer4 = stage(256, 512, blocks=3, stride=2)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(512, num_classes)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        nn.init.normal_(self.fc.weight, std=0.001)  # first loss: ln K
        nn.init.zeros_(self.fc.bias)

    def forward(self, images: Tensor) -> Tensor:
        x = self.maxpool(self.bn1(self.conv1(images)))  # (N, 64, H / 4, W / 4)
        x = x.relu_()  # after the pooling: the same numbers for a quarter of the work
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))  # (N, 512, H / 32, W / 32)
        return self.fc(self.dropout(x.mean(dim=(2, 3))))  # (N, K)


def stage(in_channels: int, channels: int, blocks: int, stride: int) -> nn.Sequential:
    """Chain `blocks` residual blocks; the first one changes resolution and channels."""
    rest = [ResidualBlock(channels, channels) for _ in range(blocks - 1)]
    return nn.Sequential(ResidualBlock(in_channels, channels, stride), *rest)
