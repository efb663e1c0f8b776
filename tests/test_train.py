"""Training: exact seeds, runs that are killed and go on, and every number of the loop by hand."""

from __future__ import annotations

import copy
import errno
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from tiny import digest, lay, make_tree, settings
from torch import nn
from torch.nn.utils import convert_conv2d_weight_memory_format
from torch.optim.swa_utils import update_bn

from csamnet import results
from csamnet import train as module
from csamnet.cli import epoch_line
from csamnet.data import Atlas, draw_images, load_split, stain_of
from csamnet.evaluate import (
    build_model,
    evaluate,
    load_run,
    validate,
    validation_scores,
)
from csamnet.files import InputError, read_json, write_json
from csamnet.losses import dice_loss, segmentation_loss
from csamnet.model import CSAMNet
from csamnet.pages.notebooks import evaluate_otsu
from csamnet.prepare import prepare
from csamnet.results import images_learned
from csamnet.train import (
    best_epoch,
    load_samples,
    parameter_groups,
    recalibrate,
    seed_step,
    set_learning_rate,
    train,
    typical_crops,
    update_average,
)

ROOT = Path(__file__).resolve().parents[1]
CONFIG = settings(epochs=3)
CLOCK = ["seconds", "images_per_s"]


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "weights.safetensors")


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def history(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "history.csv")


def steps(into: list):
    return lambda done, total: into.append((done, total))


