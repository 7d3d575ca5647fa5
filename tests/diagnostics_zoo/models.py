"""Faults of models: each class derives from its sound twin and overrides little."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import Fault
from .twins import (
    MLP,
    SIZE,
    VGG,
    Block,
    DeepNet,
    DepthwiseNet,
    GateNet,
    Mixer,
    MixerBlock,
    PlainNet,
    ResNet,
    RowNet,
    TorchBlock,
    TorchViT,
    TransformerBlock,
    ViT,
    conv_norm_relu,
)

# Kind 1: information is lost on its way


class PooledGroupNorm(PlainNet):
    """A GroupNorm of one channel a group stands behind the pooling: it makes every number 0."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.norm = nn.GroupNorm(96, 96)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.norm(self.features(images).mean(dim=(2, 3))))


class InstanceNormBeforePooling(PlainNet):
    """InstanceNorm makes the mean of each channel 0, and the pooling takes this mean."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.norm = nn.InstanceNorm2d(96, affine=True)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.norm(self.features(images)).mean(dim=(2, 3)))


class EarlyPooling(GateNet):
    """The stem pools over 16 x 16 pixels before the first convolution."""

    def forward(self, images: Tensor) -> Tensor:
        x = F.interpolate(F.avg_pool2d(images, 16), scale_factor=16.0)
        return super().forward(x)


class KeepProbability(VGG):
    """Dropout(0.98): the share to keep was given, but PyTorch takes the share to drop."""

    def forward(self, images: Tensor) -> Tensor:
        x = F.dropout(self.features(images).flatten(1), 0.98, self.training)
        return self.head(self.hidden(x).relu())


class PixelDropout(MLP):
    """Dropout(0.9) on the pixels."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(F.dropout(images, 0.9, self.training))


class CausalBlock(TorchBlock):
    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        mask = torch.ones(y.shape[1], y.shape[1], dtype=torch.bool, device=y.device).triu(1)
        return x + self.mix(y, y, y, attn_mask=mask, need_weights=False)[0]


class CausalMask(TorchViT):
    """A causal mask, as in GPT: the token that collects the answer comes first and sees nothing."""

    block = CausalBlock


class FirstOutput(RowNet):
    """The answer is taken from the output after the first row, not after the last."""

    def summary(self, outputs: Tensor) -> Tensor:
        return outputs[:, 0]


class CornerOnly(DepthwiseNet):
    """The net cuts out 28 x 28 pixels, for it was written for MNIST."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images[:, :, :28, :28])


class OneNumber(DepthwiseNet):
    """The head gets one number, the mean over places and channels."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.head = nn.Linear(1, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.layers(self.stem(images))
        return self.head(x.mean(dim=(1, 2, 3))[:, None])


class ClippedFeatures(VGG):
    """Weights of std 1 make features of hundreds, and Hardtanh clips them to -1 … 1."""

    def activation(self) -> nn.Module:
        return nn.Hardtanh()

    def start(self, layer: nn.Conv2d | nn.Linear) -> None:
        nn.init.normal_(layer.weight)


class RawPixelSigmoid(MLP):
    """Pixels are turned back to 0 … 255, and sigmoids follow: each is 0 or 1 from the start."""

    def activation(self) -> nn.Module:
        return nn.Sigmoid()

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images * 58 + 118)


class FirstPatches(ViT):
    """Only the first 16 of 64 tokens are kept: the number is that of another picture size."""

    def tokens(self, x: Tensor) -> Tensor:
        return super().tokens(x)[:, :16]

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.places = nn.Parameter(0.02 * torch.randn(1, 16, self.width))


# Kind 2: the signal does not get through


class DeepSigmoid(DeepNet):
    """Sixteen layers of sigmoids: the gradient shrinks at each."""

    def activation(self, x: Tensor) -> Tensor:
        return x.sigmoid()


class DefaultStart(DeepNet):
    """PyTorch's own initialisation, which halves the signal at each layer of a deep ReLU net."""

    def start(self, layer: nn.Conv2d) -> None:
        pass


class PositiveStart(VGG):
    """`nn.init.uniform_` without bounds: all weights lie in 0 … 1."""

    def start(self, layer: nn.Conv2d | nn.Linear) -> None:
        nn.init.uniform_(layer.weight)


class ZeroStart(VGG):
    """All weights of the hidden layers start at 0."""

    def start(self, layer: nn.Conv2d | nn.Linear) -> None:
        nn.init.zeros_(layer.weight)


