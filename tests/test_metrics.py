"""Metrics against values worked by hand, scikit-learn, MONAI and brute force."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import binary_erosion, gaussian_filter
from scipy.special import expit
from sklearn.calibration import calibration_curve
from sklearn.metrics import average_precision_score, confusion_matrix, roc_auc_score

from csamnet import metrics


def isnan(values) -> bool:
    return all(math.isnan(value) for value in values)


def discs(shape=(64, 64), radius=6, step=16) -> np.ndarray:
    """Labels of discs on a grid."""
    y, x = np.indices(shape)
    labels = (y // step) * (shape[1] // step) + x // step + 1
    return np.where((y % step - step // 2) ** 2 + (x % step - step // 2) ** 2 <= radius**2, labels, 0)


def brute_instances(pred: np.ndarray, true: np.ndarray) -> tuple[float, float]:
    """(AJI, PQ) object by object, as the papers write them."""
    preds, trues = ({k: labels == k for k in np.unique(labels) if k} for labels in (pred, true))
    iou = {(g, s): (a & b).sum() / (a | b).sum() for g, a in trues.items() for s, b in preds.items()}
    both = union = 0
    taken = set()
    for g, mask in trues.items():
        best = max(preds, key=lambda s: iou[g, s], default=None)
        if best is None or iou[g, best] == 0:
            union += mask.sum()
        else:
            both, union = both + (mask & preds[best]).sum(), union + (mask | preds[best]).sum()
            taken.add(best)
    union += sum(mask.sum() for s, mask in preds.items() if s not in taken)
    matched = [value for value in iou.values() if value > 0.5]
    return both / union, sum(matched) / ((len(preds) + len(trues)) / 2)


# Pixels


def test_counts_and_formulae_by_hand():
    counts = metrics.confusion([[1, 1, 0, 0], [1, 0, 0, 0]], [[1, 0, 0, 0], [1, 1, 0, 0]])
    assert counts == {"tp": 2, "fp": 1, "fn": 1, "tn": 4}
    assert metrics.from_counts(**counts) == pytest.approx(
        {
            "iou": 2 / 4,
            "iou_background": 4 / 6,
            "miou": 7 / 12,
            "dice": 4 / 6,
            "precision": 2 / 3,
            "recall": 2 / 3,
            "accuracy": 6 / 8,
        }
    )


def test_counts_match_scikit_learn():
    pred, target = np.random.default_rng(0).random((2, 50, 60)) > [[[0.4]], [[0.7]]]
    (tn, fp), (fn, tp) = confusion_matrix(target.ravel(), pred.ravel())
    assert metrics.confusion(pred, target) == {"tp": tp, "fp": fp, "fn": fn, "tn": tn}


def test_undefined_is_nan():
    nothing = metrics.from_counts(**metrics.confusion(np.zeros((4, 4)), np.zeros((4, 4))))
    assert isnan(nothing[k] for k in ("iou", "miou", "dice", "precision", "recall"))
    assert nothing["iou_background"] == nothing["accuracy"] == 1
    missed = metrics.from_counts(**metrics.confusion(np.zeros((4, 4)), np.ones((4, 4))))
    assert missed["iou"] == missed["recall"] == missed["dice"] == 0
    assert isnan([missed["precision"]])
    assert isnan(metrics.from_counts(0, 0, 0, 0).values())


def test_shapes_must_agree():
    with pytest.raises(ValueError, match=r"\(3, 4\).*\(4, 3\)"):
        metrics.confusion(np.zeros((3, 4)), np.zeros((4, 3)))


# Ranking


def score_cases():
    rng = np.random.default_rng(1)
    for prevalence in (0.3, 0.02):
        target = rng.random(150_000) < prevalence
        for spread, gap in ((1, 1), (3, 4), (8, 14), (30, 60), (0.3, 0.2)):
            scores = expit((rng.normal(size=target.size) * spread + gap * (target - 0.5)).astype(np.float32))
            yield f"{prevalence}-{spread}", scores, target
            yield f"{prevalence}-{spread}-half", scores.astype(np.float16), target
            yield f"{prevalence}-{spread}-tied", np.round(scores, 2), target
            yield f"{prevalence}-{spread}-bytes", torch.from_numpy(scores).bfloat16().float().numpy(), target
        yield f"{prevalence}-hard", (rng.random(target.size) < 0.2 + 0.6 * target).astype(np.float32), target


@pytest.mark.parametrize(("scores", "target"), [pytest.param(s, t, id=name) for name, s, t in score_cases()])
def test_ranking_matches_scikit_learn(scores, target):
    hist = metrics.score_histogram(scores, target)
    assert hist.sum() == target.size
    assert metrics.average_precision(hist) == pytest.approx(average_precision_score(target, scores), abs=1e-4)
    assert metrics.roc_auc(hist) == pytest.approx(roc_auc_score(target, scores), abs=1e-4)


def test_ranking_by_hand():
    hist = metrics.score_histogram(np.array([0.9, 0.8, 0.8, 0.1]), np.array([1, 0, 1, 0]))
    assert metrics.average_precision(hist) == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    assert metrics.roc_auc(hist) == pytest.approx(3.5 / 4)


def test_the_least_and_the_greatest_probabilities_are_told_from_0_and_1():
    tiny, top = np.finfo(np.float32).tiny, np.nextafter(np.float32(1), np.float32(0))
    for scores in ((0.0, tiny), (top, 1.0)):
        assert metrics.roc_auc(metrics.score_histogram(np.array(scores, np.float32), np.array([0, 1]))) == 1


def test_coarse_bins_end_at_their_edges():
    logits = np.array([-12.01, -11.999, -0.001, 0.001, 0.0305, 0.032, 12.01])
    scores = metrics.coarse(metrics.score_histogram(expit(logits), np.array([0, 0, 0, 1, 1, 1, 1])))
    assert [np.flatnonzero(row).tolist() for row in scores] == [[0, 1, 384], [385, 386, 769]]
    assert scores.sum(1).tolist() == [3, 4]


def test_ranking_of_an_absent_class_is_nan():
    for target in (np.zeros((8, 8)), np.ones((8, 8))):
        hist = metrics.score_histogram(np.full((8, 8), 0.3), target)
        assert isnan([metrics.average_precision(hist), metrics.roc_auc(hist)])
    empty = metrics.score_histogram(np.zeros((0,)), np.zeros((0,)))
    assert isnan([metrics.average_precision(empty), metrics.roc_auc(empty)])


@pytest.mark.parametrize("bad", [np.nan, -0.1, 1.5])
def test_scores_must_be_probabilities(bad):
    with pytest.raises(ValueError, match="outside"):
        metrics.score_histogram(np.array([0.5, bad]), np.array([0, 1]))


def test_curves_hold_the_measures_of_their_thresholds():
    rng = np.random.default_rng(2)
    target = rng.random((200, 200)) < 0.25
    scores = expit(rng.normal(size=target.shape) * 4 + 6 * (target - 0.5)).astype(np.float32)
    table = metrics.curves(metrics.score_histogram(scores, target), points=100)
    assert 50 < len(table) <= 100
    assert list(table) == ["threshold", "precision", "recall", "fpr"]
    assert table.threshold.is_monotonic_decreasing
    assert table.recall.is_monotonic_increasing
    assert (table.recall.iloc[-1], table.fpr.iloc[-1]) == (1, 1)
    for row in table.iloc[::20].itertuples():
        expected = metrics.from_counts(**metrics.confusion(scores.astype(float) >= row.threshold, target))
        assert (row.precision, row.recall) == pytest.approx((expected["precision"], expected["recall"]), abs=2e-3)
    assert np.trapezoid(table.recall, table.fpr) == pytest.approx(
        roc_auc_score(target.ravel(), scores.ravel()), abs=1e-3
    )


def test_curves_by_hand():
    """Every pixel of a threshold's row is at or above it, and no other."""
    scores = np.array([0.9, 0.8, 0.1], np.float32)
    table = metrics.curves(metrics.score_histogram(scores, np.array([1, 0, 1])), points=3)
    assert [int((scores >= threshold).sum()) for threshold in table.threshold] == [1, 2, 3]
    assert table[["precision", "recall", "fpr"]].to_numpy() == pytest.approx(
        np.array([[1, 1 / 2, 0], [1 / 2, 1 / 2, 1], [2 / 3, 1, 1]])
    )
    full = metrics.curves(metrics.score_histogram(scores, np.ones(3)))
    assert isnan(full.fpr)
    assert (full.precision == 1).all()


