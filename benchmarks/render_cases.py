"""What `benchmarks/render.py` times: shapes, renderers, and one measurement of either kind, time or memory."""

import platform
import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import eager
import lightplane_case
import torch
from torch import Tensor

from cad.camera import focal_length, near_far, pixel_centers, rays, sphere_poses
from cad.models.decoder import TriplaneDecoder
from cad.models.layers import initialise
from cad.render import fused, reference

HALF_SIDE, RADIUS, FOV = 0.7, 2.0, 49.1  # of the profiles' camera
CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}  # on a CPU; a GPU has its own


class Shape(NamedTuple):
    """Batch, image side, samples of each of the two passes, plane channels and side, decoder width and features."""

    batch: int
    side: int
    samples: int
    channels: int
    planes: int
    hidden: int
    features: int


class Case(NamedTuple):
    """What is timed: rendering at a shape with gradients or without, on a device, with planes of a dtype."""

    shape: Shape
    backward: bool
    device: str
    dtype: str


TRAINING = "training: 4 views of 64 px"  # the paper's stage 1
MINI, ORBIT = "mini, stage 1: 4 views of 32 px", "mini, orbit: frame of 64 px"
FRAME, FRAME_OF_COLOURS = "frame of 256 px", "frame of 256 px, colours alone"
SHAPES = {
    TRAINING: Shape(4, 64, 48, 32, 128, 64, 32),
    MINI: Shape(4, 32, 8, 16, 32, 32, 32),
    ORBIT: Shape(1, 64, 16, 16, 64, 32, 32),
    FRAME: Shape(1, 256, 48, 32, 128, 64, 32),
    FRAME_OF_COLOURS: Shape(1, 256, 48, 32, 128, 64, 3),
}
ON_CPU, ON_GPU = (TRAINING, MINI, ORBIT), (TRAINING, FRAME, FRAME_OF_COLOURS)  # plain PyTorch takes minutes for 256 px
REFERENCE, TEXELS, IMAGES = "reference", "eager, texels", "eager, images"
COMPILED, FUSED, LIGHTPLANE = "eager, compiled", "fused", "Lightplane"
EAGER = (REFERENCE, TEXELS, IMAGES)  # plain PyTorch as it is; a bar compares with the fastest of them
RENDERERS: dict[str, Callable[[], Callable[..., reference.Rendered]]] = {
    REFERENCE: lambda: reference.render_rays,
    TEXELS: lambda: eager.renderer(eager.texels, compiled=False),
    IMAGES: lambda: eager.renderer(eager.images, compiled=False),
    COMPILED: lambda: eager.renderer(eager.texels, compiled=True),
    FUSED: lambda: fused.render_rays,
    LIGHTPLANE: lambda: lightplane_case.render_rays,
}
FOREIGN = (COMPILED, LIGHTPLANE)  # whose failures belong into the table
# A call after which what a first call loads is there; it is no part of a peak.
SMALL = Shape(1, 2, 2, 16, 2, 16, 3)


def passes(shape: Shape) -> tuple[bool, ...]:
    """Without gradients, and with a backward pass where trainings have the shape."""
    return (False, True) if shape.batch > 1 else (False,)


