"""Many slides: each done once, by one process or several, whatever happens to the others."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import filelock
import pandas as pd
import pytest
import torch
from tiny import discs
from tiny_slides import WHOLE, everything, pyramid

from csamnet.config import RunConfig
from csamnet.files import InputError
from csamnet.inference import load
from csamnet.model import CSAMNet, save_weights
from csamnet.wsi import slide_jobs, slide_run, stream
from csamnet.wsi.slide_jobs import overview, run_slides, share_slides, write_overview
from csamnet.wsi.slide_run import Options


def test_what_fails_for_one_slide_leaves_a_word_and_the_others(tmp_path, model, path, monkeypatch):
    def work(job):
        if job.slide.path == path:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return {"nuclei": 1}

    other, told = pyramid(tmp_path / "other.svs", [discs(8, 200, 200)[0]]), []
    with monkeypatch.context() as patched:
        patched.setattr(slide_run.Job, "run", work)
        rows = run_slides(model, [path, other], tmp_path / "out", WHOLE, on_row=told.append)
    assert told == rows
    assert [row["status"] for row in rows] == ["broken", "done"]
    assert "--batch 1" in rows[0]["error"]
    table = overview(tmp_path / "out").set_index("folder")
    assert table["status"].to_dict() == {"slide": "broken", "other": "stopped"}
    assert table["error"]["slide"] == "CUDA out of memory"
    write_overview(tmp_path / "out")
    (row,) = run_slides(model, [path], tmp_path / "out", WHOLE)
    assert row["status"] == "done"
    assert overview(tmp_path / "out").set_index("folder")["status"]["slide"] == "done"
    (row,) = run_slides(model, [tmp_path / "nowhere" / "slide.svs"], tmp_path / "out", WHOLE)
    assert row["status"] == "broken"
    table = overview(tmp_path / "out").set_index("folder").loc["slide"]
    assert table["status"] == "done", "what was finished stays"
    assert table["nuclei"] > 5
    assert "cannot be read" in table["error"]


def test_files_of_one_dicom_slide_are_done_once(tmp_path, monkeypatch):
    class Series:
        def __init__(self, path):
            self.identity = path.parent.name

    monkeypatch.setattr(slide_jobs, "Slide", Series)
    files = [tmp_path / place / name for place in "ab" for name in ("1.dcm", "2.dcm")]
    assert list(slide_jobs._folders(files, tmp_path)) == [files[0], files[2]]


def test_a_slide_given_twice_is_done_once(tmp_path, model, path):
    rows = run_slides(model, [path, str(path), path.parent / "." / path.name], tmp_path / "out", WHOLE)
    assert [row["status"] for row in rows] == ["done"]
    assert [folder.name for folder in (tmp_path / "out").iterdir()] == [path.stem]


def test_broken_slides_and_those_of_others_do_not_stop_the_rest(tmp_path, model, path):
    for folder in ("b", "c", "out/x"):
        (tmp_path / folder).mkdir(parents=True)
    broken, other = tmp_path / "broken.svs", pyramid(tmp_path / "b" / "x.svs", [discs(7, 200, 200)[0]])
    broken.write_bytes(b"II*\0 and no more")
    with filelock.FileLock(tmp_path / "out" / "x" / ".lock"):
        rows = run_slides(model, [broken, other, path], tmp_path / "out", WHOLE)
    assert [row["status"] for row in rows] == ["broken", "at work elsewhere", "done"]
    assert "cannot be read" in rows[0]["error"]
    assert not (tmp_path / "out" / "x" / "progress.json").exists()
    image = pyramid(tmp_path / "c" / "slide.svs", [discs(8, 200, 200)[0]])
    (row,) = run_slides(model, [image], tmp_path / "out", WHOLE)
    assert row["status"] == "broken"
    assert "of another slide" in row["error"]
    with filelock.FileLock(tmp_path / "out" / "slide" / ".lock"):
        (row,) = run_slides(model, [image], tmp_path / "out", WHOLE)
    assert "of another slide" in row["error"], "and not at work elsewhere"


def test_processes_share_a_folder_of_slides(tmp_path):
    """Two processes do what one does, byte by byte; what cannot be read is told of, and the rest is done."""
    torch.manual_seed(0)
    model, weights = CSAMNet(8).eval(), tmp_path / "w.safetensors"
    model.config = RunConfig(model="CSAMNet-XXS", tile=128, precision="fp32")
    save_weights(model.state_dict(), weights, config=json.dumps(model.config.to_dict()))
    slides = [pyramid(tmp_path / f"{i}.svs", [discs(i, 200, 260)[0]]) for i in range(3)]
    slides[1].write_bytes(b"II*\0 and no more")
    options = Options(at=0.5, whole=True, batch=2)
    run_slides(load(weights, "cpu"), slides, tmp_path / "one", options)
    ticks = []
    rows = share_slides(
        weights, slides, tmp_path / "two", options, device="cpu", devices=2, on_slide=lambda *t: ticks.append(t)
    )
    assert [row["status"] for row in rows] == ["done", "broken", "done"]
    assert ticks == [(1, 3), (2, 3), (3, 3)]
    for name in "02":
        assert everything(tmp_path / "one" / name) == everything(tmp_path / "two" / name)
    with pytest.raises(InputError, match="not so many devices"):
        share_slides(weights, slides, tmp_path / "two", options, device="cpu", devices=os.cpu_count() + 1)


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_processes_that_share_slides_end_with_the_one_that_started_them(tmp_path, how):
    slides = [pyramid(tmp_path / f"{i}.svs", [discs(i, 1600, 1600)[0]]) for i in range(2)]
    command = [sys.executable, "-m", "csamnet", "slide", *map(str, slides), "--out", str(tmp_path / "out"), "--whole"]
    command += ["--weights", "MoNuSeg", "--device", "cpu", "--devices", "2"]
    environment = os.environ | {"PYTHONPATH": str(Path(stream.__file__).parents[1])}
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # what a shell starts with & is deaf to it
    options = {"env": environment, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "preexec_fn": heard}
    with subprocess.Popen(command, **options) as main:
        limit = time.time() + 120
        while len([*tmp_path.glob("out/*/progress.json")]) < 2 and time.time() < limit:
            time.sleep(0.1)
        children = Path(f"/proc/{main.pid}/task/{main.pid}/children").read_text().split()
        assert len(children) >= 2
        main.send_signal(how)
        said = main.stderr.read().decode()  # until the last process that holds it has ended
    assert main.returncode in (130, -how)
    assert "Traceback" not in said
    limit = time.time() + 10
    while (left := [child for child in children if Path(f"/proc/{child}").exists()]) and time.time() < limit:
        time.sleep(0.05)
    assert not left
    assert set(overview(tmp_path / "out")["status"]) == {"stopped"}, "not worked to their end first"


def test_how_far_slides_are(tmp_path, model, path):
    with pytest.raises(InputError, match="no slide was begun"):
        overview(tmp_path)
    run_slides(model, [path], tmp_path / "out", WHOLE)
    other = tmp_path / "out" / "other"
    other.mkdir()
    job = json.loads((tmp_path / "out" / "slide" / "progress.json").read_text())
    (other / "progress.json").write_text(json.dumps(job | {"status": "begun", "rows": 450}))
    with filelock.FileLock(other / ".lock"):
        assert overview(tmp_path / "out")["status"].to_list() == ["at work", "done"]
    table = overview(tmp_path / "out").set_index("folder")
    assert table["status"].to_dict() == {"other": "stopped", "slide": "done"}
    assert table["done"].to_dict() == {"other": 0.5, "slide": 1}
    assert table["nuclei"]["slide"] > 5
    write_overview(tmp_path / "out")
    assert pd.read_csv(tmp_path / "out" / "slides.csv")["nuclei"].max() == table["nuclei"]["slide"]
    (other / "progress.json").write_text("{}")
    assert overview(tmp_path / "out")["status"].to_list() == ["unreadable", "done"]


def test_only_our_own_files_are_ever_removed(tmp_path, model, path):
    """A folder of a slide's name may hold the slide itself."""
    own = path.with_suffix("") / path.name
    own.parent.mkdir()
    path.rename(own)
    (row,) = run_slides(model, [own], tmp_path, WHOLE)
    assert row["status"] == "broken"
    assert "holds other things" in row["error"]
    assert own.exists()
    (row,) = run_slides(model, [own], tmp_path / "out", WHOLE)
    (tmp_path / "out" / "slide" / "notes.txt").write_text("kept")
    (row,) = run_slides(model, [own], tmp_path / "out", WHOLE._replace(threshold=0.7))
    assert row["status"] == "done"
    assert (tmp_path / "out" / "slide" / "notes.txt").exists()


@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf"), 1e9, 1e-9])
@pytest.mark.parametrize("key", ["mpp", "at"])
def test_impossible_resolutions(tmp_path, model, path, key, value):
    with pytest.raises(InputError, match=rf"--{key} cannot be used"):
        run_slides(model, [path], tmp_path / "out", WHOLE._replace(**{key: value}))
    assert not (tmp_path / "out").exists()
