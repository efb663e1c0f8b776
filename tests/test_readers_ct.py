"""LIDC-IDRI: outlines and votes by hand, the published masks of real readers, and each way a release can be wrong."""

from __future__ import annotations

import re
import shutil
from collections import Counter, defaultdict
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from csamnet.datasets import DATASETS
from csamnet.files import InputError
from csamnet.images import write_image
from csamnet.readers.common import Release
from csamnet.readers.ct import draw, find_readings, find_series, ordered, read_lidc

LIDC = DATASETS["LIDC-IDRI"]


def dicom(path: Path, uid: str, z: float, stored: np.ndarray, *, series: str = "9.1", patient: str = "P-1", **other):
    """Write a CT image of these stored values."""
    file = Dataset()
    file.SOPClassUID, file.SOPInstanceUID, file.SeriesInstanceUID = CTImageStorage, uid, series
    file.Modality, file.PatientID, file.ImagePositionPatient, file.PixelSpacing = "CT", patient, [0, 0, z], [0.7, 0.7]
    (file.Rows, file.Columns), file.SamplesPerPixel, file.PhotometricInterpretation = stored.shape, 1, "MONOCHROME2"
    file.BitsAllocated, file.BitsStored, file.HighBit = 16, 16, 15
    file.PixelRepresentation, file.PixelData = int(stored.dtype == np.int16), stored.tobytes()
    file.RescaleSlope, file.RescaleIntercept = 1, 0
    for key, value in other.items():
        setattr(file, key, value)
    file.file_meta = FileMetaDataset()
    file.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    path.parent.mkdir(parents=True, exist_ok=True)
    file.save_as(path, enforce_file_format=True)


def roi(drawn: tuple) -> str:
    uid, points, inclusion = (*drawn, "TRUE")[:3]
    edges = "".join(f"<edgeMap><xCoord>{x}</xCoord><yCoord>{y}</yCoord></edgeMap>" for x, y in points)
    return f"<roi><imageSOP_UID> {uid} </imageSOP_UID><inclusion>{inclusion}</inclusion>{edges}</roi>"


def xml(path: Path, *readers: list, series: str = "9.1", namespace: str = ' xmlns="http://www.nih.gov"') -> Path:
    """Write what readers drew: a reader is a list of nodules, a nodule one of (SOP UID, points[, inclusion])."""
    sessions = ""
    for nodules in readers:
        drawn = "".join(f"<unblindedReadNodule>{''.join(map(roi, rois))}</unblindedReadNodule>" for rois in nodules)
        sessions += f"<readingSession>{drawn}<nonNodule><locus/></nonNodule></readingSession>"
    header = f"<ResponseHeader><SeriesInstanceUid>{series}</SeriesInstanceUid></ResponseHeader>"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"<LidcReadMessage{namespace}>{header}{sessions}</LidcReadMessage>")
    return path


def box(x0: int, y0: int, x1: int, y1: int) -> list[tuple[int, int]]:
    return [(x0, y0), (x1, y0), (x1, y1), (x0, y1), (x0, y0)]


def scan(folder: Path, *, series: str = "9.1", patient: str = "P-1", tail: str = "") -> Path:
    """A series of empty slices; slice i has the UID <series>.i and lies at z = 2.5 i; files in another order."""
    for i in range(5):
        stored = np.zeros((12, 14), np.int16)
        dicom(
            folder / f"{(7 * i) % 11:06d}{tail}.dcm", f"{series}.{i}", 2.5 * i, stored, series=series, patient=patient
        )
    return folder


def masks(folder: Path, form: str = "slices") -> dict[str, np.ndarray]:
    release = read_lidc(LIDC, [folder], form)
    assert not release.problems
    return {record.name: record.load().mask for record in release.records}


