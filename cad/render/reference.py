"""Volume rendering of triplanes in plain PyTorch: the definition that every other renderer here is tested against.

One quadrature rule holds in the whole project ([ours]; the paper says "classical volumetric rendering"): samples lie
inside the ray's chord through the box, density is piecewise constant from a sample to the next one, the last sample
reaches to the end of the chord, and the stretch before the first sample counts as empty. Neighbouring samples are
never averaged. Tensors are laid out sample-major with rays innermost, so that every reduction is over long rows.
"""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from cad.seeding import drawn

PLANE_AXES = (0, 1, 0, 2, 1, 2)  # planes (x, y), (x, z), (y, z); the first of each pair runs along the width
# Share of the fine samples' probability that is spread evenly, so that no part of the chord is ever unseen;
# mip-NeRF's value [ours].
UNIFORM_SHARE = 0.01


class Decoder(Protocol):
    """Maps summed plane features to density and radiance (Eq. 9)."""

    def __call__(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """features [B, C, P] to density [B, P] per scene unit, non-negative, and radiance [B, F, P] in [0, 1]."""
        ...

    def raw_density(self, features: Tensor) -> Tensor:
        """features [B, C, P] to the density before its activation, [B, P]."""
        ...


@dataclass(frozen=True)
class Sampling:
    """Where rays are sampled: chord limits near, far and box half side in scene units, and samples per pass."""

    near: float
    far: float
    half_side: float
    coarse: int
    fine: int


class Rendered(NamedTuple):
    """What rays see: features [B, R, F] on white, opacity [B, R, 1], depth [B, R, 1] in scene units along the ray."""

    features: Tensor
    opacity: Tensor
    depth: Tensor


def sample_planes(planes: Tensor, coordinates: Tensor) -> Tensor:
    """Bilinear plane features at points, summed over the three planes (Sec. 3.2), [B, C, P].

    planes: [B, 3, C, N, N]; coordinates: [B, P, 3] in units of the box's half side, texel centres at (i + 0.5) / N
    of the side. Beyond the outermost texel centres the edge goes on [ours]: zero features there, as in EG3D, would be a
    frame of foreign density half a texel wide inside the box.
    """
    batch, count = coordinates.shape[:2]
    grid = coordinates[..., PLANE_AXES].reshape(batch, count, 3, 2).transpose(1, 2).reshape(batch * 3, 1, count, 2)
    features = grid_sample(planes.flatten(0, 1), grid, mode="bilinear", padding_mode="border", align_corners=False)
    return features.reshape(batch, 3, planes.shape[2], count).sum(1)


def field(planes: Tensor, decoder: Decoder, points: Tensor, half_side: float) -> tuple[Tensor, Tensor]:
    """Density [B, P] and radiance [B, F, P] at points [B, P, 3] in scene units; no density outside the box."""
    density, radiance = decoder(sample_planes(planes, points / half_side))
    return density * (points.abs() <= half_side).all(-1), radiance


def raw_density(planes: Tensor, decoder: Decoder, points: Tensor, half_side: float) -> Tensor:
    """Density before its activation at points [B, P, 3] of the box, [B, P]: what density regularisation compares."""
    return decoder.raw_density(sample_planes(planes, points / half_side))


def chord(origins: Tensor, directions: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """Entry and exit distance [B, R] of each ray [B, R, 3] through the box, within [near, far].

    A ray that misses has an empty chord (exit = entry), hence no opacity.
    """
    tiny = torch.full_like(directions, 1e-12)  # a ray parallel to a slab: a huge quotient instead of 0 / 0
    slope = torch.where(directions.abs() < 1e-12, tiny, directions)
    first, second = (-sampling.half_side - origins) / slope, (sampling.half_side - origins) / slope
    enter = torch.minimum(first, second).amax(-1).clamp(sampling.near, sampling.far)
    leave = torch.maximum(first, second).amin(-1).clamp(sampling.near, sampling.far)
    return enter, torch.maximum(leave, enter)


def strata(like: Tensor, count: int, jitter: torch.Generator | None) -> Tensor:
    """One position in each of `count` equal parts of [0, 1] per ray, [B, count, R] for `like` [B, R].

    Midpoints, or a uniform draw within each part where a generator is given, on its device; ascending, never beyond 1.
    """
    parts = torch.arange(count, device=like.device, dtype=like.dtype)[None, :, None]
    if jitter is None:
        return ((parts + 0.5) / count).expand(like.shape[0], count, like.shape[1])
    draws = drawn(torch.rand, like.shape[0], count, like.shape[1], generator=jitter)
    return draws.to(like).add_(parts).div_(count).clamp_(max=1)  # in place: fresh pages would take longer than the sums


def importance(weights: Tensor, positions: Tensor) -> Tensor:
    """Where along the chord the coarse weights lie: positions [B, T, R] in [0, 1] through their inverse distribution.

    weights: [B, S, R] of the coarse samples, one in each of S equal parts of the chord. They are first widened to the
    neighbours (mip-NeRF's filter): the surface lies between the last empty and the first dense sample.
    """
    parts = weights.shape[1]
    padded = torch.cat([weights[:, :1], weights, weights[:, -1:]], 1)
    larger = torch.maximum(padded[:, :-1], padded[:, 1:])
    wide = (larger[:, :-1] + larger[:, 1:]) / 2 + UNIFORM_SHARE / parts
    share = (wide / wide.sum(1, keepdim=True)).transpose(1, 2).contiguous()  # [B, R, S]
    below = share.cumsum(-1)
    wanted = positions.transpose(1, 2).contiguous()
    part = torch.searchsorted(below, wanted, right=True).clamp(max=parts - 1)
    inside = (wanted - (below - share).gather(-1, part)) / share.gather(-1, part)
    return ((part + inside.clamp(0, 1)) / parts).transpose(1, 2)


def compositing_weights(density: Tensor, distances: Tensor, leave: Tensor) -> Tensor:
    """Each sample's share of its ray's colour, [B, S, R], by the project's quadrature rule.

    density: [B, S, R] per scene unit; distances: [B, S, R] ascending along S; leave: [B, R] end of the chord.
    """
    spacing = torch.cat([distances[:, 1:], leave[:, None]], 1) - distances
    thickness = density * spacing
    passed = torch.exp(thickness - thickness.cumsum(1))
    return passed * -torch.expm1(-thickness)


def render_rays(
    planes: Tensor,
    decoder: Decoder,
    origins: Tensor,
    directions: Tensor,
    sampling: Sampling,
    jitter: torch.Generator | None,
) -> Rendered:
    """Classical volume rendering with hierarchical sampling [69], on white (Sec. 3.2).

    planes: [B, 3, C, N, N]; origins, directions (unit): [B, R, 3]. The coarse samples are evaluated once and take part
    in the final sum beside the fine ones, which equals evaluating the union anew. Only scalars are sorted: weights
    go back to the order of evaluation before they meet the radiance. The first 3 features are colours and lie on
    white, the others on 0; the light that passes counts with depth `far`. Without `jitter` it is deterministic.
    """
    enter, leave = chord(origins, directions, sampling)

    def evaluate(positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        # The minimum undoes the rounding that could put a sample beyond the end of its chord.
        distances = torch.minimum(torch.lerp(enter[:, None], leave[:, None], positions), leave[:, None])
        points = origins[:, None] + distances[..., None] * directions[:, None]
        density, radiance = field(planes, decoder, points.flatten(1, 2), sampling.half_side)
        return distances, density.reshape(distances.shape), radiance.unflatten(2, distances.shape[1:])

    distances, density, radiance = evaluate(strata(enter, sampling.coarse, jitter))
    weights = compositing_weights(density, distances, leave)
    if sampling.fine:
        positions = importance(weights.detach(), strata(enter, sampling.fine, jitter))
        fine_distances, fine_density, fine_radiance = evaluate(positions)
        distances, order = torch.cat([distances, fine_distances], 1).sort(dim=1, stable=True)
        density = torch.cat([density, fine_density], 1).gather(1, order)
        weights = compositing_weights(density, distances, leave)
        coarse, fine = weights.gather(1, order.argsort(dim=1)).split([sampling.coarse, sampling.fine], dim=1)
        features = (radiance * coarse[:, None]).sum(2) + (fine_radiance * fine[:, None]).sum(2)
    else:
        features = (radiance * weights[:, None]).sum(2)
    passed = 1 - weights.sum(1, keepdim=True)  # [B, 1, R]
    features = torch.cat([features[:, :3] + passed, features[:, 3:]], 1)
    depth = (weights * distances).sum(1, keepdim=True) + passed * sampling.far
    return Rendered(features.transpose(1, 2), (1 - passed).transpose(1, 2), depth.transpose(1, 2))
