"""Every knob of the method: type, bounds, unit and source; no defaults, since every value is written in a profile.

Sources: "Sec." and "App." are the paper's; EG3D is the public code that the paper builds on; [ours] is a choice that
the paper leaves open. Units stand in square brackets; fields without one are pure numbers.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

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

    matcher: Literal["patches", "loftr"] = Field(description="patches needs no weights, [ours]; loftr is One-2-3-45's")
    loftr: Text | None = Field(description="LoFTR's weights, .safetensors or .ckpt; null for patches; App. C")
    turn_deg: float = Field(gt=0, lt=45, description="how far off the neighbours are [deg]; 10 in One-2-3-45 (App. C)")
    draws: Count = Field(description="how often Zero-1-to-3 draws the four neighbours; 1 in One-2-3-45")
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

    @model_validator(mode="after")
    def _matcher_is_whole(self) -> "ElevationSettings":
        if self.patch_px % 2 == 0:
            raise ValueError(f"patch_px must be odd, not {self.patch_px}")
        if (self.matcher == "loftr") != (self.loftr is not None):
            raise ValueError("loftr names the weights of matcher loftr, and is null for patches")
        return self


class PriorSettings(Section):
    """Sampling of the view-conditioned diffusion model (Sec. 3.3)."""

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
        if self.bf16 and self.precision != "float32":
            raise ValueError(f"bf16 is for float32 weights, precision is {self.precision}: set bf16 to false")
        return self


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


class GeneratorSettings(Section):
    """StyleGAN2 triplanes, decoder and 2D upsampler (Sec. 3.1); sizes are EG3D's where the paper is silent."""

    z_dim: Count = Field(description="width of the latent z; 512 in EG3D")
    w_dim: Count = Field(description="width of the style w; 512 in EG3D")
    mapping_layers: Count = Field(description="layers of the mapping network; 2 in EG3D")
    mapping_lr_multiplier: Rate = Field(description="learning-rate multiplier of the mapping network; 0.01 in EG3D")
    plane_resolution: int = Field(ge=8, description="side of a stage-1 plane [px]; 128 in App. C")
    plane_channels: Count = Field(description="channels of each of the three planes; 32 in EG3D")
    channel_base: Count = Field(description="channels times resolution of a synthesis block; 32768 in EG3D")
    channel_max: Count = Field(description="most channels of a synthesis block; 512 in EG3D")
    decoder_hidden: Count = Field(description="hidden width of the triplane decoder; 64 in EG3D")
    feature_channels: int = Field(ge=3, description="rendered channels, the first three RGB; 32 in EG3D")
    raw_resolution: int = Field(ge=8, description="side of the volume rendering [px]; 64 in App. C")
    output_resolution: int = Field(ge=8, description="side of the upsampled image [px]; 256 in Sec. 4")
    coarse_samples: int = Field(ge=2, description="stratified samples of a ray; 48 in EG3D")
    fine_samples: int = Field(ge=0, description="importance samples of a ray; 48 in EG3D")
    upsampler_channels: Count = Field(description="channels of the 2D upsampler; 128 in EG3D")
    activation_clamp: Positive | None = Field(
        description="largest activation of synthesis and upsamplers, null for none; 256 in EG3D's half precision"
    )

    @model_validator(mode="after")
    def _powers_of_two(self) -> "GeneratorSettings":
        for name in ("plane_resolution", "raw_resolution", "output_resolution"):
            if (side := getattr(self, name)).bit_count() != 1:
                raise ValueError(f"{name} must be a power of two, not {side}")
        if self.raw_resolution > self.output_resolution:
            raise ValueError("raw_resolution must not be above output_resolution")
        return self


class DiscriminatorSettings(Section):
    """The pose-conditioned dual discriminator (Sec. 3.2); sizes are EG3D's."""

    channel_base: Count = Field(description="channels times resolution of a block; 32768 in EG3D")
    channel_max: Count = Field(description="most channels of a block; 512 in EG3D")
    mbstd_group: Count = Field(description="images of one minibatch-deviation group; 4 in EG3D")
    pose_noise: NotNegative = Field(description="noise on the pose label, in its standard deviations; 0 in the paper")
    activation_clamp: Positive | None = Field(
        description="largest activation of all discriminators, null for none; 256 in EG3D's half precision"
    )


