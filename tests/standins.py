"""Stand-ins of the published checkpoints: the same classes, files and configuration keys, random weights, tiny sizes.

Written by each test run in a second or so, and read by the loaders that read the published ones. Every `write_*` gives
the folder it wrote; weights are functions of a seed.
"""

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, ControlNetModel, DDIMScheduler, DDPMScheduler, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    DPTConfig,
    DPTForDepthEstimation,
    DPTImageProcessor,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from cad.config import ModelPaths
from cad.prior.latent_diffusion import LatentDiffusion
from cad.prior.zero123 import CCProjection, Zero123

RESOLUTION = 16  # images; latents are 8 x 8
EMBED = 12  # CLIP's shared space, and Zero-1-to-3's image embedding
CROSS = 16  # the latent UNets' cross-attention width
LETTERS = "abcdefghijklmnopqrstuvwxyz,"
# What the published DPT folders lack: nothing is computed with it.
IDLE = "neck.fusion_stage.layers.0.residual_layer1."


def model_paths(**given: Path | str | None) -> ModelPaths:
    """The settings `models`: what is given, "none" for other required ones and null for the optional."""
    names = ModelPaths.model_fields
    absent = {name: "none" if field.annotation is str else None for name, field in names.items()}
    return ModelPaths(**{**absent, **{name: path if path is None else str(path) for name, path in given.items()}})


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
    words = list(LETTERS) + [f"{letter}</w>" for letter in LETTERS] + ["<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: index for index, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer.from_pretrained(folder, model_max_length=24)


def text_config(tokenizer: CLIPTokenizer) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=CROSS, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=24, projection_dim=EMBED,
        eos_token_id=tokenizer.eos_token_id, bos_token_id=tokenizer.bos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip


def write_zero123(folder: Path, seed: int = 0) -> Path:
    """Zero-1-to-3 in the layout of its diffusers conversions."""
    torch.manual_seed(seed)
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


def write_stable_diffusion(folder: Path, seed: int = 1) -> Path:
    """Stable Diffusion 1.5's folder."""
    tokenizer = tiny_tokenizer(folder / "tokenizer")
    torch.manual_seed(seed)
    model = LatentDiffusion(
        vae=tiny_vae(),
        unet=tiny_unet(4),
        text_encoder=CLIPTextModel(text_config(tokenizer)),
        tokenizer=tokenizer,
        scheduler=scheduler(),
    )
    model.save(folder)
    return folder


def write_clip(folder: Path, seed: int = 2) -> Path:
    """OpenAI's CLIP in the layout of transformers."""
    tokenizer = tiny_tokenizer(folder)
    torch.manual_seed(seed)
    config = CLIPConfig(
        text_config=text_config(tokenizer).to_dict(), vision_config=vision_config().to_dict(), projection_dim=EMBED
    )
    CLIPModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    image_processor().save_pretrained(folder)
    return folder


def write_controlnet(folder: Path, seed: int = 3) -> Path:
    """A ControlNet for `write_stable_diffusion`'s UNet; its zero convolutions are random, as if trained."""
    torch.manual_seed(seed)
    network = ControlNetModel(
        in_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        block_out_channels=(8, 16),
        layers_per_block=1,
        cross_attention_dim=CROSS,
        attention_head_dim=4,
        norm_num_groups=4,
        conditioning_embedding_out_channels=(8, 16),
    )
    with torch.no_grad():
        for parameter in network.parameters():
            if not parameter.any():
                parameter.normal_(std=0.3)
    network.save_pretrained(folder)
    return folder


def write_depth(folder: Path, seed: int = 4) -> Path:
    """Intel's DPT, without the tensors that its published files lack."""
    torch.manual_seed(seed)
    config = DPTConfig(
        hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=32, image_size=32, patch_size=8,
        backbone_out_indices=[0, 1, 2, 3], neck_hidden_sizes=[8, 8, 8, 8], fusion_hidden_size=8, readout_type="project",
    )  # fmt: skip
    DPTForDepthEstimation(config).save_pretrained(folder)
    file = folder / "model.safetensors"
    kept = {name: tensor for name, tensor in load_file(file).items() if not name.startswith(IDLE)}
    save_file(kept, file, metadata={"format": "pt"})
    DPTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def write_t5_tokenizer(folder: Path) -> T5Tokenizer:
    """A unigram tokenizer of single letters with T5's special tokens, as tokenizer.json."""
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    tokenizer = T5Tokenizer(vocab=special + [(letter, -3.0) for letter in LETTERS], extra_ids=0)
    tokenizer.save_pretrained(folder)
    return tokenizer


def deepfloyd_unet(stage: int) -> UNet2DConditionModel:
    """The structure of IF's UNets (diffusers' scripts/convert_if.py); stage 1 makes 8 px, stage 2 twice as much."""
    shared = dict(
        out_channels=6,
        block_out_channels=(8, 16),
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        layers_per_block=1,
        cross_attention_dim=32,
        encoder_hid_dim=16,
        addition_embed_type="text",
        addition_embed_type_num_heads=4,
        attention_head_dim=4,
        norm_num_groups=4,
        cross_attention_norm="group_norm",
        resnet_time_scale_shift="scale_shift",
        act_fn="gelu",
    )
    if stage == 1:
        return UNet2DConditionModel(sample_size=RESOLUTION // 2, in_channels=3, **shared)
    return UNet2DConditionModel(
        sample_size=RESOLUTION,
        in_channels=6,
        class_embed_type="timestep",
        time_embedding_dim=16,
        time_embedding_act_fn="gelu",
        resnet_skip_time_act=True,
        resnet_out_scale_factor=2**0.5,
        mid_block_scale_factor=2**0.5,
        only_cross_attention=True,
        **shared,
    )


def deepfloyd_scheduler(stage: int) -> DDPMScheduler:
    """The published schedules (diffusers' scripts/convert_if.py)."""
    return DDPMScheduler(
        variance_type="learned_range",
        beta_schedule="squaredcos_cap_v2",
        prediction_type="epsilon",
        thresholding=True,
        dynamic_thresholding_ratio=0.95,
        sample_max_value=1.5 if stage == 1 else 1.0,
    )


def write_deepfloyd(folder: Path, seed: int = 5) -> tuple[Path, Path]:
    """DeepFloyd IF's first two stages, in stage1/ (with T5 and its tokenizer) and stage2/ of a folder."""
    first, second = folder / "stage1", folder / "stage2"
    torch.manual_seed(seed)
    tokenizer = write_t5_tokenizer(first / "tokenizer")
    config = T5Config(
        vocab_size=len(tokenizer), d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, tie_word_embeddings=False,
        feed_forward_proj="gated-gelu",
    )  # fmt: skip
    T5EncoderModel(config).save_pretrained(first / "text_encoder")
    for stage, place in ((1, first), (2, second)):
        deepfloyd_unet(stage).save_pretrained(place / "unet")
        deepfloyd_scheduler(stage).save_pretrained(place / "scheduler")
    DDPMScheduler(beta_schedule="squaredcos_cap_v2").save_pretrained(second / "image_noising_scheduler")
    return first, second
