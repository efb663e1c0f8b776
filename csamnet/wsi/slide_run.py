"""One slide as a job: its results in a folder, gone on with where it was stopped, and not done twice."""

from __future__ import annotations

import shutil
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import filelock
import numpy as np
import pandas as pd
import torch
import zarr
from torch import nn

from csamnet.config import RunConfig
from csamnet.data import stain_wanted
from csamnet.files import InputError, atomic, printable, read_json, sha256_file, sha256_json, write_csv, write_json
from csamnet.inference import learned_mpp, target_of, weights_sha256
from csamnet.processes import fresh_processes
from csamnet.results import code_sha256
from csamnet.slides import CHUNK, STEPS, Frame, Slide, find_tissue
from csamnet.wsi import slide_outputs as outputs
from csamnet.wsi.stream import Clock, Grid, Network, infer, normalising

TILE_BYTES = 1 << 28  # of a GPU's memory that a tile may take
RESULTS = ("probability.zarr", "nuclei.geojson", "mask.ome.tiff", "burden.npy", "burden.csv", "burden.png",
           "report.png", "summary.csv")  # fmt: skip
OURS = {*RESULTS, "progress.json", ".nuclei"}
"""All that is ever removed from a slide's folder, besides files that were being written when a job was stopped."""


class Options(NamedTuple):
    """What a user may ask for; see `csamnet slide --help`."""

    mpp: float | None = None  # of slides that do not say it
    at: float | None = None  # to work at; None: what the weights have learned from
    region: tuple[int, int, int, int] | None = None  # x, y, width, height on level 0
    whole: bool = False
    batch: int | None = None
    workers: int = 1
    threshold: float | None = None
    tta: bool = False  # mean over eight views, of both stains where one normalises; else as the weights' run did
    normalise: float | None = None  # share of the way to the stain that was learned; None: as the weights' run did


def run_slide(
    model: nn.Module,
    path: Path,
    folder: Path,
    options: Options,
    *,
    weights: str | None = None,
    clock: Clock | None = None,
    on_tile: Callable[[int, int], None] = lambda done, all_: None,
) -> dict:
    """Probability, nuclei, mask, burden, figures and summary of one slide in `folder`; returns the summary.

    A folder that another process is working on is left alone; one that was stopped goes on where it was; one that
    is finished is not done again, unless the slide, the weights or a setting has changed. Raises InputError where
    the slide or its annotation cannot be read, its resolution is not known, or the folder is of another slide.
    `weights`: their `weights_sha256`, where it is known.
    """
    config, slide = config_of(model, options), Slide(path, options.mpp)
    frame, clock = frame_of(slide, learned_mpp(model), options), Clock() if clock is None else clock
    job = Job(model, weights or weights_sha256(model), config, slide, frame, folder, options, clock, on_tile)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with filelock.FileLock(folder / ".lock", timeout=1):  # `overview` takes it for a moment
            job.begin()
            if job.state["status"] == "done":
                return {"status": "already done"} | read_row(folder)
            return {"status": "done"} | job.run()
    except filelock.Timeout:
        if job.progress.exists():
            job.check_identity(read_job(job.progress))
        return {"status": "at work elsewhere"}


