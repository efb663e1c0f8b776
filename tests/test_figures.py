"""Figures say what they must, in text, colour and place; the explorer needs no kernel."""

from __future__ import annotations

import base64
import io
import json
import re
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from matplotlib import rc_context
from matplotlib.text import Text
from PIL import Image
from skimage.draw import disk

from csamnet.files import InputError
from csamnet.metrics import curves, image_metrics, score_histogram
from csamnet.model import CSAMNet
from csamnet.pages import architecture, figures, gallery, tables
from csamnet.pages.compare import label_variants

SAMPLE, REAL = "MoNuSeg · test · sample data", "MoNuSeg · test · measured on real data"
CODE = "drawn from the code"
SIZE, LESION = 96, ("lesion", "lesions")


def scene(seed: int, organ: str, shift: int) -> figures.View:
    """A 96 x 96 image of nine discs, predicted with every disc moved by `shift` pixels."""
    rng, labels, moved = np.random.default_rng(seed), np.zeros((SIZE, SIZE), np.int32), np.zeros((SIZE, SIZE))
    for number in range(9):
        y, x, radius = 16 + 32 * (number // 3), 16 + 32 * (number % 3), rng.integers(6, 11)
        labels[disk((y, x), radius, shape=labels.shape)] = number + 1
        moved[disk((y, x + shift), radius, shape=labels.shape)] = 1
    image = rng.integers(120, 200, (SIZE, SIZE, 3)).astype(np.uint8)
    probability = np.clip(moved * 0.8 + 0.1 + rng.normal(0, 0.05, moved.shape), 0.01, 0.99).astype(np.float32)
    truth = labels > 0
    dice = image_metrics(probability, truth, labels)["dice"]
    return figures.View(f"SCENE-{seed}", organ, image, truth, labels, probability, 0.5, dice)


@pytest.fixture(scope="module")
def views() -> list[figures.View]:
    found = [scene(0, "brain", 1), scene(1, "liver", 4), scene(2, "colon", 8)]
    return sorted(found, key=lambda view: view.dice)


@pytest.fixture(scope="module")
def per_image(views) -> pd.DataFrame:
    rows = [{"name": v.name, "group": v.name, "organ": v.organ} for v in views]
    return pd.DataFrame(
        [row | image_metrics(v.probability, v.truth, v.labels) for row, v in zip(rows, views, strict=True)]
    )


@pytest.fixture(scope="module")
def curve(views) -> pd.DataFrame:
    return curves(sum(score_histogram(view.probability, view.truth) for view in views))


@pytest.fixture(scope="module")
def samples(views) -> dict[str, list]:
    """As `load_split` gives them; the second one has no instances."""
    made = [
        SimpleNamespace(
            group="g",
            organ=v.organ,
            image=lambda v=v: v.image,
            mask=lambda v=v: v.truth,
            labels=lambda v=v, i=i: None if i == 1 else v.labels,
            touching=True,
        )
        for i, v in enumerate(views)
    ]
    return {"train": made, "val": made[1:2], "test": made[:2]}


def compared(**scores: float) -> pd.DataFrame:
    """A table as `compare.compare` makes it, from each model's mIoU; only SegNet and Otsu differ from CSAMNet-S."""
    table = pd.DataFrame({"model": [name.replace("_", "-") for name in scores], "seeds": 1, "images": 14})
    table["parameters"], table["multiply_adds"] = (table.index + 1) * 1e6, (table.index + 1) * 1e9
    table.loc[table["model"] == "Otsu", ["parameters", "multiply_adds"]] = 0
    for key, rise in {"miou": 0, "dice": 0.05, "ap": 0.1, "auc": 0.18}.items():
        table[key] = np.array([*scores.values()]) + rise
        table[f"{key}_low"], table[f"{key}_high"] = table[key] - 0.02, table[key] + 0.01
        table[f"{key}_sd"] = np.where(table["model"] == "CSAMNet-S", 0.003, np.nan)
        table[f"{key}_p"] = np.select(
            [table["model"].isin(["SegNet", "Otsu"]), table["model"] != "CSAMNet-S"], [0.01, 0.4], np.nan
        )
    return table


NETWORKS = {"CSAMNet_S": 0.8, "UNet": 0.79, "SegNet": 0.76, "Otsu": 0.5}
VARIANTS = {"CSAMNet_S": 0.8, "CSAMNet_S_no_DCF": 0.78, "CSAMNet_S_channel_only": 0.79, "CSAMNet_M": 0.81}


def history(best: int = 3, epochs: int = 5) -> pd.DataFrame:
    epoch = np.arange(1, epochs + 1)
    falling = dict.fromkeys(("lr", "loss", "loss_ce", "loss_dice"), 1 / epoch)
    scores = {key: 0.8 - 0.05 * abs(epoch - best) for key in ("val_miou", "val_dice", "val_ap")}
    return pd.DataFrame({"epoch": epoch, "drop_rate": epoch / 50} | falling | scores)


@pytest.fixture(scope="module")
def draw(views, per_image, curve, samples):
    """Every figure by its name, drawn anew at each call."""
    pooled, ours = {"miou": 0.7, "ap": 0.8, "auc": 0.9, "pq": 0.5}, {"miou": [0.78, 0.8], "ap": [0.9, 0.91]}
    objects = pd.DataFrame({"split": ["train", "test", "test"], "area": [30, 10, 20]})
    contrast = pd.DataFrame({"split": ["train", "val", "test"], "inside": [3, 2, 1], "outside": [1, 1, 0.5]})
    paper = {"ap": 0.9111, "auc": 0.9715}
    return {
        "image_sheet": lambda: figures.image_sheet(samples, SAMPLE),
        "object_statistics": lambda: figures.object_statistics(objects, contrast, SAMPLE, "µm"),
        "other_words": lambda: figures.object_statistics(objects, contrast, SAMPLE, "px", "grey value", LESION),
        "history": lambda: figures.history(history(), SAMPLE),
        "refit": lambda: figures.history(history().assign(val_miou=np.nan, val_dice=np.nan, val_ap=np.nan), SAMPLE),
        "pr_roc": lambda: figures.pr_roc([curve, curve], [pooled, pooled], REAL, paper=paper),
        "over_thresholds": lambda: figures.over_thresholds(curve, SAMPLE),
        "paper_against_ours": lambda: figures.paper_against_ours(tables.published("MoNuSeg"), ours, "CSAMNet-S", REAL),
        "per_image": lambda: figures.per_image(per_image, SAMPLE, pooled),
        "kinds_of_error": lambda: figures.per_image(per_image, SAMPLE, pooled, ("precision", "recall", "dq", "sq")),
        "reliability": lambda: figures.reliability(0.05, CALIBRATED, SAMPLE),
        "by_size": lambda: figures.by_size(each(96), SAMPLE, 0.25),
        "changed_images": lambda: figures.changed_images({v.organ: v.image for v in views}, SAMPLE),
        "robustness": lambda: figures.robustness(CHANGED, SAMPLE, 0.25),
        "learning_curve": lambda: figures.learning_curve(FEWER, SAMPLE),
        "best_and_worst": lambda: figures.best_and_worst(views, SAMPLE),
        "worst_places": lambda: figures.worst_places(views, SAMPLE, side=32),
        "predictions": lambda: figures.predictions(views, SAMPLE, LESION),
        "comparison": lambda: figures.comparison(compared(**NETWORKS), REAL, tables.published("MoNuSeg")),
        "pr_roc_models": lambda: models_curves(curve, "CSAMNet-S", "UNet"),
        "cost": lambda: figures.cost(compared(**NETWORKS, CSAMNet_M=0.81), REAL),
        "cost_of_parts": lambda: figures.cost(label_variants(compared(**VARIANTS), "CSAMNet-S"), REAL),
        "ablation": lambda: figures.ablation(label_variants(compared(**VARIANTS), "CSAMNet-S"), REAL),
        "visual": lambda: figures.visual(seen(views), SAMPLE, side=32),
        "architecture": figures.architecture,
    }


CALIBRATED = pd.DataFrame({"probability": [0.1, np.nan, 0.8], "share": [0.2, np.nan, 0.75], "pixels": [60, 0, 40]})
FEWER = pd.DataFrame({"images": [1, 8, 8], "miou": [0.6, 0.7, 0.8], "ap": [0.7, 0.8, 0.9], "val_miou": [0.8, 0.8, 0.9]})
CHANGES = [("none", 1), ("haematoxylin", 0.5), ("eosin", 2), ("coarser", 2), ("coarser, enlarged", 2)]
CHANGED = pd.DataFrame(CHANGES, columns=["change", "factor"]).assign(miou=[0.8, 0.5, 0.7, 0.4, 0.6], ap=0.9)


def each(count: int) -> pd.DataFrame:
    """Objects of which the larger half is found."""
    area = np.arange(1, count + 1)
    return pd.DataFrame({"area": area, "iou": np.where(area > count / 2, 0.75, 0.5)})


def seen(views) -> dict[str, figures.View]:
    """One image as two methods see it: well, and badly."""
    bad = np.roll(views[2].probability, 12, axis=0)
    return {"CSAMNet-S": views[2], "UNet": views[2]._replace(probability=bad, dice=0.3)}


def models_curves(curve: pd.DataFrame, *names: str):
    curves = {name: [curve.assign(precision=curve["precision"] * 0.98**i)] for i, name in enumerate(names)}
    scores = {name: {"ap": 0.9 - 0.01 * i, "auc": 0.97 - 0.01 * i} for i, name in enumerate(names)}
    return figures.pr_roc_models(curves, scores, SAMPLE)


NAMES = ("image_sheet", "object_statistics", "history", "refit", "pr_roc", "over_thresholds", "paper_against_ours")
NAMES += ("per_image", "kinds_of_error", "best_and_worst", "worst_places", "predictions", "other_words")
NAMES += ("reliability", "by_size", "changed_images", "robustness", "learning_curve")
NAMES += ("comparison", "pr_roc_models", "cost", "cost_of_parts", "ablation", "visual", "architecture")


def words(figure) -> str:
    return "\n".join(text.get_text() for text in figure.findobj(Text))


@pytest.mark.parametrize("name", NAMES)
def test_a_figure_says_what_data_it_shows_and_repeats(draw, name):
    figure = draw[name]()
    assert figures.rendered(figure, "svg") == figures.rendered(draw[name](), "svg")
    assert figure.get_size_inches()[0] == figures.WIDTH
    assert any(source in words(figure) for source in (SAMPLE, REAL, CODE))
    alt = figure.get_label()
    assert len(alt) > 60
    assert alt.endswith((f"{SAMPLE}.", f"{REAL}.", f"{CODE}."))
    assert "nan" not in words(figure) + alt
    module, function = figure.get_gid().rsplit(".", 1)
    assert getattr(figures, function).__module__ == module == "csamnet.pages.figures"  # so the API page has it


@pytest.mark.parametrize("name", ["history", "best_and_worst", "cost"])
def test_files_are_the_same_to_the_byte(draw, name, tmp_path):
    for copy in ("one", "two"):
        figures.save(draw[name](), tmp_path / copy)
    for kind in ("svg", "png", "pdf"):
        assert (tmp_path / f"one.{kind}").read_bytes() == (tmp_path / f"two.{kind}").read_bytes()
    assert b"CreationDate" not in (tmp_path / "one.pdf").read_bytes()
    with Image.open(tmp_path / "one.png") as drawn:
        assert drawn.width >= 1000


def test_style_does_not_depend_on_the_users(draw):
    with rc_context({"font.size": 30, "axes.facecolor": "red"}):
        other = figures.rendered(draw["history"](), "svg")
    assert other == figures.rendered(draw["history"](), "svg")


def test_figures_name_what_is_segmented(draw):
    figure = draw["object_statistics"]()
    assert "area of a nucleus (µm²)" in words(figure)
    assert "mean haematoxylin" in words(figure)
    assert "medians in µm²: test 15, train 30;" in figure.get_label()
    other = draw["other_words"]()
    assert {"area of a lesion (px²)", "mean grey value", "lesions"} <= set(words(other).split("\n"))
    assert "nucle" not in words(other) + other.get_label() + draw["predictions"]().get_label()


def test_areas_and_contrast_are_drawn_by_hand(draw):
    areas, contrast = draw["object_statistics"]().axes
    (steps,) = [line for line in areas.lines if line.get_label() == "test (2)"]
    assert np.allclose(steps.get_xydata()[1:], [[10, 0.5], [20, 1]])
    inside = [line.get_xydata().tolist() for line in contrast.lines if line.get_markerfacecolor() != "white"]
    assert sorted(inside) == [[[1, 0]], [[2, 1]], [[3, 2]]]  # lowest mean first


def test_history_marks_the_epoch_that_was_kept(draw):
    figure = draw["history"]()
    assert "kept: epoch 3, mIoU 80.00 %" in words(figure)
    assert [ax.lines[-1].get_xdata()[0] for ax in figure.axes] == [3, 3, 3]
    assert "kept: epoch 1" in words(figures.history(history(best=1, epochs=1), SAMPLE))
    refit = draw["refit"]()
    assert "kept: epoch 5, the last" in words(refit)
    assert "validation" not in words(refit) + refit.get_label()
    assert [ax.lines[-1].get_xdata()[0] for ax in refit.axes] == [5, 5]


def test_the_papers_scores_are_written_and_never_drawn(draw, curve):
    figure = draw["pr_roc"]()
    text = words(figure)
    assert "AP 0.8000 (mean of 2 seeds)\npaper, as printed: 0.9111" in text
    assert "AUC 0.9000 (mean of 2 seeds)\npaper, as printed: 0.9715" in text
    pr, roc = figure.axes
    assert len(pr.lines) == 2 * 2  # for each run a curve and a dot
    assert len(roc.lines) == 1 + 2 * 2
    drawn = pr.lines[0].get_xydata()
    np.testing.assert_array_equal(drawn, curve[["recall", "precision"]])
    alone = figures.pr_roc([curve], [{"ap": None, "auc": 0.9}], SAMPLE)
    assert "paper" not in words(alone)
    assert "AP undefined" in words(alone)


def test_lines_of_equal_dice_have_it():
    curve = pd.DataFrame({"threshold": [0.5], "precision": [1.0], "recall": [1.0], "fpr": [0.0]})
    figure = figures.pr_roc([curve], [{"ap": 1.0, "auc": 1.0}], SAMPLE)
    (equal,) = figure.axes[0].collections
    for level, path in zip(figures.LEVELS, equal.get_paths(), strict=True):
        recall, precision = path.vertices.T
        np.testing.assert_allclose(2 * precision * recall / (precision + recall), level, atol=1e-3)


def test_the_best_threshold_is_that_of_the_highest_dice():
    table = pd.DataFrame({"threshold": [0.8, 0.5, 0.2], "precision": [1.0, 0.8, 0.4], "recall": [0.2, 0.8, 1.0]})
    text = words(figures.over_thresholds(table, SAMPLE, 0.2))
    assert "highest Dice, 0.8000 at 0.50" in text
    assert "in use, 0.5714 at 0.2" in text


def test_ours_stands_on_the_papers_line_of_the_same_network(draw):
    figure = draw["paper_against_ours"]()
    miou, ap = figure.axes
    assert "mIoU: 79.00 %" in words(figure)
    assert "ours, CSAMNet-S, 2 seeds" in words(figure)
    rows = [label.get_text() for label in miou.get_yticklabels()]
    (ticks,) = [line for line in ap.lines if list(line.get_xdata()) == [0.9, 0.91]]
    assert [rows[int(y)] for y in ticks.get_ydata()] == ["CSAMNet-S", "CSAMNet-S"]
    filled, hollow = miou.lines[:2]
    assert "UNet" in {rows[int(y)] for y in filled.get_ydata()}
    assert {"SegNet", "CSAMNet-L"} <= {rows[int(y)] for y in hollow.get_ydata()}


def test_per_image_leaves_out_what_is_not_defined(per_image):
    figure = figures.per_image(per_image.assign(pq=np.nan), SAMPLE, {"miou": 0.7, "ap": None})
    assert len(figure.axes) == 2
    assert "pooled 70.00 %" in words(figure)


def test_error_pixels_by_hand(views):
    truth, probability = np.array([[1, 1], [0, 0]], bool), np.array([[0.9, 0.1], [0.9, 0.1]], np.float32)
    view = views[0]._replace(image=np.zeros((2, 2, 3), np.uint8), truth=truth, probability=probability)
    assert figures.error_pixels(view).tolist() == [[1, 2], [3, 0]]
    overlay = figures.error_overlay(view)
    assert overlay[1, 1].tolist() == [110, 110, 110]
    *colour, cover = figures.ERRORS["missed"]
    missed = (1 - cover / 255) * 110 + cover / 255 * np.array(colour)
    np.testing.assert_allclose(overlay[0, 1], missed, atol=0.5)


def seen_without(kind: str, colours: np.ndarray) -> np.ndarray:
    """Colours (n, 3) of 0 to 1 as seen without one kind of cone (Machado, Oliveira and Fernandes 2009)."""
    matrix = {
        "none": np.eye(3),
        "red": [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
        "green": [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
        "blue": [[1.256, -0.077, -0.179], [-0.078, 0.931, 0.148], [0.005, 0.691, 0.304]],
        "all": [[0.2126, 0.7152, 0.0722]] * 3,
    }[kind]
    return colours @ np.transpose(matrix)


@pytest.mark.parametrize("kind", ["none", "red", "green", "blue", "all"])
def test_kinds_of_error_differ_for_every_sight(kind):
    colours = seen_without(kind, np.array([colour[:3] for colour in figures.ERRORS.values()]) / 255)
    distance = np.linalg.norm(colours[:, None] - colours[None], axis=-1) + 9 * np.eye(3)
    assert distance.min() > 0.2


def test_the_worst_place_is_found(views):
    truth = np.zeros((SIZE, SIZE), bool)
    probability = np.full((SIZE, SIZE), 0.1, np.float32)
    probability[60:80, 10:30] = 0.9
    clean = views[0]._replace(truth=truth, probability=np.full((SIZE, SIZE), 0.1, np.float32))
    wrong = views[0]._replace(truth=truth, probability=probability)
    share, box = figures._window(figures.error_pixels(wrong) > 1, 32)
    assert share == pytest.approx(400 / 32**2)
    assert probability[box].sum() == pytest.approx(400 * 0.9 + 624 * 0.1)
    axes = figures.worst_places([clean, wrong._replace(organ="skin")], SAMPLE, side=32).axes
    assert [ax.get_title("left") for ax in axes] == ["skin", clean.organ, "", "", "", ""]
    assert np.array_equal(axes[3].images[0].get_array(), figures.error_overlay(wrong)[box]), "below its own outlines"
    assert figures.worst_places([clean], SAMPLE, side=500).axes  # a window larger than the image


def test_sizes_stand_in_groups_of_equal_number(draw):
    found, quality = draw["by_size"]().axes
    line = found.lines[0].get_xydata()
    assert line[:, 1].tolist() == [0] * 4 + [1] * 4, "an IoU of one half is not enough"
    assert line[0, 0] == pytest.approx(6.5 * 0.25**2), "the median of twelve areas, in square micrometres"
    assert np.nanmax(quality.lines[0].get_ydata()) == 0.75
    assert len(figures.by_size(each(5), SAMPLE).axes[0].lines[0].get_xdata()) == 1, "too few for groups"


def test_changes_stand_beside_the_unchanged(draw):
    haematoxylin, _, coarser = draw["robustness"]().axes
    assert haematoxylin.lines[0].get_xydata().tolist() == [[0.5, 0.5], [1, 0.8]]
    assert coarser.lines[0].get_xydata().tolist() == [[0.25, 0.8], [0.5, 0.4]]
    assert coarser.lines[2].get_xydata().tolist() == [[0.25, 0.8], [0.5, 0.6]]
    assert [line.get_linestyle() for line in haematoxylin.lines] == ["-", "-"], "nothing is normalised"
    dotted = figures.robustness(CHANGED, SAMPLE, 0.25, {"1": CHANGED.assign(miou=0.7)})
    haematoxylin, _, coarser = dotted.axes
    assert haematoxylin.lines[2].get_xydata().tolist() == [[0.5, 0.7], [1, 0.7]]
    assert len(coarser.lines) == 4, "normalising is of stains"
    assert "mIoU, normalised 1" in [text.get_text() for text in dotted.legends[0].get_texts()]
    grey = CHANGED[CHANGED["change"].isin(["none", "coarser"])].reset_index(drop=True)
    assert len(figures.robustness(grey, SAMPLE).axes) == 1, "nothing is stained"


def test_a_learning_curve_runs_through_the_means(draw):
    (ax,) = draw["learning_curve"]().axes
    drawn = {line.get_label(): line.get_xydata().tolist() for line in ax.lines}
    assert drawn["mIoU, test"] == [[1, 0.6], [8, 0.75]]
    assert drawn["mIoU, validation"] == pytest.approx(np.array([[1, 0.8], [8, 0.85]]))


def test_images_without_dice_are_neither_best_nor_worst(views):
    empty = views[0]._replace(name="nothing in it", dice=np.nan)
    shown = figures.best_and_worst([views[1], empty, views[0], empty], SAMPLE)
    assert [ax.get_title("left") for ax in shown.axes][1::2] == [views[1].name, views[0].name]


def test_display_gives_notebooks_the_text(draw, monkeypatch):
    sent = []
    monkeypatch.setattr("IPython.display.publish_display_data", lambda *given: sent.append(given))
    figures.display(draw["history"]())
    figures.display(draw["image_sheet"]())
    (chart, about), (below,), (photographs, _), (other,) = sent
    assert '<a href="../api.html#csamnet.pages.figures.history">' in below["text/html"]
    assert "#csamnet.pages.figures.image_sheet" in other["text/html"]
    assert chart["image/svg+xml"].startswith("<?xml")
    assert about["image/svg+xml"]["alt"] == chart["text/plain"]
    assert base64.b64decode(photographs["image/jpeg"])[:2] == b"\xff\xd8"


# -------------------------------------------------------------------------------------------- networks


def rows_of(ax) -> dict[float, str]:
    """What stands at each tick of the vertical axis."""
    return dict(zip(ax.get_yticks().tolist(), [label.get_text() for label in ax.get_yticklabels()], strict=True))


def test_every_network_stands_on_its_line(draw):
    figure = draw["comparison"]()
    miou, ap, _ = figure.axes
    rows = rows_of(miou)
    assert [*rows.values()][:4] == ["CSAMNet-S", "UNet", "SegNet", "Otsu"]
    assert {"DCSAU-Net (not run)", "CSAMNet-L (not run)"} <= {*rows.values()}
    dots = {line.get_label(): line.get_xydata() for line in ap.lines if line.get_marker() in ("o", "D")}
    assert {name: dots[name].tolist() for name in ("CSAMNet-S", "SegNet")} == {
        "CSAMNet-S": [[0.9, 0]],
        "SegNet": [[0.86, 2]],
    }
    paper = {rows[y - 0.25]: x for x, y in dots["paper"]}
    assert paper["CSAMNet-S"] == 0.9111
    assert paper["StarDist (not run)"] == 0.8271
    ends = [line.get_xdata() for line in ap.lines if line.get_linewidth() == 0.9]
    np.testing.assert_allclose(ends[0], [0.88, 0.91])
    assert "Otsu" not in dots
    assert {text.get_text() for text in ap.texts} == {"*", "◂ 0.6000"}
    (star,) = [text for text in ap.texts if text.get_text() == "*"]
    assert round(star.get_position()[1]) == 2, "only SegNet differs"
    assert (
        "highest first: CSAMNet-S 80.00 %, UNet 79.00 %, SegNet 76.00 %, Otsu 50.00 %. Not run: " in figure.get_label()
    )


def test_comparison_of_samples_has_no_paper():
    figure = figures.comparison(compared(CSAMNet_S=0.8, Otsu=0.5), SAMPLE)
    assert [*rows_of(figure.axes[0]).values()] == ["CSAMNet-S", "Otsu"]
    assert "paper" not in words(figure)
    alone = figures.comparison(compared(Otsu=0.5), SAMPLE)
    assert "◂" not in words(alone), "with nothing above it, the threshold is drawn"


def test_the_best_curves_have_colours_and_ours_lies_on_top(curve):
    figure = models_curves(curve, "UNet", "CSAMNet-S", "SegNet", "AttUNet", "StarDist", "CellPose", "Otsu")
    above, roc, below, _ = figure.axes
    lines = {line.get_label(): line for line in above.lines}
    assert max(lines.values(), key=lambda line: line.get_zorder()) is lines["CSAMNet-S"]
    grey = {name for name, line in lines.items() if line.get_color() == figures.GREY}
    assert grey == {"CellPose", "Otsu"}
    np.testing.assert_allclose(lines["SegNet"].get_ydata(), curve["precision"] * 0.98**2)
    np.testing.assert_array_equal(roc.lines[0].get_xdata(), curve["fpr"])
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.texts][::5] == ["UNet, AP 0.9000", "2 others, AP 0.8400 to 0.8500"]
    (box,) = above.patches
    assert below.get_xlim() == pytest.approx((box.get_x(), box.get_x() + box.get_width()))
    at = (1 - curve["recall"]) ** 2 + (1 - curve["precision"] * 0.98) ** 2
    assert (
        box.get_bbox()
        .padded(0.01)
        .contains(*curve.assign(precision=curve["precision"] * 0.98).loc[at.idxmin(), ["recall", "precision"]])
    )


def test_bubbles_are_as_large_as_parameters(draw):
    figure = draw["cost"]()
    (ax,) = figure.axes
    others, _, family, _, *_ = ax.collections
    assert others.get_offsets().data.tolist() == [[3, 0.76], [2, 0.79]]  # the largest first; Otsu has none
    sizes = [*others.get_sizes(), *family.get_sizes()]
    np.testing.assert_allclose(np.divide(sizes, sizes[0]), np.divide([3, 2, 1, 5], 3))
    (line,) = ax.lines
    assert line.get_xydata().tolist() == [[1, 0.8], [5, 0.81]], "S to M"
    assert "SegNet 76.00 %, 3.0 G, 3.0 M" in figure.get_label()
    assert [text.get_text() for text in figure.legends[0].texts] == ["0.3 M", "1 M", "3 M"]


def test_names_of_bubbles_do_not_lie_on_one_another():
    figure = gallery.paper_cost()
    names = [text for text in figure.axes[0].texts if text.get_text()]
    assert len(names) == 15  # the paper draws no HoVer-NeXt
    assert not overlapping(figure, names)


def overlapping(figure, texts) -> list[tuple[str, str]]:
    figure.draw_without_rendering()
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts]
    return [(a, b) for i, (a, one) in enumerate(boxes) for b, two in boxes[i + 1 :] if one.overlaps(two)]


def test_ablation_says_the_difference(draw):
    figure = draw["ablation"]()
    dcf, csam, size = figure.axes
    assert [ax.get_title("left") for ax in figure.axes] == ["Detail-context fusion", "Cross-scale attention", "Size"]
    assert [*rows_of(csam).values()] == ["full network", "channel only"]
    dots = [line.get_xydata().tolist() for line in dcf.lines if line.get_marker() in ("o", "D")]
    assert dots == [[[0.8, 0]], [[0.78, 1]]]
    (right,) = size.child_axes
    assert [*rows_of(right).values()] == ["80.00 %", "+1.00 points"]
    assert "full network 80.00 %, no DCF 78.00 %" in figure.get_label()


def test_visual_shows_the_whole_and_where_methods_differ(views):
    methods = seen(views)
    figure = figures.visual(methods, SAMPLE, np.s_[8:40, 16:64])
    titles = [ax.get_title("left") for ax in figure.axes]
    assert titles[:3] == ["\ntruth", f"CSAMNet-S\nDice {views[2].dice:.3f}", "UNet\nDice 0.300"]
    whole, part = (ax.images[0].get_array() for ax in (figure.axes[2], figure.axes[5]))
    np.testing.assert_array_equal(whole, figures.error_overlay(methods["UNet"]))
    np.testing.assert_array_equal(part, whole[8:40, 16:64])
    (mark,) = figure.axes[0].patches
    assert mark.get_bbox().bounds == (16, 8, 48, 32)
    better = views[0]._replace(probability=views[0].truth.astype(np.float32))
    flawed = better.probability.copy()
    flawed[50:60, 70:80] = 1 - flawed[50:60, 70:80]
    (mark,) = figures.visual({"a": better, "b": better._replace(probability=flawed)}, SAMPLE, side=32).axes[0].patches
    assert mark.get_bbox().contains(75, 55)


def test_many_methods_stand_four_in_a_row(views):
    figure = figures.visual({str(i): views[0] for i in range(13)}, SAMPLE, side=32)
    assert len(figure.axes) == 4 * 4 * 2
    assert sum(bool(ax.images) for ax in figure.axes) == 2 * 14


# ---------------------------------------------------------------------------------------- architecture


def test_trace_is_what_the_network_makes():
    shapes = architecture.trace(CSAMNet(8))
    assert [shapes[f"encoder.{i}"] for i in range(4)] == [(8, 128, 128), (16, 64, 64), (32, 32, 32), (64, 16, 16)]
    assert shapes["neck.align.2"] == shapes["csam.merge"] == (8, 128, 128)
    assert shapes[""] == (2, 256, 256)


@pytest.fixture(scope="module")
def drawing():
    return figures.architecture()


def test_the_drawing_follows_the_network(drawing):
    other = figures.architecture(CSAMNet(16))
    wide, narrow = words(drawing), words(other)
    for text in ("stage 4\n256 × 16²", "ASPP: f₄\n256 × 16²", "head\n2 × 128²", "logits\n2 × 256²", "32→8→32"):
        assert text in wide
    for text in ("stage 4\n128 × 16²", "16→4→16", "width 16"):
        assert text in narrow
        assert text not in wide
    for text in ("dilations of 6, 12, 18", "1×21, 21×1", "dw\n5×5", "D/2→D/2", "25 % of 2D"):
        assert text in wide
        assert text in narrow
    assert "four encoder stages (16 × 128², 32 × 64²," in other.get_label()


def test_nothing_in_the_drawing_overlaps(drawing):
    figure = drawing
    texts = [text for text in figure.findobj(Text) if text.get_text()]
    assert not overlapping(figure, texts)
    assert min(text.get_fontsize() for text in texts) >= 7
    frame = figure.bbox
    for ax in figure.axes:
        boxes = [patch.get_window_extent() for patch in ax.patches if patch.get_facecolor()[3]]
        for text in ax.texts:
            extent = text.get_window_extent()
            assert frame.contains(*extent.min), text
            assert frame.contains(*extent.max), text
            touched = [box for box in boxes if box.overlaps(extent)]
            whole = [box for box in touched if box.contains(*extent.min) and box.contains(*extent.max)]
            assert touched == whole, f"{text.get_text()!r} leaves its box"


# --------------------------------------------------------------------------------------------- gallery


def test_all_figures_are_made_from_results(tmp_path, monkeypatch, curve):
    for kind, names in {"rivals": NETWORKS, "variants": VARIANTS}.items():
        for name in names:
            folder = tmp_path / kind / name.replace("_", "-") / "test"
            folder.mkdir(parents=True)
            curve.to_csv(folder / "curves.csv")
    summary = {"n": 14, "data": {"name": "MoNuSeg", "kind": "real"}}
    runs = {path.name: [path] for path in sorted(tmp_path.glob("*/*"))}
    tabled = {"UNet": compared(**NETWORKS), "CSAMNet-M": compared(**VARIANTS)}
    monkeypatch.setattr(gallery, "collect", lambda *_: runs)
    monkeypatch.setattr(gallery, "read_summary", lambda _: summary)
    monkeypatch.setattr(gallery, "compare", lambda runs, _: next(t for name, t in tabled.items() if name in runs))
    made = gallery.of_experiments("MoNuSeg", "short")
    assert [*made] == ["comparison", "pr_roc_models", "cost", "ablation"]
    assert all("MoNuSeg · test, 14 images · measured on real data" in words(figure) for figure in made.values())
    runs.pop("CSAMNet-S")
    assert gallery.of_experiments("MoNuSeg", "short") == {}


def test_without_runs_there_are_the_figures_that_need_none(tmp_path):
    with pytest.raises(InputError, match="there are no results"):
        gallery.make_figures(tmp_path / "results", tmp_path / "out")
    (tmp_path / "results").mkdir()
    made = gallery.make_figures(tmp_path / "results", tmp_path / "out")
    names = [f"{name}.{kind}" for name in ("architecture", "cost-paper") for kind in ("svg", "png", "pdf")]
    assert [path.name for path in made] == names
    assert sorted((tmp_path / "out").iterdir()) == sorted(made)


# -------------------------------------------------------------------------------------------- explorer


@pytest.fixture(scope="module")
def explorer(views):
    pytest.importorskip("ipywidgets")
    from csamnet.pages.explorer import Explorer

    return Explorer(views, thresholds=(30, 50, 70))


def picture(frame: str) -> Image.Image:
    data = re.search(r'src="data:image/png;base64,([^"]+)"', frame)[1]
    return Image.open(io.BytesIO(base64.b64decode(data)))


def test_explorer_links_its_controls_to_stored_frames(explorer):
    from ipywidgets import Widget

    widget = explorer.widget()
    image, layer, threshold, outer, _ = widget.children
    assert [c.description for c in (image, layer, threshold)] == ["image", "layer", "threshold"]
    assert threshold.label == "50 %"
    models = Widget.get_manager_state()["state"].values()
    links = {
        (m["state"]["source"][0], m["state"]["target"][0])
        for m in models
        if m["model_name"] == "LinkModel" and m["state"]["target"][1] == "selected_index"
    }

    def reference(model) -> str:
        return f"IPY_MODEL_{model.model_id}"

    assert (reference(image), reference(outer)) in links
    for inner in outer.children:
        assert (reference(layer), reference(inner)) in links
        for turned in inner.children[:2]:
            assert (reference(threshold), reference(turned)) in links
            assert len(turned.children) == 3
            assert turned.selected_index == 1


def test_explorer_frames_show_the_errors_and_say_so(explorer, views):
    frame = explorer.frame(0, "errors", 50)
    np.testing.assert_array_equal(np.array(picture(frame)), figures.error_pixels(views[0]))
    assert picture(frame).info["transparency"][0] == 0
    assert f"Dice {views[0].dice:.4f}" in frame
    assert f'alt="errors of {views[0].name} ({views[0].organ}).' in frame
    outlines = explorer.frame(0, "outlines", 50)
    assert "nuclei found, 9 true." in outlines
    assert "lesions found, 9 true." in type(explorer)(views, LESION).frame(0, "outlines")
    assert set(np.unique(np.array(picture(outlines)))) == {0, 1, 2}
    assert explorer.frame(0, "probability") != explorer.frame(1, "probability")


def test_explorer_draws_any_threshold_with_a_kernel(explorer):
    image, layer, threshold, shown, _ = explorer.widget(live=True).children
    threshold.index = 36
    assert "At 37 %" in shown.value
    layer.value, image.index = "outlines", 1
    assert shown.value == explorer.frame(1, "outlines", 37)


def test_explorer_is_small_and_names_are_escaped(views):
    pytest.importorskip("ipywidgets")
    from ipywidgets import Widget

    from csamnet.pages.explorer import Explorer

    def enlarged(view: figures.View) -> figures.View:
        planes = {key: np.tile(getattr(view, key), (4, 4)) for key in ("truth", "labels", "probability")}
        return view._replace(name='<b>"A&B', image=np.tile(view.image, (4, 4, 1)), **planes)

    large = [enlarged(view) for view in [*views, *views]]
    before = len(json.dumps(Widget.get_manager_state()))
    widget = Explorer(large).widget()
    assert len(json.dumps(Widget.get_manager_state())) - before < 1.5e6
    assert len(widget.children[0].options) == 4
    assert "&lt;b&gt;&quot;A&amp;B" in Explorer(large).frame(0, "photograph")


@pytest.mark.parametrize(("length", "most", "expected"), [(1, 4, [0]), (4, 4, [0, 1, 2, 3]), (10, 4, [0, 3, 6, 9])])
def test_spread(length, most, expected):
    assert figures.spread(length, most) == expected


def test_many_images_become_boxes(tmp_path):
    from csamnet.pages.figures import MOST

    rng = np.random.default_rng(0)
    many = pd.DataFrame({"organ": ["lung"] * 200 + ["brain"] * 50, "miou": rng.uniform(0.2, 0.4, 250)})
    figure = figures.per_image(many, "sample data", {"miou": 0.3}, ("miou",))
    (ax,) = figure.axes
    assert len(ax.patches) == 2, "a box for each organ"
    few = figures.per_image(many[:MOST], "sample data", {"miou": 0.3}, ("miou",))
    assert not few.axes[0].patches
    contrast = pd.DataFrame({"split": "test", "inside": rng.random(500), "outside": rng.random(500)})
    objects = pd.DataFrame({"split": "test", "area": rng.uniform(10, 90, 500)})
    _, right = figures.object_statistics(objects, contrast, "sample data").axes
    assert right.get_ylabel() == f"{MOST} of 500 images"
    assert len(right.collections[0].get_segments()) == MOST
