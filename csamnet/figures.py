"""One function a figure: from tables and arrays to a matplotlib figure that says what data it shows.

Colours are those of Okabe and Ito (2008), which the colour-blind tell apart; where it matters, lightness or shape
says the same again. Figures are 5.6 inches wide: the text stays readable on a phone and in a journal's column.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from scipy import ndimage

from csamnet.files import atomic
from csamnet.instances import instances_from_probability, outlines
from csamnet.tables import TITLES, show

BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
YELLOW, BLUE, VERMILLION, PURPLE, GREY = "#F0E442", "#0072B2", "#D55E00", "#CC79A7", "#767676"
SPLITS = {"train": (BLUE, "o"), "val": (ORANGE, "s"), "test": (VERMILLION, "D")}
ERRORS = {"found": (154, 208, 236), "missed": (0, 84, 147), "false": (224, 96, 0)}
"""Nucleus pixels in light and dark blue, background called nucleus in orange: also apart in greys."""
WIDTH = 5.6  # inches

STYLE = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.6,
    "svg.hashsalt": "csamnet",
    "savefig.dpi": 200,
    "figure.constrained_layout.h_pad": 0.05,
}


class View(NamedTuple):
    """A test image with what the network made of it."""

    name: str
    organ: str
    image: np.ndarray  # (H, W, 3) uint8
    truth: np.ndarray  # (H, W) bool
    labels: np.ndarray  # (H, W) int32, the true nuclei
    probability: np.ndarray  # (H, W) float32
    threshold: float
    dice: float


def styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Draw in the project's style, whatever the caller's settings are."""

    @functools.wraps(draw)
    def drawn(*args, **kwargs) -> Figure:
        with matplotlib.rc_context(matplotlib.rcParamsDefault | STYLE | {"backend": matplotlib.rcParams["backend"]}):
            return draw(*args, **kwargs)

    return drawn


def save(figure: Figure, path: Path | str) -> None:
    """Write `path`.svg and `path`.png; the same figure gives the same bytes."""
    with matplotlib.rc_context(STYLE):
        for suffix, nothing in ((".svg", {"Date": None}), (".png", {"Software": None})):
            with atomic(Path(f"{path}{suffix}")) as temporary:
                figure.savefig(temporary, metadata=nothing)


