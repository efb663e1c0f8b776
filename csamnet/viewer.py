"""What was found in slides: three figures, and a slide to zoom.

The latter is layers of image tiles in a folder, and HTML that the book's `viewer.js` turns into layers to switch on
and off, by OpenSeadragon. Where there is no such script, as in a live notebook, the same HTML is a picture of the
slide with its mask and its outlines.
"""

from __future__ import annotations

import base64
import html
import io
import json
import os
from collections.abc import Callable, Mapping, Sequence
from math import ceil, log2
from pathlib import Path
from typing import NamedTuple

import numpy as np
import shapely
import zarr
from matplotlib import colormaps, rc_context
from matplotlib.collections import LineCollection, PatchCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image
from scipy import ndimage
from torch import nn

from csamnet.burden import CELL_PIXELS, CELL_UM, STEPS, annotated
from csamnet.datasets import Dataset
from csamnet.figures import BLACK, NO_AXES, STYLE, _panels, _picture
from csamnet.files import InputError
from csamnet.images import IMAGE_SUFFIXES
from csamnet.instances import instances_from_probability
from csamnet.manifest import read_manifest
from csamnet.paths import EXECUTED, SAMPLES
from csamnet.readers.common import by_stem
from csamnet.readers.slides import SUFFIXES
from csamnet.samples import _replacing, make_sample
from csamnet.slides import Slide
from csamnet.stream import Options, run_slides
from csamnet.tables import markdown

TILE = 254  # pixels
RED, YELLOW = "#E00000", (240, 228, 66)
LONGEST = 900  # pixels of a slide in a figure
HEAT = colormaps["viridis"]
MASK = np.array([(*YELLOW, alpha) for alpha in (0, 85, 170, 255)])  # by how much of a pixel is mask
COLUMNS = {
    "tissue_mm2": ("tissue (mm²)", ".2f"),
    "nuclei": ("{} found", ",.0f"),
    "nuclei_per_mm2": ("found per mm²", ",.0f"),
    "area_fraction": ("share of the tissue", ".1%"),
    "burden_inside": ("burden inside", ".1%"),
    "burden_outside": ("burden outside", ".1%"),
    "auc": ("AUC", ".3f"),
}
"""Of a slide's summary: what is shown, its title and form."""
SHOWN = {"slide": 100, "mask": 70, "heatmap": 0, "annotation": 100}  # at first, percent


class Shown(NamedTuple):
    """A slide with what `csamnet slide` found in it."""

    slide: Slide
    split: str  # that of its tiles
    folder: Path  # of results
    summary: dict  # a row of `stream.run_slides`
    mpp: float | None  # of results
    threshold: float
    cancer: list[np.ndarray]  # annotated outlines (n, 2) of x, y in level 0; maybe none

    @property
    def title(self) -> str:
        return f"{self.slide.path.stem} ({self.split})"

    @property
    def cell(self) -> float:
        """The side of a cell of the burden, in um; in pixels where the slide does not say its resolution."""
        return CELL_UM if self.slide.mpp else CELL_PIXELS

    def burden(self) -> np.ndarray:
        return np.load(self.folder / "burden.npy")

    def densest(self, side: int) -> tuple[int, int]:
        """The corner (x, y), in pixels of the results, of the square that holds most of the mask."""
        mask = Slide(self.folder / "mask.ome.tiff")
        share, scale = mask.thumbnail()[..., 0] / 255, max(1.0, max(mask.size) / 1024)
        size = [min(round(side / scale), n) for n in share.shape]
        held = ndimage.uniform_filter(share, size, mode="constant")
        corner = np.subtract(np.unravel_index(held.argmax(), held.shape), np.floor_divide(size, 2))[::-1] * scale
        return tuple(np.clip(corner, 0, np.maximum(np.subtract(mask.size, side), 0)).astype(int).tolist())

    def close_up(self, side: int) -> tuple[np.ndarray, np.ndarray]:
        """The photograph (side, side, 3) and the probability (side, side) at `densest`."""
        (x, y), scale = self.densest(side), self.slide.scale(self.mpp)
        stored = zarr.open_array(self.folder / "probability.zarr", mode="r")[y : y + side, x : x + side]
        return self.slide.read(x * scale, y * scale, *stored.shape[::-1], self.mpp), stored / np.float32(STEPS)


