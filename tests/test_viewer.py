"""A slide's layers in a browser: they load, switch on and off, are where they should be, and ask no other host."""

from __future__ import annotations

import io
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import zarr
from PIL import Image
from web import serve

from csamnet.datasets import get_dataset
from csamnet.files import InputError
from csamnet.manifest import COLUMNS
from csamnet.pages.figures import rendered
from csamnet.slides import Slide
from csamnet.wsi.slide_figures import Shown, close_ups, heatmaps, workflow
from csamnet.wsi.viewer import TILE, choose_slides, find_release, make_viewer, summary_table

ROOT = Path(__file__).resolve().parents[1]
VENDOR, ASSETS = ROOT / "book" / "vendor", ROOT / "book" / "assets"
POLICY = "default-src 'self' data: blob:; script-src 'self'; style-src 'self' 'unsafe-inline'"
PAGE = """<!doctype html><html lang="en" data-theme="{theme}"><head><meta charset="utf-8"><title>A slide</title>
<meta name="viewport" content="width=device-width"><meta http-equiv="Content-Security-Policy" content="{policy}">
<link rel="icon" href="data:,"><link rel="stylesheet" href="_static/book.css">
<style>[data-theme=dark] body {{ background: #14181e; color: #ced6dd; --pst-color-surface: #29313d }}</style>
<script defer src="_static/book.js"></script></head><body><main><h1>A slide</h1>{viewer}</main></body></html>"""
WIDTH, HEIGHT, MPP = 1200, 700, 0.5
PINK, PURPLE = (230, 190, 215), (110, 60, 140)
SQUARE = np.s_[200:300, 800:1000]
"""Rows and columns of the one thing that was found."""


@pytest.fixture(scope="module")
def slide(tmp_path_factory) -> Slide:
    """A pink slide with a purple rectangle."""
    pixels = np.full((HEIGHT, WIDTH, 3), PINK, np.uint8)
    pixels[SQUARE] = PURPLE
    path = tmp_path_factory.mktemp("slides") / "S1.png"
    Image.fromarray(pixels).save(path)
    return Slide(path, MPP)


@pytest.fixture(scope="module")
def site(slide, tmp_path_factory) -> Path:
    """A page with the slide: the rectangle is its mask, a square left of the middle its annotated cancer.

    The last row of cells, of 60 um, goes beyond the slide.
    """
    site = tmp_path_factory.mktemp("site")
    mask, burden = np.zeros((HEIGHT, WIDTH), bool), np.full((6, 10), np.nan, np.float32)
    mask[SQUARE], burden[2, :9], burden[2, 6:9] = True, 0, 0.5
    Image.fromarray(mask).save(site / "mask.png")
    outline = np.array([(100, 100), (600, 100), (600, 600), (100, 600)])
    layers = {"mask": site / "mask.png", "burden": burden, "annotation": [outline]}
    viewer = make_viewer(slide, site / "tiles" / "S1", cell=60, source="Toy <b> · sample data", page=site, **layers)
    for theme in ("light", "dark"):
        (site / f"{theme}.html").write_text(PAGE.format(theme=theme, policy=POLICY, viewer=viewer), encoding="utf-8")
    shutil.copytree(ASSETS, site / "_static")
    if (VENDOR / "site" / "openseadragon").is_dir():
        shutil.copytree(VENDOR / "site" / "openseadragon", site / "_static" / "openseadragon")
    return site


