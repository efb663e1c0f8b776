"""Look-alike slides of breast tissue: structures are laid out coarsely, nuclei are stamped from a small stock.

Lengths are in micrometres, in the layout too, until they meet the pixels of a slide. Dyes and light are those of
`tissue`.
"""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass, replace
from functools import partial
from math import cos, pi, sin
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import tifffile
from PIL import Image, ImageDraw
from scipy.ndimage import gaussian_filter
from scipy.spatial import cKDTree

from csamnet.images import write_image
from csamnet.samples.tissue import STAINS, Rng, Stain, _cluster, _lattice, _noise, _soft, area

BILINEAR = Image.Resampling.BILINEAR
COARSE = 4  # pixels of the slide per pixel of the layout
BAND = 128  # rows that are painted at once
REPEAT = 512  # pixels after which fine texture repeats itself, fibres after twice as many
NAMES = {"benign": "Benign", "in situ": "Carcinoma in situ", "invasive": "Invasive carcinoma"}
COLOURS = {"benign": (255, 0, 0), "in situ": (0, 255, 0), "invasive": (0, 0, 255)}
CASES = (
    (("invasive", 270), ("benign", 130), ("lobule", 90), ("duct", 45), ("immune", 45)),
    (("in situ", 150), ("in situ", 120), ("in situ", 95), ("lobule", 120), ("duct", 50), ("immune", 60)),
    (("invasive", 220), ("in situ", 125), ("benign", 120), ("lobule", 100), ("immune", 70)),
    (("benign", 190), ("in situ", 150), ("in situ", 85), ("lobule", 110), ("duct", 55)),
    (("invasive", 190), ("invasive", 150), ("in situ", 110), ("lobule", 120), ("duct", 40)),
)
"""What grows in a slide, and its radius."""


@dataclass(frozen=True)
class Blob:
    """A structure with a wavy border."""

    kind: str
    centre: np.ndarray  # (y, x)
    radius: float
    waves: np.ndarray  # complex: second and higher harmonics of the border

    def reach(self, way: np.ndarray) -> np.ndarray:
        """Distance from the centre to the border in each direction, a complex number of length 1."""
        total = 0
        for wave in self.waves[::-1]:
            total = (total + wave) * way
        return self.radius * (1 + (total * way).real)

    def outline(self, margin: float) -> np.ndarray:
        """Vertices (n, 2) as x, y, drawn outside of the border by `margin`."""
        way = np.exp(2j * np.pi * np.arange(0, 1, 4 / self.radius))
        points = (self.reach(way) + margin) * way
        return self.centre[::-1] + np.stack([points.real, points.imag], 1)


