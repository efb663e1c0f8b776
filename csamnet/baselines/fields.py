"""Networks for instances (distances, flows, polygons), reduced to their map of nuclear pixels."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from csamnet.baselines.blocks import Baseline, Decoder, ResNet, double
from csamnet.model import conv_bn_relu, pw

# ------------------------------------------------------------------------------------------- HoVer-Net


def bn_relu(channels: int) -> nn.Sequential:
    return nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU())


class Preactivated(nn.Module):
    """A group of bottleneck units with norm and ReLU before each convolution; the first unit strides."""

    def __init__(self, inputs: int, width: int, depth: int, stride: int):
        super().__init__()
        self.shortcut = nn.Conv2d(inputs, 4 * width, 1, stride=stride, bias=False)
        self.units = nn.ModuleList()
        for unit in range(depth):
            before = bn_relu(4 * width) if unit else nn.Identity()
            spatial = nn.Conv2d(width, width, 3, stride=1 if unit else stride, padding=1, bias=False)
            enter = pw(4 * width if unit else inputs, width, bias=False)
            leave = pw(width, 4 * width, bias=False)
            self.units.append(nn.Sequential(before, enter, bn_relu(width), spatial, bn_relu(width), leave))
        self.after = bn_relu(4 * width)

    def forward(self, x: Tensor) -> Tensor:  # (B, inputs, h, w)
        shortcut = self.shortcut(x)
        for unit in self.units:
            x = shortcut = shortcut + unit(x)
        return self.after(x)  # (B, 4 width, h/stride, w/stride)


class DenseDecoder(nn.Module):
    """A wide convolution to a quarter of the channels, densely connected units of grouped ones, a 1 x 1."""

    def __init__(self, inputs: int, width: int, depth: int, kernel: int):
        super().__init__()
        self.enter = nn.Conv2d(inputs, inputs // 4, kernel, padding=kernel // 2, bias=False)
        self.units, channels = nn.ModuleList(), inputs // 4
        for _ in range(depth):
            spatial = nn.Conv2d(2 * width, width // 2, kernel, padding=kernel // 2, groups=4, bias=False)
            reduce = pw(channels, 2 * width, bias=False)
            self.units.append(nn.Sequential(bn_relu(channels), reduce, bn_relu(2 * width), spatial))
            channels += width // 2
        self.leave = nn.Sequential(bn_relu(channels), pw(channels, channels, bias=False))

    def forward(self, x: Tensor) -> Tensor:  # (B, inputs, h, w)
        x = self.enter(x)
        for unit in self.units:
            x = torch.cat([x, unit(x)], dim=1)
        return self.leave(x)  # (B, inputs/4 + depth * width/2, h, w)


class HoVerBranch(nn.Module):
    """One of HoVer-Net's decoders, here the one of nuclear pixels: skips are added, not concatenated."""

    def __init__(self, width: int, kernel: int):
        super().__init__()
        self.coarse = DenseDecoder(16 * width, width, 8, kernel)
        self.fine = DenseDecoder(8 * width, width, 4, kernel)
        self.last = nn.Conv2d(4 * width, width, kernel, padding=kernel // 2, bias=False)
        self.classify = nn.Sequential(bn_relu(width), pw(width, 2))

    def forward(self, maps: list[Tensor]) -> Tensor:  # 4C, 8C, 16C, 16C channels at 1, 1/2, 1/4, 1/8
        x = self.coarse(double(maps[3]) + maps[2])  # (B, 8C, H/4, W/4)
        x = self.fine(double(x) + maps[1])  # (B, 4C, H/2, W/2)
        return self.classify(self.last(double(x) + maps[0]))


class HoVerNet(Baseline):
    """HoVer-Net: Graham et al., Medical Image Analysis 2019, DOI 10.1016/j.media.2019.101563.

    Encoder: ResNet-50 with pre-activation, whose first convolution keeps the resolution and which is not pooled.
    Decoder: the nuclear-pixel branch, two classes already; the horizontal-vertical and the type branch are left out.
    Convolutions are padded, so that the map is as large as the image.

    Full size: `width` 64 and `kernel` 5, as in the original.
    """

    def __init__(self, width: int = 64, depths: tuple[int, ...] = (3, 4, 6, 3), kernel: int = 5):
        super().__init__()
        self.enter = conv_bn_relu(3, width, 7)
        channels = [width, *(4 * width * 2**i for i in range(4))]
        self.encoder = nn.ModuleList(
            Preactivated(inputs, width * 2**i, depth, stride=2 if i else 1)
            for i, (inputs, depth) in enumerate(zip(channels, depths, strict=False))
        )
        self.bottleneck = pw(32 * width, 16 * width, bias=False)
        self.branch = HoVerBranch(width, kernel)

    def logits(self, x: Tensor) -> Tensor:  # (B, 3, H, W)
        x, maps = self.enter(x), []
        for group in self.encoder:
            x = group(x)
            maps.append(x)  # 4C, 8C, 16C, 32C channels at 1, 1/2, 1/4, 1/8
        return self.branch([*maps[:3], self.bottleneck(x)])


# -------------------------------------------------------------------------------- StarDist and CPP-Net


class StarDist(Baseline):
    """StarDist: Schmidt et al., MICCAI 2018, arXiv 1806.03535.

    Encoder: ResNet-50 in place of the original's small U-Net, as in the comparisons on PanNuke; that is what comes
    near the parameters that the CSAMNet paper prints. Decoder: U-Net's, its skips narrowed by 1 x 1 convolutions, and
    the 3 x 3 convolution before the heads. Head: the object probability, with two classes; the ray distances are left
    out.

    Full size: `width` 64, ResNet-50.
    """

    def __init__(self, width: int = 64, depths: tuple[int, ...] = (3, 4, 6, 3)):
        super().__init__()
        self.encoder = ResNet(width, depths)
        self.decoder = Decoder(
            self.encoder.channels, [4 * width, 2 * width, 2 * width, width, width], lateral=4 * width
        )
        self.features = conv_bn_relu(width, 2 * width)
        self.classify = pw(2 * width, 2)

    def logits(self, x: Tensor) -> Tensor:  # (B, 3, H, W)
        return self.classify(self.features(self.decoder(self.encoder(x))))


class CPPNet(Baseline):
    """CPP-Net: Chen et al., IEEE Transactions on Image Processing 2023, arXiv 2102.06867.

    Encoder, decoder: those of `StarDist`, with a wider decoder. Every pixel proposes a polygon by the lengths of `rays`
    rays. The original looks at points along the rays, weighs them by a confidence and refines the lengths by what it
    finds; here the same points and weights refine the object probability, the only head, with two classes. The lengths
    are learned through it alone.

    Full size: `width` 64, ResNet-50, 32 rays.
    """

    def __init__(self, width: int = 64, depths: tuple[int, ...] = (3, 4, 6, 3), rays: int = 32):
        super().__init__()
        self.encoder = ResNet(width, depths)
        outputs = [8 * width, 4 * width, 2 * width, width, width]
        self.decoder = Decoder(self.encoder.channels, outputs, lateral=6 * width)
        self.features = conv_bn_relu(width, 2 * width)
        self.lengths, self.classify, self.confidence = (pw(2 * width, n) for n in (rays, 2, 1))
        angles = torch.arange(rays) * (2 * math.pi / rays)
        self.register_buffer("directions", torch.stack([angles.cos(), angles.sin()], 1), persistent=False)

    def logits(self, x: Tensor) -> Tensor:  # (B, 3, H, W)
        x = self.features(self.decoder(self.encoder(x)))
        lengths = F.softplus(self.lengths(x))  # (B, rays, H, W), pixels
        return self.gather(torch.cat([self.classify(x), self.confidence(x)], dim=1), lengths)

    def gather(self, scores: Tensor, lengths: Tensor) -> Tensor:
        """Scores `(B, 3, H, W)`, two logits and a confidence, averaged over the points of each pixel's polygon."""
        scores, lengths = scores.float(), lengths.float()
        height, width = scores.shape[-2:]
        reach = torch.cat([torch.zeros_like(lengths[:, :1]), lengths / 2, lengths], dim=1)  # (B, P, H, W)
        turn = torch.cat([self.directions[:1], self.directions, self.directions]).float()  # (P, 2), x first
        line = [torch.arange(n, device=scores.device) for n in (width, height)]
        x = line[0] + reach * turn[:, 0, None, None]
        y = line[1][:, None] + reach * turn[:, 1, None, None]
        grid = torch.stack([(2 * x + 1) / width - 1, (2 * y + 1) / height - 1], -1)  # (B, P, H, W, 2)
        found = F.grid_sample(scores, grid.flatten(1, 2), padding_mode="border", align_corners=False)
        found = found.view(-1, 3, *reach.shape[1:])  # (B, 3, P, H, W)
        return (found[:, :2] * found[:, 2:].softmax(2)).sum(2)


# -------------------------------------------------------------------------------------------- Cellpose


def bn_conv(inputs: int, outputs: int, size: int = 3, relu: bool = True) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, size, padding=size // 2)
    return nn.Sequential(nn.BatchNorm2d(inputs), *([nn.ReLU()] if relu else []), conv)


class CellPoseDown(nn.Module):
    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.shortcut = bn_conv(inputs, outputs, 1, relu=False)
        self.first = nn.Sequential(bn_conv(inputs, outputs), bn_conv(outputs, outputs))
        self.second = nn.Sequential(bn_conv(outputs, outputs), bn_conv(outputs, outputs))

    def forward(self, x: Tensor) -> Tensor:
        x = self.shortcut(x) + self.first(x)
        return x + self.second(x)


class CellPoseUp(nn.Module):
    """The encoder's map is added, and before each of the last three convolutions the style, one value a channel."""

    def __init__(self, inputs: int, outputs: int, style: int):
        super().__init__()
        self.shortcut, self.enter = bn_conv(inputs, outputs, 1, relu=False), bn_conv(inputs, outputs)
        self.convs = nn.ModuleList(bn_conv(outputs, outputs) for _ in range(3))
        self.styles = nn.ModuleList(nn.Linear(style, outputs) for _ in range(3))

    def forward(self, x: Tensor, skip: Tensor, style: Tensor) -> Tensor:
        shifts = [linear(style)[..., None, None] for linear in self.styles]  # (B, outputs, 1, 1) each
        x = self.shortcut(x) + self.convs[0](self.enter(x) + skip + shifts[0])
        return x + self.convs[2](self.convs[1](x + shifts[1]) + shifts[2])


class CellPose(Baseline):
    """Cellpose: Stringer et al., Nature Methods 2021, DOI 10.1038/s41592-020-01018-x.

    Encoder: four levels of residual blocks, max-pooling between. Decoder: nearest-neighbour doubling, residual blocks
    to which the skip and the style (the normalised mean of the coarsest map) are added. Head: the cell probability,
    with two classes; the flows are left out.

    Full size: `width` 32, as in the original. Its multiply-adds are the ones that the CSAMNet paper prints, its
    parameters are not.
    """

    def __init__(self, width: int = 32):
        super().__init__()
        channels = [width * 2**i for i in range(4)]
        self.encoder = nn.ModuleList(CellPoseDown(a, b) for a, b in pairwise([3, *channels]))
        steps = pairwise([*channels, channels[-1]])
        self.decoder = nn.ModuleList(CellPoseUp(b, a, channels[-1]) for a, b in steps)
        self.classify = bn_conv(width, 2, 1)

    def logits(self, x: Tensor) -> Tensor:  # (B, 3, H, W)
        maps = []
        for stage in self.encoder:
            x = stage(F.max_pool2d(x, 2) if maps else x)
            maps.append(x)  # C, 2C, 4C, 8C channels at 1, 1/2, 1/4, 1/8
        style = F.normalize(x.float().mean((-2, -1)), dim=1)  # (B, 8C)
        for level in (3, 2, 1, 0):
            x = self.decoder[level](x if level == 3 else double(x), maps[level], style)
        return self.classify(x)


# ------------------------------------------------------------------------------------------ HoVer-NeXt


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of `(B, C, h, w)`."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ResponseNorm(nn.Module):
    """Global response normalisation: channels compete by the norms of their whole maps."""

    def __init__(self, channels: int):
        super().__init__()
        self.scale, self.shift = (nn.Parameter(torch.zeros(1, channels, 1, 1)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        norm = x.float().norm(dim=(-2, -1), keepdim=True)
        return x + self.scale * (x * (norm / (norm.mean(1, keepdim=True) + 1e-6))) + self.shift


class ConvNeXtBlock(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        depth = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        widen, narrow = pw(channels, 4 * channels), pw(4 * channels, channels)
        norm = ChannelNorm(channels, eps=1e-6)
        self.body = nn.Sequential(depth, norm, widen, nn.GELU(), ResponseNorm(4 * channels), narrow)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class HoVerNeXt(Baseline):
    """HoVer-NeXt: Baumann et al., MIDL 2024, PMLR 250.

    Encoder: ConvNeXt V2, tiny (Woo et al., CVPR 2023, arXiv 2301.00808), without stochastic depth. Decoder: U-Net's, of
    256 to 16 channels, the last two steps without a skip. Head: the instance decoder's map of inside, border and
    outside, with two classes; its horizontal-vertical maps and the type decoder are left out.

    Full size: `width` 96 and depths 3, 3, 9, 3, as in the original.
    """

    def __init__(self, width: int = 96, depths: tuple[int, ...] = (3, 3, 9, 3), decoder: int = 256):
        super().__init__()
        channels = [width * 2**i for i in range(4)]
        enter = [nn.Sequential(nn.Conv2d(3, width, 4, stride=4), ChannelNorm(width, eps=1e-6))]
        enter += [nn.Sequential(ChannelNorm(a, eps=1e-6), nn.Conv2d(a, b, 2, stride=2)) for a, b in pairwise(channels)]
        self.encoder = nn.ModuleList(
            nn.Sequential(down, *(ConvNeXtBlock(c) for _ in range(depth)))
            for down, c, depth in zip(enter, channels, depths, strict=True)
        )
        outputs = [decoder // 2**i for i in range(5)]
        self.decoder = Decoder(channels, outputs)
        self.classify = nn.Conv2d(outputs[-1], 2, 3, padding=1)

    def logits(self, x: Tensor) -> Tensor:  # (B, 3, H, W)
        maps = []
        for stage in self.encoder:
            x = stage(x)
            maps.append(x)  # C, 2C, 4C, 8C channels at 1/4, 1/8, 1/16, 1/32
        return self.classify(self.decoder(maps))
