"""Volume rendering in the fastest plain PyTorch that we could write: what `benchmarks/render.py` compares with.

The numbers of cad/render/reference.py up to rounding. What its profile (benchmarks/render_profile.md) shows, and what
is done about it:

- sampling the planes comes first: `embedding_bag` sums the twelve weighted texels of a point in one pass over a table
  of texels, where `grid_sample` leaves three images to be summed up; on the way back products with sparse matrices add
  the gradients up without sorting or copying them, as `embedding_bag` and `index_add_` would;
- sample-major points make the decoder products of one long matrix, without a copy or an expanded weight;
- two ascending lists are merged by their ranks (`searchsorted`) instead of sorted;
- without gradients, what a few hundred rays need stays in the cache and in memory that the process already holds; a
  whole batch would be hundreds of megabytes of fresh pages, and page faults took as long as the arithmetic.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag, grid_sample, softplus

from cad.render.fused import FusedDecoder
from cad.render.reference import PLANE_AXES, UNIFORM_SHARE, Rendered, Sampling, chord, strata

# Without gradients on a CPU; the fastest of 64, 128, 256, 512, 1024 rays at the shape of the paper's stage 1.
POINTS_AT_ONCE = 256 * 48
COLUMNS_AT_ONCE = 2**14  # points of a sparse matrix; the fastest of 2^10, 2^12, 2^14, all at the same shape

Sampler = Callable[[Tensor, Tensor], Tensor]
Layers = tuple[Tensor, Tensor, Tensor, Tensor]


def renderer(sample: Sampler, compiled: bool) -> Callable[..., Rendered]:
    """A function like `cad.render.reference.render_rays`, with `texels` or `images` to sample by, maybe compiled."""
    return partial(_render_rays, sample, torch.compile(_render, dynamic=False) if compiled else _render)


def _render_rays(
    sample: Sampler,
    part: Callable[..., tuple[Tensor, Tensor, Tensor]],
    planes: Tensor,
    decoder: FusedDecoder,
    origins: Tensor,
    directions: Tensor,
    sampling: Sampling,
    jitter: torch.Generator | None,
) -> Rendered:
    batch, count = origins.shape[:2]
    drawn = [
        strata(origins[..., 0], samples, jitter).transpose(1, 2).contiguous()
        for samples in (sampling.coarse, sampling.fine)
    ]
    table = planes.permute(0, 1, 3, 4, 2).contiguous()  # a texel is a row
    rays, layers = (origins, directions, *drawn), decoder.fused_layers()
    if torch.is_grad_enabled() or planes.is_cuda:  # at one go
        return Rendered(*(x.unflatten(0, (batch, count)) for x in part(sample, table, layers, *rays, sampling)))
    at_once = max(1, POINTS_AT_ONCE // max(sampling.coarse, sampling.fine))
    parts = [
        part(sample, table[i : i + 1], layers, *(x[i : i + 1, j : j + at_once] for x in rays), sampling)
        for i in range(batch)
        for j in range(0, count, at_once)
    ]
    return Rendered(*(torch.cat(x).unflatten(0, (batch, count)) for x in zip(*parts, strict=True)))


def _render(
    sample: Sampler,
    table: Tensor,
    layers: Layers,
    origins: Tensor,
    directions: Tensor,
    coarse: Tensor,
    fine: Tensor,
    sampling: Sampling,
) -> tuple[Tensor, Tensor, Tensor]:
    """Features [B R, F], opacity and depth [B R, 1]; coarse [B, R, S] and fine [B, R, T]: ascending draws in [0, 1]."""
    enter, leave = (x.reshape(-1, 1) for x in chord(origins, directions, sampling))
    coarse, fine = coarse.flatten(0, 1), fine.flatten(0, 1)
    begin, along = (x.reshape(-1, 3).T.contiguous()[..., None] for x in (origins, directions))

    def evaluate(positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        distances = torch.minimum(torch.lerp(enter, leave, positions), leave)
        points = torch.addcmul(begin, distances, along)  # [axis, rays, samples]: long rows are quick
        features = sample(table, points.view(3, len(table), -1) / sampling.half_side)
        density, radiance = _decode(features, layers)
        density = density.view_as(distances).to(distances.dtype) * (points.abs().amax(0) <= sampling.half_side)
        return distances, density, radiance.unflatten(0, distances.shape)

    distances, density, radiance = evaluate(coarse)
    weights = _weights(density, distances, leave)
    parts = [(weights, radiance)]
    if sampling.fine:
        positions, part = _importance(weights.detach(), fine)
        fine_distances, fine_density, fine_radiance = evaluate(positions)
        ranks = _ranks(coarse, positions, part)
        distances, density = _merged(distances, fine_distances, ranks), _merged(density, fine_density, ranks)
        weights = _weights(density, distances, leave)
        parts = [
            (weights.gather(1, rank), radiance) for rank, radiance in zip(ranks, (radiance, fine_radiance), strict=True)
        ]
    covered = weights.sum(1, keepdim=True)
    sums = sum(torch.bmm(weight[:, None].to(radiance.dtype), radiance)[:, 0] for weight, radiance in parts)
    features = 1.002 * sums - 0.001 * covered  # radiance is 1.002 sigmoid - 0.001
    features = torch.cat([features[:, :3] + (1 - covered), features[:, 3:]], 1)
    depth = (weights * distances).sum(1, keepdim=True) + (1 - covered) * sampling.far
    return features, covered, depth


def images(table: Tensor, points: Tensor) -> Tensor:
    """What `texels` returns, by `grid_sample`, in float32 whatever the table: coordinates need it."""
    batch, size, channels = len(table), table.shape[3], table.shape[4]
    grid = points[PLANE_AXES, ...].view(3, 2, batch, -1).permute(2, 0, 3, 1).reshape(3 * batch, 1, -1, 2)
    planes = table.to(points.dtype).view(3 * batch, size, size, channels).permute(0, 3, 1, 2)  # channels last
    found = grid_sample(planes, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return found.view(batch, 3, channels, -1).sum(1).transpose(1, 2).reshape(-1, channels).to(table.dtype)


def texels(table: Tensor, points: Tensor) -> Tensor:
    """Summed bilinear plane features [B P, C], table: [B, 3, N, N, C]; at points [3, B, P] in half sides.

    Without a gradient in the points.
    """
    return _Texels.apply(table, *_corners(table.shape[3], points.detach()))


def _corners(size: int, points: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of the table of texels between which a point lies, and their weights, [12, B P] both."""
    batch = points.shape[1]
    texel = ((points.flatten(1) + 1) * (0.5 * size) - 0.5).clamp_(0, size - 1)
    low = texel.int()
    high = (low + 1).clamp_(max=size - 1)
    share = texel.sub_(low)
    ends, shares = (low, high), (1 - share, share)
    first = torch.arange(batch, dtype=torch.int32, device=low.device).mul_(3 * size).repeat_interleave(points.shape[2])
    index, weight = low.new_empty(12, low.shape[1]), share.new_empty(12, low.shape[1])
    for plane in range(3):
        across, down = PLANE_AXES[2 * plane : 2 * plane + 2]
        for j in range(2):
            row = (ends[j][down] + first).add_(plane * size).mul_(size)
            for i in range(2):
                torch.add(row, ends[i][across], out=index[plane * 4 + j * 2 + i])
                torch.mul(shares[j][down], shares[i][across], out=weight[plane * 4 + j * 2 + i])
    return index, weight