@dataclass
class Job:
    """A slide, what is asked of it, the folder of its results, and how far it is."""

    model: nn.Module
    weights: str  # their hash
    config: RunConfig
    slide: Slide
    frame: Frame
    folder: Path
    options: Options
    clock: Clock
    on_tile: Callable[[int, int], None]
    state: dict = field(default_factory=dict)  # what progress.json holds
    since: float = 0.0  # when its seconds were last counted

    @property
    def cut(self) -> int:
        """The stored value from which a pixel is foreground."""
        return round(self.config.threshold * STEPS)

    @property
    def progress(self) -> Path:
        return self.folder / "progress.json"

    # ---------------------------------------------------------------------------------- what is there already

    def settings(self) -> dict:
        """All that the stored probability depends on, besides the slide's identity."""
        file, settings = self.slide.path.stat(), {"whole": self.options.whole, "frame": asdict(self.frame)}
        settings |= {key: getattr(self.config, key) for key in ("tile", "overlap", "tta", "normalise", "precision")}
        settings |= {"weights": self.weights, "stain": getattr(self.model, "stain", None)}
        settings |= {"bytes": file.st_size, "code": code_sha256("stream", self.config.model)}
        if self.slide.identity == str(self.slide.path.resolve()):  # else it is a hash of what the slide holds
            settings |= {"changed": file.st_mtime_ns}
        return settings

    def begin(self) -> None:
        """Take up the job that progress.json tells of, or begin a new one; what is stale is removed.

        Where only what follows the probability is stale, such as the threshold, the probability stays.
        """
        settings, xml = self.settings(), outputs.annotation(self.slide.path)
        inference = sha256_json([self.slide.identity, settings])
        settings |= {"threshold": self.config.threshold}
        fingerprint = sha256_json([inference, settings, code_sha256("slide")])
        self.state = read_job(self.progress) if self.progress.exists() else {"identity": self.slide.identity}
        self.check_identity(self.state)
        _sweep(self.folder, kept=self.progress.exists())
        if self.state.get("fingerprint") != fingerprint or not (self.folder / "probability.zarr").exists():
            self.begin_anew(inference, fingerprint, settings)
        outlined = sha256_file(xml) if xml else ""
        if self.state.get("annotation") != outlined or not self.is_whole():
            self.state |= {"status": "begun", "annotation": outlined}

    def is_whole(self) -> bool:
        return all((self.folder / name).exists() for name in RESULTS) and read_row(self.folder) is not None

    def begin_anew(self, inference: str, fingerprint: str, settings: dict) -> None:
        """Remove what is there, but a probability of the hash `inference`; the state is that of a new job."""
        kept = {"probability.zarr"} if self.state.get("inference") == inference else set()
        if not kept:
            batch = self.options.batch or fitting_batch(next(self.model.parameters()).device, self.config.batch)
            fresh = {"inference": inference, "batch": batch, "rows": 0, "seconds": 0}
            self.state = {"identity": self.slide.identity} | fresh
        self.state |= {"status": "begun", "fingerprint": fingerprint, "settings": settings}
        unknown = {"inference": None, "fingerprint": None}  # should the removal be stopped
        write_json(self.progress, self.state | unknown)
        for name in OURS - kept - {self.progress.name}:
            _remove(self.folder / name)
        if not (self.folder / "probability.zarr").exists():
            self.state["rows"] = 0
            _create(self.folder, self.frame)
        write_json(self.progress, self.state)

    def check_identity(self, state: dict) -> None:
        """Raises InputError where a state is of another slide."""
        if state["identity"] != self.slide.identity:
            expected, found = f"results of {self.slide.path}", "those of another slide, or of a file that was replaced"
            what, mend = "a folder is of another slide", "choose another --out, or remove the folder"
            raise InputError(what, path=self.folder, expected=expected, found=found, mend=mend)

    # ------------------------------------------------------------------------------------------ what is not yet

    def run(self) -> dict:
        """Do all that is not there yet; returns the summary."""
        self.since, cancer, picture = time.perf_counter(), outputs.annotated(self.slide.path), self.slide.thumbnail()
        tissue, coarse = find_tissue(picture), self.slide.coarseness()
        if self.options.whole:
            tissue, coarse = np.ones((1, 1), bool), max(self.slide.size)
        grid = Grid(self.frame, self.config.tile, self.config.overlap)
        tiles = grid.tiles(tissue, coarse)
        with self.clock("inference"):
            self.infer(grid, tiles)
        with self.clock("post-processing"):
            count = self.find_nuclei(outputs.blocks_of(tiles, grid.tile, self.frame))
            outputs.write_mask(self.folder, self.frame, self.cut)
            fraction, foreground = outputs.burden(self.folder, self.frame, self.cut, tissue, coarse)
        with self.clock("figures"):
            self.draw(picture, tissue, fraction, cancer)
        summary = _summary(self.frame, fraction, foreground, count, self.frame.share_of(tissue, coarse))
        summary |= outputs.inside_outside(fraction, self.frame, cancer) if cancer else {}
        return self.finish({"name": self.slide.path.name} | summary)

    def keep(self, rows: int) -> None:
        """Write down that the probability of so many rows is stored, and the seconds that all took."""
        now = time.perf_counter()
        self.state |= {"rows": rows, "seconds": self.state["seconds"] + now - self.since}
        self.since = now
        write_json(self.progress, self.state)

    def infer(self, grid: Grid, tiles: Sequence[tuple[int, int]]) -> None:
        """Store the probability of the rows that are not there; progress is kept after every CHUNK of them."""
        config, start = self.config, self.state["rows"]
        if start < self.frame.height:
            change = normalising(self.slide, self.model, config, grid, tiles)
            network = Network(self.model, config, self.options.batch, change)
            infer(self.slide, network, grid, tiles, zarr.open_array(self.folder / "probability.zarr"), start=start,
                  batch=self.state["batch"], clock=self.clock, on_rows=self.keep, on_tile=self.on_tile)  # fmt: skip

    def find_nuclei(self, blocks: Sequence[tuple[int, int]]) -> int:
        """Write nuclei.geojson, a block at a time or several in processes of their own; returns how many there are."""
        kind = target_of(self.model)[0].capitalize()
        find = outputs.Nuclei(self.folder, self.frame, printable(self.folder.name), self.cut, kind)
        if self.options.workers > 1:
            with fresh_processes(self.options.workers) as pool:
                deque(pool.map(find, blocks), 0)
        else:
            deque(map(find, blocks), 0)
        return outputs.write_geojson(self.folder, blocks)

    def draw(self, picture: np.ndarray, tissue: np.ndarray, fraction: np.ndarray, cancer: Sequence[np.ndarray]) -> None:
        """burden.npy, burden.csv and burden.png, and report.png."""
        from csamnet.pages.figures import save
        from csamnet.wsi.slide_figures import burden_map, report

        folder, frame, slide = self.folder, self.frame, self.slide
        with atomic(folder / "burden.npy") as temporary:
            np.save(temporary, fraction)
        rows, columns = np.nonzero(~np.isnan(fraction))
        table = pd.DataFrame({"row": rows, "column": columns, "fraction": fraction[rows, columns]})
        corners = frame.on_slide(np.stack([columns, rows], 1) * frame.cell)
        write_csv(folder / "burden.csv", table.assign(x=corners[:, 0], y=corners[:, 1]))
        outlines = [(points - slide.offset - frame.corner) / frame.scale for points in cancer]
        name, coarse = slide.path.name, slide.coarseness()
        save(burden_map(fraction, frame, outlines, name), folder / "burden", ["png"])
        save(report(picture, coarse, tissue, frame, fraction, outlines, name), folder / "report", ["png"])

    def finish(self, summary: dict) -> dict:
        """Write summary.csv, and that the job is done."""
        self.keep(self.frame.height)
        summary |= {"seconds": self.state["seconds"]}
        write_csv(self.folder / "summary.csv", pd.DataFrame([summary]))
        shutil.rmtree(self.folder / ".nuclei", ignore_errors=True)
        write_json(self.progress, self.state | {"status": "done"})
        return summary