def _panels(height: float, source: str, rows: int = 1, columns: int = 1, **kwargs):
    """A figure with its axes `(rows, columns)`, and below them the line that says what data it shows."""
    figure = Figure((WIDTH, height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, **kwargs)
    figure.supxlabel(source, fontsize=7.5, color=VERMILLION if "sample" in source else GREY, x=0.99, ha="right")
    return figure, axes


def _legend(ax, columns: int = 3, **kwargs) -> None:
    """A legend above the panel, out of the data's way."""
    ax.legend(ncols=columns, loc="lower left", bbox_to_anchor=(-0.01, 1.0), borderaxespad=0.1, columnspacing=1.2, **kwargs)


# ------------------------------------------------------------------------------------------------ data


@styled
def image_sheet(samples: Mapping[str, Sequence], source: str, *, columns: int = 3, side: int = 200) -> Figure:
    """The middle `side` pixels of images of each split, as many organs as there are, with the nuclei outlined."""
    figure, axes = _panels(0.25 + 2.0 * len(samples), source, len(samples), columns)
    for row, (split, items) in zip(axes, samples.items(), strict=True):
        organs = {sample.organ: sample for sample in reversed(items)}
        rest = [sample for sample in items if sample not in organs.values()]
        chosen = sorted([*organs.values(), *rest][:columns], key=lambda sample: sample.organ)
        for ax in row:
            ax.set_axis_off()
        for ax, sample in zip(row, chosen, strict=False):
            labels, mask = sample.labels(), sample.mask()
            labels = instances_from_probability(mask) if labels is None else labels
            box = _middle(mask.shape, side)
            _picture(ax, sample.image()[box], f"{split}: {sample.organ}")
            _outline(ax, labels[box], YELLOW)
    return figure


def _middle(shape: tuple[int, ...], side: int) -> tuple[slice, slice]:
    starts = [max(0, (length - side) // 2) for length in shape]
    return tuple(slice(start, start + side) for start in starts)


def _picture(ax, image: np.ndarray, title: str = "") -> None:
    ax.imshow(image, extent=(0, image.shape[1], image.shape[0], 0), interpolation="lanczos")
    ax.set_title(title, pad=3)
    ax.set_axis_off()


def _outline(ax, labels: np.ndarray, colour: str, width: float = 1.0, style: str = "-") -> None:
    rings = [ring for _, ring in outlines(labels)]
    ax.add_collection(LineCollection(rings, colors=colour, linewidths=width, linestyles=style))


@styled
def object_statistics(objects: pd.DataFrame, stain: pd.DataFrame, source: str, unit: str = "px") -> Figure:
    """Left: how large the nuclei of each split are. Right: how dark an image's nuclei and the rest of it are.

    `objects`: split, area (in `unit` squared). `stain`: split, name, inside, outside (mean haematoxylin density).
    """
    figure, ((left, right),) = _panels(3.1, source, 1, 2)
    for split, rows in objects.groupby("split", sort=False):
        colour, _ = SPLITS[split]
        area, share = np.sort(rows["area"]), np.arange(1, len(rows) + 1) / len(rows)
        left.plot(area, share, color=colour, label=f"{split} ({len(rows):,})", drawstyle="steps-post")
    left.set(xscale="log", xlabel=f"area of a nucleus ({unit}²)", ylabel="share of nuclei below", ylim=(0, 1))
    left.xaxis.set_major_formatter("{x:g}")
    left.grid(True)
    left.legend(loc="upper left", handlelength=1.2)
    for place, (_, row) in enumerate(stain.sort_values("inside").iterrows()):
        colour, mark = SPLITS[row["split"]]
        right.plot([row["outside"], row["inside"]], [place, place], color=colour, linewidth=1.2, alpha=0.5)
        right.plot(row["outside"], place, mark, color=colour, markerfacecolor="white", markersize=4)
        right.plot(row["inside"], place, mark, color=colour, markersize=4)
    right.set(xlabel="haematoxylin (optical density)", yticks=[], ylabel="images, by stain of nuclei")
    handles = [Line2D([], [], color=BLACK, marker="o", ls="", markerfacecolor=face) for face in (BLACK, "white")]
    right.legend(handles, ["nuclei", "rest of image"], loc="lower right", handletextpad=0.1)
    return figure


# -------------------------------------------------------------------------------------------- training


@styled
def history(table: pd.DataFrame, source: str) -> Figure:
    """Training loss, validation scores with the chosen epoch, and the two schedules, over epochs."""
    figure, axes = _panels(5.0, source, 3, 1, sharex=True, height_ratios=[2, 2, 1])
    loss, scores, rates = axes[:, 0]
    marker = "." if len(table) <= 30 else ""
    epoch, best = table["epoch"], int(table["val_miou"].idxmax())
    for key, label, colour in (("loss", "sum", BLACK), ("loss_ce", "cross-entropy", BLUE), ("loss_dice", "Dice loss", ORANGE)):
        loss.plot(epoch, table[key], marker=marker, color=colour, label=label)
    loss.set(ylabel="training loss", ylim=(0, None))
    for key, colour in (("miou", VERMILLION), ("dice", BLUE), ("ap", GREEN)):
        scores.plot(epoch, table[f"val_{key}"], marker=marker, color=colour, label=TITLES[key])
    scores.set(ylabel="validation score")
    for key, label, colour in (("lr", "learning rate", PURPLE), ("drop_rate", "DropBlock rate", GREEN)):
        top = table[key].max()
        rates.plot(epoch, table[key] / (top or 1), color=colour, label=f"{label}, up to {top:.2g}")
    rates.set(xlabel="epoch", ylabel="share of top", ylim=(-0.05, 1.1))
    rates.xaxis.get_major_locator().set_params(integer=True)
    for ax in (loss, scores, rates):
        ax.axvline(epoch[best], color=GREY, linewidth=0.9, linestyle=(0, (4, 3)))
        ax.grid(True, axis="y")
        _legend(ax)
    text = f"kept: epoch {epoch[best]}, mIoU {show('miou', table['val_miou'][best])}"
    late = epoch[best] > epoch.mean()
    scores.annotate(text, (epoch[best], 0.04), xycoords=("data", "axes fraction"), xytext=(-5 if late else 5, 0),
                    textcoords="offset points", ha="right" if late else "left")  # fmt: skip
    return figure


# ---------------------------------------------------------------------------------------- whole data set


@styled
def pr_roc(curves: Sequence[pd.DataFrame], scores: Sequence[dict], source: str, *, threshold: float = 0.5,
           paper: Mapping[str, float] | None = None) -> Figure:  # fmt: skip
    """Precision over recall, and the ROC curve, of all test pixels; a line a seed, the threshold in use as a dot.

    `curves` and `scores` hold, for each run, its curves.csv and its pooled measures. `paper` has the paper's AP and
    AUC: they are written, not drawn, since the paper gives no curve.
    """
    figure, ((pr, roc),) = _panels(3.3, source, 1, 2)
    _equal_dice(pr)
    for table in curves:
        at = (table["threshold"] - threshold).abs().idxmin()
        pr.plot(table["recall"], table["precision"], color=VERMILLION, linewidth=1.4)
        roc.plot(table["fpr"], table["recall"], color=VERMILLION, linewidth=1.4)
        pr.plot(table["recall"][at], table["precision"][at], "o", color=BLACK, markersize=5)
        roc.plot(table["fpr"][at], table["recall"][at], "o", color=BLACK, markersize=5, label=f"threshold {threshold:g}")
    roc.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle=":")
    roc.legend(*(x[:1] for x in roc.get_legend_handles_labels()), loc="center right", handletextpad=0.1)
    for ax, key in ((pr, "ap"), (roc, "auc")):
        values = [score[key] for score in scores]
        lines = [f"{TITLES[key]} {np.mean(values):.4f}" + (f" (mean of {len(values)} seeds)" if len(values) > 1 else "")]
        lines += [f"paper, as printed: {paper[key]:.4f}"] if paper and key in paper else []
        ax.text(0.05 if ax is pr else 0.97, 0.05, "\n".join(lines), ha="left" if ax is pr else "right", va="bottom",
                transform=ax.transAxes, bbox={"facecolor": "white", "alpha": 0.85, "linewidth": 0, "pad": 1.5})  # fmt: skip
        ax.set(xlim=(0, 1.01), ylim=(0, 1.01), aspect="equal")
    pr.set(xlabel="recall", ylabel="precision", title="Precision and recall")
    roc.set(xlabel="false positive rate", ylabel="recall", title="ROC")
    return figure


def _equal_dice(ax) -> None:
    """Lines along which precision and recall give the same Dice score."""
    recall = np.linspace(0.01, 1, 200)
    for dice in (0.5, 0.6, 0.7, 0.8, 0.9):
        with np.errstate(divide="ignore"):
            precision = dice * recall / (2 * recall - dice)
        shown = (precision > 0) & (precision <= 1)
        ax.plot(recall[shown], precision[shown], color="#cfcfcf", linewidth=0.8)
        ax.annotate(f"Dice {dice}", (1, dice / (2 - dice)), fontsize=6.5, color=GREY, ha="right", va="bottom")


@styled
def over_thresholds(curves: pd.DataFrame, source: str, threshold: float = 0.5) -> Figure:
    """Precision, recall and Dice of all test pixels over the threshold; the one in use and the best are marked."""
    figure, ((ax,),) = _panels(2.7, source)
    dice = 2 * curves["precision"] * curves["recall"] / (curves["precision"] + curves["recall"])
    best = int(dice.idxmax())
    for values, label, colour, style in ((curves["precision"], "precision", BLUE, "--"),
                                         (curves["recall"], "recall", ORANGE, "-."),
                                         (dice, "Dice", VERMILLION, "-")):  # fmt: skip
        ax.plot(curves["threshold"], values, color=colour, linestyle=style, label=label)
    ax.axvline(threshold, color=GREY, linewidth=0.9)
    ax.plot(curves["threshold"][best], dice[best], "o", color=BLACK, markersize=5)
    ax.annotate(f"highest Dice {dice[best]:.4f} at {curves['threshold'][best]:.2f}", (curves["threshold"][best], dice[best]),
                xytext=(0, -12), textcoords="offset points", ha="center", va="top")  # fmt: skip
    ax.set(xlabel="threshold", ylabel="score", xlim=(0, 1), ylim=(max(0, dice.max() - 0.5), 1.01))
    ax.grid(True)
    _legend(ax)
    return figure


@styled
def paper_against_ours(published: pd.DataFrame, ours: Mapping[str, Sequence[float]], model: str, source: str) -> Figure:
    """All networks that the paper prints, and our runs of `model` beside its line: a dot a seed, mean and sd.

    `ours` has a list over seeds for each of miou, ap and auc. Hollow: read off the paper's chart, not printed.
    """
    keys = [key for key in ("miou", "ap", "auc") if ours.get(key)]
    table = published.dropna(subset=keys, how="all").sort_values("ap", na_position="first").reset_index(drop=True)
    figure, axes = _panels(1.1 + 0.22 * len(table), source, 1, len(keys), sharey=True)
    printed = table["origin"].str.contains("AP, AUC, mIoU")
    line = table.index[table["model"] == ("CSAMNet" if model == "CSAMNet-S" else model)]
    for ax, key in zip(axes[0], keys, strict=True):
        hollow = ~printed if key == "miou" else printed & False
        for chosen, face in ((~hollow, GREY), (hollow, "white")):
            rows = table[chosen]
            ax.plot(rows[key], rows.index, "o", color=GREY, markerfacecolor=face, markersize=4.5)
        mean, sd = np.mean(ours[key]), np.std(ours[key], ddof=1) if len(ours[key]) > 1 else 0
        ax.axvline(mean, color=VERMILLION, linewidth=0.8, alpha=0.5)
        for y in line:
            ax.plot(ours[key], [y] * len(ours[key]), "|", color=VERMILLION, markersize=7)
            ax.errorbar(mean, y, xerr=sd or None, fmt="D", color=VERMILLION, markersize=5.5, capsize=2.5)
        ax.set(title=f"{TITLES[key]}: {show(key, mean)}", yticks=table.index, yticklabels=table["model"])
        ax.margins(x=0.12)
        ax.grid(True)
    handles = [Line2D([], [], ls="", marker="o", color=GREY, markersize=4.5),
               Line2D([], [], ls="", marker="o", color=GREY, markerfacecolor="white", markersize=4.5),
               Line2D([], [], ls="", marker="D", color=VERMILLION, markersize=5.5)]  # fmt: skip
    seeds = len(ours[keys[0]])
    names = ["paper, printed", "paper, read off its chart", f"ours, {model}, {seeds} seed{'s' * (seeds > 1)}"]
    figure.legend(handles, names, loc="outside upper right", ncols=3, handletextpad=0.1, columnspacing=1)
    return figure


# ---------------------------------------------------------------------------------------- image by image


@styled
def per_image(table: pd.DataFrame, source: str, pooled: Mapping[str, float | None] | None = None,
              keys: Sequence[str] = ("miou", "ap", "pq")) -> Figure:  # fmt: skip
    """Every test image as a dot in its organ's row, for three measures; a line is the pooled value."""
    keys = [key for key in keys if table[key].notna().any()]
    order = table.groupby("organ")[keys[0]].median().sort_values().index
    figure, axes = _panels(1.0 + 0.3 * len(order), source, 1, len(keys), sharey=True)
    for ax, key in zip(axes[0], keys, strict=True):
        for y, organ in enumerate(order):
            values = table.loc[table["organ"] == organ, key]
            ax.plot(values, [y] * len(values), "o", color=BLUE, alpha=0.75, markersize=5.5, markeredgecolor="white")
        if pooled and pooled.get(key) is not None:
            ax.axvline(pooled[key], color=VERMILLION, linewidth=1)
            ax.set_title(f"{TITLES[key]}: {show(key, pooled[key])}", color=VERMILLION)
        ax.set(yticks=range(len(order)), yticklabels=order, ylim=(-0.6, len(order) - 0.4), xlabel=TITLES[key])
        ax.margins(x=0.1)
        ax.grid(True)
    return figure


@styled
def balance(table: pd.DataFrame, source: str, most: int = 30) -> Figure:
    """For each test image, worst Dice on top: precision against recall, and detection against outline quality.

    A dot apart from its partner says which of two kinds of error prevails. Of more than `most` images, the worst.
    """
    rows = table.sort_values("dice").head(most).iloc[::-1].reset_index(drop=True)
    pairs = [("precision", "recall"), ("dq", "sq")] if table["pq"].notna().any() else [("precision", "recall")]
    figure, axes = _panels(1.1 + 0.2 * len(rows), source, 1, len(pairs), sharey=True)
    names = {"precision": "precision (low: false pixels)", "recall": "recall (low: missed pixels)",
             "dq": "DQ (low: wrong nuclei)", "sq": "SQ (low: loose outlines)"}  # fmt: skip
    for ax, pair in zip(axes[0], pairs, strict=True):
        ax.hlines(rows.index, rows[list(pair)].min(axis=1), rows[list(pair)].max(axis=1), color="#c4c4c4", linewidth=2)
        for key, colour, mark in zip(pair, (BLUE, ORANGE), "os", strict=True):
            ax.plot(rows[key], rows.index, mark, color=colour, markersize=5, label=names[key])
        ax.set(yticks=rows.index, yticklabels=rows["organ"] + ", " + rows["group"])
        ax.grid(True, axis="x")
        _legend(ax, 1)
    axes[0, 0].tick_params("y", labelsize=7.5, length=0)
    return figure


@styled
def found_by_size(objects: pd.DataFrame, source: str, unit: str = "px", bins: int = 6) -> Figure:
    """The share of true nuclei that are found (IoU over 0.5) in classes of equal count by area, with 95 % intervals.

    `objects`: area (in `unit` squared), found (bool). The intervals are Wilson's (1927).
    """
    figure, ((ax,),) = _panels(2.6, source)
    classes = pd.qcut(objects["area"], min(bins, objects["area"].nunique()), duplicates="drop")
    group = objects.groupby(classes, observed=True)
    n, share, area = group["found"].count(), group["found"].mean(), group["area"].median()
    z = 1.96
    middle, half = (share + z**2 / (2 * n)) / (1 + z**2 / n), z * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    half = half / (1 + z**2 / n)
    ax.vlines(area, middle - half, middle + half, color=BLUE, linewidth=1.4)
    ax.plot(area, share, "o-", color=BLUE, linewidth=1)
    ax.axhline(objects["found"].mean(), color=VERMILLION, linewidth=1)
    ax.set_title(f"{objects['found'].mean():.0%} of {len(objects):,} nuclei found", color=VERMILLION)
    ax.set(xscale="log", xlabel=f"area of the true nucleus ({unit}²)", ylabel="share found", ylim=(0, 1.02))
    ax.xaxis.set_major_formatter("{x:g}")
    ax.xaxis.set_minor_formatter("{x:g}")
    ax.grid(True)
    return figure


def error_pixels(view: View, threshold: float | None = None) -> np.ndarray:
    """The image in pale greys `(H, W, 3)` uint8 with pixels found, missed and falsely found in the colours ERRORS."""
    pred = view.probability >= (view.threshold if threshold is None else threshold)
    grey = 110 + 0.57 * (view.image @ np.array([0.299, 0.587, 0.114]))
    picture = np.repeat(grey[..., None], 3, axis=2)
    for where, name, cover in ((pred & view.truth, "found", 0.55), (view.truth & ~pred, "missed", 0.9),
                               (pred & ~view.truth, "false", 0.9)):  # fmt: skip
        picture[where] = (1 - cover) * picture[where] + cover * np.array(ERRORS[name])
    return picture.round().clip(0, 255).astype(np.uint8)


def _error_legend(figure: Figure) -> None:
    names = {"found": "nucleus, found", "missed": "nucleus, missed", "false": "called nucleus, is none"}
    handles = [Patch(facecolor=np.array(colour) / 255) for colour in ERRORS.values()]
    figure.legend(handles, [names[key] for key in ERRORS], loc="outside upper left", ncols=3, handlelength=1.2)


@styled
def best_and_worst(views: Sequence[View], source: str, each: int = 1) -> Figure:
    """The images with the highest and the lowest Dice: with the true outlines, and with every wrong pixel coloured."""
    ranked = sorted(views, key=lambda view: -view.dice)
    each = min(each, len(ranked) // 2)
    chosen = [("best", view) for view in ranked[:each]] + [("worst", view) for view in ranked[len(ranked) - max(1, each):]]
    figure, axes = _panels(0.5 + 2.85 * len(chosen), source, len(chosen), 2)
    for (left, right), (rank, view) in zip(axes, chosen, strict=True):
        _picture(left, view.image, f"{rank}: {view.organ}, Dice {view.dice:.3f}")
        _outline(left, view.labels, YELLOW, 0.8)
        _picture(right, error_pixels(view), view.name[:28])
    _error_legend(figure)
    return figure


@styled
def worst_places(views: Sequence[View], source: str, *, count: int = 3, side: int = 96) -> Figure:
    """The windows of `side` pixels with most wrong pixels, one an image at first: outlines above, errors below.

    Yellow: the true outline. Black: the network's.
    """
    places = _places(views, count, side)
    figure, axes = _panels(4.6, source, 2, len(places))
    for (top, bottom), (view, y, x) in zip(axes.T, places, strict=True):
        box = np.s_[y : y + side, x : x + side]
        _picture(top, view.image[box], view.organ)
        pred = instances_from_probability(view.probability, threshold=view.threshold)
        _outline(top, pred[box], BLACK, 1.5)
        _outline(top, view.labels[box], YELLOW, 1.3)
        _picture(bottom, error_pixels(view)[box])
    _error_legend(figure)
    return figure


def _places(views: Sequence[View], count: int, side: int) -> list[tuple[View, int, int]]:
    """(view, y, x) of the corners of the windows with most wrong pixels that do not overlap, worst first."""
    found = []
    for view in views:
        wrong = (view.truth != (view.probability >= view.threshold)).astype(float)
        height, width = (max(1, length - side + 1) for length in wrong.shape)
        density = ndimage.uniform_filter(wrong, side, mode="constant")[side // 2 :, side // 2 :][:height, :width]
        for rank in range(count):
            y, x = np.unravel_index(density.argmax(), density.shape)
            found.append((rank > 0, -density[y, x], view, int(y), int(x)))
            density[max(0, y - side) : y + side, max(0, x - side) : x + side] = -1
    found = [place for place in found if place[1] < 0]
    return [place[2:] for place in sorted(found, key=lambda place: place[:2])[:count]]
