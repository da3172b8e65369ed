"""Conversion of the original checkpoint, against a tiny one whose names a table written by hand gives."""

import json
import pickle
import re

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file

from cad.cli import main as cli
from cad.errors import UserError
from cad.prior import zero123_checkpoint as checkpoint
from cad.prior.original_names import clip_sources, unet_sources, vae_sources
from cad.prior.zero123 import Zero123
from cad.seeding import generator

CPU = torch.device("cpu")

# Two levels of 8 and 16 channels, one resnet each; attention on the second; a sampler between them.
UNET = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "down_blocks.0.resnets.0": "input_blocks.1.0",
    "down_blocks.0.downsamplers.0.conv": "input_blocks.2.0.op",
    "down_blocks.1.resnets.0": "input_blocks.3.0",
    "down_blocks.1.attentions.0": "input_blocks.3.1",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
    "up_blocks.0.resnets.0": "output_blocks.0.0",
    "up_blocks.0.attentions.0": "output_blocks.0.1",
    "up_blocks.0.resnets.1": "output_blocks.1.0",
    "up_blocks.0.attentions.1": "output_blocks.1.1",
    "up_blocks.0.upsamplers.0.conv": "output_blocks.1.2.conv",
    "up_blocks.1.resnets.0": "output_blocks.2.0",
    "up_blocks.1.resnets.1": "output_blocks.3.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
UNET_INSIDE = {
    ".norm1.": ".in_layers.0.",
    ".conv1.": ".in_layers.2.",
    ".time_emb_proj.": ".emb_layers.1.",
    ".norm2.": ".out_layers.0.",
    ".conv2.": ".out_layers.3.",
    ".conv_shortcut.": ".skip_connection.",
}
VAE = {
    "encoder.down_blocks.0.resnets.0": "encoder.down.0.block.0",
    "encoder.down_blocks.0.downsamplers.0.conv": "encoder.down.0.downsample.conv",
    "encoder.down_blocks.1.resnets.0": "encoder.down.1.block.0",
    "encoder.mid_block.resnets.0": "encoder.mid.block_1",
    "encoder.mid_block.attentions.0": "encoder.mid.attn_1",
    "encoder.mid_block.resnets.1": "encoder.mid.block_2",
    "encoder.conv_norm_out": "encoder.norm_out",
    "decoder.mid_block.resnets.0": "decoder.mid.block_1",
    "decoder.mid_block.attentions.0": "decoder.mid.attn_1",
    "decoder.mid_block.resnets.1": "decoder.mid.block_2",
    "decoder.up_blocks.0.resnets.0": "decoder.up.1.block.0",
    "decoder.up_blocks.0.resnets.1": "decoder.up.1.block.1",
    "decoder.up_blocks.0.upsamplers.0.conv": "decoder.up.1.upsample.conv",
    "decoder.up_blocks.1.resnets.0": "decoder.up.0.block.0",
    "decoder.up_blocks.1.resnets.1": "decoder.up.0.block.1",
    "decoder.conv_norm_out": "decoder.norm_out",
}
VAE_INSIDE = {".to_q.": ".q.", ".to_k.": ".k.", ".to_v.": ".v.", ".to_out.0.": ".proj_out.", ".group_norm.": ".norm."}


def rename(name, blocks, inside):
    for ours, original in blocks.items():
        if name.startswith(ours + "."):
            name = original + name[len(ours) :]
            break
    resnet = "transformer_blocks" not in name  # whose norm1 and norm2 are called so in both
    for ours, original in inside.items():
        name = name.replace(ours, original) if resnet else name
    return name


def original_state(model):
    """All tensors of a tiny model as the original keeps them."""
    state = {}
    for name, tensor in model.unet.state_dict().items():
        state["model.diffusion_model." + rename(name, UNET, UNET_INSIDE)] = tensor.clone()
    for name, tensor in model.vae.state_dict().items():
        linear = "attentions" in name and name.endswith("weight") and tensor.ndim == 2
        stored = tensor[:, :, None, None] if linear else tensor
        state["first_stage_model." + rename(name, VAE, VAE_INSIDE)] = stored.clone()
    vision = "cond_stage_model.model.visual."
    own = model.image_encoder.state_dict()
    state[vision + "class_embedding"] = own["vision_model.embeddings.class_embedding"].clone()
    state[vision + "conv1.weight"] = own["vision_model.embeddings.patch_embedding.weight"].clone()
    state[vision + "positional_embedding"] = own["vision_model.embeddings.position_embedding.weight"].clone()
    state[vision + "proj"] = own["visual_projection.weight"].T.clone()
    for kind in ("weight", "bias"):
        state[vision + f"ln_pre.{kind}"] = own[f"vision_model.pre_layrnorm.{kind}"].clone()
        state[vision + f"ln_post.{kind}"] = own[f"vision_model.post_layernorm.{kind}"].clone()
        for layer in range(2):
            block, ours = f"{vision}transformer.resblocks.{layer}.", f"vision_model.encoder.layers.{layer}."
            state[block + f"attn.in_proj_{kind}"] = torch.cat(
                [own[ours + f"self_attn.{letter}_proj.{kind}"] for letter in "qkv"]
            )
            state[block + f"attn.out_proj.{kind}"] = own[ours + f"self_attn.out_proj.{kind}"].clone()
            state[block + f"ln_1.{kind}"] = own[ours + f"layer_norm1.{kind}"].clone()
            state[block + f"ln_2.{kind}"] = own[ours + f"layer_norm2.{kind}"].clone()
            state[block + f"mlp.c_fc.{kind}"] = own[ours + f"mlp.fc1.{kind}"].clone()
            state[block + f"mlp.c_proj.{kind}"] = own[ours + f"mlp.fc2.{kind}"].clone()
        state[f"cc_projection.{kind}"] = model.cc_projection.state_dict()[f"projection.{kind}"].clone()
    return state


