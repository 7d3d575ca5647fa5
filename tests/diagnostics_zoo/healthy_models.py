"""Small sound models of many kinds, for pictures of 64 x 64 pixels. None has a fault."""

# mypy: disable-error-code="arg-type, assignment, call-overload, index, operator, override"
# An attribute of a module is a tensor or a module, which such short models do not tell mypy.

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

MODELS: dict[str, Callable[[int], nn.Module]] = {}  # by name; each takes the number of classes


def sound(make: Callable[[int], nn.Module]) -> Callable[[int], nn.Module]:
    MODELS[make.__name__] = make
    return make


class Call(nn.Module):
    """A function as a layer: for what is a line in forward."""

    def __init__(self, function: Callable[..., Tensor], *parts: nn.Module) -> None:
        super().__init__()
        self.function, self.parts = function, nn.ModuleList(parts)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, *self.parts)


class Residual(nn.Module):
    """x + scale * branch(x). scale: None, or the first value of a factor for each channel."""

    def __init__(self, *branch: nn.Module, scale: float | None = None, shape: tuple = (1,)) -> None:
        super().__init__()
        self.branch = nn.Sequential(*branch)
        self.scale = None if scale is None else nn.Parameter(torch.full(shape, scale))

    def forward(self, x: Tensor) -> Tensor:
        out = self.branch(x)
        return x + (out if self.scale is None else self.scale * out)


def conv(inputs: int, outputs: int, stride: int = 1, act: type = nn.ReLU, size: int = 3, **more):
    layers = [nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False, **more)]
    return nn.Sequential(*layers, nn.BatchNorm2d(outputs), act())


def head(width: int, num_classes: int) -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, num_classes))


def stem(width: int = 32) -> nn.Sequential:
    return nn.Sequential(conv(3, width // 2, 2), conv(width // 2, width, 2))


def patches(width: int = 64, size: int = 8) -> nn.Sequential:
    """Pictures to tokens (N, T, width)."""
    return nn.Sequential(nn.Conv2d(3, width, size, size), Call(lambda x: x.flatten(2).mT))


def mlp(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))


# Attention


class Attention(nn.Module):
    """Self-attention over tokens (N, T, D), computed in one of three ways."""

    def __init__(self, width: int = 64, heads: int = 4, way: str = "sdpa") -> None:
        super().__init__()
        self.heads, self.way = heads, way
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, t, d = x.shape
        q, k, v = (f(x).view(n, t, self.heads, -1) for f in (self.q, self.k, self.v))
        if self.way == "einsum":
            weights = torch.einsum("nqhd,nkhd->nhqk", q, k).div(math.sqrt(d / self.heads))
            y = torch.einsum("nhqk,nkhd->nqhd", weights.softmax(dim=-1), v)
        else:
            q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # (N, heads, T, D / heads)
            if self.way == "sdpa":
                y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
            else:
                weights = (q @ k.mT / math.sqrt(q.shape[-1])).softmax(dim=-1)
                y = (weights @ v).transpose(1, 2)
        return self.out(y.reshape(n, t, d))


class Transformer(nn.Module):
    """A small vision transformer; others derive from it."""

    def __init__(self, num_classes: int, width: int = 64, depth: int = 3, grid: int = 8) -> None:
        super().__init__()
        self.patches = patches(width)
        self.places = nn.Parameter(0.02 * torch.randn(1, grid * grid, width))
        self.blocks = nn.Sequential(*(self.block(width) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, num_classes)

    def block(self, width: int) -> nn.Module:
        norms = nn.LayerNorm(width), nn.LayerNorm(width)
        attention = Residual(norms[0], Attention(width))
        return nn.Sequential(attention, Residual(norms[1], mlp(width)))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.patches(images) + self.places)).mean(dim=1))


@sound
class ViTMean(Transformer):
    pass


@sound
class ViTClassToken(Transformer):
    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.token = nn.Parameter(torch.zeros(1, 1, 64))

    def forward(self, images: Tensor) -> Tensor:
        x = self.patches(images) + self.places
        x = torch.concat([self.token.expand(len(x), -1, -1), x], dim=1)
        return self.head(self.norm(self.blocks(x))[:, 0])


@sound
class ViTPostNorm(Transformer):
    def block(self, width: int) -> nn.Module:
        norms = nn.LayerNorm(width), nn.LayerNorm(width)
        attention = Residual(Attention(width, way="matmul"))
        return nn.Sequential(attention, norms[0], Residual(mlp(width)), norms[1])


@sound
class ViTEinsum(Transformer):
    def block(self, width: int) -> nn.Module:
        attention = Residual(nn.LayerNorm(width), Attention(width, way="einsum"))
        return nn.Sequential(attention, Residual(nn.LayerNorm(width), mlp(width)))


@sound
class ViTLayerScale(Transformer):
    def block(self, width: int) -> nn.Module:
        attention = Residual(nn.LayerNorm(width), Attention(width), scale=1e-6, shape=(width,))
        more = Residual(nn.LayerNorm(width), mlp(width), scale=1e-6, shape=(width,))
        return nn.Sequential(attention, more)


@sound
class TorchEncoder(Transformer):
    def block(self, width: int) -> nn.Module:
        return nn.TransformerEncoderLayer(
            width, 4, 2 * width, dropout=0.1, batch_first=True, norm_first=True
        )


@sound
class TorchEncoderPostNorm(Transformer):
    def block(self, width: int) -> nn.Module:
        return nn.TransformerEncoderLayer(width, 4, 2 * width, batch_first=True)


@sound
class TorchEncoderSequenceFirst(Transformer):
    def block(self, width: int) -> nn.Module:
        return nn.TransformerEncoderLayer(width, 4, 2 * width)

    def forward(self, images: Tensor) -> Tensor:
        x = (self.patches(images) + self.places).transpose(0, 1)  # (T, N, D)
        return self.head(self.norm(self.blocks(x)).mean(dim=0))


