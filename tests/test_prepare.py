"""Prepared trees: whole or absent, the same every time, and no patient or pixels in two splits."""

from __future__ import annotations

import errno
import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from tiny import discs

from csamnet import prepare as module
from csamnet.config import make_config
from csamnet.data import load_split
from csamnet.datasets import DATASETS, entry_of, get_dataset, known_mpp, own_dataset
from csamnet.evaluate import get_subsets
from csamnet.files import InputError, read_json, sha256_array, sha256_file, write_json
from csamnet.images import read_image, read_labels, read_mask, write_image
from csamnet.inference import target_of, touching
from csamnet.manifest import COLUMNS, read_manifest, verify
from csamnet.prepare import assign_splits, prepare, reduce
from csamnet.readers import READERS
from csamnet.readers.common import Pixels, Record, Release
from csamnet.samples import make_sample

MONUSEG = DATASETS["MoNuSeg"]
NAMES = {"train": ["a", "b", "c", "d", "e"], "val": ["f"], "test": ["g", "h"]}


def lay(folder: Path, names=None, *, kind: str = "inst") -> Path:
    """A tree by hand: images of 8 x 9 pixels that all differ, two objects each."""
    for split, stems in (names or NAMES).items():
        for stem in stems:
            image = np.random.default_rng(list(f"{stem}".encode())).integers(0, 255, (8, 9, 3), dtype=np.uint8)
            labels = np.zeros((8, 9), np.uint16)
            labels[1:3, 1:4], labels[5:7, 5:9] = 3, 7
            write_image(folder / split / "img" / f"{stem}.png", image)
            write_image(folder / split / kind / f"{stem}.png", labels if kind == "inst" else labels > 0)
    return folder


def state(folder: Path) -> dict[str, tuple[str, int]]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): (sha256_file(path), path.stat().st_mtime_ns) for path in files}


def fails(source: Path, root: Path, **options) -> str:
    """The message of a preparation that must fail and leave nothing."""
    before = state(root) if root.exists() else {}
    with pytest.raises(InputError) as caught:
        prepare("MoNuSeg", source, root, **options)
    assert (state(root) if root.exists() else {}) == before
    return str(caught.value)


def test_the_tree_the_manifest_and_the_card(tmp_path):
    source = lay(tmp_path / "source")
    before = state(source)
    folder = prepare("monuseg", source, tmp_path / "root")
    assert state(source) == before
    assert folder == tmp_path / "root" / "MoNuSeg"
    assert [path.name for path in (tmp_path / "root").iterdir()] == ["MoNuSeg"]
    table = read_manifest(folder)
    assert list(table) == list(COLUMNS)
    assert table.groupby("split")["name"].apply(list).to_dict() == NAMES
    row = table.set_index("name").loc["a"]
    assert (row["image"], row["mask"], row["inst"]) == tuple(f"train/{k}/a.png" for k in ("img", "mask", "inst"))
    assert (row["height"], row["width"], row["objects"], row["group"]) == (8, 9, 2, "a")
    assert row["image_sha256"] == sha256_file(folder / row["image"])
    assert row["mask_sha256"] == sha256_file(folder / row["mask"])
    assert row["pixels_sha256"] == sha256_array(read_image(source / "train/img/a.png"))
    original, labels = read_labels(source / "train/inst/a.png"), read_labels(folder / row["inst"])
    np.testing.assert_array_equal(labels, np.select([original == 3, original == 7], [1, 2]))
    np.testing.assert_array_equal(read_mask(folder / row["mask"]), original > 0)
    card = read_json(folder / "dataset.json")
    assert card["counts"] == {"train": 5, "val": 1, "test": 2}
    assert card["objects"] == {"train": 10, "val": 2, "test": 4}
    assert (card["kind"], card["licence"], card["mpp"]) == ("real", "CC BY-NC-SA 4.0", 0.25)
    assert card["manifest_sha256"] == sha256_file(folder / "manifest.csv")
    assert card["notes"] == ["split: as laid out"]


def test_masks_alone_count_connected_parts(tmp_path):
    table = read_manifest(prepare("MoNuSeg", lay(tmp_path / "s", kind="mask"), tmp_path))
    assert set(table["inst"]) == {""}
    assert set(table["objects"]) == {2}