def run_python(program: Path | str, *arguments, **environment: str) -> subprocess.CompletedProcess:
    """Run a program file in a process of its own, with this project and these tests to import."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": str(torch.get_num_threads())} | environment
    command = [sys.executable, str(program), *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def whole(tree, tmp_path_factory) -> Path:
    """A run that nothing stopped."""
    return train(CONFIG, tree, results=tmp_path_factory.mktemp("whole"), device="cpu")


# ---------------------------------------------------------------------------------------- a whole run


def test_what_a_run_leaves(whole, tree):
    assert whole.parts[-2:] == ("MoNuSeg", "CSAMNet-XS-sample-seed0")
    assert {path.name for path in whole.iterdir()} == {"run.json", "images.json", "history.csv", "weights.safetensors"}
    about, table = json.loads((whole / "run.json").read_text()), history(whole)
    assert about["status"] == "done"
    assert about["config"] == CONFIG.to_dict()
    assert about["parameters"] == 1_699_314
    card = json.loads((tree / "MoNuSeg" / "dataset.json").read_text())
    assert about["data"] == {key: card[key] for key in ("name", "kind", "manifest_sha256", "counts")}
    assert {"torch", "numpy", "python"} <= about["libraries"].keys()
    assert {"device", "processor", "cores", "processes"} <= about["hardware"].keys()
    assert about["wall_s"] == pytest.approx(table["seconds"].sum(), abs=0.1)
    assert about["images_per_s"] == pytest.approx(table["images_per_s"].median(), abs=0.01)
    assert about["peak_memory_mb"] > 50
    best = int(table["val_miou"].argmax())
    assert about["best_epoch"] == best + 1
    assert about["best_val_miou"] == pytest.approx(table["val_miou"][best], abs=1e-5)
    with safe_open(whole / "weights.safetensors", "pt") as stream:
        kept = stream.metadata()
        assert json.loads(kept["config"]) == CONFIG.to_dict()
        assert (json.loads(kept["mpp"]), kept["run"]) == (0.25, about["fingerprint"])
    assert about["precision"] == CONFIG.precision == "fp32", "what was computed in"
    assert table["epoch"].tolist() == [1, 2, 3]
    assert table["step"].tolist() == [2, 4, 6]
    np.testing.assert_allclose(table["drop_rate"], [0.15 * n / 29 for n in (5, 15, 25)], rtol=1e-5)
    np.testing.assert_allclose(table["loss"], table["loss_ce"] + table["loss_dice"], rtol=1e-4)


def written_out(config, tree, cache) -> tuple[list[dict], list[float]]:
    """Training once more, in plain torch and without a function of `csamnet.train`: averaged weights, mean losses."""
    chosen = sorted(np.random.default_rng(config.seed).permutation(4)[: config.images])
    atlas = Atlas([load_split(tree, "MoNuSeg", "train")[i] for i in chosen], torch.device("cpu"), cache=cache)
    torch.manual_seed(config.seed)
    network = convert_conv2d_weight_memory_format(build_model(config), torch.channels_last).train()
    ema = copy.deepcopy(network)
    matrices = [[p for p in network.parameters() if (p.squeeze().ndim > 1) is many] for many in (True, False)]
    groups = [
        {"params": matrices[0], "weight_decay": config.weight_decay},
        {"params": matrices[1], "weight_decay": 0.0},
    ]
    optimizer, states, losses = torch.optim.AdamW(groups), [], []
    for step, rate in enumerate((0.5, 1, 1, 0.5)):  # two steps up, then half a cosine over two
        own, of_crops = np.random.SeedSequence([config.seed, step, 0]).generate_state(2, np.uint32).tolist()
        torch.manual_seed(own)
        x, target = atlas.crops(config, config.batch, torch.Generator().manual_seed(of_crops))
        network.advance(step / 4)
        for group in optimizer.param_groups:
            group["lr"] = config.lr * rate
        loss, *_ = segmentation_loss(network(x.contiguous(memory_format=torch.channels_last)), target, config.dice)
        optimizer.zero_grad()
        loss.backward()
        losses.append(loss.item())
        assert nn.utils.clip_grad_norm_([*matrices[0], *matrices[1]], config.clip) > config.clip, (
            "there is something to clip"
        )
        optimizer.step()
        kept = min(config.ema, (1 + step) / (10 + step))
        with torch.no_grad():
            for average, p in zip(ema.parameters(), network.parameters(), strict=True):
                average.lerp_(p, 1 - kept)
        if step % 2:
            generator = torch.Generator().manual_seed(config.seed)
            drawn = [atlas.crops(config, config.batch, generator)[0] for _ in range(2)]
            update_bn([x.contiguous(memory_format=torch.channels_last) for x in drawn], ema)
            states.append({key: value.clone() for key, value in ema.state_dict().items()})
    return states, [np.mean(losses[:2]), np.mean(losses[2:])]


def test_training_is_what_is_written_out_here(tree, tmp_path, monkeypatch):
    """Crops, loss, clipping, optimiser, schedule, DropBlock, average and batch norms, step by step."""
    config = settings(steps_per_epoch=2, images=3, seed=5, lr=0.01, warmup=0.5, clip=0.05, ema=0.15, dice=0.3,
                      weight_decay=0.4)  # fmt: skip
    expected, losses = written_out(config, tree, tmp_path)
    seen, real = [], module.score

    def score(fabric, ema, samples, config):
        seen.append({key: value.clone() for key, value in ema.state_dict().items()})
        return real(fabric, ema, samples, config)

    monkeypatch.setattr(module, "score", score)
    table = history(train(config, tree, results=tmp_path, device="cpu"))
    for ours, theirs in zip(seen, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert table["loss"].tolist() == pytest.approx(losses, rel=1e-4)
    assert table["lr"].tolist() == pytest.approx([0.01, 0.005])
    assert (table["images_per_s"] * table["seconds"] >= 2 * config.batch).all(), "a validation takes time too"


def test_kept_weights_are_those_that_were_scored(whole, tree):
    model, config = load_run(whole, "cpu")
    scores = validation_scores(*validate(model, load_split(tree, "MoNuSeg", "val"), config))
    best = history(whole).iloc[json.loads((whole / "run.json").read_text())["best_epoch"] - 1]
    assert scores == pytest.approx(best[list(scores)].to_dict(), rel=1e-5)


def test_it_learns(run, tree):
    table = history(run)
    assert table["loss"].iloc[-1] < table["loss"].iloc[0] - 0.1
    torch.manual_seed(0)
    config = settings()
    untrained = validation_scores(*validate(build_model(config), load_split(tree, "MoNuSeg", "val"), config))
    assert table["val_ap"].max() > 0.9 > 0.7 > untrained["val_ap"]
    assert table["val_miou"].max() > untrained["val_miou"] + 0.05


def test_a_finished_run_is_not_repeated(whole, tree):
    before = {path: path.stat().st_mtime_ns for path in whole.iterdir()}
    assert train(CONFIG, tree, results=whole.parents[1], on_step=pytest.fail) == whole
    assert {path: path.stat().st_mtime_ns for path in whole.iterdir()} == before


class StartedError(Exception):
    """Ends a training in its first step."""


def begins(config, root, results: Path) -> int:
    """The step that a training begins with; it is stopped there."""

    def stop(done, total):
        raise StartedError(done)

    with pytest.raises(StartedError) as caught:
        train(config, root, results=results, device="cpu", on_step=stop)
    return caught.value.args[0]


def of_look_alikes(folder: Path) -> Path:
    """Results whose runs say that they are: those may be trained anew with other settings."""
    for path in folder.glob("*/*/run.json"):
        run = read_json(path)
        write_json(path, run | {"data": run["data"] | {"kind": "sample"}})
    return folder


def test_a_run_is_stale_when_configuration_data_or_code_changed(whole, tree, tmp_path, monkeypatch):
    def copy(name):
        return Path(shutil.copytree(whole.parents[1], tmp_path / name))

    with pytest.raises(InputError, match=r"a finished run on real images has this name(?s:.*)there: lr 0.006"):
        begins(settings(epochs=3, lr=1e-3), tree, copy("kept"))
    assert begins(settings(epochs=3, lr=1e-3), tree, of_look_alikes(copy("lr"))) == 1
    other = make_tree(tmp_path, {"train": 3, "val": 2, "test": 2})
    assert begins(CONFIG, other, copy("data")) == 1
    monkeypatch.setattr(results, "code_sha256", lambda *_: "other")
    stale = copy("code")
    assert begins(CONFIG, tree, stale) == 1
    with pytest.raises(InputError, match="the training has not ended"):
        load_run(stale / whole.relative_to(whole.parents[1]), "cpu")


# ---------------------------------------------------------------------------------- stops and goes on

KILLED = """
import os, signal, sys
import csamnet.train as module
from csamnet.files import atomic
from tiny import settings

