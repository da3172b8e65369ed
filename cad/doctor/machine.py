"""The machine: processor, memory, GPUs, and the compilers that the fused renderer is built with."""

import os
import platform
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from cad.doctor.findings import BROKEN, MISSING, Finding, ok

if TYPE_CHECKING:
    from cad.config import Params

DEVICE, COMPILER = "device", "compiler"
SHOWN_FLAGS = {"avx2": "AVX2", "avx512f": "AVX-512", "asimd": "NEON"}  # what vectorised code makes use of
GPU_QUERY = ("--query-gpu=name,memory.total,driver_version", "--format=csv,noheader")


def examine_machine(params: "Params | None") -> list[Finding]:
    """Processor, memory, GPUs, g++ and nvcc; without settings no GPU is needed."""
    gpus = visible_gpus()
    return [processor(), memory(), *examine_gpus(gpus, params), cpp_compiler(), cuda_compiler(bool(gpus))]


def processor() -> Finding:
    """Its name, its vector instructions, and how many threads this process may use."""
    fields = dict(line.split(":", 1) for line in _lines("/proc/cpuinfo") if ":" in line)
    known = {key.strip(): value.strip() for key, value in fields.items()}
    name = known.get("model name") or platform.processor() or platform.machine()
    flags = set(known.get("flags", known.get("Features", "")).split())
    vectors = [shown for flag, shown in SHOWN_FLAGS.items() if flag in flags]
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return ok(DEVICE, "CPU", ", ".join([name, f"{allowed} threads", *vectors]))


def memory() -> Finding:
    """Memory in all, and what is free of it."""
    fields = (line.partition(":") for line in _lines("/proc/meminfo"))
    found = {name: int(rest.split()[0]) / 2**20 for name, _, rest in fields}
    if "MemTotal" in found:
        return ok(DEVICE, "memory", f"{found['MemTotal']:.1f} GiB, {found.get('MemAvailable', 0.0):.1f} GiB available")
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return ok(DEVICE, "memory", f"{total:.1f} GiB")


def visible_gpus() -> list[str]:
    """ "name, memory, driver" of each NVIDIA GPU that the driver shows."""
    if shutil.which("nvidia-smi") is None:
        return []
    listed = subprocess.run(["nvidia-smi", *GPU_QUERY], capture_output=True, text=True, check=False)
    return [line.strip() for line in listed.stdout.splitlines() if line.strip()] if listed.returncode == 0 else []


def examine_gpus(gpus: list[str], params: "Params | None") -> list[Finding]:
    """What the driver shows beside what torch can use; a GPU is needed where `runtime.device` is cuda."""
    import torch

    needed = params is not None and params.runtime.device == "cuda"
    usable = torch.cuda.is_available()
    if not gpus and not usable:
        remedy = "set runtime.device to cpu, or run where there is one" if needed else ""
        return [Finding(DEVICE, "GPU", MISSING, "none; profile mini needs none", remedy, needed)]
    found = []
    for index, gpu in enumerate(gpus or [_as_torch_sees(i) for i in range(torch.cuda.device_count())]):
        if usable:
            found.append(ok(DEVICE, f"GPU {index}", gpu))
        else:
            says = f"{gpu}; torch {torch.__version__} cannot use it"
            remedy = "install a CUDA build of torch that suits the driver, or set runtime.device to cpu"
            found.append(Finding(DEVICE, f"GPU {index}", BROKEN, says, remedy, needed))
    return found


def cpp_compiler() -> Finding:
    """The compiler that the CPU's fused renderer is built with, $CXX or g++; plain PyTorch renders without it."""
    command = shlex.split(os.environ.get("CXX", "")) or ["g++"]
    name = Path(command[0]).name
    if shutil.which(command[0]) is None:
        says = f"{command[0]} is not found; plain PyTorch renders, several times slower"
        return Finding(COMPILER, name, MISSING, says, "install g++ (Debian: apt install g++)", False)
    return _version(name, command, 0)


def cuda_compiler(gpu: bool) -> Finding:
    """The compiler that a GPU's fused renderer is built with, nvcc of $CUDA_HOME or of PATH."""
    from cad.render.build import cuda_compiler as found

    command = found()
    if command is None:
        remedy = "install the CUDA toolkit that suits the driver, or set CUDA_HOME to it" if gpu else ""
        return Finding(COMPILER, "nvcc", MISSING, "not found; only a GPU needs it", remedy, False)
    return _version("nvcc", [command], -2)


def _version(name: str, command: list[str], line: int) -> Finding:
    """What a compiler says of itself; `line` is the one that names its version."""
    try:
        said = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError) as error:
        says = f"{command[0]} does not run ({type(error).__name__})"
        return Finding(COMPILER, name, BROKEN, says, f"install {name} again, or set CXX to another one", False)
    return ok(COMPILER, name, (said[line] if len(said) > abs(line) else " ".join(said)).strip())


def _as_torch_sees(index: int) -> str:
    import torch

    found = torch.cuda.get_device_properties(index)
    return f"{found.name}, {found.total_memory // 2**20} MiB"


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(errors="replace").splitlines()
    except OSError:
        return []