def test_again_does_nothing_and_progress_sees_each_record(tmp_path):
    source, seen = lay(tmp_path / "source"), []

    def tick(*done):
        seen.append(done)

    folder = prepare("MoNuSeg", source, tmp_path, on_record=tick)
    assert seen == [(done, 8) for done in range(1, 9)]
    before = state(folder)
    assert prepare("MoNuSeg", source, tmp_path, on_record=tick) == folder
    assert state(folder) == before
    assert len(seen) == 8


def test_what_changed_is_made_anew_and_comes_out_the_same(tmp_path):
    source = lay(tmp_path / "source")
    folder = prepare("MoNuSeg", source, tmp_path)
    manifest = sha256_file(folder / "manifest.csv")
    write_image(folder / "train/img/a.png", np.zeros((8, 9), np.uint8))
    (folder / "train/mask/b.png").unlink()
    with pytest.raises(InputError, match="not as they were prepared") as caught:
        verify(folder)
    assert "gone: train/mask/b.png; changed: train/img/a.png" in str(caught.value)
    assert sha256_file(prepare("MoNuSeg", source, tmp_path) / "manifest.csv") == manifest
    verify(folder)
    (folder / "manifest.csv").write_text((folder / "manifest.csv").read_text().replace("e,train,e", "e,train,x"))
    with pytest.raises(InputError, match=r"changed: manifest\.csv"):
        verify(folder)

    write_image(source / "train/img/a.png", np.zeros((8, 9), np.uint8))
    assert sha256_file(prepare("MoNuSeg", source, tmp_path) / "manifest.csv") != manifest
    assert read_image(folder / "train/img/a.png").max() == 0


def test_an_older_tree_stays_until_a_whole_one_replaces_it(tmp_path):
    source = lay(tmp_path / "source")
    folder = prepare("MoNuSeg", source, tmp_path / "root")
    (source / "train/img/a.png").write_bytes(b"broken")
    assert "cannot be read" in fails(source, tmp_path / "root")
    verify(folder)


def test_stopped_between_the_two_renames(tmp_path):
    source = lay(tmp_path / "source")
    folder = prepare("MoNuSeg", source, tmp_path)
    before = state(folder)
    folder.rename(tmp_path / ".MoNuSeg.old")
    (tmp_path / ".MoNuSeg.partial").mkdir()
    prepare("MoNuSeg", source, tmp_path)
    assert state(folder) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["MoNuSeg", "source"]


def test_all_that_is_wrong_is_said_at_once(tmp_path):
    source = lay(tmp_path / "source", {"train": ["a", "b", "c", "d", "e"], "val": ["f"]})
    (source / "train/img/a.png").write_bytes(b"")
    (source / "train/inst/b.png").unlink()
    (source / "train/img/c.png").unlink()
    write_image(source / "train/inst/d.png", np.ones((9, 8), np.uint16))
    message = fails(source, tmp_path / "root")
    for said in ("problems: 5", "train/img/a.png", "train/img/b.png", "train/inst/c.png", "train/inst/d.png"):
        assert said in message
    assert "no image in test" in message
    assert "--allow-partial" in message
    folder = prepare("MoNuSeg", source, tmp_path / "root", allow_partial=True)
    assert list(read_manifest(folder)["name"]) == ["e", "f"]
    assert len(read_json(folder / "dataset.json")["notes"]) == 1 + 5
    assert "problems: 5" in fails(source, tmp_path / "root")  # a partial tree does not count as done


def test_a_mask_with_unexpected_values(tmp_path):
    source = lay(tmp_path / "source", kind="mask")
    write_image(source / "train/mask/a.png", np.linspace(0, 255, 72).reshape(8, 9).astype(np.uint8))
    message = fails(source, tmp_path / "root")
    assert "greys between 0 and 255" in message
    assert "train/mask/a.png" in message


