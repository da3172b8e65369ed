"""Training of the small depth estimator, a DPT like the published one, on the depth that the renderer knows."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers import DPTConfig, DPTForDepthEstimation, DPTImageProcessor

from cad.camera import Poses
from cad.config import CameraSettings
from cad.prior.depth import IDLE, DepthEstimator
from cad.seeding import generator, seed_for
from cad.toyworld.autoencoder import foreground
from cad.toyworld.dataset import Dataset
from cad.toyworld.fit import fit
from cad.toyworld.settings import DepthSettings
from cad.toyworld.world import render_views

UNUSED = (*IDLE, "dpt.layernorm.")  # the depth is made of the layers' outputs before the last normalisation
# Sides of the four feature maps over the patches', half of DPT's: small patches lose less. Hence four layers.
REASSEMBLE = [2, 1, 0.5, 0.25]


def build_depth(settings: DepthSettings, side: int, seed: int) -> DepthEstimator:
    """A DPT for pictures of `side` pixels with fresh weights drawn from the seed."""
    config = DPTConfig(
        hidden_size=settings.width,
        num_hidden_layers=len(REASSEMBLE),
        num_attention_heads=settings.heads,
        intermediate_size=4 * settings.width,
        image_size=side,
        patch_size=settings.patch,
        backbone_out_indices=list(range(len(REASSEMBLE))),
        reassemble_factors=REASSEMBLE,
        neck_hidden_sizes=[settings.neck] * len(REASSEMBLE),
        fusion_hidden_size=settings.neck,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = DPTForDepthEstimation(config)
    # Before the last ReLU, where a start below 0 would be the end; the objects are 2 away.
    nn.init.constant_(network.head.head[-2].bias, 0.5)
    return DepthEstimator(network, DPTImageProcessor(size={"height": side, "width": side}))


def inverse_depth(depth: np.ndarray, camera: CameraSettings) -> Tensor:
    """What MiDaS predicts, [..., H, W] in 1 / scene unit, of ray lengths in scene units (inf: nothing).

    It ends where the box does: the background counts as the box's far end, so that nothing is near DPT's last ReLU,
    behind which a prediction of 0 would get no gradient any more.
    """
    reach = camera.half_side * 3**0.5
    inside = np.clip(depth, camera.radius - reach, camera.radius + reach)
    return torch.from_numpy(1 / inside)


def true_inverse_depth(data: Dataset, subjects: Tensor, views: Tensor, camera: CameraSettings) -> Tensor:
    """`inverse_depth` [B, H, W] of these instances' views (positions, [B] each), rendered again."""
    side = data.images.shape[2]
    rendered = []
    for i, v in zip(subjects.tolist(), views.tolist(), strict=True):
        pose = Poses(azimuth=data.azimuth[i, v : v + 1], polar=data.polar[i, v : v + 1])
        rendered.append(render_views(data.instances[i], pose, camera, side).depth[0])
    return inverse_depth(np.stack(rendered), camera)


def train_depth(
    settings: DepthSettings,
    data: Dataset,
    camera: CameraSettings,
    seed: int,
    work: Path,
    out: Path,
    report: Callable[[str], None],
) -> None:
    """Train on views and their true depth by mean absolute error, the object's pixels weighted; write `out` in float16.

    The weight is there because of the background: with most pixels at one value, that value is the error's minimum.
    """
    side = data.images.shape[2]
    model = build_depth(settings, side, seed_for(seed, "depth"))

    def loss(step: int) -> Tensor:
        stream = generator(seed, "depth", step)
        subjects = torch.randint(len(data), (settings.fit.batch,), generator=stream)
        views = torch.randint(data.views, (settings.fit.batch,), generator=stream)
        images = data.pick(subjects, views)
        predicted = model.network(images).predicted_depth[:, None]
        predicted = nn.functional.interpolate(predicted, size=(side, side), mode="bilinear", align_corners=False)[:, 0]
        error = (predicted - true_inverse_depth(data, subjects, views, camera)).abs()
        weights = 1 + (settings.foreground_weight - 1) * foreground(images)[:, 0].float()
        return (weights * error).sum() / weights.sum()

    for name, parameter in model.network.named_parameters():
        parameter.requires_grad_(not name.startswith(UNUSED))  # what gets no gradient has no moments to save
    fit(model.network, loss, settings.fit, work, report)
    model.network.half().save_pretrained(out)
    model.processor.save_pretrained(out)
