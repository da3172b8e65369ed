"""Taking pictures up: what is written, that Hydra composes the same, what is refused, and that nothing is left then."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from cad.artifacts import digest
from cad.config import TABLES, check, load
from cad.config.compose import composed_text
from cad.errors import UserError
from cad.inputs import objects
from cad.inputs.objects import NewObject, Places, add_object, is_taken_up, name_for
from cad.inputs.settings import load_settings

ROOT = Path(__file__).parents[2]
SETTINGS = load_settings(ROOT / "experiments/inputs.yaml")


@pytest.fixture
def places(tmp_path, monkeypatch) -> Places:
    """A project folder: the committed experiments, and the settings that mini composes."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "experiments", "experiments")
    Path("params.yaml").write_text(composed_text("mini", ["robot", "car"], Path("experiments")))
    return Places(Path("data/objects"), Path("experiments/object"), Path("params.yaml"))


@pytest.fixture(autouse=True)
def torch_as_before():
    """What estimating sets ends with the test."""
    threads = torch.get_num_threads()
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(threads)


@pytest.fixture
def photo(places) -> Path:
    pixels = np.full((80, 60, 3), 255, np.uint8)
    pixels[20:60, 10:50] = (200, 30, 30)
    Image.fromarray(pixels).save("My Chair.png")
    return Path("My Chair.png")


def order(photo: Path, **changes) -> NewObject:
    return replace(NewObject("chair", photo, "  a red\n chair ", 80.0, False, {"kind": "picture"}), **changes)


def snapshot() -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(Path().rglob("*")) if path.is_file()}


def refused(new: NewObject, places: Places, said: str) -> None:
    before = snapshot()
    with pytest.raises(UserError, match=said) as fault:
        add_object(new, places, SETTINGS)
    assert "\n" not in str(fault.value)
    assert snapshot() == before
    assert not list(places.data.glob("*.tmp"))


def test_files_entry_and_tables(places, photo):
    added = add_object(order(photo), places, SETTINGS)
    assert (added.prompt, added.prompt_from, added.polar_deg, added.polar_from) == (
        "a red chair",
        "given",
        80.0,
        "given",
    )
    folder = Path("data/objects/chair")
    assert sorted(path.name for path in folder.iterdir()) == ["image.png", "prompt.txt", "source.json"]
    np.testing.assert_array_equal(np.asarray(Image.open(folder / "image.png")), np.asarray(Image.open(photo)))
    assert (folder / "prompt.txt").read_text() == "a red chair\n"
    source = json.loads((folder / "source.json").read_text())
    assert (source["file"], source["sha256"]) == ("My Chair.png", digest(photo))
    assert (source["background"], source["origin"]) == ({"kind": "white"}, {"kind": "picture"})
    params = load(places.params)
    assert list(params.objects) == ["robot", "car", "chair"]
    found = params.objects["chair"]
    assert (found.reference_polar_deg, found.framed, found.toyworld) == (80.0, False, None)
    for stage, (table, _) in TABLES.items():
        assert "chair" in getattr(params, table), table
        assert params.object_of(stage, "chair") == "chair"
    assert params.report.rows["CAD reproduced, chair"] == "chair"


def test_the_settings_file_is_to_the_byte_what_hydra_composes(places, photo):
    add_object(order(photo), places, SETTINGS)
    assert places.params.read_text() == composed_text("mini", ["robot", "car", "chair"], Path("experiments"))
    text = Path("experiments/object/chair.yaml").read_text()
    assert text.startswith("# @package _global_\n")
    theirs = yaml.safe_load((ROOT / "experiments/object/robot.yaml").read_text())
    assert yaml.safe_load(text).keys() == theirs.keys()


def test_edits_by_hand_and_variants_stay(places, photo):
    values = yaml.safe_load(places.params.read_text())
    values["prior"]["poses"] = 123
    values["stage1s"]["robot-no-ada"] = {"refine": "robot", "ada_enabled": False}
    places.params.write_text(yaml.safe_dump(values, sort_keys=False))
    add_object(order(photo), places, SETTINGS)
    found = load(places.params)
    assert found.prior.poses == 123
    assert found.stage1s["robot-no-ada"] == {"refine": "robot", "ada_enabled": False}


def test_alpha_is_kept(places):
    pixels = np.full((40, 40, 4), (0, 90, 0, 0), np.uint8)
    pixels[10:30, 10:30] = (1, 2, 3, 255)
    Image.fromarray(pixels).save("cut.png")
    add_object(order(Path("cut.png")), places, SETTINGS)
    np.testing.assert_array_equal(np.asarray(Image.open("data/objects/chair/image.png")), pixels)
    assert json.loads(Path("data/objects/chair/source.json").read_text())["background"] == {"kind": "alpha"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"name": "robot"}, r"data/objects/robot|robot.yaml: exists already; choose another --name"),
        ({"picture": Path("none.png")}, r"none.png: missing"),
        ({"prompt": " \n"}, r"--prompt: is empty"),
        ({"polar_deg": 180.0}, r"--polar 180: is no angle"),
        ({"polar_deg": 0.0}, r"--polar 0: is no angle"),
        ({"polar_deg": float("nan")}, r"--polar nan: is no angle"),
        ({"framed": True}, r"My Chair.png: is not square"),
        ({"polar_deg": None}, r"no polar angle can be estimated: .*zero123.*; or give --polar"),
        ({"prompt": None}, r"no caption: .*; or give a prompt with --prompt"),
    ],
)
def test_refusals_leave_nothing(places, photo, changes, said):
    settings = SETTINGS.model_copy(update={"captioner": "data/weights/none"})
    before = snapshot()
    with pytest.raises(UserError, match=said) as fault:
        add_object(order(photo, **changes), places, settings)
    assert "\n" not in str(fault.value)
    assert snapshot() == before


