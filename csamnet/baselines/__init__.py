"""Thirteen networks that the paper compares CSAMNet with, all called like it: `(B, 3, H, W)` to two logits a pixel.

Written from the papers; weights start at random. `build(name)` gives the full size, `build(name, "small")` the same
code for the sample profile.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from csamnet.baselines.fields import CellPose, CPPNet, HoVerNet, HoVerNeXt, StarDist
from csamnet.baselines.transformers import CellViT, CellViTSAM
from csamnet.baselines.unets import AttUNet, BIDCell, DCSAUNet, DoubleUNet, SegNet, UNet
from csamnet.files import InputError

BASELINES: dict[str, Callable[..., nn.Module]] = {
    "UNet": UNet,
    "SegNet": SegNet,
    "AttUNet": AttUNet,
    "StarDist": StarDist,
    "HoVer-Net": HoVerNet,
    "DoubleU-Net": DoubleUNet,
    "CellPose": CellPose,
    "DCSAU-Net": DCSAUNet,
    "CPP-Net": CPPNet,
    "HoVer-NeXt": HoVerNeXt,
    "CellViT": CellViT,
    "BIDCell": BIDCell,
    "CellViT-SAM": CellViTSAM,
}
"""Names as in the paper, in the order of its table."""

SMALL: dict[str, dict] = {
    "UNet": {"width": 8, "levels": 4},
    "SegNet": {"width": 16, "depths": (1, 1, 1, 1)},
    "AttUNet": {"width": 8, "levels": 4},
    "StarDist": {"width": 12, "depths": (1, 1, 1, 1)},
    "HoVer-Net": {"width": 8, "depths": (1, 1, 1, 1)},
    "DoubleU-Net": {"width": 8, "depths": (1, 1, 1, 1, 1)},
    "CellPose": {"width": 6},
    "DCSAU-Net": {"width": 12, "levels": 4},
    "CPP-Net": {"width": 10, "depths": (1, 1, 1, 1), "rays": 4},
    "HoVer-NeXt": {"width": 16, "depths": (1, 1, 1, 1), "decoder": 128},
    "CellViT": {"dim": 48, "depth": 4, "heads": 4, "channels": (16, 24, 32, 40), "inner": (24, 32)},
    "BIDCell": {"width": 5, "levels": 4},
    "CellViT-SAM": {"dim": 48, "depth": 4, "heads": 4, "channels": (16, 24, 32, 40), "inner": (24, 32), "window": 4},
}
"""Name -> arguments of the size for the sample profile."""

PUBLISHED: dict[str, tuple[float | None, float | None]] = {
    "UNet": (32.92, 61),
    "SegNet": (28, 37.6),
    "AttUNet": (33.26, 62),
    "StarDist": (27.26, 18),
    "HoVer-Net": (40, 41.6),
    "DoubleU-Net": (28, 50.4),
    "CellPose": (32, 19),
    "DCSAU-Net": (2.48, 6.6),
    "CPP-Net": (34, 25),
    "HoVer-NeXt": (None, None),
    "CellViT": (45, 129),
    "BIDCell": (26, 186),
    "CellViT-SAM": (121.86, 157),
    "CSAMNet": (6.44, 5.5),
    "CSAMNet-M": (9, 7.8),
    "CSAMNet-L": (37, 28),
}
"""Parameters (M) and multiply-adds (G) at 256 x 256 that the CSAMNet paper prints or draws; None where it gives none.

Its M is 2**20: so taken UNet, AttUNet and CSAMNet fit to the printed digit. Its G fits some as 2**30, others as 1e9.
"""

COSTS: dict[str, tuple[int, int]] = {
    "UNet": (34_520_258, 65_351_450_624),
    "SegNet": (29_436_226, 40_051_408_896),
    "AttUNet": (34_870_826, 66_429_124_608),
    "StarDist": (27_820_866, 21_293_432_832),
    "HoVer-Net": (35_313_090, 173_933_592_576),
    "DoubleU-Net": (29_292_836, 53_691_399_936),
    "CellPose": (6_601_134, 20_267_245_568),
    "DCSAU-Net": (2_678_588, 6_468_711_568),
    "CPP-Net": (34_478_947, 25_311_576_064),
    "HoVer-NeXt": (31_975_266, 8_932_737_024),
    "CellViT": (33_169_490, 42_779_607_040),
    "BIDCell": (26_968_130, 197_841_125_376),
    "CellViT-SAM": (114_240_994, 86_318_120_960),
}
"""Parameters and multiply-adds at 256 x 256 of our full sizes, by `csamnet.pages.complexity`; a test holds them."""


def describe(name: str) -> str:
    """A sentence with a network's costs, for its docstring."""
    (parameters, multiply_adds), (millions, billions) = COSTS[name], PUBLISHED[name]
    ours = f"{parameters / 1e6:.2f} M parameters, {multiply_adds / 1e9:.2f} G multiply-adds at 256 x 256"
    fitting = f"{parameters / 2**20:.2f} and {multiply_adds / 2**30:.2f} in units of 2**20 and 2**30"
    theirs = f"has {millions} and {billions}, printed or on its chart" if millions else "gives none"
    return f"Costs: {ours} ({fitting}; the CSAMNet paper {theirs})."


for _name, _network in BASELINES.items():
    _network.__doc__ = f"{_network.__doc__ or ''}\n    {describe(_name)}\n    "


def build(name: str, size: str = "full") -> nn.Module:
    """A comparison network with random weights, its convolutions after He et al. 2015 (arXiv 1502.01852).

    Raises InputError for an unknown name or size.
    """
    for what, value, known in (("baseline", name, BASELINES), ("size", size, ("full", "small"))):
        if value not in known:
            raise InputError(f"unknown {what}", expected=" | ".join(known), found=repr(value))
    network = BASELINES[name](**(SMALL[name] if size == "small" else {}))
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    return network
