"""Times a step of both trainings, part by part: plain beside fast, and what the renderer alone predicts.

    python benchmarks/train_step.py                       # mini here, and paper where there is a GPU
    python benchmarks/train_step.py --profile paper --device cuda

Prints a section for each profile and writes it to benchmarks/train_step.md, whose other sections stay. Run it on an
idle machine. The networks are fresh and learn from noise, which costs what real images cost. In every step that is
timed all regularisers are due; each counts with the share of steps in which a training takes it. Each row is a
process of its own, whose memory is that beyond what importing takes. Where the machine is never idle, `--clock
processor` with one thread counts the process's own time instead.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from render import peak, processor
from ruamel.yaml import YAML
from safetensors.torch import save_file
from step_clock import Clock, watched

from cad.artifacts import PriorCacheWriter, write_atomic
from cad.camera import sphere_poses
from cad.config import CameraSettings, DiscriminatorSettings, GeneratorSettings, Stage1Settings, Stage2Settings
from cad.context import Context, prepare_device
from cad.errors import UserError
from cad.render.choice import resolve_renderer, use_renderer
from cad.render.image import render_view
from cad.seeding import generator as seeded
from cad.train.data import load_reals
from cad.train.distill import Distiller
from cad.train.perceptual import TRUNK
from cad.train.stage1 import Stage1
from cad.train.stage2 import Branch3D, Stage2
from cad.train.synthesis import patch_3d

PROFILES = Path(__file__).parents[1] / "experiments" / "profile"
TABLE = Path(__file__).with_suffix(".md")
TITLE = "# Steps of both trainings\n\nWritten by `benchmarks/train_step.py`, which says how it measures.\n"
STAGES = ("stage1", "stage2")
# What each row changes in the profile, from plain to everything that is there; the renderer comes first.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "plain PyTorch, float32": ("reference", {"precision": "float32", "plane_precision": "float32", "compile": False}),
    "profile, plain renderer": ("reference", {}),
    "profile, fused renderer": ("fused", {}),
    "fused, planes in bfloat16": ("fused", {"plane_precision": "bfloat16"}),
    "fused, compiled": ("fused", {"compile": True}),
}
UNMEASURED = "paper, CPU"  # the heading of a section that says so
BEFORE, AFTER = "profile, plain renderer", "profile, fused renderer"
PARTS = ("rendering", "synthesis", "discriminator", "LPIPS", "augmentation", "regularisation", "optimiser", "rest")
POSES = 64  # of the made-up prior
AUGMENTED = 0.2  # ADA's p during the measurement: halfway to where trainings of this kind settle [ours]
CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}  # on a CPU; a GPU has its own
WARM_UP = 2  # steps, the first of which compiles


def profile_settings(name: str) -> dict[str, Any]:
    """What a profile says, with what it inherits; read here, for a bare GPU machine has no Hydra."""
    own = YAML(typ="safe").load(PROFILES / f"{name}.yaml")
    inherited = [base for base in own.pop("defaults", []) if isinstance(base, str) and not base.startswith("_")]
    merged: dict[str, Any] = {}
    for part in [*map(profile_settings, inherited), own]:
        for key, value in part.items():
            merged[key] = {**merged.get(key, {}), **value} if isinstance(value, dict) else value
    return merged


def write_prior(folder: Path, side: int) -> None:
    """A refine cache of noise, as the refine stage would write it."""
    writer = PriorCacheWriter(folder, sphere_poses(POSES, seeded("poses")), range(POSES), 1, side, POSES)
    images = np.random.default_rng(0).integers(0, 256, (POSES, 1, side, side, 3), dtype=np.uint8)
    for shard in writer.missing_shards():
        writer.write_shard(shard, images[list(writer.shard_range(shard))])
    writer.finish()


def write_trunk(path: Path) -> None:
    """An LPIPS trunk of random weights: its distances mean nothing, and cost what they cost."""
    draws = torch.Generator().manual_seed(0)
    trunk = {f"features.{i}.weight": torch.randn(shape, generator=draws) * 0.03 for i, (_, shape) in TRUNK.items()}
    save_file(trunk | {f"features.{i}.bias": torch.zeros(shape[0]) for i, (_, shape) in TRUNK.items()}, path)


def make_job(stage: str, profile: dict[str, Any], changes: dict[str, Any], device: torch.device) -> Stage1 | Stage2:
    """The job of a stage, with fresh networks and noise for a prior."""
    shape = GeneratorSettings.model_validate(profile["generator"])
    judge = DiscriminatorSettings.model_validate(profile["discriminator"])
    camera = CameraSettings.model_validate(profile["camera"])
    kind = Stage1Settings if stage == "stage1" else Stage2Settings
    settings = kind.model_validate({**profile[stage], **changes})
    # Nothing is logged, so there is no tracker.
    context = Context(seed=0, object="benchmark", device=device, tracker=None)  # type: ignore[arg-type]
    with tempfile.TemporaryDirectory() as folder:
        write_prior(Path(folder) / "refine", shape.output_resolution)
        reals = load_reals(Path(folder) / "refine", camera, shape.output_resolution)
        players = Distiller(stage, settings, shape, judge, camera, reals, context)
        if isinstance(settings, Stage1Settings):
            job = Stage1(players, settings, camera)
            job.ada.p = AUGMENTED
            return job
        write_trunk(Path(folder) / "lpips.safetensors")
        return Stage2(players, Branch3D(players, settings, Path(folder) / "lpips.safetensors"), settings, camera, 0)


def intervals(settings: Stage1Settings | Stage2Settings) -> dict[str, int]:
    """In how many steps each regulariser is due once."""
    found = {"R1": settings.r1_interval, "density": settings.density_interval}
    return found | ({"patch R1": settings.patch_r1_interval} if isinstance(settings, Stage2Settings) else {})


def due_steps(settings: Stage1Settings | Stage2Settings, count: int) -> list[int]:
    """Numbers of steps in which every regulariser is due, after the blur has faded."""
    every = math.lcm(*intervals(settings).values())
    faded = getattr(settings, "blur_kimg", 0.0) * 1000 / settings.batch
    first = math.ceil(faded / every)
    return [every * (first + k) for k in range(count)]


def seconds_of_parts(job: Stage1 | Stage2, clock: Clock, count: int) -> dict[str, float]:
    """Median seconds of each part of a step over `count` steps, regularisers by their share of steps."""
    due, rows = intervals(job.settings), []
    with watched(clock):
        for step in due_steps(job.settings, WARM_UP + count):
            clock.start()
            job.step(step)
            rows.append(clock.stop())
    taken = []
    for row in rows[WARM_UP:]:
        parts = {name: row.get(name, 0.0) for name in PARTS}
        parts["regularisation"] = sum(row.get(name, 0.0) / every for name, every in due.items())
        taken.append(parts | {"step": sum(parts.values())})
    return {name: statistics.median(row[name] for row in taken) for name in taken[0]}


def rendering_alone(job: Stage1 | Stage2, renderer: str, clock: Clock, count: int) -> float:
    """Median seconds of the renderings of one step by themselves, forward and backward, at the step's own shapes."""
    players, branch = job.players, getattr(job, "branch", None)
    device = players.context.device
    with torch.no_grad():
        fakes = players.fakes(players.draws(0, "alone"))
        lifted = branch.lifted(fakes.planes, fakes.w) if branch else None

    def render() -> float:
        draws = players.draws(0, "jitter")
        clock.start()
        with clock.within("rendering"):
            planes = fakes.planes.detach().requires_grad_()
            features = job_view(job, planes, fakes.cameras, draws)
            features.square().sum().backward()
            if lifted is not None:
                finer, size = lifted.detach().requires_grad_(), job.settings.patch_size
                corners = torch.zeros(len(finer), 2, dtype=torch.int64, device=device)
                patch = patch_3d(players.generator, finer, fakes.cameras, corners, size, players.lens, draws)
                patch.square().sum().backward()
        return clock.stop()["rendering"]

    with use_renderer(resolve_renderer(renderer, device)):
        render()
        return statistics.median(render() for _ in range(count))


