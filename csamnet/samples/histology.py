"""Look-alike releases of the data sets of stained tissue tiles."""

from __future__ import annotations

import json
import uuid
from io import BytesIO
from itertools import combinations
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import shapely
import tifffile
from PIL import Image
from scipy.io import savemat
from scipy.ndimage import distance_transform_edt, gaussian_filter
from skimage.draw import polygon

from csamnet.datasets import DATASETS
from csamnet.images import write_image
from csamnet.samples.tissue import LOOKS, MPP, STAINS, TEST, TRAIN, Look, Rng, area, paint

KUMAR = (("BR", "KI", "LI", "PR"), TRAIN[1]), (("PR", "BL", "KI", "CO"), ("violet", "dark", "pink", "grey"))
CANCERS = (
    Look("glioblastoma", 40, 12.5, 0.25, cover=1, grain=0.4, dye=(0.32, 0.58), wall=0, torn=0.01, tall=1.6),
    Look("head and neck", 44, 13.5, 0.5, cover=0.7, wall=0.35, gap=0.3, dye=(0.36, 0.8), tall=1.3),
    LOOKS["BN"],
    Look("lung", 38, 13.5, 0.55, gland=80, lumen=0.35, dye=(0.42, 0.5)),
)
MELANOMA = {
    "primary": Look("skin", 44, 14.5, 0.6, cover=0.6, clear=0.3, gap=0.3, dye=(0.36, 0.5), torn=0.02, tall=1.4),
    "metastatic": Look("skin", 52, 17, 0.5, cover=0.85, wall=0.25, dye=(0.4, 0.55), torn=0.01, tall=1.3),
}
MELANIN = np.array([0.5, 0.75, 0.95])  # optical density in red, green, blue

ANNOTATED = np.array([DATASETS["MoNuSeg"].recipe[f"offset_{axis}"] for axis in "xy"])
"""Where the outlines of MoNuSeg and Kumar lie beside the nuclei; see `csamnet.alignment`."""


def aperio(outlines: list[np.ndarray]) -> bytes:
    """Outlines as the XML of Aperio ImageScope, one Region a nucleus, in pixels of level 0."""
    add = ElementTree.SubElement
    root = ElementTree.Element("Annotations", MicronsPerPixel=f"{MPP:.6f}")
    annotation = add(root, "Annotation", Id="1", Name="", ReadOnly="0", Type="4", LineColor="65280", Visible="1")
    add(annotation, "Attributes")
    regions = add(annotation, "Regions")
    for i, outline in enumerate(outlines, 1):
        sizes = {"Area": f"{area(outline):.1f}", "AreaMicrons": f"{area(outline) * MPP**2:.1f}"}
        region = add(regions, "Region", sizes, Id=str(i), Type="0", Text="", NegativeROA="0", Analyze="1")
        add(region, "Attributes")
        vertices = add(region, "Vertices")
        for x, y in outline:
            add(vertices, "Vertex", X=f"{x:.6f}", Y=f"{y:.6f}")
    add(annotation, "Plots")
    ElementTree.indent(root, "\t")
    return ElementTree.tostring(root)


def monuseg(folder: Path, seed: int, *, train: int = 10, test: int = 4, size: int = 384) -> None:
    """MoNuSeg as released. Every sixth training image is a second slide of the patient five images before."""
    top, last = folder / "MoNuSeg 2018 Training Data", folder / "MoNuSegTestData"
    for i in range(train):
        _outlined(top / "Tissue Images", top / "Annotations", TRAIN, i, 1, [seed, 0, i], size, again=i % 6 == 5)
    for i in range(test):
        _outlined(last, last, TEST, i, train + 1, [seed, 1, i], size)


def kumar(folder: Path, seed: int, *, train: int = 6, test: int = 4, size: int = 256) -> None:
    """Kumar as released, but for a folder each for train and test: a painted image has no patient to tell."""
    for part, (split, count, first) in enumerate((("train", train, 101), ("test", test, train + 101))):
        top = folder / f"Kumar {split}"
        for i in range(count):
            _outlined(top / "Tissue images", top / "Annotations", KUMAR[part], i, first, [seed, 2 + part, i], size)


