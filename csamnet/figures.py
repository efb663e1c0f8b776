"""One function a figure: from tables and arrays to a matplotlib figure that says what data it shows.

Colours are those of Okabe and Ito (2008), which the colour-blind tell apart; where it matters, shape or
lightness says the same again. Figures are 5.6 inches wide: text is readable on a phone and in a journal.
`source` is the line below a figure, as of `tables.source`; `target`, what is segmented: one, many.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import rc_context
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from scipy import ndimage

from csamnet.files import atomic
from csamnet.instances import instances_from_probability, outlines
from csamnet.tables import TARGET, TITLES, show

BLACK, GREY, ORANGE, GREEN, YELLOW = "#000000", "#767676", "#E69F00", "#009E73", "#F0E442"
BLUE, VERMILLION, PURPLE = "#0072B2", "#D55E00", "#CC79A7"
SPLITS = {"train": (BLUE, "o"), "val": (GREEN, "s"), "test": (VERMILLION, "D")}
ERRORS = {"found": (154, 208, 236, 140), "missed": (0, 84, 147, 230), "falsely found": (224, 96, 0, 230)}
"""Red, green, blue and cover of light blue, dark blue and orange: apart for every kind of sight, and in greys."""
WIDTH = 5.6  # inches
LEVELS = (0.5, 0.6, 0.7, 0.8, 0.9)  # of Dice, each with a line beside the precision-recall curve
MOST = 60  # images that can be told apart in one panel
NO_AXES = {"xticks": [], "yticks": [], "frame_on": False}
styled = rc_context(fname=Path(__file__).with_suffix(".mplstyle"))


class View(NamedTuple):
    """An image beside what the network made of it."""

    name: str
    organ: str
    image: np.ndarray  # (H, W, 3) uint8
    truth: np.ndarray  # (H, W) bool
    labels: np.ndarray  # (H, W) int32, the true objects
    probability: np.ndarray  # (H, W) float32
    threshold: float
    dice: float

    def predicted(self) -> np.ndarray:
        """The objects found, as (H, W) int32 labels."""
        return instances_from_probability(self.probability, threshold=self.threshold)


def spread(length: int, most: int) -> list[int]:
    """At most `most` indices, evenly spread over `length` things, the first and last among them."""
    return np.unique(np.linspace(0, length - 1, min(length, most)).round().astype(int)).tolist()


def save(figure: Figure, path: Path | str) -> None:
    """Write `path`.svg and `path`.png; the same figure gives the same bytes."""
    for kind in ("svg", "png"):
        with atomic(Path(f"{path}.{kind}")) as temporary:
            temporary.write_bytes(_drawn(figure, kind))


@styled
def _drawn(figure: Figure, kind: str) -> bytes:
    options = {
        "svg": {"metadata": {"Title": figure.get_label(), "Date": None}},
        "png": {"metadata": {"Software": None}},
        "jpeg": {"pil_kwargs": {"quality": 88}},
    }
    stream = io.BytesIO()
    figure.savefig(stream, format=kind, **options[kind])
    return stream.getvalue()


def display(figure: Figure) -> None:
    """Show a figure in a notebook, with its text: as JPEG where it has photographs, else as SVG."""
    from IPython.display import publish_display_data

    photographs, alt = any(ax.images for ax in figure.axes), figure.get_label()
    kind, name = ("jpeg", "image/jpeg") if photographs else ("svg", "image/svg+xml")
    drawn = _drawn(figure, kind)
    text = base64.b64encode(drawn).decode() if photographs else drawn.decode()
    publish_display_data({name: text, "text/plain": alt}, {name: {"alt": alt}})


def _panels(alt: str, height: float, source: str, rows: int = 1, columns: int = 1, **kwargs):
    """A figure with axes `(rows, columns)`, and below them the line that says what data it shows.

    `alt` is its text for those who do not see it; matplotlib keeps it as the figure's label.
    """
    figure = Figure((WIDTH, height), layout="constrained")
    figure.set_label(f"{alt} {source}.")
    colour = VERMILLION if "sample data" in source else GREY
    figure.supxlabel(source, fontsize=7.5, color=colour, x=0.99, ha="right")
    return figure, figure.subplots(rows, columns, squeeze=False, **kwargs)


def _picture(ax, image: np.ndarray, title: str = "", *outlined: tuple[np.ndarray, str, float]) -> None:
    """An image, with objects outlined: their labels, the lines' colour and width."""
    ax.imshow(image, extent=(0, image.shape[1], image.shape[0], 0))
    ax.set_title(title, pad=3)
    for labels, colour, width in outlined:
        ax.add_collection(LineCollection([ring for _, ring in outlines(labels)], colors=colour, linewidths=width))