class Layout:
    """Where is what on a slide: fields (h, w) on a coarse grid, depths in um (positive inside)."""

    FIELDS = ("y", "x", "tissue", "depth", "hollow", "dead", "cancer", "immune", "loose")

    def __init__(self, rng: Rng, case: tuple, shape: tuple[int, int], pixel: float):
        self.rng, self.shape, self.pixel = rng, shape, pixel
        self.y, self.x = (np.indices(shape, np.float32) + 0.5) * pixel
        self.height, self.width = (float(n * pixel) for n in shape)
        half = min(self.height, self.width) / 2
        u, v = 2 * self.x / self.width - 1, 2 * self.y / self.height - 1
        self.tissue = half * (0.87 - np.sqrt(np.sqrt(u**4 + v**4) + 1e-9)) + 4 * self.noise(9)
        self.tissue += 0.05 * half * self.noise(0.15 * half)
        self.depth, self.hollow, self.dead = (np.full(shape, -99, np.float32) for _ in range(3))
        self.cancer, self.immune, self.loose = (np.zeros(shape, np.float32) for _ in range(3))
        self.blobs, self.forms = [], list(rng.permutation(3))
        fit = min(1, 0.65 * half / max(radius for _, radius in case))
        for kind, radius in case:
            self.place(kind, fit * radius)
        for blob in self.blobs:
            self.around(blob).grow(blob)
        self.fat = self.fat_cells()

    def noise(self, sigma: float) -> np.ndarray:
        size = max(self.shape)
        return _noise(self.rng, size, min(sigma / self.pixel, 0.3 * size))[: self.shape[0], : self.shape[1]]

    def place(self, kind: str, radius: float) -> None:
        """Find room for a structure in the tissue; where there is none, it is left out."""
        strength = 0.1 if kind == "invasive" else 0.05
        for _ in range(400):
            centre = self.rng.uniform(0, (self.height, self.width))
            waves = strength * self.rng.normal(size=(6, 2)).view(complex)[:, 0] / np.sqrt(np.arange(1, 7))
            apart = [np.hypot(*(centre - other.centre)) - other.radius for other in self.blobs]
            room = min(apart, default=np.inf) > 1.05 * radius + 12
            if room and look_up(self.tissue, centre[None], self.pixel) > 0.95 * radius:
                self.blobs.append(Blob(kind, centre, radius, waves.astype(np.complex64)))
                return

    def around(self, blob: Blob) -> Layout:
        """The part of the layout around a structure; its fields are views."""
        part, far = copy(self), 1.4 * blob.radius + 40
        low, high = (np.maximum((blob.centre + d) / self.pixel, 0).astype(int) for d in (-far, far))
        for name in self.FIELDS:
            setattr(part, name, getattr(self, name)[low[0] : high[0], low[1] : high[1]])
        part.shape = part.y.shape
        return part

    def grow(self, blob: Blob) -> None:
        z = self.x - np.float32(blob.centre[1]) + 1j * (self.y - np.float32(blob.centre[0]))
        away = np.abs(z) + 1e-3
        inside = blob.reach(z / away) - away
        if blob.kind == "immune":
            self.immune += _soft(inside, blob.radius)
        elif blob.kind == "in situ":
            self.fill(blob, inside)
        elif blob.kind == "invasive":
            self.invade(inside)
        else:
            self.acini(blob, inside)

    def fill(self, blob: Blob, inside: np.ndarray) -> None:
        """A duct full of cancer: solid, with round holes, or dead in the middle."""
        self.forms.append(form := self.forms.pop(0))
        np.maximum(self.depth, inside, out=self.depth)
        self.cancer[inside > -3] = 1
        if form == 1:
            holes = _lattice(self.rng, int(2 * blob.radius), 42, 0.15) + blob.centre - blob.radius
            size, deep = self.rng.uniform(6, 15, len(holes)), inside > 18
            away, nearest = cKDTree(holes).query(np.stack([self.y, self.x], -1)[deep])
            self.hollow[deep] = size[nearest] - away + 2 * self.noise(8)[deep]
        elif form == 2:
            np.maximum(self.dead, inside - 0.5 * blob.radius + 5 * self.noise(12), out=self.dead)

    def invade(self, inside: np.ndarray) -> None:
        """Irregular nests and cords in a bed of new fibres."""
        cords, nests = 10 - 26 * np.abs(self.noise(16)), 20 * (self.noise(14) - self.rng.uniform(0.1, 0.6))
        ragged = inside + 12 * self.noise(12)
        np.maximum(self.depth, np.minimum(ragged, np.maximum(cords, nests)), out=self.depth)
        self.cancer[inside > -15] = 1
        self.immune += 0.35 * _soft(inside + 15, 30)

    def acini(self, blob: Blob, inside: np.ndarray) -> None:
        """A duct, or small glands in a loose bed: those of a benign growth are wider."""
        centres, size, share = blob.centre[None], np.array([blob.radius]), 0.6
        if blob.kind != "duct":
            step, share = (80, 0.5) if blob.kind == "benign" else (52, 0.3)
            centres = _lattice(self.rng, int(2 * blob.radius), step, 0.13) + blob.centre - blob.radius
            size = 0.46 * step * self.rng.uniform(0.7, 1.15, len(centres))
            z = (centres - blob.centre) @ [1j, 1]
            keep = np.abs(z) + 0.7 * size < blob.reach(z / np.abs(z))
            centres, size = (centres[keep], size[keep]) if keep.any() else (centres[:1], size[:1])
            np.maximum(self.loose, _soft(inside, 15), out=self.loose)
        place = inside > -20
        away, nearest = cKDTree(centres).query(np.stack([self.y, self.x], -1)[place])
        swell = size[nearest] * (1 + 0.16 * self.noise(11)[place])
        self.depth[place] = np.maximum(self.depth[place], swell - away)
        self.hollow[place] = np.maximum(self.hollow[place], share * swell - away - 1 + 1.5 * self.noise(5)[place])

    def fat_cells(self) -> np.ndarray:
        """Depth inside fat cells."""
        region = 30 * (self.noise(90) + 0.2 * self.noise(20) - 0.5) - 60 * (self.loose + self.cancer)
        region -= np.clip(self.depth + 25, 0, 60)
        place, depth = region > -5, np.full(self.shape, -9, np.float32)
        cells = _lattice(self.rng, int(max(self.height, self.width)) + 1, 62, 0.2)
        near, next_ = cKDTree(cells).query(np.stack([self.y, self.x], -1)[place], k=2)[0].T
        depth[place] = np.minimum((next_ - near) / 2 - 1.3, region[place])
        return depth


