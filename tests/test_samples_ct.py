"""The look-alike CT: valid DICOM, a seed fixes every byte, tissues, and readers who disagree as real ones do."""

from __future__ import annotations

from collections import defaultdict
from itertools import combinations
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view
from pydicom import dcmread
from scipy.ndimage import binary_dilation, binary_erosion, label
from skimage.draw import polygon2mask
from skimage.filters import threshold_otsu
from tiny import digest, overlap

from csamnet.datasets import DATASETS
from csamnet.readers.ct import read_lidc
from csamnet.samples.ct import lidc

LIDC = DATASETS["LIDC-IDRI"]
SMALL = {"patients": 2, "slices": 2, "size": 64}


@pytest.fixture(scope="module")
def release(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("samples")
    lidc(folder, 0, patients=6, slices=6)
    return folder


@pytest.fixture(scope="module")
def scans(release) -> dict[str, dict[str, np.ndarray]]:
    """Patient -> SOPInstanceUID -> Hounsfield units."""
    scans = defaultdict(dict)
    for path in release.rglob("*.dcm"):
        file = dcmread(path)
        units = file.pixel_array * float(file.RescaleSlope) + float(file.RescaleIntercept)
        scans[file.PatientID][file.SOPInstanceUID] = units
    return scans


@pytest.fixture(scope="module")
def readings(release) -> dict[str, list[dict[tuple[str, str], np.ndarray]]]:
    """Patient -> for each reader (nodule, SOPInstanceUID) -> filled outline; and what marks no area."""
    readings = {}
    for path in sorted(release.rglob("*.xml")):
        readings[path.parents[2].name] = readers = []
        for session in ElementTree.parse(path).getroot().iterfind("{*}readingSession"):
            readers.append(defaultdict(list))
            for nodule in session.iterfind("{*}unblindedReadNodule"):
                for roi in nodule.iterfind("{*}roi"):
                    points = [
                        (int(e.find("{*}yCoord").text), int(e.find("{*}xCoord").text))
                        for e in roi.iterfind("{*}edgeMap")
                    ]
                    key = (nodule.findtext("{*}noduleID"), roi.findtext("{*}imageSOP_UID"))
                    readers[-1][key].append((roi.findtext("{*}inclusion"), points))
    return readings


def test_layout_and_names(release):
    assert {path.name for path in release.iterdir()} == {"LIDC-IDRI"}
    patients = sorted(path.name for path in (release / "LIDC-IDRI").iterdir())
    assert patients == [f"SAMPLE-{i:04d}" for i in range(1, 7)]
    for patient in patients:
        (series,) = (release / "LIDC-IDRI" / patient).glob("*/*")
        names = sorted(path.name for path in series.iterdir())
        assert names[1:] == [f"1-{i:03d}.dcm" for i in range(1, 7)]
        assert names[0].endswith(".xml")


def test_series_are_valid_and_both_ways_of_storing_units_occur(release, scans):
    stored, uids = set(), []
    for folder in sorted((release / "LIDC-IDRI").glob("*/*/*")):
        files = [dcmread(path) for path in sorted(folder.glob("*.dcm"))]
        for file in files:
            assert file.SOPClassUID == file.file_meta.MediaStorageSOPClassUID == "1.2.840.10008.5.1.4.1.1.2"
            assert file.file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.1"
            assert file.SOPInstanceUID == file.file_meta.MediaStorageSOPInstanceUID
            assert file.PatientName == file.PatientID == folder.parents[1].name
            assert file.StudyDate == "20000101"
            assert (file.Rows, file.Columns, file.BitsAllocated) == (256, 256, 16)
            assert file.ImageOrientationPatient == [1, 0, 0, 0, 1, 0]
            assert file.SliceLocation == file.ImagePositionPatient[2]
            centre = np.add(file.ImagePositionPatient[:2], 255 / 2 * np.array(file.PixelSpacing))
            np.testing.assert_allclose(centre, 0, atol=1e-3)
        heights = [float(file.ImagePositionPatient[2]) for file in files]
        assert (np.diff(heights) == -files[0].SliceThickness).all(), "numbered towards the feet, without gaps"
        assert len({(file.SeriesInstanceUID, file.StudyInstanceUID, file.FrameOfReferenceUID) for file in files}) == 1
        uids += [files[0].SeriesInstanceUID, files[0].StudyInstanceUID, *(file.SOPInstanceUID for file in files)]
        stored.add((files[0].PixelRepresentation, int(files[0].RescaleIntercept)))
    assert stored == {(1, 0), (0, -1024)}
    assert len(set(uids)) == len(uids) == 6 * (2 + 6)


def test_a_seed_fixes_every_byte(tmp_path):
    made = {}
    for name, seed, more in (("a", 3, {}), ("b", 3, {}), ("c", 4, {}), ("d", 3, {"patients": 3})):
        lidc(tmp_path / name, seed, **SMALL | more)
        made[name] = digest(tmp_path / name)
    assert made["a"] == made["b"]
    assert len(made["a"]) == 2 * (2 + 1)
    assert set(made["a"]) == set(made["c"])
    assert not set(made["a"].values()) & set(made["c"].values())
    assert made["a"].items() <= made["d"].items(), "more patients change none"


def test_every_setting_can_be_as_small_as_allowed(tmp_path):
    lidc(tmp_path, 1, patients=6, slices=1, size=64)
    release = read_lidc(LIDC, [tmp_path], "slices")
    assert not release.problems
    assert len(release.records) == 6
    assert all(record.load().mask.any() for record in release.records)


def test_tissues_have_the_units_of_real_ones(scans):
    for scan in scans.values():
        for units in scan.values():
            dense = label(units > -300)[0]
            body = binary_erosion(dense == dense[176, 128])  # what hangs together with the spine
            inside = np.zeros(units.shape, bool)
            inside[60:200, 30:226] = True
            lung = binary_erosion(inside & (units < -600), iterations=3)
            assert 0.1 < lung.mean() < 0.4
            assert -900 < np.median(units[lung]) < -780
            patches = sliding_window_view(units, (6, 6))[::6, ::6].std((2, 3))
            noise = np.percentile(patches[body[3:-3:6, 3:-3:6][: len(patches), : len(patches)]], 15)
            assert 16 < noise < 40, "in the least structured places"
            assert -1030 < np.mean(units[:12]) < -970, "air"
            assert (units > 300).mean() > 0.01, "bone"
            fat, muscle = ((units > low) & (units < low + 60) & body for low in (-135, 20))
            assert min(fat.sum(), muscle.sum()) > 0.12 * body.sum()


def test_four_readers_disagree_in_every_way(readings):
    holes, points, missed = 0, 0, 0
    for readers in readings.values():
        assert len(readers) == 4
        areas = [{key: rois for key, rois in reader.items() if len(rois[0][1]) > 1} for reader in readers]
        points += sum(len(reader) - len(area) for reader, area in zip(readers, areas, strict=True))
        holes += sum(inclusion == "FALSE" for area in areas for rois in area.values() for inclusion, _ in rois)
        counts = {len({nodule for nodule, _ in area}) for area in areas}
        missed += len(counts) > 1
        for rois in (rois for area in areas for rois in area.values()):
            assert rois[0][0] == "TRUE"
            for _, outline in rois:
                assert outline[0] == outline[-1], "closed"
    assert holes >= 2
    assert points >= 6, "nodules under 3 mm"
    assert missed >= 3, "one nodule is missed by a reader, or seen by one only"


def test_outlines_differ_but_lie_around_the_same(readings):
    scores = []
    for readers in readings.values():
        for a, b in combinations(readers, 2):
            for key in set(a) & set(b):
                masks = [polygon2mask((256, 256), rois[key][0][1]) for rois in (a, b)]
                if key[0] == "Nodule 001" and min(mask.sum() for mask in masks) > 60:
                    scores.append(overlap(*masks))
    assert len(scores) > 60
    assert 0.6 < np.mean(scores) < 0.92
    assert len(set(np.round(scores, 6))) > 0.9 * len(scores)


def test_the_consensus_is_where_the_nodules_are(release):
    sample = read_lidc(LIDC, [release])
    assert sample.sample
    assert not sample.problems
    assert {record.group for record in sample.records} == {f"SAMPLE-{i:04d}" for i in range(1, 7)}
    share, contrast, scores = [], [], []
    for record in sample.records:
        pixels = record.load()
        grey, mask = pixels.image[..., 0].astype(float), pixels.mask
        assert mask.shape == (128, 128)
        share.append(mask.mean())
        around = binary_dilation(mask, iterations=4) & ~binary_dilation(mask, iterations=2)
        contrast.append(grey[mask].mean() - np.percentile(grey[around], 30))
        scores.append(overlap(grey > threshold_otsu(grey), mask))
    assert 0.004 < np.mean(share) < 0.015, "as of real crops: 0.010"
    assert np.percentile(contrast, 5) > 15
    assert np.median(contrast) > 60
    assert max(scores) < 0.1, "a threshold finds the chest wall"


def test_vessels_look_like_nodules(scans, readings):
    for patient, scan in scans.items():
        for uid, units in scan.items():
            drawn = np.zeros(units.shape, bool)
            for reader in readings[patient]:
                for (_, at), rois in reader.items():
                    if at == uid and len(rois[0][1]) > 2:
                        drawn |= polygon2mask(units.shape, rois[0][1])
            spots, count = label(units[60:200, 30:226] > -300)
            sizes = np.bincount(spots.ravel())[1:]
            free = [n for n in range(1, count + 1) if not (drawn[60:200, 30:226] & (spots == n)).any()]
            assert sum(4 <= sizes[n - 1] <= 150 for n in free) > 10
