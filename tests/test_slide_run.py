"""One slide from file to results: what it leaves, what makes it stale, stopped and gone on with to the same bytes."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import openslide
import pandas as pd
import pytest
import shapely
import tifffile
import torch
import zarr
from tiny import discs
from tiny_slides import WHOLE, Dark, everything, polygons, pyramid, whole

from csamnet.evaluate import predict_probability
from csamnet.files import InputError
from csamnet.instances import instances_from_probability, outlines
from csamnet.slides import STEPS, Slide
from csamnet.wsi import slide_run, stream
from csamnet.wsi.slide_jobs import overview, run_slides
from csamnet.wsi.slide_run import Options, run_slide
from csamnet.wsi.stream import Network


def test_another_share_of_normalisation_is_another_slide(tmp_path, model):
    model.stain = [[0.1, 0.3, 0.4], [0.2, 0.1, 0.1]]
    path, out = pyramid(tmp_path / "a.svs", [discs(4, 300, 300)[0]]), tmp_path / "out"
    plain = run_slide(model, path, out, WHOLE)
    changed = run_slide(model, path, out, WHOLE._replace(normalise=1.0))
    assert (plain["status"], changed["status"]) == ("done", "done")
    assert plain["area_fraction"] != changed["area_fraction"]
    assert run_slide(model, path, out, WHOLE._replace(normalise=1.0))["status"] == "already done"
    model.stain = [[0.2, 0.3, 0.4], [0.2, 0.1, 0.1]]
    assert run_slide(model, path, out, WHOLE._replace(normalise=1.0))["status"] == "done"


def test_a_slide_cannot_be_brought_to_a_stain_that_is_not_known(tmp_path, model):
    path = pyramid(tmp_path / "a.svs", [discs(4, 300, 300)[0]])
    with pytest.raises(InputError, match="the stain that images could be normalised to"):
        run_slide(model, path, tmp_path / "out", WHOLE._replace(normalise=1.0))
    for settings, said in (
        ({"normalise": 1.0}, "the stain"),
        ({"normalise": 2.0}, "normalise cannot"),
        ({"threshold": 2}, "threshold cannot"),
    ):
        with pytest.raises(InputError, match=said):
            run_slides(model, [path], tmp_path / "out", WHOLE._replace(**settings))
    assert not (tmp_path / "out").exists(), "no slide is to blame"


def test_what_a_slide_leaves(tmp_path, model, path):
    path.with_suffix(".xml").write_text(
        "<Annotations><Annotation><Regions><Region><Vertices>"
        + "".join(f'<Vertex X="{x}" Y="{y}"/>' for x, y in ((100, 100), (700, 100), (700, 800), (100, 800)))
        + "</Vertices></Region></Regions></Annotation></Annotations>"
    )
    ticks, folder = [], tmp_path / "out"
    got = run_slide(model, path, folder, Options(at=0.5, batch=3), on_tile=lambda *tick: ticks.append(tick))
    left = {"burden.csv", "burden.npy", "burden.png", "mask.ome.tiff", "nuclei.geojson", "probability.zarr"}
    left |= {".lock", "progress.json", "report.png", "summary.csv"}
    assert {file.name for file in folder.iterdir()} == left
    array, slide = zarr.open_array(folder / "probability.zarr", mode="r"), Slide(path)
    assert array.attrs["scale_factor"] == 1 / STEPS
    assert array.metadata.dimension_names == ("y", "x")
    inner = np.s_[150:750, 200:1050]
    np.testing.assert_allclose(array[:][inner] / STEPS, whole(slide, model)[inner], atol=5.1e-5)
    labels = instances_from_probability(array[:], threshold=5000)
    assert got["nuclei"] == len(polygons(folder)) == labels.max() > 5
    assert got["tissue_mm2"] == pytest.approx(700 * 950 * 0.25e-6, rel=0.05)
    assert got["nuclei_per_mm2"] == pytest.approx(got["nuclei"] / got["tissue_mm2"])
    assert got["area_fraction"] == pytest.approx((array[:] >= 5000).sum() * 0.25e-6 / got["tissue_mm2"])
    assert 0 <= got["auc"] <= 1
    with openslide.OpenSlide(folder / "mask.ome.tiff") as mask:
        region = np.asarray(mask.read_region((200, 150), 0, (850, 600)))[..., 0]
    np.testing.assert_array_equal(region > 0, array[:][inner] >= 5000)
    assert ticks[-1][0] == ticks[-1][1]
    kept, when = everything(folder), (folder / "mask.ome.tiff").stat().st_mtime_ns
    again = run_slide(model, path, folder, Options(at=0.5, batch=5))
    assert again["status"] == "already done"
    assert again["nuclei"] == got["nuclei"]
    assert (folder / "mask.ome.tiff").stat().st_mtime_ns == when
    assert run_slide(model, path, folder, Options(at=0.5, batch=3, threshold=0.7))["status"] == "done"
    changed = everything(folder)
    assert changed["mask.ome.tiff"] != kept["mask.ome.tiff"]
    stored = [name for name in kept if name.startswith("probability.zarr/c")]
    assert stored
    assert all(changed[name] == kept[name] for name in stored)


def test_another_threshold_leaves_the_probability(tmp_path, model, path, monkeypatch):
    first = run_slide(model, path, tmp_path / "a" / "slide", WHOLE)
    new = run_slide(model, path, tmp_path / "b" / "slide", WHOLE._replace(threshold=0.7))
    monkeypatch.setattr(slide_run, "infer", lambda *_, **__: pytest.fail("what does not depend on it was done again"))
    again = run_slide(model, path, tmp_path / "a" / "slide", WHOLE._replace(threshold=0.7))
    assert again["nuclei"] == new["nuclei"]
    assert again["area_fraction"] < first["area_fraction"]
    assert everything(tmp_path / "a" / "slide") == everything(tmp_path / "b" / "slide")
    with pytest.raises(pytest.fail.Exception):
        run_slide(model, path, tmp_path / "a" / "slide", WHOLE._replace(tta=True))


def test_a_removal_that_was_stopped_is_not_taken_for_results(tmp_path, model, path, monkeypatch):
    """A wrong setting, stopped while the old results go, and the right setting again."""
    run_slide(model, path, tmp_path / "out", WHOLE)
    kept = everything(tmp_path / "out")

    def stopped(file: Path) -> None:
        next(file.glob("c/*/*")).unlink() if file.is_dir() else file.unlink(missing_ok=True)
        if file.name == "probability.zarr":
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(slide_run, "_remove", stopped)
        with pytest.raises(KeyboardInterrupt):
            run_slide(model, path, tmp_path / "out", WHOLE._replace(tta=True))
    run_slide(model, path, tmp_path / "out", WHOLE)
    assert everything(tmp_path / "out") == kept


def test_a_smaller_batch_is_taken_when_it_goes_on(tmp_path, model, path, monkeypatch):
    sizes = []
    run_slide(model, path, tmp_path / "out", WHOLE._replace(batch=8))
    job = json.loads((tmp_path / "out" / "progress.json").read_text())
    (tmp_path / "out" / "progress.json").write_text(json.dumps(job | {"status": "begun", "rows": 0}))
    monkeypatch.setattr(Network, "_run", lambda self, x: sizes.append(len(x)) or np.zeros((len(x), 128, 128), "f4"))
    run_slide(model, path, tmp_path / "out", WHOLE._replace(batch=2))
    assert max(sizes) == 2


def test_an_xml_of_another_program_is_no_annotation(tmp_path, model, path):
    for text in ("<Annotations/>", "<ASAP_Annotations><Annotations/></ASAP_Annotations>"):
        path.with_suffix(".xml").write_text(text)
        assert "burden_inside" not in run_slide(model, path, tmp_path / "out", WHOLE)


def test_weights_that_do_not_say_their_resolution(tmp_path, model, path):
    model.mpp = None
    with pytest.raises(InputError, match=r"do not say what they have learned(?s:.*)--at 0\.5 works"):
        run_slide(model, path, tmp_path / "out", Options(whole=True))
    model.mpp = 0.5
    assert run_slide(model, path, tmp_path / "out", Options(whole=True))["mpp"] == 0.5


def test_a_region_is_the_slide_s_and_lies_where_it_was(tmp_path, model, path):
    run_slide(model, path, tmp_path / "out", Options(at=1.0, region=(160, 120, 600, 500), batch=2, whole=True))
    image = Slide(path).read(160, 120, 300, 250, 1.0)
    expected = predict_probability(model, image, tile=128)
    array = zarr.open_array(tmp_path / "out" / "probability.zarr", mode="r")
    np.testing.assert_allclose(array[:] / STEPS, expected, atol=5.1e-5)
    labels = instances_from_probability(array[:], threshold=5000)
    wanted = shapely.union_all([shapely.Polygon(points * 2 + (160, 120)) for _, points in outlines(labels)])
    assert shapely.symmetric_difference(shapely.union_all(polygons(tmp_path / "out")), wanted).area < 1
    with pytest.raises(InputError, match="not on the slide"):
        run_slide(model, path, tmp_path / "b", Options(at=1.0, region=(900, 0, 600, 500)))


def test_resolution_that_is_not_known(tmp_path, model):
    image = discs(6, 200, 260)[0]
    bare = pyramid(tmp_path / "bare.svs", [image], mpp=None)
    with pytest.raises(InputError, match="--mpp"):
        run_slide(model, bare, tmp_path / "a", Options(whole=True))
    got = run_slide(model, bare, tmp_path / "a", Options(mpp=0.25, whole=True))
    assert got["mpp"] == 0.25
    tifffile.imwrite(tmp_path / "plain.tif", image, photometric="rgb")
    got = run_slide(model, tmp_path / "plain.tif", tmp_path / "b", Options(whole=True))
    assert got["mpp"] is None
    assert np.isnan(got["tissue_mm2"])
    array = zarr.open_array(tmp_path / "b" / "probability.zarr", mode="r")
    np.testing.assert_allclose(array[:] / STEPS, predict_probability(model, image, tile=128), atol=5.1e-5)
    with openslide.OpenSlide(tmp_path / "b" / "mask.ome.tiff") as mask:
        assert "openslide.mpp-x" not in mask.properties


def test_flips_and_turns_are_those_of_the_evaluation(tmp_path, path):
    class Left(Dark):
        """What lies to the right makes a pixel darker, so that a flip changes it."""

        def forward(self, x):
            return super().forward(0.5 * x + 0.5 * torch.roll(x, 9, 3))

    model, slide = Left().eval(), Slide(path)
    run_slide(model, path, tmp_path / "tta", WHOLE._replace(tta=True))
    found = zarr.open_array(tmp_path / "tta" / "probability.zarr", mode="r")[:] / STEPS
    np.testing.assert_allclose(found, whole(slide, model, tta=True), atol=5.1e-5)
    assert np.abs(found - whole(slide, model)).max() > 0.01


def test_changed_code_makes_a_slide_stale(tmp_path, model, path, monkeypatch):
    assert run_slide(model, path, tmp_path / "out", WHOLE)["status"] == "done"
    assert run_slide(model, path, tmp_path / "out", WHOLE)["status"] == "already done"
    monkeypatch.setattr(slide_run, "code_sha256", lambda *_: "other")
    assert run_slide(model, path, tmp_path / "out", WHOLE)["status"] == "done"


def test_what_is_missing_or_new_is_made_up_for(tmp_path, model, path):
    folder = tmp_path / "out"
    once = run_slide(model, path, folder, WHOLE)
    for name in ("mask.ome.tiff", "summary.csv", "probability.zarr/zarr.json"):
        (folder / name).unlink()
        if name.startswith("prob"):
            shutil.rmtree(folder / "probability.zarr")
        assert run_slide(model, path, folder, WHOLE)["status"] == "done"
        assert (folder / name).exists()
    (folder / "summary.csv").write_text("name\n")
    assert run_slide(model, path, folder, WHOLE)["nuclei"] == once["nuclei"]
    path.with_suffix(".xml").write_text(REGION.format("nan") + REGION.format(100))
    with pytest.raises(InputError, match="annotation"):
        run_slide(model, path, folder, WHOLE)
    path.with_suffix(".xml").write_text(f"<Annotations>{REGION.format('nan')}{REGION.format(100)}</Annotations>")
    assert run_slide(model, path, folder, WHOLE)["burden_inside"] > 0
    assert run_slide(model, path, folder, WHOLE)["status"] == "already done"


REGION = """<Annotation><Regions><Region><Vertices><Vertex X="{}" Y="100"/><Vertex X="700" Y="100"/>
<Vertex X="700" Y="800"/><Vertex X="100" Y="800"/></Vertices></Region></Regions></Annotation>"""


@pytest.mark.parametrize(
    "job",
    ["[]", "{}", '{"status": "done"}', None, {"rows": "x"}, {"rows": 10**9}, {"seconds": None}, {"batch": 0}],
)
def test_a_damaged_job_says_how_to_mend_it(tmp_path, model, path, job):
    run_slide(model, path, tmp_path / "out", WHOLE)
    file = tmp_path / "out" / "progress.json"
    file.write_text(
        job if isinstance(job, str) else json.dumps(json.loads(file.read_text()) | (job or {"settings": {}}))
    )
    with pytest.raises(InputError, match=r"remove this file"):
        run_slide(model, path, tmp_path / "out", WHOLE)
    assert overview(tmp_path)["status"].to_list() == ["unreadable"]


FORKS = """
import os, sys, time, torch
sys.path.insert(0, {tests!r})
torch.set_num_threads(1)
from pathlib import Path
import csamnet.wsi.slide_figures
from tiny_slides import Dark, WHOLE
from csamnet.wsi.slide_run import run_slide
class Slow(Dark):
    def forward(self, x):
        time.sleep(0.02)
        return super().forward(x)
