"""README and pages say in words what the results say in numbers."""

from __future__ import annotations

import re
from pathlib import Path
from statistics import mean

from csamnet.pages.tables import against_paper, paper_scores, show, show_seeds
from csamnet.paths import RESULTS, ROOT
from csamnet.results import MEASURES, find_runs, read_run, read_summary
from csamnet.robustness import read_robustness


def words_of(page: str) -> str:
    """The text of a page without its line breaks."""
    return " ".join((ROOT / page).read_text(encoding="utf-8").split())


def pooled(run: Path, split: str = "test") -> dict[str, float]:
    return read_summary(run, split)["pooled"]


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


def test_every_file_that_the_readme_links_to_is_there():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#:]+)\)", text)
    assert len(links) > 15
    assert [link for link in links if not (ROOT / link).exists()] == []


MORE = {
    "mean of eight flips and turns (`--tta`, chosen on validation)": ("MoNuSeg", "cpu-refit", "test-tta", 3),
    "(`--tta --normalise 0.75`)": ("MoNuSeg", "cpu-refit", "test-normalise0.75-tta", 3),
    "trained on 24 images, the six of validation choose": ("MoNuSeg", "cpu", "test", 1),
    "MoNuSeg, 800 steps": ("MoNuSeg", "short", "test", 2),
    "Kumar": ("Kumar", "short", "test", 2),
    "LIDC-IDRI": ("LIDC-IDRI", "short", "test", 2),
    "BUSI": ("BUSI", "short", "test", 2),
}
"""What a row of the second table tells of -> data set, profile, which evaluation, seeds."""


def test_more_results_are_those_of_the_run_folders():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    block = text.partition("<!-- more results -->")[2].partition("<!-- end of more results -->")[0]
    rows = block.strip().splitlines()[2:]
    for row, (words, (dataset, profile, split, seeds)) in zip(rows, MORE.items(), strict=True):
        found = [pooled(run, split) for run in find_runs(RESULTS, dataset=dataset, profile=profile)]
        scores = [show_seeds(key, [one[key] for one in found]) for key in ("miou", "ap", "auc")]
        assert words in row
        assert row.endswith(f"| `{profile}` | {seeds} | {' | '.join(scores)} |"), row
        assert len(found) == seeds


def test_the_scores_in_its_sentences_are_those_of_the_run_folders():
    text = words_of("README.md")
    minutes = [f"{read_run(run)['wall_s'] / 60:.0f}" for run in find_runs(RESULTS, profile="cpu-refit")]
    assert f"{', '.join(minutes[:-1])} and {minutes[-1]} minutes a seed" in text


def test_what_is_said_of_views_of_two_stains_is_so():
    assert "All three seeds gain in mIoU, AP and AUC" in words_of("book/findings.md")
    runs = find_runs(RESULTS, dataset="MoNuSeg", profile="cpu-refit", model="CSAMNet-S")
    assert len(runs) == 3
    ways = [[pooled(run, f"test{end}-tta") for end in ("-normalise0.75", "")] for run in runs]
    assert all(both[key] > alone[key] for both, alone in ways for key in MEASURES)
    assert "the usual validation has a lower mIoU with it" in words_of("book/findings.md")
    usual = RESULTS / "MoNuSeg" / "CSAMNet-S-cpu-seed0"
    both, alone = (pooled(usual, f"val{end}-tta")["miou"] for end in ("-normalise0.75", ""))
    assert both < alone


def test_the_gain_of_enlarging_is_that_of_the_run_folder():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    table = read_robustness(RESULTS / "MoNuSeg" / "CSAMNet-S-cpu-refit-seed0")[1]
    miou = table.set_index(["change", "factor"])["miou"]
    coarser, enlarged = (100 * miou[change, 2] for change in ("coarser", "coarser, enlarged"))
    assert f"mIoU {coarser:.1f} %, enlarged again {enlarged:.1f} %" in text


