"""Stage 2 (Sec. 3.2, Fig. 3): the 2D branch is baked into a triplane upsampler, while the game on it goes on.

Which weights learn from the 3D branch ([ours]; the paper says both "to optimize the 3D upsampler" and "fine-tuning
together"): its losses reach the upsampler and, through planes, w and decoder, the trunk that both branches share, as in
Mimic3D. They never reach the 2D upsampler, whose image is a fixed target (the stop-gradient of Eq. 10).
"""

import copy
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from cad.artifacts import Checkpoint
from cad.config import CameraSettings, DiscriminatorSettings, GeneratorSettings, ModelPaths, Stage2Settings
from cad.config.rules import check_patch
from cad.context import Context
from cad.errors import UserError
from cad.models.discriminator import PatchDiscriminator
from cad.models.ema import ema_decay, update_ema
from cad.models.layers import computing_in, initialise
from cad.models.upsampler3d import PlaneUpsampler
from cad.render.image import crop
from cad.seeding import generator as seeded
from cad.train import parallel
from cad.train.data import crop_places, draw_reals, load_reals
from cad.train.distill import PLAIN, Distiller, Fakes, jitter
from cad.train.loop import Length, run_training
from cad.train.losses import consistency_loss, discriminator_loss, generator_loss, r1_penalty
from cad.train.optimize import descend, lazy_adam, restore_optimizer
from cad.train.perceptual import load_lpips
from cad.train.preview import draw_preview
from cad.train.stage1 import describe
from cad.train.synthesis import lifted_planes, patch_3d


def train_stage2(
    settings: Stage2Settings,
    camera: CameraSettings,
    models: ModelPaths,
    stage1_dir: Path,
    refine_dir: Path,
    out: Path,
    context: Context,
) -> None:
    """Go on from stage 1 with the 3D branch beside the 2D one; writes a "stage2" Checkpoint, history.csv, preview.png.

    Resumes from the checkpoint in `out`, to the same bits. Raises UserError for a broken stage-1 checkpoint or prior,
    a patch that does not fit, missing LPIPS weights, and a loss that is not finite.
    """
    first = Checkpoint.open(stage1_dir, "stage1")
    stored = first.state["settings"]
    shape = GeneratorSettings.model_validate(stored["generator"])
    judge = DiscriminatorSettings.model_validate(stored["discriminator"])
    if stored["camera"] != camera.model_dump(mode="json"):
        raise UserError(f"{stage1_dir}: was trained with another camera than params.yaml says; train stage 1 again")
    reals = load_reals(refine_dir, camera, shape.output_resolution)
    players = Distiller("stage2", settings, shape, judge, camera, reals, context)
    players.generator.load_state_dict(first.tensors("generator"))
    players.average.load_state_dict(first.tensors("generator_ema"))
    players.discriminator.load_state_dict(first.tensors("discriminator"))
    restore_optimizer(players.optimizer_g, first.tensors("optimizer_g"))
    restore_optimizer(players.optimizer_d, first.tensors("optimizer_d"))
    branch = Branch3D(players, settings, Path(models.lpips)) if settings.branch_3d else None
    job = Stage2(players, branch, settings, camera, first.state["images"])
    length = Length(settings.kimg, settings.batch, settings.checkpoint_kimg, settings.preview_seconds)
    run_training(job, length, out, context)


class Patches(NamedTuple):
    """I3D and I2D of Eq. 10 at the same places, each [B, 3, p, p]."""

    rendered: Tensor
    target: Tensor


