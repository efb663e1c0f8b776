"""Comparison of methods: intervals and tests against values worked by hand, and better beats worse."""

from __future__ import annotations

import io
import re
import shutil

import numpy as np
import pandas as pd
import pytest
from scipy.stats import permutation_test
from sklearn.metrics import average_precision_score, roc_auc_score
from tiny import make_tree

from csamnet.baselines import BASELINES
from csamnet.config import MODELS, RIVALS, RunConfig, experiment
from csamnet.evaluate import measure, write_evaluation
from csamnet.files import InputError, read_json, write_json
from csamnet.metrics import BINS, average_precision, coarse, from_counts, roc_auc, score_histogram
from csamnet.pages.compare import (
    MEASURES,
    RESAMPLES,
    against,
    collect,
    compare,
    costs,
    holm,
    intervals,
    label_variants,
    over_images,
    paired,
)
from csamnet.pages.measured import read_curves, read_evaluation, read_objects, read_scores
from csamnet.pages.notebooks import evaluate_otsu
from csamnet.results import read_summary, run_folder


class Image:
    """A sample of which only the truth counts."""

    touching = True

    def __init__(self, number: int, truth: np.ndarray):
        self.name, self.group, self.organ, self.truth = f"{number:02d}", str(number), "organ", truth

    def image(self) -> np.ndarray:
        return self.truth

    def mask(self) -> np.ndarray:
        return self.truth

    def labels(self):
        return None


def images(count: int) -> list[Image]:
    rng = np.random.default_rng(5)
    return [Image(i, rng.random((24, 24)) < rng.uniform(0.2, 0.5)) for i in range(count)]


def method(noise: float, seed: int):
    """A predictor that sees the truth through noise."""
    rng = np.random.default_rng(seed)
    return lambda truth: 1 / (1 + np.exp(-(4 * truth - 2 + rng.normal(0, noise, truth.shape)))).astype(np.float32)


def run(results, model: str, noise: float, *, seed: int = 0, count: int = 12):
    """A run folder of a method that sees the truth through noise."""
    config = RunConfig(dataset="Toy", model=model, seed=seed, profile="short")
    folder = run_folder(config, results)
    about = {"data": {"name": "Toy", "kind": "sample"}}
    write_json(folder / "run.json", about | {"status": "done", "config": config.to_dict()})
    measured = measure(method(noise, 100 * seed + len(model)), images(count), config, {})
    write_evaluation(folder / "test", measured, config, about)
    return folder


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    for seed in range(2):
        run(folder, "CSAMNet-S", 1.5, seed=seed)
    run(folder, "UNet", 1.5)
    run(folder, "SegNet", 3.0)
    return folder


def test_worse_is_found_worse_and_equal_is_not(results):
    table = compare(collect("Toy", "short", results)).set_index("model")
    assert table["seeds"].to_dict() == {"CSAMNet-S": 2, "SegNet": 1, "UNet": 1}
    assert table.loc["SegNet", "miou"] < table.loc["CSAMNet-S", "miou"] - 0.05
    for key in MEASURES:
        assert table.loc["SegNet", f"{key}_p"] < 0.01
        assert table.loc["UNet", f"{key}_p"] > 0.05
        assert np.isnan(table.loc["CSAMNet-S", f"{key}_p"])
        assert not table[f"{key}_best"].any(), "two that the test cannot tell apart: none is marked"
        assert (table[f"{key}_low"] < table[key]).all()
        assert (table[key] < table[f"{key}_high"]).all()
    assert np.isnan(table.loc["UNet", "miou_sd"])
    assert table.loc["CSAMNet-S", "miou_sd"] > 0
    assert table.loc["UNet", "parameters"] == 34_520_258
    assert set(table["images"]) == {12}
    p = {model: paired(over_images(read(results, model))["dice"] - over_images(read(results, "CSAMNet-S"))["dice"])
         for model in ("SegNet", "UNet")}  # fmt: skip
    assert table["dice_p"].drop("CSAMNet-S").to_dict() == holm(p), "corrected for two comparisons"


