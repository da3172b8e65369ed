"""Stage 1 (Sec. 3.2, App. C): the adversarial game on the 2D branch, with adaptive augmentation."""

from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from cad.config import CameraSettings, DiscriminatorSettings, GeneratorSettings, Stage1Settings
from cad.context import Context
from cad.models.ada import AdaController
from cad.train import parallel
from cad.train.adversary import blur_sigma
from cad.train.data import load_reals
from cad.train.distill import Distiller, Show
from cad.train.loop import Length, run_training
from cad.train.losses import generator_loss
from cad.train.optimize import descend
from cad.train.preview import draw_preview


def train_stage1(
    settings: Stage1Settings,
    generator: GeneratorSettings,
    discriminator: DiscriminatorSettings,
    camera: CameraSettings,
    refine_dir: Path,
    out: Path,
    context: Context,
) -> None:
    """Train generator and discriminator on the refined prior; writes a "stage1" Checkpoint, history.csv, preview.png.

    Resumes from the checkpoint in `out`, to the same bits. Raises UserError for a broken or empty prior and for a loss
    that is not finite.
    """
    reals = load_reals(refine_dir, camera, generator.output_resolution)
    players = Distiller("stage1", settings, generator, discriminator, camera, reals, context)
    length = Length(settings.kimg, settings.batch, settings.checkpoint_kimg, settings.preview_seconds)
    run_training(Stage1(players, settings, camera), length, out, context)


class Stage1:
    """The job of stage 1: D, then G, one batch each; regularisers when they are due (see `loop.Job`)."""

    kind = "stage1"

    def __init__(self, players: Distiller, settings: Stage1Settings, camera: CameraSettings) -> None:
        self.players, self.settings, self.camera = players, settings, camera
        self.ada = AdaController(settings.ada_target, settings.ada_interval, settings.ada_kimg, settings.batch)
        self.modules: dict[str, nn.Module] = {
            "generator": players.generator,
            "generator_ema": players.average,
            "discriminator": players.discriminator,
        }
        self.optimizers = {"optimizer_g": players.optimizer_g, "optimizer_d": players.optimizer_d}

    def step(self, step: int) -> dict[str, float]:
        """Eq. 7 (loss, then R1), Eq. 8, density regularisation, moving average.

        Both players meet on the same fakes ([ours]; StyleGAN2 draws new ones for G): rendering is most of a step.
        """
        players, s = self.players, self.settings
        images = step * s.batch
        show = Show(blur_sigma(s.blur_sigma, s.blur_kimg, images), self.ada.p)
        fakes = players.fakes(players.draws(step, "fakes"))
        views = fakes.views
        values, real = players.discriminator_step(step, fakes, show)
        values |= players.penalty_step(step, show)
        if s.ada_enabled:
            self.ada.observe(parallel.gathered(real))
        draws = players.draws(step, "generator")
        loss = generator_loss(*players.judged(players.exhibit(views.image, views.raw, fakes.labels, show, draws)))
        own = {"optimizer_g": players.optimizer_g}
        values["grad_g"] = descend(loss, own, self.kind, "generator", step)
        values |= {"loss_g": loss.item(), "ada_p": self.ada.p, "blur_px": show.sigma}
        values |= players.density_step(step, own, lambda planes, w: [planes])
        players.average_step(images)
        return values

    def scalars(self) -> dict[str, Any]:
        """ADA's state, and what is needed to rebuild the networks."""
        return {"ada": self.ada.state()} | describe(self.players, self.camera)

    def restore_scalars(self, state: dict[str, Any]) -> None:
        """Put ADA's state back."""
        self.ada.restore(state["ada"])

    def preview(self) -> np.ndarray:
        """Raw and 2D views of the averaged generator."""
        players = self.players
        return draw_preview(players.average, None, self.camera, players.lens, players.reals.polar)


def describe(players: Distiller, camera: CameraSettings) -> dict[str, Any]:
    """What `load.py` and stage 2 need to rebuild the networks, as JSON."""
    return {
        "object": players.context.object,
        "kept_poses": len(players.reals),
        "settings": {
            "generator": players.shape.model_dump(mode="json"),
            "discriminator": players.judge.model_dump(mode="json"),
            "camera": camera.model_dump(mode="json"),
        },
    }
