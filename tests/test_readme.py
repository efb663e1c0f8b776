"""README and pages say in words what the results say in numbers."""

from __future__ import annotations

import re
from pathlib import Path
from statistics import mean

from csamnet.pages.compare import over_images
from csamnet.pages.measured import read_evaluation
from csamnet.pages.tables import against_paper, paper_scores, show, show_seeds
from csamnet.paths import RESULTS, ROOT
from csamnet.results import MEASURES, find_runs, read_run, read_summary
from csamnet.robustness import read_robustness

OURS, OTSU = "CSAMNet-S", RESULTS / "MoNuSeg" / "Otsu-brief-seed0"
HEADLINE = find_runs(RESULTS, dataset="MoNuSeg", profile="cpu-refit", model=OURS)


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
    "mean of eight flips and turns (`--tta`, chosen on validation)": ("MoNuSeg", OURS, "cpu-refit", "test-tta", 3),
    "(`--tta --normalise 0.75`)": ("MoNuSeg", OURS, "cpu-refit", "test-normalise0.75-tta", 3),
    "DCSAU-Net by the headline's recipe": ("MoNuSeg", "DCSAU-Net", "cpu-refit", "test", 2),
    "trained on 24 images, the six of validation choose": ("MoNuSeg", OURS, "cpu", "test", 1),
    "MoNuSeg, 800 steps": ("MoNuSeg", OURS, "short", "test", 2),
    "Kumar": ("Kumar", OURS, "short", "test", 2),
    "LIDC-IDRI": ("LIDC-IDRI", OURS, "short", "test", 2),
    "BUSI": ("BUSI", OURS, "short", "test", 2),
}
"""What a row of the second table tells of -> data set, network, profile, which evaluation, seeds."""


def test_more_results_are_those_of_the_run_folders():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    block = text.partition("<!-- more results -->")[2].partition("<!-- end of more results -->")[0]
    rows = block.strip().splitlines()[2:]
    for row, (words, (dataset, model, profile, split, seeds)) in zip(rows, MORE.items(), strict=True):
        found = [pooled(run, split) for run in find_runs(RESULTS, dataset=dataset, profile=profile, model=model)]
        scores = [show_seeds(key, [one[key] for one in found]) for key in ("miou", "ap", "auc")]
        assert words in row
        assert row.endswith(f"| `{profile}` | {seeds} | {' | '.join(scores)} |"), row
        assert len(found) == seeds


def test_the_scores_in_its_sentences_are_those_of_the_run_folders():
    text = words_of("README.md")
    minutes = [f"{read_run(run)['wall_s'] / 60:.0f}" for run in HEADLINE]
    assert f"{', '.join(minutes[:-1])} and {minutes[-1]} minutes a seed" in text


def test_what_is_said_of_half_the_views_normalised_is_so():
    told = words_of("book/findings.md")
    assert "All three seeds gain in mIoU, AP and AUC over eight views as they are" in told
    assert len(HEADLINE) == 3
    ways = [[pooled(run, f"test{end}-tta") for end in ("-normalise0.75", "")] for run in HEADLINE]
    assert all(both[key] > alone[key] for both, alone in ways for key in MEASURES)
    usual = RESULTS / "MoNuSeg" / "CSAMNet-S-cpu-seed0"
    both, alone = (pooled(usual, f"val{end}-tta") for end in ("-normalise0.75", ""))
    scores = f"({100 * both['miou']:.2f} for {show('miou', alone['miou'])})"
    assert f"has a lower mIoU with it {scores}, though a higher AP and AUC" in words_of("README.md")
    assert both["miou"] < alone["miou"]
    assert all(both[key] > alone[key] for key in ("ap", "auc"))
    assert "one normalised view](own_images.md#what-to-expect) of seed 0 comes close" in told
    normalised = read_robustness(HEADLINE[0], "test-normalise0.75")[1].set_index(["change", "factor"]).loc["none", 1]
    assert ways[0][0]["miou"] - normalised["miou"] < 0.002


def test_the_gain_of_enlarging_is_that_of_the_run_folder():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    table = read_robustness(RESULTS / "MoNuSeg" / "CSAMNet-S-cpu-refit-seed0")[1]
    miou = table.set_index(["change", "factor"])["miou"]
    coarser, enlarged = (100 * miou[change, 2] for change in ("coarser", "coarser, enlarged"))
    assert f"mIoU {coarser:.1f} %, enlarged again {enlarged:.1f} %" in text


def test_what_is_said_of_the_threshold_is_so():
    runs = {name: find_runs(RESULTS, dataset="MoNuSeg", model=name, profile="brief")
            for name in ("Otsu", "DCSAU-Net", "UNet", "CSAMNet-S")}  # fmt: skip
    scores = {name: [pooled(run) for run in seeds] for name, seeds in runs.items()}
    otsu, dcsau, unet, ours = [[f"{100 * one['miou']:.2f}" for one in seeds] for seeds in scores.values()]
    text = words_of("README.md")
    assert f"which learns nothing, has {otsu[0]} % on MoNuSeg" in text
    assert f"DCSAU-Net has {dcsau[0]} % and UNet {unet[0]} % (one seed each), CSAMNet-S {' and '.join(ours)} %" in text
    means = {name: {key: mean(one[key] for one in seeds) for key in MEASURES} for name, seeds in scores.items()}
    above = {key: {name for name in means if means[name][key] > means["Otsu"][key]} for key in MEASURES}
    assert above["miou"] == {"DCSAU-Net"}
    assert above["ap"] == above["auc"] == {"DCSAU-Net", "CSAMNet-S"}
    text = words_of("book/findings.md")
    assert "In mIoU DCSAU-Net alone is above it after 300 steps, with one seed; in AP and AUC CSAMNet-S is too" in text
    assert "CSAMNet-S, which is level with UNet" in text
    assert abs(means["CSAMNet-S"]["miou"] - means["UNet"]["miou"]) < 0.001
    assert f"seeds of CSAMNet-S are {abs(float(ours[0]) - float(ours[1])):.1f} points apart" in text