def step(case: Case, renderer: str) -> Callable[[], Tensor]:
    """One call to time, on inputs that depend on the case alone; returns the features [B, R, F].

    On a CPU samples of several views are jittered, as in trainings. On a GPU they are not: draws come from the CPU.
    """
    shape, device, draws = case.shape, torch.device(case.device), torch.Generator().manual_seed(0)
    decoder = TriplaneDecoder(shape.channels, shape.hidden, shape.features)
    initialise(decoder, draws)
    planes = torch.randn(shape.batch, 3, shape.channels, shape.planes, shape.planes, generator=draws)
    cameras = sphere_poses(shape.batch, draws).cameras(RADIUS)
    given = [x.to(device).contiguous() for x in rays(cameras, focal_length(FOV), pixel_centers(shape.side))]
    sampling = reference.Sampling(*near_far(RADIUS, HALF_SIDE), HALF_SIDE, shape.samples, shape.samples)
    decoder, planes = decoder.to(device), planes.to(device, getattr(torch, case.dtype)).requires_grad_(case.backward)
    inputs, render = [planes, *decoder.parameters()], RENDERERS[renderer]()
    # The reference knows one dtype; what it would take to widen planes is a part of its time.
    widen = (lambda x: x.float()) if renderer == REFERENCE else (lambda x: x)

    def call() -> Tensor:
        jitter = torch.Generator().manual_seed(1) if shape.batch > 1 and device.type == "cpu" else None
        with torch.set_grad_enabled(case.backward):
            features = render(widen(planes), decoder, *given, sampling, jitter).features
            if case.backward:
                torch.autograd.grad(features.float().square().sum(), inputs, allow_unused=renderer == LIGHTPLANE)
        return features.detach()

    return call


def seconds(call: Callable[[], Any], device: str, clock: str) -> float:
    """What a call takes, by the GPU's own clock on a GPU."""
    if device == "cuda":
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        begin.record()
        call()
        end.record()
        torch.cuda.synchronize()
        return begin.elapsed_time(end) / 1000
    start = CLOCKS[clock]()
    call()
    return CLOCKS[clock]() - start


def alternately(calls: dict[str, Callable[[], Any]], repeats: int, device: str, clock: str) -> dict[str, float]:
    """Median seconds of each call, the calls by turns, so that what else the machine does is shared out evenly."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            taken[name].append(seconds(call, device, clock))
    return {name: statistics.median(times) for name, times in taken.items()}


def times(case: Case, renderers: Iterable[str], repeats: int, clock: str) -> dict[str, dict[str, Any]]:
    """Of each renderer: seconds, what compiling took [s] if it is compiled, and on a GPU memory [MiB]; or its fault."""
    found: dict[str, dict[str, Any]] = {}
    calls = {}
    for name in renderers:
        try:
            call = step(case, name)
            first = seconds(call, case.device, "wall")
            seconds(call, case.device, clock)  # the second is still a little special where the first compiles
        except Exception as error:
            if name not in FOREIGN and not isinstance(error, torch.OutOfMemoryError):
                raise
            found[name] = {"fault": fault(error)}
            continue
        calls[name], found[name] = call, {"first": first}
    for name, taken in alternately(calls, repeats, case.device, clock).items():
        first = found[name].pop("first")
        found[name]["seconds"] = taken
        if name == COMPILED:
            found[name]["compiling"] = max(0.0, first - taken)
        if case.device == "cuda":
            found[name]["memory"] = extra_memory(calls[name], case.device)
    return found


def fault(error: Exception) -> str:
    """An error's first line, fit for a table's cell."""
    said = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {said}"[:160].replace("|", "/")


def memory(case: Case, renderer: str) -> dict[str, Any]:
    """Peak memory [MiB] that a call adds to what the process held before; for a process of its own."""
    call = step(case, renderer)
    try:
        (call if renderer in FOREIGN else step(case._replace(shape=SMALL), renderer))()
    except Exception as error:
        if renderer not in FOREIGN:
            raise
        return {"fault": fault(error)}
    return {"memory": extra_memory(call, case.device)}


def extra_memory(call: Callable[[], Any], device: str) -> float:
    """Peak memory beyond what was in use [MiB]: the allocator's on a GPU, the process's on a CPU (Linux)."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        call()
        return (torch.cuda.max_memory_allocated() - held) / 2**20
    Path("/proc/self/clear_refs").write_text("5")  # sets the peak back to the present
    before = peak()
    call()
    return peak() - before


def peak() -> float:
    """Peak resident memory of this process [MiB]."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024


def processor() -> str:
    """The CPU's name."""
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
