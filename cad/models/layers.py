"""Building blocks of StyleGAN2 (the backbone of Sec. 3.1), with an equalised learning rate.

Weights are stored with unit variance and scaled at run time, so that Adam's step has the same relative size in every
layer. Constructors draw nothing: parameters are zero until `initialise` or `load_state_dict`, so that no weight ever
depends on the global random state. StyleGAN2's per-pixel noise inputs are left out [ours]: one latent gives one volume
to the bit, and noise on planes would be texture that the latent doesn't control.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, interpolate, leaky_relu, linear, pad

SLOPE = 0.2  # of the leaky ReLU below zero (StyleGAN2)
# Keeps the variance behind the leaky ReLU (StyleGAN2). The layer before it multiplies by it, in its weights: the two
# commute, and whole images need not be passed over once more.
GAIN = math.sqrt(2)
PRECISIONS = {"float32": torch.bfloat16, "bfloat16": torch.bfloat16, "float16": torch.float16}  # of autocast, if on


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


def activate(x: Tensor, clamp: float | None) -> Tensor:
    """Leaky ReLU in the place of x, clamped as `clamped` does; what makes x has the gain."""
    return clamped(leaky_relu(x, SLOPE, inplace=True), clamp)


def clamped(x: Tensor, clamp: float | None) -> Tensor:
    """x within [-clamp, clamp]: what float16 cannot hold ends there, without a gradient (StyleGAN2-ADA); None: x."""
    return x if clamp is None else x.clamp(-clamp, clamp)


class Linear(Layer):
    """Equalised linear layer, [..., inputs] to [..., outputs], times `gain`; `rate` multiplies its learning rate."""

    def __init__(self, inputs: int, outputs: int, bias: float, rate: float, gain: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(outputs, inputs))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.start, self.rate, self.gain = bias, rate, gain

    def draw(self, generator: torch.Generator) -> None:
        """Normal weights, constant bias; both divided by the rate that multiplies them at run time."""
        redraw(self.weight, 1 / self.rate, generator)
        self.bias.fill_(self.start / self.rate)

    def scaled(self) -> tuple[Tensor, Tensor]:
        """Weight and bias as they act at run time."""
        rate = self.rate * self.gain
        return self.weight * (rate / math.sqrt(self.weight.shape[1])), self.bias * rate

    def forward(self, x: Tensor) -> Tensor:
        """[..., inputs] to [..., outputs], no activation."""
        return linear(x, *self.scaled())


class Conv(Layer):
    """Equalised convolution that keeps the size (or halves it with stride 2), [B, inputs, H, W], times `gain`."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, bias: bool, gain: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(outputs, inputs, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None
        self.stride, self.gain = stride, gain

    def draw(self, generator: torch.Generator) -> None:
        """Normal weights, zero bias."""
        redraw(self.weight, 1, generator)
        if self.bias is not None:
            self.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] to [B, outputs, H / stride, W / stride], no activation."""
        weight = self.weight * (self.gain / math.sqrt(self.weight[0].numel()))
        bias = None if self.bias is None else self.bias * self.gain
        return conv2d(channels_innermost(x), weight, bias, stride=self.stride, padding=weight.shape[-1] // 2)


class ModulatedConv(Layer):
    """Convolution whose input channels are scaled per sample by a style of w (StyleGAN2's form of Sec. 3.1's AdaIN).

    With `demodulate` each sample's effective weights have unit norm per output channel, times `gain`. Scaling what goes
    in and what comes out equals convolving with per-sample weights and needs one ordinary convolution instead of a
    grouped one. What goes in is enlarged by `up`, bilinearly, once it is scaled: that is done where it is small.
    In float16 styles and weights are divided by their largest first, which the norm undoes: a sum of n inputs within
    256 then lies within 256 sqrt(n), below float16's largest number, 65504 (the way out that StyleGAN2-ADA takes).
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        w_dim: int,
        demodulate: bool,
        scale: float,
        gain: float = 1.0,
        up: int = 1,
    ) -> None:
        super().__init__()
        self.style = Linear(w_dim, inputs, bias=1.0, rate=1.0)
        self.weight = nn.Parameter(torch.zeros(outputs, inputs, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.demodulate, self.scale, self.gain, self.up = demodulate, scale, gain, up

    def draw(self, generator: torch.Generator) -> None:
        """Normal weights of deviation `scale` (0: the layer starts silent), zero bias."""
        redraw(self.weight, self.scale, generator)
        self.bias.zero_()

    def forward(self, x: Tensor | Sequence[Tensor], w: Tensor) -> Tensor:
        """x [B, inputs, H, W], w [B, w_dim] to [B, outputs, up H, up W], bias added, no activation.

        x may come in parts of its channels; one that is constant along an axis has size 1 there, and is convolved so.
        """
        parts = [x] if isinstance(x, Tensor) else x
        weight = self.weight / math.sqrt(self.weight[0].numel())
        narrow = computes_in(w.device, torch.float16)
        # Styles and norms keep their precision under autocast: one rounding here would move a whole channel.
        with full_precision(w.device):
            style = self.style(w.to(weight.dtype))
            bias, norm = self.bias * self.gain, None
            if self.demodulate:
                if narrow:
                    style = style / style.detach().abs().amax(1, keepdim=True).clamp(min=1e-8)
                    weight = self.weight / self.weight.detach().abs().amax((1, 2, 3), keepdim=True).clamp(min=1e-8)
                    weight = weight / math.sqrt(self.weight[0].numel())
                norm = self.gain * torch.rsqrt(linear(style.square(), weight.square().sum((2, 3))) + 1e-8)
            else:
                weight = weight * self.gain
        sizes = [part.shape[1] for part in parts]
        split = zip(parts, style.split(sizes, 1), weight.split(sizes, 1), strict=True)
        y, *others = (self._convolved(*given) for given in split)
        for other in others:
            y = y + other
        if norm is None:
            return y + bias.to(y.dtype)[:, None, None]
        return (y * norm.to(y.dtype)[:, :, None, None]).add_(bias.to(y.dtype)[:, None, None])

    def _convolved(self, x: Tensor, style: Tensor, weight: Tensor) -> Tensor:
        """x [B, c, H, W] scaled by styles [B, c], enlarged, and convolved with these channels' weights."""
        if computes_in(x.device, torch.bfloat16):
            x = x.bfloat16()
        large = channels_innermost(enlarge(x * style.to(x.dtype)[:, :, None, None], self.up))
        if weight.shape[-1] == 1:
            return linear(large.movedim(1, -1), weight.flatten(1)).movedim(-1, 1)
        # The edge goes on beyond the border [ours]: StyleGAN2's zeros are a seam around images on white.
        return conv2d(repeat_edge(large, weight.shape[-1] // 2), weight)


class StyleBlock(nn.Module):
    """One resolution of StyleGAN2's skip architecture: two modulated 3x3 convolutions and a summed 1x1 output.

    `up` enlarges features and skip before the first convolution, bilinearly: that is the [1, 3, 3, 1] filter that
    StyleGAN2 puts behind a transposed convolution (the two commute). `out_scale` 0 lets the block start as a
    pure enlargement of the skip. `clamp` bounds what each convolution adds or passes on, None does not.
    """

    def __init__(
        self, inputs: int, channels: int, outputs: int, w_dim: int, up: int, out_scale: float, clamp: float | None
    ) -> None:
        super().__init__()
        self.first = ModulatedConv(inputs, channels, 3, w_dim, demodulate=True, scale=1.0, gain=GAIN, up=up)
        self.second = ModulatedConv(channels, channels, 3, w_dim, demodulate=True, scale=1.0, gain=GAIN)
        self.out = ModulatedConv(channels, outputs, 1, w_dim, demodulate=False, scale=out_scale)
        self.up, self.clamp = up, clamp

    def forward(self, x: Tensor | Sequence[Tensor], skip: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        """x [B, inputs, H, W] or its parts, skip [B, outputs, H, W] to features and skip, at `up` times the size."""
        x = activate(self.second(activate(self.first(x, w), self.clamp), w), self.clamp)
        return x, enlarge(skip, self.up) + clamped(self.out(x, w), self.clamp)


def repeat_edge(x: Tensor, count: int) -> Tensor:
    """x [B, C, H, W] with its border pixels repeated `count` times on each side, 0 or 1."""
    if x.device.type == "cpu" and not torch.compiler.is_compiling():
        with full_precision(x.device):  # autocast would pad in float32
            return pad(x, (count,) * 4, mode="replicate") if count else x
    # Elsewhere torch's padding forgets that channels are innermost, and compiled code stumbles over its gradient.
    if count:
        x = torch.cat([x[..., :1], x, x[..., -1:]], -1)
        x = torch.cat([x[..., :1, :], x, x[..., -1:, :]], -2)
    return x


def enlarge(x: Tensor, factor: int) -> Tensor:
    """Bilinear enlargement of [B, C, H, W] by a whole factor; an axis of size 1 is constant and stays as it is."""
    sides = [side if side == 1 else side * factor for side in x.shape[2:]]
    return x if factor == 1 else interpolate(x, size=sides, mode="bilinear", align_corners=False)


def full_precision(device: torch.device) -> AbstractContextManager[object]:
    """What suspends autocast where it is on (the meta device does not know it)."""
    known = torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)
    return torch.autocast(device.type, enabled=False) if known else nullcontext()


def computing_in(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """What lets convolutions compute in "float32", "bfloat16" or "float16" by autocast; weights stay as they are."""
    return torch.autocast(device.type, PRECISIONS[precision], enabled=precision != "float32")


def computes_in(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether convolutions on this device compute in `dtype` by autocast now."""
    known = torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)
    return known and torch.get_autocast_dtype(device.type) == dtype


def channels_innermost(x: Tensor) -> Tensor:
    """x [B, C, H, W] as convolutions take it: half their time on a CPU, and what a GPU's tensor cores need."""
    return x.contiguous(memory_format=torch.channels_last)


def innermost_gradient(x: Tensor) -> Tensor:
    """x [B, C, H, W], whose gradient will have its channels innermost, however it comes."""
    return _InnermostGradient.apply(x)


class _InnermostGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return channels_innermost(gradient)


def doublings(small: int, large: int, what: str) -> int:
    """How often `small` doubles to `large`; ValueError naming `what` where it never does."""
    count = int(math.log2(large / small)) if large >= small else -1
    if count < 0 or small << count != large:
        raise ValueError(f"{what}: {large} is not {small} times a power of two")
    return count
