"""Building blocks of StyleGAN2 (the backbone of Sec. 3.1), with an equalised learning rate.

Weights are stored with unit variance and scaled at run time, so that Adam's step has the same relative size in every
layer. Constructors draw nothing: parameters are zero until `initialise` or `load_state_dict`, so that no weight ever
depends on the global random state. StyleGAN2's per-pixel noise inputs are left out [ours]: one latent gives one volume
to the bit, and noise on planes would be texture that the latent doesn't control.
"""

import math
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, interpolate, leaky_relu, linear, pad

SLOPE = 0.2  # of the leaky ReLU below zero (StyleGAN2)
GAIN = math.sqrt(2)  # keeps the variance behind the leaky ReLU (StyleGAN2)


class Layer(nn.Module, ABC):
    """A module that owns parameters and knows how they start."""

    @abstractmethod
    def draw(self, generator: torch.Generator) -> None:
        """Overwrite the own parameters with their initial values."""


def initialise(module: nn.Module, generator: torch.Generator) -> None:
    """Redraw every parameter in the order of the layers' names: one generator state gives one set of weights.

    Raises TypeError for a parameter that belongs to no `Layer`, because nothing would initialise it.
    """
    layers = sorted((name, part) for name, part in module.named_modules() if isinstance(part, Layer))
    owned = {id(parameter) for _, layer in layers for parameter in layer.parameters(recurse=False)}
    for name, parameter in module.named_parameters():
        if id(parameter) not in owned:
            raise TypeError(f"parameter {name} of {type(module).__name__} belongs to no Layer")
    with torch.no_grad():
        for _, layer in layers:
            layer.draw(generator)


def redraw(parameter: Tensor, deviation: float, generator: torch.Generator) -> None:
    """Fill with normal draws of this standard deviation; drawn on the CPU so that devices agree."""
    parameter.copy_(torch.randn(parameter.shape, generator=generator) * deviation)


def activate(x: Tensor) -> Tensor:
    """Leaky ReLU at unit variance."""
    return leaky_relu(x, SLOPE) * GAIN


class Linear(Layer):
    """Equalised linear layer, [..., inputs] to [..., outputs]; `rate` multiplies its learning rate."""

    def __init__(self, inputs: int, outputs: int, bias: float, rate: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(outputs, inputs))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.start, self.rate = bias, rate

    def draw(self, generator: torch.Generator) -> None:
        """Normal weights, constant bias; both divided by the rate that multiplies them at run time."""
        redraw(self.weight, 1 / self.rate, generator)
        self.bias.fill_(self.start / self.rate)

    def scaled(self) -> tuple[Tensor, Tensor]:
        """Weight and bias as they act at run time."""
        return self.weight * (self.rate / math.sqrt(self.weight.shape[1])), self.bias * self.rate

    def forward(self, x: Tensor) -> Tensor:
        """[..., inputs] to [..., outputs], no activation."""
        return linear(x, *self.scaled())


class Conv(Layer):
    """Equalised convolution that keeps the size (or halves it with stride 2), [B, inputs, H, W]."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(outputs, inputs, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None
        self.stride = stride

    def draw(self, generator: torch.Generator) -> None:
        """Normal weights, zero bias."""
        redraw(self.weight, 1, generator)
        if self.bias is not None:
            self.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] to [B, outputs, H / stride, W / stride], no activation."""
        weight = self.weight / math.sqrt(self.weight[0].numel())
        return conv2d(x, weight, self.bias, stride=self.stride, padding=weight.shape[-1] // 2)


class ModulatedConv(Layer):
    """Convolution whose input channels are scaled per sample by a style of w (StyleGAN2's form of Sec. 3.1's AdaIN).

    With `demodulate` each sample's effective weights have unit norm per output channel. Scaling what goes in and what
    comes out equals convolving with per-sample weights and needs one ordinary convolution instead of a grouped one.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, w_dim: int, demodulate: bool, scale: float) -> None:
        super().__init__()
        self.style = Linear(w_dim, inputs, bias=1.0, rate=1.0)
        self.weight = nn.Parameter(torch.zeros(outputs, inputs, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.demodulate, self.scale = demodulate, scale

    def draw(self, generator: torch.Generator) -> None:
        """Normal weights of deviation `scale` (0: the layer starts silent), zero bias."""
        redraw(self.weight, self.scale, generator)
        self.bias.zero_()

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """x [B, inputs, H, W], w [B, w_dim] to [B, outputs, H, W], bias added, no activation."""
        weight = self.weight / math.sqrt(self.weight[0].numel())
        # Styles and norms keep their precision under autocast: one rounding here would move a whole channel.
        with full_precision(x.device):
            style = self.style(w.to(weight.dtype))
            norm = None
            if self.demodulate:
                norm = torch.rsqrt(linear(style.square(), weight.square().sum((2, 3))) + 1e-8)  # [B, outputs]
        # The edge goes on beyond the border [ours]: StyleGAN2's zeros are a seam around images on white.
        edge = weight.shape[-1] // 2
        y = conv2d(pad(x * style.to(x.dtype)[:, :, None, None], (edge,) * 4, mode="replicate"), weight)
        if norm is not None:
            y = y * norm.to(y.dtype)[:, :, None, None]
        return y + self.bias.to(y.dtype)[:, None, None]


class StyleBlock(nn.Module):
    """One resolution of StyleGAN2's skip architecture: two modulated 3x3 convolutions and a summed 1x1 output.

    `up` enlarges features and skip before the first convolution, bilinearly: that is the [1, 3, 3, 1] filter that
    StyleGAN2 puts behind a transposed convolution (the two commute). `out_scale` 0 lets the block start as a
    pure enlargement of the skip.
    """

    def __init__(self, inputs: int, channels: int, outputs: int, w_dim: int, up: int, out_scale: float) -> None:
        super().__init__()
        self.first = ModulatedConv(inputs, channels, 3, w_dim, demodulate=True, scale=1.0)
        self.second = ModulatedConv(channels, channels, 3, w_dim, demodulate=True, scale=1.0)
        self.out = ModulatedConv(channels, outputs, 1, w_dim, demodulate=False, scale=out_scale)
        self.up = up

    def forward(self, x: Tensor, skip: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        """x [B, inputs, H, W], skip [B, outputs, H, W] to features and new skip at `up` times the resolution."""
        x, skip = enlarge(x, self.up), enlarge(skip, self.up)
        x = activate(self.second(activate(self.first(x, w)), w))
        return x, skip + self.out(x, w)


def enlarge(x: Tensor, factor: int) -> Tensor:
    """Bilinear enlargement of [B, C, H, W] by a whole factor."""
    return x if factor == 1 else interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)


def full_precision(device: torch.device) -> AbstractContextManager[object]:
    """What suspends autocast on a device that knows it (the meta device does not)."""
    known = torch.amp.is_autocast_available(device.type)
    return torch.autocast(device.type, enabled=False) if known else nullcontext()


def doublings(small: int, large: int, what: str) -> int:
    """How often `small` doubles to `large`; ValueError naming `what` where it never does."""
    count = int(math.log2(large / small)) if large >= small else -1
    if count < 0 or small << count != large:
        raise ValueError(f"{what}: {large} is not {small} times a power of two")
    return count
