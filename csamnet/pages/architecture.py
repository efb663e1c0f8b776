"""The network as a drawing; channels, sizes and kernels are read from a CSAMNet, so that it cannot drift from the code.

One unit of the axes is an inch. `figures.architecture` makes the figure.
"""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import NamedTuple

import torch
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch
from torch import Tensor, nn

from csamnet.model import CSAMNet

INK, SOFT = "#222222", "#5c5c5c"
FILLS = {"plain": "#ffffff", "encoder": "#cfe6f5", "dcf": "#cdeadd", "neck": "#fbe7bd", "align": "#e6e6e6"}
FILLS |= {"csam": "#f6d3c0"}
LARGE, SMALL = 7.5, 7  # points
PANELS = {"whole": (0.1, 3.17), "dcf": (-0.02, 2.66), "csam": (0.07, 2.3)}
"""Bottom and top of the three drawings, each 5.5 wide."""
SIZE = 256  # pixels, the sides of the image that is followed


def trace(network: nn.Module, size: int = SIZE) -> dict[str, tuple[int, ...]]:
    """The shape, less the batch, that each module of a network gives for an image of `size` x `size`; "" is the whole.

    Only shapes are followed, on the meta device.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    network = copy.deepcopy(network).to("meta").eval()
    for name, module in network.named_modules():

        def note(module, given, made, name=name):
            shapes.update({name: tuple(made.shape[1:])} if isinstance(made, Tensor) else {})

        module.register_forward_hook(note)
    with torch.no_grad():
        network(torch.empty(1, 3, size, size, device="meta"))
    return shapes


def describe(network: CSAMNet) -> str:
    """The drawing in words."""
    shapes = trace(network)
    stages = ", ".join(_size(shapes[f"encoder.{i}"]) for i in range(4))
    return (
        f"An image, {_size((3, SIZE))}, passes through four encoder stages ({stages}), each followed by detail-context "
        "fusion. From the coarsest map up, which has an atrous pyramid, each map joins the next finer one; the coarse "
        f"three are warped onto the finest, {_size(shapes['csam.merge'])}. Cross-scale attention sends the fine pair "
        "through a channel branch and the coarse pair through a context branch; a head gives logits, "
        f"{_size(shapes[''])}. Below, the inside of detail-context fusion and of cross-scale attention,"
    )


class Box(NamedTuple):
    """A rectangle about `(x, y)`; its sides' middles are where wires end."""

    x: float
    y: float
    width: float
    height: float

    @property
    def left(self):
        return self.x - self.width / 2, self.y

    @property
    def right(self):
        return self.x + self.width / 2, self.y

    @property
    def top(self):
        return self.x, self.y + self.height / 2

    @property
    def bottom(self):
        return self.x, self.y - self.height / 2