def config_of(model: nn.Module, options: Options) -> RunConfig:
    """That of the weights' run, as the options alter it. Raises InputError as of `stain_wanted`."""
    config = getattr(model, "config", RunConfig())
    given = {key: getattr(options, key) for key in ("threshold", "normalise")} | {"tta": options.tta or None}
    config = replace(config, **{key: value for key, value in given.items() if value is not None})
    stain_wanted(model, config)  # or an error
    return config


def frame_of(slide: Slide, learned: float | None, options: Options) -> Frame:
    """The frame that is asked for; without `options.at` in the resolution that was `learned`, micrometres a pixel.

    A plain image that does not say its resolution is taken as it is. Raises InputError where the resolution of a
    slide or of the weights is not known, and for a region that is not on the slide.
    """
    if learned is options.at is None and slide.mpp and not slide.plain:
        expected, mend = "the resolution to work at", f"--at {slide.mpp:.3g} works at the slide's own"
        raise InputError("the weights do not say what they have learned", path=slide.path, expected=expected, mend=mend)
    mpp = (None if slide.plain and slide.mpp is None else learned) if options.at is None else options.at
    scale = slide.scale(mpp)
    x, y, width, height = options.region or (0, 0, *slide.size)
    if min(x, y, width - 1, height - 1) < 0 or x + width > slide.size[0] or y + height > slide.size[1]:
        expected = f"x,y,w,h within {slide.size[0]} x {slide.size[1]} pixels"
        raise InputError("the region is not on the slide", path=slide.path, expected=expected, found=options.region)
    size = (max(1, round(n / scale)) for n in (width, height))
    return Frame((x, y), slide.offset, *size, scale, mpp or slide.mpp)