def test_the_outline_lies_outside_the_nodule_and_that_of_a_hole_inside_the_hole(tmp_path):
    ring = [(x, 2) for x in range(3, 10)] + [(9, y) for y in range(3, 9)]  # of single pixels, like real ones
    ring += [(x, 8) for x in range(8, 2, -1)] + [(3, y) for y in range(7, 1, -1)]
    hole = [(6, 4), (7, 5), (6, 6), (5, 5), (6, 4)]
    both = [[[("9.1.2", ring), ("9.1.2", hole, "FALSE")]], [[("9.1.2", box(3, 2, 9, 8)), ("9.1.2", hole, "false")]]]
    xml(scan(tmp_path) / "a.xml", *both)
    expected = np.zeros((12, 14), int)
    expected[3:8, 4:9] = [
        [1, 1, 1, 1, 1],
        [1, 1, 0, 1, 1],
        [1, 0, 0, 0, 1],
        [1, 1, 0, 1, 1],
        [1, 1, 1, 1, 1],
    ]
    (found,) = masks(tmp_path).items()
    assert found[0] == "P-1_z0003"
    np.testing.assert_array_equal(found[1], expected)


def test_a_slanting_outline(tmp_path):
    triangle = [(2, 2), (8, 2), (2, 8), (2, 2)]  # x + y = 10 is drawn, below 10 is inside
    xml(scan(tmp_path) / "a.xml", *[[[("9.1.0", triangle)]]] * 2)
    (mask,) = masks(tmp_path).values()
    rows, columns = np.mgrid[:12, :14]
    np.testing.assert_array_equal(mask, (rows > 2) & (columns > 2) & (rows + columns < 10))


def test_two_readers_have_to_agree_on_a_pixel_and_one_reader_is_one_vote(tmp_path):
    readers = (
        [[("9.1.1", box(1, 1, 6, 5))], [("9.1.1", box(2, 1, 7, 5)), ("9.1.3", box(2, 2, 6, 6))]],  # x 2-5, 3-6
        [[("9.1.1", box(3, 2, 9, 5))]],  # x 4-8, y 3-4
        [[("9.1.1", box(5, 0, 9, 4))]],  # x 6-8, y 1-3
        [],
    )
    xml(scan(tmp_path) / "a.xml", *readers)
    expected = np.zeros((12, 14), int)
    expected[2:5, 4:9] = [
        [0, 0, 1, 0, 0],
        [1, 1, 1, 1, 1],
        [1, 1, 1, 0, 0],
    ]
    (found,) = masks(tmp_path).items()
    assert found[0] == "P-1_z0002", "on the fourth slice there is one reader only"
    np.testing.assert_array_equal(found[1], expected)


