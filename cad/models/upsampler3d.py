"""The 3D upsampler of stage 2 (Sec. 3.2, Fig. 3): coarse triplanes to finer ones, sharing w with the 2D branch."""

from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from cad.models.layers import StyleBlock, doublings, innermost_gradient

if TYPE_CHECKING:
    from cad.config import Stage2Settings


class PlaneUpsampler(nn.Module):
    """StyleGAN2 blocks per plane, modulated by the shared w: enlarged planes plus detail.

    The paper says only "a compact 3D upsampler" following Mimic3D [17]; the rest is [ours]. Each plane sees itself and
    the other two, averaged over the axis that it doesn't share with them, so that detail can agree in 3D. Such profiles
    stay rows and columns in the first convolution. Detail starts at zero: stage 2 begins with the very volume that
    stage 1 ended with.
    """

    def __init__(self, settings: "Stage2Settings", plane_channels: int, w_dim: int, clamp: float | None) -> None:
        super().__init__()
        steps = doublings(1, settings.plane_upsampling, "stage2.plane_upsampling")
        widths = [3 * plane_channels] + [max(1, settings.upsampler_channels >> k) for k in range(steps)]
        self.blocks = nn.ModuleList(
            nn.ModuleList(StyleBlock(i, o, plane_channels, w_dim, 2, 0.0, clamp) for i, o in pairwise(widths))
            for _ in range(3)
        )

    def forward(self, planes: Tensor, w: Tensor) -> Tensor:
        """planes [B, 3, C, N, N], w [B, w_dim] to [B, 3, C, kN, kN]."""
        finer = []
        for x, skip, blocks in zip(with_others(planes), planes.unbind(1), self.blocks, strict=True):
            for block in blocks:  # type: ignore[attr-defined]  # ModuleList iterates as plain modules
                x, skip = block(x, skip, w)
            finer.append(skip)
        return innermost_gradient(torch.cat(finer, 1)).unflatten(1, (3, -1))


def with_others(planes: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Each plane [B, C, N, N] beside averages of the other two along its width [B, C, 1, N] and height [B, C, N, 1].

    planes: [B, 3, C, N, N], the first axis of (x, y), (x, z), (y, z) along the width (last dimension). A profile
    along a shared axis is constant along the plane's other axis.
    """
    xy, xz, yz = planes.unbind(1)
    rows = [plane.mean(2, keepdim=True) for plane in (xz, xy)] + [xy.mean(3, keepdim=True).mT]  # x, x, y
    columns = [yz.mean(2, keepdim=True).mT] + [plane.mean(3, keepdim=True) for plane in (yz, xz)]  # y, z, z
    return list(zip((xy, xz, yz), rows, columns, strict=True))
