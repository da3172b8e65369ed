"""A world small enough to render and train on in seconds: 16 px, two instances a family, a few channels."""

from pathlib import Path

import pytest
import torch

from cad.config import CameraSettings
from cad.toyworld.autoencoder import build_autoencoder, save_autoencoder
from cad.toyworld.clip import build_clip, save_clip, train_tokenizer
from cad.toyworld.dataset import Dataset, render_dataset
from cad.toyworld.settings import ToyworldSettings

FIT = {"steps": 2, "batch": 4, "lr": 1e-3, "warmup": 1, "cooldown": 0.5, "ema": 0.9, "bf16": False}
CLIP = {"patch": 8, "width": 16, "vision_layers": 1, "text_layers": 1, "fit": FIT}
UNET = {
    "channels": [16, 16], "attention": [False, True], "heads": 4, "layers": 1,
    "foreground_weight": 2.0, "low_noise_share": 0.5, "low_noise": 0.5, "fit": FIT,
}  # fmt: skip
CAMERA = CameraSettings(fov_deg=49.1, radius=2.0, half_side=0.7, reference_azimuth_deg=180.0)
SETTINGS = ToyworldSettings.model_validate(
    {
        "seed": 0,
        "camera": CAMERA.model_dump(),
        "data": {
            "resolution": 16, "train_instances": 2, "held_out_instances": 2, "references": 2, "targets": 2,
            "reference_spread_deg": 45.0, "reference_polar_deg": (50.0, 90.0),
        },
        "clip": CLIP,
        "clip_evaluation": CLIP | {"patch": 4},
        "autoencoder": {
            "channels": [8, 8], "foreground_weight": 7.0, "kl_weight": 1e-6, "squared_weight": 1.0,
            "perceptual_weight": 0.5, "latent_weight": 1.0, "fit": FIT, "sharpen": FIT,
        },
        "zero123": UNET,
        "refiner": UNET,
        "depth": {"patch": 4, "width": 8, "neck": 4, "heads": 2, "foreground_weight": 2.0, "fit": FIT},
        "controlnet": {"width": 8, "foreground_weight": 2.0, "low_noise_share": 0.5, "low_noise": 0.8, "fit": FIT},
        "check": {
            "instances": 1, "captions": 4, "views": 1, "min_angle_deg": 20.0, "steps": 2, "guidance": 3.0, "eta": 1.0,
            "strength": 0.5, "refine_guidance": 2.0, "refine_steps": 2,
            "control_strengths": [0.5, 1.0], "conditioning_scale": 1.0, "bf16": False, "caption": "specific",
            "draw_poses": 3, "raw_samples": 2, "draws": 2, "white_threshold": 240, "part_pixels": 2,
            "side_margin": 0.1, "batch": 3,
        },
        "pruning": {
            "instances": 1, "poses": 2, "reference_polar_deg": 70.0, "max_bad_pixels": [10, 256],
            "min_clip_similarity": [-1.0, 0.9], "min_recall": 0.5, "draws": 20,
        },
        "elevation": {"instances": 1},
        "refinement": {
            "instances": 2, "views": 2, "draws": 2, "strengths": [0.5, 1.0], "steps": 2, "shown": 1,
            "generated": {"robot-strength-04": 0.4, "robot": 0.684},
        },
    }
)  # fmt: skip


@pytest.fixture(scope="session")
def settings() -> ToyworldSettings:
    return SETTINGS


@pytest.fixture
def camera() -> CameraSettings:
    return CAMERA


@pytest.fixture(scope="session")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A work folder with the views of both splits."""
    folder = tmp_path_factory.mktemp("toyworld")
    data = SETTINGS.data
    render_dataset(data, CAMERA, "train", data.train_instances, folder / "train")
    render_dataset(data, CAMERA, "held-out", data.held_out_instances, folder / "held-out")
    return folder


@pytest.fixture(scope="session")
def data(work: Path) -> Dataset:
    return Dataset(SETTINGS.data, "train", SETTINGS.data.train_instances, work / "train")


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory, data: Dataset) -> Path:
    """A weights folder with an untrained CLIP and autoencoder, in the form that training leaves behind."""
    folder = tmp_path_factory.mktemp("weights")
    tokenizer = train_tokenizer(folder / "vocabulary")
    save_clip(build_clip(SETTINGS.clip, 16, tokenizer, 1), tokenizer, 16, folder / "clip", True)
    with torch.no_grad():
        save_autoencoder(build_autoencoder(SETTINGS.autoencoder, 16, 2), data, 0, folder / "autoencoder")
    return folder
