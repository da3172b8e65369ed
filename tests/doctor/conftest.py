"""An empty folder for every test of `cad doctor`, a small project in it, and what the tests share."""

import hashlib
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from cad.config import Params, load
from cad.doctor.findings import Finding
from cad.render import build

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
NEEDS_COMPILER = pytest.mark.skipif(build.library() is None, reason="needs a C++ compiler")


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test in an empty folder, without the key and the compiler settings of the person who runs it."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("WANDB_") or name in ("CXX", "CUDA_HOME")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


@pytest.fixture
def params() -> Params:
    return load(ROOT / "params.yaml")


@pytest.fixture
def project(tmp_path: Path, params: Params) -> Params:
    """Weights and inputs as DVC records them, small; returns settings that name them."""
    places = {name: f"data/weights/{name}" for name in ("zero123", "refiner", "controlnet", "depth", "clip")}
    places["lpips"] = "data/lpips.safetensors"
    files = [f"{place}/unet/model.safetensors" for place in places.values() if "." not in place]
    files += ["data/lpips.safetensors", "data/weights/judge/model.safetensors"]
    for number, name in enumerate(files):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        save_file({"x": np.full(3, number, np.float32)}, name)
    for name in ("data/objects/robot/image.png", "data/objects/robot/prompt.txt"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(name)
    listed = [
        {"md5": hashlib.md5(path.read_bytes()).hexdigest(), "relpath": path.relative_to("data").as_posix()}
        for path in sorted(Path("data").rglob("*"))
        if path.is_file()
    ]
    listing = Path("store/files/md5/12/3456.dir")
    listing.parent.mkdir(parents=True)
    listing.write_text(json.dumps(listed))
    Path("data.dvc").write_text("outs:\n- md5: '123456.dir'\n  hash: md5\n  path: data\n")
    Path(".dvc").mkdir()
    Path(".dvc/config").write_text("[core]\n    remote = bundled\n['remote \"bundled\"']\n    url = ../store\n")
    scorers = {"judge": params.evaluate.scorers["toyworld CLIP"].model_copy(update={"model": "data/weights/judge"})}
    return params.model_copy(
        update={
            "models": params.models.model_copy(update=places),
            "objects": {"robot": params.objects["robot"]},
            "evaluate": params.evaluate.model_copy(update={"scorers": scorers}),
        }
    )


def only(findings: list[Finding], name: str) -> Finding:
    (found,) = [finding for finding in findings if finding.name == name]
    return found


def program(folder: Path, name: str, text: str) -> None:
    """A program of its own, written in sh."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(0o755)