def find_release(entry: Dataset, card: dict, profile: str, releases: Path | str | None) -> Path:
    """The folder of a data set's slides: below `releases`, or look-alikes, painted where there are none.

    `card`: dataset.json of the tree that was prepared from them. Raises InputError for other data sets, where there
    is no such folder, and where the one is a look-alike and the other is not.
    """
    if entry.modality != "H&E slides":
        raise InputError(f"{entry.name} has no slides", expected="BACH2018 | InHouse")
    if profile != "sample" and not releases:
        raise InputError(f"profile {profile} is for real slides", expected="releases: the folder that holds them")
    folder = Path(releases, entry.name) if releases else make_sample(entry.name, SAMPLES)
    kind = "sample" if (folder / "SAMPLE.json").exists() else "real"
    if not folder.is_dir() or kind != card["kind"]:
        found = f"{kind} data" if folder.is_dir() else "nothing"
        expected = f"slides of the tree that is prepared: {card['kind']} data"
        raise InputError("not the slides that were prepared", path=folder, expected=expected, found=found)
    return folder


def choose_slides(release: Path, prepared: Path, most: int) -> dict[Path, str]:
    """Slides of a release that the run on its tiles was not fitted to, and their splits: test before validation.

    `prepared`: the data set's canonical tree. Raises InputError where the release has no such slide.
    """
    splits = read_manifest(prepared).drop_duplicates("group").set_index("group")["split"]
    splits = splits[splits != "train"].sort_values(kind="stable")
    files = by_stem([Path(release)], *SUFFIXES)
    files = {name: min(paths, key=lambda path: path.suffix.lower() in IMAGE_SUFFIXES) for name, paths in files.items()}
    chosen = {files[name]: split for name, split in splits.items() if name in files}
    if not chosen:
        raise InputError("no slide to show", path=release, expected=", ".join(splits.index), found=", ".join(files))
    return dict(list(chosen.items())[:most])


def look(
    model: nn.Module, chosen: Mapping[Path, str], out: Path, *, mpp: float | None = None, at: float | None = None
) -> list[Shown]:
    """Run `stream.run_slides` on `chosen` (path -> split), into `out`; what there is to show, without broken slides.

    `mpp`: um per pixel of slides that do not say it; `at`: to work at, None for what the weights have learned from.
    Raises InputError where none is left.
    """
    rows, found = run_slides(model, list(chosen), out, Options(mpp=mpp, at=at)), []
    for (path, split), row in zip(chosen.items(), rows, strict=True):
        if row["status"] == "broken":
            print(row["error"])
        elif "burden" in row:
            xml, folder = path.with_suffix(".xml"), Path(row["folder"])
            used = zarr.open_array(folder / "probability.zarr", mode="r").attrs["mpp"]
            cancer = [points for points in (annotated(xml) if xml.exists() else []) if len(points) > 2]
            found.append(Shown(Slide(path, mpp), split, folder, row, used, model.config.threshold, cancer))
    if not found:
        raise InputError("there is no slide to show: all are broken, or at work elsewhere", path=out)
    return found


def summary_table(slides: Sequence[Shown], target: str = "nuclei") -> str:
    """What was found, a line a slide, in Markdown; with burden inside and outside where cancer is annotated."""
    keys = [key for key in COLUMNS if any(key in shown.summary for shown in slides)]
    titles = [COLUMNS[key][0].format("nuclei" if target == "nuclei" else "regions") for key in keys]
    rows = []
    for shown in slides:
        values = [(shown.summary.get(key), COLUMNS[key][1]) for key in keys]
        cells = ["" if v is None else "undefined" if v != v else f"{v:{form}}" for v, form in values]
        rows.append([shown.title, *cells])
    return markdown(["slide", *titles], rows, ",".join(titles))


# ------------------------------------------------------------------------------------------- figures


