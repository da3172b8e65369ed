"""What users can get wrong, end to end: `cad` says one line that names it, ends with code 2 and leaves no output.

Each test runs `cad.cli.main.main` in a project folder of its own (conftest.py), with tiny networks and pictures.
"""

import errno
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cad.artifacts import Checkpoint, InputArtifact

ROOT = Path(__file__).parents[2]


def picture(box: Any, side: int = 32) -> np.ndarray:
    """A red patch on white."""
    pixels = np.full((side, side, 3), 255, np.uint8)
    pixels[box] = (200, 30, 30)
    return pixels


def refused(ended: Any, said: str, project: Any, *outputs: str) -> None:
    """One line on stderr that starts with `error: said`, code 2, none of the outputs, nothing half-written."""
    assert ended.code == 2
    assert len(ended.err) == 1, ended.err
    assert ended.err[0].startswith(f"error: {said}"), ended.err[0]
    assert "; " in ended.err[0], "the line says what to do"
    assert ended.out == []
    for output in outputs:
        assert not (project / output).exists(), output
    assert not list(project.folder.rglob("*.tmp"))
    assert not list(project.folder.glob(".work/*/*")), "nothing is half-done"


def test_good_input_passes(project: Any, cad: Any) -> None:
    """The project folder of these tests is sound: what they break is all that is wrong with it."""
    ended = cad("input", "robot")
    assert ended == (0, ["input robot: runs/robot/input"], [])
    assert InputArtifact.open(project / "runs/robot/input").prompt == "a toy robot"


IMAGE, PROMPT = "data/objects/robot/image.png", "data/objects/robot/prompt.txt"


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def noise(path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 200, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        pytest.param(lambda image, prompt: image.unlink(), f"{IMAGE}: missing", id="missing image"),
        pytest.param(lambda image, prompt: (noise(image), truncate(image)), f"{IMAGE}: damaged", id="truncated image"),
        pytest.param(lambda image, prompt: image.write_text("hello"), f"{IMAGE}: damaged or no picture", id="no image"),
        pytest.param(
            lambda image, prompt: Image.fromarray(picture(np.s_[2:6, 2:6], 16)).save(image),
            f"{IMAGE}: is 16x16, smaller than input.min_side 32",
            id="tiny image",
        ),
        pytest.param(
            lambda image, prompt: Image.fromarray(picture(np.s_[:0])).save(image),
            f"{IMAGE}: shows no object",
            id="empty mask",
        ),
        pytest.param(
            lambda image, prompt: Image.fromarray(np.zeros((64, 64, 4), np.uint8)).save(image),
            f"{IMAGE}: shows no object",
            id="transparent",
        ),
        pytest.param(
            lambda image, prompt: Image.fromarray(picture(np.s_[100, 100], 512)).save(image),
            f"{IMAGE}: the object is so thin that nothing of it is left at input.resolution 32",
            id="mask that vanishes when resized",
        ),
        pytest.param(
            lambda image, prompt: Image.fromarray(picture(np.s_[:])).save(image),
            f"{IMAGE}: has no background",
            id="full mask",
        ),
        pytest.param(lambda image, prompt: prompt.write_text(" \n"), f"{PROMPT}: the prompt is empty", id="empty"),
        pytest.param(lambda image, prompt: prompt.unlink(), f"{PROMPT}: no such prompt file", id="missing prompt"),
    ],
)
def test_a_bad_picture_or_prompt(project: Any, cad: Any, spoil: Callable[[Path, Path], Any], said: str) -> None:
    spoil(project / IMAGE, project / PROMPT)
    refused(cad("input", "robot"), said, project, "runs")
    assert [path.suffix for path in (project / ".work").iterdir()] == [".failed"], "a note for `cad status`"


@pytest.mark.parametrize(
    ("changes", "command", "said"),
    [
        ({"prior.stepps": 3}, ("input", "robot"), "params.yaml: prior.stepps: unknown key; did you mean steps?"),
        ({"prior.steps": "many"}, ("prior", "sample", "robot"), "params.yaml: prior.steps: input should be a valid"),
        ({"stage1.beta2": 1.0}, ("train", "stage1", "robot"), "params.yaml: stage1.beta2: input should be less than"),
        ({"camera.half_side": 1.5}, ("orbit", "robot"), "params.yaml: camera: the camera stands inside"),
        ({}, ("evaluate", "robott"), "evaluations.robott: there is no entry 'robott'; did you mean robot?"),
        ({}, ("prior", "sample", "robot"), "runs/robot/input: is missing; run `dvc repro input@robot` first"),
        (
            {"objects.robot.toyworld": {"family": "rocket", "seed": 1}},
            ("input", "robot"),
            "params.yaml: objects.robot.toyworld.family: input should be 'robot', 'car'",
        ),
        ({"seeed": 3}, ("report", "all"), "params.yaml: seeed: unknown key; did you mean seed?"),
    ],
)
def test_a_bad_setting(project: Any, cad: Any, changes: dict[str, Any], command: tuple[str, ...], said: str) -> None:
    project.change(changes)
    refused(cad(*command), said, project, "runs", ".work", "reports")


