"""The 2D upsampler from the raw rendering to the image (Sec. 3.2): the branch that stage 2 bakes into 3D."""

from itertools import pairwise

from torch import Tensor, nn

from cad.models.layers import StyleBlock, channels_innermost, doublings, innermost_gradient

# Deviation of the colour layers' first weights [ours]: at StyleGAN2's 1 the random blocks drown the rendering (standard
# deviation 1.3 against 0.2 at mini sizes), and the first images would teach them instead of the volume.
START = 0.1


class Upsampler2d(nn.Module):
    """StyleGAN2 blocks modulated by w, one per doubling; each adds its colours to the enlarged raw rendering.

    The first block has `channels` channels, each next one half of them. Equal resolutions leave the raw rendering.
    """

    def __init__(
        self,
        features: int,
        raw_resolution: int,
        output_resolution: int,
        channels: int,
        w_dim: int,
        clamp: float | None,
    ) -> None:
        super().__init__()
        steps = doublings(raw_resolution, output_resolution, "generator.output_resolution")
        widths = [features] + [max(1, channels >> k) for k in range(steps)]
        self.blocks = nn.ModuleList(StyleBlock(i, o, 3, w_dim, 2, START, clamp) for i, o in pairwise(widths))

    def forward(self, features: Tensor, rgb: Tensor, w: Tensor) -> Tensor:
        """features [B, F, r, r] in [0, 1], rgb [B, 3, r, r] in [-1, 1], w [B, w_dim] to [B, 3, out, out].

        The image is meant for [-1, 1] and not clamped: the loss must see, and push back, what overshoots.
        """
        # Channels innermost: half the time of a step's convolutions on a CPU.
        x = channels_innermost(features * 2 - 1)
        for block in self.blocks:
            x, rgb = block(x, rgb, w)
        return innermost_gradient(rgb)
