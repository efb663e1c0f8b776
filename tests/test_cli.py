"""The command line: what a person types, what they are told, and exit code 2 for what they can mend."""

from __future__ import annotations

import json
import pickle
import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from csamnet.cli import app
from csamnet.config import make_config
from csamnet.images import write_image
from csamnet.model import CSAMNet
from csamnet.samples import make_sample

ROOT = Path(__file__).resolve().parents[1]
SMALL = ["--set", "epochs=1", "--set", "steps_per_epoch=1", "--set", "batch=2", "--device", "cpu"]


def call(*arguments) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


@pytest.fixture
def weights(tmp_path) -> Path:
    torch.manual_seed(0)
    config = make_config("sample")
    save_file(CSAMNet(16).state_dict(), tmp_path / "w.safetensors", {"config": json.dumps(config.to_dict())})
    return tmp_path / "w.safetensors"


def test_help_names_every_command():
    code, text = call("--help")
    assert code == 0
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    told = set(re.findall(r"^csamnet (\w+)", readme, re.MULTILINE)) | {"samples", "ship", "figures"}
    assert len(told) > 10
    assert told <= set(re.findall(r"\w+", text))


def test_from_look_alikes_to_measures(tmp_path, monkeypatch):
    monkeypatch.setattr("csamnet.samples.make_sample", partial(make_sample, train=5, test=2, size=96))
    code, text = call("samples", "--out", tmp_path / "s")
    assert code == 0
    assert "MoNuSeg" in text
    code, text = call("prepare", "monuseg", "--from", tmp_path / "s" / "MoNuSeg", "--root", tmp_path / "p")
    assert code == 0
    assert "train 4" in text
    options = ["MoNuSeg", "--root", tmp_path / "p", "--profile", "sample", "--results", tmp_path / "r", *SMALL]
    code, text = call("train", *options)
    assert code == 0
    assert "val mIoU" in text
    (run,) = (tmp_path / "r").glob("*/*")
    code, again = call("train", *options)
    assert code == 0
    assert f"csamnet evaluate {run}" in again
    assert "val mIoU" not in again, "it is not trained twice"
    for wanted in ("test", "val"):
        code, text = call("evaluate", run, "--root", tmp_path / "p", "--split", wanted, "--device", "cpu")
        assert code == 0
        assert "sample data" in text
        assert "miou" in text
        names = {"per_image.csv", "objects.csv", "scores.npz", "curves.csv", "summary.json"}
        assert {path.name for path in (run / wanted).iterdir()} == names
    code, text = call("evaluate", run, "--root", tmp_path / "p", "--split", "tests", "--device", "cpu")
    assert code == 2
    assert "the split 'tests' of MoNuSeg is empty" in text
    assert not (run / "tests").exists()


def test_settings_win_over_options(tree, tmp_path):
    options = ["--root", tree, "--results", tmp_path, "--profile", "sample", *SMALL, "--set", "seed=5"]
    assert call("train", "monuseg", *options, "--seed", "1", "--set", "ema=0.5")[0] == 0
    about = json.loads((tmp_path / "MoNuSeg" / "CSAMNet-XS-sample-seed5" / "run.json").read_text())
    assert about["config"]["ema"] == 0.5