@pytest.mark.parametrize("content", [None, "seed: [", ""])
def test_broken_settings(project: Any, cad: Any, content: str | None) -> None:
    file = project / "params.yaml"
    file.unlink() if content is None else file.write_text(content)
    refused(cad("input", "robot"), "params.yaml: ", project, "runs", ".work")


WALK = {"strength": 0.5, "guidance": 4.0, "steps": 2}
FAMILIES = {
    "controlnet-depth": ({**WALK, "conditioning_scale": 0.8}, "controlnet"),
    "deepfloyd-if": ({"stage1": WALK, "stage2": {**WALK, "noise_level": 250}}, "deepfloyd_stage1"),
}


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_refiner_without_its_section_its_models_or_its_weights(project: Any, cad: Any, kind: str) -> None:
    project.give_decisions()
    project.change({"refine.controlnet_depth": None, "models.controlnet": None})
    section, model = kind.replace("-", "_"), FAMILIES[kind][1]
    for changes, said in (
        ({"refine": {"enabled": True, "kind": kind}}, f"refine: kind is {kind}, but {section} is null"),
        ({f"refine.{section}": FAMILIES[kind][0]}, f"models.{model}: is null, but refines.robot refines by {kind}"),
    ):
        project.change(changes)
        refused(cad("prior", "refine", "robot"), f"params.yaml: {said}", project, "runs/robot/refine")
    project.change({f"models.{name}": "no/such/folder" for name in ("refiner", "controlnet", "depth")})
    project.change({f"models.deepfloyd_stage{stage}": "no/such/folder" for stage in (1, 2)})
    refused(cad("prior", "refine", "robot"), "no/such/folder: no such folder of weights", project, "runs/robot/refine")


def flip(path: Path) -> None:
    """Change the last byte: a pixel, so that only the digest can tell."""
    data = bytearray(path.read_bytes())
    data[-1] ^= 255
    path.write_bytes(bytes(data))


@pytest.mark.parametrize(
    ("spoil", "fault"),
    [
        (flip, "damaged, its digest is not the recorded one"),
        (truncate, "truncated or no safetensors file"),
        (Path.unlink, "missing"),
    ],
    ids=["flipped", "truncated", "missing"],
)
def test_a_corrupt_shard(project: Any, cad: Any, spoil: Callable[[Path], object], fault: str) -> None:
    shard = project.give_decisions() / "images-00001.safetensors"
    spoil(shard)
    place = "runs/robot/prior/images-00001.safetensors"
    refused(cad("prior", "refine", "robot"), f"{place}: {fault}", project, "runs/robot/refine")
    spoil(project.give_cache("refine") / shard.name)
    place = "runs/robot/refine/images-00001.safetensors"
    refused(cad("train", "stage1", "robot"), f"{place}: {fault}", project, "runs/robot/stage1")


def test_missing_weights(project: Any, cad: Any) -> None:
    project.give_input()
    said = "data/weights/zero123: no such folder of weights; run `dvc pull data.dvc`"
    refused(cad("prior", "sample", "robot"), said, project, "runs/robot/prior")
    project.give_cache("prior")
    (project.give_weights("clip") / "model-00001-of-00003.safetensors").unlink()
    said = "data/weights/clip: cannot be loaded from safetensors (FileNotFoundError"
    refused(cad("prior", "prune", "robot"), said, project, "runs/robot/prune")
    shutil.rmtree(project / "data/weights/clip")
    project.give_decisions()
    project.change({"refine": {"enabled": True}})
    said = "data/weights/refiner: no such folder of weights"
    refused(cad("prior", "refine", "robot"), said, project, "runs/robot/refine")


def test_truncated_weights(project: Any, cad: Any) -> None:
    project.give_input()
    project.give_cache("prior")
    truncate(project.give_weights("clip") / "model-00001-of-00003.safetensors")
    said = "data/weights/clip: cannot be loaded from safetensors (SafetensorError"
    refused(cad("prior", "prune", "robot"), said, project, "runs/robot/prune")


