"""The CUDA kernels compile for each architecture, and no register spills into memory; their cache and its key."""

import functools
import re
import shutil
import subprocess

import pytest

from cad.render import build

NVCC = build.cuda_compiler()
needs_nvcc = pytest.mark.skipif(NVCC is None, reason="needs the CUDA compiler: $CUDA_HOME/bin/nvcc, or nvcc in PATH")


# Kernels, how many variants of each there are, and bytes of local memory that one may have, stack or spilt: none in the
# loops of the forward pass; for its occupancy the compiler may put a few numbers of the backward pass there.
LOCAL_BYTES = {
    "render_kernel": (2, 0),
    "refine_kernel": (2, 0),
    "backward_kernel": (2, 64),
    "sum_kernel": (1, 0),
    "pack_kernel": (1, 0),
    "unpack_kernel": (1, 0),
    "check_kernel": (1, 0),
    "occupancy_kernel": (1, 0),
}


@needs_nvcc
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
@pytest.mark.parametrize(
    ("channels", "features", "planes"), [(32, 32, "float"), pytest.param(32, 8, "Half", marks=pytest.mark.slow)]
)
def test_kernels_compile_and_keep_to_their_registers(tmp_path, architecture, channels, features, planes):
    """The paper's decoder in training, and views of planes of half precision."""
    defined = [f"-DCAD_CHANNELS={channels}", f"-DCAD_FEATURES={features}", f"-DCAD_PLANES={planes}"]
    flags = [flag for flag in build.CUDA_FLAGS if flag not in ("-shared", "--threads", "0")]
    used = {}
    for source in sorted((build.SOURCES / "cuda").glob("*.cu")):
        command = [NVCC, *flags, *defined, f"-arch={architecture}", "-cubin", "-Xptxas", "-v", str(source)]
        run = subprocess.run(
            [*command, "-o", str(tmp_path / "kernels.cubin")], capture_output=True, text=True, check=False
        )
        assert run.returncode == 0, run.stderr
        assert "warning" not in run.stderr
        said = re.findall(
            r"entry function '(\S+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads.*?"
            r"Used (\d+) registers",
            run.stderr,
            re.DOTALL,
        )
        used |= {name: [int(number) for number in numbers] for name, *numbers in said}
    for kernel, (count, most) in LOCAL_BYTES.items():
        found = [numbers for name, numbers in used.items() if f"{len(kernel)}{kernel}" in name]
        assert len(found) == count, kernel
        assert all(max(local) <= most for *local, _ in found), (kernel, found)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache of the test's own, and nothing that is remembered of another."""
    monkeypatch.setenv("CAD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(build, "cuda_library", functools.cache(build.cuda_library.__wrapped__))
    return tmp_path / "cache"


def fake_nvcc(folder, script):
    """A CUDA_HOME whose compiler runs this script; $out is the file that it is to write."""
    program = folder / "toolkit" / "bin" / "nvcc"
    program.parent.mkdir(parents=True)
    find = 'for word; do test "$last" = -o && out=$word; last=$word; done'
    program.write_text(f'#!/bin/sh\ntest "$1" = --version && {{ echo release 13.0; exit; }}\n{find}\n{script}\n')
    program.chmod(0o755)
    return program.parents[1]


@needs_nvcc
@pytest.mark.slow
def test_the_library_is_compiled_once_and_loads_without_a_gpu(cache, capsys):
    found = build.cuda_library("sm_90", 16, 8, "float")
    assert found is not None
    assert found.cad_fault(2) == b"out of memory"
    assert "compiling the renderer for sm_90 into" in capsys.readouterr().err
    (built,) = cache.iterdir()
    before = built.stat().st_mtime_ns
    build.cuda_library.cache_clear()
    assert build.cuda_library("sm_90", 16, 8, "float") is not None
    assert built.stat().st_mtime_ns == before
    assert capsys.readouterr().err == ""


def test_without_nvcc_it_is_said_in_one_line(cache, monkeypatch, capsys):
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert build.cuda_library("sm_90", 16, 8, "float") is None
    assert build.cuda_library("sm_90", 16, 8, "float") is None
    (line,) = capsys.readouterr().err.splitlines()
    assert "no CUDA compiler (nvcc) is found" in line
    assert "plain PyTorch" in line
    assert not cache.exists()


def test_cuda_home_comes_first_and_a_compiler_that_fails_is_quoted(cache, tmp_path, monkeypatch, capsys):
    home = fake_nvcc(tmp_path, 'echo "$@" >"$CUDA_HOME/given"; echo "volume.h(1): error: unsupported" >&2; exit 1')
    monkeypatch.setenv("CUDA_HOME", str(home))
    assert build.cuda_library("sm_80", 48, 8, "Bfloat") is None
    given = (home / "given").read_text().split()
    assert {"-arch=sm_80", "-DCAD_CHANNELS=48", "-DCAD_FEATURES=8", "-DCAD_PLANES=Bfloat"} <= set(given)
    assert "nvcc failed: volume.h(1): error: unsupported" in capsys.readouterr().err
    assert not list(cache.iterdir())
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "nowhere"))
    assert build.cuda_compiler() is None


def test_the_key_follows_source_sizes_and_versions_and_each_library_its_own_source(cache, tmp_path, monkeypatch):
    g = shutil.which("g++")
    if g is None:
        pytest.skip("needs a C++ compiler")
    sources = tmp_path / "csrc"
    shutil.copytree(build.SOURCES, sources)
    monkeypatch.setattr(build, "SOURCES", sources)
    monkeypatch.setenv("CUDA_HOME", str(fake_nvcc(tmp_path, f'echo "int cad;" | {g} -x c++ - -shared -fPIC -o "$out"')))
    names = []

    def key(*given):
        names.append(build._compiled_for_cuda(*given).name)
        return names[-1]

    sizes = ("-DCAD_CHANNELS=16",)
    key("sm_80", sizes)
    assert key("sm_80", sizes) == names[0]
    key("sm_90", sizes)
    key("sm_80", ("-DCAD_CHANNELS=32",))
    plain = build._key(["g++"])
    (sources / "cuda" / "forward.cu").write_text("// changed\n")
    assert build._key(["g++"]) == plain  # the CPU's library stays
    key("sm_80", sizes)
    (sources / "forward.cpp").write_text("// changed\n")
    assert build._key(["g++"]) != plain
    assert key("sm_80", sizes) == names[-2]  # the GPU's stays
    (sources / "volume.h").write_text("// changed\n")
    key("sm_80", sizes)
    monkeypatch.setattr(build.torch, "__version__", "0")
    key("sm_80", sizes)
    assert len(set(names)) == len(names) - 2
    assert {path.name for path in cache.iterdir()} == set(names)