@pytest.mark.parametrize("allow_partial", [False, True])
def test_nothing_may_be_in_two_splits(tmp_path, allow_partial):
    source = lay(tmp_path / "source")
    shutil.copy(source / "train/img/a.png", source / "test/img/g.png")
    message = fails(source, tmp_path / "root", allow_partial=allow_partial)
    assert "the same pixels in two splits" in message
    assert "train/a, test/g" in message

    names = {"train": ["P-AA-1-x", "P-AA-2-x"], "val": ["P-AA-3-x"], "test": ["P-AA-1-y"]}
    message = fails(lay(tmp_path / "groups", names), tmp_path / "root", allow_partial=allow_partial)
    assert "the group P-AA-1 in two splits" in message
    assert "train/P-AA-1-x, test/P-AA-1-y" in message

    source = lay(tmp_path / "names", NAMES | {"test": ["a", "g"]})
    message = fails(source, tmp_path / "root", allow_partial=allow_partial)
    assert "the name a in two splits" in message
    assert "--allow-partial" not in message


def records(*groups: str, split: str = "train") -> list[Record]:
    return [Record(f"{group}-{i}", split, group, "", {}, None) for group in groups for i in (1, 2)]


def held(listed: list[Record]) -> set[str]:
    return {record.group for record in listed if record.split == "val"}


def test_validation_is_cut_by_group():
    dataset = DATASETS["MoNuSeg"]
    cut, rule = assign_splits(dataset, records(*map(str, range(11))) + records("t", split="test"))
    splits = {group: {record.split for record in cut if record.group == group} for group in "t0123456789"}
    assert all(len(found) == 1 for found in splits.values())
    assert sum(found == {"val"} for found in splits.values()) == 2  # a fifth of 11
    assert splits["t"] == {"test"}
    assert "a fifth" in rule
    shuffled, _ = assign_splits(dataset, records(*map(str, reversed(range(11)))))
    assert held(shuffled) == held(cut)
    assert len(held(assign_splits(dataset, records("a", "b"))[0])) == 1
    assert not held(assign_splits(dataset, records("a"))[0])
    named, rule = assign_splits(dataset, records("TCGA-KB-A93J", "TCGA-A7-A13E"))
    assert held(named) == {"TCGA-KB-A93J"}
    assert rule == dataset.validation_rule


def test_organs_are_held_out_for_validation(tmp_path):
    entry = get_dataset("monuseg-without-Stomach-colon")
    assert entry.name == "MoNuSeg-without-colon-stomach"
    every = [*entry.release["train"], *entry.release["test"]]
    given = [
        Record(group, "train" if group in entry.release["train"] else "test", group, entry.organ_of(group), {}, None)
        for group in every
    ]
    cut, rule = assign_splits(entry, given)
    assert {r.organ for r in cut if r.split == "val"} == {"colon", "stomach"}
    assert not {r.organ for r in cut if r.split == "train"} & {"colon", "stomach"}
    assert [r.split == "test" for r in cut] == [r.split == "test" for r in given]
    assert sum(r.split == "val" for r in cut) == 4
    assert rule == "by organ: all training images of colon, stomach"
    known, _ = assign_splits(DATASETS["MoNuSeg"], given)  # of a tree that was split otherwise
    assert [r.split for r in assign_splits(entry, known)[0]] == [r.split for r in cut]


@pytest.mark.parametrize(
    ("name", "told"),
    [("MoNuSeg-without-lung", "bladder-breast-colon"), ("MoNuSeg-without-", "bladder-"), ("PUMA-without-skin", "names"),
     ("Kumar-without-breast-kidney-liver-prostate", "not all"), ("MoNoSeg-without-colon", "did you mean MoNuSeg")],
)  # fmt: skip
def test_organs_that_cannot_be_held_out(name, told):
    with pytest.raises(InputError, match=told):
        get_dataset(name)


@pytest.mark.parametrize("name", ["MONUSEG-WITHOUT-COLON", "MoNuSeg_without_colon", "MoNuSeg without colon"])
def test_a_split_by_organ_is_known_however_it_is_written(name):
    entry = get_dataset(name)
    assert entry.name == "MoNuSeg-without-colon"
    assert entry.name not in DATASETS
    whole, part = DATASETS["MoNuSeg"], entry_of(entry.name)
    assert (part.target, part.touching, part.mpp, part.recipe) == (
        whole.target,
        whole.touching,
        whole.mpp,
        whole.recipe,
    )
    assert known_mpp(entry.name) == whole.mpp
    assert get_subsets("Kumar")["same organs"]
    assert not get_subsets("Kumar-without-breast"), "breast was not learned from"
    assert target_of(SimpleNamespace(config=make_config(dataset=entry.name))) == ("nucleus", "nuclei")
    assert touching(make_config(dataset=entry.name, stain=0))
    assert entry_of("mine-without-colon") is None


