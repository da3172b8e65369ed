"""The settings of the networks and of their training; sources and units as in `sections`."""

from pydantic import Field, model_validator

from cad.config.sections import Count, Fraction, NotNegative, Positive, Precision, Rate, Section


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
