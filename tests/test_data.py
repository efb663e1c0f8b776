"""The atlas and its crops: exact where nothing is augmented, image and mask together where it is."""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from skimage.color import rgb2hed
from tiny import ALIGNED

from csamnet import data
from csamnet.config import RunConfig, make_config
from csamnet.data import HED, Atlas, load_split, to_input
from csamnet.files import InputError

CPU = torch.device("cpu")
PLAIN = make_config("sample", tile=128, scale=1.0, stain=0.0, colour=0.0, blur=0.0, **ALIGNED)


@dataclass
class Picture:
    """What `Atlas` asks of a sample."""

    pixels: np.ndarray
    truth: np.ndarray

    def image(self) -> np.ndarray:
        return self.pixels

    def mask(self) -> np.ndarray:
        return self.truth


def numbered(height: int, width: int, seed: int = 0) -> Picture:
    """Every pixel is different: its row and column, and noise; so is the mask."""
    rng, (rows, columns) = np.random.default_rng(seed), np.indices((height, width))
    pixels = np.stack([rows % 256, columns % 256, rng.integers(0, 256, (height, width))], -1)
    return Picture(pixels.astype(np.uint8), rng.random((height, width)) < 0.3)


def plain(value: int, height: int, width: int) -> Picture:
    return Picture(np.full((height, width, 3), value, np.uint8), np.full((height, width), value > 127))


def atlas(*pictures: Picture, tmp_path=None, **options) -> Atlas:
    return Atlas(list(pictures), CPU, cache=tmp_path, **options)


def draw(atlas: Atlas, config: RunConfig = PLAIN, batch: int = 16, seed: int = 0):
    """Crops as pixels (B, H, W, 3) of 0 to 255 and masks (B, H, W)."""
    x, mask = atlas.crops(config, batch, torch.Generator().manual_seed(seed))
    assert x.shape == (batch, 3, config.tile, config.tile)
    assert (x.dtype, mask.dtype) == (torch.float32, torch.uint8)
    return (x.permute(0, 2, 3, 1).numpy() + 2) * 63.75, mask.numpy()


def views(crop: np.ndarray):
    """A crop in its eight positions."""
    for turns in range(4):
        for flipped in (crop, crop[:, ::-1]):
            yield np.rot90(flipped, turns)


def test_crops_without_augmentation_are_plain_slices():
    picture = numbered(200, 250)
    pixels, masks = draw(atlas(picture), batch=64)
    assert np.abs(pixels - pixels.round()).max() < 1e-4
    positions, corners = set(), []
    for crop, mask in zip(pixels.round().astype(np.uint8), masks, strict=True):
        for number, (seen, truth) in enumerate(zip(views(crop), views(mask), strict=True)):
            top, left = int(seen[0, 0, 0]), int(seen[0, 0, 1])
            if np.array_equal(picture.pixels[top : top + 128, left : left + 128], seen):
                assert np.array_equal(picture.truth[top : top + 128, left : left + 128], truth)
                positions.add(number)
                corners.append((top, left))
                break
        else:
            pytest.fail("a crop is no slice in any of its eight positions")
    assert positions == set(range(8))
    corners = np.array(corners)
    assert len(np.unique(corners, axis=0)) > 55
    assert (corners.min(0) < 15).all()
    assert (corners.max(0) > np.array([72, 122]) - 15).all()


def test_every_place_of_an_image_is_drawn():
    tops = [int(crop[..., 0].min()) for crop in draw(atlas(numbered(131, 128)), batch=120)[0].round()]
    assert np.unique(tops).tolist() == [0, 1, 2, 3]
    assert np.unique(tops, return_counts=True)[1].min() > 15


def test_same_generator_same_crops():
    config, one = make_config("sample"), atlas(numbered(200, 200))
    first, again, other = (draw(one, config, seed=seed) for seed in (0, 0, 1))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(np.array_equal(a, b) for a, b in zip(first, other, strict=True))


def test_mask_stays_on_the_image_under_zoom():
    rng = np.random.default_rng(0)
    truth = np.kron(rng.random((40, 40)) < 0.5, np.ones((7, 7), bool))
    picture = Picture(np.repeat(255 * truth[..., None], 3, -1).astype(np.uint8), truth)
    pixels, masks = draw(
        atlas(picture), make_config("sample", tile=128, scale=2.0, stain=0, colour=0, blur=0, **ALIGNED)
    )
    red = pixels[..., 0]
    clear = (red < 1e-3) | (red > 255 - 1e-3)  # all four neighbours are the same
    assert 0.5 < clear.mean() < 0.95
    assert np.array_equal(red[clear] > 127, masks[clear] > 0)
    assert ((red > 127.5) == masks)[~clear].mean() > 0.75  # bilinear, against the nearest pixel's centre