class Branch3D:
    """The triplane upsampler, its moving average, the patch discriminator and LPIPS: all that stage 2 adds."""

    def __init__(self, players: Distiller, settings: Stage2Settings, lpips_weights: Path) -> None:
        size, resolution = settings.patch_size, players.shape.output_resolution
        check_patch(size, resolution)
        context, s = players.context, settings
        self.players, self.settings = players, settings
        self.distance = load_lpips(lpips_weights, context.device)
        shape, judge = players.shape, players.judge
        self.upsampler = PlaneUpsampler(settings, shape.plane_channels, shape.w_dim, shape.activation_clamp)
        self.patches = PatchDiscriminator(size, s.patch_channel_base, s.patch_channel_max, judge.activation_clamp)
        initialise(self.upsampler, seeded(context.seed, context.object, "stage2", "weights", "upsampler"))
        initialise(self.patches, seeded(context.seed, context.object, "stage2", "weights", "patches"))
        self.upsampler.to(context.device)
        self.patches.to(context.device)
        self.average = copy.deepcopy(self.upsampler).requires_grad_(False)
        if settings.compile:
            self.upsampler.compile(dynamic=False)
            self.patches.compile(dynamic=False)
        self.optimizer_up = lazy_adam(
            {"upsampler": self.upsampler}, s.lr_upsampler, s.beta1, s.beta2, s.density_interval
        )
        self.optimizer_patch = lazy_adam({"patches": self.patches}, s.lr_patch, s.beta1, s.beta2, s.patch_r1_interval)

    def patch(self, fakes: Fakes, draws: torch.Generator) -> Patches:
        """Patches of both branches at the same uniformly drawn places."""
        size, lens = self.settings.patch_size, self.players.lens
        places = crop_places(len(fakes.w), size, lens.resolution, draws).to(fakes.w.device)
        lifted = self.lifted(fakes.planes, fakes.w)
        rays = jitter(draws, fakes.w.device)
        rendered = patch_3d(self.players.generator, lifted, fakes.cameras, places, size, lens, rays)
        return Patches(rendered, crop(fakes.views.image, places, size))

    def lifted(self, planes: Tensor, w: Tensor) -> Tensor:
        """The 3D branch's planes [B, 3, C, kN, kN], in the planes' precision."""
        with computing_in(self.settings.plane_precision, planes.device):
            return lifted_planes(self.upsampler, planes, w)

    def real_patches(self, draws: torch.Generator) -> Tensor:
        """Crops of refined samples, at places of their own, [B, 3, p, p]."""
        size, batch, device = self.settings.patch_size, self.players.batch, self.players.context.device
        images, _ = draw_reals(self.players.reals, batch, draws, device)
        return crop(images, crop_places(batch, size, self.players.lens.resolution, draws), size)

    def judged(self, patches: Tensor) -> Tensor:
        """The patch discriminator's logits [B, 1] in the stage's precision."""
        with computing_in(self.settings.precision, patches.device):
            return self.patches(patches)

    def discriminator_step(self, step: int, fake: Tensor) -> dict[str, float]:
        """Eq. 7 for the patch discriminator ("a similar objective"), without pose and augmentation."""
        draws = self.players.draws(step, "patch discriminator")
        own = {"optimizer_patch": self.optimizer_patch}
        real_logits, fake_logits = self.judged(torch.cat([self.real_patches(draws), fake])).chunk(2)
        loss = discriminator_loss(fake_logits, real_logits)
        values = {"grad_patch": descend(loss, own, "stage2", "patch discriminator", step), "loss_patch_d": loss.item()}
        values["patch_real_sign"] = real_logits.detach().sign().mean().item()
        values["patch_fake_sign"] = fake_logits.detach().sign().mean().item()
        return values

    def penalty_step(self, step: int) -> dict[str, float]:
        """R1 of the patch discriminator, every `patch_r1_interval` steps."""
        s = self.settings
        if step % s.patch_r1_interval or s.patch_r1_gamma == 0:
            return {}
        real = self.real_patches(self.players.draws(step, "patch r1")).requires_grad_()
        with computing_in(s.precision, real.device):
            logits = self.patches.forward(real)  # never compiled: that has no second derivative
        penalty = r1_penalty(logits, [real], s.patch_r1_gamma)
        own = {"optimizer_patch": self.optimizer_patch}
        descend(penalty * s.patch_r1_interval, own, "stage2", "patch r1", step)
        return {"patch_r1": penalty.item()}

    def losses(self, patches: Patches) -> dict[str, Tensor]:
        """Eq. 10 and the patch discriminator's opinion, unweighted."""
        return {
            "lpips": consistency_loss(self.distance, patches.rendered, patches.target),
            "loss_patch_g": generator_loss(self.judged(patches.rendered)),
        }