def test_weights_of_another_model(project: Any, cad: Any) -> None:
    project.give_input()
    project.give_cache("prior")
    project.change({"models": {"clip": str(ROOT / "data/weights/autoencoder")}})
    said = f"{ROOT}/data/weights/autoencoder/config.json: is of a AutoencoderKL, not of a CLIPModel"
    refused(cad("prior", "prune", "robot"), said, project, "runs/robot/prune")


@pytest.mark.parametrize(("stage", "command"), [("stage1", ("train", "stage2")), ("stage2", ("orbit",))])
def test_a_wrong_checkpoint(project: Any, cad: Any, stage: str, command: tuple[str, ...]) -> None:
    project.give_input()
    project.give_cache("refine")
    other = {"stage1": "stage2", "stage2": "stage1"}[stage]
    folder = project / "runs/robot" / stage
    weights = {"generator_ema": {"weight": torch.zeros(1)}}
    Checkpoint.write(folder, other, weights, {"settings": {}})
    said = f"runs/robot/{stage}/state.json: a checkpoint of '{other}'; give the folder of a finished {stage} run"
    refused(cad(*command, "robot"), said, project, "runs/robot/orbit", *[f"runs/robot/{command[-1]}"])
    Checkpoint.write(folder, stage, weights, {"settings": {}})
    truncate(folder / "model.safetensors")
    said = f"runs/robot/{stage}/model.safetensors: truncated or no safetensors file"
    refused(cad(*command, "robot"), said, project, "runs/robot/orbit", *[f"runs/robot/{command[-1]}"])


def test_a_loss_that_is_not_a_number(project: Any, cad: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    project.give_cache("refine")
    monkeypatch.setattr("cad.train.stage1.generator_loss", lambda logits: logits.mean() * float("nan"))
    said = "stage1: the loss `generator` is nan at step 0; training diverged: lower stage1.lr_discriminator"
    refused(cad("train", "stage1", "robot"), said, project, "runs/robot/stage1")


def test_a_training_that_diverges_later_keeps_its_last_checkpoint_out_of_the_results(
    project: Any, cad: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cad.train import stage1

    project.give_cache("refine")
    calls: list[int] = []
    original = stage1.generator_loss

    def late(logits: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return original(logits) * (float("nan") if len(calls) == 2 else 1)

    monkeypatch.setattr(stage1, "generator_loss", late)
    ended = cad("train", "stage1", "robot")
    assert ended.code == 2
    assert len(ended.err) == 1
    assert "is nan at step 1" in ended.err[0]
    assert not (project / "runs/robot/stage1").exists()
    (work,) = project.folder.glob(".work/*/")
    assert Checkpoint.open(work, "stage1").state["step"] == 1  # to go on from, with the same settings
    ended = cad("train", "stage1", "robot")  # the fault is gone
    assert ended.code == 0
    assert Checkpoint.open(project / "runs/robot/stage1", "stage1").state["step"] == 2


@pytest.mark.parametrize(("stage", "command"), [("input", ("input",)), ("stage1", ("train", "stage1"))])
def test_a_full_disk(
    project: Any, cad: Any, monkeypatch: pytest.MonkeyPatch, stage: str, command: tuple[str, ...]
) -> None:
    project.give_cache("refine")
    write = Path.write_bytes

    def full(path: Path, data: bytes) -> int:
        write(path, data[: len(data) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    ended = cad(*command, "robot")
    refused(ended, ".work/", project, f"runs/robot/{stage}")
    assert "no space left on the disk; free some and run the same command again" in ended.err[0]


def test_a_former_output_survives_a_refusal(project: Any, cad: Any) -> None:
    assert cad("input", "robot").code == 0
    before = {path.name: path.read_bytes() for path in (project / "runs/robot/input").iterdir()}
    (project / PROMPT).write_text("")
    refused(cad("input", "robot"), f"{PROMPT}: the prompt is empty", project)
    assert {path.name: path.read_bytes() for path in (project / "runs/robot/input").iterdir()} == before


def test_a_report_without_runs(project: Any, cad: Any) -> None:
    said = "runs/robot/evaluate/metrics.json: missing"
    refused(cad("report", "all"), said, project, "reports", "runs")
    refused(cad("report", "show"), "reports/table1.csv: missing; run `cad report all`", project, "reports", "runs")