def test_curves_of_an_absent_class():
    table = metrics.curves(metrics.score_histogram(np.array([0.2, 0.7]), np.array([0, 0])))
    assert isnan(table.recall)
    assert table.fpr.tolist() == [0.5, 1]
    assert metrics.curves(np.zeros((2, metrics.BINS), np.int64)).empty


# Boundaries


def test_hd95_matches_monai():
    from monai.metrics import compute_hausdorff_distance

    rng = np.random.default_rng(3)
    for _ in range(5):
        pred, true = gaussian_filter(rng.normal(size=(2, 90, 120)), (0, 4, 4)) > 0.02
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = compute_hausdorff_distance(
                *(torch.from_numpy(mask[None, None]) for mask in (pred, true)), percentile=95
            )
        assert metrics.hd95(pred, true) == pytest.approx(expected.item(), rel=1e-6)


def test_calibration_is_that_of_the_pixels():
    rng = np.random.default_rng(0)
    p = rng.uniform(0, 1, (3, 40_000)).astype(np.float32)
    true = rng.random(p.shape) < p**2  # too sure of the foreground, by 1/6 in the mean
    scores = np.array([metrics.coarse(metrics.score_histogram(*one)) for one in zip(p, true, strict=True)])
    error, table = metrics.calibration(scores)
    share, probability = calibration_curve(true.ravel(), p.ravel(), n_bins=15)
    assert table["share"].to_numpy() == pytest.approx(share, abs=0.01)
    assert table["probability"].to_numpy() == pytest.approx(probability, abs=0.004)
    pixels = np.histogram(p, 15, (0, 1))[0]
    assert table["pixels"].to_numpy() == pytest.approx(pixels, rel=0.12), "bins end where coarse ones do"
    assert error == pytest.approx((np.abs(share - probability) * pixels).sum() / p.size, abs=0.002)


