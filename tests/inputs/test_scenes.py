"""One view of a scene, in Synthetic-NeRF's and Synthetic-NSVF's own layouts, written small."""

import json

import numpy as np
import pytest
from PIL import Image

from cad.errors import UserError
from cad.inputs.scenes import find_view

POSE = [[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 4.0], [0, 0, 0, 1]]


def save(path, level):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8, 4), level, np.uint8)).save(path)


@pytest.fixture
def nerf(tmp_path):
    """Two scenes with three training views and two test views, listed in an order that is not the names'."""
    for scene in ("lego", "ficus"):
        for split, count in (("train", 3), ("test", 2)):
            names = [f"./{split}/r_{k}" for k in reversed(range(count))]
            for k, name in enumerate(names):
                save(tmp_path / "nerf" / scene / f"{name}.png", 10 * k)
            frames = [{"file_path": name, "rotation": 0.01, "transform_matrix": POSE} for name in names]
            content = {"camera_angle_x": 0.69, "frames": frames}
            (tmp_path / "nerf" / scene / f"transforms_{split}.json").write_text(json.dumps(content))
    return tmp_path / "nerf"


@pytest.fixture
def nsvf(tmp_path):
    for name in ("0_0000", "0_0001", "1_0000", "2_0000"):
        save(tmp_path / "nsvf/Wineholder/rgb" / f"{name}.png", 5)
        pose = tmp_path / "nsvf/Wineholder/pose" / f"{name}.txt"
        pose.parent.mkdir(exist_ok=True)
        pose.write_text("\n".join(" ".join(map(str, line)) for line in POSE))
    return tmp_path / "nsvf"


def test_a_frame_of_synthetic_nerf_is_found_in_the_order_of_its_file(nerf):
    view = find_view("nerf-synthetic", nerf, "lego", "train", 0)
    assert view.picture == nerf / "lego/train/r_2.png"
    assert view.record == {
        "dataset": "nerf-synthetic", "scene": "lego", "split": "train", "frame": 0, "picture": "train/r_2.png",
        "pose": "ignored",
    }  # fmt: skip
    assert find_view("nerf-synthetic", nerf, "ficus", "test", 1).picture == nerf / "ficus/test/r_0.png"
    assert find_view("nerf-synthetic", nerf / "lego", "lego", "train", 2).picture.samefile(nerf / "lego/train/r_0.png")


def test_a_frame_of_synthetic_nsvf_is_found_by_its_prefix(nsvf):
    assert find_view("nsvf", nsvf, "Wineholder", "train", 1).picture == nsvf / "Wineholder/rgb/0_0001.png"
    view = find_view("nsvf", nsvf, "Wineholder", "test", 0)
    assert (view.picture.name, view.record["pose"]) == ("2_0000.png", "ignored")


def test_poses_are_not_read(nerf, nsvf):
    path = nerf / "lego/transforms_train.json"
    content = json.loads(path.read_text())
    for frame in content["frames"]:
        frame["transform_matrix"] = "nonsense"
    path.write_text(json.dumps(content))
    assert find_view("nerf-synthetic", nerf, "lego", "train", 0).picture.is_file()
    for pose in (nsvf / "Wineholder/pose").iterdir():
        pose.write_bytes(b"\xff")
    assert find_view("nsvf", nsvf, "Wineholder", "train", 0).picture.is_file()


@pytest.mark.parametrize(
    ("scene", "split", "frame", "said"),
    [
        ("drums", "train", 0, r"drums: no such scene; there are: ficus, lego$"),
        ("../nerf", "train", 0, r"--scene ../nerf: is no name of a scene"),
        ("lego", "train", 3, r"--frame 3: lego has 3 train views; give one from 0 to 2$"),
        ("lego", "train", -1, r"--frame -1: lego has 3 train views"),
        ("lego", "val", 0, r"transforms_val.json: missing; a scene of Synthetic-NeRF has it, is this one of nsvf\?"),
    ],
)
def test_what_is_not_there_is_named(nerf, scene, split, frame, said):
    with pytest.raises(UserError, match=said):
        find_view("nerf-synthetic", nerf, scene, split, frame)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"frames": 3}', '{"frames": [3]}', '{"frames": [{}]}', "\xff"])
def test_a_broken_transforms_file_is_named(nerf, text):
    (nerf / "lego/transforms_train.json").write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match=r"transforms_train.json: is no transforms file of Synthetic-NeRF"):
        find_view("nerf-synthetic", nerf, "lego", "train", 0)


def test_a_transforms_file_cannot_name_files_elsewhere(nerf):
    save(nerf / "secret.png", 1)
    for name in ("../secret", str(nerf / "secret")):
        content = {"frames": [{"file_path": name}]}
        (nerf / "lego/transforms_train.json").write_text(json.dumps(content))
        with pytest.raises(UserError, match="which lies outside of"):
            find_view("nerf-synthetic", nerf, "lego", "train", 0)
    (nerf / "lego/transforms_train.json").write_text(json.dumps({"frames": [{"file_path": 3}]}))
    with pytest.raises(UserError, match="names a picture by 3"):
        find_view("nerf-synthetic", nerf, "lego", "train", 0)


def test_the_other_layout_is_suggested(nerf, nsvf):
    with pytest.raises(UserError, match="rgb: missing; a scene of Synthetic-NSVF has it, is this one of nerf-synthe"):
        find_view("nsvf", nerf, "lego", "train", 0)
    with pytest.raises(UserError, match="is this one of nsvf"):
        find_view("nerf-synthetic", nsvf, "Wineholder", "train", 0)
    for path in (nsvf / "Wineholder/rgb").glob("1_*"):
        path.unlink()
    with pytest.raises(UserError, match=r"holds no 1_\*.png, the val views"):
        find_view("nsvf", nsvf, "Wineholder", "val", 0)
