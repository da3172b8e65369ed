from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cad.artifacts import InputArtifact, digest
from cad.config import CameraSettings, InputSettings, ObjectSettings, TrackingSettings
from cad.context import Context
from cad.errors import UserError
from cad.inputs.prepare import matte, prepare_input, recenter
from cad.tracking import open_tracker

SETTINGS = InputSettings(resolution=64, object_fraction=0.78125, alpha_threshold=127, white_threshold=250, min_side=32)
CAMERA = CameraSettings(fov_deg=49.1, radius=2.0, half_side=0.7, reference_azimuth_deg=180.0)


@pytest.fixture
def context() -> Iterator[Context]:
    with open_tracker(TrackingSettings(mode="disabled", project="cad"), "input", "toy", {}, {}) as tracker:
        yield Context(seed=0, object="toy", device=torch.device("cpu"), tracker=tracker)


@pytest.fixture
def prepare(tmp_path: Path, context):
    """Prepare a picture, given as an array, bytes or nothing, under a prompt; return the opened artefact."""

    def run(picture, prompt: str | bytes | None = "a  toy\nrobot\n", framed: bool = False) -> InputArtifact:
        source = ObjectSettings(
            image=str(tmp_path / "image.png"), prompt=str(tmp_path / "prompt.txt"), reference_polar_deg=70.0,
            framed=framed, toyworld=None,
        )  # fmt: skip
        if isinstance(picture, np.ndarray):
            Image.fromarray(picture).save(tmp_path / "image.png")
        elif picture is not None:
            (tmp_path / "image.png").write_bytes(picture)
        if prompt is not None:
            (tmp_path / "prompt.txt").write_bytes(prompt if isinstance(prompt, bytes) else prompt.encode())
        (tmp_path / "out").mkdir()
        prepare_input(SETTINGS, source, CAMERA, tmp_path / "out", context)
        return InputArtifact.open(tmp_path / "out")

    return run


def on_white(height, width, box, color=(200, 30, 30)):
    picture = np.full((height, width, 3), 255, np.uint8)
    picture[box] = color
    return picture


def bounds(mask):
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return rows[0], rows[-1] + 1, columns[0], columns[-1] + 1


def test_white_background(prepare, tmp_path):
    found = prepare(on_white(200, 300, np.s_[20:120, 200:280]))
    # 100 x 80 shrinks to 50 x 40 and is centred in 64.
    assert bounds(found.mask) == (7, 57, 12, 52)
    assert (found.image[found.mask] == (200, 30, 30)).all()
    assert (found.image[~found.mask] == 255).all()
    assert (found.prompt, found.object) == ("a toy robot", "toy")
    assert (found.reference_azimuth, found.reference_polar) == pytest.approx((np.pi, np.radians(70)))


def test_small_objects_are_never_enlarged(prepare):
    picture = on_white(100, 100, np.s_[3:13, 5:11])
    found = prepare(picture)
    assert bounds(found.mask) == (27, 37, 29, 35)


def test_alpha_wins_over_colour_and_hides_what_lies_under_it(prepare):
    picture = np.zeros((100, 100, 4), np.uint8)  # black, transparent
    picture[40:60, 40:60] = (255, 255, 255, 255)  # a white object
    found = prepare(picture)
    assert bounds(found.mask) == (22, 42, 22, 42)
    assert (found.image == 255).all()


def test_half_transparency_is_composited_once():
    picture = np.zeros((4, 4, 4), np.uint8)
    picture[1:3, 1:3] = (0, 0, 0, 128)
    color, alpha = matte(picture, 127, 250)
    image, opacity = recenter(color, alpha, alpha > 127, 8, 1.0)
    assert image[3, 3].tolist() == [127, 127, 127]
    assert opacity[3, 3] == 128


def test_framed_pictures_stay_as_they_are(prepare):
    picture = on_white(64, 64, np.s_[2:60, 10:20])
    found = prepare(picture, framed=True)
    assert (found.image == picture).all()


def test_framed_pictures_of_another_size_are_resampled(prepare):
    found = prepare(on_white(128, 128, np.s_[4:120, 20:40]), framed=True)
    assert bounds(found.mask) == (2, 60, 10, 20)


def test_gray_and_palette_pictures(prepare, tmp_path):
    gray = np.full((64, 64), 255, np.uint8)
    gray[20:40, 20:40] = 10
    assert bounds(prepare(gray).mask) == (22, 42, 22, 42)


@given(
    height=st.integers(1, 90), width=st.integers(1, 90), top=st.integers(0, 9), left=st.integers(0, 9),
    fraction=st.floats(0.3, 1),
)  # fmt: skip
def test_any_box_is_centred_and_fits(height, width, top, left, fraction):
    mask = np.zeros((100, 100), bool)
    mask[top : top + height, left : left + width] = True
    color = np.where(mask[..., None], np.uint8(40), np.uint8(255)).repeat(3, axis=2)
    image, opacity = recenter(color, mask.astype(np.uint8) * 255, mask, 64, fraction)
    assert image.shape == (64, 64, 3)
    y0, y1, x0, x1 = bounds(opacity > 127)
    assert max(y1 - y0, x1 - x0) <= min(round(64 * fraction), max(height, width))
    assert abs(y0 + y1 - 64) <= 1
    assert abs(x0 + x1 - 64) <= 1


def png_bytes(tmp_path):
    noise = np.random.default_rng(0).integers(0, 200, (80, 80, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "whole.png")
    return (tmp_path / "whole.png").read_bytes()


@pytest.mark.parametrize(
    ("picture", "framed", "message"),
    [
        (None, False, r"image.png: missing"),
        (b"no picture at all", False, r"image.png: damaged or no picture"),
        ("truncated", False, r"image.png: damaged"),
        (on_white(16, 200, np.s_[2:9, 2:9]), False, r"image.png: is 200x16, smaller than input.min_side 32"),
        (on_white(64, 64, np.s_[0:0]), False, r"image.png: shows no object"),
        (np.zeros((64, 64, 4), np.uint8), False, r"image.png: shows no object"),
        (on_white(64, 64, np.s_[:, :]), False, r"image.png: has no background"),
        (on_white(64, 80, np.s_[5:9, 5:9]), True, r"image.png: is not square"),
    ],
    ids=["missing", "garbage", "truncated", "tiny", "white", "transparent", "full", "oblong"],
)
def test_bad_pictures_are_named(prepare, tmp_path, picture, framed, message):
    if isinstance(picture, str):
        picture = png_bytes(tmp_path)[:4000]
    with pytest.raises(UserError, match=message) as fault:
        prepare(picture, framed=framed)
    assert "\n" not in str(fault.value)
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (None, r"prompt.txt: no such prompt file"),
        ("", r"prompt.txt: the prompt is empty"),
        (" \n\t", r"prompt.txt: the prompt is empty"),
        (b"\xff\xfe\x00", r"prompt.txt: cannot be read as UTF-8"),
    ],
)
def test_bad_prompts_are_named(prepare, tmp_path, prompt, message):
    with pytest.raises(UserError, match=message):
        prepare(on_white(64, 64, np.s_[20:40, 20:40]), prompt=prompt)
    assert not list((tmp_path / "out").iterdir())


def test_equal_pictures_give_equal_files(prepare, tmp_path, context):
    prepare(on_white(64, 64, np.s_[20:40, 20:40]))
    first = digest(tmp_path / "out")
    (tmp_path / "out").rename(tmp_path / "before")
    prepare(on_white(64, 64, np.s_[20:40, 20:40]))
    assert digest(tmp_path / "out") == first
