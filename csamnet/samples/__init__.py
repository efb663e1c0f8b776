"""Seeded look-alike releases: the files and folders of a real data set, with painted images in them.

Every image has its own random generator, so a seed gives the same bytes on every run.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path

from csamnet.datasets import split_by_organ
from csamnet.files import InputError, read_json, replacing, sha256_file, write_json
from csamnet.samples import ct, histology, mri, slides, ultrasound

MAKERS: dict[str, Callable[..., None]] = {
    "CPM17": histology.cpm17,
    "Kumar": histology.kumar,
    "MoNuSeg": histology.monuseg,
    "PUMA": histology.puma,
    "BACH2018": slides.bach2018,
    "InHouse": slides.in_house,
    "DatasetB": ultrasound.dataset_b,
    "BrainTumorMRI": mri.brain_mri,
    "LIDC-IDRI": ct.lidc,
}
"""By data set, what writes a look-alike release into an empty folder: called with folder, seed and settings.

The settings are keyword arguments with defaults, whole numbers of 1 or more (`size`: 64 or more)."""


def make_sample(name: str, out: Path, *, seed: int = 0, **settings: int) -> Path:
    """Write a look-alike release of the data set `name` to `out`/`name` and return that folder.

    A whole sample of the same settings is left as it is, any other sample is replaced. `settings` are those of
    its maker, such as `train` and `test` (how many images) and `size` (their side in pixels). Raises InputError
    for an unknown name, for impossible settings, and where the folder holds something else.
    """
    if name not in MAKERS:
        near = get_close_matches(split_by_organ(name)[0], MAKERS, 1, 0.4)
        mend = f"did you mean {near[0]}?" if near else None
        raise InputError("no sample of this data set", expected=", ".join(MAKERS), found=name, mend=mend)
    maker = MAKERS[name]
    settings = _checked(maker, seed, settings)
    folder, note = Path(out) / name, "Painted, not real: nothing measured on it is a result."
    card = {"kind": "sample", "dataset": name, "seed": seed, **settings, "painter": _painter(maker), "note": note}
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        if not (folder / "SAMPLE.json").is_file():
            mend = "choose another folder"
            raise InputError("would overwrite what is not a sample", path=folder, mend=mend)
        old = read_json(folder / "SAMPLE.json")
        if old.items() >= card.items() and all((folder / file).is_file() for file in old["files"]):
            return folder
    with replacing(folder) as new:
        maker(new, seed, **settings)
        files = sorted(path.relative_to(new).as_posix() for path in new.rglob("*.*") if path.is_file())
        write_json(new / "SAMPLE.json", card | {"files": files})
    return folder


def _checked(maker: Callable, seed: int, settings: dict[str, int]) -> dict[str, int]:
    """The maker's settings, defaults filled in. Raises InputError for unknown and impossible ones."""
    usual = {key: p.default for key, p in inspect.signature(maker).parameters.items() if p.kind is p.KEYWORD_ONLY}
    full = usual | settings
    small = any(value < (64 if key == "size" else 1) for key, value in full.items())
    if seed < 0 or small or full.keys() != usual.keys():
        expected = "seed of 0 or more, " + ", ".join(f"{key} of {64 if key == 'size' else 1} or more" for key in usual)
        found = ", ".join(f"{key} {value}" for key, value in {"seed": seed, **full}.items())
        raise InputError("impossible settings of a sample", expected=expected, found=found)
    return full


def _painter(maker: Callable) -> str:
    """A hash of the code that paints: of the maker's module and of the tissue that some of them share."""
    files = (inspect.getfile(maker), Path(__file__).with_name("tissue.py"), __file__)
    return "".join(sha256_file(path)[:5] for path in files)
