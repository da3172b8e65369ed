"""The fused renderer: whether it is built here, computes what the reference does, and can be traced."""

import copy
import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from typing import TYPE_CHECKING

from cad.doctor.findings import BROKEN, MISSING, Finding, first_line, ok

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from cad.config import Params
    from cad.models.decoder import TriplaneDecoder
    from cad.render.reference import Sampling

RENDERER = "renderer"
TOLERANCE = 1e-3  # [ours] of features, opacity, depth and gradients against double precision; rounding gives 1e-5
CHANNELS, SIDE, HIDDEN, FEATURES, VIEW, SAMPLES = 8, 8, 16, 4, 8, 6  # of the picture that is rendered


def examine_renderer(params: "Params | None") -> list[Finding]:
    """Each device's fused renderer beside the reference, and whether torch.compile traces it.

    One is needed only where `runtime.renderer` is fused, on the device that networks run on.
    """
    import torch

    gpu = torch.cuda.is_available()
    used = "cuda" if gpu and (params is None or params.runtime.device != "cpu") else "cpu"
    forced = params is not None and params.runtime.renderer == "fused"
    devices = [torch.device(name) for name in ("cpu", "cuda") if name == "cpu" or gpu]
    return [finding for device in devices for finding in _on(device, forced and device.type == used)]


def _on(device: "torch.device", needed: bool) -> list[Finding]:
    from cad.render import fused

    name, compiler = f"fused on {device.type}", "g++" if device.type == "cpu" else "nvcc"
    with _heard() as said:
        usable = fused.can_render(_planes(device))
    if not usable:
        reason = said.getvalue().strip().removeprefix("cad: ").splitlines()
        says = reason[-1] if reason else "it cannot be compiled here; plain PyTorch renders instead"
        return [Finding(RENDERER, name, MISSING, says, f"install {compiler}", needed)]
    remedy = "set runtime.renderer to reference, and report it with this table"
    try:
        difference = largest_difference(device)
    except (RuntimeError, ValueError, OSError) as error:
        return [Finding(RENDERER, name, BROKEN, first_line(error), remedy, needed)]
    says = f"largest difference from the reference {difference:.1e}, gradients included"
    if not difference < TOLERANCE:
        return [Finding(RENDERER, name, BROKEN, f"{says}; at most {TOLERANCE:.0e} is rounding", remedy, True)]
    return [ok(RENDERER, name, says), traced(device)]


def largest_difference(device: "torch.device") -> float:
    """Of the fused renderer in float32 from the reference in float64, on a small picture.

    The largest over features, opacity, depth and the planes' gradient (this one as a share of its largest value).
    """
    from cad.render import fused, reference

    planes, (decoder, origins, directions, sampling) = _planes(device), _scene(device)
    single, double = planes.requires_grad_(), planes.detach().double().requires_grad_()
    ours = fused.render_rays(single, decoder, origins, directions, sampling, None)
    exact = reference.render_rays(
        double, copy.deepcopy(decoder).double(), origins.double(), directions.double(), sampling, None
    )
    for image in (ours, exact):
        image.features.square().sum().backward()
    assert single.grad is not None
    assert double.grad is not None
    pairs = [*zip(ours, exact, strict=True), (single.grad / (top := double.grad.abs().max()), double.grad / top)]
    # A value that is not finite must not pass for small, so no `max` of Python's over the pairs.
    return max(float("inf") if not x.isfinite().all() else (x - y).abs().max().item() for x, y in pairs)


def traced(device: "torch.device") -> Finding:
    """Whether torch.compile takes the fused renderer into one graph; nothing is generated."""
    import torch

    from cad.render import fused

    decoder, origins, directions, sampling = _scene(device)

    def render(planes: "Tensor") -> "Tensor":
        return fused.render_rays(planes, decoder, origins, directions, sampling, None).features

    name = f"torch.compile on {device.type}"
    try:
        torch.compile(render, backend="eager", fullgraph=True)(_planes(device))
    except (torch._dynamo.exc.TorchDynamoException, RuntimeError) as error:
        says = f"does not trace the fused renderer ({first_line(error)})"
        return Finding(RENDERER, name, BROKEN, says, "leave `compile` of the trainings false", False)
    finally:
        torch._dynamo.reset()
    return ok(RENDERER, name, "traces the fused renderer as one graph")


def _planes(device: "torch.device") -> "Tensor":
    import torch

    draws = torch.Generator().manual_seed(0)
    return torch.randn(1, 3, CHANNELS, SIDE, SIDE, generator=draws).to(device)


def _scene(device: "torch.device") -> "tuple[TriplaneDecoder, Tensor, Tensor, Sampling]":
    """A decoder of fixed weights, rays of one view, and how they are sampled."""
    import torch

    from cad.camera import focal_length, near_far, pixel_centers, rays, sphere_poses
    from cad.models.decoder import TriplaneDecoder
    from cad.models.layers import initialise
    from cad.render.reference import Sampling

    draws = torch.Generator().manual_seed(1)
    decoder = TriplaneDecoder(CHANNELS, HIDDEN, FEATURES)
    initialise(decoder, draws)
    origins, directions = rays(sphere_poses(1, draws).cameras(2.0), focal_length(49.1), pixel_centers(VIEW))
    sampling = Sampling(*near_far(2.0, 0.7), 0.7, SAMPLES, SAMPLES)
    return decoder.to(device), origins.contiguous().to(device), directions.to(device), sampling


@contextmanager
def _heard() -> Iterator[io.StringIO]:
    """What is said on stderr within, which is shown as well: compiling takes its time."""

    class Copy(io.StringIO):
        def write(self, text: str) -> int:
            terminal.write(text)
            return super().write(text)

    terminal = sys.stderr
    with redirect_stderr(Copy()) as said:
        yield said
