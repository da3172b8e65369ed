"""The fused renderer on NVIDIA GPUs: what csrc/cuda/ takes, and its launches on the current stream.

float32 planes are computed with as float32 is. Planes of half precision are multiplied in tf32 (11 bits, as many as
theirs or more) and activated with the GPU's own functions, which is faster. The decoder's gradients have the same bits
in each run on one kind of GPU; those of the planes differ by rounding, for they are added up in no fixed order.
"""

import copy
import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cad.render.build import cuda_library

OLDEST = (8, 0)  # compute capability: the first with products in tf32
PLANES = {torch.float32: "float", torch.float16: "Half", torch.bfloat16: "Bfloat"}
# What registers and shared memory have room for: plane channels, hidden units, features, coarse samples [ours].
CHANNELS, UNITS, FEATURES, COARSE = 48, 64, 48, 512


def can_render(planes: Tensor) -> bool:
    """Whether the fused renderer takes these planes on their GPU; compiles its smallest library if need be."""
    return planes.dtype in PLANES and planes.shape[2] <= CHANNELS and available(planes.device)


def available(device: torch.device) -> bool:
    """Whether kernels can be compiled for this GPU; where the compiler fails, it is said on stderr."""
    return capable(device) and cuda_library(architecture(device), 16, 8, "float") is not None


def capable(device: torch.device) -> bool:
    """Whether this is a GPU that has what the kernels need."""
    return torch.cuda.is_available() and torch.cuda.get_device_capability(device) >= OLDEST


def architecture(device: torch.device) -> str:
    """The GPU's architecture as nvcc calls it: sm_90."""
    return "sm_{}{}".format(*torch.cuda.get_device_capability(device))


class _Launch(ctypes.Structure):
    """`Launch` of csrc/cuda/launch.h."""

    _fields_ = (
        ("device", ctypes.c_int),
        ("stream", ctypes.c_void_p),
        ("faults", ctypes.c_void_p),
        ("workspace", ctypes.c_void_p),
    )


class Launcher:
    """The library for planes of one dtype and a decoder's sizes, called on the present stream of the planes' GPU.

    Nothing here waits for the GPU: values that are not finite are found there, and make all outputs NaN there. Raises
    ValueError for sizes that a GPU has no room for, RuntimeError where the library cannot be had.
    """

    def __init__(self, planes: Tensor, layers: Sequence[Tensor]) -> None:
        channels, units, features = planes.shape[2], layers[0].shape[0], layers[3].shape[0] - 1
        _limit("planes", "channels", channels, CHANNELS)
        _limit("hidden weight", "units", units, UNITS)
        _limit("output weight", "features", features, FEATURES)
        self.library = self.compiled(planes, -(-channels // 16) * 16, -(-features // 8) * 8)
        self.device = planes.device
        self.faults = torch.empty(1, dtype=torch.int32, device=planes.device)

    def compiled(self, planes: Tensor, channels: int, features: int) -> ctypes.CDLL:
        """The library for texels with room for so many channels and rays with room for so many features."""
        if not capable(planes.device):
            raise RuntimeError("the fused renderer needs a GPU of compute capability 8.0 or newer")
        found = cuda_library(architecture(planes.device), channels, features, PLANES[planes.dtype])
        if found is None:
            raise RuntimeError("the fused renderer could not be compiled; use cad.render.reference.render_rays")
        return found

    def again(self) -> "Launcher":
        """The same for another call on what has been packed: it begins with the faults that were found till now."""
        other = copy.copy(self)
        other.faults = self.faults.clone()
        return other

    def stream(self) -> int:
        """Address of the present stream."""
        return torch.cuda.current_stream(self.device).cuda_stream

    def run(self, name: str, sizes: Any, *arguments: Any) -> None:
        """Call a launcher of csrc/cuda/. Raises RuntimeError with CUDA's words where a kernel could not be started."""
        launch = _Launch(self.device.index or 0, self.stream(), self.faults.data_ptr(), None)
        if name.startswith("cad_refine"):
            _limit("positions", "coarse samples", sizes.samples, COARSE)
        if name == "cad_render_backward":
            floats = self.library.cad_workspace(ctypes.byref(sizes), ctypes.byref(launch))
            workspace = torch.empty(floats, dtype=torch.float32, device=self.device)
            launch.workspace = workspace.data_ptr()
        with torch.cuda.device_of(self.faults):
            fault = getattr(self.library, name)(ctypes.byref(sizes), *arguments, ctypes.byref(launch))
        if fault:
            raise RuntimeError(f"{name}: {self.library.cad_fault(fault).decode()}")


def _limit(name: str, what: str, size: int, most: int) -> None:
    if size > most:
        raise ValueError(f"{name}: {size} {what}, but the fused renderer has room for {most} on a GPU")