@rc_context(fname=STYLE)
def workflow(shown: Shown, source: str, *, tile: int = 256, side: int = 256, target: str = "nuclei") -> Figure:
    """From a slide to what is in it: tissue and tiles, and in a square of `side` pixels probability, mask, outlines."""
    alt = f"Six steps on slide {shown.title}: slide, tissue, tiles, probability, mask, outlines of {target}."
    figure, ((first, second, third), below) = _panels(alt, 4.3, source, 2, 3, subplot_kw=NO_AXES)
    photograph, (tissue, coarse) = shown.slide.thumbnail(LONGEST), shown.slide.tissue(LONGEST)
    step, (x, y) = tile * shown.slide.scale(shown.mpp) / coarse, shown.densest(side)
    grid = [(i * step, j * step) for j in range(ceil(len(tissue) / step)) for i in range(ceil(len(tissue[0]) / step))]
    held = [(u, v) for u, v in grid if tissue[int(v) : ceil(v + step), int(u) : ceil(u + step)].any()]
    for ax, title in ((first, "1 slide"), (second, "2 tissue"), (third, f"3 tiles: {len(held):,}, less overlap")):
        _picture(ax, photograph, title)
    _scale_bar(first, shown.slide.mpp, coarse, photograph.shape)
    first.add_patch(Rectangle((x * step / tile, y * step / tile), *[side * step / tile] * 2, fill=False, ec=BLACK))
    second.imshow(np.where(tissue[..., None], (0, 0, 0, 0), (1, 1, 1, 0.75)), extent=(0, *photograph.shape[1::-1], 0))
    second.contour(tissue, [0.5], colors=BLACK, linewidths=0.8)
    third.add_collection(PatchCollection([Rectangle(at, step, step) for at in held], fc="none", ec=BLACK, lw=0.5))
    third.set(xlim=first.get_xlim(), ylim=first.get_ylim())
    image, probability = shown.close_up(side)
    labels = instances_from_probability(probability, threshold=shown.threshold)
    _picture(below[0], image, "4 probability")
    below[0].imshow(probability, cmap=HEAT, vmin=0, vmax=1, extent=(0, *probability.shape[::-1], 0))
    _scale_bar(below[0], shown.mpp, 1, probability.shape)
    _picture(below[1], (probability >= shown.threshold)[..., None] * np.uint8([255] * 3), "5 mask")
    _picture(below[2], image, "6 outlines", (labels, np.divide(YELLOW, 255), 1.0))
    return figure


@rc_context(fname=STYLE)
def heatmaps(slides: Sequence[Shown], source: str, target: str = "nuclei") -> Figure:
    """Slides beside the burden of their tissue, on one scale of colours; annotated cancer outlined in red."""
    tall = sum(2.8 * shown.slide.size[1] / shown.slide.size[0] + 0.5 for shown in slides)
    alt = f"Slides, and the share of their tissue that is {target} in colours, cancer outlined in red:"
    alt += f" {', '.join(shown.title for shown in slides)}."
    figure, axes = _panels(alt, min(tall + 1, 12), source, len(slides), 2, subplot_kw=NO_AXES)
    burdens = [shown.burden() for shown in slides]
    top = max(np.nanmax(burden, initial=0) for burden in burdens) or 1
    for (left, right), shown, burden in zip(axes, slides, burdens, strict=True):
        photograph, scale = shown.slide.thumbnail(LONGEST), max(1.0, max(shown.slide.size) / LONGEST)
        side = shown.cell / (shown.slide.mpp or 1) / scale
        lines = [(np.vstack([points, points[:1]]) - shown.slide.offset) / scale for points in shown.cancer]
        _picture(left, photograph, shown.title)
        _scale_bar(left, shown.slide.mpp, scale, photograph.shape)
        extent = (0, burden.shape[1] * side, burden.shape[0] * side, 0)
        heat = right.imshow(burden, cmap=HEAT, vmin=0, vmax=top, extent=extent)
        right.set(xlim=left.get_xlim(), ylim=left.get_ylim())
        right.set_title("burden", pad=3)
        for ax in (left, right):
            ax.add_collection(LineCollection(lines, colors=RED, linewidths=1.3))
    bar = figure.colorbar(heat, ax=axes, location="bottom", shrink=0.5, aspect=30, format="{x:.0%}", pad=0.01)
    bar.set_label(f"{target}, share of each cell of {slides[0].cell:g} {'µm' if slides[0].slide.mpp else 'px'}")
    return figure


@rc_context(fname=STYLE)
def close_ups(slides: Sequence[Shown], source: str, *, side: int = 256, target: str = "nuclei") -> Figure:
    """The square of each slide that holds most of its mask: photograph, mask, and outlines on the photograph."""
    names = ", ".join(shown.title for shown in slides)
    alt = f"Details of slides at full resolution, their masks, and {target} outlined in yellow: {names}."
    figure, axes = _panels(alt, 0.5 + 2.1 * len(slides), source, len(slides), 3, subplot_kw=NO_AXES)
    for (left, middle, right), shown in zip(axes, slides, strict=True):
        image, probability = shown.close_up(side)
        labels = instances_from_probability(probability, threshold=shown.threshold)
        _picture(left, image, shown.title)
        _scale_bar(left, shown.mpp, 1, probability.shape)
        _picture(middle, (probability >= shown.threshold)[..., None] * np.uint8([255] * 3), "mask")
        _picture(right, image, f"{labels.max()} outlined", (labels, np.divide(YELLOW, 255), 1.0))
    return figure


