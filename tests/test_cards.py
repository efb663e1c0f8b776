"""The data cards in data/ are what the table of data sets says, beside what the paper prints."""

from __future__ import annotations

import pytest

from csamnet.config import RunConfig, make_config
from csamnet.datasets import DATASETS
from csamnet.pages.cards import card, overview, paper_says, write_cards
from csamnet.paths import DATA


def test_the_cards_in_data_are_the_tables(tmp_path):
    for path in write_cards(tmp_path):
        assert path.read_text() == (DATA / path.name).read_text(), f"csamnet data --cards writes {path.name} anew"


def test_the_papers_counts_are_the_tables():
    """Two sources, the file of published numbers and the table, must not drift apart."""
    for name, entry in DATASETS.items():
        paper = paper_says(entry)
        assert bool(paper) == (name != "BUSI"), name
        if paper.get("objects") and "objects" in entry.published:
            assert int(paper["objects"]) == entry.published["objects"], name


def test_a_card_tells_what_a_reader_asks():
    text = card(DATASETS["Kumar"])
    for part in ("CC BY-NC-SA 4.0", "21,623", "16 train, 14 test", "the same four organs", "10.1109/TMI.2017.2677499"):
        assert part in text
    found = {"kind": "sample", "counts": {"train": 3, "val": 1, "test": 2}, "objects": {"train": 1200}, "notes": ["n"]}
    assert "**painted sample**: 3 train, 1 val, 2 test images, 1,200 nuclei" in card(DATASETS["Kumar"], found)
    assert "nothing is trained or measured" in card(DATASETS["InHouse"])
    assert all(name in overview() for name in DATASETS)


def test_grey_images_have_no_stain_to_change():
    for name, entry in DATASETS.items():
        stained = make_config("paper", dataset=name).stain > 0
        assert stained == entry.modality.startswith("H&E"), name


def test_a_recipe_yields_to_what_is_asked():
    usual, lung = make_config("paper"), make_config("paper", dataset="LIDC-IDRI")
    assert (lung.tile, lung.stain, lung.foreground) == (128, 0, 0.5)
    assert (usual.tile, usual.stain, usual.foreground) == (RunConfig.tile, RunConfig.stain, 0)
    assert make_config("paper", dataset="LIDC-IDRI", tile=256).tile == 256
    assert make_config(**lung.to_dict()) == lung


@pytest.mark.parametrize("name", DATASETS)
def test_every_entry_is_whole(name):
    entry = DATASETS[name]
    assert entry.modality
    assert entry.licence
    assert entry.how_to_get
    assert entry.look
    assert entry.source or not entry.annotated
    assert bool(entry.release or entry.drawn or entry.counts) == entry.annotated


@pytest.mark.parametrize(
    ("name", "image", "group"),
    [
        ("MoNuSeg", "TCGA-A7-A13E-01Z-00-DX1", "TCGA-A7-A13E"),
        ("Kumar", "TCGA-A7-A13E-01Z-00-DX1", "TCGA-A7-A13E"),
        ("LIDC-IDRI", "LIDC-IDRI-0001_z0042_n1", "LIDC-IDRI-0001"),
        ("LIDC-IDRI", "LIDC-IDRI-0001_nodule-0_slice-2", "LIDC-IDRI-0001"),
    ],
)
def test_a_name_tells_the_patient(name, image, group):
    assert DATASETS[name].group_of(image) == group
