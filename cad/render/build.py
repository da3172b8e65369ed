"""Compiling the renderer for this machine's CPU, on first use and once per source, compiler and torch."""

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

SOURCES = Path(__file__).parent / "csrc"
FLAGS = (
    *("-O3", "-march=native", "-fno-math-errno", "-std=c++20", "-fPIC", "-shared", "-fopenmp"),
    *("-Wno-ignored-attributes", "-Wno-psabi"),
)


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled renderer; None, after one line on stderr, where it cannot be had."""
    try:
        return ctypes.CDLL(str(_compiled()))
    except OSError as error:
        _say(f"{str(error).splitlines()[0]}; rendering with plain PyTorch instead, which is several times slower")
        return None


def cache_folder() -> Path:
    """Where compiled libraries lie: $CAD_CACHE, or cad in the user's cache folder."""
    own = os.environ.get("CAD_CACHE")
    return Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cad"


def _compiled() -> Path:
    """Path of the library, compiled if the cache lacks it. Raises OSError that says in its first line what is wrong.

    Each process compiles in a folder of its own and moves the finished file to its place, so that processes which start
    at once do the work twice at worst.
    """
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise OSError(f"no C++ compiler ({compiler}) is found")
    cache = cache_folder()
    target = cache / f"render-{_key(compiler)}.so"
    if target.exists():
        return target
    _say(f"compiling the renderer for this CPU into {cache} (once, some seconds)")
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        built = Path(folder) / target.name
        torch_folder = Path(torch.__file__).parent
        command = [compiler, *FLAGS, f"-D_GLIBCXX_USE_CXX11_ABI={int(torch._C._GLIBCXX_USE_CXX11_ABI)}"]
        command += ["-isystem", str(torch_folder / "include"), str(SOURCES / "cpu.cpp"), "-o", str(built)]
        command += [f"-L{torch_folder / 'lib'}", "-ltorch_cpu", "-lc10"]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        if run.returncode:
            faults = [line for line in run.stderr.splitlines() if "error" in line] or [f"exit code {run.returncode}"]
            raise OSError(f"{compiler} failed: {faults[0]}")
        os.replace(built, target)
    return target


def _key(compiler: str) -> str:
    """Digest of all that decides what the compiler writes."""
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False).stdout
    digest = hashlib.sha256("\n".join([*FLAGS, version, torch.__version__, _processor()]).encode())
    for path in sorted(SOURCES.iterdir()):
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
