"""Hierarchical sampling on a CPU at one go: `cad::refine` and `cad::render` evaluate each coarse sample twice.

`cad::render_hierarchical` is registered with torch.library; its backward pass is `cad::render_backward`. Shapes are
those of cad/render/fused.py, where the one depth [B, R, 1] of each ray is that at which it enters the box.
"""

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cad.render import fused
from cad.render.call import Call, Pointers, all_finite, check, expect, spoilt
from cad.render.reference import UNIFORM_SHARE


class Draws(ctypes.Structure):
    """`Draws` of csrc/hierarchy.h."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("coarse", "fine")),
        *((name, ctypes.c_int64) for name in ("coarse_count", "fine_count", "alike")),
        ("uniform_share", ctypes.c_float),
    )


@torch.library.custom_op("cad::render_hierarchical", mutates_args=())
def render_hierarchical(
    planes: Tensor,
    rays: Sequence[Tensor],
    layers: Sequence[Tensor],
    coarse: Tensor,
    fine: Tensor,
    half_side: float,
    far: float,
    keep_depths: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Features [B, R, F] on white, opacity [B, R], depth [B, R]; the samples' depths [B, R, S + T] or, unasked, [0].

    coarse [B, S, R], fine [B, T, R]: ascending positions of the coarse samples and draws for the fine ones, in [0, 1]
    of each ray's chord. Errors, half_side, far and values that are not finite: as in `cad::render`. Differentiable once
    in planes and layers if the depths are kept, never in the rays.
    """
    call = Call(planes, rays, layers, half_side, far)
    _check(planes, rays, coarse, fine)
    outputs = _outputs(rays, layers, coarse, fine, keep_depths)
    kept = coarse.contiguous(), fine.contiguous()
    draws = Draws(*(x.data_ptr() for x in kept), coarse.shape[1], fine.shape[1], 0, UNIFORM_SHARE)
    call.finite = call.finite and all_finite(*kept)
    call.run(
        "cad_render_hierarchical",
        ctypes.byref(draws),
        Pointers(*outputs[:3], outputs[3] if keep_depths else None),
    )
    if not call.finite:
        for x in outputs:
            spoilt(x)
    return outputs


@render_hierarchical.register_fake
def _(
    planes: Tensor,
    rays: Sequence[Tensor],
    layers: Sequence[Tensor],
    coarse: Tensor,
    fine: Tensor,
    half_side: float,
    far: float,
    keep_depths: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    check(planes, rays, layers)
    _check(planes, rays, coarse, fine)
    return _outputs(rays, layers, coarse, fine, keep_depths)


def _check(planes: Tensor, rays: Sequence[Tensor], coarse: Tensor, fine: Tensor) -> None:
    """Raise ValueError that names the first tensor which doesn't fit, beside those that `cad::render` has too."""
    if rays[2].shape[2] != 1:
        raise ValueError(f"depths: {rays[2].shape[2]} of a ray, but one depth is needed, where it enters the box")
    batch, count = rays[3].shape
    for name, positions in (("coarse", coarse), ("fine", fine)):
        expect(name, positions, (batch, max(1, *positions.shape[1:2]), count), planes)


def _outputs(
    rays: Sequence[Tensor], layers: Sequence[Tensor], coarse: Tensor, fine: Tensor, keep_depths: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Room for what `render_hierarchical` returns."""
    features, opacity, depth, _ = fused.room_for_rendered(rays, layers, False)
    samples = coarse.shape[1] + fine.shape[1]
    return features, opacity, depth, opacity.new_empty((*opacity.shape, samples) if keep_depths else (0,))


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    planes, rays, layers, _, _, ctx.half_side, ctx.far, keep_depths = inputs
    if not keep_depths:
        raise RuntimeError("cad::render_hierarchical has gradients only if it keeps the depths")
    ctx.mark_non_differentiable(output[3])
    ctx.save_for_backward(planes, rays[0], rays[1], output[3], rays[3], *layers, *output[:3])


def _backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
    planes, *others = ctx.saved_tensors
    rays, layers, rendered = others[:4], others[4:8], others[8:]
    nothing = rendered[1].new_empty(0)  # for the samples' weights, which nobody asked for
    found = fused.render_backward(
        [*grads[:3], nothing], [*rendered, nothing], planes, rays, layers, ctx.half_side, ctx.far, False
    )
    return found[0], [None] * 4, found[1:5], None, None, None, None, None


render_hierarchical.register_autograd(_backward, setup_context=_keep)