def test_window_and_rescaling(tmp_path):
    units = np.array([[-3000, -1350, -1347, -600, -6, 150, 3000]] * 7)
    for i, (slope, intercept, kind) in enumerate(((1, 0, np.int16), (1, -3024, np.uint16), (3, -3000, np.int16))):
        stored = ((units - intercept) // slope).astype(kind)
        dicom(tmp_path / f"{i}.dcm", f"9.1.{i}", i, stored, RescaleSlope=slope, RescaleIntercept=intercept)
    xml(tmp_path / "a.xml", *[[[(f"9.1.{i}", box(0, 0, 4, 4)) for i in range(3)]]] * 2)
    records = read_lidc(LIDC, [tmp_path], "slices").records
    assert len(records) == 3
    for record in records:
        image = record.load().image
        assert (image.shape, image.dtype) == ((7, 7, 3), np.uint8)
        assert image[3, :, 1].tolist() == [0, 0, 1, 128, 228, 255, 255]  # (units + 1350) / 1500 * 255


def test_crops_lie_around_nodules_and_inside_the_image(tmp_path):
    for i in range(3):
        stored = np.arange(200 * 300, dtype=np.int16).reshape(200, 300) // 50 - 1350  # below 150: 255 shades
        dicom(tmp_path / f"{i}.dcm", f"9.1.{i}", i, stored)
    near, far, corner, beside = (
        box(*at) for at in ((4, 90, 14, 100), (200, 80, 230, 120), (270, 180, 290, 195), (160, 40, 170, 50))
    )
    readers = (
        [
            [("9.1.0", near)],
            [("9.1.1", box(190, 60, 222, 90)), ("9.1.2", far)],
            [("9.1.0", corner)],
            [("9.1.2", beside)],
        ],
        [
            [("9.1.1", box(201, 61, 231, 91)), ("9.1.2", far)],
            [("9.1.0", near), ("9.1.1", near)],
            [("9.1.0", corner)],
            [("9.1.2", beside)],
        ],
        [[("9.1.0", box(120, 20, 140, 40))]],  # of one reader only
    )
    xml(tmp_path / "a.xml", *readers)
    found, whole = masks(tmp_path, "crops"), masks(tmp_path, "slices")
    corners = {  # the second nodule spans 191 to 230 and 61 to 119: middles 211 and 90, so from 147 and 26 on
        "P-1_z0001_n1": (31, 0),
        "P-1_z0001_n3": (72, 172),
        "P-1_z0002_n2": (26, 147),
        "P-1_z0003_n2": (26, 147),
        "P-1_z0003_n4": (0, 101),
    }
    assert list(found) == list(corners)
    images = {r.name: r.load().image for form in ("crops", "slices") for r in read_lidc(LIDC, [tmp_path], form).records}
    for name, (y, x) in corners.items():
        at = np.s_[y : y + 128, x : x + 128]
        np.testing.assert_array_equal(found[name], whole[name[:9]][at])
        np.testing.assert_array_equal(images[name], images[name[:9]][at])
    assert found["P-1_z0003_n2"].sum() == 29 * 39 + 9 * 9, "another nodule in the crop belongs to the target"


def test_an_image_smaller_than_a_crop_is_taken_whole(tmp_path):
    xml(scan(tmp_path) / "a.xml", *[[[("9.1.0", box(1, 1, 5, 5))]]] * 2)
    ((name, mask),) = masks(tmp_path, "crops").items()
    assert (name, mask.shape, mask.sum()) == ("P-1_z0001_n1", (12, 14), 9)


def test_a_nodule_is_the_same_for_readers_whose_outlines_overlap_on_any_slice(tmp_path):
    readers = (
        [[("9.1.0", box(1, 1, 5, 5)), ("9.1.1", box(1, 1, 5, 5))], [("9.1.1", box(8, 1, 12, 5))]],
        [[("9.1.1", box(3, 2, 7, 6)), ("9.1.2", box(8, 6, 12, 10))], [("9.1.1", box(8, 1, 12, 5))]],
        [[("9.1.2", box(8, 6, 12, 10))]],
    )
    xml(scan(tmp_path) / "a.xml", *readers)
    assert list(masks(tmp_path, "crops")) == ["P-1_z0002_n1", "P-1_z0002_n2", "P-1_z0003_n1"]


def test_files_are_matched_by_their_identifiers_wherever_they_lie(tmp_path):
    two = [[[("9.1.2", box(1, 1, 5, 5))]]] * 2
    scan(tmp_path / "dicom" / "x")
    scan(tmp_path / "dicom" / "y", series="9.3")
    scan(tmp_path / "dicom" / "y", series="9.5", tail="b")
    scan(tmp_path / "dicom" / "z", series="9.2", patient="P_2/b")
    xml(tmp_path / "LIDC-XML-only" / "157" / "158.xml", *two, namespace="")
    other = [[[("9.2.4", box(1, 1, 5, 5))], [("9.2.0", [(3, 3)])]]] * 2
    path = xml(tmp_path / "LIDC-XML-only" / "157" / "159.xml", *other, series="9.2", namespace=' xmlns="urn:other"')
    shutil.copy(path, tmp_path / "dicom" / "z" / "069.xml")  # the same again is no fault
    for uid in ("9.3", "9.5"):
        xml(tmp_path / f"{uid}.xml", *[[[(f"{uid}.2", box(1, 1, 5, 5))]]] * 2, series=uid)
    (tmp_path / "chest.xml").write_text('<IdriReadMessage xmlns="http://www.nih.gov/idri"/>')
    dicom(tmp_path / "chest.dcm", "9.4.1", 0, np.zeros((4, 4), np.int16), series="9.4", Modality="DX")
    release = read_lidc(LIDC, [tmp_path], "slices")
    assert not release.problems
    assert [(r.name, r.group, r.split, r.organ) for r in release.records] == [
        ("P-1_s2_z0003", "P-1", None, "lung"),
        ("P-1_s3_z0003", "P-1", None, "lung"),
        ("P-1_z0003", "P-1", None, "lung"),
        ("P-2-b_z0005", "P_2/b", None, "lung"),
    ]
    assert {record.files["annotation"].name for record in release.records} >= {"158.xml", "9.3.xml", "9.5.xml"}
    assert release.notes == [
        "passed over: 1 DICOM files that are not CT",
        "passed over: 1 XML of chest X-rays",
        "passed over: 2 marks of nodules under 3 mm",
    ]


def test_nothing_to_agree_on_is_noted(tmp_path):
    xml(scan(tmp_path / "a") / "a.xml", [[("9.1.2", box(1, 1, 5, 5))]])
    xml(scan(tmp_path / "b", series="9.2") / "b.xml", [], [[("9.2.2", [(3, 3)])]], [], [], series="9.2")
    xml(scan(tmp_path / "c", series="9.3", patient="SAMPLE-1") / "c.xml", [], [], series="9.3")
    release = read_lidc(LIDC, [tmp_path])
    assert release.records == release.problems == []
    assert release.sample
    assert release.notes == [
        "passed over: 1 marks of nodules under 3 mm",
        f"passed over: 1 series read by fewer than 2 readers ({tmp_path / 'a' / 'a.xml'})",
        "passed over: 2 series without a pixel that 2 readers drew",
    ]


def test_an_outline_of_two_points_encloses_nothing(tmp_path):
    line = [("9.1.3", [(4, 4), (4, 5)])]
    xml(scan(tmp_path) / "a.xml", *[[[("9.1.3", box(1, 1, 5, 5))], line]] * 2)
    release = read_lidc(LIDC, [tmp_path], "slices")
    assert [record.load().mask.sum() for record in release.records] == [3 * 3]
    assert release.notes == ["passed over: 2 outlines of two points"]


def test_nothing_that_could_be_read(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(InputError, match="LIDC-IDRI is not here") as caught:
        read_lidc(LIDC, [tmp_path])
    for said in ("0 CT series, XML of 0 among notes.txt", "folders img and readers", "NBIA"):
        assert said in str(caught.value)


def _change(path: Path, **changes) -> None:
    file = dcmread(path)
    for key, value in changes.items():
        setattr(file, key, value)
    file.save_as(path)


def _replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


BOMB = '<!DOCTYPE a [<!ENTITY x "ha"><!ENTITY y "&x;&x;">]><LidcReadMessage>&y;</LidcReadMessage>'
SLICE, READERS = "000010.dcm", "a.xml"  # of the middle of the series, at z = 7.5
FAULTS = {
    "no DICOM": (lambda f: (f / SLICE).write_bytes(b"hello"), "a DICOM file cannot be read", SLICE),
    "cut header": (lambda f: (f / SLICE).write_bytes((f / SLICE).read_bytes()[:300]), "cannot be read", SLICE),
    "no position": (lambda f: _change(f / SLICE, ImagePositionPatient=None), "cannot be read", SLICE),
    "missing slice": (lambda f: (f / SLICE).unlink(), "missing or there twice.*steps of 2.5 mm.*5 mm above", ""),
    "slice twice": (lambda f: shutil.copy(f / SLICE, f / "copy.dcm"), "there twice.*0 mm above 000010.dcm", ""),
    "one height": (
        lambda f: [_change(p, ImagePositionPatient=[0, 0, 7.5]) for p in f.glob("*.dcm")],
        "there twice.*0 mm above",
        "",
    ),
    "mixed spacing": (lambda f: _change(f / SLICE, PixelSpacing=[0.5, 0.5]), "mixed size or spacing.*0.5 x 0.5", ""),
    "mixed size": (lambda f: _change(f / SLICE, Rows=6), "mixed size or spacing.*6 x 14.*: 1 slices", ""),
    "no XML": (lambda f: (f / READERS).unlink(), "a series without the XML of its readers", ""),
    "no series": (lambda f: [p.unlink() for p in f.glob("*.dcm")], "XML without its series: 1", READERS),
    "cut XML": (lambda f: (f / READERS).write_text("<LidcReadMessage><Resp"), "reader file cannot be read", READERS),
    "empty XML": (lambda f: (f / READERS).write_text(""), "reader file cannot be read", READERS),
    "bomb": (lambda f: (f / READERS).write_text(BOMB), "reader file cannot be read.*EntitiesForbidden", READERS),
    "other XML": (lambda f: (f / READERS).write_text("<Annotations/>"), "cannot be read.*<Annotations>", READERS),
    "no number": (lambda f: _replace(f / READERS, "<xCoord>1<", "<xCoord>one<"), "cannot be read.*one", READERS),
    "huge number": (lambda f: _replace(f / READERS, "<xCoord>1<", f"<xCoord>{'9' * 30}<"), "cannot be read", READERS),
    "no y": (lambda f: _replace(f / READERS, "<yCoord>1</yCoord>", ""), "cannot be read", READERS),
    "no UID": (lambda f: _replace(f / READERS, "SeriesInstanceUid", "Uid"), "cannot be read", READERS),
    "neither true nor false": (lambda f: _replace(f / READERS, "TRUE", "MAYBE"), "cannot be read.*MAYBE", READERS),
    "right of the image": (
        lambda f: _replace(f / READERS, "<xCoord>1<", "<xCoord>14<"),
        "outside its image.*within 14 x 12 pixels.*x 1 to 14, y 1 to 5",
        READERS,
    ),
    "above the image": (lambda f: _replace(f / READERS, "<yCoord>1<", "<yCoord>-1<"), "outside.*y -1 to 5", READERS),
    "a slice unknown": (
        lambda f: _replace(f / READERS, "9.2.3", "9.2.33"),
        "a slice that the series lacks.*9.2.33",
        "",
    ),
    "another reading": (
        lambda f: xml(f / "b.xml", [], [], series="9.2"),
        "two XML of one series differ.*found: .*a.xml",
        "b.xml",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_reported_by_file_and_the_rest_is_read(tmp_path, fault):
    spoil, message, name = FAULTS[fault]
    xml(scan(tmp_path / "good") / "a.xml", *[[[("9.1.3", box(1, 1, 5, 5))]]] * 2)
    bad = scan(tmp_path / "bad", series="9.2", patient="P-2")
    xml(bad / READERS, *[[[("9.2.3", box(1, 1, 5, 5))]]] * 2, series="9.2")
    assert {record.group for record in read_lidc(LIDC, [tmp_path]).records} == {"P-1", "P-2"}
    spoil(bad)
    release = read_lidc(LIDC, [tmp_path])
    assert [r.name for r in release.records if r.group == "P-1"] == ["P-1_z0004_n1"]
    said = [str(problem) for problem in release.problems]
    assert any(re.search(message, text, re.DOTALL) and str(bad / name) in text for text in said), said
    if fault != "another reading":
        assert not any(record.group == "P-2" for record in release.records)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-40]), "less than expected"),
        (lambda path: _change(path, RescaleSlope=None), "NoneType"),
        (lambda path: _change(path, RescaleSlope=0), "a rescale slope of 0.0 and intercept of 0.0"),
        (lambda path: _change(path, BitsAllocated=12), "Bits Allocated"),
    ],
)
def test_pixels_that_cannot_be_read_are_reported_on_loading(tmp_path, spoil, message):
    xml(scan(tmp_path) / "a.xml", *[[[("9.1.3", box(1, 1, 5, 5))]]] * 2)
    spoil(tmp_path / SLICE)
    (record,) = read_lidc(LIDC, [tmp_path]).records
    with pytest.raises(InputError, match="a DICOM file cannot be read") as caught:
        record.load()
    assert str(tmp_path / SLICE) in str(caught.value)
    assert message in str(caught.value)


