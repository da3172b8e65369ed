"""Tiny random models of the published classes, saved to temporary folders: no download, a second to build."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from cad.artifacts import InputArtifact, PriorCacheWriter
from cad.camera import Poses
from cad.config import CameraSettings, ModelPaths, ToyworldSettings, TrackingSettings
from cad.context import Context
from cad.prior.latent_diffusion import LatentDiffusion
from cad.prior.zero123 import CCProjection, Zero123
from cad.toyworld.world import instance, render_views
from cad.tracking import open_tracker

RESOLUTION = 16  # images; latents are 8 x 8
EMBED = 12  # CLIP's shared space, and Zero-1-to-3's image embedding
CROSS = 16  # the UNets' cross-attention width


def tiny_vae() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=RESOLUTION,
        scaling_factor=0.5,
    )


def tiny_unet(channels: int) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=RESOLUTION // 2,
        in_channels=channels,
        out_channels=4,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=CROSS,
        attention_head_dim=4,
        norm_num_groups=4,
    )


def scheduler(prediction_type: str = "epsilon") -> DDIMScheduler:
    """The published Zero-1-to-3 and Stable Diffusion schedule."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction_type,
    )


def vision_config() -> CLIPVisionConfig:
    return CLIPVisionConfig(
        image_size=8, patch_size=4, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        projection_dim=EMBED,
    )  # fmt: skip


def image_processor() -> CLIPImageProcessor:
    return CLIPImageProcessor(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8})


def tiny_tokenizer(folder: Path) -> CLIPTokenizer:
    """Byte-level CLIP tokenizer without merges: one token per character."""
    folder.mkdir(parents=True, exist_ok=True)
    letters = "abcdefghijklmnopqrstuvwxyz,"
    words = list(letters) + [f"{letter}</w>" for letter in letters] + ["<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: index for index, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer.from_pretrained(folder, model_max_length=24)


def text_config(tokenizer: CLIPTokenizer) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=CROSS, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=24, projection_dim=EMBED,
        eos_token_id=tokenizer.eos_token_id, bos_token_id=tokenizer.bos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip


@pytest.fixture(scope="session")
def zero123_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights") / "zero123"
    torch.manual_seed(0)
    model = Zero123(
        vae=tiny_vae(),
        unet=tiny_unet(8),
        image_encoder=CLIPVisionModelWithProjection(vision_config()),
        feature_extractor=image_processor(),
        cc_projection=CCProjection(in_channel=EMBED + 4, out_channel=CROSS),
        scheduler=scheduler(),
    )
    model.save(folder)
    return folder


@pytest.fixture(scope="session")
def refiner_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("weights")
    tokenizer = tiny_tokenizer(root / "vocabulary")
    torch.manual_seed(1)
    model = LatentDiffusion(
        vae=tiny_vae(),
        unet=tiny_unet(4),
        text_encoder=CLIPTextModel(text_config(tokenizer)),
        tokenizer=tokenizer,
        scheduler=scheduler(),
    )
    model.save(root / "refiner")
    return root / "refiner"


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights") / "clip"
    tokenizer = tiny_tokenizer(folder)
    torch.manual_seed(2)
    config = CLIPConfig(
        text_config=text_config(tokenizer).to_dict(), vision_config=vision_config().to_dict(), projection_dim=EMBED
    )
    CLIPModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    image_processor().save_pretrained(folder)
    return folder


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
    return ModelPaths(zero123=str(zero123_folder), refiner=str(refiner_folder), clip=str(clip_folder), lpips="none")


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