def test_zoom_is_log_uniform_within_its_bounds():
    ramp = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 256, 0).repeat(3, -1)
    config = make_config("sample", tile=128, scale=1.5, stain=0, colour=0, blur=0, **ALIGNED)
    pixels, _ = draw(atlas(Picture(ramp, np.zeros((256, 256), bool))), config, batch=150)
    centre = pixels[:, 62:66, 62:66, 0]
    along, across = (np.abs(np.diff(centre, axis=axis)).mean((1, 2)) for axis in (1, 2))
    zoom = np.log(np.maximum(along, across)) / np.log(1.5)
    assert (np.minimum(along, across) < 1e-3).all(), "quarter turns only"
    assert np.abs(zoom).max() < 1 + 1e-3
    np.testing.assert_allclose(np.quantile(zoom, [0.1, 0.5, 0.9]), [-0.8, 0, 0.8], atol=0.15)


def test_memory_mapped_is_the_same(tmp_path):
    pictures, config = [numbered(150, 140), numbered(131, 222, 1)], make_config("sample")
    here, there = atlas(*pictures), atlas(*pictures, tmp_path=tmp_path / "new folder", budget=0)
    assert (here.mapped, there.mapped) == (False, True)
    for one, other in zip(draw(here, config), draw(there, config), strict=True):
        assert np.array_equal(one, other)
    assert list((tmp_path / "new folder").iterdir()) == [], "nothing to be left behind"


def test_images_of_different_sizes_do_not_run_into_each_other():
    values = {40: (300, 200), 130: (140, 150), 250: (90, 61), 200: (1, 1), 90: (1, 300)}
    pictures = [plain(value, *size) for value, size in values.items()]
    pixels, masks = draw(atlas(*pictures), make_config("sample", stain=0, colour=0, blur=0, **ALIGNED), batch=200)
    assert np.ptp(pixels, axis=(1, 2, 3)).max() < 1e-3
    seen = pixels[:, 0, 0, 0].round().astype(int)
    assert np.array_equal(masks, np.broadcast_to((seen > 127)[:, None, None], masks.shape))
    areas = {value: height * width for value, (height, width) in values.items()}
    for value, area in areas.items():  # as often as an image is large
        assert (seen == value).mean() == pytest.approx(area / sum(areas.values()), abs=0.08)