def test_crops_with_a_bit_for_each_reader(tmp_path):
    bits = np.array([[0, 1, 2, 3], [4, 8, 5, 15]], np.uint8)
    for name, drawn in (("P-1_a", bits), ("P-1_b", bits & 1), ("P-2_a", np.full_like(bits, 12))):
        write_image(tmp_path / f"LIDC/img/{name}.png", np.full(bits.shape, len(name), np.uint8))
        write_image(tmp_path / f"LIDC/readers/{name}.png", drawn)
    release = read_lidc(LIDC, [tmp_path])
    assert [(r.name, r.group, r.split, r.organ) for r in release.records] == [
        ("P-1_a", "P-1", None, "lung"),
        ("P-2_a", "P-2", None, "lung"),
    ]
    assert release.notes == ["passed over: 1 crops without a pixel that 2 readers drew"]
    pixels = release.records[0].load()
    assert pixels.mask.tolist() == [[False, False, False, True], [False, False, True, True]]
    assert pixels.image.shape == (2, 4, 3)
    with pytest.raises(InputError, match="crops cannot be read as slices"):
        read_lidc(LIDC, [tmp_path], "slices")
    (tmp_path / "LIDC/readers/P-1_b.png").unlink()
    (tmp_path / "LIDC/readers/P-2_a.png").write_bytes(b"hello")
    release = read_lidc(LIDC, [tmp_path])
    assert [record.name for record in release.records] == ["P-1_a"]
    missing, broken = map(str, release.problems)
    assert "P-1_b.png\n  expected: mask P-1_b.*" in missing
    assert "an image cannot be read" in broken
    assert "P-2_a.png" in broken


