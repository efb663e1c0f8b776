"""The table of data sets: what it takes from where, and what it refuses."""

from __future__ import annotations

import pytest

from csamnet.datasets import DATASETS, File, read_table
from csamnet.files import InputError

WHOLE = '[A]\nmodality = "MRI"\norgan = "brain"\nreader = "tree"\n'


def test_an_entry_takes_from_what_it_is_like_and_says_the_rest():
    shared = '[like.one]\nlook = "bright"\nmpp = 0.5\n[like.two]\nmpp = 0.25\n[like.two.organs]\nlung = ["a", "b"]\n'
    (entry,) = read_table(shared + WHOLE + 'like = ["one", "two"]\nlook = "dark"\n').values()
    assert (entry.name, entry.look, entry.mpp) == ("A", "dark", 0.25), "its own before the last before the first"
    assert entry.organs == {"a": "lung", "b": "lung"}
    assert entry.target == ("nucleus", "nuclei")


def test_lists_cannot_be_changed_and_files_are_files():
    text = WHOLE + 'doi = ["x"]\n[A.release]\ntest = ["p"]\n[[A.download]]\nname = "n"\nurl = "u"\nchecksum = "md5:c"\n'
    entry = read_table(text)["A"]
    assert entry.doi == ("x",)
    assert entry.splits == {"p": "test"}
    assert entry.download == (File("n", "u", "md5:c"),)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("x = [", "Invalid value"),
        ("[A]\nmodality = 'MRI'", "missing 2 required"),
        (WHOLE + "recipes = {}", "unexpected keyword argument 'recipes'"),
        (WHOLE + "like = ['none']", "'none'"),
        (WHOLE + "counts = 'many'", "counts = 'many'"),
        (WHOLE + "mpp = 'small'", "mpp = 'small'"),
        (WHOLE + "doi = 'x'", "doi = 'x'"),
        (WHOLE + "organs = 3", "'int' object"),
        (WHOLE + "[[A.download]]\nname = 'n'", "missing 2 required"),
    ],
)
def test_an_entry_that_cannot_be_used_is_named(text, found):
    with pytest.raises(InputError, match="table of data sets" if text[0] == "x" else "the entry A") as error:
        read_table(text)
    assert found in str(error.value)


def test_monuseg_is_as_released():
    """Counted in the release: 30 and 14 patients, six of the 30 for validation, nine organs."""
    entry = DATASETS["MoNuSeg"]
    assert [len(entry.release[split]) for split in ("train", "test")] == [30, 14]
    assert set(entry.validation) < set(entry.release["train"])
    assert len(set(entry.organs.values())) == 9
    assert entry.organ_of("TCGA-AR-A1AS-01Z-00-DX1") == "breast"
