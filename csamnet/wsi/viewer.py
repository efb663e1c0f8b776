"""What was found in slides, as a table and as a slide to zoom.

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

import numpy as np
import shapely
import zarr
from matplotlib import colormaps
from matplotlib.colors import to_hex
from PIL import Image, ImageColor
from torch import nn

from csamnet.datasets import Dataset
from csamnet.files import InputError, replacing
from csamnet.images import IMAGE_SUFFIXES
from csamnet.manifest import read_manifest
from csamnet.pages.figures import YELLOW
from csamnet.pages.tables import markdown
from csamnet.paths import EXECUTED, SAMPLES
from csamnet.readers.common import by_stem
from csamnet.readers.slides import SUFFIXES
from csamnet.samples import make_sample
from csamnet.slides import Slide
from csamnet.wsi.slide_figures import HEAT, RED, Shown
from csamnet.wsi.slide_jobs import run_slides
from csamnet.wsi.slide_outputs import annotated
from csamnet.wsi.slide_run import Options

TILE = 254  # pixels
PAINT = ImageColor.getrgb(YELLOW)
MASK = np.array([(*PAINT, alpha) for alpha in (0, 85, 170, 255)])  # by how much of a pixel is mask
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
    """Run `slide_jobs.run_slides` on `chosen` (path -> split), into `out`; what there is to show, but no broken slide.

    `mpp`: um per pixel of slides that do not say it; `at`: to work at, None for what the weights have learned from.
    Raises InputError where none is left.
    """
    rows, found = run_slides(model, list(chosen), out, Options(mpp=mpp, at=at)), []
    for (path, split), row in zip(chosen.items(), rows, strict=True):
        if row["status"] == "broken":
            print(row["error"])
        elif "burden" in row:
            folder = Path(row["folder"])
            used = zarr.open_array(folder / "probability.zarr", mode="r").attrs["mpp"]
            found.append(Shown(Slide(path, mpp), split, folder, row, used, model.config.threshold, annotated(path)))
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
    with replacing(out) as new:
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
    colours = colormaps[HEAT](burden / (np.nanmax(burden, initial=0) or 1), bytes=True)
    colours[np.isnan(burden)] = 0
    factor = ceil(1024 / max(burden.shape))
    picture = Image.fromarray(colours.repeat(factor, 0).repeat(factor, 1))
    return picture.crop((0, 0, *np.rint(size * factor).astype(int).tolist()))


def _still(photograph: Image.Image, found: Image.Image | None, said: str) -> str:
    """The picture for where there is no script."""
    picture = photograph.copy()
    if found:
        picture.paste(PAINT, mask=found.point(lambda value: value * SHOWN["mask"] // 100))
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
    colours = ", ".join(to_hex(colormaps[HEAT](value)) for value in np.linspace(0, 1, 9))
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
