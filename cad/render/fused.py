"""The fused volume renderer: the numbers of cad/render/reference.py, compiled, with a backward pass that recomputes.

`cad::render`, its backward pass and `cad::refine` are registered with torch.library, so that autograd and torch.compile
know them. What runs is in csrc/: the mathematics in volume.h, a launcher for each device.

Everywhere here, planes are [B, 3, C, H, W]; rays are origins [B, R, 3], directions [B, R, 3], depths [B, R, S]
(ascending distances of the samples) and leave [B, R] (where the last sample ends); layers are the decoder's hidden
weight [D, C] and bias [D], output weight [1 + F, D] and bias [1 + F]. All are float32 and on one device; planes on a
GPU may be float16 or bfloat16 too, see cad/render/cuda.py.
"""

import ctypes
from collections.abc import Iterable, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from cad.render import cuda
from cad.render.build import library
from cad.render.reference import UNIFORM_SHARE, Rendered, Sampling, chord, strata

# The backward pass sums this many parts of a batch apart, or more, whatever the number of threads; each part holds as
# many rays or more as the second number says [ours]. Each costs a copy of its volume's planes.
PARTS, RAYS_OF_A_PART = 4, 128


@runtime_checkable
class FusedDecoder(Protocol):
    """A decoder that says that the fused renderer computes it: softplus between two layers, then activations.

    Density is softplus(first output - 1), radiance is 1.002 sigmoid(the others) - 0.001, as in `TriplaneDecoder`.
    """

    def fused_layers(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Weight and bias of the hidden and of the output layer, as they act."""
        ...


def can_render(planes: Tensor) -> bool:
    """Whether the fused renderer takes planes of this device and dtype; compiles it if need be."""
    if planes.is_cuda:
        return cuda.can_render(planes)
    return planes.device.type == "cpu" and planes.dtype == torch.float32 and library() is not None


def render_rays(
    planes: Tensor,
    decoder: FusedDecoder,
    origins: Tensor,
    directions: Tensor,
    sampling: Sampling,
    jitter: torch.Generator | None,
) -> Rendered:
    """`cad.render.reference.render_rays`, fused: the same arguments, draws and results, up to rounding."""
    enter, leave = chord(origins, directions, sampling)
    layers = list(decoder.fused_layers())

    def distances(positions: Tensor) -> Tensor:
        # The minimum undoes the rounding that could put a sample beyond the end of its chord.
        return torch.minimum(torch.lerp(enter[..., None], leave[..., None], positions), leave[..., None])

    drawn = strata(enter, sampling.coarse, jitter)
    if sampling.fine and _at_one_go(planes, origins, directions):
        from cad.render.hierarchical import render_hierarchical  # imported here: it builds on this module

        rays = [origins, directions, enter[..., None], leave]
        fine = strata(enter, sampling.fine, jitter)
        outputs = render_hierarchical(
            planes, rays, layers, drawn, fine, sampling.half_side, sampling.far, torch.is_grad_enabled()
        )
        return Rendered(outputs[0], outputs[1][..., None], outputs[2][..., None])
    positions = drawn.transpose(1, 2)  # [B, R, S]
    if sampling.fine:
        with torch.no_grad():
            draws = strata(enter, sampling.fine, jitter).transpose(1, 2)
            rays = [origins, directions, distances(positions), leave]
            positions = refine(planes, rays, layers, positions, draws, sampling.half_side)
    rays = [origins, directions, distances(positions), leave]
    features, opacity, depth, _ = render(planes, rays, layers, sampling.half_side, sampling.far, False)
    return Rendered(features, opacity[..., None], depth[..., None])


@torch.library.custom_op("cad::render", mutates_args=())
def render(
    planes: Tensor, rays: Sequence[Tensor], layers: Sequence[Tensor], half_side: float, far: float, keep_weights: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Features [B, R, F] on white, opacity [B, R], depth [B, R], and the samples' weights [B, R, S] or, unasked, [0].

    half_side: of the box, outside which there is no density; far: the depth of light that passes, scene units.
    Differentiable once in planes, rays and layers. One value among them that is not finite makes all outputs NaN, and
    their gradients: divergence shows where losses are checked. Raises ValueError for a wrong shape, dtype or device.
    """
    call = _Call(planes, rays, layers, half_side, far)
    features, opacity, depth, weights = _rendered(rays, layers, keep_weights)
    call.run("cad_render", _Pointers(features, opacity, depth, weights if keep_weights else None))
    if not call.finite:
        return _spoilt(features), _spoilt(opacity), _spoilt(depth), _spoilt(weights)
    return features, opacity, depth, weights


@torch.library.custom_op("cad::refine", mutates_args=())
def refine(
    planes: Tensor, rays: Sequence[Tensor], layers: Sequence[Tensor], positions: Tensor, draws: Tensor, half_side: float
) -> Tensor:
    """Importance sampling: the ascending union [B, R, S + T] of coarse positions and of those that they choose.

    positions [B, R, S], draws [B, R, T]: ascending, in [0, 1] of each ray's chord; the rays' depths are the coarse
    positions' distances. A ray without a chord gets zeros. Without gradient, as in the reference.
    """
    call = _Call(planes, rays, layers, half_side, 0.0)
    _expect("positions", positions, tuple(rays[2].shape), planes)
    _expect("draws", draws, (*rays[3].shape, draws.shape[-1]), planes)
    union = _union(positions, draws)
    kept = positions.contiguous(), draws.contiguous()
    call.run("cad_refine", _Pointers(*kept, union), ctypes.c_int64(draws.shape[-1]), ctypes.c_float(UNIFORM_SHARE))
    return union if call.finite else _spoilt(union)


@torch.library.custom_op("cad::render_backward", mutates_args=())
def render_backward(
    grads: Sequence[Tensor],
    rendered: Sequence[Tensor],
    planes: Tensor,
    rays: Sequence[Tensor],
    layers: Sequence[Tensor],
    half_side: float,
    far: float,
    needs_rays: bool,
) -> list[Tensor]:
    """Gradients of planes, of the four layers' tensors and, where needed, of the four rays' tensors.

    grads, rendered: gradients of the outputs of `render`, and these outputs; nothing else of it is kept.
    """
    call = _Call(planes, rays, layers, half_side, far)
    found = [x.new_zeros(x.shape, dtype=torch.float32) for x in _wanted(planes, rays, layers, needs_rays)]
    outputs = 4 if rendered[3].numel() else 3  # the weights take part only if they were asked for
    kept = [x.contiguous() for x in (*rendered[:outputs], *grads[:outputs])]
    batch, count = rays[3].shape
    parts = max(1, min(-(-PARTS // max(batch, 1)), count // RAYS_OF_A_PART))
    ray_grads = found[5:] if needs_rays else [None] * 4
    call.run(
        "cad_render_backward",
        _Pointers(*kept[:outputs], *[None] * (4 - outputs)),
        _Pointers(*kept[outputs:], *[None] * (4 - outputs)),
        _Pointers(*found[:5]),
        _Pointers(*ray_grads),
        ctypes.c_int64(parts),
    )
    if not call.finite:
        return [_spoilt(x) for x in found]
    return [found[0].to(planes.dtype), *found[1:]]


@render.register_fake
def _(
    planes: Tensor, rays: Sequence[Tensor], layers: Sequence[Tensor], half_side: float, far: float, keep_weights: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    _check(planes, rays, layers)
    return _rendered(rays, layers, keep_weights)


@refine.register_fake
def _(
    planes: Tensor, rays: Sequence[Tensor], layers: Sequence[Tensor], positions: Tensor, draws: Tensor, half_side: float
) -> Tensor:
    _check(planes, rays, layers)
    return _union(positions, draws)


@render_backward.register_fake
def _(
    grads: Sequence[Tensor],
    rendered: Sequence[Tensor],
    planes: Tensor,
    rays: Sequence[Tensor],
    layers: Sequence[Tensor],
    half_side: float,
    far: float,
    needs_rays: bool,
) -> list[Tensor]:
    return [x.new_empty(x.shape) for x in _wanted(planes, rays, layers, needs_rays)]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    planes, rays, layers, ctx.half_side, ctx.far, _ = inputs
    ctx.save_for_backward(planes, *rays, *layers, *output)


def _backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
    planes, *others = ctx.saved_tensors
    rays, layers, rendered = others[:4], others[4:8], others[8:]
    needs_rays = any(ctx.needs_input_grad[1])
    found = render_backward(list(grads), rendered, planes, rays, layers, ctx.half_side, ctx.far, needs_rays)
    return found[0], found[5:] if needs_rays else [None] * 4, found[1:5], None, None, None


def _twice(ctx: Any, *grads: Any) -> None:
    raise RuntimeError("cad::render has no second derivative; use cad.render.reference.render_rays where one is needed")


render.register_autograd(_backward, setup_context=_keep)
render_backward.register_autograd(_twice)


def _rendered(
    rays: Sequence[Tensor], layers: Sequence[Tensor], keep_weights: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Room for the outputs of `render`."""
    _, _, depths, leave = rays
    features = leave.new_empty((*leave.shape, layers[3].shape[0] - 1))
    weights = leave.new_empty(depths.shape if keep_weights else (0,))
    return features, leave.new_empty(leave.shape), leave.new_empty(leave.shape), weights


def _union(positions: Tensor, draws: Tensor) -> Tensor:
    return positions.new_empty((*positions.shape[:2], positions.shape[2] + draws.shape[2]))


def _spoilt(tensor: Tensor) -> Tensor:
    """The tensor, filled with NaN."""
    return tensor.fill_(torch.nan)


def _wanted(planes: Tensor, rays: Sequence[Tensor], layers: Sequence[Tensor], needs_rays: bool) -> list[Tensor]:
    """The inputs whose gradients `render_backward` returns, in its order."""
    return [planes, *layers, *(rays if needs_rays else ())]


def _expect(
    name: str, tensor: Tensor, shape: tuple[int, ...], planes: Tensor, dtypes: Iterable[torch.dtype] = (torch.float32,)
) -> None:
    """Raise ValueError unless the tensor has this shape, one of these dtypes and the planes' device."""
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name}: shape {list(tensor.shape)}, but {list(shape)} is needed")
    if tensor.dtype not in dtypes:
        raise ValueError(f"{name}: {tensor.dtype}, but {' or '.join(map(str, dtypes))} is needed")
    if tensor.device != planes.device:
        raise ValueError(f"{name}: on {tensor.device}, but the planes are on {planes.device}")


def _dtypes(device: torch.device) -> Iterable[torch.dtype]:
    """What planes may be of on this device."""
    return cuda.PLANES if device.type == "cuda" else (torch.float32,)


def _check(planes: Tensor, rays: Sequence[Tensor], layers: Sequence[Tensor]) -> None:
    """Raise ValueError that names the first tensor which doesn't fit."""
    if len(rays) != 4 or len(layers) != 4:
        raise ValueError(f"rays and layers: {len(rays)} and {len(layers)} tensors, but 4 and 4 are needed")
    if planes.dim() != 5 or planes.shape[1] != 3 or 0 in planes.shape[2:]:
        raise ValueError(f"planes: shape {list(planes.shape)}, but [B, 3, C, H, W] is needed")
    if rays[2].dim() != 3 or rays[2].shape[2] == 0:
        raise ValueError(f"depths: shape {list(rays[2].shape)}, but [B, R, S] with S > 0 is needed")
    if layers[2].dim() != 2 or layers[2].shape[0] < 2:
        raise ValueError(f"output weight: shape {list(layers[2].shape)}, but [1 + F, D] is needed")
    batch, channels = planes.shape[0], planes.shape[2]
    count, (outputs, hidden) = rays[2].shape[1], layers[2].shape
    _expect("planes", planes, tuple(planes.shape), planes, _dtypes(planes.device))
    _expect("origins", rays[0], (batch, count, 3), planes)
    _expect("directions", rays[1], (batch, count, 3), planes)
    _expect("depths", rays[2], (batch, count, rays[2].shape[2]), planes)
    _expect("leave", rays[3], (batch, count), planes)
    _expect("hidden weight", layers[0], (hidden, channels), planes)
    _expect("hidden bias", layers[1], (hidden,), planes)
    _expect("output weight", layers[2], (outputs, hidden), planes)
    _expect("output bias", layers[3], (outputs,), planes)


class _Sizes(ctypes.Structure):
    """`Sizes` of csrc/field.h."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("batch", "rays", "samples", "channels")),
        *((name, ctypes.c_int64) for name in ("height", "width", "hidden", "outputs")),
        ("half_side", ctypes.c_float),
        ("far", ctypes.c_float),
    )


class _Planes(ctypes.Structure):
    """`Planes` of csrc/tiles.h."""

    _fields_ = (("values", ctypes.c_void_p), ("strides", ctypes.c_int64 * 5))


class _Pointers:
    """A C array of the tensors' addresses, null for None: how the structs of csrc/ that hold nothing else look."""

    def __init__(self, *tensors: Tensor | None) -> None:
        self.tensors = tensors  # kept alive as long as their addresses
        self.array = (ctypes.c_void_p * len(tensors))(*(None if x is None else x.data_ptr() for x in tensors))


class _Call:
    """Checked inputs of a launcher of csrc/; `finite` says, after a run, whether all values are."""

    def __init__(
        self, planes: Tensor, rays: Sequence[Tensor], layers: Sequence[Tensor], half_side: float, far: float
    ) -> None:
        _check(planes, rays, layers)
        self.launcher = _launcher(planes, layers)
        self.library = self.launcher.library if self.launcher else _loaded()
        batch, _, channels, height, width = planes.shape
        outputs, hidden = layers[2].shape
        _, count, samples = rays[2].shape
        self.sizes = _Sizes(batch, count, samples, channels, height, width, hidden, outputs, half_side, far)
        self.rays = _Pointers(*(x.contiguous() for x in rays))
        self.layers = _Pointers(*(x.contiguous() for x in layers))
        padded = self.library.cad_padded(ctypes.byref(self.sizes))
        if 3 * height * width * padded >= 2**31:
            raise ValueError(f"planes: {list(planes.shape)} hold more values than 32-bit offsets reach")
        strides = (ctypes.c_int64 * 5)(*planes.stride())
        if self.launcher:  # the GPU itself takes care of what is not finite
            self.finite = True
            self.packed = planes.new_empty(batch, 3, height, width, padded)
            self.planes: Any = ctypes.c_void_p(self.packed.data_ptr())
            source = ctypes.c_void_p(planes.data_ptr())
            self.launcher.run("cad_pack", self.sizes, source, strides, self.planes, self.rays.array, self.layers.array)
        else:  # the CPU packs volume by volume, and finds out then whether the planes are finite
            self.finite = _finite(*rays, *layers)
            self.planes = ctypes.byref(_Planes(planes.data_ptr(), strides))

    def run(self, name: str, *arguments: Any) -> None:
        """Call a launcher with the inputs and these further arguments, where nothing but finite values is known of."""
        given = [x.array if isinstance(x, _Pointers) else x for x in arguments]
        inputs = self.planes, self.rays.array, self.layers.array
        if self.launcher:
            self.launcher.run(name, self.sizes, *inputs, *given)
        elif self.finite:
            self.finite = bool(getattr(self.library, name)(ctypes.byref(self.sizes), *inputs, *given))


def _finite(*tensors: Tensor) -> bool:
    """Whether all values are; the extremes tell, since NaN is one, in a tenth of the time of `isfinite().all()`."""
    return all(bool(end.isfinite()) for x in tensors if x.numel() for end in x.aminmax())


def _loaded() -> ctypes.CDLL:
    """The library for the CPU. Raises RuntimeError where it cannot be had."""
    if (found := library()) is None:
        raise RuntimeError("the fused renderer could not be compiled; use cad.render.reference.render_rays")
    return found


def _packed(planes: Tensor) -> tuple[Tensor, bool]:
    """Planes on a CPU as texels [B, 3, H, W, padded C], and whether all values are finite."""
    _expect("planes", planes, (len(planes), 3, *planes.shape[2:]), planes)
    batch, _, channels, height, width = planes.shape
    sizes = _Sizes(batch, 0, 1, channels, height, width, 1, 2, 1.0, 0.0)
    texels = planes.new_empty(batch, 3, height, width, _loaded().cad_padded(ctypes.byref(sizes)))
    given = _Planes(planes.data_ptr(), (ctypes.c_int64 * 5)(*planes.stride()))
    sound = _loaded().cad_pack(ctypes.byref(sizes), ctypes.byref(given), ctypes.c_void_p(texels.data_ptr()))
    return texels, bool(sound)


def _at_one_go(planes: Tensor, origins: Tensor, directions: Tensor) -> bool:
    """Whether coarse and fine samples are rendered by one op: on a CPU, where rays need no gradient."""
    return planes.device.type == "cpu" and not (origins.requires_grad or directions.requires_grad)


def _launcher(planes: Tensor, layers: Sequence[Tensor]) -> cuda.Launcher | None:
    """What calls the renderer on the planes' GPU; None on a CPU. Raises ValueError for another device."""
    if planes.device.type not in ("cpu", "cuda"):
        raise ValueError(f"planes: on {planes.device}, but the fused renderer runs on cpu and cuda")
    return cuda.Launcher(planes, layers) if planes.is_cuda else None
