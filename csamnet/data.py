"""The canonical tree as tensors: whole images for evaluation, augmented batches of crops for training.

Training images live on the device as packed bytes; a batch of crops is gathered, turned, zoomed, re-stained and
blurred there by a few batched operations. There are no worker processes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from csamnet.config import RunConfig
from csamnet.datasets import get_dataset
from csamnet.files import InputError
from csamnet.images import read_image, read_labels, read_mask
from csamnet.manifest import read_manifest
from csamnet.model import reflect

BUDGET = 8 * 2**30
"""Bytes of training images that may live on the device; more is memory-mapped from the disk."""

HED = torch.tensor([[0.650, 0.704, 0.286], [0.072, 0.990, 0.105], [0.268, 0.570, 0.776]])
"""Optical density of haematoxylin, eosin and residual in red, green, blue (Ruifrok and Johnston 2001)."""


@dataclass(frozen=True)
class Sample:
    """One image of a prepared data set; pixels are read when asked for."""

    name: str
    group: str
    organ: str
    image_path: Path
    mask_path: Path | None
    labels_path: Path | None
    pixels_sha256: str = ""
    touching: bool = True  # see Dataset.touching

    def image(self) -> np.ndarray:
        """`(H, W, 3)` uint8."""
        return read_image(self.image_path)

    def mask(self) -> np.ndarray:
        """`(H, W)` bool. Raises InputError where the image is not annotated."""
        if self.mask_path is None:
            mend = "train and measure on another data set; csamnet predict needs no annotation"
            raise InputError("an image without annotation", path=self.image_path, mend=mend)
        return read_mask(self.mask_path)

    def labels(self) -> np.ndarray | None:
        """`(H, W)` int32 instances, 0 background, or None where none are known."""
        return read_labels(self.labels_path) if self.labels_path else None


def pair(sample: Sample, mask: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Image and mask, which may have been read before. Raises InputError where they differ in size."""
    image, mask = sample.image(), sample.mask() if mask is None else mask
    if image.shape[:2] != mask.shape:
        path, expected = getattr(sample, "image_path", None), f"{mask.shape}, as the mask"
        raise InputError("image and mask differ in size", path=path, expected=expected, found=image.shape[:2])
    return image, mask


def load_split(root: Path | str, dataset: str, split: str) -> list[Sample]:
    """The samples of `train`, `val` or `test`. Raises InputError where the split is missing or empty."""
    folder = Path(root) / dataset
    table = read_manifest(folder)
    rows = table[table["split"] == split]
    if rows.empty:
        found = ", ".join(f"{name} {count}" for name, count in table["split"].value_counts().items())
        raise InputError(f"the split {split!r} of {dataset} is empty", path=folder, found=found)
    touching = get_dataset(dataset, root).touching
    return [
        Sample(
            name=row["name"],
            group=row["group"],
            organ=row["organ"],
            image_path=folder / row["image"],
            mask_path=folder / row["mask"] if row["mask"] else None,
            labels_path=folder / row["inst"] if row["inst"] else None,
            pixels_sha256=row["pixels_sha256"],
            touching=touching,
        )
        for row in rows.to_dict("records")
    ]


def draw_images(samples: list[Sample], count: int, seed: int) -> list[Sample]:
    """`count` of the samples, drawn so that fewer are among more; 0 is all. Raises InputError for more than all."""
    if count > len(samples):
        raise InputError("there are not so many training images", expected=f"0 to {len(samples)}", found=count)
    order = np.random.default_rng(seed).permutation(len(samples))
    return [samples[i] for i in sorted(order[: count or None])]


def to_input(pixels: Tensor) -> Tensor:
    """Bytes or floats of 0 to 255 to the network's input range, about -2 to 2 (our choice; none is published)."""
    return pixels.float() / 63.75 - 2


