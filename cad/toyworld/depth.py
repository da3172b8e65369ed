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
from cad.toyworld.dataset import Dataset
from cad.toyworld.fit import fit
from cad.toyworld.settings import DepthSettings
from cad.toyworld.world import render_views

UNUSED = (*IDLE, "dpt.layernorm.")  # the depth is made of the layers' outputs before the last normalisation
REASSEMBLE = [4, 2, 1, 0.5]  # sides of the four feature maps over the patches', as in DPT; hence four layers


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
        neck_hidden_sizes=[settings.width] * len(REASSEMBLE),
        fusion_hidden_size=settings.width,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = DPTForDepthEstimation(config)
    return DepthEstimator(network, DPTImageProcessor(size={"height": side, "width": side}))


def nearness(depth: np.ndarray, camera: CameraSettings) -> Tensor:
    """Inverse depth [..., H, W] from ray lengths in scene units (inf: nothing), from 1 at the box's near end to 0.

    The background counts as the far end, beyond which nothing is; MiDaS predicts inverse depth, too.
    """
    reach = camera.half_side * 3**0.5
    near, far = 1 / (camera.radius - reach), 1 / (camera.radius + reach)
    with np.errstate(divide="ignore"):
        inverse = torch.from_numpy(1 / np.maximum(depth, 1e-6))
    return ((inverse - far) / (near - far)).clamp(0, 1)


def true_nearness(data: Dataset, subjects: Tensor, views: Tensor, camera: CameraSettings) -> Tensor:
    """`nearness` [B, H, W] of these instances' views (positions, [B] each), rendered again."""
    side = data.images.shape[2]
    rendered = []
    for i, v in zip(subjects.tolist(), views.tolist(), strict=True):
        pose = Poses(azimuth=data.azimuth[i, v : v + 1], polar=data.polar[i, v : v + 1])
        rendered.append(render_views(data.instances[i], pose, camera, side).depth[0])
    return nearness(np.stack(rendered), camera)


def train_depth(
    settings: DepthSettings,
    data: Dataset,
    camera: CameraSettings,
    seed: int,
    work: Path,
    out: Path,
    report: Callable[[str], None],
) -> None:
    """Train on views and their true depth by mean absolute error; write `out` in float16, as DPT is published."""
    side = data.images.shape[2]
    model = build_depth(settings, side, seed_for(seed, "depth"))

    def loss(step: int) -> Tensor:
        stream = generator(seed, "depth", step)
        subjects = torch.randint(len(data), (settings.fit.batch,), generator=stream)
        views = torch.randint(data.views, (settings.fit.batch,), generator=stream)
        predicted = model.network(data.pick(subjects, views)).predicted_depth[:, None]
        predicted = nn.functional.interpolate(predicted, size=(side, side), mode="bilinear", align_corners=False)[:, 0]
        return (predicted - true_nearness(data, subjects, views, camera)).abs().mean()

    for name, parameter in model.network.named_parameters():
        parameter.requires_grad_(not name.startswith(UNUSED))  # what gets no gradient has no moments to save
    fit(model.network, loss, settings.fit, work, report)
    model.network.half().save_pretrained(out)
    model.processor.save_pretrained(out)
