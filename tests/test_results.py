"""Run folders: where a number comes from, and when it no longer stands."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import settings

from csamnet import config as configurations
from csamnet import results
from csamnet.config import MODELS, make_config
from csamnet.files import InputError, write_json
from csamnet.results import (
    CODE,
    code_sha256,
    data_card,
    find_runs,
    fingerprint,
    hardware,
    is_done,
    libraries,
    peak_memory_mb,
    read_config,
    read_run,
    run_folder,
)


def write(folder: Path, status: str = "done", summary: dict | None = None, **changes) -> Path:
    """A run folder by hand."""
    config = settings(**changes)
    folder = run_folder(config, folder)
    folder.mkdir(parents=True)
    about = {"config": config.to_dict(), "status": status, "fingerprint": "abc"}
    (folder / "run.json").write_text(json.dumps(about))
    if summary:
        (folder / "test").mkdir()
        (folder / "test" / "summary.json").write_text(json.dumps(summary))
    return folder


def test_place_of_a_run():
    config = make_config("short", model="CSAMNet-M", seed=3)
    assert run_folder(config, "there") == Path("there/MoNuSeg/CSAMNet-M-short-seed3")


@pytest.fixture
def code(tmp_path, monkeypatch) -> Path:
    """A copy of the package, which the hashes are taken of."""
    folder = shutil.copytree(Path(results.__file__).parent, tmp_path / "csamnet")
    monkeypatch.setattr(results, "__file__", str(folder / "results.py"))
    return folder


@pytest.mark.parametrize("step", ["train", "evaluate"])
def test_code_counts_and_what_only_explains_it_does_not(code, step):
    before = code_sha256(step)
    for name in CODE[step]:
        path = code / f"{name}.py"
        text = path.read_text()
        told = text.replace('"""', '"""In other words: ', 1).replace("\nimport", "\n\n# a comment\nimport", 1)
        assert told != text
        path.write_text(told)
        assert code_sha256(step) == before, name
        path.write_text(told + "\nCHANGED = 1\n")
        assert code_sha256(step) != before, name
        path.write_text(text)
    for name in ("figures", "cli", "samples"):
        (code / f"{name}.py").write_text("CHANGED = 1\n")
    assert code_sha256(step) == before


def test_fingerprint_has_configuration_network_data_and_code(code, monkeypatch):
    config = settings()
    same = fingerprint(config, "data")
    assert fingerprint(make_config(**config.to_dict()), "data") == same
    others = [
        fingerprint(settings(lr=1e-4), "data"),
        fingerprint(config, "other"),
        fingerprint(config, "data", "evaluate"),
    ]
    with monkeypatch.context() as patch:
        patch.setitem(MODELS, config.model, {"width": 12})
        others.append(fingerprint(config, "data"))
    with (code / "losses.py").open("a") as stream:
        stream.write("CHANGED = 1\n")
    others.append(fingerprint(config, "data"))
    assert len({same, *others}) == 6


def test_docstrings_do_not_count_even_where_nothing_else_is_there():
    texts = (b'class A:\n    """Told."""\n', b"class A:\n    pass\n")
    with_one, without = map(results._plain, texts)
    assert with_one == without


def test_where_a_measurement_lies(tmp_path):
    write_json(tmp_path / "run.json", {"status": "done", "config": {"dataset": "MoNuSeg"}})
    found = [results.measured_in(tmp_path, name, "val").name for name in (None, "MoNuSeg", "PUMA")]
    assert found == ["val", "val", "PUMA-val"]


def test_the_name_of_a_measurement_tells_its_split_and_share(tmp_path):
    write_json(tmp_path / "run.json", {"status": "done", "config": {"dataset": "MoNuSeg", "normalise": 0.5}})
    shares = (None, 0.5, 0.75, 0.0)
    found = [results.share_told(results.measured_in(tmp_path, "PUMA", "test", share).name) for share in shares]
    assert found == [("PUMA-test", share) for share in ("", "", "0.75", "0")]
    views = [results.measured_in(tmp_path, None, "test", share, tta=True).name for share in (None, 1.0)]
    assert views == ["test-tta", "test-normalise1-tta"]
    assert [*map(results.share_told, views)] == [("test", ""), ("test", "1")]
    write_json(tmp_path / "run.json", {"status": "done", "config": {"dataset": "MoNuSeg", "tta": True}})
    assert results.measured_in(tmp_path, None, "test", tta=True).name == "test", "that is the run's own"


def test_what_counts_as_done(tmp_path):
    folder = write(tmp_path)
    assert not is_done(folder, "abc"), "no weights"
    (folder / "weights.safetensors").touch()
    assert is_done(folder, "abc")
    assert not is_done(folder, "abd")
    assert not is_done(tmp_path, "abc")
    unfinished = write(tmp_path, "training", seed=1)
    (unfinished / "weights.safetensors").touch()
    assert not is_done(unfinished, "abc")


def test_runs_are_found_by_their_configuration(tmp_path):
    first, second = write(tmp_path), write(tmp_path, seed=2)
    write(tmp_path, "training", seed=3)
    assert find_runs(tmp_path) == [first, second]
    assert find_runs(tmp_path, seed=2, dataset="MoNuSeg") == [second]
    assert find_runs(tmp_path, model="CSAMNet-L") == []
    assert find_runs(tmp_path / "nowhere") == []
    assert read_config(second) == settings(seed=2)


def test_folders_and_files_that_are_not_what_they_should_be(tmp_path):
    with pytest.raises(InputError, match=r"no run folder(?s:.*)csamnet train"):
        read_run(tmp_path)
    folder = write(tmp_path)
    (folder / "run.json").write_text("{")
    with pytest.raises(InputError, match=r"not valid JSON(?s:.*)run\.json"):
        read_run(folder)
    with pytest.raises(InputError, match=r"not prepared(?s:.*)csamnet prepare MoNuSeg --from PATH"):
        data_card(tmp_path, "MoNuSeg")


def test_data_card(tree):
    card = data_card(tree, "MoNuSeg")
    assert card["counts"] == {"train": 4, "val": 2, "test": 2}
    assert card.keys() == {"name", "kind", "manifest_sha256", "counts"}


def test_what_a_run_ran_on():
    cpu = torch.device("cpu")
    assert libraries()["torch"] == importlib.metadata.version("torch")
    assert hardware(cpu)["device"] == "cpu"
    assert hardware(cpu)["cores"] >= 1
    assert 50 < peak_memory_mb(cpu) < 1e6


def test_reading_results_does_not_import_torch():
    code = "import sys, csamnet.results, csamnet.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=Path(__file__).parents[1]).returncode == 0


# ------------------------------------------------------------------------------------- configurations


def test_profiles_and_changes():
    assert make_config().profile == "paper"
    cpu = make_config("cpu")
    assert (cpu.steps, cpu.planned) == (1200, 4000)
    assert replace(cpu, schedule=3).planned == cpu.steps, "a plan is not shorter than what is run"
    assert make_config("short").steps == 800
    for profile in configurations.PROFILES:
        config = make_config(profile)
        assert make_config(**config.to_dict()) == config
    assert make_config("sample", lr=1e-4).lr == 1e-4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"profile": "papper"}, "unknown profile(?s:.*)did you mean 'paper'"),
        ({"model": "CSAMNet-s"}, "unknown model(?s:.*)did you mean 'CSAMNet-S'"),
        ({"epoch": 3}, "unknown setting(?s:.*)did you mean 'epochs'"),
        ({"precision": "bf61"}, "unknown precision(?s:.*)did you mean 'bf16'"),
        ({"epochs": 0}, "epochs cannot be used(?s:.*)a number from 1"),
        ({"epochs": 1.5}, "epochs cannot be used(?s:.*)int"),
        ({"epochs": True}, "epochs cannot be used"),
        ({"batch": 1}, "batch cannot be used(?s:.*)a number from 2"),
        ({"lr": "fast"}, "lr cannot be used(?s:.*)'fast'"),
        ({"lr": float("nan")}, "lr cannot be used(?s:.*)nan"),
        ({"lr": 0}, "lr cannot be used"),
        ({"seed": -1}, "seed cannot be used"),
        ({"tile": 250}, "multiple of 16(?s:.*)250"),
        ({"tile": 112}, "at least 128(?s:.*)112"),
        ({"overlap": 1.0}, "overlap cannot be used(?s:.*)0.9"),
        ({"threshold": 1.1}, "threshold cannot be used"),
        ({"tta": "yes"}, "tta cannot be used(?s:.*)bool"),
        ({"compile": 1}, "compile cannot be used"),
        ({"stain": -0.1}, "stain cannot be used"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_impossible_configurations(changes, message):
    with pytest.raises(InputError, match=message):
        make_config(**changes)
