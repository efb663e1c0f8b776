"""The book's own Sphinx extension: numbers come from files, and a page asks no other host for anything.

Roles
    {result}`MoNuSeg/CSAMNet-S-paper-seed0/test:pooled.miou`   a number of one run, with its provenance
    {result}`MoNuSeg/CSAMNet-S-paper/test:pooled.miou`         the same over all seeds, mean ± sd
    {paper}`MoNuSeg/CSAMNet-S:miou_percent`                    a number of the paper
    {network}`CSAMNet-S:parameters`                            counted in the code; also CSAMNet-S:gmacs
Directives
    {published} monuseg.csv                                    a table of the paper; `:columns:` picks some
    {results-table} MoNuSeg                                    paper against ours; `:split:` is test
    {network-sizes}                                            the models of the code, counted
"""

from __future__ import annotations

import re
from pathlib import Path
from statistics import mean
from typing import ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective, SphinxRole
from values import (
    METRICS,
    count,
    hardware,
    measured,
    of_paper,
    printed,
    published,
    show,
    show_seeds,
    summaries,
)

from csamnet.config import MODELS

POLICY = (
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; worker-src 'self' blob:"
)

LABELS = {"paper": "paper", "real": "measured on real data", "sample": "sample data", "absent": "not run"}

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


def badge(kind: str) -> str:
    return f"[{LABELS[kind]}]{{.provenance .provenance-{kind}}}"


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
        return found[:1] + [
            node for other in found[1:] for node in (nodes.Text("\N{NO-BREAK SPACE}"), other)
        ], []


class Result(Number):
    def look_up(self, root: Path) -> tuple[str, str]:
        place, keys = self.text.split(":")
        found = summaries(root, *place.rsplit("/", 1))
        if not found:
            return "absent", ""
        values = found
        for key in keys.split("."):
            values = [value[key] for value in values]
        kinds = {summary["data"]["kind"] for summary in found}
        return "sample" if "sample" in kinds else "real", show_seeds(key, values)


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

    def render(self, head: list[str], rows: list[list[str]], right: set[str]) -> list[nodes.Node]:
        """Parse the table as the page is parsed; columns named in `right` are numbers."""
        rule = ["---:" if name in right else "---" for name in head]
        full = [row + [""] * (len(head) - len(row)) for row in rows]
        lines = ["| " + " | ".join(cell or " " for cell in row) + " |" for row in [head, rule, *full]]
        return self.parse_text_to_nodes("\n".join(lines))


class Published(Table):
    option_spec: ClassVar = {"columns": directives.unchanged}

    def run(self) -> list[nodes.Node]:
        rows = published(self.root, self.arguments[0])
        columns = self.options.get("columns", " ".join(rows[0])).split()
        titles = {column: HEADINGS.get(column, column.capitalize()) for column in columns}
        numbers = {titles[c] for c in columns if all(re.fullmatch(r"[\d.]*", row[c]) for row in rows)}
        return self.render([*titles.values()], [[row[c] for c in columns] for row in rows], numbers)


class NetworkSizes(Table):
    def run(self) -> list[nodes.Node]:
        paper, rows = of_paper(self.root, "MoNuSeg"), []
        for model, options in MODELS.items():
            row, (parameters, gmacs) = paper.get(model, {}), count(model)
            ours = f"{parameters:,}", f"{gmacs:.2f}"
            theirs = row.get("params_million", ""), row.get("gmacs_256", "")
            rows.append([model, str(options.get("width", "")), theirs[0], ours[0], theirs[1], ours[1]])
        head = ["Model", "Width", "Parameters (M), paper", "Parameters, counted"]
        head += ["Multiply-adds (G), paper", "Multiply-adds (G), counted"]
        return self.render(head, rows, set(head[1:]))


class ResultsTable(Table):
    option_spec: ClassVar = {"split": directives.unchanged}

    def run(self) -> list[nodes.Node]:
        dataset = self.arguments[0]
        runs = measured(self.root, dataset, self.options.get("split", "test"))
        paper = {k: row for k, row in of_paper(self.root, dataset).items() if k.startswith("CSAMNet")}
        rows = []
        for model, row in paper.items():
            real = [key for key in runs if key[0] == model and key[2] == "real"]
            rows += [line for key in real for line in self.ours(key, runs[key], row)]
            rows += [] if real else self.not_run(model, row)
        others = [key for key in runs if key[2] == "sample" or key[0] not in paper]
        rows += [line for key in others for line in self.ours(key, runs[key], {})]
        head = ["Network", "Metric", "Paper", "Ours", "Difference", "Seeds", "Status", "Hardware"]
        return self.render(head, rows, {"Paper", "Ours", "Difference", "Seeds"})

    @staticmethod
    def not_run(model: str, row: dict[str, str]) -> list[list[str]]:
        texts = {title: printed(row, metric)[0] for metric, title in METRICS.items()}
        return [[model, title, text, "", "", "", badge("absent")] for title, text in texts.items() if text]

    @staticmethod
    def ours(key: tuple[str, str, str], found: list[dict], row: dict[str, str]) -> list[list[str]]:
        """A line a metric; what is the same in all of them stands in the first alone."""
        model, profile, kind = key
        where = " / ".join(sorted({hardware(summary) for summary in found}))
        about, lines = [str(len(found)), badge(kind), where], []
        for metric, title in METRICS.items():
            values = [summary["pooled"][metric] for summary in found]
            text, target = printed(row, metric)
            known = target is not None and None not in values
            difference = show(metric, mean(values) - target, sign="+") if known else ""
            difference = difference.replace("-", "\N{MINUS SIGN}").replace(" %", " points")
            name = "" if lines else f"{model}, {profile}"
            lines.append(
                [name, title, text, show_seeds(metric, values), difference, *([] if lines else about)]
            )
        return lines


def finish_page(app: Sphinx, pagename: str, templatename: str, context: dict, doctree) -> None:
    """Forbid other hosts; replace a role that browsers no longer know."""
    policy = f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
    context["metatags"] = context.get("metatags", "") + policy
    context["body"] = context.get("body", "").replace('role="doc-biblioentry"', 'role="listitem"')


def skip_fields(app: Sphinx, what: str, name: str, member: object, skip: bool, options) -> bool | None:
    """Leave out the fields of named tuples, which have no text of their own."""
    return True if type(member).__name__ == "_tuplegetter" else None


def setup(app: Sphinx) -> dict:
    for name, role in {"result": Result, "paper": Paper, "network": Network}.items():
        app.add_role(name, role())
    app.add_directive("published", Published)
    app.add_directive("network-sizes", NetworkSizes)
    app.add_directive("results-table", ResultsTable)
    app.connect("html-page-context", finish_page)
    app.connect("autodoc-skip-member", skip_fields)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
