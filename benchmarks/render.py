"""Times the fused renderer beside plain PyTorch in one run: forward, and forward with backward.

`python benchmarks/render.py` prints a table and writes it to benchmarks/render.md. Run it on an idle machine.
Rays come from cameras on the sphere as in training, samples are jittered, importance sampling is on.
"""

import argparse
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from cad.camera import focal_length, near_far, pixel_centers, rays, sphere_poses
from cad.models.decoder import TriplaneDecoder
from cad.models.layers import initialise
from cad.render import fused, reference
from cad.render.build import library

TABLE = Path(__file__).with_suffix(".md")
HALF_SIDE = 0.7


class Shape(NamedTuple):
    """Batch, image side, samples of each pass, plane channels and side, decoder width and features."""

    batch: int
    side: int
    samples: int
    channels: int
    planes: int
    hidden: int
    features: int


SHAPES = {
    "mini, stage 1": Shape(8, 32, 8, 16, 32, 32, 32),
    "paper, stage 1, batch 4": Shape(4, 64, 48, 32, 128, 64, 32),
    "one frame of 64 px": Shape(1, 64, 8, 16, 64, 32, 32),
}
RENDERERS: dict[str, Callable[..., reference.Rendered]] = {
    "plain PyTorch": reference.render_rays,
    "fused": fused.render_rays,
}


def step(shape: Shape, renderer: str, backward: bool) -> Callable[[], Tensor]:
    """One call to time, on inputs that depend on the shape alone."""
    draws = torch.Generator().manual_seed(0)
    decoder = TriplaneDecoder(shape.channels, shape.hidden, shape.features)
    initialise(decoder, draws)
    planes = torch.randn(shape.batch, 3, shape.channels, shape.planes, shape.planes, generator=draws)
    cameras = sphere_poses(shape.batch, draws).cameras(2.0)
    origins, directions = rays(cameras, focal_length(49.1), pixel_centers(shape.side))
    sampling = reference.Sampling(*near_far(2.0, HALF_SIDE), HALF_SIDE, shape.samples, shape.samples)
    planes.requires_grad_(backward)

    def call() -> Tensor:
        jitter = torch.Generator().manual_seed(1)
        with torch.set_grad_enabled(backward):
            features = RENDERERS[renderer](planes, decoder, origins, directions, sampling, jitter).features
        if backward:
            features.square().sum().backward()
        return features.detach()

    return call


def seconds(call: Callable[[], Tensor], repeats: int) -> float:
    """Median wall time of a call after one that warms up."""
    call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def extra_memory(name: str, renderer: str, backward: bool) -> float:
    """Peak memory [MiB] that a call adds to what the process held before; measured in a process of its own."""
    command = [sys.executable, __file__, "--memory", name, renderer, str(int(backward))]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def measure_memory(name: str, renderer: str, backward: bool) -> None:
    """The child process of `extra_memory`; Linux keeps the peak, which is set back to the present before the call."""
    call = step(SHAPES[name], renderer, backward)
    step(Shape(1, 2, 2, 1, 2, 1, 3), renderer, backward)()  # what the first call loads is no part of the count
    Path("/proc/self/clear_refs").write_text("5")
    before = peak()
    call()
    print(peak() - before)


def peak() -> float:
    """Peak resident memory of this process [MiB]."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024


def table(names: list[str], threads: list[int], repeats: int) -> str:
    """Markdown rows: seconds of both renderers, their ratio, and the peak memory of both."""
    lines = [
        "| shape | threads | pass | plain [s] | fused [s] | ratio | plain [MiB] | fused [MiB] |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in names:
        for backward in (False, True):
            memory = [extra_memory(name, renderer, backward) for renderer in RENDERERS]
            for count in threads:
                torch.set_num_threads(count)
                plain, fast = (seconds(step(SHAPES[name], renderer, backward), repeats) for renderer in RENDERERS)
                what = "forward + backward" if backward else "forward"
                lines.append(
                    f"| {name} | {count} | {what} | {plain:.4f} | {fast:.4f} | {plain / fast:.1f} "
                    f"| {memory[0]:.0f} | {memory[1]:.0f} |"
                )
                print(lines[-1], flush=True)
    return "\n".join(lines)


def processor() -> str:
    """The CPU's name."""
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shapes", nargs="*", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--threads", nargs="*", type=int, default=[1, 2])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--memory", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--write", action=argparse.BooleanOptionalAction, default=True)
    given = parser.parse_args()
    if given.memory:
        name, renderer, backward = given.memory
        measure_memory(name, renderer, bool(int(backward)))
        return
    if library() is None:
        sys.exit(1)
    rows = table(given.shapes, given.threads, given.repeats)
    if given.write:
        shapes = "\n".join(f"- {name}: {SHAPES[name]._asdict()}" for name in given.shapes)
        TABLE.write_text(
            f"# Rendering, plain PyTorch and fused\n\nWritten by `python benchmarks/render.py` on {processor()}, torch "
            f"{torch.__version__}, float32; medians of {given.repeats} runs; memory is the peak beyond the inputs.\n\n"
            f"{rows}\n\n{shapes}\n"
        )


if __name__ == "__main__":
    main()
