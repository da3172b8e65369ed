"""Settings of the small models' data and training; the values, all [ours], are in experiments/toyworld/params.yaml."""

from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cad.config import CameraSettings
from cad.errors import UserError

Count = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DataSettings(_Strict):
    """What is rendered."""

    resolution: Count = Field(description="Side of a view, pixels")
    train_instances: Count = Field(description="Training instances per family")
    held_out_instances: Count = Field(description="Held-out instances per family, for the committed table")
    references: Count = Field(description="Views per instance near the front")
    targets: Count = Field(description="Views per instance uniform on the sphere")
    reference_spread_deg: float = Field(ge=0, le=180, description="Half-width of the references' azimuth, degrees")
    reference_polar_deg: tuple[float, float] = Field(description="Bounds of the references' polar angle, degrees")


class FitSettings(_Strict):
    """How one model is trained."""

    steps: Count = Field(description="Optimiser steps in all; a larger number resumes")
    batch: Count = Field(description="Examples per step")
    lr: float = Field(gt=0, description="Peak learning rate of AdamW")
    warmup: Count = Field(description="Steps of linear warm-up")
    cooldown: Fraction = Field(description="Last fraction of the steps, over which the learning rate falls to zero")
    ema: Fraction = Field(description="Decay per step of the exponential moving average that is saved")
    bf16: bool = Field(description="Run the forward pass under bfloat16 autocast")


class ClipSettings(_Strict):
    """A small CLIP."""

    patch: Count = Field(description="Patch side, pixels")
    width: Count = Field(description="Width of both towers and of the shared space")
    vision_layers: Count = Field(description="Layers of the image tower")
    text_layers: Count = Field(description="Layers of the text tower")
    fit: FitSettings


class AutoencoderSettings(_Strict):
    """The AutoencoderKL shared by both diffusion models."""

    channels: list[Count] = Field(description="Channels per level; each level after the first halves the side")
    foreground_weight: float = Field(ge=1, description="Weight of foreground pixels against background pixels")
    kl_weight: float = Field(ge=0, description="Weight of the divergence from the unit Gaussian, per latent element")
    squared_weight: float = Field(ge=0, description="Weight of the squared error beside the absolute one")
    perceptual_weight: float = Field(ge=0, description="Weight of LPIPS beside them, `sharpen` only")
    latent_weight: float = Field(ge=0, description="Weight of the latents' squared drift, `sharpen` only")
    fit: FitSettings
    sharpen: FitSettings = Field(description="The later training, whose latents hardly move")


class DiffusionSettings(_Strict):
    """A UNet in latent space."""

    channels: list[Count] = Field(description="Channels per level")
    attention: list[bool] = Field(description="Whether a level has cross- and self-attention, finest first")
    heads: Count = Field(description="Attention heads")
    layers: Count = Field(description="Residual blocks per level")
    foreground_weight: float = Field(ge=1, description="Weight of the object's latent pixels against the others")
    low_noise_share: Fraction = Field(description="Share of examples at timesteps below `low_noise`; 0 is uniform")
    low_noise: Fraction = Field(description="End of the low noise, as a share of the schedule")
    fit: FitSettings


class DepthSettings(_Strict):
    """A small DPT."""

    patch: Count = Field(description="Patch side, pixels; a quarter of the patches' number on a side must be whole")
    width: Count = Field(description="Width of the transformer")
    neck: Count = Field(description="Width of the features that are fused")
    heads: Count = Field(description="Attention heads")
    foreground_weight: float = Field(ge=1, description="Weight of foreground pixels against background pixels")
    fit: FitSettings


class ControlNetSettings(_Strict):
    """The small refiner's ControlNet, whose size is that of the refiner's encoder."""

    width: Count = Field(description="Channels of the first layer that sees the depth; doubled at each halving")
    foreground_weight: float = Field(ge=1, description="Weight of the object's latent pixels against the others")
    low_noise_share: Fraction = Field(description="Share of examples at timesteps below `low_noise`; 0 is uniform")
    low_noise: Fraction = Field(description="End of the low noise, as a share of the schedule")
    fit: FitSettings