def _outlined(
    images: Path, xml: Path, looks: tuple, i: int, first: int, seed: list[int], size: int, again: bool = False
) -> None:
    """The i-th image of a part (organs and stains in turn) as TIFF and XML; `again`: of the patient five before."""
    images.mkdir(parents=True, exist_ok=True)
    xml.mkdir(exist_ok=True)
    organs, stains = looks
    organ = organs[i % len(organs)]
    name = f"SAMPLE-{organ}-{first + i - 5 * again:04d}-01Z-00-DX{1 + again}"
    image, nuclei = paint(np.random.default_rng(seed), LOOKS[organ], STAINS[stains[i % len(stains)]], size)
    tifffile.imwrite(images / f"{name}.tif", image, photometric="rgb", compression="lzw", metadata=None)
    (xml / f"{name}.xml").write_bytes(aperio([np.minimum(outline + ANNOTATED, size - 1) for outline in nuclei]))


def cpm17(folder: Path, seed: int, *, train: int = 6, test: int = 4, size: int = 256) -> None:
    """CPM17 as released: of two sizes, four cancers, and every third image at 20x."""
    stains = list(STAINS.values())
    for part, (split, count) in enumerate((("train", train), ("test", test))):
        for i in range(count):
            rng, fine = np.random.default_rng([seed, 4 + part, i]), i % 3 != 1
            side = size * 6 // 5 if i % 4 == 3 else size
            image, nuclei = paint(rng, CANCERS[i % 4], stains[(i + 2 * part) % 5], side * (2 - fine))
            if not fine:
                image = np.asarray(Image.fromarray(image).reduce(2))
                nuclei = [(outline - 0.5) / 2 for outline in nuclei]
            write_image(folder / split / "Images" / f"image_{i:02d}.png", image)
            path = folder / split / "Labels" / f"image_{i:02d}.mat"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(matlab(_labels(nuclei, side)))


def matlab(labels: np.ndarray) -> bytes:
    """A file of MATLAB 5 with `inst_map`, and no date in its header."""
    buffer, header = BytesIO(), b"MATLAB 5.0 MAT-file, a painted sample"
    savemat(buffer, {"inst_map": labels})
    return header.ljust(116) + buffer.getvalue()[116:]


def _labels(outlines: list[np.ndarray], size: int) -> np.ndarray:
    labels = np.zeros((size, size), np.int32)
    for number, outline in enumerate(outlines, 1):
        labels[polygon(outline[:, 1], outline[:, 0], labels.shape)] = number
    return labels


def puma(folder: Path, seed: int, *, primary: int = 5, metastatic: int = 5, size: int = 256) -> None:
    """PUMA as released: RGBA, nuclei of several classes, some of two parts, some with a hole."""
    images, outlines = (folder / f"01_training_dataset_{kind}" for kind in ("tif_ROIs", "geojson_nuclei"))
    images.mkdir()
    outlines.mkdir()
    for part, (kind, count) in enumerate((("primary", primary), ("metastatic", metastatic))):
        for i in range(count):
            rng, stain = np.random.default_rng([seed, 6 + part, i]), ("violet", "magenta", "dark")[i % 3]
            image, nuclei = melanoma(rng, MELANOMA[kind], stain, size)
            image = np.dstack([image, np.full(image.shape[:2], 255, np.uint8)])
            name = f"SAMPLE_set_{kind}_roi_{i + 1:03d}"
            path = images / f"{name}.tif"
            tifffile.imwrite(path, image, photometric="rgb", extrasamples=["unassalpha"], metadata=None)
            (outlines / f"{name}_nuclei.geojson").write_text(geojson(rng, nuclei), encoding="utf-8")


def geojson(rng: Rng, nuclei: list[tuple[str, shapely.Geometry]]) -> str:
    """Classes and shapes of nuclei as QuPath exports them."""
    features = [
        {
            "type": "Feature",
            "id": str(uuid.UUID(bytes=rng.bytes(16), version=4)),
            "geometry": json.loads(shapely.to_geojson(nucleus)),
            "properties": {"objectType": "annotation", "classification": {"name": f"nuclei_{kind}"}},
        }
        for kind, nucleus in nuclei
    ]
    return json.dumps({"type": "FeatureCollection", "features": features})