def rgba(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGBA"), int)


def tiles(site: Path, layer: str, level: int) -> dict[str, np.ndarray]:
    return {path.stem: rgba(path) for path in (site / "tiles" / "S1" / layer / str(level)).iterdir()}


def test_tiles_put_together_are_the_picture(site, slide):
    """At full size, and at half size, where the picture's mean is the same."""
    whole = np.zeros((HEIGHT, WIDTH), np.uint8)
    for name, tile in tiles(site, "mask", 11).items():
        column, row = (TILE * int(part) for part in name.split("_"))
        whole[row : row + tile.shape[0], column : column + tile.shape[1]] = tile[..., 3]
    expected = np.zeros_like(whole)
    expected[SQUARE] = 255
    np.testing.assert_array_equal(whole, expected)
    assert sum(tile[..., 3].sum() for tile in tiles(site, "mask", 10).values()) == 50 * 100 * 255
    photograph = tiles(site, "slide", 11)
    assert len(photograph) == 5 * 3
    assert photograph["1_1"].shape[:2] == (TILE + 2, TILE + 2)  # one pixel of each neighbour
    assert np.abs(photograph["0_0"][50, 50, :3] - PINK).max() < 6
    assert max(int(path.name) for path in (site / "tiles/S1/slide").iterdir()) == 11
    assert min(int(path.name) for path in (site / "tiles/S1/slide").iterdir()) == 8


def test_heatmap_is_clear_outside_tissue_and_ends_with_the_slide(site):
    heat = rgba(site / "tiles/S1/heatmap.png")
    side = heat.shape[1] / 10
    assert heat.shape[0] / side == pytest.approx(HEIGHT * MPP / 60, abs=0.01)
    at = {name: heat[int(2.5 * side), int(x * side)] for name, x in {"low": 1.5, "high": 7.5, "glass": 9.5}.items()}
    assert (at["low"][3], at["high"][3], at["glass"][3]) == (255, 255, 0)
    assert at["high"][:2].min() > 200 > at["low"][:2].max()  # from violet to yellow


def test_without_a_script_it_is_a_picture(site):
    """All that a live notebook shows: a picture with its text and the outlines, no controls, nothing to fetch."""
    text = (site / "light.html").read_text()
    assert 'alt="Slide S1, nuclei in yellow, annotated cancer outlined in red" ' in text
    assert text.count("<polygon") == 1
    assert 'points="100,100 600,100 600,600 100,600 100,100"' in text
    assert 'class="slide-controls" hidden' in text
    assert "Toy &lt;b&gt; · sample data" in text
    assert 'src="data:image/jpeg' in text


def test_a_bounds_offset_is_taken_off(slide, tmp_path):
    slide = Slide(slide.path)
    slide.offset = (40, 30)
    made = make_viewer(
        slide, tmp_path / "tiles", annotation=[np.array([(140, 130), (240, 130), (240, 230)])], page=tmp_path
    )
    assert 'points="100,100 200,100 200,200 100,100"' in made
    assert "&quot;mpp&quot;: null" in made
    assert "slide/11" not in made
    assert sorted(path.name for path in (tmp_path / "tiles").iterdir()) == ["slide"]


def test_tiles_are_written_anew(slide, tmp_path):
    (tmp_path / "tiles" / "old").mkdir(parents=True)
    make_viewer(slide, tmp_path / "tiles", longest=300, page=tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiles"]
    assert sorted(path.name for path in (tmp_path / "tiles" / "slide").iterdir()) == ["8", "9"]


# -------------------------------------------------------------------------------- what is shown, and how


@pytest.fixture
def shown(slide, site, tmp_path) -> Shown:
    """The slide with results at its own resolution: what was found is the rectangle."""
    probability = np.zeros((HEIGHT, WIDTH), np.uint16)
    probability[SQUARE] = 9000
    zarr.save_array(tmp_path / "probability.zarr", probability)
    shutil.copy(site / "mask.png", tmp_path / "mask.ome.tiff")  # `Slide` looks at the content
    np.save(tmp_path / "burden.npy", np.array([[0.0, 0.4], [np.nan, 0.1]], np.float32))
    summary = {"tissue_mm2": 0.21, "nuclei": 1234, "nuclei_per_mm2": 5876.2, "area_fraction": 0.0238}
    cancer = [np.array([(100, 100), (600, 100), (600, 600), (100, 600)])]
    return Shown(slide, "test", tmp_path, summary, MPP, 0.5, cancer)


def test_the_close_up_is_where_most_was_found(shown):
    """A square of 100 pixels that lies within the 200 x 100 of the rectangle: all of it is found."""
    image, probability = shown.close_up(100)
    assert image.shape == (100, 100, 3)
    assert np.isclose(probability, 0.9).mean() > 0.97  # the square is looked for on a coarser picture
    assert (np.abs(image.astype(int) - PURPLE) < 3).all(-1).mean() > 0.97


def test_figures_say_what_they_show(shown):
    source = "Toy · sample data"
    for figure in (
        workflow(shown, source, side=100),
        heatmaps([shown] * 2, source),
        close_ups([shown], source, side=100),
    ):
        assert figure.get_label().endswith("sample data.")
        assert "S1 (test)" in figure.get_label()
        assert figure.get_supxlabel() == source
        assert len(rendered(figure, "png")) > 5000
    left, right = heatmaps([shown], source).axes[:2]
    for ax in (left, right):
        (path,) = ax.collections[0].get_paths()
        np.testing.assert_allclose(path.vertices[2] * WIDTH / 900, (600, 600))
    assert right.images[0].get_clim() == pytest.approx((0, 0.4))


def test_the_table_tells_slides_apart(shown):
    inside = {"burden_inside": 0.5, "burden_outside": float("nan"), "auc": 0.75}
    lines = summary_table([shown, shown._replace(summary=shown.summary | inside)]).splitlines()
    assert lines[2] == "| S1 (test) | 0.21 | 1,234 | 5,876 | 2.4% |   |   |   |"
    assert lines[3] == "| S1 (test) | 0.21 | 1,234 | 5,876 | 2.4% | 50.0% | undefined | 0.750 |"
    assert summary_table([shown]).count("|") == 3 * 6


def test_only_slides_that_were_not_learned_from_are_shown(tmp_path):
    rows = [("A1", "train"), ("A2", "val"), ("A3", "test"), ("A4", "test"), ("A2", "val")]
    table = pd.DataFrame([dict.fromkeys(COLUMNS, "") | {"group": g, "split": split} for g, split in rows])
    table.assign(height=1, width=1, objects=0).to_csv(tmp_path / "manifest.csv", index=False)
    release = tmp_path / "release"
    release.mkdir()
    for name in ("A1.svs", "A2.svs", "A3.svs", "A3.png"):
        (release / name).touch()
    chosen = choose_slides(release, tmp_path, 5)
    assert [(path.name, split) for path, split in chosen.items()] == [("A3.svs", "test"), ("A2.svs", "val")]
    assert len(choose_slides(release, tmp_path, 1)) == 1
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no slide to show"):
        choose_slides(tmp_path / "empty", tmp_path, 5)


def test_slides_must_be_those_that_were_prepared(tmp_path):
    entry, real = get_dataset("InHouse"), {"kind": "real"}
    with pytest.raises(InputError, match="no slides"):
        find_release(get_dataset("BUSI"), real, "sample", None)
    with pytest.raises(InputError, match="real slides"):
        find_release(entry, real, "paper", None)
    with pytest.raises(InputError, match="not the slides"):
        find_release(entry, real, "paper", tmp_path)
    (tmp_path / "InHouse").mkdir()
    assert find_release(entry, real, "paper", tmp_path) == tmp_path / "InHouse"
    (tmp_path / "InHouse" / "SAMPLE.json").touch()
    with pytest.raises(InputError, match="not the slides"):
        find_release(entry, real, "paper", tmp_path)


# -------------------------------------------------------------------------------------- in a browser


@pytest.fixture(scope="module")
def address(site):
    if not (VENDOR / "site" / "openseadragon").is_dir():
        pytest.skip("the book's JavaScript is not here: python book/vendor.py")
    with serve(site) as address:
        yield address


@pytest.fixture(params=["desktop, light", "phone, dark"])
def page(request, browser, address):
    """The page with its viewer ready; afterwards nothing must have failed or gone to another host."""
    phone, troubles = request.param.startswith("phone"), []
    size = {"width": 390, "height": 844} if phone else {"width": 1280, "height": 900}
    context = browser.new_context(viewport=size, reduced_motion="reduce", has_touch=phone)
    page = context.new_page()
    page.fetched = []
    page.on("request", lambda asked: page.fetched.append(asked.url))
    page.on("console", lambda line: line.type in ("error", "warning") and troubles.append(f"console: {line.text}"))
    page.on("pageerror", lambda error: troubles.append(f"script: {error}"))
    page.on("response", lambda answer: answer.status < 400 or troubles.append(f"{answer.status}: {answer.url}"))
    page.goto(f"{address}/{'dark' if phone else 'light'}.html")
    page.wait_for_selector(".slide-controls:not([hidden])")
    yield page
    context.close()
    assert not [url for url in page.fetched if not url.startswith((address, "data:", "blob:"))]
    assert not troubles


def colour(page, x: float, y: float) -> np.ndarray:
    """What the viewer shows at a place of the slide, as red, green and blue."""
    screen = page.locator(".slide-screen")
    pixels = np.asarray(Image.open(io.BytesIO(screen.screenshot())).convert("RGB"), int)
    height, width = pixels.shape[:2]
    scale = min(width / WIDTH, height / HEIGHT)
    left, top = (width - scale * WIDTH) / 2, (height - scale * HEIGHT) / 2
    return pixels[round(top + scale * y), round(left + scale * x)]


def becomes(page, place: tuple[float, float], expected, apart: int = 12) -> None:
    """Wait until the viewer shows a colour at a place of the slide."""
    there = in_time(page, lambda: np.abs(colour(page, *place) - expected).max() <= apart)
    assert there, f"{place}: {colour(page, *place)} is not {expected}"


def in_time(page, holds: Callable[[], bool]) -> bool:
    """Whether something comes to hold within half a minute: how long a picture takes is the machine's affair."""
    limit = time.monotonic() + 30
    while not (held := holds()) and time.monotonic() < limit:
        page.wait_for_timeout(50)
    return held


def mixed(below, above, share: float) -> np.ndarray:
    return (1 - share) * np.array(below) + share * np.array(above)


INSIDE, BESIDE, EDGE = (900, 250), (700, 650), (600, 300)
YELLOW, RED = (240, 228, 66), (224, 0, 0)


def test_layers_switch_on_and_off(page):
    becomes(page, INSIDE, mixed(PURPLE, YELLOW, 0.7))
    becomes(page, BESIDE, PINK)
    page.get_by_label("mask", exact=True).uncheck()
    becomes(page, INSIDE, PURPLE)
    page.get_by_label("heatmap", exact=True).check()
    highest = (253, 231, 37)  # the end of the colour map
    becomes(page, INSIDE, mixed(PURPLE, highest, 0.7))
    becomes(page, (1150, 250), PINK)  # no tissue
    page.get_by_label("heatmap", exact=True).uncheck()
    page.get_by_label("slide", exact=True).uncheck()
    becomes(page, BESIDE, (233, 233, 236))


def test_outlines_lie_where_they_were_drawn(page):
    becomes(page, EDGE, RED, 60)
    page.get_by_label("annotation", exact=True).uncheck()
    becomes(page, EDGE, PINK)


def test_opacity_by_keyboard(page):
    becomes(page, INSIDE, mixed(PURPLE, YELLOW, 0.7))
    handle = page.get_by_role("slider", name="opacity of the mask")
    handle.focus()
    for _ in range(8):
        handle.press("ArrowLeft")
    becomes(page, INSIDE, mixed(PURPLE, YELLOW, 0.3))


def test_zoom_loads_finer_tiles_and_keeps_the_scale(page):
    """The scale bar, in pixels of the screen over its length in um, is twice as long after zooming in by two."""

    def pixels_a_um() -> float:
        number, unit = page.locator(".slide-scale").text_content().split(" ")
        return page.locator(".slide-scale").bounding_box()["width"] / (float(number) * {"µm": 1, "mm": 1000}[unit])

    becomes(page, BESIDE, PINK)
    screen = page.locator(".slide-screen").bounding_box()
    scale = min(screen["width"] / WIDTH, screen["height"] / HEIGHT)
    assert pixels_a_um() == pytest.approx(scale / MPP, rel=0.03)
    if screen["width"] < 500:
        assert not any("/slide/11/" in url for url in page.fetched)
    page.get_by_role("button", name="zoom in").click()
    page.get_by_role("application").press("Equal")  # the key of the plus sign
    assert in_time(page, lambda: pixels_a_um() > 2.05 * scale / MPP)
    page.get_by_role("button", name="zoom in").click()
    for layer in ("slide", "mask"):
        assert in_time(page, lambda layer=layer: any(f"/{layer}/11/" in url for url in page.fetched))
    page.get_by_role("button", name="whole slide").click()
    assert in_time(page, lambda: pixels_a_um() == pytest.approx(scale / MPP, rel=0.03))


def test_nothing_for_axe_to_find(page):
    wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert wide <= 0
    page.evaluate((VENDOR / "axe" / "axe.min.js").read_text())
    found = page.evaluate("axe.run({resultTypes: ['violations']}).then(found => found.violations)")
    assert not [(rule["id"], rule["help"], [node["html"][:200] for node in rule["nodes"]]) for rule in found]
