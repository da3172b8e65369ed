"""The objectives of Section 3.2, each equation as one function.

Eq. 7 and 8 as printed are unbounded (f(u) = -log(1 + exp(-u)) enters with the wrong sign); these are the non-saturating
losses of the work that the paper cites, which it says it adopts.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from cad.seeding import drawn


def discriminator_loss(fake_logits: Tensor, real_logits: Tensor) -> Tensor:
    """Eq. 7 without its penalty: mean softplus(D(fake)) + mean softplus(-D(real)); logits [B, 1]."""
    return F.softplus(fake_logits).mean() + F.softplus(-real_logits).mean()


def generator_loss(fake_logits: Tensor) -> Tensor:
    """Eq. 8, non-saturating: mean softplus(-D(fake)); logits [B, 1]."""
    return F.softplus(-fake_logits).mean()


def r1_penalty(real_logits: Tensor, inputs: Sequence[Tensor], gamma: float) -> Tensor:
    """The penalty of Eq. 7: gamma / 2 * |grad D|^2, summed over every input's C, H, W, mean over the batch.

    real_logits: [B, 1]; inputs: the tensors [B, C, H, W] that D was given (final and raw image), requiring gradients.
    The paper's lambda is read as gamma / 2, as in StyleGAN2 ([ours]: its Appendix C calls the value gamma).
    """
    gradients = torch.autograd.grad(real_logits.sum(), inputs, create_graph=True)
    squared = sum((gradient.square().sum(dim=(1, 2, 3)) for gradient in gradients), real_logits.new_zeros(()))
    return gamma / 2 * squared.mean()


def density_roughness(density: Tensor, nearby: Tensor) -> Tensor:
    """Mean L1 distance between raw densities (before softplus) at points and at points nearby, [B, P, 1] each."""
    return (density - nearby).abs().mean()


def nearby_points(count: int, distance: float, half_side: float, batch: int, draws: torch.Generator) -> Tensor:
    """Points uniform in the volume box, then their perturbed twins: [B, 2 * count, 3], all inside the box.

    distance: standard deviation of the perturbation per axis, in scene units. Twins that would leave the box are
    clamped onto it, where the density is still defined (outside it is masked to zero).
    """
    points = (drawn(torch.rand, batch, count, 3, generator=draws) * 2 - 1) * half_side
    twins = points + distance * drawn(torch.randn, batch, count, 3, generator=draws)
    return torch.cat([points, twins.clamp(-half_side, half_side)], dim=1)


def consistency_loss(distance: Callable[[Tensor, Tensor], Tensor], patch_3d: Tensor, patch_2d: Tensor) -> Tensor:
    """Eq. 10: LPIPS(I3D, sg(I2D)) on patches [B, 3, p, p] in [-1, 1], mean over the batch."""
    return distance(patch_3d, patch_2d.detach()).mean()