def melanoma(rng: Rng, look: Look, stain: str, size: int) -> tuple[np.ndarray, list[tuple[str, shapely.Geometry]]]:
    """Painted melanoma (size, size, 3) uint8; class and shape of each nucleus, vertices at whole coordinates.

    Some cells are brown with melanin. The two largest nuclei have a hole, where cytoplasm bulges into them, and the
    two small ones that are closest, but apart, count as the lobes of one.
    """
    image, outlines = paint(rng, look, STAINS[stain], size)
    labels, kinds = _labels(outlines, size), [_kind(rng, outline, size) for outline in outlines]
    image, brown = _pigmented(rng, image, labels, [outline.mean(0) for outline in outlines])
    kinds = ["melanophage" if i in brown and kind == "lymphocyte" else kind for i, kind in enumerate(kinds)]
    tumour = [i for i, kind in enumerate(kinds) if kind == "tumor"]
    nuclei = [shapely.Polygon(outline).buffer(-0.5) for outline in outlines]  # an outline's pixels belong to it
    for i in sorted(tumour, key=lambda i: -nuclei[i].area)[:2]:
        image, hole = _inclusion(rng, image, labels, i + 1, outlines[i])
        nuclei[i] = nuclei[i].difference(hole)
    nuclei = [shapely.set_precision(nucleus, 1) for nucleus in nuclei]
    small = [i for i, kind in enumerate(kinds) if kind == "lymphocyte" and nuclei[i].area]
    apart = [(away, i, j) for i, j in combinations(small, 2) if (away := nuclei[i].distance(nuclei[j]))]
    if apart:
        _, i, j = min(apart)
        nuclei[i], kinds[i], nuclei[j] = nuclei[i].union(nuclei[j]), "neutrophil", shapely.Polygon()
    return image, [(kind, nucleus) for kind, nucleus in zip(kinds, nuclei, strict=True) if nucleus.area]


def _kind(rng: Rng, outline: np.ndarray, size: int) -> str:
    """A class that fits a nucleus' size and length."""
    length, width = np.linalg.svd(outline - outline.mean(0), compute_uv=False)
    if (area(outline) > 450 and length < 1.9 * width) or outline.min() <= 0 or outline.max() >= size - 1:
        return "tumor"
    if length > 1.9 * width:
        return str(rng.choice(["stroma", "endothelium"], p=[0.85, 0.15]))
    return str(rng.choice(["lymphocyte", "plasma_cell", "histiocyte", "apoptosis"], p=[0.8, 0.1, 0.07, 0.03]))


def _pigmented(rng: Rng, image: np.ndarray, labels: np.ndarray, centres: list) -> tuple[np.ndarray, set[int]]:
    """The image with grains of melanin around some nuclei that lie together, and which ones these are."""
    noise = [gaussian_filter(rng.standard_normal(labels.shape), sigma) for sigma in (30, 7, 2.5, 1)]
    where, side, clump, grain = (field / field.std() for field in noise)
    x, y = np.reshape(centres, (-1, 2)).astype(int).T
    brown = {int(i) for i in np.argsort(-where[y, x])[: len(x) // 4]}
    away = distance_transform_edt(~np.isin(labels, [i + 1 for i in brown])) if brown else np.full(labels.shape, 99)
    dye = np.exp(-((away / 15) ** 2)) * np.clip(side + 0.8, 0, 1.3) * gaussian_filter(np.where(labels > 0, 0.15, 1), 1)
    dye = dye * (0.25 + 0.45 * np.clip(clump, 0, 2) + 0.35 * np.clip(grain + clump, 0, 3))
    return (image * np.exp(-dye[..., None] * MELANIN)).astype(np.uint8), brown


def _inclusion(rng: Rng, image: np.ndarray, labels: np.ndarray, number: int, outline: np.ndarray):
    """The image with cytoplasm inside a nucleus, and its round outline."""
    radius = rng.uniform(0.25, 0.4) * (area(outline) / np.pi) ** 0.5
    x, y = outline.mean(0) + rng.uniform(-0.5, 0.5, 2) * radius
    rows, columns = np.indices(labels.shape)
    inside = np.clip((radius - np.hypot(rows - y, columns - x)) / 1.5 + 0.5, 0, 1)[..., None]
    light = np.median(image[labels == 0], 0) / np.maximum(np.median(image[labels == number], 0), 1)
    image = np.clip(image * (1 + inside * (light - 1)), 0, 255).astype(np.uint8)
    return image, shapely.Point(x, y).buffer(radius, quad_segs=4)
