"""The data sets of the paper as one table."""

from __future__ import annotations

import difflib
import re
import tomllib
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import UnionType
from typing import get_args, get_origin, get_type_hints

from csamnet.files import InputError, read_json


@dataclass(frozen=True)
class File:
    """One file that a host serves, with its checksum as pooch takes it (`md5:...`)."""

    name: str
    url: str
    checksum: str


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """One data set: what it is, where it comes from, how it is read, split and learned."""

    # what it is
    name: str
    title: str = ""  # as the paper prints it, where that is no file name
    modality: str
    organ: str  # where an image's name does not tell
    target: tuple[str, str] = ("nucleus", "nuclei")  # what is segmented: one, many
    look: str = ""  # what a reader of its page should look for in the images
    published: dict[str, int] = field(default_factory=dict)  # images, objects, patients, as printed
    mpp: float | None = None  # micrometres a pixel
    # where it comes from
    source: str = ""
    doi: tuple[str, ...] = ()
    licence: str = ""
    how_to_get: str = ""
    download: tuple[File, ...] = ()  # where the host serves plain files
    # how it is read and split
    reader: str  # a key of readers.READERS
    forms: tuple[str, ...] = ()  # in which it can be read, the usual one first
    annotated: bool = True  # False: prediction only
    longest: int | None = None  # pixels; larger images are reduced to this on preparation (our choice)
    counts: dict[str, int] = field(default_factory=dict)  # images in the release, by split or "all"
    group: str = r".+"  # pattern of what an image's name says about its group (patient, slide)
    organ_code: str = r"()"  # pattern whose first part is looked up in `organs`
    organs: dict[str, str] = field(default_factory=dict)  # code -> organ; in the table, organ -> its codes
    release: dict[str, tuple[str, ...]] = field(default_factory=dict)  # split -> its groups
    validation: tuple[str, ...] = ()  # groups held out of the training split
    held_out: tuple[str, ...] = ()  # organs: where there are any, their training images are those of validation
    validation_rule: str = "a fifth of the training groups, drawn by the hash of their names"
    drawn: tuple[float, float] | None = None  # where the release has no split: shares of val and test
    subsets: dict[str, tuple[str, ...]] = field(default_factory=dict)  # parts of the test set told apart, by organ
    # how it is learned
    recipe: dict[str, float] = field(default_factory=dict)  # changes to the settings of config.RunConfig
    note: str = ""

    @property
    def touching(self) -> bool:
        """Whether neighbours run together and have to be split, as nuclei; lesions and tumours are not (our choice)."""
        return self.target[0] == "nucleus" or (self.target[0] == "object" and self.stained)

    @property
    def stained(self) -> bool:
        return self.modality.startswith("H&E")

    @property
    def splits(self) -> dict[str, str]:
        """The split of each group that the release names."""
        return {group: split for split, groups in self.release.items() for group in groups}

    def group_of(self, name: str) -> str:
        """What must not be in two splits: the patient or slide, or without such a name the image itself."""
        found = re.match(self.group, name)
        return found[0] if found else name

    def organ_of(self, name: str) -> str:
        found = re.match(self.organ_code, name)
        return self.organs.get(found[1], self.organ) if found else self.organ


def read_table(text: str) -> dict[str, Dataset]:
    """Data sets by name, from TOML as in `datasets.toml`. Raises InputError that names an entry that cannot be used."""
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(
            "the table of data sets cannot be read", expected="TOML, as in datasets.toml", found=error
        ) from None
    shared = tables.pop("like", {})
    return {name: _entry(name, given, shared) for name, given in tables.items()}


def _entry(name: str, given: dict, shared: dict[str, dict]) -> Dataset:
    values, expected = {"name": name}, "the fields of Dataset, each of its type"
    try:
        for part in (*(shared[key] for key in given.get("like", ())), given):
            values |= _frozen(part)
        values.pop("like", None)
        values["download"] = tuple(File(**file) for file in values.get("download", ()))
        organs = values.get("organs", {}).items()
        entry = Dataset(**values | {"organs": {code: organ for organ, codes in organs for code in codes}})
    except (TypeError, KeyError, AttributeError) as error:
        raise InputError(f"the entry {name} of the table cannot be used", expected=expected, found=error) from None
    for key, hint in get_type_hints(Dataset).items():
        kinds = tuple(get_origin(part) or part for part in (get_args(hint) if isinstance(hint, UnionType) else [hint]))
        if not isinstance(found := getattr(entry, key), (*kinds, int) if float in kinds else kinds):
            raise InputError(
                f"the entry {name} of the table cannot be used", expected=expected, found=f"{key} = {found!r}"
            )
    return entry


