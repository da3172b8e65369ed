"""A trained generator from its checkpoint: averaged weights only, ready to render."""

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from pydantic import ValidationError
from torch import Tensor

from cad.artifacts import Checkpoint
from cad.config import CameraSettings, GeneratorSettings, Stage2Settings
from cad.errors import UserError
from cad.models.generator import Generator
from cad.models.layers import initialise
from cad.models.upsampler3d import PlaneUpsampler
from cad.render.reference import Sampling
from cad.seeding import generator as seeded
from cad.train.preview import latent
from cad.train.synthesis import Optics, View, branch_2d, lifted_planes, optics, view_3d


class LoadedGenerator(NamedTuple):
    """Averaged generator and, after stage 2, the triplane upsampler; cameras are those of the training (`camera`)."""

    generator: Generator
    upsampler: PlaneUpsampler | None
    settings: GeneratorSettings
    camera: CameraSettings
    device: torch.device

    @torch.no_grad()
    def w(self, seed: int, truncation: float) -> Tensor:
        """w of a numbered object, [1, w_dim]; truncation 1 leaves it, 0 gives the mean object."""
        return self.generator.mapping(latent(seed, self.settings.z_dim).to(self.device), truncation)

    @torch.no_grad()
    def render_2d(self, w: Tensor, cameras: Tensor, sampling: Sampling) -> View:
        """The 2D branch from cameras [B, 4, 4], w [1 or B, w_dim]; opacity and depth at the raw resolution."""
        planes, w, cameras = self._planes(w, cameras)
        views = branch_2d(self.generator, planes, w, cameras, self._optics(sampling), None)
        return View(views.image, views.opacity, views.depth)

    @torch.no_grad()
    def render_3d(self, w: Tensor, cameras: Tensor, sampling: Sampling) -> View:
        """The 3D branch: pure volume rendering of the lifted planes at the output resolution.

        Without an upsampler (stage 1, or branch_3d: false) the stage-1 planes are rendered as they are.
        """
        planes, w, cameras = self._planes(w, cameras)
        return view_3d(self.generator, lifted_planes(self.upsampler, planes, w), cameras, self._optics(sampling))

    def _planes(self, w: Tensor, cameras: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Planes for every camera, made once where one w serves all."""
        w, cameras = w.to(self.device), cameras.to(self.device)
        planes = self.generator.planes(w)
        count = len(cameras)
        return planes.expand(count, -1, -1, -1, -1), w.expand(count, -1), cameras

    def _optics(self, sampling: Sampling) -> Optics:
        return replace(optics(self.settings, self.camera, bf16=False), sampling=sampling)


def load_generator(folder: Path, kind: str, device: torch.device) -> LoadedGenerator:
    """The averaged weights of a finished or running training; kind: "stage1" or "stage2".

    Raises UserError naming the file for another kind, a missing or damaged checkpoint.
    """
    checkpoint = Checkpoint.open(folder, kind)
    loaded = _build(checkpoint, device)
    loaded.generator.load_state_dict(checkpoint.tensors("generator_ema"))
    if loaded.upsampler is not None:
        loaded.upsampler.load_state_dict(checkpoint.tensors("upsampler_ema"))
    return loaded


def untrained_generator(folder: Path, kind: str, seed: int, device: torch.device) -> LoadedGenerator:
    """The same networks with fresh weights from `seed`: the control that training must beat."""
    loaded = _build(Checkpoint.open(folder, kind), device)
    initialise(loaded.generator, seeded(seed, "untrained", "generator"))
    if loaded.upsampler is not None:
        initialise(loaded.upsampler, seeded(seed, "untrained", "upsampler"))
    return loaded


def _build(checkpoint: Checkpoint, device: torch.device) -> LoadedGenerator:
    """Networks in the shapes that the checkpoint records, without weights.

    Raises UserError for settings of another version of this package.
    """
    stored = checkpoint.state["settings"]
    upsampler = None
    try:
        shape = GeneratorSettings.model_validate(stored["generator"])
        camera = CameraSettings.model_validate(stored["camera"])
        stage2 = Stage2Settings.model_validate(stored["stage2"]) if "upsampler_ema" in checkpoint.groups else None
    except ValidationError as fault:
        where = ".".join(str(part) for part in fault.errors()[0]["loc"])
        raise UserError(
            f"{checkpoint.folder / 'state.json'}: its settings are another version's ({where}: "
            f"{fault.errors()[0]['msg'].lower()}); train it again"
        ) from fault
    if stage2 is not None:
        upsampler = PlaneUpsampler(stage2, shape.plane_channels, shape.w_dim).requires_grad_(False).eval().to(device)
    generator = Generator(shape).requires_grad_(False).eval().to(device)
    return LoadedGenerator(generator, upsampler, shape, camera, device)
