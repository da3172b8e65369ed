"""Discriminators: dual and pose-conditioned for whole views (Appendix C), plain for patches (Sec. 3.2)."""

import math
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, interpolate

from cad.models.layers import GAIN, Conv, Linear, activate, clamped, doublings, full_precision
from cad.models.resample import enlarge_to
from cad.seeding import drawn

if TYPE_CHECKING:
    from cad.config import DiscriminatorSettings

END = 4  # resolution at which the last layers start
LABEL = 25  # numbers in a pose label (cad.camera.pose_label)
LABEL_LAYERS = 2  # of the network that maps poses [ours]; 8 slow layers learn too late in short trainings


class Discriminator(nn.Module):
    """Judges final and raw image together against the camera pose: dual discrimination with projection.

    The logit is the product of image features and mapped pose [Miyato & Koyama], so every pose has its own direction
    of "real" (Appendix C: the absolute pose goes into the discriminator).
    """

    def __init__(self, settings: "DiscriminatorSettings", output_resolution: int) -> None:
        super().__init__()
        base, maximum = settings.channel_base, settings.channel_max
        self.resolution = output_resolution
        self.trunk = Trunk(6, output_resolution, base, maximum, settings.mbstd_group, None, settings.activation_clamp)
        width = self.trunk.outputs
        sizes = [LABEL] + [width] * LABEL_LAYERS
        self.pose = nn.ModuleList(
            Linear(i, o, bias=0.0, rate=1.0, gain=1.0 if last else GAIN)
            for (i, o), last in zip(pairwise(sizes), [False] * (LABEL_LAYERS - 1) + [True], strict=True)
        )

    def forward(self, image: Tensor, raw: Tensor, label: Tensor, batches: int = 1) -> Tensor:
        """image [B, 3, H, W], raw [B, 3, r, r] (resized up here if smaller), label [B, 25] to logits [B, 1].

        batches: how many equal batches they are, one behind the other; statistics over a batch keep them apart.
        """
        features = self.trunk(torch.cat([image, enlarge_to(raw, self.resolution)], 1), batches)
        with full_precision(label.device):
            direction = self.pose[0](label)
            for layer in list(self.pose)[1:]:
                direction = layer(activate(direction, None))
            direction = direction * torch.rsqrt(direction.square().mean(-1, keepdim=True) + 1e-8)
            return (features * direction).sum(-1, keepdim=True) / math.sqrt(features.shape[-1])


class PatchDiscriminator(nn.Module):
    """Judges patches [B, 3, p, p] alone, without pose; no minibatch statistics [ours]: patches lie at unlike places."""

    def __init__(self, patch_size: int, channel_base: int, channel_max: int, clamp: float | None) -> None:
        super().__init__()
        self.trunk = Trunk(3, patch_size, channel_base, channel_max, 0, 1, clamp)

    def forward(self, patch: Tensor) -> Tensor:
        """patch [B, 3, p, p] in [-1, 1] to logits [B, 1]."""
        return self.trunk(patch, 1)


