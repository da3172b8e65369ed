"""Compiling the renderer for this machine's CPU, on first use and once per source, compiler and torch."""

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
from pathlib import Path

import torch

SOURCES = Path(__file__).parent / "csrc"
BUILDING = "building-"  # how a folder is called in which a process compiles
LONGEST_BUILD = 3600  # [s] after which such a folder is a killed process's [ours]
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
        _say(f"{str(error).splitlines()[0]}; only plain PyTorch can render, which is several times slower")
        return None


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
    """Path of the library, compiled if the cache lacks it. Raises OSError that says in its first line what is wrong.

    Each process compiles in a folder of its own and moves the finished file to its place, so that processes which start
    at once do the work twice at worst.
    """
    compiler = shlex.split(os.environ.get("CXX", "")) or ["g++"]  # with arguments, as make takes it: "ccache g++"
    if shutil.which(compiler[0]) is None:
        raise OSError(f"no C++ compiler ({compiler[0]}) is found")
    cache = cache_folder()
    target = cache / f"render-{_key(compiler)}.so"
    if target.exists():
        return target
    _say(f"compiling the renderer for this CPU into {cache} (once, some seconds)")
    cache.mkdir(parents=True, exist_ok=True)
    for left in cache.glob(f"{BUILDING}*"):  # of a process that was killed
        if time.time() - left.stat().st_mtime > LONGEST_BUILD:
            shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix=BUILDING) as folder:
        built = Path(folder) / target.name
        torch_folder = Path(torch.__file__).parent
        command = [*compiler, *FLAGS, f"-D_GLIBCXX_USE_CXX11_ABI={int(torch._C._GLIBCXX_USE_CXX11_ABI)}"]
        command += ["-isystem", str(torch_folder / "include"), *map(str, sorted(SOURCES.glob("*.cpp")))]
        command += ["-o", str(built)]
        command += [f"-L{torch_folder / 'lib'}", "-ltorch_cpu", "-lc10"]
        run = _called(command)
        if run.returncode:
            faults = [line for line in run.stderr.splitlines() if "error" in line] or [f"exit code {run.returncode}"]
            raise OSError(f"{' '.join(compiler)} failed: {faults[0]}")
        os.replace(built, target)
    return target


def _called(command: list[str]) -> subprocess.CompletedProcess[str]:
    """A compiler's run; what it prints may be in any encoding."""
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", errors="replace", check=False)


def _key(compiler: list[str]) -> str:
    """Digest of all that decides what the compiler writes."""
    version = _called([*compiler, "--version"]).stdout
    digest = hashlib.sha256("\n".join([*compiler, *FLAGS, version, torch.__version__, _processor()]).encode())
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
