"""What is measured: counts first, formulae second; what is undefined is NaN, never 0 or 1.

Counts, histograms and instance sums add up over images, so each measure is had per image and pooled over a
data set. An image is a (H, W) array of probability and a (H, W) array of truth.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd
from scipy.ndimage import binary_erosion
from scipy.spatial import KDTree
from scipy.special import expit

from csamnet.instances import instances_from_probability

LOW, HIGH, PER_LOGIT = -88, 17, 4096
"""A normal float32 probability other than 0 and 1 has a logit between LOW and HIGH; so many bins a unit of logit."""
BINS = (HIGH - LOW) * PER_LOGIT

EDGES = np.arange(-384, 385) / 32
"""Logits between the bins of a coarse histogram."""

COUNTS = ("tp", "fp", "fn", "tn")
PIXEL = ("iou", "iou_background", "miou", "dice", "precision", "recall", "accuracy")
SUMS = ("n_true", "n_pred", "matched", "iou_sum", "aji_intersection", "aji_union")
INSTANCE = ("aji", "dq", "sq", "pq")
METRICS = (*PIXEL, "ap", "auc", "hd95", *INSTANCE)
COLUMNS = (*COUNTS, *PIXEL, "ap", "auc", "hd95", "n_true", "n_pred", *INSTANCE)
"""The columns of per_image.csv that `image_metrics` fills, in order."""


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole else float("nan")


# --------------------------------------------------------------------------------------------- pixels


def confusion(pred: np.ndarray, target: np.ndarray) -> dict[str, int]:
    """Pixels that are tp, fp, fn and tn, foreground being positive. Raises ValueError where shapes differ."""
    pred, target = np.asarray(pred, bool), np.asarray(target, bool)
    if pred.shape != target.shape:
        raise ValueError(f"prediction {pred.shape} and truth {target.shape} differ in shape")
    tp, predicted, true = (int(np.count_nonzero(x)) for x in (pred & target, pred, target))
    return {"tp": tp, "fp": predicted - tp, "fn": true - tp, "tn": pred.size - predicted - true + tp}


def from_counts(tp: float, fp: float, fn: float, tn: float) -> dict[str, float]:
    """The pixel measures of one image, or of summed counts.

    iou = tp / (tp + fp + fn), Jaccard's index of the foreground; iou_background, the same with the classes
    exchanged; miou, the mean of the two (the paper's mIoU); dice = 2 tp / (2 tp + fp + fn); precision =
    tp / (tp + fp); recall = tp / (tp + fn); accuracy = (tp + tn) / all. NaN where the denominator is 0.
    """
    iou, background = _ratio(tp, tp + fp + fn), _ratio(tn, tn + fp + fn)
    return {
        "iou": iou,
        "iou_background": background,
        "miou": (iou + background) / 2,
        "dice": _ratio(2 * tp, 2 * tp + fp + fn),
        "precision": _ratio(tp, tp + fp),
        "recall": _ratio(tp, tp + fn),
        "accuracy": _ratio(tp + tn, tp + fp + fn + tn),
    }


# -------------------------------------------------------------------------------------------- ranking


def score_histogram(probability: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Pixels in bins of equal width in logit: (2, BINS) int64, background row 0 and foreground row 1.

    Only 0 and 1 fall outside the range, and go to the end bins. Histograms add up over images.
    Raises ValueError for a probability that is not in [0, 1] (NaN is not).
    """
    p = np.asarray(probability, np.float32).ravel()
    if p.size and not (p.min() >= 0 and p.max() <= 1):
        raise ValueError(f"probabilities outside [0, 1]: {p.min()} to {p.max()}")
    with np.errstate(divide="ignore"):
        logit = np.log(p) - np.log1p(-p)
    cell = np.clip((logit - LOW) * PER_LOGIT, 0, BINS - 1).astype(np.int64)
    cell += BINS * np.asarray(target, bool).ravel()
    return np.bincount(cell, minlength=2 * BINS).reshape(2, BINS)


def coarse(hist: np.ndarray) -> np.ndarray:
    """A score histogram (2, BINS) in bins of 1/32 of a logit, (2, 770): enough for intervals, small on disk."""
    edges = (EDGES * PER_LOGIT).astype(int) - LOW * PER_LOGIT
    return np.add.reduceat(hist, [0, *edges], axis=1)


def calibration(scores: np.ndarray, bins: int = 15) -> tuple[float, pd.DataFrame]:
    """Expected calibration error and reliability diagram of `coarse` histograms (images, 2, 770), pooled.

    The error is the mean distance, over pixels, between probability and share of foreground in bins of equal width
    (Naeini et al. 2015). The table has for each bin `probability`, the mean score, `share` and `pixels`; the first
    two are NaN where there are none.
    """
    background, foreground = scores.sum(0)
    score = expit(np.concatenate([EDGES[:1], (EDGES[:-1] + EDGES[1:]) / 2, EDGES[-1:]]))  # of a bin's middle
    place = (score * bins).astype(int)
    pixels, true = (np.bincount(place, of, bins) for of in (background + foreground, foreground))
    with np.errstate(invalid="ignore"):
        probability = np.bincount(place, score * (background + foreground), bins) / pixels
        table = pd.DataFrame({"probability": probability, "share": true / pixels, "pixels": pixels.astype(int)})
    gaps = (table["probability"] - table["share"]).abs()
    return float((gaps * pixels).sum() / pixels.sum()), table


def _falling(hist: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """False and true positives (..., bins) of (..., 2, bins), from the highest score down."""
    return tuple(np.moveaxis(np.cumsum(hist[..., ::-1], axis=-1), -2, 0))


def _if_both(value: np.ndarray, fp: np.ndarray, tp: np.ndarray) -> np.ndarray | float:
    """`value`, NaN where a class is absent."""
    return np.where((fp[..., -1] > 0) & (tp[..., -1] > 0), value, np.nan)[()]


def average_precision(hist: np.ndarray) -> np.ndarray | float:
    """Area under precision over recall by steps, sum of (R_k - R_k-1) P_k, without interpolation.

    As `sklearn.metrics.average_precision_score`; within 1e-4 of it. NaN where a class is absent. Scores that
    differ only in their last bits (a pixel blended from several tiles) count as equal here, not there. Takes
    histograms (..., 2, bins) and returns a value of each.
    """
    fp, tp = _falling(hist)
    found = np.diff(tp, prepend=0)
    with np.errstate(invalid="ignore"):
        area = (found * (tp / np.maximum(tp + fp, 1))).sum(-1) / tp[..., -1]
    return _if_both(area, fp, tp)


def roc_auc(hist: np.ndarray) -> np.ndarray | float:
    """Probability that a foreground pixel scores above a background pixel, ties counting half.

    The area under the ROC curve (Hanley and McNeil 1982), within 1e-4 of `sklearn.metrics.roc_auc_score`.
    NaN where a class is absent. Takes histograms (..., 2, bins) and returns a value of each.
    """
    fp, tp = _falling(hist)
    before = tp - np.diff(tp, prepend=0)
    with np.errstate(invalid="ignore"):
        area = (np.diff(fp, prepend=0) * (tp + before)).sum(-1) / (2.0 * tp[..., -1] * fp[..., -1])
    return _if_both(area, fp, tp)


def curves(hist: np.ndarray, points: int = 500) -> pd.DataFrame:
    """Precision, recall and false positive rate of `probability >= threshold`, threshold falling.

    At most `points` rows, evenly spaced along the two curves. Rates of an absent class are NaN.
    """
    used = np.flatnonzero(hist.any(axis=0))[::-1]
    fp, tp = np.cumsum(hist[:, used], axis=1)
    negatives, positives = hist.sum(axis=1)
    table = pd.DataFrame({"threshold": expit(used / PER_LOGIT + LOW), "precision": tp / (tp + fp)})
    table = table.assign(recall=tp / (positives or np.nan), fpr=fp / (negatives or np.nan))
    if len(table) <= points:
        return table
    travelled = table.drop(columns="threshold").diff().abs().sum(axis=1).cumsum().to_numpy()
    rows = np.searchsorted(travelled, np.linspace(0, travelled[-1], points))
    return table.iloc[np.unique(np.append(rows, len(table) - 1))[-points:]].reset_index(drop=True)


# ----------------------------------------------------------------------------------------- boundaries


def hd95(pred: np.ndarray, target: np.ndarray) -> float:
    """95 % Hausdorff distance in pixels (Huttenlocher et al. 1993, with the percentile for the maximum).

    The greater of the two 95th percentiles of the distances from each boundary pixel of one mask to the
    nearest of the other. A boundary pixel is a foreground pixel with a 4-neighbour in the background or
    outside the image. NaN where either mask is empty.
    """
    if not (np.any(pred) and np.any(target)):
        return float("nan")
    one, other = (np.argwhere(mask & ~binary_erosion(mask)) for mask in np.asarray([pred, target], bool))
    there, back = KDTree(other).query(one)[0], KDTree(one).query(other)[0]
    return float(max(np.percentile(there, 95), np.percentile(back, 95)))


# ------------------------------------------------------------------------------------------ instances


def instance_counts(pred: np.ndarray, true: np.ndarray, objects: list | None = None) -> dict[str, float]:
    """What AJI and PQ are made of, from two (H, W) label images with 0 as background; adds up over images.

    n_true and n_pred objects; `matched` pairs with IoU > 0.5 (each object is in one at most) and their
    `iou_sum`; aji_intersection and aji_union, the two sums of AJI. Labels need not be consecutive. To `objects`
    is added (area in pixels, highest IoU with a predicted object) of each true object.
    """
    (true_area, true), (pred_area, pred) = _consecutive(true), _consecutive(pred)
    both = (true > 0) & (pred > 0)
    keys, overlap = np.unique(true[both] * len(pred_area) + pred[both], return_counts=True)
    t, p = np.divmod(keys, len(pred_area))
    union = true_area[t] + pred_area[p] - overlap
    iou = overlap / union
    by_iou = np.lexsort((-iou, t))  # the best partner of each true object comes first
    best = by_iou[np.unique(t[by_iou], return_index=True)[1]]
    alone = true_area[1:].sum() - true_area[t[best]].sum()
    unused = pred_area[1:].sum() - pred_area[np.unique(p[best])].sum()
    if objects is not None:
        highest = np.bincount(t[best], iou[best], len(true_area))
        objects += zip(true_area[1:].tolist(), highest[1:].tolist(), strict=True)
    return {
        "n_true": len(true_area) - 1,
        "n_pred": len(pred_area) - 1,
        "matched": int(np.count_nonzero(iou > 0.5)),
        "iou_sum": float(iou[iou > 0.5].sum()),
        "aji_intersection": int(overlap[best].sum()),
        "aji_union": int(union[best].sum() + alone + unused),
    }


def _consecutive(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(area of each label, labels as int64 0..n), background first."""
    numbers = pd.factorize(np.append(0, labels))[0][1:]
    return np.bincount(numbers, minlength=1), numbers


def from_instances(
    n_true: float, n_pred: float, matched: float, iou_sum: float, aji_intersection: float, aji_union: float
) -> dict[str, float]:
    """The instance measures of one image, or of summed counts.

    aji: the aggregated Jaccard index (Kumar et al. 2017): each true nucleus takes the predicted one of
    highest IoU, taken before or not; the intersections over the unions, to which nuclei that meet none and
    predictions never taken add their areas. dq, sq, pq: detection, segmentation and panoptic quality
    (Kirillov et al. 2019): dq = matched / (mean of n_true and n_pred), sq = mean IoU of the matched, pq =
    dq sq, which is 0 where there are objects but none matched. NaN where the denominator is 0.
    """
    objects = (n_true + n_pred) / 2
    return {
        "aji": _ratio(aji_intersection, aji_union),
        "dq": _ratio(matched, objects),
        "sq": _ratio(iou_sum, matched),
        "pq": _ratio(iou_sum, objects),
    }


# ------------------------------------------------------------------------------- images and data sets


def image_metrics(
    probability: np.ndarray,
    mask: np.ndarray,
    labels: np.ndarray | None = None,
    *,
    threshold: float = 0.5,
    total: np.ndarray | None = None,
    objects: list | None = None,
    **rule,
) -> dict[str, float]:
    """Every measure of one image, with the sums that `pool` needs.

    `mask` (H, W) true where foreground; `labels` (H, W) true instances, or None where they are not known:
    then the instance measures are NaN. The predicted ones are `instances_from_probability(probability,
    **rule)`. The image's score histogram is added to `total` (2, BINS), from which `pool` and `curves`
    work; its true objects to `objects`, as by `instance_counts`.
    """
    pred, mask = np.asarray(probability) >= threshold, np.asarray(mask) > 0
    hist, sums = score_histogram(probability, mask), dict.fromkeys(SUMS, float("nan"))
    if total is not None:
        total += hist
    if labels is not None:
        sums = instance_counts(instances_from_probability(probability, threshold=threshold, **rule), labels, objects)
    return _measures(confusion(pred, mask), hist, hd95(pred, mask), sums)


def pool(rows: Iterable[Mapping], total: np.ndarray) -> dict[str, float]:
    """Measures of a data set as one: counts and sums added over `image_metrics` rows, then the formulae.

    Those of instances are only defined where every image tells its own apart. A distance does not pool: hd95 is
    the mean over the images where it is defined.
    """
    table = pd.DataFrame(list(rows))
    counts, sums = table[[*COUNTS]].sum().to_dict(), table[[*SUMS]].sum(skipna=False).to_dict()
    return _measures(counts, total, float(table["hd95"].mean()), sums)


def _measures(counts: Mapping, hist: np.ndarray, distance: float, sums: Mapping) -> dict[str, float]:
    ranking = {"ap": average_precision(hist), "auc": roc_auc(hist), "hd95": distance}
    return {**counts, **from_counts(**counts), **ranking, **sums, **from_instances(**sums)}


def mean(rows: Iterable[Mapping]) -> tuple[dict[str, float], dict[str, int]]:
    """(each measure's mean over the images where it is defined, on how many images it is)."""
    table = pd.DataFrame(list(rows))[[*METRICS]].astype(float)
    return table.mean().to_dict(), table.count().to_dict()
