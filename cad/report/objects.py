"""The figure of all objects: each one's input, a few poses of its prior and the orbits of three seeds in one band."""

import textwrap

import numpy as np
from matplotlib.figure import Figure

from cad.report.canvas import GAP, GREY, HEAD, MARGIN, Page, png
from cad.report.overview import Extent, Picked, RunFolders, pick

BAND = Extent(poses=4, rejected=1, samples=1, draws=2, azimuths=6)  # four rows beside three seeds and the truth
# Lengths in inches; the page is 9.1 wide, so that its type is 11 pixels high where it is shown at 900.
CELL, LEFT, LABEL, BETWEEN = 0.68, 1.2, 0.24, 0.3
TITLE, BAND_GAP, TOP, BOTTOM = 0.26, 0.2, 0.06, 0.06


def objects_png(runs: list[RunFolders]) -> bytes:
    """The figure of several runs as a PNG; equal files give equal bytes. UserError names a folder that is broken."""
    picked = [pick(folders, BAND) for folders in runs]
    return png(lambda: compose(picked))


def compose(runs: list[Picked]) -> Figure:
    """Lay the runs out as bands, one below the other, under common heads."""
    pitch = CELL + GAP
    bands = [HEAD + max(len(picked.prior[1]), len(picked.orbit[1])) * pitch for picked in runs]
    height = TOP + TITLE + sum(bands) + (len(runs) - 1) * BAND_GAP + BOTTOM
    prior = LEFT + LABEL
    orbit = prior + BAND.poses * pitch + BETWEEN
    page = Page(orbit + BAND.azimuths * pitch + MARGIN, height)
    page.text(MARGIN, TOP, "Input", weight="bold", size=10)
    page.text(prior, TOP, "Prior: sampled, pruned, refined", weight="bold", size=10)
    page.text(orbit, TOP, "Generated: 3D branch, a row per seed", weight="bold", size=10)
    top = TOP + TITLE
    for picked, band in zip(runs, bands, strict=True):
        page.block(prior, top, CELL, *picked.prior)
        page.block(orbit, top, CELL, *picked.orbit)
        describe(page, top + HEAD, picked)
        top += band + BAND_GAP
        if top < height:
            page.rule(top - BAND_GAP / 2 - 0.02)
    return page.figure


def describe(page: Page, top: float, picked: Picked) -> None:
    """What stands left of a band: the input, its prompt, and what the angles and the colours are."""
    reference = picked.reference
    side = LEFT - 0.16
    page.image(MARGIN, top, side, reference.image, None)
    y = page.text(MARGIN, top + side + 0.06, textwrap.fill(f"“{reference.prompt}”", 20), style="italic", size=9)
    polar = np.degrees(reference.reference_polar)
    said = f"Prior: azimuth, polar;\n{picked.kept}\n(red: rejected, why).\nOrbit: azimuth; polar\nangle {polar:.0f}°."
    page.text(MARGIN, y + 0.06, said, color=GREY, size=8)
