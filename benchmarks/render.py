"""Times the fused renderer beside plain PyTorch in one run: forward, and forward with backward.

    python benchmarks/render.py                    # here, with one thread and with two
    python benchmarks/render.py --device cuda
    python benchmarks/render.py --profile          # where the time goes, to benchmarks/render_profile.md

Prints a section for the device and writes it to benchmarks/render.md, whose other sections stay. Run it on an idle
machine. Rays come from cameras on the sphere as in training, importance sampling is on. Renderers take turns in one
process for each shape, pass and number of threads; memory is measured in a process for each renderer. Where the machine
is never idle, `--clock processor` with one thread counts the process's own time instead.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightplane_case
import render_cases as cases
import render_inference
import render_profile
import torch
from render_cases import COMPILED, FUSED, IMAGES, LIGHTPLANE, REFERENCE, SHAPES, TEXELS, TRAINING, Case, Shape
from render_cases import peak as peak  # the training step's benchmark takes both from here
from render_cases import processor as processor

from cad.artifacts import write_atomic
from cad.render import cuda
from cad.render.build import library

TABLE = Path(__file__).with_suffix(".md")
TITLE = "# Rendering, plain PyTorch and fused\n\nWritten by `benchmarks/render.py`, which says how it measures.\n"
UNMEASURED = "GPU"  # the heading of a section that says so
ROWS = {
    "cpu": (REFERENCE, TEXELS, IMAGES, COMPILED, FUSED),
    "cuda": (REFERENCE, TEXELS, IMAGES, COMPILED, FUSED, LIGHTPLANE),
}
DTYPES = {"cpu": ("float32",), "cuda": ("float32", "float16", "bfloat16")}
LEGEND = f"""\
- {REFERENCE}: cad/render/reference.py, what trainings use without a compiler
- {TEXELS} and {IMAGES}: the fastest plain PyTorch that we could write (benchmarks/eager.py), by `embedding_bag` and
  sparse products or by `grid_sample`; without gradients on a CPU in parts that fit into the cache