def _frozen(value):
    """Lists as tuples, all the way down."""
    if isinstance(value, dict):
        return {key: _frozen(part) for key, part in value.items()}
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


_TABLE = read_table(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
DATASETS = dict(_TABLE)


def plain_name(name: str) -> str:
    """A name without case, spaces, hyphens and underscores."""
    return re.sub(r"[\W_]", "", str(name)).lower()


def get_dataset(name: str, root: Path | str | None = None) -> Dataset:
    """The entry called `name`, whatever the case, spaces and hyphens; or a data set of one's own, prepared in `root`.

    `MoNuSeg-without-bladder-colon` is MoNuSeg with another split, see `hold_out`. Raises InputError for an unknown
    name, with the nearest one.
    """
    plain = {plain_name(known): entry for known, entry in DATASETS.items()}
    wanted = plain_name(name)
    if wanted in plain:
        return plain[wanted]
    card = Path(root or ".", str(name), "dataset.json")
    if card.is_file() and "own" in (about := read_json(card)):
        return own_dataset(str(name), **about["own"])
    base, *organs = re.split(r"[\W_]+without(?:[\W_]+|$)", str(name), maxsplit=1, flags=re.IGNORECASE)
    if organs:
        return hold_out(get_dataset(base, root), *organs)
    near = difflib.get_close_matches(wanted, plain, n=1, cutoff=0.4)
    mend = f"did you mean {plain[near[0]].name}? " if near else ""
    mend += "For images of your own: csamnet prepare NAME --from TREE --own MODALITY"
    raise InputError(f"unknown data set {name!r}", expected=", ".join(DATASETS), mend=mend)


def hold_out(entry: Dataset, organs: str) -> Dataset:
    """A split of a data set, by which the training images of `organs` (bladder-colon) validate.

    Raises InputError for an organ that is not in its training images, and where these do not tell theirs.
    """
    known = sorted({entry.organ_of(group) for group in entry.release.get("train", ())})
    names = sorted({*re.split(r"[-_ ]", organs.lower())})
    if not {*names} < {*known}:
        expected = "-".join(known) + ", but not all of them" if known else "a data set whose names tell the organ"
        raise InputError(f"organs of {entry.name} that cannot be held out", expected=expected, found=organs)
    name, rule = f"{entry.name}-without-{'-'.join(names)}", f"by organ: all training images of {', '.join(names)}"
    return replace(entry, name=name, held_out=tuple(names), validation_rule=rule, subsets={})


def split_by_organ(name: str) -> tuple[str, list[str]]:
    """MoNuSeg and the organs of a name that `hold_out` gives; any other name as it is, and none."""
    whole, _, organs = name.partition("-without-")
    return whole, organs.split("-") if organs else []


def entry_of(name: str) -> Dataset | None:
    """The entry of the table that is called so, or of which this is a split by organ; None for any other."""
    return DATASETS.get(name) or DATASETS.get(split_by_organ(name)[0])


def known_mpp(name: str) -> float | None:
    """Micrometres a pixel of a data set of the table; None for any other."""
    return getattr(entry_of(name), "mpp", None)


def check_mpp(mpp: float | None) -> None:
    if mpp is not None and not 0 < mpp < 1000:
        raise InputError("impossible pixel size", expected="micrometres a pixel, above 0, below 1000", found=mpp)


def own_dataset(name: str, modality: str, mpp: float | None = None) -> Dataset:
    """Enter a data set of one's own into the table; its images come as a tree {train,val,test}/{img,mask,inst}.

    Raises InputError for a modality that the table does not have, a name that is no folder's or the table's, and an
    impossible mpp.
    """
    known = {entry.modality: entry for entry in reversed(_TABLE.values())}
    if modality not in known:
        raise InputError(f"unknown modality {modality!r}", expected=" | ".join(known), mend="the nearest will do")
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise InputError(f"{name!r} cannot name a data set", expected="letters, digits, -, _ and . only")
    taken = {plain_name(entry.name): entry.name for entry in _TABLE.values()}
    if clash := taken.get(plain_name(re.split("without", name, flags=re.IGNORECASE)[0])):
        raise InputError(f"{name!r} is {clash} of the table", mend="give your data set another name")
    check_mpp(mpp)
    recipe = {key: value for key, value in known[modality].recipe.items() if key != "tile"}
    entry = Dataset(name=name, modality=modality, organ="unknown", target=("object", "objects"), mpp=mpp,
                    reader="tree", recipe=recipe, licence="your own", how_to_get="your own")  # fmt: skip
    DATASETS[name] = entry
    return entry
