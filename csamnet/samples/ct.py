"""Look-alike release of LIDC-IDRI: CT of painted chests as DICOM series, and four readers who disagree as XML.

Lengths are in mm, positions in the frame of DICOM: x to the patient's left, y to the back, z to the head. Tissues are
painted in Hounsfield units. A shape is a distance, negative inside.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid
from scipy.ndimage import gaussian_filter

VIEW, STEP, LOWEST = 310.0, 2.5, -150.0  # width of an image, distance of slices, z of the first
AIR, LUNG, FAT, MUSCLE, BONE, CORTEX = -1000, -860, -105, 55, 220, 600
READERS = 4
Rng = np.random.Generator

ORGANS = (  # at three levels: x, y, half axes, blood (1) or not (0) or air (None)
    (  # above the heart: arch of the aorta, vena cava, thymus, oesophagus, trachea
        ((14, -24, 17, 22), 1),
        ((-20, -28, 10, 9), 1),
        ((-6, -44, 18, 9), 0),
        ((4, 12, 8, 6), 0),
        ((-2, -6, 9, 10), None),
    ),
    (  # roots of the lungs: aorta twice, pulmonary trunk, vena cava, oesophagus, two bronchi
        ((-8, -30, 17, 17), 1),
        ((20, 22, 13, 13), 1),
        ((16, -30, 16, 13), 1),
        ((-28, -20, 9, 8), 1),
        ((4, 14, 8, 6), 0),
        ((-18, -2, 8, 7), None),
        ((18, 0, 7, 6), None),
    ),
    (  # heart, left and right; aorta, oesophagus, vena cava
        ((26, -20, 44, 36), 1),
        ((-18, -24, 32, 34), 1),
        ((20, 30, 12, 12), 1),
        ((4, 24, 8, 6), 0),
        ((-22, 8, 10, 9), 1),
    ),
)


class Tube(NamedTuple):
    """A straight piece of a vessel or, hollow, of a bronchus."""

    start: np.ndarray
    end: np.ndarray
    radius: float
    hollow: bool = False


@dataclass(frozen=True)
class Nodule:
    """A nodule as it is or, changed a little, as one reader sees it."""

    centre: np.ndarray  # x, y, z
    radius: float
    bumps: np.ndarray  # complex: 2, 3, ... waves around it, as shares of its radius
    core: float = 1.0  # share of its radius that is solid; ground glass around it
    hole: float = 0.0  # its radius

    def reach(self, angle: np.ndarray, z: float) -> np.ndarray:
        """Its radius in these directions on the slice at z, 0 where it does not meet that."""
        rise = (z - self.centre[2]) / self.radius
        shape = sum((bump * np.exp(1j * n * angle)).real for n, bump in enumerate(self.bumps, 2))
        return self.radius * (1 + shape) * np.sqrt(max(0.0, 1 - rise**2))


def soft(distance: np.ndarray, width: float) -> np.ndarray:
    """1 inside, 0 outside, and a ramp of this width between."""
    return np.clip(0.5 - distance / width, 0, 1)


def ellipse(x: np.ndarray, y: np.ndarray, at: tuple[float, ...]) -> np.ndarray:
    """Distance to an ellipse (x, y, half axes), good near its border."""
    return (np.hypot((x - at[0]) / at[2], (y - at[1]) / at[3]) - 1) * min(at[2], at[3])


def union(round_off: float, *distances: np.ndarray) -> np.ndarray:
    """Distance to the union of shapes, inner corners rounded."""
    return -round_off * np.logaddexp.reduce([-distance / round_off for distance in distances])


class Chest:
    """One patient: what is the same on all slices is painted once."""

    def __init__(self, rng: Rng, level: int, size: int):
        self.pixel = VIEW / size
        self.x, self.y = np.meshgrid(*[(np.arange(size) + 0.5) * self.pixel - VIEW / 2] * 2)
        self.organs = [(rng.normal(1, 0.07, 4) * shape, content) for shape, content in ORGANS[level]]
        self.half = rng.normal(1, 0.025, 2) * (122, 86)
        self.waves = rng.normal(0, 0.008, 6) * np.exp(2j * np.pi * rng.random(6))
        self.blood, self.fat, self.ribs = 40 + rng.choice([0, 130]), rng.uniform(8, 22), rng.uniform(0, 0.42, 2)
        self.grain = gaussian_filter(rng.standard_normal((size, size)), 2.6 / self.pixel) * 8
        self.tubes = [tube for side in (-1, 1) for tube in self._tree(rng, side)]
        self.depth, self.between = self.wall(self.x, self.y), self.middle(self.x, self.y)
        self.outer, self.inner, self.spine = self._outer(), self._inner(), self._spine()

    def wall(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Distance to the inside of the chest wall."""
        angle = np.arctan2(y / 88, x / 126)
        table = np.linspace(-np.pi, np.pi, 361)
        waves = sum((wave * np.exp(1j * n * table)).real for n, wave in enumerate(self.waves, 2))
        share = (np.abs(x / self.half[0]) ** 2.4 + np.abs(y / self.half[1]) ** 2.4) ** (1 / 2.4)
        return (share / (1 + np.interp(angle, table, waves)) - 1) * self.half.min()

    def middle(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Distance to what lies between the lungs: organs in fat, and the spine."""
        organs = [ellipse(x, y, [*shape[:2], *shape[2:] + 5]) for shape, _ in self.organs]
        return union(5, *organs, ellipse(x, y, (0, 72, 24, 34)), ellipse(x, y, (2, -60, 7, 40)))

    def lung(self, x: np.ndarray, y: np.ndarray, z: float) -> np.ndarray:
        """Distance to the lungs, which are wider towards the feet."""
        return -union(4, 2 - 0.1 * z - self.wall(x, y), self.middle(x, y))

    def _tree(self, rng: Rng, side: int) -> list[Tube]:
        """Vessels of one lung: each of many points joined to the tree where its way to the root is short.

        Radii follow from how many ends a vessel feeds. Beside the larger ones runs a bronchus.
        """
        root = np.array([side * 30.0, 2.0, 0.0])
        ends = rng.uniform((0, -90, -30), (130, 90, 30), (900, 3)) * (side, 1, 1)
        ends = ends[self.lung(ends[:, 0], ends[:, 1], 0.0) < -4]
        ends = np.concatenate([[root], ends[np.argsort(np.linalg.norm(ends - root, axis=1))]])
        joined, way, feeds = np.zeros(len(ends), int), np.zeros(len(ends)), np.ones(len(ends))
        for i in range(1, len(ends)):
            near = np.linalg.norm(ends[:i] - ends[i], axis=1)
            joined[i] = np.argmin(near + 0.35 * way[:i])
            way[i] = way[joined[i]] + near[joined[i]]
        for i in range(len(ends) - 1, 0, -1):
            feeds[joined[i]] += feeds[i]
        starts, radii, aside = ends[joined], 0.7 * feeds**0.37, np.array([0.3, 1.9, 0.9])
        led = (radii > 1.6) & (self.lung(starts[:, 0], starts[:, 1], 0.0) < -5)
        tubes = [Tube(starts[i], ends[i], radii[i]) for i in range(1, len(ends))]
        bronchi = [(i, aside * radii[i]) for i in np.flatnonzero(led) if i]
        return tubes + [Tube(starts[i] + by, ends[i] + by, 0.85 * radii[i], hollow=True) for i, by in bronchi]

    def _lay(self, units: np.ndarray, distance: np.ndarray, value: float | np.ndarray, width: float = 1.5) -> None:
        """Paint a shape, its border `width` pixels wide."""
        units += soft(distance, width * self.pixel) * (value - units)

    def _outer(self) -> np.ndarray:
        """Table, skin, fat, muscles, shoulder blades, breastbone."""
        x, y, units = self.x, self.y, np.full(self.x.shape, float(AIR))
        body = self.depth - 24 - self.fat
        muscles = [self.depth - 13]
        for side in (-1, 1):
            muscles += [ellipse(x, y, (side * 58, -97, 48, 9)), ellipse(x, y, (side * 32, 100, 26, 15))]
            muscles += [ellipse(x, y, (side * 128, 32, 12, 40)), ellipse(x, y, (side * 92, 80, 36, 15))]
        bones = [ellipse(x, y, (0, -self.half[1] - 8, 20, 6))]
        for side in (-1, 1):
            right, back = x - side * 112, y - 68
            along, across = 0.8 * back - 0.6 * side * right, 0.8 * right + 0.6 * side * back
            bones.append(ellipse(along, across - 0.004 * along**2 * side, (0, 0, 30, 3.5)))
        self._lay(units, np.abs(y - 152 + 0.0006 * x**2) - 2, -350)
        self._lay(units, body, 10)
        self._lay(units, body + 2.5, FAT + 8 * self.grain)
        self._lay(units, np.maximum(union(2, *muscles) + 1.2 * self.grain, body + 5), MUSCLE + 10 * self.grain)
        return self._bone(units, np.minimum.reduce(bones))

    def _inner(self) -> np.ndarray:
        """Fat, the organs between the lungs."""
        units = np.full(self.x.shape, float(FAT)) + 6 * self.grain
        for shape, content in self.organs:
            distance = ellipse(self.x, self.y, shape) + self.grain
            value = 40 + 4 * self.grain if not content else self.blood + 4 * self.grain
            self._lay(units, distance - 1.5 * (content is None), value)
            if content is None:
                self._lay(units, distance, AIR)
        return units

    def _spine(self) -> np.ndarray:
        body, arch, spike, *arms = (0, 58, 18, 15), (0, 80, 14, 13), (0, 104, 4, 14), (-20, 88, 16, 5), (20, 88, 16, 5)
        return np.minimum.reduce([ellipse(self.x, self.y, part) for part in (body, arch, spike, *arms)])

    def _bone(self, units: np.ndarray, distance: np.ndarray) -> np.ndarray:
        self._lay(units, distance, CORTEX + 40 * self.grain)
        self._lay(units, distance + 2, BONE + 70 * self.grain)
        return units

    def paint(self, z: float, nodules: list[Nodule]) -> np.ndarray:
        """The slice at z in Hounsfield units, without noise."""
        x, y, units = self.x, self.y, self.outer.copy()
        angle = np.arctan2(y / 88, np.abs(x) / 126)
        along = (angle + self.ribs[(x > 0).astype(int)] - 0.012 * z) % 0.42 - 0.21  # ribs cross slices at a slant
        units = self._bone(units, ellipse(along * 105, self.depth - 5.5, (0, 0, 12.5, 4.4)))
        self._lay(units, self.depth, self.inner)
        units = self._bone(units, self.spine)
        self._lay(units, ellipse(x, y, (0, 80, 9, 8)), 30)
        lungs = -union(4, 2 - 0.1 * z - self.depth, self.between) + 0.6 * self.grain
        self._lay(units, lungs, LUNG + 0.5 * (y + 20) + 22 * self.grain, 2)
        for tube in self.tubes:
            self._splat(units, z, tube)
        for nodule in nodules:
            self._nodule(units, z, nodule)
        return units

    def _window(self, low: np.ndarray, high: np.ndarray) -> tuple[slice, slice]:
        """The part of the grid between two points."""
        axis = self.x[0]
        return slice(*np.searchsorted(axis, (low[1], high[1]))), slice(*np.searchsorted(axis, (low[0], high[0])))

    def _splat(self, units: np.ndarray, z: float, tube: Tube) -> None:
        low, high = np.minimum(tube.start, tube.end), np.maximum(tube.start, tube.end)
        margin, width = tube.radius + 1.5 * self.pixel, 1.5 * self.pixel
        if not low[2] - margin < z < high[2] + margin:
            return
        box = self._window(low - margin, high + margin)
        way, here = tube.end - tube.start, (self.x[box] - tube.start[0], self.y[box] - tube.start[1], z - tube.start[2])
        share = np.clip(sum(a * b for a, b in zip(here, way, strict=True)) / (way**2).sum(), 0, 1)
        away = np.sqrt(sum((a - share * b) ** 2 for a, b in zip(here, way, strict=True)))
        units[box] += soft(away - tube.radius, width) * np.maximum((-250 if tube.hollow else 40) - units[box], 0)
        if tube.hollow:
            units[box] += soft(away - 0.7 * tube.radius, width) * (AIR - units[box])

    def _nodule(self, units: np.ndarray, z: float, nodule: Nodule) -> None:
        rise = z - nodule.centre[2]
        if abs(rise) >= nodule.radius:
            return
        box = self._window(nodule.centre - 2 * nodule.radius - 5, nodule.centre + 2 * nodule.radius + 5)
        right, back, part = self.x[box] - nodule.centre[0], self.y[box] - nodule.centre[1], units[box]
        away, reach, grain = np.hypot(right, back), nodule.reach(np.arctan2(back, right), z), self.grain[box]
        if nodule.core < 1:
            self._lay(part, away - reach + grain, np.maximum(part, -560 + 50 * grain), 2.5)
        self._lay(part, away - nodule.core * reach, np.maximum(part, 35 + 10 * grain), 2)
        if abs(rise) < nodule.hole:
            self._lay(part, away - np.sqrt(nodule.hole**2 - rise**2), -800)

    def place(self, rng: Rng, radius: float, attached: bool, others: list[Nodule]) -> np.ndarray:
        """A place for a nodule near the middle slice: in the lung or, attached, at the border of it."""
        x, y = rng.uniform(-125, 125, 5000), rng.uniform(-90, 90, 5000)
        depth = self.lung(x, y, 0.0) / radius
        fits = (abs(depth + 0.45) < 0.15) & (abs(x) > 50) if attached else depth * radius < -radius - 5
        for other in others:
            fits &= np.hypot(x - other.centre[0], y - other.centre[1]) > 12 + radius + other.radius
        first = np.flatnonzero(fits)[0]
        return np.array([x[first], y[first], rng.uniform(-1.5, 1.5)])

    def outline(self, nodule: Nodule, z: float) -> np.ndarray | None:
        """The pixels just outside a nodule, (n, 2): x and y, closed; None where hardly anything is to be seen."""
        angle, steps = np.linspace(0, 2 * np.pi, 64), np.linspace(0, 1.3, 24) * nodule.radius
        x, y = nodule.centre[0] + np.outer(np.cos(angle), steps), nodule.centre[1] + np.outer(np.sin(angle), steps)
        in_lung = np.logical_and.accumulate(self.lung(x, y, z) < 1, axis=1).sum(1) * steps[1]
        reach = np.minimum(nodule.reach(angle, z), in_lung)
        return None if reach.max() < 1.8 else self.ring(nodule.centre, reach + 0.6 * self.pixel)

    def ring(self, centre: np.ndarray, reach: np.ndarray) -> np.ndarray:
        """The pixels (x, y) all around a point at the given distances, each once but for the first, which ends it."""
        angle = np.linspace(0, 2 * np.pi, len(reach))
        around = centre[:2] + reach[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)
        points = np.floor((around + VIEW / 2) / self.pixel).astype(int).clip(0, len(self.x) - 1)
        return points[np.append(True, (np.diff(points, axis=0) != 0).any(1))]


class Roi(NamedTuple):
    """One outline of one reader."""

    slice: int
    points: np.ndarray
    inside: bool = True


def bumps(rng: Rng, size: float) -> np.ndarray:
    return size * rng.normal(0, 1, 5) / np.arange(2, 7) * np.exp(2j * np.pi * rng.random(5))


def find_nodules(rng: Rng, chest: Chest, patient: int) -> list[Nodule]:
    """One or two nodules: solid with strands around it (in every sixth patient with a hole), part-solid, attached."""
    nodules, kinds = [], ("solid", "part-solid", "attached")
    for i, kind in enumerate((kinds[patient % 3], kinds[(patient + 2) % 3])[: 2 - patient % 2]):
        hole = rng.uniform(2.6, 3.2) if patient % 6 == i == 0 else 0.0
        core = rng.uniform(0.4, 0.7) if kind == "part-solid" else 1.0
        radius = rng.uniform(9, 11) if hole else rng.uniform(4.5, 10.5)
        centre = chest.place(rng, radius, kind == "attached", nodules)
        nodules.append(Nodule(centre, radius, bumps(rng, 0.14), core, hole))
        if kind == "solid":
            ways = rng.normal(0, 1, (rng.integers(2, 9), 3)) * (1, 1, 0.4)
            ways *= rng.uniform(1.2, 1.9, (len(ways), 1)) * radius / np.linalg.norm(ways, axis=1, keepdims=True)
            chest.tubes += [Tube(centre, centre + way, 0.5) for way in ways]
    return nodules


def read(
    rng: Rng, chest: Chest, nodules: list[Nodule], dot: Nodule, patient: int, zs: np.ndarray
) -> list[list[list[Roi]]]:
    """What each reader drew, by nodule: borders differ; one misses the second nodule, one draws the hole, one takes a
    vessel for a nodule (in every third patient), and some mark the dot under 3 mm with a single point.
    """
    vessel = next(tube for tube in chest.tubes if 1.2 < tube.radius < 2 and abs(tube.start[2]) < 2)
    readings = []
    for turn in (np.arange(READERS) + patient) % READERS:
        drawn = []
        for nodule in nodules[: 1 if turn == 0 else None]:
            seen = replace(
                nodule,
                centre=nodule.centre + rng.normal(0, (0.5, 0.5, 0.3)),
                radius=nodule.radius * rng.uniform(0.88 if nodule.core == 1 else 0.75, 1.12),
                bumps=nodule.bumps + bumps(rng, 0.08),
                hole=nodule.hole if turn == 1 else 0.0,
            )
            drawn.append(draw(chest, seen, zs))
        if turn == 2 and patient % 3 == 1:
            drawn.append(draw(chest, Nodule(vessel.start, 3.2, bumps(rng, 0.1)), zs))
        if turn == 3 or rng.random() < 0.5:
            z = int(np.argmin(np.abs(zs - dot.centre[2])))
            drawn.append([Roi(z, chest.ring(dot.centre + rng.normal(0, 0.5, 3), np.zeros(1)))])
        readings.append([rois for rois in drawn if rois])
    return readings


def draw(chest: Chest, nodule: Nodule, zs: np.ndarray) -> list[Roi]:
    """The outlines of a nodule on all its slices, and of the hole in it."""
    rois = []
    for i, z in enumerate(zs):
        if (points := chest.outline(nodule, z)) is not None:
            rois.append(Roi(i, points))
            if (reach := nodule.hole**2 - (z - nodule.centre[2]) ** 2) > 1:
                rois.append(Roi(i, chest.ring(nodule.centre, np.full(24, np.sqrt(reach))), inside=False))
    return rois


def write_xml(path: Path, readings: list[list[list[Roi]]], series: Dataset, slices: list[tuple[float, str]]) -> None:
    """Readings in the schema of LIDC; `slices` are z and SOPInstanceUID."""
    sessions = []
    for nodules in readings:
        drawn = [
            f"<unblindedReadNodule><noduleID>Nodule {number:03d}</noduleID>{''.join(_roi(roi, slices) for roi in rois)}"
            "</unblindedReadNodule>"
            for number, rois in enumerate(nodules, 1)
        ]
        reader = "<servicingRadiologistID>anonymous</servicingRadiologistID>\n"
        sessions.append(f"<readingSession>{reader}{''.join(drawn)}</readingSession>\n")
    header = f"<SeriesInstanceUid>{series.SeriesInstanceUID}</SeriesInstanceUid>\n"
    header += f"<StudyInstanceUID>{series.StudyInstanceUID}</StudyInstanceUID>"
    text = f'<LidcReadMessage xmlns="http://www.nih.gov">\n<ResponseHeader>{header}</ResponseHeader>\n'
    text = f'<?xml version="1.0" encoding="UTF-8"?>\n{text}{"".join(sessions)}</LidcReadMessage>\n'
    path.write_bytes(text.encode())


def _roi(roi: Roi, slices: list[tuple[float, str]]) -> str:
    z, uid = slices[roi.slice]
    points = "".join(f"<edgeMap><xCoord>{x}</xCoord><yCoord>{y}</yCoord></edgeMap>\n" for x, y in roi.points)
    place = f"<imageZposition>{z:.6f}</imageZposition>\n<imageSOP_UID>{uid}</imageSOP_UID>\n"
    return f"<roi>\n{place}<inclusion>{str(roi.inside).upper()}</inclusion>\n{points}</roi>\n"


def series_of(name: str, seed: int, size: int, signed: bool) -> Dataset:
    """What all slices of a patient have in common."""
    uids = [generate_uid(entropy_srcs=[kind, name, str(seed)]) for kind in ("study", "series", "frame")]
    file = Dataset()
    file.SOPClassUID, file.Modality, file.ImageType = CTImageStorage, "CT", ["ORIGINAL", "PRIMARY", "AXIAL"]
    file.PatientName = file.PatientID = name
    file.PatientBirthDate = file.PatientSex = file.AccessionNumber = file.ReferringPhysicianName = file.StudyID = ""
    file.StudyDate = file.SeriesDate = file.AcquisitionDate = file.ContentDate = "20000101"
    file.StudyTime = file.SeriesTime = file.AcquisitionTime = file.ContentTime = "000000"
    file.StudyDescription, file.Manufacturer = "painted, not a person", "csamnet samples"
    file.StudyInstanceUID, file.SeriesInstanceUID, file.FrameOfReferenceUID = uids
    file.SeriesNumber, file.AcquisitionNumber, file.BodyPartExamined, file.PatientPosition = 1, 1, "CHEST", "HFS"
    file.PositionReferenceIndicator, file.KVP = "", "120"
    file.PixelSpacing, file.SliceThickness = [f"{VIEW / size:.6f}"] * 2, str(STEP)
    file.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    file.SamplesPerPixel, file.PhotometricInterpretation, file.Rows, file.Columns = 1, "MONOCHROME2", size, size
    file.BitsAllocated, file.BitsStored, file.HighBit, file.PixelRepresentation = 16, 16, 15, int(signed)
    file.RescaleSlope, file.RescaleIntercept, file.RescaleType = 1, 0 if signed else -1024, "HU"
    file.WindowCenter, file.WindowWidth = -600, 1500
    return file


def write_slice(path: Path, file: Dataset, number: int, z: float, units: np.ndarray) -> None:
    """Write one slice; `file` is what the series has in common, and keeps what is added."""
    file.SOPInstanceUID = generate_uid(entropy_srcs=[file.SeriesInstanceUID, str(number)])
    corner = (0.5 / file.Rows - 0.5) * VIEW
    file.InstanceNumber, file.SliceLocation = number, f"{z:.2f}"
    file.ImagePositionPatient = [f"{corner:.4f}", f"{corner:.4f}", f"{z:.2f}"]
    kind = "<i2" if file.PixelRepresentation else "<u2"
    stored = np.rint(units).clip(-1024, 3071) - int(file.RescaleIntercept)
    file.PixelData = stored.astype(kind).tobytes()
    file.file_meta = meta = FileMetaDataset()  # without these two, the version of pydicom would be written
    meta.ImplementationClassUID, meta.ImplementationVersionName = generate_uid(entropy_srcs=["csamnet"]), "SAMPLE"
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file.save_as(path, enforce_file_format=True)


def lidc(folder: Path, seed: int, *, patients: int = 10, slices: int = 6, size: int = 256) -> None:
    """LIDC-IDRI as released: a series and its XML a patient. Numbers in names rise towards the feet, as there."""
    for patient in range(patients):
        rng = np.random.default_rng([seed, patient])
        chest, name = Chest(rng, patient % len(ORGANS), size), f"SAMPLE-{patient + 1:04d}"
        zs = (np.arange(slices) - (slices - 1) / 2) * STEP
        nodules = find_nodules(rng, chest, patient)
        dot = Nodule(chest.place(rng, 1.4, False, nodules), 1.4, np.zeros(1))
        readings = read(rng, chest, nodules, dot, patient, zs)
        top = folder / f"LIDC-IDRI/{name}/01-01-2000-{patient + 1:05d}/{3000001 + patient}.000000-{patient + 1:05d}"
        top.mkdir(parents=True)
        file, written = series_of(name, seed, size, signed=patient % 2 == 0), []
        for i, z in enumerate(zs):
            noise = gaussian_filter(rng.standard_normal((size, size)), 0.55) * 55
            units = chest.paint(z, [*nodules, dot]) + noise * (0.7 + 0.5 * np.exp(-((chest.x**2 + chest.y**2) / 8000)))
            write_slice(top / f"1-{slices - i:03d}.dcm", file, slices - i, LOWEST + i * STEP, units)
            written.append((LOWEST + i * STEP, file.SOPInstanceUID))
        write_xml(top / f"{patient + 68:03d}.xml", readings, file, written)