def test_calibration_of_the_sure_and_the_unsure():
    sure = np.array([[0.0, 1.0]], np.float32)
    right, wrong = (metrics.coarse(metrics.score_histogram(sure, truth))[None] for truth in (sure > 0, sure < 1))
    assert metrics.calibration(right)[0] == pytest.approx(0, abs=1e-5)
    assert metrics.calibration(wrong)[0] == pytest.approx(1, abs=1e-5)
    assert metrics.calibration(wrong)[1]["share"].notna().sum() == 2, "an empty bin has no share"


def test_hd95_by_hand_and_undefined():
    one, other = np.zeros((2, 40, 40), bool)
    one[10:20, 10:20], other[10:20, 15:25] = True, True
    assert metrics.hd95(one, other) == 5
    assert metrics.hd95(one, one) == 0
    assert isnan([metrics.hd95(one, one & False), metrics.hd95(one & False, one)])


# Instances


def test_instances_by_hand():
    true, pred = np.zeros((2, 10, 20), int)
    true[:5, :4], true[:5, 10:14] = 7, 3  # two of 20 pixels
    pred[:5, :3], pred[8:, :5] = 900, 2  # 15 inside the first; 10 where there is nothing
    counts = metrics.instance_counts(pred, true)
    assert counts == {
        "n_true": 2,
        "n_pred": 2,
        "matched": 1,
        "iou_sum": 0.75,
        "aji_intersection": 15,
        "aji_union": 20 + 20 + 10,
    }
    assert metrics.from_instances(**counts) == {"aji": 0.3, "dq": 0.5, "sq": 0.75, "pq": 0.375}


