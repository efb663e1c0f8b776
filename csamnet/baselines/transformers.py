"""Networks with a vision transformer as encoder."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from csamnet.baselines.blocks import Baseline, double_conv
from csamnet.model import conv_bn_relu, pw


def relative(table: Tensor, n: int) -> Tensor:
    """Rows of `(2 span - 1, d)`, one a distance, as `(n, n, d)`, one a query and a key on an axis of `n` tokens."""
    if len(table) != 2 * n - 1:
        table = F.interpolate(table.T[None], size=2 * n - 1, mode="linear")[0].T
    line = torch.arange(n, device=table.device)
    return table[line[:, None] - line + n - 1]


class Attention(nn.Module):
    """Multi-head self-attention among the `(B, h, w, D)` tokens of a grid.

    With `span` it has SAM's decomposed relative positions: of a grid `span` wide, interpolated for other grids.
    """

    def __init__(self, dim: int, heads: int, span: int | None = None):
        super().__init__()
        self.heads = heads
        self.qkv, self.project = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        tables = [nn.Parameter(torch.zeros(2 * span - 1, dim // heads)) for _ in range(2)] if span else []
        self.tables = nn.ParameterList(tables)  # vertical, horizontal

    def forward(self, x: Tensor) -> Tensor:
        grid = x.shape[1:3]
        qkv = self.qkv(x).flatten(1, 2).unflatten(2, (3, self.heads, -1))  # (B, h w, 3, heads, d)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, heads, h w, d)
        bias = self.bias(q.unflatten(2, grid)) if len(self.tables) else None
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return self.project(x.transpose(1, 2).flatten(2).unflatten(1, grid))

    def bias(self, q: Tensor) -> Tensor:  # (B, heads, h, w, d)
        down, across = (relative(table, n) for table, n in zip(self.tables, q.shape[2:4], strict=True))
        down = torch.einsum("bnhwd,hkd->bnhwk", q, down)
        across = torch.einsum("bnhwd,wkd->bnhwk", q, across)
        return (down[..., :, None] + across[..., None, :]).flatten(4).flatten(2, 3)  # (B, heads, h w, h w)


class Block(nn.Module):
    """Attention and a two-layer perceptron, each after a layer norm; with `window`, attention stays within windows."""

    def __init__(self, dim: int, heads: int, span: int | None = None, window: int | None = None):
        super().__init__()
        self.window = window
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.attention = Attention(dim, heads, window or span)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:  # (B, h, w, D)
        y = self.norm1(x)
        x = x + (self.windowed(y) if self.window else self.attention(y))
        return x + self.mlp(self.norm2(x))

    def windowed(self, x: Tensor) -> Tensor:
        """Attention in each window; the grid is filled up with zeros, which take part, as in SAM."""
        n, (batch, height, width, dim) = self.window, x.shape
        x = F.pad(x, (0, 0, 0, -width % n, 0, -height % n))
        rows, columns = x.shape[1] // n, x.shape[2] // n
        x = x.view(batch, rows, n, columns, n, dim).transpose(2, 3).reshape(-1, n, n, dim)
        x = self.attention(x).view(batch, rows, columns, n, n, dim).transpose(2, 3)
        return x.reshape(batch, rows * n, columns * n, dim)[:, :height, :width]


class ViT(nn.Module):
    """Vision transformer on patches of 16 x 16: the tokens after each quarter of its blocks, as maps.

    With `window`, SAM's: attention within windows but for the last block of each quarter, and relative positions.
    Positions are learned for images of 256 x 256 and interpolated for others.
    """

    def __init__(self, dim: int, depth: int, heads: int, window: int | None = None):
        super().__init__()
        self.patch = nn.Conv2d(3, dim, 16, stride=16)
        self.position = nn.Parameter(torch.empty(1, dim, 16, 16))
        self.quarter, span = depth // 4, 16 if window else None
        last = [(i + 1) % self.quarter == 0 for i in range(depth)]
        self.blocks = nn.ModuleList(Block(dim, heads, span, None if end else window) for end in last)
        for weight in (self.position, *(m.weight for m in self.blocks.modules() if isinstance(m, nn.Linear))):
            nn.init.trunc_normal_(weight, std=0.02)

    def forward(self, image: Tensor) -> list[Tensor]:  # (B, 3, H, W)
        x, position = self.patch(image), self.position
        if x.shape[-2:] != position.shape[-2:]:
            position = F.interpolate(position, x.shape[-2:], mode="bicubic")
        x, maps = (x + position).permute(0, 2, 3, 1), []
        for number, block in enumerate(self.blocks, 1):
            x = block(x)
            if number % self.quarter == 0:
                maps.append(x.permute(0, 3, 1, 2))
        return maps  # four of (B, D, H/16, W/16)


def transposed(inputs: int, outputs: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(inputs, outputs, 2, stride=2)


def doubling(inputs: int, *outputs: int) -> nn.Sequential:
    """A transposed convolution and a 3 x 3 one for each of `outputs`, every one twice as large as what it is given."""
    steps = zip((inputs, *outputs), outputs, strict=False)
    return nn.Sequential(*(layer for a, b in steps for layer in (transposed(a, b), conv_bn_relu(b, b))))


class CellViT(Baseline):
    """CellViT: Hörst et al., Medical Image Analysis 2024, arXiv 2306.15350.

    Encoder: the small vision transformer of "CellViT-256", without class token. Decoder: UNETR's; the image and the
    tokens after each quarter of the blocks are brought to 1, 1/2, 1/4, 1/8 of the resolution and joined on the way up.
    Head: the branch of nuclear pixels, two classes already; the horizontal-vertical and the type branch and the tissue
    classifier are left out.

    Full size: 12 blocks of 384 channels and 6 heads, as in the original.
    """

    def __init__(
        self,
        dim: int = 384,
        depth: int = 12,
        heads: int = 6,
        channels: tuple[int, int, int, int] = (64, 128, 256, 312),
        inner: tuple[int, int] = (256, 128),
        window: int | None = None,
    ):
        super().__init__()
        a, b, c, d = channels
        self.encoder = ViT(dim, depth, heads, window)
        image = nn.Sequential(conv_bn_relu(3, a // 2), conv_bn_relu(a // 2, a))
        self.skips = nn.ModuleList([image, doubling(dim, *inner, b), doubling(dim, inner[0], c), doubling(dim, d)])
        self.branch = nn.ModuleList([
            nn.Sequential(double_conv(2 * a, a), pw(a, 2)),
            nn.Sequential(double_conv(2 * b, b), transposed(b, a)),
            nn.Sequential(double_conv(2 * c, c), transposed(c, b)),
            nn.Sequential(double_conv(2 * d, d), conv_bn_relu(d, d), transposed(d, c)),
            transposed(dim, d),
        ])  # fmt: skip

    def logits(self, x: Tensor) -> Tensor:  # (B, 3, H, W)
        *seen, x = x, *self.encoder(x)
        x = self.branch[4](x)  # (B, d, H/8, W/8)
        for level in (3, 2, 1, 0):
            x = self.branch[level](torch.cat([self.skips[level](seen[level]), x], dim=1))
        return x


class CellViTSAM(CellViT):
    """CellViT with the encoder of Segment Anything (Kirillov et al., ICCV 2023, arXiv 2304.02643).

    Encoder: SAM's vision transformer, attention within windows of 14 x 14 tokens but for the last block of each
    quarter, relative positions, without its neck. Decoder and head: those of `CellViT`, which is wider here.

    Full size: the base size of SAM, 12 blocks of 768 channels and 12 heads, which comes nearest to the parameters that
    the CSAMNet paper prints; CellViT's own best has SAM's huge encoder.
    """

    def __init__(
        self,
        dim: int = 768,
        depth: int = 12,
        heads: int = 12,
        channels: tuple[int, int, int, int] = (64, 128, 256, 512),
        inner: tuple[int, int] = (512, 256),
        window: int = 14,
    ):
        super().__init__(dim, depth, heads, channels, inner, window)