def test_an_organ_that_is_not_there_is_not_held_out():
    records = [Record(str(i), "train", str(i), organ, {}, None) for i, organ in enumerate(("colon", "liver", "liver"))]
    records += [Record("t", "test", "t", "bladder", {}, None), Record("u", None, "u", "liver", {}, None)]
    with pytest.raises(InputError, match=r"to hold out: bladder(?s:.*)colon or liver"):
        assign_splits(get_dataset("MoNuSeg-without-bladder-colon"), records)
    cut, _ = assign_splits(get_dataset("MoNuSeg-without-colon"), records)
    assert [record.split for record in cut] == ["val", "train", "train", "test", None]


def test_a_tree_is_not_prepared_under_another_name(tmp_path):
    lay(tmp_path / "MoNuSeg", {"train": ["a", "b", "c"], "test": ["g"]})
    tree = prepare("MoNuSeg", tmp_path / "MoNuSeg", tmp_path)
    write_json(tree / "dataset.json", read_json(tree / "dataset.json") | {"name": "MoNuSeg-without-liver"})
    shutil.copytree(tree, tmp_path / "wrap" / "inside")
    shutil.make_archive(tmp_path / "packed", "zip", tmp_path / "wrap")
    for name in ("MoNuSeg", "MoNuSeg-without-colon", "Kumar"):
        for source in (tree, tmp_path / "wrap", tmp_path / "packed.zip"):
            with pytest.raises(InputError, match=r"prepared as another(?s:.*)dataset\.json"):
                prepare(name, source, tmp_path / "root")
    assert not list((tmp_path / "root").glob("*/manifest.csv"))


def test_a_look_alike_with_organs_held_out(tmp_path):
    make_sample("Kumar", tmp_path / "samples", train=6, test=2, size=128)
    organs = read_manifest(prepare("Kumar", tmp_path / "samples" / "Kumar", tmp_path))
    organ = organs.loc[organs["split"] != "test", "organ"].iloc[0]
    folder = prepare(f"Kumar-without-{organ}", tmp_path / "samples" / "Kumar", tmp_path)
    table = read_manifest(folder)
    assert folder.name == f"Kumar-without-{organ}"
    assert set(table.loc[table["split"] == "val", "organ"]) == {organ}
    assert organ not in set(table.loc[table["split"] == "train", "organ"])
    assert "split: by organ" in read_json(folder / "dataset.json")["notes"][0]
    assert load_split(tmp_path, folder.name, "val")[0].touching


def test_a_tree_by_hand_is_prepared_in_place(tmp_path, monkeypatch):
    source = lay(tmp_path / "MoNuSeg", {"train": ["a", "b", "c"], "test": ["g"]})
    before = state(source)
    monkeypatch.chdir(tmp_path)
    assert prepare("MoNuSeg", "MoNuSeg", ".") == Path("MoNuSeg")
    after = state(source)
    assert after.items() >= before.items()
    assert set(after) - set(before) == {"manifest.csv", "dataset.json"}
    table = verify(source)
    assert sorted(table["split"]) == ["test", "train", "train", "val"]
    assert table["image"].str.startswith(("train/", "test/")).all()
    assert (table["mask"] == table["inst"]).all()  # there is no other mask
    prepare("MoNuSeg", source, tmp_path)
    assert state(source) == after


def test_what_is_in_the_way_is_left_alone(tmp_path):
    mine = lay(tmp_path / "root/MoNuSeg")
    message = fails(lay(tmp_path / "other"), tmp_path / "root")
    assert "without dataset.json is in the way" in message
    assert f"--from {mine}" in message
    release = make_sample("MoNuSeg", tmp_path / "samples", train=2, test=1, size=96)
    for root in (release.parent, release, release / "deep"):
        assert "lie in one another" in fails(release, root)