@sound
class AttentionBehindConvolutions(nn.Module):
    """nn.MultiheadAttention over the places of a feature map, and one query that pools them."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(stem(), conv(32, 64, 2))
        self.norm, self.attention = nn.LayerNorm(64), nn.MultiheadAttention(64, 4, batch_first=True)
        self.query, self.head = nn.Parameter(torch.randn(64) / 8), nn.Linear(64, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images).flatten(2).mT
        y = self.norm(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        weights = (x @ self.query / 8).softmax(dim=1)  # attention pooling
        return self.head((weights[..., None] * x).sum(dim=1))


@sound
class LearnedQueries(nn.Module):
    """Four learned queries look at all places, as in Perceiver."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.patches, self.places = patches(), nn.Parameter(0.02 * torch.randn(64, 64))
        self.queries = nn.Parameter(0.02 * torch.randn(1, 4, 64))
        self.norms = nn.ModuleList(nn.LayerNorm(64) for _ in range(4))
        self.cross = nn.MultiheadAttention(64, 4, batch_first=True)
        self.inner, self.mlp = nn.MultiheadAttention(64, 4, batch_first=True), mlp(64)
        self.head = nn.Linear(4 * 64, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.norms[0](self.patches(images) + self.places)
        x = self.queries.expand(len(images), -1, -1)
        x = x + self.cross(self.norms[1](x), tokens, tokens, need_weights=False)[0]
        y = self.norms[2](x)
        x = x + self.inner(y, y, y, need_weights=False)[0]
        x = x + self.mlp(x)
        return self.head(self.norms[3](x).flatten(1))


@sound
class TiedLayers(Transformer):
    """One block, used three times, as in ALBERT."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes, depth=1)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patches(images) + self.places
        for _ in range(3):
            x = self.blocks(x)
        return self.head(self.norm(x).mean(dim=1))


# Mixers


@sound
class Mixer(Transformer):
    def block(self, width: int) -> nn.Module:
        places = nn.Sequential(nn.LayerNorm(width), Call(lambda x, f: f(x.mT).mT, mlp(64)))
        return nn.Sequential(Residual(places), Residual(nn.LayerNorm(width), mlp(width)))


@sound
class FNet(Transformer):
    def block(self, width: int) -> nn.Module:
        mix = Call(lambda x: torch.fft.fft2(x, norm="ortho").real)
        return nn.Sequential(
            Residual(nn.LayerNorm(width), mix), Residual(nn.LayerNorm(width), mlp(width))
        )


@sound
class GatedMLP(Transformer):
    """gMLP: half of the channels, mixed over the places, gate the others. Gates start at 1."""

    def block(self, width: int) -> nn.Module:
        gate = nn.Linear(64, 64)
        nn.init.normal_(gate.weight, std=1e-3)
        nn.init.ones_(gate.bias)

        def mix(x: Tensor, norm: nn.Module, gate: nn.Module) -> Tensor:
            u, v = x.chunk(2, dim=-1)
            return u * gate(norm(v).mT).mT

        first, last = nn.Linear(width, 2 * width), nn.Linear(width, width)
        gated = Call(mix, nn.LayerNorm(width), gate)
        return Residual(nn.LayerNorm(width), first, nn.GELU(), gated, last)


@sound
def ConvMixer(num_classes: int) -> nn.Module:
    blocks = [
        nn.Sequential(Residual(conv(64, 64, act=nn.GELU, size=7, groups=64)), conv(64, 64, size=1))
        for _ in range(3)
    ]
    return nn.Sequential(conv(3, 64, 4, size=5), *blocks, head(64, num_classes))


# Normalisation


def normed(num_classes: int, norm: Callable[[int], nn.Module], bias: bool = True) -> nn.Module:
    layers: list[nn.Module] = []
    for inputs, outputs in ((3, 32), (32, 64), (64, 64), (64, 128)):
        layers += [nn.Conv2d(inputs, outputs, 3, 2, 1, bias=bias), norm(outputs), nn.ReLU()]
    return nn.Sequential(*layers, head(128, num_classes))


@sound
def GroupNormNet(num_classes: int) -> nn.Module:
    return normed(num_classes, lambda width: nn.GroupNorm(8, width))


@sound
def InstanceNormNet(num_classes: int) -> nn.Module:
    return normed(num_classes, lambda width: nn.InstanceNorm2d(width, affine=True), bias=False)


@sound
def LayerNormNet(num_classes: int) -> nn.Module:
    """GroupNorm of one group: LayerNorm over channels and places."""
    return normed(num_classes, lambda width: nn.GroupNorm(1, width))


@sound
def LocalResponseNet(num_classes: int) -> nn.Module:
    return normed(num_classes, lambda width: nn.LocalResponseNorm(5))


@sound
def ChannelsLastLayerNorm(num_classes: int) -> nn.Module:
    """LayerNorm over the channels of a place, as in ConvNeXt."""

    def norm(width: int) -> nn.Module:
        return Call(lambda x, f: f(x.movedim(1, -1)).movedim(-1, 1), nn.LayerNorm(width))

    return normed(num_classes, norm)


def wrapped(num_classes: int, wrap: Callable[[nn.Module], nn.Module]) -> nn.Module:
    layers: list[nn.Module] = []
    for inputs, outputs in ((3, 32), (32, 64), (64, 64), (64, 128)):
        layer = nn.Conv2d(inputs, outputs, 3, 2, 1)
        nn.init.kaiming_normal_(layer.weight)
        layers += [wrap(layer), nn.ReLU()]
    return nn.Sequential(*layers, head(128, num_classes))


@sound
def WeightNormNet(num_classes: int) -> nn.Module:
    return wrapped(num_classes, parametrizations.weight_norm)


@sound
def SpectralNormNet(num_classes: int) -> nn.Module:
    return wrapped(num_classes, parametrizations.spectral_norm)


class StandardizedConv(nn.Conv2d):
    """Weights of mean 0 and variance 1 / fan-in, times a learned gain, as in NF-ResNet."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.gain = nn.Parameter(torch.ones(self.out_channels, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        var, mean = torch.var_mean(self.weight, dim=(1, 2, 3), keepdim=True)
        weight = (self.weight - mean) / (var * self.weight[0].numel() + 1e-4).sqrt() * self.gain
        return self._conv_forward(x, weight, self.bias)


@sound
def NormalizerFree(num_classes: int) -> nn.Module:
    relu = Call(lambda x: F.relu(x) * 1.7139)  # keeps the variance
    first = [StandardizedConv(3, 32, 3, 2, 1), relu, StandardizedConv(32, 64, 3, 2, 1)]
    blocks = []
    for _ in range(4):
        layers = [relu, StandardizedConv(64, 64, 3, padding=1)]
        blocks.append(
            Residual(*layers, *layers[:1], StandardizedConv(64, 64, 3, padding=1), scale=0.2)
        )
    return nn.Sequential(*first, *blocks, relu, head(64, num_classes))


@sound
def StemNormalises(num_classes: int) -> nn.Module:
    return nn.Sequential(
        nn.BatchNorm2d(3, affine=False), stem(), conv(32, 64, 2), head(64, num_classes)
    )


@sound
def InstanceNormAtTheInput(num_classes: int) -> nn.Module:
    return nn.Sequential(nn.InstanceNorm2d(3), stem(), conv(32, 64, 2), head(64, num_classes))


@sound
def DeepMLP(num_classes: int) -> nn.Module:
    layers = [nn.AvgPool2d(4), nn.Flatten(), nn.Linear(768, 256)]
    for _ in range(8):
        layers += [nn.BatchNorm1d(256), nn.ReLU(), nn.Linear(256, 256)]
    return nn.Sequential(*layers, nn.ReLU(), nn.Linear(256, num_classes))


@sound
def SelfNormalising(num_classes: int) -> nn.Module:
    """SELU with LeCun's initialisation keeps mean and variance."""
    layers = [nn.AvgPool2d(4), nn.Flatten()]
    for inputs in (768, 256, 256, 256, 256):
        layer = nn.Linear(inputs, 256)
        nn.init.kaiming_normal_(layer.weight, nonlinearity="linear")
        nn.init.zeros_(layer.bias)
        layers += [layer, nn.SELU()]
    return nn.Sequential(*layers, nn.AlphaDropout(0.05), nn.Linear(256, num_classes))


# Rows as a sequence


class Recurrent(nn.Module):
    def __init__(self, num_classes: int, kind: type = nn.LSTM, **more) -> None:
        super().__init__()
        self.stem, self.batch_first = stem(), more.get("batch_first", False)
        self.rnn = kind(32 * 16, 64, **more)
        self.head = nn.Linear(64 * (2 if self.rnn.bidirectional else 1), num_classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images).permute(0, 2, 1, 3).flatten(2)  # (N, rows, features)
        x = self.rnn(x if self.batch_first else x.transpose(0, 1))[0]
        x = x if self.batch_first else x.transpose(0, 1)
        return self.head(x.mean(dim=1) if self.rnn.bidirectional else x[:, -1])


@sound
def LSTMBatchFirst(num_classes: int) -> nn.Module:
    return Recurrent(num_classes, batch_first=True)


@sound
def LSTMRowsFirst(num_classes: int) -> nn.Module:
    return Recurrent(num_classes, num_layers=2, dropout=0.1)


@sound
def GRUBothWays(num_classes: int) -> nn.Module:
    return Recurrent(num_classes, nn.GRU, batch_first=True, bidirectional=True)


# Weights of other origin


@sound
class FrozenBackbone(nn.Module):
    """The features of a trained model (here: of a fixed seed), frozen, and a new head."""

    weights_loaded = True

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            layers = [
                nn.Conv2d(3, 64, 5, 4),
                nn.BatchNorm2d(64),
                nn.ReLU(),
                nn.Conv2d(64, 128, 3, 2),
            ]
            for layer in layers[::3]:
                nn.init.kaiming_normal_(layer.weight)
            self.body = nn.Sequential(*layers, nn.ReLU(), nn.AdaptiveAvgPool2d(3), nn.Flatten())
        self.body.requires_grad_(False)
        self.head = nn.Linear(128 * 9, num_classes)

    def train(self, mode: bool = True) -> nn.Module:
        super().train(mode)
        self.body.eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            x = self.body(images)
        return self.head(x)


@sound
class FrozenFirstLayers(nn.Module):
    weights_loaded = True

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.stem = stem()
        with torch.no_grad():
            for p in self.stem.parameters():
                p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(0)).div(5))
        self.stem.requires_grad_(False)
        self.rest = nn.Sequential(conv(32, 64, 2), nn.Dropout(0.2), head(64, num_classes))

    def forward(self, images: Tensor) -> Tensor:
        return self.rest(self.stem(images))


