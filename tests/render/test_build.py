"""Compiling the renderer: two processes at once, no compiler, a compiler that fails."""

import os
import shutil
import stat
import subprocess
import sys

import pytest
import torch

from cad.camera import focal_length, sphere_poses
from cad.errors import UserError
from cad.models.decoder import TriplaneDecoder
from cad.render import build
from cad.render.choice import resolve_renderer, use_renderer
from cad.render.image import render_view
from cad.render.reference import Sampling


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A compiler's cache of the test's own; what other tests have loaded is found again after it."""
    monkeypatch.setenv("CAD_CACHE", str(tmp_path / "cache"))
    fresh = build.library.__wrapped__
    remembered = build.functools.cache(fresh)
    monkeypatch.setattr(build, "library", remembered)
    monkeypatch.setattr("cad.render.call.library", remembered)
    monkeypatch.setattr("cad.render.fused.library", remembered)
    monkeypatch.setattr("cad.render.choice.library", remembered)
    return tmp_path / "cache"


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_two_processes_that_start_at_once_both_get_the_library(cache):
    code = "from cad.render.build import library; assert library().cad_padded"
    command = [sys.executable, "-c", code]
    both = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=dict(os.environ)) for _ in range(2)]
    said = [process.communicate()[1].splitlines() for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert len([line for lines in said for line in lines if "compiling the renderer" in line]) in (1, 2)
    (built,) = cache.iterdir()  # no temporary folder is left
    before = built.stat().st_mtime_ns
    assert build.library() is not None  # a third one compiles nothing
    assert built.stat().st_mtime_ns == before


def test_without_a_compiler_the_reference_renders(cache, monkeypatch, capsys):
    monkeypatch.setenv("CXX", "no-such-compiler")
    draws = torch.Generator().manual_seed(0)
    planes, decoder = torch.randn(1, 3, 4, 4, 4, generator=draws), TriplaneDecoder(4, 8, 3)
    cameras, sampling = sphere_poses(1, draws).cameras(2.0), Sampling(0.8, 3.2, 0.7, 4, 4)
    images = []
    for setting in ("auto", "auto", "reference"):
        with use_renderer(resolve_renderer(setting, planes.device)):
            images.append(render_view(planes, decoder, cameras, focal_length(49.1), 4, sampling, None)[0])
    assert torch.equal(images[0], images[2])
    (line,) = capsys.readouterr().err.splitlines()  # said once, in one line
    assert "no C++ compiler (no-such-compiler)" in line
    assert "plain PyTorch" in line
    assert not cache.exists()


def test_a_compiler_that_fails_is_quoted_in_one_line(cache, tmp_path, monkeypatch, capsys):
    broken = tmp_path / "broken"
    broken.write_text('#!/bin/sh\necho "volume.h:1: error: out of memory" >&2\nexit 1\n')
    broken.chmod(broken.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("CXX", str(broken))
    assert build.library() is None
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2  # that it compiles, and that it failed
    assert "volume.h:1: error: out of memory" in lines[1]
    assert not list(cache.iterdir())


def test_fused_in_vain_is_one_line(cache, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UserError, match=r"^runtime\.renderer: fused is asked for, but it could not be compiled .*; "):
        resolve_renderer("fused", torch.device("cpu"))
    with pytest.raises(UserError, match="but it does not run on mps; "):
        resolve_renderer("fused", torch.device("mps"))


def fake_compiler(folder, script):
    program = folder / "compiler"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return program


def test_a_compiler_is_called_with_its_arguments_and_may_print_anything(cache, tmp_path, monkeypatch, capsys):
    program = fake_compiler(tmp_path, 'echo "$1" > "$0.first"; printf "error: \\377 here\\n" >&2; exit 1')
    monkeypatch.setenv("CXX", f"'{program}' -pipe")
    assert build.library() is None
    assert (tmp_path / "compiler.first").read_text() == "-pipe\n"
    assert "-pipe failed: error: \ufffd here" in capsys.readouterr().err


def test_without_a_home_folder_it_says_what_to_set(cache, monkeypatch, capsys):
    for name in ("CAD_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(build.Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    monkeypatch.setattr(build.shutil, "which", lambda name: name)
    assert build.library() is None
    assert "set CAD_CACHE" in capsys.readouterr().err


def test_what_a_killed_compilation_left_is_removed_but_not_what_runs(cache, tmp_path, monkeypatch):
    old, new = cache / f"{build.BUILDING}old", cache / f"{build.BUILDING}new"
    for folder in (old, new):
        folder.mkdir(parents=True)
    os.utime(old, (0, 0))
    monkeypatch.setenv("CXX", str(fake_compiler(tmp_path, "exit 1")))
    assert build.library() is None
    assert list(cache.iterdir()) == [new]


def test_a_file_that_is_no_library_is_reported(cache, monkeypatch, capsys):
    cache.mkdir()
    monkeypatch.setattr(build, "_key", lambda compiler: "0")
    (cache / "render-0.so").write_text("")
    assert build.library() is None
    assert "render-0.so" in capsys.readouterr().err


def test_the_key_follows_source_flags_and_torch(tmp_path, monkeypatch):
    sources = tmp_path / "csrc"
    shutil.copytree(build.SOURCES, sources)
    keys = {build._key(["g++"])}
    monkeypatch.setattr(build, "SOURCES", sources)
    assert {build._key(["g++"])} == keys
    (sources / "volume.h").write_text("// changed\n")
    keys.add(build._key(["g++"]))
    monkeypatch.setattr(torch, "__version__", "0")
    keys.add(build._key(["g++"]))
    monkeypatch.setattr(build, "_processor", lambda: "another")
    keys.add(build._key(["g++"]))
    assert len(keys) == 4