class Pen:
    """Boxes, signs and wires on axes; convolutions have a colour, and widths in multiples of `unit` channels, D."""

    def __init__(self, ax: Axes, unit: int | None = None, kind: str = "dcf"):
        self.ax, self.unit, self.kind = ax, unit, kind

    def text(self, x: float, y: float, text: str, size: float = SMALL, **kwargs) -> None:
        look = {"ha": "center", "va": "center", "color": INK, "linespacing": 1.15, "zorder": 4}
        self.ax.text(x, y, text, fontsize=size, **look | kwargs)

    def box(self, x: float, y: float, text: str, kind: str = "plain", width=0.6, height=0.33, **kwargs) -> Box:
        corner, look = (x - width / 2, y - height / 2), {"facecolor": FILLS[kind], "edgecolor": INK, "linewidth": 0.7}
        shape = FancyBboxPatch(corner, width, height, "round,pad=0,rounding_size=0.04", zorder=3, **look | kwargs)
        self.ax.add_patch(shape)
        self.text(x, y, text)
        return Box(x, y, width, height)

    def conv(self, x: float, y: float, conv: nn.Conv2d, after: str = "", width: float = 0.5) -> Box:
        """A convolution: its kernel, what comes after it, its channels."""
        depth = "dw " if conv.groups > 1 else ""
        return self.box(x, y, f"{depth}{_kernel(conv)}{after}\n{_widths(conv, self.unit)}", self.kind, width)

    def sign(self, x: float, y: float, text: str) -> Box:
        """A small circle: a sum, a product."""
        self.ax.plot(x, y, "o", markersize=8, color="white", markeredgecolor=INK, markeredgewidth=0.7, zorder=3)
        self.text(x, y, text, LARGE)
        return Box(x, y, 0.12, 0.12)

    def wire(self, *points: tuple[float, float], tip: bool = True, **kwargs) -> None:
        """A line through points, with an arrow's tip at the last."""
        look = {"color": INK, "linewidth": 0.8, "solid_capstyle": "butt", "zorder": 2}
        self.ax.plot(*zip(*points, strict=True), **look | kwargs)
        if tip:
            (x, y), (a, b) = points[-1], points[-2]
            start = x + 0.05 * ((a > x) - (a < x)), y + 0.05 * ((b > y) - (b < y))
            arrow = {"arrowstyle": "-|>,head_length=0.28,head_width=0.14", "color": INK, "shrinkA": 0, "shrinkB": 0}
            self.ax.annotate("", (x, y), start, arrowprops=arrow | {"linewidth": 0.8}, zorder=2)

    def chain(self, *boxes: Box) -> None:
        """Wires from each to the next, from left to right."""
        for a, b in pairwise(boxes):
            self.wire(a.right, b.left)

    def around(self, start: tuple[float, float], y: float, end: Box) -> None:
        """A wire that leaves `start` upwards or downwards, runs along `y` and enters `end` from there."""
        self.wire(start, (start[0], y), (end.x, y), end.top if y > end.y else end.bottom)


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[0]} × {shape[1]}²"


def _kernel(conv: nn.Conv2d) -> str:
    return "{}×{}".format(*conv.kernel_size)


def _widths(conv: nn.Conv2d, unit: int | None = None) -> str:
    """`64→32`, or in multiples of `unit` channels `D→2D`."""
    ends = conv.in_channels, conv.out_channels
    if unit is None:
        return "{}→{}".format(*ends)
    return "→".join({0.5: "D/2", 1: "D"}.get(n / unit, f"{n / unit:g}D") for n in ends)


# --------------------------------------------------------------------------------------------- the whole


def draw_whole(ax: Axes, network: CSAMNet) -> None:
    """All maps of the network from the image to the logits, each with its channels and size."""
    pen, shapes = Pen(ax), trace(network)
    x, y = (0.37, 1.22, 2.07, 2.92, 3.77), (2.17, 1.57, 0.97, 0.37)  # columns; rows, the finest first
    image = pen.box(x[0], 2.77, f"image\n{_size((3, SIZE))}", width=0.7, height=0.36)
    pen.text(x[0], 3.07, "Encoder", LARGE, weight="bold")
    for place, head in zip((*x[1:], 4.52), ("DCF", "Lateral", "Top-down", "Alignment", "CSAM"), strict=True):
        pen.text(place, 2.47, head, LARGE, weight="bold")
    for line, note in enumerate(_notes(network)):
        pen.text(0.9, 3.07 - 0.135 * line, note, color=SOFT, ha="left")
    columns = [
        ("encoder", [(f"stage {i + 1}", f"encoder.{i}") for i in range(4)]),
        ("dcf", [("DC, Fusion", f"dcf.{i}") for i in range(4)]),
        ("neck", [("drop, CBR", f"neck.lateral.{i}") for i in range(4)]),
        ("neck", [*((f"cat, CBR: f{'₁₂₃'[i]}", f"neck.merge.{i}") for i in range(3)), ("ASPP: f₄", "neck.aspp")]),
        ("align", [None, *(("CBR, warp", f"neck.align.{i}") for i in range(3))]),
    ]
    rows: list[list[Box]] = [[], [], [], []]
    for place, (kind, boxes) in zip(x, columns, strict=True):
        for level, row, box in zip(y, rows, boxes, strict=True):
            row += [pen.box(place, level, f"{box[0]}\n{_size(shapes[box[1]])}", kind, 0.7, 0.36)] if box else []
    pen.wire(image.bottom, rows[0][0].top)
    for row in rows:
        pen.chain(*row)
    for fine, coarse in pairwise(rows):
        pen.wire(fine[0].bottom, coarse[0].top)
        pen.wire(coarse[3].top, fine[3].bottom)
        pen.text(x[3] + 0.05, (coarse[3].y + fine[3].y) / 2, "×2, CBR", ha="left", color=SOFT)
        low = fine[4].bottom if len(fine) > 4 else (x[4], y[0])
        pen.wire(low, coarse[4].top, linestyle=(0, (2, 1)))
    _draw_end(pen, shapes, [row[-1] for row in rows])


