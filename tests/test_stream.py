"""Slides as streams: equal to one pass in memory, whatever the size."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import discs
from tiny_slides import PLAIN, WHOLE, Dark, pyramid, whole

from csamnet.data import change_to, restained, stain_of
from csamnet.evaluate import predict_probability
from csamnet.slides import STEPS, Frame, Slide
from csamnet.wsi import slide_run, stream
from csamnet.wsi.stream import Clock, Grid, Network, infer, normalising, stitch

ALL = np.ones((1, 1), bool), 1e9  # tissue everywhere


def frame(slide: Slide) -> Frame:
    return slide_run.frame_of(slide, 0.25, WHOLE)


@pytest.mark.parametrize(("height", "width"), [(128, 128), (129, 500), (700, 131), (640, 1100), (90, 300), (60, 70)])
def test_the_stream_is_one_pass_over_the_whole(tmp_path, model, height, width):
    slide = Slide(pyramid(tmp_path / "a.svs", [discs(height, height, width)[0]]))
    grid, stored = Grid(frame(slide), 128, 0.5), np.zeros((height, width), np.uint16)
    expected, tiles = whole(slide, model), grid.tiles(*ALL)
    read, network = stream.reader(slide, grid), Network(model, PLAIN)
    done = ((corner, network(read(corner)[None])[0]) for corner in tiles)
    np.testing.assert_allclose(np.concatenate(list(stitch(grid, done))), expected, atol=1e-6)
    infer(slide, network, grid, tiles, stored, batch=7, clock=Clock())
    np.testing.assert_allclose(stored / STEPS, expected, atol=5.1e-5)
    assert (stored > STEPS / 2).any()
    assert (stored < STEPS / 2).any()


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.7])
def test_any_overlap(tmp_path, model, overlap):
    slide, stored = Slide(pyramid(tmp_path / "a.svs", [discs(1, 400, 333)[0]])), np.zeros((400, 333), np.uint16)
    grid = Grid(frame(slide), 128, overlap)
    infer(slide, Network(model, PLAIN), grid, grid.tiles(*ALL), stored, batch=4, clock=Clock())
    np.testing.assert_allclose(stored / STEPS, whole(slide, model, overlap=overlap), atol=5.1e-5)


def test_glass_is_skipped_and_tissue_is_not_changed_by_it(tmp_path, model):
    image = np.full((1200, 900, 3), 245, np.uint8)
    image[300:700, 200:600] = discs(2, 400, 400)[0]
    slide = Slide(pyramid(tmp_path / "a.svs", [image]))
    tissue, coarse = slide.tissue(300)
    grid, stored = Grid(frame(slide), 128, 0.5), np.zeros(image.shape[:2], np.uint16)
    tiles = grid.tiles(tissue, coarse)
    assert len(tiles) < 0.5 * len(grid.tiles(*ALL))
    infer(slide, Network(model, PLAIN), grid, tiles, stored, batch=4, clock=Clock())
    fine = np.kron(tissue, np.ones((4, 4), bool))[:1200, :900]
    np.testing.assert_allclose(stored[fine] / STEPS, whole(slide, model)[fine], atol=5.1e-5)
    assert not stored[:150].any()
    assert not stored[900:].any()


def test_a_slide_is_brought_to_the_stain_that_was_learned(tmp_path, model):
    """As an image of the same pixels is; without glass, of which a slide's stain is not measured."""
    image, model.stain = discs(4, 500, 700)[0], [[0.1, 0.3, 0.4], [0.2, 0.1, 0.1]]
    slide, config = Slide(pyramid(tmp_path / "a.svs", [image])), replace(PLAIN, normalise=0.5)
    grid, pixels = Grid(frame(slide), 128, 0.5), slide.read(0, 0, *slide.size)
    tiles = grid.tiles(*ALL)
    change = normalising(slide, model, config, grid, tiles)
    factors, shifts = change_to(stain_of(pixels), model.stain, 0.5)
    torch.testing.assert_close(change[0], factors, atol=0.05, rtol=0)  # tiles overlap and count the middle twice
    torch.testing.assert_close(change[1], shifts, atol=0.05, rtol=0)
    network, changed = Network(model, config, change=change), restained(torch.from_numpy(pixels)[None], *change)
    stored = np.zeros(pixels.shape[:2], np.uint16)
    infer(slide, network, grid, tiles, stored, batch=4, clock=Clock())
    np.testing.assert_allclose(stored / STEPS, predict_probability(model, changed[0].numpy(), tile=128), atol=5.1e-5)
    tiles, views = pixels[None, :128, :128], Network(model, replace(config, tta=True), change=change)
    both = predict_probability(model, tiles[0], stained=changed[0, :128, :128].numpy(), tile=128, tta=True)
    np.testing.assert_allclose(views(tiles)[0], both, atol=1e-6)
    assert np.abs(stored / STEPS - whole(slide, model)).max() > 0.01, "it matters"
    assert normalising(slide, model, PLAIN, grid, tiles) == normalising(slide, model, config, grid, []) == ()


def test_the_stain_of_a_slide_is_drawn_from_all_over_it(tmp_path, model):
    """Of 32 columns of tiles and as many rows, every 16th tile would be of two columns only: there is glass."""
    image, model.stain = np.tile(discs(4, 528, 528)[0], (4, 4, 1)), [[0.1, 0.3, 0.4], [0.2, 0.1, 0.1]]
    image[:, :200] = image[:, 1000:1200] = 245
    slide, config = Slide(pyramid(tmp_path / "a.svs", [image])), replace(PLAIN, normalise=1.0)
    grid = Grid(frame(slide), 128, 0.5)
    tiles = [(y, x) for y in range(0, 2048, 64) for x in range(0, 2048, 64)]
    change = normalising(slide, model, config, grid, tiles)
    factors, shifts = change_to(stain_of(slide.read(0, 0, *slide.size)), model.stain)
    torch.testing.assert_close(change[0], factors, atol=0.1, rtol=0)
    torch.testing.assert_close(change[1], shifts, atol=0.1, rtol=0)


def test_memory_that_runs_out_halves_the_batch(model):
    class Small(Dark):
        def forward(self, x):
            sizes.append(len(x))
            if len(x) > 3:
                raise torch.OutOfMemoryError("no room")
            return super().forward(x)

    sizes, pixels = [], discs(3, 128, 128 * 9)[0].reshape(128, 9, 128, 3).swapaxes(0, 1).copy()
    small = Network(Small(), PLAIN)
    np.testing.assert_allclose(small(pixels), Network(model, PLAIN)(pixels), atol=1e-6)
    assert sizes == [9, 4, 2, 2, 2, 2, 1], "the size that fitted is kept"
    small(pixels[:2])
    assert sizes[-1] == 2
