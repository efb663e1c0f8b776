"""The command `csamnet slide`; `cli` registers it."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

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
Tta = Annotated[bool, typer.Option("--tta", help="Mean of 8 flips and turns (with --normalise: 4 of each stain).")]
Normalise = Annotated[float | None, typer.Option(help="Share of the way to the training images' stain, 0 to 1.")]
Devices = Annotated[int, typer.Option(help="Processes, each on a device of its own, that share the slides.", min=1)]
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
    tta: Tta = False,
    normalise: Normalise = None,
    device: Device = "auto",
    devices: Devices = 1,
):
    """Segment whole slides: probability, mask, nuclei, burden (the share of tissue that is mask), summary.

    A stopped slide goes on where it was. A plain image that does not say its resolution is taken in its own pixels,
    unless --mpp says it.
    """
    from csamnet.inference import load
    from csamnet.wsi.slide_jobs import run_slides, share_slides, write_overview
    from csamnet.wsi.slide_run import Options

    options = Options(mpp, at, _region(region), whole, batch, workers, threshold, tta, normalise)
    with bar("Slides" if devices > 1 else "Tiles") as tick:
        if devices > 1:
            hooks = {"on_row": _tell, "on_slide": tick}
            rows = share_slides(weights, slides, out, options, device=device, devices=devices, **hooks)
        else:
            rows = run_slides(load(weights, device), slides, out, options, on_row=_tell, on_tile=tick)
    write_overview(out)
    if any(row["status"] == "broken" for row in rows):
        raise typer.Exit(2)


def _tell(row: dict) -> None:
    if row["status"] == "broken":
        complain(row["error"])
    else:
        console.print(f"{row['folder']}: {row['status']}{_counts(row)}", soft_wrap=True)


def progress(out: Annotated[Path, typer.Argument(help="Folder that csamnet slide writes to, maybe still.")]):
    """How far the slides of a folder are, and what was found in those that are done; writes it to slides.csv too."""
    from csamnet.wsi.slide_jobs import overview, write_overview

    columns = {"done": ".0%", "seconds": ",.0f", "tissue_mm2": ".3g", "nuclei": ",.0f", "nuclei_per_mm2": ",.0f"}
    table = Table("slide", "status", *columns)
    for row in overview(out).to_dict("records"):
        values = [(row.get(key, float("nan")), form) for key, form in columns.items()]
        table.add_row(row["folder"], row["status"], *["" if v != v else f"{v:{form}}" for v, form in values])
    console.print(table)
    with suppress(OSError):  # of another user
        write_overview(out)


def _counts(row: dict) -> str:
    if row.get("squares") == 0:
        return "; hardly any tissue was found: --whole takes all for it"
    if "nuclei" not in row:
        return ""
    area = f", {row['tissue_mm2']:.3g} mm2 of tissue" if row["tissue_mm2"] == row["tissue_mm2"] else ""
    return f"; {row['nuclei']:,} nuclei{area}" if row["nuclei"] else f"; no nuclei{area}: is the resolution right?"


def _region(text: str | None) -> tuple[int, int, int, int] | None:
    if text is None:
        return None
    try:
        x, y, width, height = map(int, text.split(","))
    except ValueError:
        raise InputError("a region cannot be read", expected="--region x,y,w,h", found=text) from None
    return x, y, width, height