def look_up(field: np.ndarray, points: np.ndarray, pixel: float) -> np.ndarray:
    """Values of a coarse field at points (n, 2) in um."""
    rows, columns = np.clip((points / pixel).astype(int), 0, np.subtract(field.shape, 1)).T
    return field[rows, columns]


class Canvas:
    """The dye of a slide (3, h, w), painted in bands of rows."""

    def __init__(self, rng: Rng, layout: Layout, shape: tuple[int, int], mpp: float):
        self.rng, self.at, self.shape, self.mpp = rng, layout, shape, mpp
        self.dye = np.empty((3, *shape), np.float32)
        self.bands = [slice(top, min(top + BAND, shape[0])) for top in range(0, shape[0], BAND)]

    def texture(self, *sigmas: float) -> np.ndarray:
        """Noise (REPEAT, w) of several sizes in um, or without any from pixel to pixel."""
        if not sigmas:
            noise = self.rng.standard_normal((REPEAT, REPEAT), np.float32)
        else:
            noise = sum(_noise(self.rng, REPEAT, sigma / self.mpp) for sigma in sigmas) / len(sigmas) ** 0.5
        return np.tile(noise, (1, -(-self.shape[1] // REPEAT)))[:, : self.shape[1]]

    def ground(self) -> None:
        """Everything but nuclei."""
        at, a = self.at, self.rng.uniform(0, pi)
        wrap = gaussian_filter(np.clip(at.depth, -40, 8), 12 / at.pixel)
        self.level = at.x * sin(a) + at.y * cos(a) + 26 * at.noise(70) + 0.8 * wrap  # fibres run along it
        slit = 1.4 * (at.noise(15) - 0.1) - np.abs(at.depth + 2)  # epithelium shrinks away from its bed
        fields = {
            "level": self.level / self.mpp,
            "depth": at.depth,
            "gap": np.max([at.hollow, slit, at.fat, -at.tissue], 0),
            "loose": at.loose,
            "cytoplasm": 0.36 + 0.08 * gaussian_filter(at.cancer, 1),
            "dead": at.dead,
            "tone": np.exp(0.2 * at.noise(45) + 0.12 * at.noise(120)),
        }
        fields = {name: Image.fromarray(np.float32(field)) for name, field in fields.items()}
        strips, grain, soft = self.strips(), self.texture(0.6), self.texture(1.2, 4)
        along = (cos(a) * np.arange(self.shape[1]), -sin(a) * np.arange(self.shape[0])[:, None])
        for rows in self.bands:
            box = (0, rows.start / COARSE, self.shape[1] / COARSE, rows.stop / COARSE)
            size = (self.shape[1], rows.stop - rows.start)
            now = {name: np.asarray(image.resize(size, BILINEAR, box)) for name, image in fields.items()}
            part = slice(rows.start % REPEAT, rows.start % REPEAT + size[1])
            columns = (along[0] + along[1][rows]).astype(np.int32) % len(strips)
            fibre = strips[now["level"].astype(np.int32) % len(strips), columns]
            self.dye[:, rows] = mix(fibre, grain[part], soft[part], self.mpp, **now)

    def strips(self) -> np.ndarray:
        """Noise that is drawn out along its rows."""
        noise = _noise(self.rng, 2 * REPEAT, 0.9 / self.mpp)
        for step in (2, 4, 8, 16, 32):
            noise = noise + np.roll(noise, step, 1)
        return noise / noise.std()

    def nuclei(self) -> None:
        """Nuclei of connective tissue, glands, cancer and immune cells."""
        at, rng = self.at, self.rng
        see = partial(look_up, pixel=at.pixel)
        bed, benign, cancer, immune = (
            _lattice(rng, int(max(at.height, at.width)) + 1, step, jitter)
            for step, jitter in ((19, 0.35), (7.4, 0.12), (8.8, 0.16), (6, 0.2))
        )
        bed = bed[(see(at.depth, bed) < -4) & (rng.random(len(bed)) < 0.5 + 0.3 * see(at.noise(30), bed))]
        benign = benign[(see(at.cancer, benign) < 0.5) & (see(at.depth, benign) > 2)]
        cancer = cancer[(see(at.cancer, cancer) > 0.5) & (see(at.depth, cancer) > 2.5) & (see(at.dead, cancer) < 0)]
        crowd = 0.8 * see(at.immune + 0.25 * at.loose, immune) + 0.25 * see(at.noise(20), immune) - 0.35
        immune = immune[(rng.random(len(immune)) < crowd) & (see(at.depth, immune) < -3)]
        dy, dx = np.gradient(self.level)
        self.stamp(bed, (2.1, 3, 1.15, 0.2), see(np.arctan2(-dx, dy), bed))
        self.stamp(benign, (2.9, 1.25, 1.3, 0.35), rng.uniform(0, pi, len(benign)))
        self.stamp(cancer, (3.8, 1.3, 1.3, 0.5), rng.uniform(0, pi, len(cancer)))
        self.stamp(immune, (2.4, 1.1, 1.5, 0.1), rng.uniform(0, pi, len(immune)))

    def stamp(self, points: np.ndarray, looks: tuple, turns: np.ndarray) -> None:
        """Lay nuclei at points (n, 2) where there is tissue; each is one of a stock, turned as it should be."""
        stock, at = self.stock(*looks), self.at
        which = np.rint(turns / pi * len(stock)).astype(int) + self.rng.integers(-3, 4, len(points))
        gaps = np.max([at.hollow + 2.5, at.fat + 1, 4 - at.tissue], 0)
        free = look_up(gaps, points, at.pixel) < 0
        for (y, x), i in zip((points[free] / self.mpp).astype(int), which[free] % len(stock), strict=True):
            far, added, kept = stock[i]
            if far <= y < self.shape[0] - far and far <= x < self.shape[1] - far:
                window = self.dye[:, y - far : y + far, x - far : x + far]
                window *= kept
                window += added

    def stock(self, radius: float, tall: float, blue: float, pale: float) -> list[tuple]:
        """Forty-eight nuclei, from no turn to half a turn: half the side, dye to add, share of the dye below kept."""
        rng, stock, bend = self.rng, [], 0.003 / self.mpp if tall > 2 else 0.0
        chromatin = np.stack([_noise(rng, 256, sigma / self.mpp) for sigma in (0.28, 0.5)])
        turns = np.linspace(0, pi, 48, endpoint=False)
        for nucleus in _cluster(rng, np.zeros((48, 2)), turns, radius / self.mpp, tall, blue, pale, bend):
            far = int(nucleus.radius * nucleus.tall**0.5 * 1.5) + 6
            nucleus = replace(nucleus, centre=np.array([far, far]))
            added, kept = np.zeros((3, 2 * far, 2 * far), np.float32), np.ones((3, 2 * far, 2 * far), np.float32)
            speckle = np.roll(chromatin, rng.integers(256, size=2), (1, 2))[:, : 2 * far, : 2 * far]
            nucleus.draw(added, speckle)
            nucleus.draw(kept, speckle)
            stock.append((far, added, kept - added))
        return stock

    def scan(self, stain: Stain) -> np.ndarray:
        """RGB (h, w, 3) uint8, as one slide in one scanner."""
        rng = self.rng
        axes = np.array([stain.haematoxylin, stain.eosin, (0.12, 0.82, 0.68)]) + rng.normal(0, 0.01, (3, 3))
        axes = np.float32(axes * (np.array([*stain.strength, 1.2]) * rng.lognormal(0, 0.08, 3))[:, None])
        pixels, noise = np.empty((*self.shape, 3), np.uint8), [2 * self.texture() for _ in range(3)]
        for rows in self.bands:
            start, dye = rows.start % REPEAT, self.dye[:, rows]
            light = np.exp(-axes.T @ dye.reshape(3, -1)).reshape(dye.shape)
            for i, glass in enumerate(stain.glass):
                grain = noise[i][start : start + dye.shape[1]]
                pixels[rows, :, i] = np.clip(light[i] * glass + grain, 0, 255)
        return pixels


def mix(fibre, grain, soft, mpp, *, level, depth, gap, loose, cytoplasm, dead, tone) -> np.ndarray:
    """Dye (3, h, w) of a band without its nuclei."""
    eosin = (0.55 + 0.13 * fibre + 0.06 * soft + 0.05 * grain) * (1 - 0.4 * loose)
    blue = 0.13 + 0.03 * fibre + 0.06 * loose
    thin = 1 - 0.85 * _soft(fibre + 0.4 * soft - 1.9 * tone, 0.8)  # clefts between bundles
    inside, dead = _soft(depth + 0.6 * soft, 2 * mpp), _soft(dead, 6)
    eosin, blue = eosin * thin, blue * thin
    eosin += inside * (0.42 + 0.07 * soft + 0.05 * grain - eosin)
    blue += inside * (cytoplasm + 0.07 * soft + 0.05 * grain - blue)
    eosin += dead * (0.7 + 0.15 * soft + 0.15 * grain - eosin)
    blue += dead * (0.2 + 0.1 * np.maximum(soft, 0) - blue)
    kept = tone * (1 - 0.985 * _soft(gap + 0.5 * soft, 1.5))
    return np.stack([np.maximum(blue, 0.02) * kept, np.maximum(eosin, 0.02) * kept, np.zeros_like(kept)])


def paint_slide(
    rng: Rng, case: tuple, stain: Stain, shape: tuple[int, int], mpp: float
) -> tuple[np.ndarray, list[Blob]]:
    """A slide (h, w, 3) uint8 at `mpp` um per pixel, and its structures."""
    layout = Layout(rng, case, tuple(-(-n // COARSE) for n in shape), COARSE * mpp)
    canvas = Canvas(rng, layout, shape, mpp)
    canvas.ground()
    canvas.nuclei()
    return canvas.scan(stain), layout.blobs


def write_slide(path: Path, pixels: np.ndarray, mpp: float) -> None:
    """A pyramid of tiles (1, 4, 16) in one TIFF, with the thumbnail and description of an Aperio scanner."""
    height, width = pixels.shape[:2]
    head = f"Aperio Image Library v11.2.1 \r\n{width}x{height}"
    tail = f"|AppMag = {20 if mpp > 0.35 else 40}|MPP = {mpp:.4f}"
    image = Image.fromarray(pixels)
    options = {"photometric": "rgb", "compression": "jpeg", "compressionargs": {"level": 80}, "metadata": None}
    options |= {"software": False, "contiguous": False}
    with tifffile.TiffWriter(path) as file:
        for i, factor in enumerate((1, 16, 4, 16)):
            level = np.asarray(image.reduce(factor))
            about = f"{head} (256x256) -> {level.shape[1]}x{level.shape[0]} JPEG/RGB Q=80{tail}"
            tile = {"tile": (256, 256)} if i != 1 else {"rowsperstrip": level.shape[0]}
            file.write(level, description=about, **tile, **options)


def annotation(blobs: list[Blob], mpp: float) -> bytes:
    """Structures of the three classes as XML of Aperio ImageScope, in pixels of level 0."""
    add = ElementTree.SubElement
    root = ElementTree.Element("Annotations", MicronsPerPixel=f"{mpp:.6f}")
    regions = add(add(root, "Annotation", Id="1", Name="", Type="4", LineColor="65280", Visible="1"), "Regions")
    for i, blob in enumerate((blob for blob in blobs if blob.kind in NAMES), 1):
        outline = blob.outline(8) / mpp
        sizes = {"Area": f"{area(outline):.1f}", "AreaMicrons": f"{area(outline) * mpp**2:.1f}"}
        region = add(regions, "Region", sizes, Id=str(i), Type="0", Text=NAMES[blob.kind], NegativeROA="0")
        vertices = add(region, "Vertices")
        for x, y in outline:
            add(vertices, "Vertex", X=f"{x:.1f}", Y=f"{y:.1f}", Z="0")
    ElementTree.indent(root, "\t")
    return ElementTree.tostring(root)


def bach2018(folder: Path, seed: int, *, slides: int = 5, size: int = 2048) -> None:
    """Part B of BACH as released, slides of `size` pixels in height and 1.5 times that in width, at 0.467 um."""
    inner, mpp = folder / "ICIAR2018_BACH_Challenge" / "WSI", 0.467
    (inner / "gt_thumbnails").mkdir(parents=True)
    for i in range(slides):
        rng, stain = np.random.default_rng([seed, i]), STAINS[("pink", "violet", "dark", "grey", "magenta")[i % 5]]
        pixels, blobs = paint_slide(rng, CASES[i % len(CASES)], stain, (size, size * 3 // 2), mpp)
        write_slide(inner / f"A{i + 1:02}.svs", pixels, mpp)
        (inner / f"A{i + 1:02}.xml").write_bytes(annotation(blobs, mpp))
        classes = Image.new("RGB", (size * 3 // 32, size // 16))
        for blob in blobs:
            if blob.kind in NAMES:
                points = [tuple(point) for point in (blob.outline(8) / mpp / 16).tolist()]
                ImageDraw.Draw(classes).polygon(points, fill=COLOURS[blob.kind])
        write_image(inner / "gt_thumbnails" / f"A{i + 1:02}.png", np.asarray(classes))


def in_house(folder: Path, seed: int, *, slides: int = 2, size: int = 1536) -> None:
    """Slides without annotation at 0.25 um, `size` pixels in height and 1.5 times that in width."""
    cases = (("invasive", 110), ("duct", 40), ("immune", 40)), (("lobule", 110), ("duct", 35), ("immune", 30))
    for i in range(slides):
        rng, stain = np.random.default_rng([seed, i]), STAINS[("magenta", "grey")[i % 2]]
        pixels, _ = paint_slide(rng, cases[i % 2], stain, (size, size * 3 // 2), 0.25)
        write_slide(folder / f"SAMPLE-{i + 1:02}.svs", pixels, 0.25)
