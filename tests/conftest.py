"""Fixtures that several test files share."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import discs, make_tree, settings
from tiny_slides import Dark, pyramid
from web import CHROMIUM, QUIET

from csamnet.datasets import DATASETS
from csamnet.train import train

torch.set_num_threads(int(os.environ.setdefault("OMP_NUM_THREADS", "1")))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real images beside the checkout; tests that need it are skipped where it is absent."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not (folder / "data").is_dir():
        pytest.skip("no real images beside this checkout")
    return folder


@pytest.fixture(scope="module", autouse=True)
def known_datasets():
    """Data sets of one's own that a test file makes are not known to the next one."""
    known = dict(DATASETS)
    yield
    DATASETS.clear()
    DATASETS.update(known)


@pytest.fixture(scope="session")
def tree(tmp_path_factory) -> Path:
    """The root of prepared data sets, with eight images of discs called MoNuSeg."""
    return make_tree(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def run(tree, tmp_path_factory) -> Path:
    """The folder of a run that has learned the discs."""
    config = settings(epochs=2, steps_per_epoch=12, batch=4, lr=1e-2, ema=0.8, seed=7)
    return train(config, tree, results=tmp_path_factory.mktemp("results"), device="cpu")


@pytest.fixture
def model() -> Dark:
    """The network of the tests of slides."""
    return Dark().eval()


@pytest.fixture
def path(tmp_path) -> Path:
    """A slide of two levels at 0.5 µm a pixel: discs on glass."""
    image = np.full((900, 1300, 3), 245, np.uint8)
    image[100:800, 150:1100] = discs(5, 700, 950)[0]
    return pyramid(tmp_path / "slide.svs", [image, image[::4, ::4]])


@pytest.fixture(scope="module")
def browser():
    """Chromium, or the tests are skipped. Not for a whole session: its event loop would be in the way of others."""
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed")
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield browser
        browser.close()
