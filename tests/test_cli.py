"""The command line: what a person types, what they are told, and exit code 2 for what they can mend."""

from __future__ import annotations

import json
import pickle
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

SMALL = ["--set", "epochs=1", "--set", "steps_per_epoch=1", "--set", "batch=2", "--device", "cpu"]


def call(*arguments) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


@pytest.fixture
def weights(tmp_path) -> Path:
    torch.manual_seed(0)
    config = make_config("sample")
    save_file(CSAMNet(8).state_dict(), tmp_path / "w.safetensors", {"config": json.dumps(config.to_dict())})
    return tmp_path / "w.safetensors"


def test_help_names_every_command():
    code, text = call("--help")
    assert code == 0
    for name in ("samples", "prepare", "train", "evaluate", "predict", "notebook", "bench"):
        assert name in text


def test_from_release_to_measures(tmp_path):
    release = tiny.lay(tmp_path / "release")
    code, text = call("prepare", "monuseg", "--from", release, "--root", tmp_path / "p")
    assert code == 0
    assert "train 4" in text
    options = ["--root", tmp_path / "p", "--profile", "sample", "--results", tmp_path / "r", *SMALL]
    code, text = call("train", "MoNuSeg", *options)
    assert code == 0
    assert "val mIoU" in text
    run = next((tmp_path / "r").glob("*/*"))
    code, text = call("evaluate", run, "--root", tmp_path / "p", "--device", "cpu")
    assert code == 0
    assert "measured on real data" in text
    assert "miou" in text


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
        (["train", "PUMA"], "PUMA"),
        (["train", "MoNuSeg", "--model", "CSAMNet-SS"], "did you mean 'CSAMNet-"),
        (["train", "MoNuSeg", "--profile", "papr"], "did you mean 'paper'"),
        (["train", "MoNuSeg", "--set", "lrr=1"], "did you mean 'lr'"),
        (["train", "MoNuSeg", "--set", "lr=much"], "lr cannot be used"),
        (["train", "MoNuSeg", "--set", "epochs"], "KEY=VALUE"),
        (["train", "MoNuSeg", "--set", "tile=100"], "multiple of 16"),
        (["train", "MoNuSeg", "--seed", "-1"], "seed"),
        (["train", "MoNuSeg", "--root", "nowhere"], "dataset.json"),
        (["prepare", "MoNuSeg", "--from", "nowhere", "--root", "here"], "nowhere"),
        (["samples", "Kumarr"], "MoNuSeg"),
        (["evaluate", "nowhere"], "run.json"),
        (["predict", "x.png", "--out", "o", "--weights", "nowhere.safetensors"], "no weights"),
        (["notebook", "nowhere.ipynb", "o.ipynb"], "no such notebook"),
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


def test_full_disk(weights, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    write_image(tmp_path / "a.png", tiny.discs(0, 100, 100)[0])
    monkeypatch.setattr(Path, "write_bytes", full)
    code, text = call("predict", tmp_path / "a.png", "--weights", weights, "--out", tmp_path / "out", "--device", "cpu")
    assert code == 2
    assert "No space left" in text
    assert list((tmp_path / "out").iterdir()) == []
