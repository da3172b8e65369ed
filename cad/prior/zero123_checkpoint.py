"""Zero-1-to-3's original checkpoint, one pickle under the names of the latent-diffusion code, as a folder of parts.

A rename is built from the configuration of the target: each tensor that the target has is looked up under the name
that the original gives it, so that a checkpoint of another architecture lacks a name or has one left over.
"""

import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

from cad.artifacts import read_json, write_json
from cad.artifacts.files import full_disk_named
from cad.errors import UserError
from cad.prior.original_names import Source, clip_sources, same, unet_sources, vae_sources
from cad.prior.zero123 import POSE, CCProjection

PARTS = ("unet", "vae", "image_encoder")
REMEDY = "take another file, or a published conversion (`cad weights list`)"
UNET, AVERAGE = "model.diffusion_model.", "model_ema."
# Before its version 1.5 Lightning keyed the states of callbacks by their class, which a pickle names.
CALLBACK = "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint"


class Inert:
    """Stands in for the one class that an original checkpoint names; nothing is called and nothing of it is kept."""


@dataclass(frozen=True)
class Architecture:
    """Sizes of a checkpoint's networks, as their config.json files hold them."""

    unet: dict[str, Any]
    vae: dict[str, Any]
    image_encoder: dict[str, Any]


PUBLISHED = Architecture(  # the UNet of the authors' configuration; Stable Diffusion's VAE; CLIP ViT-L/14
    unet={
        "sample_size": 32,
        "in_channels": 8,
        "out_channels": 4,
        "block_out_channels": [320, 640, 1280, 1280],
        "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
        "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
        "layers_per_block": 2,
        "cross_attention_dim": 768,
        "attention_head_dim": 8,
    },
    vae={
        "block_out_channels": [128, 256, 512, 512],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "layers_per_block": 2,
        "latent_channels": 4,
        "sample_size": 256,
        "scaling_factor": 0.18215,
    },
    image_encoder={
        "image_size": 224,
        "patch_size": 14,
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "projection_dim": 768,
        "hidden_act": "quick_gelu",
    },
)


def convert(file: Path, out: Path, architecture: Architecture) -> None:
    """Write the original checkpoint `file` as the folder `out` that `Zero123.load` reads; nothing of it is executed.

    The UNet is the running average of its weights where the file has one: the authors train with it, and their demo
    samples inside `ema_scope`. Raises UserError for code in the pickle, a damaged file, another architecture, or an
    `out` that is there already.
    """
    if out.exists():
        raise UserError(f"{out}: is there already; name another folder or remove it")
    state = read_checkpoint(file)
    networks = build(architecture)
    tensors = {
        "unet": collect(file, sampled(file, state), UNET, networks["unet"], unet_sources(networks["unet"])),
        "vae": collect(file, state, "first_stage_model.", networks["vae"], vae_sources(networks["vae"])),
        "image_encoder": collect(
            file, state, "cond_stage_model.model.visual.", networks["image_encoder"],
            clip_sources(networks["image_encoder"]),
        ),
        "cc_projection": collect(
            file, state, "cc_projection.", networks["cc_projection"],
            {f"projection.{kind}": (kind, same) for kind in ("weight", "bias")},
        ),
    }  # fmt: skip
    check_schedule(file, state, schedule())
    needed = sum(tensor.nbytes for part in tensors.values() for tensor in part.values())
    folder = out.absolute().parent
    if (free := shutil.disk_usage(next(p for p in (folder, *folder.parents) if p.exists())).free) < needed:
        raise UserError(f"{out}: needs {needed / 1e9:.1f} GB and {free / 1e9:.1f} GB are free; free some")
    write(out, tensors, networks, architecture.image_encoder["image_size"])


def read_architecture(file: Path) -> Architecture:
    """An architecture from a JSON file with the keys unet, vae and image_encoder; UserError names what is wrong."""
    return Architecture(**{part: read_json(file, *PARTS)[part] for part in PARTS})


