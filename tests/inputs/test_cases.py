"""The paper's named cases: listed as objects, outside the default, and told where to get where they are run without."""

from pathlib import Path

import pytest
import yaml

from cad.config.compose import compose
from cad.errors import UserError
from cad.stages import require_picture

ROOT = Path(__file__).parents[2]
# Sec. 4.1 and 4.2 name them; the paper gives one prompt.
CASES = {"lego": None, "ficus": None, "running-shoes": "running shoes", "burger": None}


def composed(*objects: str):
    return compose("mini", objects, ROOT / "experiments")


@pytest.mark.parametrize("name", CASES)
def test_a_case_composes_and_says_where_to_get_its_picture(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    params = composed("robot", name)
    assert params.cases[name].prompt == CASES[name]
    assert params.object_of("evaluate", name) == name
    with pytest.raises(
        UserError, match=rf"^data/objects/{name}/image.png: is missing; .*`cad (object add|data import)"
    ):
        require_picture(params, name)
    path = Path(f"data/objects/{name}/image.png")
    path.parent.mkdir(parents=True)
    path.touch()
    require_picture(params, name)


def test_no_case_is_in_the_default():
    default = yaml.safe_load((ROOT / "experiments/config.yaml").read_text())["defaults"][0]["object"]
    assert default == ["robot", "car"]
    assert not set(CASES) & set(yaml.safe_load((ROOT / "params.yaml").read_text())["objects"])


def test_other_objects_are_left_to_their_stage(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    require_picture(composed("robot"), "robot")
    with pytest.raises(UserError, match=r"^objects.chair: there is no such object; known: robot"):
        require_picture(composed("robot"), "chair")