class _Adversarial(Section):
    """What both training stages set (Eq. 7; EG3D where the paper is silent)."""

    kimg: Positive = Field(description="length in thousands of generated images [kimg]; [ours]")
    batch: Count = Field(description="images of one step; 32 in EG3D")
    lr_generator: Rate = Field(description="Adam's learning rate of G; 0.0025 in EG3D")
    lr_discriminator: Rate = Field(description="Adam's learning rate of D; 0.002 in EG3D")
    precision: Precision = Field(
        description="of the convolutions of discriminators and 2D upsampler; float16 in EG3D; bfloat16 has its speed "
        "and float32's range, so float16 is for GPUs without it, and needs activation_clamp of both networks"
    )
    plane_precision: Precision = Field(description="of the synthesis and the 3D upsampler; float32 in EG3D")
    compile: bool = Field(
        description="torch.compile of synthesis, upsamplers and discriminators, R1 excepted: minutes more at the "
        "start, fewer passes over memory; [ours]"
    )
    beta1: float = Field(ge=0, lt=1, description="Adam's first decay; 0 in EG3D")
    beta2: float = Field(ge=0, lt=1, description="Adam's second decay; 0.99 in EG3D")
    r1_gamma: NotNegative = Field(description="weight of R1, loss gamma / 2 |grad D|^2; 3 in App. C")
    r1_interval: Count = Field(description="steps between R1 regularisations; 16 in EG3D")
    density_weight: NotNegative = Field(description="weight of the density regularisation; 0.25 in EG3D")
    density_interval: Count = Field(description="steps between density regularisations; 4 in EG3D")
    density_points: Count = Field(description="points of one density regularisation; 1000 in EG3D")
    density_distance: Positive = Field(description="perturbation of those points [scene units]; 0.004 in EG3D")
    ema_kimg: Positive = Field(description="half-life of the averaged generator [kimg]; batch * 10 / 32 in EG3D")
    ema_rampup: Fraction = Field(description="the half-life is at most this share of the images so far; 0.05 in EG3D")
    checkpoint_kimg: Positive = Field(description="images between two checkpoints to resume from [kimg]; [ours]")
    preview_seconds: Positive = Field(description="time between two preview images [s]; [ours]")


class Stage1Settings(_Adversarial):
    """Stage 1: adversarial distillation through the 2D branch (Sec. 3.2)."""

    ada_enabled: bool = Field(description="adaptive augmentation; on in App. C, off in the 100K ablation")
    ada_target: Fraction = Field(description="aimed mean sign of D on reals; 0.6 in StyleGAN2-ADA")
    ada_interval: Count = Field(description="steps between adjustments of p; 4 in StyleGAN2-ADA")
    ada_kimg: Positive = Field(description="images in which p can move from 0 to 1 [kimg]; 500 in StyleGAN2-ADA")
    blur_sigma: NotNegative = Field(description="first blur of D's images, at the output's resolution [px]; 10 in EG3D")
    blur_kimg: NotNegative = Field(description="images over which that blur fades [kimg]; batch * 200 / 32 in EG3D")


class Stage2Settings(_Adversarial):
    """Stage 2: the 3D upsampler, tied to the detached 2D branch by Eq. 10 (Sec. 3.2)."""

    branch_3d: bool = Field(description="false goes on with the 2D branch alone; an ablation of Sec. 3.2")
    lr_upsampler: Rate = Field(description="Adam's learning rate of the 3D upsampler; [ours]")
    lr_patch: Rate = Field(description="Adam's learning rate of the patch discriminator; [ours]")
    plane_upsampling: int = Field(ge=1, le=4, description="side of stage-2 over stage-1 planes; 2 in App. C")
    upsampler_channels: Count = Field(description="channels of the 3D upsampler; [ours]")
    patch_size: int = Field(ge=32, description="side of a patch [px]; 64 in Sec. 3.2, AlexNet-LPIPS needs 31")
    lpips_weight: NotNegative = Field(description="weight of LPIPS in Eq. 10; 1 in Mimic3D")
    patch_weight: NotNegative = Field(description="weight of the patch discriminator's loss; 0.2 in Mimic3D")
    patch_r1_gamma: NotNegative = Field(description="R1 of the patch discriminator; 3 everywhere in App. C")
    patch_r1_interval: Count = Field(description="steps between its R1 regularisations; 16 in EG3D")
    patch_channel_base: Count = Field(description="channels times resolution of its blocks; [ours]")
    patch_channel_max: Count = Field(description="most channels of its blocks; [ours]")


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


class EvaluateSettings(Section):
    """CLIP image and text scores (Sec. 4, Table 1), and measures beside them that different fakes fail."""

    scorers: dict[str, ScorerSettings] = Field(
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


class ReportSettings(Section):
    """What the tables and figures show."""

    rows: dict[str, Name] = Field(min_length=1, description="Table 1's rows of ours: name to evaluation entry; [ours]")
