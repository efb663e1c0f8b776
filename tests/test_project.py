"""The project holds together: requirements, layout, size, and a workflow that repeats only what changed."""

from __future__ import annotations

import ast
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from csamnet.results import CODE

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
PACKAGE = ROOT / "csamnet"
MODULES = {p.relative_to(PACKAGE).as_posix()[:-3]: ast.parse(p.read_text()) for p in sorted(PACKAGE.rglob("*.py"))}
ORDER = """
files paths processes images manifest datasets download slides samples readers prepare config results model baselines
losses data alignment instances metrics evaluate robustness train inference
pages/measured pages/complexity pages/tables pages/cards pages/weight_card pages/compare pages/architecture
pages/figures pages/explorer pages/notebooks pages/execution pages/generalisation pages/gallery weights
wsi/stream wsi/slide_outputs wsi/slide_figures wsi/slide_run wsi/slide_jobs wsi/viewer terminal wsi/cli_slide cli
"""
"""Each file of csamnet, or folder of it, imports only from those before it."""
APART = ("baselines", "readers", "samples")  # folders whose files may share, and stand each for itself


def declared(extras: dict[str, list[str]]) -> dict[str, Requirement]:
    """Name -> requirement, of the package and of `extras` (less `all`, which only names the others)."""
    texts = PROJECT["dependencies"] + [text for name, of in extras.items() if name != "all" for text in of]
    return {canonicalize_name(requirement.name): requirement for requirement in map(Requirement, texts)}


