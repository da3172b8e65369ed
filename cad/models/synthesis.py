"""The StyleGAN2 backbone that draws the triplanes (Eq. 4)."""

import torch
from torch import Tensor, nn

from cad.models.layers import Layer, StyleBlock, channels_innermost, doublings, innermost_gradient, redraw

START = 4  # resolution of the learned constant


class Start(Layer):
    """The learned constant that synthesis grows from, [1, C, 4, 4]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.zeros(1, channels, START, START))

    def draw(self, generator: torch.Generator) -> None:
        """Unit normal."""
        redraw(self.value, 1, generator)

    def forward(self, batch: int) -> Tensor:
        """The constant for every sample, [batch, C, 4, 4]."""
        return self.value.expand(batch, -1, -1, -1)


class Synthesis(nn.Module):
    """Skip architecture from w [B, w_dim] to triplanes [B, 3, C, N, N]; one w for all layers (no style mixing).

    A block at resolution r has min(base / r, maximum) channels.
    """

    def __init__(
        self, w_dim: int, resolution: int, plane_channels: int, base: int, maximum: int, clamp: float | None
    ) -> None:
        super().__init__()
        steps = doublings(START, resolution, "generator.plane_resolution")
        widths = [max(1, min(base // (START << k), maximum)) for k in range(steps + 1)]
        self.start = Start(widths[0])
        self.outputs = 3 * plane_channels
        self.blocks = nn.ModuleList(
            StyleBlock(widths[max(k - 1, 0)], widths[k], self.outputs, w_dim, 2 if k else 1, 1.0, clamp)
            for k in range(steps + 1)
        )

    def forward(self, w: Tensor) -> Tensor:
        """Triplanes [B, 3, C, N, N], in the order (x, y), (x, z), (y, z)."""
        x = channels_innermost(self.start(w.shape[0]))
        planes = x.new_zeros(w.shape[0], self.outputs, START, START)
        for block in self.blocks:
            x, planes = block(x, planes, w)
        return innermost_gradient(planes).unflatten(1, (3, -1))
