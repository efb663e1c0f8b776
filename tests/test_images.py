"""Images and masks: every format, type and palette that is promised, and each way to be wrong."""

from __future__ import annotations

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from csamnet import images
from csamnet.files import InputError
from csamnet.images import read_image, read_labels, read_mask, write_image

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (9, 13, 3), dtype=np.uint8)
GREY = RGB[..., 0]
MASK = np.zeros((40, 50), bool)
MASK[5:20, 8:30] = MASK[25:38, 12:45] = True
LABELS = MASK.astype(np.int32) + (np.arange(40) > 22)[:, None] * MASK


@pytest.mark.parametrize("suffix", ["png", "tif", "tiff", "bmp", "webp"])
@pytest.mark.parametrize("array", [RGB, GREY], ids=["rgb", "grey"])
def test_lossless_formats_come_back_as_they_were(tmp_path, suffix, array):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(array).save(path, lossless=True)
    expected = array if array.ndim == 3 else np.stack([array] * 3, -1)
    image = read_image(path)
    assert image.dtype == np.uint8
    assert image.flags.c_contiguous
    np.testing.assert_array_equal(image, expected)


def test_jpeg_is_close(tmp_path):
    smooth = np.stack([np.add.outer(np.arange(64), np.arange(48)).astype(np.uint8)] * 3, -1)
    Image.fromarray(smooth).save(tmp_path / "a.JPG", format="jpeg", quality=95)
    assert np.abs(read_image(tmp_path / "a.JPG").astype(int) - smooth).max() < 8


def test_alpha_is_dropped_and_a_suffix_may_lie(tmp_path):
    rgba = np.dstack([RGB, np.zeros_like(GREY)])
    for name, mode in (("a.png", "RGBA"), ("a.webp", "RGBA"), ("b.png", "LA")):
        picture = Image.fromarray(rgba) if mode == "RGBA" else Image.fromarray(RGB).convert("L").convert("LA")
        picture.save(tmp_path / name, lossless=True, exact=True)
    tifffile.imwrite(tmp_path / "a.tif", rgba, photometric="rgb", extrasamples=["unassalpha"])
    (tmp_path / "c.jpg").write_bytes((tmp_path / "a.png").read_bytes())
    for name in ("a.png", "a.webp", "a.tif", "c.jpg"):
        np.testing.assert_array_equal(read_image(tmp_path / name), RGB)
    np.testing.assert_array_equal(read_image(tmp_path / "b.png")[..., 0], Image.fromarray(RGB).convert("L"))


def test_palette_is_looked_up(tmp_path):
    indexed = Image.fromarray(np.array([[0, 1], [2, 1]], np.uint8)).convert("P")
    indexed.putpalette([10, 20, 30, 200, 100, 50, 1, 2, 3])
    indexed.save(tmp_path / "a.png")
    indexed.save(tmp_path / "a.bmp")
    colours = np.array([[10, 20, 30], [200, 100, 50], [1, 2, 3]])
    colormap = np.zeros((3, 256), np.uint16)
    colormap[:, :3] = colours.T * 257
    tifffile.imwrite(tmp_path / "a.tif", np.asarray(indexed), photometric="palette", colormap=colormap)
    for name in ("a.png", "a.bmp", "a.tif"):
        np.testing.assert_array_equal(read_image(tmp_path / name), colours[np.asarray(indexed)])
        np.testing.assert_array_equal(read_labels(tmp_path / name), np.asarray(indexed))  # coloured: indices


def test_one_bit(tmp_path):
    Image.fromarray(MASK).save(tmp_path / "a.png")
    Image.fromarray(MASK).save(tmp_path / "a.bmp")
    tifffile.imwrite(tmp_path / "a.tif", MASK, photometric="minisblack")
    for name in ("a.png", "a.bmp", "a.tif"):
        np.testing.assert_array_equal(read_mask(tmp_path / name), MASK)
        np.testing.assert_array_equal(read_image(tmp_path / name)[..., 1], MASK * 255)