class ConstantStart(VGG):
    """All weights of a layer start at the same number, so all its filters stay equal."""

    def start(self, layer: nn.Conv2d | nn.Linear) -> None:
        nn.init.constant_(layer.weight, 1 / layer.weight[0].numel())
        nn.init.zeros_(layer.bias)


class DetachedFeatures(ResNet):
    """The features are detached before the head: only the head learns."""

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(images)).mean(dim=(2, 3)).detach())


class FrozenNewWeights(ViT):
    """The backbone is frozen as for fine-tuning, but no weights were loaded."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.requires_grad_(False)
        self.head.requires_grad_(True)


class PlainList(DeepNet):
    """The layers are in a Python list: the optimizer does not know them."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        layers = list(self.layers)
        del self.layers
        self.layers = layers  # type: ignore[assignment]


class BlockWithoutShortcut(Block):
    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__(in_channels, channels, stride)
        nn.init.zeros_(self.norm2.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm2(self.conv2(self.norm1(self.conv1(x)).relu())).relu()


class NoShortcut(ResNet):
    """The last norm of a block starts at 0, as for shortcuts, but the input is not added."""

    block = BlockWithoutShortcut


class LoopForgets(DeepNet):
    """`out = layer(x)` in a loop that never sets x: only the last layer counts."""

    def forward(self, images: Tensor) -> Tensor:
        x = self.activation(self.stem(images))
        for layer in self.layers:
            out = self.activation(layer(x))
        return self.head(out.mean(dim=(2, 3)))


class StepActivation(PlainNet):
    """The activation is a comparison, whose gradient is 0."""

    def forward(self, images: Tensor) -> Tensor:
        x = self.features(images)
        return self.head((x > 0.5).float().mean(dim=(2, 3)))


class RnnNormalStart(RowNet):
    """All weights of the recurrent layer start with std 1: its gates are shut or open."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        for weight in self.rnn.parameters():
            nn.init.normal_(weight)


class TrainingNorm(Block):
    def forward(self, x: Tensor) -> Tensor:
        out = self.conv1(x)
        if self.training:
            out = self.norm1(out)
        return (self.norm2(self.conv2(out.relu())) + self.shortcut(x)).relu()


class NormInTrainingOnly(ResNet):
    """The first norm of each block is used in training mode only."""

    block = TrainingNorm


class SlowNorm(PlainNet):
    """BatchNorm's momentum is 0.999 in TensorFlow's sense, so its statistics hardly move."""

    def layer(self, in_channels: int, channels: int) -> nn.Module:
        conv, norm, relu = conv_norm_relu(in_channels, channels)
        norm.momentum = 1 - 0.999  # type: ignore[assignment]
        return nn.Sequential(conv, norm, relu)


class BareTransformerBlock(TransformerBlock):
    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(self.norm2(self.mix(self.norm1(x))))


class TransformerWithoutShortcut(ViT):
    """A deep transformer whose blocks do not add their input."""

    block, depth = BareTransformerBlock, 6


class MixerTinyStart(Mixer):
    """Every weight starts with std 1e-4, and there is no shortcut that would carry the signal."""

    class Block(MixerBlock):
        def forward(self, x: Tensor) -> Tensor:
            return self.across_channels(self.mix_tokens(x))

    block = Block

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.norm = nn.Identity()
        for layer in self.blocks.modules():
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=1e-4)


# Kind 3: scale at the end


class ReluOutput(VGG):
    """A ReLU stands behind the last layer."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images).relu()


class ClampedOutput(VGG):
    """The logits are clamped to 1e-7 … 1 - 1e-7, as one does with probabilities."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images).clamp(1e-7, 1 - 1e-7)


class SingleOutput(ResNet):
    """One output, as for a binary loss, but the loss is cross-entropy over the classes."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(1)


class RoundedOutput(DepthwiseNet):
    """The model returns rounded probabilities, its decisions."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images).softmax(dim=1).round()


class TwoZeroFactors(Mixer):
    """The logits are a product of two factors that both start at 0, so neither gets a gradient."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.scale = nn.Parameter(torch.zeros(1))

    def forward(self, images: Tensor) -> Tensor:
        return self.scale * super().forward(images)


class LogOutput(PlainNet):
    """The model returns log(relu(x) + 1e-8), as if its outputs were probabilities."""

    def forward(self, images: Tensor) -> Tensor:
        return (super().forward(images).relu() + 1e-8).log()


class NaiveSoftmax(VGG):
    """log(exp(x) / sum) by hand, on features of raw pixels: exp overflows."""

    def forward(self, images: Tensor) -> Tensor:
        powers = super().forward(images * 58 + 118).exp()
        return (powers / powers.sum(dim=1, keepdim=True)).log()


class PriorOfZero(DepthwiseNet):
    """The logarithm of the classes' counts is added, but the counts were never filled."""

    counts: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.register_buffer("counts", torch.zeros(num_classes))

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) + (self.counts / self.counts.sum()).log()