def test_what_is_said_of_the_network_that_is_ahead_is_so():
    rival = find_runs(RESULTS, dataset="MoNuSeg", profile="cpu-refit", model="DCSAU-Net")
    theirs, ours = ([pooled(run) for run in runs] for runs in (rival, HEADLINE))
    assert len(rival) == 2
    assert f"has {show_seeds('miou', [one['miou'] for one in theirs])} (two seeds)" in words_of("README.md")
    assert "more than CSAMNet-S with any of its three, and is ahead on all 14 images" in words_of("README.md")
    told = "ahead in mIoU, Dice, AP and AUC, its worst seed before the best of CSAMNet-S, and on all 14 images"
    page = words_of("book/findings.md")
    assert told in page
    assert all(min(one[key] for one in theirs) > max(one[key] for one in ours) for key in MEASURES)
    gap = 100 * (mean(one["miou"] for one in theirs) - mean(one["miou"] for one in ours))
    assert f"the difference of the means, {gap:.2f} points" in page
    images = [over_images([read_evaluation(run) for run in runs])["miou"] for runs in (rival, HEADLINE)]
    assert len(images[0]) == 14
    assert (images[0] > images[1]).all()
    printed = [paper_scores("MoNuSeg", model)["miou"] for model in ("CSAMNet-S", "DCSAU-Net")]
    assert f"prints DCSAU-Net {100 * (printed[0] - printed[1]):.2f} points of mIoU below" in page


def test_what_is_said_of_few_images_is_so():
    text, one = words_of("book/findings.md"), {"dataset": "MoNuSeg", "model": "CSAMNet-S", "profile": "brief"}
    runs = {count: find_runs(RESULTS, images=count, **one) for count in (1, 2, 4, 8, 16, 0)}
    best = {count: [round(100 * read_run(run)["best_val_miou"]) for run in seeds] for count, seeds in runs.items()}
    assert {seeds[0] for seeds in best.values()} == {74, 75, 76}
    told = "of seed 0 is 74 to 76 % on the six validation images in all six rows"
    assert f"{told} (of seed 1 with one image {best[1][1]} %, with all {best[0][1]} %)" in text
    scores = {count: [100 * pooled(run)["miou"] for run in seeds] for count, seeds in runs.items()}
    assert "Two seeds differ by 2 to 3 points" in text
    assert {round(abs(seeds[0] - seeds[1])) for seeds in scores.values() if len(seeds) == 2} == {2, 3}
    assert "Up to eight images all are below the threshold" in text
    assert max(max(scores[count]) for count in (1, 2, 4, 8)) < 100 * pooled(OTSU)["miou"]
    first, eighth, every = (f"{scores[count][0]:.2f} %" for count in (1, 8, 0))
    told = f"seed 0 has {first} from one image, {eighth} from eight and {every} from all 24"
    assert f"{told}, while validation stays at 74 to 76 %" in words_of("README.md")


def test_what_the_paper_prints_of_others_is_that_of_its_table():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    unet, dcsau = (show("miou", paper_scores("MoNuSeg", model)["miou"]) for model in ("UNet", "DCSAU-Net"))
    assert f"The paper prints {unet} for UNet and {dcsau} for DCSAU-Net" in text
    seeds = [pooled(run)["miou"] for run in HEADLINE]
    printed = paper_scores("MoNuSeg", "CSAMNet-S")["miou"]
    assert f"all three seeds are below its {show('miou', printed)}" in text
    assert max(seeds) < printed


def test_what_is_said_of_normalising_is_so():
    def both(dataset: str, profile: str, split: str) -> tuple[str, str, float]:
        runs = find_runs(RESULTS, dataset=dataset, profile=profile, model="CSAMNet-S")
        runs = [run for run in runs if read_summary(run, f"{split}-normalise0.75")]
        ways = [[pooled(run, split + end)["miou"] for run in runs] for end in ("", "-normalise0.75")]
        return *(show_seeds("miou", way) for way in ways), 100 * (mean(ways[1]) - mean(ways[0]))

    text, own = words_of("README.md"), words_of("book/own_images.md")
    before, after, _ = both("MoNuSeg-without-bladder-colon-stomach", "brief", "val")
    assert f"left out of their training from {before.removesuffix(' %')} to {after}." in text
    before, after, gain = both("MoNuSeg", "cpu", "val")
    assert f"On the usual validation it costs {-gain:.1f} points" in text
    assert f"it costs {-gain:.1f} points on the validation images (mIoU {after} for {before})" in own
    *_, test = both("MoNuSeg", "cpu", "test")
    assert "and brings nothing on the test images" in own
    assert -0.1 < test < 0
    *_, puma = both("MoNuSeg", "cpu-refit", "PUMA-test")
    assert f"on the one region of another laboratory {-puma:.1f}." in text
    assert f"(on the one region of another laboratory it cost {-puma:.1f} points)" in text
    assert f"the one region of another laboratory it lowers mIoU by {-puma:.1f} points" in own


def test_what_is_said_of_the_shipped_seed_is_so():
    seeds = [pooled(run)["miou"] for run in HEADLINE]
    told = f"best of three on the test images (mIoU {show('miou', seeds[0])}; mean {show_seeds('miou', seeds)})"
    assert told in words_of("weights/README.md")
    assert seeds[0] == max(seeds)


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