class _Texels(torch.autograd.Function):
    """`embedding_bag`, whose gradient is added up without sorting."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, index: Tensor, weight: Tensor) -> Tensor:
        weight = weight.to(table.dtype)
        ctx.save_for_backward(index, weight)
        ctx.shape = table.shape
        rows = table.view(-1, table.shape[-1])
        return embedding_bag(index.T.contiguous(), rows, mode="sum", per_sample_weights=weight.T.contiguous())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        index, weight = ctx.saved_tensors
        batch, _, size, _, channels = ctx.shape
        found = grad.new_zeros(3 * batch, size * size, channels)
        if grad.is_cuda:
            for row, share in zip(index, weight, strict=True):
                found.view(-1, channels).index_add_(0, row, grad * share[:, None])
            return found.view(ctx.shape), None, None
        count = len(grad) // batch
        here = torch.arange(min(count, COLUMNS_AT_ONCE)).repeat(4, 1)

        def add(image: int) -> None:
            """One plane's gradient: its four corners of the points of its volume."""
            volume, plane = divmod(image, 3)
            corners = slice(4 * plane, 4 * plane + 4)
            for first in range(volume * count, (volume + 1) * count, COLUMNS_AT_ONCE):
                points = slice(first, min(first + COLUMNS_AT_ONCE, (volume + 1) * count))
                width = points.stop - points.start
                place = torch.stack([index[corners, points] - image * size * size, here[:, :width]]).flatten(1)
                shares = weight[corners, points].flatten()
                shape = (size * size, width)
                matrix = torch.sparse_coo_tensor(place, shares, shape, check_invariants=False)
                found[image].addmm_(matrix, grad[points])

        with ThreadPoolExecutor(torch.get_num_threads()) as pool:  # a sparse product has one thread
            list(pool.map(add, range(3 * batch)))
        return found.view(ctx.shape), None, None