root, results, moment = sys.argv[1:]

def at_step(done, total):
    print(done, flush=True)
    if moment == "step 5" and done == 5:
        os.kill(os.getpid(), signal.SIGKILL)

def while_saving(state, path, **about):
    with atomic(path) as temporary:
        temporary.write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)

if moment == "saving":
    module.save_weights = while_saving
module.train(settings(epochs=3), root, results=results, device="cpu", on_step=at_step)
"""


def test_killed_twice_and_resumed_it_ends_with_the_same_bits(whole, tree, tmp_path):
    program, out = tmp_path / "program.py", tmp_path / "results"
    program.write_text(KILLED)
    folder = out / whole.relative_to(whole.parents[1])
    for moment, seen in (("step 5", "1 2 3 4 5"), ("saving", "5 6")):
        done = run_python(program, tree, out, moment, PYTHONWARNINGS="error")
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert done.stdout.split() == seen.split()
        assert json.loads((folder / "run.json").read_text())["status"] == "training"
        with safe_open(folder / "checkpoint.safetensors", "pt") as stream:
            assert len(json.loads(stream.metadata()["history"])) == 2
    seen = []
    assert train(CONFIG, tree, results=out, device="cpu", on_step=steps(seen)) == folder
    assert seen == [(5, 6), (6, 6)]
    assert same(tensors(folder), tensors(whole))
    pd.testing.assert_frame_equal(
        history(folder).drop(columns=CLOCK), history(whole).drop(columns=CLOCK), check_exact=True
    )
    assert {path.name for path in folder.iterdir()} == {path.name for path in whole.iterdir()}


def test_the_beginning_of_a_longer_plan_is_what_it_would_have_been(whole, tree, tmp_path):
    part = train(replace(CONFIG, epochs=2, schedule=3), tree, results=tmp_path, device="cpu")
    table = history(whole)[:2].drop(columns=CLOCK)
    pd.testing.assert_frame_equal(history(part).drop(columns=CLOCK), table, check_exact=True)


def test_another_seed_is_another_run(tree, tmp_path):
    one, other = (
        tensors(train(settings(epochs=1, steps_per_epoch=1, seed=seed), tree, results=tmp_path, device="cpu"))
        for seed in (1, 2)
    )
    assert not any(torch.equal(one[key], other[key]) for key in one if key.endswith("weight"))


def test_training_anew_forgets_what_was_measured_before(tree, tmp_path):
    once = settings(epochs=1, steps_per_epoch=1)
    folder = train(once, tree, results=tmp_path, device="cpu")
    evaluate(folder, tree, device="cpu")
    write_json(folder / "robustness-test.json", {})
    assert train(once, tree, results=tmp_path, device="cpu") == folder
    assert results.read_summary(folder), "nothing was trained"
    of_look_alikes(tmp_path)
    assert train(replace(once, steps_per_epoch=2), tree, results=tmp_path, device="cpu") == folder
    assert results.read_summary(folder) is None
    assert not (folder / "robustness-test.json").exists()


def test_weights_tell_the_stain_that_they_have_learned(tree, tmp_path):
    folder = train(settings(epochs=1, steps_per_epoch=1, images=3), tree, results=tmp_path, device="cpu")
    images = [sample.image() for sample in draw_images(load_split(tree, "MoNuSeg", "train"), 3, 0)]
    expected = np.median([stain_of(image) for image in images], 0)
    model, _ = load_run(folder, "cpu")
    np.testing.assert_allclose(model.stain, expected, atol=1e-4)
    assert np.ptp([stain_of(image) for image in images], 0).max() > 1e-3, "images differ"


def test_what_is_not_stained_has_no_stain(tree, tmp_path):
    images = lay(tmp_path / "release")
    prepare("Scans", images, tmp_path, own={"modality": "CT"})
    config = settings(dataset="Scans", epochs=1, steps_per_epoch=1)
    model, _ = load_run(train(config, tmp_path, results=tmp_path / "results", device="cpu"), "cpu")
    assert model.stain is None
    with pytest.raises(InputError, match="the stain that images could be normalised to"):
        train(replace(config, normalise=1.0), tmp_path, results=tmp_path / "none", device="cpu")
    assert not [path for path in (tmp_path / "none").rglob("*") if path.is_file()], "before anything is written"


def test_a_run_is_selected_as_it_is_measured(tree, tmp_path):
    """With `normalise`, validation images are brought to the stain of the training images, as later test images."""
    once = settings(epochs=1, steps_per_epoch=1, normalise=1.0)
    folder = train(once, tree, results=tmp_path, device="cpu")
    model, config = load_run(folder, "cpu")
    found = read_json(folder / "run.json")["best_val_miou"]
    same, without = (
        validation_scores(*validate(model, load_split(tree, "MoNuSeg", "val"), one))["val_miou"]
        for one in (config, replace(config, normalise=0.0))
    )
    assert found == pytest.approx(same, abs=1e-6)
    assert found != pytest.approx(without, abs=1e-6)


def test_a_run_on_look_alikes_does_not_take_the_place_of_one_on_real_images(tree, tmp_path):
    config = settings(epochs=1, steps_per_epoch=1)
    for kind in ("real", "sample"):
        shutil.copytree(tree, tmp_path / kind)
        card = read_json(tmp_path / kind / "MoNuSeg" / "dataset.json")
        write_json(tmp_path / kind / "MoNuSeg" / "dataset.json", card | {"kind": kind})
    folder = train(config, tmp_path / "real", results=tmp_path / "results", device="cpu")
    otsu = evaluate_otsu(config, tmp_path / "real", tmp_path / "results")
    before = digest(tmp_path / "results")
    with pytest.raises(InputError, match=r"measured on real images(?s:.*)--results"):
        train(replace(config, epochs=2), tmp_path / "sample", results=tmp_path / "results", device="cpu")
    write_json(otsu / "run.json", read_json(otsu / "run.json") | {"fingerprint": ""})
    (otsu / "test" / "summary.json").unlink()
    with pytest.raises(InputError, match="measured on real images"):
        evaluate_otsu(config, tmp_path / "sample", tmp_path / "results")
    after = digest(tmp_path / "results")
    for gone in (otsu / "run.json", otsu / "test" / "summary.json"):  # changed above, by this test
        for found in (before, after):
            found.pop(str(gone.relative_to(tmp_path / "results")), None)
    assert str((folder / "run.json").relative_to(tmp_path / "results")) in after
    assert after == before


def test_a_threshold_is_not_trained(tree, tmp_path):
    with pytest.raises(InputError, match="Otsu is a threshold and is not trained"):
        train(settings(model="Otsu"), tree, results=tmp_path, device="cpu")
    assert not any(tmp_path.rglob("run.json"))


def poison(monkeypatch, step: int, gradient_only: bool = False) -> None:
    """Make the loss, or only its gradient, NaN in a step counted from 1."""
    calls = []

    def loss(logits, target, dice):
        calls.append(1)
        total, *parts = segmentation_loss(logits, target, dice)
        if len(calls) == step and gradient_only:
            logits.register_hook(lambda gradient: gradient * math.nan)
        elif len(calls) == step:
            total = total * math.nan
        return total, *parts

    monkeypatch.setattr(module, "segmentation_loss", loss)


def test_nan_stops_and_the_last_checkpoint_stays(whole, tree, tmp_path, monkeypatch):
    folder, seen = tmp_path / whole.relative_to(whole.parents[1]), []
    with monkeypatch.context() as patch:
        poison(patch, step=3)
        with pytest.raises(InputError, match=r"no longer a number(?s:.*)epoch 2 \(steps 3") as caught:
            train(CONFIG, tree, results=tmp_path, device="cpu")
    assert "a learning rate below 0.006" in str(caught.value)
    assert len(history(folder)) == 1
    assert not (folder / "weights.safetensors").exists()
    assert begins(settings(epochs=3, lr=1e-3), tree, Path(shutil.copytree(tmp_path, tmp_path / "copy"))) == 1
    train(CONFIG, tree, results=tmp_path, device="cpu", on_step=steps(seen))
    assert seen[0] == (3, 6)
    assert same(tensors(folder), tensors(whole))


def test_nan_in_the_last_gradient_of_an_epoch_does_not_reach_the_checkpoint(tree, tmp_path, monkeypatch):
    poison(monkeypatch, step=4, gradient_only=True)
    with pytest.raises(InputError, match="no longer a number"):
        train(CONFIG, tree, results=tmp_path, device="cpu")
    (checkpoint,) = tmp_path.glob("*/*/checkpoint.safetensors")
    assert all(value.isfinite().all() for value in load_file(checkpoint).values())


def test_a_full_disk_leaves_nothing_half_written(tree, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space"):
        train(settings(epochs=1, steps_per_epoch=1), tree, results=tmp_path, device="cpu")
    assert {path.name for path in tmp_path.glob("*/*/*")} == {"run.json", "images.json"}


# ---------------------------------------------------------------------------------- several processes

TOGETHER = """
import hashlib, sys
from pathlib import Path
import csamnet.train as module
from tiny import settings

