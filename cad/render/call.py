"""The checked call to the fused renderer's compiled library: what its launchers in csrc/ are given, on every device.

Planes, rays and layers are as in cad/render/fused.py.
"""

import ctypes
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from cad.render import cuda
from cad.render.build import library


def expect(
    name: str, tensor: Tensor, shape: tuple[int, ...], planes: Tensor, dtypes: Iterable[torch.dtype] = (torch.float32,)
) -> None:
    """Raise ValueError unless the tensor has this shape, one of these dtypes and the planes' device."""
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name}: shape {list(tensor.shape)}, but {list(shape)} is needed")
    if tensor.dtype not in dtypes:
        raise ValueError(f"{name}: {tensor.dtype}, but {' or '.join(map(str, dtypes))} is needed")
    if tensor.device != planes.device:
        raise ValueError(f"{name}: on {tensor.device}, but the planes are on {planes.device}")


def plane_dtypes(device: torch.device) -> Iterable[torch.dtype]:
    """What planes may be of on this device."""
    return cuda.PLANES if device.type == "cuda" else (torch.float32,)


def check(planes: Tensor, rays: Sequence[Tensor], layers: Sequence[Tensor]) -> None:
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
    expect("planes", planes, tuple(planes.shape), planes, plane_dtypes(planes.device))
    expect("origins", rays[0], (batch, count, 3), planes)
    expect("directions", rays[1], (batch, count, 3), planes)
    expect("depths", rays[2], (batch, count, rays[2].shape[2]), planes)
    expect("leave", rays[3], (batch, count), planes)
    expect("hidden weight", layers[0], (hidden, channels), planes)
    expect("hidden bias", layers[1], (hidden,), planes)
    expect("output weight", layers[2], (outputs, hidden), planes)
    expect("output bias", layers[3], (outputs,), planes)


class Sizes(ctypes.Structure):
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


class Pointers:
    """A C array of the tensors' addresses, null for None: how the structs of csrc/ that hold nothing else look."""

    def __init__(self, *tensors: Tensor | None) -> None:
        self.tensors = tensors  # kept alive as long as their addresses
        self.array = (ctypes.c_void_p * len(tensors))(*(None if x is None else x.data_ptr() for x in tensors))


class Call:
    """Checked inputs of a launcher of csrc/; `finite` says, after a run, whether all values are."""

    def __init__(
        self, planes: Tensor, rays: Sequence[Tensor], layers: Sequence[Tensor], half_side: float, far: float
    ) -> None:
        check(planes, rays, layers)
        self.launcher = launcher_for(planes, layers)
        self.library = self.launcher.library if self.launcher else cpu_library()
        batch, _, channels, height, width = planes.shape
        outputs, hidden = layers[2].shape
        _, count, samples = rays[2].shape
        self.sizes = Sizes(batch, count, samples, channels, height, width, hidden, outputs, half_side, far)
        self.rays = Pointers(*(x.contiguous() for x in rays))
        self.layers = Pointers(*(x.contiguous() for x in layers))
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
            self.finite = all_finite(*rays, *layers)
            self.planes = ctypes.byref(_Planes(planes.data_ptr(), strides))

    def run(self, name: str, *arguments: Any) -> None:
        """Call a launcher with the inputs and these further arguments, where nothing but finite values is known of."""
        given = [x.array if isinstance(x, Pointers) else x for x in arguments]
        inputs = self.planes, self.rays.array, self.layers.array
        if self.launcher:
            self.launcher.run(name, self.sizes, *inputs, *given)
        elif self.finite:
            self.finite = bool(getattr(self.library, name)(ctypes.byref(self.sizes), *inputs, *given))


def all_finite(*tensors: Tensor) -> bool:
    """Whether all values are; the extremes tell, since NaN is one, in a tenth of the time of `isfinite().all()`."""
    return all(bool(end.isfinite()) for x in tensors if x.numel() for end in x.aminmax())


def cpu_library() -> ctypes.CDLL:
    """The library for the CPU. Raises RuntimeError where it cannot be had."""
    if (found := library()) is None:
        raise RuntimeError("the fused renderer could not be compiled; use cad.render.reference.render_rays")
    return found


def pack(planes: Tensor) -> tuple[Tensor, bool]:
    """Planes on a CPU as texels [B, 3, H, W, padded C], and whether all values are finite."""
    expect("planes", planes, (len(planes), 3, *planes.shape[2:]), planes)
    batch, _, channels, height, width = planes.shape
    sizes = Sizes(batch, 0, 1, channels, height, width, 1, 2, 1.0, 0.0)
    texels = planes.new_empty(batch, 3, height, width, cpu_library().cad_padded(ctypes.byref(sizes)))
    given = _Planes(planes.data_ptr(), (ctypes.c_int64 * 5)(*planes.stride()))
    sound = cpu_library().cad_pack(ctypes.byref(sizes), ctypes.byref(given), ctypes.c_void_p(texels.data_ptr()))
    return texels, bool(sound)


def launcher_for(planes: Tensor, layers: Sequence[Tensor]) -> cuda.Launcher | None:
    """What calls the renderer on the planes' GPU; None on a CPU. Raises ValueError for another device."""
    if planes.device.type not in ("cpu", "cuda"):
        raise ValueError(f"planes: on {planes.device}, but the fused renderer runs on cpu and cuda")
    return cuda.Launcher(planes, layers) if planes.is_cuda else None


def spoilt(tensor: Tensor) -> Tensor:
    """The tensor, filled with NaN."""
    return tensor.fill_(torch.nan)