# ------------------------------------------------------------------------------------------------ data


@styled
def image_sheet(samples: Mapping[str, Sequence], source: str, target=TARGET, *, side: int = 200) -> Figure:
    """The middle `side` pixels of three images of each split, objects outlined; organs not yet shown go first."""
    alt = f"Details of images with {target[1]} outlined in yellow, in rows: {', '.join(samples)}."
    figure, axes = _panels(alt, 0.25 + 2 * len(samples), source, len(samples), 3, subplot_kw=NO_AXES)
    shown: set[str] = set()
    for row, (split, items) in zip(axes, samples.items(), strict=True):
        first = {sample.organ: sample for sample in reversed(items)}
        alone = {sample.group: sample for sample in reversed(items)}  # one of each group before a second
        ranked = sorted(
            items, key=lambda s: (s is not first[s.organ], s.organ in shown, s is not alone[s.group], s.organ)
        )
        for ax, sample in zip(row, ranked, strict=False):
            shown.add(sample.organ)
            labels = sample.labels()
            labels = instances_from_probability(sample.mask()) if labels is None else labels
            corner = [max(0, (n - side) // 2) for n in labels.shape]
            box = tuple(slice(start, start + side) for start in corner)
            _picture(ax, sample.image()[box], f"{split}: {sample.organ}", (labels[box], YELLOW, 1))
    return figure


@styled
def object_statistics(
    objects: pd.DataFrame, contrast: pd.DataFrame, source: str, unit="px", quantity="haematoxylin", target=TARGET
) -> Figure:
    """Left: how large the objects of each split are. Right: how an image's objects differ from the rest.

    `objects`: split, area (in `unit` squared). `contrast`: split, inside, outside (an image's means of `quantity`).
    """
    one, many = target
    median = ", ".join(f"{split} {area:.0f}" for split, area in objects.groupby("split")["area"].median().items())
    alt = f"Areas of {many}, medians in {unit}²: {median}; mean {quantity} of {many} and of the rest."
    figure, ((left, right),) = _panels(alt, 3.1, source, 1, 2)
    for split, rows in objects.groupby("split", sort=False):
        sns.ecdfplot(x=rows["area"], color=SPLITS[split][0], label=f"{split} ({len(rows):,})", log_scale=True, ax=left)
    left.set(xlabel=f"area of a {one} ({unit}²)", ylabel="share below")
    left.xaxis.set_major_formatter("{x:g}")
    left.legend(loc="upper left", handlelength=1.2)
    ranked = contrast.sort_values("inside", ignore_index=True)
    for split, rows in ranked.iloc[spread(len(ranked), MOST)].groupby("split"):
        colour, mark = SPLITS[split]
        right.hlines(rows.index, rows["outside"], rows["inside"], color=colour, linewidth=1.2, alpha=0.5)
        right.plot(rows["outside"], rows.index, mark, color=colour, markerfacecolor="white", markersize=4)
        right.plot(rows["inside"], rows.index, mark, color=colour, markersize=4)
    right.set(
        xlabel=f"mean {quantity}",
        ylabel="images" if len(ranked) <= MOST else f"{MOST} of {len(ranked):,} images",
        yticks=[],
    )
    handles = [Line2D([], [], color=BLACK, marker="o", ls="", markerfacecolor=face) for face in (BLACK, "white")]
    right.legend(handles, [many, "the rest"], loc="lower right", handletextpad=0.1)
    return figure


# -------------------------------------------------------------------------------------------- training


@styled
def history(table: pd.DataFrame, source: str) -> Figure:
    """Training loss, validation scores with the epoch that was kept, and the two schedules, over epochs."""
    epoch, best, marker = table["epoch"], int(table["val_miou"].idxmax()), "." if len(table) <= 30 else ""
    kept = f"kept: epoch {epoch[best]}, mIoU {show('miou', table['val_miou'][best])}"
    ends = f"from {table['loss'].iloc[0]:.2f} to {table['loss'].iloc[-1]:.2f}"
    alt = f"Training loss, {ends}, validation scores and schedules over {len(table)} epochs; {kept}."
    figure, axes = _panels(alt, 5, source, 3, 1, sharex=True, height_ratios=[2, 2, 1])
    loss, scores, rates = axes[:, 0]
    parts = {"loss": ("loss", BLACK), "loss_ce": ("cross-entropy", BLUE), "loss_dice": ("Dice loss", ORANGE)}
    for key, (label, colour) in parts.items():
        loss.plot(epoch, table[key], marker=marker, color=colour, label=label)
    for key, colour in {"miou": VERMILLION, "dice": BLUE, "ap": GREEN}.items():
        scores.plot(epoch, table[f"val_{key}"], marker=marker, color=colour, label=TITLES[key])
    for key, (label, colour) in {"lr": ("learning rate", PURPLE), "drop_rate": ("drop rate", GREEN)}.items():
        top = table[key].max()
        rates.plot(epoch, table[key] / (top or 1), marker=marker, color=colour, label=f"{label}, up to {top:.2g}")
    settled = table[["val_miou", "val_dice", "val_ap"]].iloc[len(table) // 4 :]
    loss.set(ylabel="training loss", ylim=(0, None))
    scores.set(ylabel="validation score", ylim=(max(0, settled.min(axis=None) - 0.08), None))
    rates.set(xlabel="epoch", ylabel="share of top", ylim=(-0.05, 1.1))
    rates.xaxis.get_major_locator().set_params(integer=True)
    for ax in (loss, scores, rates):
        label = kept if ax is scores else None
        ax.axvline(epoch[best], color=GREY, linewidth=0.9, linestyle=(0, (4, 3)), label=label)
        ax.legend(ncols=4, loc="lower left", bbox_to_anchor=(-0.01, 1), borderaxespad=0.1, columnspacing=1.2)
    return figure


# -------------------------------------------------------------------------------------- whole data set


@styled
def pr_roc(
    curves: Sequence[pd.DataFrame], scores: Sequence[Mapping], source: str, *, threshold: float = 0.5, paper=None
) -> Figure:
    """Precision over recall, and the ROC curve, of all test pixels: a line a run, a dot at the threshold.

    `curves` and `scores`: each run's curves.csv and pooled measures. The AP and AUC of `paper` are written and
    not drawn, since it gives no curve of which we have the points.
    """
    notes = {}
    for key in ("ap", "auc"):
        mean, seeds = np.array([score[key] for score in scores], float).mean(), len(scores)
        notes[key] = [f"{TITLES[key]} {show(key, mean)}" + f" (mean of {seeds} seeds)" * (seeds > 1)]
        notes[key] += [f"paper, as printed: {paper[key]:.4f}"] if paper and key in paper else []
    alt = f"Precision over recall, {', '.join(notes['ap'])}; ROC curve, {', '.join(notes['auc'])}."
    figure, ((pr, roc),) = _panels(alt, 3.3, source, 1, 2)
    recall, precision = np.meshgrid(np.linspace(0.01, 1, 100), np.linspace(0.01, 1, 100))
    dice = 2 * recall * precision / (recall + precision)
    equal = pr.contour(recall, precision, dice, LEVELS, colors="#cfcfcf", linewidths=0.8)
    at_right = [(0.95, 0.95 * level / (1.9 - level)) for level in LEVELS]
    pr.clabel(equal, fontsize=6.5, colors=GREY, fmt="%g", manual=at_right)
    roc.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle=":")
    for ax, x, y, key in ((pr, "recall", "precision", "ap"), (roc, "fpr", "recall", "auc")):
        for table in curves:
            at = (table["threshold"] - threshold).abs().idxmin()
            ax.plot(table[x], table[y], color=VERMILLION, linewidth=1.4)
            ax.plot(table[x][at], table[y][at], "o", color=BLACK, markersize=5)
        ax.set(xlabel=x, ylabel=y, xlim=(0, 1.01), ylim=(0, 1.01), aspect="equal")
        ax.grid(False)
        dot = f"dot: threshold {threshold:g}" + "; grey: equal Dice" * (ax is pr)
        ax.set_title("\n".join([*notes[key], dot]))
    roc.set_xlabel("false positive rate")
    return figure


@styled
def over_thresholds(curves: pd.DataFrame, source: str, threshold: float = 0.5) -> Figure:
    """Precision, recall and Dice of all test pixels over the threshold; the best and the used one marked."""
    precision, recall, x = curves["precision"], curves["recall"], curves["threshold"]
    dice = 2 * precision * recall / (precision + recall)
    best, used = int(dice.idxmax()), int((x - threshold).abs().idxmin())
    dot, line = f"highest Dice, {dice[best]:.4f} at {x[best]:.2f}", f"Dice in use, {dice[used]:.4f} at {threshold:g}"
    alt = f"Precision, recall and Dice over the threshold; {dot}; {line}."
    figure, ((ax,),) = _panels(alt, 2.9, source)
    ax.plot(x, precision, "--", color=BLUE, label="precision")
    ax.plot(x, recall, "-.", color=ORANGE, label="recall")
    ax.plot(x, dice, color=VERMILLION, label="Dice")
    ax.plot(x[best], dice[best], "o", color=BLACK, markersize=5, label=dot)
    ax.axvline(threshold, color=GREY, linewidth=0.9, label=line)
    ax.set(xlabel="threshold", ylabel="score", xlim=(0, 1), ylim=(max(0, dice.max() - 0.5), 1.01))
    figure.legend(loc="outside upper left", ncols=3, columnspacing=1.2)
    return figure


@styled
def paper_against_ours(published: pd.DataFrame, ours: Mapping[str, Sequence[float]], model: str, source: str) -> Figure:
    """All networks that the paper prints, and our runs of `model` on its line: a tick a seed, mean and sd.

    `published`: as `tables.published`. `ours`: for each of miou, ap and auc the values of the seeds.
    """
    keys = [key for key in ("miou", "ap", "auc") if ours.get(key)]
    table = published.sort_values("ap", na_position="first").reset_index(drop=True)
    scores = ", ".join(f"{TITLES[key]} {show(key, np.mean(ours[key]))}" for key in keys)
    alt = f"Scores of the {len(table)} networks in the paper, and ours on the line of {model}: {scores}."
    figure, axes = _panels(alt, 1.1 + 0.22 * len(table), source, 1, len(keys), sharey=True)
    read_off, seeds = ~table["origin"].str.contains("AP, AUC, mIoU"), len(ours[keys[0]])
    for ax, key in zip(axes[0], keys, strict=True):
        drawn = read_off & (key == "miou")
        for rows, face, label in ((~drawn, GREY, "paper, printed"), (drawn, "white", "paper, read off its chart")):
            ax.plot(table[key][rows], table.index[rows], "o", color=GREY, markerfacecolor=face, ms=4.5, label=label)
        mean, sd = np.mean(ours[key]), np.std(ours[key], ddof=1) if seeds > 1 else None
        ax.axvline(mean, color=VERMILLION, linewidth=0.8, alpha=0.5)
        for y in table.index[table["model"] == model]:
            ax.plot(ours[key], [y] * seeds, "|", color=VERMILLION, markersize=7)
            label = f"ours, {model}, {seeds} seed{'s' * (seeds > 1)}"
            ax.errorbar(mean, y, xerr=sd, fmt="D", color=VERMILLION, markersize=5.5, capsize=2.5, label=label)
        ax.set(title=f"{TITLES[key]}: {show(key, mean)}", yticks=table.index, yticklabels=table["model"])
        ax.margins(x=0.12)
    entries = axes[0, 0].get_legend_handles_labels()  # the same in every panel
    figure.legend(*entries, loc="outside upper right", ncols=3, handletextpad=0.1, columnspacing=1)
    return figure


# -------------------------------------------------------------------------------------- image by image


@styled
def per_image(table: pd.DataFrame, source: str, pooled: Mapping, keys: Sequence[str] = ("miou", "ap", "pq")) -> Figure:
    """Every test image as a dot in its organ's row, for some measures, with a line at the pooled value.

    Of more than `MOST` images, a box from quartile to quartile, with the median.
    """
    keys = [key for key in keys if table[key].notna().any()]
    organs = table.groupby("organ")[keys[0]].median().sort_values().index
    names = ", ".join(TITLES[key] for key in keys)
    alt = f"{names} of {len(table)} images by organ; by {TITLES[keys[0]]}, lowest first: {', '.join(organs)}."
    figure, axes = _panels(alt, 1 + 0.3 * len(organs), source, 1, len(keys), sharey=True)
    for ax, key in zip(axes[0], keys, strict=True):
        rows = organs.get_indexer(table["organ"])
        if len(table) > MOST:
            parts = [table[key][rows == place].dropna() for place in range(len(organs))]
            look = {
                "boxprops": {"facecolor": "#9AD0EC"},
                "medianprops": {"color": BLACK},
                "flierprops": {"markersize": 1.5},
            }
            where = {"positions": range(len(organs)), "widths": 0.6, "orientation": "horizontal"}
            ax.boxplot(parts, patch_artist=True, **where, **look)
        else:
            ax.plot(table[key], rows, "o", color=BLUE, alpha=0.75, markersize=5.5, markeredgecolor="white")
        if pooled.get(key) is not None:
            ax.axvline(pooled[key], color=VERMILLION, linewidth=1)
            ax.set_title(f"pooled {show(key, pooled[key])}", color=VERMILLION)
        ax.set(
            yticks=range(len(organs)), yticklabels=organs, ylim=(-0.6, len(organs) - 0.4), xlabel=TITLES[key], ylabel=""
        )
        ax.margins(x=0.1)
    return figure


def error_pixels(view: View) -> np.ndarray:
    """(H, W) uint8: 0 where the network is right to see no object, else 1, 2, 3 in the order of ERRORS."""
    pred = view.probability >= view.threshold
    return np.select([pred & view.truth, view.truth & ~pred, pred & ~view.truth], [1, 2, 3], 0).astype(np.uint8)


def error_overlay(view: View) -> np.ndarray:
    """The image in pale greys (H, W, 3) uint8, with the pixels of `error_pixels` in their colours."""
    grey = 110 + 0.57 * (view.image @ np.array([0.299, 0.587, 0.114]))
    colour = np.array([(0, 0, 0, 0), *ERRORS.values()])[error_pixels(view)]
    cover = colour[..., 3:] / 255
    return ((1 - cover) * grey[..., None] + cover * colour[..., :3]).round().astype(np.uint8)


def _error_legend(figure: Figure) -> None:
    handles = [Patch(facecolor=np.array(colour[:3]) / 255) for colour in ERRORS.values()]
    figure.legend(handles, ERRORS, loc="outside upper left", ncols=3, handlelength=1.2)


@styled
def best_and_worst(views: Sequence[View], source: str) -> Figure:
    """The images with the highest and the lowest Dice: true outlines, and pixels by their kind of error.

    Images without Dice, having nothing to find and nothing found, are left out.
    """
    ranked = sorted((view for view in views if view.dice == view.dice), key=lambda view: view.dice)
    rows = {f"{rank}: {v.organ}, Dice {v.dice:.3f}": v for rank, v in (("best", ranked[-1]), ("worst", ranked[0]))}
    alt = "Images with the true outlines, and with pixels found, missed and falsely found in colours."
    figure, axes = _panels(f"{alt} {'; '.join(rows)}.", 6.2, source, 2, 2, subplot_kw=NO_AXES)
    for (left, right), (title, view) in zip(axes, rows.items(), strict=True):
        _picture(left, view.image, title, (view.labels, YELLOW, 0.8))
        _picture(right, error_overlay(view), view.name[:28])
    _error_legend(figure)
    return figure


@styled
def worst_places(views: Sequence[View], source: str, *, count: int = 3, side: int = 96) -> Figure:
    """The window with most wrong pixels of the worst images: true outlines yellow, found black, above the errors."""
    places = sorted((_worst_place(view, side) for view in views), key=lambda place: -place[0])[:count]
    organs = ", ".join(view.organ for _, view, _ in places)
    alt = f"Places with many wrong pixels ({organs}): outlines, true and found, above kinds of error."
    figure, axes = _panels(alt, 4.6, source, 2, count, subplot_kw=NO_AXES)
    for (top, bottom), (_, view, box) in zip(axes.T, places, strict=False):
        lines = (view.predicted()[box], BLACK, 1.6), (view.labels[box], YELLOW, 1.3)
        _picture(top, view.image[box], view.organ, *lines)
        _picture(bottom, error_overlay(view)[box])
    _error_legend(figure)
    return figure


def _worst_place(view: View, side: int) -> tuple[float, View, tuple[slice, slice]]:
    """The share of wrong pixels in the window of `side` pixels that has most, the view, and the window."""
    side = min(side, *view.truth.shape)
    wrong = ndimage.uniform_filter((error_pixels(view) > 1).astype(float), side, mode="constant")
    inner = wrong[side // 2 :, side // 2 :][: len(wrong) - side + 1, : wrong.shape[1] - side + 1]
    y, x = np.unravel_index(inner.argmax(), inner.shape)
    return inner[y, x], view, np.s_[y : y + side, x : x + side]


@styled
def predictions(views: Sequence[View], source: str, target=TARGET, *, most: int = 4) -> Figure:
    """Images without annotation, two in a row, with what was found in them outlined."""
    shown = [views[i] for i in spread(len(views), most)]
    alt = f"Images with the {target[1]} that were found outlined in yellow: {', '.join(view.name for view in shown)}."
    rows = -(-len(shown) // 2)
    figure, axes = _panels(alt, 0.25 + 2.85 * rows, source, rows, 2, subplot_kw=NO_AXES)
    for ax, view in zip(axes.flat, shown, strict=False):
        _picture(ax, view.image, view.name[:28], (view.predicted(), YELLOW, 0.8))
    return figure