def _scale_bar(ax, mpp: float | None, scale: float, shape: tuple[int, ...]) -> None:
    """A bar of a round length below a picture of `shape` (h, w, ...), each pixel of which is `scale` times `mpp` um."""
    width = shape[1] * scale * (mpp or 1)
    length = max(n * 10**ten for n in (1, 2, 5) for ten in range(-1, 6) if n * 10**ten <= max(width / 3, 0.1))
    text = f"{length:g} px" if mpp is None else f"{length:g} µm" if length < 1000 else f"{length / 1000:g} mm"
    ax.plot(
        [0, length / width],
        [-0.03] * 2,
        color=BLACK,
        lw=2.5,
        clip_on=False,
        transform=ax.transAxes,
        solid_capstyle="butt",
    )
    ax.text(0, -0.06, text, fontsize=7.5, va="top", transform=ax.transAxes)


# -------------------------------------------------------------------------------------------- viewer


def make_viewer(
    slide: Slide,
    out: Path | str,
    *,
    mask: Path | str | None = None,
    burden: np.ndarray | None = None,
    cell: float = 100.0,
    annotation: Sequence[np.ndarray] = (),
    target: str = "nuclei",
    source: str = "",
    longest: int = 3072,
    page: Path | str = EXECUTED,
) -> str:
    """Write tiles of a slide and of what was found in it to the folder `out`; return the HTML that shows them.

    `mask`: a file that `Slide` reads, of the whole scanned area. `burden`: shares (h, w) in squares of `cell` um (or
    pixels, of a slide without resolution), NaN outside tissue. `annotation`: outlines (n, 2) of cancer, as x and y in
    level 0. `target`: what was found. `source`: what data it is, as of `tables.source`. The slide has `longest`
    pixels a side in the tiles, at most. `page`: the folder of the page, which is to be served along with `out`; that
    is replaced whole. Raises InputError for files that cannot be read.
    """
    out, photograph, found = Path(out), Image.fromarray(slide.thumbnail(longest)), None
    layers = {"slide": {"format": "jpg", "overlap": 1}}
    with _replacing(out) as new:
        _tile(photograph, new / "slide", 1, lambda tile, path: tile.save(f"{path}.jpg", quality=72))
        if mask:
            found = Image.fromarray(Slide(mask).thumbnail(longest)[..., 0]).resize(photograph.size)
            _tile(found, new / "mask", 0, lambda tile, path: _painted(tile).save(f"{path}.png", bits=2))
            layers["mask"] = {"format": "png", "overlap": 0}
        if burden is not None:
            _heatmap(burden, np.multiply(slide.size, (slide.mpp or 1) / cell)).save(new / "heatmap.png")
            layers["heatmap"] = {}
    folder, mpp = os.path.relpath(out, page), slide.mpp and slide.mpp * slide.size[0] / photograph.width
    data = {"folder": Path(folder).as_posix(), "size": photograph.size, "tile": TILE, "mpp": mpp, "layers": layers}
    drawn = _outlined(slide, annotation) if annotation else ""
    said = f"Slide {slide.path.stem}" + f", {target} in yellow" * bool(found)
    said += ", annotated cancer outlined in red" * bool(drawn)
    names = [*layers, *["annotation"] * bool(drawn)]
    legend = "" if burden is None else _legend(np.nanmax(burden, initial=0), target)
    return _figure(data, _still(photograph, found, said) + drawn, names, legend, f"{said}. {source}")


def _tile(image: Image.Image, folder: Path, overlap: int, save: Callable[[Image.Image, Path], None]) -> None:
    """A pyramid in the layout of Deep Zoom (level/column_row), down to the level that is one or two tiles."""
    top = ceil(log2(max(image.size)))
    for level in range(top, min(top, 8) - 1, -1):
        (folder / str(level)).mkdir(parents=True)
        for y in range(0, image.height, TILE):
            for x in range(0, image.width, TILE):
                right, bottom = (min(at + TILE + overlap, n) for at, n in zip((x, y), image.size, strict=True))
                tile = image.crop((max(x - overlap, 0), max(y - overlap, 0), right, bottom))
                save(tile, folder / str(level) / f"{x // TILE}_{y // TILE}")
        image = image.reduce(2)


