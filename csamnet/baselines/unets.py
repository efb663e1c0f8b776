"""Encoder-decoder networks of convolutions: U-Net and those that grew out of it."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from csamnet.baselines.blocks import Baseline, double, double_conv, up_conv
from csamnet.model import conv_bn_relu, dw, pw


class UNet(Baseline):
    """U-Net: Ronneberger et al., MICCAI 2015, arXiv 1505.04597.

    Encoder: five levels of two 3 x 3 convolutions with batch norm, `width` to 16 `width` channels, max-pooling between.
    Decoder: nearest-neighbour doubling and a 3 x 3 convolution in place of the transposed one, the skip concatenated,
    two convolutions. Convolutions are padded. Head: one 1 x 1 convolution to two classes.

    Full size: `width` 64 and five `levels`, as in the original.
    """

    def __init__(self, width: int = 64, levels: int = 5):
        super().__init__()
        channels = [width * 2**i for i in range(levels)]
        self.encoder = nn.ModuleList(double_conv(a, b) for a, b in pairwise([3, *channels]))
        self.up = nn.ModuleList(up_conv(b, a) for a, b in pairwise(channels))
        self.decoder = nn.ModuleList(double_conv(2 * c, c) for c in channels[:-1])
        self.classify = pw(width, 2)

    def logits(self, x: Tensor) -> Tensor:  # (B, 3, H, W)
        maps = []
        for stage in self.encoder:
            x = stage(F.max_pool2d(x, 2) if maps else x)
            maps.append(x)  # C, 2C, 4C, 8C, 16C channels at 1, 1/2, 1/4, 1/8, 1/16
        for i in reversed(range(len(self.up))):
            x = self.up[i](x)
            x = self.decoder[i](torch.cat([self.skip(i, maps[i], x), x], dim=1))
        return self.classify(x)

    def skip(self, level: int, skip: Tensor, x: Tensor) -> Tensor:
        """What the decoder sees of the encoder's map: all of it."""
        return skip


class Gate(nn.Module):
    """Additive attention: where the coarser map x finds nothing, the skip is damped."""

    def __init__(self, channels: int):
        super().__init__()
        inner = channels // 2
        self.of_skip = nn.Sequential(pw(channels, inner, bias=False), nn.BatchNorm2d(inner))
        self.of_x = nn.Sequential(pw(channels, inner, bias=False), nn.BatchNorm2d(inner))
        self.weigh = nn.Sequential(pw(inner, 1, bias=False), nn.BatchNorm2d(1))

    def forward(self, skip: Tensor, x: Tensor) -> Tensor:  # twice (B, C, h, w)
        return skip * torch.sigmoid(self.weigh(F.relu(self.of_skip(skip) + self.of_x(x))))


class AttUNet(UNet):
    """Attention U-Net: Oktay et al., MIDL 2018, arXiv 1804.03999.

    Encoder, decoder and head: those of `UNet`; every skip passes an additive attention gate, whose gating signal is
    the decoder's map after doubling.

    Full size: `width` 64 and five `levels`.
    """

    def __init__(self, width: int = 64, levels: int = 5):
        super().__init__(width, levels)
        self.gates = nn.ModuleList(Gate(width * 2**i) for i in range(levels - 1))

    def skip(self, level: int, skip: Tensor, x: Tensor) -> Tensor:
        return self.gates[level](skip, x)


def vgg(width: int, depths: tuple[int, ...]) -> nn.ModuleList:
    """The stages of a VGG (Simonyan and Zisserman 2015) with batch norm: C, 2C, 4C, 8C, 8C channels."""
    channels = [3, *(width * min(2**i, 8) for i in range(len(depths)))]
    stages = [
        [conv_bn_relu(a, b), *(conv_bn_relu(b, b) for _ in range(depth - 1))]
        for (a, b), depth in zip(pairwise(channels), depths, strict=True)
    ]
    return nn.ModuleList(nn.Sequential(*stage) for stage in stages)


class SegNet(Baseline):
    """SegNet: Badrinarayanan et al., IEEE TPAMI 2017, DOI 10.1109/TPAMI.2016.2644615.

    Encoder: the thirteen convolutions of VGG-16 with batch norm; max-pooling remembers where the maxima were.
    Decoder: its mirror image; unpooling puts each value back where its maximum was. Head: the last 3 x 3 convolution
    gives two classes.

    Full size: `width` 64, as in the original.
    """

    def __init__(self, width: int = 64, depths: tuple[int, ...] = (2, 2, 3, 3, 3)):
        super().__init__()
        self.encoder = vgg(width, depths)
        self.decoder = nn.ModuleList()
        for stage in self.encoder:
            convs = [conv_bn_relu(conv[0].out_channels, conv[0].in_channels) for conv in reversed(stage)]
            self.decoder.append(nn.Sequential(*convs))
        self.decoder[0][-1] = nn.Conv2d(width, 2, 3, padding=1)

    def logits(self, x: Tensor) -> Tensor:  # (B, 3, H, W)
        places = []
        for stage in self.encoder:
            x, place = F.max_pool2d(stage(x), 2, return_indices=True)
            places.append(place)
        for stage in reversed(self.decoder):
            x = stage(F.max_unpool2d(x, places.pop(), 2))
        return x