def test_real_data_is_called_real(run, tree, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run")
    code, text = call("evaluate", copy, "--root", tree, "--device", "cpu")
    assert code == 0
    assert "measured on real data" in text


def test_predict_writes_five_files_an_image(weights, tmp_path):
    write_image(tmp_path / "a.png", tiny.discs(0, 140, 150)[0])
    code, text = call("predict", tmp_path / "a.png", "--weights", weights, "--out", tmp_path / "out", "--device", "cpu")
    assert code == 0
    assert "nuclei" in text
    assert len(list((tmp_path / "out").glob("a_*"))) == 5


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train", "MoNuSegg"], "MoNuSeg"),
        (["train", "PUMA", "--root", "nowhere"], "PUMA"),
        (["train", "MoNuSeg", "--model", "CSAMNet-SS"], "did you mean 'CSAMNet-"),
        (["train", "MoNuSeg", "--profile", "papr"], "did you mean 'paper'"),
        (["train", "MoNuSeg", "--set", "lrr=1"], "did you mean 'lr'"),
        (["train", "MoNuSeg", "--set", "lr=much"], "lr cannot be used"),
        (["train", "MoNuSeg", "--set", "epochs"], "KEY=VALUE"),
        (["train", "MoNuSeg", "--set", "tile=100"], "multiple of 16"),
        (["train", "MoNuSeg", "--set", "clip=0"], "clip cannot be used"),
        (["prepare", "MoNuSeg", "--from", ".", "--mpp", "0.5"], "--own MODALITY"),
        (["train", "MoNuSeg", "--seed", "-1"], "seed"),
        (["train", "MoNuSeg", "--root", "nowhere"], "dataset.json"),
        (["prepare", "MoNuSeg", "--from", "nowhere", "--root", "here"], "nowhere"),
        (["samples", "Kumarr"], "MoNuSeg"),
        (["evaluate", "nowhere"], "run.json"),
        (["predict", "x.png", "--out", "o", "--weights", "nowhere.safetensors"], "no weights"),
        (["train", "MoNuSeg", "--set", "epochs=1.5"], "epochs cannot be used"),
        (["train", "MoNuSeg", "--set", "tta=yes"], "tta cannot be used"),
        (["train", "MoNuSeg", "--set", "dataset=CPM", "--root", "nowhere"], "MoNuSeg/dataset.json"),
        (["predict", "x.png", "--out", "o", "--weights", "MoNuSegg"], "no weights of this name"),
        (["train", "MoNuSeg", "--set", f"lr={'[' * 100_000}"], "lr cannot be used"),
        (["notebook", "nowhere.ipynb", "o.ipynb"], "no such notebook"),
        (["notebook", ROOT / "README.md", "o.ipynb"], "not a notebook"),
        (["notebook", ROOT / "notebooks" / "dataset.ipynb", "o.ipynb", "-p", "sede=1"], "unknown parameter"),
        (["notebook", ROOT / "notebooks" / "dataset.ipynb", "o.ipynb", "-p", "seed"], "KEY=VALUE"),
    ],
)
def test_what_a_person_can_mend(arguments, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, text = call(*arguments)
    assert code == 2
    assert said in text
    assert "Traceback" not in text
    assert list(tmp_path.iterdir()) == []


def test_no_gpu_where_one_is_asked_for(tree, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    options = ["--root", tree, "--profile", "sample", "--results", tmp_path, "--device", "cuda"]
    code, text = call("train", "MoNuSeg", *options)
    assert code == 2
    assert "no CUDA device" in text
    assert list(tmp_path.iterdir()) == []


def test_empty_split(tmp_path):
    code, text = call("prepare", "MoNuSeg", "--from", tiny.lay(tmp_path / "r", {"train": 4}), "--root", tmp_path / "p")
    assert code == 2
    assert "no image in test" in text
    assert not (tmp_path / "p" / "MoNuSeg").exists()


def test_pickle_offered_as_weights(tmp_path):
    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "sprung",))

    (tmp_path / "w.pth").write_bytes(pickle.dumps(Trap()))
    write_image(tmp_path / "a.png", np.zeros((9, 9, 3), np.uint8))
    code, text = call("predict", tmp_path / "a.png", "--weights", tmp_path / "w.pth", "--out", tmp_path / "out")
    assert code == 2
    assert "not a safetensors file" in text
    assert not (tmp_path / "sprung").exists()
    assert not (tmp_path / "out").exists()


def test_weights_of_another_width(tmp_path):
    config = make_config("sample")
    save_file(CSAMNet(4).state_dict(), tmp_path / "w.safetensors", {"config": json.dumps(config.to_dict())})
    write_image(tmp_path / "a.png", np.zeros((9, 9, 3), np.uint8))
    code, text = call("predict", tmp_path / "a.png", "--weights", tmp_path / "w.safetensors", "--out", tmp_path / "out")
    assert code == 2
    assert "do not fit" in text
    assert "width" in text


