"""The notebooks refuse what cannot be run before anything runs, and what they leave is fit to be read."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from csamnet.config import make_config
from csamnet.evaluate import Measured, write_evaluation
from csamnet.files import InputError, read_json, write_json
from csamnet.metrics import BINS, coarse, image_metrics
from csamnet.pages import execution, notebooks, tables
from csamnet.pages.compare import compare
from csamnet.prepare import prepare
from csamnet.results import hardware, libraries, run_folder
from csamnet.samples import make_sample

nbformat = pytest.importorskip("nbformat", reason="the extra `notebooks` is not installed")
pytest.importorskip("papermill")

ROOT = Path(__file__).resolve().parents[1]
TEMPLATES = sorted((ROOT / "notebooks").glob("*.ipynb"))
DATASET, MEASURED = ROOT / "notebooks" / "dataset.ipynb", ROOT / "notebooks" / "measured.ipynb"
NAMES = ("dataset", "profile", "seed", "model", "epochs", "device", "root", "results")
GIVEN = dict.fromkeys(NAMES) | {"dataset": "MoNuSeg", "profile": "sample", "seed": 0, "device": "auto"}


def run(*command: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True)


# ------------------------------------------------------------------------------------------- templates


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_templates_are_well_made(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.source.count("\n") < 16 for cell in code)
    assert all(cell.metadata.keys() <= {"tags"} for cell in notebook.cells)  # no label to be repeated
    assert "this data set" in notebook.cells[0].source.splitlines()[0].lower()
    headings = [c for c in notebook.cells if c.cell_type == "markdown" and c.source.startswith("# ")]
    assert len(headings) == 1
    assert "widgets" not in notebook.metadata


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_parameters_are_plain(path):
    notebook = nbformat.read(path, as_version=4)
    (cell,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    values: dict = {}
    exec(cell.source, values)
    values.pop("__builtins__")
    assert all(isinstance(value, (str, int, float, type(None))) for value in values.values())
    assert values["dataset"] in ("MoNuSeg", "BACH2018")


# -------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"dataset": "MonuSag"}, "did you mean MoNuSeg?"),
        ({"profile": "smaple"}, "did you mean 'sample'?"),
        ({"model": "CSAMNet-XL"}, "unknown model"),
        ({"seed": -1}, "seed cannot be used"),
        ({"epochs": 0}, "epochs cannot be used"),
        ({"epochs": "many"}, "epochs cannot be used"),
        ({"device": "tpu"}, "unknown device"),
        ({"epoch": 3}, "unknown parameter"),
    ],
)
def test_impossible_parameters_are_refused(wrong, message):
    with pytest.raises(InputError, match=message.replace("?", r"\?")):
        notebooks.notebook_config(GIVEN | wrong, NAMES)


def test_parameters_make_a_run(tmp_path, monkeypatch):
    config, root, results, device = notebooks.notebook_config(GIVEN | {"epochs": 2, "dataset": "monuseg"}, NAMES)
    assert config == make_config("sample", epochs=2)
    assert (root.parts[-2:], results.name, device) == (("prepared", "samples"), "results", "auto")
    assert notebooks.notebook_config(GIVEN | {"profile": "paper"}, NAMES)[1].name == "prepared"
    (tmp_path / "MoNuSeg").mkdir()
    (tmp_path / "MoNuSeg" / "dataset.json").touch()
    monkeypatch.setattr(notebooks, "PREPARED", tmp_path)
    assert notebooks.notebook_config(dict(GIVEN), NAMES)[1] == tmp_path, "prepared images before look-alikes"


def test_a_cell_can_be_run_again():
    namespace = dict(GIVEN)
    notebooks.notebook_config(namespace, NAMES)
    namespace["test"] = "a variable of the notebook"
    assert notebooks.notebook_config(namespace, NAMES)[0] == make_config("sample")


def test_data_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match="csamnet prepare MoNuSeg --from RELEASE"):
        notebooks.prepared(make_config("short"), tmp_path)


def test_command_refuses_before_anything_runs(tmp_path):
    out, results = tmp_path / "out.ipynb", tmp_path / "results"
    for wrong in ({"epoch": 3}, {"dataset": "MonuSag"}):
        with pytest.raises(InputError):
            execution.run_notebook(DATASET, out, {"results": str(results)} | wrong)
    with pytest.raises(InputError, match="no such notebook"):
        execution.run_notebook(tmp_path / "none.ipynb", out, {})
    assert not any(tmp_path.iterdir())


def test_a_template_keeps_its_own_data_set_and_finds_weights_from_here(tmp_path, monkeypatch):
    """The templates run in the project's folder, whatever the folder of the caller."""
    asked = []
    monkeypatch.setattr("papermill.execute_notebook", lambda template, out, given, **_: asked.append(given))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.safetensors").touch()
    for weights, dataset in (("mine.safetensors", None), ("MoNuSeg", "inhouse")):
        given = {"weights": weights} | ({"dataset": dataset} if dataset else {})
        execution.run_notebook(ROOT / "notebooks" / "slides.ipynb", tmp_path / "out.ipynb", given)
    assert [given["dataset"] for given in asked] == ["BACH2018", "InHouse"]
    assert [given["weights"] for given in asked] == [str(tmp_path / "mine.safetensors"), "MoNuSeg"]


