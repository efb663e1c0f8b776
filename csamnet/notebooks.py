"""Running the notebook templates: refuse what is unknown before anything runs, keep what is readable after."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from csamnet.config import RunConfig, make_config
from csamnet.datasets import get_dataset
from csamnet.files import InputError, atomic
from csamnet.paths import ROOT


def checked(namespace: Mapping, allowed: tuple[str, ...]) -> dict:
    """The parameters in a notebook's namespace. Raises InputError for one that is not among `allowed`.

    papermill only warns of an unknown parameter; called right after the injected cell, this refuses it.
    """
    plain = (str, int, float, type(None))
    given = {k: v for k, v in namespace.items() if not k.startswith("_") and isinstance(v, plain)}
    if unknown := sorted(given.keys() - set(allowed)):
        raise InputError("unknown parameter of the notebook", expected=", ".join(allowed), found=", ".join(unknown))
    return {key: given[key] for key in allowed}


def notebook_config(namespace: Mapping, allowed: tuple[str, ...]) -> RunConfig:
    """The run that a notebook's parameters ask for; `None` leaves a setting to the profile."""
    given = {key: value for key, value in checked(namespace, allowed).items() if value is not None}
    places = {key: given.pop(key) for key in ("root", "results", "device") if key in given}
    if places.get("device", "auto") not in ("auto", "cpu", "cuda"):
        raise InputError("unknown device", expected="auto | cpu | cuda", found=repr(places["device"]))
    given["dataset"] = get_dataset(given["dataset"]).name
    return make_config(given.pop("profile"), **given)


def run_notebook(template: Path, out: Path, parameters: dict) -> None:
    """Execute `template` with `parameters` into `out`, whole or not at all; print what its cells print."""
    import nbformat
    import papermill

    if not template.exists():
        raise InputError("there is no such notebook", path=template)
    known = papermill.inspect_notebook(str(template))
    if unknown := sorted(parameters.keys() - known.keys()):
        raise InputError("unknown parameter", path=template, expected=", ".join(known), found=", ".join(unknown))
    with atomic(out) as temporary:
        try:
            papermill.execute_notebook(
                str(template), str(temporary), parameters, cwd=str(ROOT), progress_bar=False, log_output=True
            )
        except papermill.PapermillExecutionError as error:
            raise InputError(f"{error.ename} in cell {error.exec_count}", path=template, found=error.evalue) from error
        notebook = nbformat.read(temporary, as_version=4)
        nbformat.write(tidy(notebook), temporary)


def tidy(notebook):
    """Drop what changes from run to run or says nothing to a reader: timings, paths, execution counts."""
    notebook.metadata.pop("papermill", None)
    for cell in notebook.cells:
        for key in ("papermill", "execution"):
            cell.metadata.pop(key, None)
        cell.metadata.tags = [tag for tag in cell.metadata.get("tags", []) if tag != "papermill-error-cell-tag"]
    return notebook