def _decode(features: Tensor, layers: Layers) -> tuple[Tensor, Tensor]:
    """Density [P] and the logistic values of the radiance [P, F]."""
    hidden, bias, out, offset = (x.to(features.dtype) for x in layers)
    units = softplus(torch.addmm(bias, features, hidden.T))
    if torch.is_grad_enabled():  # one layer: two would have gradients as large as the units each, and their sum
        raw, color = torch.addmm(offset, units, out.T).split([1, len(out) - 1], 1)
        return softplus(raw[:, 0] - 1), color.sigmoid()
    raw = torch.addmm(offset[:1] - 1, units, out[:1].T)
    return softplus(raw[:, 0]), torch.addmm(offset[1:], units, out[1:].T).sigmoid_()


def _weights(density: Tensor, distances: Tensor, leave: Tensor) -> Tensor:
    """Each sample's share of its ray's colour, [R, S]."""
    thickness = density * torch.cat([distances, leave], 1).diff(dim=1)
    passed = torch.exp(thickness - thickness.cumsum(1))
    return passed * -torch.expm1(-thickness)


def _importance(weights: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
    """Where along the chord the coarse weights lie, and in which of its parts, [R, T] both; like the reference's."""
    parts = weights.shape[1]
    padded = torch.cat([weights[:, :1], weights, weights[:, -1:]], 1)
    larger = torch.maximum(padded[:, :-1], padded[:, 1:])
    wide = (larger[:, :-1] + larger[:, 1:]) / 2 + UNIFORM_SHARE / parts
    share = wide / wide.sum(1, keepdim=True)
    below = share.cumsum(1)
    part = torch.searchsorted(below, draws, right=True).clamp_(max=parts - 1)
    inside = (draws - (below - share).gather(1, part)) / share.gather(1, part)
    return (part + inside.clamp_(0, 1)) / parts, part


def _ranks(coarse: Tensor, fine: Tensor, part: Tensor) -> tuple[Tensor, Tensor]:
    """Places [R, S], [R, T] of coarse and fine positions in their ascending union.

    part: [R, T], of the chord's, each of which holds one coarse position: those before a fine one need no search.
    """
    before = part + (coarse.gather(1, part) <= fine)
    first, second = (torch.arange(x.shape[1], device=x.device) for x in (coarse, fine))
    return torch.searchsorted(fine, coarse).add_(first), before.add_(second)


def _merged(first: Tensor, second: Tensor, ranks: tuple[Tensor, Tensor]) -> Tensor:
    """The values of two lists, [R, S + T], at their places."""
    both = torch.cat([first, second], 1)
    return torch.empty_like(both).scatter(1, torch.cat(ranks, 1), both)
