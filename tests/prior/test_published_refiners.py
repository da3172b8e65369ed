"""The refiners at full size, on the meta device: shapes without weights. What a figure's source is stands beside it.

Widths and options are those of the published config.json files as far as they are named here; a tiny tokenizer stands
in for theirs, since only the number of tokens matters.
"""

import pytest
import standins
import torch
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    DPTConfig,
    DPTForDepthEstimation,
    DPTImageProcessor,
    T5Config,
    T5EncoderModel,
)

from cad.config.refine import ControlNetSettings, DeepFloydSettings
from cad.prior import deepfloyd
from cad.prior.controlnet import ControlNetRefiner
from cad.prior.ddim import NoiseStreams
from cad.prior.deepfloyd import DeepFloydRefiner, PixelDiffusion
from cad.prior.depth import DepthEstimator
from cad.prior.latent_diffusion import LatentDiffusion
from cad.seeding import generator

META = torch.device("meta")
PROMPTS = ["a robot", "a car"]
STABLE = dict(
    block_out_channels=(320, 640, 1280, 1280),
    down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    layers_per_block=2,
    cross_attention_dim=768,
    attention_head_dim=8,
)
# The structure by diffusers' scripts/convert_if.py; the widths of IF-I-XL are borne out by its number of parameters.
PIXEL = dict(
    out_channels=6,
    mid_block_type="UNetMidBlock2DSimpleCrossAttn",
    encoder_hid_dim=4096,
    addition_embed_type="text",
    addition_embed_type_num_heads=64,
    attention_head_dim=64,
    cross_attention_norm="group_norm",
    resnet_time_scale_shift="scale_shift",
    act_fn="gelu",
)
BASE = dict(
    sample_size=64,
    in_channels=3,
    block_out_channels=(704, 1408, 2112, 2816),
    cross_attention_dim=2816,
    layers_per_block=3,
    down_block_types=("ResnetDownsampleBlock2D",) + ("SimpleCrossAttnDownBlock2D",) * 3,
    up_block_types=("SimpleCrossAttnUpBlock2D",) * 3 + ("ResnetUpsampleBlock2D",),
)
# For IF-II-L's widths and depths no source is at hand, so neither they nor their number are claimed.
UPSCALER = dict(
    sample_size=256,
    in_channels=6,
    block_out_channels=(160, 320, 640, 1280),
    cross_attention_dim=1280,
    layers_per_block=(2, 4, 8, 8),
    down_block_types=("ResnetDownsampleBlock2D",) * 3 + ("SimpleCrossAttnDownBlock2D",),
    up_block_types=("SimpleCrossAttnUpBlock2D",) + ("ResnetUpsampleBlock2D",) * 3,
    class_embed_type="timestep",
    time_embedding_dim=1280,
    time_embedding_act_fn="gelu",
    resnet_skip_time_act=True,
    resnet_out_scale_factor=1 / 0.7071,
    mid_block_scale_factor=1 / 0.7071,
    only_cross_attention=True,
)
DPT = {
    "large": DPTConfig(
        hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096, image_size=384,
        patch_size=16, backbone_out_indices=[5, 11, 17, 23], neck_hidden_sizes=[256, 512, 1024, 1024],
    ),
    "hybrid": DPTConfig(is_hybrid=True, neck_hidden_sizes=[256, 512, 768, 768], reassemble_factors=[1, 1, 1, 0.5]),
}  # fmt: skip
T5_XXL = T5Config(
    vocab_size=32128, d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64, feed_forward_proj="gated-gelu",
    tie_word_embeddings=False,
)  # fmt: skip


def built(kind, *configs, **config):
    with META:
        return kind(*configs, **config).eval()


def count(network):
    return sum(parameter.numel() for parameter in network.parameters())


def streams():
    return NoiseStreams([generator("stream", name) for name in PROMPTS], META, torch.float32)


def images():
    return torch.zeros(2, 3, 256, 256, device=META)


