"""What pages say in words, for any data set."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from csamnet import tables

LESION = ("lesion", "lesions")
CARD = {"name": "BUSI", "kind": "sample", "counts": {"train": 3, "val": 1, "test": 2}, "objects": {"train": 1200}}
POOLED = {"miou": 0.7, "dice": 0.75, "ap": 0.8, "precision": 0.6, "recall": 0.9, "dq": 0.5, "sq": 0.7}
SUMMARY = {"pooled": POOLED, "n": 3, "data": {"kind": "real"}}


def test_data_are_told_of_in_their_own_words():
    text = tables.about(CARD, LESION)
    assert text.startswith("**Sample data.** 3 training, 1 validation and 2 test images with 1,200 lesions, painted")
    assert "1,200 nuclei" in tables.about(CARD)
    real = CARD | {"kind": "real", "objects": {}, "source": "a host", "licence": "CC0", "notes": ["one left out"]}
    expected = "**Measured on real data.** 6 images without annotation; source: a host, licence CC0. One left out."
    assert tables.about(real, LESION) == expected


def test_takeaways_leave_out_images_without_dice():
    table = pd.DataFrame({"organ": ["normal", "benign", "malignant"], "dice": [np.nan, 0.6, 0.8]})
    text = tables.takeaways(SUMMARY, table, LESION)
    assert "0.6000 on the worst (benign) and 0.8000 on the best (malignant)" in text
    assert "makes up more than it misses: 10.0 % of the lesion pixels are missed" in text
    assert "On whole lesions" in text
    assert "nucle" not in text
    assert "The images differ" not in tables.takeaways(SUMMARY, table[:1], LESION)


def test_the_papers_csamnet_is_size_s():
    table = tables.published("MoNuSeg").set_index("model")
    assert "CSAMNet" not in table.index
    assert table.loc["CSAMNet-S", "ap"] == 0.9111
    assert table.loc["CSAMNet-S", "miou"] == pytest.approx(0.8031)


@pytest.mark.parametrize(("key", "expected"), [("miou", "−1.00 %"), ("ap", "−0.0100")])
def test_a_minus_is_a_minus_sign(key, expected):
    assert tables.show(key, -0.01) == expected
