"""The object families: asymmetric toys whose front faces azimuth 180 deg (-x), built from coloured primitives.

Each family is a function (draw, palette) -> parts. The palette has three colours that all show from the front three
quarters, and hidden parts repeat them by the family's rule: what the back looks like can be inferred from one image.
An object's own left is at -y, its right at +y, up is +z.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from cad.toyworld import sdf

DARK, GLASS, LIGHT = (0.16, 0.16, 0.19), (0.55, 0.75, 0.88), (0.98, 0.88, 0.45)
Triple = tuple[float, float, float]


class Palette(NamedTuple):
    """Body, accent and detail colour, each RGB in [0, 1], and the pattern of the body (a constant of `sdf`)."""

    body: Triple
    accent: Triple
    detail: Triple
    pattern: int


@dataclass(frozen=True)
class Part:
    """One primitive: see `sdf` for what the three sizes mean per shape; `turn` = rotations about x, y, z in radians."""

    shape: int
    center: Triple
    size: Triple
    color: Triple
    turn: Triple = (0.0, 0.0, 0.0)
    rounding: float = 0.0
    second: Triple | None = None
    pattern: int = sdf.PLAIN
    frequency: float = 0.0

    def row(self, center: Triple, scale: float) -> np.ndarray:
        """The primitive as a row [WIDTH] of a scene whose `center` moves to the origin and that grows by `scale`."""
        row = np.zeros(sdf.WIDTH)
        row[sdf.SHAPE] = self.shape
        row[sdf.CENTER : sdf.CENTER + 3] = scale * (np.array(self.center) - np.array(center))
        row[sdf.ROTATION : sdf.ROTATION + 9] = _rotation(self.turn).T.ravel()
        row[sdf.SIZE : sdf.SIZE + 3] = scale * np.array(self.size)
        row[sdf.ROUNDING] = scale * self.rounding
        row[sdf.COLOR : sdf.COLOR + 3] = self.color
        row[sdf.SECOND : sdf.SECOND + 3] = self.second or self.color
        row[sdf.PATTERN], row[sdf.FREQUENCY] = self.pattern, self.frequency / scale
        return row


def _rotation(turn: Triple) -> np.ndarray:
    (cx, cy, cz), (sx, sy, sz) = np.cos(turn), np.sin(turn)
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return about_z @ about_y @ about_x


Draw = Callable[[float, float], float]
ALONG_X, ALONG_Y = (0.0, np.pi / 2, 0.0), (np.pi / 2, 0.0, 0.0)


def _body(palette: Palette, frequency: float) -> dict[str, Any]:
    """Colour and pattern of the main part."""
    return {
        "color": palette.body,
        "second": palette.detail,
        "pattern": palette.pattern,
        "frequency": frequency,
    }


def robot(draw: Draw, p: Palette) -> list[Part]:
    """Head in the accent colour with two eyes, left arm detail, right arm accent, a detail backpack behind."""
    w, h, head = draw(0.17, 0.23), draw(0.19, 0.25), draw(0.13, 0.17)
    arm, depth = draw(0.15, 0.21), draw(0.12, 0.16)
    top = h + 2 * head - 0.02
    return [
        Part(sdf.BOX, (0, 0, 0), (depth, w, h), rounding=0.04, **_body(p, 26)),
        Part(sdf.BOX, (0, 0, h + head - 0.01), (head, head * 1.1, head), p.accent, rounding=0.04),
        Part(sdf.ELLIPSOID, (-head, -0.07, h + head + 0.03), (0.035, 0.04, 0.04), DARK),
        Part(sdf.ELLIPSOID, (-head, 0.07, h + head + 0.03), (0.035, 0.04, 0.04), DARK),
        Part(sdf.BOX, (-0.02, -w - 0.075, 0.02), (0.06, 0.06, arm), p.detail, rounding=0.04),
        Part(sdf.BOX, (-0.02, w + 0.075, 0.02), (0.06, 0.06, arm), p.accent, rounding=0.04),
        Part(sdf.BOX, (depth + 0.06, 0, 0.03), (0.07, w * 0.75, h * 0.7), p.detail, rounding=0.03),
        Part(sdf.BOX, (0, -0.1, -h - 0.1), (0.08, 0.07, 0.13), DARK, rounding=0.03),
        Part(sdf.BOX, (0, 0.1, -h - 0.1), (0.08, 0.07, 0.13), DARK, rounding=0.03),
        Part(sdf.CYLINDER, (0, -0.07, top + 0.04), (0.02, 0.06, 0), p.detail),
    ]


def car(draw: Draw, p: Palette) -> list[Part]:
    """Bonnet to the front with lamps, accent cabin, detail spare wheel behind, a detail box on the left side."""
    length, w, h = draw(0.42, 0.50), draw(0.21, 0.26), draw(0.10, 0.13)
    cabin, wheel = draw(0.18, 0.24), draw(0.10, 0.13)
    low = -0.05
    parts = [
        Part(sdf.BOX, (0, 0, low), (length, w, h), rounding=0.05, **_body(p, 40)),
        Part(sdf.BOX, (0.10, 0, low + h + 0.09), (cabin, w * 0.85, 0.13), p.accent, rounding=0.05),
        Part(sdf.BOX, (0.10 - cabin, 0, low + h + 0.10), (0.02, w * 0.65, 0.07), GLASS, rounding=0.01),
        Part(sdf.ELLIPSOID, (-length, -w * 0.6, low + 0.02), (0.03, 0.055, 0.055), LIGHT),
        Part(sdf.ELLIPSOID, (-length, w * 0.6, low + 0.02), (0.03, 0.055, 0.055), LIGHT),
        Part(sdf.CYLINDER, (length + 0.02, 0, low + 0.03), (0.11, 0.04, 0), p.detail, turn=ALONG_X, rounding=0.02),
        Part(sdf.BOX, (0.08, -w - 0.03, low + 0.05), (0.15, 0.05, 0.07), p.detail, rounding=0.02),
    ]
    for x in (-length * 0.6, length * 0.6):
        for y in (-w, w):
            parts.append(Part(sdf.CYLINDER, (x, y, low - h), (wheel, 0.045, 0), DARK, turn=ALONG_Y, rounding=0.02))
    return parts


def mug(draw: Draw, p: Palette) -> list[Part]:
    """An accent handle on the right, a detail badge on the front, an accent rim, a detail band behind."""
    r, h = draw(0.25, 0.31), draw(0.28, 0.36)
    return [
        Part(sdf.CYLINDER, (0, 0, 0), (r, h, 0), rounding=0.03, **_body(p, 24)),
        Part(sdf.TORUS, (0, r + 0.08, 0), (draw(0.14, 0.18), 0.05, 0), p.accent, turn=(0, np.pi / 2, 0)),
        Part(sdf.TORUS, (0, 0, h - 0.01), (r - 0.02, 0.04, 0), p.accent),
        Part(sdf.CYLINDER, (0, 0, h + 0.005), (r - 0.06, 0.01, 0), DARK),
        Part(sdf.ELLIPSOID, (-r, 0, 0), (0.05, 0.14, 0.14), p.detail),
        Part(sdf.BOX, (r - 0.01, 0, 0), (0.04, 0.09, h * 0.8), p.detail, rounding=0.02),
    ]


def chair(draw: Draw, p: Palette) -> list[Part]:
    """Backrest behind in the accent colour, one armrest on the left, detail legs, a body-coloured seat."""
    w, d, back = draw(0.25, 0.31), draw(0.24, 0.30), draw(0.26, 0.34)
    leg, seat = draw(0.20, 0.26), -0.06
    parts = [
        Part(sdf.BOX, (0, 0, seat), (d, w, 0.06), rounding=0.03, **_body(p, 60)),
        Part(sdf.BOX, (d - 0.03, 0, seat + back), (0.05, w, back), p.accent, rounding=0.04),
        Part(sdf.BOX, (-0.02, -w, seat + 0.20), (d * 0.85, 0.05, 0.045), p.detail, rounding=0.03),
        Part(sdf.BOX, (-d * 0.7, -w, seat + 0.10), (0.04, 0.04, 0.12), p.detail, rounding=0.02),
        Part(sdf.ELLIPSOID, (0, 0, seat + 0.08), (d * 0.6, w * 0.6, 0.05), p.accent),
    ]
    for x in (-d * 0.8, d * 0.8):
        for y in (-w * 0.8, w * 0.8):
            parts.append(Part(sdf.CYLINDER, (x, y, seat - leg), (0.045, leg, 0), p.detail))
    return parts


def house(draw: Draw, p: Palette) -> list[Part]:
    """A detail door in front, a chimney on the left, an accent roof, a window on the right, a shed behind."""
    d, w, h, roof = draw(0.25, 0.31), draw(0.28, 0.36), draw(0.19, 0.25), draw(0.20, 0.27)
    low = -0.16
    top = low + h
    return [
        Part(sdf.BOX, (0, 0, low), (d, w, h), rounding=0.01, **_body(p, 34)),
        Part(sdf.ROOF, (0, 0, top), (d + 0.05, w + 0.07, roof), p.accent),
        Part(sdf.BOX, (-d, 0.08, low - h * 0.3), (0.03, 0.08, h * 0.65), p.detail, rounding=0.01),
        Part(sdf.BOX, (-d, -0.15, low + h * 0.15), (0.02, 0.07, 0.07), GLASS, rounding=0.01),
        Part(sdf.BOX, (0.02, -w * 0.6, top + roof * 0.75), (0.06, 0.06, 0.17), p.detail, rounding=0.01),
        Part(sdf.BOX, (0, w, low + 0.02), (0.10, 0.02, 0.08), GLASS, rounding=0.01),
        Part(sdf.BOX, (d + 0.08, 0.05, low - h * 0.35), (0.10, w * 0.55, h * 0.6), p.accent, rounding=0.02),
    ]


def duck(draw: Draw, p: Palette) -> list[Part]:
    """Accent head to the front with a detail beak, left wing detail, right wing accent, a raised tail."""
    length, w, h, head = draw(0.34, 0.42), draw(0.23, 0.28), draw(0.19, 0.24), draw(0.16, 0.20)
    low = -0.14
    return [
        Part(sdf.ELLIPSOID, (0.05, 0, low), (length, w, h), **_body(p, 30)),
        Part(sdf.ELLIPSOID, (-length * 0.65, 0, low + h + head * 0.7), (head, head, head), p.accent),
        Part(sdf.ELLIPSOID, (-length * 0.65 - head, 0, low + h + head * 0.6), (0.12, 0.09, 0.05), p.detail),
        Part(sdf.ELLIPSOID, (-length * 0.65 - head * 0.75, -0.10, low + h + head), (0.04, 0.04, 0.04), DARK),
        Part(sdf.ELLIPSOID, (-length * 0.65 - head * 0.75, 0.10, low + h + head), (0.04, 0.04, 0.04), DARK),
        Part(sdf.ELLIPSOID, (0.06, -w, low + 0.05), (0.20, 0.06, 0.12), p.detail),
        Part(sdf.ELLIPSOID, (0.06, w, low + 0.05), (0.20, 0.06, 0.12), p.accent),
        Part(sdf.CONE, (length, 0, low + 0.13), (0.13, 0.03, 0.15), p.body, turn=(0, 0.7, 0)),
    ]


def boat(draw: Draw, p: Palette) -> list[Part]:
    """A pointed bow to the front, accent cabin, detail funnel behind, a detail lifebuoy on the left side."""
    length, w, cabin = draw(0.36, 0.43), draw(0.20, 0.25), draw(0.13, 0.18)
    low = -0.2
    return [
        Part(sdf.BOX, (0.10, 0, low), (length - 0.10, w, 0.13), rounding=0.05, **_body(p, 44)),
        Part(sdf.CONE, (-length + 0.12, 0, low), (w, 0.03, 0.18), p.body, turn=(0, -np.pi / 2, 0)),
        Part(sdf.BOX, (0.08, 0, low + 0.24), (cabin, w * 0.7, 0.14), p.accent, rounding=0.03),
        Part(sdf.BOX, (0.08 - cabin, 0, low + 0.27), (0.02, w * 0.5, 0.06), GLASS, rounding=0.01),
        Part(sdf.CYLINDER, (0.18, 0.03, low + 0.48), (draw(0.06, 0.08), 0.16, 0), p.detail, rounding=0.01),
        Part(sdf.TORUS, (0.12, -w - 0.02, low + 0.04), (0.09, 0.035, 0), p.detail, turn=ALONG_Y),
        Part(sdf.CYLINDER, (-length * 0.55, 0, low + 0.25), (0.025, 0.22, 0), DARK),
        Part(sdf.BOX, (-length * 0.55 + 0.09, 0, low + 0.40), (0.08, 0.015, 0.06), p.accent),
    ]


def lamp(draw: Draw, p: Palette) -> list[Part]:
    """A shade that leans to the front, an accent base, a detail pole that stands behind, a knob on the left."""
    r, h, shade = draw(0.20, 0.26), draw(0.30, 0.36), draw(0.27, 0.33)
    low = -0.52
    return [
        Part(sdf.CYLINDER, (0.06, 0, low), (r, 0.06, 0), p.accent, rounding=0.03),
        Part(sdf.CYLINDER, (0.14, 0, low + h), (0.045, h, 0), p.detail),
        Part(sdf.CONE, (-0.05, 0, low + 2 * h + 0.05), (shade, shade * 0.5, 0.20), turn=(0, -0.25, 0), **_body(p, 26)),
        Part(sdf.ELLIPSOID, (-0.08, 0, low + 2 * h - 0.15), (0.10, 0.10, 0.07), LIGHT),
        Part(sdf.ELLIPSOID, (0.02, -r, low + 0.06), (0.07, 0.07, 0.07), p.detail),
        Part(sdf.BOX, (0.24, 0, low + h), (0.05, 0.09, 0.09), p.accent, rounding=0.02),
    ]


FAMILIES: dict[str, Callable[[Draw, Palette], list[Part]]] = {
    f.__name__: f for f in (robot, car, mug, chair, house, duck, boat, lamp)
}

# How a specific caption names the accent and the detail part of each family.
NAMED_PARTS: dict[str, tuple[str, str]] = {
    "robot": ("head", "backpack"),
    "car": ("cabin", "spare wheel"),
    "mug": ("handle", "badge"),
    "chair": ("backrest", "frame"),
    "house": ("roof", "door"),
    "duck": ("head", "beak"),
    "boat": ("cabin", "funnel"),
    "lamp": ("base", "pole"),
}

# Centre and growth that bring each family to about the same size around the origin, within a sphere of radius 0.8.
FRAMES: dict[str, tuple[Triple, float]] = {
    "robot": ((0.04, 0.0, 0.08), 1.12),
    "car": ((0.02, 0.0, 0.0), 1.18),
    "mug": ((0.0, 0.13, 0.01), 1.25),
    "chair": ((0.0, 0.0, 0.01), 1.14),
    "house": ((0.06, 0.0, 0.01), 1.20),
    "duck": ((-0.02, 0.0, 0.01), 1.16),
    "boat": ((-0.03, 0.0, 0.01), 1.25),
    "lamp": ((0.0, 0.0, -0.07), 1.18),
}