def read(results, model: str) -> list:
    return [read_evaluation(folder) for folder in collect("Toy", "short", results)[model]]


def test_seeds_are_averaged(results):
    """Of an image's measures, and of a resampled data set's."""
    seeds = read(results, "CSAMNet-S")
    first, second = (one.images.set_index("name")["dice"] for one in seeds)
    pd.testing.assert_series_equal(over_images(seeds)["dice"], (first + second) / 2)
    both = intervals(seeds)["miou"]
    alone = [intervals([one])["miou"] for one in seeds]
    middle = np.mean([one.summary["pooled"]["miou"] for one in seeds])
    assert both[0] < middle < both[1]
    assert both not in alone
    assert both == pytest.approx(np.mean(alone, 0), abs=0.3 * (both[1] - both[0]))


def test_an_interval_over_seeds_is_that_of_their_mean(results):
    """Of a seed whose images are all alike and one whose are not, it is half as wide as that of the second."""
    moving = read(results, "UNet")[0]
    counts = moving.images.assign(tp=40, fp=10, fn=10, tn=40)
    still = moving._replace(images=counts)
    width = {many: np.diff(intervals(of)["dice"])[0] for many, of in ((1, [moving]), (2, [still, moving]))}
    assert width[2] == pytest.approx(width[1] / 2)


def test_the_best_is_marked_where_the_test_allows_it(results):
    runs = {model: folders for model, folders in collect("Toy", "short", results).items() if model != "UNet"}
    table = compare(runs).set_index("model")
    assert table["miou_best"].to_dict() == {"CSAMNet-S": True, "SegNet": False}


def test_one_image_gives_no_interval_and_no_mark(tmp_path):
    folders = {name: [run(tmp_path, name, noise, count=1)] for name, noise in (("CSAMNet-S", 1), ("UNet", 4))}
    table = compare(folders)
    assert table[["miou_low", "ap_high", "miou_p"]].isna().all(axis=None)
    assert not table["miou_best"].any()


def test_an_interval_is_that_of_resampled_images(results):
    """Against a bootstrap of the pooled measures from the pixels themselves."""
    folder = run_folder(RunConfig(dataset="Toy", model="UNet", profile="short"), results)
    assert RESAMPLES >= 1000
    samples, predict = images(12), method(1.5, len("UNet"))
    pairs = [(predict(sample.truth).ravel(), sample.truth.ravel()) for sample in samples]
    rng, drawn = np.random.default_rng(1), []
    for _ in range(1000):
        chosen = rng.integers(0, 12, 12)
        score, truth = (np.concatenate([pairs[i][side] for i in chosen]) for side in (0, 1))
        tp, fp, fn = ((score >= 0.5) & truth).sum(), ((score >= 0.5) & ~truth).sum(), ((score < 0.5) & truth).sum()
        dice = 2 * tp / (2 * tp + fp + fn)
        drawn.append([dice, average_precision_score(truth, score), roc_auc_score(truth, score)])
    ends = np.percentile(drawn, (2.5, 97.5), axis=0)
    found = intervals([read_evaluation(folder)])
    for i, key in enumerate(("dice", "ap", "auc")):
        width = ends[1, i] - ends[0, i]
        assert found[key] == pytest.approx(ends[:, i], abs=0.12 * width), key
        assert found[key][1] - found[key][0] == pytest.approx(width, rel=0.1), "95 of 100 lie within"


def test_without_kept_scores_only_the_ranking_has_no_interval(tmp_path):
    folder = run(tmp_path, "UNet", 1.0)
    (folder / "test" / "scores.npz").unlink()
    found = intervals([read_evaluation(folder)])
    assert np.isfinite(found["miou"]).all()
    assert np.isnan(found["ap"]).all()


