"""Rendering without gradients of volumes that many views see: packed once, empty space and hidden samples skipped.

An occupancy grid says where the density can be above `EMPTY`: a bound that holds everywhere in a cell of it, see
csrc/occupancy.cpp. A ray ends where less than 1/1000 of the light passes (`kSpent` in csrc/volume.h). Either takes at
most a quarter to two thirds of a grey level of 255 from a pixel, and moves fine samples by what that changes in the
coarse weights. Importance sampling goes as in cad/render/reference.py.
"""

import ctypes
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cad.render import call, choice, cuda, fused
from cad.render.hierarchical import Draws
from cad.render.reference import UNIFORM_SHARE, Decoder, Rendered, Sampling, chord, strata

# Density per scene unit that counts as none [ours]: over the box's diagonal, 2.4 units, it takes 1/400 of the light.
EMPTY = 1e-3
ROUNDING = 1e-2  # what the raw density's bound may err by in float32, generously
DENSE = 1 + math.log(math.expm1(EMPTY)) - ROUNDING  # raw density above which there may be more: softplus(raw - 1)
# Of an occupancy grid along each axis at most, cells of larger planes share a bit [ours]: 256 KB lie in a cache.
GRID_SIDE = 128
LANES = 16  # floats that csrc/occupancy.cpp reads at once, or a divisor


class Volume(NamedTuple):
    """Planes [B, 3, C, N, N] and the decoder that knows them, ready for views; see `prepare`."""

    planes: Tensor
    decoder: Decoder
    packed: "Packed | None"


class Packed(NamedTuple):
    """What the fused renderer reads: texels [B, 3, N, N, padded C], the decoder's layers, grids of bits [B, words].

    finite: whether all values are; on a GPU only the launcher knows that, which is None on a CPU.
    """

    texels: Tensor
    layers: tuple[Tensor, ...]
    bits: Tensor
    side: int
    shift: int
    finite: bool
    launcher: cuda.Launcher | None


