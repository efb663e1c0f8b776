"""A notebook executed by papermill: what is unknown is refused before, what is readable is kept after."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from textwrap import shorten

from csamnet.datasets import Dataset, get_dataset
from csamnet.files import InputError, atomic
from csamnet.pages.tables import KINDS
from csamnet.paths import PREPARED, ROOT


def run_notebook(template: Path, out: Path, parameters: dict) -> None:
    """Execute `template` with `parameters` into `out`, whole or not at all; print what its cells print.

    Cells tagged `annotated` are left out for a data set without annotation, those tagged `unannotated` for any
    other, and those tagged `pictures` with the parameter `measured`. A notebook that ends with NotRun leaves its title
    and that. Raises InputError for parameters that the template does not have, or that its first cells refuse.
    """
    import nbformat
    import papermill

    content, entry = open_template(Path(template), parameters)
    given, measured = absolute(parameters) | {"dataset": entry.name}, bool(parameters.get("measured"))
    quiet = ["--IPKernelApp.log_level=40"]  # it would warn of each kernel that talks within this machine
    options = {"cwd": str(ROOT), "progress_bar": False, "stdout_file": sys.stdout, "extra_arguments": quiet}
    with atomic(out) as temporary:
        nbformat.write(choose(content, entry, measured), temporary)
        try:
            papermill.execute_notebook(str(temporary), str(temporary), given, **options)
            content = nbformat.read(temporary, as_version=4)
        except papermill.PapermillExecutionError as error:
            if error.ename == "InputError":
                raise InputError(error.evalue) from None
            if error.ename != "NotRun":
                raise
            content.cells[1:] = [nbformat.v4.new_markdown_cell(f"**Not run.** {error.evalue}", id="not-run")]
        nbformat.write(tidy(content, (entry.title or entry.name) + ", real images" * measured), temporary)


def open_template(template: Path, parameters: dict):
    """A template's content, and the data set that it is run for. Raises InputError for parameters it does not have."""
    import nbformat
    import papermill

    if not template.exists():
        raise InputError("there is no such notebook", path=template)
    try:
        content = nbformat.read(template, as_version=4)
    except (ValueError, AttributeError, KeyError, nbformat.ValidationError) as error:
        expected = "a Jupyter notebook, such as notebooks/dataset.ipynb"
        raise InputError("not a notebook", path=template, expected=expected, found=shorten(str(error), 80)) from None
    known = papermill.inspect_notebook(str(template))
    if unknown := sorted(parameters.keys() - known.keys()):
        raise InputError("unknown parameter", path=template, expected=", ".join(known), found=", ".join(unknown))
    asked = parameters.get("dataset") or ast.literal_eval(known["dataset"]["default"])
    return content, get_dataset(asked, parameters.get("root") or PREPARED)


def absolute(parameters: dict) -> dict:
    """The parameters, paths among them made absolute, since a notebook runs in the project's folder."""
    weights = Path(parameters.get("weights") or "").exists()  # else they are a name in weights/
    paths = ["root", "results", "releases", *["weights"] * weights]
    return parameters | {key: str(Path(parameters[key]).resolve()) for key in paths if parameters.get(key)}


def choose(notebook, entry: Dataset, measured: bool = False):
    """The cells of a template that a data set can use; of a page that only reads results, those without pictures."""
    other = {"unannotated" if entry.annotated else "annotated", *["pictures"] * measured}
    notebook.cells = [cell for cell in notebook.cells if not other & set(cell.metadata.get("tags", []))]
    return notebook


def drop_empty(cells: Sequence) -> list:
    """The cells less those tagged `optional` that showed nothing, each with the text before it."""
    kept = []
    for cell in cells:
        if "optional" not in cell.metadata.get("tags", []) or cell.outputs:
            kept.append(cell)
        else:
            while kept[-1].cell_type == "markdown":
                kept.pop()
    return kept


def tidy(notebook, dataset: str):
    """Name the data set in the title, give pictures their text, drop timings, paths and empty cells, hide the rest."""
    hidden = {"parameters": "remove-cell", "injected-parameters": "hide-input"}
    notebook.cells = drop_empty(notebook.cells)
    shown = [output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", [])]
    painted = f"**{KINDS['sample'].capitalize()}"  # as `tables.about` and `about_runs` begin
    sample = any(data.get("text/markdown", "").startswith(painted) for data in shown)
    first = next(cell for cell in notebook.cells if cell.cell_type == "markdown")
    first.source = re.sub("[Tt]his data set", dataset + ", sample data" * sample, first.source, count=1)
    notebook.metadata.pop("papermill", None)
    for cell in notebook.cells:
        tags = [tag for tag in cell.metadata.get("tags", []) if tag in hidden]
        cell.metadata.tags = [tags[0], hidden[tags[0]]] if tags else cell.metadata.get("tags", [])
        for key in ("papermill", "execution"):
            cell.metadata.pop(key, None)
        for output in cell.get("outputs", []):
            for about in output.get("metadata", {}).values():
                if "alt" in about:
                    cell.metadata.mystnb = {"image": {"alt": about["alt"], "width": "100%"}}
    return notebook