def test_a_look_alike_stays_one(tmp_path):
    release = make_sample("MoNuSeg", tmp_path / "samples", train=5, test=2, size=96)
    folder = prepare("MoNuSeg", release, tmp_path / "one")
    card = read_json(folder / "dataset.json")
    assert card["kind"] == "sample"
    assert card["counts"] == {"train": 4, "val": 1, "test": 2}
    assert card["source"] == "csamnet samples"
    manifest = (folder / "manifest.csv").read_text()
    zipped = prepare("MoNuSeg", shutil.make_archive(tmp_path / "download", "zip", release), tmp_path / "zip")
    assert (zipped / "manifest.csv").read_text() == manifest
    assert read_json(zipped / "dataset.json")["kind"] == "sample"
    assert [path.name for path in (tmp_path / "zip").iterdir()] == ["MoNuSeg"]
    again = prepare("MoNuSeg", folder, tmp_path / "two")
    assert read_json(again / "dataset.json")["kind"] == "sample"
    assert (again / "manifest.csv").read_text() == manifest


def test_full_disk_leaves_nothing(tmp_path, monkeypatch):
    source, written = lay(tmp_path / "source"), []

    def full(path, array):
        written.append(path)
        if len(written) == 5:
            raise OSError(errno.ENOSPC, "No space left on device")
        write_image(path, array)

    monkeypatch.setattr(module, "write_image", full)
    message = fails(source, tmp_path / "root")
    assert "the disk is full" in message
    assert written
    assert not (tmp_path / "root").exists()


def test_manifest_that_is_missing_or_wrong(tmp_path):
    with pytest.raises(InputError, match="a data set is not prepared") as caught:
        read_manifest(tmp_path / "MoNuSeg")
    assert f"csamnet prepare MoNuSeg --from PATH --root {tmp_path}" in str(caught.value)
    (tmp_path / "manifest.csv").write_text("name,split\na,train\n")
    with pytest.raises(InputError, match="not a manifest"):
        read_manifest(tmp_path)
    for content in ("", "\x00\xff", ",".join(COLUMNS) + "\n" + ",".join("x" * len(COLUMNS))):
        (tmp_path / "manifest.csv").write_text(content)
        with pytest.raises(InputError, match="manifest"):
            read_manifest(tmp_path)


def test_unknown_names_and_sources(tmp_path):
    with pytest.raises(InputError, match="did you mean MoNuSeg"):
        prepare("MoNuSag", tmp_path, tmp_path / "root")
    assert "no release there" in fails(tmp_path / "nowhere", tmp_path / "root")


def test_real_release_in_part(shared, tmp_path):
    source = shared / "data/native/MoNuSeg"
    folder = prepare("MoNuSeg", source, tmp_path, allow_partial=True)
    table = verify(folder)
    assert dict(zip(table["split"], table["objects"], strict=True)) == {"train": 398, "test": 575}
    assert "no image in val" in read_json(folder / "dataset.json")["notes"]


def test_real_tree(shared, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "write_image", lambda path, _: write_image(path, np.zeros((1, 1), np.uint8)))
    folder = prepare("MoNuSeg", shared / "data/MoNuSeg", tmp_path)  # the pixels are read, but not written
    card, table = read_json(folder / "dataset.json"), read_manifest(folder)
    assert card["kind"] == "real"
    assert card["counts"] == {"train": 24, "val": 6, "test": 14}
    assert card["objects"] == {"train": 11338, "val": 5621, "test": 6697}
    assert set(table.loc[table["split"] == "val", "group"]) == set(DATASETS["MoNuSeg"].validation)
    assert "stomach" not in set(table.loc[table["split"] == "train", "organ"])
    split = json.loads((shared / "data/MoNuSeg/kumar_split.json").read_text())
    assert set(split["val"]) <= set(table.loc[table["split"] == "val", "name"])
    known = set(split["train"] + split["val"] + split["test"])
    assert known == set(table.loc[table["split"] != "test", "name"])


def test_splits_are_drawn_by_group_and_kind_of_case():
    dataset = replace(DATASETS["PUMA"], drawn=(0.2, 0.2))
    drawn = [
        replace(record, organ="benign" if int(record.group) % 3 else "malignant", split=None)
        for record in records(*map(str, range(60))) + records(*map(str, range(30)))
    ]
    given, rule = assign_splits(dataset, drawn)
    table = pd.DataFrame([(r.group, r.organ, r.split) for r in given], columns=["group", "organ", "split"])
    assert (table.groupby("group")["split"].nunique() == 1).all()
    groups = table.drop_duplicates("group")
    assert groups["split"].value_counts().to_dict() == {"train": 36, "val": 12, "test": 12}
    share = groups[groups["organ"] == "malignant"]["split"].value_counts()
    assert share.to_dict() == {"train": 12, "val": 4, "test": 4}
    assert "20% for validation, 20% for test" in rule
    again, _ = assign_splits(dataset, drawn[::-1])
    assert {r.group: r.split for r in again} == dict(zip(table["group"], table["split"], strict=True))
    few, _ = assign_splits(dataset, [replace(r, split=None) for r in records("a", "b", "c")])
    assert sorted({r.group: r.split for r in few}.values()) == ["test", "train", "val"]