def test_pictures_without_an_object_or_a_known_background_are_refused(places):
    Image.new("RGB", (40, 40), "white").save("white.png")
    refused(order(Path("white.png")), places, r"white.png: shows no object")
    Image.new("RGB", (40, 40), "teal").save("photo.png")
    refused(
        order(Path("photo.png")), places, r"(rembg: is not installed|onnx: is missing).* give a picture with transp"
    )


def test_taken_names_are_refused(places, photo):
    add_object(order(photo), places, SETTINGS)
    refused(order(photo), places, r"data/objects/chair: exists already; choose another --name")
    Path("data/objects/mine").mkdir()
    Path("data/objects/mine/image.png").write_text("by hand")
    refused(order(photo, name="mine"), places, r"data/objects/mine: exists already")
    values = yaml.safe_load(places.params.read_text())
    values["stage1s"]["robot-no-ada"] = {"refine": "robot"}
    places.params.write_text(yaml.safe_dump(values))
    refused(order(photo, name="robot-no-ada"), places, r"stage1s.robot-no-ada: is a variant of another object")


def test_settings_that_are_unsound_are_refused(places, photo):
    places.params.write_text("objects: [")
    refused(order(photo), places, r"params.yaml: line \d+, is no valid YAML")


@pytest.mark.parametrize("fails_at", ["experiments/object/chair.yaml", "params.yaml"])
def test_an_interrupt_leaves_nothing(places, photo, monkeypatch, fails_at):
    write = objects.write_atomic

    def interrupted(path, data):
        if str(path) == fails_at and not cut:
            cut.append(path)
            raise KeyboardInterrupt
        write(path, data)

    cut: list[Path] = []
    before = snapshot()
    monkeypatch.setattr(objects, "write_atomic", interrupted)
    with pytest.raises(KeyboardInterrupt):
        add_object(order(photo), places, SETTINGS)
    assert cut
    assert snapshot() == before


@pytest.mark.parametrize("lost", ["entry", "settings", "both"])
def test_what_a_kill_left_is_taken_up_anew(places, photo, lost):
    before = places.params.read_bytes()
    add_object(order(photo), places, SETTINGS)
    whole = snapshot()
    if lost in ("entry", "both"):
        os.remove("experiments/object/chair.yaml")
    if lost in ("settings", "both"):
        places.params.write_bytes(before)
    assert not is_taken_up("chair", photo, None, places)
    add_object(order(photo), places, SETTINGS)
    assert is_taken_up("chair", photo, "a  red chair", places)
    assert snapshot() == whole


def test_another_picture_under_the_name_is_told(places, photo):
    add_object(order(photo), places, SETTINGS)
    Image.new("RGB", (50, 50), "red").save("other.png")
    with pytest.raises(UserError, match=r"data/objects/chair: is of another picture \(My Chair.png\); choose another"):
        is_taken_up("chair", Path("other.png"), None, places)
    with pytest.raises(UserError, match=r"prompt.txt: is another text than --prompt"):
        is_taken_up("chair", photo, "a blue chair", places)
    with pytest.raises(UserError, match=r"none.png: missing"):
        is_taken_up("chair", Path("none.png"), None, places)


def test_a_case_of_the_paper_waits_for_its_picture_and_brings_its_prompt(places, photo):
    added = add_object(order(photo, name="running-shoes", prompt=None), places, SETTINGS)
    assert (added.prompt, added.prompt_from) == ("running shoes", "the paper's")
    entry = yaml.safe_load(Path("experiments/object/running-shoes.yaml").read_text())
    listed = yaml.safe_load((ROOT / "experiments/object/running-shoes.yaml").read_text())
    assert entry["cases"] == listed["cases"]
    assert entry["objects"]["running-shoes"]["reference_polar_deg"] == 80.0
    refused(order(photo, name="running-shoes"), places, "exists already")


def test_where_no_angle_can_be_determined_one_is_assumed_and_that_is_said(places, photo):
    from standins import RESOLUTION, write_zero123

    values = yaml.safe_load(places.params.read_text())
    values["models"]["zero123"] = str(write_zero123(Path("weights")))
    values["prior"]["steps"] = 1
    values["elevation"] |= {"score": "points", "draws": 1, "min_tracks": 10**6}
    pixels = np.full((RESOLUTION, RESOLUTION, 3), 255, np.uint8)
    pixels[4:12, 4:12] = (200, 30, 30)
    found = objects._polar(order(photo, polar_deg=None), pixels, check(values, "params.yaml"), SETTINGS)
    assert found[0] == SETTINGS.assumed_polar_deg == 75.0
    assert found[1].startswith("assumed, for the estimate is undetermined: ")


@pytest.mark.parametrize(
    ("given", "file", "name"),
    [
        (None, "My Chair (1).JPG", "my-chair-1"),
        (None, "20240101_1200.jpg", "object-20240101_1200"),
        (None, "_x_.png", "x"),
        ("chair-2", "y.png", "chair-2"),
    ],
)
def test_names(given, file, name):
    assert name_for(given, Path(file)) == name


@pytest.mark.parametrize("given", ["", "Chair", "a b", "../up", "a/b", "2", "1_0", "null", "yes", "-x", "a" * 65, "ä"])
def test_bad_names_are_refused(given):
    with pytest.raises(UserError, match=r"^--name .*; give --name of lower-case letters"):
        name_for(given, Path("x.png"))
    with pytest.raises(UserError, match=r"its file name makes no name; give --name"):
        name_for(None, Path("ÄÖ.png"))