- {COMPILED}: {TEXELS} under `torch.compile`, which took the seconds of its own column
- {FUSED}: ours; \"ours\" in a row: how many times faster, and with what part of the memory
"""

Row = dict[str, Any]  # shape, pass, threads, dtype, renderer, and what render_cases.times and memory find


def in_child(task: str, case: Case, threads: int, cache: str, **options: Any) -> dict[str, Any]:
    """A function of render_cases in a process of its own, with so many threads and a folder for what is compiled."""
    command = [sys.executable, __file__, "--child", json.dumps([task, case, threads, options])]
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    settings = dict.fromkeys(names, str(threads)) | {"TORCHINDUCTOR_CACHE_DIR": cache}
    ended = subprocess.run(command, capture_output=True, text=True, env=os.environ | settings, check=False)
    if ended.returncode:
        raise RuntimeError(f"{' '.join(command)}: ended with {ended.returncode}\n{ended.stderr}")
    return json.loads(ended.stdout.splitlines()[-1])


def child(request: str) -> dict[str, Any]:
    """What `in_child` asks for."""
    task, (shape, *how), threads, options = json.loads(request)
    torch.set_num_threads(threads)
    return {"times": cases.times, "memory": cases.memory}[task](Case(Shape(*shape), *how), **options)


def measured(names: Sequence[str], given: argparse.Namespace, run: Callable[..., dict[str, Any]]) -> list[Row]:
    """All rows, each printed as soon as it is there; `run` is `in_child`."""
    found = []
    with tempfile.TemporaryDirectory() as cache:
        for name in names:
            for backward in cases.passes(SHAPES[name]):
                for dtype in DTYPES[given.device]:
                    case = Case(SHAPES[name], backward, given.device, dtype)
                    spaces: dict[str, Any] = {}
                    for threads in given.threads if given.device == "cpu" else given.threads[-1:]:
                        renderers = [x for x in ROWS[given.device] if x != LIGHTPLANE or dtype == "float32"]
                        options = {"renderers": renderers, "repeats": given.repeats, "clock": given.clock}
                        took = run("times", case, threads, cache, **options)
                        if given.device == "cpu" and not spaces:
                            spaces = {x: run("memory", case, threads, cache, renderer=x) for x in renderers}
                        place = {"shape": name, "threads": threads, "backward": backward, "dtype": dtype}
                        rows = [place | {"renderer": x} | spaces.get(x, {}) | took[x] for x in renderers]
                        print("\n".join(line(row, rows) for row in rows), flush=True)
                        found += rows
    return found


def alike(row: Row, rows: Sequence[Row]) -> list[Row]:
    """The rows of the same shape, pass, threads and dtype that were measured."""
    same = ("shape", "threads", "backward", "dtype")
    return [other for other in rows if "seconds" in other and all(other[key] == row[key] for key in same)]


HEADER = (
    "| shape | pass | threads | planes | renderer | time [s] | compiling [s] | peak [MiB] | ours, time | ours, memory "
    "|\n|" + "---|" * 10
)


def line(row: Row, rows: Sequence[Row]) -> str:
    """A row of the table."""
    ours = next((x for x in alike(row, rows) if x["renderer"] == FUSED), None)
    what = "forward + backward" if row["backward"] else "forward"
    cells = [row["shape"], what, str(row["threads"]), row["dtype"], row["renderer"]]
    if "fault" in row:
        return f"| {' | '.join([*cells, 'not measured: ' + row['fault'], *['-'] * 4])} |"
    cells += [f"{row['seconds']:.5f}", f"{row['compiling']:.0f}" if "compiling" in row else "-"]
    cells += [f"{row['memory']:.1f}" if "memory" in row else "-"]
    if ours is None or row["renderer"] == FUSED:
        return f"| {' | '.join([*cells, '-', '-'])} |"
    cells.append(f"{row['seconds'] / ours['seconds']:.1f} x")
    both = "memory" in row and "memory" in ours
    return f"| {' | '.join([*cells, part(ours['memory'], row['memory']) if both else '-'])} |"


def part(less: float, more: float) -> str:
    """How small a part the one is of the other: 1/20."""
    return f"1/{more / less:.1f}" if less > 0 else "none"


def bars(rows: Sequence[Row], device: str) -> list[str]:
    """What the rows say of each bar; eager is the fastest plain PyTorch of the same run, never compiled."""
    said = []
    threads = 2 if device == "cpu" else max((row["threads"] for row in rows), default=1)
    factors = {False: 8, True: 5} if device == "cpu" else {False: 20, True: 20}
    for backward, factor in factors.items():
        for dtype in DTYPES[device]:
            at = {"shape": TRAINING, "threads": threads, "backward": backward, "dtype": dtype}
            found = {x["renderer"]: x for x in alike(at, rows)}
            what = f"forward{' + backward' * backward} at the training shape, {dtype}"
            what += ", 2 threads" if device == "cpu" else ""
            plain = min((found[x] for x in cases.EAGER if x in found), key=lambda x: x["seconds"], default=None)
            if plain is None or FUSED not in found:
                said.append(f"{what}: not measured")
                continue
            ratio = plain["seconds"] / found[FUSED]["seconds"]
            said.append(
                f"{what}: at least {factor} x faster than eager; measured {ratio:.1f} x ({plain['renderer']}): "
                f"{reached(ratio >= factor)}"
            )
            if device == "cpu" and "memory" in plain:
                ours, theirs = found[FUSED]["memory"], plain["memory"]
                whole = found.get(REFERENCE, {}).get("memory")
                said.append(
                    f"{what}: peak memory at most 1/20; measured {part(ours, theirs)} of {plain['renderer']}: "
                    f"{reached(20 * ours <= theirs)}"
                    + (f"; {part(ours, whole)} of {REFERENCE}, whole batches at one go" if whole is not None else "")
                )
    for row in rows if device == "cuda" else ():
        if row["renderer"] == FUSED and row["shape"] in (cases.FRAME, cases.FRAME_OF_COLOURS) and "seconds" in row:
            rate = 1 / row["seconds"]
            what = f"{row['shape']}, 96 samples, {row['dtype']}"
            said.append(f"{what}: at least 200 frames/s; measured {rate:.0f}: {reached(rate >= 200)}")
    return said


def reached(yes: bool) -> str:
    return "reached" if yes else "not reached"


def section(rows: Sequence[Row], inference: Sequence[str], given: argparse.Namespace) -> str:
    """The device's section of the page."""
    device = given.device
    name = torch.cuda.get_device_name() if device == "cuda" else processor()
    clock = "the GPU's events" if device == "cuda" else f"{given.clock} time"
    shapes = [f"- {name}: {SHAPES[name]._asdict()}" for name in dict.fromkeys(row["shape"] for row in rows)]
    lines = [f"## {name}", "", f"torch {torch.__version__}; {clock}, medians of {given.repeats} calls by turns.", ""]
    lines += [HEADER, *(line(row, rows) for row in rows), "", LEGEND.rstrip()]
    if device == "cuda":
        lines.append(f"- {LIGHTPLANE}: {' '.join((lightplane_case.__doc__ or '').split())}")
    lines += ["", "Shapes:", "", *shapes, "", "Bars:", "", *(f"- {bar}" for bar in bars(rows, device)), "", *inference]
    return "\n".join(lines).rstrip() + "\n"


def merged(former: str, new: str) -> str:
    """The page with this section in the place of that with the same heading; GPUs are unmeasured until one is."""
    sections = {text.partition("\n")[0]: text.strip() for text in former.split("\n## ")[1:]}
    sections.pop(UNMEASURED, None)
    heading = new.removeprefix("## ").partition("\n")[0]
    sections[heading] = new.removeprefix("## ").strip()
    if not any("the GPU's events" in text for text in sections.values()):
        sections[UNMEASURED] = f"{UNMEASURED}\n\nNot measured: no GPU."
    return "\n".join([TITLE, *(f"## {text}\n" for text in sections.values())])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--shapes", nargs="*", choices=list(SHAPES))
    parser.add_argument("--threads", nargs="*", type=int, default=[1, 2])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--clock", default="wall", choices=list(cases.CLOCKS))
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--write", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        print(json.dumps(child(given.child)))
        return 0
    if given.device == "cuda" and not cuda.available(torch.device("cuda")):
        print("not measured: no GPU that the fused renderer runs on", file=sys.stderr)
        return 2
    if given.device == "cpu" and library() is None:
        print("not measured: the fused renderer could not be compiled, see above", file=sys.stderr)
        return 2
    if given.profile:
        return render_profile.main(given)
    names = given.shapes or (cases.ON_CPU if given.device == "cpu" else cases.ON_GPU)
    rows = measured(names, given, in_child)
    inference = render_inference.section(given)
    new = section(rows, inference, given)
    print(new)
    if given.write:
        write_atomic(TABLE, merged(TABLE.read_text() if TABLE.exists() else "", new).encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
