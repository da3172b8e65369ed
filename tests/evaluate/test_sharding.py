"""Orbits and scores on a local Ray of two workers, one of them killed: the bits of this process alone."""

import dataclasses

import pieces
import pytest
import torch

from cad.artifacts import digest
from cad.config import EvaluateSettings
from cad.context import Context
from cad.evaluate.orbit import render_orbit
from cad.evaluate.score import evaluate_orbit
from cad.tracking import Tracker


@pytest.fixture
def settings(clip_folder):
    scorers = {name: {"kind": "transformers", "model": str(clip_folder), "pretrained": None} for name in ("a", "b")}
    values = {"batch": 5, "controls": True, "step_frames": 1, "depth_tolerance": 0.05}
    return EvaluateSettings.model_validate(
        {"scorers": scorers, **values, "diversity_interval": 2, "diversity_poses": 2}
    )


@pytest.fixture
def context():
    """As the conftest's, on one thread, as the workers are."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield Context(seed=3, object="mug", device=torch.device("cpu"), tracker=Tracker(None, None))
    torch.set_num_threads(threads)


@pytest.mark.slow
def test_two_workers_of_which_one_is_killed_write_what_one_process_does(
    orbit_settings, settings, camera, models, source, stage2_dir, input_dir, refine_dir, tmp_path, context, capsys
):
    def render(name, engine):
        elsewhere = dataclasses.replace(context, engine=engine)
        render_orbit(orbit_settings, camera, stage2_dir, input_dir, tmp_path / name, elsewhere)
        return digest(tmp_path / name)

    def evaluate(name, engine):
        elsewhere = dataclasses.replace(context, engine=engine)
        folders = input_dir, refine_dir, tmp_path / "orbit", stage2_dir
        evaluate_orbit(settings, camera, models, source, *folders, tmp_path / name, elsewhere)
        return digest(tmp_path / name)

    rendered, scored = render("orbit", context.engine), evaluate("evaluate", context.engine)
    with pieces.two_workers() as engine:
        struck = [pieces.Striking(engine, tmp_path / f"struck-{k}") for k in range(2)]
        assert render("orbit-on-ray", struck[0]) == rendered
        assert evaluate("evaluate-on-ray", struck[1]) == scored
        assert all(each.mark.exists() for each in struck)
        assert capsys.readouterr().err.count("a worker was lost; piece 0 is done again") == 2
        (tmp_path / "orbit-on-ray/3d/seed-0001/depth-005.png").unlink()  # as if killed before the last frame
        (tmp_path / "orbit-on-ray/cameras.json").unlink()
        assert render("orbit-on-ray", engine) == rendered
