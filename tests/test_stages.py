"""The mechanism between the command line and the stage functions, on stand-in stages that compute nothing."""

import json
import os
import shutil
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch

from cad import stages
from cad.artifacts.workspace import work_folder
from cad.config import load
from cad.errors import UserError
from cad.render.choice import renderer
from cad.stages import Stage, run_folder, run_stage

ROOT = Path(__file__).parents[1]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project folder with the object's files, offline, where every stage function notes its arguments."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # restored afterwards, like what the stages set
    threads = torch.get_num_threads()
    text = (ROOT / "params.yaml").read_text().replace("mode: auto", "mode: disabled")
    (tmp_path / "params.yaml").write_text(text)
    for name in ("image.png", "prompt.txt"):
        (tmp_path / "data/objects/robot").mkdir(parents=True, exist_ok=True)
        (tmp_path / "data/objects/robot" / name).write_text(name)
    calls: dict[str, dict[str, Any]] = {}
    module = types.ModuleType("stand_ins")
    table = {}
    for name, stage in stages.STAGES.items():

        def function(name: str = name, **arguments: Any) -> None:
            calls[name] = arguments
            (arguments["out"] / "result").write_text(name)

        setattr(module, name, function)
        fields = {key: getattr(stage, key) for key in ("reads", "models", "source", "networks", "renders")}
        table[name] = Stage(f"stand_ins:{name}", **fields)
    monkeypatch.setitem(sys.modules, "stand_ins", module)
    monkeypatch.setattr(stages, "STAGES", table)
    monkeypatch.setattr(stages, "calls", calls, raising=False)
    yield tmp_path
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(threads)


def run(name: str) -> dict[str, Any]:
    """Run a stage of the robot's and return its lineage."""
    folder = run_stage(name, "robot", Path("params.yaml"))
    assert folder == run_folder(name, "robot") == Path("runs/robot") / name
    return json.loads((folder / "lineage.json").read_text())


def test_every_stage_gets_its_settings_folders_and_context(project: Path) -> None:
    for name in stages.STAGES:
        run(name)
    calls = stages.calls  # type: ignore[attr-defined] # put there by the fixture
    assert set(calls["refine"]) == {
        *("settings", "camera", "models", "input_dir", "prior_dir", "prune_dir", "out", "context")
    }
    assert set(calls["stage1"]) == {"settings", "generator", "discriminator", "camera", "refine_dir", "out", "context"}
    assert set(calls["input"]) == {"settings", "camera", "source", "out", "context"}
    assert calls["prune"]["prior_dir"] == Path("runs/robot/prior")
    context = calls["stage2"]["context"]
    assert (context.seed, context.object, context.device.type) == (0, "robot", "cpu")


def test_lineage_carries_a_change_of_the_prompt_down_to_stages_that_ignore_it(project: Path) -> None:
    names = ["input", "prior", "prune"]
    before = [run(name) for name in names]
    assert [run(name) for name in names] == before
    (project / "data/objects/robot/prompt.txt").write_text("another")
    after = [run(name) for name in names]
    assert all(old["inputs"] != new["inputs"] for old, new in zip(before, after, strict=True))


def test_a_missing_upstream_folder_is_named_and_nothing_is_written(project: Path) -> None:
    with pytest.raises(UserError, match=r"runs/robot/input: is missing; run `dvc repro input@robot` first"):
        run_stage("prior", "robot", Path("params.yaml"))
    assert not (project / "runs").exists()
    assert not (project / ".work").exists()


def test_a_failing_stage_keeps_its_work_and_the_former_output(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run("input")
    shutil.rmtree(project / "runs/robot/input")

    def fail(out: Path, **_: Any) -> None:
        (out / "half").write_text("half")
        raise RuntimeError("killed")

    monkeypatch.setattr(sys.modules["stand_ins"], "input", fail)
    with pytest.raises(RuntimeError, match="killed"):
        run_stage("input", "robot", Path("params.yaml"))
    assert not (project / "runs/robot/input").exists()
    assert len(list((project / ".work").glob("*/half"))) == 1


def rewrite(old: str, new: str) -> None:
    text = Path("params.yaml").read_text()
    assert old in text
    Path("params.yaml").write_text(text.replace(old, new))


def test_a_stage_that_renders_does_so_as_its_setting_says_and_tells(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: dict[str, str] = {}
    for name in stages.STAGES:
        plain = getattr(sys.modules["stand_ins"], name)

        def function(name: str = name, plain: Any = plain, **arguments: Any) -> None:
            used[name] = renderer()
            plain(**arguments)

        monkeypatch.setattr(sys.modules["stand_ins"], name, function)
    rewrite("renderer: auto", "renderer: reference")
    told = {name: run(name) for name in stages.STAGES}
    assert {name for name, lineage in told.items() if lineage.get("renderer") == "reference"} == {
        "stage1", "stage2", "orbit", "evaluate",
    }  # fmt: skip
    assert {lineage["device"] for lineage in told.values()} == {"cpu"}
    rewrite("renderer: reference", "renderer: fused")
    monkeypatch.setattr("cad.render.choice.library", lambda: None)
    for name in ("input", "prune"):
        assert "renderer" not in run(name)
    with pytest.raises(UserError, match=r"runtime\.renderer: fused is asked for, but it could not be compiled"):
        run("stage1")
    monkeypatch.setattr("cad.render.choice.library", lambda: "compiled")
    assert run("stage1")["renderer"] == used["stage1"] == "fused"
    assert used["input"] == renderer() == "reference"


def test_work_is_found_by_settings_code_and_torch_but_hashed_files_know_neither_code_nor_torch(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("input")
    params = load(Path("params.yaml"))

    def work(stage: str) -> str:
        return work_folder(stages.identity(stage, "robot", params)).name

    before, lineage = (work("input"), work("prior")), Path("runs/robot/input/lineage.json").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(stages, "code_digest", lambda module: "changed")
        assert not {work("input"), work("prior")} & set(before)
        run("input")
        assert Path("runs/robot/input/lineage.json").read_bytes() == lineage
    with monkeypatch.context() as patch:
        patch.setattr(stages.importlib.metadata, "version", lambda name: "3.0")
        assert work("input") != before[0]
    rewrite("renderer: auto", "renderer: reference")
    params = load(Path("params.yaml"))
    assert (work("input"), work("prior")) == before, "what does not render does not ask"


def test_an_identity_is_found_without_torch_and_without_a_compiler(project: Path) -> None:
    code = (
        "import sys\nfrom pathlib import Path\nfrom cad.config import load\nfrom cad.stages import identity\n"
        "identity('input', 'robot', load(Path('params.yaml')))\nassert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"CXX": "false"})


def test_a_scorer_s_local_folder_counts_by_its_content(project: Path) -> None:
    """Named as open_clip does; an id at a commit stands for itself."""
    (project / "clip").mkdir()
    found = set()
    for content in ("one", "another"):
        (project / "clip/model.safetensors").write_text(content)
        found.add(stages._digest_or_name(f"local-dir:{project / 'clip'}"))
        assert stages._digest_or_name(str(project / "clip")) in found
    assert len(found) == 2
    assert stages._digest_or_name(f"some/clip@{'0' * 40}") == f"some/clip@{'0' * 40}"


def test_a_gpu_that_is_not_there_is_said(project: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    file = project / "params.yaml"
    file.write_text(file.read_text().replace("device: cpu", "device: cuda"))
    with pytest.raises(UserError, match=r"runtime\.device: cuda is asked for"):
        run_stage("input", "robot", file)