def test_truncated_image(weights, tmp_path):
    write_image(tmp_path / "a.png", tiny.discs(0, 100, 100)[0])
    whole = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(whole[: len(whole) // 2])
    code, text = call("predict", tmp_path / "a.png", "--weights", weights, "--out", tmp_path / "out", "--device", "cpu")
    assert code == 2
    assert "cannot be read" in text
    assert "a.png" in text
    assert not (tmp_path / "out").exists()


def test_pixels_that_are_not_finite(weights, tmp_path):
    pixels = np.zeros((20, 20), np.float32)
    pixels[3, 4] = np.inf
    write_image(tmp_path / "a.tif", pixels)
    code, text = call("predict", tmp_path / "a.tif", "--weights", weights, "--out", tmp_path / "out")
    assert code == 2
    assert "NaN or infinity" in text
    assert not (tmp_path / "out").exists()


def test_release_with_wrong_files(tmp_path):
    """Of several kinds at once; what is said of each is tested with the readers."""
    release = tiny.lay(tmp_path / "r")
    (release / "train/img/train0.png").write_bytes(b"")
    (release / "train/inst/train1.png").unlink()
    write_image(release / "train/inst/train2.png", np.ones((9, 9), np.uint16))
    code, text = call("prepare", "MoNuSeg", "--from", release, "--root", tmp_path / "p")
    assert code == 2
    assert all(f"train{number}.png" in text for number in (0, 1, 2))
    assert "Traceback" not in text
    assert not (tmp_path / "p" / "MoNuSeg").exists()


def test_entity_bomb(tmp_path):
    bomb = """<!DOCTYPE x [<!ENTITY a "aaaaaaaa"><!ENTITY b "&a;&a;&a;&a;">]><Annotations>&b;</Annotations>"""
    for split in ("train", "test"):
        write_image(tmp_path / "r" / split / "TCGA-A7-A13E-01Z-00-DX1.tif", np.zeros((9, 9, 3), np.uint8))
        (tmp_path / "r" / split / "TCGA-A7-A13E-01Z-00-DX1.xml").write_text(bomb)
    code, text = call("prepare", "MoNuSeg", "--from", tmp_path / "r", "--root", tmp_path / "p")
    assert code == 2
    assert "TCGA-A7-A13E-01Z-00-DX1.xml" in text
    assert not (tmp_path / "p").exists() or not list((tmp_path / "p").iterdir())


def test_run_folder_with_weights_of_another_width(run, tree, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run")
    save_file(CSAMNet(4).state_dict(), copy / "weights.safetensors")
    code, text = call("evaluate", copy, "--root", tree, "--device", "cpu", "--split", "val")
    assert code == 2
    assert "of width 16" in text
    assert not (copy / "val").exists()


def test_a_file_where_a_folder_belongs(tree, tmp_path):
    (tmp_path / "results").touch()
    options = ["--root", tree, "--profile", "sample", "--results", tmp_path / "results", *SMALL]
    code, text = call("train", "MoNuSeg", *options)
    assert code == 2
    assert "results" in text


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on the size of files")
def test_the_system_refuses_to_write_more(tree, tmp_path):
    """As on a full disk, but for the number of the error."""
    command = [sys.executable, "-W", "error", "-m", "csamnet", "train", "MoNuSeg", "--profile", "sample"]
    command += ["--root", tree, "--results", tmp_path, *SMALL]
    limit = "import resource, os, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000)); "
    limited = [sys.executable, "-c", limit + "os.execv(sys.argv[1], sys.argv[1:])", *map(str, command)]
    done = subprocess.run(limited, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert "error: File too large" in done.stderr
    assert "Traceback" not in done.stderr
    assert {path.name for path in tmp_path.glob("*/*/*")} == {"run.json", "images.json"}


def test_full_disk(weights, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    write_image(tmp_path / "a.png", tiny.discs(0, 100, 100)[0])
    monkeypatch.setattr(Path, "write_bytes", full)
    code, text = call("predict", tmp_path / "a.png", "--weights", weights, "--out", tmp_path / "out", "--device", "cpu")
    assert code == 2
    assert "No space left" in text
    assert list((tmp_path / "out").iterdir()) == []
