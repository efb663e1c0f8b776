"""Small slides, and a network whose answer can be told beforehand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import shapely
import tifffile
import torch
from torch import nn

from csamnet.config import RunConfig
from csamnet.evaluate import predict_probability
from csamnet.files import sha256_file
from csamnet.slides import Slide
from csamnet.wsi.slide_run import Options

WHOLE = Options(at=0.5, whole=True, batch=3)
PLAIN = RunConfig(tile=128, precision="fp32")


def pyramid(path: Path, levels: list[np.ndarray], mpp: float | None = 0.5) -> Path:
    """A tiled TIFF in the form of Aperio, without loss."""
    said = "Aperio Image Library v1\r\nmade|AppMag = 20" + (f"|MPP = {mpp}" if mpp else "")
    with tifffile.TiffWriter(path) as file:
        for level in levels:
            file.write(level, tile=(64, 64), photometric="rgb", compression="zlib", description=said, metadata=None)
    return path


class Dark(nn.Module):
    """Dark is foreground; what lies beyond a tile's border counts as grey, so that seams show."""

    def __init__(self):
        super().__init__()
        self.mean = nn.Conv2d(3, 1, 5, padding=2)
        nn.init.constant_(self.mean.weight, 1 / 75)
        nn.init.constant_(self.mean.bias, -0.4)
        self.config = PLAIN

    def forward(self, x):
        logit = -4 * self.mean(x)
        return torch.cat([-logit, logit], 1)


def whole(slide: Slide, model: Dark, **changes) -> np.ndarray:
    return predict_probability(model, slide.read(0, 0, *slide.size), tile=128, **changes)


def polygons(folder: Path) -> list[shapely.Polygon]:
    features = json.loads((folder / "nuclei.geojson").read_text())["features"]
    assert len({feature["id"] for feature in features}) == len(features)
    return sorted((shapely.geometry.shape(feature["geometry"]) for feature in features), key=lambda p: p.bounds)


def everything(folder: Path) -> dict[str, str]:
    """Hashes of what must not depend on when a slide was stopped."""
    files = [file for file in folder.rglob("*") if file.is_file() and file.name not in (".lock", "progress.json")]
    return {str(file.relative_to(folder)): sha256_file(file) for file in files if file.name != "summary.csv"}