class Stage2:
    """The job of stage 2: stage 1's game without augmentation, and the 3D branch (see `loop.Job`)."""

    kind = "stage2"

    def __init__(
        self,
        players: Distiller,
        branch: Branch3D | None,
        settings: Stage2Settings,
        camera: CameraSettings,
        stage1_images: int,
    ) -> None:
        self.players, self.branch, self.settings, self.camera = players, branch, settings, camera
        self.stage1_images = stage1_images
        self.modules: dict[str, nn.Module] = {
            "generator": players.generator,
            "generator_ema": players.average,
            "discriminator": players.discriminator,
        }
        self.optimizers = {"optimizer_g": players.optimizer_g, "optimizer_d": players.optimizer_d}
        if branch:
            self.modules |= {
                "upsampler": branch.upsampler,
                "upsampler_ema": branch.average,
                "patch_discriminator": branch.patches,
            }
            self.optimizers |= {"optimizer_upsampler": branch.optimizer_up, "optimizer_patch": branch.optimizer_patch}

    def step(self, step: int) -> dict[str, float]:
        """Both discriminators, then the generator with both branches' losses in one step, then regularisers and EMA."""
        players, branch, images = self.players, self.branch, step * self.settings.batch
        draws = players.draws(step, "fakes")
        fakes = players.fakes(draws)
        patches = branch.patch(fakes, draws) if branch else None
        values, _ = players.discriminator_step(step, fakes, PLAIN)
        values |= players.penalty_step(step, PLAIN)
        if branch and patches:
            values |= branch.discriminator_step(step, patches.rendered.detach())
            values |= branch.penalty_step(step)
        values |= self._generator_step(step, fakes, patches)
        values |= players.density_step(step, self._generator_optimizers(), self._volumes)
        players.average_step(self.stage1_images + images)
        if branch and parallel.is_main():
            s = self.settings
            update_ema(branch.average, branch.upsampler, ema_decay(images, s.batch, s.ema_kimg, s.ema_rampup))
        return values

    def _generator_step(self, step: int, fakes: Fakes, patches: Patches | None) -> dict[str, float]:
        """Eq. 8 on the 2D branch, Eq. 10 and the patch loss on the 3D branch."""
        players, branch, s = self.players, self.branch, self.settings
        views = fakes.views
        draws = players.draws(step, "generator")
        made = players.exhibit(views.image, views.raw, fakes.labels, PLAIN, draws)
        terms = {"loss_g": generator_loss(*players.judged(made))}
        total = terms["loss_g"]
        if branch and patches:
            terms |= branch.losses(patches)
            total = total + s.lpips_weight * terms["lpips"] + s.patch_weight * terms["loss_patch_g"]
        norm = descend(total, self._generator_optimizers(), self.kind, "generator", step)
        return {"grad_g": norm} | {name: term.item() for name, term in terms.items()}

    def _generator_optimizers(self) -> dict[str, torch.optim.Adam]:
        return {k: v for k, v in self.optimizers.items() if k in ("optimizer_g", "optimizer_upsampler")}

    def _volumes(self, planes: Tensor, w: Tensor) -> list[Tensor]:
        """Both branches' volumes are kept smooth ([ours]: the lifted one has its own fine detail to keep in check)."""
        return [planes, self.branch.lifted(planes, w)] if self.branch else [planes]

    def scalars(self) -> dict[str, Any]:
        """What is needed to rebuild the networks, the upsampler's own settings included."""
        described = describe(self.players, self.camera)
        described["settings"]["stage2"] = self.settings.model_dump(mode="json")
        return {"stage1_images": self.stage1_images} | described

    def restore_scalars(self, state: dict[str, Any]) -> None:
        """Nothing changes during training that is no tensor."""

    def preview(self) -> np.ndarray:
        """Raw, 2D and 3D views of the averaged generator."""
        players, average = self.players, self.branch.average if self.branch else None
        return draw_preview(players.average, average, self.camera, players.lens, players.reals.polar)