def tiny_architecture(model):
    """The sizes of a tiny model, as its config.json files hold them."""
    unet, vae = ({k: v for k, v in part.config.items() if not k.startswith("_")} for part in (model.unet, model.vae))
    return checkpoint.Architecture(unet=unet, vae=vae, image_encoder=model.image_encoder.config.to_diff_dict())


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


def test_averages_optimisers_text_tower_and_old_pickles_are_passed_over(zero123, state, architecture, tmp_path):
    path = tmp_path / "old.ckpt"
    more = {
        "model_ema.diffusion_modeltime_embed0weight": torch.zeros(1),
        "cond_stage_model.model.logit_scale": torch.ones(()),
        "first_stage_model.loss.logvar": torch.zeros(()),
        "alphas_cumprod": zero123.scheduler.alphas_cumprod.clone(),
    }
    content = {"state_dict": state | more, "optimizer_states": [{"step": 4}]}
    torch.save(content, path, _use_new_zipfile_serialization=False)
    checkpoint.convert(path, tmp_path / "out", architecture)
    assert Zero123.load(tmp_path / "out", CPU, torch.float32).resolution == 16


class Code:
    def __reduce__(self):
        return (print, ("this ran",))


def refused(file, out, architecture):
    with pytest.raises(UserError) as fault:
        checkpoint.convert(file, out, architecture)
    assert not list(out.parent.glob("out*"))
    assert "\n" not in str(fault.value)
    assert str(file) in str(fault.value)
    return str(fault.value)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_the_pickle_is_refused_and_not_run(state, architecture, tmp_path, capsys, zipped):
    path = tmp_path / "evil.ckpt"
    torch.save({"state_dict": state, "callbacks": Code()}, path, _use_new_zipfile_serialization=zipped)
    assert "its pickle holds code (print)" in refused(path, tmp_path / "out", architecture)
    assert capsys.readouterr().out == ""


def test_a_bare_pickle_with_code_is_refused(architecture, tmp_path, capsys):
    path = tmp_path / "evil.ckpt"
    path.write_bytes(pickle.dumps(Code(), protocol=2))
    assert "pickle holds code" in refused(path, tmp_path / "out", architecture)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("kept", [0, 1, 100, 0.5, 0.999])
def test_a_truncated_file_is_named(file, architecture, tmp_path, kept):
    whole = file.read_bytes()
    file.write_bytes(whole[: kept if isinstance(kept, int) else int(kept * len(whole))])
    assert "is truncated" in refused(file, tmp_path / "out", architecture)


def test_no_file_no_tensors_and_a_place_that_is_taken(file, architecture, tmp_path):
    assert "cannot be read" in refused(tmp_path / "gone.ckpt", tmp_path / "out", architecture)
    bare = tmp_path / "bare.ckpt"
    torch.save({"state_dict": {"step": 3}}, bare)
    assert "holds no state_dict of tensors" in refused(bare, tmp_path / "out", architecture)
    (tmp_path / "taken").mkdir()
    with pytest.raises(UserError, match="taken: is there already"):
        checkpoint.convert(file, tmp_path / "taken", architecture)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"cc_projection.weight": None}, "cc_projection.weight is missing"),
        ({"model.diffusion_model.input_blocks.2.0.op.weight": None}, "input_blocks.2.0.op.weight is missing"),
        ({"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(8, 4, 3, 3)}, "instead of [8, 8, 3, 3]"),
        ({"model.diffusion_model.input_blocks.9.0.op.weight": torch.zeros(1)}, "9.0.op.weight has no place"),
        ({"first_stage_model.decoder.up.7.block.0.norm1.bias": torch.zeros(1)}, "has no place"),
        ({"first_stage_model.encoder.mid.attn_1.q.weight": torch.zeros(8)}, "is of another architecture"),
        ({"cond_stage_model.model.visual.proj": torch.zeros(3, 5)}, "gives [5, 3] instead of [12, 16]"),
        ({"cond_stage_model.model.visual.transformer.resblocks.0.attn.in_proj_weight": torch.zeros(16, 16)}, "in_proj"),
        ({"alphas_cumprod": torch.linspace(1, 0, 1000)}, "another noise schedule"),
    ],
)  # fmt: skip
def test_another_architecture_is_named(state, architecture, tmp_path, change, says):
    path = tmp_path / "other.ckpt"
    kept = {name: tensor for name, tensor in (state | change).items() if tensor is not None}
    torch.save({"state_dict": kept}, path)
    assert says in refused(path, tmp_path / "out", architecture)


def test_a_full_disk_is_said_before_anything_is_written(file, architecture, tmp_path, monkeypatch):
    usage = checkpoint.shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(UserError, match=r"out: needs 0\.0 GB"):
        checkpoint.convert(file, tmp_path / "out", architecture)


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