def imports(tree: ast.Module) -> set[str]:
    """Dotted names of the modules that a file imports, anywhere in it."""
    plain = {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    froms = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    return plain | {f"{node.module}.{name.name}" for node in froms for name in node.names}


def files() -> list[Path]:
    """What git tracks, or would track."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]


def test_all_names_every_extra():
    (everything,) = map(Requirement, EXTRAS["all"])
    assert everything.extras == EXTRAS.keys() - {"all"}


def test_environment_asks_for_what_the_project_asks_for():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    python = next(Requirement(line) for line in environment["dependencies"] if str(line).startswith("python"))
    assert python.specifier == Requirement(f"python{PROJECT['requires-python']}").specifier
    (pip,) = (entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict))
    assert pip[:2] == ["-c requirements.lock", "-e ."]
    found = {canonicalize_name(requirement.name): requirement for requirement in map(Requirement, pip[2:])}
    assert {n: r.specifier for n, r in found.items()} == {n: r.specifier for n, r in declared(EXTRAS).items()}


def test_lock_pins_what_the_project_asks_for():
    lines = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if line[0] != "#"]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines), "only NAME==VERSION"
    pins = {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}
    missing = [
        str(requirement)
        for name, requirement in declared(EXTRAS).items()
        if name not in pins or not requirement.specifier.contains(pins[name])
    ]
    assert not missing


def test_what_is_imported_is_declared():
    """`nbformat` comes with papermill, `IPython` with ipykernel; all else is declared."""
    packages = importlib.metadata.packages_distributions()
    for name, tree in MODULES.items():
        tops = {dotted.split(".")[0] for dotted in imports(tree)} - sys.stdlib_module_names - {"csamnet"}
        found = {canonicalize_name(package) for top in tops for package in packages.get(top, [top])}
        assert found <= declared(EXTRAS).keys() | {"nbformat", "ipython"}, name
        assert not found & {"torchvision", "timm", "segmentation-models-pytorch"}, name


def own_imports(name: str) -> set[str]:
    """The modules of csamnet that one imports, as `pages/tables`, and what of them is no module."""
    paths = [full.split(".")[1:] for full in imports(MODULES[name]) if full.startswith("csamnet.")]
    return {next((p for p in ("/".join(path[:2]), path[0]) if p in MODULES), path[0]) for path in paths}


def unit(name: str) -> str:
    """The place of a module in ORDER: its own, or that of its folder."""
    return name.split("/")[0] if name.split("/")[0] in APART else name


def test_imports_go_one_way():
    order = ORDER.split()
    assert {*order} == {unit(name) for name in MODULES if unit(name) in APART or "__" not in name}
    for name in MODULES:
        if (own := unit(name)) in order:
            others = {unit(other) for other in own_imports(name)} & {*order} - {own}
            assert others <= {*order[: order.index(own)]}, name


def test_the_workflow_reads_the_package_without_torch():
    program = "import sys, csamnet.config, csamnet.files, csamnet.results; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


def code_lines(name: str) -> int:
    """Lines of a module that are neither blank nor comment nor docstring."""
    bare = [node.value for node in ast.walk(MODULES[name]) if isinstance(node, ast.Expr)]
    strings = [value for value in bare if isinstance(value, ast.Constant)]
    prose = {line for value in strings for line in range(value.lineno, value.end_lineno + 1)}
    lines = (PACKAGE / f"{name}.py").read_text().splitlines()
    code = [line for number, line in enumerate(lines, 1) if number not in prose]
    return sum(bool(line.split("#")[0].strip()) for line in code)


def behind(name: str, found: frozenset = frozenset()) -> frozenset:
    """The modules that one imports, and those that they import."""
    for other in own_imports(name) - found:
        found = behind(other, found | {other}) if other in MODULES else found | {other}
    return found


KNOWN_OTHERWISE = {"config", "datasets", "manifest", "baselines", "files", "paths", "results"}
"""Settings, data and networks have a place of their own in a fingerprint, and the last three compute nothing."""


@pytest.mark.parametrize("step", ["train", "evaluate", "robustness", "stream"])
def test_a_result_is_stale_when_any_code_that_makes_it_changed(step):
    module = "wsi/stream" if step == "stream" else step
    needed = behind(module) | {module}
    unused = {"train": {"instances"}, "stream": {"instances", "metrics"}}
    assert {*CODE[step]} == needed - KNOWN_OTHERWISE - unused.get(step, set())


def test_the_package_is_small():
    """The module proper; what is for pages and whole slides; three folders apart whose files stand each for itself."""
    lines = dict.fromkeys(("", "pages", "wsi", *APART), 0)
    for name in MODULES:
        lines[name.rpartition("/")[0]] += code_lines(name)
    assert lines["pages"] < 2269
    assert lines["wsi"] < 1149
    assert lines[""] < 3169  # 2,500 were meant
    assert lines[""] + lines["pages"] + lines["wsi"] < 6585


def test_functions_are_short():
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = [(name, node) for name, tree in MODULES.items() for node in ast.walk(tree)]
    long = [(name, node.name) for name, node in nodes if isinstance(node, functions) and length(node) > 60]
    assert not long


def length(node: ast.AST) -> int:
    return node.end_lineno - node.lineno + 1


def test_templates_are_clean():
    templates = sorted((ROOT / "notebooks").glob("*.ipynb"))
    assert templates
    for template in templates:
        cells = json.loads(template.read_text())["cells"]
        code = [cell for cell in cells if cell["cell_type"] == "code"]
        assert not any(cell["outputs"] or cell["execution_count"] for cell in code), template.name
        assert sum("parameters" in cell["metadata"].get("tags", []) for cell in cells) == 1, template.name


def test_no_file_is_large():
    assert not [str(path) for path in files() if path.stat().st_size > 15 * 2**20]


def test_nothing_names_a_machine():
    """No absolute path of somebody's machine, no address of a package registry."""
    path = r"(?<![\w.~$}\])-])/(?:work|tmp|root|home|farm|Users)/"
    host = r"pypi\.org|python[h]osted|npmjs\.(?:org|com)|download\.pytorch|deb\.debian|\b10\.\d+\.\d+\.\d+\b"
    for file in files():
        content = file.read_bytes()
        if b"\0" not in content[:8192]:
            found = re.search(f"{path}|{host}", content.decode("utf-8", "replace"))
            assert not found, f"{file.relative_to(ROOT)}: {found[0]}"


STUB = """#!/usr/bin/env bash
echo "$1" >> calls
case "$1" in
  samples) out="data/samples/$2/SAMPLE.json" ;;
  prepare) out="$6/$2/manifest.csv" ;;
  notebook) out="$3" ;;
esac
mkdir -p "$(dirname "$out")" && echo x > "$out"
"""


@pytest.fixture
def workflow(tmp_path):
    """A function that runs the workflow up to the notebook, in a copy with a stand-in for `csamnet`."""
    pytest.importorskip("snakemake", reason="the extra `book` is not installed")
    home = tmp_path / "a checkout"
    for folder in ("csamnet", "notebooks"):
        shutil.copytree(ROOT / folder, home / folder)
    shutil.copy(ROOT / "Snakefile", home)
    stub = tmp_path / "bin" / "csamnet"
    stub.parent.mkdir()
    stub.write_text(STUB)
    stub.chmod(0o755)
    environment = os.environ | {"PATH": f"{stub.parent}{os.pathsep}{os.environ['PATH']}"}

    def run(*settings: str) -> list[str]:
        (home / "calls").write_text("")
        options = ["--cores=1", "--rerun-triggers=params", *(["--config", *settings] if settings else [])]
        command = [sys.executable, "-m", "snakemake", "book/executed/MoNuSeg.ipynb", *options]
        done = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return (home / "calls").read_text().split()

    return home, run


def test_only_what_changed_is_run_again(workflow):
    home, run = workflow
    assert run() == ["samples", "prepare", "notebook"]
    for path in home.rglob("*"):
        os.utime(path)
    assert run() == [], "a new date is no change"
    with (home / "csamnet" / "readers" / "histology.py").open("a") as stream:
        stream.write("CHANGED = 1\n")
    assert run() == ["prepare", "notebook"]
    assert run("seed=1") == ["notebook"]
    release = home / "releases" / "MoNuSeg"
    release.mkdir(parents=True)
    assert run("seed=1", "profile=paper", f"data={release.parent}") == ["prepare", "notebook"]


def test_a_real_profile_is_not_run_on_look_alikes(workflow):
    _, run = workflow
    with pytest.raises(AssertionError, match="name the folder of releases"):
        run("profile=paper")


def test_the_book_leaves_out_what_tools_leave_at_the_top():
    """The tests' cache holds a README, which is no page of the book: `make test` and then `make book`."""
    left_out = yaml.safe_load((ROOT / "_config.yml").read_text())["exclude_patterns"]
    assert {".pytest_cache", ".ruff_cache", ".venv", ".snakemake", "results"} <= set(left_out)


def test_a_profile_with_a_dash_is_told_from_the_network(workflow):
    """`CSAMNet-S-no-DCF-cpu-refit-seed0` is that variant by `cpu-refit`, and no network `CSAMNet-S-no-DCF-cpu`."""
    home, _ = workflow
    (home / "releases" / "MoNuSeg").mkdir(parents=True)
    output = "results/MoNuSeg/CSAMNet-S-no-DCF-cpu-refit-seed0/test/summary.json"
    options = ["--dry-run", "--cores=1", "--config", "profile=cpu-refit", "data=releases"]
    command = [sys.executable, "-m", "snakemake", output, *options]
    done = subprocess.run(command, cwd=home, capture_output=True, text=True)
    assert "model=CSAMNet-S-no-DCF, profile=cpu-refit, seed=0" in done.stdout + done.stderr
