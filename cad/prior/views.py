"""Models that draw new views of one picture (Sec. 3.3), behind one small protocol; Zero-1-to-3 is one of them."""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from cad import plugins
from cad.config import ModelPaths, PriorSettings
from cad.prior.ddim import NoiseStreams, in_precision
from cad.prior.zero123 import Zero123


class ViewModel(Protocol):
    """Anything that draws views of a picture from poses relative to it; all its noise comes from the given streams."""

    resolution: int  # side of its square images, pixels

    def condition(self, image: Tensor, polar: float) -> Any:
        """What is computed once of the reference: image [1, 3, H, W] in [-1, 1], seen from `polar` [rad, from +Z]."""
        ...

    def views(self, condition: Any, relative: Tensor, streams: NoiseStreams) -> Tensor:
        """Views [B, 3, H, W] in [-1, 1] at poses [B, 4], as `cad.camera.relative_pose` gives them, one stream each."""
        ...


class Zero123Views:
    """Zero-1-to-3 by guided DDIM under the prior's settings (Sec. 3.3)."""

    def __init__(self, model: Zero123, settings: PriorSettings):
        self.model = model
        self.settings = settings
        self.resolution = model.resolution

    def condition(self, image: Tensor, polar: float) -> tuple[Tensor, Tensor]:
        """Embedding and latent of the reference; its own polar angle does not matter to Zero-1-to-3."""
        return self.model.condition(image)

    def views(self, condition: tuple[Tensor, Tensor], relative: Tensor, streams: NoiseStreams) -> Tensor:
        """A stream gives the initial noise first, then one draw per step if eta is not 0."""
        (embedding, latent), chosen, shape = condition, self.settings, self.model.latent_shape
        with in_precision(relative.device, chosen.bf16):
            return self.model.sample(
                embedding,
                latent,
                relative,
                streams.draw(shape),
                (lambda step: streams.draw(shape)) if chosen.eta > 0 else None,
                chosen.steps,
                chosen.guidance,
                chosen.eta,
            )


def _load_zero123(settings: PriorSettings, models: ModelPaths, device: torch.device) -> ViewModel:
    home = torch.device("cpu") if settings.offload else device
    model = Zero123.load(models.zero123, home, getattr(torch, settings.precision))
    if settings.offload:
        model.offload_idle(device)
    return Zero123Views(model, settings)


MODELS: dict[str, Callable[[PriorSettings, ModelPaths, torch.device], ViewModel]] = {"zero123": _load_zero123}


def load_views(settings: PriorSettings, models: ModelPaths, device: torch.device) -> ViewModel:
    """The model that `prior.kind` names; UserError where its weights or its plug-in are missing or broken."""
    if settings.kind in MODELS:
        return MODELS[settings.kind](settings, models, device)
    made: ViewModel = plugins.make(
        settings.kind, "prior.kind", ViewModel, settings=settings.settings or {}, device=device
    )
    return made