def test_white_for_zero_is_how_to_show_it_not_what_a_mask_says(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", GREY, photometric="miniswhite")
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif")[..., 0], 255 - GREY)
    few = GREY >> 4  # four bits a pixel
    tifffile.imwrite(tmp_path / "c.tif", few, photometric="miniswhite", bitspersample=4)
    np.testing.assert_array_equal(read_image(tmp_path / "c.tif")[..., 0], 15 - few)
    tifffile.imwrite(tmp_path / "b.tif", LABELS.astype(np.uint16), photometric="miniswhite")
    np.testing.assert_array_equal(read_labels(tmp_path / "b.tif"), LABELS)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0, 1000, 65535]], np.uint16), [0, 4, 255]),  # 1000 / 257 = 3.9
        (np.array([[0, 1000, 4095]], np.uint16), [0, 62, 255]),  # 12 bits: 1000 * 255 / 4095 = 62.3
        (np.array([[0, 7, 255]], np.uint16), [0, 7, 255]),
        (np.array([[-1000, 0, 1000]], np.int16), [0, 128, 255]),  # stretched; 127.5 goes to the even number
        (np.array([[0, 500, 1023]], np.int16), [0, 125, 255]),  # 10 bits: 124.6
        (np.array([[0, 0.5, 1]], np.float32), [0, 128, 255]),
        (np.array([[0, 100.4, 255]], np.float64), [0, 100, 255]),
        (np.array([[-1, 0, 3]], np.float32), [0, 64, 255]),  # 63.75
        (np.array([[7, 7, 7]], np.float16) * 100, [0, 0, 0]),  # nothing to stretch
        (np.array([[0, 2**31, 2**32 - 1]], np.uint32), [0, 128, 255]),
    ],
)
def test_more_than_8_bits(tmp_path, values, expected):
    tifffile.imwrite(tmp_path / "a.tif", values)
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif")[0], np.stack([expected] * 3, -1))


@pytest.mark.parametrize("array", [RGB.astype(np.uint16) * 257, GREY.astype(np.uint16) * 257], ids=["rgb", "grey"])
def test_16_bit_files(tmp_path, array):
    (tmp_path / "a.png").write_bytes(imagecodecs.png_encode(array))
    photometric = "rgb" if array.ndim == 3 else "minisblack"
    tifffile.imwrite(tmp_path / "a.tif", array, photometric=photometric, compression="lzw", predictor=True)
    expected = RGB if array.ndim == 3 else np.stack([GREY] * 3, -1)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), expected)
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), expected)
    dark = array // 16  # 12 bits in 16
    (tmp_path / "b.png").write_bytes(imagecodecs.png_encode(dark))
    assert np.abs(read_image(tmp_path / "b.png").astype(int) - expected).max() <= 1


def test_tiff_planes_tiles_and_pyramids(tmp_path):
    big = RNG.integers(0, 256, (64, 80, 3), dtype=np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", np.moveaxis(big, -1, 0), photometric="rgb", planarconfig="separate")
    tifffile.imwrite(tmp_path / "b.tif", big, photometric="rgb", tile=(16, 16), compression="zlib")
    with tifffile.TiffWriter(tmp_path / "c.tif", bigtiff=True) as writer:
        writer.write(big, photometric="rgb", tile=(16, 16))
        writer.write(big[::2, ::2], photometric="rgb", tile=(16, 16), subfiletype=1)
    for name in ("a.tif", "b.tif", "c.tif"):
        np.testing.assert_array_equal(read_image(tmp_path / name), big)


@pytest.mark.parametrize(
    ("name", "stored"),
    [
        ("a.png", MASK.astype(np.uint8)),
        ("b.png", MASK.astype(np.uint8) * 255),
        ("c.png", np.stack([MASK.astype(np.uint8) * 255] * 3, -1)),
        ("d.png", LABELS.astype(np.uint8) * 100),
        ("e.png", LABELS.astype(np.uint16) * 1000),
        ("f.tif", MASK.astype(np.float32)),
        ("g.tif", LABELS.astype(np.int32) * 70_000),
        ("h.bmp", MASK.astype(np.uint8) * 255),
        ("i.webp", MASK.astype(np.uint8) * 255),
        ("j.png", np.dstack([MASK.astype(np.uint8)] * 3 + [np.full(MASK.shape, 77, np.uint8)])),
    ],
)
def test_masks_of_all_kinds(tmp_path, name, stored):
    path = tmp_path / name
    if name.endswith("tif"):
        tifffile.imwrite(path, stored)
    else:
        Image.fromarray(stored).save(path, lossless=True)
    mask = read_mask(path)
    assert mask.dtype == bool
    np.testing.assert_array_equal(mask, MASK)


def test_palette_mask_counts_by_its_greys(tmp_path):
    indexed = Image.fromarray((~MASK).astype(np.uint8)).convert("P")
    indexed.putpalette([255, 255, 255, 0, 0, 0])  # index 0 is white
    indexed.save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "a.png"), MASK)