class Atlas:
    """All images of a split in one flat array of packed pixels (red, green, blue, mask: four bytes each).

    `pixels` is int32 `(N,)`, on `device` up to `budget` bytes, else memory-mapped from a nameless file in `cache`.
    """

    def __init__(self, samples: list[Sample], device: torch.device, *, cache: Path, budget: int = BUDGET):
        masks = [sample.mask() for sample in samples]
        self.device = device
        self.heights = torch.tensor([mask.shape[0] for mask in masks], device=device)
        self.widths = torch.tensor([mask.shape[1] for mask in masks], device=device)
        self.offsets = torch.cumsum(self.heights * self.widths, 0) - self.heights * self.widths
        self.foreground = torch.stack([_foreground_points(mask) for mask in masks]).to(device)  # (n, 4096, 2)
        self.has_foreground = torch.tensor([bool(mask.any()) for mask in masks], device=device)
        sizes = [mask.size for mask in masks]
        blocks = (_pack(*pair(*one)) for one in zip(samples, masks, strict=True))
        self.mapped = 4 * sum(sizes) > budget
        if self.mapped:
            self.pixels = _spill(blocks, cache)
        else:
            self.pixels = torch.empty(sum(sizes), dtype=torch.int32, device=device)
            for place, block in zip(self.pixels.split(sizes), blocks, strict=True):
                place.copy_(block)

    def gather(self, which: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """Bytes `(B, h, w, 4)` of images `which` `(B,)` where rows `(B, h)` and columns `(B, w)` cross, reflected."""
        widths = self.widths[which, None]
        starts = self.offsets[which, None] + reflect(rows, self.heights[which, None]) * widths
        index = starts[:, :, None] + reflect(columns, widths)[:, None, :]
        packed = self.pixels[index.to(self.pixels.device)].to(self.device)
        return packed.unsqueeze(-1).view(torch.uint8)

    def crops(self, config: RunConfig, batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """A random augmented batch: input `(batch, 3, tile, tile)` float32 and target `(batch, tile, tile)` uint8."""
        area = (self.heights * self.widths).float()
        which = torch.multinomial(area, batch, replacement=True, generator=generator)
        draw = _Draws(batch, generator)
        zoom, swap = _turns(draw, config.scale, config.turns)  # (B, 2), (B,)
        centre = self._centres(draw, which, config.tile, config.foreground)  # (B, 2), x first
        pixels, mask = self._sample(which, centre, zoom, swap, config)
        pixels = stain_jitter(pixels, draw, config.stain)
        pixels = colour_jitter(pixels, draw, config.colour)
        pixels = blur(pixels, draw, config.blur)
        return to_input(pixels.clamp(0, 255)), mask

    def _centres(self, draw: _Draws, which: Tensor, tile: int, foreground: float) -> Tensor:
        """Centres of crops that lie inside the image where it is large enough, on half pixels, x first."""
        size = torch.stack([self.widths[which], self.heights[which]], 1).float()  # (B, 2)
        room = (size - tile).clamp(min=0)
        corner = torch.where(room > 0, (draw.uniform(2) * (room + 1)).floor().clamp(max=room), (size - tile) // 2)
        centre = corner + (tile - 1) / 2
        points = self.foreground[which, (draw.uniform() * self.foreground.shape[1]).long()]  # (B, 2)
        on_foreground = (draw.uniform() < foreground) & self.has_foreground[which]
        return torch.where(on_foreground[:, None], points + 0.5, centre)

    def _sample(
        self, which: Tensor, centre: Tensor, zoom: Tensor, swap: Tensor, config: RunConfig
    ) -> tuple[Tensor, Tensor]:
        """Pixels `(B, 3, tile, tile)` 0 to 255, bilinear, and mask `(B, tile, tile)`, nearest, of turned crops.

        The mask is read where the annotation lies, so that what is outlined and its outline are in one place.
        """
        line = torch.arange(config.tile, device=self.device) - (config.tile - 1) / 2
        x, y = (centre[..., None] + zoom[..., None] * line).unbind(1)  # (B, tile) each: a crop's columns and rows
        x0, y0 = x.floor(), y.floor()
        right, down = (x - x0)[:, None, :, None], (y - y0)[:, :, None, None]
        corners = [self.gather(which, (y0 + i).long(), (x0 + j).long()) for i in (0, 1) for j in (0, 1)]
        rows, columns = (y + config.offset_y).round().long(), (x + config.offset_x).round().long()
        mask = self.gather(which, rows, columns)[..., 3]
        top, bottom = (torch.lerp(a.float(), b.float(), right) for a, b in (corners[:2], corners[2:]))
        pixels = torch.lerp(top, bottom, down)[..., :3].permute(0, 3, 1, 2)
        pixels = torch.where(swap[:, None, None, None], pixels.mT, pixels).contiguous()
        return pixels, torch.where(swap[:, None, None], mask.mT, mask).contiguous()


def _pack(image: np.ndarray, mask: np.ndarray) -> Tensor:
    """`(H, W, 3)` uint8 and `(H, W)` bool as int32 `(H * W,)`, four bytes a pixel."""
    return torch.from_numpy(np.dstack([image, mask]).view(np.int32).ravel())


def _spill(blocks: Iterable[Tensor], folder: Path) -> Tensor:
    """The blocks one after another, memory-mapped from a file without a name, which goes with its last user."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as stream:
        for block in blocks:
            stream.write(block.numpy())
        stream.flush()
        return torch.from_numpy(np.memmap(stream, np.int32, "r+"))


def _foreground_points(mask: np.ndarray, count: int = 4096) -> Tensor:
    """`(count, 2)` foreground pixels, x first, spread evenly over all of them; zeros where there are none."""
    flat = np.flatnonzero(mask)
    if flat.size == 0:
        return torch.zeros(count, 2)
    chosen = flat[np.linspace(0, flat.size - 1, count).astype(np.int64)]
    return torch.from_numpy(np.stack([chosen % mask.shape[1], chosen // mask.shape[1]], 1)).float()


# ---------------------------------------------------------------------------------------- augmentation


class _Draws:
    """Random numbers of one value a crop, from one generator, on its device."""

    def __init__(self, batch: int, generator: torch.Generator):
        self.batch, self.generator = batch, generator

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        values = torch.rand(self.batch, *shape, generator=self.generator, device=self.generator.device)
        return low + (high - low) * values


def _turns(draw: _Draws, scale: float, turns: bool) -> tuple[Tensor, Tensor]:
    """A random quarter turn, flip and zoom: signed steps in x and y `(B, 2)`, and whether the two swap `(B,)`."""
    angle = (4 * draw.uniform()).floor() * (torch.pi / 2 if turns else 0)
    zoom = torch.exp(draw.uniform(low=-1, high=1) * float(np.log(scale)))
    flip = torch.where(draw.uniform() < 0.5, -1.0, 1.0)
    cos, sin = angle.cos().round(), angle.sin().round()
    return torch.stack([cos * flip - sin, sin * flip + cos], 1) * zoom[:, None], cos == 0


def stain_jitter(pixels: Tensor, draw: _Draws, strength: float) -> Tensor:
    """Scale and shift haematoxylin, eosin and residual of `(B, 3, H, W)` 0 to 255 by up to `strength`.

    Colour deconvolution (Ruifrok and Johnston 2001), the change and the way back are one matrix on optical density,
    as in the stain augmentation of Tellez et al. 2018.
    """
    if strength == 0:
        return pixels
    factors = draw.uniform(3, low=1 - strength, high=1 + strength)
    return restain(pixels, factors, draw.uniform(3, low=-strength / 4, high=strength / 4))


def restain(pixels: Tensor, factors: Tensor, shifts: Tensor) -> Tensor:
    """Haematoxylin, eosin and residual of `(B, 3, H, W)` 0 to 255 times `factors` plus `shifts`, `(B, 3)` each."""
    hed = HED.to(pixels.device)
    matrix = torch.linalg.inv(hed) @ torch.diag_embed(factors) @ hed  # (B, 3, 3), acts on rows of optical density
    density = -torch.log((pixels + 1) / 256).flatten(2)  # (B, 3, H * W)
    density = torch.baddbmm((shifts @ hed)[..., None], matrix.mT, density).view_as(pixels)
    return 256 * torch.exp(-density) - 1


def stain_of(pixels: np.ndarray) -> np.ndarray | None:
    """`(2, 3)` mean and standard deviation of haematoxylin, eosin and residual over the tissue of `(..., 3)` uint8.

    Tissue is what lets 3 to 86 % of the light through, which black borders do not; None where it is less than a
    hundredth of the pixels. Of more than five million pixels every second, third, ... is looked at.
    """
    flat = torch.from_numpy(pixels.reshape(-1, 3)[:: 1 + pixels.size // 2**24])
    density = -torch.log((flat.double() + 1) / 256)
    tissue = density[(density.mean(1) > 0.15) & (density.mean(1) < 3.5)]
    if len(tissue) < max(2, len(flat) / 100):
        return None
    stains = tissue @ torch.linalg.inv(HED.double())
    return torch.stack([stains.mean(0), stains.std(0, correction=0)]).numpy()


def typical_stain(images: Iterable[np.ndarray]) -> list[list[float]] | None:
    """The median of `stain_of` over images, as lists; None where there is no tissue."""
    found = [stain for stain in map(stain_of, images) if stain is not None]
    return np.median(found, 0).round(4).tolist() if found else None


def stain_wanted(model: nn.Module, config: RunConfig) -> list[list[float]] | None:
    """`typical_stain` of what a network has learned from, if images are to be normalised to it; else None.

    Raises InputError where its weights do not tell it.
    """
    if not config.normalise:
        return None
    if (stain := getattr(model, "stain", None)) is None:
        what, path = "the stain that images could be normalised to is not known", getattr(model, "path", None)
        expected, mend = "weights that tell it, as csamnet train makes them of H&E images", "do not normalise"
        raise InputError(what, path=path, expected=expected, found="weights that do not", mend=mend)
    return stain


def change_to(stain: np.ndarray | None, wanted: Sequence, share: float = 1.0) -> tuple[Tensor, Tensor]:
    """Factors and shifts `(3,)` for `restain` that bring what `stain_of` found a `share` of the way to `wanted`.

    Means and deviations are matched as Reinhard et al. 2001 match those of colours, but stain by stain. A deviation
    changes fourfold at most (our choice). Where no stain was found, nothing changes.
    """
    if stain is None:
        return torch.ones(3), torch.zeros(3)
    (mean, deviation), (to, spread) = stain, stain + share * (np.array(wanted) - stain)
    factors = (spread / deviation.clip(1e-6)).clip(0.25, 4)
    return torch.from_numpy(factors).float(), torch.from_numpy(to - factors * mean).float()


def restained(pixels: Tensor, factors: Tensor, shifts: Tensor) -> Tensor:
    """`restain` by the same `(3,)` for all of `(B, H, W, 3)` bytes, rounded to bytes."""
    change = (part.to(pixels.device).expand(len(pixels), 3) for part in (factors, shifts))
    return restain(pixels.permute(0, 3, 1, 2).float(), *change).round().clamp(0, 255).byte().permute(0, 2, 3, 1)


def normalised(pixels: np.ndarray, wanted: Sequence, share: float = 1.0) -> np.ndarray:
    """`(H, W, 3)` uint8 a `share` of the way to the stain `wanted`, as `typical_stain` gives it."""
    change = change_to(stain_of(pixels), wanted, share)
    rows = torch.from_numpy(np.ascontiguousarray(pixels)).split(1024)
    return torch.cat([restained(part[None], *change)[0] for part in rows]).numpy()


def colour_jitter(pixels: Tensor, draw: _Draws, strength: float) -> Tensor:
    """Change brightness, contrast and saturation of `(B, 3, H, W)` 0 to 255 by factors of up to 1 +- `strength`."""
    if strength == 0:
        return pixels
    brightness, contrast, saturation = draw.uniform(3, 1, 1, 1, low=1 - strength, high=1 + strength).unbind(1)
    pixels = torch.lerp(pixels.mean(1, keepdim=True), pixels, saturation)
    pixels = torch.lerp(pixels.mean((1, 2, 3), keepdim=True), pixels, contrast)
    return pixels * brightness


def blur(pixels: Tensor, draw: _Draws, strongest: float) -> Tensor:
    """Gaussian blur with sigma up to `strongest` pixels, on one crop in three of `(B, 3, H, W)`."""
    if strongest == 0:
        return pixels
    sigma = draw.uniform(high=strongest) * (draw.uniform() < 1 / 3)
    offsets = torch.arange(-3, 4, device=pixels.device)
    kernel = torch.exp(-(offsets**2) / (2 * sigma[:, None].clamp(min=1e-3) ** 2))
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(3, 0)[:, None, None]  # (3B, 1, 1, 7)
    x = F.pad(pixels.reshape(1, -1, *pixels.shape[-2:]), (3, 3, 3, 3), mode="reflect")
    x = F.conv2d(F.conv2d(x, kernel, groups=len(kernel)), kernel.mT, groups=len(kernel))
    return x.view_as(pixels)
