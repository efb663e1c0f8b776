"""An explorer of test images, layers and thresholds, with a kernel or, from stored state, without one.

A frame is one `<img>`: a transparent PNG of a few colours, whose background is the photograph. That is sent
once, in a style sheet, so that a page with a hundred frames stays small.
"""

from __future__ import annotations

import base64
import html
import io
import zlib
from collections.abc import Sequence

import ipywidgets as w
import numpy as np
from matplotlib import colormaps
from PIL import Image
from skimage.segmentation import find_boundaries

from csamnet.metrics import confusion, from_counts
from csamnet.pages.figures import ERRORS, View, error_pixels, spread
from csamnet.pages.tables import TARGET, TITLES, show

LAYERS = {
    "errors": "Light blue: found. Dark blue: missed. Orange: falsely found.",
    "outlines": "Yellow: true outlines. Black: the network's.",
    "probability": "The network's probability, from 0 (dark blue) to 1 (yellow).",
    "photograph": "The image as the network sees it.",
}
"""The layers and what their colours mean."""
SIDE = 512  # pixels of a frame, at most
CLEAR, YELLOW, BLACK = (0, 0, 0, 0), (240, 228, 66, 255), (0, 0, 0, 255)
COLOURS = {
    "errors": [CLEAR, *ERRORS.values()],
    "outlines": [CLEAR, BLACK, YELLOW],
    "probability": colormaps["cividis"](np.linspace(0, 1, 16), bytes=True).tolist(),
    "photograph": [CLEAR],
}


class Explorer:
    """Choose an image, a layer and a threshold.

    `widget()` stores the frames of all `thresholds` (percent) of at most four images, which the browser shows
    by itself; `widget(live=True)` has all images, and asks the kernel for each frame, at any whole percent.
    `target`: what is segmented, one and many.
    """

    def __init__(self, views: Sequence[View], target: tuple[str, str] = TARGET, thresholds=range(10, 100, 10)):
        self.views, self.target, self.thresholds = list(views), target, list(thresholds)

    def widget(self, live: bool = False) -> w.VBox:
        steps = list(range(1, 100)) if live else self.thresholds
        usual = min(steps, key=lambda percent: abs(percent / 100 - self.views[0].threshold))
        ranks = spread(len(self.views), len(self.views) if live else 4)
        images = [(f"{self.views[i].organ}, {self.views[i].name}", i) for i in ranks]
        percents, wide = [(f"{percent} %", percent) for percent in steps], w.Layout(width="min(100%, 26rem)")
        image = w.Dropdown(options=images, index=0, description="image", layout=wide)
        layer = w.Dropdown(options=list(LAYERS), index=0, description="layer", layout=wide)
        threshold = w.SelectionSlider(options=percents, value=usual, description="threshold", layout=wide)
        picture = (self._live if live else self._stored)(image, layer, threshold)
        return w.VBox([image, layer, threshold, picture, w.HTML(self._photographs(ranks))])

    def _stored(self, image: w.Dropdown, layer: w.Dropdown, threshold: w.SelectionSlider) -> w.Stack:
        """All frames, in stacks by image, layer and threshold; links between models in the browser turn them."""

        def stack(control, children) -> w.Stack:
            chosen = w.Stack(children, selected_index=control.index)
            w.jslink((control, "index"), (chosen, "selected_index"))
            return chosen

        def frames(number: int, name: str) -> w.Widget:
            if name in ("photograph", "probability"):
                return w.HTML(self.frame(number, name))
            return stack(threshold, [w.HTML(self.frame(number, name, percent)) for percent in self.thresholds])

        numbers = [number for _, number in image.options]
        return stack(image, [stack(layer, [frames(number, name) for name in LAYERS]) for number in numbers])

    def _live(self, image: w.Dropdown, layer: w.Dropdown, threshold: w.SelectionSlider) -> w.HTML:
        """One picture, drawn anew by the kernel whenever a control is moved."""
        picture = w.HTML()

        def draw(_=None) -> None:
            picture.value = self.frame(image.value, layer.value, threshold.value)

        for control in (image, layer, threshold):
            control.observe(draw, "value")
        draw()
        return picture

    def frame(self, number: int, layer: str, percent: int = 50) -> str:
        """The HTML of one picture, with its text for those who do not see it."""
        view = self.views[number]._replace(threshold=percent / 100)
        kind, said = self._layer(view, layer)
        every = _every(view)
        pixels, text = kind[::every, ::every], html.escape(f"{said} {LAYERS[layer]}")
        style = f"display:block;width:{1.5 * pixels.shape[1]:.0f}px;max-width:100%"
        alt = html.escape(f"{layer} of {view.name} ({view.organ}). {said}")
        image = f'<img class="{_key(view)} {layer}" style="{style}" alt="{alt}" src="{_png(pixels, COLOURS[layer])}">'
        caption = f'<figcaption style="text-align:left;line-height:1.5">{text}</figcaption>'
        return f'<figure style="margin:0">{image}{caption}</figure>'

    def _layer(self, view: View, layer: str) -> tuple[np.ndarray, str]:
        """Colour numbers (H, W) uint8 of a layer, and what there is to say about it."""
        at = f"At {100 * view.threshold:.0f} %:"
        if layer == "errors":
            score = from_counts(**confusion(view.probability >= view.threshold, view.truth))
            words = [f"{TITLES[key]} {show(key, score[key])}" for key in ("dice", "precision", "recall")]
            return error_pixels(view), f"{at} {', '.join(words)}."
        if layer == "outlines":
            found, true = view.predicted(), view.labels
            lines = [find_boundaries(labels, mode="inner") for labels in (true, found)]
            counts = f"{found.max()} {self.target[1]} found, {len(np.unique(true[true > 0]))} true."
            return np.select(lines, [2, 1]).astype(np.uint8), f"{at} {counts}"
        shade = 15.99 * view.probability if layer == "probability" else np.zeros(view.truth.shape)
        return shade.astype(np.uint8), ""

    def _photographs(self, ranks: Sequence[int]) -> str:
        """The style sheet that puts each photograph behind its frames: in grey behind the errors."""
        rules = ["img.errors { background-color: #fff; background-blend-mode: luminosity; }"]
        for view in (self.views[rank] for rank in ranks):
            stream = io.BytesIO()
            Image.fromarray(view.image).reduce(_every(view)).save(stream, "JPEG", quality=80)
            picture = f"url(data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()})"
            rules.append(f"img.{_key(view)} {{ background-image: {picture}; background-size: 100% 100%; }}")
        return f"<style>{' '.join(rules)}</style>"


def _every(view: View) -> int:
    """Of how many pixels a frame shows one, along each side."""
    return -(-max(view.truth.shape) // SIDE)


def _key(view: View) -> str:
    """A class name that two explorers on one page share only for the same image."""
    return f"photograph-{zlib.crc32(view.image.tobytes()):08x}"


def _png(numbers: np.ndarray, colours: Sequence[tuple[int, int, int, int]]) -> str:
    """Colour numbers (H, W) uint8 as the data URI of a PNG with that palette of red, green, blue, opacity."""
    picture, stream = Image.fromarray(numbers), io.BytesIO()
    picture.putpalette(np.uint8(colours).tobytes(), "RGBA")
    picture.save(stream, "PNG", bits=4)
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"
