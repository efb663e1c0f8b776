"""Look-alike release of Brain Tumor MRI: painted axial slices of heads, T1-weighted after contrast agent.

Lengths are in pixels of an image of 256, from the middle of the head: y to the back, x to its left side. A shape is a
distance to its border, positive inside.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import h5py
import numpy as np
from scipy import fft
from scipy.ndimage import gaussian_filter
from skimage.measure import find_contours

AIR, BONE, FLUID, GREY, WHITE, MUSCLE, MARROW, SKIN, BLOOD, FAT = 30, 180, 400, 980, 1180, 800, 1400, 1900, 2500, 2900
MENINGIOMA, GLIOMA, PITUITARY = 1, 2, 3
Array, Noise, Rng = np.ndarray, Callable[..., np.ndarray], np.random.Generator


def smooth(rng: Rng, size: int, place: float, sigma: float) -> Array:
    """Smooth noise (size, size) of mean 0 and deviation 1, which changes slowly with the place of the slice."""
    one, two = rng.standard_normal((2, size, size))
    fall = np.exp(-2 * (np.pi * sigma * size / 256 * np.fft.fftfreq(size)) ** 2)
    waves = fft.rfft2(one * np.cos(place) + two * np.sin(place)) * fall[:, None] * fall[: size // 2 + 1]
    field = fft.irfft2(waves, (size, size))
    return (field - field.mean()) / field.std()


def _mix(below: Array, level: Array | float, inside: Array) -> Array:
    """`level` over what is below, where a shape is (0 to 1 pixel inside)."""
    return below + (level - below) * np.clip(inside, 0, 1)


def _line(field: Array, width: float) -> Array:
    return np.exp(-((field / width) ** 2))


def _oval(y: Array, x: Array, at: tuple[float, float], half: tuple[float, float]) -> Array:
    return (1 - np.hypot((y - at[0]) / half[0], (x - at[1]) / half[1])) * min(half)


def _skull(rng: Rng, noise: Noise, y: Array, x: Array, low: bool) -> tuple[Array, Array]:
    """What lies around the brain, and the shape of the brain. A low slice has sinuses and muscle beside the skull."""
    angle, half = np.arctan2(x, -y), (rng.uniform(94, 103), rng.uniform(75, 82))
    border = 1 - 0.035 * np.cos(angle) - 0.02 * np.cos(2 * angle) + 0.012 * noise(60)
    depth = (border - np.hypot(y / half[0], x / half[1])) * 87
    front, side = low * _line(angle, 0.3), low * np.sin(angle) ** 8
    fat = np.clip(4 + 1.5 * noise(20), 2.6, 9) + 2 * np.cos(angle / 2) ** 8
    bone = fat + 1 + 8 * side
    brain = depth - bone - 6.5 - 1.2 * noise(14) - 7 * front
    signal = np.full(y.shape, float(AIR))
    for start, level in ((0, SKIN), (2.5, FAT + 150 * noise(6)), (fat, MUSCLE), (bone, BONE)):
        signal = _mix(signal, level, depth - start)
    marrow = np.minimum(depth - bone - 1.5, -2 - brain)
    signal = _mix(signal, np.where(front > 0.4, AIR, MARROW + 300 * noise(4)), marrow)
    return _mix(signal, FLUID, brain + 1), brain


def _tissue(noise: Noise, y: Array, x: Array, brain: Array, free: Array) -> Array:
    """Grey and white matter with furrows and the vessels in them. `free`: 0 where a tumour presses, to 1."""
    fold, inside = noise(4.2), brain - 1.5 + noise(6)
    ribbon = np.maximum(_line(fold, 0.5), np.clip((4.5 - inside) / 2, 0, 1)) * np.clip((28 - inside) / 12, 0, 1)
    tissue = WHITE + (GREY - WHITE) * ribbon + 25 * noise(3)
    for at, half in (((-14, 15), (15, 5)), ((10, 11), (14, 8)), ((-4, 27), (18, 5))):
        tissue = _mix(tissue, GREY + 20, _oval(y, np.abs(x), at, half) / 3)
    furrow = _line(fold, 0.1) * np.clip((19 - inside + 5 * noise(9)) / 12, 0, 1) * free
    tissue = _mix(tissue, FLUID, 0.85 * furrow)
    vessels = np.clip(noise(6) - 0.9, 0, 1) * _line(fold, 0.1) + np.clip(noise(9) - 1.2, 0, 1) * _line(noise(9), 0.06)
    return _mix(tissue, BLOOD, 1.6 * vessels * free)


def _middle(rng: Rng, noise: Noise, y: Array, x: Array, signal: Array, brain: Array) -> Array:
    """Falx with its cleft and sinuses, and the lateral ventricles with their plexus: a slice above the middle."""
    wave, side = 1.5 * noise(25), np.abs(x)
    ends = np.clip((np.abs(y - 3) - rng.uniform(36, 44)) / 3, 0, 1) * (brain > 0)
    signal = _mix(signal, FLUID, ends * (2.2 - np.abs(x + wave)))
    signal = _mix(signal, SKIN, 0.8 * ends * _line(x + wave, 0.8))
    wide, long = rng.uniform(4, 9), rng.uniform(33, 42)
    bend = side - 5 - 0.8 * wide - 0.008 * (y - 2) ** 2
    horn = wide * np.sqrt(np.clip(1 - ((y - 2) / long) ** 2, 0, 1)) - np.abs(bend)
    signal = _mix(signal, FLUID, horn)
    plexus = np.minimum(horn, _oval(y, side, (18, 12), (13, 4)) + 1.5 * noise(3))
    return _mix(signal, BLOOD - 300, plexus)


def _base(_: Rng, noise: Noise, y: Array, x: Array, signal: Array, brain: Array) -> Array:
    """Cistern with the arteries in it, midbrain, cerebellum and Sylvian fissures: a slice at the base."""
    side = np.abs(x)
    cerebellum = np.minimum(_oval(y, x, (58, 0), (34, 44)), brain)
    leaves = np.sin(1.2 * y - 0.006 * x**2 + 1.5 * noise(9)) * np.clip(1 + 0.5 * noise(8), 0, 1)
    leaves = GREY - 60 + 120 * leaves + 150 * _line(noise(7), 0.3) * np.clip(cerebellum / 20, 0, 1)
    signal = _mix(signal, leaves, cerebellum / 2)
    signal = _mix(signal, SKIN, np.clip(1.2 - np.abs(cerebellum), 0, 0.5) * (brain > 3))
    fissure = 3 - np.abs(y + 14 - 0.25 * side + 2 * noise(12)) + 1.5 * noise(6)
    signal = _mix(signal, FLUID, np.minimum(fissure, np.minimum(side - 8, 58 - side)))
    star = 17 * (1 + 0.25 * np.cos(5 * np.arctan2(x, y + 6))) - np.hypot(y + 6, x)
    signal = _mix(signal, FLUID, star + noise(6))
    signal = _mix(signal, FLUID, 4 - np.abs(np.hypot((y - 20) / 14, x / 17) - 1) * 15)
    stem = np.maximum(_oval(y, x, (21, 0), (13, 16)), _oval(y, side, (12, 9), (9, 6)))
    signal = _mix(signal, WHITE - 60 + 30 * noise(4), stem)
    signal = _mix(signal, FLUID, 1.5 - np.hypot(y - 29, x))
    ring = _line(np.hypot((y + 4) / 1.1, x) - 11, 0.9) * np.clip(noise(7), 0, 1)
    artery = _line(fissure - 3 + 1.5 * noise(5), 0.8) * np.clip(noise(8) + 0.5, 0, 1)
    return _mix(signal, BLOOD + 200, ring + artery * (side > 10) * np.clip((52 - side) / 8, 0, 1))


def _tumour(rng: Rng, noise: Noise, y: Array, x: Array, kind: int, shrink: float) -> Array:
    """The shape of a tumour; `shrink` is its size in this slice over that in its middle."""
    if kind == PITUITARY:
        at, radius, rough = (rng.uniform(-12, -4), rng.uniform(-3, 3)), rng.uniform(10, 16), 0.08
    elif kind == MENINGIOMA:
        angle = rng.uniform(-2.6, 2.6)
        radius, rough = rng.uniform(15, 26), 0.06
        away = 1 - 0.55 * radius / 74
        at = -away * 84 * np.cos(angle), away * 64 * np.sin(angle)
    else:
        at, radius, rough = (rng.uniform(-42, 42), rng.choice((-1, 1)) * rng.uniform(28, 40)), rng.uniform(15, 28), 0.16
    flat, turn = rng.uniform(0.8, 1.25), rng.uniform(0, np.pi)
    dy, dx = y - at[0], x - at[1]
    along, across = (dy * np.cos(turn) + dx * np.sin(turn)) * flat, (dx * np.cos(turn) - dy * np.sin(turn)) / flat
    return radius * (shrink + rough * np.clip(noise(0.6 * radius), -1.5, 1.5)) - np.hypot(along, across)


def _enhance(rng: Rng, noise: Noise, signal: Array, shape: Array, brain: Array, kind: int) -> Array:
    """Paint a tumour over a slice, with what it does to the tissue around it."""
    level = rng.uniform(1750, 2500)
    if kind == GLIOMA:
        oedema = np.clip(1 + (shape + 9 * np.clip(noise(7), -1, 1)) / rng.uniform(12, 20), 0, 1) * (brain > 4)
        signal = signal * (1 - 0.3 * oedema)
        thick = np.clip(3.5 + 2 * noise(6), 1, 9)
        signal = _mix(signal, rng.uniform(550, 800) + 60 * noise(4), shape)
        rim = np.clip(shape, 0, 1) * _line(np.maximum(shape - thick, 0), 1.5) * np.clip(0.75 + 0.45 * noise(9), 0.1, 1)
        return signal + (level + 150 * noise(2) - signal) * rim
    if kind == MENINGIOMA:
        signal = signal * (1 - 0.25 * np.clip(1 + (shape + 5 * noise(9)) / 10, 0, 1) * (brain > 4))
        tail = _line(brain - 0.5, 1.1) * np.clip((shape + 14) / 8, 0, 1)
        signal = _mix(signal, level, tail)
        signal = _mix(signal, FLUID, np.minimum(1.8 - np.abs(shape + 1.5), brain - 2) * np.clip(noise(9), 0, 0.8))
    return _mix(signal, level + 90 * noise(5) + 60 * noise(1.5), shape)


def paint(rng: Rng, own: Rng, kind: int, place: float, size: int) -> tuple[Array, Array]:
    """A slice (size, size) int16 and the mask of its tumour.

    `rng` is the same for all slices of a patient, `own` for this one. `place`: -1 to 1, from end to end of the tumour.
    """
    noise, low = partial(smooth, rng, size, 0.9 * place), kind == PITUITARY
    y, x = (np.indices((size, size)) - (size - 1) / 2) * 256 / size
    turn, scale = rng.normal(0, 0.1), rng.uniform(1.08, 1.2)
    y, x = (y * np.cos(turn) - x * np.sin(turn)) / scale, (x * np.cos(turn) + y * np.sin(turn)) / scale
    signal, brain = _skull(rng, noise, y, x, low)
    y, x = y + 1.5 * noise(12), x + 1.5 * noise(12)  # nothing in a brain is straight
    shape = np.minimum(_tumour(rng, noise, y, x, kind, np.sqrt(1 - 0.8 * place**2)), brain)
    pull = 10 * np.exp(-np.clip(-shape, 0, None) / 18)  # tissue is pushed away from the tumour
    dy, dx = np.gradient(gaussian_filter(shape, 3 * size / 256), 256 / size)
    y, x, free = y + pull * dy, x + pull * dx, np.clip(-shape / 12, 0, 1)
    signal = _mix(signal, _tissue(noise, y, x, brain, free), brain - 2)
    signal = (_base if low else _middle)(rng, noise, y, x, signal, brain)
    signal = _enhance(rng, noise, signal, shape, brain, kind)
    signal = gaussian_filter(signal, 0.6 * size / 256) * (1 + 0.08 * noise(70)) * rng.uniform(0.75, 1.05)
    one, two = own.normal(0, rng.uniform(25, 50), (2, size, size))
    return np.hypot(signal + one, two).astype(np.int16), shape > 0


def write_matlab(path: Path, group: str, values: dict[str, Array]) -> None:
    """A MATLAB 7.3 file (HDF5, everything transposed), the same bytes on every run."""
    kinds = {"uint16": "char", "uint8": "logical", "float64": "double"}
    with h5py.File(path, "w", userblock_size=512) as file:
        top = file.create_group(group) if group else file
        if group:
            top.attrs["MATLAB_class"] = np.bytes_("struct")
        for name, value in values.items():
            item = top.create_dataset(name, data=np.atleast_2d(value).T, track_times=False)
            kind = kinds.get(str(value.dtype), str(value.dtype))
            item.attrs["MATLAB_class"] = np.bytes_(kind)
            if kind in ("char", "logical"):
                item.attrs["MATLAB_int_decode"] = np.int32(value.itemsize)
    with path.open("r+b") as stream:
        stream.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(116) + bytes(8) + b"\x00\x02IM")


def brain_mri(folder: Path, seed: int, *, patients: int = 10, slices: int = 2, size: int = 256) -> None:
    """Brain Tumor MRI as released: `slices` of each patient, kinds of tumour in turn; patients in turn in the folds."""
    (folder / "brainTumorDataPublic").mkdir(parents=True)
    for patient in range(patients):
        kind = patient % 3 + 1
        for i in range(slices):
            rng, own = np.random.default_rng([seed, patient]), np.random.default_rng([seed, patient, i + 1])
            image, mask = paint(rng, own, kind, (2 * i + 1) / slices - 1, size)
            border = max(find_contours(np.pad(mask, 1), 0.5), key=len)  # counted from 1, as in MATLAB
            values = {
                "PID": np.array([ord(letter) for letter in f"SAMPLE{patient + 1:02d}"], np.uint16),
                "image": image,
                "label": np.array(float(kind)),
                "tumorBorder": border[:, ::-1].ravel(),
                "tumorMask": mask.astype(np.uint8),
            }
            write_matlab(folder / "brainTumorDataPublic" / f"{patient * slices + i + 1}.mat", "cjdata", values)
    folds = np.repeat(np.arange(patients) % 5 + 1.0, slices)
    write_matlab(folder / "cvind.mat", "", {"cvind": folds})
