"""Where the time of `benchmarks/render.py` goes at the training shape: writes benchmarks/render_profile.md.

Plain PyTorch by torch.profiler. The fused renderer is one operation to it; where Linux' `perf` is there and may look,
its functions are listed too, otherwise the page says why they are not.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from render_cases import FUSED, REFERENCE, SHAPES, TEXELS, TRAINING, Case, processor, step
from torch.profiler import ProfilerActivity, profile

from cad.artifacts import write_atomic

TABLE = Path(__file__).with_suffix(".md")
LINES = 15
PERF = "import sys; sys.path.insert(0, sys.argv[1]); import render_profile; render_profile.spin(int(sys.argv[2]))"


def main(given: argparse.Namespace) -> int:
    """Write the page, or print it where `--no-write` is given."""
    threads = given.threads[-1]
    torch.set_num_threads(threads)
    name = torch.cuda.get_device_name() if given.device == "cuda" else processor()
    lines = ["# Where rendering's time goes", "", "Written by `python benchmarks/render.py --profile`."]
    lines += [f"{TRAINING}, {SHAPES[TRAINING]._asdict()}; {name}, threads: {threads}; torch {torch.__version__}.", ""]
    for renderer in (REFERENCE, TEXELS):
        for backward in (False, True):
            case = Case(SHAPES[TRAINING], backward, given.device, "float32")
            title = f"## {renderer}, {'forward + backward' if backward else 'forward'}"
            lines += [title, "", *table(case, renderer), ""]
    if given.device == "cpu":
        for backward in (False, True):
            title = f"## {FUSED}, {'forward + backward' if backward else 'forward'}"
            lines += [title, "", *functions(backward, threads), ""]
    page = "\n".join(lines)
    print(page)
    if given.write:
        write_atomic(TABLE, page.encode())
    return 0


def table(case: Case, renderer: str) -> list[str]:
    """The operations that take longest by themselves in one call, as a table."""
    call = step(case, renderer)
    call()
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if case.device == "cuda" else [])]
    with profile(activities=kinds, acc_events=True) as found:
        call()
    own = "self_device_time_total" if case.device == "cuda" else "self_cpu_time_total"
    rows = sorted(found.key_averages(), key=lambda row: -getattr(row, own))
    total = sum(getattr(row, own) for row in rows) or 1
    lines = ["| operation | own time [ms] | share | calls |", "|---|---|---|---|"]
    for row in rows[:LINES]:
        spent = getattr(row, own)
        lines.append(f"| `{row.key[:60]}` | {spent / 1000:.1f} | {100 * spent / total:.0f} % | {row.count} |")
    return [*lines, f"| all | {total / 1000:.1f} | 100 % | {sum(row.count for row in rows)} |"]


def spin(backward: int) -> None:
    """Calls for `perf` to look at."""
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    call = step(Case(SHAPES[TRAINING], bool(backward), "cpu", "float32"), FUSED)
    for _ in range(10):
        call()


def functions(backward: bool, threads: int) -> list[str]:
    """The functions of the fused renderer that take longest, as `perf` sees them; or why it is not asked."""
    perf = shutil.which("perf")
    if perf is None:
        return ["Not measured: perf is not installed."]
    with tempfile.TemporaryDirectory() as folder:
        record = [perf, "record", "--freq", "500", "--output", f"{folder}/perf.data", "--", sys.executable, "-c", PERF]
        record += [str(Path(__file__).parent), str(int(backward))]
        settings = os.environ | {"OMP_NUM_THREADS": str(threads)}
        ended = subprocess.run(record, capture_output=True, text=True, env=settings, check=False)
        report = [perf, "report", "--input", f"{folder}/perf.data", "--stdio", "--sort", "dso,symbol"]
        seen = subprocess.run(report, capture_output=True, text=True, check=False)
    if ended.returncode or seen.returncode:
        said = (ended.stderr if ended.returncode else seen.stderr).strip().splitlines() or ["it ended without a word"]
        return [f"Not measured: perf says: {said[0]}"]
    return own_functions(seen.stdout)


def own_functions(report: str) -> list[str]:
    """The renderer's functions in a report of `perf`, by their shares of what the renderer takes."""
    rows = [x.split(maxsplit=2) for x in report.splitlines() if x.strip() and not x.startswith("#")]
    found = [(float(share.rstrip("%")), symbol) for share, library, symbol in rows if library.startswith("render-")]
    total = sum(share for share, _ in found) or 1.0
    names = [" ".join(symbol.split()).removeprefix("[.] ").removesuffix(" - -")[:100] for _, symbol in found]
    lines = [f"| `{name}` | {100 * share / total:.0f} % |" for name, (share, _) in zip(names, found, strict=True)]
    return ["| function | share |", "|---|---|", *lines[:LINES]]