def test_a_data_set_of_ones_own(tmp_path, monkeypatch):
    monkeypatch.setattr("csamnet.datasets.DATASETS", dict(DATASETS))
    source, root = lay(tmp_path / "in"), tmp_path / "root"
    for wrong, message in (({"modality": "X-ray"}, "ultrasound"), ({"modality": "CT"}, "cannot name")):
        with pytest.raises(InputError, match=message):
            prepare("../mine", source, root, own=wrong)
    with pytest.raises(InputError, match=r"unknown data set 'Mine'(?s:.*)--own MODALITY"):
        prepare("Mine", source, root)
    assert not root.exists()
    folder = prepare("Mine", source, root, own={"modality": "ultrasound", "mpp": 2.0})
    card = read_json(folder / "dataset.json")
    assert (card["name"], card["kind"], card["mpp"]) == ("Mine", "real", 2.0)
    monkeypatch.setattr("csamnet.datasets.DATASETS", dict(DATASETS))
    entry = get_dataset("Mine", root)
    assert (entry.modality, entry.recipe) == ("ultrasound", DATASETS["DatasetB"].recipe)
    monkeypatch.setattr("csamnet.datasets.DATASETS", dict(DATASETS))
    assert not load_split(root, "Mine", "test")[0].touching, "lesions, whatever was asked of it before"
    assert prepare("Mine", source, root) == folder, "once prepared, it is known there"
    prepare("Mine", source, root, own={"modality": "ultrasound", "mpp": 1.0})
    assert read_json(folder / "dataset.json")["mpp"] == 1.0, "what is said last"
    with pytest.raises(InputError, match="there is no tree of Mine"):
        prepare("Mine", Path(__file__).parent, root)


def test_large_images_are_reduced(tmp_path, monkeypatch):
    entry = replace(MONUSEG, longest=4)
    monkeypatch.setitem(DATASETS, "MoNuSeg", entry)
    folder = prepare("MoNuSeg", lay(tmp_path / "in"), tmp_path / "root")
    table = read_manifest(folder)
    assert set(zip(table["height"], table["width"], strict=True)) == {(4, 4)}, "8 x 9, and 3.6 is 4"
    small, whole = read_image(folder / table["image"][0]), read_image(tmp_path / "in/train/img/a.png")
    assert small.mean() == pytest.approx(whole.mean(), abs=3), "area means keep the brightness"
    pixels = Pixels(np.zeros((4, 8, 3), np.uint8), np.eye(4, 8, dtype=bool), np.full((4, 8), 7, np.int32))
    half = reduce(pixels, 4)
    assert half.image.shape == (2, 4, 3)
    assert half.mask.tolist() == [[True, False, False, False], [False, True, False, False]], "half of a block is enough"
    assert (half.labels == 7).all()
    assert reduce(pixels, 8) is pixels
    assert reduce(pixels, None) is pixels


def contents(folder: Path) -> dict[str, str]:
    return {name: digest for name, (digest, _) in state(folder).items()}


def test_a_preparation_that_was_killed_goes_on(tmp_path, monkeypatch):
    source, root, loaded = lay(tmp_path / "in"), tmp_path / "root", []

    def stop(done, all_):
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare("MoNuSeg", source, root, on_record=stop)
    assert not (root / "MoNuSeg").exists()
    load = Record.load
    monkeypatch.setattr(Record, "load", lambda self: loaded.append(self.name) or load(self))
    folder = prepare("MoNuSeg", source, root)
    assert len(loaded) == 8 - 3
    whole = prepare("MoNuSeg", source, tmp_path / "other")
    assert contents(folder) == contents(whole)
    assert [path.name for path in root.iterdir()] == ["MoNuSeg"]


