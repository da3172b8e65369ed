"""The mapping network from z to w (Sec. 3.1)."""

from itertools import pairwise

import torch
from torch import Tensor, nn

from cad.models.layers import GAIN, Linear, activate

CENTRE_DRAWS = 4096  # latents whose mean w is the centre of truncation [ours]


class Mapping(nn.Module):
    """Fully connected layers from z [B, z_dim] to w [B, w_dim]; not conditioned on the pose (Appendix C)."""

    def __init__(self, z_dim: int, w_dim: int, layers: int, rate: float) -> None:
        super().__init__()
        sizes = [z_dim] + [w_dim] * layers
        self.layers = nn.ModuleList(Linear(i, o, bias=0.0, rate=rate, gain=GAIN) for i, o in pairwise(sizes))
        self.z_dim = z_dim

    def forward(self, z: Tensor, truncation: float) -> Tensor:
        """w [B, w_dim], moved towards the mean w: 1 leaves it, 0 gives the mean."""
        w = self.map(z)
        return w if truncation == 1 else torch.lerp(self.centre().expand_as(w), w, truncation)

    def map(self, z: Tensor) -> Tensor:
        """w of z [B, z_dim], which is normalised to unit mean square first."""
        x = z * torch.rsqrt(z.square().mean(-1, keepdim=True) + 1e-8)
        for layer in self.layers:
            x = activate(layer(x), None)
        return x

    def centre(self) -> Tensor:
        """The mean w [w_dim] of fixed draws: a function of the weights alone, not a running average ([ours])."""
        weight = next(self.parameters())
        z = torch.randn(CENTRE_DRAWS, self.z_dim, generator=torch.Generator().manual_seed(0))
        return self.map(z.to(weight)).mean(0)
