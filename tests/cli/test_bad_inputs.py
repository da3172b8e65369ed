"""What users can get wrong, end to end: `cad` says one line that names it, ends with code 2 and leaves no output.

Each test runs `cad.cli.main.main` in a project folder of its own, with tiny networks and pictures.
"""

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from cad.artifacts import Checkpoint, InputArtifact, PriorCacheWriter
from cad.camera import sphere_poses
from cad.cli import main as cli
from cad.seeding import generator

ROOT = Path(__file__).parents[2]
SIDE = 32  # of every picture
TINY = {
    "tracking.mode": "disabled",
    "runtime.threads": 1,
    "input.resolution": SIDE,
    "prior": {"poses": 4, "samples": 2, "steps": 2, "batch": 4, "shard_poses": 2},
    "prune": {"max_bad_pixels": SIDE**2, "min_clip_similarity": -1.0},
    "refine": {"enabled": False, "shard_poses": 2},
    "generator": {
        "z_dim": 8, "w_dim": 8, "plane_resolution": 8, "plane_channels": 4, "channel_base": 64, "channel_max": 8,
        "decoder_hidden": 8, "feature_channels": 8, "raw_resolution": 16, "output_resolution": SIDE,
        "coarse_samples": 4, "fine_samples": 4, "upsampler_channels": 8,
    },
    "discriminator": {"channel_base": 128, "channel_max": 8, "mbstd_group": 2},
    "stage1": {"kimg": 0.004, "batch": 2, "checkpoint_kimg": 0.002, "density_points": 8},
    "orbit": {"frames": 2, "seeds": 1},
    "objects.robot.toyworld": None,
}  # fmt: skip


class Ended(NamedTuple):
    """How a command ended: its exit code (0: by itself) and the lines on both streams."""

    code: int
    out: list[str]
    err: list[str]


Cad = Callable[..., Ended]


