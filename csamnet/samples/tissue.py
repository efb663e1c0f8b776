"""Painted tissue stained with haematoxylin and eosin, with the outlines of its nuclei.

Tissue is painted as amounts of dye (haematoxylin, eosin, red cells; optical density, natural logarithm) at
0.25 um per pixel, and only the last step turns dye into light, as a slide scanner does (Beer and Lambert).
Every image has its own random generator, so a seed gives the same bytes on every run.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from io import BytesIO
from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy import fft
from scipy.ndimage import gaussian_filter, zoom
from scipy.spatial import cKDTree
from scipy.spatial.distance import cdist

MPP = 0.25  # microns per pixel
PAD = 24  # painted beyond each border and cut off again, so that the border is like the middle
Rng = np.random.Generator


@dataclass(frozen=True)
class Look:
    """How the tissue of one organ is built. Lengths in pixels; dye in optical density."""

    organ: str
    cell: float  # spacing of epithelial cells
    nucleus: float  # radius of their nuclei
    pale: float  # 0: dense chromatin, 1: empty nucleus with a dark rim
    gland: float = 0  # radius of glands; 0: sheets of cells
    lumen: float = 0  # hollow of a gland, as a share of its radius; in sheets: width of the slits, in pixels
    cover: float = 0.5  # share of epithelium where there are no glands
    clear: float = 0  # how empty the cytoplasm is
    wall: float = 0.2  # dye on the cell membranes
    gap: float = 0  # white between the cells
    grain: float = 0.2  # coarseness of the cytoplasm
    dye: tuple[float, float] = (0.45, 0.5)  # haematoxylin and eosin of the cytoplasm
    torn: float = 0.04  # share of the image without tissue
    tall: float = 1.35  # length over width of the nuclei


class Stain(NamedTuple):
    """One laboratory: directions of its dyes in optical density (RGB), their strength, the bare glass."""

    haematoxylin: tuple[float, float, float]
    eosin: tuple[float, float, float]
    strength: tuple[float, float]
    glass: tuple[int, int, int]


LOOKS = {
    "BR": Look("breast", 37, 14, 0.5, gland=85, dye=(0.48, 0.45)),
    "KI": Look("kidney", 48, 11.5, 0.4, cover=0.8, clear=0.82, wall=0.45, dye=(0.38, 0.52), tall=1.25),
    "LI": Look("liver", 44, 13.5, 0.65, lumen=8, cover=0.9, dye=(0.36, 0.65), torn=0.01, tall=1.2),
    "PR": Look("prostate", 31, 13.5, 0.85, gland=105, lumen=0.45, grain=0.3, dye=(0.35, 0.45), clear=0.3),
    "ST": Look("stomach", 36, 12.5, 0.15, cover=0.85, gap=0.9, dye=(0.6, 0.55), wall=0, torn=0.12, tall=1.5),
    "BL": Look("bladder", 34, 13, 0.4, cover=0.75, wall=0.15, dye=(0.42, 0.5), tall=1.5),
    "CO": Look("colon", 33, 12.5, 0.35, gland=95, lumen=0.35, clear=0.3, dye=(0.45, 0.5), tall=1.7),
    "BN": Look("brain", 64, 11.5, 0.25, cover=1, grain=0.4, dye=(0.27, 0.6), wall=0, torn=0.005),
}
ORGANS = {code: look.organ for code, look in LOOKS.items()}
"""Second field of a sample's name -> organ."""
STAINS = {
    "pink": Stain((0.53, 0.75, 0.40), (0.16, 0.82, 0.55), (0.95, 0.95), (252, 243, 248)),
    "violet": Stain((0.62, 0.72, 0.32), (0.25, 0.90, 0.35), (1.1, 0.95), (248, 239, 247)),
    "grey": Stain((0.66, 0.66, 0.35), (0.30, 0.80, 0.52), (1.05, 0.7), (246, 241, 244)),
    "dark": Stain((0.53, 0.76, 0.37), (0.17, 0.88, 0.44), (1.3, 1.3), (245, 230, 238)),
    "magenta": Stain((0.57, 0.72, 0.40), (0.21, 0.92, 0.33), (1.15, 1.35), (249, 231, 243)),
}
TRAIN = ("BR", "KI", "LI", "PR", "ST"), ("pink", "violet", "grey", "dark")  # all pairs in turn
TEST = ("BL", "PR", "LI", "ST"), ("violet", "grey", "pink", "dark")  # bladder is in no training image


