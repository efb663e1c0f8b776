"""The README says what the results say."""

from __future__ import annotations

from csamnet.paths import ROOT
from csamnet.results import read_summary
from csamnet.tables import against_paper, show


def test_table_of_results_is_that_of_the_run_folders():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert text.count("<!-- end of results -->") == 1
    block = text.partition("held by a test -->")[2].partition("<!-- end of results -->")[0]
    assert block.strip() == against_paper("MoNuSeg").strip()
    assert "measured on real data" in block


def test_what_the_readme_names_is_there():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in ("book/assets/readme.png", "csamnet/model.py", "csamnet/train.py", "LICENSE", "CITATION.cff"):
        assert f"({name})" in text
        assert (ROOT / name).exists()


def test_the_yardsticks_are_those_of_the_run_folders():
    text = (ROOT / "README.md").read_text(encoding="utf-8").partition("Two yardsticks")[2].partition("##")[0]
    for model in ("Otsu", "DCSAU-Net", "UNet", "CSAMNet-S"):
        summary = read_summary(ROOT / "results" / "MoNuSeg" / f"{model}-brief-seed0")
        assert show("miou", summary["pooled"]["miou"]) in text, model
