"""Run folders: where a number comes from, and whether it still stands.

Importing this file does not import torch, so that the workflow can ask what is stale at no cost.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import os
import platform
import sys
from functools import cache
from pathlib import Path

from csamnet.config import MODELS, RunConfig, stored_config
from csamnet.files import InputError, read_json, sha256_file, sha256_json
from csamnet.paths import RESULTS, SAMPLE_TREES

CODE = {
    "train": ("images", "losses", "model", "data", "metrics", "evaluate", "train"),
    "evaluate": ("images", "model", "data", "instances", "metrics", "evaluate"),
    "robustness": ("images", "model", "data", "instances", "metrics", "evaluate", "robustness"),
    "stream": ("images", "model", "data", "evaluate", "slides", "wsi/stream"),
    "slide": ("instances", "wsi/slide_outputs", "wsi/slide_run"),
}
"""The files whose change makes a training, an evaluation, a slide's probability or what follows from it stale."""

SEEN = "images.json"
"""In a run folder: what it was trained on and selected on, split -> hash of an image's pixels -> its name; and under
`groups`, split -> their patients or slides."""

MEASURES = ("miou", "dice", "ap", "auc")
"""What is told of an evaluation first."""

LIBRARIES = ("torch", "lightning-fabric", "numpy", "scipy", "scikit-image", "safetensors")


def run_folder(config: RunConfig, results: Path | str = RESULTS) -> Path:
    return Path(results) / config.dataset / config.name


def code_sha256(step: str, model: str = "") -> str:
    """Hash of the code that `step` runs on `model`; comments, docstrings and layout do not count."""
    here, digest = Path(__file__).parent, hashlib.sha256()
    files = [here / f"{name}.py" for name in CODE[step]]
    if "name" in MODELS.get(model, ()):
        files += sorted((here / "baselines").glob("*.py"))
    for path in files:
        digest.update(_plain(path.read_bytes()))
    return digest.hexdigest()


@cache
def _plain(code: bytes) -> bytes:
    """A module's code without comments, docstrings and layout."""
    return ast.unparse(_without_docstrings(ast.parse(code))).encode()


def _without_docstrings(tree: ast.Module) -> ast.Module:
    """The tree less every expression that is a bare string."""
    for node in ast.walk(tree):
        if isinstance(getattr(node, "body", None), list):
            kept = [s for s in node.body if not (isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant))]
            node.body = kept or [ast.Pass()]
    return tree


def fingerprint(config: RunConfig, manifest_sha256: str = "", step: str = "train") -> str:
    """One hash of configuration, data and code: a run is stale when, and only when, it has changed."""
    network = MODELS[config.model]
    code = code_sha256(step, config.model)
    return sha256_json({"config": config.to_dict(), "network": network, "data": manifest_sha256, "code": code})


def data_card(root: Path | str, dataset: str) -> dict:
    """What a run keeps of its data set: name, kind (real or sample), manifest hash and counts."""
    path = Path(root) / dataset / "dataset.json"
    mend = f"csamnet prepare {dataset} --from PATH --root {root}"
    if not path.exists():
        mend += "; or its look-alike: --root data/prepared/samples" * (SAMPLE_TREES / dataset).is_dir()
        raise InputError("a data set is not prepared", path=path, mend=mend)
    card, keys = read_json(path), ("name", "kind", "manifest_sha256", "counts")
    if not set(keys) <= card.keys() or card["kind"] not in ("real", "sample"):
        raise InputError("not what csamnet prepare writes", path=path, expected=", ".join(keys), mend=mend)
    if sha256_file(path.with_name("manifest.csv")) != card["manifest_sha256"]:
        raise InputError("a manifest was changed", path=path.with_name("manifest.csv"), mend=mend)
    return {key: card[key] for key in keys}


def images_learned(run: dict) -> int:
    """From how many images a run has learned, by its `run.json`."""
    splits = ("train", "val") if run["config"].get("refit") else ("train",)
    return run["config"].get("images") or sum(run["data"]["counts"][split] for split in splits)


def read_run(folder: Path | str) -> dict:
    """A run's `run.json`. Raises InputError where the folder is no run."""
    path = Path(folder) / "run.json"
    if not path.exists():
        raise InputError("this is no run folder", path=folder, expected="a folder with run.json", mend="csamnet train")
    run = read_json(path)
    if not isinstance(run.get("config"), dict) or "status" not in run:
        mend = "move the folder out of the results"
        raise InputError("not what csamnet train writes", path=path, expected="a status and a config", mend=mend)
    return run


def keep_real(path: Path, card: dict) -> None:
    """Raises InputError where what was found on look-alikes would take the place of what was on real images."""
    if path.exists() and card["kind"] == "sample" and read_json(path).get("data", {}).get("kind") == "real":
        mend = "name another --results, or another --root if real images were meant"
        raise InputError("this was measured on real images", path=path, found="look-alike samples", mend=mend)


