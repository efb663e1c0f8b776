"""The command `csamnet slide`; `cli` registers it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from csamnet.files import InputError
from csamnet.terminal import bar, complain, console

Slides = Annotated[list[Path], typer.Argument(help="Whole slides in any format that OpenSlide reads, or plain images.")]
Out = Annotated[Path, typer.Option(help="Folder of the results: one folder a slide.")]
Weights = Annotated[str, typer.Option(help="Run folder, .safetensors file, or name in weights/.")]
Mpp = Annotated[float | None, typer.Option(help="Micrometres a pixel of slides that do not say it.")]
At = Annotated[float | None, typer.Option(help="Micrometres a pixel to work at; else as the weights have learned.")]
Region = Annotated[str | None, typer.Option(help="x,y,w,h in pixels of level 0, from the scanned area's corner.")]
Whole = Annotated[bool, typer.Option("--whole", help="Glass too: for images in which no tissue is found.")]
Batch = Annotated[int | None, typer.Option(help="Tiles at once; else as the device's memory allows.", min=1)]
Workers = Annotated[int, typer.Option(help="Processes that look for nuclei.", min=1)]
Threshold = Annotated[float | None, typer.Option(help="Probability from which a pixel is foreground.")]
Device = Annotated[str, typer.Option(help="auto | cpu | cuda")]


def slide(
    slides: Slides,
    out: Out,
    weights: Weights = "MoNuSeg",
    mpp: Mpp = None,
    at: At = None,
    region: Region = None,
    whole: Whole = False,
    threshold: Threshold = None,
    batch: Batch = None,
    workers: Workers = 1,
    device: Device = "auto",
):
    """Segment whole slides: probability, mask, nuclei, tumour burden, summary. A stopped slide goes on where it was.

    A plain image that does not say its resolution is taken in its own pixels, unless --mpp says it.
    """
    from csamnet.inference import load
    from csamnet.stream import Options, run_slides

    box = _region(region)
    options = Options(mpp=mpp, at=at, region=box, whole=whole, batch=batch, workers=workers, threshold=threshold)
    with bar("Tiles") as tick:
        rows = run_slides(load(weights, device), slides, out, options, on_tile=tick)
    for row in rows:
        if row["status"] == "broken":
            complain(row["error"])
        else:
            console.print(f"{row['folder']}: {row['status']}{_counts(row)}", soft_wrap=True)
    if any(row["status"] == "broken" for row in rows):
        raise typer.Exit(2)


def _counts(row: dict) -> str:
    return f"; {row['nuclei']:,} nuclei, {row['tissue_mm2']:.3g} mm2 of tissue" if "nuclei" in row else ""


def _region(text: str | None) -> tuple[int, int, int, int] | None:
    if text is None:
        return None
    try:
        x, y, width, height = map(int, text.split(","))
    except ValueError:
        raise InputError("a region cannot be read", expected="--region x,y,w,h", found=text) from None
    return x, y, width, height
