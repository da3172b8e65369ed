"""`cad.render` and `cad.models` run where there is torch and nothing else, as on a bare GPU machine."""

import importlib.metadata
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
IMPORT_ALL = """
import importlib, pkgutil

for package in ("cad.render", "cad.models"):
    for found in pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}."):
        importlib.import_module(found.name)
"""
RENDER = """
import torch

from cad.camera import focal_length, near_far, orbit_poses
from cad.models.decoder import TriplaneDecoder
from cad.render import reference
from cad.render.choice import use_renderer
from cad.render.image import render_view
from cad.render.inference import prepare

torch.manual_seed(0)
decoder, planes = TriplaneDecoder(8, 16, 3), torch.randn(1, 3, 8, 6, 6)
sampling = reference.Sampling(*near_far(2.0, 0.7), 0.7, 4, 4)
view = orbit_poses(1, 1.1, 0.4).cameras(2.0), focal_length(49.1), 5, sampling, None
for renderer in ("reference", "fused"):
    with use_renderer(renderer):
        render_view(planes.requires_grad_(), decoder, *view)[0].sum().backward()
        with torch.no_grad():
            assert render_view(prepare(planes, decoder), decoder, *view)[0].isfinite().all()
"""


def normal(name):
    return name.lower().replace("_", "-")


def needed(name, installed, found):
    """Names of the distributions that this one needs, itself among them."""
    found.add(name)
    for line in importlib.metadata.requires(name) or []:
        other = normal(re.match(r"[\w.-]+", line).group())
        if "extra ==" not in line and other in installed and other not in found:
            needed(other, installed, found)
    return found


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """A folder of packages that holds what torch needs, and cad."""
    folder = tmp_path_factory.mktemp("bare")
    named = importlib.metadata.packages_distributions()
    wanted = needed("torch", {normal(x) for others in named.values() for x in others}, set())
    for name, others in named.items():
        if wanted & {normal(x) for x in others} and (spec := importlib.util.find_spec(name)):
            place = Path(spec.submodule_search_locations[0] if spec.submodule_search_locations else spec.origin)
            (folder / place.name).symlink_to(place)
    (folder / "cad").symlink_to(ROOT / "cad")
    return folder


def run(code, folder):
    environment = os.environ | {"PYTHONPATH": str(folder)}
    return subprocess.run(
        [sys.executable, "-S", "-c", code], env=environment, cwd=folder, capture_output=True, text=True, check=False
    )


def test_renderer_and_networks_need_torch_alone(bare):
    found = run(IMPORT_ALL + RENDER, bare)
    assert found.returncode == 0, found.stderr


def test_the_check_would_notice_another_package(bare):
    assert "No module named 'pandas'" in run("import pandas", bare).stderr
