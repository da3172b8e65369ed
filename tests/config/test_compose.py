"""Settings that are composed without writing them: the same as Hydra's own, and what is refused."""

from pathlib import Path

import pytest
import yaml

from cad.config import check
from cad.config.compose import compose, composed_text
from cad.errors import UserError

ROOT = Path(__file__).parents[2]
EXPERIMENTS = ROOT / "experiments"


def test_the_text_of_the_default_objects_is_params_yaml() -> None:
    """Which DVC has written."""
    assert composed_text("mini", ["robot", "car"], EXPERIMENTS) == (ROOT / "params.yaml").read_text()


@pytest.mark.parametrize("objects", [["robot"], ["car", "lego"], []])
def test_the_text_holds_the_settings(objects: list[str]) -> None:
    settings = compose("smoke", objects, EXPERIMENTS)
    assert check(yaml.safe_load(composed_text("smoke", objects, EXPERIMENTS)), "smoke") == settings
    assert settings.profile == "smoke"
    assert not objects or list(settings.objects) == objects


def test_without_an_object_it_is_the_profile_s_own() -> None:
    assert compose("mini", [], EXPERIMENTS) == compose("mini", ["robot", "car"], EXPERIMENTS)


@pytest.mark.parametrize(("profile", "objects"), [("nano", []), ("mini", ["teapot"])])
def test_unknown_profiles_and_objects_are_one_line(profile: str, objects: list[str]) -> None:
    for make in (compose, composed_text):
        with pytest.raises(UserError, match=r"no such (profile|object); known: ") as refused:
            make(profile, objects, EXPERIMENTS)
        assert "\n" not in str(refused.value)


def test_settings_that_cannot_be_composed_name_their_file(tmp_path: Path) -> None:
    (tmp_path / "profile").mkdir()
    (tmp_path / "config.yaml").write_text("defaults:\n  - profile: bent\n")
    (tmp_path / "profile/bent.yaml").write_text("# @package _global_\nseed: ${nowhere}\n")
    with pytest.raises(UserError, match=r"bent.yaml: cannot be composed \(.*nowhere.*\); correct it") as refused:
        compose("bent", [], tmp_path)
    assert "\n" not in str(refused.value)
