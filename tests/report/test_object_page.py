"""An object's page: one file that holds everything it shows, and nothing where something is missing."""

import base64
import re
from pathlib import Path

import numpy as np
import pytest

from cad.artifacts import InputArtifact, write_image, write_json, write_video
from cad.config import Params
from cad.config.compose import compose
from cad.errors import UserError
from cad.report.object_page import caption, write_page

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


@pytest.fixture
def params() -> Params:
    return compose("mini", ["robot"], EXPERIMENTS)


@pytest.fixture
def runs(tmp_path) -> Path:
    """The files of a run that the page shows."""
    robot = tmp_path / "runs/robot"
    image = np.full((16, 16, 3), 255, np.uint8)
    InputArtifact.write(robot / "input", image, image[..., 0] < 9, "a <b>red</b> robot", "robot", 180.0, 70.0, "0" * 64)
    for k, name in enumerate(("prune/contact", "refine/contact", "stage1/preview", "stage2/preview", "orbit/contact")):
        write_image(robot / f"{name}.png", np.full((4, 4, 3), k, np.uint8))
    write_json(robot / "prune/summary.json", {"schema": 1, "kept": 7, "poses": 9})
    for name in ("2d-seed-0000", "3d-seed-0001"):
        write_video(robot / f"orbit/{name}.mp4", [image, image], 2)
    for stage in ("input", "prior", "prune", "refine", "stage1", "stage2", "orbit"):
        write_json(robot / stage / "lineage.json", {"schema": 1, "stage": stage, "inputs": {}})
    return tmp_path / "runs"


def test_the_page_holds_the_very_files(params, runs, tmp_path):
    page = tmp_path / "pages/robot.html"
    write_page(params, runs, "robot", page)
    text = page.read_text()
    embedded = [base64.b64decode(data) for data in re.findall(r'src="data:[a-z0-9/]+;base64,([^"]+)"', text)]
    shown = [
        "input/image.png", "orbit/3d-seed-0001.mp4", "orbit/2d-seed-0000.mp4", "orbit/contact.png", "prune/contact.png",
        "refine/contact.png", "stage1/preview.png", "stage2/preview.png",
    ]  # fmt: skip
    assert embedded == [(runs / "robot" / name).read_bytes() for name in shown]
    assert text.count("<video") == 2
    assert "a &lt;b&gt;red&lt;/b&gt; robot" in text
    assert "<b>" not in text, "a prompt is text"
    assert "7 of 9 poses kept" in text
    assert "Profile mini" in text
    assert "70°" in text
    assert not re.search(r'(src|href)="(?!data:)', text), "it depends on no other file"


def test_writing_it_again_gives_the_same_bytes(params, runs, tmp_path):
    pages = [tmp_path / name for name in ("a.html", "b.html")]
    for page in pages:
        write_page(params, runs, "robot", page)
    assert pages[0].read_bytes() == pages[1].read_bytes()


@pytest.mark.parametrize(
    "name", ["input/image.png", "prune/summary.json", "prune/contact.png", "stage2/preview.png", "orbit/lineage.json"]
)
def test_a_missing_file_is_named_and_no_page_is_written(params, runs, tmp_path, name):
    (runs / "robot" / name).unlink()
    with pytest.raises(UserError, match=rf"{name}: missing"):
        write_page(params, runs, "robot", tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_an_orbit_without_videos_is_named(params, runs, tmp_path):
    for path in (runs / "robot/orbit").glob("*.mp4"):
        path.unlink()
    with pytest.raises(UserError, match=r"orbit: holds no video; run `dvc repro orbit@robot`"):
        write_page(params, runs, "robot", tmp_path / "page.html")


def test_captions_of_videos():
    assert caption(Path("3d-seed-0012.mp4")) == "3D branch, seed 12"
    assert caption(Path("turn.mp4")) == "turn"
