"""Downloads from a server on this machine, whose files and faults are known; and what is here of the data sets."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import nullcontext
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from csamnet.datasets import DATASETS, Dataset, File
from csamnet.download import download, steps
from csamnet.files import InputError, read_json, write_json
from csamnet.images import write_image
from csamnet.pages.cards import inventory
from csamnet.prepare import prepare

pytest.importorskip("pooch", reason="the extra `download` is not installed")

BLOCK = 2**16  # a drop costs what has come of one
BODY = np.random.default_rng(0).bytes(40 * BLOCK + 123)
HALF = 20 * BLOCK


def md5(content: bytes) -> str:
    return f"md5:{hashlib.md5(content).hexdigest()}"


class Host(ThreadingHTTPServer):
    """Serves `body` under every name. `asked` are the paths and ranges; the other attributes are its faults."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answer)
        self.body, self.asked, self.agents = BODY, [], set()
        self.parts = True  # whether it sends parts
        self.shift = 0  # by how much the parts begin elsewhere
        self.statuses: list[int] = []  # of the next answers; then 200
        self.cuts: list[int] = []  # bytes after which the next connections drop; then none


class Answer(BaseHTTPRequestHandler):
    def do_GET(self):
        host, wanted = self.server, self.headers["Range"]
        host.asked.append((self.path, wanted))
        host.agents.add(self.headers["User-Agent"])
        status = host.statuses.pop(0) if host.statuses else 200
        if status != 200:
            return self.head(status, 0, **{"Location": "/elsewhere"} if status == 302 else {})
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and host.parts else 0
        size, start = len(host.body), start + host.shift * (start > 0)
        if start >= size:
            return self.head(416, 0, **{"Content-Range": f"bytes */{size}"})
        part = {"Content-Range": f"bytes {start}-{size - 1}/{size}"} if start else {}
        self.head(206 if start else 200, size - start, **part)
        return self.wfile.write(host.body[start : host.cuts.pop(0) if host.cuts else None])

    def head(self, status: int, length: int, **fields: str):
        self.send_response(status)
        for field, value in {"Content-Length": str(length), **fields}.items():
            self.send_header(field, value)
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def host(monkeypatch) -> Iterator[Host]:
    """The server, with a data set called Tenth in the table that is one file on it, x.zip."""
    monkeypatch.setattr("csamnet.download.WAITS", (0, 0, 0))
    monkeypatch.setenv("NO_PROXY", "*")
    with Host() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        enter(monkeypatch, server, {"x.zip": md5(BODY)})
        yield server
        server.shutdown()
        thread.join()


def enter(monkeypatch, host: Host, files: dict[str, str]) -> None:
    """Enter the data set Tenth, of these files: name -> checksum."""
    served = tuple(File(name, f"http://127.0.0.1:{host.server_port}/{name}", sum_) for name, sum_ in files.items())
    entry = Dataset(name="Tenth", modality="MRI", organ="brain", reader="tree", download=served)
    monkeypatch.setitem(DATASETS, "Tenth", entry)


def lay_part(out: Path, content: bytes) -> Path:
    part = out / "Tenth" / "x.zip.part"
    part.parent.mkdir()
    part.write_bytes(content)
    return part


def arrives(out: Path) -> list[tuple[int, int | None]]:
    """The file comes, whole, and nothing else is left; what was told of its progress."""
    ticks = []
    folder = download("Tenth", out, progress=lambda name: nullcontext(lambda *tick: ticks.append(tick)))
    assert {path.name: path.read_bytes() == BODY for path in folder.iterdir()} == {"x.zip": True}
    return ticks


def fails(out: Path, left: dict[str, int] | None = None) -> str:
    """The message of a download that must fail and leave only files of these sizes."""
    with pytest.raises(InputError) as caught:
        download("Tenth", out)
    assert {path.name: path.stat().st_size for path in (out / "Tenth").iterdir()} == (left or {})
    return str(caught.value)


def test_files_are_fetched_once_and_their_progress_is_told(host, monkeypatch, tmp_path):
    enter(monkeypatch, host, {"a.zip": md5(BODY), "b.mat": md5(BODY)})
    told = {"a.zip": [], "b.mat": []}

    def progress(name):
        return nullcontext(lambda done, total: told[name].append((done, total)))

    folder = download("tenth", tmp_path, progress=progress)
    assert folder == tmp_path / "Tenth"
    assert {path.name: path.read_bytes() == BODY for path in folder.iterdir()} == {"a.zip": True, "b.mat": True}
    assert host.asked == [("/a.zip", None), ("/b.mat", None)]
    for ticks in told.values():
        assert [done for done, _ in ticks] == [*(BLOCK * n for n in range(1, 41)), len(BODY), len(BODY)]
        assert {total for _, total in ticks} == {len(BODY)}
    download("tenth", tmp_path)
    assert len(host.asked) == 2, "what is there is not fetched again"
    assert all(agent.startswith("csamnet/") for agent in host.agents), "hosts refuse the usual one"