@sound
class FixedFilters(nn.Module):
    """Wavelet-like filters in a buffer, two layers of their absolute values, a small MLP."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        axis = torch.linspace(-1.5, 1.5, 7)
        y, x = torch.meshgrid(axis, axis, indexing="ij")
        angles = torch.arange(8) * math.pi / 8
        waves = [torch.sin(3 * (x * a.cos() + y * a.sin())) for a in angles]
        filters = torch.stack([w * torch.exp(-x.square() - y.square()) for w in waves])
        self.register_buffer(
            "filters", (filters / filters.square().sum((1, 2), keepdim=True).sqrt())[:, None]
        )
        self.norm, self.hidden = nn.BatchNorm2d(3 * 8 * 8), nn.Linear(3 * 8 * 8 * 16, 64)
        self.head = nn.Linear(64, num_classes)

    def waves(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.filters.repeat(x.shape[1], 1, 1, 1), padding=3, groups=x.shape[1])

    def forward(self, images: Tensor) -> Tensor:
        x = F.avg_pool2d(self.waves(images).abs(), 4)
        x = F.avg_pool2d(self.waves(x).abs(), 4)
        return self.head(self.hidden(self.norm(x).flatten(1)).relu())


@sound
class RandomFourierFeatures(nn.Module):
    """The cosines of random projections that stay as they are: a kernel machine."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.register_buffer("directions", torch.randn(768, 1024) / math.sqrt(768))
        self.register_buffer("phases", 2 * math.pi * torch.rand(1024))
        self.head = nn.Linear(1024, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        x = F.avg_pool2d(images, 4).flatten(1)
        return self.head(math.sqrt(2) * (x @ self.directions + self.phases).cos())


@sound
def LazyLayers(num_classes: int) -> nn.Module:
    layers = [nn.LazyConv2d(32, 3, 2), nn.LazyBatchNorm2d(), nn.ReLU(), nn.LazyConv2d(64, 3, 2)]
    model = nn.Sequential(
        *layers, nn.ReLU(), nn.AdaptiveMaxPool2d(2), nn.Flatten(), nn.LazyLinear(num_classes)
    )
    model(torch.zeros(2, 3, 64, 64))
    return model


# Zeros at the start


@sound
def ReZero(num_classes: int) -> nn.Module:
    blocks = [Residual(nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), scale=0.0) for _ in range(6)]
    return nn.Sequential(stem(), *blocks, head(32, num_classes))


@sound
def ZeroInitialisedNorms(num_classes: int) -> nn.Module:
    """The last BatchNorm of each block starts at 0, and so does the head."""
    blocks = [Residual(conv(32, 32), conv(32, 32, act=nn.Identity)) for _ in range(3)]
    for block in blocks:
        nn.init.zeros_(block.branch[1][1].weight)
    model = nn.Sequential(stem(), *blocks, head(32, num_classes))
    nn.init.zeros_(model[-1][-1].weight)
    return model


@sound
def Fixup(num_classes: int) -> nn.Module:
    blocks = []
    for _ in range(4):
        first, last = (nn.Conv2d(32, 32, 3, padding=1) for _ in range(2))
        nn.init.kaiming_normal_(first.weight)
        with torch.no_grad():
            first.weight.mul_(4**-0.5)
        nn.init.zeros_(last.weight)
        blocks += [Residual(first, nn.ReLU(), last), nn.ReLU()]
    first = nn.Conv2d(3, 32, 3, 2, 1)
    nn.init.kaiming_normal_(first.weight)
    model = nn.Sequential(first, nn.ReLU(), *blocks, head(32, num_classes))
    nn.init.zeros_(model[-1][-1].weight)
    nn.init.zeros_(model[-1][-1].bias)
    return model


class StochasticDepth(Residual):
    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        kept = torch.rand(len(x), 1, 1, 1, device=x.device) < 0.8
        return x + self.branch(x) * kept / 0.8


@sound
def StochasticDepthNet(num_classes: int) -> nn.Module:
    blocks = [StochasticDepth(conv(32, 32), conv(32, 32, act=nn.Identity)) for _ in range(4)]
    return nn.Sequential(stem(), *blocks, head(32, num_classes))


# Branches


@sound
def SqueezeAndExcitation(num_classes: int) -> nn.Module:
    def block() -> nn.Module:
        gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(64, 8, 1),
            nn.ReLU(),
            nn.Conv2d(8, 64, 1),
            nn.Sigmoid(),
        )
        return nn.Sequential(conv(64, 64), Call(lambda x, gate: x * gate(x), gate))

    return nn.Sequential(stem(64), Residual(block()), Residual(block()), head(64, num_classes))


@sound
class Inception(nn.Module):
    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.stem, self.head = stem(), head(64, num_classes)
        self.one, self.five = (
            conv(32, 16, size=1),
            nn.Sequential(conv(32, 16, size=1), conv(16, 32, size=5)),
        )
        self.pooled = nn.Sequential(nn.MaxPool2d(3, 1, 1), conv(32, 16, size=1))

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images)
        return self.head(torch.concat([self.one(x), self.five(x), self.pooled(x)], dim=1))


@sound
def DenseConnections(num_classes: int) -> nn.Module:
    blocks = [
        Call(
            lambda x, f: torch.concat([x, f(x)], dim=1),
            nn.Sequential(nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, 16, 3, padding=1)),
        )
        for width in range(32, 96, 16)
    ]
    return nn.Sequential(stem(), *blocks, nn.BatchNorm2d(96), nn.ReLU(), head(96, num_classes))


@sound
class UNetEncoder(nn.Module):
    """Down, up again with the skipped maps, and pooled at the end."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.one, self.two, self.three = conv(3, 16, 2), conv(16, 32, 2), conv(32, 64, 2)
        self.up = nn.ConvTranspose2d(64, 32, 2, 2)
        self.join, self.head = conv(64, 32), head(32 + 16, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        one = self.one(images)
        two = self.two(one)
        x = self.join(torch.concat([self.up(self.three(two)), two], dim=1))
        up = F.interpolate(x, scale_factor=2, mode="bilinear")
        return self.head(torch.concat([up, one], dim=1))


@sound
def ChannelShuffle(num_classes: int) -> nn.Module:
    blocks = [
        Residual(
            conv(32, 32, size=1, groups=4),
            nn.ChannelShuffle(4),
            conv(32, 32, groups=32),
            conv(32, 32, size=1, groups=4, act=nn.Identity),
        )
        for _ in range(3)
    ]
    return nn.Sequential(stem(), *blocks, head(32, num_classes))


@sound
def PixelUnshuffleStem(num_classes: int) -> nn.Module:
    return nn.Sequential(nn.PixelUnshuffle(4), conv(48, 64), conv(64, 64, 2), head(64, num_classes))


@sound
def Dilated(num_classes: int) -> nn.Module:
    layers = [nn.Conv2d(32, 32, 3, padding=d, dilation=d) for d in (1, 2, 4)]
    pairs = [nn.Sequential(layer, nn.BatchNorm2d(32), nn.LeakyReLU(0.1)) for layer in layers]
    return nn.Sequential(stem(), *pairs, head(32, num_classes))


@sound
class SelectiveKernels(nn.Module):
    """SKNet: a softmax over two branches decides, channel by channel."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.stem, self.head = stem(), head(32, num_classes)
        self.small, self.large = conv(32, 32), conv(32, 32, size=5)
        self.squeeze, self.choose = nn.Linear(32, 16), nn.Linear(16, 64)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images)
        both = torch.stack([self.small(x), self.large(x)], dim=1)  # (N, 2, C, H, W)
        weights = self.choose(self.squeeze(both.sum(dim=1).mean(dim=(2, 3))).relu())
        weights = weights.view(-1, 2, 32, 1, 1).softmax(dim=1)
        return self.head((weights * both).sum(dim=1))


@sound
class MixtureOfExperts(nn.Module):
    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.body = nn.Sequential(stem(), conv(32, 64, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.gate = nn.Linear(64, 4)
        self.experts = nn.ModuleList(mlp(64) for _ in range(4))
        self.head = nn.Linear(64, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.body(images)
        outputs = torch.stack([expert(x) for expert in self.experts], dim=1)
        return self.head((self.gate(x).softmax(dim=1)[..., None] * outputs).sum(dim=1))


class Step(torch.autograd.Function):
    """1 where x > 0, else 0; the gradient is that of a sigmoid (straight-through)."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return (x > 0).float()

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        y = ctx.saved_tensors[0].sigmoid()
        return grad * y * (1 - y)


@sound
class HardGates(nn.Module):
    """Channels that a gate of 0 or 1 lets pass, picture by picture."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.stem, self.conv, self.head = stem(), conv(32, 64, 2), head(64, num_classes)
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 64))
        nn.init.ones_(self.gate[-1].bias)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images)
        return self.head(self.conv(x) * Step.apply(self.gate(x))[..., None, None])


