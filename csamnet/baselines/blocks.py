"""Parts that several comparison networks share."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from csamnet.model import check_image, conv_bn_relu, extend, pw


class Baseline(nn.Module):
    """A network that is called like CSAMNet: `(B, 3, H, W)` float image to `(B, 2, H, W)` logits.

    Any H and W from 1 up: the image is extended by reflection to multiples of 32 and at least 64, and the logits of
    `logits`, which a network has to provide, are cropped back. Raises InputError for what is no such image.
    """

    def forward(self, image: Tensor) -> Tensor:
        check_image(image)
        height, width = image.shape[-2:]
        padded = [max(64, -(-n // 32) * 32) for n in (height, width)]
        x = image if padded == [height, width] else extend(image, *padded)
        return self.logits(x)[..., :height, :width]

    def logits(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def advance(self, progress: float) -> float:
        """The training loop's call for DropBlock, which none of these networks has: always 0."""
        return 0.0


def double_conv(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(conv_bn_relu(inputs, outputs), conv_bn_relu(outputs, outputs))


def double(x: Tensor, mode: str = "nearest") -> Tensor:
    return F.interpolate(x, scale_factor=2, mode=mode)


def up_conv(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Upsample(scale_factor=2), conv_bn_relu(inputs, outputs))


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3 (which strides), 1 x 1 convolution, four times `width` wide at the end, with a shortcut."""

    def __init__(self, inputs: int, width: int, stride: int = 1):
        super().__init__()
        self.reduce, self.spatial = conv_bn_relu(inputs, width, 1), conv_bn_relu(width, width)
        self.spatial[0].stride = (stride, stride)
        self.widen = nn.Sequential(pw(width, 4 * width, bias=False), nn.BatchNorm2d(4 * width))
        self.shortcut = nn.Identity()
        if stride > 1 or inputs != 4 * width:
            conv = nn.Conv2d(inputs, 4 * width, 1, stride=stride, bias=False)
            self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(4 * width))

    def forward(self, x: Tensor) -> Tensor:  # (B, inputs, h, w)
        return F.relu(self.widen(self.spatial(self.reduce(x))) + self.shortcut(x))  # (B, 4 width, h/stride, w/stride)


class ResNet(nn.Module):
    """ResNet (He et al., CVPR 2016, arXiv 1512.03385) without its classifier; ResNet-50 as it stands."""

    def __init__(self, width: int = 64, depths: tuple[int, ...] = (3, 4, 6, 3)):
        super().__init__()
        self.channels = [width, *(4 * width * 2**i for i in range(len(depths)))]
        stem = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
        self.stem = nn.Sequential(stem, nn.BatchNorm2d(width), nn.ReLU(inplace=True))
        self.stages = nn.ModuleList()
        for i, (inputs, depth) in enumerate(zip(self.channels, depths, strict=False)):
            first = Bottleneck(inputs, width * 2**i, stride=1 if i == 0 else 2)
            rest = [Bottleneck(self.channels[i + 1], width * 2**i) for _ in range(depth - 1)]
            self.stages.append(nn.Sequential(first, *rest))

    def forward(self, x: Tensor) -> list[Tensor]:  # (B, 3, H, W)
        maps = [self.stem(x)]
        x = F.max_pool2d(maps[0], 3, stride=2, padding=1)
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps  # `channels` at 1/2, 1/4, 1/8, 1/16, 1/32


class Decoder(nn.Module):
    """U-Net decoder on an encoder's maps, finest first: double, concatenate the skip, two convolutions.

    `outputs` holds the channels of each step, coarsest first; steps without a skip left only double and convolve.
    `lateral`, where given, is the most channels that a 1 x 1 convolution leaves of the coarsest map and of a skip.
    """

    def __init__(self, channels: list[int], outputs: list[int], lateral: int | None = None):
        super().__init__()
        narrow = [min(c, lateral or c) for c in channels]
        reduce = [pw(c, n) if n < c else nn.Identity() for c, n in zip(channels, narrow, strict=True)]
        self.reduce = nn.ModuleList(reduce)
        skips = [*narrow[-2::-1], *[0] * (len(outputs) - len(channels) + 1)]
        steps = pairwise([narrow[-1], *outputs])
        self.steps = nn.ModuleList(double_conv(a + skip, b) for (a, b), skip in zip(steps, skips, strict=True))

    def forward(self, maps: list[Tensor]) -> Tensor:
        *skips, x = (reduce(f) for reduce, f in zip(self.reduce, maps, strict=True))
        for step in self.steps:
            x = double(x)
            x = step(torch.cat([x, skips.pop()], dim=1) if skips else x)
        return x
