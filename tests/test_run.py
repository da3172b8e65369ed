"""`cad run` over a pipeline whose stages copy prepared folders: what runs, what resumes, which page is written."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from cad import plan
from cad.artifacts import InputArtifact, write_image, write_json, write_video
from cad.cli import main as cli
from cad.config import TABLES, load
from cad.config.compose import composed_text
from cad.errors import UserError
from cad.repro import stages_of
from cad.run import profile_chosen, stages_to

ROOT = Path(__file__).parents[1]
STAGES = ("input", "prior", "prune", "refine", "stage1", "stage2", "orbit")
ABOVE = dict(zip(STAGES[1:], STAGES, strict=False))


@pytest.fixture
def project(tmp_path, monkeypatch) -> Iterator[Path]:
    """A project whose stages copy `made/STAGE`; stage1 waits for the file `go`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("DVC_NO_ANALYTICS", "1")
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")
    shutil.copytree(ROOT / "experiments", "experiments")
    Path("params.yaml").write_text(composed_text("mini", ["robot"], Path("experiments")))
    image = np.full((16, 16, 3), 255, np.uint8)
    made = Path("made")
    InputArtifact.write(made / "input", image, image[..., 0] < 9, "a chair", "chair", 180.0, 80.0, "0" * 64)
    for name in ("prune/contact", "refine/contact", "stage1/preview", "stage2/preview", "orbit/contact"):
        write_image(made / f"{name}.png", image)
    write_json(made / "prune/summary.json", {"schema": 1, "kept": 1, "poses": 2})
    write_video(made / "orbit/3d-seed-0000.mp4", [image], 2)
    stages = {}
    for stage in STAGES:
        write_json(made / stage / "lineage.json", {"schema": 1, "stage": stage, "inputs": {}})
        above = f"runs/${{key}}/{ABOVE[stage]}" if stage in ABOVE else "data/objects/${key}"
        waits = "test -e go && " if stage == "stage1" else ""
        copy = f"mkdir -p runs/${{key}} && cp -r made/{stage} runs/${{key}}/{stage}"
        command = f"echo {stage} ${{key}} >> ran && {waits}{copy}"
        stages[stage] = {
            "foreach": f"${{{TABLES[stage][0]}}}",
            "do": {"cmd": command, "deps": [above], "outs": [f"runs/${{key}}/{stage}"]},
        }
    Path("dvc.yaml").write_text(yaml.safe_dump({"stages": stages}))
    Path("data").mkdir()
    Path("data/readme").write_text("here be pictures")
    for command in (("init", "--no-scm"), ("add", "data")):
        subprocess.run(["dvc", *command, "--quiet"], check=True)
    threads = torch.get_num_threads()
    yield tmp_path
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(threads)


def cad(monkeypatch, capfd, *arguments: str) -> tuple[int, str, str]:
    monkeypatch.setattr("sys.argv", ["cad", *arguments])
    capfd.readouterr()
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0), *capfd.readouterr()


def photo(path: str, color=(200, 30, 30)) -> str:
    pixels = np.full((80, 60, 3), 255, np.uint8)
    pixels[20:60, 10:50] = color
    Image.fromarray(pixels).save(path)
    return path


def test_a_run_stops_and_goes_on_where_it_stopped(project, monkeypatch, capfd):
    arguments = ("run", photo("chair.jpg"), "--prompt", "a red chair", "--polar", "80")
    code, out, err = cad(monkeypatch, capfd, *arguments)
    assert code == 2
    assert err.splitlines()[-1].startswith("error: stage1@chair: failed, see above; ")
    assert "object chair: data/objects/chair" in out
    assert Path("data/objects/chair/prompt.txt").read_text() == "a red chair\n"
    assert not Path("reports").exists()
    Path("go").touch()
    code, out, _ = cad(monkeypatch, capfd, *arguments)
    assert code == 0
    assert "object chair" not in out, "it is there already"
    assert out.splitlines()[-2:] == ["orbit: runs/chair/orbit", "page: reports/pages/chair.html"]
    assert "a chair" in Path("reports/pages/chair.html").read_text()
    once = [f"{stage} chair" for stage in STAGES]
    assert Path("ran").read_text().splitlines() == [*once[:5], *once[4:]], "robot has not run, nothing ran twice"
    assert cad(monkeypatch, capfd, *arguments)[0] == 0
    assert len(Path("ran").read_text().splitlines()) == 8, "a third call runs nothing"
    status = subprocess.run(["dvc", "status", "data.dvc"], capture_output=True, text=True, check=True).stdout
    assert "up to date" in status, "the picture is versioned"
    photo("chair.jpg", color=(0, 0, 99))
    code, _, err = cad(monkeypatch, capfd, *arguments)
    assert (code, "is of another picture (chair.jpg); choose another --name" in err) == (2, True)


def test_only_one_objects_stages_run(project, monkeypatch, capfd):
    Path("go").touch()
    assert cad(monkeypatch, capfd, "object", "add", photo("chair.png"), "--prompt", "a chair", "--polar", "80")[0] == 0
    params = load(Path("params.yaml"))
    assert stages_to(params, "chair") == [f"{stage}@chair" for stage in STAGES]
    assert stages_of(params, "chair") == [f"{stage}@chair" for stage in TABLES]
    assert cad(monkeypatch, capfd, "repro", "--object", "chair")[0] == 0
    assert Path("ran").read_text().splitlines() == [f"{stage} chair" for stage in STAGES]