class Trunk(nn.Module):
    """StyleGAN2's residual discriminator from images to `outputs` numbers (None: as many as the last width).

    A layer at resolution r has min(base / r, maximum) channels. `group` is the minibatch-std group, 0 for none;
    `clamp` bounds the activations of all layers but the last ones, which never compute in half precision.
    """

    def __init__(
        self,
        inputs: int,
        resolution: int,
        base: int,
        maximum: int,
        group: int,
        outputs: int | None,
        clamp: float | None,
    ) -> None:
        super().__init__()
        steps = doublings(END, resolution, "discriminator's resolution")
        widths = [max(1, min(base // (resolution >> k), maximum)) for k in range(steps + 1)]
        self.entry = Conv(inputs, widths[0], 1, stride=1, bias=True, gain=GAIN)
        self.blocks = nn.ModuleList(ResidualBlock(i, o, clamp) for i, o in pairwise(widths))
        last = widths[-1]
        self.group, self.clamp = group, clamp
        self.mix = Conv(last + (group > 0), last, 3, stride=1, bias=True, gain=GAIN)
        self.dense = Linear(last * END * END, last, bias=0.0, rate=1.0, gain=GAIN)
        self.outputs = outputs or last
        self.out = Linear(last, self.outputs, bias=0.0, rate=1.0)

    def forward(self, images: Tensor, batches: int) -> Tensor:
        """images [B, inputs, H, W], of so many batches one behind the other, to [B, outputs]."""
        x = activate(self.entry(images), self.clamp)
        for block in self.blocks:
            x = block(x)
        # The last layers keep full precision under autocast: a logit in bfloat16 would have two decimals.
        with full_precision(x.device):
            x = x.to(self.mix.weight.dtype)
            if self.group:
                x = torch.cat([minibatch_std(batch, self.group) for batch in x.chunk(batches)])
            return self.out(activate(self.dense(activate(self.mix(x), None).flatten(1)), None))


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions and a 1x1 shortcut, halving the resolution; both ways at equal variance.

    Their sum is to be divided by sqrt(2): both are, in their gain and clamp.
    """

    def __init__(self, inputs: int, outputs: int, clamp: float | None) -> None:
        super().__init__()
        half = math.sqrt(0.5)
        self.clamp, self.half_clamp = clamp, None if clamp is None else clamp * half
        self.first = Conv(inputs, inputs, 3, stride=1, bias=True, gain=GAIN)
        self.second = Conv(inputs, outputs, 3, stride=2, bias=True, gain=GAIN * half)
        self.shortcut = Conv(inputs, outputs, 1, stride=1, bias=False, gain=half)

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] to [B, outputs, H / 2, W / 2]."""
        detail = activate(self.second(smooth(activate(self.first(x), self.clamp))), self.half_clamp)
        return detail + clamped(self.shortcut(halve(x)), self.half_clamp)


def halve(x: Tensor) -> Tensor:
    """Means of 2 x 2 pixels, [B, C, H, W] to [B, C, H / 2, W / 2]: what bilinear reduction by two gives."""
    return interpolate(x, scale_factor=0.5, mode="bilinear", align_corners=False)


def smooth(x: Tensor) -> Tensor:
    """Low-pass [B, C, H, W] by [1, 2, 1] / 4 along both axes before a stride of 2; zeros beyond the border."""
    return _Smooth.apply(x)


class _Smooth(torch.autograd.Function):
    """Smoothing is its own adjoint, which autograd does not know: it would go through the channels one by one."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        row = torch.full((3,), 0.25, dtype=x.dtype, device=x.device)
        row[1] = 0.5
        return conv2d(x, (row[:, None] * row).expand(x.shape[1], 1, 3, 3), padding=1, groups=x.shape[1])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _Smooth.apply(gradient)


def minibatch_std(x: Tensor, group: int) -> Tensor:
    """Append how much samples of a group differ: [B, C, H, W] to [B, C + 1, H, W] (progressive GAN).

    Strided groups: of B samples, those at equal positions modulo B / group. A smaller batch is one group; a batch
    that doesn't divide into groups raises ValueError.
    """
    batch, _, height, width = x.shape
    size = min(group, batch)
    if batch % size:
        raise ValueError(f"a batch of {batch} does not divide into minibatch-std groups of {size}")
    grouped = x.unflatten(0, (size, batch // size))
    deviation = (grouped.var(0, correction=0) + 1e-8).sqrt().mean((1, 2, 3))  # [B / size]
    return torch.cat([x, deviation.repeat(size)[:, None, None, None].expand(-1, 1, height, width)], 1)


def noisy_label(label: Tensor, amount: float, generator: torch.Generator) -> Tensor:
    """A copy of pose labels [B, 25] with normal noise of deviation `amount` on the camera matrix's upper 3 x 4.

    Keeps the discriminator from memorising which image has which unique pose (EG3D's guide). A fixed, small amount
    [ours]: EG3D scales by the batch's spread, which on a full sphere is as large as the signal.
    """
    noise = torch.zeros(label.shape)
    noise[:, :12] = drawn(torch.randn, len(label), 12, generator=generator) * amount
    return label + noise.to(label)