class _Field(ctypes.Structure):
    """`Field` of csrc/occupancy.cpp."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("planes", "weights")),
        *((name, ctypes.c_int64) for name in ("texels", "pitch", "units", "positive")),
        ("bias", ctypes.c_float),
    )


class _Grid(ctypes.Structure):
    """`Grid` of csrc/inference.cpp, and all but its last number `GivenGrid` of csrc/cuda/forward.cu."""

    _fields_ = (
        ("bits", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("words", "side", "shift")),
        ("empty", ctypes.c_float),
    )


@torch.no_grad()
def prepare(planes: Tensor, decoder: Decoder) -> Volume:
    """Make a volume of planes [B, 3, C, N, N]; `cad.render.image.render_view` takes it in their place.

    Where the fused renderer is not in use, and for planes that are not square, a volume is rendered from its planes as
    they are. Never waits for a GPU.
    """
    square = planes.shape[3] == planes.shape[4]
    if choice.renderer() != "fused" or not square or not fused.can_render(planes):
        return Volume(planes, decoder, None)
    if not isinstance(decoder, fused.FusedDecoder):
        return Volume(planes, decoder, None)
    layers = tuple(x.contiguous() for x in decoder.fused_layers())
    shift = max(0, math.ceil(math.log2(planes.shape[-1] / GRID_SIDE)))
    side = math.ceil(planes.shape[-1] / 2**shift)
    bits = torch.zeros(len(planes), math.ceil(side**3 / 32), dtype=torch.int32, device=planes.device)
    if call.launcher_for(planes, layers):
        texels, launcher = _packed_on_gpu(planes, layers)
        for volume, grid in zip(planes, bits, strict=True):
            _occupy_on_gpu(launcher, volume, layers, side, shift, grid)
        return Volume(planes, decoder, Packed(texels, layers, bits, side, shift, True, launcher))
    texels, finite = call.pack(planes)
    finite = finite and call.all_finite(*layers)
    if finite:
        for volume, grid in zip(planes, bits, strict=True):
            _occupy(volume, layers, side, shift, grid)
    return Volume(planes, decoder, Packed(texels, layers, bits, side, shift, finite, None))


def render_rays(
    volume: Volume, origins: Tensor, directions: Tensor, sampling: Sampling, jitter: torch.Generator | None
) -> Rendered:
    """`cad.render.reference.render_rays` of a packed volume, up to what it skips; volumes [B], or one for all rays.

    Raises ValueError for a volume that is not packed.
    """
    if volume.packed is None:
        raise ValueError("volume: is not packed; render its planes")
    packed, shape = volume.packed, origins.shape[:2]
    batch = len(packed.texels)
    if batch not in (1, len(origins)):
        raise ValueError(f"origins: for {len(origins)} volumes, but there are {batch}")
    if packed.launcher:
        return _rendered_on_gpu(volume, packed, packed.launcher.again(), origins, directions, sampling, jitter)
    enter, leave = chord(origins, directions, sampling)
    like = enter if jitter else enter[:1, :1]
    draws = [strata(like, count, jitter) for count in (sampling.coarse, sampling.fine)]
    if batch == 1 and jitter:  # all rays lie in one volume
        draws = [x.transpose(0, 1).flatten(1)[None] for x in draws]
    kept = [x.contiguous() for x in (*draws, origins, directions, enter, leave)]
    outputs = packed.layers[3].shape[0]
    features = origins.new_empty(*shape, outputs - 1)
    opacity, depth = origins.new_empty(shape), origins.new_empty(shape)
    rendered = Rendered(features, opacity[..., None], depth[..., None])
    if not packed.finite or not call.all_finite(*kept):
        return Rendered(*(call.spoilt(x) for x in rendered))
    _, _, height, width, _ = packed.texels.shape
    channels, hidden = volume.planes.shape[2], packed.layers[0].shape[0]
    count = shape.numel() // max(batch, 1)
    sizes = call.Sizes(batch, count, 1, channels, height, width, hidden, outputs, sampling.half_side, sampling.far)
    coarse, fine = (x.data_ptr() for x in kept[:2])
    alike = jitter is None
    grid = _Grid(packed.bits.data_ptr(), packed.bits.shape[1], packed.side, packed.shift, EMPTY)
    call.cpu_library().cad_render_volume(
        ctypes.byref(sizes),
        ctypes.c_void_p(packed.texels.data_ptr()),
        call.Pointers(*kept[2:]).array,
        call.Pointers(*packed.layers).array,
        ctypes.byref(Draws(coarse, fine, sampling.coarse, sampling.fine, alike, UNIFORM_SHARE)),
        ctypes.byref(grid),
        call.Pointers(features, opacity, depth, None).array,
    )
    return rendered


def _occupy(planes: Tensor, layers: tuple[Tensor, ...], side: int, shift: int, bits: Tensor) -> None:
    """Set the bits of one volume's grid, whose planes are [3, C, N, N]."""
    hidden, bias, out, offset = layers
    order = (out[0] <= 0).to(torch.int8).argsort(stable=True)  # units of positive weight first
    size, units = planes.shape[-1], len(order)
    pitch = (size // LANES + 1) * LANES
    room = torch.zeros(3 * (size + 1) * units * pitch + LANES)  # a vector that begins in the last row may end behind it
    field = room[:-LANES].view(3, size + 1, units, pitch)
    made = torch.einsum("dc,pchw->phdw", hidden[order], planes)
    made[0] += bias[order, None]
    field[:, :-1, :, :size] = made
    field[:, :-1, :, size] = made[..., -1]
    field[:, -1] = field[:, -2]
    weights = out[0, order].contiguous()
    given = _Field(room.data_ptr(), weights.data_ptr(), size, pitch, units, int((out[0] > 0).sum()), float(offset[0]))
    call.cpu_library().cad_occupancy(
        ctypes.byref(given),
        ctypes.c_float(DENSE),
        ctypes.c_int64(shift),
        ctypes.c_int64(side),
        ctypes.c_void_p(bits.data_ptr()),
    )


def _packed_on_gpu(planes: Tensor, layers: tuple[Tensor, ...]) -> tuple[Tensor, cuda.Launcher]:
    """Texels [B, 3, N, N, padded C], and the launcher that has found out whether all values are finite."""
    like = layers[0]
    no_rays = [like.new_empty(len(planes), 0, *last) for last in ((3,), (3,), (1,), ())]
    made = call.Call(planes, no_rays, layers, 1.0, 0.0)
    assert made.launcher is not None
    return made.packed, made.launcher


def _occupy_on_gpu(
    launcher: cuda.Launcher, planes: Tensor, layers: tuple[Tensor, ...], side: int, shift: int, bits: Tensor
) -> None:
    """`_occupy` on a GPU."""
    hidden, bias, out, _ = layers
    _, channels, height, width = planes.shape
    # In float64, lest tf32 be used: the bound is that of the decoder as it is.
    made = torch.einsum("dc,pchw->pdhw", hidden.double(), planes.double())
    made[0] += bias[:, None, None]
    units = made.float().contiguous()
    launcher.run(
        "cad_occupancy",
        call.Sizes(1, 0, 1, channels, height, width, len(hidden), len(out), 1.0, 0.0),
        ctypes.c_void_p(units.data_ptr()),
        call.Pointers(*layers).array,
        ctypes.c_float(DENSE),
        ctypes.c_int64(shift),
        ctypes.c_int64(side),
        ctypes.c_void_p(bits.data_ptr()),
    )


def _rendered_on_gpu(
    volume: Volume,
    packed: Packed,
    launcher: cuda.Launcher,
    origins: Tensor,
    directions: Tensor,
    sampling: Sampling,
    jitter: torch.Generator | None,
) -> Rendered:
    """`render_rays` on a GPU: coarse and fine samples one after the other, as in `cad.render.fused.render_rays`."""
    shape, batch = origins.shape[:2], len(packed.texels)
    count = shape.numel() // max(batch, 1)  # rays of a volume
    _, _, channels, height, width = volume.planes.shape
    outputs, hidden = packed.layers[2].shape
    chords = chord(origins, directions, sampling)
    enter, leave = (x.reshape(batch, count, 1) for x in chords)
    layers, texels = call.Pointers(*packed.layers), ctypes.c_void_p(packed.texels.data_ptr())
    grid = _Grid(packed.bits.data_ptr(), packed.bits.shape[1], packed.side, packed.shift, EMPTY)

    def drawn(samples: int) -> Tensor:
        return strata(chords[0], samples, jitter).transpose(1, 2).reshape(batch, count, samples).contiguous()

    def launch(name: str, positions: Tensor, *arguments: Any) -> None:
        depths = torch.minimum(torch.lerp(enter, leave, positions), leave)
        rays = call.Pointers(*(x.contiguous() for x in (origins, directions, depths, leave)))
        sizes = call.Sizes(batch, count, positions.shape[2], channels, height, width, hidden, outputs)
        sizes.half_side, sizes.far = sampling.half_side, sampling.far
        launcher.run(name, sizes, texels, rays.array, layers.array, *arguments, ctypes.byref(grid))

    positions = drawn(sampling.coarse)
    if sampling.fine:
        coarse, fine = positions, drawn(sampling.fine)
        positions = fused.room_for_union(coarse, fine)
        given = call.Pointers(coarse, fine, positions)
        share = ctypes.c_float(UNIFORM_SHARE)
        launch("cad_refine_volume", coarse, given.array, ctypes.c_int64(sampling.fine), share)
    features = origins.new_empty(*shape, outputs - 1)
    opacity, depth = origins.new_empty(shape), origins.new_empty(shape)
    launch("cad_render_volume", positions, call.Pointers(features, opacity, depth, None).array)
    return Rendered(features, opacity[..., None], depth[..., None])