def job_view(job: Stage1 | Stage2, planes: torch.Tensor, cameras: torch.Tensor, draws: torch.Generator) -> torch.Tensor:
    """The raw rendering of a step's views, [B, F, r, r]."""
    lens, decoder = job.players.lens, job.players.generator.decoder
    return render_view(planes, decoder, cameras, lens.focal, lens.raw_resolution, lens.sampling, draws)[0]


def measure(stage: str, variant: str, given: argparse.Namespace) -> dict[str, Any]:
    """One row: seconds of a step and its parts, seconds for a thousand images, peak memory in MiB.

    Of the fused renderer also what plain and fused rendering take alone. Raises UserError where it cannot be had.
    """
    device = prepare_device(given.device, given.threads)
    renderer, changes = VARIANTS[variant]
    values, clock = profile_settings(given.profile[0]), Clock(device, CLOCKS[given.clock])
    chosen = resolve_renderer(renderer, device)
    before = reset_peak(device)
    with use_renderer(chosen):
        job = make_job(stage, values, changes, device)
        parts = seconds_of_parts(job, clock, given.steps)
        memory = memory_peak(device) - before
    kimg = parts["step"] * 1000 / job.settings.batch
    row = {"parts": parts, "kimg": kimg, "memory": memory}
    if variant == AFTER:
        row["alone"] = {name: rendering_alone(job, name, clock, given.steps) for name in ("reference", "fused")}
    return row