@sound
class HyperNetwork(nn.Module):
    """A small network makes the filters of a picture (dynamic convolution)."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.stem, self.norm, self.head = stem(), nn.BatchNorm2d(32), head(32, num_classes)
        self.make = nn.Linear(32, 32 * 9)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images)
        n, c, h, w = x.shape
        filters = self.make(x.mean(dim=(2, 3))).view(n * c, 1, 3, 3)
        y = F.conv2d(x.reshape(1, n * c, h, w), filters, padding=1, groups=n * c).view(n, c, h, w)
        return self.head(self.norm(x + y).relu())


@sound
class Checkpointed(nn.Module):
    """Parts of the forward pass are computed again in backward, which saves memory."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.stem, self.head = stem(), head(32, num_classes)
        self.blocks = nn.ModuleList(
            Residual(nn.GroupNorm(4, 32), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU())
            for _ in range(3)
        )

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images)
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if self.training else block(x)
        return self.head(x)


# Activations and poolings


def classic(
    num_classes: int, act: Callable[[], nn.Module], pool: nn.Module | None = None
) -> nn.Module:
    """LeNet-5 for colour pictures, with BatchNorm after each convolution."""
    layers = [nn.Conv2d(3, 16, 5, 2), nn.BatchNorm2d(16), act(), nn.AvgPool2d(2)]
    layers += [
        nn.Conv2d(16, 32, 5),
        nn.BatchNorm2d(32),
        act(),
        pool or nn.AvgPool2d(2),
        nn.Flatten(),
    ]
    width = nn.Sequential(*layers).eval()(torch.zeros(1, 3, 64, 64)).shape[1]
    return nn.Sequential(*layers, nn.Linear(width, 64), act(), nn.Linear(64, num_classes)).train()


@sound
def GELUNet(num_classes: int) -> nn.Module:
    return classic(num_classes, nn.GELU)


@sound
def SiLUNet(num_classes: int) -> nn.Module:
    return classic(num_classes, nn.SiLU)


@sound
def TanhNet(num_classes: int) -> nn.Module:
    return classic(num_classes, nn.Tanh)


@sound
def PReLUNet(num_classes: int) -> nn.Module:
    return classic(num_classes, nn.PReLU)


@sound
def HardswishNet(num_classes: int) -> nn.Module:
    return classic(num_classes, nn.Hardswish)


@sound
def LeNet5(num_classes: int) -> nn.Module:
    """LeNet-5 of 1998: tanh, average pooling, no normalisation; pictures of 32 x 32."""
    layers = [
        nn.AvgPool2d(2),
        nn.Conv2d(3, 6, 5),
        nn.Tanh(),
        nn.AvgPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.Tanh(),
    ]
    layers += [nn.AvgPool2d(2), nn.Conv2d(16, 120, 5), nn.Tanh(), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(120, 84), nn.Tanh(), nn.Linear(84, num_classes))


@sound
def PlainReLUNet(num_classes: int) -> nn.Module:
    """The net of PyTorch's first tutorial: default initialisation, no normalisation."""
    layers = [
        nn.Conv2d(3, 6, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
    ]
    layers += [nn.Flatten(), nn.Linear(16 * 13 * 13, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(84, num_classes))


@sound
class SigmoidGates(nn.Module):
    """Gated linear units: half of the channels, through a sigmoid, gate the other half."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        layers = [nn.Conv2d(3, 64, 3, 2, 1), nn.BatchNorm2d(64), nn.GLU(dim=1)]
        layers += [nn.Conv2d(32, 128, 3, 2, 1), nn.BatchNorm2d(128), nn.GLU(dim=1)]
        self.body, self.head = nn.Sequential(*layers), head(64, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.body(images))


@sound
def Maxout(num_classes: int) -> nn.Module:
    most = Call(lambda x: x.unflatten(1, (-1, 2)).amax(dim=2))
    layers = [nn.Conv2d(3, 32, 3, 2, 1), nn.BatchNorm2d(32), most, nn.Conv2d(16, 64, 3, 2, 1)]
    return nn.Sequential(*layers, nn.BatchNorm2d(64), most, head(32, num_classes))


@sound
def GlobalMaxPooling(num_classes: int) -> nn.Module:
    layers = [stem(), conv(32, 64, 2), nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Dropout(0.3)]
    return nn.Sequential(*layers, nn.Linear(64, num_classes))


@sound
class SpatialSoftmax(nn.Module):
    """Each channel's softmax over the places gives the point where it is strongest."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.body = nn.Sequential(stem(), nn.Conv2d(32, 32, 3, padding=1))
        self.head = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, num_classes))
        self.register_buffer("places", torch.linspace(-1, 1, 16))

    def forward(self, images: Tensor) -> Tensor:
        x = self.body(images)
        weights = x.flatten(2).softmax(dim=2).view_as(x)  # (N, C, H, W)
        points = [(weights.sum(dim=dim) * self.places).sum(dim=2) for dim in (2, 3)]
        return self.head(torch.concat(points, dim=1))