def _notes(network: CSAMNet) -> tuple[str, ...]:
    dilations = ", ".join(str(branch[0].dilation[0]) for branch in network.neck.aspp.branches[1:])
    return (
        "c × n²: map of c channels, n × n pixels; ×2: bilinear upsampling",
        "CBR: 3×3 convolution, batch norm, ReLU; drop: DropBlock, in training",
        f"ASPP: 1×1, 3×3 with dilations of {dilations}, and the map's mean",
        "warp: f₁ (dashed) and the coarse map, by two flows, blended by a gate",
    )


def _draw_end(pen: Pen, shapes: dict, maps: list[Box]) -> None:
    """CSAM on the four maps, the head and the logits."""
    merge = pen.box(5.17, 1.27, f"cat, 1×1\n{_size(shapes['csam.merge'])}", "csam", 0.64, 0.36)
    for text, pair in (("channel\nbranch", maps[:2]), ("context\nbranch", maps[2:])):
        middle = sum(box.y for box in pair) / 2
        branch = pen.box(4.52, middle, text, "csam", 0.48, 0.96)
        for box in pair:
            pen.wire(box.right, (4.28, box.y))
        pen.wire(branch.right, (4.805, middle), (4.805, merge.y), merge.left)
    head = pen.box(5.17, 2.17, f"head\n{_size(shapes['head'])}", "plain", 0.64, 0.36)
    logits = pen.box(5.17, 2.77, f"logits\n{_size(shapes[''])}", "plain", 0.64, 0.36)
    pen.wire(merge.top, head.bottom)
    pen.wire(head.top, logits.bottom)
    pen.text(5.22, 2.47, "×2", ha="left", color=SOFT)


# --------------------------------------------------------------------------------------------- inside


def draw_dcf(ax: Axes, network: CSAMNet) -> None:
    """The inside of detail-context fusion, for a map of D channels: DC above, Fusion below."""
    block = network.dcf[0]
    _draw_dc(Pen(ax, block.dc.project.out_channels), block.dc, 1.9)
    _draw_fusion(Pen(ax, block.dc.project.out_channels), block.fusion, 0.42)


