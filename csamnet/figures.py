"""One function a figure: from tables and arrays to a matplotlib figure that says what data it shows.

Colours are those of Okabe and Ito (2008), which the colour-blind tell apart; where it matters, shape or
lightness says the same again. Figures are 5.6 inches wide: text is readable on a phone and in a journal.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from scipy import ndimage

from csamnet.files import atomic
from csamnet.instances import instances_from_probability, outlines
from csamnet.tables import TITLES, show

BLACK, GREY, ORANGE, GREEN, YELLOW = "#000000", "#767676", "#E69F00", "#009E73", "#F0E442"
BLUE, VERMILLION, PURPLE = "#0072B2", "#D55E00", "#CC79A7"
SPLITS = {"train": (BLUE, "o"), "val": (GREEN, "s"), "test": (VERMILLION, "D")}
ERRORS = {
    "nucleus, found": (154, 208, 236),
    "nucleus, missed": (0, 84, 147),
    "called nucleus, is none": (224, 96, 0),
}
"""Light blue, dark blue and orange: apart for every kind of sight, and in greys."""
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
}
styled = rc_context(STYLE)


class View(NamedTuple):
    """An image beside what the network made of it."""

    name: str
    organ: str
    image: np.ndarray  # (H, W, 3) uint8
    truth: np.ndarray  # (H, W) bool
    labels: np.ndarray  # (H, W) int32, the true nuclei
    probability: np.ndarray  # (H, W) float32
    threshold: float
    dice: float

    def predicted(self) -> np.ndarray:
        """The nuclei found, as (H, W) int32 labels."""
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
    stream, about = (
        io.BytesIO(),
        {"svg": {"Title": figure.get_label(), "Date": None}, "png": {"Software": None}},
    )
    options = {"metadata": about[kind]} if kind in about else {"pil_kwargs": {"quality": 88}}
    figure.savefig(stream, format=kind, **options)
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
    axes = figure.subplots(rows, columns, squeeze=False, **kwargs)
    colour = VERMILLION if "sample data" in source else GREY
    figure.supxlabel(source, fontsize=7.5, color=colour, x=0.99, ha="right")
    return figure, axes


def _legend(ax, columns: int = 3) -> None:
    """A legend above the panel, out of the data's way."""
    ax.legend(ncols=columns, loc="lower left", bbox_to_anchor=(-0.01, 1), borderaxespad=0.1, columnspacing=1.2)


def _note(ax, text: str, x: float, y: float, side: str = "left", transform=None) -> None:
    """Text inside the panel, at a share of its width and height, on a veil."""
    veil = {"facecolor": "white", "alpha": 0.85, "linewidth": 0, "pad": 2}
    ax.text(x, y, text, ha=side, va="bottom", transform=transform or ax.transAxes, bbox=veil)


# ------------------------------------------------------------------------------------------------ data