def test_an_interval_lies_around_its_value_where_bins_are_too_coarse(tmp_path):
    """Scores within one coarse bin rank by chance there; the interval is moved by what the bins miss."""
    config = RunConfig(dataset="Toy", model="UNet", profile="short")
    about = {"data": {"name": "Toy", "kind": "sample"}}
    folder = run_folder(config, tmp_path)
    write_json(folder / "run.json", about | {"status": "done", "config": config.to_dict()})
    rng = np.random.default_rng(0)
    narrow = lambda truth: (0.5 + 0.004 * truth + rng.normal(0, 0.002, truth.shape)).astype(np.float32)  # noqa: E731
    write_evaluation(folder / "test", measure(narrow, images(12), config, {}), config, about)
    one = read_evaluation(folder)
    coarse_ap = average_precision(one.scores.sum(0))
    assert one.summary["pooled"]["ap"] > coarse_ap + 0.02
    low, high = intervals([one])["ap"]
    assert low < one.summary["pooled"]["ap"] < high
    assert high - low < 0.2


def damage(folder, name: str, change) -> None:
    path = folder / "test" / name
    path.write_bytes(change(path.read_bytes()))


CUT = {
    "cut": ("per_image.csv", lambda raw: raw[:400]),
    "empty": ("per_image.csv", lambda raw: b""),
    "binary": ("per_image.csv", lambda raw: bytes(range(256))),
    "header": ("per_image.csv", lambda raw: raw.splitlines()[0]),
    "a row twice": ("per_image.csv", lambda raw: raw + raw.splitlines()[-1]),
    "a row less": ("per_image.csv", lambda raw: b"\n".join(raw.splitlines()[:-1])),
    "no counts": ("per_image.csv", lambda raw: raw.replace(b",tp,", b",hits,")),
    "text": ("per_image.csv", lambda raw: raw.replace(b",24,24,", b",24,24,many", 1)),
    "other value": ("summary.json", lambda raw: re.sub(rb'"miou": [0-9.]+', b'"miou": 0.9999', raw, count=1)),
    "text value": ("summary.json", lambda raw: re.sub(rb'"miou": [0-9.]+', b'"miou": "0.9"', raw, count=1)),
    "no values": ("summary.json", lambda raw: b"{}"),
    "other kind": ("summary.json", lambda raw: raw.replace(b'"sample"', b'"other"')),
    "broken": ("scores.npz", lambda raw: raw[:100]),
    "nothing": ("scores.npz", lambda raw: b""),
    "of others": ("scores.npz", lambda raw: archive(np.zeros((3, 2, 770), np.uint32))),
    "other shape": ("scores.npz", lambda raw: archive(np.zeros(5, np.uint32))),
}


def archive(histograms: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, histograms=histograms)
    return stream.getvalue()


@pytest.mark.parametrize("kind", CUT)
def test_a_damaged_evaluation_is_named(tmp_path, kind):
    folders = {name: [run(tmp_path, name, 1.0, count=4)] for name in ("CSAMNet-S", "UNet")}
    damage(folders["UNet"][0], *CUT[kind])
    with pytest.raises(InputError, match=re.escape(CUT[kind][0]) + r"(?s:.*)mend: ") as error:
        compare(folders)
    assert "UNet-short-seed0" in str(error.value)


def test_damaged_curves_are_named(tmp_path):
    folder = run(tmp_path, "UNet", 1.0, count=3)
    assert len(read_curves(folder)) > 10
    for content in ("", "threshold,precision\n1,1\n", "threshold,precision,recall,fpr\n1,1,x,1\n"):
        (folder / "test" / "curves.csv").write_text(content)
        with pytest.raises(InputError, match=r"curves\.csv"):
            read_curves(folder)


