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
from cad.render.inference import Volume, prepare
from cad.render.reference import Sampling
from cad.seeding import generator as seeded
from cad.train.preview import latent
from cad.train.synthesis import Optics, View, branch_2d, lifted_planes, optics, view_3d


class Subject(NamedTuple):
    """One object as a branch ("2d" or "3d") shows it, ready for any number of views: its w [1, w_dim] and volume."""

    branch: str
    w: Tensor
    volume: Volume


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
    def subject(self, branch: str, w: Tensor) -> Subject:
        """The object of w [1, w_dim], its planes made once. The 3D branch's are lifted.

        Without an upsampler (stage 1, or branch_3d: false) they are the stage-1 planes as they are. Raises UserError
        for planes that are not finite, of which no view could be.
        """
        w = w.to(self.device)
        planes = self.generator.planes(w)
        if branch == "3d":
            planes = lifted_planes(self.upsampler, planes, w)
        if not planes.isfinite().all():
            said = f"its generator makes planes of the {branch.upper()} branch that are not finite"
            raise UserError(f"stage2: {said}; train again with lower rates")
        return Subject(branch, w, prepare(planes, self.generator.decoder))

    @torch.no_grad()
    def render(self, subject: Subject, cameras: Tensor, sampling: Sampling) -> View:
        """Views from cameras [B, 4, 4].

        The 2D branch's opacity and depth have the raw resolution; the 3D branch is pure volume rendering.
        """
        cameras, lens = cameras.to(self.device), self._optics(sampling)
        if subject.branch == "3d":
            return view_3d(self.generator, subject.volume, cameras, lens)
        views = branch_2d(self.generator, subject.volume, subject.w.expand(len(cameras), -1), cameras, lens, None)
        return View(views.image, views.opacity, views.depth)

    def _optics(self, sampling: Sampling) -> Optics:
        return replace(optics(self.settings, self.camera, "float32"), sampling=sampling)


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


def output_side(folder: Path, kind: str) -> int:
    """Pixels along a side of the images of a checkpoint's generator, read without its weights."""
    return _stored(Checkpoint.open(folder, kind))[0].output_resolution


def untrained_generator(folder: Path, kind: str, seed: int, device: torch.device) -> LoadedGenerator:
    """The same networks with fresh weights from `seed`: the control that training must beat."""
    loaded = _build(Checkpoint.open(folder, kind), device)
    initialise(loaded.generator, seeded(seed, "untrained", "generator"))
    if loaded.upsampler is not None:
        initialise(loaded.upsampler, seeded(seed, "untrained", "upsampler"))
    return loaded


def _stored(checkpoint: Checkpoint) -> tuple[GeneratorSettings, CameraSettings, Stage2Settings | None]:
    """The settings that a checkpoint records; UserError where they are those of another version of this package."""
    stored = checkpoint.state["settings"]
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
    return shape, camera, stage2


def _build(checkpoint: Checkpoint, device: torch.device) -> LoadedGenerator:
    """Networks in the shapes that the checkpoint records, without weights; errors as `_stored`."""
    shape, camera, stage2 = _stored(checkpoint)
    upsampler = None
    if stage2 is not None:
        upsampler = PlaneUpsampler(stage2, shape.plane_channels, shape.w_dim, shape.activation_clamp)
        upsampler = upsampler.requires_grad_(False).eval().to(device)
    generator = Generator(shape).requires_grad_(False).eval().to(device)
    return LoadedGenerator(generator, upsampler, shape, camera, device)
