"""Conversion of the original checkpoint, against a tiny one whose names a table written by hand gives."""

import json
import re

import pytest
import torch
from diffusers import AutoencoderKL
from original_checkpoint import original_state, tiny_architecture
from safetensors.torch import load_file

from cad.cli import main as cli
from cad.errors import UserError
from cad.prior import zero123_checkpoint as checkpoint
from cad.prior.original_names import clip_sources, unet_sources, vae_sources
from cad.prior.zero123 import Zero123
from cad.seeding import generator

CPU = torch.device("cpu")


def draw(name, *shape):
    return torch.randn(*shape, generator=generator("checkpoint", name))


@pytest.fixture(scope="module")
def architecture(zero123):
    return tiny_architecture(zero123)


@pytest.fixture
def state(zero123):
    return original_state(zero123)


@pytest.fixture
def file(tmp_path, state):
    path = tmp_path / "zero123.ckpt"
    torch.save({"state_dict": state, "global_step": 3, "epoch": 1}, path)
    return path


def test_converted_networks_compute_what_the_original_ones_do(zero123, architecture, file, tmp_path):
    checkpoint.convert(file, tmp_path / "out", architecture)
    found = Zero123.load(tmp_path / "out", CPU, torch.float32)
    for part in ("unet", "vae", "image_encoder", "cc_projection"):
        expected = getattr(zero123, part).state_dict()
        assert {k: v.tolist() for k, v in getattr(found, part).state_dict().items()} == {
            k: v.tolist() for k, v in expected.items()
        }
    image, pose, noise = draw("image", 1, 3, 16, 16).clamp(-1, 1), draw("pose", 2, 4), draw("noise", 2, 4, 8, 8)
    embedding, latent = found.condition(image)
    assert torch.equal(embedding, zero123.condition(image)[0])
    assert torch.equal(latent, zero123.condition(image)[1])
    views = [m.sample(embedding, latent, pose, noise, None, 2, 3.0, 0.0) for m in (found, zero123)]
    assert torch.equal(*views)


def test_converted_folder_has_the_published_layout_and_nothing_beside_it(architecture, file, tmp_path):
    checkpoint.convert(file, tmp_path / "out", architecture)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "vae", "unet", "image_encoder", "feature_extractor", "cc_projection", "scheduler", "model_index.json"
    }  # fmt: skip
    assert {path.name for path in tmp_path.iterdir()} == {"out", "zero123.ckpt"}
    config = json.loads((tmp_path / "out/scheduler/scheduler_config.json").read_text())
    assert (config["beta_start"], config["beta_end"], config["beta_schedule"]) == (0.00085, 0.012, "scaled_linear")


def test_attention_of_clip_is_cut_into_its_thirds(state, architecture, file, tmp_path):
    """q, k and v are rows 0-15, 16-31 and 32-47 of the one matrix; the projection is its transpose."""
    checkpoint.convert(file, tmp_path / "out", architecture)
    found = load_file(tmp_path / "out/image_encoder/model.safetensors")
    joined = state["cond_stage_model.model.visual.transformer.resblocks.1.attn.in_proj_weight"]
    for letter, start in (("q", 0), ("k", 16), ("v", 32)):
        name = f"vision_model.encoder.layers.1.self_attn.{letter}_proj.weight"
        assert torch.equal(found[name], joined[start : start + 16])
    assert torch.equal(found["visual_projection.weight"], state["cond_stage_model.model.visual.proj"].T)


def test_full_size_names_are_the_originals():
    """686 and 248 tensors, and names that Stable Diffusion's published checkpoint has."""
    networks = checkpoint.build(checkpoint.PUBLISHED)
    unet = {origin for origin, _ in unet_sources(networks["unet"]).values()}
    vae = {origin for origin, _ in vae_sources(networks["vae"]).values()}
    clip = {origin for origin, _ in clip_sources(networks["image_encoder"]).values()}
    assert len(unet) == 686  # tensors of SD 1's UNet, as loaders of its file report
    assert len(vae) == 248
    assert unet >= {
        "time_embed.2.bias", "input_blocks.0.0.weight", "input_blocks.3.0.op.weight", "input_blocks.9.0.op.weight",
        "input_blocks.11.0.in_layers.2.weight", "input_blocks.4.0.skip_connection.weight",
        "middle_block.1.proj_in.bias",
        "output_blocks.2.1.conv.weight", "output_blocks.5.2.conv.weight", "output_blocks.8.2.conv.bias",
        "output_blocks.11.1.transformer_blocks.0.attn2.to_k.weight", "out.2.bias",
    }  # fmt: skip
    absent = re.compile(r"(input|output)_blocks\.12\.|input_blocks\.(10|11)\.1\.|output_blocks\.0\.1\.")
    assert not any(absent.match(name) for name in unet)
    assert vae >= {
        "encoder.down.2.downsample.conv.weight", "encoder.down.1.block.0.nin_shortcut.weight", "quant_conv.bias",
        "encoder.mid.attn_1.q.weight", "decoder.up.3.upsample.conv.bias", "decoder.up.0.block.2.conv2.weight",
        "decoder.norm_out.weight",
    }  # fmt: skip
    assert not any("encoder.down.3.downsample" in n or "decoder.up.0.upsample" in n for n in vae)
    assert clip >= {"transformer.resblocks.23.mlp.c_proj.bias", "ln_pre.weight", "proj", "class_embedding"}
    assert len(clip) == 24 * 12 + 8  # q, k and v are one


