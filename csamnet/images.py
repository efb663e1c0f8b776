"""Images and masks in and out of files: PNG, TIFF, JPEG, BMP, WebP; 8 and 16 bits; grey, colour, palette."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import imagecodecs
import numpy as np
import tifffile
from PIL import Image, ImageOps
from tifffile import COMPRESSION, PHOTOMETRIC

from csamnet.files import InputError, atomic

IMAGE_SUFFIXES = (".png", ".tif", ".tiff", ".jpg", ".jpeg", ".bmp", ".webp")
MAX_PIXELS = 2**29  # of an image, which is read whole: 1.6 GB in colour
Image.MAX_IMAGE_PIXELS = None  # instead of Pillow's limit
_KNOWN = (PHOTOMETRIC.MINISWHITE, PHOTOMETRIC.MINISBLACK, PHOTOMETRIC.RGB, PHOTOMETRIC.PALETTE, PHOTOMETRIC.YCBCR)
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # how TIFF and BigTIFF begin, in either byte order


class _Stored(NamedTuple):
    values: np.ndarray  # (H, W) or (H, W, 3 or 4), any type
    palette: np.ndarray | None = None  # (n, 3) uint8
    lossy: bool = False  # known to have gone through JPEG
    negative: int = 0  # where 0 is to be shown as white, the value that is black


def read_image(path: Path | str) -> np.ndarray:
    """The picture in a file as (H, W, 3) uint8: grey is repeated, alpha dropped, a palette looked up.

    8 bits stay as they are. Unsigned values of more bits are scaled by the smallest depth of 8, 10, 12, 14 or
    16 bits that holds the brightest, so that black and hues stay. Floats are taken times 255 if within 0..1,
    rounded if within 0..255. Anything else (negative, larger) is stretched from its minimum to its maximum.
    PNG, JPEG and WebP are turned as they are to be shown (Exif); TIFF is read as it is stored.
    Raises InputError for what cannot be read, is not a single picture, is too large, or holds NaN or infinity.
    """
    values, palette, _, negative = _decode(path)
    values = values if palette is None else palette[values]
    values = values ^ values.dtype.type(negative) if negative and values.dtype.kind in "bu" else values
    return as_rgb(values, path)


def as_rgb(image: np.ndarray, path: Path | str | None = None) -> np.ndarray:
    """Any picture as (H, W, 3) uint8: grey repeated, alpha dropped, values scaled as `read_image` does.

    Raises InputError for another shape or type, and for NaN and infinity; `path` is named in it.
    """
    values = np.asarray(image)
    shape = values.shape if values.ndim == 3 else (*values.shape, 1)
    if len(shape) != 3 or shape[2] not in (1, 3, 4) or not values.size or values.dtype.kind not in "buif":
        expected = "(H, W), (H, W, 1), (H, W, 3) or (H, W, 4) of integers or floats"
        raise InputError("not a picture", path=path, expected=expected, found=f"{values.shape} {values.dtype}")
    if values.dtype.kind == "f" and not (np.abs(values) < np.float64(1e300)).all():
        raise InputError("an image holds NaN or infinity", path=path, expected="finite values")
    return np.broadcast_to(_to_display(values.reshape(shape)[..., :3]), (*shape[:2], 3)).copy()


def read_mask(path: Path | str) -> np.ndarray:
    """A mask as (H, W) bool, from 1 bit, 0/1, 0/255 or a number for each object (above 0 is foreground).

    Stored values count, however they are to be shown; a palette by its greys or, where it is coloured, by its
    indices. Raises InputError for fractions, negative numbers and colours, and for the in-between greys that
    JPEG or smooth resizing leave.
    """
    return _whole_numbers(path) > 0


def read_labels(path: Path | str) -> np.ndarray:
    """Instances as (H, W) int32: 0 is background, every other number one object.

    Raises InputError as `read_mask` does, and for a mask that has 1 bit or is 0/255.
    """
    values = _whole_numbers(path)
    if values.dtype == bool or (values.max() == 255 and np.isin(values, (0, 255)).all()):
        expected, mend = "a number for each object: 1, 2, 3, ...", "put it into the folder mask/"
        raise InputError("a mask where instances belong", path=path, expected=expected, found="0/255", mend=mend)
    return values.astype(np.int32)


def write_image(path: Path | str, array: np.ndarray) -> None:
    """Write (H, W) or (H, W, 3), whole or not at all: PNG (bool as 0/255, uint8, uint16) or TIFF (any)."""
    path = Path(path)
    array = np.ascontiguousarray(array.astype(np.uint8) * 255 if array.dtype == bool else array)
    with atomic(path) as temporary:
        if path.suffix.lower() in (".tif", ".tiff"):
            photometric = "rgb" if array.ndim == 3 else "minisblack"
            tifffile.imwrite(temporary, array, photometric=photometric, compression="zlib")
        elif path.suffix.lower() == ".png" and array.dtype in (np.uint8, np.uint16):
            temporary.write_bytes(imagecodecs.png_encode(array, level=3))
        else:
            raise ValueError(f"no {path.suffix} of {array.dtype}: PNG takes bool, uint8, uint16, TIFF any type")


def _decode(path: Path | str) -> _Stored:
    try:
        with open(path, "rb") as stream:
            tiff = stream.read(4) in _TIFF
        stored = _decode_tiff(path) if tiff else _decode_other(path)
    except FileNotFoundError:
        raise InputError("an image is missing", path=path) from None
    except InputError:
        raise
    except Exception as error:  # decoders raise whatever a broken file leads them into
        expected, found = "a whole PNG, TIFF, JPEG, BMP or WebP file", f"{Path(path).stat().st_size:,} bytes; {error}"
        mend = "fetch or export it again"
        raise InputError("an image cannot be read", path=path, expected=expected, found=found, mend=mend) from error
    shape = stored.values.shape
    if 0 in shape or len(shape) not in (2, 3) or shape[2:] > (4,) or stored.values.dtype.kind not in "buif":
        found = f"{' x '.join(map(str, shape))} {stored.values.dtype}"
        raise InputError("not a single picture", path=path, expected="H x W, with up to 4 channels", found=found)
    return stored._replace(values=stored.values[..., 0]) if len(shape) == 3 and shape[2] < 3 else stored


def _check_size(path: Path | str, pixels: int) -> None:
    if pixels > MAX_PIXELS:
        expected, found = f"{MAX_PIXELS:,} pixels at most", f"{pixels:,}"
        mend = "csamnet slide reads slides piece by piece; or cut it into tiles"
        raise InputError("an image is too large", path=path, expected=expected, found=found, mend=mend)


def _decode_tiff(path: Path | str) -> _Stored:
    with tifffile.TiffFile(path) as tiff:
        series, page = tiff.series[0], tiff.series[0].keyframe
        ends = [start + count for start, count in zip(page.dataoffsets, page.databytecounts, strict=True)]
        if max(ends) > tiff.filehandle.size:
            raise ValueError("the file ends before its pixels do")
        if page.photometric not in _KNOWN:
            raise ValueError(f"colours are {page.photometric.name}, not RGB")
        _check_size(path, series.size // page.samplesperpixel)
        values = series.asarray()
        palette = None if page.colormap is None else (page.colormap.T >> 8).astype(np.uint8)
    values = np.moveaxis(values, 0, -1) if series.axes in ("SYX", "CYX") else values
    negative = 2**page.bitspersample - 1 if page.photometric == PHOTOMETRIC.MINISWHITE else 0
    lossy = page.compression == COMPRESSION.JPEG
    return _Stored(values, palette, lossy, negative)


def _decode_other(path: Path | str) -> _Stored:
    with Image.open(path, formats=("PNG", "JPEG", "BMP", "WEBP")) as image:
        _check_size(path, image.width * image.height)
        if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:
            raise ValueError(f"{image.n_frames} pictures, not one")
        if image.format == "PNG" and image.mode in ("LA", "RGB", "RGBA") and "16" in str(image.tile[0].args):
            return _Stored(imagecodecs.png_decode(Path(path).read_bytes()))  # Pillow would keep 8 of 16 bits
        ImageOps.exif_transpose(image, in_place=True)
        if image.mode == "P":
            colours = np.array(image.getpalette("RGB"), np.uint8).reshape(-1, 3)
            return _Stored(np.array(image), np.pad(colours, ((0, 256 - len(colours)), (0, 0))))
        known = image.mode in ("1", "L", "LA", "RGB", "RGBA", "I", "I;16", "F")
        return _Stored(np.array(image if known else image.convert("RGB")), lossy=image.format in ("JPEG", "MPO"))


def _whole_numbers(path: Path | str) -> np.ndarray:
    """Values (H, W) of a mask or label image: bool, or integers from 0 up. Raises InputError otherwise."""
    values, palette, lossy, _ = _decode(path)
    if palette is not None and not np.ptp(palette[np.unique(values)].astype(int), axis=1).any():
        values = palette[values][..., 0]
    channels = values[..., :3] if values.ndim == 3 else values[..., None]
    found = None
    if values.dtype.kind == "f" and not (np.isfinite(channels) & (channels == np.rint(channels))).all():
        found = "fractions, NaN or infinity"
    elif (channels != channels[..., :1]).any():
        found = "channels that differ"
    elif channels.min() < 0 or channels.max() > np.iinfo(np.int32).max:
        found = f"values from {channels.min()} to {channels.max()}"
    elif (lossy or values.dtype == np.uint8) and _is_fuzzy(channels[..., 0], lossy):
        found = f"{len(np.setdiff1d(channels, (0, 255)))} greys between 0 and 255"
    if found:
        expected = "0/1, 0/255 or a number for each object, in one channel"
        mend = "save it without loss (PNG), resize by nearest neighbour, or apply a threshold of your own"
        raise InputError("not a mask", path=path, expected=expected, found=found, mend=mend)
    return channels[..., 0].astype(np.int32) if values.dtype.kind in "fi" else channels[..., 0]


def _is_fuzzy(values: np.ndarray, lossy: bool) -> bool:
    """Whether an 8-bit image is a smeared mask and not objects' numbers.

    Numbers lie in patches, so that most pixels are like their neighbours (more than 0.65 of pairs on nuclei,
    below 0.25 in what JPEG or resizing leaves); and where there is a number 255 there are many others.
    """
    numbers = np.unique(values[values > 0])
    if numbers.size == 0 or numbers.tolist() in ([1], [255]):
        return False
    between = (values > 0) & (values < 255)
    row, column = values[:, 1:] == values[:, :-1], values[1:] == values[:-1]
    pairs = np.concatenate([row[between[:, 1:]], column[between[1:]]])
    few = numbers[-1] == 255 and len(numbers) < 128
    return lossy or few or (numbers[-1] > 127 and len(pairs) > 0 and pairs.mean() < 0.5)


def _to_display(values: np.ndarray) -> np.ndarray:
    """Values as uint8 by the rule that `read_image` states."""
    if values.dtype == np.uint8:
        return values
    low, high, whole = float(values.min()), float(values.max()), values.dtype.kind != "f"
    if values.dtype == bool:
        low, scale = 0.0, 255.0
    elif low < 0 or high > (65535 if whole else 255):
        scale = 255 / (high - low) if high > low else 0.0
    elif whole:
        low, scale = 0.0, 255 / next(2**bits - 1 for bits in (8, 10, 12, 14, 16) if high < 2**bits)
    else:
        low, scale = 0.0, 255.0 if high <= 1 else 1.0
    return np.rint((values.astype(np.float64) - low) * scale).astype(np.uint8)