def test_an_empty_and_a_full_mask(tmp_path):
    for value in (0, 1, 255):
        write_image(tmp_path / "a.png", np.full((4, 4), value, np.uint8))
        assert (read_mask(tmp_path / "a.png") == (value > 0)).all()


def test_labels(tmp_path):
    for suffix, dtype in (("png", np.uint8), ("png", np.uint16), ("tif", np.int32), ("tif", np.float32)):
        write_image(tmp_path / f"a.{suffix}", LABELS.astype(dtype))
        labels = read_labels(tmp_path / f"a.{suffix}")
        assert labels.dtype == np.int32
        np.testing.assert_array_equal(labels, LABELS)
    single = np.diag(np.arange(200)).astype(np.uint16)  # objects of one pixel
    write_image(tmp_path / "b.png", single)
    np.testing.assert_array_equal(read_labels(tmp_path / "b.png"), single)


def test_a_mask_is_no_label_image(tmp_path):
    for stored in (MASK, MASK.astype(np.uint8) * 255):
        Image.fromarray(stored).save(tmp_path / "a.png")
        with pytest.raises(InputError, match="a mask where instances belong"):
            read_labels(tmp_path / "a.png")


def _discs() -> np.ndarray:
    y, x = np.mgrid[:160, :160]
    return sum(((y % 40 - 20) ** 2 + (x % 40 - 20) ** 2 < r**2) * 255 for r in [13]).astype(np.uint8)


@pytest.mark.parametrize("quality", [30, 60, 90, 100])
@pytest.mark.parametrize("again", [False, True], ids=["jpeg", "png of jpeg"])
def test_a_mask_that_went_through_jpeg(tmp_path, quality, again):
    path = tmp_path / "m.jpg"
    Image.fromarray(_discs()).save(path, quality=quality)
    if again:
        fuzzy, path = np.asarray(Image.open(path)), tmp_path / "m.png"
        Image.fromarray(fuzzy).save(path)
    for read in (read_mask, read_labels):
        with pytest.raises(InputError, match="greys between 0 and 255") as caught:
            read(path)
        for word in (str(path), "expected: ", "found: ", "mend: "):
            assert word in str(caught.value)


@pytest.mark.parametrize("size", [100, 300, 1000])
def test_a_mask_that_was_resized_smoothly(tmp_path, size):
    Image.fromarray(_discs()).resize((size, size), Image.Resampling.BICUBIC).save(tmp_path / "m.png")
    with pytest.raises(InputError, match="greys between 0 and 255"):
        read_mask(tmp_path / "m.png")


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        (RGB, "channels that differ"),
        (np.array([[0, 0.5]], np.float32), "fractions"),
        (np.array([[0, np.nan]], np.float32), "fractions, NaN"),
        (np.array([[0, np.inf]], np.float32), "fractions, NaN or infinity"),
        (np.array([[0, -3]], np.int16), "values from -3 to 0"),
        (np.array([[0, 2**31]], np.uint32), "values from 0 to 2147483648"),
        (np.array([[0, 128, 255]], np.uint8), "1 greys between 0 and 255"),
    ],
)
def test_no_mask(tmp_path, stored, message):
    tifffile.imwrite(tmp_path / "a.tif", stored)
    for read in (read_mask, read_labels):
        with pytest.raises(InputError, match=message):
            read(tmp_path / "a.tif")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e308])