def _noise(rng: Rng, size: int, sigma: float) -> np.ndarray:
    """Smooth noise (size, size), float32: mean 0, deviation 1, alike over about `sigma` pixels."""
    fall = np.exp(-2 * (np.pi * sigma * np.fft.fftfreq(size)) ** 2).astype(np.float32)
    waves = rng.standard_normal((size, size // 2 + 1, 2), np.float32).view(np.complex64)[..., 0]
    field = fft.irfft2(waves * (fall[:, None] * fall[: size // 2 + 1]), (size, size))
    return (field - field.mean()) / field.std()


def _soft(field: np.ndarray, width: float = 1.5) -> np.ndarray:
    """0 to 1 across `width` pixels where a field in pixels passes zero."""
    return np.clip(field / width + 0.5, 0, 1)


def _above(field: np.ndarray, share: float) -> np.ndarray:
    """A field shifted so that `share` of it is positive."""
    return field - np.quantile(field, 1 - share)


def _at(field: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Values (...) of a field at points (..., 2); outside, those of the border."""
    y, x = np.moveaxis(np.clip(points, 0, len(field) - 1).astype(int), -1, 0)
    return field[y, x]


def _lattice(rng: Rng, size: int, step: float, jitter: float = 0.25) -> np.ndarray:
    """Points (n, 2) about `step` apart: a hexagonal lattice, turned and shaken."""
    reach = np.arange(-size // step, size // step + 1) * step
    i, j = np.meshgrid(reach, reach, indexing="ij")
    points = np.stack([i * 0.866, j + i / 2 % step], -1).reshape(-1, 2)
    a = rng.uniform(0, np.pi)
    points = points @ [[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]] + size / 2
    points += rng.normal(0, jitter * step, points.shape)
    return points[((points > -step) & (points < size + step)).all(1)]


def _epithelium(rng: Rng, look: Look, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Depth inside epithelium and inside hollows (pixels), cell centres (n, 2), their directions (n,)."""
    noise = partial(_noise, rng, size)
    if not look.gland:
        depth, cells = 25 * _above(noise(35), look.cover), _lattice(rng, size, look.cell)
        slits = look.lumen * _soft(noise(25) + 0.3, 2) - 2 - 26 * np.abs(noise(26))
        return depth, slits, cells, 2 * _at(noise(40), cells)
    centres = _lattice(rng, size, 2 * look.gland, 0.1)
    swell = look.gland * (0.9 + 0.14 * noise(40))  # radius of the gland, were its wall here
    away = cKDTree(centres).query(np.indices((size, size)).reshape(2, -1).T)[0]
    away = np.float32(away.reshape(size, size))
    cells, turns = [], []
    for row, inset in enumerate(np.arange(look.nucleus + 5, look.gland * (1 - look.lumen), 0.9 * look.cell)):
        count = int(2 * np.pi * max(look.gland - inset, look.cell) / look.cell)
        a = np.linspace(0, 2 * np.pi, count, endpoint=False) + rng.uniform(0, 6, (len(centres), 1))
        way, r = np.stack([np.sin(a), np.cos(a)], -1), np.full(a.shape, look.gland - inset)
        for _ in range(2):
            r = _at(swell, centres[:, None] + r[..., None] * way) - inset
        r = r + rng.normal(0, 0.12 * look.cell, r.shape)
        keep = rng.random(a.shape) < (0.35 if row and look.lumen else 0.95)
        cells.append((centres[:, None] + r[..., None] * way)[keep])
        turns.append(a[keep])
    return swell - away, look.lumen * swell - away - 5, np.concatenate(cells), np.concatenate(turns)


def _fibres(rng: Rng, depth: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Direction of the collagen (radians), fine and coarse streaks: noise averaged along that direction."""
    size = len(depth)
    grid = np.indices((size, size))
    level = 0.5 * gaussian_filter(np.clip(depth, -60, 10), 8) + 16 * _noise(rng, size, 45)
    dy, dx = np.gradient(level + np.tensordot(rng.normal(0, 0.3, 2), grid, 1))
    along = np.stack([dx, -dy]) / np.hypot(dx, dy)
    streaks = np.stack([_noise(rng, size, 0.8), _noise(rng, size, 2.6)])
    for step in (1, 2, 4, 8, -1, -2, -4, -8):
        y, x = np.clip(np.rint(grid + step * along), 0, size - 1).astype(int)
        streaks = (streaks + streaks[:, y, x]) / 2
    return np.arctan2(along[0], along[1]), *(streaks / streaks.std((1, 2), keepdims=True))


def _cytoplasm(rng: Rng, look: Look, cells: np.ndarray, size: int) -> np.ndarray:
    """Haematoxylin and eosin (2, size, size) of a sheet of cells without their nuclei."""
    noise = partial(_noise, rng, size)
    warped = (np.indices((size, size)) + 2.5 * np.stack([noise(6), noise(6)]))[:, ::2, ::2]
    away, owner = np.moveaxis(cKDTree(cells).query(np.moveaxis(warped, 0, -1), k=2), -1, 1)
    border = zoom(np.float32(away[1] - away[0]) / 2, 2, order=1)[:size, :size]
    owner = owner[0].astype(int).repeat(2, 0).repeat(2, 1)[:size, :size]
    tone = rng.lognormal(0, [[0.3], [0.15]], (2, len(cells))).astype(np.float32)[:, owner]
    foam = np.exp(-((noise(2.2) / 0.5) ** 2)) + 0.7 * np.exp(-((noise(4) / 0.4) ** 2))
    grain = 0.6 * noise(1.3) + 0.5 * noise(3) + 1.2 * foam - 0.6 + 0.4 * np.stack([noise(1.3), noise(1.3)])
    dye = np.float32(look.dye)[:, None, None] * tone * np.maximum(1 + look.grain * grain, 0.15)
    dye[0] *= np.exp(0.25 * noise(20))
    empty = look.clear * np.minimum(rng.uniform(0.4, 1.6, len(cells)), 1).astype(np.float32)[owner]
    dye *= 1 - empty * _soft(border - 3 - 3 * noise(5), 6)
    wall = look.wall * np.exp(-((border / 1.3) ** 2)) * _soft(noise(9) + 0.9, 2)
    dye += np.stack([0.35 * wall, wall])
    return dye * (1 - look.gap * np.exp(-((border / 2.6) ** 2)) * _soft(noise(14) + 0.5, 1))


def _ground(rng: Rng, look: Look, depth, hollow, cells, fine, coarse) -> tuple[np.ndarray, np.ndarray]:
    """Dye (3, size, size) of everything but nuclei, and where tissue is missing (0 to 1)."""
    size = len(depth)
    noise = partial(_noise, rng, size)
    eosin = 0.55 + 0.15 * fine + 0.09 * coarse + 0.12 * noise(30) + 0.04 * noise(0.8)
    eosin *= 1 - 0.85 * _soft(coarse + 0.8 * noise(25) - 1.4, 1)  # clefts between bundles
    bluish = 0.14 + 0.05 * fine + 0.3 * np.maximum(noise(22) - 0.6, 0)  # mucin, ground substance
    inside = _soft(depth + 1.5 * noise(2), 2)
    dye = inside * _cytoplasm(rng, look, cells, size) + (1 - inside) * np.stack([bluish, eosin])
    dye *= np.exp(0.15 * noise(60))  # thickness of the section
    vessel = 16 * _above(noise(14) - 3 * inside, 0.008) + 2 * noise(3)
    tears = 20 * _above(noise(18) + 0.2 * noise(3), look.torn)
    slit = 3 * (noise(30) - 0.3) - np.abs(depth + 4 + 2 * noise(4))  # epithelium shrinks away from its bed
    edges = ((hollow + 3 * noise(4), 3), (tears, 3), (slit, 2), (vessel, 3))
    missing = np.max([_soft(*edge) for edge in edges], 0)
    dye *= 1 - missing * (0.97 - 0.12 * _soft(noise(9) - 1, 2))
    red, pool = np.zeros_like(missing), vessel > 0
    red[pool] = _soft(8 - cKDTree(_lattice(rng, size, 15)).query(np.argwhere(pool))[0], 3)
    return np.stack([*np.maximum(dye, 0.02), red * _soft(vessel, 4) * _soft(noise(9) + 0.6, 2)]), missing


@dataclass(frozen=True)
class Nucleus:
    """One nucleus: an ellipse with bumps, bent, with its chromatin. Lengths in pixels, centre (y, x)."""

    centre: np.ndarray
    radius: float
    tall: float  # length over width
    turn: float  # radians
    dye: float
    pale: float
    bumps: np.ndarray  # (3,) complex: second to fourth harmonic of the outline
    bend: float
    soft: float  # width of the edge: more is further out of focus
    nucleolus: float

    def reach(self, angle: np.ndarray) -> np.ndarray:
        """Radius in pixels at each angle, before the circle is drawn out to an ellipse."""
        wave, (second, third, fourth) = np.exp(1j * angle), self.bumps
        return self.radius * np.maximum(1 + (wave**2 * (second + wave * (third + wave * fourth))).real, 0.4)

    def outline(self) -> np.ndarray:
        """Vertices (48, 2) as x, y."""
        a = np.linspace(0, 2 * np.pi, 48, endpoint=False)
        u, v = self.reach(a) * [np.cos(a) * self.tall**0.5, np.sin(a) / self.tall**0.5]
        v, c, s = v + self.bend * u**2, np.cos(self.turn), np.sin(self.turn)
        return self.centre[::-1] + np.stack([c * u - s * v, s * u + c * v], 1)

    def draw(self, dye: np.ndarray, chromatin: np.ndarray) -> None:
        """Lay the nucleus over dye (3, size, size); chromatin (2, size, size) is fine and coarse noise."""
        far = int(self.radius * self.tall**0.5 * 1.5) + 6
        top, left = np.maximum(self.centre.astype(int) - far, 0)
        window = np.s_[:, top : top + 2 * far, left : left + 2 * far]
        fine, coarse = chromatin[window]
        y, x = np.indices(fine.shape) + np.reshape([top, left] - self.centre, (2, 1, 1))
        u, v = np.cos(self.turn) * x + np.sin(self.turn) * y, np.cos(self.turn) * y - np.sin(self.turn) * x
        u, v = u / self.tall**0.5, (v - self.bend * u**2) * self.tall**0.5
        inside = (self.reach(np.arctan2(v, u)) - np.hypot(u, v)) / self.tall**0.5
        rim = np.exp(-(((inside - 1.4) / 1.4) ** 2)) * (0.8 + 0.3 * coarse)
        dense = 1 + 0.1 * (fine + coarse + u / self.radius) + 0.15 * rim
        empty = 0.3 + 0.3 * np.maximum(fine, -0.4) + 0.12 * coarse + 0.8 * rim
        spot = self.nucleolus * np.exp(-((u - 2) ** 2 + (v + 1) ** 2) / 5)
        blue = self.dye * (dense + self.pale * (empty - dense) + spot)
        target = np.stack([blue, 0.25 + 0.1 * blue, 0 * blue]) + np.reshape([0.3, 0.4, 0], (3, 1, 1)) * dye[window]
        dye[window] += _soft(inside, self.soft) * (target - dye[window])


def _cluster(rng: Rng, points, turns, radius, tall, dye, pale, bend=0.0) -> list[Nucleus]:
    """Nuclei of one kind at points (n, 2); about a third are faint and out of focus."""
    n = len(points)
    blur = rng.choice([0, 1, 2], n, p=[0.68, 0.24, 0.08])
    dyes = dye * np.maximum(rng.lognormal(0, 0.25, n) * np.array([1, 0.6, 0.5])[blur], 0.4)
    sizes, shapes = radius * rng.lognormal(0, 0.2, n), 1 + (tall - 1) * rng.lognormal(0, 0.4, n)
    bumps = rng.normal(size=(n, 6)).view(complex) * [0.033, 0.033, 0.02]
    pales, bends = np.clip(pale + rng.normal(0, 0.18, n), 0, 1), bend * rng.normal(size=n)
    soft, nucleoli = np.array([1.5, 3.5, 8])[blur], 0.5 * (rng.random(n) < pale)
    parts = points, sizes, shapes, turns, dyes, pales, bumps, bends, soft, nucleoli
    return [Nucleus(*part) for part in zip(*parts, strict=True)]


def _nuclei(rng: Rng, look: Look, depth, missing, cells, turns, along) -> list[Nucleus]:
    """Nuclei of epithelium, connective tissue and immune cells, in the order in which they are laid down."""
    size = len(depth)
    inner, dye = _at(depth, cells) > 2, 1.5 - 0.5 * look.pale
    shift = rng.normal(0, 0.35 * max(look.cell / 2 - look.nucleus, 0), cells.shape)
    bed, crowd = _lattice(rng, size, 44, 0.3), _lattice(rng, size, 21)
    bed = bed[_at(depth, bed) < -8]
    crowd = crowd[_at(_noise(rng, size, 28), crowd) > np.where(_at(depth, crowd) > 0, 2.2, 1.5)]
    found = _cluster(rng, (cells + shift)[inner], turns[inner], look.nucleus, look.tall, dye, look.pale)
    found += _cluster(rng, bed, _at(along, bed), 9.5, 2.6, 1.4, 0.25, 0.012)
    found += _cluster(rng, crowd, rng.uniform(0, 6, len(crowd)), 9.2, 1.15, 1.6, 0.12)
    centres, radii = np.reshape([n.centre for n in found], (-1, 2)), np.array([n.radius for n in found])
    close = cdist(centres, centres) < 0.82 * (radii[:, None] + radii)  # some overlap, none is hidden
    kept = np.zeros(len(found), bool)
    for i in np.flatnonzero(_at(missing, centres) < 0.5):
        kept[i] = not (close[i] & kept).any()
    return [found[i] for i in rng.permutation(np.flatnonzero(kept))]


def _scan(rng: Rng, dye: np.ndarray, stain: Stain) -> np.ndarray:
    """Dye (3, size, size) -> RGB uint8 without the padding, as one slide in one scanner."""
    axes = np.array([stain.haematoxylin, stain.eosin, (0.12, 0.82, 0.68)]) + rng.normal(0, 0.015, (3, 3))
    axes *= (np.array([*stain.strength, 1.2]) * rng.lognormal(0, 0.12, 3))[:, None]
    light = np.exp(-np.tensordot(axes.T, dye, 1))
    blur = rng.uniform(0.5, 0.9)
    sharp, dull = (gaussian_filter(light, (0, sigma, sigma)) for sigma in (blur, blur + 0.7))
    light = sharp + _soft(_noise(rng, dye.shape[1], 70) - 1.7, 0.8) * (dull - sharp)
    light = light.transpose(1, 2, 0)[PAD:-PAD, PAD:-PAD] * (stain.glass + rng.normal(0, 2, 3))
    light += rng.normal(0, 2, light.shape)
    buffer = BytesIO()
    image = Image.fromarray(np.clip(light, 0, 255).astype(np.uint8))
    image.save(buffer, "JPEG", quality=int(rng.integers(75, 92)))
    return np.asarray(Image.open(buffer))


def area(outline: np.ndarray) -> float:
    x, y = outline.T
    return abs(x @ np.roll(y, 1) - y @ np.roll(x, 1)) / 2


def paint(rng: Rng, look: Look, stain: Stain, size: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """An image (size, size, 3) uint8 and the outlines (48, 2) of its nuclei as x, y, the later on top."""
    whole = size + 2 * PAD
    depth, hollow, cells, turns = _epithelium(rng, look, whole)
    along, fine, coarse = _fibres(rng, depth)
    dye, missing = _ground(rng, look, depth, hollow, cells, fine, coarse)
    chromatin = np.stack([_noise(rng, whole, 1.1), _noise(rng, whole, 2.0)])
    outlines = []
    for nucleus in _nuclei(rng, look, depth, missing, cells, turns, along):
        nucleus.draw(dye, chromatin)
        if nucleus.soft < 5:  # what is far out of focus is not annotated
            outlines.append(np.clip(nucleus.outline() - PAD, 0, size - 1))
    return _scan(rng, dye, stain), [outline for outline in outlines if area(outline) > 30]
