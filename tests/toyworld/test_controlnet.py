"""The small depth estimator and the small ControlNet: their truth, their training, and that the refiner reads them."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from standins import model_paths

from cad.artifacts import digest
from cad.config import CameraSettings
from cad.config.refine import ControlNetSettings
from cad.errors import UserError
from cad.prior.controlnet import ControlNetRefiner
from cad.prior.ddim import NoiseStreams
from cad.prior.depth import DepthEstimator
from cad.seeding import generator
from cad.toyworld import train
from cad.toyworld.dataset import Dataset
from cad.toyworld.depth import inverse_depth, train_depth, true_inverse_depth
from cad.toyworld.diffusion import build_refiner, save_refiner
from cad.toyworld.settings import ToyworldSettings

CPU = torch.device("cpu")


def silent(line: str) -> None:
    pass


def test_inverse_depth_ends_where_the_box_does(camera: CameraSettings) -> None:
    """At radius 2 and half a side of 0.7 the box lies between 2 - 0.7 sqrt(3) and 2 + 0.7 sqrt(3)."""
    found = inverse_depth(np.array([0.1, 0.7876, 2.0, 3.2124, np.inf], np.float32), camera)
    assert found.tolist() == pytest.approx([1.2697, 1.2697, 0.5, 0.3113, 0.3113], abs=1e-4)


def test_what_is_nearest_lies_where_the_view_shows_the_object(data: Dataset, camera: CameraSettings) -> None:
    subjects, views = torch.tensor([0, 3]), torch.tensor([1, 2])
    found = true_inverse_depth(data, subjects, views, camera)
    shown = (data.pick(subjects, views) < 0.9).any(1)
    assert found.shape == shown.shape
    assert found[~shown].max() < found[shown].median()


def test_depth_stays_above_the_last_relu(
    data: Dataset, settings: ToyworldSettings, camera: CameraSettings, tmp_path: Path
) -> None:
    """A prediction of 0 gets no gradient any more; the box ends at an inverse depth of 0.311."""
    fit = settings.depth.fit.model_copy(update={"steps": 40})
    chosen = settings.depth.model_copy(update={"fit": fit})
    train_depth(chosen, data, camera, 0, tmp_path / "work", tmp_path / "depth", silent)
    network = DepthEstimator.load(tmp_path / "depth", CPU).network
    with torch.no_grad():
        found = network(data.pick(torch.tensor([0, 3]), torch.tensor([1, 2]))).predicted_depth
    assert 0.2 < found.min() <= found.max() < 1


def test_both_are_trained_and_read_by_the_refiner(
    weights: Path, work: Path, data: Dataset, settings: ToyworldSettings, tmp_path: Path
) -> None:
    home = tmp_path / "weights"
    shutil.copytree(weights, home)
    with pytest.raises(UserError, match="refiner: is missing; run `cad toyworld train refiner` first"):
        train.train("controlnet", settings, work, home, silent)
    save_refiner(build_refiner(settings.refiner, home, 0), home / "refiner")
    for name in ("depth", "controlnet"):
        train.train(name, settings, work, home, silent)
        first = digest(home / name)
        shutil.rmtree(work / name)
        train.train(name, settings, work, home, silent)
        assert digest(home / name) == first
    models = model_paths(refiner=home / "refiner", controlnet=home / "controlnet", depth=home / "depth")
    chosen = ControlNetSettings(strength=0.5, guidance=2.0, steps=4, conditioning_scale=1.0)
    refiner = ControlNetRefiner.load(models, ["a toy robot"], chosen, False, CPU, torch.float32)
    assert any(parameter.any() for name, parameter in refiner.controlnet.named_parameters() if "controlnet_mid" in name)
    images = data.pick(torch.tensor([0, 1]), torch.tensor([0, 1]))
    streams = NoiseStreams([generator("a"), generator("b")], CPU, torch.float32)
    redrawn = refiner.refine(images, ["a toy robot"] * 2, streams)
    assert redrawn.shape == images.shape
    assert torch.isfinite(redrawn).all()
