"""An object from the toyworld: its files, its entry in the experiments, and the refusal of training instances."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from cad.artifacts import read_image
from cad.camera import Poses
from cad.config import CameraSettings
from cad.errors import UserError
from cad.toyworld.objects import write_object
from cad.toyworld.world import HELD_OUT, instance, render_views


def write(folder: Path, camera: CameraSettings, seed: int = HELD_OUT + 6, family: str = "robot") -> None:
    write_object("toy", family, seed, 70.0, camera, 24, folder / "objects", folder / "groups")


def test_picture_prompt_and_entry(tmp_path: Path, camera: CameraSettings) -> None:
    write(tmp_path, camera)
    subject = instance("robot", HELD_OUT + 6)
    angles = torch.tensor([[180.0], [70.0]], dtype=torch.float64).deg2rad()
    view = render_views(subject, Poses(angles[0], angles[1]), camera, 24)
    np.testing.assert_array_equal(read_image(tmp_path / "objects/toy/image.png")[..., :3], view.images[0])
    assert (tmp_path / "objects/toy/prompt.txt").read_text() == f"{subject.captions.specific}\n"
    text = (tmp_path / "groups/toy.yaml").read_text()
    assert text.startswith("# @package _global_\n")
    entry = yaml.safe_load(text)
    assert entry["objects"]["toy"]["toyworld"] == {"family": "robot", "seed": HELD_OUT + 6}
    assert entry["objects"]["toy"]["reference_polar_deg"] == 70.0
    assert entry["inputs"] == {"toy": {"object": "toy"}}
    assert entry["evaluations"] == {"toy": {"orbit": "toy"}}
    assert list(entry["report"]["rows"].values()) == ["toy"]


def test_writing_again_gives_the_same_bytes(tmp_path: Path, camera: CameraSettings) -> None:
    write(tmp_path, camera)
    first = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    write(tmp_path, camera)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == first


def test_the_entry_fits_the_package_settings(tmp_path: Path, camera: CameraSettings) -> None:
    """It has the keys of the committed object beside it."""
    write(tmp_path, camera)
    ours = yaml.safe_load((tmp_path / "groups/toy.yaml").read_text())
    theirs = yaml.safe_load((Path(__file__).parents[2] / "experiments/object/robot.yaml").read_text())
    assert ours.keys() == theirs.keys()
    assert ours["objects"]["toy"].keys() == theirs["objects"]["robot"].keys()


def test_a_training_instance_is_refused(tmp_path: Path, camera: CameraSettings) -> None:
    with pytest.raises(UserError, match="--seed 5: belongs to the training instances; take one from 1000000 on"):
        write(tmp_path, camera, seed=5)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_family_is_refused(tmp_path: Path, camera: CameraSettings) -> None:
    with pytest.raises(UserError, match="'rocket': unknown"):
        write(tmp_path, camera, family="rocket")
    assert list(tmp_path.iterdir()) == []
