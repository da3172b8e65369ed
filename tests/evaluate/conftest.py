"""A tiny CLIP folder, an input, a stage-2 checkpoint with random weights, and a tracker that only listens."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTextConfig, CLIPTokenizer, CLIPVisionConfig

from cad.artifacts import Checkpoint, InputArtifact, PriorCacheWriter
from cad.camera import sphere_poses
from cad.config import CameraSettings, GeneratorSettings, ModelPaths, ObjectSettings, OrbitSettings
from cad.context import Context
from cad.models.generator import Generator
from cad.models.layers import initialise
from cad.seeding import generator
from cad.toyworld import world

PROMPT = "a toy mug"
SIDE = 32  # LPIPS needs 31
WEIGHTS = Path(__file__).parents[2] / "data/weights"


class Listener:
    """Remembers what a stage tracks."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def log(self, values: dict[str, float], step: int) -> None:
        self.seen += values

    def image(self, name: str, pixels: np.ndarray, step: int) -> None:
        self.seen.append(name)

    def video(self, name: str, path: Path) -> None:
        self.seen.append(name)

    def table(self, name: str, *content: Any, **more: Any) -> None:
        self.seen.append(name)


@pytest.fixture
def context() -> Context:
    return Context(seed=3, object="mug", device=torch.device("cpu"), tracker=Listener())  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def camera() -> CameraSettings:
    return CameraSettings(fov_deg=49.1, radius=2.0, half_side=0.7, reference_azimuth_deg=180.0)


@pytest.fixture
def orbit_settings() -> OrbitSettings:
    return OrbitSettings(frames=6, seeds=2, fps=6, batch=4, coarse_samples=4, fine_samples=4, truncation=1.0)


@pytest.fixture(scope="session")
def source() -> ObjectSettings:
    values = {"image": "image.png", "prompt": "prompt.txt", "reference_polar_deg": 70.0, "framed": True}
    return ObjectSettings.model_validate({**values, "toyworld": {"family": "mug", "seed": 1_000_001}})


@pytest.fixture(scope="session")
def input_dir(tmp_path_factory: pytest.TempPathFactory, camera: CameraSettings) -> Path:
    """The mug's true view at the reference pose."""
    from cad.camera import orbit_poses

    folder = tmp_path_factory.mktemp("run") / "input"
    views = world.render_views(world.instance("mug", 1_000_001), orbit_poses(1, np.radians(70), np.pi), camera, SIDE)
    InputArtifact.write(folder, views.images[0], views.silhouettes[0], PROMPT, "mug", 180.0, 70.0, "0" * 64)
    return folder


@pytest.fixture(scope="session")
def refine_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Refined samples of noise: three poses, two draws each."""
    folder = tmp_path_factory.mktemp("run") / "refine"
    images = np.random.default_rng(0).integers(0, 256, (3, 2, SIDE, SIDE, 3), dtype=np.uint8)
    writer = PriorCacheWriter(folder, sphere_poses(3, generator("poses")), [0, 4, 5], 2, SIDE, 3)
    writer.write_shard(0, images)
    writer.finish()
    return folder


@pytest.fixture(scope="session")
def models() -> ModelPaths:
    """Paths of which only the LPIPS trunk exists: no test here loads the others."""
    nowhere = {name: "nowhere" for name in ModelPaths.model_fields}
    return ModelPaths.model_validate({**nowhere, "lpips": str(WEIGHTS / "lpips/alexnet.safetensors")})


@pytest.fixture(scope="session")
def stage2_dir(tmp_path_factory: pytest.TempPathFactory, camera: CameraSettings) -> Path:
    """A checkpoint of random weights without an upsampler of planes."""
    folder = tmp_path_factory.mktemp("run") / "stage2"
    shape = GeneratorSettings(
        z_dim=8, w_dim=8, mapping_layers=2, mapping_lr_multiplier=0.01, plane_resolution=8, plane_channels=4,
        channel_base=64, channel_max=8, decoder_hidden=8, feature_channels=8, raw_resolution=8, output_resolution=SIDE,
        coarse_samples=4, fine_samples=4, upsampler_channels=8, activation_clamp=None,
    )  # fmt: skip
    network = Generator(shape)
    initialise(network, generator("weights"))
    weights = network.state_dict()
    state = {"settings": {"generator": shape.model_dump(), "camera": camera.model_dump()}, "step": 1, "images": 2}
    Checkpoint.write(folder, "stage2", {"generator_ema": weights}, state)
    return folder


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights") / "clip"
    return save_clip(folder, 0)


def save_clip(folder: Path, seed: int) -> Path:
    """A random CLIP of a few thousand weights with a tokenizer of single letters."""
    folder.mkdir(parents=True)
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: index for index, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer.from_pretrained(folder, model_max_length=16)
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    ids = {key: getattr(tokenizer, key) for key in ("eos_token_id", "bos_token_id", "pad_token_id")}
    text = CLIPTextConfig(vocab_size=len(words), max_position_embeddings=16, projection_dim=12, **ids, **small)
    vision = CLIPVisionConfig(image_size=8, patch_size=4, projection_dim=12, **small)
    torch.manual_seed(seed)
    model = CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=12))
    for saved in (model, tokenizer, CLIPImageProcessor(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8})):
        saved.save_pretrained(folder)
    return folder
