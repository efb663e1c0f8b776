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

from csamnet.figures import ERRORS, View, error_pixels, spread
from csamnet.metrics import confusion, from_counts
from csamnet.tables import TITLES, show

LAYERS = ("errors", "outlines", "probability", "photograph")
CLEAR, YELLOW, BLACK = (0, 0, 0, 0), (240, 228, 66, 255), (0, 0, 0, 255)
COLOURS = {
    "photograph": [CLEAR],
    "outlines": [CLEAR, BLACK, YELLOW],
    "errors": [CLEAR, *((*rgb, alpha) for rgb, alpha in zip(ERRORS.values(), (130, 230, 230), strict=True))],
    "probability": [tuple(colour) for colour in colormaps["cividis"](np.linspace(0, 1, 16), bytes=True).tolist()],
}
LEGENDS = {
    "photograph": "The image as the network sees it.",
    "outlines": "Yellow: true outlines. Black: the network's.",
    "errors": "Light blue: nucleus, found. Dark blue: nucleus, missed. Orange: called nucleus, is none.",
    "probability": "The network's probability of nucleus, from 0 (dark blue) to 1 (yellow).",
}


class Explorer:
    """Choose an image, a layer and a threshold.

    `widget()` stores the frames of all `thresholds` (percent) of at most four images, which the browser shows
    by itself; `widget(live=True)` has all images, and asks the kernel for each frame, at any whole percent.
    Frames have up to `side` pixels a side.
    """

    def __init__(self, views: Sequence[View], thresholds: Sequence[int] = range(10, 100, 10), side: int = 512):
        self.views, self.thresholds, self.side = list(views), list(thresholds), side

    def widget(self, live: bool = False) -> w.VBox:
        steps = list(range(1, 100)) if live else self.thresholds
        first = min(steps, key=lambda percent: abs(percent / 100 - self.views[0].threshold))
        ranks = spread(len(self.views), len(self.views) if live else 4)
        options = [(f"{self.views[i].organ}, {self.views[i].name}", i) for i in ranks]
        percents, wide = [f"{percent} %" for percent in steps], {"layout": w.Layout(width="min(100%, 26rem)")}
        image = w.Dropdown(options=options, index=0, description="image", **wide)
        layer = w.Dropdown(options=LAYERS, index=0, description="layer", **wide)
        index = steps.index(first)
        threshold = w.SelectionSlider(options=percents, index=index, description="threshold", **wide)
        picture = (self._live if live else self._stored)(image, layer, threshold, steps)
        return w.VBox([image, layer, threshold, picture, w.HTML(self._photographs(ranks))])

    def _stored(self, image, layer, threshold, steps: list[int]) -> w.Stack:
        """Stacks in stacks, one for each choice; links between models in the browser turn them."""

        def stack(control, children) -> w.Stack:
            chosen = w.Stack(children, selected_index=control.index)
            w.jslink((control, "index"), (chosen, "selected_index"))
            return chosen

        def frames(number: int, name: str) -> w.Widget:
            if name in ("photograph", "probability"):
                return w.HTML(self.frame(number, name))
            return stack(threshold, [w.HTML(self.frame(number, name, percent)) for percent in steps])

        numbers = [number for _, number in image.options]
        return stack(image, [stack(layer, [frames(number, name) for name in LAYERS]) for number in numbers])

    def _live(self, image, layer, threshold, steps: list[int]) -> w.HTML:
        picture = w.HTML()

        def draw(_=None) -> None:
            picture.value = self.frame(image.value, layer.value, steps[threshold.index])

        for control in (image, layer, threshold):
            control.observe(draw, "index")
        draw()
        return picture

    def frame(self, number: int, layer: str, percent: int = 50) -> str:
        """The HTML of one picture, with its text for those who do not see it."""
        view = self.views[number]._replace(threshold=percent / 100)
        kind, text = self._layer(view, layer)
        every = self._every(view)
        pixels = kind[::every, ::every]
        source = _png(pixels, COLOURS[layer])
        alt = html.escape(f"{layer} of {view.name} ({view.organ}). {text}")
        style = f"display:block;width:{pixels.shape[1] * 1.5:.0f}px;max-width:100%"
        image = f'<img class="{_key(view)} {layer}" style="{style}" alt="{alt}" src="{source}">'
        style = "text-align:left;line-height:1.5"
        caption = f'<figcaption style="{style}">{html.escape(text)} {LEGENDS[layer]}</figcaption>'
        return f'<figure style="margin:0">{image}{caption}</figure>'

    @staticmethod
    def _layer(view: View, layer: str) -> tuple[np.ndarray, str]:
        """Colour numbers (H, W) uint8 of a layer, and what there is to say about it."""
        if layer == "photograph":
            return np.zeros(view.truth.shape, np.uint8), ""
        if layer == "probability":
            return (view.probability * 15.99).astype(np.uint8), ""
        at = f"At {100 * view.threshold:.0f} %:"
        if layer == "errors":
            score = from_counts(**confusion(view.probability >= view.threshold, view.truth))
            words = [f"{TITLES[key]} {show(key, score[key])}" for key in ("dice", "precision", "recall")]
            return error_pixels(view), f"{at} {', '.join(words)}."
        found = view.predicted()
        lines = (find_boundaries(labels, mode="inner") for labels in (found, view.labels))
        both = np.select([*lines][::-1], [2, 1], 0).astype(np.uint8)
        return both, f"{at} {found.max()} nuclei found, {len(np.unique(view.labels)) - 1} true."

    def _every(self, view: View) -> int:
        return -(-max(view.truth.shape) // self.side)

    def _photographs(self, ranks: Sequence[int]) -> str:
        """The style sheet that puts each photograph behind its frames: in grey behind the errors."""
        rules = ["img.errors { background-color: #fff; background-blend-mode: luminosity; }"]
        for view in (self.views[rank] for rank in ranks):
            stream = io.BytesIO()
            Image.fromarray(view.image).reduce(self._every(view)).save(stream, "JPEG", quality=80)
            picture = f"url(data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()})"
            rules.append(f"img.{_key(view)} {{ background-image: {picture}; background-size: 100% 100%; }}")
        return f"<style>{' '.join(rules)}</style>"


def _key(view: View) -> str:
    """A class name that two explorers on one page share only for the same image."""
    return f"photograph-{zlib.crc32(view.image.tobytes()):08x}"


def _png(numbers: np.ndarray, colours: Sequence[tuple[int, int, int, int]]) -> str:
    """Colour numbers (H, W) uint8 as the data URI of a PNG with that palette of red, green, blue, opacity."""
    picture, stream = Image.fromarray(numbers), io.BytesIO()
    picture.putpalette([value for colour in colours for value in colour[:3]])
    picture.save(stream, "PNG", transparency=bytes(colour[3] for colour in colours), bits=4)
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"