def test_a_profile_is_composed_when_it_is_another_one_and_else_edits_stay(project):
    experiments, params = Path("experiments"), Path("params.yaml")
    before = params.read_bytes()
    choose(params, experiments, None)
    values = yaml.safe_load(before)
    values["prior"]["poses"] = 77
    params.write_text(yaml.safe_dump(values))
    choose(params, experiments, "mini")
    assert load(params).prior.poses == 77
    choose(params, experiments, "smoke")
    assert params.read_text() == composed_text("smoke", ["robot"], experiments)
    with pytest.raises(UserError, match=r"giant.yaml: there is no such profile; known: .*mini"):
        choose(params, experiments, "giant")


def choose(*arguments) -> None:
    with profile_chosen(*arguments):
        pass


@pytest.mark.parametrize("picture", ["broken.png", "missing.png", "photo.png"])
def test_a_picture_that_is_refused_changes_no_settings(project, monkeypatch, capfd, picture):
    """The last one is fine, but its name is that of an object."""
    Path("broken.png").write_bytes(b"no picture")
    photo("photo.png")
    edited = Path("params.yaml").read_text().replace("poses: 320", "poses: 77")
    assert "poses: 77" in edited
    Path("params.yaml").write_text(edited)
    name = ("--name", "robot") if picture == "photo.png" else ()
    code, _, err = cad(
        monkeypatch, capfd, "run", picture, "--prompt", "x", "--polar", "80", "--profile", "smoke", *name
    )
    assert (code, len(err.splitlines())) == (2, 1), err
    assert Path("params.yaml").read_text() == edited


def test_objects_that_a_profile_would_drop_are_named(project):
    params = Path("params.yaml")
    values = yaml.safe_load(params.read_text())
    values["objects"]["vase"] = dict(values["objects"]["robot"])
    params.write_text(yaml.safe_dump(values))
    before = params.read_bytes()
    with pytest.raises(UserError, match=r"^params.yaml: --profile smoke would drop vase, .*; write vase"):
        choose(params, Path("experiments"), "smoke")
    assert params.read_bytes() == before


def test_a_disk_that_is_too_small_is_refused_before_any_stage_runs(project, monkeypatch, capfd):
    """What is done, and what an interrupted stage has left, needs no room again."""
    Path("go").touch()
    arguments = ("run", photo("chair.jpg"), "--prompt", "a red chair", "--polar", "80")
    monkeypatch.setattr(plan.shutil, "disk_usage", lambda place: SimpleNamespace(free=20_000_000))
    code, _, err = cad(monkeypatch, capfd, *arguments)
    assert (code, "the run needs" in err, "20 MB are free" in err) == (2, True, True)
    assert not Path("ran").exists()
    Path(".work/begun").mkdir(parents=True)
    with Path(".work/begun/images").open("wb") as file:
        file.truncate(10**9)
    assert cad(monkeypatch, capfd, *arguments)[0] == 0
    shutil.rmtree(".work")
    assert cad(monkeypatch, capfd, *arguments)[0] == 0


def test_a_scene_is_imported_with_its_record(project, monkeypatch, capfd):
    folder = Path("nsvf/Wineholder")
    (folder / "rgb").mkdir(parents=True)
    (folder / "pose").mkdir()
    photo(str(folder / "rgb/0_0000.png"))
    arguments = (
        "data",
        "import",
        "nsvf",
        "nsvf",
        "--scene",
        "Wineholder",
        "--prompt",
        "a wine holder",
        "--polar",
        "60",
    )
    assert cad(monkeypatch, capfd, *arguments)[0] == 0
    source = yaml.safe_load(Path("data/objects/wineholder/source.json").read_text())
    assert source["origin"] == {
        "kind": "scene", "dataset": "nsvf", "scene": "Wineholder", "split": "train", "frame": 0,
        "picture": "rgb/0_0000.png", "pose": "ignored",
    }  # fmt: skip
    assert load(Path("params.yaml")).objects["wineholder"].reference_polar_deg == 60.0


def test_a_listed_case_without_its_picture_says_where_to_get_it(project, monkeypatch, capfd):
    Path("params.yaml").write_text(composed_text("mini", ["lego"], Path("experiments")))
    for arguments in (("repro", "--object", "lego"), ("repro",), ("input", "lego")):
        code, _, err = cad(monkeypatch, capfd, *arguments)
        assert (code, len(err.splitlines())) == (2, 1)
        assert err.startswith("error: data/objects/lego/image.png: is missing; download Synthetic-NeRF")


def test_an_object_is_drawn_from_text(project, monkeypatch, capfd):
    from standins import write_stable_diffusion

    values = yaml.safe_load(Path("params.yaml").read_text())
    values["input"]["min_side"] = 16
    Path("params.yaml").write_text(yaml.safe_dump(values))
    weights = write_stable_diffusion(Path("weights/sd"))
    arguments = ("object", "imagine", "a red toy", "--name", "toy", "--polar", "70", "--seed", "4", "--model")
    code, _, err = cad(monkeypatch, capfd, *arguments, "weights/none")
    assert (code, len(err.splitlines())) == (2, 1), err
    code, out, err = cad(monkeypatch, capfd, *arguments, str(weights))
    assert Path(".work/imagined/toy.png").is_file(), err
    # Random weights draw noise, whose background no one can tell: the drawing stays, the refusal is one line.
    assert code == 2
    assert err.splitlines()[-1].startswith("error: ")
    assert "drawn: .work/imagined/toy.png" in out
    assert not Path("data/objects/toy").exists()
