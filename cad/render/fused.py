"""The fused volume renderer: the numbers of cad/render/reference.py, compiled, with a backward pass that recomputes.

`cad::render`, its backward pass and `cad::refine` are registered with torch.library, so that autograd and torch.compile
know them. What runs is in csrc/: the mathematics in volume.h, a launcher for each device.

Everywhere here, planes are [B, 3, C, H, W]; rays are origins [B, R, 3], directions [B, R, 3], depths [B, R, S]
(ascending distances of the samples) and leave [B, R] (where the last sample ends); layers are the decoder's hidden
weight [D, C] and bias [D], output weight [1 + F, D] and bias [1 + F]. All are float32 and on one device; planes on a
GPU may be float16 or bfloat16 too, see cad/render/cuda.py.
"""

import ctypes
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from cad.render import cuda
from cad.render.build import library
from cad.render.call import Call, Pointers, check, expect, spoilt
from cad.render.reference import UNIFORM_SHARE, Rendered, Sampling, chord, strata

# The backward pass sums this many parts of a batch apart, or more, whatever the number of threads; each part holds as
# many rays or more as the second number says [ours]. Each costs a copy of its volume's planes.
PARTS, RAYS_OF_A_PART = 4, 128


@runtime_checkable
class FusedDecoder(Protocol):
    """A decoder that says that the fused renderer computes it: softplus between two layers, then activations.

    Density is softplus(first output - 1), radiance is 1.002 sigmoid(the others) - 0.001, as in `TriplaneDecoder`.
    """

    def fused_layers(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Weight and bias of the hidden and of the output layer, as they act."""
        ...


def can_render(planes: Tensor) -> bool:
    """Whether the fused renderer takes planes of this device and dtype; compiles it if need be."""
    if planes.is_cuda:
        return cuda.can_render(planes)
    return planes.device.type == "cpu" and planes.dtype == torch.float32 and library() is not None


def render_rays(
    planes: Tensor,
    decoder: FusedDecoder,
    origins: Tensor,
    directions: Tensor,
    sampling: Sampling,
    jitter: torch.Generator | None,
) -> Rendered:
    """`cad.render.reference.render_rays`, fused: the same arguments, draws and results, up to rounding."""
    enter, leave = chord(origins, directions, sampling)
    layers = list(decoder.fused_layers())

    def distances(positions: Tensor) -> Tensor:
        # The minimum undoes the rounding that could put a sample beyond the end of its chord.
        return torch.minimum(torch.lerp(enter[..., None], leave[..., None], positions), leave[..., None])

    drawn = strata(enter, sampling.coarse, jitter)
    if sampling.fine and _at_one_go(planes, origins, directions):
        from cad.render.hierarchical import render_hierarchical  # imported here: it builds on this module

        rays = [origins, directions, enter[..., None], leave]
        fine = strata(enter, sampling.fine, jitter)
        outputs = render_hierarchical(
            planes, rays, layers, drawn, fine, sampling.half_side, sampling.far, torch.is_grad_enabled()
        )
        return Rendered(outputs[0], outputs[1][..., None], outputs[2][..., None])
    positions = drawn.transpose(1, 2)  # [B, R, S]
    if sampling.fine:
        with torch.no_grad():
            draws = strata(enter, sampling.fine, jitter).transpose(1, 2)
            rays = [origins, directions, distances(positions), leave]
            positions = refine(planes, rays, layers, positions, draws, sampling.half_side)
    rays = [origins, directions, distances(positions), leave]
    features, opacity, depth, _ = render(planes, rays, layers, sampling.half_side, sampling.far, False)
    return Rendered(features, opacity[..., None], depth[..., None])


@torch.library.custom_op("cad::render", mutates_args=())
def render(
    planes: Tensor, rays: Sequence[Tensor], layers: Sequence[Tensor], half_side: float, far: float, keep_weights: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Features [B, R, F] on white, opacity [B, R], depth [B, R], and the samples' weights [B, R, S] or, unasked, [0].

    half_side: of the box, outside which there is no density; far: the depth of light that passes, scene units.
    Differentiable once in planes, rays and layers. One value among them that is not finite makes all outputs NaN, and
    their gradients: divergence shows where losses are checked. Raises ValueError for a wrong shape, dtype or device.
    """
    call = Call(planes, rays, layers, half_side, far)
    features, opacity, depth, weights = room_for_rendered(rays, layers, keep_weights)
    call.run("cad_render", Pointers(features, opacity, depth, weights if keep_weights else None))
    if not call.finite:
        return spoilt(features), spoilt(opacity), spoilt(depth), spoilt(weights)
    return features, opacity, depth, weights


@torch.library.custom_op("cad::refine", mutates_args=())
def refine(
    planes: Tensor, rays: Sequence[Tensor], layers: Sequence[Tensor], positions: Tensor, draws: Tensor, half_side: float
) -> Tensor:
    """Importance sampling: the ascending union [B, R, S + T] of coarse positions and of those that they choose.

    positions [B, R, S], draws [B, R, T]: ascending, in [0, 1] of each ray's chord; the rays' depths are the coarse
    positions' distances. A ray without a chord gets zeros. Without gradient, as in the reference.
    """
    call = Call(planes, rays, layers, half_side, 0.0)
    expect("positions", positions, tuple(rays[2].shape), planes)
    expect("draws", draws, (*rays[3].shape, draws.shape[-1]), planes)
    union = room_for_union(positions, draws)
    kept = positions.contiguous(), draws.contiguous()
    call.run("cad_refine", Pointers(*kept, union), ctypes.c_int64(draws.shape[-1]), ctypes.c_float(UNIFORM_SHARE))
    return union if call.finite else spoilt(union)


@torch.library.custom_op("cad::render_backward", mutates_args=())
def render_backward(
    grads: Sequence[Tensor],
    rendered: Sequence[Tensor],
    planes: Tensor,
    rays: Sequence[Tensor],
    layers: Sequence[Tensor],
    half_side: float,
    far: float,
    needs_rays: bool,
) -> list[Tensor]:
    """Gradients of planes, of the four layers' tensors and, where needed, of the four rays' tensors.

    grads, rendered: gradients of the outputs of `render`, and these outputs; nothing else of it is kept.
    """
    call = Call(planes, rays, layers, half_side, far)
    found = [x.new_zeros(x.shape, dtype=torch.float32) for x in _wanted(planes, rays, layers, needs_rays)]
    outputs = 4 if rendered[3].numel() else 3  # the weights take part only if they were asked for
    kept = [x.contiguous() for x in (*rendered[:outputs], *grads[:outputs])]
    batch, count = rays[3].shape
    parts = max(1, min(-(-PARTS // max(batch, 1)), count // RAYS_OF_A_PART))
    ray_grads = found[5:] if needs_rays else [None] * 4
    call.run(
        "cad_render_backward",
        Pointers(*kept[:outputs], *[None] * (4 - outputs)),
        Pointers(*kept[outputs:], *[None] * (4 - outputs)),
        Pointers(*found[:5]),
        Pointers(*ray_grads),
        ctypes.c_int64(parts),
    )
    if not call.finite:
        return [spoilt(x) for x in found]
    return [found[0].to(planes.dtype), *found[1:]]


@render.register_fake
def _(
    planes: Tensor, rays: Sequence[Tensor], layers: Sequence[Tensor], half_side: float, far: float, keep_weights: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    check(planes, rays, layers)
    return room_for_rendered(rays, layers, keep_weights)


@refine.register_fake
def _(
    planes: Tensor, rays: Sequence[Tensor], layers: Sequence[Tensor], positions: Tensor, draws: Tensor, half_side: float
) -> Tensor:
    check(planes, rays, layers)
    return room_for_union(positions, draws)


@render_backward.register_fake
def _(
    grads: Sequence[Tensor],
    rendered: Sequence[Tensor],
    planes: Tensor,
    rays: Sequence[Tensor],
    layers: Sequence[Tensor],
    half_side: float,
    far: float,
    needs_rays: bool,
) -> list[Tensor]:
    return [x.new_empty(x.shape) for x in _wanted(planes, rays, layers, needs_rays)]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    planes, rays, layers, ctx.half_side, ctx.far, _ = inputs
    ctx.save_for_backward(planes, *rays, *layers, *output)


def _backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
    planes, *others = ctx.saved_tensors
    rays, layers, rendered = others[:4], others[4:8], others[8:]
    needs_rays = any(ctx.needs_input_grad[1])
    found = render_backward(list(grads), rendered, planes, rays, layers, ctx.half_side, ctx.far, needs_rays)
    return found[0], found[5:] if needs_rays else [None] * 4, found[1:5], None, None, None


def _twice(ctx: Any, *grads: Any) -> None:
    raise RuntimeError("cad::render has no second derivative; use cad.render.reference.render_rays where one is needed")


render.register_autograd(_backward, setup_context=_keep)
render_backward.register_autograd(_twice)


def room_for_rendered(
    rays: Sequence[Tensor], layers: Sequence[Tensor], keep_weights: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Room for the outputs of `render`."""
    _, _, depths, leave = rays
    features = leave.new_empty((*leave.shape, layers[3].shape[0] - 1))
    weights = leave.new_empty(depths.shape if keep_weights else (0,))
    return features, leave.new_empty(leave.shape), leave.new_empty(leave.shape), weights


def room_for_union(positions: Tensor, draws: Tensor) -> Tensor:
    """Room for what `refine` returns."""
    return positions.new_empty((*positions.shape[:2], positions.shape[2] + draws.shape[2]))


def _wanted(planes: Tensor, rays: Sequence[Tensor], layers: Sequence[Tensor], needs_rays: bool) -> list[Tensor]:
    """The inputs whose gradients `render_backward` returns, in its order."""
    return [planes, *layers, *(rays if needs_rays else ())]


def _at_one_go(planes: Tensor, origins: Tensor, directions: Tensor) -> bool:
    """Whether coarse and fine samples are rendered by one op: on a CPU, where rays need no gradient."""
    return planes.device.type == "cpu" and not (origins.requires_grad or directions.requires_grad)
