"""Look-alike release of Dataset B: ultrasound of painted breasts, each with one lesion.

Tissue is painted as echo strength in dB. Speckle comes of it as in a scanner: complex noise of that strength, smoothed
by the pulse (down) and the wider beam (across), whose envelope is shown on a logarithmic scale.
"""

from __future__ import annotations

import zipfile
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter, gaussian_filter1d

from csamnet.images import write_image

AXIAL, LATERAL = 0.8, 1.8  # standard deviations of pulse and beam, in pixels
LOOKS = 2  # pictures from several angles that the scanner averages
WHITE, RANGE, NOISE = 16.0, 60.0, -37.0  # dB: shown as white, from black to white, what the receiver adds
SKIN, FAT, GLAND, MUSCLE, RIBS = -2.0, -20.0, -8.0, -21.0, -32.0  # mean echo, dB
Rng = np.random.Generator


def smooth(rng: Rng, shape: tuple[int, int], *sigma: float) -> np.ndarray:
    """Smooth noise (H, W): mean 0, deviation 1, alike over about `sigma` pixels (down, across)."""
    field = gaussian_filter(rng.standard_normal(shape), sigma, mode="wrap")
    return (field - field.mean()) / field.std()


def speckle(rng: Rng, echo: np.ndarray) -> np.ndarray:
    """Envelope (H, W) of the echoes of tissue whose strength is `echo` in dB: Rayleigh, mean square 1 at 0 dB."""
    noise = rng.standard_normal((2, *echo.shape)) * 10 ** (echo / 20)
    real, imaginary = (gaussian_filter(part, (AXIAL, LATERAL)) for part in noise)
    return np.hypot(real, imaginary) * np.sqrt(2 * np.pi * AXIAL * LATERAL)


def _lines(field: np.ndarray, width: float) -> np.ndarray:
    """0 to 1: lines where a field passes zero."""
    return np.exp(-((field / width) ** 2))


def _layers(rng: Rng, shape: tuple[int, int]) -> np.ndarray:
    """Echo (H, W) of a breast: skin, fat with septa, glandular tissue with lobules of fat, muscle, ribs."""
    height, width = shape
    scale, (y, x) = width / 300, np.indices(shape)
    share = np.array([0.05, rng.uniform(0.16, 0.34), rng.uniform(0.58, 0.72), rng.uniform(0.82, 0.95)])
    waves = np.array([[0.006], [0.045], [0.04], [0.04]]) * smooth(rng, (4, width), 0, 30 * scale)
    skin, top, bottom, ribs = height * (share[:, None] + waves)
    along = (y - ((top + bottom) / 2).astype(int)) % height, x  # streaks follow the layers

    def noise(down: float, across: float) -> np.ndarray:
        return smooth(rng, shape, down * scale, across * scale)[along]

    septa = _lines(noise(14, 34), 0.08) + _lines(noise(3, 24), 0.15)
    fat = FAT + 3 * noise(12, 20) + 11 * septa * np.clip(0.4 + noise(20, 12), 0, 1.3)
    lobules = np.clip(noise(12, 22) * 4 - 3.2, 0, 1)
    gland = GLAND + 3 * noise(9, 16) + 4 * noise(1.5, 9) + 9 * _lines(noise(2.5, 24), 0.12) - 12 * lobules
    muscle = MUSCLE + 3 * noise(6, 40) + 14 * _lines(noise(2, 35), 0.16)
    echo = SKIN + 10 * np.cos(2 * np.pi * y / skin)
    for edge, tissue in ((skin, fat), (top, gland), (bottom, muscle), (ribs, RIBS)):
        echo += (tissue - echo) * np.clip((y - edge) / (8 * scale) + 0.5, 0, 1)
    fascia = 12 * _lines((y - bottom) / scale, 1.6) + 16 * _lines((y - ribs) / scale, 1.8)
    return echo + fascia * np.clip(0.7 + 0.6 * noise(30, 30), 0, 1.3)


def _lesion(rng: Rng, shape: tuple[int, int], malignant: bool) -> np.ndarray:
    """Distance (H, W) to the border of a lesion, about in pixels, positive inside: oval, or irregular with spicules."""
    height, width = shape
    radius, turn = width * 0.055 * rng.uniform(1, 12) ** 0.45, rng.normal(0, 0.15)
    flat = rng.uniform(0.8, 1.25) if malignant else rng.uniform(1.3, 2.2)  # width over height
    y, x = np.indices(shape, float)
    y -= height * rng.uniform(0.36, 0.52)
    x -= width * rng.uniform(0.3, 0.7)
    across, down = (x * np.cos(turn) + y * np.sin(turn)) / flat**0.5, (y * np.cos(turn) - x * np.sin(turn)) * flat**0.5
    angle, border = np.arctan2(down, across), 1.0
    for k in range(2, 10 if malignant else 5):
        border += rng.normal(0, 0.26 if malignant else 0.12) / k * np.cos(k * angle + rng.uniform(0, 6.3))
    for at in rng.uniform(-np.pi, np.pi, rng.integers(3, 7)) if malignant else ():
        away = np.abs((angle - at + np.pi) % (2 * np.pi) - np.pi)
        border += rng.uniform(0.1, 0.4) * np.exp(-away / rng.uniform(0.12, 0.3))
    return radius * border - np.hypot(across, down)


