"""The book's own Sphinx extension: numbers come from files, and a page asks no other host for anything.

Roles
    {result}`MoNuSeg/CSAMNet-S-paper-seed0/test:pooled.miou`   a number of one run, with its provenance
    {result}`MoNuSeg/CSAMNet-S-paper/test:pooled.miou`         the same over all seeds, mean ± sd
    {paper}`MoNuSeg/CSAMNet-S:miou_percent`                    a number of the paper
    {network}`CSAMNet-S:parameters`                            counted in the code; also CSAMNet-S:gmacs
Directives
    {published} monuseg.csv                                    a table of the paper; `:columns:` picks some
    {results-table} MoNuSeg                                    paper against ours; `:split:` is test, `:models:` all
    {scores-table}                                             a line a row: `words | MoNuSeg/CSAMNet-S-cpu-refit/test`
    {costs-table} paper                                        costs of the paper's networks; or `measured` here
    {runs-table}                                               trainings on real images, and what they took
    {datasets-table}                                           data sets of the paper against those used here
    {network-sizes}                                            the models of the code, counted
    {commands}                                                 the command line's commands and options
"""

from __future__ import annotations

import csv
import re
import shutil
from functools import cache
from pathlib import Path
from typing import ClassVar

import typer
from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective, SphinxRole

from csamnet.cli import app as command_line
from csamnet.config import SIZES
from csamnet.pages.complexity import complexity, full_size
from csamnet.pages.tables import (
    KINDS,
    TITLES,
    against_paper,
    costs_against_paper,
    costs_measured,
    datasets_against_paper,
    markdown,
    runs_measured,
    show_seeds,
)
from csamnet.results import read_summary

POLICY = (
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; worker-src 'self' blob:"
)

LABELS = KINDS | {"paper": "paper", "absent": "not run"}

SCORES = ("miou", "ap", "auc")  # the paper's

HEADINGS = {
    "dataset": "Data set",
    "image_size": "Image size",
    "ap": "AP",
    "auc": "AUC",
    "miou_percent": "mIoU (%)",
    "params_million": "Parameters (M)",
    "gmacs_256": "Multiply-adds (G)",
    "origin": "Where it was read",
}