def test_damaged_objects_are_named(tmp_path, tree):
    folder = evaluate_otsu(RunConfig(profile="sample"), tree, tmp_path)
    assert read_objects(folder).columns.tolist() == ["name", "area", "iou"]
    for row in ("", "a,0,0.5", "a,9,1.5", "a,x,1", "a,9", ",9,1"):
        (folder / "test" / "objects.csv").write_text(f"name,area,iou\n{row}\n" if row else "")
        with pytest.raises(InputError, match=r"objects\.csv"):
            read_objects(folder)
    (folder / "test" / "objects.csv").write_text("name,area,iou\n")
    assert read_objects(folder) is None, "no object is told apart"


def test_what_does_not_belong_together_is_not_compared(tmp_path):
    ours, other = run(tmp_path, "CSAMNet-S", 1.0, count=5), run(tmp_path, "UNet", 1.0, count=4)
    with pytest.raises(InputError, match=r"differ in images(?s:.*)UNet-short-seed0(?s:.*)CSAMNet-S-short-seed0"):
        compare({"CSAMNet-S": [ours], "UNet": [other]})
    other = run(tmp_path, "UNet", 1.0, count=5)
    budgets = [({key: value}, "budget") for key, value in
               {"epochs": 1, "steps_per_epoch": 3, "images": 2, "batch": 4, "tile": 128}.items()]  # fmt: skip
    for number, (change, what) in enumerate([*budgets, ({}, "the same seed")]):
        copy = tmp_path / "copy" / str(number)
        shutil.copytree(other, copy)
        found = read_json(copy / "run.json")
        write_json(copy / "run.json", found | {"config": found["config"] | change})
        with pytest.raises(InputError, match=what):
            compare({"CSAMNet-S": [ours], "UNet": [other, copy]})
    summary = read_json(other / "test" / "summary.json")
    for data in ({"manifest_sha256": "another"}, {"kind": "real"}):
        write_json(other / "test" / "summary.json", summary | {"data": summary["data"] | data})
        with pytest.raises(InputError, match="differ in data"):
            compare({"CSAMNet-S": [ours], "UNet": [other]})
    with pytest.raises(InputError, match="differ in data"):
        compare({"CSAMNet-S": [ours], "UNet": [other]})
    assert collect("Toy", "short", tmp_path, "real") == {"UNet": [other]}
    with pytest.raises(InputError, match="nothing to compare"):
        compare({})


def test_best_is_best_by_both_means(tmp_path):
    """One large image and eleven small ones: first pooled, second as the mean over images; neither is marked."""
    folders = {}
    for model, large in (("CSAMNet-S", 0.95), ("UNet", 0.6)):
        folders[model] = [run(tmp_path, model, 1.0)]
        path = folders[model][0] / "test" / "per_image.csv"
        table = pd.read_csv(path, dtype={"name": str})
        correct = np.where(table.index == 0, large * 1e6, 576 * (0.7 if large > 0.9 else 0.9)).round().astype(int)
        whole = np.where(table.index == 0, 1e6, 576).astype(int)
        table["tp"], table["tn"] = correct // 2, correct - correct // 2
        table["fp"] = table["fn"] = 0
        table["fp"] = whole - correct
        table["miou"] = [from_counts(*row)["miou"] for row in table[["tp", "fp", "fn", "tn"]].to_numpy().tolist()]
        table.to_csv(path, index=False)
        (folders[model][0] / "test" / "scores.npz").unlink()
        path = folders[model][0] / "test" / "summary.json"
        summary = read_json(path)
        pooled = from_counts(*table[["tp", "fp", "fn", "tn"]].sum().tolist())
        write_json(path, summary | {"pooled": summary["pooled"] | {key: pooled[key] for key in ("miou", "dice")}})
    table = compare(folders).set_index("model")
    assert table["miou"].idxmax() == "CSAMNet-S"
    assert table["miou_mean"].idxmax() == "UNet"
    assert table.loc["UNet", "miou_p"] < 0.05
    assert not table["miou_best"].any()