def _shadows(rng: Rng, shape: tuple[int, int]) -> np.ndarray:
    """Loss (H, W) in dB: with depth, and in columns below ligaments and where the probe has poor contact."""
    width, depth = shape[1], np.linspace(0, 1, shape[0])[:, None]
    loss = rng.normal(0, 2.5) + rng.uniform(8, 26) * np.clip(depth - 0.25, 0, 1)
    for at in rng.uniform(0, width, rng.integers(1, 4)):
        column = _lines(np.arange(width) - at, width * rng.uniform(0.03, 0.1))
        loss = loss + rng.uniform(4, 12) * column * np.clip((depth - rng.uniform(0.1, 0.6)) * 3, 0, 1)
    return loss


def _paint(rng: Rng, shape: tuple[int, int], malignant: bool) -> tuple[np.ndarray, np.ndarray]:
    """A picture (H, W) uint8 of a breast, and the mask of its lesion.

    A malignant lesion has a blurred border and a shadow, a benign one a capsule and bright tissue below it.
    """
    echo, distance = _layers(rng, shape), _lesion(rng, shape, malignant)
    mask, noise = distance > 0, partial(smooth, rng, shape)
    inside = rng.uniform(-27, -22) + (4 if malignant else 1.5) * noise(5, 7)
    echo += (inside - echo) * np.clip(distance / (8 if malignant else 2) + 0.5, 0, 1)
    level = np.abs(np.gradient(distance, axis=0))  # a capsule shows where the beam meets it head on
    echo += 7 * _lines(distance + 3, 2.5) * (1 if malignant else np.clip(level, 0, 1))
    crossed = gaussian_filter1d(np.cumsum(mask, 0) * 300 / shape[1], 3.0, axis=1)
    gain = -rng.uniform(0.15, 0.45) if malignant else rng.uniform(0.0, 0.15)  # dB a pixel of the lesion
    echo += np.clip(gain * crossed, -11, 7) - _shadows(rng, shape)
    envelope = sum(speckle(rng, np.maximum(echo, NOISE)) for _ in range(LOOKS)) / LOOKS
    shown = (20 * np.log10(envelope + 1e-4) - WHITE) / RANGE + 1
    return np.rint(255 * np.clip(shown, 0, 1)).astype(np.uint8), mask


def _write_table(path: Path, rows: list[tuple[str, ...]]) -> None:
    """An Excel workbook of one sheet, as small as can be and the same bytes on every run."""
    base, types = "http://schemas.openxmlformats.org", "application/vnd.openxmlformats-"
    main, office = f'xmlns="{base}/spreadsheetml/2006/main"', f"{base}/officeDocument/2006/relationships"
    package, sheet = f"{base}/package/2006", f"{types}officedocument.spreadsheetml"
    cells = ("".join(f'<c t="inlineStr"><is><t>{cell}</t></is></c>' for cell in row) for row in rows)

    def link(kind: str, target: str) -> str:
        relation = f'<Relationship Id="r" Type="{office}/{kind}" Target="{target}"/>'
        return f'<Relationships xmlns="{package}/relationships">{relation}</Relationships>'

    parts = {
        "[Content_Types].xml": f'<Types xmlns="{package}/content-types">'
        f'<Default Extension="rels" ContentType="{types}package.relationships+xml"/>'
        f'<Override PartName="/xl/workbook.xml" ContentType="{sheet}.sheet.main+xml"/>'
        f'<Override PartName="/xl/sheet.xml" ContentType="{sheet}.worksheet+xml"/></Types>',
        "_rels/.rels": link("officeDocument", "xl/workbook.xml"),
        "xl/workbook.xml": f'<workbook {main} xmlns:r="{office}"><sheets><sheet name="Sheet1" sheetId="1" r:id="r"/>'
        "</sheets></workbook>",
        "xl/_rels/workbook.xml.rels": link("worksheet", "sheet.xml"),
        "xl/sheet.xml": f"<worksheet {main}><sheetData><row>{'</row><row>'.join(cells)}</row></sheetData></worksheet>",
    }
    with zipfile.ZipFile(path, "w") as packed:
        for name, text in parts.items():
            part = zipfile.ZipInfo(name)  # dated 1980
            part.create_system = 3
            packed.writestr(part, f'<?xml version="1.0" encoding="UTF-8"?>{text}')


def dataset_b(folder: Path, seed: int, *, images: int = 14, size: int = 300) -> None:
    """Dataset B as released. Every third lesion is malignant. `size`: mean width of the images, which varies."""
    top, rows = folder / "BUS", [("Image", "Type")]
    (top / "GT").mkdir(parents=True)
    for i in range(images):
        rng, malignant, number = np.random.default_rng([seed, i]), i % 3 == 2, i + i // 3 + 1  # numbers are missing
        height, width = (size * rng.uniform(0.9, 1.1, 2) * (0.8, 1)).astype(int).tolist()
        image, mask = _paint(rng, (height, width), malignant)
        write_image(top / "original" / f"{number:06d}.png", image)
        stored = mask if i % 2 else mask * np.uint8(255)  # 1 bit and 8 bits, both as in the release
        Image.fromarray(stored).save(top / "GT" / f"{number:06d}.png")
        rows.append((str(number), "Malignant" if malignant else "Benign"))
    _write_table(top / "DatasetB.xlsx", rows)