def published(root: Path, name: str) -> list[dict[str, str]]:
    """The rows of a table in book/published, as printed."""
    with open(root / "book" / "published" / name, newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def of_paper(root: Path, dataset: str) -> dict[str, dict[str, str]]:
    """The paper's rows on a data set, by our names of the models: size S is what it calls CSAMNet."""
    rows = published(root, f"{dataset.lower()}.csv")
    return {"CSAMNet-S" if row["model"] == "CSAMNet" else row["model"]: row for row in rows}


def summaries(root: Path, run: str, split: str) -> list[dict]:
    """What was measured in one run, or in every seed of it where the name ends before `-seed`."""
    folder = root / "results" / run
    folders = [folder] if folder.is_dir() else sorted(folder.parent.glob(f"{folder.name}-seed*"))
    return [summary for folder in folders if (summary := read_summary(folder, split))]


def kind(found: list[dict]) -> str:
    """What `LABELS` says of the measures: one that is of samples makes all of them samples'."""
    kinds = {summary["data"]["kind"] for summary in found}
    return "absent" if not found else "sample" if "sample" in kinds else "real"


@cache
def count(model: str) -> tuple[int, float]:
    """Parameters, and G multiply-adds for an image of 256 x 256, of one of `MODELS`."""
    costs = complexity(full_size(model))
    return costs["parameters"], costs["multiply_adds"] / 1e9


class Number(SphinxRole):
    """A value with its provenance behind it."""

    def run(self):
        try:
            kind, text = self.look_up(Path(self.env.app.srcdir))
        except (KeyError, ValueError, OSError) as error:
            problem = self.inliner.reporter.error(f"no number {self.text!r}: {error!r}", line=self.lineno)
            return [], [problem]
        found = [nodes.inline("", text, classes=["number"])] if text else []
        if kind:
            found.append(nodes.inline("", LABELS[kind], classes=["provenance", f"provenance-{kind}"]))
        return found[:1] + [node for other in found[1:] for node in (nodes.Text("\N{NO-BREAK SPACE}"), other)], []


class Result(Number):
    def look_up(self, root: Path) -> tuple[str, str]:
        place, keys = self.text.split(":")
        found = summaries(root, *place.rsplit("/", 1))
        if not found:
            return kind(found), ""
        values = found
        for key in keys.split("."):
            values = [value[key] for value in values]
        return kind(found), show_seeds(key, values)


class Paper(Number):
    def look_up(self, root: Path) -> tuple[str, str]:
        place, column = self.text.split(":")
        dataset, model = place.split("/")
        return "paper", of_paper(root, dataset)[model][column] + " %" * column.endswith("_percent")


class Network(Number):
    def look_up(self, root: Path) -> tuple[str, str]:
        model, what = self.text.split(":")
        parameters, gmacs = count(model)
        return "", {"parameters": f"{parameters:,}", "gmacs": f"{gmacs:.2f}"}[what]


class Table(SphinxDirective):
    """A Markdown table that is written as the book is built."""

    optional_arguments = 1

    @property
    def root(self) -> Path:
        return Path(self.env.app.srcdir)

    def parse(self, table: str) -> list[nodes.Node]:
        """Parse Markdown as the page is parsed, with a label's look for a cell that holds just a status."""
        for kind in ("real", "sample", "absent"):
            styled = f"| [{LABELS[kind]}]{{.provenance .provenance-{kind}}} "
            table = re.sub(rf"\| \*?{LABELS[kind]}\*? (?=\|)", styled, table)
        return self.parse_text_to_nodes(table)


class ResultsTable(Table):
    option_spec: ClassVar = {"split": directives.unchanged, "models": directives.unchanged}

    def run(self) -> list[nodes.Node]:
        split, models = self.options.get("split", "test"), self.options.get("models", "")
        return self.parse(against_paper(self.arguments[0], split, self.root / "results", models))


class ScoresTable(Table):
    """Scores of runs, pooled: each line says in words what was measured, and where the numbers are."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        rows = []
        for line in self.content:
            words, place = (part.strip() for part in line.rsplit("|", 1))
            found = summaries(self.root, *place.rsplit("/", 1))
            pooled = [summary["pooled"] for summary in found]
            scores = [show_seeds(key, [one[key] for one in pooled]) if found else "" for key in SCORES]
            rows.append([words, *scores, str(len(found) or ""), LABELS[kind(found)]])
        head = ["what", *(TITLES[key] for key in SCORES), "seeds", "status"]
        return self.parse(markdown(head, rows, ",".join(head[1:-1])))


class CostsTable(Table):
    def run(self) -> list[nodes.Node]:
        if self.arguments == ["measured"]:
            return self.parse(costs_measured(self.root / "results"))
        return self.parse(costs_against_paper())


class DatasetsTable(Table):
    def run(self) -> list[nodes.Node]:
        return self.parse(datasets_against_paper(self.root / "results"))


class RunsTable(Table):
    def run(self) -> list[nodes.Node]:
        return self.parse(runs_measured(self.root / "results"))


class Published(Table):
    option_spec: ClassVar = {"columns": directives.unchanged}

    def run(self) -> list[nodes.Node]:
        rows = published(self.root, self.arguments[0])
        columns = self.options.get("columns", " ".join(rows[0])).split()
        titles = {column: HEADINGS.get(column, column.capitalize()) for column in columns}
        numbers = [titles[c] for c in columns if all(re.fullmatch(r"[\d.]*", row[c]) for row in rows)]
        cells = [[row[c] for c in columns] for row in rows]
        return self.parse(markdown(titles.values(), cells, ",".join(numbers)))


class NetworkSizes(Table):
    def run(self) -> list[nodes.Node]:
        paper, rows = of_paper(self.root, "MoNuSeg"), []
        for size, width in SIZES.items():
            model = f"CSAMNet-{size}"
            row, (parameters, gmacs) = paper.get(model, {}), count(model)
            parameters, gmacs = f"{parameters:,}", f"{gmacs:.2f}"
            printed = row.get("params_million"), row.get("gmacs_256")
            rows.append([model, str(width), printed[0], parameters, printed[1], gmacs])
        head = ["Model", "Width", "Parameters (M) in the paper", "counted"]
        head += ["Multiply-adds (G) in the paper", "counted "]
        return self.parse(markdown(head, rows, ",".join(head[1:])))


class Commands(Table):
    def run(self) -> list[nodes.Node]:
        return [
            node for command in typer.main.get_command(command_line).commands.values() for node in self.show(command)
        ]

    def show(self, command) -> list[nodes.Node]:
        """Usage, purpose and options of one command."""
        names = {p: ", ".join(p.opts) if p.param_type_name == "option" else p.name.upper() for p in command.params}
        usage = [names[p] for p in command.params if p.param_type_name == "argument"]
        rows = []
        for p, name in names.items():
            default = p.show_default if isinstance(p.show_default, str) else p.default
            default = f"`{default}`" if default or (default == 0 and default is not False) else ""
            rows.append([f"`{name}`", (p.help or "").replace("|", r"\|"), "required" if p.required else default])
        head = self.parse(f"**`csamnet {' '.join([command.name, *usage])}`**\\\n{command.help}")
        return head + self.parse(markdown(["Argument", "Meaning", "Default"], rows))


def finish_page(app: Sphinx, pagename: str, templatename: str, context: dict, doctree) -> None:
    """Forbid other hosts; mend a role that browsers no longer know, and a label that hides the words it stands on."""
    policy = f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
    context["metatags"] = context.get("metatags", "") + policy
    body = context.get("body", "").replace('role="doc-biblioentry"', 'role="listitem"')
    context["body"] = body.replace(' aria-label="Toggle hidden content"', "")


def skip_fields(app: Sphinx, what: str, name: str, member: object, skip: bool, options) -> bool | None:
    """Leave out the fields of named tuples, which have no text of their own."""
    return True if type(member).__name__ == "_tuplegetter" else None


def copy_tiles(app: Sphinx, error: Exception | None) -> None:
    """Serve the tiles of slides beside the pages that show them."""
    tiles = Path("book/executed/tiles")
    if not error and app.builder.format == "html" and (app.srcdir / tiles).is_dir():
        shutil.copytree(app.srcdir / tiles, app.outdir / tiles, dirs_exist_ok=True)


def setup(app: Sphinx) -> dict:
    for name, role in {"result": Result, "paper": Paper, "network": Network}.items():
        app.add_role(name, role())
    app.add_directive("published", Published)
    app.add_directive("network-sizes", NetworkSizes)
    app.add_directive("results-table", ResultsTable)
    app.add_directive("scores-table", ScoresTable)
    app.add_directive("costs-table", CostsTable)
    app.add_directive("datasets-table", DatasetsTable)
    app.add_directive("runs-table", RunsTable)
    app.add_directive("commands", Commands)
    app.connect("html-page-context", finish_page)
    app.connect("autodoc-skip-member", skip_fields)
    app.connect("build-finished", copy_tiles)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
