"""One function a figure: from tables and arrays to a matplotlib figure that says what data it shows.

Colours are those of Okabe and Ito (2008), which the colour-blind tell apart; where it matters, shape or
lightness says the same again. Figures are 5.6 inches wide: text is readable on a phone and in a journal.
`source` is the line below a figure, as of `tables.source`; `target`, what is segmented: one, many.
"""

from __future__ import annotations

import base64
import functools
import io
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise, product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import rc_context
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import LogLocator, NullFormatter, NullLocator
from matplotlib.transforms import Bbox
from scipy import ndimage
from scipy.stats import binomtest

from csamnet.config import SIZES
from csamnet.files import atomic
from csamnet.instances import instances_from_probability, outlines
from csamnet.pages.tables import LEVEL, PERCENT, TARGET, TITLES, difference, show

BLACK, GREY, ORANGE, GREEN, YELLOW = "#000000", "#767676", "#E69F00", "#009E73", "#F0E442"
BLUE, VERMILLION, PURPLE = "#0072B2", "#D55E00", "#CC79A7"
SPLITS = {"train": (BLUE, "o"), "val": (GREEN, "s"), "test": (VERMILLION, "D")}
ERRORS = {"found": (154, 208, 236, 140), "missed": (0, 84, 147, 230), "falsely found": (224, 96, 0, 230)}
"""Red, green, blue and cover of light blue, dark blue and orange: apart for every kind of sight, and in greys."""
WIDTH = 5.6  # inches
LEVELS = (0.5, 0.6, 0.7, 0.8, 0.9)  # of Dice, each with a line beside the precision-recall curve
LARGEST = 900  # points squared, the largest bubble
MOST = 60  # images that can be told apart in one panel
NO_AXES = {"xticks": [], "yticks": [], "frame_on": False}
STYLE = Path(__file__).with_suffix(".mplstyle")
OURS, BASELINE = "CSAMNet-S", "Otsu"  # the network that others are compared with; what each of them has to beat
SIDES = (1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (1, -1), (-1, 1), (-1, -1)
DASHES = (BLUE, "-"), (ORANGE, (0, (5, 1.5))), (GREEN, (0, (3, 1, 1, 1))), (PURPLE, (0, (1, 1)))


def drawn(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """A function that draws in the project's style, and leaves its name on the figure, as its gid."""

    @functools.wraps(draw)
    def in_style(*args, **kwargs) -> Figure:
        with rc_context(fname=STYLE):
            figure = draw(*args, **kwargs)
        figure.set_gid(f"{draw.__module__}.{draw.__name__}")
        return figure

    return in_style


def link(figure: Figure, api: str = "../api.html") -> str:
    """HTML that leads from below a figure to the function that drew it; `api` is the way to that page of the book."""
    name = figure.get_gid()
    return f'<p class="drawn-by">Drawn by <a href="{api}#{name}"><code>{name}</code></a></p>'


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
    touching: bool = True  # whether what was found is split, by `instances_from_probability`

    @classmethod
    def of(cls, sample, probability: np.ndarray, threshold: float, dice: float) -> View:
        """Of a `data.Sample`; where its objects are not told apart, they are what its mask is split into."""
        about = sample.name, sample.organ, sample.image(), sample.mask(), true_objects(sample)
        return cls(*about, probability, threshold, dice, sample.touching)

    def predicted(self) -> np.ndarray:
        """The objects found, as (H, W) int32 labels."""
        return instances_from_probability(self.probability, threshold=self.threshold, touching=self.touching)


def true_objects(sample) -> np.ndarray:
    """The objects (H, W) int32 of a `data.Sample`: as they are told apart, or else what its mask is split into."""
    labels = sample.labels()
    return instances_from_probability(sample.mask(), touching=sample.touching) if labels is None else labels


def spread(length: int, most: int) -> list[int]:
    """At most `most` indices, evenly spread over `length` things, the first and last among them."""
    return np.unique(np.linspace(0, length - 1, min(length, most)).round().astype(int)).tolist()


def save(figure: Figure, path: Path | str, kinds: Sequence[str] = ("svg", "png", "pdf")) -> list[Path]:
    """Write `path`.svg and so on, and return them; the same figure gives the same bytes."""
    files = [Path(f"{path}.{kind}") for kind in kinds]
    for file in files:
        with atomic(file) as temporary:
            temporary.write_bytes(rendered(figure, file.suffix[1:]))
    return files


@rc_context(fname=STYLE)
def rendered(figure: Figure, kind: str) -> bytes:
    options = {
        "svg": {"metadata": {"Title": figure.get_label(), "Date": None}},
        "png": {"metadata": {"Software": None}},
        "pdf": {"metadata": {"Title": figure.get_label()} | dict.fromkeys(("CreationDate", "Creator", "Producer"))},
        "jpeg": {"pil_kwargs": {"quality": 88}},
    }
    stream = io.BytesIO()
    figure.savefig(stream, format=kind, **options[kind])
    return stream.getvalue()


def display(figure: Figure) -> None:
    """Show a figure in a notebook, with its text and its `link`: as JPEG where it has photographs, else as SVG."""
    from IPython.display import publish_display_data

    photographs, alt = any(ax.images for ax in figure.axes), figure.get_label()
    kind, name = ("jpeg", "image/jpeg") if photographs else ("svg", "image/svg+xml")
    drawn = rendered(figure, kind)
    text = base64.b64encode(drawn).decode() if photographs else drawn.decode()
    publish_display_data({name: text, "text/plain": alt}, {name: {"alt": alt}})
    if figure.get_gid():
        publish_display_data({"text/html": link(figure), "text/plain": f"drawn by {figure.get_gid()}"})


def panels(alt: str, height: float, source: str, rows: int = 1, columns: int = 1, **kwargs):
    """A figure with axes `(rows, columns)`, and below them the line that says what data it shows.

    `alt` is its text for those who do not see it; matplotlib keeps it as the figure's label.
    """
    figure = Figure((WIDTH, height), layout="constrained")
    figure.set_label(f"{alt} {source}.")
    colour = VERMILLION if "sample data" in source else GREY
    figure.supxlabel(source, fontsize=7.5, color=colour, x=0.99, ha="right")
    return figure, figure.subplots(rows, columns, squeeze=False, **kwargs)


def picture(ax, image: np.ndarray, title: str = "", *outlined: tuple[np.ndarray, str, float]) -> None:
    """An image, with objects outlined: their labels, the lines' colour and width."""
    ax.imshow(image, extent=(0, image.shape[1], image.shape[0], 0))
    ax.set_title(title, pad=3)
    for labels, colour, width in outlined:
        ax.add_collection(LineCollection([ring for _, ring in outlines(labels)], colors=colour, linewidths=width))


# ------------------------------------------------------------------------------------------------ data


@drawn
def image_sheet(samples: Mapping[str, Sequence], source: str, target=TARGET, *, side: int = 200) -> Figure:
    """The middle `side` pixels of three images of each split, objects outlined; organs not yet shown go first."""
    alt = f"Details of images with {target[1]} outlined in yellow, in rows: {', '.join(samples)}."
    figure, axes = panels(alt, 0.25 + 2 * len(samples), source, len(samples), 3, subplot_kw=NO_AXES)
    shown: set[str] = set()
    for row, (split, items) in zip(axes, samples.items(), strict=True):
        first = {sample.organ: sample for sample in reversed(items)}
        alone = {sample.group: sample for sample in reversed(items)}  # one of each group before a second

        def rank(s, first=first, alone=alone):
            return s is not first[s.organ], s.organ in shown, s is not alone[s.group], s.organ

        for ax, sample in zip(row, sorted(items, key=rank), strict=False):
            shown.add(sample.organ)
            labels = true_objects(sample)
            corner = [max(0, (n - side) // 2) for n in labels.shape]
            box = tuple(slice(start, start + side) for start in corner)
            picture(ax, sample.image()[box], f"{split}: {sample.organ}", (labels[box], YELLOW, 1))
    return figure


@drawn
def object_statistics(
    objects: pd.DataFrame, contrast: pd.DataFrame, source: str, unit="px", quantity="haematoxylin", target=TARGET
) -> Figure:
    """Left: how large the objects of each split are. Right: how an image's objects differ from the rest.

    `objects`: split, area (in `unit` squared). `contrast`: split, inside, outside (an image's means of `quantity`).
    """
    one, many = target
    median = ", ".join(f"{split} {area:.0f}" for split, area in objects.groupby("split")["area"].median().items())
    alt = f"Areas of {many}, medians in {unit}²: {median}; mean {quantity} of {many} and of the rest."
    figure, ((left, right),) = panels(alt, 3.1, source, 1, 2)
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
    many_images = "images" if len(ranked) <= MOST else f"{MOST} of {len(ranked):,} images"
    right.set(xlabel=f"mean {quantity}", ylabel=many_images, yticks=[])
    handles = [Line2D([], [], color=BLACK, marker="o", ls="", markerfacecolor=face) for face in (BLACK, "white")]
    right.legend(handles, [many, "the rest"], loc="lower right", handletextpad=0.1)
    return figure


# -------------------------------------------------------------------------------------------- training


@drawn
def history(table: pd.DataFrame, source: str) -> Figure:
    """Training loss, validation scores with the epoch that was kept, and the two schedules, over epochs.

    Where all images were learned from there are no validation scores, and the last epoch was kept.
    """
    epoch, marker, chosen = table["epoch"], "." if len(table) <= 30 else "", any(table["val_miou"].notna())
    best = int(table["val_miou"].idxmax()) if chosen else len(table) - 1
    kept = f"kept: epoch {epoch[best]}, " + (f"mIoU {show('miou', table['val_miou'][best])}" if chosen else "the last")
    ends = f"from {table['loss'].iloc[0]:.2f} to {table['loss'].iloc[-1]:.2f}"
    alt = f"Training loss, {ends}, {'validation scores ' * chosen}and schedules over {len(table)} epochs; {kept}."
    heights = [2, *[2] * chosen, 1]
    figure, axes = panels(alt, sum(heights), source, len(heights), 1, sharex=True, height_ratios=heights)
    loss, *scores, rates = axes[:, 0]
    parts = {"loss": ("loss", BLACK), "loss_ce": ("cross-entropy", BLUE), "loss_dice": ("Dice loss", ORANGE)}
    for key, (label, colour) in parts.items():
        loss.plot(epoch, table[key], marker=marker, color=colour, label=label)
    settled = table[["val_miou", "val_dice", "val_ap"]].iloc[len(table) // 4 :].min(axis=None)
    for ax in scores:
        for key, colour in {"miou": VERMILLION, "dice": BLUE, "ap": GREEN}.items():
            ax.plot(epoch, table[f"val_{key}"], marker=marker, color=colour, label=TITLES[key])
        ax.set(ylabel="validation score", ylim=(max(0, settled - 0.08), None))
    for key, (label, colour) in {"lr": ("learning rate", PURPLE), "drop_rate": ("drop rate", GREEN)}.items():
        top = table[key].max()
        rates.plot(epoch, table[key] / (top or 1), marker=marker, color=colour, label=f"{label}, up to {top:.2g}")
    loss.set(ylabel="training loss", ylim=(0, None))
    rates.set(xlabel="epoch", ylabel="share of top", ylim=(-0.05, 1.1))
    rates.xaxis.get_major_locator().set_params(integer=True)
    for ax in axes[:, 0]:
        label = kept if ax is (scores or [loss])[0] else None
        ax.axvline(epoch[best], color=GREY, linewidth=0.9, linestyle=(0, (4, 3)), label=label)
        ax.legend(ncols=4, loc="lower left", bbox_to_anchor=(-0.01, 1), borderaxespad=0.1, columnspacing=1.2)
    return figure


# -------------------------------------------------------------------------------------- whole data set


@drawn
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
    figure, ((pr, roc),) = panels(alt, 3.3, source, 1, 2)
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


@drawn
def over_thresholds(curves: pd.DataFrame, source: str, threshold: float = 0.5) -> Figure:
    """Precision, recall and Dice of all test pixels over the threshold; the best and the used one marked."""
    precision, recall, x = curves["precision"], curves["recall"], curves["threshold"]
    dice = 2 * precision * recall / (precision + recall)
    best, used = int(dice.idxmax()), int((x - threshold).abs().idxmin())
    dot, line = f"highest Dice, {dice[best]:.4f} at {x[best]:.2f}", f"Dice in use, {dice[used]:.4f} at {threshold:g}"
    alt = f"Precision, recall and Dice over the threshold; {dot}; {line}."
    figure, ((ax,),) = panels(alt, 2.9, source)
    ax.plot(x, precision, "--", color=BLUE, label="precision")
    ax.plot(x, recall, "-.", color=ORANGE, label="recall")
    ax.plot(x, dice, color=VERMILLION, label="Dice")
    ax.plot(x[best], dice[best], "o", color=BLACK, markersize=5, label=dot)
    ax.axvline(threshold, color=GREY, linewidth=0.9, label=line)
    ax.set(xlabel="threshold", ylabel="score", xlim=(0, 1), ylim=(max(0, dice.max() - 0.5), 1.01))
    figure.legend(loc="outside upper left", ncols=3, columnspacing=1.2)
    return figure


@drawn
def reliability(error: float, table: pd.DataFrame, source: str) -> Figure:
    """Left: how much of what has a probability is foreground. Right: how many pixels have it. Of `calibration`."""
    told = f"expected calibration error {error:.4f}"
    alt = f"Share of foreground over the probability, {told}; share of all pixels over the probability."
    figure, ((left, right),) = panels(alt, 3, source, 1, 2)
    used = table.dropna()
    left.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle=":")
    left.vlines(used["probability"], used["probability"], used["share"], color=ORANGE, linewidth=4, alpha=0.6)
    left.plot(used["probability"], used["share"], "o-", color=VERMILLION, markersize=4)
    left.set(xlabel="probability", ylabel="share that is foreground", xlim=(0, 1), ylim=(0, 1.01), aspect="equal")
    left.set_title(told)
    right.stairs(table["pixels"] / table["pixels"].sum(), np.linspace(0, 1, len(table) + 1), fill=True, color=BLUE)
    right.set(xlabel="probability", ylabel="share of all pixels (%)", xlim=(0, 1), yscale="log")
    right.set_ylim(min(1e-3, right.get_ylim()[0]), 1)
    right.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g}")
    return figure


@drawn
def paper_against_ours(published: pd.DataFrame, ours: Mapping[str, Sequence[float]], model: str, source: str) -> Figure:
    """All networks that the paper prints, and our runs of `model` on its line: a tick a seed, mean and sd.

    `published`: as `tables.published`. `ours`: for each of miou, ap and auc the values of the seeds.
    """
    keys = [key for key in ("miou", "ap", "auc") if ours.get(key)]
    table = published.sort_values("ap", na_position="first").reset_index(drop=True)
    scores = ", ".join(f"{TITLES[key]} {show(key, np.mean(ours[key]))}" for key in keys)
    alt = f"Scores of the {len(table)} networks in the paper, and ours on the line of {model}: {scores}."
    figure, axes = panels(alt, 1.1 + 0.22 * len(table), source, 1, len(keys), sharey=True)
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


@drawn
def per_image(table: pd.DataFrame, source: str, pooled: Mapping, keys: Sequence[str] = ("miou", "ap", "pq")) -> Figure:
    """Every test image as a dot in its organ's row, for some measures, with a line at the pooled value.

    Of more than `MOST` images, a box from quartile to quartile, with the median.
    """
    keys = [key for key in keys if table[key].notna().any()]
    organs = table.groupby("organ")[keys[0]].median().sort_values().index
    names = ", ".join(TITLES[key] for key in keys)
    alt = f"{names} of {len(table)} images by organ; by {TITLES[keys[0]]}, lowest first: {', '.join(organs)}."
    figure, axes = panels(alt, 1 + 0.3 * len(organs), source, 1, len(keys), sharey=True)
    for ax, key in zip(axes[0], keys, strict=True):
        rows = organs.get_indexer(table["organ"])
        if len(table) > MOST:
            parts = [table[key][rows == place].dropna() for place in range(len(organs))]
            look = {"boxprops": {"facecolor": "#9AD0EC"}, "medianprops": {"color": BLACK}, "flierprops": {"ms": 1.5}}
            where = {"positions": range(len(organs)), "widths": 0.6, "orientation": "horizontal"}
            ax.boxplot(parts, patch_artist=True, **where, **look)
        else:
            ax.plot(table[key], rows, "o", color=BLUE, alpha=0.75, markersize=5.5, markeredgecolor="white")
        if pooled.get(key) is not None:
            ax.axvline(pooled[key], color=VERMILLION, linewidth=1)
            ax.set_title(f"pooled {show(key, pooled[key])}", color=VERMILLION)
        ax.set(yticks=range(len(organs)), yticklabels=organs, ylim=(-0.6, len(organs) - 0.4), xlabel=TITLES[key])
        ax.margins(x=0.1)
    return figure


@drawn
def by_size(objects: pd.DataFrame, source: str, mpp: float | None = None, target=TARGET) -> Figure:
    """Objects in up to eight groups of equal number by area. Left: how many are found. Right: the IoU of those.

    `objects`: area in pixels, iou; found is what has an IoU above one half, as in DQ. Left, bars are 95 % intervals
    (Wilson 1927); right, from quartile to quartile.
    """
    ranked, (one, many) = objects.sort_values("area"), target
    parts = [ranked.iloc[rows] for rows in np.array_split(np.arange(len(ranked)), np.clip(len(ranked) // 12, 1, 8))]
    area = [part["area"].median() * (mpp or 1) ** 2 for part in parts]
    found = [part["iou"][part["iou"] > 0.5] for part in parts]
    share = np.array([len(one) / len(all_) for one, all_ in zip(found, parts, strict=True)])
    tests = [binomtest(len(one), len(all_)) for one, all_ in zip(found, parts, strict=True)]
    ends = np.array([test.proportion_ci(method="wilson") for test in tests]).T
    quartiles = np.array([one.quantile([0.25, 0.5, 0.75]) for one in found]).T
    alt = f"{len(ranked):,} {many} by area: {100 * share[0]:.0f} % of the smallest and {100 * share[-1]:.0f} % of the"
    figure, axes = panels(f"{alt} largest are found; quartiles of the IoU of those.", 2.9, source, 1, 2)
    for ax, middle, (low, high) in zip(axes[0], (share, quartiles[1]), (ends, quartiles[::2]), strict=True):
        bars = np.maximum([middle - low, high - middle], 0)
        ax.errorbar(area, middle, bars, fmt="o-", color=BLUE, markersize=4.5, capsize=2.5)
        ax.set(xscale="log", xlabel=f"area of a {one} ({'µm' if mpp else 'px'}²)")
        _even(ax.xaxis)
    axes[0, 0].set(ylabel=f"share of {many} found", ylim=(0, 1.02))
    axes[0, 1].set(ylabel="IoU of those found", ylim=(0.5, 1))
    return figure


def _ticks(axis, values: Sequence[float]) -> None:
    """Ticks at just these values, whatever the scale."""
    axis.set_ticks(values)
    axis.set_major_formatter("{x:g}")
    axis.set_minor_locator(NullLocator())


def _even(axis) -> None:
    """Ticks 1, 2, 5, 10 ... on an axis whose scale is logarithmic."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


@drawn
def changed_images(images: Mapping[str, np.ndarray], source: str, *, columns: int = 4) -> Figure:
    """The same place under each change, by its name; the first is unchanged."""
    rows = -(-len(images) // columns)
    alt = f"One detail, {', '.join(images)}."
    figure, axes = panels(alt, 0.3 + 1.6 * rows, source, rows, columns, subplot_kw=NO_AXES)
    for ax, (title, image) in zip(axes.flat, images.items(), strict=False):
        picture(ax, image, title)
    return figure


@drawn
def robustness(
    table: pd.DataFrame, source: str, mpp: float | None = None, normalised: Mapping[str, pd.DataFrame] | None = None
) -> Figure:
    """mIoU and AP over amounts of stain and over the size of a pixel. `table`: as of `robustness.read_robustness`.

    Dotted: mIoU over amounts of stain, the images being `normalised` by the share that is the key.
    """
    changes = [name for name in ("haematoxylin", "eosin", "coarser") if (table["change"] == name).any()]
    told = ", ".join(f"{row.change} x {row.factor:g} {show('miou', row.miou)}" for row in table[1:].itertuples())
    unchanged = f"{show('miou', table['miou'][0])} unchanged"
    figure, axes = panels(f"mIoU {unchanged}, {told}.", 3.1, source, 1, len(changes), sharey=True)
    for ax, name in zip(axes[0], changes, strict=True):
        for change, line in ((name, "-"), (f"{name}, enlarged", "--")):
            rows = table[table["change"].isin(["none", change])].sort_values("factor")
            unit = (mpp or 1) if name == "coarser" else 1
            for key, colour in {"miou": VERMILLION, "ap": GREEN}.items() if len(rows) > 1 else ():
                label = TITLES[key] + ", enlarged again" * ("enlarged" in change)
                ax.plot(rows["factor"] * unit, rows[key], line, color=colour, marker=".", label=label)
        for share, scores in (normalised or {}).items() if name != "coarser" else ():
            rows = scores[scores["change"].isin(["none", name])].sort_values("factor")
            ax.plot(rows["factor"], rows["miou"], ":", color=VERMILLION, marker=".", label=f"mIoU, normalised {share}")
        size = "µm of a pixel" if mpp else "pixels joined to one, a side"
        ax.set(xscale="log", xlabel=size if name == "coarser" else f"times the {name}")
        _ticks(ax.xaxis, sorted({*table["factor"][table["change"].isin(["none", name])] * unit}))
    axes[0, 0].set(ylabel="score", ylim=(None, 1))
    lines = {label: line for ax in axes.flat for line, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    figure.legend(lines.values(), lines.keys(), loc="outside upper left", ncols=4 if len(lines) < 5 else 3)
    return figure


@drawn
def learning_curve(table: pd.DataFrame, source: str) -> Figure:
    """mIoU and AP on the test images over the number of training images: a dot a run, a line through the means.

    Dashed: the mIoU on validation by which the epoch was chosen. `table`: images, miou, ap, val_miou of each run.
    """
    means = table.groupby("images")[["miou", "ap", "val_miou"]].mean()
    told = ", ".join(
        f"{count}: {show('miou', row['miou'])} ({show('miou', row['val_miou'])})" for count, row in means.iterrows()
    )
    alt = f"mIoU on test images (on validation), by the number of training images: {told}."
    figure, ((ax,),) = panels(alt, 2.9, source)
    lines = {"ap": ("AP, test", GREEN, "-"), "val_miou": ("mIoU, validation", VERMILLION, "--"),
             "miou": ("mIoU, test", VERMILLION, "-")}  # fmt: skip
    for key, (label, colour, line) in lines.items():
        ax.plot(means.index, means[key], line, color=colour, label=label)
        face = "white" if line == "--" else colour
        ax.plot(table["images"], table[key], "o", color=colour, markerfacecolor=face, markersize=4.5, alpha=0.75)
    ax.set(xscale="log", xlabel="training images", ylabel="score")
    _ticks(ax.xaxis, means.index)
    figure.legend(loc="outside upper left", ncols=3)
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


@drawn
def best_and_worst(views: Sequence[View], source: str) -> Figure:
    """The images with the highest and the lowest Dice: true outlines, and pixels by their kind of error.

    Images without Dice, having nothing to find and nothing found, are left out.
    """
    ranked = sorted((view for view in views if view.dice == view.dice), key=lambda view: view.dice)
    rows = {f"{rank}: {v.organ}, Dice {v.dice:.3f}": v for rank, v in (("best", ranked[-1]), ("worst", ranked[0]))}
    alt = "Images with the true outlines, and with pixels found, missed and falsely found in colours."
    figure, axes = panels(f"{alt} {'; '.join(rows)}.", 6.2, source, 2, 2, subplot_kw=NO_AXES)
    for (left, right), (title, view) in zip(axes, rows.items(), strict=True):
        picture(left, view.image, title, (view.labels, YELLOW, 0.8))
        picture(right, error_overlay(view), view.name[:28])
    _error_legend(figure)
    return figure


@drawn
def worst_places(views: Sequence[View], source: str, *, count: int = 3, side: int = 96) -> Figure:
    """The window with most wrong pixels of the worst images: true outlines yellow, found black, above the errors."""
    places = [(*_window(error_pixels(view) > 1, side), view) for view in views]
    places = sorted(places, key=lambda place: -place[0])[:count]
    organs = ", ".join(view.organ for *_, view in places)
    alt = f"Places with many wrong pixels ({organs}): outlines, true and found, above kinds of error."
    figure, axes = panels(alt, 4.6, source, 2, count, subplot_kw=NO_AXES)
    for (top, bottom), (_, box, view) in zip(axes.T, places, strict=False):
        found = view.predicted()[box]  # black with a white rim, to be seen on dark images too
        lines = (found, "white", 2.8), (found, BLACK, 1.4), (view.labels[box], YELLOW, 1.2)
        picture(top, view.image[box], view.organ, *lines)
        picture(bottom, error_overlay(view)[box])
    _error_legend(figure)
    return figure


def _window(values: np.ndarray, side: int) -> tuple[float, tuple[slice, slice]]:
    """The highest mean of `values` (H, W) in a window of `side` pixels, and the window."""
    side = min(side, *values.shape)
    means = ndimage.uniform_filter(values.astype(float), side, mode="constant")
    inner = means[side // 2 :, side // 2 :][: len(means) - side + 1, : means.shape[1] - side + 1]
    y, x = np.unravel_index(inner.argmax(), inner.shape)
    return inner[y, x], np.s_[y : y + side, x : x + side]


@drawn
def visual(
    views: Mapping[str, View], source: str, box: tuple[slice, slice] | None = None, *, side: int = 160
) -> Figure:
    """One image, whole and in part: the truth outlined, then each method's pixels by their kind of error.

    `box` is the part, marked in the whole; if not given, the window of `side` pixels where the methods differ most.
    """
    first = next(iter(views.values()))
    if box is None:
        wrong = np.stack([error_pixels(view) > 1 for view in views.values()])
        _, box = _window(wrong.std(0) if len(wrong) > 1 else wrong[0], side)
    columns = min(len(views) + 1, 4)
    bands = -(-(len(views) + 1) // columns)
    scores = ", ".join(f"{name} {view.dice:.3f}" for name, view in views.items())
    alt = f"{first.name} ({first.organ}), whole and a part; pixels found, missed and falsely found; Dice: {scores}."
    ratio = first.truth.shape[0] / first.truth.shape[1] + (box[0].stop - box[0].start) / (box[1].stop - box[1].start)
    height = 0.5 + bands * (ratio * WIDTH / columns + 0.3)
    figure, axes = panels(alt, height, source, 2 * bands, columns, subplot_kw=NO_AXES)
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0, hspace=0)
    shown = {"\ntruth": first.image}
    shown |= {f"{name}\nDice {view.dice:.3f}": error_overlay(view) for name, view in views.items()}
    (y, x), (h, w) = ((part.start for part in box), (part.stop - part.start for part in box))
    for top, bottom, (title, image) in zip(axes[::2].flat, axes[1::2].flat, shown.items(), strict=False):
        outlined = image is first.image
        picture(top, image, title, *([(first.labels, YELLOW, 0.5)] * outlined))
        picture(bottom, image[box], "", *([(first.labels[box], YELLOW, 1)] * outlined))
        top.add_patch(Rectangle((x, y), w, h, fill=False, color=BLACK, linewidth=1))
    _error_legend(figure)
    return figure


@drawn
def predictions(views: Sequence[View], source: str, target=TARGET, *, most: int = 4) -> Figure:
    """Images without annotation, two in a row, with what was found in them outlined."""
    shown = [views[i] for i in spread(len(views), most)]
    alt = f"Images with the {target[1]} that were found outlined in yellow: {', '.join(view.name for view in shown)}."
    rows = -(-len(shown) // 2)
    figure, axes = panels(alt, 0.25 + 2.85 * rows, source, rows, 2, subplot_kw=NO_AXES)
    for ax, view in zip(axes.flat, shown, strict=False):
        picture(ax, view.image, view.name[:28], (view.predicted(), YELLOW, 0.8))
    return figure


# ------------------------------------------------------------------------------------------- networks


def _estimates(ax, table: pd.DataFrame, key: str, rows: Sequence[float], ours: str = OURS) -> None:
    """A dot a network in its row, with interval (thin) and sd (thick); a star where it differs from `ours`."""
    for y, row in zip(rows, table.to_dict("records"), strict=True):
        mean, colour = row[key], VERMILLION if row["model"] == ours else BLUE
        ax.plot([row[f"{key}_low"], row[f"{key}_high"]], [y, y], color=colour, linewidth=0.9)
        ax.plot([mean - row[f"{key}_sd"], mean + row[f"{key}_sd"]], [y, y], color=colour, linewidth=3, alpha=0.5)
        ax.plot(mean, y, "D" if row["model"] == ours else "o", color=colour, markersize=4.5, label=row["model"])
        if row[f"{key}_p"] < LEVEL:
            ax.text(0.99, y + 0.17, "*", transform=ax.get_yaxis_transform(), ha="right", va="center", fontsize=11)


def _percent(ax, key: str, axis: str = "x") -> None:
    if key in PERCENT:
        getattr(ax, f"{axis}axis").set_major_formatter(lambda value, _: f"{100 * value:g}")


def _estimate_legend(figure: Figure, table: pd.DataFrame, keys: Sequence[str], ours: str, paper: bool = False) -> None:
    seeds, stars = (table[[f"{key}_{end}" for key in keys]] for end in ("sd", "p"))
    dot, faint = {"color": BLUE, "marker": "o", "ms": 4.5}, {"ls": "", "color": GREY, "marker": "o"}
    star = {"ls": "", "marker": "$*$", "color": BLACK, "ms": 5.5}
    entries = {
        "95 % interval over images": (Line2D([], [], linewidth=0.9, **dot), True),
        "± sd over seeds": (Line2D([], [], linewidth=3, alpha=0.5, color=BLUE), seeds.notna().any(axis=None)),
        f"differs from {ours}, p < {LEVEL:g}": (Line2D([], [], **star), (stars < LEVEL).any(axis=None)),
        "paper": (Line2D([], [], markerfacecolor="white", ms=4.5, **faint), paper),
    }
    shown = {label: handle for label, (handle, there) in entries.items() if there}
    figure.legend(shown.values(), shown, loc="outside upper left", ncols=2, columnspacing=1.5)


@drawn
def comparison(
    table: pd.DataFrame,
    source: str,
    published: pd.DataFrame | None = None,
    *,
    ours: str = OURS,
    keys: Sequence[str] = ("miou", "ap", "auc"),
) -> Figure:
    """Every network on its line, the best above: our estimate, its spread, and hollow what the paper gives.

    `table`: as `compare.compare` makes it, a row a network. `published`: as `tables.published`; its networks
    that `table` does not have stand below, as not run. What is below the lowest network, as the threshold of Otsu
    may be, is written at the edge.
    """
    done = table.sort_values(keys[0], ascending=False)
    paper = pd.DataFrame(columns=["model", *keys]) if published is None else published
    absent = paper[~paper["model"].isin(done["model"])].sort_values(keys[0], ascending=False)["model"]
    rows = {name: y for y, name in enumerate([*done["model"], *absent])}
    values = ", ".join(f"{row.model} {show(keys[0], getattr(row, keys[0]))}" for row in done.itertuples())
    names = ", ".join(TITLES[key] for key in keys)
    alt = f"{names} of {len(done)} methods; {TITLES[keys[0]]}, highest first: {values}."
    alt += f" Not run: {', '.join(absent)}." if len(absent) else ""
    figure, axes = panels(alt, 1.15 + 0.2 * len(rows), source, 1, len(keys), sharey=True)
    for ax, key in zip(axes[0], keys, strict=True):
        theirs = paper[paper[key].notna()]
        ax.plot(theirs[key], theirs["model"].map(rows) + 0.25, "o", color=GREY, mfc="white", ms=4, label="paper")
        low, high = _limits(done if len(done) == 1 else done[done["model"] != BASELINE], theirs, key)
        outside = done[done[key] < low]
        here = done.drop(outside.index)
        _estimates(ax, here, key, here["model"].map(rows), ours)
        for row in outside.to_dict("records"):
            ax.text(low, rows[row["model"]], f"◂ {show(key, row[key])}", va="center", fontsize=7.5, color=BLUE)
        for row in done[done["model"] == ours].to_dict("records"):
            ax.axvline(row[key], color=VERMILLION, linewidth=0.8, alpha=0.5)
        ax.set(title=TITLES[key] + " (%)" * (key in PERCENT), xlim=(low, high), ylim=(len(rows) - 0.4, -0.6))
        _percent(ax, key)
        ax.locator_params(axis="x", nbins=4, steps=[1, 2, 5, 10])
    axes[0, 0].set_yticks(list(rows.values()), [f"{n} (not run)" if n in set(absent) else n for n in rows], fontsize=8)
    for name, label in zip(rows, axes[0, 0].get_yticklabels(), strict=True):
        label.set(color=GREY if name in set(absent) else BLACK, weight="bold" if name == ours else "normal")
    _estimate_legend(figure, done, keys, ours, paper=len(paper) > 0)
    return figure


def _limits(networks: pd.DataFrame, theirs: pd.DataFrame, key: str) -> tuple[float, float]:
    values = pd.concat([theirs[key], *(networks[f"{key}{end}"] for end in ("", "_low", "_high"))])
    low, high = (values.min(), values.max()) if values.notna().any() else (0, 1)
    room = high - low or 0.02
    return low - 0.06 * room, high + 0.1 * room


@drawn
def pr_roc_models(
    curves: Mapping[str, Sequence[pd.DataFrame]], scores: Mapping[str, Mapping], source: str, *, ours: str = OURS
) -> Figure:
    """Precision over recall, and the ROC curve, of all methods; below, the marked corners enlarged.

    `curves`: each method's curves.csv, one a run, all drawn. `scores`: its mean AP and AUC. In colours are `ours`
    and the four methods of highest AP beside it, all else is grey.
    """
    ranked = sorted(curves, key=lambda name: -np.nan_to_num(scores[name]["ap"] or 0))
    best = [name for name in ranked if name != ours][: len(DASHES)]
    looks = dict.fromkeys(ranked, (GREY, "-", 0.7, 0.55))
    looks |= {name: (*look, 1.2, 1) for name, look in zip(best, DASHES, strict=False)}
    looks |= {ours: (VERMILLION, "-", 2, 1)} if ours in curves else {}
    values = ", ".join(f"{name} {show('ap', scores[name]['ap'])} {show('auc', scores[name]['auc'])}" for name in ranked)
    alt = f"Precision over recall and ROC curves of {len(ranked)} methods; AP and AUC, highest AP first: {values}."
    figure, axes = panels(alt, 6.1, source, 2, 2)
    for column, (x, y) in zip(axes.T, (("recall", "precision"), ("fpr", "recall")), strict=True):
        for ax in column:
            for order, name in enumerate(sorted(looks, key=lambda name: looks[name][2])):
                colour, dash, width, alpha = looks[name]
                for table in curves[name]:
                    line = {"color": colour, "linestyle": dash, "linewidth": width, "alpha": alpha}
                    ax.plot(table[x], table[y], label=name, zorder=2 + order / 100, **line)
            ax.set(xlabel=x.replace("fpr", "false positive rate"), ylabel=y, xlim=(0, 1), ylim=(0, 1), aspect="equal")
        _enlarge(column, curves[ours if ours in curves else ranked[0]][0], x, y)
    _curve_legend(figure, looks, scores, ranked)
    return figure


def _enlarge(column, table: pd.DataFrame, x: str, y: str, half: float = 0.1) -> None:
    """Limit the lower axes to the corner of the curve, where it is nearest to the ideal point, and mark it above."""
    above, below = column
    ideal = (1, 1) if x == "recall" else (0, 1)
    at = np.hypot(table[x] - ideal[0], table[y] - ideal[1]).idxmin()
    a, b = (float(np.clip(table[name][at], half, 1 - half)) for name in (x, y))
    below.set(xlim=(a - half, a + half), ylim=(b - half, b + half), title="the box enlarged")
    box = Rectangle((a - half, b - half), 2 * half, 2 * half, fill=False, color=BLACK, linewidth=0.8, zorder=4)
    above.add_patch(box)


def _curve_legend(figure: Figure, looks: Mapping, scores: Mapping, ranked: Sequence[str]) -> None:
    grey = [scores[name]["ap"] for name in ranked if looks[name][0] == GREY]
    handles, labels = [], []
    for name in ranked:
        colour, dash, width, _ = looks[name]
        if colour != GREY:
            handles.append(Line2D([], [], color=colour, linestyle=dash, linewidth=width))
            labels.append(f"{name}, AP {show('ap', scores[name]['ap'])}")
    if grey:
        handles.append(Line2D([], [], color=GREY, linewidth=0.7))
        labels.append(f"{len(grey)} others, AP {show('ap', min(grey))} to {show('ap', max(grey))}")
    figure.legend(handles, labels, loc="outside upper left", ncols=2, columnspacing=1.5, handlelength=2.6)


@drawn
def cost(table: pd.DataFrame, source: str, *, key: str = "miou") -> Figure:
    """A measure over multiply-adds, the area of a bubble being parameters; the sizes of CSAMNet are joined.

    `table`: model, `key`, parameters, multiply_adds, and `label` where the bubbles have other names; rows without
    a cost are left out. The paper draws the same and calls the axis FLOPs, but its values are multiply-adds: FLOPs
    would be twice as many.
    """
    table = table[table["multiply_adds"] > 0].dropna(subset=[key, "parameters"])
    table = table.sort_values("parameters", ascending=False)
    table = table.assign(label=table.get("label", table["model"]), multiply_adds=table["multiply_adds"] / 1e9)
    values = [
        f"{name} {show(key, score)}, {adds:.1f} G, {size / 1e6:.1f} M"
        for name, score, adds, size in table[["label", key, "multiply_adds", "parameters"]].itertuples(index=False)
    ]
    alt = f"{TITLES[key]} over multiply-adds, bubbles as large as parameters: {'; '.join(values)}."
    figure, ((ax,),) = panels(alt, 4.1, source)
    own = table["model"].isin([f"CSAMNet-{size}" for size in SIZES])
    family = table[own].sort_values("multiply_adds")
    ax.plot(family["multiply_adds"], family[key], color=VERMILLION, linewidth=1, zorder=1)
    most = table["parameters"].max()
    areas = table["parameters"] / most * LARGEST
    for rows, colour in ((table[~own], BLUE), (family, VERMILLION)):
        look = {"color": colour, "alpha": 0.55, "edgecolor": "white", "linewidth": 0.8}
        ax.scatter(rows["multiply_adds"], rows[key], areas[rows.index], **look)
        ax.scatter(rows["multiply_adds"], rows[key], 2.5, color=BLACK)
    ax.set(xscale="log", ylabel=TITLES[key] + " (%)" * (key in PERCENT))
    ax.set_xlabel("multiply-adds for 256 × 256 pixels (G); a multiply-add is two FLOPs")
    _even(ax.xaxis)
    ax.margins(0.19, 0.14)
    _percent(ax, key, "y")
    round_ = 10 ** np.floor(np.log10(most))
    sizes = [share * round_ for share in (0.1, 0.3, 1, 3) if share * round_ <= most][-3:]
    look = {"color": GREY, "alpha": 0.55}
    handles = [ax.scatter([], [], size / most * LARGEST, label=f"{size / 1e6:g} M", **look) for size in sizes]
    titles = {"title": "parameters", "alignment": "left", "borderpad": 1}
    figure.legend(handles=handles, loc="outside upper left", ncols=4, handletextpad=1, **titles)
    points = table[["multiply_adds", key]].to_numpy()
    _label_points(figure, ax, table["label"], points, np.sqrt(areas.to_numpy() / np.pi))
    return figure


def _label_points(figure: Figure, ax, names: Sequence[str], points: np.ndarray, radii: np.ndarray) -> None:
    """Write names beside bubbles at `points` (n, 2), each where it hides no other bubble, no name and no line."""
    figure.draw_without_rendering()  # settles where the axes are
    ends, pixels = ax.transData.transform(points), 0.8 * radii * figure.dpi / 72
    taken = [_around(end, reach) for end, reach in zip(ends, pixels, strict=True)]
    for line in ax.lines:
        corners = ax.transData.transform(line.get_xydata())
        taken += [_around(at, 1) for a, b in pairwise(corners) for at in np.linspace(a, b, 60)]
    for i, (name, point, radius) in enumerate(zip(names, points, radii, strict=True)):
        text = ax.annotate(name, point, (0, 0), textcoords="offset points", fontsize=7.5, va="center")
        text.set_in_layout(False)
        others = taken[:i] + taken[i + 1 :]  # its own bubble it may touch
        for far, (across, up) in product((0, 8, 16, 24, 32), SIDES):
            reach = (radius + 2) * (0.7 if across and up else 1) + far
            text.set(position=(across * reach, up * (reach + 4)), ha=("center", "left", "right")[across])
            box = text.get_window_extent()
            middle, half = (box.min + box.max) / 2, (box.max - box.min) / 2
            away = np.hypot(*np.maximum(abs(ends - middle) - half, 0).T)  # of the label from each point, in pixels
            clear = ax.bbox.contains(*box.min) and ax.bbox.contains(*box.max)
            clear = clear and not any(box.overlaps(other) for other in others)
            if clear and (up if far else away[i] <= away.min() + 1):
                break
        if far:
            lead = {"arrowstyle": "-", "color": GREY, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 0}
            ax.annotate("", point, text.get_position(), textcoords="offset points", arrowprops=lead)
        taken.append(box)


def _around(point, reach: float) -> Bbox:
    return Bbox.from_extents(*(point - reach), *(point + reach))


@drawn
def ablation(table: pd.DataFrame, source: str, *, key: str = "miou", ours: str = OURS) -> Figure:
    """Variants of the network by what they change, each on its line; to the right, the difference to the full one.

    `table`: as `compare.label_variants` makes it. `ours` is the full network, which stands first in each group.
    """
    (full,) = table[table["model"] == ours].to_dict("records")
    groups = dict(list(table[table["model"] != ours].groupby("group", sort=False)))
    values = ", ".join(f"{rows['label']} {show(key, rows[key])}" for rows in table.to_dict("records"))
    heights = [len(rows) + 2.9 for rows in groups.values()]
    grid = {"sharex": True, "height_ratios": heights}
    figure, axes = panels(f"{TITLES[key]} of {values}.", 0.9 + 0.2 * sum(heights), source, len(groups), **grid)
    for ax, (name, others) in zip(axes[:, 0], groups.items(), strict=True):
        rows = pd.DataFrame([full, *others.to_dict("records")])
        ax.axvline(full[key], color=VERMILLION, linewidth=0.8, alpha=0.5)
        _estimates(ax, rows, key, rows.index, ours)
        ax.set_yticks(rows.index, rows["label"])
        ax.set(title=name, ylim=(len(rows) - 0.4, -0.6))
        right = ax.secondary_yaxis("right")
        gaps = [difference(key, value, full[key]) for value in others[key]]
        right.set_yticks(rows.index, [show(key, full[key]), *gaps])
        right.tick_params(length=0)
        right.spines["right"].set_visible(False)
        _percent(ax, key)
    axes[-1, 0].set_xlabel(TITLES[key] + " (%)" * (key in PERCENT))
    _estimate_legend(figure, table, [key], ours)
    return figure


@drawn
def architecture(network=None) -> Figure:
    """The network, all channels and sizes read from an instance of it; below, the inside of DCF and of CSAM."""
    from csamnet.model import CSAMNet
    from csamnet.pages import architecture as drawing

    network = network or CSAMNet()
    titles = {
        "whole": f"a   CSAMNet of width {network.width}, for an image of {drawing.SIZE} × {drawing.SIZE} pixels",
        "dcf": "b   Detail-context fusion (DCF), on a map of D channels",
        "csam": "c   Cross-scale attention modulation (CSAM)",
    }
    heights = [top - bottom for bottom, top in drawing.PANELS.values()]
    look = {"height_ratios": heights, "subplot_kw": NO_AXES}
    figure, axes = panels(drawing.describe(network), sum(heights) + 0.95, "drawn from the code", 3, **look)
    for ax, (name, title) in zip(axes[:, 0], titles.items(), strict=True):
        ax.set(xlim=(0, 5.5), ylim=drawing.PANELS[name], aspect="equal")
        ax.set_title(title, weight="bold", fontsize=8.5)
        getattr(drawing, f"draw_{name}")(ax, network)
    return figure
