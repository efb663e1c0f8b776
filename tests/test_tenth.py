"""The worked example of book/tenth.md is run as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tiny import discs

from csamnet.datasets import DATASETS, read_table
from csamnet.files import InputError, write_json
from csamnet.manifest import read_manifest
from csamnet.pages.cards import card
from csamnet.prepare import prepare
from csamnet.readers import READERS

PAGE = Path(__file__).resolve().parents[1] / "book" / "tenth.md"


def save(path: Path, array) -> None:
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array.astype("uint8")).save(path)


@pytest.fixture
def glas(monkeypatch) -> None:
    """The page's entry and reader, taken in and forgotten again."""
    for name, table in (("csamnet.datasets.DATASETS", DATASETS), ("csamnet.readers.READERS", READERS)):
        monkeypatch.setattr(name, dict(table))
    entry, reader = re.findall(r"```\{code-block\} \w+\n:name: \w+\n\n(.*?)```", PAGE.read_text(), re.S)
    monkeypatch.setattr("csamnet.datasets.DATASETS", DATASETS | read_table(entry))
    exec(reader, {})


def test_the_example_prepares_a_release(glas, tmp_path, monkeypatch):
    from csamnet import datasets, readers

    monkeypatch.setattr("csamnet.prepare.READERS", readers.READERS)
    for number, name in enumerate(("train_1", "train_2", "train_3", "testA_1")):
        image, labels = discs(number, 60, 70)
        save(tmp_path / "Warwick" / f"{name}.bmp", image)
        save(tmp_path / "Warwick" / f"{name}_anno.bmp", labels)
    write_json(tmp_path / "SAMPLE.json", {"kind": "sample"})  # or the release would have to be whole
    folder = prepare("GlaS", tmp_path / "Warwick", tmp_path / "root")
    table = read_manifest(folder)
    assert table["split"].value_counts().to_dict() == {"train": 2, "val": 1, "test": 1}
    assert table["inst"].str.endswith(".png").all()
    assert "glands" in card(datasets.DATASETS["GlaS"])
    (tmp_path / "Warwick" / "train_2_anno.bmp").unlink()
    with pytest.raises(InputError, match=r"a file without its partner(?s:.*)train_2"):
        prepare("GlaS", tmp_path / "Warwick", tmp_path / "root")


def test_the_commands_of_the_page_are_ours():
    from typer.testing import CliRunner

    from csamnet.cli import app

    for name in set(re.findall(r"^csamnet (\w+)", PAGE.read_text(), re.M)):
        assert CliRunner().invoke(app, [name, "--help"]).exit_code == 0, name