# ----------------------------------------------------------------------------------------- DoubleU-Net


class SqueezeExcite(nn.Module):
    """Channel gates from the means of all channels (Hu et al., CVPR 2018)."""

    def __init__(self, channels: int, ratio: int = 8):
        super().__init__()
        inner = max(4, channels // ratio)
        self.gate = nn.Sequential(pw(channels, inner, False), nn.ReLU(), pw(inner, channels, False), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x.mean((-2, -1), keepdim=True))


def se_conv(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(double_conv(inputs, outputs), SqueezeExcite(outputs))


class Pyramid(nn.Module):
    """Atrous spatial pyramid pooling: the global mean, a 1 x 1 and three dilated convolutions, merged."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        dilated = [conv_bn_relu(inputs, outputs, 3, dilation) for dilation in (6, 12, 18)]
        self.branches = nn.ModuleList([conv_bn_relu(inputs, outputs, 1), *dilated])
        self.whole, self.merge = conv_bn_relu(inputs, outputs, 1), conv_bn_relu(5 * outputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:  # (B, inputs, h, w)
        whole = self.whole(x.mean((-2, -1), keepdim=True)).expand(-1, -1, *x.shape[-2:])
        return self.merge(torch.cat([whole, *(branch(x) for branch in self.branches)], dim=1))  # (B, outputs, h, w)


class DoubleUNet(Baseline):
    """DoubleU-Net: Jha et al., IEEE CBMS 2020, arXiv 2006.04868.

    Two U-Nets in a row, each with an atrous pyramid below and squeeze-and-excitation in its blocks. The first has the
    encoder of VGG-19, here with batch norm because it starts from random weights. The second sees the image times the
    first one's foreground probability and takes the skips of both encoders. Head: each gives two logits; the original
    supervises both, so their mean is returned.

    Full size: `width` 64, as in the original.
    """

    def __init__(self, width: int = 64, depths: tuple[int, ...] = (2, 2, 4, 4, 4)):
        super().__init__()
        skips = [width, 2 * width, 4 * width, 8 * width]
        own = [c // 2 for c in skips]
        self.encoder1, self.pyramid1 = vgg(width, depths), Pyramid(8 * width, width)
        self.encoder2 = nn.ModuleList(se_conv(a, b) for a, b in pairwise([3, *own]))
        self.pyramid2 = Pyramid(own[-1], width)
        steps = list(pairwise([width, *reversed(own)]))
        self.decoder1 = nn.ModuleList(se_conv(a + 2 * b, b) for a, b in steps)
        self.decoder2 = nn.ModuleList(se_conv(a + 3 * b, b) for a, b in steps)
        self.classify1, self.classify2 = pw(own[0], 2), pw(own[0], 2)

    def logits(self, x: Tensor) -> Tensor:  # (B, 3, H, W)
        image, maps1, maps2 = x, [], []
        for stage in self.encoder1:
            x = stage(F.max_pool2d(x, 2) if maps1 else x)
            maps1.append(x)  # C, 2C, 4C, 8C, 8C channels at 1 to 1/16
        x = self.pyramid1(maps1.pop())
        for stage, skip in zip(self.decoder1, reversed(maps1), strict=True):
            x = stage(torch.cat([double(x, "bilinear"), skip], dim=1))
        first = self.classify1(x)
        x = image * first.softmax(1)[:, 1:]
        for stage in self.encoder2:
            maps2.append(stage(x))  # C/2, C, 2C, 4C channels at 1 to 1/8
            x = F.max_pool2d(maps2[-1], 2)
        x = self.pyramid2(x)
        for stage, *skips in zip(self.decoder2, reversed(maps1), reversed(maps2), strict=True):
            x = stage(torch.cat([double(x, "bilinear"), *skips], dim=1))
        return (first + self.classify2(x)) / 2


# ------------------------------------------------------------------------------------------- DCSAU-Net


class SplitAttention(nn.Module):
    """CSA block: two groups of channels, one seen by one and one by three convolutions, weighed against each other."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        group = self.group = 3 * outputs // 8
        self.enter = conv_bn_relu(inputs, 2 * group, 1)
        self.first, self.second = conv_bn_relu(group, group), double_conv(group, group)
        inner = max(4, group // 4)
        self.weigh = nn.Sequential(pw(group, inner), nn.ReLU(), pw(inner, 2 * group))
        self.leave = nn.Sequential(pw(group, outputs, bias=False), nn.BatchNorm2d(outputs))
        self.shortcut = nn.Sequential(pw(inputs, outputs, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:  # (B, inputs, h, w)
        first, second = self.enter(x).chunk(2, dim=1)
        first = self.first(first)
        second = self.second(first + second)
        pooled = (first + second).mean((-2, -1), keepdim=True)
        weights = self.weigh(pooled).unflatten(1, (2, self.group)).softmax(1)  # (B, 2, group, 1, 1)
        mixed = first * weights[:, 0] + second * weights[:, 1]
        return F.relu(self.leave(mixed) + self.shortcut(x))  # (B, outputs, h, w)


class DCSAUNet(Baseline):
    """DCSAU-Net: Xu et al., Computers in Biology and Medicine 2023, DOI 10.1016/j.compbiomed.2023.106626.

    Encoder: primary feature conservation (a 7 x 7, a residual depthwise 7 x 7 and a 1 x 1 convolution), then four
    compact split-attention blocks between poolings. Decoder: bilinear doubling, the skip concatenated, one such block.
    Head: one 1 x 1 convolution to two classes.

    Full size: `width` 64 and five `levels`. The inner width of a block, 3/4 of its output in two groups, is ours: so
    the parameters come near the original's.
    """

    def __init__(self, width: int = 64, levels: int = 5):
        super().__init__()
        channels = [width, *(width * 2**i for i in range(levels - 1))]
        self.enter = conv_bn_relu(3, width, 7)
        self.depth = nn.Sequential(dw(width, 7, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.point = conv_bn_relu(width, width, 1)
        self.encoder = nn.ModuleList(SplitAttention(a, b) for a, b in pairwise(channels))
        self.decoder = nn.ModuleList(SplitAttention(a + b, a) for a, b in pairwise(channels))
        self.classify = pw(width, 2)

    def logits(self, x: Tensor) -> Tensor:  # (B, 3, H, W)
        x = self.enter(x)
        maps = [self.point(x + self.depth(x))]
        for stage in self.encoder:
            maps.append(stage(F.max_pool2d(maps[-1], 2)))  # C, C, 2C, 4C, 8C channels at 1 to 1/16
        x = maps.pop()
        for stage in reversed(self.decoder):
            x = stage(torch.cat([double(x, "bilinear"), maps.pop()], dim=1))
        return self.classify(x)


# --------------------------------------------------------------------------------------------- BIDCell


class BIDCell(Baseline):
    """BIDCell: Fu et al., Nature Communications 2024, DOI 10.1038/s41467-023-44560-w.

    Only its network is taken, which is UNet 3+ (Huang et al., ICASSP 2020, arXiv 2004.08790); its losses learn from
    spatial transcriptomics, which these images do not have. Encoder: that of `UNet`. Decoder: every level sees
    all scales, each brought to its size and to `width` channels, and convolves them together. Head: the last 3 x 3
    convolution gives two classes; no deep supervision.

    Full size: `width` 64 and five `levels`, as in the original.
    """

    def __init__(self, width: int = 64, levels: int = 5):
        super().__init__()
        channels, whole = [width * 2**i for i in range(levels)], levels * width
        self.encoder = nn.ModuleList(double_conv(a, b) for a, b in pairwise([3, *channels]))
        self.bring = nn.ModuleList()
        for level in range(levels - 1):  # encoder maps down to this level, decoder maps below it, the encoder's last
            inputs = [*channels[: level + 1], *[whole] * (levels - 2 - level), channels[-1]]
            self.bring.append(nn.ModuleList(conv_bn_relu(c, width) for c in inputs))
        self.merge = nn.ModuleList(conv_bn_relu(whole, whole) for _ in range(levels - 1))
        self.classify = nn.Conv2d(whole, 2, 3, padding=1)

    def logits(self, x: Tensor) -> Tensor:  # (B, 3, H, W)
        maps = []
        for stage in self.encoder:
            x = stage(F.max_pool2d(x, 2) if maps else x)
            maps.append(x)  # C, 2C, 4C, 8C, 16C channels at 1, 1/2, 1/4, 1/8, 1/16
        for level in reversed(range(len(self.merge))):
            size = maps[level].shape[-2:]
            sized = [F.max_pool2d(f, 2 ** (level - i)) if i < level else f for i, f in enumerate(maps[: level + 1])]
            sized += [F.interpolate(f, size, mode="bilinear") for f in maps[level + 1 :]]
            brought = [bring(f) for bring, f in zip(self.bring[level], sized, strict=True)]
            maps[level] = self.merge[level](torch.cat(brought, dim=1))  # (B, 5C, size)
        return self.classify(maps[0])
