"""The light-weight decoder M from plane features to radiance and density (Eq. 9)."""

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from cad.models.layers import Linear


class TriplaneDecoder(nn.Module):
    """One hidden layer, no view direction: summed features [B, C, P] to density [B, P] and radiance [B, F, P].

    Points are the innermost axis throughout: that is how plane sampling delivers them and how rays sum them up.
    """

    def __init__(self, channels: int, hidden: int, features: int) -> None:
        super().__init__()
        # At the start the raw density is about 0: light passes through the box, which is neither opaque nor empty,
        # so density gets a gradient everywhere.
        self.hidden = Linear(channels, hidden, bias=0.0, rate=1.0)
        self.out = Linear(hidden, 1 + features, bias=0.0, rate=1.0)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Density softplus(raw - 1) per scene unit, and radiance in (-0.001, 1.001): a sigmoid that reaches 0 and 1."""
        out = along_points(self.out, softplus(along_points(self.hidden, features)))
        raw, color = out.split([1, out.shape[1] - 1], dim=1)  # one copy on the way back, where slices would make four
        return softplus(raw[:, 0] - 1), torch.add(color.new_tensor(-0.001), color.sigmoid(), alpha=1.002)

    def fused_layers(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Weight and bias of the hidden and of the output layer as they act, with which the fused renderer works."""
        return *self.hidden.scaled(), *self.out.scaled()

    def raw_density(self, features: Tensor) -> Tensor:
        """The density before its activation, [B, P]."""
        return along_points(self.out, softplus(along_points(self.hidden, features)))[:, 0]


def along_points(layer: Linear, x: Tensor) -> Tensor:
    """Apply a linear layer to channels-first points, [B, inputs, P] to [B, outputs, P], without transposing them."""
    weight, bias = layer.scaled()
    return torch.baddbmm(bias[None, :, None], weight.expand(len(x), -1, -1), x)
