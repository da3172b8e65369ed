"""Tiny random models of the published classes, saved to temporary folders: no download, a second to build."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import standins
import torch
from standins import RESOLUTION

from cad.artifacts import InputArtifact, PriorCacheWriter
from cad.camera import Poses
from cad.config import CameraSettings, ModelPaths, ToyworldSettings, TrackingSettings
from cad.context import Context
from cad.prior.latent_diffusion import LatentDiffusion
from cad.prior.zero123 import Zero123
from cad.toyworld.world import instance, render_views
from cad.tracking import open_tracker


@pytest.fixture(scope="session")
def zero123_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return standins.write_zero123(tmp_path_factory.mktemp("weights") / "zero123")


@pytest.fixture(scope="session")
def refiner_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return standins.write_stable_diffusion(tmp_path_factory.mktemp("weights") / "refiner")


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return standins.write_clip(tmp_path_factory.mktemp("weights") / "clip")


@pytest.fixture(scope="session")
def published_refiners(tmp_path_factory: pytest.TempPathFactory, refiner_folder: Path) -> ModelPaths:
    """Stand-ins of all that the paper's two refiners load."""
    place = tmp_path_factory.mktemp("weights")
    first, second = standins.write_deepfloyd(place / "deepfloyd")
    return standins.model_paths(
        refiner=refiner_folder,
        controlnet=standins.write_controlnet(place / "controlnet"),
        depth=standins.write_depth(place / "depth"),
        deepfloyd_stage1=first,
        deepfloyd_stage2=second,
    )


@pytest.fixture(scope="session")
def zero123(zero123_folder: Path) -> Zero123:
    return Zero123.load(zero123_folder, torch.device("cpu"), torch.float32)


@pytest.fixture(scope="session")
def refiner(refiner_folder: Path) -> LatentDiffusion:
    return LatentDiffusion.load(refiner_folder, torch.device("cpu"), torch.float32)


CAMERA = CameraSettings(fov_deg=49.1, radius=2.0, half_side=0.7, reference_azimuth_deg=180.0)
TOYWORLD = ToyworldSettings(family="robot", seed=900001)


@pytest.fixture
def camera() -> CameraSettings:
    return CAMERA


@pytest.fixture
def models(zero123_folder: Path, refiner_folder: Path, clip_folder: Path) -> ModelPaths:
    return standins.model_paths(zero123=zero123_folder, refiner=refiner_folder, clip=clip_folder)


@pytest.fixture
def context() -> Iterator[Context]:
    with open_tracker(TrackingSettings(mode="disabled", project="cad"), "test", "robot", {}, {}) as tracker:
        yield Context(seed=0, object="robot", device=torch.device("cpu"), tracker=tracker)


@pytest.fixture
def input_dir(tmp_path: Path) -> Path:
    """The toyworld robot's reference view at the tiny models' size."""
    pose = Poses(azimuth=torch.tensor([np.pi]), polar=torch.tensor([np.radians(70.0)]))
    view = render_views(instance(TOYWORLD.family, TOYWORLD.seed), pose, CAMERA, RESOLUTION)
    InputArtifact.write(
        tmp_path / "input", view.images[0], view.silhouettes[0], "a toy robot", "robot", 180.0, 70.0, "none"
    )
    return tmp_path / "input"


@pytest.fixture
def make_cache(tmp_path: Path) -> Callable[[Poses, np.ndarray], Path]:
    """Write images uint8 [M, N, H, W, 3] at poses as a prior cache and return its folder."""

    def make(poses: Poses, images: np.ndarray) -> Path:
        folder = tmp_path / "prior"
        writer = PriorCacheWriter(folder, poses, list(range(len(poses))), images.shape[1], images.shape[2], 2)
        for k in writer.missing_shards():
            writer.write_shard(k, images[list(writer.shard_range(k))])
        writer.finish()
        return folder

    return make
