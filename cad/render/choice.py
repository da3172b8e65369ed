"""Which renderer this process uses, and that work goes on only as it began: others give other bits."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch

from cad.errors import UserError
from cad.render import cuda
from cad.render.build import library

Renderer = Literal["fused", "reference"]

_choice: dict[str, Renderer] = {"renderer": "reference"}  # of this process, as torch's number of threads is


def resolve_renderer(setting: Literal["auto", "fused", "reference"], device: torch.device) -> Renderer:
    """The renderer that `runtime.renderer` means here; compiles the fused one if need be.

    auto takes the fused renderer where it can be had. Raises UserError where `fused` is asked for in vain.
    """
    if setting == "reference":
        return "reference"
    if (device.type == "cpu" and library() is not None) or (device.type == "cuda" and cuda.available(device)):
        return "fused"
    if setting == "fused":
        raise UserError(f"runtime.renderer: fused is asked for, but {_hindrance(device)}, or set it to auto")
    return "reference"


def _hindrance(device: torch.device) -> str:
    """Why the fused renderer cannot be had, and what to do about it."""
    if device.type not in ("cpu", "cuda"):
        return f"it does not run on {device.type}; use another device"
    if device.type == "cuda" and not cuda.capable(device):
        return "there is no GPU of compute capability 8.0 or newer; set runtime.device to cpu"
    return f"it could not be compiled (see above); install {'g++' if device.type == 'cpu' else 'nvcc'}"


@contextmanager
def use_renderer(name: Renderer) -> Iterator[None]:
    """Let `cad.render.image` use this renderer within the context."""
    former, _choice["renderer"] = _choice["renderer"], name
    try:
        yield
    finally:
        _choice["renderer"] = former


def renderer() -> Renderer:
    """The renderer in use."""
    return _choice["renderer"]


def rendered_by(device: torch.device) -> dict[str, str]:
    """What decides the bits of a rendering beside its inputs: renderer and kind of device, as JSON data."""
    return {"renderer": renderer(), "device": device.type}


def check_begun(work: Path, recorded: Mapping[str, Any], device: torch.device) -> None:
    """Refuse to go on with work that another renderer or kind of device began; recorded: holds `rendered_by` of then.

    Raises UserError that names the folder.
    """
    now = rendered_by(device)
    begun = {key: recorded.get(key, "an unknown one") for key in now}
    if begun != now:
        said = ", ".join(f"{key} {begun[key]}, but {key} is {now[key]} now" for key in now if begun[key] != now[key])
        remedy = f"restore that (a C++ compiler, the GPU, runtime) or remove {work}"
        raise UserError(f"{work}: was begun with {said}: the bits would be neither's; {remedy}")