def read_job(path: Path) -> dict:
    """A slide's progress.json. Raises InputError where it is not as it was written."""
    try:
        job = read_json(path)
        height = job["settings"]["frame"]["height"]
        known = {"status", "identity", "fingerprint"} <= job.keys()
        sound = known and 0 <= job["rows"] <= height and min(height, job["batch"]) > 0 and job["seconds"] >= 0
        sound &= isinstance(job["rows"], int) and isinstance(job["batch"], int)
    except (InputError, KeyError, TypeError):
        sound = False
    if not sound:
        mend = "remove this file and the results beside it: the slide is then done anew"
        raise InputError("the progress of a slide cannot be read", path=path, mend=mend)
    return job


def read_row(folder: Path) -> dict | None:
    """The row of a slide's summary.csv; None where there is none, or it is damaged."""
    try:
        row = pd.read_csv(folder / "summary.csv").iloc[0].to_dict()
        float(row["nuclei"]), float(row["tissue_mm2"])
    except (OSError, ValueError, LookupError):
        return None
    return row


def fitting_batch(device: torch.device, batch: int) -> int:
    """As many tiles as a GPU's free memory will hold, 64 at most; on a CPU 4, or fewer where the run took fewer."""
    return min(64, max(1, torch.cuda.mem_get_info(device)[0] // TILE_BYTES)) if device.type == "cuda" else min(4, batch)


def _sweep(folder: Path, *, kept: bool) -> None:
    """Remove what a kill left half-written. Raises InputError for a folder that is not one of ours."""
    temporary = [path for name in OURS for path in folder.glob(f".{Path(name).stem}.*")]
    strange = {path.name for path in folder.iterdir()} - OURS - {".lock"} - {path.name for path in temporary}
    if strange and not kept:
        expected, found = "none of this name, or one that csamnet slide has written", ", ".join(sorted(strange))
        mend = "choose another --out"
        raise InputError("a folder holds other things", path=folder, expected=expected, found=found, mend=mend)
    for path in [*temporary, *folder.glob(".nuclei/.*"), *folder.glob("probability.zarr/**/*.partial")]:
        _remove(path)


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _create(folder: Path, frame: Frame) -> None:
    """An empty array of probability. `scale_factor` tells readers of NetCDF conventions what a step is."""
    zarr.create_array(
        folder / "probability.zarr",
        shape=(frame.height, frame.width),
        chunks=(CHUNK, CHUNK),
        dtype=np.uint16,
        fill_value=0,
        dimension_names=("y", "x"),
        attributes={"scale_factor": 1 / STEPS, "mpp": frame.mpp, "level_0_pixels": frame.scale,
                    "level_0_corner": frame.on_slide([[0, 0]])[0].tolist()},
    )  # fmt: skip


def _summary(frame: Frame, fraction: np.ndarray, foreground: int, count: int, tissue: float) -> dict:
    """Of a slide; areas are NaN where the resolution is not known. `tissue`: its share of the frame."""
    pixels = frame.width * frame.height * tissue
    mm2 = pixels * (frame.mpp or np.nan) ** 2 / 1e6
    return {
        "mpp": frame.mpp,
        "tissue_mm2": mm2,
        "nuclei": count,
        "nuclei_per_mm2": count / mm2 if mm2 else np.nan,
        "area_fraction": foreground / pixels if pixels else np.nan,
        "squares": int(np.count_nonzero(~np.isnan(fraction))),
        "burden": float(np.nanmean(fraction)) if not np.isnan(fraction).all() else np.nan,
    }
