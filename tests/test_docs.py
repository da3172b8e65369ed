"""What the README and the pages of docs/ say exists: commands parse, settings are accepted, paths are there or made."""

import itertools
import pkgutil
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from pages import PAGES, ROOT, Page, known_options, outputs, parse

from cad.config import TABLES, load

PROFILES = ("mini", "smoke", "single-gpu", "paper")
OTHER_SETTINGS = ("experiments/toyworld/params.yaml", "experiments/inputs.yaml")
OBJECTS = ("mine", "boat")  # objects that the pages themselves tell how to make
ENTRIES = ("robot-flat",)  # and entries
# The environment, work in progress, offline tracking, objects' pages, the tuning suite's table, a plug-in's weights.
MADE_BY_USE = (".venv", ".work", "wandb", "reports/pages", "benchmarks/tuning.md", "weights/mine")
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def every(program: str) -> list[Any]:
    """Every call of a program on any page, each a case."""
    calls = [(page.name, words) for page in PAGES for words in page.calls(program)]
    return [pytest.param(words, id=f"{name}: {' '.join(words)}") for name, words in calls]


def composed(*overrides: str) -> dict[str, Any]:
    with initialize_config_dir(str(ROOT / "experiments"), version_base=None):
        return OmegaConf.to_container(compose("config", overrides=list(overrides)), resolve=True)


def merged(base: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    both = {key: merged(base[key], value) for key, value in change.items() if isinstance(base.get(key), dict)}
    return {**base, **change, **both}


def check(tmp_path: Path, values: dict[str, Any]) -> None:
    file = tmp_path / "params.yaml"
    file.write_text(yaml.safe_dump(values))
    load(file)


@cache
def settings() -> list[dict[str, Any]]:
    """All settings that there are: of every profile, of the small models and of what brings pictures in."""
    return [composed(f"profile={name}") for name in PROFILES] + [
        yaml.safe_load((ROOT / name).read_text()) for name in OTHER_SETTINGS
    ]


def is_setting(name: str) -> bool:
    def found(values: Any, parts: list[str]) -> bool:
        return not parts or (isinstance(values, dict) and parts[0] in values and found(values[parts[0]], parts[1:]))

    return any(found(values, name.split(".")) for values in settings())


def test_the_readers_are_not_blind() -> None:
    """Each kind of thing is found on the pages; without, nothing would be checked."""
    found = {program: sum(len(page.calls(program)) for page in PAGES) for program in ("cad", "dvc", "make")}
    assert found["cad"] > 60, found
    assert min(found["dvc"], found["make"]) > 5, found
    assert sum(len(page.dotted()) for page in PAGES) > 60
    assert sum(len(page.paths()) for page in PAGES) > 40
    assert sum(len(page.options()) for page in PAGES) > 8
    assert not [page.name for page in PAGES if any(kind == "" for kind, _ in page.blocks)], "blocks of no language"


@pytest.mark.parametrize("arguments", every("cad"))
def test_a_cad_command_parses(arguments: list[str]) -> None:
    parse(arguments, whole=False)


@pytest.mark.parametrize("words", [line for page in PAGES for line in page.commands[: len(page.shell)] if line])
def test_a_command_of_a_block_is_whole(words: list[str]) -> None:
    """In code blocks, unlike in running text, a command has all its arguments."""
    if words[0] == "cad":
        parse(words[1:], whole=True)


@each_page
def test_options_in_running_text_exist(page: Page) -> None:
    """Those with underscores are of the launchers of other projects."""
    assert {option for option in page.options() if "_" not in option} <= known_options()


@each_page
def test_settings_and_symbols_exist(page: Page) -> None:
    """A name with dots is a setting, something in `cad`, or begins as no section of the settings does."""
    sections = {section for values in settings() for section in values}
    missing = []
    for name in sorted(page.dotted()):
        first = name.partition(".")[0]
        if page.name != "docs/paper-map.md" and first == "cad":  # the map has its own check, which imports nothing
            pkgutil.resolve_name(name)
        elif first in sections and not is_setting(name):
            missing.append(name)
        elif first not in sections and first not in ("cad", "torch", "user"):
            missing.append(f"{name}: neither a setting nor a symbol")
    assert missing == []


@pytest.mark.parametrize("words", every("make"))
def test_a_make_target_exists(words: list[str]) -> None:
    assert re.search(rf"^{words[0]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.parametrize("words", [case for case in every("dvc") if case.values[0][0] == "repro"])
def test_a_reproduced_stage_exists(words: list[str]) -> None:
    params = load(ROOT / "params.yaml")
    for stage, _, entry in (word.partition("@") for word in words[1:]):
        assert stage in TABLES
        assert entry in getattr(params, TABLES[stage][0]) or entry in ENTRIES


@pytest.mark.parametrize("words", [case for case in every("dvc") if "-S" in case.values[0]])
def test_overrides_compose_to_accepted_settings(tmp_path: Path, words: list[str]) -> None:
    chosen = [value for flag, value in itertools.pairwise(words) if flag == "-S"]
    for name in OBJECTS:
        chosen = [re.sub(rf"\b{name}\b", "car", value) if value.startswith("object=") else value for value in chosen]
    chosen = [value.replace("car,car", "car") for value in chosen]
    check(tmp_path, composed(*chosen))


@pytest.mark.parametrize("block", [block for page in PAGES for kind, block in page.blocks if kind == "yaml"])
@pytest.mark.parametrize("profile", ["mini", "paper"])
def test_a_block_of_settings_is_accepted_beside_the_robot(tmp_path: Path, block: str, profile: str) -> None:
    check(tmp_path, merged(composed(f"profile={profile}"), yaml.safe_load(block)))


@pytest.mark.parametrize("words", every("pip"))
def test_an_extra_exists(words: list[str]) -> None:
    extras = re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert re.fullmatch(r"cad\[(\w+)\]", words[-1])[1] in extras


@each_page
def test_paths_exist_or_are_outputs(page: Page) -> None:
    """A part in capitals stands for any name: what is before it exists."""
    made = outputs()
    missing = [link for link in page.links if not (page.folder / link.partition("#")[0]).exists() and link not in made]
    for path in sorted(page.paths()):
        name, parts = path.rstrip("/"), Path(path).parts
        declared = name in made or any(out.startswith(f"{name}/") for out in made)
        example = Path(path).stem in OBJECTS and (ROOT / path).parent.is_dir()
        open_parts = [i for i, part in enumerate(parts) if Path(part).stem.isupper() and not (ROOT / path).exists()]
        placeholder = bool(open_parts) and ROOT.joinpath(*parts[: open_parts[0]]).is_dir()
        if not ((ROOT / path).exists() or declared or example or placeholder or path.startswith(MADE_BY_USE)):
            missing.append(path)
    versioned = (ROOT / "data.dvc").exists() and not (ROOT / "data").exists()
    assert [path for path in missing if not (versioned and path.startswith("data/"))] == []
