"""Zero-1-to-3's original checkpoint of a tiny model, under names that a table written by hand gives."""

import torch
from torch import Tensor

from cad.prior.zero123 import Zero123
from cad.prior.zero123_checkpoint import Architecture

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


def rename(name: str, blocks: dict[str, str], inside: dict[str, str]) -> str:
    """One of our names as the original has it."""
    for ours, original in blocks.items():
        if name.startswith(ours + "."):
            name = original + name[len(ours) :]
            break
    resnet = "transformer_blocks" not in name  # whose norm1 and norm2 are called so in both
    for ours, original in inside.items():
        name = name.replace(ours, original) if resnet else name
    return name


def original_state(model: Zero123) -> dict[str, Tensor]:
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


def tiny_architecture(model: Zero123) -> Architecture:
    """The sizes of a tiny model, as its config.json files hold them."""
    unet, vae = ({k: v for k, v in part.config.items() if not k.startswith("_")} for part in (model.unet, model.vae))
    return Architecture(unet=unet, vae=vae, image_encoder=model.image_encoder.config.to_diff_dict())
