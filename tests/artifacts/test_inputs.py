import math

import numpy as np
import pytest

from cad.artifacts import InputArtifact, digest, read_json, write_image, write_json
from cad.errors import UserError


def write(folder) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    image, mask = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8), rng.random((8, 8)) < 0.5
    InputArtifact.write(folder, image, mask, "a toy robot", "robot", 180.0, 70.0, "abc")
    return image, mask


def test_it_comes_back_with_angles_in_radians(tmp_path):
    image, mask = write(tmp_path)
    read = InputArtifact.open(tmp_path)
    np.testing.assert_array_equal(read.image, image)
    np.testing.assert_array_equal(read.mask, mask)
    assert read.mask.dtype == bool
    assert (read.prompt, read.object) == ("a toy robot", "robot")
    assert read.reference_azimuth == pytest.approx(math.pi)
    assert read.reference_polar == pytest.approx(70 * math.pi / 180)


def test_equal_inputs_are_equal_bytes(tmp_path):
    write(tmp_path / "a")
    write(tmp_path / "b")
    assert digest(tmp_path / "a") == digest(tmp_path / "b")


def change(folder, **values) -> None:
    write_json(folder / "input.json", {**read_json(folder / "input.json"), **values})


def repaint(folder, name, pixels) -> None:
    write_image(folder / name, pixels)
    change(folder, files={**read_json(folder / "input.json")["files"], name: digest(folder / name)})


BROKEN = {
    "no json": (lambda f: (f / "input.json").unlink(), "input.json", "missing"),
    "schema": (lambda f: change(f, schema=9), "input.json", "schema version 9"),
    "prompt": (lambda f: change(f, prompt="  "), "input.json", "'prompt' is empty"),
    "object": (lambda f: change(f, object=3), "input.json", "'object'"),
    "angle": (lambda f: change(f, reference_polar_deg="70"), "input.json", "'reference_polar_deg' is '70'"),
    "no digests": (lambda f: change(f, files=None), "image.png", "digest"),
    "no image": (lambda f: (f / "image.png").unlink(), "image.png", "missing"),
    "image changed": (lambda f: write_image(f / "image.png", np.zeros((8, 8, 3), np.uint8)), "image.png", "digest"),
    "image gray": (lambda f: repaint(f, "image.png", np.zeros((8, 8), np.uint8)), "image.png", "uint8 (8, 8)"),
    "image oblong": (lambda f: repaint(f, "image.png", np.zeros((8, 9, 3), np.uint8)), "image.png", "square"),
    "mask size": (lambda f: repaint(f, "mask.png", np.zeros((4, 4), np.uint8)), "mask.png", "(4, 4)"),
    "mask depth": (lambda f: repaint(f, "mask.png", np.zeros((8, 8), np.uint16)), "mask.png", "uint16"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_input_is_one_line(tmp_path, case):
    damage, file, fault = BROKEN[case]
    write(tmp_path)
    damage(tmp_path)
    with pytest.raises(UserError) as error:
        InputArtifact.open(tmp_path)
    assert str(tmp_path / file) in str(error.value)
    assert fault in str(error.value)
    assert ";" in str(error.value)
    assert "\n" not in str(error.value)
