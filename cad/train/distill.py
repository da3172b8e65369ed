"""Adversarial distillation (Sec. 3.2): the players that both stages share, and the steps they take."""

import copy
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from cad.config import CameraSettings, DiscriminatorSettings, GeneratorSettings, Stage1Settings, Stage2Settings
from cad.config.rules import check_clamps, check_groups
from cad.context import Context
from cad.models.discriminator import Discriminator, noisy_label
from cad.models.ema import ema_decay, update_ema
from cad.models.generator import Generator
from cad.models.layers import computing_in, initialise
from cad.models.resample import downsample
from cad.render.reference import raw_density
from cad.seeding import Part, drawn
from cad.seeding import generator as seeded
from cad.train import parallel
from cad.train.adversary import shown
from cad.train.data import Reals, draw_cameras, draw_reals
from cad.train.losses import density_roughness, discriminator_loss, nearby_points, r1_penalty
from cad.train.optimize import descend, lazy_adam
from cad.train.synthesis import Branch2D, branch_2d, optics


class Fakes(NamedTuple):
    """One batch of the 2D branch: w [B, w_dim], planes [B, 3, C, N, N], cameras [B, 4, 4], labels [B, 25], views."""

    w: Tensor
    planes: Tensor
    cameras: Tensor
    labels: Tensor
    views: Branch2D


class Exhibit(NamedTuple):
    """One batch as D gets it: image and raw image, both [B, 3, H, W], and pose labels [B, 25]."""

    image: Tensor
    raw: Tensor
    labels: Tensor


class Show(NamedTuple):
    """How images are treated before D sees them in this step: blur in pixels, probability of augmentation."""

    sigma: float
    p: float


PLAIN = Show(sigma=0.0, p=0.0)  # stage 2: neither blur nor augmentation (App. C)


def jitter(draws: torch.Generator, device: torch.device) -> torch.Generator:
    """The stream of the rays' jitter: `draws` itself on a CPU, on a GPU one there that is seeded from it.

    At the paper's sizes drawing on the CPU and copying takes 50 ms of a GPU's step.
    """
    if device.type == "cpu":
        return draws
    stream = torch.Generator(device).manual_seed(int(torch.randint(2**62, (), generator=draws)))
    return Part.of(stream, draws.batch, draws.rows) if isinstance(draws, Part) else stream


