"""The page that the figures are drawn on: addressed in inches, rows of pictures in aligned columns."""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

DPI = 200
GAP, HEAD, MARGIN = 0.05, 0.2, 0.06  # inches: between cells, above them for their heads, right of them
GREEN, RED, GREY = "#1a7f37", "#c62828", "#6e7781"
STYLE: Any = {"font.family": "STIXGeneral", "mathtext.fontset": "stix", "font.size": 9}


@dataclass(frozen=True)
class Strip:
    """One row of the figure: a label, and per column an image (None: nothing to show), a frame colour and a caption."""

    label: str
    images: list[NDArray[np.uint8] | None]
    colors: list[str | None]
    captions: list[str]


def plain_strip(label: str, images: Sequence[NDArray[np.uint8] | None]) -> Strip:
    """One row of images without frames and captions."""
    return Strip(label, list(images), [None] * len(images), [""] * len(images))


class Page:
    """A white figure addressed in inches from its top left corner."""

    def __init__(self, width: float, height: float) -> None:
        self.width, self.height = width, height
        self.figure = Figure(figsize=(width, height))

    def axes(self, x: float, y: float, w: float, h: float) -> Axes:
        """Empty axes of w x h inches."""
        place = (x / self.width, 1 - (y + h) / self.height, w / self.width, h / self.height)
        axes = self.figure.add_axes(place)
        axes.set_xticks([])
        axes.set_yticks([])
        return axes

    def image(self, x: float, y: float, side: float, image: NDArray[np.uint8], color: str | None) -> Axes:
        """A square image with a thin grey frame, or a thick coloured one."""
        axes = self.axes(x, y, side, side)
        axes.imshow(image, interpolation="bicubic", aspect="auto")
        for spine in axes.spines.values():
            spine.set_color(color or "#d0d7de")
            spine.set_linewidth(1.6 if color else 0.5)
        return axes

    def text(self, x: float, y: float, text: str, **style: Any) -> float:
        """Text with its top left corner at (x, y); returns the y below it."""
        size = float(style.get("size", 9))
        self.figure.text(
            x / self.width, 1 - y / self.height, text, va="top", ha="left", linespacing=1.25, **{**style, "size": size}
        )
        return y + (text.count("\n") + 1) * size * 1.3 / 72 + 0.03

    def rule(self, y: float) -> None:
        """A thin line across the page."""
        ends = [0.1 / self.width, 1 - MARGIN / self.width]
        self.figure.add_artist(Line2D(ends, [1 - y / self.height] * 2, color="#d0d7de", linewidth=0.8))

    def block(self, left: float, top: float, side: float, heads: list[str], strips: list[Strip]) -> None:
        """A row per strip, a column per head, cells of this side; the first cell's corner is HEAD below `top`."""
        pitch = side + GAP
        for column, head in enumerate(heads):
            x = left + column * pitch + side / 2
            y = 1 - (top + HEAD - 0.05) / self.height
            self.figure.text(x / self.width, y, head, va="bottom", ha="center", size=8)
        for label, first, count in runs([strip.label for strip in strips]):
            y = top + HEAD + first * pitch + (count * pitch - GAP) / 2
            x = left - 0.08
            self.figure.text(x / self.width, 1 - y / self.height, label, va="center", ha="right", rotation=90, size=9)
        for row, strip in enumerate(strips):
            y = top + HEAD + row * pitch
            for column, image in enumerate(strip.images):
                self.cell(left + column * pitch, y, side, image, strip.colors[column], strip.captions[column])

    def cell(
        self, x: float, y: float, side: float, image: NDArray[np.uint8] | None, color: str | None, caption: str
    ) -> None:
        """One image; faded under a caption that says why it was rejected; a dash where there is none."""
        if image is None:
            axes = self.axes(x, y, side, side)
            axes.text(0.5, 0.5, "\N{EN DASH}", ha="center", va="center", color=GREY, transform=axes.transAxes)
            for spine in axes.spines.values():
                spine.set_color("#eaeef2")
                spine.set_linewidth(0.5)
            return
        if caption:
            image = np.round(255 - (255 - image.astype(float)) * 0.45).astype(np.uint8)
        axes = self.image(x, y, side, image, color)
        if caption:
            said = caption.replace(" and ", "\nand ")
            box = {"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 1.0}
            style: Any = {"size": 8, "color": RED, "linespacing": 1.05, "bbox": box}
            axes.text(0.5, 0.06, said, ha="center", va="bottom", transform=axes.transAxes, **style)


def runs(labels: list[str]) -> list[tuple[str, int, int]]:
    """Consecutive equal labels as (label, first position, count)."""
    found: list[tuple[str, int, int]] = []
    for i, label in enumerate(labels):
        if found and found[-1][0] == label:
            found[-1] = (label, found[-1][1], found[-1][2] + 1)
        else:
            found.append((label, i, 1))
    return found


def png(draw: Callable[[], Figure]) -> bytes:
    """A figure as a PNG; equal figures give equal bytes."""
    # A private rc context: matplotlib's state is global, and whatever ran before must not show in the bytes.
    with matplotlib.rc_context(STYLE):
        buffer = io.BytesIO()
        draw().savefig(buffer, format="png", dpi=DPI, facecolor="white", metadata={"Software": None})
    return buffer.getvalue()