root, results, log = sys.argv[1:]
score = module.score

def noted(fabric, ema, samples, config):
    scores = score(fabric, ema, samples, config)
    weights = b"".join(value.numpy().tobytes() for value in ema.state_dict().values())
    line = f"{hashlib.sha256(weights).hexdigest()} {len(samples)} {scores}"
    with Path(log, f"{fabric.global_rank} of {fabric.world_size}").open("a") as stream:
        print(line, file=stream)
    return scores

module.score = noted
module.train(settings(batch=4, seed=3), root, results=results, device="cpu", devices=2)
"""


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs two processors")
def test_two_processes_train_one_network(tree, tmp_path):
    program, log, out = tmp_path / "program.py", tmp_path / "log", tmp_path / "results"
    program.write_text(TOGETHER)
    log.mkdir()
    done = run_python(program, tree, out, log, PYTHONWARNINGS="error")
    assert done.returncode == 0, done.stderr
    first, second = (Path(log, f"{rank} of 2").read_text().splitlines() for rank in (0, 1))
    assert first == second, "the same weights and scores on both"
    assert len(set(first)) == 2, "two epochs"
    folder = out / "MoNuSeg" / "CSAMNet-XS-sample-seed3"
    assert {path.name for path in folder.iterdir()} == {"run.json", "images.json", "history.csv", "weights.safetensors"}
    assert json.loads((folder / "run.json").read_text())["hardware"]["processes"] == 2
    assert np.isfinite(history(folder).to_numpy()).all()
    assert all(value.isfinite().all() for value in tensors(folder).values())
    test_kept_weights_are_those_that_were_scored(folder, tree)


def test_what_cannot_be_started(tree, tmp_path, monkeypatch):
    def refused(message, config=CONFIG, root=tree, **options):
        with pytest.raises(InputError, match=message):
            train(config, root, results=tmp_path / "results", **options)
        assert not (tmp_path / "results").exists()

    refused("fp16 cannot be trained on a CPU", settings(precision="fp16"), device="cpu")
    refused("not so many devices", device="cpu", devices=0)
    refused("not so many devices", device="cpu", devices=10_000)
    refused("unknown device", device="tpu")
    refused("csamnet prepare PUMA", settings(dataset="PUMA"))
    if not torch.cuda.is_available():
        refused("no CUDA device", device="cuda")
    monkeypatch.setattr(module, "Fabric", lambda **_: SimpleNamespace(world_size=2, launch=lambda: None))
    refused("2 crops for each of 2 processes", device="cpu")
    monkeypatch.undo()
    empty = make_tree(tmp_path, {"train": 1, "test": 1}, allow_partial=True)
    refused("the split 'val' of MoNuSeg is empty", root=empty, device="cpu")


# -------------------------------------------------------------------------------------- parts by hand


def test_learning_rate_by_hand():
    config = settings(epochs=10, steps_per_epoch=10, warmup=0.1, lr=0.5)
    optimizer = torch.optim.AdamW([{"params": [torch.zeros(1)]}, {"params": [torch.zeros(1)]}])
    expected = {0: 0.05, 4: 0.25, 9: 0.5, 10: 0.5, 40: 0.375, 55: 0.25, 70: 0.125, 100: 0.0}
    for step, lr in expected.items():
        assert set_learning_rate(optimizer, config, step) == pytest.approx(lr, abs=1e-12)
        assert all(group["lr"] == pytest.approx(lr, abs=1e-12) for group in optimizer.param_groups)
    rates = [set_learning_rate(optimizer, config, step) for step in range(100)]
    assert min(rates) > 0
    without = settings(epochs=1, steps_per_epoch=4, warmup=0.0, lr=0.5)
    assert set_learning_rate(optimizer, without, 0) == 0.5


def test_average_of_weights_by_hand():
    network, ema = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    for value, weights in ((4.0, network), (1.0, ema)):
        nn.init.constant_(weights.weight, value)
    update_average(ema, network, 0.75)
    assert ema.weight.item() == pytest.approx(1.75)
    update_average(ema, network, 0.5)
    assert ema.weight.item() == pytest.approx(2.875)
    assert network.weight.item() == 4


def test_statistics_of_the_averaged_weights(tree, tmp_path):
    torch.manual_seed(0)
    config, model = settings(steps_per_epoch=3), CSAMNet(4).eval()
    atlas = Atlas(load_split(tree, "MoNuSeg", "train"), torch.device("cpu"), cache=tmp_path)
    recalibrate(model, typical_crops(atlas, config), config)
    generator = torch.Generator().manual_seed(config.seed)
    stage, means, variances = model.encoder[0], [], []
    for _ in range(3):
        x = stage.conv1(nn.functional.max_pool2d(atlas.crops(config, config.batch, generator)[0], 2))
        means.append(x.mean((0, 2, 3)))
        variances.append(x.var((0, 2, 3)))
    torch.testing.assert_close(stage.bn1.running_mean, torch.stack(means).mean(0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(stage.bn1.running_var, torch.stack(variances).mean(0), rtol=1e-4, atol=1e-5)
    assert not model.training
    assert (stage.bn1.momentum, model.head.body[0][1].momentum) == (0.1, 3e-4)


def test_only_weights_decay():
    network = CSAMNet(8)
    decay, rest = parameter_groups(network, 0.1)
    assert (decay["weight_decay"], rest["weight_decay"]) == (0.1, 0)
    names = {id(p): name for name, p in network.named_parameters()}
    assert len(decay["params"]) + len(rest["params"]) == len(names)
    kept = {names[id(p)] for p in rest["params"]}
    norms = {
        f"{name}.{kind}"
        for name, m in network.named_modules()
        if isinstance(m, nn.BatchNorm2d)
        for kind in ("weight", "bias")
    }
    scalars = {name for name in names.values() if "weight_pooled" in name or "weight_variance" in name}
    assert kept >= norms | scalars | {name for name in names.values() if name.endswith(".bias")}
    assert {"encoder.0.conv1.weight", "head.classify.weight"} <= {names[id(p)] for p in decay["params"]}


def test_every_step_and_process_has_its_own_random_numbers():
    drawn = set()
    for seed, step, rank in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)):
        stub = SimpleNamespace(global_rank=rank, device=torch.device("cpu"))
        generator = seed_step(seed, step, stub)
        drawn |= {torch.rand(1, generator=generator).item(), torch.rand(1).item()}
        again = seed_step(seed, step, stub)
        assert torch.rand(1, generator=again).item() in drawn
    assert len(drawn) == 8


def test_best_epoch_by_hand():
    def rows(*values):
        return [{"val_miou": value} for value in values]

    assert best_epoch(rows(0.2, 0.5, 0.5, 0.4)) == 2
    assert best_epoch(rows(math.nan, 0.1, math.nan)) == 2
    assert best_epoch(rows(math.nan, math.nan)) == 2, "the last, where there is nothing to choose by"


def test_refit_learns_from_validation_images_and_keeps_the_last_epoch(tree, tmp_path, monkeypatch):
    config, told, states, own = settings(epochs=2, steps_per_epoch=1, refit=True), [], [], module.score

    def score(fabric, ema, samples, config):
        states.append({key: value.clone() for key, value in ema.state_dict().items()})
        return own(fabric, ema, samples, config)

    monkeypatch.setattr(module, "score", score)
    samples = load_samples(config, tree)
    names = [sample.name for split in ("train", "val") for sample in load_split(tree, "MoNuSeg", split)]
    assert ([sample.name for sample in samples["train"]], samples["val"]) == (names, [])
    assert len(load_samples(settings(refit=True, images=3), tree)["train"]) == 3
    folder = train(config, tree, results=tmp_path, device="cpu", on_epoch=told.append)
    about, seen = json.loads((folder / "run.json").read_text()), json.loads((folder / "images.json").read_text())
    assert (about["best_epoch"], about["best_val_miou"]) == (2, None)
    assert sorted(seen["train"].values()) == sorted(names)
    assert seen["val"] == {}
    assert history(folder)[["val_miou", "val_dice", "val_ap"]].isna().all(axis=None)
    assert images_learned(about) == len(names)
    assert "val" not in epoch_line(told[0])
    with pytest.raises(InputError, match="has learned from images that it is to be measured on"):
        evaluate(folder, tree, split="val", device="cpu")
    assert [same(tensors(folder), state) for state in states] == [False, True]


def test_weights_of_the_best_epoch_are_kept(tree, tmp_path, monkeypatch):
    seen, scores = [], iter([0.2, 0.9, 0.9])

    def score(fabric, ema, samples, config):
        seen.append({key: value.clone() for key, value in ema.state_dict().items()})
        return {"val_miou": next(scores), "val_dice": 0.0, "val_ap": 0.0}

    monkeypatch.setattr(module, "score", score)
    folder = train(settings(epochs=3, steps_per_epoch=1), tree, results=tmp_path, device="cpu")
    assert [same(tensors(folder), state) for state in seen] == [False, True, False]


def test_losses_by_hand():
    probability = torch.tensor([[[[0.9, 0.2], [0.4, 0.5]]]])
    logits = torch.cat([(1 - probability).log(), probability.log()], 1)
    target = torch.tensor([[[1, 0], [1, 0]]], dtype=torch.uint8)
    dice = 1 - (2 * (0.9 + 0.4) + 1) / (2.0 + 2 + 1)
    cross_entropy = -np.log([0.9, 0.8, 0.4, 0.5]).mean()
    assert dice_loss(logits, target).item() == pytest.approx(dice, abs=1e-6)
    total, *parts = segmentation_loss(logits, target, 0.5)
    assert [part.item() for part in parts] == pytest.approx([cross_entropy, dice], abs=1e-6)
    assert total.item() == pytest.approx(cross_entropy + 0.5 * dice, abs=1e-6)
    two = torch.cat([logits, logits.flip(1)]), torch.cat([target, torch.zeros_like(target)])
    pooled = 1 - (2 * 1.3 + 1) / (2.0 + (0.1 + 0.8 + 0.6 + 0.5) + 2 + 1)
    assert dice_loss(*two).item() == pytest.approx(pooled, abs=1e-6), "one Dice of the batch"
    half = logits.bfloat16()
    for ours, exact in zip(segmentation_loss(half, target), segmentation_loss(half.float(), target), strict=True):
        assert ours.dtype == torch.float32
        assert ours == exact, "summed in float32"
    blank = torch.full_like(logits, -20.0)
    blank[:, 0] = 20
    assert dice_loss(blank, torch.zeros_like(target)).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("damage", [lambda raw: raw[:-100], lambda raw: b"", lambda raw: b"\x80\x04junk"])
def test_a_damaged_checkpoint_is_named(tree, tmp_path, damage):
    config = settings(epochs=2, steps_per_epoch=1)
    folder = results.run_folder(config, tmp_path)

    def stop(row):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config, tree, results=tmp_path, device="cpu", on_epoch=stop)
    path = folder / "checkpoint.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match=r"checkpoint\.safetensors(?s:.*)mend: remove it"):
        train(config, tree, results=tmp_path, device="cpu")


def test_validation_without_foreground_is_refused_before_the_first_step(tree, tmp_path, monkeypatch):
    monkeypatch.setattr("csamnet.data.Sample.mask", lambda sample: np.zeros(sample.image().shape[:2], bool))
    with pytest.raises(InputError, match="the epoch to keep cannot be chosen"):
        train(settings(), tree, results=tmp_path, device="cpu")
    assert not list(tmp_path.rglob("run.json"))