def test_holm_by_hand():
    corrected = holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": float("nan"), "e": 0.9})
    assert corrected["a"] == pytest.approx(0.04)
    assert corrected["c"] == pytest.approx(0.09)
    assert corrected["b"] == pytest.approx(0.09), "never below the one before"
    assert corrected["e"] == pytest.approx(0.9)
    assert np.isnan(corrected["d"])
    assert holm({"a": 0.6, "b": 0.7}) == {"a": 1, "b": 1}


def test_paired_by_hand():
    """Of the 2**5 ways to set the signs two are as far out as what was found."""
    assert paired(pd.Series([1.0, 2, 3, 4, 5])) == pytest.approx(2 / 32)
    assert paired(pd.Series([1.0, -1.0, np.nan])) == 1
    assert paired(pd.Series([0.0, 0.0])) == 1
    assert np.isnan(paired(pd.Series([0.5])))
    many = pd.Series(np.random.default_rng(0).normal(0.1, 1, 40))
    exact = permutation_test((many,), np.mean, permutation_type="samples", n_resamples=200_000, rng=3).pvalue
    assert paired(many) == pytest.approx(exact, abs=0.01)


def test_images_are_matched_by_name():
    first = pd.Series({"a": 0.5, "b": 0.6, "c": 0.9})
    values = {"one": first, "two": first[::-1]}
    assert against(values, "one")["two"] == 1


def test_coarse_bins_rank_like_fine_ones():
    rng = np.random.default_rng(0)
    truth = rng.random(20_000) < 0.3
    score = 1 / (1 + np.exp(-rng.normal(2.0 * truth - 1, 1.5)))
    fine = score_histogram(score, truth)
    assert coarse(fine).shape == (2, 770)
    assert fine.shape == (2, BINS)
    assert coarse(fine).sum(1).tolist() == fine.sum(1).tolist()
    assert average_precision(coarse(fine)) == pytest.approx(average_precision(fine), abs=2e-3)
    assert roc_auc(coarse(fine)) == pytest.approx(roc_auc(fine), abs=1e-3)


def test_otsu_is_measured_like_a_network(tmp_path):
    root = make_tree(tmp_path)
    config = RunConfig(profile="short", model="UNet", seed=3)
    folder = evaluate_otsu(config, root, tmp_path / "results")
    assert folder.name == "Otsu-short-seed0"
    assert costs(read_evaluation(folder).config) == {"parameters": 0, "multiply_adds": 0}
    assert read_summary(folder)["data"]["kind"]
    assert read_scores(folder).shape == (read_summary(folder)["n"], 2, 770)
    before = (folder / "test" / "summary.json").stat().st_mtime_ns
    assert evaluate_otsu(config, root, tmp_path / "results") == folder
    assert (folder / "test" / "summary.json").stat().st_mtime_ns == before, "not measured twice"


def test_every_rival_has_two_sizes_and_every_variant_a_group():
    assert all(name in MODELS and f"{name}-small" in MODELS for name in RIVALS)
    assert tuple(BASELINES) == RIVALS
    for profile, size in (("sample", "XXS"), ("paper", "S")):
        models = experiment("ablation", profile)
        assert set(models) | set(experiment("comparison", profile)) <= set(MODELS)
        table = label_variants(pd.DataFrame({"model": models[::-1]}), models[0]).set_index("label")
        assert table.index[0] == "full network"
        assert table.loc["no DCF", "group"] == table.loc["DC only", "group"] == "Detail-context fusion"
        assert table.loc["channel only", "group"] == "Cross-scale attention"
        assert table.loc["no ASPP", "group"] == "Single parts"
        assert (table["group"] == "Size").sum() == len([m for m in models if m.count("-") == 1]) - 1
        assert models[0] == f"CSAMNet-{size}"


def test_an_image_may_be_called_na(tmp_path):
    folder = run(tmp_path, "UNet", 1.0, count=2)
    path = folder / "test" / "per_image.csv"
    path.write_text(path.read_text().replace("\n00,", "\nNA,").replace("\n01,", "\n007,"))
    assert read_evaluation(folder).images["name"].tolist() == ["NA", "007"]