def test_the_text_tower_optimisers_and_old_pickles_are_passed_over(zero123, state, architecture, tmp_path):
    path = tmp_path / "old.ckpt"
    more = {
        "model_ema.decay": torch.tensor(0.9999),
        "model_ema.num_updates": torch.tensor(3),
        "cond_stage_model.model.logit_scale": torch.ones(()),
        "first_stage_model.loss.logvar": torch.zeros(()),
        "alphas_cumprod": zero123.scheduler.alphas_cumprod.clone(),
    }
    content = {"state_dict": state | more, "optimizer_states": [{"step": 4}]}
    torch.save(content, path, _use_new_zipfile_serialization=False)
    checkpoint.convert(path, tmp_path / "out", architecture)
    assert Zero123.load(tmp_path / "out", CPU, torch.float32).resolution == 16


def average_of(state):
    """The UNet's running average as the original keeps it: `a.b.weight` as `abweight`; here the UNet's negative."""
    unet = {name: tensor for name, tensor in state.items() if name.startswith("model.diffusion_model.")}
    return {f"model_ema.{''.join(name.split('.')[1:])}": -tensor for name, tensor in unet.items()}


def test_the_unet_is_its_running_average_and_all_else_is_live(zero123, state, architecture, tmp_path):
    """The authors' demo samples inside `ema_scope`; the average is of the UNet alone."""
    average = average_of(state)
    assert "model_ema.diffusion_modelinput_blocks00weight" in average
    torch.save({"state_dict": state | average}, tmp_path / "trained.ckpt")
    checkpoint.convert(tmp_path / "trained.ckpt", tmp_path / "out", architecture)
    found = Zero123.load(tmp_path / "out", CPU, torch.float32)
    for name, tensor in zero123.unet.state_dict().items():
        assert torch.equal(found.unet.state_dict()[name], -tensor), name
    for part in ("vae", "image_encoder", "cc_projection"):
        for name, tensor in getattr(zero123, part).state_dict().items():
            assert torch.equal(getattr(found, part).state_dict()[name], tensor), name


def test_an_average_that_is_not_whole_is_refused(state, architecture, tmp_path):
    average = average_of(state)
    del average["model_ema.diffusion_modelout2bias"]
    torch.save({"state_dict": state | average}, tmp_path / "trained.ckpt")
    with pytest.raises(UserError, match=r"average is not whole, model_ema\.diffusion_modelout2bias is missing"):
        checkpoint.convert(tmp_path / "trained.ckpt", tmp_path / "out", architecture)


def test_names_without_dots_stay_apart_at_full_size():
    names = [origin for origin, _ in unet_sources(checkpoint.build(checkpoint.PUBLISHED)["unet"]).values()]
    assert len({name.replace(".", "") for name in names}) == 686


def test_the_command_converts_and_refuses(file, architecture, tmp_path, monkeypatch, capsys):
    sizes = tmp_path / "sizes.json"
    sizes.write_text(json.dumps({part: getattr(architecture, part) for part in checkpoint.PARTS}))
    command = ["cad", "weights", "convert", "zero123", str(file), str(tmp_path / "out")]
    monkeypatch.setattr("sys.argv", command)  # the published sizes do not fit
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    monkeypatch.setattr("sys.argv", [*command, "--architecture", str(sizes)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 0
    assert Zero123.load(tmp_path / "out", CPU, torch.float32).resolution == 16


def test_the_source_of_each_name_is_a_bijection_for_other_depths():
    """Two resnets a level, three levels, attention in the middle: every original name is taken once."""
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 16), down_block_types=("DownEncoderBlock2D",) * 3, layers_per_block=2,
        up_block_types=("UpDecoderBlock2D",) * 3, latent_channels=4, norm_num_groups=4,
    )  # fmt: skip
    sources = vae_sources(vae)
    assert len({origin for origin, _ in sources.values()}) == len(sources)
