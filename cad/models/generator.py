"""The generator of Sec. 3.1: z to w to triplanes, their decoder, and the 2D upsampler of Sec. 3.2."""

from typing import TYPE_CHECKING

from torch import Tensor, nn

from cad.models.decoder import TriplaneDecoder
from cad.models.mapping import Mapping
from cad.models.synthesis import Synthesis
from cad.models.upsampler2d import Upsampler2d

if TYPE_CHECKING:
    from cad.config import GeneratorSettings


class Generator(nn.Module):
    """Mapping, synthesis, decoder and 2D upsampler as submodules; weights are zero until `layers.initialise`."""

    def __init__(self, settings: "GeneratorSettings") -> None:
        super().__init__()
        s = settings
        self.mapping = Mapping(s.z_dim, s.w_dim, s.mapping_layers, s.mapping_lr_multiplier)
        clamp = s.activation_clamp
        self.synthesis = Synthesis(s.w_dim, s.plane_resolution, s.plane_channels, s.channel_base, s.channel_max, clamp)
        self.decoder = TriplaneDecoder(s.plane_channels, s.decoder_hidden, s.feature_channels)
        self.upsampler = Upsampler2d(
            s.feature_channels, s.raw_resolution, s.output_resolution, s.upsampler_channels, s.w_dim, clamp
        )

    def planes(self, w: Tensor) -> Tensor:
        """Triplanes [B, 3, C, N, N] of w [B, w_dim] (Eq. 4)."""
        return self.synthesis(w)
