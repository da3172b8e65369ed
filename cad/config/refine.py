"""The settings of refinement: what all refiners share, and a section for each family with what only that one needs."""

from typing import Annotated, Any

from pydantic import AfterValidator, Field, model_validator

from cad.config.kinds import check_owner, is_plugin, one_of
from cad.config.sections import Count, NotNegative, Precision, Section

Strength = Annotated[float, Field(gt=0, le=1)]
Steps = Annotated[int, Field(ge=1, le=1000)]

# The fields of ModelPaths that each family of refiners loads.
REFINER_MODELS = {
    "latent-diffusion": ("refiner",),
    "controlnet-depth": ("refiner", "controlnet", "depth"),
    "deepfloyd-if": ("deepfloyd_stage1", "deepfloyd_stage2"),
}


class LatentDiffusionSettings(Section):
    """SDEdit by a latent diffusion model and nothing beside it ([ours]; toyworld's refiner is of this family)."""

    strength: Strength = Field(
        description="share of the noise schedule that is added; 0.4 to 1.0 in the paper's Fig. 10"
    )
    guidance: NotNegative = Field(description="classifier-free guidance scale; 7.5 in diffusers, [ours]")
    steps: Steps = Field(description="length of the schedule, of which `strength` is run; 50 in diffusers, [ours]")


class ControlNetSettings(Section):
    """SDEdit by a latent diffusion model under a ControlNet on the sample's depth (App. C)."""

    strength: Strength = Field(description="share of the noise schedule that is added; 0.8 in Sec. 4")
    guidance: NotNegative = Field(description="classifier-free guidance scale; 7.5 in diffusers, [ours]")
    steps: Steps = Field(description="length of the schedule, of which `strength` is run; 50 in diffusers, [ours]")
    conditioning_scale: NotNegative = Field(
        description="factor of the ControlNet's residuals; 0.8 in diffusers, [ours]"
    )


class DeepFloydStage1Settings(Section):
    """DeepFloyd IF's base model on the sample shrunk to the model's side, 64 px (App. C)."""

    strength: Strength = Field(description="share of the noise schedule that is added at 64 px; 0.3 in Sec. 4")
    guidance: NotNegative = Field(description="classifier-free guidance scale; 10 in diffusers, [ours]")
    steps: Steps = Field(description="length of the schedule, of which `strength` is run; 80 in diffusers, [ours]")


class DeepFloydStage2Settings(Section):
    """DeepFloyd IF's super-resolution model, from the sample and stage 1's picture to 256 px (App. C)."""

    strength: Strength = Field(description="share of the noise schedule that is added at 256 px; 0.7 in Sec. 4")
    guidance: NotNegative = Field(description="classifier-free guidance scale; 4 in diffusers, [ours]")
    steps: Steps = Field(description="length of the schedule, of which `strength` is run; 50 in diffusers, [ours]")
    noise_level: int = Field(
        ge=0, lt=1000, description="time step to which stage 1's enlarged picture is noised; 250 in diffusers, [ours]"
    )


class DeepFloydSettings(Section):
    """DeepFloyd IF: image to image at 64 px, then super-resolution image to image (App. C)."""

    stage1: DeepFloydStage1Settings = Field(description="the base model's walk (App. C)")
    stage2: DeepFloydStage2Settings = Field(description="the super-resolution model's walk (App. C)")


class RefineSettings(Section):
    """Diffuse-and-denoise of the kept samples with a text-guided model (Sec. 3.3, App. C)."""

    enabled: bool = Field(description="false passes the kept samples on as they are; refinement is in Sec. 3.3")
    kind: Annotated[str, AfterValidator(one_of(*REFINER_MODELS))] = Field(
        description="family of the refiner, chosen per object as in App. C; latent-diffusion and plug-ins are [ours]"
    )
    settings: dict[str, Any] | None = Field(description="a plug-in's own settings, null for the families; [ours]")
    latent_diffusion: LatentDiffusionSettings | None = Field(
        description="settings of the kind latent-diffusion, null where no entry is of it; [ours]"
    )
    controlnet_depth: ControlNetSettings | None = Field(
        description="settings of the kind controlnet-depth, null where no entry is of it; App. C"
    )
    deepfloyd_if: DeepFloydSettings | None = Field(
        description="settings of the kind deepfloyd-if, null where no entry is of it; App. C"
    )
    precision: Precision = Field(
        description="of the weights and arithmetic of UNets, ControlNet and text encoder, half ones for GPUs (T5 takes "
        "bfloat16 for float16, in which it overflows); VAE, depth and schedule stay in float32; [ours], for memory"
    )
    bf16: bool = Field(
        description="over float32 weights, encoder and denoising networks compute in bfloat16; [ours], for speed"
    )
    draws: Count = Field(description="refined images of each kept pose; [ours], more draws make more diverse objects")
    batch: Count = Field(
        description="images of one network call; [ours], changes speed, never which noise is drawn: images of another "
        "batch differ by rounding, by a grey level or, under bf16, up to 8"
    )
    view_prompts: bool = Field(description="append front, side, back or overhead view to the prompt (App. C)")
    shard_poses: Count = Field(description="poses of one file, the unit of resuming; [ours]")

    @model_validator(mode="after")
    def _kind_and_precision_agree_with_the_rest(self) -> "RefineSettings":
        check_owner(self.kind, self.settings)
        section = self.kind.replace("-", "_")
        if not is_plugin(self.kind) and getattr(self, section) is None:
            raise ValueError(f"kind is {self.kind}, but {section} is null")
        if self.bf16 and self.precision != "float32":
            raise ValueError(f"bf16 is for float32 weights, precision is {self.precision}: set bf16 to false")
        return self

    @property
    def models(self) -> tuple[str, ...]:
        """The fields of ModelPaths that refining by these settings loads."""
        return REFINER_MODELS.get(self.kind, ()) if self.enabled else ()

    @property
    def plugins(self) -> list[tuple[str, dict[str, Any]]]:
        """Plug-ins that refining makes, with their settings."""
        return [(self.kind, self.settings or {})] if self.enabled and is_plugin(self.kind) else []