@pytest.fixture
def cad(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Cad:
    """Run the command line in this process and return how it ended."""

    def run(*arguments: str) -> Ended:
        monkeypatch.setattr("sys.argv", ["cad", *arguments])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capfd.readouterr()
        return Ended(int(ended.value.code or 0), out.splitlines(), err.splitlines())

    return run


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A project folder with settings, a good picture and a good prompt; weights are those of data/."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "environ", os.environ.copy())  # what the stages fix in there ends with the test
    for name in ("OMP_NUM_THREADS", "SOURCE_DATE_EPOCH"):
        monkeypatch.delenv(name, raising=False)
    threads = torch.get_num_threads()
    shutil.copy(ROOT / "params.yaml", tmp_path)
    change(tmp_path, TINY)
    folder = tmp_path / "data/objects/robot"
    folder.mkdir(parents=True)
    Image.fromarray(picture(np.s_[8:24, 10:22])).save(folder / "image.png")
    (folder / "prompt.txt").write_text("a toy robot\n")
    yield tmp_path
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(threads)


def picture(box: Any, side: int = SIDE) -> np.ndarray:
    """A red patch on white."""
    pixels = np.full((side, side, 3), 255, np.uint8)
    pixels[box] = (200, 30, 30)
    return pixels


def change(project: Path, changes: dict[str, Any]) -> None:
    """Set keys of params.yaml by their dotted paths; a mapping is merged into what is there."""
    file = project / "params.yaml"
    values = yaml.safe_load(file.read_text())
    for path, value in changes.items():
        *parents, key = path.split(".")
        owner = values
        for parent in parents:
            owner = owner[parent]
        owner[key] = {**owner[key], **value} if isinstance(value, dict) and isinstance(owner.get(key), dict) else value
    file.write_text(yaml.safe_dump(values, sort_keys=False))


def give_input(project: Path) -> None:
    """The folder that `cad input` would write."""
    image = picture(np.s_[8:24, 10:22])
    InputArtifact.write(
        project / "runs/robot/input", image, image[..., 1] < 250, "a toy robot", "robot", 180.0, 70.0, "0" * 64
    )


def give_cache(project: Path, stage: str) -> Path:
    """A prior cache of noise as the output of this stage."""
    folder = project / "runs/robot" / stage
    writer = PriorCacheWriter(folder, sphere_poses(4, generator("poses")), range(4), 2, SIDE, 2)
    images = np.random.default_rng(0).integers(0, 256, (4, 2, SIDE, SIDE, 3), dtype=np.uint8)
    for shard in writer.missing_shards():
        writer.write_shard(shard, images[list(writer.shard_range(shard))])
    writer.finish()
    return folder


def refused(ended: Ended, said: str, project: Path, *outputs: str) -> None:
    """One line on stderr that starts with `error: said`, code 2, none of the outputs, nothing half-written."""
    assert ended.code == 2
    assert len(ended.err) == 1, ended.err
    assert ended.err[0].startswith(f"error: {said}"), ended.err[0]
    assert "; " in ended.err[0], "the line says what to do"
    assert ended.out == []
    for output in outputs:
        assert not (project / output).exists(), output
    assert not list(project.rglob("*.tmp"))
    assert not list(project.glob(".work/*/*")), "nothing is half-done"


def test_good_input_passes(project: Path, cad: Cad) -> None:
    """The project folder of these tests is sound: what they break is all that is wrong with it."""
    ended = cad("input", "robot")
    assert ended == Ended(0, ["input robot: runs/robot/input"], [])
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
def test_a_bad_picture_or_prompt(project: Path, cad: Cad, spoil: Callable[[Path, Path], Any], said: str) -> None:
    spoil(project / IMAGE, project / PROMPT)
    refused(cad("input", "robot"), said, project, "runs", ".work")


@pytest.mark.parametrize(
    ("changes", "command", "said"),
    [
        ({"prior.stepps": 3}, ("input", "robot"), "params.yaml: prior.stepps: unknown key; did you mean steps?"),
        ({"prior.steps": "many"}, ("prior", "sample", "robot"), "params.yaml: prior.steps: input should be a valid"),
        ({"stage1.beta2": 1.0}, ("train", "stage1", "robot"), "params.yaml: stage1.beta2: input should be less than"),
        ({"camera.half_side": 1.5}, ("orbit", "robot"), "params.yaml: camera: the camera stands inside"),
        ({}, ("evaluate", "robott"), "evaluations.robott: there is no entry 'robott'; did you mean robot?"),
        ({}, ("prior", "sample", "robot"), "runs/robot/input: is missing; run `dvc repro input@robot` first"),
        ({"seeed": 3}, ("report", "all"), "params.yaml: seeed: unknown key; did you mean seed?"),
    ],
)
def test_a_bad_setting(project: Path, cad: Cad, changes: dict[str, Any], command: tuple[str, ...], said: str) -> None:
    change(project, changes)
    refused(cad(*command), said, project, "runs", ".work", "reports")


@pytest.mark.parametrize("content", [None, "seed: [", ""])
def test_broken_settings(project: Path, cad: Cad, content: str | None) -> None:
    file = project / "params.yaml"
    file.unlink() if content is None else file.write_text(content)
    refused(cad("input", "robot"), "params.yaml: ", project, "runs", ".work")


@pytest.mark.parametrize("kind", ["controlnet-depth", "deepfloyd-if"])
def test_a_refiner_that_is_not_available_yet(project: Path, cad: Cad, kind: str) -> None:
    give_decisions(project)
    change(project, {"refine": {"enabled": True, "kind": kind}})
    said = f"params.yaml: refine.kind: {kind} is not available yet; set it to latent-diffusion"
    refused(cad("prior", "refine", "robot"), said, project, "runs/robot/refine")


def give_decisions(project: Path) -> Path:
    """All that refining reads: input, samples, and decisions that keep every pose. Returns the samples' folder."""
    import pandas as pd

    from cad.artifacts import PriorCache, write_parquet

    give_input(project)
    folder = give_cache(project, "prior")
    cache = PriorCache.open(folder)
    table = pd.DataFrame({"pose": cache.pose_ids, "azimuth": cache.azimuth, "polar": cache.polar})
    fixed = {"bad_pixels_max": 0, "clip_min": 0.9, "clip_max": 0.9, "chosen": 1, "kept": True, "reason": "kept"}
    write_parquet(project / "runs/robot/prune/decisions.parquet", table.assign(**fixed))
    return folder


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
def test_a_corrupt_shard(project: Path, cad: Cad, spoil: Callable[[Path], object], fault: str) -> None:
    shard = give_decisions(project) / "images-00001.safetensors"
    spoil(shard)
    place = "runs/robot/prior/images-00001.safetensors"
    refused(cad("prior", "refine", "robot"), f"{place}: {fault}", project, "runs/robot/refine")
    spoil(give_cache(project, "refine") / shard.name)
    place = "runs/robot/refine/images-00001.safetensors"
    refused(cad("train", "stage1", "robot"), f"{place}: {fault}", project, "runs/robot/stage1")


def copied_weights(project: Path, name: str) -> Path:
    folder = project / "data/weights" / name
    shutil.copytree(ROOT / "data/weights" / name, folder)
    return folder


def test_missing_weights(project: Path, cad: Cad) -> None:
    give_decisions(project)
    said = "data/weights/zero123: no such folder of weights; run `dvc pull data.dvc`"
    change(project, {"models.zero123": "./data/weights/zero123"})
    refused(cad("prior", "sample", "robot"), said, project, "runs/robot/prior.old")
    copied_weights(project, "clip")
    (project / "data/weights/clip/model.safetensors").unlink()
    shutil.rmtree(project / "runs/robot/prune")
    said = "data/weights/clip: cannot be loaded from safetensors (OSError"
    refused(cad("prior", "prune", "robot"), said, project, "runs/robot/prune")


def test_truncated_weights(project: Path, cad: Cad) -> None:
    give_input(project)
    give_cache(project, "prior")
    truncate(copied_weights(project, "clip") / "model.safetensors")
    said = "data/weights/clip: cannot be loaded from safetensors (SafetensorError"
    refused(cad("prior", "prune", "robot"), said, project, "runs/robot/prune")


def test_weights_of_another_model(project: Path, cad: Cad) -> None:
    give_input(project)
    give_cache(project, "prior")
    change(project, {"models": {"clip": str(ROOT / "data/weights/autoencoder")}})
    refused(cad("prior", "prune", "robot"), f"{ROOT}/data/weights/autoencoder: ", project, "runs/robot/prune")


@pytest.mark.parametrize(("stage", "command"), [("stage1", ("train", "stage2")), ("stage2", ("orbit",))])
def test_a_wrong_checkpoint(project: Path, cad: Cad, stage: str, command: tuple[str, ...]) -> None:
    give_input(project)
    give_cache(project, "refine")
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


def test_a_loss_that_is_not_a_number(project: Path, cad: Cad, monkeypatch: pytest.MonkeyPatch) -> None:
    give_cache(project, "refine")
    monkeypatch.setattr("cad.train.stage1.generator_loss", lambda logits: logits.mean() * float("nan"))
    said = "stage1: the loss `generator` is nan at step 0; training diverged: lower stage1.lr_discriminator"
    refused(cad("train", "stage1", "robot"), said, project, "runs/robot/stage1")


def test_a_training_that_diverges_later_keeps_its_last_checkpoint_out_of_the_results(
    project: Path, cad: Cad, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cad.train import stage1

    give_cache(project, "refine")
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
    (work,) = project.glob(".work/*/")
    assert Checkpoint.open(work, "stage1").state["step"] == 1  # to go on from, with the same settings
    ended = cad("train", "stage1", "robot")  # the fault is gone
    assert ended.code == 0
    assert Checkpoint.open(project / "runs/robot/stage1", "stage1").state["step"] == 2


@pytest.mark.parametrize(("stage", "command"), [("input", ("input",)), ("stage1", ("train", "stage1"))])
def test_a_full_disk(
    project: Path, cad: Cad, monkeypatch: pytest.MonkeyPatch, stage: str, command: tuple[str, ...]
) -> None:
    give_cache(project, "refine")
    write = Path.write_bytes

    def full(path: Path, data: bytes) -> int:
        write(path, data[: len(data) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    ended = cad(*command, "robot")
    refused(ended, ".work/", project, f"runs/robot/{stage}")
    assert "no space left on the disk; free some and run the same command again" in ended.err[0]


def test_a_former_output_survives_a_refusal(project: Path, cad: Cad) -> None:
    assert cad("input", "robot").code == 0
    before = {path.name: path.read_bytes() for path in (project / "runs/robot/input").iterdir()}
    (project / PROMPT).write_text("")
    refused(cad("input", "robot"), f"{PROMPT}: the prompt is empty", project)
    assert {path.name: path.read_bytes() for path in (project / "runs/robot/input").iterdir()} == before


def test_a_report_without_runs(project: Path, cad: Cad) -> None:
    said = "runs/robot/evaluate/metrics.json: missing"
    refused(cad("report", "all"), said, project, "reports", "runs")
    refused(cad("report", "show"), "reports/table1.csv: missing; run `cad report all`", project, "reports", "runs")