@styled
def image_sheet(samples: Mapping[str, Sequence], source: str, *, columns: int = 3, side: int = 200) -> Figure:
    """The middle `side` pixels of images of each split, nuclei outlined; organs not yet shown go first."""
    alt = f"Details of images with their nuclei outlined in yellow, in rows: {', '.join(samples)}."
    figure, axes = _panels(alt, 0.25 + 2 * len(samples), source, len(samples), columns)
    shown: set[str] = set()
    for row, (split, items) in zip(axes, samples.items(), strict=True):
        first = {sample.organ: sample for sample in reversed(items)}
        ranked = sorted(items, key=lambda s: (s is not first[s.organ], s.organ in shown, s.organ))
        for ax in row:
            ax.set_axis_off()
        for ax, sample in zip(row, ranked, strict=False):
            shown.add(sample.organ)
            labels = sample.labels()
            labels = instances_from_probability(sample.mask()) if labels is None else labels
            box = tuple(slice(max(0, (n - side) // 2), max(0, (n - side) // 2) + side) for n in labels.shape)
            _picture(ax, sample.image()[box], f"{split}: {sample.organ}")
            _outline(ax, labels[box], YELLOW)
    return figure


def _picture(ax, image: np.ndarray, title: str = "") -> None:
    ax.imshow(image, extent=(0, image.shape[1], image.shape[0], 0))
    ax.set_title(title, pad=3)
    ax.set_axis_off()


def _outline(ax, labels: np.ndarray, colour: str, width: float = 1.0) -> None:
    ax.add_collection(LineCollection([ring for _, ring in outlines(labels)], colors=colour, linewidths=width))


@styled
def object_statistics(objects: pd.DataFrame, stain: pd.DataFrame, source: str, unit: str = "px") -> Figure:
    """Left: how large the nuclei of each split are. Right: how an image's nuclei, and the rest, are stained.

    `objects`: split, area (in `unit` squared). `stain`: split, inside, outside (mean of haematoxylin).
    """
    median = ", ".join(f"{split} {area:.0f}" for split, area in objects.groupby("split")["area"].median().items())
    alt = f"Areas of nuclei, medians in {unit}²: {median}; amounts of haematoxylin in and around nuclei."
    figure, ((left, right),) = _panels(alt, 3.1, source, 1, 2)
    for split, rows in objects.groupby("split", sort=False):
        area, share = np.sort(rows["area"]), np.arange(1, len(rows) + 1) / len(rows)
        left.step(area, share, where="post", color=SPLITS[split][0], label=f"{split} ({len(rows):,})")
    left.set(xscale="log", xlabel=f"area of a nucleus ({unit}²)", ylabel="share below", ylim=(0, 1))
    left.xaxis.set_major_formatter("{x:g}")
    left.grid(True)
    left.legend(loc="upper left", handlelength=1.2)
    for y, row in enumerate(stain.sort_values("inside").itertuples()):
        colour, mark = SPLITS[row.split]
        right.plot([row.outside, row.inside], [y, y], color=colour, linewidth=1.2, alpha=0.5)
        right.plot(row.outside, y, mark, color=colour, markerfacecolor="white", markersize=4)
        right.plot(row.inside, y, mark, color=colour, markersize=4)
    right.set(xlabel="haematoxylin, by colour deconvolution", ylabel="images", yticks=[])
    faces = {"nuclei": BLACK, "the rest": "white"}
    handles = [Line2D([], [], color=BLACK, marker="o", ls="", markerfacecolor=face) for face in faces.values()]
    right.legend(handles, faces, loc="lower right", handletextpad=0.1)
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
        ax.axvline(epoch[best], color=GREY, linewidth=0.9, linestyle=(0, (4, 3)))
        ax.grid(True, axis="y")
        _legend(ax)
    late = best > len(table) / 2
    _note(scores, kept, epoch[best], 0.04, "right" if late else "left", scores.get_xaxis_transform())
    return figure


# -------------------------------------------------------------------------------------- whole data set


@styled
def pr_roc(
    curves: Sequence[pd.DataFrame],
    scores: Sequence[Mapping],
    source: str,
    *,
    threshold: float = 0.5,
    paper: Mapping[str, float] | None = None,
) -> Figure:
    """Precision over recall, and the ROC curve, of all test pixels: a line a run, a dot at the threshold.

    `curves` and `scores`: each run's curves.csv and pooled measures. The paper's AP and AUC are written and
    not drawn, since it gives no curve of which we have the points.
    """
    lines = {}
    for key in ("ap", "auc"):
        mean, seeds = np.mean([score[key] or np.nan for score in scores]), len(scores)
        lines[key] = [f"{TITLES[key]} {show(key, mean)}" + f" (mean of {seeds} seeds)" * (seeds > 1)]
        lines[key] += [f"paper, as printed: {paper[key]:.4f}"] if paper and key in paper else []
    alt = f"Precision over recall, {', '.join(lines['ap'])}; ROC curve, {', '.join(lines['auc'])}."
    figure, ((pr, roc),) = _panels(alt, 3.3, source, 1, 2)
    _equal_dice(pr)
    roc.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle=":")
    for ax, x, y, key in ((pr, "recall", "precision", "ap"), (roc, "fpr", "recall", "auc")):
        for table in curves:
            at = (table["threshold"] - threshold).abs().idxmin()
            ax.plot(table[x], table[y], color=VERMILLION, linewidth=1.4)
            ax.plot(table[x][at], table[y][at], "o", color=BLACK, markersize=5)
        ax.set(xlabel=x, ylabel=y, xlim=(0, 1.01), ylim=(0, 1.01), aspect="equal")
        place = (0.04, 0.04, "left") if ax is pr else (0.98, 0.04, "right")
        _note(ax, "\n".join([*lines[key], f"dot: threshold {threshold:g}"]), *place)
    roc.set_xlabel("false positive rate")
    return figure


def _equal_dice(ax) -> None:
    """Lines along which precision and recall give the same Dice."""
    for dice in (0.5, 0.6, 0.7, 0.8, 0.9):
        recall = np.linspace(dice / (2 - dice), 1, 100)
        ax.plot(recall, dice * recall / (2 * recall - dice), color="#cfcfcf", linewidth=0.8)
        text = f"Dice {dice}" if dice == 0.9 else f"{dice}"
        ax.annotate(text, (1, dice / (2 - dice)), fontsize=6.5, color=GREY, ha="right", va="bottom")


@styled
def over_thresholds(curves: pd.DataFrame, source: str, threshold: float = 0.5) -> Figure:
    """Precision, recall and Dice of all test pixels over the threshold; the best and the used one marked."""
    precision, recall, x = curves["precision"], curves["recall"], curves["threshold"]
    dice = (2 * precision * recall / (precision + recall)).rename("Dice")
    best, used = int(dice.idxmax()), int((x - threshold).abs().idxmin())
    text = f"dot: highest Dice, {dice[best]:.4f} at {x[best]:.2f}"
    text += f"\nline: in use, {dice[used]:.4f} at {threshold:g}"
    alt = f"Precision, recall and Dice over the threshold; {text}."
    figure, ((ax,),) = _panels(alt.replace("\n", "; "), 2.7, source)
    lines = {"--": (precision, BLUE), "-.": (recall, ORANGE), "-": (dice, VERMILLION)}
    for line, (values, colour) in lines.items():
        ax.plot(x, values, color=colour, linestyle=line, label=values.name)
    ax.axvline(threshold, color=GREY, linewidth=0.9)
    ax.plot(x[best], dice[best], "o", color=BLACK, markersize=5)
    ax.set(xlabel="threshold", ylabel="score", xlim=(0, 1), ylim=(max(0, dice.max() - 0.5), 1.01))
    _note(ax, text, 0.5, 0.05, "center")
    ax.grid(True)
    _legend(ax)
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
    read_off = ~table["origin"].str.contains("AP, AUC, mIoU")
    line = table.index[table["model"] == ("CSAMNet" if model == "CSAMNet-S" else model)]
    for ax, key in zip(axes[0], keys, strict=True):
        hollow = read_off & (key == "miou")
        ax.plot(table[key][~hollow], table.index[~hollow], "o", color=GREY, markersize=4.5)
        ax.plot(table[key][hollow], table.index[hollow], "o", color=GREY, markersize=4.5, markerfacecolor="white")
        mean, sd = np.mean(ours[key]), np.std(ours[key], ddof=1) if len(ours[key]) > 1 else None
        ax.axvline(mean, color=VERMILLION, linewidth=0.8, alpha=0.5)
        for y in line:
            ax.plot(ours[key], [y] * len(ours[key]), "|", color=VERMILLION, markersize=7)
            ax.errorbar(mean, y, xerr=sd, fmt="D", color=VERMILLION, markersize=5.5, capsize=2.5)
        ax.set(title=f"{TITLES[key]}: {show(key, mean)}", yticks=table.index, yticklabels=table["model"])
        ax.margins(x=0.12)
        ax.grid(True)
    seeds = len(ours[keys[0]])
    names = {"paper, printed": ("o", GREY, GREY), "paper, read off its chart": ("o", GREY, "white")}
    names[f"ours, {model}, {seeds} seed{'s' * (seeds > 1)}"] = ("D", VERMILLION, VERMILLION)
    handles = [Line2D([], [], ls="", marker=m, color=c, markerfacecolor=f) for m, c, f in names.values()]
    figure.legend(handles, names, loc="outside upper right", ncols=3, handletextpad=0.1, columnspacing=1)
    return figure


# -------------------------------------------------------------------------------------- image by image


@styled
def per_image(
    table: pd.DataFrame,
    source: str,
    pooled: Mapping[str, float | None],
    keys: Sequence[str] = ("miou", "ap", "pq"),
) -> Figure:
    """Every test image as a dot in its organ's row, for three measures, with a line at the pooled value."""
    keys = [key for key in keys if table[key].notna().any()]
    organs = table.groupby("organ")[keys[0]].median().sort_values().index
    names = ", ".join(TITLES[key] for key in keys)
    alt = f"{names} of {len(table)} images by organ; by {TITLES[keys[0]]}, lowest first: {', '.join(organs)}."
    figure, axes = _panels(alt, 1 + 0.3 * len(organs), source, 1, len(keys), sharey=True)
    for ax, key in zip(axes[0], keys, strict=True):
        rows = organs.get_indexer(table["organ"])
        ax.plot(table[key], rows, "o", color=BLUE, alpha=0.75, markersize=5.5, markeredgecolor="white")
        if pooled.get(key) is not None:
            ax.axvline(pooled[key], color=VERMILLION, linewidth=1)
            ax.set_title(f"pooled {show(key, pooled[key])}", color=VERMILLION)
        ax.set(yticks=range(len(organs)), yticklabels=organs, ylim=(-0.6, len(organs) - 0.4), xlabel=TITLES[key])
        ax.margins(x=0.1)
        ax.grid(True)
    return figure


@styled
def balance(table: pd.DataFrame, source: str, most: int = 30) -> Figure:
    """For each test image, worst Dice on top: precision beside recall, and detection beside outline quality.

    Which dot of a pair lies further left says which kind of error prevails. Of more than `most` images, the
    worst are shown.
    """
    rows = table.sort_values("dice").head(most).iloc[::-1].reset_index(drop=True)
    pairs = [("precision", "recall"), ("dq", "sq")][: 1 + bool(table["pq"].notna().any())]
    names = {
        "precision": "precision (low: false pixels)",
        "recall": "recall (low: missed pixels)",
        "dq": "DQ (low: wrong nuclei)",
        "sq": "SQ (low: loose outlines)",
    }
    worst = rows["organ"].iloc[-1]
    alt = f"Precision beside recall, and DQ beside SQ, of {len(rows)} images, the worst ({worst}) on top."
    figure, axes = _panels(alt, 1.1 + 0.2 * len(rows), source, 1, len(pairs), sharey=True)
    for ax, pair in zip(axes[0], pairs, strict=True):
        values = rows[list(pair)]
        ax.hlines(rows.index, values.min(axis=1), values.max(axis=1), color="#c4c4c4", linewidth=2)
        for key, colour, mark in zip(pair, (BLUE, ORANGE), "os", strict=True):
            ax.plot(rows[key], rows.index, mark, color=colour, markersize=5, label=names[key])
        ax.set(yticks=rows.index, yticklabels=rows["organ"] + ", " + rows["group"])
        ax.grid(True, axis="x")
        _legend(ax, 1)
    axes[0, 0].tick_params("y", labelsize=7.5, length=0)
    return figure


@styled
def found_by_size(objects: pd.DataFrame, source: str, unit: str = "px", bins: int = 6) -> Figure:
    """The share of true nuclei that were found, in classes of area of equal count, with 95 % intervals.

    `objects`: area (in `unit` squared), found (bool). The intervals are Wilson's (1927).
    """
    text = f"found: {100 * objects['found'].mean():.0f} % of {len(objects):,} nuclei"
    figure, ((ax,),) = _panels(f"Share of nuclei found, over their area; {text}.", 2.6, source)
    group = objects.groupby(pd.qcut(objects["area"], bins, duplicates="drop"), observed=True)
    n, share, area, z = group["found"].count(), group["found"].mean(), group["area"].median(), 1.96
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    ax.vlines(area, middle - half, middle + half, color=BLUE, linewidth=1.4)
    ax.plot(area, share, "o-", color=BLUE, linewidth=1)
    ax.axhline(objects["found"].mean(), color=VERMILLION, linewidth=1)
    ax.set_title(text, color=VERMILLION)
    ax.set(xscale="log", xlabel=f"area of the true nucleus ({unit}²)", ylabel="share found", ylim=(0, 1.02))
    ax.xaxis.set_major_formatter("{x:g}")
    ax.xaxis.set_minor_formatter("{x:g}")
    ax.grid(True)
    return figure


def error_pixels(view: View) -> np.ndarray:
    """(H, W) uint8: 0 where the network is right to see no nucleus, else 1, 2, 3 in the order of ERRORS."""
    pred = view.probability >= view.threshold
    return np.select([pred & view.truth, view.truth & ~pred, pred & ~view.truth], [1, 2, 3], 0).astype(np.uint8)


def error_overlay(view: View) -> np.ndarray:
    """The image in pale greys (H, W, 3) uint8, with the pixels of `error_pixels` in their colours."""
    grey = 110 + 0.57 * (view.image @ np.array([0.299, 0.587, 0.114]))
    kind = error_pixels(view)
    colours = np.array([(0, 0, 0), *ERRORS.values()], float)[kind]
    cover = np.array([0, 0.55, 0.9, 0.9])[kind][..., None]
    return ((1 - cover) * grey[..., None] + cover * colours).round().clip(0, 255).astype(np.uint8)


def _error_legend(figure: Figure) -> None:
    handles = [Patch(facecolor=np.array(colour) / 255) for colour in ERRORS.values()]
    figure.legend(handles, ERRORS, loc="outside upper left", ncols=3, handlelength=1.2)


@styled
def best_and_worst(views: Sequence[View], source: str, each: int = 1) -> Figure:
    """The images with the highest and the lowest Dice: true outlines, and pixels by their kind of error."""
    ranked = sorted(views, key=lambda view: -view.dice)
    best, worst = ranked[: min(each, len(ranked) // 2)], ranked[-each:]
    rows = [("best", view) for view in best] + [("worst", view) for view in worst]
    named = "; ".join(f"{rank}: {view.organ}, Dice {view.dice:.3f}" for rank, view in rows)
    alt = f"Images with the true outlines, and with pixels found, missed and falsely found in colours. {named}."
    figure, axes = _panels(alt, 0.5 + 2.85 * len(rows), source, len(rows), 2)
    for (left, right), (rank, view) in zip(axes, rows, strict=True):
        _picture(left, view.image, f"{rank}: {view.organ}, Dice {view.dice:.3f}")
        _outline(left, view.labels, YELLOW, 0.8)
        _picture(right, error_overlay(view), view.name[:28])
    _error_legend(figure)
    return figure


@styled
def worst_places(views: Sequence[View], source: str, *, count: int = 3, side: int = 96) -> Figure:
    """Windows with the most wrong pixels: outlines, true in yellow and found in black, above the errors."""
    places = _places(views, count, side)
    organs = ", ".join(view.organ for view, _ in places)
    alt = f"Places with many wrong pixels ({organs}): outlines, true and found, above kinds of error."
    figure, axes = _panels(alt, 4.6, source, 2, len(places))
    for (top, bottom), (view, box) in zip(axes.T, places, strict=True):
        _picture(top, view.image[box], view.organ)
        _outline(top, view.predicted()[box], BLACK, 1.6)
        _outline(top, view.labels[box], YELLOW, 1.3)
        _picture(bottom, error_overlay(view)[box])
    _error_legend(figure)
    return figure


def _places(views: Sequence[View], count: int, side: int) -> list[tuple[View, tuple[slice, slice]]]:
    """The windows with most wrong pixels, worst first; a second one of an image only where images run out."""
    found = []
    for view in views:
        wrong, side = (error_pixels(view) > 1).astype(float), min(side, *view.truth.shape)
        inner = tuple(slice(side // 2, side // 2 + n - side + 1) for n in wrong.shape)
        density = ndimage.uniform_filter(wrong, side, mode="constant")[inner]
        for again in range(count):
            y, x = np.unravel_index(density.argmax(), density.shape)
            found.append((again, -density[y, x], view, np.s_[y : y + side, x : x + side]))
            density[max(0, y - side) : y + side, max(0, x - side) : x + side] = -1
    ranked = sorted((place for place in found if place[1] <= 0), key=lambda place: place[:2])
    return [(view, box) for _, _, view, box in ranked[:count]]
