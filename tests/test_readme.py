"""What the README says exists: its commands parse, its settings are accepted, its paths are there or are made."""

import itertools
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from ruamel.yaml import YAML

from cad.cli.main import app
from cad.config import TABLES, load

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
PROSE = re.sub(r"^```.*?^```$", "", TEXT, flags=re.MULTILINE | re.DOTALL)
SPANS = re.findall(r"`([^`]+)`", PROSE)
LINES = [line for kind, block in BLOCKS if kind == "sh" for line in block.splitlines()]
# Whole commands, of blocks and of running text; `...` marks what is only named.
COMMANDS = [shlex.split(text, comments=True) for text in LINES + [span for span in SPANS if "..." not in span]]
DAG = YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"]
MADE_BY_USE = (".venv", ".work", "wandb")  # git-ignored: the environment, work in progress, offline tracking
EXAMPLES = ("mine", "boat")  # objects that the README itself tells how to make


def commands(program: str) -> list[list[str]]:
    """Arguments of every call of a program; of `cad`, those that name more than a group."""
    return [words[1:] for words in COMMANDS if words[0] == program and len(words) > 1]


def outputs() -> list[str]:
    """Outputs of dvc.yaml, the entry's name written as the README writes it."""
    stages = [body.get("do", body) for body in DAG.values()]
    outs = [out for stage in stages for out in [*stage["outs"], *stage.get("metrics", [])]]
    return [(next(iter(out)) if isinstance(out, dict) else out).replace("${key}", "ENTRY") for out in outs]


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


def test_the_first_line_says_what_this_is_and_links_the_paper() -> None:
    first = TEXT.splitlines()[0]
    assert "unofficial reproduction" in first
    assert "](https://arxiv.org/abs/2312.06663)" in first


def test_the_readers_are_not_blind() -> None:
    assert len(commands("cad")) > 10
    assert len(commands("dvc")) > 5
    assert len(commands("make")) > 5


@pytest.mark.parametrize("arguments", commands("cad"), ids=" ".join)
def test_a_cad_command_parses(arguments: list[str]) -> None:
    command, path, rest = typer.main.get_command(app), [], list(arguments)
    while hasattr(command, "commands"):
        assert rest, f"cad {' '.join(arguments)} names a group"
        path.append(rest.pop(0))
        known = command.commands
        assert path[-1] in known, f"cad {' '.join(path)}"
        command = known[path[-1]]
        if not rest and hasattr(command, "commands"):
            return  # a group by its name alone
        if not rest and any(each.required for each in command.params):
            return  # a command by its name alone, in running text
    command.make_context(path[-1], rest)  # an unknown option, a missing or superfluous argument ends in an exception


def test_commands_of_blocks_are_whole() -> None:
    """In code blocks, unlike in running text, a command has all its arguments."""
    for words in (shlex.split(line, comments=True) for line in LINES):
        if words and words[0] == "cad":
            command, rest = typer.main.get_command(app), words[1:]
            while hasattr(command, "commands"):
                command = command.commands[rest.pop(0)]
            command.make_context("cad", rest)


@pytest.mark.parametrize("target", sorted({words[0] for words in commands("make")}))
def test_a_make_target_exists(target: str) -> None:
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.parametrize("words", [words for words in commands("dvc") if words[0] == "repro"], ids=" ".join)
def test_a_reproduced_stage_exists(words: list[str]) -> None:
    params = load(ROOT / "params.yaml")
    for stage, _, entry in (word.partition("@") for word in words[1:]):
        assert stage in TABLES
        assert entry in getattr(params, TABLES[stage][0])


@pytest.mark.parametrize("words", [words for words in COMMANDS if "-S" in words], ids=" ".join)
def test_overrides_compose_to_accepted_settings(tmp_path: Path, words: list[str]) -> None:
    chosen = [value for flag, value in itertools.pairwise(words) if flag == "-S"]
    for name in EXAMPLES:
        chosen = [re.sub(rf"\b{name}\b", "car", value) if value.startswith("object=") else value for value in chosen]
    chosen = [value.replace("car,car", "car") for value in chosen]
    check(tmp_path, composed(*chosen))


@pytest.mark.parametrize("block", [block for kind, block in BLOCKS if kind == "yaml"])
@pytest.mark.parametrize("profile", ["mini", "paper"])
def test_a_block_of_settings_is_accepted_beside_the_robot(tmp_path: Path, block: str, profile: str) -> None:
    check(tmp_path, merged(composed(f"profile={profile}"), yaml.safe_load(block)))


def test_paths_exist_or_are_outputs() -> None:
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", PROSE) if "://" not in link]
    spans = [span for span in SPANS if re.fullmatch(r"[\w.@-]*(/[\w.@-]+)+/?|[\w.@-]+/", span)]
    assert len(links) > 5
    assert len(spans) > 20
    made = outputs()
    missing = []
    for path in sorted({*links, *spans}):
        name, parts = path.rstrip("/"), Path(path).parts
        declared = name in made or any(out.startswith(f"{name}/") for out in made)
        versioned = parts[0] == "data" and (ROOT / "data.dvc").exists() and not (ROOT / "data").exists()
        example = Path(path).stem in EXAMPLES and (ROOT / path).parent.is_dir()
        placeholder = path == "runs/ENTRY/STAGE/"
        if not ((ROOT / path).exists() or declared or versioned or example or placeholder or parts[0] in MADE_BY_USE):
            missing.append(path)
    assert missing == []


def test_every_stage_of_the_dag_has_its_folder_in_the_table() -> None:
    rows = re.findall(r"^\| (\w+) \| `(cad [^`]+)` \| `([^`]+)` \|", TEXT, re.MULTILINE)
    assert {name for name, _, _ in rows} == set(DAG)
    for name, command, folder in rows:
        body = DAG[name].get("do", DAG[name])
        assert command == body["cmd"].replace("${key}", "ENTRY")
        assert all(out.startswith(folder.rstrip("/")) for out in outputs() if f"/{name}" in out)


def test_it_can_be_read_in_one_sitting() -> None:
    assert len(TEXT.splitlines()) <= 210