class CheckSettings(_Strict):
    """What the trained models are measured on: `cad toyworld check`, held-out instances only."""

    instances: Count = Field(description="Held-out instances per family for all models but the CLIPs")
    captions: Count = Field(description="Distinct captions among which a CLIP has to find a picture's own")
    views: Count = Field(description="Views per instance that Zero-1-to-3 and the refiner are asked for")
    min_angle_deg: float = Field(
        ge=0, lt=180, description="Those views lie farther than this from the reference, degrees"
    )
    steps: Count = Field(description="DDIM steps of Zero-1-to-3")
    guidance: float = Field(ge=0, description="Zero-1-to-3's classifier-free guidance")
    eta: Fraction = Field(description="Zero-1-to-3's DDIM noise: 0 deterministic, 1 as noisy as DDPM")
    strength: Fraction = Field(description="Noise that the refiner starts from")
    refine_guidance: float = Field(ge=0, description="The refiner's classifier-free guidance")
    refine_steps: Count = Field(description="DDIM steps of the refiner's whole walk; it takes `strength` of them")
    control_strengths: list[Annotated[float, Field(gt=0, le=1)]] = Field(
        min_length=1, description="Noise that refinement with and without ControlNet starts from"
    )
    conditioning_scale: float = Field(ge=0, description="Factor of the ControlNet's residuals")
    bf16: bool = Field(description="Both compute in bfloat16")
    caption: Literal["generic", "colored", "specific"] = Field(description="Level of the refiner's prompt")
    draw_poses: Count = Field(description="Views whose samples are refined, evenly among the views asked for")
    raw_samples: int = Field(ge=2, description="Zero-1-to-3 samples of each of them")
    draws: int = Field(ge=2, description="Refinements of the first sample of each of them")
    white_threshold: Annotated[int, Field(ge=1, le=255)] = Field(
        description="A pixel with a channel below this is foreground"
    )
    part_pixels: Count = Field(description="A part is seen where it covers at least this many pixels")
    side_margin: float = Field(
        ge=0, lt=1, description="Least distance of a camera's unit vector from the plane between left and right, or "
        "front and back, where the side is asked for"
    )  # fmt: skip
    batch: Count = Field(description="Images per forward pass")


class PruningSettings(_Strict):
    """How pruning's thresholds are chosen and measured: `cad toyworld pruning`."""

    instances: Count = Field(description="Instances per family, so many of training and so many held out")
    poses: Count = Field(description="Poses per instance, uniform on the sphere")
    reference_polar_deg: float = Field(gt=0, lt=180, description="Polar angle of the reference views, degrees")
    max_bad_pixels: list[Annotated[int, Field(ge=0)]] = Field(
        min_length=1, description="Candidates of prune.max_bad_pixels, pixels"
    )
    min_clip_similarity: list[Annotated[float, Field(ge=-1, le=1)]] = Field(
        min_length=1, description="Candidates of prune.min_clip_similarity, a cosine"
    )
    min_recall: Fraction = Field(description="A pair of thresholds must keep this share of the good training poses")
    draws: Count = Field(description="Bootstrap samples behind an interval")


class ElevationSettings(_Strict):
    """What estimated elevations are measured on: `cad toyworld elevation`, held-out instances only."""

    instances: Count = Field(description="Held-out instances per family")


class RefinementSettings(_Strict):
    """What Fig. 10 is drawn of, `cad toyworld refinement`; its samples and prompts are those of `check`."""

    instances: Count = Field(description="Held-out instances, dealt to the families in turn")
    views: Count = Field(description="Views of each, uniform on the sphere")
    draws: int = Field(ge=2, description="Refinements of a view's sample by each family at each strength")
    strengths: list[Annotated[float, Field(gt=0, le=1)]] = Field(
        min_length=1, description="Noise that refinement starts from; 0.4 to 1.0 in Fig. 10"
    )
    steps: Count = Field(description="DDIM steps of the whole walk; multiples of 10 make tenths of it exact")
    shown: Count = Field(description="Views in the figure's strip of pictures")
    generated: dict[str, float] = Field(
        description="Entries of evaluations whose generated objects are compared, and the strength that each was "
        "refined at (experiments/ablation/strength.yaml)"
    )


class ToyworldSettings(_Strict):
    """All of experiments/toyworld/params.yaml."""

    seed: int
    camera: CameraSettings
    data: DataSettings
    clip: ClipSettings
    clip_evaluation: ClipSettings
    autoencoder: AutoencoderSettings
    zero123: DiffusionSettings
    refiner: DiffusionSettings
    depth: DepthSettings
    controlnet: ControlNetSettings
    check: CheckSettings
    pruning: PruningSettings
    elevation: ElevationSettings
    refinement: RefinementSettings


def load_settings(path: Path) -> ToyworldSettings:
    """Read and check the file; raises UserError with the full path of the first wrong key."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; run from the root of the repository")
    try:
        return ToyworldSettings.model_validate(yaml.safe_load(path.read_text()))
    except (ValidationError, yaml.YAMLError) as fault:
        if isinstance(fault, yaml.YAMLError):
            raise UserError(f"{path}: is not YAML ({fault}); restore it with git") from fault
        first = fault.errors()[0]
        raise UserError(
            f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}; see cad/toyworld/settings.py"
        ) from fault