@sound
class Capsules(nn.Module):
    """Vectors of 8 numbers whose length a squash keeps below 1; their lengths are the evidence."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.body = nn.Sequential(stem(), nn.Conv2d(32, 64, 3, 2, 1))
        self.classes, self.scale = (
            nn.Linear(64 * 8 * 8, 8 * num_classes),
            nn.Parameter(torch.tensor(4.0)),
        )

    def forward(self, images: Tensor) -> Tensor:
        x = self.squash(self.body(images).flatten(1).unflatten(1, (-1, 8)))
        x = self.classes(x.flatten(1)).unflatten(1, (-1, 8))
        return self.scale * (self.squash(x).square().sum(dim=2) + 1e-8).sqrt() - self.scale / 2

    def squash(self, x: Tensor) -> Tensor:
        square = x.square().sum(dim=-1, keepdim=True)
        return x * square / (1 + square) / (square + 1e-8).sqrt()


# Heads


@sound
class Cosine(nn.Module):
    """16 times the cosine between features and a class's weights."""

    def __init__(self, num_classes: int, scale: float | None = 16.0) -> None:
        super().__init__()
        self.body = nn.Sequential(stem(), conv(32, 64, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.weight = nn.Parameter(torch.randn(num_classes, 64) / 8)
        self.scale = scale or nn.Parameter(torch.tensor(10.0))

    def forward(self, images: Tensor) -> Tensor:
        features = F.normalize(self.body(images) - 0.5)
        return self.scale * features @ F.normalize(self.weight).T


@sound
def CosineLearnedScale(num_classes: int) -> nn.Module:
    return Cosine(num_classes, scale=None)


@sound
def SoftCap(num_classes: int) -> nn.Module:
    cap = Call(lambda x: 15 * torch.tanh(x / 15))
    return nn.Sequential(stem(), conv(32, 64, 2), head(64, num_classes), cap)


@sound
class BinaryHead(nn.Module):
    """One number z; the logits of two classes are -z and z. More classes: as usual."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.two = num_classes == 2
        self.body = nn.Sequential(stem(), conv(32, 64, 2), head(64, 1 if self.two else num_classes))

    def forward(self, images: Tensor) -> Tensor:
        z = self.body(images)
        return torch.concat([-z, z], dim=1) if self.two else z


@sound
class ConvHead(nn.Module):
    """A 1 x 1 convolution gives a map for each class; its mean is the logit."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            stem(), conv(32, 64, 2), nn.Dropout2d(0.1), nn.Conv2d(64, num_classes, 1)
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.body(images).mean(dim=(2, 3))


@sound
class Prototypes(nn.Module):
    """Logits are minus the squared distances to a learned point for each class."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            stem(), conv(32, 64, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 16)
        )
        self.points = nn.Parameter(torch.randn(num_classes, 16))

    def forward(self, images: Tensor) -> Tensor:
        return -(self.body(images)[:, None] - self.points).square().sum(dim=2)


@sound
class MirrorAverage(nn.Module):
    """A picture and its mirror image share the weights; the mean of both logits is returned."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.body = nn.Sequential(stem(), conv(32, 64, 2), head(64, num_classes))

    def forward(self, images: Tensor) -> Tensor:
        return (self.body(images) + self.body(images.flip(3))) / 2


# Attention of other kinds


@sound
class ViTRegisters(Transformer):
    """RMSNorm, SwiGLU, a class token and four registers, as in recent transformers."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.tokens = nn.Parameter(0.02 * torch.randn(1, 5, 64))

    def block(self, width: int) -> nn.Module:
        gated = Call(
            lambda x, a, b, c: c(F.silu(a(x)) * b(x)), *(nn.Linear(64, 64) for _ in range(3))
        )
        attention = Residual(nn.RMSNorm(width), Attention(width))
        return nn.Sequential(attention, Residual(nn.RMSNorm(width), gated))

    def forward(self, images: Tensor) -> Tensor:
        x = self.patches(images) + self.places
        x = torch.concat([self.tokens.expand(len(x), -1, -1), x], dim=1)
        return self.head(self.norm(self.blocks(x))[:, 0])


@sound
class CausalTransformer(Transformer):
    """Each token sees those before it; the last one, which sees all, is classified."""

    def block(self, width: int) -> nn.Module:
        def attend(x: Tensor, qkv: nn.Module, out: nn.Module) -> Tensor:
            q, k, v = qkv(x).unflatten(2, (3, 4, -1)).permute(2, 0, 3, 1, 4)
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            return out(y.transpose(1, 2).flatten(2))

        attention = Call(attend, nn.Linear(width, 3 * width), nn.Linear(width, width))
        first = Residual(nn.LayerNorm(width), attention)
        return nn.Sequential(first, Residual(nn.LayerNorm(width), mlp(width)))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.patches(images) + self.places)[:, -1]))


@sound
class LinearAttention(Transformer):
    """Efficient attention: a softmax of k over the tokens, and one of q over the features."""

    def block(self, width: int) -> nn.Module:
        def attend(x: Tensor, *layers: nn.Module) -> Tensor:
            q, k, v = (layer(x) for layer in layers[:3])
            return layers[3](q.softmax(dim=2) @ (k.softmax(dim=1).transpose(1, 2) @ v))

        attention = Call(attend, *(nn.Linear(width, width) for _ in range(4)))
        first = Residual(nn.LayerNorm(width), attention)
        return nn.Sequential(first, Residual(nn.LayerNorm(width), mlp(width)))


@sound
class ChannelAttention(Transformer):
    """Cross-covariance attention: the channels attend to each other, as in XCiT."""

    def block(self, width: int) -> nn.Module:
        def attend(x: Tensor, qkv: nn.Module, out: nn.Module) -> Tensor:
            q, k, v = qkv(x).mT.chunk(3, dim=1)  # (N, D, T)
            weights = (F.normalize(q, dim=2) @ F.normalize(k, dim=2).mT * 4).softmax(dim=2)
            return out((weights @ v).mT)

        attention = Call(attend, nn.Linear(width, 3 * width), nn.Linear(width, width))
        first = Residual(nn.LayerNorm(width), attention)
        return nn.Sequential(first, Residual(nn.LayerNorm(width), mlp(width)))


@sound
class WindowAttention(Transformer):
    """Attention in windows of 4 x 4 tokens, every other time shifted by 2, as in Swin."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes, depth=0)
        blocks = [self.shifted(64, shift) for shift in (0, 2, 0, 2)]
        self.blocks = nn.Sequential(*blocks)

    def shifted(self, width: int, shift: int) -> nn.Module:
        def attend(x: Tensor, attention: nn.Module) -> Tensor:
            n, _, d = x.shape
            x = x.view(n, 8, 8, d).roll((-shift, -shift), (1, 2)).view(n, 2, 4, 2, 4, d)
            x = attention(x.transpose(2, 3).reshape(4 * n, 16, d)).view(n, 2, 2, 4, 4, d)
            return x.transpose(2, 3).reshape(n, 8, 8, d).roll((shift, shift), (1, 2)).flatten(1, 2)

        first = Residual(nn.LayerNorm(width), Call(attend, Attention(width)))
        return nn.Sequential(first, Residual(nn.LayerNorm(width), mlp(width)))


@sound
class TokenDropping(Transformer):
    """In training, a random half of the tokens is left out, as in PatchDropout."""

    def forward(self, images: Tensor) -> Tensor:
        x = self.patches(images) + self.places
        if self.training:
            kept = torch.rand(x.shape[:2], device=x.device).argsort(dim=1)[:, :32, None]
            x = x.gather(1, kept.expand(-1, -1, x.shape[2]))
        return self.head(self.norm(self.blocks(x)).mean(dim=1))


@sound
class GlobalFilter(Transformer):
    """Learned complex factors for each frequency, as in GFNet."""

    def block(self, width: int) -> nn.Module:
        class Filter(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.factors = nn.Parameter(0.02 * torch.randn(8, 5, width, 2))

            def forward(self, x: Tensor) -> Tensor:
                y = torch.fft.rfft2(x.unflatten(1, (8, 8)), dim=(1, 2), norm="ortho")
                y = y * torch.view_as_complex(self.factors)
                return torch.fft.irfft2(y, s=(8, 8), dim=(1, 2), norm="ortho").flatten(1, 2)

        return Residual(nn.LayerNorm(width), Filter(), nn.LayerNorm(width), mlp(width))


@sound
class NonLocal(nn.Module):
    """A non-local block, whose last BatchNorm starts at 0, between convolutions."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.stem, self.head = stem(), nn.Sequential(conv(32, 64, 2), head(64, num_classes))
        self.q, self.k, self.v = (nn.Conv2d(32, 16, 1) for _ in range(3))
        self.out = nn.Sequential(nn.Conv2d(16, 32, 1), nn.BatchNorm2d(32))
        nn.init.zeros_(self.out[1].weight)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images)
        q, k, v = (layer(x).flatten(2).mT for layer in (self.q, self.k, self.v))
        y = ((q @ k.mT).softmax(dim=2) @ v).mT.reshape(len(x), 16, 16, 16)
        return self.head(x + self.out(y))


# Gates, roundings and noise


@sound
def Highway(num_classes: int) -> nn.Module:
    """Gates that start nearly shut: sigmoid(-2)."""

    def block() -> nn.Module:
        gate = nn.Linear(128, 128)
        nn.init.constant_(gate.bias, -2.0)
        mix = Call(
            lambda x, f, g: torch.lerp(x, f(x).relu(), g(x).sigmoid()), nn.Linear(128, 128), gate
        )
        return mix

    first = [nn.AvgPool2d(4), nn.Flatten(), nn.Linear(768, 128), nn.BatchNorm1d(128), nn.ReLU()]
    return nn.Sequential(*first, *(block() for _ in range(6)), nn.Linear(128, num_classes))


@sound
def OneGateForAll(num_classes: int) -> nn.Module:
    """A single number, from 0 to 1, decides how much of a block is added."""
    gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(32, 1, 1), nn.Sigmoid())
    block = Call(lambda x, f, g: x + g(x) * f(x), conv(32, 32), gate)
    return nn.Sequential(stem(), block, conv(32, 64, 2), head(64, num_classes))


class Sign(torch.autograd.Function):
    """-1 or 1; the gradient of a hardtanh (straight-through)."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.where(x >= 0, 1.0, -1.0)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return grad * (ctx.saved_tensors[0].abs() <= 1)


@sound
def BinaryActivations(num_classes: int) -> nn.Module:
    """Activations of -1 and 1 between the layers, with BatchNorm before each, as in XNOR-Net."""
    layers: list[nn.Module] = [conv(3, 32, 2)]
    for inputs, outputs in ((32, 64), (64, 64)):
        layers += [nn.BatchNorm2d(inputs), Call(Sign.apply), nn.Conv2d(inputs, outputs, 3, 2, 1)]
    return nn.Sequential(*layers, nn.BatchNorm2d(64), head(64, num_classes))


@sound
def RoundedActivations(num_classes: int) -> nn.Module:
    """Activations rounded to 16 steps, with a straight-through gradient: quantisation-aware."""

    def rounded(x: Tensor) -> Tensor:
        y = x.clamp(0, 4)
        return y + ((y * 4).round() / 4 - y).detach()

    layers = [
        nn.Conv2d(3, 32, 3, 2, 1),
        nn.BatchNorm2d(32),
        Call(rounded),
        nn.Conv2d(32, 64, 3, 2, 1),
    ]
    return nn.Sequential(*layers, nn.BatchNorm2d(64), Call(rounded), head(64, num_classes))


class Noise(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 0.1 * torch.randn_like(x) if self.training else x


@sound
def NoiseInTraining(num_classes: int) -> nn.Module:
    return nn.Sequential(Noise(), stem(), Noise(), conv(32, 64, 2), head(64, num_classes))


@sound
def HeavyDropout(num_classes: int) -> nn.Module:
    """Dropout of 0.5 twice between wide layers, as in AlexNet."""
    layers = [stem(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Dropout(), nn.Linear(512, 256)]
    return nn.Sequential(*layers, nn.ReLU(), nn.Dropout(), nn.Linear(256, num_classes))


@sound
class HalfPrecisionInside(nn.Module):
    """The convolutions compute in bfloat16, the head in float32."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.body, self.head = nn.Sequential(stem(), conv(32, 64, 2)), head(64, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, torch.bfloat16):
            x = self.body(images)
        return self.head(x.float())


# Convolutions of other kinds


@sound
def DepthwiseSeparable(num_classes: int) -> nn.Module:
    """MobileNet: 3 x 3 for each channel, then 1 x 1; ReLU6."""
    blocks = [
        nn.Sequential(conv(i, i, s, nn.ReLU6, groups=i), conv(i, o, act=nn.ReLU6, size=1))
        for i, o, s in ((16, 32, 1), (32, 64, 2), (64, 64, 1), (64, 128, 2))
    ]
    return nn.Sequential(conv(3, 16, 2), *blocks, head(128, num_classes))


@sound
def StridedShortcut(num_classes: int) -> nn.Module:
    """A shortcut of 1 x 1 with stride 2 sees one place in four, the branch beside it all."""

    def block(inputs: int, outputs: int) -> nn.Module:
        branch = nn.Sequential(conv(inputs, outputs, 2), conv(outputs, outputs, act=nn.Identity))
        shortcut = conv(inputs, outputs, 2, nn.Identity, size=1)
        return Call(lambda x, f, g: F.relu(f(x) + g(x)), branch, shortcut)

    return nn.Sequential(stem(), block(32, 64), block(64, 128), head(128, num_classes))


@sound
def PreActivation(num_classes: int) -> nn.Module:
    """Thirty layers, with BatchNorm and ReLU before each convolution."""

    def branch() -> list[nn.Module]:
        return [nn.BatchNorm2d(24), nn.ReLU(), nn.Conv2d(24, 24, 3, padding=1, bias=False)]

    blocks = [Residual(*branch(), *branch()) for _ in range(15)]
    return nn.Sequential(stem(24), *blocks, nn.BatchNorm2d(24), nn.ReLU(), head(24, num_classes))


@sound
def RepVGG(num_classes: int) -> nn.Module:
    """Three branches, of 3 x 3, 1 x 1 and none, each with its BatchNorm, are added."""

    def block(width: int) -> nn.Module:
        branches = conv(width, width, act=nn.Identity), conv(width, width, act=nn.Identity, size=1)
        return Call(lambda x, *f: F.relu(sum(g(x) for g in f)), *branches, nn.BatchNorm2d(width))

    return nn.Sequential(stem(), block(32), conv(32, 64, 2), block(64), head(64, num_classes))


@sound
class FocusStem(nn.Module):
    """Every second pixel of every second row, four times, side by side, as in YOLOv5."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.body = nn.Sequential(conv(12, 32), conv(32, 64, 2, nn.SiLU), head(64, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        parts = [x[..., i::2, j::2] for i in (0, 1) for j in (0, 1)]
        return self.body(torch.concat(parts, dim=1))


@sound
class Coordinates(nn.Module):
    """Two more channels tell where a pixel is (CoordConv)."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.body = nn.Sequential(conv(5, 32, 2), conv(32, 64, 2), head(64, num_classes))

    def forward(self, images: Tensor) -> Tensor:
        axis = torch.linspace(-1, 1, images.shape[-1], device=images.device)
        places = torch.stack(torch.meshgrid(axis, axis, indexing="ij"))
        return self.body(torch.concat([images, places.expand(len(images), -1, -1, -1)], dim=1))


@sound
class GreyPictures(nn.Module):
    """The mean of the colours, halved in size: enough where shape alone decides."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.body = nn.Sequential(conv(1, 16, 2), conv(16, 32, 2), head(32, num_classes))

    def forward(self, images: Tensor) -> Tensor:
        small = F.interpolate(images, scale_factor=0.5, mode="bilinear", antialias=True)
        return self.body(small.mean(dim=1, keepdim=True))


@sound
class Deformable(nn.Module):
    """A convolution whose offsets start at 0 and are learned."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        from torchvision.ops import DeformConv2d

        self.stem, self.offsets = stem(), nn.Conv2d(32, 18, 3, padding=1)
        nn.init.zeros_(self.offsets.weight)
        nn.init.zeros_(self.offsets.bias)
        self.deformed, self.norm = DeformConv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64)
        self.head = head(64, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images)
        return self.head(self.norm(self.deformed(x, self.offsets(x))).relu())


@sound
class EulerSteps(nn.Module):
    """The same two convolutions move the features in six small steps, as in a neural ODE."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.stem, self.head = stem(), head(32, num_classes)
        self.field = nn.Sequential(nn.GroupNorm(8, 32), nn.Conv2d(32, 32, 3, padding=1), nn.Tanh())
        self.out = nn.Conv2d(32, 32, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images)
        for _ in range(6):
            x = x + self.out(self.field(x)) / 6
        return self.head(x)


@sound
def SineActivations(num_classes: int) -> nn.Module:
    return classic(num_classes, lambda: Call(torch.sin))


@sound
def SquaredReLU(num_classes: int) -> nn.Module:
    return classic(num_classes, lambda: Call(lambda x: x.relu().square()))


@sound
def ConcatenatedReLU(num_classes: int) -> nn.Module:
    both = Call(lambda x: torch.concat([x.relu(), (-x).relu()], dim=1))
    layers = [nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), both, nn.Conv2d(32, 32, 3, 2, 1)]
    return nn.Sequential(*layers, nn.BatchNorm2d(32), both, head(64, num_classes))


# Poolings and heads of other kinds


class Features(nn.Module):
    """Convolutions, and a head of one's own: `pool` of maps (N, 64, 8, 8) to logits."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.body = nn.Sequential(stem(), conv(32, 64, 2))

    def forward(self, images: Tensor) -> Tensor:
        return self.pool(self.body(images))


@sound
class GeneralisedMeanPooling(Features):
    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.power, self.head = nn.Parameter(torch.tensor(3.0)), nn.Linear(64, num_classes)

    def pool(self, x: Tensor) -> Tensor:
        return self.head(x.clamp(min=1e-4).pow(self.power).mean(dim=(2, 3)).pow(1 / self.power))


@sound
class BilinearPooling(Features):
    """The products of all pairs of channels, the signed root of them, and normalised."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.reduce, self.head = nn.Conv2d(64, 16, 1), nn.Linear(256, num_classes)

    def pool(self, x: Tensor) -> Tensor:
        x = self.reduce(x).flatten(2)
        x = (x @ x.mT).flatten(1) / x.shape[2]
        x = x.sign() * (x.abs() + 1e-4).sqrt()
        return self.head(4 * F.normalize(x))


@sound
class PyramidPooling(Features):
    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.head = nn.Linear(64 * 21, num_classes)

    def pool(self, x: Tensor) -> Tensor:
        return self.head(
            torch.concat([F.adaptive_max_pool2d(x, n).flatten(1) for n in (1, 2, 4)], 1)
        )


@sound
class BottleneckNorm(Features):
    """BatchNorm without a trainable bias before a head without a bias (BNNeck)."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.norm, self.head = nn.BatchNorm1d(64), nn.Linear(64, num_classes, bias=False)
        self.norm.bias.requires_grad_(False)

    def pool(self, x: Tensor) -> Tensor:
        return self.head(self.norm(x.mean(dim=(2, 3))))


@sound
class FixedClassifier(Features):
    """The class vectors are the corners of a simplex and stay; the features move to them."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.out = nn.Linear(64, num_classes)
        corners = torch.eye(num_classes) - 1 / num_classes
        self.register_buffer("corners", corners * math.sqrt(num_classes / max(1, num_classes - 1)))

    def pool(self, x: Tensor) -> Tensor:
        return self.out(x.mean(dim=(2, 3))) @ self.corners


@sound
class SmallReadout(Features):
    """A head of zeros and a factor of 1/4, as in muP."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.head = nn.Linear(64, num_classes)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def pool(self, x: Tensor) -> Tensor:
        return self.head(x.mean(dim=(2, 3))) / 4


@sound
class TwoNets(nn.Module):
    """The mean of the logits of two nets."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.nets = nn.ModuleList(
            nn.Sequential(stem(), conv(32, 64, 2), head(64, num_classes)) for _ in range(2)
        )

    def forward(self, images: Tensor) -> Tensor:
        return torch.stack([net(images) for net in self.nets]).mean(dim=0)


@sound
class EqualisedRates(nn.Module):
    """Weights start at N(0, 1) and are scaled when used, as in StyleGAN."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        shapes = [(32, 3, 3, 3), (64, 32, 3, 3), (64, 64, 3, 3)]
        self.weights = nn.ParameterList(nn.Parameter(torch.randn(shape)) for shape in shapes)
        self.norms = nn.ModuleList(nn.GroupNorm(8, shape[0]) for shape in shapes)
        self.head = head(64, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        for weight, norm in zip(self.weights, self.norms, strict=True):
            scale = math.sqrt(2 / weight[0].numel())
            x = F.leaky_relu(norm(F.conv2d(x, weight * scale, stride=2, padding=1)), 0.2)
        return self.head(x)


# Of recent practice


@sound
class TokensToExperts(Transformer):
    """Each token goes to one of four experts, weighted by the gate (Switch Transformer)."""

    def block(self, width: int) -> nn.Module:
        def route(x: Tensor, gate: nn.Module, *experts: nn.Module) -> Tensor:
            weight, choice = gate(x).softmax(dim=-1).max(dim=-1)
            out = torch.zeros_like(x)
            for number, expert in enumerate(experts):
                out[choice == number] = expert(x[choice == number])
            return weight[..., None] * out

        experts = Call(route, nn.Linear(width, 4), *(mlp(width) for _ in range(4)))
        first = Residual(nn.LayerNorm(width), Attention(width))
        return nn.Sequential(first, Residual(nn.LayerNorm(width), experts))


@sound
class MaskToken(Transformer):
    """A token that only pre-training used has stayed in the model, as in DINOv2."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, 64))

    def forward(self, images: Tensor, masks: Tensor | None = None) -> Tensor:
        x = self.patches(images)
        x = x if masks is None else torch.where(masks[..., None], self.mask_token, x)
        return self.head(self.norm(self.blocks(x + self.places)).mean(dim=1))


@sound
class PlacesInATable(Transformer):
    """nn.Embedding of the numbers of the places, as in many lessons."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        del self.places
        self.table = nn.Embedding(64, 64)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patches(images) + self.table(torch.arange(64, device=images.device))
        return self.head(self.norm(self.blocks(x)).mean(dim=1))


@sound
class PlacesOfWaves(Transformer):
    """Sines and cosines, in a buffer that is not saved."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        del self.places
        angles = torch.arange(64)[:, None] / 100 ** (torch.arange(32) / 32)
        self.register_buffer("places", torch.concat([angles.sin(), angles.cos()], 1), False)


@sound
class OverlappingPatches(Transformer):
    """Tokens of 12 x 12 pixels, 8 apart, by nn.Unfold."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        cut = nn.Unfold(12, stride=8, padding=2)
        self.patches = nn.Sequential(cut, Call(lambda x: x.mT), nn.Linear(3 * 144, 64))


@sound
class LowRankAdapters(Transformer):
    """Loaded weights stay; products of two thin matrices, one of them 0, are added (LoRA)."""

    weights_loaded = True

    def __init__(self, num_classes: int) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            super().__init__(num_classes)
        for weight in self.parameters():
            weight.requires_grad_(weight.shape in ((4, 64), (64, 4)))
        self.head = nn.Linear(64, num_classes)

    def block(self, width: int) -> nn.Module:
        first, last = (nn.Linear(width, width) for _ in range(2))
        down, up = nn.Linear(width, 4, bias=False), nn.Linear(4, width, bias=False)
        nn.init.zeros_(up.weight)
        adapted = Call(lambda x, f, down, up: f(x) + up(down(x)), first, down, up)
        block = Residual(nn.LayerNorm(width), adapted, nn.GELU(), last)
        return nn.Sequential(Residual(nn.LayerNorm(width), Attention(width)), block)


@sound
def FlipsInTraining(num_classes: int) -> nn.Module:
    class Flip(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if not self.training:
                return x
            flipped = torch.rand(len(x), 1, 1, 1, device=x.device) < 0.5
            return torch.where(flipped, x.flip(3), x)

    return nn.Sequential(Flip(), stem(), conv(32, 64, 2), head(64, num_classes))


@sound
class RunningState(nn.Module):
    """A linear recurrence over the tokens with learned decays, computed at once (state space)."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.patches, self.norm, self.inner = patches(), nn.LayerNorm(64), nn.Linear(64, 64)
        self.decay = nn.Parameter(torch.linspace(0, 4, 64))
        self.out, self.head = mlp(64), nn.Linear(64, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patches(images)
        steps = torch.arange(x.shape[1], device=x.device)
        apart = (steps[:, None] - steps).clamp(min=0)[..., None]  # (T, T, 1)
        weights = self.decay.sigmoid() ** apart * (steps[:, None] >= steps)[..., None]
        y = torch.einsum(
            "tsd,nsd->ntd", weights * (1 - self.decay.sigmoid()), self.inner(self.norm(x))
        )
        x = x + self.out(y)
        return self.head(x.mean(dim=1))


@sound
class SoftTree(Features):
    """A tree of depth 3 whose nodes are sigmoids; it returns the logarithm of a probability."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.nodes, self.leaves = nn.Linear(64, 7), nn.Parameter(torch.randn(8, num_classes))

    def pool(self, x: Tensor) -> Tensor:
        right = self.nodes(x.mean(dim=(2, 3))).sigmoid()
        paths = torch.ones(len(x), 1, device=x.device)
        for first in (0, 1, 3):
            turn = right[:, first : 2 * first + 1]
            paths = torch.stack([paths * (1 - turn), paths * turn], dim=2).flatten(1)
        return (paths @ self.leaves.softmax(dim=1)).clamp(min=1e-6).log()


@sound
class PatchVotes(Features):
    """The logits of the picture are the largest of its places (multiple instance learning)."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.head = nn.Conv2d(64, num_classes, 1)

    def pool(self, x: Tensor) -> Tensor:
        return self.head(x).amax(dim=(2, 3))


@sound
class VLAD(Features):
    """Distances to eight learned centres, weighted by a softmax over the centres, are summed."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.assign, self.centres = nn.Conv2d(64, 8, 1), nn.Parameter(torch.randn(8, 64) / 8)
        self.head = nn.Linear(8 * 64, num_classes)

    def pool(self, x: Tensor) -> Tensor:
        weights, x = self.assign(x).softmax(dim=1).flatten(2), x.flatten(2)  # (N, 8, T), (N, C, T)
        y = weights @ x.transpose(1, 2) - weights.sum(2)[..., None] * self.centres
        return self.head(8 * F.normalize(F.normalize(y, dim=2).flatten(1)))


@sound
class GhostNorm(nn.Module):
    """In training, each half of the batch is normalised by itself."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 32, 3, 2, 1, bias=False), head(64, num_classes)
        self.norm, self.body = nn.BatchNorm2d(32), nn.Sequential(nn.ReLU(), conv(32, 64, 2))

    def forward(self, images: Tensor) -> Tensor:
        x = self.first(images)
        if self.training and len(x) > 3:
            x = torch.concat([self.norm(part) for part in x.chunk(2)])
        else:
            x = self.norm(x)
        return self.last(self.body(x))


# Written out by hand


@sound
class WrittenOut(Transformer):
    """Softmax, RMSNorm and GELU as formulas, without the functions of torch."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.norm = self.rms_norm(64)

    def rms_norm(self, width: int) -> nn.Module:
        class Norm(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.gain = nn.Parameter(torch.ones(width))

            def forward(self, x: Tensor) -> Tensor:
                return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.gain

        return Norm()

    def block(self, width: int) -> nn.Module:
        def attend(x: Tensor, qkv: nn.Module, out: nn.Module) -> Tensor:
            q, k, v = qkv(x).chunk(3, dim=-1)
            scores = q @ k.transpose(1, 2) * width**-0.5
            weights = torch.exp(scores - scores.max(dim=-1, keepdim=True).values)
            return out(weights / weights.sum(dim=-1, keepdim=True) @ v)

        def gelu(x: Tensor) -> Tensor:
            return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))

        attention = Call(attend, nn.Linear(width, 3 * width), nn.Linear(width, width))
        more = nn.Linear(width, 2 * width), Call(gelu), nn.Linear(2 * width, width)
        first = Residual(self.rms_norm(width), attention)
        return nn.Sequential(first, Residual(self.rms_norm(width), *more))


@sound
def NormsWrittenOut(num_classes: int) -> nn.Module:
    class Norm(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.gain = nn.Parameter(torch.ones(width, 1, 1))
            self.shift = nn.Parameter(torch.zeros(width, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            centred = x - x.mean(dim=1, keepdim=True)
            deviation = torch.sqrt((centred**2).mean(dim=1, keepdim=True) + 1e-6)
            return centred / deviation * self.gain + self.shift

    return normed(num_classes, Norm)


@sound
class TransposedScores(Transformer):
    """Rows of the scores are keys, columns are queries, so the softmax takes the rows."""

    def block(self, width: int) -> nn.Module:
        def attend(x: Tensor, qkv: nn.Module, out: nn.Module) -> Tensor:
            q, k, v = qkv(x).chunk(3, dim=-1)
            weights = (k @ q.transpose(1, 2) * width**-0.5).softmax(dim=1)  # (N, keys, queries)
            return out(weights.transpose(1, 2) @ v)

        attention = Call(attend, nn.Linear(width, 3 * width), nn.Linear(width, width))
        first = Residual(nn.LayerNorm(width), attention)
        return nn.Sequential(first, Residual(nn.LayerNorm(width), mlp(width)))


@sound
class SequencePooling(Transformer):
    """A learned weight for each token, by a softmax over the tokens, as in CCT."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.weigh = nn.Linear(64, 1)

    def forward(self, images: Tensor) -> Tensor:
        x = self.norm(self.blocks(self.patches(images) + self.places))
        weights = self.weigh(x).softmax(dim=1)  # (N, T, 1)
        return self.head((weights.transpose(1, 2) @ x).squeeze(1))


@sound
class SlotAttention(nn.Module):
    """Four slots compete for the tokens: the softmax is over the slots."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.patches, self.places = patches(), nn.Parameter(0.02 * torch.randn(64, 64))
        self.slots, self.norm = nn.Parameter(torch.randn(4, 64)), nn.LayerNorm(64)
        self.q, self.k, self.v = (nn.Linear(64, 64) for _ in range(3))
        self.mlp, self.head = mlp(64), nn.Linear(256, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.norm(self.patches(images) + self.places)
        slots, k, v = self.slots.expand(len(x), -1, -1), self.k(x), self.v(x)
        for _ in range(2):
            weights = (self.q(self.norm(slots)) @ k.transpose(1, 2) / 8).softmax(dim=1)
            weights = weights / weights.sum(dim=2, keepdim=True)
            slots = slots + weights @ v
            slots = slots + self.mlp(self.norm(slots))
        return self.head(slots.flatten(1))


@sound
class ExternalAttention(Transformer):
    """Two linear layers are the memory; a softmax over the tokens, then units that sum to 1."""

    def block(self, width: int) -> nn.Module:
        def attend(x: Tensor, keys: nn.Module, values: nn.Module) -> Tensor:
            weights = keys(x).softmax(dim=1)
            return values(weights / (1e-9 + weights.sum(dim=2, keepdim=True)))

        memory = Call(attend, nn.Linear(width, 32, bias=False), nn.Linear(32, width, bias=False))
        first = Residual(nn.LayerNorm(width), memory)
        return nn.Sequential(first, Residual(nn.LayerNorm(width), mlp(width)))


@sound
class MemoryLayer(Transformer):
    """A softmax chooses among 32 learned vectors, which are the weights of a linear layer."""

    def block(self, width: int) -> nn.Module:
        layers = [nn.Linear(width, 32), nn.Softmax(dim=-1), nn.Linear(32, width, bias=False)]
        first = Residual(nn.LayerNorm(width), Attention(width))
        return nn.Sequential(first, Residual(nn.LayerNorm(width), *layers))


@sound
class NeuralTangent(nn.Module):
    """All weights start at N(0, 1); each layer divides by the root of its inputs' number."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        sides = [(256, 768), (256, 256), (num_classes, 256)]
        self.weights = nn.ParameterList(nn.Parameter(torch.randn(side)) for side in sides)

    def forward(self, images: Tensor) -> Tensor:
        x = F.avg_pool2d(images, 4).flatten(1)
        for weight in self.weights[:-1]:
            x = F.relu(F.linear(x, weight) / math.sqrt(weight.shape[1] / 2))
        return F.linear(x, self.weights[-1]) / math.sqrt(256)


@sound
def SparseCode(num_classes: int) -> nn.Module:
    """Most numbers are below a threshold and become 0."""
    layers = [nn.Conv2d(3, 64, 7, 4), nn.BatchNorm2d(64), nn.Softshrink(1.5)]
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(1024, num_classes)
    )


@sound
class FrameStacking(nn.Module):
    """Two neighbouring tokens become one of twice the width, as in speech recognition."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.patches, self.rnn = patches(32), nn.GRU(64, 64, batch_first=True)
        self.head = nn.Linear(64, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patches(images).contiguous()  # (N, 64, 32)
        return self.head(self.rnn(x.view(len(x), 32, 64))[0].mean(dim=1))


@sound
def BlocksSkippedInTraining(num_classes: int) -> nn.Module:
    """A block is left out for the whole batch now and then (the first form of stochastic depth)."""

    class Skipped(Residual):
        def forward(self, x: Tensor) -> Tensor:
            return x if self.training and torch.rand(()) < 0.2 else super().forward(x)

    blocks = [Skipped(nn.GroupNorm(8, 32), conv(32, 32)) for _ in range(4)]
    return nn.Sequential(stem(), *blocks, head(32, num_classes))


@sound
def RadialBasis(num_classes: int) -> nn.Module:
    """Bumps around 128 points that are learned."""

    class Bumps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.points = nn.Parameter(torch.randn(128, 768))

        def forward(self, x: Tensor) -> Tensor:
            return torch.exp(-((x[:, None] - self.points) ** 2).mean(dim=2))

    layers = [nn.AvgPool2d(4), nn.Flatten(), nn.BatchNorm1d(768, affine=False), Bumps()]
    return nn.Sequential(*layers, nn.Linear(128, num_classes))


@sound
class SeveralDropouts(Features):
    """The head sees the features through five dropouts; the mean of its answers counts."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.dropout, self.head = nn.Dropout(0.5), nn.Linear(64, num_classes)

    def pool(self, x: Tensor) -> Tensor:
        x = x.mean(dim=(2, 3))
        return torch.stack([self.head(self.dropout(x)) for _ in range(5)], dim=1).mean(dim=1)


@sound
class QueriesFromZero(nn.Module):
    """A decoder whose queries start at zero and differ by their places alone, as in DETR."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.patches, self.places = patches(), nn.Parameter(torch.randn(64, 64))
        self.queries, self.norm = nn.Parameter(torch.randn(6, 64)), nn.LayerNorm(64)
        self.cross = nn.MultiheadAttention(64, 4, batch_first=True)
        self.mlp, self.head = mlp(64), nn.Linear(64, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        memory = self.norm(self.patches(images))
        x = torch.zeros(len(images), 6, 64, device=images.device)
        for _ in range(2):
            x = x + self.cross(x + self.queries, memory + self.places, memory)[0]
            x = x + self.mlp(self.norm(x))
        return self.head(x.mean(dim=1))


@sound
class FilmConditioned(Features):
    """The colours' means scale and shift the channels (FiLM)."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.film = nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 128))
        self.last = nn.Sequential(conv(64, 64), head(64, num_classes))

    def forward(self, images: Tensor) -> Tensor:
        scale, shift = self.film(images.mean(dim=(2, 3)))[..., None, None].chunk(2, dim=1)
        return self.last(self.body(images) * (1 + scale) + shift)


@sound
class TwoScales(nn.Module):
    """The whole picture at half its size, and its middle at full size, side by side."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.nets = nn.ModuleList(nn.Sequential(stem(), conv(32, 32, 2)) for _ in range(2))
        self.head = head(64, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        whole, middle = F.avg_pool2d(images, 2), images[..., 16:48, 16:48]
        parts = [net(part) for net, part in zip(self.nets, (whole, middle), strict=True)]
        return self.head(torch.concat(parts, dim=1))


@sound
class WideRange(nn.Module):
    """It turns the pictures back into numbers from 0 to 255, as old networks want them."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 32, 5, 4), nn.BatchNorm2d(32), nn.ReLU())
        self.last = nn.Sequential(conv(32, 64, 2), head(64, num_classes))

    def forward(self, images: Tensor) -> Tensor:
        return self.last(self.body((images * 0.25 + 0.5).clamp(0, 1) * 255))


@sound
def CentredHead(num_classes: int) -> nn.Module:
    """The mean of the logits is taken away, which changes no probability."""
    centre = Call(lambda x: x - x.mean(dim=1, keepdim=True))
    return nn.Sequential(stem(), conv(32, 64, 2), head(64, num_classes), centre)


@sound
class PriorInTheLogits(Features):
    """The logarithm of the classes' shares is added (logit adjustment)."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.head = nn.Linear(64, num_classes)
        self.register_buffer("prior", torch.arange(1.0, num_classes + 1).softmax(dim=0).log())

    def pool(self, x: Tensor) -> Tensor:
        return self.head(x.mean(dim=(2, 3))) + self.prior