def test_instances_match_brute_force_and_monai():
    from monai.metrics.panoptic_quality import compute_panoptic_quality

    rng = np.random.default_rng(4)
    for _ in range(6):
        true = np.roll(discs(), rng.integers(-3, 4, 2), (0, 1))
        pred = np.roll(discs(radius=int(rng.integers(4, 8))), rng.integers(-4, 5, 2), (0, 1))
        pred[rng.random(pred.shape) < 0.1] = 0
        pred[pred == rng.choice(16) + 1] = 1000
        true[true == rng.choice(16) + 1] = 0
        found = metrics.from_instances(**metrics.instance_counts(pred, true))
        assert (found["aji"], found["pq"]) == pytest.approx(brute_instances(pred, true))
        ours = (found["pq"], found["sq"], found["dq"])
        masks = (torch.from_numpy(pred), torch.from_numpy(true))
        theirs = [compute_panoptic_quality(*masks, metric_name=k, smooth_numerator=0) for k in ("pq", "sq", "rq")]
        assert ours == pytest.approx([float(value) for value in theirs], rel=1e-5, nan_ok=True)


def test_one_prediction_over_two_nuclei_counts_twice_in_aji():
    true = np.zeros((4, 8), int)
    true[:, :4], true[:, 4:] = 1, 2
    found = metrics.from_instances(**metrics.instance_counts(np.ones((4, 8), int), true))
    assert found["aji"] == (16 + 16) / (32 + 32)
    assert found["pq"] == 0
    assert isnan([found["sq"]])


def test_a_partner_in_aji_is_that_of_highest_iou_and_not_of_most_pixels():
    true, pred = np.zeros((2, 12, 20), int)
    true[:2, :10] = 1  # 20 pixels; one prediction has 12 of them and 100 more, the other 8 and no more
    pred[:2, :6], pred[2:, :10] = 1, 1
    pred[:2, 6:] = 0
    pred[:2, 6:10] = 2
    counts = metrics.instance_counts(pred, true)
    assert (counts["aji_intersection"], counts["aji_union"]) == (8, 20 + 112)


def test_instances_undefined_and_empty():
    empty, some = np.zeros((64, 64), int), discs()
    assert isnan(metrics.from_instances(**metrics.instance_counts(empty, empty)).values())
    for pair in ((empty, some), (some, empty)):
        found = metrics.from_instances(**metrics.instance_counts(*pair))
        assert found["aji"] == found["dq"] == found["pq"] == 0
        assert isnan([found["sq"]])


def test_great_labels():
    labels = discs()
    great = np.where(labels, labels.astype(np.int64) * 10**9, 0)
    found = metrics.from_instances(**metrics.instance_counts(great, labels.astype(np.uint16)))
    assert set(found.values()) == {1}


def test_each_object_by_hand():
    true, pred, objects = *np.zeros((2, 10, 20), int), []
    true[:5, :4], true[:5, 10:14], true[7:, 18:] = 7, 3, 5  # two of 20 pixels, one of 6
    pred[:5, :3], pred[:5, 3:5], pred[3:5, 10:14] = 1, 2, 9
    metrics.instance_counts(pred, true, objects)
    assert sorted(objects) == [(6, 0.0), (20, 8 / 20), (20, 15 / 20)], "the better of two partners; none"
    metrics.instance_counts(pred, np.zeros_like(true), objects)
    assert len(objects) == 3, "nothing is added where there is nothing"


# Images and data sets


def scene(seed: int) -> tuple[np.ndarray, np.ndarray]:
    labels = discs((96, 96), radius=6)
    noise = gaussian_filter(np.random.default_rng(seed).normal(size=labels.shape), 2)
    return expit(gaussian_filter(np.where(labels, 6.0, -6.0), 1) + 12 * noise).astype(np.float32), labels