def _draw_dc(pen: Pen, dc: nn.Module, y: float) -> None:
    """Detail runs above the middle line `y`, context below; a residual wire above all."""
    high, pooled, low = y + 0.4, y - 0.45, y - 0.85
    pen.text(0.32, y + 0.55, "DC", LARGE, weight="bold", ha="left")
    start, norm = Box(0.06, y, 0.16, 0), pen.box(0.52, y, "L2\nnorm", width=0.4)
    expand = pen.conv(1.1, y, dc.expand)
    detail = [pen.conv(2.1, high, dc.detail_in[0], width=0.62), pen.conv(2.92, high, dc.detail_in[1], ", GELU", 0.68)]
    detail += [pen.conv(3.7, high, dc.detail_out)]
    pool, depth = (
        pen.box(2.1, pooled, "max-pool\nto an eighth", "dcf", 0.74),
        pen.conv(2.92, pooled, dc.pooled, " · W₂", 0.68),
    )
    variance = pen.box(2.1, low, "variance\nof all · W₁", "dcf", 0.74)
    total, modulate = pen.sign(3.42, y - 0.65, "+"), pen.conv(3.9, y - 0.65, dc.modulate, ", GELU", 0.64)
    product, both, end = (pen.sign(x, y, sign) for x, sign in ((4.42, "×"), (4.66, "+"), (5.36, "+")))
    project = pen.conv(5.0, y, dc.project, width=0.44)
    pen.text(0.06, y, "x", LARGE)
    pen.chain(start, norm, expand)
    pen.chain(*detail)
    pen.chain(pool, depth)
    pen.chain(total, modulate)
    pen.chain(product, both, project, end)
    pen.wire(expand.right, (1.5, y), (1.5, high), detail[0].left)
    pen.wire((1.5, y), product.left)
    pen.wire((1.62, y), (1.62, pooled), pool.left)
    pen.wire((1.62, pooled), (1.62, low), variance.left)
    pen.wire(depth.right, (total.x, pooled), total.top)
    pen.wire(variance.right, (total.x, low), total.bottom)
    pen.wire(modulate.right, (product.x, modulate.y), product.bottom)
    pen.wire(detail[-1].right, (both.x, high), both.top)
    pen.around((0.22, y), y + 0.72, end)
    for x, place, text in ((1.43, y + 0.2, "Y"), (1.55, y - 0.22, "X"), (4.14, y - 0.22, "nearest")):
        pen.text(x, place, text, color=SOFT)


def _draw_fusion(pen: Pen, fusion: nn.Module, y: float) -> None:
    share = 100 * fusion.quarter / fusion.widen.out_channels
    pen.text(0.32, y + 0.32, "Fusion", LARGE, weight="bold", ha="left")
    start, norm = Box(0.06, y, 0.16, 0), pen.box(0.52, y, "L2\nnorm", width=0.4)
    widen, spatial = (
        pen.conv(1.2, y, fusion.widen, ", GELU", 0.68),
        pen.conv(2.92, y + 0.2, fusion.spatial, ", GELU", 0.68),
    )
    cat, narrow, end = (
        pen.box(3.9, y, "cat", width=0.34, height=0.2),
        pen.conv(4.6, y, fusion.narrow),
        pen.sign(5.36, y, "+"),
    )
    pen.text(0.06, y, "x", LARGE)
    pen.chain(start, norm, widen)
    pen.chain(cat, narrow, end)
    pen.wire(widen.right, (1.75, y), (1.75, y + 0.2), spatial.left)
    pen.wire((1.75, y), (1.75, y - 0.2), (cat.x, y - 0.2), cat.bottom)
    pen.wire(spatial.right, (cat.x, y + 0.2), cat.top)
    pen.text(2.16, y + 0.28, f"{share:g} % of 2D", color=SOFT)
    pen.text(2.16, y - 0.12, f"{100 - share:g} %", color=SOFT)
    pen.around((0.22, y), y - 0.34, end)


def draw_csam(ax: Axes, network: CSAMNet) -> None:
    """The inside of cross-scale attention modulation: the channel branch above, the context branch below."""
    csam = network.csam
    pen = Pen(ax, kind="csam")
    channel = _draw_channel(pen, csam.reduce_local, csam.channel, 1.78)
    context = _draw_context(pen, csam.reduce_global, csam.context, 0.62)
    x, y = 5.2, 1.2
    merge = pen.box(x, y, f"cat, {_kernel(csam.merge[0])},\nBN, ReLU\n{_widths(csam.merge[0])}", "csam", 0.54, 0.46)
    pen.wire(channel, (x, channel[1]), merge.top)
    pen.wire(context, (x, context[1]), merge.bottom)


