"""Slides: regions against OpenSlide and against means worked out by hand, what files may say wrongly, tissue."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import openslide
import pytest
import tifffile
from PIL import Image, ImageDraw
from tiny_slides import pyramid

from csamnet import slides
from csamnet.files import InputError
from csamnet.slides import Slide, find_tissue

REAL = ("CMU-1-Small-Region.svs", "TCGA-CR-7395-01A-01-TS1.svs")


def pixels(seed: int, height: int, width: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def area_mean(image: np.ndarray, x: float, y: float, width: int, height: int, up: int, down: int) -> np.ndarray:
    """The image from (x, y) on reduced by down / up: every pixel repeated `up` times, then blocks of `down`."""
    fine = image.repeat(up, 0).repeat(up, 1)[round(y * up) :, round(x * up) :].astype(float)
    blocks = fine[: height * down, : width * down].reshape(height, down, width, down, 3)
    return blocks.mean((1, 3))


@pytest.mark.parametrize("name", REAL)
@pytest.mark.parametrize("corner", [(0, 0), (1003, 777), (1999, 2700)])
def test_level_0_of_real_slides_is_openslide_s(shared, name, corner):
    path = shared / "data/WSI" / name
    expected = openslide.OpenSlide(path).read_region(corner, 0, (150, 90)).convert("RGB")
    np.testing.assert_array_equal(Slide(path).read(*corner, 150, 90), expected)


def test_real_slide_with_a_resolution(shared):
    slide = Slide(shared / "data/WSI" / REAL[0], mpp=7.0)
    assert (slide.mpp, slide.size, slide.offset) == (0.499, (2220, 2967), (0, 0))
    native = slide.read(300, 1200, 600, 300)
    np.testing.assert_array_equal(slide.read(300, 1200, 600, 300, slide.mpp), native)
    half = slide.read(300, 1200, 300, 150, 2 * slide.mpp)
    np.testing.assert_allclose(half, area_mean(native, 0, 0, 300, 150, 1, 2), atol=0.51)


def test_real_slide_without_a_resolution(shared):
    path = shared / "data/WSI" / REAL[1]
    slide = Slide(path)
    assert (slide.mpp, slide.size) == (None, (4443, 3567))
    with pytest.raises(InputError, match="does not say its resolution") as caught:
        slide.read(0, 0, 9, 9, 0.5)
    assert "--mpp 0.25" in str(caught.value)
    assert str(path) in str(caught.value)
    slide = Slide(path, mpp=0.25)
    raw = openslide.OpenSlide(path)
    level = np.asarray(raw.read_region((0, 0), 1, (500, 500)).convert("RGB"))
    quarter = slide.read(0, 0, 250, 250, 0.25 * 2 * raw.level_downsamples[1])
    np.testing.assert_allclose(quarter, area_mean(level, 0, 0, 250, 250, 1, 2), atol=0.51)
    whole, part = slide.read(1000, 1000, 900, 700, 0.5), slide.read(1000 + 2 * 333, 1000 + 2 * 401, 200, 100, 0.5)
    np.testing.assert_array_equal(part, whole[401:501, 333:533])
    whole, part = slide.read(200, 200, 600, 500, 0.75), slide.read(200 + 3 * 133, 200 + 3 * 201, 100, 90, 0.75)
    np.testing.assert_array_equal(part, whole[201:291, 133:233])


@pytest.mark.parametrize(("x", "y", "up", "down"), [(0, 0, 1, 2), (3.5, 7.5, 2, 3), (5, 1, 4, 5), (2.25, 0.75, 4, 9)])
def test_reduced_regions_are_means_over_areas(tmp_path, x, y, up, down):
    image = pixels(0, 200, 300)
    slide = Slide(pyramid(tmp_path / "a.svs", [image]))
    got = slide.read(x, y, 60, 40, 0.5 * down / up)
    np.testing.assert_allclose(got, area_mean(image, x, y, 60, 40, up, down), atol=0.51)


def test_the_coarsest_level_that_is_fine_enough(tmp_path):
    levels = [np.full((256 // n, 256 // n, 3), value, np.uint8) for n, value in ((1, 10), (2, 20), (4, 40))]
    slide = Slide(pyramid(tmp_path / "a.svs", levels))
    used = {mpp: set(slide.read(64, 64, 4, 4, mpp).ravel().tolist()) for mpp in (0.3, 0.5, 0.98, 0.995, 1.9, 2, 9)}
    assert used == {0.3: {10}, 0.5: {10}, 0.98: {10}, 0.995: {20}, 1.9: {20}, 2: {40}, 9: {40}}


def test_places_on_a_coarser_level(tmp_path):
    image = pixels(1, 64, 128)
    slide = Slide(pyramid(tmp_path / "a.svs", [image.repeat(2, 0).repeat(2, 1), image]))
    got = slide.read(11, 6, 30, 20, 1.5)  # from (5.5, 3) of the second level, 1.5 of its pixels each
    np.testing.assert_allclose(got, area_mean(image, 5.5, 3, 30, 20, 2, 3), atol=0.51)


def test_a_pixel_is_the_same_in_every_region(tmp_path, monkeypatch):
    monkeypatch.setattr(slides, "_BLOCK", 64)
    image = pixels(2, 301, 407)  # the second level is 2.01 and 2.00 times as coarse
    slide = Slide(pyramid(tmp_path / "a.svs", [image, image[:300:2, :406:2]]))
    assert slide._downsamples[1] != round(slide._downsamples[1])
    for mpp, step in ((0.3, 0.6), (0.75, 1.5), (1.5, 3)):
        whole = slide.read(-6, -3, 90, 80, mpp)
        for dx, dy in ((0, 0), (10, 5), (35, 30)):
            part = slide.read(-6 + step * dx, -3 + step * dy, 50, 40, mpp)
            np.testing.assert_allclose(part, whole[dy : dy + 40, dx : dx + 50], atol=step < 1)
        with monkeypatch.context() as patched:
            patched.setattr(slides, "_AT_ONCE", 500)
            np.testing.assert_allclose(slide.read(-6, -3, 90, 80, mpp), whole, atol=step < 1)


def test_finer_than_the_slide_is_cubic(tmp_path):
    image = np.asarray(Image.fromarray(pixels(3, 20, 20)).resize((100, 100), Image.Resampling.BICUBIC))
    slide = Slide(pyramid(tmp_path / "a.svs", [image]))
    expected = np.asarray(Image.fromarray(image).resize((200, 200), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(slide.read(20, 30, 90, 60, 0.25), expected[60:120, 40:130])


def test_white_beyond_the_border(tmp_path):
    image = pixels(4, 70, 90) // 2
    slide = Slide(pyramid(tmp_path / "a.svs", [image]))
    got = slide.read(-10, -20, 120, 100)
    np.testing.assert_array_equal(got[20:90, 10:100], image)
    got[20:90, 10:100] = 255
    assert (got == 255).all()
    assert (slide.read(500, 500, 7, 5) == 255).all()
    half = slide.read(-1, 0, 4, 4, 1.0)  # its first column is half beyond
    np.testing.assert_allclose(half[:, 0], (255 + image[:8, 0].reshape(4, 2, 3).mean(1)) / 2, atol=0.51)


class Scanned:
    """A stand-in for OpenSlide: one level of RGBA, and properties as it likes."""

    detect_format = staticmethod(lambda path: "made")

    def __init__(self, path):
        self.properties, self.level_downsamples = self.about, (1.0,)
        self.dimensions = self.rgba.shape[1::-1]

    def read_region(self, corner, level, size):
        (x, y), (w, h) = corner, size
        return Image.fromarray(self.rgba[y : y + h, x : x + w])


@pytest.fixture
def scanned(monkeypatch):
    def make(rgba: np.ndarray, mpp=None, **about) -> Slide:
        monkeypatch.setattr(Scanned, "rgba", rgba, raising=False)
        properties = {f"openslide.{key.replace('_', '-')}": value for key, value in about.items()}
        monkeypatch.setattr(Scanned, "about", properties, raising=False)
        monkeypatch.setattr(slides.openslide, "OpenSlide", Scanned)
        return Slide("a.mrxs", mpp)

    return make


def test_bounds_move_the_corner_and_bound_the_slide(scanned):
    rgba = np.dstack([pixels(5, 40, 60), np.full((40, 60), 255, np.uint8)])
    slide = scanned(rgba, bounds_x="7", bounds_y="5", bounds_width="30", bounds_height="20")
    assert (slide.size, slide.offset) == ((30, 20), (7, 5))
    np.testing.assert_array_equal(slide.read(2, 3, 6, 4), rgba[8:12, 9:15, :3])
    got = slide.read(-1, -1, 32, 22)
    np.testing.assert_array_equal(got[1:-1, 1:-1], rgba[5:25, 7:37, :3])
    assert (got[[0, -1]] == 255).all(), "what is scanned beyond the bounds is white too"
    assert (got[:, [0, -1]] == 255).all()
    assert slide.thumbnail(15).shape == (10, 15, 3)


def test_alpha_is_laid_on_white(scanned):
    rgba = np.zeros((10, 10, 4), np.uint8)
    rgba[..., 0] = 200
    rgba[:5, :, 3], rgba[5:, :5, 3] = 255, 51
    got = scanned(rgba).read(0, 0, 10, 10)
    assert got[0, 0].tolist() == [200, 0, 0]
    assert got[9, 0].tolist() == [244, 204, 204]  # a fifth of (200, 0, 0), four fifths of white
    assert got[9, 9].tolist() == [255, 255, 255]


@pytest.mark.parametrize(
    ("about", "mpp"),
    [
        ({"mpp_x": "0.25", "mpp_y": "0.27"}, 0.26),
        ({"mpp_x": "352.8", "mpp_y": "352.8"}, 3.0),
        ({"mpp_x": "0", "mpp_y": "0"}, 3.0),
        ({"mpp_x": "0.25"}, 3.0),
        ({}, 3.0),
    ],
)
def test_resolution_of_the_slide_or_else_as_given(scanned, about, mpp):
    assert scanned(np.zeros((9, 9, 4), np.uint8), 3.0, **about).mpp == pytest.approx(mpp)


def test_resolution_of_a_screen_is_none_of_a_slide(tmp_path):
    image = np.zeros((80, 80, 3), np.uint8)
    options = {"tile": (16, 16), "photometric": "rgb"}
    tifffile.imwrite(tmp_path / "a.tif", image, resolution=(72, 72), resolutionunit="INCH", **options)
    tifffile.imwrite(tmp_path / "b.tif", image, resolution=(40000, 40000), resolutionunit="CENTIMETER", **options)
    assert openslide.OpenSlide.detect_format(tmp_path / "a.tif") == "generic-tiff"
    assert Slide(tmp_path / "a.tif").mpp is None
    assert Slide(tmp_path / "b.tif").mpp == pytest.approx(0.25)


@pytest.mark.parametrize("suffix", ["png", "tif", "webp", "bmp"])
def test_plain_images(tmp_path, suffix):
    image, path = pixels(6, 50, 70), tmp_path / f"a.{suffix}"
    Image.fromarray(image).save(path, **({"lossless": True} if suffix == "webp" else {}))
    slide = Slide(path)
    assert (slide.size, slide.offset, slide.mpp) == ((70, 50), (0, 0), None)
    np.testing.assert_array_equal(slide.read(-3, 5, 30, 20)[:, 3:], image[5:25, :27])
    assert (slide.read(-3, 5, 30, 20)[:, :3] == 255).all()
    got = Slide(path, 0.25).read(4, 8, 20, 10, 0.5)
    np.testing.assert_allclose(got, area_mean(image, 4, 8, 20, 10, 1, 2), atol=0.51)
    with pytest.raises(InputError, match="--mpp"):
        slide.read(0, 0, 5, 5, 0.5)


def test_files_that_are_no_slides(tmp_path, shared):
    (tmp_path / "a.svs").write_bytes(b"")
    (tmp_path / "b.ndpi").write_bytes(b"II*\0" + bytes(100))
    (tmp_path / "c.png").write_bytes(b"\x89PNG and no more")
    (tmp_path / "d.svs").write_bytes((shared / "data/WSI" / REAL[0]).read_bytes()[:100_000])
    (tmp_path / "e.svs").mkdir()
    for name in ("a.svs", "b.ndpi", "c.png", "d.svs", "e.svs", "missing.svs", "missing.png"):
        with pytest.raises(InputError, match=r"cannot be read|is missing") as caught:
            Slide(tmp_path / name)
        assert name in str(caught.value)


def test_a_slide_whose_pixels_are_broken(tmp_path):
    path = pyramid(tmp_path / "a.svs", [pixels(7, 200, 200)])
    with tifffile.TiffFile(path) as file:
        place = file.pages[0].dataoffsets[-1]
    with open(path, "r+b") as stream:
        stream.seek(place)
        stream.write(bytes(500))
    slide = Slide(path)
    slide.read(0, 0, 20, 20)
    with pytest.raises(InputError, match="cannot be read") as caught:
        slide.read(150, 150, 50, 50)
    assert "a.svs" in str(caught.value)


def test_thumbnails_show_the_whole_slide(tmp_path):
    image = np.zeros((100, 300, 3), np.uint8)
    image[:50, :150], image[50:, 150:] = (200, 0, 0), (0, 0, 200)
    slide = Slide(pyramid(tmp_path / "a.svs", [image]))
    small = slide.thumbnail(30)
    assert small.shape == (10, 30, 3)
    np.testing.assert_array_equal(small, image[5::10, 5::10])
    assert slide.thumbnail(5000).shape == image.shape, "it is not enlarged"
    assert slide.tissue(30)[1] == 10


def test_threads_share_a_slide(tmp_path):
    image = pixels(8, 300, 300)
    slide = Slide(pyramid(tmp_path / "a.svs", [image]))
    corners = [(x, y) for x in range(0, 240, 30) for y in range(0, 240, 30)]
    with ThreadPoolExecutor(4) as pool:
        parts = list(pool.map(lambda corner: slide.read(*corner, 60, 60), corners))
    for (x, y), part in zip(corners, parts, strict=True):
        np.testing.assert_array_equal(part, image[y : y + 60, x : x + 60])


def test_tissue_without_ink_borders_dust_and_specks():
    picture = Image.new("RGB", (400, 300), (244, 240, 243))
    draw = ImageDraw.Draw(picture)
    draw.rectangle((0, 0, 399, 25), fill=0)  # beyond what was scanned
    draw.ellipse((60, 60, 200, 180), fill=(214, 140, 180))
    draw.ellipse((90, 80, 140, 130), fill=(120, 80, 160))
    draw.ellipse((150, 100, 190, 160), fill=(225, 200, 222))
    tissue = Image.new("1", picture.size)
    ImageDraw.Draw(tissue).ellipse((60, 60, 200, 180), fill=1)
    inks = [(30, 60, 170), (20, 120, 60), (200, 20, 40), (20, 20, 25), (60, 160, 200)]
    for i, ink in enumerate(inks):
        draw.line((230 + 30 * i, 50, 240 + 30 * i, 220), fill=ink, width=9)
    draw.ellipse((60, 220, 100, 260), fill=(170, 170, 172))
    draw.point([(20, 200), (21, 200)], fill=(180, 60, 140))
    noisy = np.clip(np.asarray(picture) + np.random.default_rng(0).normal(0, 2, (300, 400, 3)), 0, 255)
    found, expected = find_tissue(noisy.astype(np.uint8)), np.asarray(tissue)
    assert (found & expected).sum() / (found | expected).sum() > 0.95
    assert not found[:, 220:].any(), "no ink of any colour"
    assert not found[:30].any()
    assert not found[200:].any()


def test_tissue_of_nothing_but_glass_and_of_nothing_but_tissue():
    noise = np.random.default_rng(0).normal(0, 2, (200, 200, 3))
    assert not find_tissue(np.clip(noise + np.array([245, 241, 244]), 0, 255).astype(np.uint8)).any()
    assert not find_tissue(np.full((50, 50, 3), 255, np.uint8)).any()
    assert not find_tissue(np.zeros((50, 50, 3), np.uint8)).any()
    full = np.clip(noise + np.array([214, 140, 180]), 0, 255).astype(np.uint8)
    full[:20, :20] = (245, 241, 244)  # a hole, which is what shows how bright the glass is
    found = find_tissue(full)
    assert found.mean() > 0.97
    assert not found[:15, :15].any()


@pytest.mark.parametrize(("name", "low", "high"), [(REAL[0], 0.28, 0.38), (REAL[1], 0.55, 0.68)])
def test_tissue_of_real_slides(shared, name, low, high):
    slide = Slide(shared / "data/WSI" / name)
    found, scale = slide.tissue(500)
    bright = slide.thumbnail(500).min(-1)
    assert low < found.mean() < high
    assert scale == max(slide.size) / 500
    assert bright[~found].mean() > 225
    assert bright[found].mean() < 170
