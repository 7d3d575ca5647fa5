"""Sound small models of many kinds. The faults of models.py derive from them.

All take images (N, 3, 64, 64) and learn to tell the drawn stars apart in a few seconds.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SIZE = 64  # pixels a side


def conv_norm_relu(in_channels: int, channels: int, stride: int = 2) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
    )


class PlainNet(nn.Module):
    """Four convolutions with BatchNorm, the mean over all places, one linear layer."""

    widths = (24, 48, 64, 96)

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        channels = (3, *self.widths)
        self.features = nn.Sequential(*map(self.layer, channels, self.widths))
        self.head = nn.Linear(self.widths[-1], num_classes)

    def layer(self, in_channels: int, channels: int) -> nn.Module:
        return conv_norm_relu(in_channels, channels)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images).mean(dim=(2, 3)))


class VGG(nn.Module):
    """Convolutions without normalisation, max pooling, two linear layers (Simonyan, 2014)."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for in_channels, channels in ((3, 16), (16, 32), (32, 48), (48, 64)):
            layers += [nn.Conv2d(in_channels, channels, 3, padding=1), self.activation()]
            layers += [nn.MaxPool2d(2)]
        self.features = nn.Sequential(*layers)
        self.hidden = nn.Linear(64 * 4 * 4, 64)
        self.head = nn.Linear(64, num_classes)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear) and layer is not self.head:
                self.start(layer)

    def activation(self) -> nn.Module:
        return nn.ReLU()

    def start(self, layer: nn.Conv2d | nn.Linear) -> None:
        nn.init.kaiming_normal_(layer.weight)
        nn.init.zeros_(layer.bias)

    def forward(self, images: Tensor) -> Tensor:
        x = self.features(images).flatten(1)
        return self.head(self.hidden(x).relu())


class DeepNet(nn.Module):
    """Sixteen convolutions without normalisation and without shortcuts."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 24, 4, stride=4)
        self.layers = nn.ModuleList(nn.Conv2d(24, 24, 3, padding=1) for _ in range(15))
        self.head = nn.Linear(24, num_classes)
        for layer in (self.stem, *self.layers):
            self.start(layer)

    def start(self, layer: nn.Conv2d) -> None:
        nn.init.kaiming_normal_(layer.weight)
        nn.init.zeros_(layer.bias)

    def activation(self, x: Tensor) -> Tensor:
        return x.relu()

    def forward(self, images: Tensor) -> Tensor:
        x = self.activation(self.stem(images))
        for layer in self.layers:
            x = self.activation(layer(x))
        return self.head(x.mean(dim=(2, 3)))


class Block(nn.Module):
    """Two convolutions; their output is added to the input."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or in_channels != channels:
            self.shortcut = nn.Conv2d(in_channels, channels, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = self.norm1(self.conv1(x)).relu()
        return (self.norm2(self.conv2(out)) + self.shortcut(x)).relu()


class ResNet(nn.Module):
    """A stem and six residual blocks (He et al., 2015)."""

    block: type[nn.Module] = Block

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.stem = conv_norm_relu(3, 16)
        shapes = ((16, 16, 1), (16, 16, 1), (16, 32, 2), (32, 32, 1), (32, 64, 2), (64, 64, 1))
        self.blocks = nn.Sequential(*(self.block(*shape) for shape in shapes))
        self.head = nn.Linear(64, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(images)).mean(dim=(2, 3)))