def _draw_channel(pen: Pen, reduce: nn.Conv2d, branch: nn.Module, y: float) -> tuple[float, float]:
    pen.text(0.02, y + 0.42, "Channel branch", LARGE, weight="bold", ha="left")
    start, first = Box(0.19, y, 0.38, 0), pen.conv(0.75, y, reduce, width=0.46)
    pen.text(0.19, y, "cat\nf₁, f₂", LARGE)
    pen.box(2.32, y, "", width=1.72, height=0.64, facecolor="none", linestyle="--", edgecolor=SOFT)
    point = pen.box(1.84, y, f"{_kernel(branch.conv1[0])}, BN,\nReLU", "csam", 0.52)
    depth = pen.box(2.58, y, f"dw {_kernel(branch.conv2[0])},\nBN, ReLU", "csam", 0.58)
    plus = pen.sign(3.04, y, "+")
    gate = pen.box(3.62, y, f"{_kernel(branch.conv7[0])},\nReLU, σ", "csam", 0.5)
    product, total = pen.sign(4.14, y, "×"), pen.sign(4.42, y, "+")
    pen.text(2.32, y + 0.42, "three times, the third with SiLU", color=SOFT)
    pen.chain(start, first, point, depth, plus, gate, product, total)
    pen.around((2.2, y), y - 0.25, plus)
    pen.around((1.2, y), y - 0.43, product)
    pen.wire((product.x, y - 0.43), (total.x, y - 0.43), total.bottom)
    pen.text(1.12, y - 0.3, "z", color=SOFT)
    return total.right


def _draw_context(pen: Pen, reduce: nn.Conv2d, branch: nn.Module, y: float) -> tuple[float, float]:
    pen.text(0.02, y + 0.45, "Context branch", LARGE, weight="bold", ha="left")
    start, first = Box(0.19, y, 0.38, 0), pen.conv(0.75, y, reduce, width=0.46)
    pen.text(0.19, y, "cat\nf₃, f₄", LARGE)
    mix = pen.box(1.25, y, "P,\nGELU", "csam", 0.38)
    narrow = f"{branch.squeeze.in_channels}→{branch.squeeze.out_channels}→{branch.excite.out_channels}"
    gate = pen.box(1.98, y + 0.42, f"avg, max:\n{narrow}, σ", "csam", 0.72)
    weigh, local = pen.sign(2.5, y, "×"), pen.box(2.84, y, f"dw\n{_kernel(branch.local)}", "csam", 0.34)
    total = pen.sign(4.16, y, "+")
    pen.chain(start, first, mix, weigh, local)
    pen.wire(local.right, (3.1, y), tip=False)
    pen.wire((1.53, y), (1.53, gate.y), gate.left)
    pen.wire(gate.right, (weigh.x, gate.y), weigh.top)
    lanes = [y + 0.39, y + 0.13, y - 0.13, y - 0.36]
    for lane, strip in zip(lanes, branch.strips, strict=False):
        box = pen.box(3.56, lane, ", ".join(map(_kernel, strip)), "csam", 0.7, 0.2)
        pen.wire((3.1, lane), box.left)
        pen.wire(box.right, (4.0, lane), tip=False)
    pen.wire((3.1, lanes[-1]), (4.0, lanes[-1]), tip=False)
    for x in (3.1, 4.0):
        pen.wire((x, lanes[0]), (x, lanes[-1]), tip=False)
    again, product, last = (
        pen.box(4.43, y, "P", "csam", 0.2, 0.24),
        pen.sign(4.68, y, "×"),
        pen.box(4.95, y, "P", "csam", 0.2, 0.24),
    )
    pen.wire((4.0, y), total.left)
    pen.chain(total, again, product, last)
    pen.around((2.6, y), y - 0.5, product)
    pen.text(1.3, y - 0.38, f"P: {_kernel(branch.mix)}, {_widths(branch.mix)}, one for all three", color=SOFT)
    return last.right
