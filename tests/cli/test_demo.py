"""`cad demo` end to end: a run is packed and shown without the run, and what is missing is named in one line."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from cad.artifacts import Checkpoint, digest, write_json
from cad.config import load
from cad.models.generator import Generator
from cad.models.layers import initialise
from cad.seeding import generator

RUN = Path("runs/robot")


@pytest.fixture
def finished(project: Any, cad: Any) -> Any:
    """A project with a finished run: input and orbit as their commands write them, random weights, made-up scores."""
    params = load(project / "params.yaml")
    network = Generator(params.generator)
    initialise(network, generator("weights"))
    sections = ("generator", "camera", "stage2")
    settings = {name: getattr(params, name).model_dump() for name in sections}
    state = {"settings": settings, "step": 1, "images": 2}
    Checkpoint.write(project / RUN / "stage2", "stage2", {"generator_ema": network.state_dict()}, state)
    write_json(project / RUN / "stage2/lineage.json", {"schema": 1, "stage": "stage2", "inputs": {}})
    assert cad("input", "robot").code == 0
    assert cad("orbit", "robot").code == 0
    rows = {"3d": {"image": 71.25, "text": 61.5, "views": 2}}
    part = {"kind": "transformers", "model": "judge", "pretrained": None, "weights": "a" * 64, "preprocessing": "none"}
    metrics = {"schema": 1, "object": "robot", "prompt": "a toy robot", "frames": 2, "seeds": 1}
    write_json(project / RUN / "evaluate/metrics.json", {**metrics, "scorers": {"judge": {**part, "rows": rows}}})
    inputs = {stage: digest(project / RUN / stage) for stage in ("input", "stage2", "orbit")}
    lineage = {"schema": 1, "stage": "evaluate", "inputs": inputs}
    write_json(project / RUN / "evaluate/lineage.json", lineage)
    return project


def test_a_packed_run_is_shown_without_the_run_and_its_settings(finished: Any, cad: Any) -> None:
    packed = cad("demo", "pack", "robot")
    assert packed.code == 0, packed.err
    assert packed.out[0].startswith("demo: data/demo/robot, 0.")
    assert "dvc add data" in packed.out[1]
    shutil.rmtree(finished / "runs")
    (finished / "params.yaml").unlink()
    shown = cad("demo", "show")
    assert shown.code == 0, shown.err
    assert "robot: “a toy robot”" in shown.out
    assert any("71.25" in line for line in shown.out)
    assert shown.out[-1].startswith("Look at reports/demo/robot.png")
    assert (finished / "reports/demo/robot.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("demo", "show"), "data/demo: missing; run `dvc pull data.dvc`"),
        (("demo", "show", "--demo", "elsewhere"), "elsewhere: missing; run `dvc pull data.dvc`"),
        (("demo", "pack", "robot"), "runs/robot/input: is no finished stage; run `dvc repro input@robot` first"),
        (("demo", "pack", "cow"), "evaluations.cow: "),
    ],
    ids=["nothing packed", "another folder", "no run", "no such entry"],
)
def test_what_is_missing_is_one_line_and_code_2(project: Any, cad: Any, arguments: tuple[str, ...], said: str) -> None:
    ended = cad(*arguments)
    assert ended.code == 2
    assert ended.out == []
    assert len(ended.err) == 1
    assert ended.err[0].startswith(f"error: {said}")
    assert not (project / "data/demo").exists()
    assert not (project / "reports").exists()


def test_a_damaged_file_is_named_with_the_remedy_and_nothing_is_drawn(finished: Any, cad: Any) -> None:
    cad("demo", "pack", "robot")
    weights = finished / "data/demo/robot/weights/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-2] + b"??")
    ended = cad("demo", "show", "robot")
    assert ended.code == 2
    assert ended.out == []
    assert ended.err == [
        "error: data/demo/robot/weights/model.safetensors: damaged, its digest is not the recorded one; "
        "remove data/demo/robot and run `dvc pull data.dvc`"
    ]
    assert not (finished / "reports").exists()