for _ in sys.stdin:
    child = os.fork()
    if child == 0:
        run_slide(Slow().eval(), Path({path!r}), Path({folder!r}), WHOLE)
        os._exit(0)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
"""Starts a slow run of a slide in a process of its own for every line it reads; prints its id, and how it ended."""


def test_killed_at_any_moment_it_goes_on_to_the_same_bytes(tmp_path, model, path):
    run_slide(model, path, tmp_path / "once", WHOLE)
    expected, folder, rng = everything(tmp_path / "once"), tmp_path / "killed" / "once", np.random.default_rng(0)
    text = FORKS.format(tests=str(Path(__file__).parent), path=str(path), folder=str(folder))
    environment = os.environ | {"PYTHONPATH": str(Path(stream.__file__).parents[1])}
    pipes, ends, rows = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}, [], []
    with subprocess.Popen([sys.executable, "-c", text], env=environment, **pipes) as forks:
        for _ in range(10):
            print(file=forks.stdin, flush=True)
            child = int(forks.stdout.readline())
            time.sleep(rng.uniform(0.05, 1.5))
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
            ends.append(int(forks.stdout.readline()))
            if (folder / "progress.json").exists():
                rows.append(json.loads((folder / "progress.json").read_text())["rows"])
        forks.stdin.close()
    assert set(ends) <= {0, -signal.SIGKILL}
    assert ends.count(-signal.SIGKILL) > 2
    assert rows == sorted(rows), "what was done is not done again"
    run_slide(model, path, folder, WHOLE)
    assert everything(folder) == expected
    assert pd.read_csv(folder / "summary.csv")["nuclei"][0] > 5
