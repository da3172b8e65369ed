"""Instances of the toyworld as pure functions of a seed, their captions, and their true views from any camera."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from cad.camera import Poses, focal_length
from cad.config import CameraSettings
from cad.errors import UserError
from cad.seeding import seed_for
from cad.toyworld import sdf
from cad.toyworld.families import FAMILIES, FRAMES, NAMED_PARTS, Palette, Triple

COLORS: dict[str, Triple] = {
    "red": (0.86, 0.16, 0.15),
    "orange": (0.96, 0.52, 0.11),
    "yellow": (0.95, 0.81, 0.17),
    "green": (0.20, 0.62, 0.26),
    "cyan": (0.18, 0.73, 0.76),
    "blue": (0.17, 0.34, 0.82),
    "purple": (0.52, 0.25, 0.70),
    "pink": (0.95, 0.52, 0.70),
    "brown": (0.48, 0.30, 0.17),
}
PATTERNS = {sdf.PLAIN: "", sdf.STRIPES: "striped ", sdf.DOTS: "dotted "}
HELD_OUT = 1_000_000  # seeds from here on are never trained on
TINT = 0.04  # half-width of an instance's own deviation from the named colour, per channel
BOUND = 0.82  # every family stays inside the sphere of this radius and inside the paper's box (a test looks)


def families() -> list[str]:
    """Names of the object families, in a fixed order."""
    return list(FAMILIES)


@dataclass(frozen=True)
class Captions:
    """Descriptions of one instance from generic to specific."""

    generic: str
    colored: str
    specific: str

    def all(self) -> list[str]:
        """The three of them, generic first."""
        return [self.generic, self.colored, self.specific]


@dataclass(frozen=True)
class Instance:
    """One object: its family and seed, its primitives [P, sdf.WIDTH] and its captions."""

    family: str
    seed: int
    scene: np.ndarray
    captions: Captions


class Views(NamedTuple):
    """True views: images uint8 [M, H, W, 3] on white, silhouettes bool and depth float32 along the ray [M, H, W]."""

    images: np.ndarray
    silhouettes: np.ndarray
    depth: np.ndarray


def instance(family: str, seed: int) -> Instance:
    """The object that this family and seed name; raises UserError for an unknown family."""
    if family not in FAMILIES:
        raise UserError(f"toyworld family '{family}': unknown; choose one of {', '.join(FAMILIES)}")
    rng = np.random.default_rng(seed_for("toyworld", family, seed))
    names = list(rng.choice(list(COLORS), size=3, replace=False))
    pattern = int(rng.choice([sdf.PLAIN, sdf.STRIPES, sdf.DOTS], p=[0.6, 0.25, 0.15]))
    body, accent, detail = (_tinted(COLORS[name], rng) for name in names)
    parts = FAMILIES[family](lambda low, high: float(rng.uniform(low, high)), Palette(body, accent, detail, pattern))
    scene = np.stack([part.row(*FRAMES[family]) for part in parts])
    return Instance(family, seed, scene, _captions(family, names, pattern))


def _tinted(color: Triple, rng: np.random.Generator) -> Triple:
    r, g, b = np.clip(np.array(color) + rng.uniform(-TINT, TINT, 3), 0, 1)
    return (float(r), float(g), float(b))


def _captions(family: str, names: list[str], pattern: int) -> Captions:
    body, accent, detail = names
    first, second = NAMED_PARTS[family]
    look = _with_article(f"{PATTERNS[pattern]}{body}")
    return Captions(
        generic=f"a toy {family}",
        colored=f"{look} {family}",
        specific=f"{look} {family} with {_with_article(accent)} {first} and {_with_article(detail)} {second}",
    )


def _with_article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def render_views(subject: Instance, poses: Poses, camera: CameraSettings, resolution: int) -> Views:
    """True views of an object on white, antialiased; the silhouette is where at least half a pixel is covered."""
    focal = focal_length(camera.fov_deg)
    cameras = poses.cameras(camera.radius).to(torch.float64).numpy()
    shape = (len(poses), resolution, resolution)
    images, silhouettes = np.empty((*shape, 3), np.uint8), np.empty(shape, bool)
    depth = np.empty(shape, np.float32)
    for k, pose in enumerate(cameras):
        color, coverage, depth[k] = sdf.render(subject.scene, pose, focal, resolution, BOUND)
        images[k] = np.round(np.clip(color, 0, 1) * 255)
        silhouettes[k] = coverage >= 0.5
    return Views(images, silhouettes, depth)
