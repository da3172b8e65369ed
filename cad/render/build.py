"""Compiling the renderer for this machine's CPU and GPU, on first use and once per source, compiler and torch."""

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch

SOURCES = Path(__file__).parent / "csrc"
BUILDING = "building-"  # how a folder is called in which a process compiles
LONGEST_BUILD = 3600  # [s] after which such a folder is a killed process's [ours]
FLAGS = (
    *("-O3", "-march=native", "-fno-math-errno", "-std=c++20", "-fPIC", "-shared", "-fopenmp"),
    *("-Wno-ignored-attributes", "-Wno-psabi"),
)
CUDA_FLAGS = ("-O3", "-ftz=true", "-std=c++17", "-Xcompiler", "-fPIC", "-shared", "--threads", "0")
SHARED = ("volume.h", "call.h")  # what the CUDA library has in common with the CPU's, beside the folder of its own


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled renderer; None, after one line on stderr, where it cannot be had."""
    try:
        return ctypes.CDLL(str(_compiled()))
    except OSError as error:
        _say(f"{str(error).splitlines()[0]}; only plain PyTorch can render, which is several times slower")
        return None


@functools.cache
def cuda_library(architecture: str, channels: int, features: int, planes: str) -> ctypes.CDLL | None:
    """The renderer compiled for a GPU; None, after one line on stderr, where it cannot be had.

    architecture: as nvcc calls it (sm_90); channels, features: that a texel and a ray have room for, multiples of 16
    and of 8; planes: type of the texels, float, Half or Bfloat.
    """
    defined = (f"-DCAD_CHANNELS={channels}", f"-DCAD_FEATURES={features}", f"-DCAD_PLANES={planes}")
    try:
        found = ctypes.CDLL(str(_compiled_for_cuda(architecture, defined)))
    except OSError as error:
        _say(f"{str(error).splitlines()[0]}; only plain PyTorch can render on this GPU, which is many times slower")
        return None
    found.cad_fault.restype = ctypes.c_char_p
    found.cad_workspace.restype = ctypes.c_int64
    return found


def cache_folder() -> Path:
    """Where compiled libraries lie: $CAD_CACHE, or cad in the user's cache folder. Raises OSError without either."""
    if own := os.environ.get("CAD_CACHE"):
        return Path(own)
    if shared := os.environ.get("XDG_CACHE_HOME"):
        return Path(shared) / "cad"
    try:
        return Path.home() / ".cache" / "cad"
    except RuntimeError:
        raise OSError("there is no home folder to compile into; set CAD_CACHE") from None


def _compiled() -> Path:
    """Path of the library, compiled if the cache lacks it. Raises OSError that says in its first line what is wrong."""
    compiler = shlex.split(os.environ.get("CXX", "")) or ["g++"]  # with arguments, as make takes it: "ccache g++"
    if shutil.which(compiler[0]) is None:
        raise OSError(f"no C++ compiler ({compiler[0]}) is found")
    torch_folder = Path(torch.__file__).parent
    command = [*compiler, *FLAGS, f"-D_GLIBCXX_USE_CXX11_ABI={int(torch._C._GLIBCXX_USE_CXX11_ABI)}"]
    command += ["-isystem", str(torch_folder / "include"), *map(str, sorted(SOURCES.glob("*.cpp")))]
    libraries = [f"-L{torch_folder / 'lib'}", "-ltorch_cpu", "-lc10"]
    return _built(
        f"render-{_key(compiler)}.so", "this CPU", " ".join(compiler), lambda to: [*command, "-o", str(to), *libraries]
    )


def _compiled_for_cuda(architecture: str, defined: tuple[str, ...]) -> Path:
    """Path of the library for a GPU, as `_compiled`."""
    compiler = cuda_compiler()
    if compiler is None:
        raise OSError("no CUDA compiler (nvcc) is found")
    command = [compiler, *CUDA_FLAGS, f"-arch={architecture}", *defined]
    parts = [*command, _called([compiler, "--version"]).stdout, torch.__version__]
    files = [*(SOURCES / name for name in SHARED), *sorted((SOURCES / "cuda").iterdir())]
    sources = [str(path) for path in files if path.suffix == ".cu"]
    name = f"render-{architecture}-{_digest(parts, files)}.so"
    return _built(name, architecture, "nvcc", lambda to: [*command, *sources, "-o", str(to)])


def cuda_compiler() -> str | None:
    """Path of nvcc: that of $CUDA_HOME, or of PATH; None without either."""
    if home := os.environ.get("CUDA_HOME"):
        return shutil.which(str(Path(home) / "bin" / "nvcc"))
    return shutil.which("nvcc")


def _built(name: str, machine: str, compiler: str, command: Callable[[Path], list[str]]) -> Path:
    """The file of this name in the cache, made by command(path) if it lacks there. Raises OSError as `_compiled` does.

    Each process compiles in a folder of its own and moves the finished file to its place, so that processes which start
    at once do the work twice at worst.
    """
    cache = cache_folder()
    target = cache / name
    if target.exists():
        return target
    _say(f"compiling the renderer for {machine} into {cache} (once, some seconds)")
    cache.mkdir(parents=True, exist_ok=True)
    for left in cache.glob(f"{BUILDING}*"):  # of a process that was killed
        if time.time() - left.stat().st_mtime > LONGEST_BUILD:
            shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix=BUILDING) as folder:
        built = Path(folder) / target.name
        run = _called(command(built))
        if run.returncode:
            said = (run.stderr + run.stdout).splitlines()
            faults = [line for line in said if "error" in line] or [f"exit code {run.returncode}"]
            raise OSError(f"{compiler} failed: {faults[0]}")
        os.replace(built, target)
    return target


def _called(command: list[str]) -> subprocess.CompletedProcess[str]:
    """A compiler's run; what it prints may be in any encoding."""
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", errors="replace", check=False)


def _key(compiler: list[str]) -> str:
    """Digest of all that decides what the compiler writes."""
    version = _called([*compiler, "--version"]).stdout
    files = sorted(path for path in SOURCES.iterdir() if path.is_file())
    return _digest([*compiler, *FLAGS, version, torch.__version__, _processor()], files)


def _digest(parts: Iterable[str], files: Iterable[Path]) -> str:
    digest = hashlib.sha256("\n".join(parts).encode())
    for path in files:
        digest.update(path.name.encode() + b"\n" + path.read_bytes())
    return digest.hexdigest()[:16]


def _processor() -> str:
    """What -march=native looks at: the first processor's model and instruction sets."""
    try:
        lines = Path("/proc/cpuinfo").read_text().partition("\n\n")[0].splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    return "\n".join([platform.machine(), *(line for line in lines if line.startswith(("model", "flags", "Features")))])


def _say(message: str) -> None:
    print(f"cad: {message}", file=sys.stderr, flush=True)