def _painted(share: Image.Image) -> Image.Image:
    """How much of a pixel is mask, 0 to 255, as a picture of the four colours `MASK`."""
    picture = share.point(lambda value: (value + 42) // 85)
    picture.putpalette(MASK.astype(np.uint8).tobytes(), "RGBA")
    return picture


def _heatmap(burden: np.ndarray, size: np.ndarray) -> Image.Image:
    """Shares (h, w), from 0 to the highest, as colours; clear outside tissue, cut to `size` (width, height) cells."""
    colours = HEAT(burden / (np.nanmax(burden, initial=0) or 1), bytes=True)
    colours[np.isnan(burden)] = 0
    factor = ceil(1024 / max(burden.shape))
    picture = Image.fromarray(colours.repeat(factor, 0).repeat(factor, 1))
    return picture.crop((0, 0, *np.rint(size * factor).astype(int).tolist()))


def _still(photograph: Image.Image, found: Image.Image | None, said: str) -> str:
    """The picture for where there is no script."""
    picture = photograph.copy()
    if found:
        picture.paste(YELLOW, mask=found.point(lambda value: value * SHOWN["mask"] // 100))
    picture.thumbnail((1000, 1000), Image.Resampling.BOX)
    picture.save(stream := io.BytesIO(), "JPEG", quality=75)
    data = base64.b64encode(stream.getvalue()).decode()
    return f'<img alt="{html.escape(said)}" style="display:block;width:100%" src="data:image/jpeg;base64,{data}">'


def _outlined(slide: Slide, outlines: Sequence[np.ndarray]) -> str:
    """Outlines in level 0 as lines over a slide that are equally thick however large it is shown."""
    rings = [shapely.linearrings(np.subtract(outline, slide.offset)) for outline in outlines]
    simple = [shapely.get_coordinates(shapely.simplify(ring, max(slide.size) / 4000)).round(1) for ring in rings]
    points = (" ".join(f"{x:g},{y:g}" for x, y in ring) for ring in simple)
    shapes = "".join(f'<polygon vector-effect="non-scaling-stroke" points="{text}"/>' for text in points)
    style = f"position:absolute;inset:0;width:100%;height:100%;fill:none;stroke:{RED};stroke-width:2.5px"
    view = "0 0 {} {}".format(*slide.size)
    return f'<svg aria-hidden="true" viewBox="{view}" preserveAspectRatio="none" style="{style}">{shapes}</svg>'


def _legend(highest: float, target: str) -> str:
    """A colour bar."""
    colours = ", ".join(to_hex(HEAT(value)) for value in np.linspace(0, 1, 9))
    bar = f'<span class="slide-bar" style="background:linear-gradient(to right, {colours})"></span>'
    return (
        f"<p>Heatmap, share of the tissue that is {html.escape(target)}: <span>0 %{bar}{100 * highest:.0f} %</span></p>"
    )


def _figure(data: dict, stage: str, layers: Sequence[str], legend: str, caption: str) -> str:
    """The HTML; its controls are hidden until there is a script that makes them work."""
    rows = []
    for name in layers:
        box = f'<label><input type="checkbox" data-layer="{name}"{" checked" * (SHOWN[name] > 0)}> {name}</label>'
        value = f'min="0" max="100" step="5" value="{SHOWN[name] or 70}" aria-label="opacity of the {name}"'
        rows.append(box + f'<input type="range" data-layer="{name}" {value}>' * (name in ("mask", "heatmap")))
    fields = "".join(f"<div>{row}</div>" for row in rows)
    names = {"in": ("+", "zoom in"), "out": ("−", "zoom out"), "home": ("whole slide", "whole slide")}
    buttons = "".join(
        f'<button type="button" data-go="{key}" aria-label="{name}">{text}</button>'
        for key, (text, name) in names.items()
    )
    return (
        f'<div class="slide-viewer" data-slide="{html.escape(json.dumps(data))}"><figure style="margin:0">'
        f'<div class="slide-stage" style="position:relative">{stage}</div>'
        f'<div class="slide-controls" hidden><div>{buttons}</div><fieldset><legend>Layers</legend>{fields}</fieldset>'
        f"{legend}</div><figcaption>{html.escape(caption.strip())}</figcaption></figure></div>"
    )
