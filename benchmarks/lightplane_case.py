"""Lightplane's published renderer at the shapes of `benchmarks/render.py`, where its package can be imported.

It does work of the same size, not the same work: even samples, as many as ours in both passes together, each evaluated
once, where ours evaluates half of them before it knows where the others belong; a hidden layer and then one layer each
for opacity and colour; its own activations. Its weights are its own, since they change nothing in the time. Written
after its documentation (lightplane 0.1); triton compiles it.
"""

import functools
from typing import Any

import torch
from torch import Tensor

from cad.render.fused import FusedDecoder
from cad.render.reference import Rendered, Sampling, chord


def render_rays(
    planes: Tensor,
    decoder: FusedDecoder,
    origins: Tensor,
    directions: Tensor,
    sampling: Sampling,
    jitter: torch.Generator | None,
) -> Rendered:
    """Like `cad.render.reference.render_rays` in its arguments and in the shapes of what it returns.

    Raises ImportError where Lightplane is not installed.
    """
    import lightplane

    batch, count = origins.shape[:2]
    hidden, features = decoder.fused_layers()[0].shape[0], decoder.fused_layers()[3].shape[0] - 1
    layers = _layers(planes.device, planes.shape[2], hidden, features)
    enter, leave = (x.flatten() / sampling.half_side for x in chord(origins, directions, sampling))
    rays = lightplane.Rays(
        directions=directions.reshape(-1, 3).contiguous(),
        origins=(origins / sampling.half_side).reshape(-1, 3).contiguous(),
        grid_idx=torch.arange(batch, device=planes.device).repeat_interleave(count),
        near=enter.contiguous(),
        far=leave.contiguous(),
        encoding=origins.new_zeros(batch * count, hidden),
    )
    grids = [plane.permute(0, 2, 3, 1).float() for plane in planes.unbind(1)]  # [B, N, N, C], in which z, y, x lie
    depth, passed, seen = lightplane.lightplane_renderer(
        rays,
        [grids[0][:, None], grids[1][:, :, None], grids[2][:, :, :, None]],
        layers,
        num_samples=sampling.coarse + sampling.fine,
        gain=sampling.half_side,
    )
    opacity = 1 - torch.exp(-passed)
    return Rendered(*(x.reshape(batch, count, -1) for x in (seen, opacity, depth * sampling.half_side)))


@functools.cache
def _layers(device: torch.device, channels: int, hidden: int, features: int) -> Any:
    """A decoder in Lightplane's terms, that learns."""
    import lightplane

    layers = lightplane.init_decoder_params(
        device,
        n_layers_opacity=1,
        n_layers_trunk=1,
        n_layers_color=1,
        input_chn=channels,
        hidden_chn=hidden,
        color_chn=features,
    )
    layers.mlp_params.requires_grad_()
    return layers