def read_checkpoint(file: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint by their names, mapped from the disk; code in the pickle is refused, not run."""
    try:
        with file.open("rb") as opened:
            zipped = opened.read(2) == b"PK"
    except OSError as fault:
        raise UserError(f"{file}: cannot be read ({fault.strerror}); check the path") from None
    if zipped and not zipfile.is_zipfile(file):
        raise UserError(f"{file}: is truncated; download it again")
    try:
        with torch.serialization.safe_globals([(Inert, CALLBACK)]):
            content = torch.load(file, map_location="cpu", weights_only=True, mmap=zipped)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, AttributeError) as fault:
        said = str(fault)
        if "global" in said.lower():
            name = next((word for line in said.splitlines() if "GLOBAL" in line for word in _after(line)), "a class")
            raise UserError(f"{file}: its pickle holds code ({name}) and is not loaded; {REMEDY}") from None
        raise UserError(f"{file}: is truncated or no checkpoint of torch; {REMEDY}") from None
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not any(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{file}: holds no state_dict of tensors; {REMEDY}")
    return {str(name): value for name, value in state.items() if isinstance(value, Tensor)}


def sampled(file: Path, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with the UNet's running average in the place of its live weights, where there is an average.

    It is kept under the live names without `model.` and dots. UserError where it lacks a tensor.
    """
    live = {name: AVERAGE + name.removeprefix("model.").replace(".", "") for name in state if name.startswith(UNET)}
    if not any(name.startswith(f"{AVERAGE}diffusion_model") for name in state):
        return state
    if missing := [average for average in live.values() if average not in state]:
        raise UserError(f"{file}: its running average is not whole, {missing[0]} is missing; {REMEDY}")
    return state | {name: state[average] for name, average in live.items()}


def build(architecture: Architecture) -> dict[str, Any]:
    """The target networks on the meta device: names and shapes without memory."""
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(dict(architecture.unet))
        vae = AutoencoderKL.from_config(dict(architecture.vae))
        encoder = CLIPVisionModelWithProjection(CLIPVisionConfig(**architecture.image_encoder))
        embedding = architecture.image_encoder["projection_dim"]
        projection = CCProjection(embedding + POSE, architecture.unet["cross_attention_dim"])
    return {"unet": unet, "vae": vae, "image_encoder": encoder, "cc_projection": projection}


def collect(
    file: Path, state: dict[str, Tensor], prefix: str, network: Any, sources: dict[str, Source]
) -> dict[str, Tensor]:
    """The tensors of one target network out of the original ones under `prefix`; UserError on any that do not fit."""
    found: dict[str, Tensor] = {}
    used: set[str] = set()
    for name, wanted in network.state_dict().items():
        origin, change = sources[name]
        used.add(prefix + origin)
        if (tensor := state.get(prefix + origin)) is None:
            raise UserError(f"{file}: is of another architecture, {prefix}{origin} is missing; {REMEDY}")
        try:
            changed = change(tensor)
        except (RuntimeError, ValueError):
            changed = tensor
        if changed.shape != wanted.shape:
            shapes = f"{list(changed.shape)} instead of {list(wanted.shape)}"
            raise UserError(f"{file}: is of another architecture, {prefix}{origin} gives {shapes}; {REMEDY}")
        found[name] = changed.contiguous()
    # The standalone autoencoder's training loss has weights too, which no sampling reads.
    spare = [n for n in state if n.startswith(prefix) and n not in used and not n.startswith(f"{prefix}loss.")]
    if spare:
        raise UserError(f"{file}: is of another architecture, {spare[0]} has no place; {REMEDY}")
    return found


def schedule() -> DDIMScheduler:
    """The noise schedule that Zero-1-to-3 was trained with, and DDIM's time steps as its code takes them."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def check_schedule(file: Path, state: dict[str, Tensor], scheduler: DDIMScheduler) -> None:
    """Refuse a checkpoint whose own noise schedule, where it holds one, is another."""
    own = state.get("alphas_cumprod")
    wanted = scheduler.alphas_cumprod
    if own is not None and (own.shape != wanted.shape or not torch.allclose(own.float(), wanted, atol=1e-4)):
        raise UserError(f"{file}: was trained with another noise schedule than Zero-1-to-3's; {REMEDY}")


def write(out: Path, tensors: dict[str, dict[str, Tensor]], networks: dict[str, Any], image_size: int) -> None:
    """Write all parts beside `out` and rename the whole into place."""
    partial = out.with_name(out.name + ".tmp")
    shutil.rmtree(partial, ignore_errors=True)
    index: dict[str, Any] = {"_class_name": "Zero1to3StableDiffusionPipeline"}
    with full_disk_named(out):
        try:
            for part, network in networks.items():
                (partial / part).mkdir(parents=True)
                transformers = part == "image_encoder"
                if transformers:
                    network.config.architectures = [type(network).__name__]
                    network.config.save_pretrained(partial / part)
                else:
                    network.save_config(partial / part)
                name = "model" if transformers else "diffusion_pytorch_model"
                save_file(tensors[part], partial / part / f"{name}.safetensors", metadata={"format": "pt"})
                library = "transformers" if transformers else "pipeline_zero1to3" if "cc" in part else "diffusers"
                index[part] = [library, type(network).__name__]
            schedule().save_pretrained(partial / "scheduler")
            side = {"height": image_size, "width": image_size}
            processor = CLIPImageProcessor(size={"shortest_edge": image_size}, crop_size=side)
            processor.save_pretrained(partial / "feature_extractor")
            index |= {"scheduler": ["diffusers", "DDIMScheduler"]}
            index |= {"feature_extractor": ["transformers", "CLIPImageProcessor"]}
            write_json(partial / "model_index.json", json.loads(json.dumps(index)))
            os.replace(partial, out)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _after(line: str) -> Iterator[str]:
    """The word after GLOBAL in torch's refusal, which names the class."""
    words = line.split()
    yield from words[words.index("GLOBAL") + 1 :][:1] if "GLOBAL" in words else ()
