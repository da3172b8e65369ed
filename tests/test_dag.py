"""dvc.yaml against the table of stages, the settings, and what the stages' code imports."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from cad.code import code_files
from cad.config import TABLES, load
from cad.plugins import record
from cad.stages import STAGES, run_folder

ROOT = Path(__file__).parents[1]
DAG = YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"]
PARAMS = load(ROOT / "params.yaml")
COMMANDS = {
    "input": "input",
    "prior": "prior sample",
    "prune": "prior prune",
    "refine": "prior refine",
    "stage1": "train stage1",
    "stage2": "train stage2",
    "orbit": "orbit",
    "evaluate": "evaluate",
}
# What a stage imports and yet does not compute with: how it is named, logged, wired.
CARRIERS = {"cad/__init__.py", "cad/errors.py", "cad/context.py", "cad/progress.py", "cad/tracking.py"}


def imported(name: str) -> set[str]:
    """Files of `cad` that importing a module runs, now or later: its imports, theirs, and the packages above them."""
    found: set[str] = set()
    inert: set[str] = set()
    waiting = [name]
    while waiting:
        module = waiting.pop()
        base = ROOT / Path(*module.split("."))
        file = base / "__init__.py" if base.is_dir() else base.with_suffix(".py")
        relative = file.relative_to(ROOT).as_posix()
        if relative in found or not file.exists():
            continue
        found.add(relative)
        if "." in module:
            waiting.append(module.rpartition(".")[0])
        tree = ast.parse(file.read_text())
        if relative in CARRIERS or len(tree.body) == 1:  # a package with nothing but a docstring
            inert.add(relative)
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "cad":
                waiting.append(node.module or "")
                waiting += [f"{node.module}.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.Import):
                waiting += [alias.name for alias in node.names if alias.name.split(".")[0] == "cad"]
    return found - inert


def uncovered(files: set[str], deps: list[str]) -> list[str]:
    return sorted(file for file in files if not any(file == dep or file.startswith(f"{dep}/") for dep in deps))


def paths(items: list) -> list[str]:
    return [next(iter(item)) if isinstance(item, dict) else item for item in items]


def test_every_stage_of_the_table_is_in_the_dag_and_no_other() -> None:
    assert set(DAG) == {*STAGES, "report", "plugins"}
    assert set(STAGES) == set(TABLES) == set(COMMANDS)


@pytest.mark.parametrize("stage", STAGES)
def test_stage_runs_over_its_table_reads_its_upstream_and_writes_its_folder(stage: str) -> None:
    table, link = TABLES[stage]
    body = DAG[stage]["do"]
    assert DAG[stage]["foreach"] == f"${{{table}}}"
    assert body["cmd"] == f"cad {COMMANDS[stage]} ${{key}}"
    upstream = f"data/objects/${{item.{link}}}" if link == "object" else f"runs/${{item.{link}}}/{link}"
    assert [dep for dep in body["deps"] if "${" in dep] == [upstream]
    folder = run_folder(stage, "${key}").as_posix()
    assert all(out == folder or out.startswith(f"{folder}/") for out in paths(body["outs"] + body.get("metrics", [])))


@pytest.mark.parametrize("stage", STAGES)
def test_stage_depends_on_its_settings(stage: str) -> None:
    table, link = TABLES[stage]
    wanted = {stage, f"{table}.${{key}}", "camera", "seed", *STAGES[stage].networks}
    wanted |= {"runtime"} if STAGES[stage].renders else {"runtime.threads", "runtime.device"}
    wanted |= {f"models.{field}" for field in STAGES[stage].models}
    if link == "object":
        wanted.add(f"objects.${{item.{link}}}")
    given = DAG[stage]["do"]["params"]
    assert {each for each in given if isinstance(each, str)} == wanted
    plugged = [{"plugins.json": [f"{stage}.${{key}}"]}] if hasattr(type(getattr(PARAMS, stage)), "plugins") else []
    assert [each for each in given if not isinstance(each, str)] == plugged


@pytest.mark.parametrize("stage", STAGES)
def test_stage_depends_on_the_bundled_weights_it_loads(stage: str) -> None:
    named = [getattr(PARAMS.models, field) for field in STAGES[stage].models]
    loaded = [Path(path) for path in named if path is not None]
    loaded += [Path(scorer.model) for scorer in PARAMS.evaluate.scorers.values()] if stage == "evaluate" else []
    deps = [Path(dep) for dep in DAG[stage]["do"]["deps"] if dep.startswith("data/weights")]
    assert all(any(path == dep or dep in path.parents for dep in deps) for path in loaded)
    assert len(deps) == len(loaded)


@pytest.mark.parametrize("stage", STAGES)
def test_stage_depends_on_the_code_it_computes_with(stage: str) -> None:
    assert uncovered(imported(STAGES[stage].function.split(":")[0]), DAG[stage]["do"]["deps"]) == []


@pytest.mark.parametrize("stage", STAGES)
def test_work_in_progress_knows_the_same_code_and_whether_it_renders(stage: str) -> None:
    module = STAGES[stage].function.split(":")[0]
    files = {path.relative_to(ROOT).as_posix() for path in code_files(module)}
    python = {file for file in files if file.endswith(".py")}
    assert imported(module) <= python
    assert all(len(ast.parse((ROOT / file).read_text()).body) == 1 for file in python - imported(module))
    assert STAGES[stage].renders == ("cad/render/csrc/field.h" in files)
    assert uncovered(files - (python - imported(module)), DAG[stage]["do"]["deps"]) == []


def test_the_plugins_stage_watches_their_folder_and_all_entries_that_can_have_them() -> None:
    stages = [stage for stage in TABLES if hasattr(type(getattr(PARAMS, stage)), "plugins")]
    assert set(DAG["plugins"]["params"]) == {name for stage in stages for name in (stage, TABLES[stage][0])}
    assert uncovered(imported("cad.plugins"), DAG["plugins"]["deps"]) == []
    assert "plugins" in DAG["plugins"]["deps"]
    assert json.loads((ROOT / "plugins.json").read_text()) == record(PARAMS), "write it by `cad plugins`"


def test_report_depends_on_its_code_and_imports_no_model() -> None:
    files = imported("cad.report.page")
    assert uncovered(files, DAG["report"]["deps"]) == []
    assert not [file for file in files if file.startswith(("cad/models", "cad/render", "cad/train", "cad/prior"))]


@pytest.mark.parametrize("stage", [*STAGES, "report", "plugins"])
def test_no_dependency_is_stale(stage: str) -> None:
    deps = DAG[stage].get("do", DAG[stage])["deps"]
    assert [dep for dep in deps if dep.startswith("cad") and not (ROOT / dep).exists()] == []


def test_dvc_lists_one_stage_per_entry() -> None:
    dvc = [sys.executable, "-m", "dvc", "stage", "list", "--name-only"]
    listed = subprocess.run(dvc, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    wanted = {f"{stage}@{entry}" for stage, (table, _) in TABLES.items() for entry in getattr(PARAMS, table)}
    assert set(listed) == wanted | {"report", "plugins"}