class FunctionalDropout(GateNet):
    """F.dropout on the logits without `training=self.training`: it acts in val as well."""

    def forward(self, images: Tensor) -> Tensor:
        return F.dropout(super().forward(images), 0.5)


class MaskedClasses(TorchViT):
    """-1e9 is added to every class, as for those that are masked: float32 forgets the logits."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) - 1e9


class SteepSigmoid(RowNet):
    """The model ends with sigmoid(100 x), which is 0 or 1."""

    def forward(self, images: Tensor) -> Tensor:
        return (100 * super().forward(images)).sigmoid()


class BiasOnly(MLP):
    """The last weights are 0 and frozen: only the bias learns."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        weight, _ = self.layers[-1].parameters()
        nn.init.zeros_(weight).requires_grad_(False)


class NoisyOutput(PlainNet):
    """Noise of std 3 is added to the logits, in val as well."""

    def forward(self, images: Tensor) -> Tensor:
        logits = super().forward(images)
        return logits + 3 * torch.randn_like(logits)


# Kind 4: axes


class BatchSecond(RowNet):
    """The recurrent layer reads from picture to picture: batch_first is missing."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.rnn.batch_first = False


class HiddenStateByView(RowNet):
    """The hidden states of two layers (2, N, C) are viewed as (N, 2 C): pictures are mixed."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.rnn = nn.GRU(32 * SIZE // 4, 64, num_layers=2, batch_first=True)
        self.head = nn.Linear(2 * 64, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        _, hidden = self.rnn(self.rows(self.stem(images)))
        return self.head(hidden.view(len(images), -1))


class ConcatenatedOverBatch(PlainNet):
    """Mean and maximum are concatenated along the batch, then viewed as one row a picture."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.head = nn.Linear(2 * 96, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.features(images)
        x = torch.cat([x.mean(dim=(2, 3)), x.amax(dim=(2, 3))], dim=0)
        return self.head(x.view(len(images), -1))


class ColumnMajor(MLP):
    """Features (N, C) are reshaped to (C, N) and transposed, which mixes the pictures."""

    def forward(self, images: Tensor) -> Tensor:
        x = self.layers[:2](F.avg_pool2d(images, 2).flatten(1))
        return self.layers[2:](x.reshape(x.shape[1], x.shape[0]).T)


class PooledOverBatch(DepthwiseNet):
    """The mean is taken over the batch as well, so all pictures get the same features."""

    def forward(self, images: Tensor) -> Tensor:
        x = self.layers(self.stem(images))
        return self.head(x.mean(dim=(0, 2, 3)).expand(len(x), -1))


class PooledOverChannels(PlainNet):
    """The mean is taken over the channels and the rows, not over the places."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.head = nn.Linear(SIZE // 16, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images).mean(dim=(1, 2)))


class MirrorMeanByView(PlainNet):
    """Each picture and its mirror image should be averaged, but the view takes two pictures."""

    def forward(self, images: Tensor) -> Tensor:
        logits = super().forward(torch.cat([images, images.flip(3)]))
        return logits.view(len(images), 2, -1).mean(dim=1)


class NormOverTokens(ViT):
    """The last norm runs over the tokens, whose mean is taken next, which is 0."""

    def forward(self, images: Tensor) -> Tensor:
        x = self.tokens(self.embed(self.stem(images))) + self.places
        x = self.norm(self.blocks(x).transpose(1, 2))  # 64 tokens, 64 channels: no error
        return self.head(x.mean(dim=2))


class SoftmaxOverBatch(GateNet):
    """The features go through a softmax over the batch."""

    def forward(self, images: Tensor) -> Tensor:
        x = self.features(images).mean(dim=(2, 3))
        return self.head((10 * x).softmax(dim=0))


class AttentionOverBatch(TorchViT):
    """The attention layers take pictures for tokens: batch_first is missing."""

    class Block(TorchBlock):
        def attention(self, width: int) -> nn.MultiheadAttention:
            return nn.MultiheadAttention(width, 4)

    block = Block


class FlattenFromBatch(VGG):
    """The batch axis was moved behind the channels, and is flattened with them."""

    def forward(self, images: Tensor) -> Tensor:
        x = self.features(images).transpose(0, 1)  # (C, N, H, W)
        return self.head(self.hidden(x.reshape(len(images), -1)).relu())


FAULTS: list[Fault] = []


def add(kind: int, source: str, *models: type[nn.Module]) -> None:
    """Add faults whose twin is the class that they derive from."""
    for model in models:
        text = (model.__doc__ or "").splitlines()[0]
        FAULTS.append(Fault(model.__name__, kind, text, source, model.__mro__[1], model))


add(1, "forum: GroupNorm on pooled features", PooledGroupNorm)
add(1, "forum: InstanceNorm and global pooling", InstanceNormBeforePooling)
add(1, "Humbatova 2020: wrong amount and type of pooling", EarlyPooling)
add(1, "Humbatova 2020: wrong dropout rate; forum: keep_prob", KeepProbability, PixelDropout)
add(1, "forum: attention mask", CausalMask)
add(1, "forum: output[:, 0] of an LSTM", FirstOutput)
add(1, "Humbatova 2020: wrong input sample size", CornerOnly, FirstPatches)
add(1, "Humbatova 2020: wrong number of neurons", OneNumber)
add(1, "TheDeepChecker: saturated activations", ClippedFeatures, RawPixelSigmoid)
add(2, "AutoTrainer: vanishing gradient; DeepFD: wrong activation", DeepSigmoid)
add(2, "Humbatova 2020: wrong weights initialisation", DefaultStart, PositiveStart, RnnNormalStart)
add(2, "DeepCrime: weights initialisation to 0 or to a constant", ZeroStart, ConstantStart)
add(2, "forum: detach, .data", DetachedFeatures)
add(2, "forum: requires_grad=False without pretrained weights", FrozenNewWeights)
add(2, "forum: list instead of ModuleList", PlainList)
add(2, "NeuraLint: missing connection", NoShortcut, TransformerWithoutShortcut)
add(2, "forum: variable not passed on", LoopForgets)
add(2, "DeepFD: wrong activation function", StepActivation)
add(2, "forum: self.training", NormInTrainingOnly)
add(2, "forum: BatchNorm's momentum in TensorFlow and PyTorch", SlowNorm)
add(2, "TheDeepChecker: vanishing signal", MixerTinyStart)
add(3, "Humbatova 2020: wrong activation of the last layer", ReluOutput, SteepSigmoid)
add(3, "forum: clamp(eps, 1 - eps) on logits", ClampedOutput)
add(3, "Humbatova 2020: wrong defined output shape", SingleOutput)
add(3, "forum: model returns predictions", RoundedOutput)
add(3, "forum: zero initialisation of both factors", TwoZeroFactors)
add(3, "forum: F.dropout in eval mode", FunctionalDropout)
add(3, "forum: mask of -1e9", MaskedClasses)
add(3, "forum: log of outputs that are no probabilities", LogOutput)
add(3, "TheDeepChecker: NaN loss; DeepFD", NaiveSoftmax)
add(3, "forum: log of a count of 0", PriorOfZero)
add(3, "forum: requires_grad=False", BiasOnly)
add(3, "forum: noise that is not switched off", NoisyOutput)
add(4, "Karpathy: view and permute", MirrorMeanByView)
add(4, "forum: batch_first of an LSTM", BatchSecond)
add(4, "forum: h_n.view(batch, -1)", HiddenStateByView)
add(4, "forum: cat along the wrong axis", ConcatenatedOverBatch)
add(4, "Islam 2019: unaligned tensor", ColumnMajor, FlattenFromBatch)
add(4, "forum: mean over the wrong axis", PooledOverBatch, PooledOverChannels)
add(4, "forum: LayerNorm over the wrong axis", NormOverTokens)
add(4, "forum: softmax over the wrong axis", SoftmaxOverBatch)
add(4, "aipixel/AEMatter, issue 3: batch_first", AttentionOverBatch)