def test_what_is_said_of_the_threshold_is_so():
    text = words_of("README.md")
    scores = {name: [pooled(run)["miou"] for run in find_runs(RESULTS, dataset="MoNuSeg", model=name, profile="brief")]
              for name in ("Otsu", "UNet", "DCSAU-Net", "CSAMNet-S")}  # fmt: skip
    (otsu,) = scores.pop("Otsu")
    assert f"which learns nothing, has {show('miou', otsu)} on MoNuSeg" in text
    both = " and ".join(f"{100 * score:.2f}" for score in scores["CSAMNet-S"])
    assert f"both seeds of CSAMNet-S are below it ({both} %)" in text
    assert max(scores["CSAMNet-S"]) < otsu
    assert "only one of three networks is above it" in words_of("book/findings.md")
    assert [name for name, seeds in scores.items() if mean(seeds) > otsu] == ["DCSAU-Net"]


def test_what_is_said_of_few_images_is_so():
    text, one = words_of("book/findings.md"), {"dataset": "MoNuSeg", "model": "CSAMNet-S", "profile": "brief"}
    runs = {count: find_runs(RESULTS, images=count, **one) for count in (1, 2, 4, 8, 16, 0)}
    best = {count: [round(100 * read_run(run)["best_val_miou"]) for run in seeds] for count, seeds in runs.items()}
    assert {seeds[0] for seeds in best.values()} == {74, 75, 76}
    told = "of seed 0 is 74 to 76 % on the six validation images in all six rows"
    assert f"{told} (of seed 1 with one image {best[1][1]} %, with all {best[0][1]} %)" in text
    pairs = [[100 * pooled(run)["miou"] for run in seeds] for seeds in runs.values() if len(seeds) == 2]
    assert "Two seeds differ by 2 to 3 points" in text
    assert {round(abs(first - second)) for first, second in pairs} == {2, 3}


def test_what_the_paper_prints_of_others_is_that_of_its_table():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    unet, dcsau = (show("miou", paper_scores("MoNuSeg", model)["miou"]) for model in ("UNet", "DCSAU-Net"))
    assert f"The paper prints {unet} for UNet and {dcsau} for DCSAU-Net" in text
    seeds = [pooled(run)["miou"] for run in find_runs(RESULTS, dataset="MoNuSeg", profile="cpu-refit")]
    printed = paper_scores("MoNuSeg", "CSAMNet-S")["miou"]
    assert f"all three seeds are below its {show('miou', printed)}" in text
    assert max(seeds) < printed


def test_what_normalising_costs_is_that_of_the_run_folder():
    usual = RESULTS / "MoNuSeg" / "CSAMNet-S-cpu-seed0"
    before, after = (show("miou", pooled(usual, f"val{end}")["miou"]) for end in ("", "-normalise0.75"))
    told = f"it costs 0.9 points (mIoU {after} for {before}, weights of profile `cpu`, one seed)"
    assert told in words_of("book/own_images.md")


def test_what_it_brings_to_the_shipped_weights_is_that_of_their_run_folder():
    run, ends = RESULTS / "MoNuSeg" / "CSAMNet-S-cpu-refit-seed0", ("", "-normalise0.75")
    once = [read_robustness(run, f"test{end}")[1].set_index(["change", "factor"]) for end in ends]
    table = {
        "MoNuSeg, 14 test images | 1": [one.loc["none", 1] for one in once],
        "MoNuSeg, 14 test images | 8": [pooled(run, f"test{end}-tta") for end in ends],
        "simulated | 1": [one.loc["haematoxylin", 2] for one in once],
        "laboratory | 1": [pooled(run, f"PUMA-test{end}") for end in ends],
        "laboratory | 8": [pooled(run, f"PUMA-test{end}-tta") for end in ends],
    }
    text = words_of("book/own_images.md")
    for words, both in table.items():
        scores = [show(key, one[key]) for key in ("miou", "ap") for one in both]
        assert f"{' | '.join([words, *scores])} |" in text