def test_papermill_itself_refuses_before_anything_runs(tmp_path):
    places = ["-p", "root", str(tmp_path / "prepared"), "-p", "results", str(tmp_path / "results")]
    done = run("papermill", str(DATASET), str(tmp_path / "out.ipynb"), *places, "-p", "epoch", "3")
    assert done.returncode != 0
    assert "unknown parameter of the notebook" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["out.ipynb"]


# ----------------------------------------------------------------------------------- the page of a data set


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with the page of a tiny look-alike data set, as executed."""
    folder = tmp_path_factory.mktemp("page")
    release = make_sample("MoNuSeg", folder / "samples", train=3, test=2, size=160)
    prepare("MoNuSeg", release, folder / "prepared")
    settings = {"dataset": "MoNuSeg", "profile": "sample", "epochs": 1, "steps_per_epoch": 2}
    places = {"root": folder / "prepared", "results": folder / "results"}
    parameters = [f"--parameter={key}={value}" for key, value in (settings | places).items()]
    done = run("csamnet", "notebook", str(DATASET), str(folder / "page.ipynb"), *parameters)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "epoch   1  loss" in done.stdout  # progress is seen
    return folder


@pytest.fixture(scope="module")
def page(place):
    return nbformat.read(place / "page.ipynb", as_version=4)


def outputs(page) -> list:
    return [(cell, output) for cell in page.cells for output in cell.get("outputs", [])]


def markdown(page) -> str:
    return "\n".join(out.data.get("text/markdown", "") for _, out in outputs(page) if "data" in out)


def test_page_says_whose_numbers_it_has(page):
    assert page.cells[0].source.startswith("# MoNuSeg, sample data: from images to numbers\n")
    text = markdown(page)
    assert "**Sample data.** 2 training, 1 validation and 2 test images" in text
    assert "**Nothing here can be compared with the paper**" in text
    assert "80.31" not in text
    assert "| **epoch kept** | 1 of 1, by validation mIoU |" in text


def test_pictures_have_a_text_and_their_source(page):
    pictures = [(c, o) for c, o in outputs(page) if {"image/svg+xml", "image/jpeg"} & o.get("data", {}).keys()]
    assert len(pictures) == 11
    for cell, output in pictures:
        assert cell.metadata.mystnb.image.alt == output.data["text/plain"]
        assert cell.metadata.mystnb.image.alt.endswith("sample data.")
    assert len({cell.metadata.mystnb.image.alt for cell, _ in pictures}) == 11


def test_page_carries_the_explorer(page):
    state = page.metadata.widgets["application/vnd.jupyter.widget-state+json"]["state"]
    models = [model["model_name"] for model in state.values()]
    assert models.count("StackModel") == 1 + 2 + 2 * 2  # images; layers; thresholds of two layers
    assert models.count("LinkModel") == models.count("StackModel")
    assert len(json.dumps(state)) < 2e6


def test_page_is_tidy(page, place):
    assert "papermill" not in page.metadata
    assert all(not {"papermill", "execution"} & cell.metadata.keys() for cell in page.cells)
    tags = [cell.metadata.get("tags", []) for cell in page.cells]
    assert ["parameters", "remove-cell"] in tags
    assert ["injected-parameters", "hide-input"] in tags
    assert not any(output.output_type == "error" for _, output in outputs(page))
    assert not [path for path in place.iterdir() if path.name.startswith(".")]


# ----------------------------------------------------------------------------- the page of real runs


def real_run(results: Path, seed: int, profile: str = "paper", kind: str = "real") -> Path:
    """A run folder as train and evaluate leave it, with made-up numbers."""
    import torch

    config = make_config(profile, seed=seed)
    folder, rng = run_folder(config, results), np.random.default_rng(seed)
    card = {
        "name": "MoNuSeg",
        "kind": kind,
        "manifest_sha256": "0" * 64,
        "counts": {"train": 24, "val": 6, "test": 14},
    }
    histogram, rows, objects = np.zeros((2, BINS), np.int64), [], []
    for organ in ("brain", "lung", "colon"):
        labels = np.kron(rng.permutation(16).reshape(4, 4) % 5, np.ones((12, 12), int))
        probability = np.clip((labels > 0) * 0.6 + rng.uniform(0, 0.45, labels.shape), 0, 1).astype(np.float32)
        row = {"name": f"TCGA-{organ}", "group": f"TCGA-{organ}", "organ": organ, "height": 48, "width": 48}
        rows.append(row | image_metrics(probability, labels > 0, labels, total=histogram, objects=objects))
    device = hardware(torch.device("cpu"))
    found = pd.DataFrame(objects, columns=["area", "iou"]).assign(name="TCGA-brain")
    measured = Measured(rows, {"": histogram}, np.array([coarse(histogram)]), found)
    write_evaluation(folder / "test", measured, config, {"data": card, "hardware": device})
    epochs = np.arange(1, 4)
    columns = ("lr", "drop_rate", "loss", "loss_ce", "loss_dice", "val_miou", "val_dice", "val_ap")
    history = pd.DataFrame({"epoch": epochs} | dict.fromkeys(columns, epochs / 10))
    history.to_csv(folder / "history.csv", index=False)
    about = {
        "status": "done",
        "config": config.to_dict(),
        "data": card,
        "code_sha256": "1" * 64,
        "precision": "bf16",
    }
    about |= {
        "wall_s": 5400,
        "images_per_s": 12.5,
        "peak_memory_mb": 900,
        "best_epoch": 3,
        "parameters": 6440000,
    }
    write_json(folder / "run.json", about | {"libraries": libraries(), "hardware": device, "fingerprint": "2"})
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """A results folder with two seeds of the full recipe, a shorter run, and one on sample data."""
    results = tmp_path_factory.mktemp("results")
    for seed, profile, kind in (
        (0, "paper", "real"),
        (1, "paper", "real"),
        (0, "short", "real"),
        (0, "sample", "sample"),
    ):
        real_run(results, seed, profile, kind)
    return results


def test_the_real_runs_with_most_steps_are_told_of(runs, tmp_path):
    given = {"dataset": "monuseg", "results": str(runs)}
    dataset, _, found = notebooks.notebook_runs(given, tuple(given))
    assert dataset == "MoNuSeg"
    assert [folder.name for folder in found] == ["CSAMNet-S-paper-seed0", "CSAMNet-S-paper-seed1"]
    nothing = {"dataset": "MoNuSeg", "results": str(tmp_path)}
    with pytest.raises(notebooks.NotRun, match="No finished run on MoNuSeg's real images"):
        notebooks.notebook_runs(nothing, tuple(nothing))


def test_measured_page(runs, tmp_path):
    execution.run_notebook(MEASURED, tmp_path / "page.ipynb", {"dataset": "MoNuSeg", "results": str(runs)})
    page = nbformat.read(tmp_path / "page.ipynb", as_version=4)
    text = markdown(page)
    assert page.cells[0].source.startswith("# MoNuSeg: measured on real images\n")
    assert "**Measured on real data.** Runs: `MoNuSeg/CSAMNet-S-paper-seed0`, `MoNuSeg/CSAMNet-S-paper-seed1`" in text
    assert "| CSAMNet-S, paper | mIoU | 80.31 % |" in text
    assert "| CSAMNet-L | mIoU | 80.76 % | chart |   |   |   | *not run* |   |" in text
    assert "sample data" not in text
    kinds = [kind for _, output in outputs(page) for kind in output.get("data", {}) if kind.startswith("image/")]
    assert kinds == ["image/svg+xml"] * 8  # no photographs


def test_measured_page_without_runs(tmp_path):
    execution.run_notebook(MEASURED, tmp_path / "page.ipynb", {"results": str(tmp_path)})
    title, told = nbformat.read(tmp_path / "page.ipynb", as_version=4).cells
    assert title.source.startswith("# MoNuSeg: measured on real images\n")
    assert told.source.startswith("**Not run.** No finished run on MoNuSeg's real images")


def test_what_was_not_kept_is_not_explained(runs, tmp_path):
    """A run without scores and objects, on a data set of which the paper prints nothing."""
    shutil.copytree(runs / "MoNuSeg" / "CSAMNet-S-short-seed0", folder := tmp_path / "BUSI" / "CSAMNet-S-short-seed0")
    for name in ("scores.npz", "objects.csv"):
        (folder / "test" / name).unlink()
    for path in (folder / "run.json", folder / "test" / "summary.json"):
        path.write_text(path.read_text().replace('"MoNuSeg"', '"BUSI"'))
    execution.run_notebook(MEASURED, tmp_path / "page.ipynb", {"dataset": "BUSI", "results": str(tmp_path)})
    page = nbformat.read(tmp_path / "page.ipynb", as_version=4)
    text = "\n".join(cell.source for cell in page.cells if cell.cell_type == "markdown")
    assert "Image by image" in text
    for gone in ("beside all networks", "Can a probability be believed?", "Are small ones missed"):
        assert gone not in text
    assert "| network, profile | measure | ours | seeds | status | trained on |" in markdown(page)
    assert len([output for _, output in outputs(page) if "image/svg+xml" in output.get("data", {})]) == 5


# ----------------------------------------------------------------------------------------------- tables


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("miou", 0.8031, "80.31 %"),
        ("ap", 0.91114, "0.9111"),
        ("hd95", 4.25, "4.2 px"),
        ("pq", None, "undefined"),
        ("dice", float("nan"), "undefined"),
    ],
)
def test_show(key, value, expected):
    assert tables.show(key, value) == expected


def test_differences_have_a_sign():
    assert tables.difference("miou", 0.79, 0.8031) == "−1.31 points"
    assert tables.difference("ap", 0.92, 0.9111) == "+0.0089"
    assert tables.difference("ap", None, 0.9111) == ""


def test_paper_scores():
    assert tables.paper_scores("MoNuSeg", "CSAMNet-S") == pytest.approx({"miou": 0.8031, "ap": 0.9111, "auc": 0.9715})
    assert tables.paper_scores("MoNuSeg", "CSAMNet-M") == pytest.approx({"miou": 0.8034})
    assert tables.paper_scores("MoNuSeg", "CSAMNet-XS") == {}
    assert tables.paper_scores("CPM17", "CSAMNet-S") == {}


def test_seeds_are_averaged_by_hand():
    assert tables.show_seeds("miou", [0.78, 0.80]) == "79.00 ± 1.41 %"
    assert tables.show_seeds("ap", [0.9, None]) == "undefined"
    assert tables.show_seeds("ap", [0.9]) == "0.9000"


def test_takeaways_by_hand():
    pooled = {"miou": 0.7, "dice": 0.75, "ap": 0.8, "precision": 0.9, "recall": 0.6, "dq": 0.5, "sq": 0.7}
    summary = {"pooled": pooled, "n": 2, "data": {"kind": "real"}}
    table = pd.DataFrame({"organ": ["lung", "brain"], "dice": [0.8, 0.6]})
    text = tables.takeaways(summary, table)
    assert "0.6000 on the worst (brain) and 0.8000 on the best (lung)" in text
    assert "misses more than it makes up: 40.0 % of the nucleus pixels are missed, and 10.0 %" in text
    assert "the weaker part is finding each nucleus" in text
    assert "sample" not in text
    even = tables.takeaways(summary | {"pooled": pooled | {"precision": 0.604}}, table)
    assert "misses about as much as it makes up: 40.0 %" in even
    nothing = {"precision": None, "recall": 0.0, "dq": 0.0, "sq": None}
    text = tables.takeaways({"pooled": pooled | nothing, "n": 2, "data": {"kind": "sample"}}, table)
    assert "no pixel that is called nucleus" in text
    assert "All of this is on sample data" in text


@pytest.mark.parametrize(("seconds", "expected"), [(48.2, "48 s"), (720, "12 min"), (18720, "5.2 h")])
def test_duration(seconds, expected):
    assert tables.duration(seconds) == expected


# --------------------------------------------------------------------------------------- experiments

EXPERIMENT = dict.fromkeys(("epochs", "steps_per_epoch", "measured", "root", "results")) | {
    "dataset": "MoNuSeg", "profile": "sample", "models": "", "seeds": 1, "device": "cpu"}  # fmt: skip


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"profile": "smaple"}, "did you mean 'sample'?"),
        ({"models": "UNet, DSCAU-Net"}, "did you mean 'DCSAU-Net'?"),
        ({"seeds": 0}, "seeds cannot be used"),
        ({"seeds": True}, "seeds cannot be used"),
        ({"models": 5}, "unknown model"),
        ({"epochs": 0}, "epochs cannot be used"),
        ({"dataset": "MonuSag"}, "did you mean MoNuSeg?"),
    ],
)
def test_impossible_experiments_are_refused(tmp_path, wrong, message):
    given = EXPERIMENT | {"results": str(tmp_path)} | wrong
    with pytest.raises(InputError, match=message.replace("?", r"\?")):
        notebooks.experiment_runs("comparison", given, tuple(EXPERIMENT))
    assert not any(tmp_path.iterdir())


def test_an_experiment_trains_what_is_missing_and_shows_it(tmp_path):
    """The whole notebook on a tiny look-alike; then the page of what was measured, of which there is nothing."""
    release = make_sample("MoNuSeg", tmp_path / "samples", train=3, test=2, size=160)
    prepare("MoNuSeg", release, tmp_path / "prepared")
    given = {"models": "StarDist-small", "epochs": 1, "steps_per_epoch": 2, "results": str(tmp_path / "results")}
    out = tmp_path / "comparison.ipynb"
    execution.run_notebook(ROOT / "notebooks" / "comparison.ipynb", out, given | {"root": str(tmp_path / "prepared")})
    runs = sorted(path.name for path in (tmp_path / "results" / "MoNuSeg").iterdir())
    assert runs == ["CSAMNet-XS-sample-seed0", "Otsu-sample-seed0", "StarDist-small-sample-seed0"]
    page = out.read_text()
    assert "**Sample data**" in page
    assert "| StarDist-small | 1 |" in page
    assert "image/jpeg" in page, "the visual comparison"
    execution.run_notebook(ROOT / "notebooks" / "comparison.ipynb", out, {"measured": 1, "results": given["results"]})
    title, told = nbformat.read(out, as_version=4).cells
    assert "MoNuSeg, real images" in title.source
    assert told.source.startswith("**Not run.** No comparison on MoNuSeg's real images")


def test_pages_of_what_was_measured_hold_with_one_run_alone(tmp_path):
    """The repository's own results: a network without rivals or variants is no comparison and no error."""
    given = EXPERIMENT | {"results": str(tmp_path), "measured": 1}
    source = ROOT / "results" / "MoNuSeg" / "CSAMNet-S-short-seed0"
    shutil.copytree(source, tmp_path / "MoNuSeg" / source.name)
    config, *_, runs = notebooks.experiment_runs("comparison", given | {"dataset": "monuseg"}, tuple(EXPERIMENT))
    assert "Only CSAMNet-S was run" in tables.verdict(compare(runs, config.model), config.model)
    with pytest.raises(notebooks.NotRun, match="No ablation"):
        notebooks.experiment_runs("ablation", dict(given), tuple(EXPERIMENT))
    rival = ROOT / "results" / "MoNuSeg" / "UNet-brief-seed0"
    shutil.copytree(rival, tmp_path / "rivals" / "MoNuSeg" / rival.name)
    given = EXPERIMENT | {"results": str(tmp_path / "rivals"), "measured": 1}
    with pytest.raises(notebooks.NotRun):  # nothing to hold it against
        notebooks.experiment_runs("comparison", given, tuple(EXPERIMENT))
    run = read_json(ROOT / "results" / "MoNuSeg" / "CSAMNet-S-brief-seed0" / "run.json")
    folder = tmp_path / "rivals" / "MoNuSeg" / "CSAMNet-S-brief-seed0"
    shutil.copytree(ROOT / "results" / "MoNuSeg" / folder.name, folder)
    summary = read_json(folder / "test" / "summary.json")
    write_json(folder / "test" / "summary.json", summary | {"data": run["data"] | {"kind": "sample"}})
    with pytest.raises(notebooks.NotRun):  # look-alikes are not what was measured on real images
        notebooks.experiment_runs("comparison", given, tuple(EXPERIMENT))