def test_a_file_that_was_stopped_goes_on(host, tmp_path):
    lay_part(tmp_path, BODY[:HALF])
    ticks = arrives(tmp_path)
    assert host.asked == [("/x.zip", f"bytes={HALF}-")]
    assert ticks[0] == (HALF + BLOCK, len(BODY))


def test_the_range_survives_a_redirection(host, tmp_path):
    lay_part(tmp_path, BODY[:HALF])
    host.statuses = [302]
    arrives(tmp_path)
    assert host.asked == [("/x.zip", f"bytes={HALF}-"), ("/elsewhere", f"bytes={HALF}-")]


def test_a_host_that_sends_no_parts_is_asked_for_all(host, tmp_path):
    lay_part(tmp_path, BODY[:HALF])
    host.parts = False
    assert arrives(tmp_path)[0] == (BLOCK, len(BODY))


@pytest.mark.parametrize("parts", [True, False])
def test_a_dropped_connection_is_taken_up_again(host, tmp_path, parts):
    host.parts, host.cuts = parts, [HALF]
    arrives(tmp_path)
    assert [wanted for _, wanted in host.asked] == [None, f"bytes={HALF}-"]


def test_a_connection_that_keeps_dropping_loses_nothing(host, tmp_path):
    host.cuts = [10 * BLOCK, 20 * BLOCK + 1, 30 * BLOCK]
    text = fails(tmp_path, {"x.zip.part": 30 * BLOCK})
    assert "cannot be fetched" in text
    assert "/x.zip" in text
    arrives(tmp_path)
    assert [wanted for _, wanted in host.asked] == [None, *(f"bytes={n * BLOCK}-" for n in (10, 20, 30))]


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_host_is_asked_again(host, tmp_path, status):
    host.statuses = [status, status]
    arrives(tmp_path)
    host.statuses = [status] * 3
    (tmp_path / "Tenth" / "x.zip").unlink()
    assert f"HTTP {status}" in fails(tmp_path)


@pytest.mark.parametrize("status", [202, 403, 404])
def test_a_refused_file(host, tmp_path, status):
    lay_part(tmp_path, BODY[:HALF])
    host.statuses = [status]
    text = fails(tmp_path, {"x.zip.part": HALF})
    assert text.startswith("the host does not serve a file")
    assert f"HTTP {status}" in text
    assert f"http://127.0.0.1:{host.server_port}/x.zip" in text
    assert str(tmp_path / "Tenth" / "x.zip") in text.split("mend:")[1]
    assert len(host.asked) == 1, "it is not asked twice"


@pytest.mark.parametrize("content", [BODY + b"more", b"?" * len(BODY)])
def test_a_part_longer_than_the_file_is_dropped(host, tmp_path, content):
    lay_part(tmp_path, content)
    arrives(tmp_path)


def test_an_answer_that_begins_elsewhere_is_not_appended(host, tmp_path):
    lay_part(tmp_path, BODY[:HALF])
    host.shift = 7
    arrives(tmp_path)
    assert [wanted for _, wanted in host.asked] == [f"bytes={HALF}-", None]


def test_a_wrong_checksum_names_both_and_removes_the_file(host, tmp_path):
    host.body = b"another version"
    text = fails(tmp_path)
    assert md5(BODY) in text
    assert md5(host.body).removeprefix("md5:") in text
    assert "x.zip" in text


def test_a_part_of_another_file_is_found_out(host, tmp_path):
    lay_part(tmp_path, b"?" * HALF)
    assert md5(BODY) in fails(tmp_path)
    arrives(tmp_path)


def test_a_damaged_file_is_replaced_but_not_by_a_wrong_one(host, tmp_path):
    whole = lay_part(tmp_path, BODY[:HALF]).rename(tmp_path / "Tenth" / "x.zip")
    host.body = b"another version"
    fails(tmp_path, {"x.zip": HALF})
    host.body = BODY
    arrives(tmp_path)
    assert whole.stat().st_size == len(BODY)


def test_no_network(host, tmp_path):
    host.shutdown()
    host.server_close()
    text = fails(tmp_path)
    assert "cannot be fetched" in text
    assert "refused" in text


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk(host, tmp_path):
    (tmp_path / "Tenth").mkdir()
    (tmp_path / "Tenth" / "x.zip.part").symlink_to("/dev/full")
    text = fails(tmp_path, {"x.zip.part": 0})
    assert "the disk is full" in text
    assert "x.zip.part" in text


def test_a_place_that_cannot_be_written(host, tmp_path):
    place = tmp_path / "Tenth" / "x.zip.part"
    place.mkdir(parents=True)
    text = fails(tmp_path, {"x.zip.part": place.stat().st_size})
    assert "cannot be written" in text
    assert str(place) in text


