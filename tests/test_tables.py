"""What pages say in words, for any data set."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from csamnet.config import make_config
from csamnet.files import write_json
from csamnet.pages import tables
from csamnet.results import run_folder

LESION = ("lesion", "lesions")
CARD = {"name": "BUSI", "kind": "sample", "counts": {"train": 3, "val": 1, "test": 2}, "objects": {"train": 1200}}
POOLED = {"miou": 0.7, "dice": 0.75, "ap": 0.8, "precision": 0.6, "recall": 0.9, "dq": 0.5, "sq": 0.7}
SUMMARY = {"pooled": POOLED, "n": 3, "data": {"kind": "real"}}


def test_data_are_told_of_in_their_own_words():
    text = tables.about(CARD, LESION)
    assert text.startswith("**Sample data.** 3 training, 1 validation and 2 test images with 1,200 lesions, painted")
    assert "1,200 nuclei" in tables.about(CARD)
    real = CARD | {
        "kind": "real",
        "objects": {},
        "source": "a host",
        "licence": "CC0",
        "notes": ["one less of BUSI"],
    }
    expected = "**Measured on real data.** 6 images without annotation; source: a host, licence CC0. One less of BUSI."
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


# --------------------------------------------------------------------------------------- side by side


def side_by_side() -> pd.DataFrame:
    """What `compare.compare` gives, for a reference, one that is worse and one that the test cannot tell from it."""
    rows = []
    for model, miou, p, best in (
        ("CSAMNet-S", 0.8, float("nan"), True),
        ("UNet", 0.79, 0.4, False),
        ("Otsu", 0.6, 0.0001, False),
    ):
        row = {
            "model": model,
            "seeds": 1 + (model == "CSAMNet-S"),
            "images": 14,
            "parameters": 7e6,
            "multiply_adds": 5e9,
        }
        for key in ("miou", "dice", "ap", "auc"):
            row |= {key: miou, f"{key}_sd": 0.01 if row["seeds"] > 1 else float("nan"), f"{key}_low": miou - 0.02}
            row |= {
                f"{key}_high": miou + 0.02,
                f"{key}_mean": miou,
                f"{key}_p": p,
                f"{key}_best": best and key == "miou",
            }
        rows.append(row | ({"parameters": 0} if model == "Otsu" else {}))
    return pd.DataFrame(rows)


def test_only_what_the_test_allows_is_bold():
    text = tables.comparison(side_by_side()[::-1], "CSAMNet-S")
    first, second, last = text.splitlines()[2:]
    assert first.startswith("| CSAMNet-S | 2 | **80.00 ± 1.00 %** | 78.00 to 82.00 | reference | 0.8000 ± 0.0100 |")
    assert second.startswith("| UNet | 1 | 79.00 % | 77.00 to 81.00 | 0.400 |")
    assert "< 0.001" in last
    assert last.endswith("|   |   |"), "the threshold costs nothing"
    assert text.count("**") == 2


def test_the_verdict_names_what_differs_and_counts_what_does_not():
    text = tables.verdict(side_by_side(), "CSAMNet-S")
    assert "14 images" in text
    assert "worse: Otsu" in text
    assert "of 1 it cannot be told" in text
    alone = side_by_side().iloc[:2]
    assert "1 comparison: of 1 it cannot be told" in tables.verdict(alone, "CSAMNet-S")
    assert "smallest possible p" not in tables.verdict(alone, "CSAMNet-S")
    few = tables.verdict(side_by_side().assign(images=4, miou_p=1.0), "CSAMNet-S")
    assert "the smallest possible p is 0.25" in few, "2 of 2**4 ways, twice for two comparisons"
    assert "Otsu: nothing was called" in tables.verdict(side_by_side().assign(dice=[0.8, 0.8, 0]), "CSAMNet-S")
    assert tables.verdict(alone.iloc[:1], "CSAMNet-S").startswith("Only CSAMNet-S was run")


def test_where_a_number_was_read():
    origin = "AP, AUC printed; the rest read off the bubble chart"
    assert [tables.read_from(origin, key) for key in ("ap", "auc", "miou", "parameters")] == [
        "print",
        "print",
        "chart",
        "chart",
    ]
    assert tables.read_from("read off the bubble chart", "miou") == "chart"
    assert tables.read_from("AP, AUC, mIoU, parameters printed; GMACs read off the bubble chart", "GMACs") == "chart"


def test_costs_stand_in_the_units_in_which_they_agree():
    lines = tables.costs_against_paper().splitlines()
    (unet,) = [line for line in lines if line.startswith("| UNet | parameters")]
    assert unet == "| UNet | parameters | 32.92 M | print | 34.52 M | 32.92 | +0.0 % |"
    (own,) = [line for line in lines if line.startswith("| CSAMNet-S | parameters")]
    assert "| 6.44 M | print | 6.76 M | 6.44 |" in own
    assert any(line.startswith("| HoVer-NeXt | parameters |   |   |") for line in lines)


def test_data_sets_that_were_not_run_say_so(tmp_path):
    text = tables.datasets_against_paper(tmp_path)
    assert text.count("*not run*") == 9
    assert "| PUMA | 206 | 97429 |" in text


def test_data_sets_that_were_only_measured_say_so(tmp_path):
    folder = run_folder(make_config("short"), tmp_path)
    data = {"kind": "real", "counts": {"train": 20, "val": 4, "test": 6}}
    write_json(folder / "run.json", {"status": "done", "config": make_config("short").to_dict(), "data": data})
    summary = {"pooled": {"miou": 0.5}, "data": {"kind": "real", "counts": {"train": 0, "val": 0, "test": 1}}}
    write_json(folder / "PUMA-test" / "summary.json", summary)
    text = tables.datasets_against_paper(tmp_path)
    assert "| PUMA | 206 | 97429 | 1 image, not trained on | measured on real data |" in text
    assert "| MoNuSeg | 44 | 28846 | 30 images | measured on real data |" in text
    assert text.count("*not run*") == 7


def test_of_several_budgets_the_largest_stands_beside_the_paper(tmp_path):
    about = {"status": "done", "hardware": {"device": "cpu", "processor": "X", "threads": 1}}
    for profile, miou in (("brief", 0.9), ("short", 0.7)):
        config = make_config(profile)
        folder = run_folder(config, tmp_path)
        write_json(folder / "run.json", about | {"config": config.to_dict()})
        pooled = {"miou": miou, "dice": 0.5, "ap": None, "auc": 0.5}
        write_json(folder / "test" / "summary.json", {"pooled": pooled, "data": {"kind": "real", "name": "MoNuSeg"}})
    text = tables.against_paper("MoNuSeg", results=tmp_path)
    assert "| CSAMNet-S, short | mIoU | 80.31 % | print | 70.00 % | \N{MINUS SIGN}10.31 points | 1 |" in text
    assert "| CSAMNet-S, short | AP | 0.9111 | print | undefined |" in text
    assert "brief" not in text
    assert "| CSAMNet-L | mIoU |" in text
    assert text.count("*not run*") == 2


def test_trainings_on_real_images_are_told_with_their_time(tmp_path):
    for images, kind in ((0, "real"), (4, "real"), (2, "sample")):
        config = make_config("short", images=images)
        run = {"status": "done", "config": config.to_dict(), "data": {"kind": kind, "counts": {"train": 24}}}
        about = {"wall_s": 5400, "hardware": {"device": "H100", "threads": 8}}
        write_json(run_folder(config, tmp_path) / "run.json", run | about)
    rows = tables.runs_measured(tmp_path).splitlines()[2:]
    assert sorted(rows) == [
        "| MoNuSeg | CSAMNet-S | short | 0 | 24 | 800 | 0.6, 0.3 | 90 min | H100 |",
        "| MoNuSeg | CSAMNet-S | short | 0 | 4 | 800 | 0.6, 0.3 | 90 min | H100 |",
    ]