def keep_run(folder: Path | str, config: RunConfig, card: dict) -> None:
    """Raises InputError where a run would take the place of one that ended on real images with other settings."""
    keep_real(Path(folder) / "run.json", card)
    if (Path(folder) / "run.json").exists() and (run := read_run(folder))["status"] == "done":
        had = RunConfig().to_dict() | run["config"]
        other = [f"{key} {had[key]}" for key, value in config.to_dict().items() if had[key] != value]
        if other and run.get("data", {}).get("kind") == "real":
            found, mend = f"there: {', '.join(other)}", "name another --results, or move it away"
            raise InputError("a finished run on real images has this name", path=folder, found=found, mend=mend)


def is_done(folder: Path | str, fresh: str) -> bool:
    """Whether the run in `folder` has ended and still has the fingerprint `fresh`."""
    path = Path(folder) / "run.json"
    if not path.exists() or not (Path(folder) / "weights.safetensors").exists():
        return False
    run = read_json(path)
    return run.get("status") == "done" and run.get("fingerprint") == fresh


def find_runs(results: Path | str = RESULTS, **wanted) -> list[Path]:
    """Folders of finished runs, sorted, whose configuration has the values `wanted`: dataset="MoNuSeg", ...

    None is any value. Runs on a part of the training images are only found where `images` is wanted.
    """
    folders, usual, wanted = [], RunConfig().to_dict(), {"images": 0} | wanted
    for path in sorted(Path(results).glob("*/*/run.json")):
        run = read_run(path.parent)
        config = usual | run["config"]
        if run["status"] == "done" and all(value in (None, config.get(key)) for key, value in wanted.items()):
            folders.append(path.parent)
    return folders


def read_config(folder: Path | str) -> RunConfig:
    """The configuration of a run. Raises InputError where its run.json is damaged or from another version."""
    run = read_run(folder)
    try:
        return stored_config(run["config"])
    except (TypeError, InputError) as error:
        path, mend = Path(folder) / "run.json", "move the folder out of the results"
        raise InputError("the configuration of a run cannot be used", path=path, found=error, mend=mend) from None


def measured_in(
    folder: Path | str, dataset: str | None, split: str, normalise: float | None = None, tta: bool = False
) -> Path:
    """Where an evaluation lies: `test`, or on another data set than the run's own `Kumar-test`.

    With another `normalise` than the run's own it is `test-normalise1`, with eight views where the run has one
    `test-tta`, with both `test-normalise1-tta` (four views normalised, four as it is).
    """
    config = read_run(folder)["config"]
    split += "" if normalise in (None, config.get("normalise", 0)) else f"-normalise{normalise:.15g}"
    split += "-tta" * (tta and not config.get("tta", False))
    return Path(folder) / (split if dataset in (None, config["dataset"]) else f"{dataset}-{split}")


def share_told(name: str) -> tuple[str, str]:
    """The split and the share in a name that `measured_in` gives: `test-normalise1` is test and 1; `test` has none."""
    split, _, share = name.removesuffix("-tta").partition("-normalise")
    return split, share


def read_seen(folder: Path | str) -> dict[str, dict]:
    """The images that a run was trained and selected on, and under `groups` their groups (see SEEN)."""
    path = Path(folder) / SEEN
    seen = read_json(path)
    if not all(isinstance(seen.get(split), dict) for split in ("train", "val")):
        raise InputError("not what csamnet train writes", path=path, expected="hashes of train and val")
    return seen


def read_summary(folder: Path | str, split: str = "test") -> dict | None:
    """`summary.json` of an evaluation, or None where there is none; `split` is as `measured_in` names it."""
    path = Path(folder) / split / "summary.json"
    if not path.exists():
        return None
    summary = read_json(path)
    pooled, data = summary.get("pooled"), summary.get("data")
    sound = isinstance(pooled, dict) and isinstance(data, dict) and data.get("kind") in ("real", "sample")
    if not sound or not all(isinstance(value, int | float | None) for value in pooled.values()):
        expected = "numbers, pooled and as means, and of what data they are"
        raise InputError("not what csamnet evaluate writes", path=path, expected=expected, mend="remove this file")
    return summary


def libraries() -> dict[str, str]:
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in LIBRARIES}


def hardware(device) -> dict:
    """Device name and count, processor, cores."""
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    cuda = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if cuda else device.type,
        "processor": _processor(),
        "cores": cores,
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"


def peak_memory_mb(device) -> float:
    """Largest memory so far: of the tensors on a GPU, of the process elsewhere, in MiB."""
    import torch

    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if sys.platform == "win32":
        return 0.0
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**10 if sys.platform.startswith("linux") else 2**20)