def test_what_no_host_serves_is_told_in_steps(tmp_path):
    with pytest.raises(InputError, match="ask its authors"):
        download("DatasetB", tmp_path)
    assert not list(tmp_path.iterdir())
    entry, text = DATASETS["DatasetB"], steps("dataset b")
    for said in (entry.how_to_get, entry.source, entry.licence, f"https://doi.org/{entry.doi[0]}"):
        assert said in text
    assert text.splitlines()[0].startswith("Dataset B")
    assert text.splitlines()[-1].endswith("csamnet prepare DatasetB --from FOLDER")
    assert "source:" not in steps("InHouse"), "it has none"


def test_the_table_names_files_that_can_be_checked():
    served = {name: entry.download for name, entry in DATASETS.items() if entry.download}
    assert served.keys() == {"BrainTumorMRI", "PUMA"}
    files = [file for of in served.values() for file in of]
    assert len(files) == len({file.url for file in files}) == len({file.checksum for file in files}) == 7
    for file in files:
        assert re.fullmatch(r"md5:[0-9a-f]{32}", file.checksum)
        assert re.fullmatch(r"[\w-]+\.(zip|mat)", file.name)
        assert re.fullmatch(
            rf"https://(ndownloader\.figshare\.com/files/\d+|zenodo\.org/.+/{file.name}\?download=1)", file.url
        )


def lay(folder: Path) -> Path:
    """A tree of one image a split, of two objects each."""
    for number, split in enumerate(("train", "val", "test")):
        write_image(folder / split / "img" / f"{split}.png", np.full((8, 8, 3), 50 * number, np.uint8))
        mask = np.zeros((8, 8), bool)
        mask[1:3, 1:3] = mask[5:7, 5:7] = True
        write_image(folder / split / "mask" / f"{split}.png", mask)
    return folder


def test_overview_tells_absent_sample_prepared_and_damaged(tmp_path):
    root, samples = tmp_path / "prepared", tmp_path / "prepared" / "samples"
    source = lay(tmp_path / "source")
    prepare("MoNuSeg", source, root)
    for name in ("Kumar", "CPM17"):
        shutil.copytree(root / "MoNuSeg", root / name)
    write_json(source / "SAMPLE.json", {"kind": "sample"})
    shutil.copytree(prepare("MoNuSeg", source, samples), samples / "PUMA")
    (root / "Kumar" / "manifest.csv").write_text("other")
    (root / "CPM17" / "dataset.json").write_text("[")
    table = inventory(root, samples).set_index("name")
    assert list(table.index) == list(DATASETS)
    found = table["state"].to_dict()
    assert {name: state for name, state in found.items() if state != "absent"} == {
        "MoNuSeg": "prepared", "PUMA": "sample", "Kumar": "damaged", "CPM17": "damaged",
    }  # fmt: skip
    for name in ("MoNuSeg", "PUMA"):
        assert table.loc[name, ["train", "val", "test", "objects"]].to_list() == [1, 1, 1, 6]
    assert table.loc["MoNuSeg", "licence"] == DATASETS["MoNuSeg"].licence
    assert table.loc["PUMA", "licence"].endswith("painted, not real")
    assert table.loc["BUSI", ["modality", "train", "objects"]].to_list() == ["ultrasound", 0, 0]
    assert table.loc["BUSI", "licence"] == DATASETS["BUSI"].licence


def test_overview_knows_data_of_ones_own(tmp_path):
    folder = prepare("MoNuSeg", lay(tmp_path / "source"), tmp_path / "root").rename(tmp_path / "root" / "mine")
    write_json(folder / "dataset.json", read_json(folder / "dataset.json") | {"own": {"modality": "CT", "mpp": None}})
    row = inventory(tmp_path / "root", tmp_path).set_index("name").loc["mine"]
    assert row[["modality", "state", "objects"]].to_list() == ["CT", "prepared", 6]


def test_overview_of_nothing(tmp_path):
    table = inventory(tmp_path, tmp_path / "samples")
    assert set(table["state"]) == {"absent"}
    assert list(table) == ["name", "modality", "state", "train", "val", "test", "objects", "licence"]
    assert not table.isna().any(axis=None)


def test_neither_torch_nor_the_readers_are_imported():
    program = "import sys, csamnet.download; sys.exit(bool({'torch', 'scipy', 'pooch', 'requests'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parents[1], check=True)


@pytest.mark.parametrize(
    ("key", "value"),
    [("kind", ["x"]), ("counts", {"train": float("nan")}), ("objects", {"train": "b"}), ("objects", 1)],
)
def test_a_card_with_other_values_is_damaged(tmp_path, key, value):
    folder = prepare("MoNuSeg", lay(tmp_path / "source"), tmp_path)
    card = read_json(folder / "dataset.json") | {"licence": 1}
    (folder / "dataset.json").write_text(json.dumps(card))
    row = inventory(tmp_path, tmp_path).set_index("name").loc["MoNuSeg"]
    assert (row["state"], row["licence"]) == ("prepared", "1")
    (folder / "dataset.json").write_text(json.dumps(card | {key: value}))
    assert inventory(tmp_path, tmp_path).set_index("name").loc["MoNuSeg", "state"] == "damaged"
