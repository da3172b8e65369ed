"""The search for the polar angle of One-2-3-45's estimator: tracks through the neighbours, and how well they fit.

Whichever polar angle is supposed for the picture, the neighbours' follow. Where the supposition is right, points
triangulated from two of them fall in a third on what was matched there. Of the original's defects these are mended
here: what nothing determines is said to be undetermined, and both searches try their ends. `outlines` searches alike.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cad.camera import camera_to_world, focal_length, rays
from cad.config import CameraSettings, ElevationSettings
from cad.inputs.matching import Matches

# One-2-3-45's: (d_polar, d_azimuth) of the neighbours in turns, the first search, the second one about its best.
NEIGHBOURS = ((-1.0, 0.0), (1.0, 0.0), (0.0, -1.0), (0.0, 1.0))
FIRST, LAST, STEP = 30, 150, 10
REACH = 10  # of the second search, in steps of 1
RESOLVED = 1e-4  # image sides; where no hypothesis misses by more, all are equally right
PAIRS = tuple(itertools.combinations(range(len(NEIGHBOURS)), 2))
Pairs = Mapping[tuple[int, int], Matches]  # the matches of every pair (i, j), i < j, of the neighbours


@dataclass(frozen=True)
class Estimate:
    """A polar angle in degrees, or None and why it is undetermined; by what, and the error by hypothesis."""

    polar_deg: float | None
    why: str
    basis: str  # for people
    errors: dict[int, float]  # polar angle [deg] -> what is least at the answer, in the units of its search

    def sentence(self) -> str:
        """The angle, or that there is none, in one line for people."""
        if self.polar_deg is None:
            return f"elevation undetermined: {self.why}; give the polar angle yourself"
        return f"elevation {90 - self.polar_deg:g} deg (polar angle {self.polar_deg:g} deg), by {self.basis}"


@dataclass(frozen=True)
class Tracks:
    """Points seen in three neighbours: which ones [n, 3], where [n, 3, 2] in image sides, with what weight [n].

    The first two views triangulate, the third one is compared.
    """

    views: Tensor
    points: Tensor
    weight: Tensor

    def __len__(self) -> int:
        """The number of tracks."""
        return len(self.weight)


def collect_tracks(pairs: Pairs, join: float) -> Tracks:
    """Every point of a view that is matched in two others, as tracks that triangulate from one and compare the other.

    Two matches are of the same point where their ends in the shared view are at most `join` image sides apart.
    """
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    for anchor in range(len(NEIGHBOURS)):
        for b, c in itertools.permutations([k for k in range(len(NEIGHBOURS)) if k != anchor], 2):
            first, second = _from(pairs, anchor, b), _from(pairs, anchor, c)
            if not len(first) or not len(second):
                continue
            nearest = torch.cdist(first.first.double(), second.first.double()).min(-1)
            kept = nearest.values <= join
            own, other = first.select(kept), second.select(nearest.indices[kept])
            views = torch.tensor([anchor, b, c]).expand(len(own), 3)
            parts.append(
                (views, torch.stack([own.first, own.second, other.second], 1), own.confidence * other.confidence)
            )
    if not parts:
        return Tracks(torch.zeros(0, 3, dtype=torch.long), torch.zeros(0, 3, 2), torch.zeros(0))
    return Tracks(*(torch.cat(column) for column in zip(*parts, strict=True)))


def join_tracks(parts: Sequence[Tracks]) -> Tracks:
    """The tracks of several draws of the neighbours."""
    return Tracks(*(torch.cat([getattr(part, name) for part in parts]) for name in ("views", "points", "weight")))


def search(tracks: Tracks, settings: ElevationSettings, camera: CameraSettings) -> Estimate:
    """The hypothesis of least error (`try_angles`).

    Undetermined are too few tracks, an error that is large even at its least, and one that hardly depends on the
    angle: there One-2-3-45 takes its first hypothesis.
    """
    basis = f"{len(tracks)} tracks"
    if len(tracks) < settings.min_tracks or not tracks.weight.sum() > 0:
        return Estimate(None, f"only {len(tracks)} points match in three views", basis, {})
    best, coarse, errors = try_angles(lambda polar: error(tracks, polar, settings, camera))
    worst = max(coarse.values())
    contrast = 1 - min(coarse.values()) / worst if worst > RESOLVED else 0.0
    if errors[best] > settings.max_error:
        why = f"even at {best} deg points miss by {errors[best]:.3f} of the image's side"
    elif contrast < settings.min_contrast:
        why = f"all angles fit alike (the least error is {contrast:.0%} below the largest)"
    else:
        said = f"{basis} that miss by {100 * errors[best]:.2f} % of the image's side"
        return Estimate(float(best), "", said, errors)
    return Estimate(None, why, basis, errors)


def try_angles(error_at: Callable[[int], float]) -> tuple[int, dict[int, float], dict[int, float]]:
    """The angle of least error, 30 to 150 deg in tens and then within 10 deg of the best; both ends are tried.

    Returns it, the errors of the first search, and those of both, by angle [deg]. Of equal angles the middle one wins.
    """
    coarse = {polar: error_at(polar) for polar in range(FIRST, LAST + 1, STEP)}
    about, errors = _least(coarse), dict(coarse)
    for polar in range(about - REACH, about + REACH + 1):
        if polar not in errors:
            errors[polar] = error_at(polar)
    return _least(errors), coarse, errors


def _least(errors: Mapping[int, float]) -> int:
    least = min(errors.values())
    equal = sorted(polar for polar, value in errors.items() if value == least)
    return equal[len(equal) // 2]


def error(tracks: Tracks, polar_deg: float, settings: ElevationSettings, camera: CameraSettings) -> float:
    """Weighted mean distance between matches and reprojections at a supposed polar angle, in image sides.

    A point counts with at most `outlier`, so that a few wrong matches do not decide.
    """
    cameras, focal = neighbour_cameras(polar_deg, settings.turn_deg, camera.radius), focal_length(camera.fov_deg)
    a, b, c = (cameras[tracks.views[:, k]] for k in range(3))
    points = triangulate(a, b, tracks.points[:, 0].double(), tracks.points[:, 1].double(), focal)
    missed = (project(c, points, focal) - tracks.points[:, 2]).norm(dim=-1).clamp(max=settings.outlier)
    weight = tracks.weight.double()
    return float((weight * missed).sum() / weight.sum())


def neighbour_offsets(turn_deg: float) -> Tensor:
    """(d_polar, d_azimuth) of the neighbours in radians, [4, 2] float64."""
    return (turn_deg * torch.tensor(NEIGHBOURS, dtype=torch.float64)).deg2rad()


def neighbour_cameras(polar_deg: float, turn_deg: float, radius: float) -> Tensor:
    """Camera-to-world [4, 4, 4] (float64) of the neighbours of a view at this polar angle and azimuth 0."""
    offsets = neighbour_offsets(turn_deg)
    return camera_to_world(offsets[:, 1], math.radians(polar_deg) + offsets[:, 0], radius)


def triangulate(a: Tensor, b: Tensor, in_a: Tensor, in_b: Tensor, focal: float) -> Tensor:
    """World points [n, 3] halfway between the rays through image points [n, 2] of cameras [n, 4, 4] where they are
    nearest. Parallel rays meet nowhere: they give points far off.
    """
    (start_a, along_a), (start_b, along_b) = (rays(x, focal, y[:, None]) for x, y in ((a, in_a), (b, in_b)))
    start_a, along_a, start_b, along_b = (x[:, 0] for x in (start_a, along_a, start_b, along_b))
    between, slant = start_b - start_a, (along_a * along_b).sum(-1)
    own, other = (between * along_a).sum(-1), (between * along_b).sum(-1)
    spread = (1 - slant**2).clamp(min=1e-9)
    reach_a, reach_b = (own - slant * other) / spread, (slant * own - other) / spread
    return (start_a + reach_a[:, None] * along_a + start_b + reach_b[:, None] * along_b) / 2


def project(cameras: Tensor, points: Tensor, focal: float) -> Tensor:
    """Where cameras [n, 4, 4] see world points [n, 3]: [n, 2] in image sides; what is behind is at infinity."""
    local = torch.einsum("nji,nj->ni", cameras[:, :3, :3], points - cameras[:, :3, 3])
    depth = local[:, 2:]
    return torch.where(depth > 1e-6, focal * local[:, :2] / depth.clamp(min=1e-6) + 0.5, torch.inf)


def _from(pairs: Pairs, anchor: int, other: int) -> Matches:
    """The matches of two views, the anchor's points first."""
    if anchor < other:
        return pairs[anchor, other]
    found = pairs[other, anchor]
    return Matches(found.second, found.first, found.confidence)
