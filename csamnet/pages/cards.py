"""Data cards: what a data set is, where it comes from, how it is split, the paper's counts; and what is here of it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from csamnet.config import RunConfig
from csamnet.datasets import DATASETS, Dataset, entry_of
from csamnet.files import read_json, write_text
from csamnet.pages.tables import markdown
from csamnet.paths import DATA, PUBLISHED
from csamnet.results import data_card

REASONS = {
    "stain": "no stain to change",
    "turns": "only left and right are swapped: depth goes downwards",
    "foreground": "share of crops centred on a target, which is rare",
    "tile": "pixels of a crop",
    "offset_x": "pixels by which the annotation lies to the right of what it outlines",
    "offset_y": "pixels by which it lies below that",
}
"""Why a data set's recipe departs from the usual one."""


def paper_says(entry: Dataset) -> dict[str, str]:
    """The row of the paper's table of data sets, by column; empty for a data set that is not in it."""
    table = pd.read_csv(PUBLISHED / "datasets.csv", dtype=str, keep_default_na=False)
    rows = table[table["dataset"] == (entry.title or entry.name)]
    return {} if rows.empty else rows.iloc[0].to_dict()


def card(entry: Dataset, found: dict | None = None) -> str:
    """A data card as a Markdown table; `found` is the dataset.json of a prepared tree."""
    paper = paper_says(entry)
    rows = {
        "modality": entry.modality,
        "organ": paper.get("organ") or entry.organ,
        "segmented": entry.target[1],
        "source": f"<{entry.source}>" if entry.source else "not public",
        "DOI": ", ".join(f"[{doi}](https://doi.org/{doi})" for doi in entry.doi),
        "licence": entry.licence,
        "how to get it": entry.how_to_get,
        "in the paper": _printed(paper),
        "in the release": _counts(entry.counts) + f". {entry.note}".removeprefix(". " if not entry.counts else ""),
        "resolution": f"{entry.mpp} µm a pixel" if entry.mpp else "",
        "reduced": f"to {entry.longest} pixels on the longer side (our choice)" if entry.longest else "",
        "split": _split(entry),
        "recipe": "; ".join(
            f"`{key}` {value}: {REASONS.get(key, 'our choice')}" for key, value in entry.recipe.items()
        ),
    }
    if found:
        kind = "real" if found["kind"] == "real" else "painted sample"
        counts, objects = _counts(found["counts"]), sum(found["objects"].values())
        rows["found here"] = f"**{kind}**: {counts} images, {objects:,} {entry.target[1]}"
        rows["notes"] = "; ".join(found["notes"][:6])
    return markdown(["what", entry.title or entry.name], [[f"**{k}**", v] for k, v in rows.items() if v])


def _printed(paper: dict[str, str]) -> str:
    if not paper:
        return "not used there"
    objects = f"{int(paper['objects']):,}" if paper["objects"] else ""
    told = {"images": paper["images"], "objects": objects, "size in pixels": paper["image_size"]}
    return "; ".join(f"{what}: {value}" for what, value in told.items() if value) + " *(paper)*"


def _counts(counts: dict[str, int]) -> str:
    told = {name: count for name, count in counts.items() if count}
    return ", ".join(f"{count} {'images' if name == 'all' else name}" for name, count in told.items())


def _split(entry: Dataset) -> str:
    if not entry.annotated:
        return "none: there is no annotation, nothing is trained or measured"
    if entry.drawn and entry.validation_rule == Dataset.validation_rule:
        val, test = entry.drawn
        return f"ours, drawn by group: {val:.0%} validation, {test:.0%} test, the rest training"
    return "training and test as released; validation: " * (not entry.drawn) + entry.validation_rule


def overview(entries: Iterable[Dataset] = DATASETS.values()) -> str:
    """The table of all data sets, in Markdown."""
    head = ["data set", "modality", "organ", "images (paper)", "objects (paper)", "licence"]
    rows = []
    for entry in entries:
        paper = paper_says(entry)
        objects = f"{int(paper['objects']):,}" if paper.get("objects") else ""
        name = f"[{entry.title or entry.name}]({entry.name}.md)"
        organ = paper.get("organ") or entry.organ
        rows.append([name, entry.modality, organ, paper.get("images", "not used"), objects, entry.licence])
    return markdown(head, rows, "objects (paper)")


def inventory(root: Path | str, samples: Path | str) -> pd.DataFrame:
    """What is prepared in `root`, or as a look-alike in `samples`: a row a data set, also of one's own.

    Columns: name, modality, state (absent, sample, prepared, damaged), train, val, test (images), objects,
    licence.
    """
    places = (Path(root), Path(samples))
    found = sorted(card.parent.name for card in Path(root).glob("*/dataset.json"))
    return pd.DataFrame([_found_row(name, places) for name in dict.fromkeys([*DATASETS, *found])])


def _found_row(name: str, places: tuple[Path, ...]) -> dict:
    modality, licence = (getattr(entry_of(name), key, "") for key in ("modality", "licence"))
    row = {"name": name, "modality": modality, "state": "absent", "train": 0, "val": 0, "test": 0, "objects": 0}
    row |= {"licence": licence}
    folder = next((place / name for place in places if (place / name / "dataset.json").is_file()), None)
    return row | (_state(folder) if folder else {})


def _state(folder: Path) -> dict:
    """What dataset.json tells; damaged where it cannot be read or is not that of the manifest."""
    try:
        state = {"real": "prepared", "sample": "sample"}[data_card(folder.parent, folder.name)["kind"]]
        card = read_json(folder / "dataset.json")
        own = {"modality": card["own"]["modality"]} if "own" in card else {}
        counts = {split: int(card["counts"][split]) for split in ("train", "val", "test")}
        counts |= {"objects": sum(map(int, card["objects"].values())), "licence": str(card["licence"])}
        return {"state": state} | counts | own
    except (ValueError, OSError, LookupError, TypeError, AttributeError):
        return {"state": "damaged"}


def write_cards(folder: Path = DATA) -> list[Path]:
    """Write README.md and a card for each data set of the table; these files are committed."""
    texts = {"README": f"{_INTRODUCTION}\n{overview()}\n\n{_USUAL}\n"}
    texts |= {name: f"# {entry.title or name}\n\n{card(entry)}\n" for name, entry in DATASETS.items()}
    paths = [folder / f"{name}.md" for name in texts]
    for path, text in zip(paths, texts.values(), strict=True):
        write_text(path, text)
    return paths


_INTRODUCTION = """# Data sets

The nine data sets of the paper, and BUSI, a public one of the same task as Dataset B. None of their images is part of
this project: `csamnet data` tells which are here, `csamnet download NAME` fetches what a host serves as plain files and
says for the others how to get them, and `csamnet prepare NAME --from PATH` reads a release as downloaded. These cards
are written from the table in `csamnet/datasets.toml` by `csamnet data --cards`.
"""
_USUAL = (
    "A group (patient, slide, or image where no more is known) is never in two splits. Unless a card says otherwise, "
    f"crops are of {RunConfig.tile} pixels at a random place, turned, mirrored, zoomed, with stain and colour changed."
)
