"""CSAMNet, the whole network, to be read beside the paper's Figure 1.

    image -> encoder -> DCF at every stage -> neck (ASPP, top-down, alignment) -> CSAM -> head -> two logits a pixel

`C` is the width (32 in the released network); shapes on the forward lines are `(batch, channels, height, width)`.
"pw" is a 1 x 1 convolution, "dw" a depthwise one.
"""

from __future__ import annotations

import re
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from textwrap import shorten

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from csamnet.config import SIZES
from csamnet.files import InputError, atomic

DCF = ("none", "dc", "fusion", "both")
CSAM = ("concat", "channel", "context", "both")


def pw(inputs: int, outputs: int, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 1, bias=bias)


def dw(channels: int, size: int | tuple[int, int], outputs: int | None = None, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(channels, outputs or channels, size, padding="same", groups=channels, bias=bias)


def conv_bn_relu(inputs: int, outputs: int, size: int = 3, dilation: int = 1, momentum: float = 0.1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, size, padding=dilation * (size // 2), dilation=dilation, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs, momentum=momentum), nn.ReLU(inplace=True))


def upsample(x: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(x, size=size, mode="bilinear", align_corners=True)


def double(x: Tensor) -> Tensor:
    return upsample(x, (2 * x.shape[-2], 2 * x.shape[-1]))


# --------------------------------------------------------------------------------------------- encoder


class Stage(nn.Module):
    """Halve the map, then twice a 3 x 3 convolution with batch norm and ReLU."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = nn.Conv2d(outputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:  # (B, inputs, h, w)
        x = F.max_pool2d(x, 2)  # (B, inputs, h/2, w/2)
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        return F.relu(self.bn2(self.conv2(x)), inplace=True)  # (B, outputs, h/2, w/2)


# ------------------------------------------------------------------------- detail-context fusion (DCF)


def unit(x: Tensor) -> Tensor:
    """L2 normalisation over channels; in fp16 1e-12 is zero, and a map has pixels that are zero in all channels."""
    return F.normalize(x, dim=1, eps=max(1e-12, torch.finfo(x.dtype).tiny))


def pool_to_eighth(x: Tensor) -> Tensor:
    """Adaptive max-pooling of `(B, D, h, w)` to `(B, D, h // 8, w // 8)`.

    While compiling it is written as gather and amax (the same values): the operator itself fixes dynamic sizes.
    """
    if not torch.compiler.is_compiling():
        return F.adaptive_max_pool2d(x, (x.shape[-2] // 8, x.shape[-1] // 8))
    return _pool_axis(_pool_axis(x).mT).mT


def _pool_axis(x: Tensor) -> Tensor:
    """Maxima over the adaptive windows of the last axis; a window has at most 15 elements (15 pooled to 1)."""
    n = x.shape[-1]
    cells = torch.arange(n // 8, device=x.device)
    start, end = cells * n // (n // 8), ((cells + 1) * n + n // 8 - 1) // (n // 8)
    index = torch.minimum(start[:, None] + torch.arange(15, device=x.device), end[:, None] - 1)
    return x[..., index].amax(-1)


class DetailContext(nn.Module):
    """DC: local detail by a small depthwise MLP, context by modulation with pooled maxima and the variance."""

    def __init__(self, channels: int):
        super().__init__()
        self.expand, self.project = pw(channels, 2 * channels), pw(channels, channels)
        self.pooled, self.modulate = dw(channels, 3), pw(channels, channels)
        self.weight_pooled = nn.Parameter(torch.ones(1, channels, 1, 1))  # W2
        self.weight_variance = nn.Parameter(torch.zeros(1, channels, 1, 1))  # W1
        self.detail_in = nn.Sequential(dw(channels, 3, 2 * channels), pw(2 * channels, 2 * channels))
        self.detail_out = pw(2 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:  # (B, D, h, w)
        y, x = self.expand(x).chunk(2, dim=1)  # twice (B, D, h, w)
        variance = x.to(torch.promote_types(x.dtype, torch.float32)).var((-2, -1), keepdim=True)  # (B, D, 1, 1)
        pooled = self.pooled(pool_to_eighth(x))  # (B, D, h/8, w/8)
        context = F.gelu(self.modulate(self.weight_pooled * pooled + self.weight_variance * variance))
        context = x * F.interpolate(context, size=x.shape[-2:])  # (B, D, h, w), nearest
        return self.project(context + self.detail_out(F.gelu(self.detail_in(y))))


class Fusion(nn.Module):
    """Widen, convolve the first quarter of the channels in space, narrow again."""

    def __init__(self, channels: int):
        super().__init__()
        self.quarter = channels // 2  # of the 2D channels
        self.widen, self.narrow = pw(channels, 2 * channels), pw(2 * channels, channels)
        self.spatial = nn.Conv2d(self.quarter, self.quarter, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:  # (B, D, h, w)
        x = F.gelu(self.widen(x))  # (B, 2D, h, w)
        first, rest = x.tensor_split([self.quarter], dim=1)
        return self.narrow(torch.cat([F.gelu(self.spatial(first)), rest], dim=1))  # (B, D, h, w)


class DetailContextFusion(nn.Module):
    """x <- DC(n(x)) + x, then x <- Fusion(n(x)) + x, with n the L2 norm over channels."""

    def __init__(self, channels: int, parts: str):
        super().__init__()
        self.dc = DetailContext(channels) if parts in ("dc", "both") else None
        self.fusion = Fusion(channels) if parts in ("fusion", "both") else None

    def forward(self, x: Tensor) -> Tensor:  # (B, D, h, w)
        if self.dc is not None:
            x = self.dc(unit(x)) + x
        if self.fusion is not None:
            x = self.fusion(unit(x)) + x
        return x


# ------------------------------------------------------------------------------------------------ neck


class DropBlock(nn.Module):
    """Blank 7 x 7 blocks of a feature map while training (Ghiasi et al. 2018), the same ones in all channels.

    The rate climbs in 30 equal steps from 0 to `final_rate`; `advance` is called by the training loop.
    """

    def __init__(self, final_rate: float = 0.15, size: int = 7, steps: int = 30):
        super().__init__()
        self.size, self.schedule = size, torch.linspace(0, final_rate, steps, device="cpu").tolist()
        self.register_buffer("rate", torch.zeros(()), persistent=False)

    def advance(self, progress: float) -> float:
        """Set the rate for a training that is `progress` (0 to 1) done; return it."""
        rate = self.schedule[min(int(progress * len(self.schedule)), len(self.schedule) - 1)]
        self.rate.fill_(rate)
        return rate

    def forward(self, x: Tensor) -> Tensor:  # (B, D, h, w)
        if not self.training or not any(self.schedule):
            return x
        seeds = torch.rand_like(x[:, :1], dtype=torch.float32) < self.rate / self.size**2  # (B, 1, h, w)
        keep = 1 - F.max_pool2d(seeds.float(), self.size, stride=1, padding=self.size // 2)
        return x * (keep * (keep.numel() / keep.sum().clamp(min=1))).to(x.dtype)


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: a pw, three dilated and one global branch, merged to the input's channels."""

    def __init__(self, channels: int):
        super().__init__()
        branch = channels // 2
        dilated = [conv_bn_relu(channels, branch, 3, dilation) for dilation in (6, 12, 18)]
        self.branches = nn.ModuleList([conv_bn_relu(channels, branch, 1), *dilated])
        self.whole = conv_bn_relu(channels, branch, 1)
        self.merge = conv_bn_relu(5 * branch, channels)

    def forward(self, x: Tensor) -> Tensor:  # (B, 8C, h, w)
        whole = self.whole(F.adaptive_avg_pool2d(x, 1)).expand(-1, -1, *x.shape[-2:])  # (B, 4C, h, w)
        return self.merge(torch.cat([*(branch(x) for branch in self.branches), whole], dim=1))  # (B, 8C, h, w)


class Alignment(nn.Module):
    """Warp a coarse map and the finest one onto each other by learned flows, and blend them by a gate."""

    def __init__(self, channels: int):
        super().__init__()
        self.reduce_high, self.reduce_low = pw(channels, channels, bias=False), pw(channels, channels, bias=False)
        self.flow = nn.Conv2d(2 * channels, 4, 3, padding=1, bias=False)
        self.gate = nn.Conv2d(4, 1, 3, padding=1, bias=False)

    def forward(self, high: Tensor, low: Tensor) -> Tensor:  # (B, C, h, w) and (B, C, H/2, W/2)
        h = upsample(self.reduce_high(high), low.shape[-2:])  # (B, C, H/2, W/2)
        flow_high, flow_low = self.flow(torch.cat([h, self.reduce_low(low)], dim=1)).chunk(2, dim=1)
        describe = [h.mean(1, True), low.mean(1, True), h.amax(1, True), low.amax(1, True)]
        gate = torch.sigmoid(self.gate(torch.cat(describe, dim=1)))  # (B, 1, H/2, W/2)
        return warp(high, flow_high) * gate + warp(low, flow_low) * (1 - gate)  # (B, C, H/2, W/2)


def warp(x: Tensor, flow: Tensor) -> Tensor:
    """Sample `(B, C, h, w)` at the regular grid of `flow` `(B, 2, H, W)` moved by it, in pixels, x first.

    The grid is at least float32 under autocast too: half precision cannot address a pixel.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    height, width = flow.shape[-2:]
    across = torch.arange(width, device=x.device, dtype=dtype) * (2 / (width - 1)) - 1
    down = torch.arange(height, device=x.device, dtype=dtype) * (2 / (height - 1)) - 1
    grid_x = across + flow[:, 0].to(dtype) / width  # (B, H, W)
    grid_y = down[:, None] + flow[:, 1].to(dtype) / height
    grid = torch.stack([grid_x, grid_y], dim=-1)
    return F.grid_sample(x.to(dtype), grid, mode="bilinear", padding_mode="zeros", align_corners=True).to(x.dtype)


class Neck(nn.Module):
    """Four maps of C, 2C, 4C, 8C channels to four of C channels at the resolution of the first."""

    def __init__(self, width: int, align: bool, aspp: bool, drop_rate: float):
        super().__init__()
        channels = [width, 2 * width, 4 * width, 8 * width]
        self.drop = DropBlock(drop_rate)
        self.lateral = nn.ModuleList(conv_bn_relu(c, c) for c in channels)
        self.aspp = ASPP(channels[3]) if aspp else nn.Identity()
        self.lower = nn.ModuleList(conv_bn_relu(2 * c, c) for c in channels[:3])
        self.merge = nn.ModuleList(conv_bn_relu(2 * c, c) for c in channels[:3])
        self.reduce = nn.ModuleList(conv_bn_relu(c, width) for c in channels[1:])
        self.align = nn.ModuleList(Alignment(width) for _ in range(3)) if align else None

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        maps = [lateral(self.drop(f)) for lateral, f in zip(self.lateral, maps, strict=True)]
        maps[3] = self.aspp(maps[3])  # (B, 8C, H/16, W/16)
        for i in (2, 1, 0):  # top-down: f3, f2, f1
            maps[i] = self.merge[i](torch.cat([maps[i], self.lower[i](double(maps[i + 1]))], dim=1))
        low = maps[0]  # (B, C, H/2, W/2)
        highs = [reduce(f) for reduce, f in zip(self.reduce, maps[1:], strict=True)]  # C channels each
        if self.align is None:
            return [low, *(upsample(f, low.shape[-2:]) for f in highs)]
        return [low, *(align(f, low) for align, f in zip(self.align, highs, strict=True))]


# ------------------------------------------------------------- cross-scale attention modulation (CSAM)


class ChannelBranch(nn.Module):
    """Channel attention on the local half: a chain of pw and residual dw convolutions gates the map."""

    def __init__(self, channels: int):
        super().__init__()

        def point(after: nn.Module) -> nn.Sequential:
            return nn.Sequential(pw(channels, channels, bias=False), nn.BatchNorm2d(channels), after)

        def depth() -> nn.Sequential:
            return nn.Sequential(dw(channels, 3, bias=False), nn.BatchNorm2d(channels), nn.ReLU())

        self.conv1, self.conv2 = point(nn.ReLU()), depth()
        self.conv3, self.conv4 = point(nn.ReLU()), depth()
        self.conv5, self.conv6 = point(nn.SiLU()), depth()
        self.conv7 = nn.Sequential(pw(channels, channels, bias=False), nn.ReLU())

    def forward(self, z: Tensor) -> Tensor:  # (B, C, h, w)
        x = z
        for points, depth in ((self.conv1, self.conv2), (self.conv3, self.conv4), (self.conv5, self.conv6)):
            x = points(x)
            x = x + depth(x)
        return z + z * torch.sigmoid(self.conv7(x))


class ContextBranch(nn.Module):
    """Context attention on the global half: channel gates, then strip convolutions of length 7, 11 and 21."""

    def __init__(self, channels: int):
        super().__init__()
        self.mix = pw(channels, channels)  # one convolution, used three times
        self.squeeze, self.excite = pw(channels, channels // 4), pw(channels // 4, channels)
        self.local = dw(channels, 5)
        self.strips = nn.ModuleList(nn.Sequential(dw(channels, (1, n)), dw(channels, (n, 1))) for n in (7, 11, 21))

    def gate(self, pooled: Tensor) -> Tensor:  # (B, C, 1, 1)
        return torch.sigmoid(self.excite(F.relu(self.squeeze(pooled))))

    def forward(self, x: Tensor) -> Tensor:  # (B, C, h, w)
        x = F.gelu(self.mix(x))
        x = x * (self.gate(x.mean((-2, -1), True)) + self.gate(x.amax((-2, -1), True)))
        local = self.local(x)
        return self.mix(self.mix(local + self.strip(local)) * x)

    def strip(self, x: Tensor) -> Tensor:
        """Sum of the strip convolutions; in float32 where oneDNN 3.12 never returns from 1 x 21 in half precision."""
        stuck = x.device.type == "cpu" and x.dtype.itemsize == 2 and x.shape[1] <= 16
        with torch.autocast("cpu", enabled=False) if stuck else nullcontext():
            return sum(strip(x.float() if stuck else x) for strip in self.strips)


class CrossScaleAttention(nn.Module):
    """CSAM: the two fine maps meet channel attention, the two coarse ones context attention; then one map."""

    def __init__(self, width: int, parts: str):
        super().__init__()
        self.reduce_local, self.reduce_global = pw(2 * width, width), pw(2 * width, width)
        self.channel = ChannelBranch(width) if parts in ("channel", "both") else nn.Identity()
        self.context = ContextBranch(width) if parts in ("context", "both") else nn.Identity()
        self.merge = conv_bn_relu(2 * width, width, 1)

    def forward(self, maps: list[Tensor]) -> Tensor:  # four of (B, C, H/2, W/2)
        local = self.channel(self.reduce_local(torch.cat(maps[:2], dim=1)))
        context = self.context(self.reduce_global(torch.cat(maps[2:], dim=1)))
        return self.merge(torch.cat([local, context], dim=1))  # (B, C, H/2, W/2)


# --------------------------------------------------------------------------------------------- network


class Head(nn.Module):
    """Two narrow convolutions and the two classes, at half resolution."""

    def __init__(self, width: int):
        super().__init__()
        narrow = width // 4
        self.body = nn.Sequential(*(conv_bn_relu(channels, narrow, momentum=3e-4) for channels in (width, narrow)))
        self.classify = pw(narrow, 2)

    def forward(self, x: Tensor) -> Tensor:  # (B, C, h, w)
        return self.classify(self.body(x))  # (B, 2, h, w)


class CSAMNet(nn.Module):
    """The paper's network: `(B, 3, H, W)` float image to `(B, 2, H, W)` logits (background, foreground).

    Parameters
    ----------
    width: channels C of the first stage, a multiple of 4 (`SIZES`; 32 is the released network).
    dcf: one of `DCF`, the parts of detail-context fusion that are kept (ablation).
    csam: one of `CSAM`, the attention branches that are kept; without one its half passes unchanged.
    align: warp the coarse maps onto the finest one; else they are upsampled.
    aspp: keep the atrous pyramid; else the stage passes unchanged.
    drop_rate: the rate that DropBlock climbs to in training; 0 switches it off.

    Any H and W from 1 up: the image is padded by reflection to multiples of 16 and at least 128, the logits are
    cropped back. Training needs at least two images a batch (the ASPP's global branch normalises one value each).
    """

    def __init__(
        self,
        width: int = SIZES["S"],
        *,
        dcf: str = "both",
        csam: str = "both",
        align: bool = True,
        aspp: bool = True,
        drop_rate: float = 0.15,
    ):
        super().__init__()
        if width < 4 or width % 4:
            raise InputError("the width cannot be used", expected="a multiple of 4", found=width)
        for name, value, allowed in (("dcf", dcf, DCF), ("csam", csam, CSAM)):
            if value not in allowed:
                raise InputError(f"unknown {name}", expected=" | ".join(allowed), found=value)
        channels = [3, width, 2 * width, 4 * width, 8 * width]
        self.width = width
        self.encoder = nn.ModuleList(Stage(a, b) for a, b in pairwise(channels))
        self.dcf = nn.ModuleList(DetailContextFusion(c, dcf) for c in channels[1:])
        self.neck = Neck(width, align, aspp, drop_rate)
        self.csam = CrossScaleAttention(width, csam)
        self.head = Head(width)

    def forward(self, image: Tensor) -> Tensor:  # (B, 3, H, W)
        check_image(image)
        height, width = image.shape[-2:]
        x = pad(image)  # multiples of 16, at least 128
        maps = []
        for stage in self.encoder:
            x = stage(x)
            maps.append(x)  # C, 2C, 4C, 8C channels at 1/2, 1/4, 1/8, 1/16
        maps = [dcf(f) for dcf, f in zip(self.dcf, maps, strict=True)]
        fused = self.csam(self.neck(maps))  # (B, C, H/2, W/2)
        return double(self.head(fused))[..., :height, :width]  # (B, 2, H, W)

    def advance(self, progress: float) -> float:
        """Set DropBlock's rate for a training that is `progress` (0 to 1) done; return it."""
        return self.neck.drop.advance(progress)

    @classmethod
    def from_released(cls, path: Path | str) -> CSAMNet:
        """Load a safetensors checkpoint with the released network's key names, every key matched; width inferred."""
        state = load_weights(path)
        first = state.get("backbone.module1.conv1.weight")
        if first is None:
            raise InputError("not a checkpoint of the released network", path=path, found=f"{len(state)} other keys")
        model = cls(first.shape[0])
        ours = {released_key(key): key for key in model.state_dict()}
        load_strictly(model, {ours.get(key, key): value for key, value in state.items()}, path)
        return model

    def to_released(self, path: Path | str) -> None:
        """Write the weights under the released network's key names, as safetensors."""
        state = {released_key(key): value for key, value in self.state_dict().items()}
        save_weights(state, path)


def check_image(image: Tensor) -> None:
    if image.ndim != 4 or image.shape[1] != 3 or not image.is_floating_point() or image.numel() == 0:
        expected, found = "floats (B, 3, H, W) with B, H, W of 1 or more", f"{tuple(image.shape)} {image.dtype}"
        raise InputError("the network cannot take this tensor", expected=expected, found=found)


def pad(image: Tensor) -> Tensor:
    """Extend right and bottom by reflection to multiples of 16 and at least 128 pixels, however small the image."""
    height, width = (max(128, -(-n // 16) * 16) for n in image.shape[-2:])
    if (height, width) == tuple(image.shape[-2:]):
        return image
    return extend(image, height, width)


def extend(image: Tensor, height: int, width: int) -> Tensor:
    """Reflect `(..., h, w)` at its right and lower border, as often as it takes, to `(..., height, width)`."""
    rows = reflect(torch.arange(height, device=image.device), image.shape[-2])
    columns = reflect(torch.arange(width, device=image.device), image.shape[-1])
    return image[..., rows[:, None], columns]


def reflect(index: Tensor, n: int | Tensor) -> Tensor:
    """Any integer `index` as one from 0 to n - 1, by reflection at the first and the last element."""
    return n - 1 - (index % (2 * n - 2 + (n == 1)) - (n - 1)).abs()


# -------------------------------------------------------------------------------------- checkpoint names

_RELEASED = {
    r"^encoder\.(\d)": lambda m: f"backbone.module{int(m[1]) + 1}",
    r"^dcf\.(\d)": lambda m: f"block{int(m[1]) + 1}",
    r"\.dc\.expand": ".dc.linear_0",
    r"\.dc\.modulate": ".dc.linear_1",
    r"\.dc\.project": ".dc.linear_2",
    r"\.dc\.pooled": ".dc.dw_conv",
    r"\.dc\.weight_pooled": ".dc.alpha",
    r"\.dc\.weight_variance": ".dc.belt",
    r"\.dc\.detail_in": ".dc.lde.conv_0",
    r"\.dc\.detail_out": ".dc.lde.conv_1",
    r"\.fusion\.widen": ".fusion.conv_0",
    r"\.fusion\.spatial": ".fusion.conv_1",
    r"\.fusion\.narrow": ".fusion.conv_2",
    r"^neck\.lateral\.(\d)": lambda m: f"neck.stage{int(m[1]) + 1}_conv1.extract",
    r"^neck\.lower\.(\d)": lambda m: f"neck.stage{int(m[1]) + 2}_conv_after_up.extract",
    r"^neck\.merge\.(\d)": lambda m: f"neck.stage{int(m[1]) + 1}_conv2.extract",
    r"^neck\.reduce\.(\d)": lambda m: f"neck.stage{int(m[1]) + 2}_conv3.extract",
    r"^neck\.align\.(\d)": lambda m: f"neck.scn{int(m[1]) + 2}1",
    r"\.reduce_high": ".down_h",
    r"\.reduce_low": ".down_l",
    r"(scn\d1)\.flow\.": r"\1.flow_make.",
    r"(scn\d1)\.gate\.": r"\1.flow_gate.0.",
    r"^neck\.aspp\.branches\.": "neck.expand_field.b",
    r"^neck\.aspp\.whole\.(\d)": lambda m: f"neck.expand_field.gap.{int(m[1]) + 1}",
    r"^neck\.aspp\.merge": "neck.expand_field.dim_reduction.extract",
    r"^csam\.": "neck.fusion_module.attention.",
    r"attention\.reduce_local": "attention.ca_11conv",
    r"attention\.reduce_global": "attention.coa_11conv",
    r"attention\.channel": "attention.ca",
    r"attention\.context": "attention.coa",
    r"attention\.merge\.(\d)": lambda m: f"attention.conv1_1.{('conv', 'bn')[int(m[1])]}",
    r"coa\.mix": "coa.conv",
    r"coa\.squeeze": "coa.ca.fc1",
    r"coa\.excite": "coa.ca.fc2",
    r"coa\.local": "coa.dconv5_5",
    r"coa\.strips\.(\d)\.0": lambda m: f"coa.dconv1_{(7, 11, 21)[int(m[1])]}",
    r"coa\.strips\.(\d)\.1": lambda m: f"coa.dconv{(7, 11, 21)[int(m[1])]}_1",
    r"^head\.body\.(\d)\.(\d)": lambda m: f"head.last_conv.{3 * int(m[1]) + int(m[2])}",
}


def released_key(key: str) -> str:
    """The released network's name of one of our parameters or buffers."""
    for pattern, replacement in _RELEASED.items():
        key = re.sub(pattern, replacement, key)
    return key


def load_weights(path: Path | str) -> dict[str, Tensor]:
    """The tensors of a safetensors file. Raises InputError for anything else: nothing is ever unpickled."""
    mend = "give a .safetensors file; a pickled .pth or .pt can run code as it is opened and is not read"
    try:
        state = load_file(path)
    except FileNotFoundError:
        raise InputError("there are no weights", path=path, mend=mend) from None
    except (SafetensorError, OSError) as error:
        raise InputError("not a safetensors file", path=path, found=error, mend=mend) from None
    if lost := [name for name, value in state.items() if not value.isfinite().all()]:
        raise InputError("weights that are no numbers", path=path, found=f"NaN or infinity in {lost[0]}")
    return state


def read_about(path: Path | str) -> dict[str, str]:
    """The texts that `save_weights` wrote beside the tensors. Raises InputError for what is no safetensors file."""
    try:
        with safe_open(path, "pt") as stored:
            return stored.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise InputError("not a safetensors file", path=path, found=error, mend="fetch or make it again") from None


def save_weights(state: dict[str, Tensor], path: Path | str, **about: str) -> None:
    """Write tensors, and texts `about` them, to a safetensors file."""
    with atomic(path) as temporary:
        temporary.write_bytes(save({key: value.contiguous() for key, value in state.items()}, about))


def load_strictly(model: nn.Module, state: dict[str, Tensor], path: Path | str | None = None) -> None:
    """Load `state`; raise InputError with the first differences where names or shapes do not match exactly."""
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        found = "; ".join(shorten(line, 200, placeholder=" ...") for line in str(error).splitlines()[1:4])
        width = f" of width {model.width}" if hasattr(model, "width") else ""
        expected = f"{len(model.state_dict())} tensors of a {type(model).__name__}{width}"
        what, mend = "the weights do not fit the network", "give the width and switches that they were trained with"
        raise InputError(what, path=path, expected=expected, found=found, mend=mend) from None