@pytest.fixture
def stable(tmp_path):
    """Stable Diffusion 1.5 by its published configuration."""
    return LatentDiffusion(
        vae=built(
            AutoencoderKL, block_out_channels=(128, 256, 512, 512), down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4, layers_per_block=2, latent_channels=4, sample_size=512,
        ),
        unet=built(
            UNet2DConditionModel, sample_size=64, in_channels=4, out_channels=4,
            up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3, **STABLE,
        ),
        text_encoder=built(
            CLIPTextModel,
            CLIPTextConfig(
                vocab_size=49408, hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12,
                max_position_embeddings=77,
            ),
        ),
        tokenizer=standins.tiny_tokenizer(tmp_path),
        scheduler=standins.scheduler(),
    )  # fmt: skip


def test_stable_diffusion_and_controlnet_take_what_the_refiner_feeds_them(stable):
    controlnet = built(ControlNetModel, in_channels=4, **STABLE)
    depth = DepthEstimator(built(DPTForDepthEstimation, DPT["large"]), DPTImageProcessor())
    settings = ControlNetSettings(strength=0.8, guidance=7.5, steps=2, conditioning_scale=0.8)
    refiner = ControlNetRefiner(stable, controlnet, depth, PROMPTS, settings, False)
    fed = []
    controlnet.register_forward_pre_hook(
        lambda module, args, given: fed.append((args[0], given["controlnet_cond"], given["encoder_hidden_states"])),
        with_kwargs=True,
    )
    found = refiner.refine(images(), PROMPTS, streams())
    assert found.shape == (2, 3, 256, 256)
    assert [tuple(each.shape) for each in fed[0]] == [(4, 4, 64, 64), (4, 3, 512, 512), (4, 77, 768)]  # 512 px inside


def test_parameters_of_stable_diffusion(stable):
    """As counted from the published weights by others (forums.fast.ai, topic 101515)."""
    counted = [count(part) for part in (stable.unet, stable.vae, stable.text_encoder)]
    assert counted == [859_520_964, 83_653_863, 123_060_480]


@pytest.mark.parametrize(("size", "millions"), [("large", 343), ("hybrid", 123)])
def test_dpt_takes_what_the_estimator_feeds_it(size, millions):
    """Numbers of parameters: Ranftl et al., Vision Transformers for Dense Prediction (2021)."""
    network = built(DPTForDepthEstimation, DPT[size])
    assert count(network) / 1e6 == pytest.approx(millions, rel=0.01)
    assert DepthEstimator(network, DPTImageProcessor()).estimate(images(), 512).shape == (2, 3, 512, 512)


def test_deepfloyd_takes_what_the_refiner_feeds_it():
    """4.3 billion parameters in IF-I-XL: its model card."""
    base, upscaler = (built(UNet2DConditionModel, **PIXEL, **own) for own in (BASE, UPSCALER))
    assert count(base) / 1e9 == pytest.approx(4.3, abs=0.05)
    context = torch.zeros(1, deepfloyd.TOKENS, 4096, device=META)
    walk = {"strength": 1.0, "guidance": 4.0, "steps": 2}
    refiner = DeepFloydRefiner(
        base=PixelDiffusion(base, standins.deepfloyd_scheduler(1)),
        upscaler=PixelDiffusion(upscaler, standins.deepfloyd_scheduler(2)),
        noising=standins.DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
        contexts=dict.fromkeys(["", *PROMPTS], context),
        settings=DeepFloydSettings.model_validate({"stage1": walk, "stage2": {**walk, "noise_level": 250}}),
        bf16=False,
    )
    fed = []
    for network in (base, upscaler):
        network.register_forward_pre_hook(lambda module, args: fed.append(tuple(args[0].shape)))
    assert refiner.refine(images(), PROMPTS, streams()).shape == (2, 3, 256, 256)
    assert fed == [(4, 3, 64, 64)] * 2 + [(4, 6, 256, 256)] * 2


def test_t5_xxl_takes_what_the_refiner_feeds_it(tmp_path):
    """4.7 billion parameters in the encoder: as FLUX's and Stable Diffusion 3's descriptions count it."""
    tokenizer = standins.write_t5_tokenizer(tmp_path)
    with FakeTensorMode():  # of the meta device but in name: transformers looks into masks that are said to be there
        encoder = T5EncoderModel(T5_XXL).eval()
        assert count(encoder) / 1e9 == pytest.approx(4.7, abs=0.1)
        assert deepfloyd._encode(tokenizer, encoder, PROMPTS[0]).shape == (1, 77, 4096)
