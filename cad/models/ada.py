"""Adaptive discriminator augmentation (Appendix C; the method is Karras et al. 2020).

Left out [ours]: flips and 90 degree turns would show a pose-conditioned discriminator mirrored and turned objects under
the pose of the upright one, and the generator would learn them; luma flips and hue turns would do so for colours. Turns
are normal and small instead of uniform over the circle: a normal distribution can be undone in principle whatever
p is, a uniform one cannot. Images lie on white, so what moves in from outside is white, not a reflection.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from cad.models.resample import WHITE
from cad.seeding import drawn

# Strengths of Karras et al. 2020, Appendix B, except the angle [ours, see above].
WHOLE_SHIFT = 0.125  # of the image side, uniform, rounded to pixels
SHIFT = 0.125  # deviation, of the image side
SCALE = 0.2  # deviation of log2, both axes alike
STRETCH = 0.2  # deviation of log2, one axis against the other
ANGLE_DEG = 10.0  # deviation
BRIGHTNESS = 0.2  # deviation, of [-1, 1] images
CONTRAST = 0.5  # deviation of log2
SATURATION = 1.0  # deviation of log2


def augment(images: Tensor, p: Tensor, generator: torch.Generator) -> Tensor:
    """Augment [B, 6, H, W] (final and raw image, on white): each transformation independently with probability p.

    All channels of a sample share one geometric and one colour draw. Differentiable, also twice. Samples that no
    transformation hits come out to the bit, so p = 0 is the identity. The draws don't depend on p.
    """
    batch, _, height, width = images.shape
    chance = float(p)
    geometry, moved = _geometry(batch, height, width, chance, generator)
    color, tinted = _color(batch, chance, generator)
    if moved.any():
        chosen = moved.nonzero()[:, 0].to(images.device)
        picked = images[chosen]
        # Bilinear and one warp for everything; the zeros beyond the border are white.
        grid = affine_grid(geometry[moved].to(images), list(picked.shape), align_corners=False)
        warped = grid_sample(picked - WHITE, grid, mode="bilinear", padding_mode="zeros", align_corners=False) + WHITE
        images = images.index_copy(0, chosen, warped)
    if tinted.any():
        chosen = tinted.nonzero()[:, 0].to(images.device)
        picked = images[chosen].unflatten(1, (2, 3))
        matrix, shift = color[tinted].to(images).split([3, 1], dim=-1)  # [b, 3, 3], [b, 3, 1]
        mixed = (matrix[:, None] @ picked.flatten(3) + shift[:, None]).reshape(picked.shape)
        images = images.index_copy(0, chosen, mixed.flatten(1, 2))
    return images


class _Draws:
    """Per-sample draws of one augmentation call; counts which samples were hit."""

    def __init__(self, batch: int, chance: float, generator: torch.Generator) -> None:
        self.batch, self.chance, self.generator = batch, chance, generator
        self.hit = torch.zeros(batch, dtype=torch.bool)

    def normal(self, deviation: float) -> Tensor:
        """Normal draws [B], 0 for the samples that are spared."""
        return self._spare(drawn(torch.randn, self.batch, generator=self.generator) * deviation)

    def uniform(self, reach: float) -> Tensor:
        """Uniform draws [B] in [-reach, reach), 0 for the samples that the previous or own gate spares."""
        return self._spare((drawn(torch.rand, self.batch, generator=self.generator) * 2 - 1) * reach)

    def _spare(self, values: Tensor) -> Tensor:
        chosen = drawn(torch.rand, self.batch, generator=self.generator) < self.chance
        self.hit |= chosen
        return values * chosen


def _geometry(batch: int, height: int, width: int, chance: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Affine maps [B, 2, 3] from output to input positions in [-1, 1], and which samples [B] they move."""
    draws = _Draws(batch, chance, generator)
    whole_x, whole_y = draws.uniform(WHOLE_SHIFT), draws.uniform(WHOLE_SHIFT)
    scale, stretch = draws.normal(SCALE), draws.normal(STRETCH)
    angle = draws.normal(math.radians(ANGLE_DEG))
    shift_x = (whole_x * width).round() / width + draws.normal(SHIFT)
    shift_y = (whole_y * height).round() / height + draws.normal(SHIFT)
    across, down = torch.exp2(-scale - stretch), torch.exp2(-scale + stretch)  # inverse scales
    cos, sin = angle.cos(), angle.sin()
    linear = torch.stack([torch.stack([across * cos, across * sin], -1), torch.stack([-down * sin, down * cos], -1)], 1)
    offset = -2 * torch.stack([shift_x, shift_y], -1)[..., None]  # the image side is 2 in these units
    return torch.cat([linear, linear @ offset], -1), draws.hit


def _color(batch: int, chance: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Colour maps [B, 3, 4] on [-1, 1] (matrix, then shift), and which samples [B] they change.

    Brightness, then contrast, then saturation about the grey axis.
    """
    draws = _Draws(batch, chance, generator)
    brightness = draws.normal(BRIGHTNESS)[:, None, None]
    contrast = torch.exp2(draws.normal(CONTRAST))[:, None, None]
    saturation = torch.exp2(draws.normal(SATURATION))[:, None, None]
    grey = torch.full((3, 3), 1 / 3)
    matrix = contrast * (grey + saturation * (torch.eye(3) - grey))
    return torch.cat([matrix, (contrast * brightness).expand(-1, 3, 1)], -1), draws.hit


class AdaController:
    """Steers p so that the discriminator's sign on augmented reals stays at a target (FACTS section 2).

    target: wanted mean sign r_t; interval: steps between adjustments; kimg: thousand images in which p could go from 0
    to 1; batch: images per step.
    """

    def __init__(self, target: float, interval: int, kimg: float, batch: int) -> None:
        self.target, self.interval = target, interval
        self.step = batch * interval / (kimg * 1000)
        self.p = 0.0
        self.sign = 0.0  # r_t of the last full interval
        self._signs: list[float] = []

    def observe(self, real_logits: Tensor) -> None:
        """Take one step's logits [B, 1] of augmented reals; adjust p at the end of an interval, within [0, 1]."""
        self._signs.append(real_logits.detach().sign().mean().item())
        if len(self._signs) == self.interval:
            self.sign = sum(self._signs) / len(self._signs)
            error = self.sign - self.target
            self.p = min(max(self.p + self.step * ((error > 0) - (error < 0)), 0.0), 1.0)
            self._signs = []

    def state(self) -> dict[str, float | list[float]]:
        """What a checkpoint must hold to go on with the same p."""
        return {"p": self.p, "sign": self.sign, "signs": list(self._signs)}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state()`."""
        self.p, self.sign, self._signs = float(state["p"]), float(state["sign"]), [float(s) for s in state["signs"]]
