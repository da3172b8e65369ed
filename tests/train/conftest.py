"""A tiny prior and tiny networks, on which a training takes seconds."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from cad.artifacts import PriorCacheWriter
from cad.camera import sphere_poses
from cad.config import (
    CameraSettings,
    DiscriminatorSettings,
    GeneratorSettings,
    ModelPaths,
    Stage1Settings,
    Stage2Settings,
)
from cad.context import Context
from cad.seeding import generator
from cad.train.stage1 import train_stage1
from cad.train.stage2 import train_stage2

LPIPS = Path(__file__).parents[2] / "data/weights/lpips/alexnet.safetensors"


class SilentTracker:
    """Keeps what is logged."""

    def __init__(self):
        self.logged, self.images = [], []

    def log(self, values, step):
        self.logged.append((step, dict(values)))

    def image(self, name, pixels, step):
        self.images.append((name, pixels, step))


@pytest.fixture
def camera():
    return CameraSettings(fov_deg=49.1, radius=2.0, half_side=0.7, reference_azimuth_deg=180.0)


@pytest.fixture
def shape():
    return GeneratorSettings(
        z_dim=8, w_dim=8, mapping_layers=2, mapping_lr_multiplier=0.01, plane_resolution=8, plane_channels=4,
        channel_base=64, channel_max=8, decoder_hidden=8, feature_channels=8, raw_resolution=16, output_resolution=32,
        coarse_samples=4, fine_samples=4, upsampler_channels=8, activation_clamp=None,
    )  # fmt: skip


@pytest.fixture
def judge():
    return DiscriminatorSettings(channel_base=128, channel_max=8, mbstd_group=2, pose_noise=0.0, activation_clamp=None)


SHARED = {
    "kimg": 0.012, "batch": 2, "lr_generator": 0.0025, "lr_discriminator": 0.002,
    "precision": "float32", "plane_precision": "float32", "compile": False, "beta1": 0.0, "beta2": 0.99,
    "r1_gamma": 3.0, "r1_interval": 2, "density_weight": 0.25, "density_interval": 3, "density_points": 8,
    "density_distance": 0.004, "ema_kimg": 0.01, "ema_rampup": 0.05, "checkpoint_kimg": 0.006,
    "preview_seconds": 3600.0,
}  # fmt: skip


@pytest.fixture
def first():
    return Stage1Settings(
        **SHARED, ada_enabled=True, ada_target=0.6, ada_interval=2, ada_kimg=0.02, blur_sigma=2.0, blur_kimg=0.008
    )


@pytest.fixture
def second():
    return Stage2Settings(
        **SHARED, branch_3d=True, lr_upsampler=0.002, lr_patch=0.002, plane_upsampling=2, upsampler_channels=8,
        patch_size=32, lpips_weight=1.0, patch_weight=0.2, patch_r1_gamma=3.0, patch_r1_interval=2,
        patch_channel_base=128, patch_channel_max=8,
    )  # fmt: skip


@pytest.fixture
def models():
    optional = dict.fromkeys(("controlnet", "depth", "deepfloyd_stage1", "deepfloyd_stage2"))
    return ModelPaths(zero123="-", refiner="-", clip="-", lpips=str(LPIPS), **optional)


@pytest.fixture
def context():
    return Context(seed=0, object="thing", device=torch.device("cpu"), tracker=SilentTracker())


@pytest.fixture
def prior(tmp_path):
    """A finished refine cache: 5 poses, 2 draws each, 32 px noise on white."""
    folder, poses = tmp_path / "refine", sphere_poses(5, generator("poses"))
    writer = PriorCacheWriter(folder, poses, [3, 4, 7, 8, 9], samples=2, resolution=32, shard_poses=3)
    images = np.random.default_rng(0).integers(0, 256, (5, 2, 32, 32, 3), dtype=np.uint8)
    for shard in writer.missing_shards():
        writer.write_shard(shard, images[list(writer.shard_range(shard))])
    writer.finish()
    return SimpleNamespace(folder=folder, images=images, poses=poses)


@pytest.fixture
def run1(first, shape, judge, camera, prior, context, tmp_path):
    """A function that trains stage 1 into a folder of this name."""

    def run(name, **changes):
        out = tmp_path / name
        out.mkdir(exist_ok=True)
        train_stage1(first.model_copy(update=changes), shape, judge, camera, prior.folder, out, context)
        return out

    return run


@pytest.fixture
def run2(second, camera, models, prior, context, tmp_path, run1):
    """A function that trains stage 2 into a folder of this name, after a stage 1 that is made once."""

    def run(name, **changes):
        before = tmp_path / "before"
        if not before.is_dir():
            run1("before", kimg=0.004)
        out = tmp_path / name
        out.mkdir(exist_ok=True)
        train_stage2(second.model_copy(update=changes), camera, models, before, prior.folder, out, context)
        return out

    return run