def test_pixels_that_are_not_finite(tmp_path, value):
    tifffile.imwrite(tmp_path / "a.tif", np.array([[0, value]]))
    with pytest.raises(InputError, match="NaN or infinity"):
        read_image(tmp_path / "a.tif")


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.bmp", "a.webp", "a.tif", "lzw.tif", "jpeg.tif"])
@pytest.mark.parametrize("share", [0, 0.01, 0.3, 0.98])
def test_truncated_files(tmp_path, name, share):
    path, picture = tmp_path / name, RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    if name.endswith("tif"):
        compression = {"a.tif": None, "lzw.tif": "lzw", "jpeg.tif": "jpeg"}[name]
        tifffile.imwrite(path, picture, photometric="rgb", compression=compression)
    else:
        Image.fromarray(picture).save(path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(InputError, match="cannot be read") as caught:
        read_image(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"not an image", b"<svg/>", b"II*\0 but no more", b"%PDF-1.4"])
@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.jpg"])
def test_a_file_that_is_no_image(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match="cannot be read"):
        read_image(tmp_path / name)


def test_missing_folder_and_stack(tmp_path):
    with pytest.raises(InputError, match="is missing"):
        read_image(tmp_path / "no.png")
    with pytest.raises(InputError, match="cannot be read"):
        read_image(tmp_path)
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((5, 8, 9), np.uint8))
    with pytest.raises(InputError, match="not a single picture") as caught:
        read_image(tmp_path / "a.tif")
    assert "5 x 8 x 9" in str(caught.value)


def test_write_image_round_trip(tmp_path):
    for name, array in (("a.png", RGB), ("b.png", GREY), ("c.tif", RGB), ("d.tiff", GREY)):
        write_image(tmp_path / "new" / name, array)
        expected = array if array.ndim == 3 else np.stack([array] * 3, -1)
        np.testing.assert_array_equal(read_image(tmp_path / "new" / name), expected)
    probability = RNG.random((6, 7), dtype=np.float32)
    write_image(tmp_path / "p.tif", probability)
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "p.tif"), probability)
    write_image(tmp_path / "m.png", MASK)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "m.png")), MASK * np.uint8(255))
    write_image(tmp_path / "i.png", LABELS.astype(np.uint16))
    np.testing.assert_array_equal(imagecodecs.png_decode((tmp_path / "i.png").read_bytes()), LABELS)


def test_write_image_leaves_nothing_behind(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="PNG takes"):
        write_image(tmp_path / "a.png", np.zeros((3, 3), np.float32))
    write_image(tmp_path / "b.png", GREY)

    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(imagecodecs, "png_encode", fail)
    with pytest.raises(OSError, match="No space"):
        write_image(tmp_path / "b.png", RGB)
    assert [path.name for path in tmp_path.iterdir()] == ["b.png"]
    np.testing.assert_array_equal(read_image(tmp_path / "b.png")[..., 0], GREY)


def test_an_image_is_turned_as_it_is_to_be_shown(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter to the right
    for name in ("a.png", "a.webp"):
        Image.fromarray(RGB).save(tmp_path / name, exif=exif, lossless=True)
        np.testing.assert_array_equal(read_image(tmp_path / name), np.rot90(RGB, -1))


def test_what_is_no_single_picture_in_grey_or_rgb(tmp_path):
    frames = [Image.fromarray(RGB), Image.fromarray(~RGB)]
    for name in ("a.png", "a.webp"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
        with pytest.raises(InputError, match="2 pictures, not one"):
            read_image(tmp_path / name)
    frames[0].convert("CMYK").save(tmp_path / "a.tif")
    with pytest.raises(InputError, match="colours are SEPARATED, not RGB"):
        read_image(tmp_path / "a.tif")
    tifffile.imwrite(tmp_path / "b.tif", GREY * 1j)
    with pytest.raises(InputError, match="9 x 13 complex128"):
        read_image(tmp_path / "b.tif")


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_an_image_too_large_to_be_read_whole(tmp_path, monkeypatch, name):
    Image.fromarray(RGB).save(tmp_path / name)
    monkeypatch.setattr(images, "MAX_PIXELS", GREY.size)
    read_image(tmp_path / name)
    monkeypatch.setattr(images, "MAX_PIXELS", GREY.size - 1)
    with pytest.raises(InputError, match="an image is too large") as caught:
        read_image(tmp_path / name)
    assert "expected: 116 pixels at most\n  found: 117" in str(caught.value)