def reset_peak(device: torch.device) -> float:
    """Forget the memory's peak so far; returns what is in use [MiB]."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device) / 2**20
    Path("/proc/self/clear_refs").write_text("5")
    return peak()


def memory_peak(device: torch.device) -> float:
    """Most memory in use since `reset_peak` [MiB]: the allocator's on a GPU, the process's on a CPU."""
    return torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else peak()


def in_child(stage: str, variant: str, given: argparse.Namespace, profile: str) -> dict[str, Any]:
    """`measure` in a process of its own; {"fault": why} where it fails."""
    options = ["--profile", profile, "--device", given.device, "--steps", str(given.steps), "--clock", given.clock]
    command = [sys.executable, __file__, *options, "--threads", str(given.threads), "--measure", stage, variant]
    threads = {name: str(given.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    ended = subprocess.run(command, capture_output=True, text=True, env=os.environ | threads, check=False)
    if ended.returncode:
        return {"fault": (ended.stderr.strip().splitlines() or [f"code {ended.returncode}"])[-1]}
    return json.loads(ended.stdout.splitlines()[-1])


def section(profile: str, given: argparse.Namespace, run: Callable[[str, str], dict[str, Any]]) -> str:
    """A profile's section: a row per stage and variant, then before and after; `run` measures one row."""
    device = given.device if given.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    name = torch.cuda.get_device_name() if device == "cuda" else f"{processor()}, threads: {given.threads}"
    heading = f"## {profile}, {name}\n"
    if profile == "paper" and device == "cpu":
        return f"## {UNMEASURED}\n\nNot measured: at these sizes a step takes minutes on a CPU; it needs a GPU.\n"
    of = "processor time" if given.clock == "processor" else "time"
    lines = [f"torch {torch.__version__}; {of}, medians of {given.steps} steps after {WARM_UP}.", ""]
    lines += ["| stage | variant | step [s] | s/kimg | peak [MiB] | " + " | ".join(PARTS) + " |"]
    lines += ["|" + "---|" * (5 + len(PARTS))]
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for stage in STAGES:
        for variant in given.variants:
            row = rows[stage, variant] = run(stage, variant)
            lines.append(f"| {stage} | {variant} | {line(row)} |")
            print(lines[-1], flush=True)
    compared = [f"- {stage}: {comparison(rows, stage)}" for stage in STAGES]
    return "\n".join([heading, *lines, "", f"The renderer, before and after ({BEFORE}; {AFTER}):", "", *compared, ""])


def line(row: dict[str, Any]) -> str:
    """The cells of a row behind stage and variant."""
    if "fault" in row:
        return " | ".join([f"not measured: {row['fault'].replace('|', '/')}", *["-"] * (2 + len(PARTS))])
    step = row["parts"]["step"]
    shares = [f"{100 * row['parts'][part] / step:.0f} %" for part in PARTS]
    return " | ".join([f"{step:.4f}", f"{row['kimg']:.1f}", f"{row['memory']:.0f}", *shares])


def comparison(rows: dict[tuple[str, str], dict[str, Any]], stage: str) -> str:
    """What the share of rendering and the renderer's own gain predict (Amdahl), and what was measured."""
    before, after = rows.get((stage, BEFORE), {}), rows.get((stage, AFTER), {})
    if "parts" not in before or "alone" not in after:
        return "not measured"
    step, rendering = before["parts"]["step"], before["parts"]["rendering"]
    gain = after["alone"]["reference"] / after["alone"]["fused"]
    predicted, measured = step - rendering + rendering / gain, after["parts"]["step"]
    return (
        f"rendering is {100 * rendering / step:.0f} % of a step of {step:.4f} s; by itself it becomes {gain:.1f} times "
        f"faster, which predicts a step of {predicted:.4f} s ({step / predicted:.2f} times faster); measured "
        f"{measured:.4f} s ({step / measured:.2f} times faster)"
    )


def merged(former: str, new: list[str]) -> str:
    """The page with these sections in the place of those with the same headings, which begin with `## `.

    That the paper's sizes were not measured stands there only as long as they are not.
    """
    sections = {text.partition("\n")[0]: text.strip() for text in former.split("\n## ")[1:]}
    sections |= {text.removeprefix("## ").partition("\n")[0]: text.removeprefix("## ").strip() for text in new}
    if sum(heading.startswith("paper, ") for heading in sections) > 1:
        sections.pop(UNMEASURED, None)
    return "\n".join([TITLE, *(f"## {text}\n" for text in sections.values())])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = sorted(path.stem for path in PROFILES.glob("*.yaml"))
    parser.add_argument("--profile", nargs="*", default=["mini", "paper"], choices=known)
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clock", default="wall", choices=list(CLOCKS))
    parser.add_argument("--variants", nargs="*", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--write", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        stage, variant = given.measure
        try:
            print(json.dumps(measure(stage, variant, given)))
        except (UserError, torch.OutOfMemoryError) as error:
            print(str(error).partition("\n")[0], file=sys.stderr)
            return 2
        return 0
    sections = [section(name, given, lambda s, v, p=name: in_child(s, v, given, p)) for name in given.profile]
    print("\n".join(sections))
    if given.write:
        former = TABLE.read_text() if TABLE.exists() else ""
        write_atomic(TABLE, merged(former, sections).encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
