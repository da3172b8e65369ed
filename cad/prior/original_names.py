"""The names of latent diffusion's UNet and autoencoder and of OpenAI's CLIP, for each tensor of our networks.

Built from a network's configuration, so that a small network has the names that a small original would have.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor

Source = tuple[str, Callable[[Tensor], Tensor]]  # a tensor's original name, and what makes it the target's


def unet_sources(unet: Any) -> dict[str, Source]:
    """Where the original UNet keeps each tensor: blocks are numbered through, with samplers as blocks or tails."""
    config = unet.config
    layers, levels = config.layers_per_block, len(config.block_out_channels)
    places = {
        "conv_in": "input_blocks.0.0",
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "mid_block.resnets.0": "middle_block.0",
        "mid_block.attentions.0": "middle_block.1",
        "mid_block.resnets.1": "middle_block.2",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
    }
    number = 1
    for level in range(levels):
        for layer in range(layers):
            places[f"down_blocks.{level}.resnets.{layer}"] = f"input_blocks.{number}.0"
            places[f"down_blocks.{level}.attentions.{layer}"] = f"input_blocks.{number}.1"
            number += 1
        places[f"down_blocks.{level}.downsamplers.0.conv"] = f"input_blocks.{number}.0.op"
        number += level < levels - 1  # the last level has no sampler
    for level, kind in enumerate(config.up_block_types):
        for layer in range(layers + 1):
            number = level * (layers + 1) + layer
            places[f"up_blocks.{level}.resnets.{layer}"] = f"output_blocks.{number}.0"
            places[f"up_blocks.{level}.attentions.{layer}"] = f"output_blocks.{number}.1"
        tail = 2 if "CrossAttn" in kind else 1
        places[f"up_blocks.{level}.upsamplers.0.conv"] = f"output_blocks.{number}.{tail}.conv"
    inside = {
        "norm1": "in_layers.0",
        "conv1": "in_layers.2",
        "time_emb_proj": "emb_layers.1",
        "norm2": "out_layers.0",
        "conv2": "out_layers.3",
        "conv_shortcut": "skip_connection",
    }
    return {name: (_renamed(name, places, inside, {}), same) for name in unet.state_dict()}


def vae_sources(vae: Any) -> dict[str, Source]:
    """Where the original autoencoder keeps each tensor: up levels are counted from the finest, attention convolves."""
    layers, levels = vae.config.layers_per_block, len(vae.config.block_out_channels)
    places = {name: name for name in ("quant_conv", "post_quant_conv")}
    for half in ("encoder", "decoder"):
        places |= {f"{half}.{name}": f"{half}.{name}" for name in ("conv_in", "conv_out")}
        places[f"{half}.conv_norm_out"] = f"{half}.norm_out"
        places |= {f"{half}.mid_block.resnets.{i}": f"{half}.mid.block_{i + 1}" for i in range(2)}
        places[f"{half}.mid_block.attentions.0"] = f"{half}.mid.attn_1"
    for level in range(levels):
        down, up = f"encoder.down_blocks.{level}", f"decoder.up_blocks.{level}"
        origin = f"decoder.up.{levels - 1 - level}"
        places |= {f"{down}.resnets.{j}": f"encoder.down.{level}.block.{j}" for j in range(layers)}
        places |= {f"{up}.resnets.{j}": f"{origin}.block.{j}" for j in range(layers + 1)}
        places[f"{down}.downsamplers.0.conv"] = f"encoder.down.{level}.downsample.conv"
        places[f"{up}.upsamplers.0.conv"] = f"{origin}.upsample.conv"
    attention = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
    sources: dict[str, Source] = {}
    for name, tensor in vae.state_dict().items():
        origin = _renamed(name, places, {"conv_shortcut": "nin_shortcut"}, attention)
        squeeze = ".attentions." in name and tensor.ndim == 2  # a 1 x 1 convolution there, a linear map here
        sources[name] = (origin, _without_pixels if squeeze else same)
    return sources


def clip_sources(encoder: Any) -> dict[str, Source]:
    """Where OpenAI's vision transformer keeps each tensor: q, k and v are one, the projection is transposed."""
    width = encoder.config.hidden_size
    places = {
        "vision_model.embeddings.class_embedding": "class_embedding",
        "vision_model.embeddings.patch_embedding.weight": "conv1.weight",
        "vision_model.embeddings.position_embedding.weight": "positional_embedding",
        "visual_projection.weight": "proj",
    }
    inside = {
        "self_attn.out_proj": "attn.out_proj",
        "layer_norm1": "ln_1",
        "layer_norm2": "ln_2",
        "mlp.fc1": "mlp.c_fc",
        "mlp.fc2": "mlp.c_proj",
    }
    sources: dict[str, Source] = {}
    for name in encoder.state_dict():
        module, _, kind = name.rpartition(".")
        if name in places:
            sources[name] = (places[name], _transposed if name.startswith("visual_projection") else same)
        elif ".encoder.layers." in name:
            number, _, rest = module.partition(".encoder.layers.")[2].partition(".")
            block = f"transformer.resblocks.{number}"
            if rest in inside:
                sources[name] = (f"{block}.{inside[rest]}.{kind}", same)
            else:
                third = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj").index(rest)
                sources[name] = (f"{block}.attn.in_proj_{kind}", _rows(third * width, width))
        else:
            norm = {"pre_layrnorm": "ln_pre", "post_layernorm": "ln_post"}[module.rpartition(".")[2]]
            sources[name] = (f"{norm}.{kind}", same)
    return sources


def same(tensor: Tensor) -> Tensor:
    """The tensor as it is."""
    return tensor


def _renamed(name: str, places: dict[str, str], resnet: dict[str, str], attention: dict[str, str]) -> str:
    """A target's tensor name with its block, and what is inside of a block, as the original calls them."""
    block = next(place for place in places if name.startswith(f"{place}."))
    module, _, kind = name.removeprefix(f"{block}.").rpartition(".")
    table = resnet if ".resnets." in block else attention
    return ".".join(part for part in (places[block], table.get(module, module), kind) if part)


def _transposed(tensor: Tensor) -> Tensor:
    return tensor.T


def _without_pixels(tensor: Tensor) -> Tensor:
    return tensor.squeeze(-1).squeeze(-1)


def _rows(start: int, count: int) -> Callable[[Tensor], Tensor]:
    return lambda tensor: tensor[start : start + count]