def test_pool_and_mean():
    total = np.zeros((2, metrics.BINS), np.int64)
    scenes = [scene(seed) for seed in range(3)]
    rows = [metrics.image_metrics(p, labels > 0, labels, total=total) for p, labels in scenes]
    assert set(metrics.COLUMNS) <= set(rows[0])
    pooled, (means, n) = metrics.pool(rows, total), metrics.mean(rows)
    scores, labels = (np.concatenate(parts, axis=0) for parts in zip(*scenes, strict=True))
    assert {k: pooled[k] for k in metrics.PIXEL} == metrics.from_counts(**metrics.confusion(scores >= 0.5, labels > 0))
    assert pooled["ap"] == pytest.approx(average_precision_score(labels.ravel() > 0, scores.ravel()), abs=1e-4)
    assert pooled["auc"] == pytest.approx(roc_auc_score(labels.ravel() > 0, scores.ravel()), abs=1e-4)
    assert rows[0]["auc"] == pytest.approx(roc_auc_score(scenes[0][1].ravel() > 0, scenes[0][0].ravel()), abs=1e-4)
    assert pooled["n_true"] == 108
    assert pooled["pq"] == pytest.approx(means["pq"], abs=0.05)
    assert pooled["hd95"] == means["hd95"] == pytest.approx(np.mean([row["hd95"] for row in rows]))
    assert means["dice"] == pytest.approx(np.mean([row["dice"] for row in rows]))
    assert set(n) == set(metrics.METRICS)
    assert set(n.values()) == {3}


def test_empty_images_and_unknown_instances_are_left_out():
    total = np.zeros((2, metrics.BINS), np.int64)
    score, labels = scene(0)
    full = metrics.image_metrics(score, labels > 0, total=total)
    blank = metrics.image_metrics(np.zeros_like(score), np.zeros_like(labels), np.zeros_like(labels), total=total)
    assert isnan(full[k] for k in metrics.INSTANCE)
    assert isnan(blank[k] for k in ("dice", "ap", "auc", "hd95"))
    means, n = metrics.mean([full, blank])
    assert means["dice"] == full["dice"]
    assert n["dice"] == 1
    assert n["pq"] == 0
    assert isnan([means["pq"]])
    pooled = metrics.pool([full], total)
    assert isnan(pooled[k] for k in (*metrics.INSTANCE, "n_true"))
    assert pooled["hd95"] == full["hd95"]
    both = metrics.pool([full, blank], total)
    assert isnan(both[k] for k in (*metrics.INSTANCE, "n_true")), "one does not tell its own apart"
    assert both["hd95"] == full["hd95"], "of the one where it is defined"


def test_the_threshold_is_foreground_and_a_mask_may_be_255():
    labels = discs()
    score = np.where(labels, 0.7, 0.6).astype(np.float32)
    mask = np.where(labels, 255, 0).astype(np.uint8)
    found = metrics.image_metrics(score, mask, labels, threshold=np.float32(0.7))
    assert found["dice"] == found["iou_background"] == 1
    assert found["n_pred"] == found["n_true"] == 16, "nuclei are found from the same threshold"
    assert metrics.image_metrics(score, mask, labels, threshold=0.6)["recall"] == 1


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**16), steps=st.integers(1, 2))
def test_better_beats_worse(seed, steps):
    """A perfect mask scores 1 everywhere; eroding it lowers each measure that can fall."""
    top, left = np.random.default_rng(seed).integers(0, 32, 2)
    labels = discs((96, 96), radius=7)[top : top + 64, left : left + 64]
    mask = labels > 0
    perfect = metrics.image_metrics(mask.astype(np.float32), mask, labels, min_area=1)
    eroded = binary_erosion(mask, iterations=steps, border_value=1).astype(np.float32)
    worse = metrics.image_metrics(eroded, mask, labels, min_area=1)
    falling = [k for k in metrics.METRICS if k not in ("hd95", "precision", "dq")]
    assert all(perfect[k] == 1 for k in falling)
    assert perfect["hd95"] == 0 < worse["hd95"]
    assert not any(worse[k] >= 1 for k in falling)
    assert worse["precision"] == 1
    assert worse["dq"] <= 1
