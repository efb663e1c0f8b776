"""Every path of the project, absolute, in one place."""

from __future__ import annotations

import os
from pathlib import Path

_checkout = Path(__file__).resolve().parents[1]

ROOT = Path(os.environ.get("CSAMNET_HOME") or (_checkout if (_checkout / "_toc.yml").exists() else Path.cwd()))
"""The checkout, `$CSAMNET_HOME`, or where the package is installed alone, the current folder."""

DATA = ROOT / "data"
SAMPLES = DATA / "samples"  # look-alike releases
DOWNLOADS = DATA / "downloads"  # releases as their hosts serve them
PREPARED = DATA / "prepared"  # canonical trees
SAMPLE_TREES = PREPARED / "samples"  # those of look-alikes
WEIGHTS = next((folder for folder in (ROOT / "weights", Path(__file__).parent / "_weights") if folder.is_dir()), ROOT)
RESULTS = ROOT / "results"  # run folders
EXECUTED = ROOT / "book" / "executed"  # notebooks as run
PUBLISHED = ROOT / "book" / "published"  # the paper's numbers
FIGURES = ROOT / "book" / "_generated" / "figures"  # those of the comparison, drawn from results
