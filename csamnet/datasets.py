"""The data sets of the paper as one table."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, field
from pathlib import Path

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
    organs: dict[str, str] = field(default_factory=dict)
    release: dict[str, tuple[str, ...]] = field(default_factory=dict)  # split -> its groups
    validation: tuple[str, ...] = ()  # groups held out of the training split
    validation_rule: str = "a fifth of the training groups, drawn by the hash of their names"
    drawn: tuple[float, float] | None = None  # where the release has no split: shares of val and test
    subsets: dict[str, tuple[str, ...]] = field(default_factory=dict)  # parts of the test set told apart, by organ
    # how it is learned
    recipe: dict[str, float] = field(default_factory=dict)  # changes to the settings of config.RunConfig
    note: str = ""

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


def _tcga(patients: str) -> tuple[str, ...]:
    return tuple(f"TCGA-{patient}" for patient in patients.split())


_TCGA_PATIENT, _TCGA_SITE = r"\w+-\w+-\w+", r"\w+-(\w+)-"  # project, tissue source site, participant
_ORGAN_SITES = {
    "breast": "A7 AR E2 AC AO",
    "kidney": "B0 HE 2Z GL IZ",
    "liver": "18 38 49 50 21",  # as Kumar et al. print it, though TCGA knows these sites as lung
    "prostate": "G9 CH EJ HC",
    "bladder": "DK G2 CU ZF",
    "colon": "AY NH A6",
    "stomach": "KB RD",
    "lung": "44 69",
    "brain": "FG HT",
}

_SITES = {code: organ for organ, codes in _ORGAN_SITES.items() for code in codes.split()}


def _figshare(number: int, name: str, md5: str) -> File:
    return File(name, f"https://ndownloader.figshare.com/files/{number}", f"md5:{md5}")  # figshare.com sets a puzzle


def _zenodo(record: int, name: str, md5: str) -> File:
    return File(name, f"https://zenodo.org/records/{record}/files/{name}?download=1", f"md5:{md5}")


_GREY = {"stain": 0.0}  # no stain to change
_NUCLEI = (
    "Nuclei are the blue to purple shapes; the pink around them is cytoplasm and connective tissue, and white is "
    "where there is no tissue. In some images the nuclei are far darker than anything around them, in others hardly. "
    "Where two outlines share a border, only their shape tells that there are two. Each laboratory stains and scans "
    "in its own way."
)
_LESIONS = (
    "A lesion is a dark (hypoechoic) region in the bright layers of the breast. Speckle gives every tissue its grain, "
    "and below a hard or a dense lesion lies its shadow, as dark as the lesion itself: the lower border is the "
    "difficult one."
)

_TABLE = (
    Dataset(
        name="CPM17",
        modality="H&E tiles",
        organ="brain, head and neck, lung",
        look=_NUCLEI,
        published={"images": 64, "objects": 7_570},
        source="https://doi.org/10.3389/fbioe.2019.00053",
        doi=("10.3389/fbioe.2019.00053",),
        licence="none stated",
        how_to_get="follow the link to the challenge's data in the article, or a copy that the authors of HoVer-Net "
        "link to; put train and test, each with Images and Labels, into one folder",
        reader="cpm17",
        counts={"train": 32, "test": 32},
        note="Tiles of 500 to 600 pixels at 20x and 40x, of four cancers. Instances are MATLAB 5 files.",
    ),
    Dataset(
        name="Kumar",
        modality="H&E tiles",
        organ="unknown",
        look=_NUCLEI,
        published={"images": 30, "objects": 21_623},
        mpp=0.25,
        source="https://monuseg.grand-challenge.org",
        doi=("10.1109/TMI.2017.2677499",),
        licence="CC BY-NC-SA 4.0",
        how_to_get="download the training archive of MoNuSeg: these are its 30 images",
        reader="kumar",
        counts={"train": 16, "test": 14},
        group=_TCGA_PATIENT,
        organ_code=_TCGA_SITE,
        organs=_SITES,
        release={
            "train": _tcga(
                "18-5592 38-6178 49-4488 50-5931 A7-A13E A7-A13F AR-A1AK AR-A1AS B0-5711 G9-6336 G9-6348 G9-6356 "
                "G9-6363 HE-7128 HE-7129 HE-7130"
            ),
            "test": _tcga(
                "E2-A1B5 E2-A14V B0-5698 B0-5710 21-5784 21-5786 CH-5767 G9-6362 "
                "DK-A2I6 G2-A2EK AY-A8YK NH-A8F7 KB-A93J RD-A8N9"
            ),
        },
        validation=_tcga("AR-A1AS HE-7130 50-5931 G9-6363"),
        validation_rule="the four validation images of Kumar et al., one of each of the four organs",
        subsets={
            "same organs": ("breast", "kidney", "liver", "prostate"),
            "different organs": ("bladder", "colon", "stomach"),
        },
        note="The same 30 images as MoNuSeg's training set, split by Kumar et al.: 12 + 4 for training and "
        "validation, 8 test images of the same four organs and 6 of three others, which are reported "
        "apart.",
    ),
    Dataset(
        name="MoNuSeg",
        modality="H&E tiles",
        organ="unknown",
        source="https://monuseg.grand-challenge.org",
        doi=("10.1109/TMI.2017.2677499", "10.1109/TMI.2019.2947628"),
        licence="CC BY-NC-SA 4.0",
        how_to_get="download the training and the test archive from the challenge's page; put both into one folder, "
        "zipped or not",
        reader="monuseg",
        mpp=0.25,
        published={"images": 44, "objects": 28_846},
        look=_NUCLEI,
        counts={"train": 30, "test": 14},
        group=_TCGA_PATIENT,
        organ_code=_TCGA_SITE,
        organs=_SITES,
        release={
            "train": _tcga(
                "18-5592 21-5784 21-5786 38-6178 49-4488 50-5931 A7-A13E A7-A13F AR-A1AK AR-A1AS AY-A8YK "
                "B0-5698 B0-5710 B0-5711 CH-5767 DK-A2I6 E2-A14V E2-A1B5 G2-A2EK G9-6336 G9-6348 G9-6356 "
                "G9-6362 G9-6363 HE-7128 HE-7129 HE-7130 KB-A93J NH-A8F7 RD-A8N9"
            ),
            "test": _tcga(
                "2Z-A9J9 44-2665 69-7764 A6-6782 AC-A2FO AO-A0J2 CU-A0YN EJ-A46H FG-A4MU GL-6846 HC-7209 "
                "HT-8564 IZ-8196 ZF-A9R5"
            ),
        },
        validation=_tcga("AR-A1AS HE-7130 50-5931 G9-6363 KB-A93J RD-A8N9"),
        validation_rule="by patient: Kumar's four validation images and both stomach images, so that one "
        "organ is held out, as in the test set",
        note="30 training and 14 test images of 1000 x 1000 pixels at 40x, outlined nuclei, nine organs. The "
        "archive now served has 37 training images; the 7 that were not in the challenge are left out.",
    ),
    Dataset(
        name="PUMA",
        modality="H&E tiles",
        organ="skin (melanoma)",
        look=_NUCLEI,
        published={"images": 206, "objects": 97_429},
        mpp=0.23,
        source="https://puma.grand-challenge.org",
        doi=("10.5281/zenodo.15050523", "10.1093/gigascience/giaf011"),
        licence="CC0 1.0",
        how_to_get="csamnet download PUMA, or from Zenodo: the zips of regions (tif) and of nuclei (geojson)",
        download=(  # version 5, the one with all 206 regions
            _zenodo(15050523, "01_training_dataset_tif_ROIs.zip", "1e16d440f0f94156fd5c0ea3f082bd90"),
            _zenodo(15050523, "01_training_dataset_geojson_nuclei.zip", "1f695c66db9461251c581e850f73c044"),
        ),
        reader="puma",
        organ_code=r".*(primary|metastatic)",
        organs={"primary": "primary", "metastatic": "metastatic"},
        counts={"all": 206},
        drawn=(0.15, 0.2),
        note="Regions of 1024 x 1024 pixels of primary and metastatic melanoma; nuclei of ten classes. 206 regions "
        "are public (version 5 on Zenodo), the other 104 are the challenge's hidden test set. The split is ours: by "
        "region, primary and metastatic alike.",
    ),
    Dataset(
        name="BACH2018",
        modality="H&E slides",
        organ="breast",
        target=("cancer", "cancer"),
        look="Cancer, in situ or invasive, is where nuclei are crowded and glands have lost their order; fat "
        "is white, connective tissue pink. At this resolution a nucleus is a few pixels: what counts is "
        "the pattern.",
        published={"images": 30},
        mpp=1.868,
        source="https://iciar2018-challenge.grand-challenge.org",
        doi=("10.1016/j.media.2019.05.010", "10.5281/zenodo.3632035"),
        licence="CC BY-NC-ND 4.0",
        how_to_get="download part B (WSI) of the challenge's training data",
        reader="bach",
        counts={"all": 10},
        drawn=(0.2, 0.2),
        recipe={"foreground": 0.3},
        note="Ten annotated slides at 0.467 um a pixel, and 20 without annotation. Cancer is in situ and "
        "invasive together. Tiles are taken from tissue at a quarter of the resolution (our choice), and "
        "split by slide.",
    ),
    Dataset(
        name="InHouse",
        title="In-house WSIs",
        modality="H&E slides",
        organ="unknown",
        look=_NUCLEI,
        mpp=0.25,
        licence="your own",
        how_to_get="any folder of slides that OpenSlide reads",
        reader="slides",
        annotated=False,
        note="The authors' own slides are not public. Here it is any folder of slides, without annotation: "
        "nothing is trained or measured, a network trained elsewhere predicts.",
    ),
    Dataset(
        name="DatasetB",
        title="Dataset B",
        modality="ultrasound",
        organ="breast",
        target=("lesion", "lesions"),
        look=_LESIONS,
        published={"images": 163, "objects": 163},
        source="https://helward.mmu.ac.uk/STAFF/M.Yap/dataset.php",
        doi=("10.1109/JBHI.2017.2731873",),
        licence="on agreement",
        how_to_get="ask its authors (Yap et al. 2018) by the form on their page",
        reader="dataset_b",
        longest=384,
        counts={"all": 163},
        drawn=(0.15, 0.2),
        recipe=_GREY | {"turns": False},
        note="One image a patient, of varied size; benign and malignant lesions. The split is ours, benign "
        "and malignant alike.",
    ),
    Dataset(
        name="BUSI",
        modality="ultrasound",
        organ="breast",
        target=("lesion", "lesions"),
        look=_LESIONS,
        published={"images": 780, "patients": 600},
        source="https://scholar.cu.edu.eg/?q=afahmy/pages/dataset",
        doi=("10.1016/j.dib.2019.104863",),
        licence="CC0 1.0",
        how_to_get="download Dataset_BUSI_with_GT from the authors' page",
        reader="dataset_b",
        longest=384,
        counts={"all": 780},
        drawn=(0.15, 0.2),
        recipe=_GREY | {"turns": False},
        note="Not in the paper: a public data set of the same task and modality as Dataset B, and never "
        "reported as it. Patients are not told, so the split is by image, and images of one patient may "
        "be in two splits.",
    ),
    Dataset(
        name="BrainTumorMRI",
        title="Brain Tumor MRI",
        modality="MRI",
        organ="brain",
        target=("tumour", "tumours"),
        look="T1-weighted slices after contrast agent: a tumour takes it up and lights, whole, as a ring or "
        "in patches, but so do vessels and membranes. Meningiomas touch the skull, pituitary tumours lie "
        "in the middle of the base.",
        published={"images": 3_064, "objects": 3_064, "patients": 233},
        source="https://figshare.com/articles/dataset/brain_tumor_dataset/1512427",
        doi=("10.6084/m9.figshare.1512427.v5",),
        licence="CC BY 4.0",
        how_to_get="csamnet download BrainTumorMRI, or the four zips and cvind.mat from figshare",
        download=(
            _figshare(3381290, "brainTumorDataPublic_1-766.zip", "74b949ad33f042e6e103523091cd1428"),
            _figshare(3381296, "brainTumorDataPublic_767-1532.zip", "7e8a875500d2c8a346f270538e29890e"),
            _figshare(3381293, "brainTumorDataPublic_1533-2298.zip", "8227bf6080cb71f15a88be8d25c79ae7"),
            _figshare(3381302, "brainTumorDataPublic_2299-3064.zip", "b378a80d6174e5317d59eb28430c6652"),
            _figshare(7005344, "cvind.mat", "5ea82eb3212c9fcb84290ccf0beb486d"),
        ),
        reader="brain_mri",
        longest=256,
        counts={"all": 3_064},
        drawn=(0.15, 0.2),
        recipe=_GREY | {"foreground": 0.3},
        note="Slices of 233 patients, 512 x 512 (some 256 x 256) and reduced to 256 here. Split by patient.",
    ),
    Dataset(
        name="LIDC-IDRI",
        modality="CT",
        organ="lung",
        target=("nodule", "nodules"),
        look="Lung is black, vessels and nodules are white. A vessel cut across looks like a nodule: the "
        "readers scrolled through the slices, the network sees only one. The four readers disagree on "
        "borders, and on whether it is one.",
        published={"patients": 1_010},
        source="https://www.cancerimagingarchive.net/collection/lidc-idri/",
        doi=("10.7937/K9/TCIA.2015.LO9QL9SX", "10.1118/1.3528204"),
        licence="CC BY 3.0",
        how_to_get="download the collection with the NBIA Data Retriever, and the XML of the readers "
        "(LIDC-XML-only.zip)",
        reader="lidc",
        forms=("crops", "slices"),
        group=r"[^_]+",  # the patient
        drawn=(0.15, 0.2),
        recipe=_GREY | {"tile": 128, "foreground": 0.5},
        note="Crops of 128 x 128 pixels in the lung window around every nodule, or whole slices. A pixel is "
        "nodule where two readers or more of the four drew it. Split by patient.",
    ),
)
DATASETS = {entry.name: entry for entry in _TABLE}


def plain_name(name: str) -> str:
    """A name without case, spaces, hyphens and underscores."""
    return re.sub(r"[\W_]", "", str(name)).lower()


def get_dataset(name: str, root: Path | str | None = None) -> Dataset:
    """The entry called `name`, whatever the case, spaces and hyphens; or a data set of one's own, prepared in `root`.

    Raises InputError for an unknown name, with the nearest one.
    """
    plain = {plain_name(known): entry for known, entry in DATASETS.items()}
    wanted = plain_name(name)
    if wanted in plain:
        return plain[wanted]
    card = Path(root or ".", str(name), "dataset.json")
    if card.is_file() and "own" in (about := read_json(card)):
        return own_dataset(str(name), **about["own"])
    near = difflib.get_close_matches(wanted, plain, n=1, cutoff=0.4)
    mend = f"did you mean {plain[near[0]].name}? " if near else ""
    mend += "For images of your own: csamnet prepare NAME --from TREE --own MODALITY"
    raise InputError(f"unknown data set {name!r}", expected=", ".join(DATASETS), mend=mend)


def own_dataset(name: str, modality: str, mpp: float | None = None) -> Dataset:
    """Enter a data set of one's own into the table; its images come as a tree {train,val,test}/{img,mask,inst}.

    Raises InputError for a modality that the table does not have, a name that is no folder's or the table's, and an
    impossible mpp.
    """
    known = {entry.modality: entry for entry in reversed(_TABLE)}
    if modality not in known:
        raise InputError(f"unknown modality {modality!r}", expected=" | ".join(known), mend="the nearest will do")
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise InputError(f"{name!r} cannot name a data set", expected="letters, digits, -, _ and . only")
    taken = {plain_name(entry.name): entry.name for entry in _TABLE}
    if clash := taken.get(plain_name(name)):
        raise InputError(f"{name!r} is {clash} of the table", mend="give your data set another name")
    if mpp is not None and not 0 < mpp < 1000:
        raise InputError("mpp cannot be used", expected="micrometres a pixel, above 0", found=mpp)
    recipe = {key: value for key, value in known[modality].recipe.items() if key != "tile"}
    entry = Dataset(name=name, modality=modality, organ="unknown", target=("object", "objects"), mpp=mpp,
                    reader="tree", recipe=recipe, licence="your own", how_to_get="your own")  # fmt: skip
    return DATASETS.setdefault(name, entry)