def test_one_preparation_of_a_tree_at_a_time(tmp_path):
    source, root, seen = lay(tmp_path / "in"), tmp_path / "root", []

    def meanwhile(*done):
        with pytest.raises(InputError, match="being prepared by another process"):
            prepare("MoNuSeg", source, root)
        seen.append(done)

    folder = prepare("MoNuSeg", source, root, on_record=meanwhile)
    assert len(seen) == 8
    assert contents(folder) == contents(prepare("MoNuSeg", source, tmp_path / "other"))
    assert [path.name for path in root.iterdir()] == ["MoNuSeg"]


def test_a_name_that_cannot_be_written(tmp_path):
    message = fails(lay(tmp_path / "in", NAMES | {"val": ["a\nb"]}), tmp_path / "root")
    assert "found: 'a\\nb'" in message


def test_a_file_of_many_records_is_reported_once(tmp_path, monkeypatch):
    def broken(image):
        raise InputError("an image cannot be read", path=image)

    listed = [Record(f"{i}", split, f"{i}", "", {"image": tmp_path / "a"}, broken) for i, split in enumerate(NAMES)]
    (tmp_path / "a").touch()
    monkeypatch.setattr(module, "read_release", lambda *_: Release(listed))
    assert fails(tmp_path, tmp_path.with_name("root")).count("cannot be read") == 1


def test_images_without_annotation(tmp_path, monkeypatch):
    for name in ("a", "b"):
        write_image(tmp_path / "in" / f"{name}.png", np.full((8, 9, 3), ord(name), np.uint8))

    def read(dataset, folders):
        paths = sorted(folders[0].glob("*.png"))
        return Release([Record(p.stem, "test", p.stem, "", {"image": p}, plain) for p in paths])

    def plain(image):
        return Pixels(read_image(image), None)

    monkeypatch.setitem(READERS, "slides", read)
    folder = prepare("InHouse", tmp_path / "in", tmp_path / "root")
    table = read_manifest(folder)
    assert table["mask"].tolist() == ["", ""]
    assert table["objects"].tolist() == [0, 0]
    assert len(verify(folder)) == 2
    (sample, _) = load_split(tmp_path / "root", "InHouse", "test")
    assert sample.image().shape == (8, 9, 3)
    with pytest.raises(InputError, match="an image without annotation"):
        sample.mask()


def test_a_tree_of_known_patients_is_split_as_the_table_says(tmp_path):
    """MoNuSeg's tree offered as Kumar: its test images are strangers, 14 of its training images are Kumar's test."""
    kumar, monuseg = DATASETS["Kumar"], DATASETS["MoNuSeg"]
    for split, stems in monuseg.release.items():
        for number, stem in enumerate(stems):
            image, labels = discs(number + 100 * (split == "test"), 64, 64)
            write_image(tmp_path / "tree" / split / "img" / f"{stem}-01Z-00-DX1.png", image)
            write_image(tmp_path / "tree" / split / "inst" / f"{stem}-01Z-00-DX1.png", labels)
    folder = prepare("Kumar", tmp_path / "tree", tmp_path / "root")
    table = pd.read_csv(folder / "manifest.csv")
    assert table["split"].value_counts().to_dict() == {"test": 14, "train": 12, "val": 4}
    assert set(table["group"][table["split"] == "test"]) == set(kumar.release["test"])
    assert "left out, since not of Kumar: 14 images" in read_json(folder / "dataset.json")["notes"]
    (tmp_path / "tree" / "train" / "img" / f"{monuseg.release['train'][0]}-01Z-00-DX1.png").unlink()
    (tmp_path / "tree" / "train" / "inst" / f"{monuseg.release['train'][0]}-01Z-00-DX1.png").unlink()
    with pytest.raises(InputError, match="1 of the release's 30 images are missing"):
        prepare("Kumar", tmp_path / "tree", tmp_path / "other")


@pytest.mark.parametrize(
    ("name", "mpp", "message"),
    [
        ("monuseg", None, "MoNuSeg of the table"),
        ("MoNuSeg-without-foo", None, "MoNuSeg of the table"),
        ("Mine", 0, "pixel size"),
        ("Mine", float("nan"), "pixel size"),
    ],
)
def test_own_data_sets_that_cannot_be(tmp_path, name, mpp, message):
    with pytest.raises(InputError, match=message):
        own_dataset(name, "MRI", mpp)
