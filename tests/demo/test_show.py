"""What `cad demo show` renders and says of a packed run."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from cad.artifacts import Checkpoint, digest, write_json
from cad.camera import orbit_poses
from cad.demo.files import file_names, half, open_demo, pack_run
from cad.demo.picture import shaded
from cad.demo.show import ALL, difference, show_demos, views
from cad.errors import UserError
from cad.render.reference import Sampling
from cad.train.load import load_generator

Runs = dict[str, Path]
CPU = torch.device("cpu")


@pytest.fixture
def packed(finished: Runs, tmp_path: Path) -> Path:
    pack_run("mug", finished, tmp_path / "demo/mug")
    return tmp_path / "demo/mug"


def shown(root: Path, out: Path) -> str:
    with open(os.devnull, "w") as nowhere:
        console = Console(width=160, record=True, file=nowhere)
        show_demos(root, [], out, console)
    return console.export_text()


def test_float16_hardly_changes_a_view(packed: Path, finished: Runs) -> None:
    whole, copy = load_generator(finished["stage2"], "stage2", CPU), load_generator(packed / "weights", "stage2", CPU)
    cameras = orbit_poses(4, 1.2, 0.0).cameras(2.0)
    sampling = Sampling(0.7, 3.3, 0.7, 8, 8)
    for branch in ("2d", "3d"):
        first, second = (
            each.render(each.subject(branch, each.w(5, 1.0)), cameras, sampling).image for each in (whole, copy)
        )
        assert first.std() > 0.1, "there is something to see"
        assert 0 < (first - second).abs().mean() / 2 < 1 / 255  # images lie in [-1, 1]


def test_pack_and_show_round_trip(packed: Path, tmp_path: Path) -> None:
    before = {name: (packed / name).read_bytes() for name in file_names(packed)}
    said = shown(packed.parent, tmp_path / "pictures")
    assert "mug: “a mug with a broad handle”" in said
    assert "not of the float16 copy: 8 frames at polar angle 70°, 2 seed(s) per branch" in said
    assert "judge of mugs: transformers, data/weights/judge, weights sha256 0123456789abcdef" in said
    assert "71.25" in said
    assert "the digest of every file is right" in said
    assert "float16 copies" in said
    assert "Seeds 2 to 5, which are new: 32 views" in said
    assert f"Video: {packed / 'videos/3d-seed-0000.mp4'}" in said
    assert f"Look at {tmp_path / 'pictures/mug.png'}" in said
    assert np.asarray(Image.open(tmp_path / "pictures/mug.png")).std() > 10
    assert [path.name for path in (tmp_path / "pictures").iterdir()] == ["mug.png"]
    assert {name: (packed / name).read_bytes() for name in file_names(packed)} == before, "showing changes no data"


def test_packed_seeds_come_back_and_new_ones_are_other_objects(packed: Path) -> None:
    demo = open_demo(packed)
    generator = load_generator(demo.weights, "stage2", CPU)
    again, new = views(demo, generator, 1, ALL), views(demo, generator, 2, ALL)
    assert difference(again.color, demo.row("3d", 1))[0] < 1
    assert difference(again.color, demo.row("3d", 0))[0] > 1
    assert difference(new.color, demo.row("3d", 1))[0] > 1


def rewrite(packed: Path, weights: dict, state: dict) -> None:
    """Put another checkpoint into a packed run, its digests right."""
    Checkpoint.write(packed / "weights", "stage2", weights, state)
    manifest = json.loads((packed / "demo.json").read_text())
    manifest["files"] = {name: digest(packed / name) for name in manifest["files"]}
    write_json(packed / "demo.json", manifest)


def test_weights_that_render_another_object_are_refused(packed: Path, tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(packed / "weights", "stage2")
    groups = {group: checkpoint.tensors(group) for group in checkpoint.groups}
    groups["generator_ema"] = {name: -value for name, value in groups["generator_ema"].items()}
    rewrite(packed, groups, checkpoint.state)
    with pytest.raises(UserError, match=r"weights: renders \d+\.\d grey levels off .* pack a run of this version"):
        shown(packed.parent, tmp_path / "pictures")
    assert not (tmp_path / "pictures").exists()


@pytest.mark.parametrize("change", [{"no_such_setting": 1}, {"w_dim": 16}], ids=["settings", "shapes"])
def test_weights_of_another_version_are_refused_in_one_line(packed: Path, tmp_path: Path, change: dict) -> None:
    checkpoint = Checkpoint.open(packed / "weights", "stage2")
    groups = {group: half(checkpoint.tensors(group), packed) for group in checkpoint.groups}
    checkpoint.state["settings"]["generator"] |= change
    rewrite(packed, groups, checkpoint.state)
    with pytest.raises(UserError, match=r"weights: does not fit this version of the code \(") as refused:
        shown(packed.parent, tmp_path / "pictures")
    assert "\n" not in str(refused.value)


def test_difference_is_in_grey_levels_and_does_not_wrap() -> None:
    a, b = np.full((1, 2, 2, 3), 250, np.uint8), np.full((1, 2, 2, 3), 250, np.uint8)
    b[0, 0, 0] = 4
    assert difference(a, b) == (246 / 4, 246)
    assert difference(b, a) == (246 / 4, 246)


def test_depth_is_dark_where_it_is_near_and_white_where_nothing_is() -> None:
    depth = np.linspace(1.5, 2.5, 200).reshape(1, 1, 200)
    alpha = np.full((1, 1, 200), 255, np.uint8)
    alpha[..., :20] = 0
    grey = shaded(depth, alpha)[0, 0, :, 0].astype(int)
    assert (grey[:20] == 255).all()
    assert grey[20] < 60
    assert 200 < grey[-1] < 255
    assert (np.diff(grey[20:]) >= 0).all()
    assert (shaded(depth, np.zeros_like(alpha)) == 255).all()
