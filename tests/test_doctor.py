"""What `cad doctor` says of conditions that are made for real: programs off PATH, files that are gone or damaged."""

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from cad.config import Params, load
from cad.doctor import data, machine, renderer, report, services, software
from cad.doctor.findings import BROKEN, MISSING, OK, UNKNOWN, Finding
from cad.errors import UserError
from cad.render import build, fused

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
NEEDS_COMPILER = pytest.mark.skipif(build.library() is None, reason="needs a C++ compiler")


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test in an empty folder, without the key and the compiler settings of the person who runs it."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("WANDB_") or name in ("CXX", "CUDA_HOME")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


@pytest.fixture
def params() -> Params:
    return load(ROOT / "params.yaml")


@pytest.fixture
def project(tmp_path: Path, params: Params) -> Params:
    """Weights and inputs as DVC records them, small; returns settings that name them."""
    places = {name: f"data/weights/{name}" for name in ("zero123", "refiner", "clip")}
    places["lpips"] = "data/lpips.safetensors"
    files = [f"{place}/unet/model.safetensors" for place in places.values() if "." not in place]
    files += ["data/lpips.safetensors", "data/weights/judge/model.safetensors"]
    for number, name in enumerate(files):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        save_file({"x": np.full(3, number, np.float32)}, name)
    for name in ("data/objects/robot/image.png", "data/objects/robot/prompt.txt"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(name)
    listed = [
        {"md5": hashlib.md5(path.read_bytes()).hexdigest(), "relpath": path.relative_to("data").as_posix()}
        for path in sorted(Path("data").rglob("*"))
        if path.is_file()
    ]
    listing = Path("store/files/md5/12/3456.dir")
    listing.parent.mkdir(parents=True)
    listing.write_text(json.dumps(listed))
    Path("data.dvc").write_text("outs:\n- md5: '123456.dir'\n  hash: md5\n  path: data\n")
    Path(".dvc").mkdir()
    Path(".dvc/config").write_text("[core]\n    remote = bundled\n['remote \"bundled\"']\n    url = ../store\n")
    scorers = {"judge": params.evaluate.scorers["toyworld CLIP"].model_copy(update={"model": "data/weights/judge"})}
    return params.model_copy(
        update={
            "models": params.models.model_copy(update=places),
            "objects": {"robot": params.objects["robot"]},
            "evaluate": params.evaluate.model_copy(update={"scorers": scorers}),
        }
    )


def only(findings: list[Finding], name: str) -> Finding:
    (found,) = [finding for finding in findings if finding.name == name]
    return found


def weights(params: Params, name: str) -> Finding:
    return only(data.examine_weights(params, data.read_record()), name)


def program(folder: Path, name: str, text: str) -> None:
    """A program of its own, written in sh."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(0o755)


# --- data ---


def test_dvcs_own_record_is_understood(monkeypatch: pytest.MonkeyPatch, params: Params) -> None:
    """By the file of data/ that nobody trains anew; others may be ahead of data.dvc while somebody works on them."""
    monkeypatch.chdir(ROOT)
    record = data.read_record()
    assert record is not None
    assert record.files
    found = only(data.examine_weights(params, record), "models.lpips")
    assert (found.state, found.says) == (OK, f"{params.models.lpips}, as data.dvc records")


def test_what_is_there_and_as_recorded_is_ok(project: Params) -> None:
    record = data.read_record()
    found = [*data.examine_weights(project, record), *data.examine_inputs(project, record), services.pulled(record)]
    assert [finding.state for finding in found] == [OK] * 7
    assert found[0].says == "data/weights/zero123, as data.dvc records"
    assert services.remote(record).state == OK


def test_missing_weights_are_pulled_where_they_are_recorded(project: Params) -> None:
    Path("data/weights/clip/unet/model.safetensors").unlink()
    found = weights(project, "models.clip")
    assert (found.state, found.remedy, found.needed) == (MISSING, "run `dvc pull data.dvc`", True)
    assert found.says == "data/weights/clip/unet/model.safetensors is missing"
    Path("data/weights/clip/unet").rmdir()
    Path("data/weights/clip").rmdir()
    assert weights(project, "models.clip").says == "data/weights/clip is missing"
    assert weights(project, "models.clip").remedy == "run `dvc pull data.dvc`"
    pulled = services.pulled(data.read_record())
    assert (pulled.state, pulled.needed) == (MISSING, True)
    assert pulled.says == "1 of 7 files are missing, first data/weights/clip/unet/model.safetensors"
    assert weights(project, "models.refiner").state == OK


def test_one_changed_byte_is_found(project: Params) -> None:
    path = Path("data/weights/refiner/unet/model.safetensors")
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    found = weights(project, "models.refiner")
    assert (found.state, found.needed) == (BROKEN, True)
    assert found.says == f"{path} is not what data.dvc records"
    assert found.remedy.startswith(f"remove {path} and run `dvc pull data.dvc`")
    assert services.pulled(data.read_record()).state == BROKEN


def test_unrecorded_weights_are_opened(project: Params) -> None:
    Path("mine").mkdir()
    own = project.model_copy(update={"models": project.models.model_copy(update={"clip": "mine"})})
    assert weights(own, "models.clip").says == "mine holds no safetensors file"
    save_file({"x": np.zeros(100, np.float32)}, "mine/model.safetensors")
    assert weights(own, "models.clip").state == OK
    assert weights(own, "models.clip").says == "mine, readable; no digest is recorded"
    Path("mine/model.safetensors").write_bytes(Path("mine/model.safetensors").read_bytes()[:200])
    found = weights(own, "models.clip")
    assert (found.state, found.needed) == (BROKEN, True)
    assert "mine/model.safetensors: truncated or no safetensors file" in found.says


def test_what_comes_from_the_network_is_unknown_and_a_lost_folder_is_not(project: Params) -> None:
    places = {"zero123": "kxic/zero123-xl", "clip": "data/weights/gone", "refiner": "x"}
    models = project.models.model_copy(update=places)
    scorer = project.evaluate.scorers["judge"].model_copy(
        update={"kind": "open_clip", "model": "ViT-B-32-quickgelu", "pretrained": "openai"}
    )
    evaluate = project.evaluate.model_copy(update={"scorers": {"CLIP": scorer}})
    own = project.model_copy(update={"models": models, "evaluate": evaluate})
    assert weights(own, "models.zero123").state == weights(own, "CLIP").state == UNKNOWN
    assert weights(own, "models.clip").state == weights(own, "models.refiner").state == MISSING
    assert "put the weights there" in weights(own, "models.clip").remedy


def test_missing_inputs_say_what_brings_them(project: Params) -> None:
    Path("data/objects/robot/prompt.txt").unlink()
    found = only(data.examine_inputs(project, data.read_record()), "robot")
    assert (found.state, found.remedy) == (MISSING, "run `dvc pull data.dvc`")
    Path("data.dvc").unlink()
    assert "correct objects.robot" in only(data.examine_inputs(project, data.read_record()), "robot").remedy


@pytest.mark.parametrize("text", ["", "outs: 3", "outs:\n- path: data\n", "{", "\xff"])
def test_an_unreadable_record_is_none(project: Params, text: str) -> None:
    Path("data.dvc").write_text(text)
    assert data.read_record() is None
    assert services.pulled(None).needed


def test_a_record_whose_list_is_nowhere_is_unknown(project: Params) -> None:
    Path("store/files/md5/12/3456.dir").write_text("[{]")
    record = data.read_record()
    assert record is not None
    assert services.pulled(record).state == UNKNOWN
    assert weights(project, "models.clip").says.endswith("readable; no digest is recorded")


# --- W&B and DVC ---


def test_programs_off_path_are_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    found = services.program()
    assert (found.state, found.name, found.needed) == (MISSING, "dvc", True)
    assert f"source {BIN}/activate" in found.remedy
    for name in ("dvc", "cad"):
        program(tmp_path, name, "exit 0")
        assert services.program().name == {"dvc": "cad", "cad": "dvc"}[name]
    assert services.program().state == OK


def test_the_remote_is_looked_for_where_the_configuration_says(project: Params) -> None:
    record = data.read_record()
    Path("store").rename("elsewhere")
    found = services.remote(record)
    assert (found.state, found.needed) == (MISSING, False)
    assert str(Path("store").resolve()) in found.says
    Path(".dvc/config.local").write_text("['remote \"bundled\"']\n    url = ../elsewhere\n")
    assert services.remote(record).state == OK
    Path(".dvc/config.local").write_text("['remote \"bundled\"']\n    url = s3://bucket/store\n")
    assert services.remote(record).state == UNKNOWN
    Path(".dvc/config").write_text("[core]\n")
    assert services.remote(record).says == "none is configured"


def test_without_data_and_remote_the_job_cannot_run(project: Params) -> None:
    Path("store").rename("elsewhere")
    Path("data").rename("former")
    record = data.read_record()
    assert services.remote(record).needed
    assert services.pulled(record).needed


def test_the_lock_file_is_compared_with_the_settings(params: Params) -> None:
    never = services.lock(params)
    assert (never.state, never.needed) == (MISSING, False)
    assert "16 never run (input@robot, input@car, prior@robot and 13 more)" in never.says
    recorded = {"params": {"params.yaml": {"seed": 0}}}
    stages = {f"{stage}@{entry}": recorded for stage in services_tables() for entry in ("robot", "car")}
    stages["stage1@car"] = {"params": {"params.yaml": {"seed": 1}}}
    Path("dvc.lock").write_text(json.dumps({"stages": stages}))
    assert services.lock(params).says == "15 of 16 stages are up to date; 1 outdated (stage1@car)"
    stages["stage1@car"] = recorded
    Path("dvc.lock").write_text(json.dumps({"stages": stages}))
    assert services.lock(params).state == OK


def services_tables() -> list[str]:
    from cad.config import TABLES

    return list(TABLES)


def test_a_full_disk_is_needed_space(monkeypatch: pytest.MonkeyPatch) -> None:
    assert services.disk().state == OK or services.disk().needed
    monkeypatch.setattr(services, "LEAST_DISK", 1e12)
    assert (services.disk().state, services.disk().needed) == (MISSING, True)


def test_tracking_is_told_without_starting_it(params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    def said(mode: str) -> Finding:
        changed = params.model_copy(update={"tracking": params.tracking.model_copy(update={"mode": mode})})
        return only(services.examine_wandb(changed), "mode")

    assert said("auto").says == "offline (of auto); no API key"
    assert said("disabled").says == "disabled; no API key"
    assert (said("online").state, said("online").needed) == (BROKEN, True)
    assert "set WANDB_API_KEY" in said("online").remedy
    monkeypatch.setenv("WANDB_API_KEY", "x")
    assert said("auto").says == "online (of auto); an API key is found"
    assert only(services.examine_wandb(None), "mode").state == UNKNOWN
    assert "wandb" not in {path.name for path in Path().iterdir()}


def test_offline_runs_wait_until_they_are_synced() -> None:
    for name in ("offline-run-1", "offline-run-2", "run-3"):
        Path("wandb", name).mkdir(parents=True)
        Path("wandb", name, "run-a.wandb").write_bytes(b"")
    assert "2 offline runs are not uploaded" in only(services.examine_wandb(None), "offline runs").says
    for number in (1, 2):
        Path(f"wandb/offline-run-{number}/run-a.wandb.synced").touch()
    assert only(services.examine_wandb(None), "offline runs").says == "none"


# --- machine, renderer, software ---


def test_the_processor_and_its_memory_are_named() -> None:
    assert f"{len(os.sched_getaffinity(0))} threads" in machine.processor().says
    assert "GiB" in machine.memory().says


def test_without_a_compiler_plain_pytorch_renders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, params: Params
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    build.library.cache_clear()
    found = machine.cpp_compiler()
    assert (found.state, found.needed) == (MISSING, False)
    assert "install g++" in found.remedy
    (picture,) = renderer.examine_renderer(params)
    build.library.cache_clear()
    forced = params.model_copy(update={"runtime": params.runtime.model_copy(update={"renderer": "fused"})})
    (refused,) = renderer.examine_renderer(forced)
    build.library.cache_clear()
    assert (picture.state, picture.needed, refused.needed) == (MISSING, False, True)
    assert picture.says.startswith("no C++ compiler (g++) is found")
    with pytest.raises(UserError, match=r"renderer, fused on cpu: no C\+\+ compiler .*; install g\+\+"):
        report.refuse([refused])
    report.refuse([picture])


def test_a_compiler_that_does_not_run_is_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path / "bin", "mycc", "exit 3")
    monkeypatch.setenv("CXX", str(tmp_path / "bin/mycc"))
    found = machine.cpp_compiler()
    assert (found.name, found.state) == ("mycc", BROKEN)
    program(tmp_path / "bin", "mycc", "echo mycc 4.2\necho more")
    assert machine.cpp_compiler().says == "mycc 4.2"


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_torch_cannot_use_is_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, params: Params) -> None:
    cuda = params.model_copy(update={"runtime": params.runtime.model_copy(update={"device": "cuda"})})
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    program(tmp_path / "bin", "nvidia-smi", "exit 9")
    assert machine.visible_gpus() == []
    (none,) = machine.examine_gpus([], params)
    assert (none.state, none.needed, none.remedy) == (MISSING, False, "")
    (lost,) = machine.examine_gpus([], cuda)
    assert lost.needed
    program(tmp_path / "bin", "nvidia-smi", 'echo "NVIDIA T1, 8192 MiB, 580.1"')
    (found,) = machine.examine_gpus(machine.visible_gpus(), cuda)
    assert (found.name, found.state, found.needed) == ("GPU 0", BROKEN, True)
    assert found.says.startswith("NVIDIA T1, 8192 MiB, 580.1; torch ")


@NEEDS_COMPILER
def test_the_fused_renderer_is_held_to_the_reference(params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    picture, graph = renderer.examine_renderer(params)[:2]
    assert (picture.state, graph.state) == (OK, OK)
    assert 0 < renderer.largest_difference(torch.device("cpu")) < 1e-4
    true = fused.render_rays

    def spoilt(factor: float) -> Any:
        def render(*arguments: Any) -> Any:
            found = true(*arguments)
            return found._replace(depth=found.depth * factor)

        return render

    for factor in (1.01, float("nan")):
        monkeypatch.setattr(fused, "render_rays", spoilt(factor))
        found = renderer.examine_renderer(params)[0]
        assert (found.state, found.needed) == (BROKEN, True)
        assert "set runtime.renderer to reference" in found.remedy


@NEEDS_COMPILER
def test_a_renderer_that_cannot_be_traced_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    true = fused.render_rays

    def breaks(*arguments: Any) -> Any:
        torch._dynamo.graph_break()
        return true(*arguments)

    monkeypatch.setattr(fused, "render_rays", breaks)
    found = renderer.traced(torch.device("cpu"))
    assert (found.state, found.needed) == (BROKEN, False)


def test_software_that_is_missing_or_spoilt_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = software.examine_software()
    assert {finding.state for finding in found} <= {OK, UNKNOWN}
    assert {"python", "cad", *software.SHOWN} <= {finding.name for finding in found}
    assert only(found, "torch").says == torch.__version__
    monkeypatch.setattr(software, "SHOWN", ("no-such-package",))
    lost = only(software.examine_software(), "no-such-package")
    assert (lost.state, lost.needed) == (MISSING, True)
    assert "make install" in lost.remedy
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "spoilt.py").write_text("raise RuntimeError('operator torchvision::nms does not exist\\nmore')")
    assert software.import_fault("spoilt") == "RuntimeError: operator torchvision::nms does not exist"
    assert software.import_fault("json") == ""


# --- the whole ---


def test_settings_that_are_missing_or_broken_are_told_and_the_rest_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    found, settings = report.examine_settings(path)
    assert settings is None
    assert (found[0].state, found[0].needed) == (MISSING, True)
    path.write_text("prior: [")
    assert report.examine_settings(path)[0][0].state == BROKEN
    spoilt, count = re.subn(r"(?m)^  poses: \d+$", "  poses: many", (ROOT / "params.yaml").read_text())
    assert count == 1
    path.write_text(spoilt)
    (fault,), _ = report.examine_settings(path)
    assert "prior.poses: input should be a valid integer" in fault.says
    assert fault.remedy == "correct it"
    with pytest.raises(UserError, match=r"prior\.poses.*; correct it \(and 1 more, see above\)"):
        report.refuse([fault, fault])


def doctor(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    command = [sys.executable, "-m", "cad.cli.main", "doctor", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment, check=False)


def tree(folder: Path) -> dict[str, int]:
    return {path.as_posix(): path.lstat().st_mtime_ns for path in folder.rglob("*")}


def test_a_sound_project_gets_code_0_and_nothing_is_written(tmp_path: Path) -> None:
    for name in ("params.yaml", "data.dvc"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc/config").write_text((ROOT / ".dvc/config").read_text())
    for name in ("data", "store"):
        (tmp_path / name).symlink_to((ROOT / name).resolve())
    before = tree(tmp_path)
    ended = doctor(tmp_path, "--json")
    assert ended.returncode == 0, ended.stderr
    content = json.loads(ended.stdout)
    assert content["can_run"] is True
    areas = {finding["area"] for finding in content["findings"]}
    assert areas == {"device", "compiler", "renderer", "versions", "settings", "weights", "inputs", "W&B", "DVC"}
    assert {finding["name"] for finding in content["findings"] if finding["state"] == BROKEN} <= {"data.dvc"}
    assert tree(tmp_path) == before


def test_an_empty_folder_gets_the_table_one_line_and_code_2(tmp_path: Path) -> None:
    ended = doctor(tmp_path)
    assert ended.returncode == 2
    assert [line for line in ended.stderr.splitlines() if not line.startswith("cad: ")] == [
        "error: settings, params.yaml: params.yaml: does not exist; run from the repository's root or name it with "
        "--params (and 1 more, see above)"
    ]
    assert "versions: torch" in ended.stdout
    assert "DVC: data.dvc" in ended.stdout
    assert list(tmp_path.iterdir()) == []