class Distiller:
    """Generator, its moving average and the pose-conditioned discriminator, with fresh weights and optimisers.

    All randomness of a step comes from (seed, object, stage, step, purpose). R1 is taken with respect to the images
    that D is given, after blur and augmentation, as in EG3D ([ours]: it bounds the D that gives the generator its
    gradient, and needs no second derivative of the warps). Every regulariser is an optimiser step of its own.
    """

    def __init__(
        self,
        stage: str,
        settings: Stage1Settings | Stage2Settings,
        shape: GeneratorSettings,
        judge: DiscriminatorSettings,
        camera: CameraSettings,
        reals: Reals,
        context: Context,
    ) -> None:
        check_groups(stage, settings.batch, judge.mbstd_group)
        self.batch = parallel.share(stage, settings.batch, judge.mbstd_group)  # of a step, in this process
        precisions = (settings.precision, settings.plane_precision)
        check_clamps(stage, precisions, (shape.activation_clamp, judge.activation_clamp))
        self.stage, self.settings, self.shape, self.judge = stage, settings, shape, judge
        self.reals, self.context, self.lens = reals, context, optics(shape, camera, settings.precision)
        self.generator = Generator(shape)
        self.discriminator = Discriminator(judge, shape.output_resolution)
        initialise(self.generator, seeded(context.seed, context.object, stage, "weights", "generator"))
        initialise(self.discriminator, seeded(context.seed, context.object, stage, "weights", "discriminator"))
        self.generator.to(context.device)
        self.discriminator.to(context.device)
        self.average = copy.deepcopy(self.generator).requires_grad_(False)
        if settings.compile:
            for network in (self.generator.synthesis, self.generator.upsampler, self.discriminator):
                network.compile(dynamic=False)  # D judges one batch or two
        s = settings
        self.optimizer_g = lazy_adam(
            {"generator": self.generator}, s.lr_generator, s.beta1, s.beta2, s.density_interval
        )
        self.optimizer_d = lazy_adam(
            {"discriminator": self.discriminator}, s.lr_discriminator, s.beta1, s.beta2, s.r1_interval
        )

    def draws(self, step: int, purpose: str) -> torch.Generator:
        """The random stream of one purpose in one step, of whose batches this process keeps its rows."""
        stream = seeded(self.context.seed, self.context.object, self.stage, step, purpose)
        return parallel.part_of(stream, self.settings.batch, self.judge.mbstd_group)

    def latents(self, draws: torch.Generator) -> Tensor:
        """z of one batch, unit normal, [B, z_dim]."""
        return drawn(torch.randn, self.batch, self.shape.z_dim, generator=draws).to(self.context.device)

    def fakes(self, draws: torch.Generator) -> Fakes:
        """R(G(z), c) of Eq. 7 and 8 through the 2D branch, with jittered rays, from the kept poses."""
        z = self.latents(draws)
        cameras, labels = draw_cameras(self.reals, self.batch, draws, self.context.device)
        w = self.generator.mapping(z, 1.0)
        planes = self.planes(w)
        views = branch_2d(self.generator, planes, w, cameras, self.lens, jitter(draws, w.device))
        return Fakes(w, planes, cameras, labels, views)

    def planes(self, w: Tensor) -> Tensor:
        """Triplanes [B, 3, C, N, N] of w [B, w_dim], in the planes' precision."""
        with computing_in(self.settings.plane_precision, self.context.device):
            return self.generator.planes(w)

    def exhibit(self, image: Tensor, raw: Tensor, labels: Tensor, show: Show, draws: torch.Generator) -> Exhibit:
        """Images [B, 3, H, W] and [B, 3, r, r] of poses [B, 25] as they are shown to D."""
        return Exhibit(*shown(image, raw, show.sigma, show.p, draws), self.label(labels, draws))

    def judged(self, *exhibits: Exhibit) -> tuple[Tensor, ...]:
        """D's logits [B, 1] of each batch, all at one go, in the stage's precision."""
        joined = exhibits[0] if len(exhibits) == 1 else [torch.cat(parts) for parts in zip(*exhibits, strict=True)]
        with computing_in(self.settings.precision, self.context.device):
            return self.discriminator(*joined, len(exhibits)).chunk(len(exhibits))

    def label(self, labels: Tensor, draws: torch.Generator) -> Tensor:
        """Pose labels [B, 25] as D gets them: with noise only where the profile asks for it."""
        return noisy_label(labels, self.judge.pose_noise, draws) if self.judge.pose_noise > 0 else labels

    def real_views(self, draws: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Real images [B, 3, H, W], their raw counterparts [B, 3, r, r] and labels [B, 25]."""
        images, labels = draw_reals(self.reals, self.batch, draws, self.context.device)
        return images, downsample(images, self.shape.raw_resolution), labels

    def discriminator_step(self, step: int, fakes: Fakes, show: Show) -> tuple[dict[str, float], Tensor]:
        """Eq. 7 without its penalty; returns what to record, and the logits [B, 1] of the augmented reals (for ADA)."""
        draws = self.draws(step, "discriminator")
        made = self.exhibit(fakes.views.image.detach(), fakes.views.raw.detach(), fakes.labels, show, draws)
        fake, real = self.judged(made, self.exhibit(*self.real_views(draws), show, draws))
        loss = discriminator_loss(fake, real)
        norm = descend(loss, {"optimizer_d": self.optimizer_d}, self.stage, "discriminator", step)
        real, fake = real.detach(), fake.detach()
        values = {
            "loss_d": loss.item(),
            "d_real": real.mean().item(),
            "d_fake": fake.mean().item(),
            "d_real_sign": real.sign().mean().item(),
            "d_fake_sign": fake.sign().mean().item(),
            "grad_d": norm,
        }
        return values, real

    def penalty_step(self, step: int, show: Show) -> dict[str, float]:
        """R1 of Eq. 7, every `r1_interval` steps."""
        if step % self.settings.r1_interval or self.settings.r1_gamma == 0:
            return {}
        draws = self.draws(step, "r1")
        image, raw, label = self.exhibit(*self.real_views(draws), show, draws)
        image, raw = image.detach().requires_grad_(), raw.detach().requires_grad_()
        with computing_in(self.settings.precision, self.context.device):
            real = self.discriminator.forward(image, raw, label)  # never compiled: that has no second derivative
        penalty = r1_penalty(real, [image, raw], self.settings.r1_gamma)
        descend(penalty * self.settings.r1_interval, {"optimizer_d": self.optimizer_d}, self.stage, "r1", step)
        return {"r1": penalty.item()}

    def density_step(
        self,
        step: int,
        optimizers: dict[str, torch.optim.Adam],
        volumes: Callable[[Tensor, Tensor], list[Tensor]],
    ) -> dict[str, float]:
        """Density regularisation every `density_interval` steps on all volumes that `volumes` makes of planes and w."""
        s = self.settings
        if step % s.density_interval or s.density_weight == 0:
            return {}
        draws = self.draws(step, "density")
        w = self.generator.mapping(self.latents(draws), 1.0)
        half_side = self.lens.sampling.half_side
        points = nearby_points(s.density_points, s.density_distance, half_side, self.batch, draws).to(w)
        rough = w.new_zeros(())
        for planes in volumes(self.planes(w), w):
            density, nearby = raw_density(planes, self.generator.decoder, points, half_side).chunk(2, dim=1)
            rough = rough + density_roughness(density, nearby)
        descend(rough * s.density_weight * s.density_interval, optimizers, self.stage, "density", step)
        return {"density": rough.item()}

    def average_step(self, images: int) -> None:
        """Move the averaged generator, in the main process; `images` were shown before this step."""
        s = self.settings
        if parallel.is_main():
            update_ema(self.average, self.generator, ema_decay(images, s.batch, s.ema_kimg, s.ema_rampup))