def real_scan(folder: Path, annotation: Path, patient: str) -> Release:
    """Empty slices with the UIDs and positions that an original XML names, others between them."""
    root = ElementTree.parse(annotation).getroot()
    rois = {(float(r.findtext("{*}imageZposition")), r.findtext("{*}imageSOP_UID")) for r in root.iterfind(".//{*}roi")}
    uids = dict(rois)
    step = np.diff(sorted(uids)).min()
    series = root.findtext(".//{*}SeriesInstanceUid")
    for z in np.arange(min(uids), max(uids) + step / 2, step):
        stored = np.zeros((512, 512), np.int16)
        uid = uids.get(z, f"9.9.{round(z * 100) + 100000}")
        dicom(folder / f"{uid}.dcm", uid, z, stored, series=series, patient=patient)
    shutil.copy(annotation, folder)


def shape_of(nodule: dict[int, np.ndarray]) -> tuple:
    """Reader -> mask (slice, row, column) without empty readers, slices and margins: the same for any crop."""
    drawn = np.array([nodule[reader] for reader in sorted(nodule) if nodule[reader].any()])
    drawn = drawn[:, drawn.any((0, 2, 3))]
    rows, columns = drawn.any((0, 1, 3)).nonzero()[0], drawn.any((0, 1, 2)).nonzero()[0]
    part = drawn[:, :, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return part.shape, np.packbits(part).tobytes()


@pytest.mark.parametrize(("patient", "name", "slices"), [("0001", "069", 9), ("0002", "071", 28), ("0003", "072", 30)])
def test_real_readers_give_the_published_masks_pixel_by_pixel(shared, tmp_path, patient, name, slices):
    published = defaultdict(dict)
    for path in (shared / "data/LIDC-IDRI/readers").glob(f"LIDC-IDRI-{patient}_*.png"):
        nodule, number = map(int, re.findall(r"\d+", path.stem)[1:])
        published[nodule][number] = np.asarray(Image.open(path))
    assert sum(map(len, published.values())) == slices
    expected = []
    for crops in published.values():
        bits = np.array([crops[number] for number in sorted(crops)])
        expected.append(shape_of({reader: bits >> reader & 1 == 1 for reader in range(4)}))

    real_scan(tmp_path, shared / f"data/native/LIDC-IDRI/{name}.xml", f"LIDC-IDRI-{patient}")
    release, passed = Release(), Counter()
    ((uid, series),) = find_series([tmp_path], release, passed).items()
    drawn = draw(ordered(series), find_readings([tmp_path], release, passed)[uid])
    found = []
    for _, nodule in drawn.groupby("nodule"):
        volume = np.zeros((4, nodule["z"].max() + 1, 512, 512), bool)
        volume[tuple(nodule[["reader", "z", "y", "x"]].to_numpy().T)] = True
        found.append(shape_of(dict(enumerate(volume))))
    assert sorted(found) == sorted(expected)

    release = read_lidc(LIDC, [tmp_path])
    votes = [np.count_nonzero(np.bitwise_count(crop) >= 2) for of in published.values() for crop in of.values()]
    assert not release.problems
    assert sorted(record.load().mask.sum() for record in release.records) == sorted(filter(None, votes))


def test_real_xml_of_chest_x_rays_are_passed_over(shared, tmp_path):
    for name in ("068", "070", "073"):
        shutil.copy(shared / f"data/native/LIDC-IDRI/{name}.xml", tmp_path)
    passed = Counter()
    assert find_readings([tmp_path], Release(), passed) == {}
    assert passed == {"XML of chest X-rays": 3}


def test_real_crops(shared):
    release = read_lidc(LIDC, [shared / "data/LIDC-IDRI"])
    assert not release.problems
    assert release.notes == ["passed over: 1004 crops without a pixel that 2 readers drew"]
    assert len(release.records) == 3676 - 1004
    assert len({record.group for record in release.records}) == 229
    pixels = release.records[0].load()
    assert (pixels.image.shape, pixels.mask.shape) == ((128, 128, 3), (128, 128))