def test_the_longest_budget_with_a_rival_is_told_of_unless_another_is_named(tmp_path):
    def measured(*runs: str, **given) -> tuple[str, list[str]]:
        for run in runs:
            shutil.copytree(ROOT / "results" / "MoNuSeg" / run, tmp_path / "MoNuSeg" / run)
        given = EXPERIMENT | {"results": str(tmp_path), "measured": 1} | given
        config, *_, found = notebooks.experiment_runs("comparison", given, tuple(EXPERIMENT))
        return config.profile, [*found]

    brief = "brief", ["CSAMNet-S", "UNet", "DCSAU-Net", "Otsu"]
    runs = [f"{name}-brief-seed0" for name in brief[1]]
    assert measured(runs[0], "CSAMNet-S-short-seed0") == ("short", ["CSAMNet-S"])
    assert measured(runs[3]) == ("short", ["CSAMNet-S"]), "a threshold is no rival"
    assert measured(*runs[1:3]) == brief
    shutil.copytree(tmp_path / "MoNuSeg" / runs[1], rival := tmp_path / "MoNuSeg" / "UNet-short-seed0")
    about = read_json(rival / "run.json")
    short = make_config("short", model="UNet").to_dict()
    write_json(rival / "run.json", about | {"config": short})
    assert measured() == ("short", ["CSAMNet-S", "UNet"]), "fewer networks, longer trained"
    assert measured(profile="brief") == brief


def test_an_experiment_says_that_validation_images_were_learned_from():
    for profile, told in (("cpu-refit", "6 validation (learned from too) and"), ("short", "6 validation and")):
        folder = ROOT / "results" / "MoNuSeg" / f"CSAMNet-S-{profile}-seed0"
        assert f": 24 training, {told} 14 test images;" in notebooks.about_runs({"S": [folder]}, make_config(profile))


def test_models_of_an_experiment():
    names = notebooks.chosen_models("comparison", "sample", "UNet-small,, SegNet-small, Otsu, UNet-small")
    assert names == ["CSAMNet-XS", "UNet-small", "SegNet-small"]
    assert len(notebooks.chosen_models("comparison", "paper", "")) == 14