class DepthwiseNet(nn.Module):
    """Convolutions by channel, then of 1 x 1 across the channels (Howard et al., 2017)."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        shapes = ((24, 48, 2), (48, 48, 1), (48, 96, 2), (96, 96, 1))
        self.stem = conv_norm_relu(3, 24)
        self.layers = nn.Sequential(*(self.layer(*shape) for shape in shapes))
        self.head = nn.Linear(96, num_classes)

    def layer(self, in_channels: int, channels: int, stride: int) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(in_channels, in_channels, 3, stride, 1, groups=in_channels, bias=False),
            nn.BatchNorm2d(in_channels),
            nn.ReLU(),
            nn.Conv2d(in_channels, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.layers(self.stem(images)).mean(dim=(2, 3)))


class Gate(nn.Module):
    """Multiply each channel by a share, 0 … 1, that its mean decides (Hu et al., 2017)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.squeeze = nn.Linear(channels, channels // 4)
        self.expand = nn.Linear(channels // 4, channels)

    def forward(self, x: Tensor) -> Tensor:
        share = self.expand(self.squeeze(x.mean(dim=(2, 3))).relu()).sigmoid()
        return x * share[:, :, None, None]


class GateNet(PlainNet):
    """PlainNet with a gate behind each convolution."""

    gate: type[nn.Module] = Gate

    def layer(self, in_channels: int, channels: int) -> nn.Module:
        return nn.Sequential(conv_norm_relu(in_channels, channels), self.gate(channels))


class Attention(nn.Module):
    """Each token takes a weighted mean of all, in several heads (Vaswani et al., 2017)."""

    def __init__(self, width: int, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def split(self, x: Tensor) -> Tensor:  # (N, T, C) to (N, heads, T, C / heads)
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)

    def weights(self, queries: Tensor, keys: Tensor) -> Tensor:  # (N, heads, T, T)
        return (queries @ keys.transpose(2, 3) * keys.shape[3] ** -0.5).softmax(dim=3)

    def merge(self, x: Tensor) -> Tensor:  # (N, heads, T, C / heads) to (N, T, C)
        return x.transpose(1, 2).flatten(2)

    def forward(self, x: Tensor) -> Tensor:
        queries, keys, values = map(self.split, self.qkv(x).chunk(3, dim=2))
        return self.out(self.merge(self.weights(queries, keys) @ values))


class TransformerBlock(nn.Module):
    """Attention between the tokens, then two linear layers for each token."""

    attention: type[nn.Module] = Attention

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mix = self.attention(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mix(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    """A small vision transformer with a convolutional stem (Xiao et al., 2021)."""

    width, depth = 64, 3
    block: type[nn.Module] = TransformerBlock

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.stem: nn.Module = nn.Sequential(conv_norm_relu(3, 32), conv_norm_relu(32, 48))
        self.embed: nn.Module = nn.Conv2d(48, self.width, 2, stride=2)
        self.places = nn.Parameter(0.02 * torch.randn(1, (SIZE // 8) ** 2, self.width))
        self.blocks = nn.Sequential(*(self.block(self.width) for _ in range(self.depth)))
        self.norm = nn.LayerNorm(self.width)
        self.head = nn.Linear(self.width, num_classes)

    def tokens(self, x: Tensor) -> Tensor:  # (N, C, H, W) to (N, T, C)
        return x.flatten(2).transpose(1, 2)

    def pool(self, x: Tensor) -> Tensor:  # (N, T, C) to (N, C)
        return x.mean(dim=1)

    def forward(self, images: Tensor) -> Tensor:
        x = self.tokens(self.embed(self.stem(images))) + self.places
        return self.head(self.pool(self.norm(self.blocks(x))))


class PatchViT(ViT):
    """A vision transformer whose tokens are patches of 8 x 8 pixels."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.stem = nn.Identity()
        self.embed = nn.Linear(3 * 64, self.width)

    def patches(self, images: Tensor) -> Tensor:  # (N, 3, H, W) to (N, T, 3 * 64)
        return F.unfold(images, kernel_size=8, stride=8).transpose(1, 2)

    def forward(self, images: Tensor) -> Tensor:
        x = self.embed(self.patches(images)) + self.places
        return self.head(self.pool(self.norm(self.blocks(x))))


class TorchBlock(nn.Module):
    """Attention by torch's own layer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.mix = self.attention(width)

    def attention(self, width: int) -> nn.MultiheadAttention:
        return nn.MultiheadAttention(width, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        return x + self.mix(y, y, y, need_weights=False)[0]


class TorchViT(ViT):
    """A vision transformer of torch's attention; a token of its own collects the answer."""

    block = TorchBlock

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.collector = nn.Parameter(0.02 * torch.randn(1, 1, self.width))

    def forward(self, images: Tensor) -> Tensor:
        x = self.tokens(self.embed(self.stem(images))) + self.places
        x = torch.cat([self.collector.expand(len(x), -1, -1), x], dim=1)
        return self.head(self.pool(self.norm(self.blocks(x))))

    def pool(self, x: Tensor) -> Tensor:
        return x[:, 0]


class MixerBlock(nn.Module):
    """Linear layers across the tokens, then across the channels (Tolstikhin et al., 2021)."""

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.across_tokens = nn.Sequential(
            nn.Linear(tokens, 2 * tokens), nn.GELU(), nn.Linear(2 * tokens, tokens)
        )
        self.across_channels = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def mix_tokens(self, x: Tensor) -> Tensor:  # (N, T, C)
        return self.across_tokens(x.transpose(1, 2)).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mix_tokens(self.norm1(x))
        return x + self.across_channels(self.norm2(x))


class Mixer(nn.Module):
    """A small mixer with a convolutional stem."""

    width = 64
    block: type[nn.Module] = MixerBlock

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv_norm_relu(3, 32), conv_norm_relu(32, 48))
        self.embed = nn.Conv2d(48, self.width, 2, stride=2)
        self.blocks = nn.Sequential(*(self.block((SIZE // 8) ** 2, self.width) for _ in range(3)))
        self.norm: nn.Module = nn.LayerNorm(self.width)
        self.head = nn.Linear(self.width, num_classes)

    def tokens(self, x: Tensor) -> Tensor:  # (N, C, H, W) to (N, T, C)
        return x.flatten(2).transpose(1, 2)

    def forward(self, images: Tensor) -> Tensor:
        x = self.tokens(self.embed(self.stem(images)))
        return self.head(self.norm(self.blocks(x)).mean(dim=1))


class MLP(nn.Module):
    """Three linear layers on all pixels of a smaller picture."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(3 * 32 * 32, 256), self.activation(),
            nn.Linear(256, 128), self.activation(),
            nn.Linear(128, num_classes),
        )  # fmt: skip

    def activation(self) -> nn.Module:
        return nn.ReLU()

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(F.avg_pool2d(images, 2).flatten(1))


class RowNet(nn.Module):
    """A recurrent net (GRU) reads a picture row by row."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv_norm_relu(3, 16), conv_norm_relu(16, 32))
        self.rnn = nn.GRU(32 * SIZE // 4, 64, batch_first=True)
        self.head = nn.Linear(64, num_classes)

    def rows(self, x: Tensor) -> Tensor:  # (N, C, H, W) to (N, H, C W)
        return x.transpose(1, 2).flatten(2)

    def summary(self, outputs: Tensor) -> Tensor:  # (N, H, C) to (N, C)
        return outputs[:, -1]

    def forward(self, images: Tensor) -> Tensor:
        outputs, _ = self.rnn(self.rows(self.stem(images)))
        return self.head(self.summary(outputs))


TWINS: tuple[type[nn.Module], ...] = (
    PlainNet, VGG, DeepNet, ResNet, DepthwiseNet, GateNet,
    ViT, PatchViT, TorchViT, Mixer, MLP, RowNet,
)  # fmt: skip
