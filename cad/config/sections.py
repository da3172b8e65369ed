"""Every knob of the method: type, bounds, unit and source; no defaults, since every value is written in a profile.

Sources: "Sec." and "App." are the paper's; EG3D is the public code that the paper builds on; [ours] is a choice that
the paper leaves open. Units stand in square brackets; fields without one are pure numbers.
"""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from cad.config.kinds import check_owner, is_plugin, one_of

Count = Annotated[int, Field(ge=1)]
NotNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Rate = Annotated[float, Field(gt=0, le=1)]
Gray = Annotated[int, Field(ge=0, le=255)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")]
Text = Annotated[str, Field(min_length=1)]
Precision = Literal["float32", "bfloat16", "float16"]
# The names in `cad.toyworld.families`, which draws with compiled code and is too heavy to import for a check.
Family = Literal["robot", "car", "mug", "chair", "house", "duck", "boat", "lamp"]


class Section(BaseModel):
    """A group of settings: strict types, unknown keys refused, frozen, no infinities."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class RuntimeSettings(Section):
    """How a stage computes. A CPU gives the same bits again with equal threads, renderer and versions of the libraries.

    `auto` follows the machine, and what it came to is written into the results: other choices give other bits.
    """

    threads: Count = Field(description="CPU threads of torch and numba; part of the result's identity [ours]")
    device: Literal["cpu", "cuda", "auto"] = Field(
        description="where networks run; auto takes CUDA if there is one; [ours], cpu gives equal bits"
    )
    renderer: Literal["auto", "fused", "reference"] = Field(
        description="fused is compiled code, reference is plain PyTorch, auto is fused where it compiles; [ours]"
    )


class TrackingSettings(Section):
    """Weights & Biases; never part of a result's identity."""

    mode: Literal["auto", "offline", "online", "disabled"] = Field(
        description="auto: online with a key, else offline; [ours]"
    )
    project: Text = Field(description="name of the W&B project; [ours]")


class CameraSettings(Section):
    """The one camera that all stages and methods share (App. C)."""

    fov_deg: float = Field(gt=0, lt=180, description="full field of view [deg]; 49.1 in App. C")
    radius: Positive = Field(description="distance of the camera from the origin [scene units]; 2 in App. C")
    half_side: Positive = Field(description="half the side of the volume box [scene units]; 0.7 in App. C")
    reference_azimuth_deg: float = Field(ge=-360, le=360, description="azimuth of the input view [deg]; 180 in App. C")

    @model_validator(mode="after")
    def _camera_outside_box(self) -> "CameraSettings":
        if self.half_side * 3**0.5 >= self.radius:
            raise ValueError("the camera stands inside the volume box: half_side * sqrt(3) must be below radius")
        return self


class ModelPaths(Section):
    """The frozen networks: a local folder, or a Hugging Face id at a revision, `owner/name@commit` (lpips: a file)."""

    zero123: Text = Field(description="view-conditioned diffusion model (Sec. 3.3)")
    refiner: Text = Field(description="text-guided latent diffusion model that refines samples (Sec. 3.3)")
    controlnet: Text | None = Field(
        description="ControlNet that guides `refiner` by depth (App. C), null where nothing is refined by it"
    )
    depth: Text | None = Field(description="DPT whose depth the ControlNet follows (App. C), null like `controlnet`")
    deepfloyd_stage1: Text | None = Field(
        description="DeepFloyd IF's 64 px model with T5 (App. C), null where nothing is refined by it"
    )
    deepfloyd_stage2: Text | None = Field(
        description="DeepFloyd IF's super-resolution model (App. C), null like `deepfloyd_stage1`"
    )
    clip: Text = Field(description="CLIP whose image similarity prunes samples (Eq. 11); not the evaluation's")
    lpips: Text = Field(description="AlexNet LPIPS weights (Eq. 10); the paper names no backbone, AlexNet is [ours]")


class ToyworldSettings(Section):
    """The procedural object that an image shows, so that its truth is known ([ours])."""

    family: Family = Field(description="family of procedural objects")
    seed: int = Field(ge=0, description="seed of the instance; held out from the priors' training")


class ObjectSettings(Section):
    """One object to make: the image and the prompt that a user gives (Sec. 4)."""

    image: Text = Field(description="PNG with alpha or on white")
    prompt: Text = Field(description="text file that holds the prompt")
    reference_polar_deg: float = Field(gt=0, lt=180, description="the image's polar angle from +Z [deg], App. C")
    framed: bool = Field(description="true keeps the image's framing, false crops and centres it; [ours]")
    toyworld: ToyworldSettings | None = Field(description="the procedural truth behind the image, or null")


class CaseSettings(Section):
    """An object that the paper names and whose picture is to be brought, for the paper publishes none."""

    shown: Text = Field(description="where the paper shows it")
    prompt: Text | None = Field(description="the paper's prompt, null where it gives none")
    bring: Text = Field(description="where its picture is to come from, and the command that takes it up")


class InputSettings(Section):
    """Matting and centring (Zero-1-to-3's preparation, Sec. 4)."""

    resolution: int = Field(ge=16, multiple_of=8, description="side of every image in the run [px]; 256 in Sec. 4")
    object_fraction: Rate = Field(description="the object's longest side in the frame; 200/256 in Zero-1-to-3")
    alpha_threshold: Gray = Field(description="alpha above this is object [gray]; 127 in Zero-1-to-3")
    white_threshold: Gray = Field(description="without alpha, a channel below this is object [gray]; [ours]")
    min_side: Count = Field(description="smaller images are refused [px]; [ours]")


class ElevationSettings(Section):
    """The polar angle of a photograph by One-2-3-45's estimator (App. C); all but the algorithm is [ours]."""

    score: Literal["points", "silhouettes"] = Field(description="what must agree; points in One-2-3-45, else [ours]")
    matcher: Literal["patches", "loftr"] = Field(description="patches needs no weights, [ours]; loftr is One-2-3-45's")
    loftr: Text | None = Field(description="LoFTR's weights, .safetensors or .ckpt; null for patches; App. C")
    turn_deg: float = Field(gt=0, lt=45, description="how far off the neighbours are [deg]; 10 in One-2-3-45 (App. C)")
    ring_deg: list[float] = Field(min_length=2, description="silhouettes' azimuths beside the picture's [deg]; [ours]")
    draws: Count = Field(description="how often Zero-1-to-3 draws these views; 1 in One-2-3-45")
    white_threshold: Gray = Field(description="a pixel with a channel below this is foreground [gray]; [ours]")
    patch_px: int = Field(ge=3, description="side of a compared patch, odd [px]; [ours]")
    window: Rate = Field(description="a match lies at most this far away in x and in y [image sides]; [ours]")
    min_texture: NotNegative = Field(description="least smaller eigenvalue of a patch's structure tensor; [ours]")
    min_correlation: float = Field(ge=-1, le=1, description="least correlation of matched patches; [ours]")
    max_return_px: NotNegative = Field(description="a match searched backwards ends at most so far off [px]; [ours]")
    join: NotNegative = Field(description="points of two matches nearer than this are one [image sides]; [ours]")
    outlier: Rate = Field(description="no reprojection counts as farther off than this [image sides]; [ours]")
    min_tracks: Count = Field(description="fewer points matched in three views determine no angle; [ours]")
    max_error: Rate = Field(description="nor does a least error above this [image sides]; [ours]")
    min_contrast: Fraction = Field(description="nor a least error not this share below the largest one; [ours]")
    hull_cells: int = Field(ge=8, le=128, description="cells along the visual hull's grid; [ours]")
    max_uncovered: Rate = Field(description="silhouettes of which no hull fills more determine no angle; [ours]")
    min_gap: Rate = Field(description="nor where the unfilled share at the worst angle is less above the least; [ours]")

    @model_validator(mode="after")
    def _matcher_is_whole(self) -> "ElevationSettings":
        if self.patch_px % 2 == 0:
            raise ValueError(f"patch_px must be odd, not {self.patch_px}")
        if (self.matcher == "loftr") != (self.loftr is not None):
            raise ValueError("loftr names the weights of matcher loftr, and is null for patches")
        return self


class PriorSettings(Section):
    """Sampling of the view-conditioned diffusion model (Sec. 3.3); a plug-in heeds what concerns it."""

    kind: Annotated[str, AfterValidator(one_of("zero123"))] = Field(
        description="the view-conditioned model; zero123 in Sec. 3.3, module:Name for a plug-in [ours]"
    )
    settings: dict[str, Any] | None = Field(description="a plug-in's own settings, null for zero123; [ours]")
    poses: Count = Field(description="unique poses M, uniform on the sphere; 10 000 in Sec. 4")
    samples: Count = Field(description="parallel samples N of each pose (Sec. 3.3); N is [ours]")
    steps: int = Field(ge=1, le=1000, description="DDIM steps; 50 in Zero-1-to-3")
    guidance: NotNegative = Field(description="classifier-free guidance scale; 3 in Zero-1-to-3")
    eta: Fraction = Field(description="DDIM noise, 0 deterministic; 1 in Zero-1-to-3's code")
    precision: Precision = Field(
        description="of the weights and arithmetic of UNet and image encoder, half ones for GPUs; VAE, projection and "
        "DDIM stay in float32; [ours], for memory and speed"
    )
    bf16: bool = Field(description="over float32 weights, the denoising network computes in bfloat16; [ours], speed")
    offload: bool = Field(
        description="UNet, VAE and image encoder lie in the CPU's memory but while they compute; [ours], for small GPUs"
    )
    batch: Count = Field(
        description="images of one network call; [ours], changes speed, never which noise is drawn: images of another "
        "batch differ by rounding, by a grey level or, under bf16, up to 8"
    )
    shard_poses: Count = Field(description="poses of one file, the unit of resuming; [ours]")

    @model_validator(mode="after")
    def _one_precision(self) -> "PriorSettings":
        check_owner(self.kind, self.settings)
        if self.bf16 and self.precision != "float32":
            raise ValueError(f"bf16 is for float32 weights, precision is {self.precision}: set bf16 to false")
        return self

    @property
    def models(self) -> tuple[str, ...]:
        """The fields of ModelPaths that sampling by these settings loads."""
        return () if is_plugin(self.kind) else ("zero123",)

    @property
    def plugins(self) -> list[tuple[str, dict[str, Any]]]:
        """Plug-ins that sampling makes, with their settings."""
        return [(self.kind, self.settings or {})] if is_plugin(self.kind) else []


class PruneSettings(Section):
    """Rejection of bad samples (Sec. 3.3, Eq. 11); every number is [ours], the paper gives none."""

    enabled: bool = Field(description="false keeps every pose with its first sample; pruning is in Sec. 3.3")
    white_threshold: Gray = Field(description="a pixel with a channel below this is foreground [gray]; [ours]")
    dilation_px: int = Field(
        ge=0, description="growth of the samples' shared overlap mask [px]; Sec. 3.3 dilates, by how much is [ours]"
    )
    max_bad_pixels: int = Field(
        ge=0, description="more foreground than this outside the mask rejects the pose [px]; Sec. 3.3, [ours]"
    )
    min_clip_similarity: float = Field(
        ge=-1, le=1, description="a least cosine below this rejects the pose; Eq. 11, the number is [ours]"
    )
    batch: Count = Field(description="images of one CLIP call; [ours], changes speed")


class OrbitSettings(Section):
    """The turntable that is scored (Sec. 4)."""

    frames: Count = Field(description="frames of 360 deg; 120 in Sec. 4")
    seeds: Count = Field(description="latents z; [ours], the paper scores one object each")
    fps: Count = Field(description="frame rate of the video [1/s]; [ours]")
    batch: Count = Field(description="views rendered at once; [ours], changes memory, not images")
    coarse_samples: int = Field(ge=2, description="stratified samples of a ray, without jitter; [ours]")
    fine_samples: int = Field(ge=0, description="importance samples of a ray, without jitter; [ours]")
    truncation: Fraction = Field(description="pull of w to its mean, 1 for none; [ours]")


class ScorerSettings(Section):
    """One CLIP that scores (Sec. 4)."""

    kind: Literal["transformers", "open_clip", "proxy"] = Field(
        description="the library that loads it; proxy is no CLIP (cad/evaluate/proxy.py), and its name has to say so"
    )
    model: Text = Field(description="a local folder or model id, or an open_clip architecture")
    pretrained: Text | None = Field(description="open_clip's weights tag; null for the others")


class PluginScorerSettings(Section):
    """A scorer of the user's (docs/extending.md)."""

    kind: Annotated[str, AfterValidator(one_of())] = Field(description="module:Name of the plug-in [ours]")
    settings: dict[str, Any] = Field(description="the plug-in's own settings [ours]")

    @property
    def model(self) -> str:
        """What results name as the model."""
        return self.kind

    @property
    def pretrained(self) -> None:
        """No tag: only open_clip has them."""
        return None


def _scorer_kind(values: Any) -> str:
    kind = values.get("kind") if isinstance(values, dict) else getattr(values, "kind", None)
    return "[plug-in]" if isinstance(kind, str) and is_plugin(kind) else "[own]"


AnyScorer = Annotated[
    Annotated[ScorerSettings, Tag("[own]")] | Annotated[PluginScorerSettings, Tag("[plug-in]")],
    Discriminator(_scorer_kind),
]


class EvaluateSettings(Section):
    """CLIP image and text scores (Sec. 4, Table 1), and measures beside them that different fakes fail."""

    scorers: dict[str, AnyScorer] = Field(
        min_length=1, description="scorers by the name the table shows; CLIP ViT-L/14 and ViT-B/32 in Sec. 4"
    )
    batch: Count = Field(description="images of one network call; [ours], changes speed")
    controls: bool = Field(description="also score what should win or fail: truth, copies, another object; [ours]")
    step_frames: Count = Field(description="frames between the two views of the cross-view error; [ours]")
    depth_tolerance: Positive = Field(
        description="two depths of a point that differ by more show that it is hidden [scene units]; [ours]"
    )
    diversity_interval: Count = Field(description="of so many frames one is compared between seeds; [ours], cost")
    diversity_poses: Count = Field(description="poses at which draws of refined samples are compared; [ours], cost")

    @property
    def scorer_models(self) -> list[str]:
        """The weights that the project's own scorers load: local folders, model ids or architectures."""
        return [scorer.model for scorer in self.scorers.values() if isinstance(scorer, ScorerSettings)]

    @property
    def plugins(self) -> list[tuple[str, dict[str, Any]]]:
        """Scorers that are plug-ins, with their settings."""
        return [(each.kind, each.settings) for each in self.scorers.values() if isinstance(each, PluginScorerSettings)]


class ReportSettings(Section):
    """What the tables and figures show."""

    rows: dict[str, Name] = Field(min_length=1, description="Table 1's rows of ours: name to evaluation entry; [ours]")
