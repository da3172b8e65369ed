"""The demo's picture: the input, frames of the packed run, and new seeds rendered from the float16 copy."""

import textwrap
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from cad.artifacts import write_atomic
from cad.demo.files import COLUMNS, TRUTH, Demo
from cad.evaluate.controls import SOLID
from cad.report.canvas import GAP, GREY, HEAD, MARGIN, Page, plain_strip, png
from cad.report.overview import BLOCK_GAP, BOTTOM, CELL, LABEL, LEFT, TOP, degrees


def draw_demo(demo: Demo, fresh: dict[int, NDArray[np.uint8]], shape: NDArray[np.uint8], out: Path) -> None:
    """Draw one packed run into a PNG file.

    fresh: new seed -> its views; shape: the first one's depth, shaded; each uint8 [COLUMNS, H, W, 3].
    """
    write_atomic(out, png(lambda: compose(demo, fresh, shape)))


def compose(demo: Demo, fresh: dict[int, NDArray[np.uint8]], shape: NDArray[np.uint8]) -> Figure:
    """Lay out the packed frames above and the new seeds below, an azimuth per column."""
    heads = [f"{degrees(azimuth)}°" for azimuth in demo.azimuth]
    branch, pitch = demo.rows[0][0], CELL + GAP
    packed = [plain_strip(f"seed {seed}", list(demo.row(name, seed))) for name, seed in demo.rows if name == branch]
    if (TRUTH, 0) in demo.rows:
        packed.append(plain_strip("truth", list(demo.row(TRUTH, 0))))
    new = [plain_strip(f"seed {seed}", list(views)) for seed, views in fresh.items()]
    new.append(plain_strip("depth", list(shape)))
    lower = TOP + HEAD + len(packed) * pitch + BLOCK_GAP
    page = Page(LEFT + LABEL + COLUMNS * pitch + MARGIN, lower + HEAD + len(new) * pitch + BOTTOM)
    page.block(LEFT + LABEL, TOP, CELL, heads, packed)
    page.rule(lower - BLOCK_GAP / 2 - 0.02)
    page.block(LEFT + LABEL, lower, CELL, heads, new)

    side = LEFT - 0.34
    page.image(0.1, TOP + HEAD, side, demo.reference.image, None)
    y = page.text(0.1, TOP + HEAD + side + 0.08, "Input", weight="bold", size=10)
    y = page.text(0.1, y, textwrap.fill(f"“{demo.reference.prompt}”", 24), style="italic")
    said = f"The packed run: frames of\nits {branch.upper()} branch, from the\nfull-precision weights.\n"
    said += f"Columns: azimuth; polar\nangle {np.degrees(demo.polar):.0f}°."
    if (TRUTH, 0) in demo.rows:
        said += "\nLast row: the true object,\nof which the method saw\nthe input view only."
    page.text(0.1, y + 0.12, said, color=GREY, size=8)
    y = page.text(0.1, lower + HEAD, "New seeds", weight="bold", size=10)
    said = "Latents beyond the scored\nones, rendered now from\nthe float16 copy of the\n"
    said += f"same weights; {branch.upper()} branch.\n"
    said += f"Every seed from {min(fresh)} to {max(fresh)},\nnone left out; not scored.\n"
    said += f"Last row: depth of seed {min(fresh)},\nnear is dark."
    page.text(0.1, y + 0.04, said, color=GREY, size=8)
    return page.figure


def shaded(depth: NDArray[np.float64], alpha: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Depth [n, H, W] as grey pictures on white, uint8 [n, H, W, 3]: dark is near, scaled over the solid pixels."""
    solid = alpha >= SOLID
    near, far = np.percentile(depth[solid], (1, 99)) if solid.any() else (0.0, 1.0)
    grey = 40 + 170 * ((depth - near) / max(far - near, 1e-6)).clip(0, 1)
    share = alpha / 255
    return np.rint(grey * share + 255 * (1 - share)).astype(np.uint8)[..., None].repeat(3, -1)