@pytest.mark.parametrize("size", [(40, 60), (128, 50), (1, 1), (1, 90), (127, 128)])
def test_images_smaller_than_the_tile_are_reflected(size):
    picture = numbered(*size)
    before = [(128 - n) - (128 - n) // 2 for n in size]
    around = [(b, 128 - n - b) for b, n in zip(before, size, strict=True)]
    expected = np.pad(picture.pixels, [*around, (0, 0)], mode="reflect")
    truth = np.pad(picture.truth, around, mode="reflect")
    for crop, mask in zip(*draw(atlas(picture), batch=4), strict=True):
        seen = zip(views(crop), views(mask), strict=True)
        assert any(np.allclose(a, expected, atol=1e-3) and np.array_equal(b, truth) for a, b in seen)


def test_foreground_sampling_centres_on_foreground():
    truth = np.zeros((300, 300), bool)
    truth[[3, 150, 299], [7, 210, 299]] = True
    picture = Picture(np.zeros((300, 300, 3), np.uint8), truth)
    for fraction, expected in ((1.0, 1.0), (0.5, 0.5), (0.0, 0.0)):
        config = make_config("sample", tile=128, foreground=fraction, scale=1.0, **ALIGNED)
        _, masks = draw(atlas(picture), config, batch=100)
        assert masks[:, 63:65, 63:65].any((1, 2)).mean() == pytest.approx(expected, abs=0.15)
    empty = Picture(picture.pixels, np.zeros_like(truth))
    _, masks = draw(atlas(empty), make_config("sample", tile=128, foreground=1.0))
    assert not masks.any()


def test_an_image_without_foreground_is_drawn_from_everywhere():
    picture = numbered(400, 400)
    picture.truth[:] = False
    pixels, _ = draw(atlas(picture), replace(PLAIN, foreground=1.0), batch=64)
    assert pixels[..., :2].min((0, 1, 2)).max() < 30, "some begin near the edge"
    assert (pixels[:, 64, 64, 0].round() % 256).max() > 150, "and some do not"


def test_without_turns_there_are_two_views():
    picture, seen = numbered(128, 128), set()
    pixels, _ = draw(atlas(picture), replace(PLAIN, turns=False), batch=32)
    for crop in pixels.round().astype(np.uint8):
        seen |= {name for name, view in (("as it is", crop), ("mirrored", crop[:, ::-1]))
                 if np.array_equal(view, picture.pixels)}  # fmt: skip
        assert any(np.array_equal(view, picture.pixels) for view in (crop, crop[:, ::-1]))
    assert seen == {"as it is", "mirrored"}


def test_crops_are_stained_then_coloured_then_blurred_then_cut_off(monkeypatch):
    """Each by its own strength; on the way to the network nothing is below 0 or above 255."""
    steps = {"stain_jitter": lambda x: 0 * x + 200, "colour_jitter": lambda x: x / 2, "blur": lambda x: x + 7}
    for name, step in steps.items():
        monkeypatch.setattr(data, name, lambda x, _, strength, step=step: step(x) + 100 * strength)
    config = replace(PLAIN, stain=0.1, colour=0.2, blur=0.3)
    pixels, _ = draw(atlas(numbered(128, 128)), config, batch=2)
    assert np.allclose(pixels, (200 + 10) / 2 + 20 + 7 + 30, atol=1e-3)
    assert np.allclose(draw(atlas(numbered(128, 128)), replace(config, blur=3.0), batch=2)[0], 255)


def test_image_and_mask_have_one_size():
    for shape in ((100, 120), (120, 100)):
        picture = Picture(np.zeros((100, 100, 3), np.uint8), np.zeros(shape, bool))
        with pytest.raises(InputError, match="image and mask differ in size"):
            data.pair(picture)


def test_pixels_stay_on_the_device_up_to_the_budget(tmp_path):
    for budget, mapped in ((4 * 130 * 140, False), (4 * 130 * 140 - 1, True)):
        assert atlas(numbered(130, 140), tmp_path=tmp_path, budget=budget).mapped is mapped


def test_foreground_points_are_spread_over_all_of_it():
    truth = np.zeros((90, 110), bool)
    truth[10:80, 5:100] = True
    points = data._foreground_points(truth).long().numpy()
    assert truth[points[:, 1], points[:, 0]].all()
    assert len(np.unique(points, axis=0)) == 4096
    np.testing.assert_allclose(points.mean(0), [52, 44.5], atol=0.5)


def test_input_range():
    assert to_input(torch.tensor([0, 255], dtype=torch.uint8)).tolist() == [-2, 2]


# ------------------------------------------------------------------------------------- augmentations


def draws(batch: int, seed: int = 0) -> data._Draws:
    return data._Draws(batch, torch.Generator().manual_seed(seed))


def noise(batch: int, size: int = 24) -> torch.Tensor:
    """Pixels of 20 to 235."""
    return 20 + 215 * torch.rand(batch, 3, size, size, generator=torch.Generator().manual_seed(9))


@pytest.mark.parametrize("change", [data.stain_jitter, data.colour_jitter, data.blur])
def test_strength_zero_changes_nothing_and_a_seed_fixes_the_rest(change):
    pixels = noise(30)
    assert torch.equal(change(pixels, draws(30), 0.0), pixels)
    torch.testing.assert_close(change(pixels, draws(30), 1e-6), pixels, rtol=0, atol=0.01)
    assert torch.equal(change(pixels, draws(30), 0.3), change(pixels, draws(30), 0.3))
    assert not torch.equal(change(pixels, draws(30), 0.9), change(pixels, draws(30, seed=1), 0.9))


def test_stain_jitter_scales_and_shifts_each_dye():
    pixels = noise(40).double()
    changed = data.stain_jitter(pixels.float(), draws(40), 0.25).double()
    unmix = np.linalg.inv(HED.double().numpy())
    before, after = (
        np.einsum("bcn,cd->bnd", -np.log((x.flatten(2).numpy() + 1) / 256), unmix) for x in (pixels, changed)
    )
    for dye in range(3):
        fits = [np.polyfit(x, y, 1) for x, y in zip(before[..., dye], after[..., dye], strict=True)]
        factor, shift = np.array(fits).T
        np.testing.assert_allclose(after[..., dye], factor[:, None] * before[..., dye] + shift[:, None], atol=1e-3)
        assert 0.75 - 1e-3 < factor.min() < 0.85
        assert 1.15 < factor.max() < 1.25 + 1e-3
        assert 0.04 < np.abs(shift).max() < 0.0625 + 1e-3
    assert np.std(before[..., 0].mean(1) / before[..., 1].mean(1)) < np.std(
        after[..., 0].mean(1) / after[..., 1].mean(1)
    )


def test_each_dye_of_each_crop_is_changed_by_its_own_amount(monkeypatch):
    monkeypatch.setattr(data, "restain", lambda pixels, factors, shifts: (factors, shifts))
    for values, middle, reach in zip(data.stain_jitter(noise(2000), draws(2000), 0.4), (1, 0), (0.4, 0.1), strict=True):
        assert values.shape == (2000, 3)
        assert values.min(0).values.numpy() == pytest.approx(middle - reach, abs=0.02 * reach)
        assert values.max(0).values.numpy() == pytest.approx(middle + reach, abs=0.02 * reach)
        assert np.abs(np.corrcoef(values.numpy().T) - np.eye(3)).max() < 0.1


def test_colour_jitter_by_hand():
    grey = torch.full((200, 3, 4, 4), 100.0)
    factor = data.colour_jitter(grey, draws(200), 0.2).flatten(1) / 100
    assert np.ptp(factor.numpy(), axis=1).max() < 1e-5, "a grey image has neither contrast nor saturation"
    assert 0.8 <= factor.min() < 0.82
    assert 1.18 < factor.max() <= 1.2
    brightness, contrast, saturation = draws(1).uniform(3, low=0.8, high=1.2)[0].double()
    x = noise(1).double()
    mixed = saturation * x + (1 - saturation) * x.mean(1, keepdim=True)
    expected = brightness * (contrast * mixed + (1 - contrast) * mixed.mean())
    torch.testing.assert_close(data.colour_jitter(noise(1), draws(1), 0.2).double(), expected, atol=1e-3, rtol=0)


def test_blur_is_a_gaussian_on_one_crop_in_three():
    batch = 120
    dot = torch.zeros(batch, 3, 15, 15)
    dot[:, :, 7, 7] = 1
    row = data.blur(dot, draws(batch), 1.0)[:, 0, 7].double().numpy()
    blurred = row[:, 8] > 0
    assert blurred.mean() == pytest.approx(1 / 3, abs=0.1)
    sigma = 1 / np.sqrt(2 * np.log(row[blurred, 7] / row[blurred, 8]))  # neighbours fall as exp(-1 / 2 sigma^2)
    assert sigma.max() <= 1.001
    pixels = noise(batch)
    after = data.blur(pixels, draws(batch), 1.0)
    torch.testing.assert_close(after[~blurred], pixels[~blurred])
    for before, found, width in zip(pixels[blurred].numpy(), after[blurred].numpy(), sigma, strict=True):
        expected = [gaussian_filter(plane, width, mode="mirror", radius=3) for plane in before]
        np.testing.assert_allclose(found, expected, atol=0.02)


# -------------------------------------------------------------------------------------------- splits


def test_samples_of_a_split(tree):
    samples = load_split(tree, "MoNuSeg", "train")
    assert [sample.name for sample in samples] == sorted(sample.name for sample in samples)
    sample = samples[0]
    assert sample.image().shape == (*sample.mask().shape, 3)
    assert np.array_equal(sample.labels() > 0, sample.mask())
    assert sample.group


def test_samples_know_whether_their_objects_touch(tree, monkeypatch):
    for touching in (True, False):
        monkeypatch.setattr(data, "get_dataset", lambda *_, touching=touching: SimpleNamespace(touching=touching))
        assert {sample.touching for sample in load_split(tree, "MoNuSeg", "test")} == {touching}


def test_split_that_is_empty_or_not_there(tree, tmp_path):
    for split in ("validation", ""):
        with pytest.raises(InputError, match=rf"the split '{split}' of MoNuSeg is empty(?s:.*)train 4"):
            load_split(tree, "MoNuSeg", split)
    with pytest.raises(InputError, match="csamnet prepare PUMA"):
        load_split(tmp_path, "PUMA", "train")


# ----------------------------------------------------------------------------------- stain normalisation


def dyed(means, deviations, side: int = 60) -> np.ndarray:
    """An image whose amounts of the three stains are normal, in colours that a byte does not cut off."""
    stains = np.random.default_rng(5).normal(means, deviations, (side, side, 3))
    return (256 * np.exp(-stains @ data.HED.double().numpy()) - 1).round().clip(0, 255).astype(np.uint8)


def test_the_stain_of_an_image_is_that_it_was_painted_with():
    means, deviations = [0.5, 0.4, 0.3], [0.12, 0.08, 0.05]
    found = data.stain_of(dyed(means, deviations))
    np.testing.assert_allclose(found, [means, deviations], atol=0.02)
    hed = rgb2hed(dyed(means, deviations)).reshape(-1, 3)  # another library, to within its unit of stain
    np.testing.assert_allclose((hed.std(0) / hed.mean(0)), found[1] / found[0], rtol=0.1)


def test_black_borders_have_no_part_in_the_stain():
    image = dyed([0.5, 0.3, 0.4], [0.15, 0.1, 0.1])
    noise = np.random.default_rng(0).integers(0, 5, image.shape, dtype=np.uint8)
    np.testing.assert_allclose(data.stain_of(np.hstack([image, noise])), data.stain_of(image), atol=1e-9)
    assert data.stain_of(noise) is None
    assert np.array_equal(data.normalised(noise, [[0.5, 0.4, 0.3], [0.4, 0.1, 0.2]]), noise)


def test_glass_has_no_part_in_the_stain():
    image = dyed([0.5, 0.4, 0.3], [0.12, 0.08, 0.05])
    glass = np.full((60, 540, 3), 240, np.uint8)
    np.testing.assert_allclose(data.stain_of(np.hstack([image, glass])), data.stain_of(image), atol=1e-9)
    assert data.stain_of(np.hstack([image[:, :5], glass])) is None, "less than a hundredth is tissue"
    assert data.stain_of(glass) is None


def test_a_large_image_is_looked_at_in_parts():
    image = np.tile(dyed([0.5, 0.4, 0.3], [0.12, 0.08, 0.05]), (45, 45, 1))  # 7.3 million pixels
    found = data.stain_of(image)
    image.reshape(-1, 3)[1::2] = 255
    np.testing.assert_array_equal(data.stain_of(image), found)  # every second pixel is not looked at
    np.testing.assert_allclose(found, data.stain_of(image[:60, :60].reshape(-1, 3)[::2]), atol=0.005)


def test_a_normalised_image_has_the_stain_that_was_wanted():
    wanted = [[0.5, 0.35, 0.3], [0.12, 0.08, 0.06]]
    image = dyed([0.35, 0.5, 0.35], [0.08, 0.1, 0.05])
    before = data.stain_of(image)
    np.testing.assert_allclose(data.stain_of(data.normalised(image, wanted)), wanted, atol=0.01)
    half = data.stain_of(data.normalised(image, wanted, 0.5))
    np.testing.assert_allclose(half, (before + wanted) / 2, atol=0.01)
    assert np.array_equal(data.normalised(image, wanted, 0.0), image)
    assert np.abs(data.normalised(image, before.tolist()).astype(int) - image).max() <= 1


def test_what_has_no_tissue_is_not_normalised():
    glass = np.random.default_rng(0).integers(235, 256, (40, 30, 3)).astype(np.uint8)
    assert np.array_equal(data.normalised(glass, [[0.5, 0.4, 0.3], [0.1, 0.1, 0.1]]), glass)


def test_a_pale_image_is_not_blown_up():
    flat = np.full((30, 30, 3), (150, 100, 170), np.uint8)
    factors, _ = data.change_to(data.stain_of(flat), [[0.5, 0.4, 0.3], [0.4, 0.1, 0.2]])
    assert factors.tolist() == [4, 4, 4]
    factors, _ = data.change_to(np.array([[0.5, 0.4, 0.3], [0.4, 0.1, 0.2]]), [[0.5, 0.4, 0.3], [0.01, 0.2, 0.2]])
    assert factors.tolist() == [0.25, 2, 1]


def test_the_typical_stain_is_a_median():
    images = [dyed([mean, 0.4, 0.3], [0.1, 0.08, 0.05]) for mean in (0.4, 0.45, 0.8)]
    glass = np.full((20, 20, 3), 250, np.uint8)
    np.testing.assert_allclose(data.typical_stain([*images, glass]), data.stain_of(images[1]), atol=2e-3)
    assert data.typical_stain([glass]) is None


def test_rows_of_a_long_image_are_changed_alike():
    image = dyed([0.5, 0.4, 0.3], [0.12, 0.08, 0.05], 64)
    long = np.tile(image, (40, 1, 1))  # 2,560 rows, in three parts
    wanted = [[0.4, 0.35, 0.3], [0.12, 0.08, 0.06]]
    parts, whole = data.normalised(long, wanted)[-64:], data.normalised(image, wanted)
    assert np.abs(parts.astype(int) - whole).max() <= 1
