"""Depth from one picture, for the ControlNet of Sec. 3.3: DPT (MiDaS) in the layout of its published conversions."""

from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import DPTForDepthEstimation, DPTImageProcessor

from cad.prior.ddim import full_precision
from cad.prior.weights import load_network, load_plain

# The first fusion layer has nothing to fuse with: its residual branch is never run, and Intel's files lack it.
IDLE = ("neck.fusion_stage.layers.0.residual_layer1.",)


class DepthEstimator:
    """DPT and the preparation of its input; it computes in float32, being run once per picture."""

    def __init__(self, network: DPTForDepthEstimation, processor: DPTImageProcessor):
        self.network = network
        self.processor = processor

    @classmethod
    def load(cls, folder: Path | str, device: torch.device) -> "DepthEstimator":
        """Load a local folder or a hub id, frozen; raises UserError naming the part that is missing or broken."""
        return cls(
            network=load_network(DPTForDepthEstimation, folder, "", device, torch.float32, IDLE),
            processor=load_plain(DPTImageProcessor, folder, "", "preprocessor_config.json"),
        )

    @torch.no_grad()
    def estimate(self, images: Tensor, side: int) -> Tensor:
        """Nearness [B, 3, side, side] in [0, 1] of images [B, 3, H, H] in [-1, 1], as depth ControlNets are trained on.

        MiDaS predicts inverse depth up to scale and shift, so each picture's nearest point is 1 and its farthest 0
        (a flat prediction is 0 throughout); the three channels are equal. Enlarged bicubically, as by transformers.
        """
        pixels = ((images.float() + 1) / 2).clamp(0, 1)
        # Rescaling is from grey levels to [0, 1], which these are in already.
        prepared = self.processor(images=pixels, do_rescale=False, return_tensors="pt").pixel_values
        with full_precision(images.device):
            inverse = self.network(prepared.to(images.device)).predicted_depth[:, None]
        inverse = nn.functional.interpolate(inverse, size=(side, side), mode="bicubic", align_corners=False)
        least, most = inverse.amin((1, 2, 3), keepdim=True), inverse.amax((1, 2, 3), keepdim=True)
        near = (inverse - least) / (most - least).clamp(min=torch.finfo(inverse.dtype).tiny)
        return near.expand(-1, 3, -1, -1)
