import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from cad.artifacts import Orbit, PriorCache, digest, read_image
from cad.camera import Poses
from cad.config import EvaluateSettings
from cad.errors import UserError
from cad.evaluate import distribution
from cad.evaluate.orbit import render_orbit
from cad.evaluate.score import add_scores, evaluate_orbit
from cad.evaluate.scorers import load_scorer
from cad.toyworld import world
from cad.train.perceptual import load_lpips

NAME = "tiny CLIP"


@pytest.fixture
def settings(clip_folder):
    scorer = {"kind": "transformers", "model": str(clip_folder), "pretrained": None}
    values = {"batch": 5, "controls": True, "step_frames": 1, "depth_tolerance": 0.05}
    cost = {"diversity_interval": 2, "diversity_poses": 2}
    return EvaluateSettings.model_validate({"scorers": {NAME: scorer}, **values, **cost})


@pytest.fixture
def orbit_dir(orbit_settings, camera, stage2_dir, input_dir, tmp_path, context):
    render_orbit(orbit_settings, camera, stage2_dir, input_dir, tmp_path / "orbit", context)
    return tmp_path / "orbit"


@pytest.fixture
def run(camera, models, source, input_dir, refine_dir, orbit_dir, stage2_dir, tmp_path, context):
    """The stage on these folders, with some arguments replaced: its folder, its metrics and its frame table."""

    def evaluate(settings, out=tmp_path / "e", **other):
        usual = {"camera": camera, "models": models, "source": source, "input_dir": input_dir, "refine_dir": refine_dir}
        more = {"orbit_dir": orbit_dir, "stage2_dir": stage2_dir, "context": context}
        evaluate_orbit(settings, out=out, **(usual | more | other))
        return json.loads((out / "metrics.json").read_text()), pd.read_csv(out / "views" / "frames.csv")

    return evaluate


def test_every_row_is_scored(run, settings, input_dir, tmp_path, context):
    metrics, frames = run(settings)
    rows = metrics["scorers"][NAME]["rows"]
    assert set(rows) == {"3d", "2d", "truth", "copied", "other", "untrained"}
    assert rows["copied"]["image"] == pytest.approx(100, abs=1e-3)
    assert rows["3d"]["views"] == 12
    assert "image_std" in rows["3d"]
    assert "image_std" not in rows["truth"]  # one object, no seeds
    assert metrics["scorers"][NAME]["weights"] == digest(settings.scorers[NAME].model + "/model.safetensors")
    # means over frames and seeds are those of the frame table
    mean = frames[frames["row"] == "2d"][f"text: {NAME}"].mean()
    assert rows["2d"]["text"] == pytest.approx(mean, abs=1e-5)
    # the truth knows itself, and the first true view is the input
    known = {"azimuth_right": 1.0, "azimuth_right_seeds": [1.0], "silhouette_iou": 1.0}
    assert metrics["truth"]["rows"]["truth"] == known
    assert metrics["truth"]["rows"]["other"]["silhouette_iou"] < 1
    first = frames[(frames["row"] == "truth") & (frames["frame"] == 0)].iloc[0]
    assert first[f"image: {NAME}"] == pytest.approx(100, abs=1e-3)
    assert first["azimuth_deg"] == pytest.approx(180)
    strip = read_image(tmp_path / "e/views/truth.png")
    np.testing.assert_array_equal(strip[:, :32], read_image(input_dir / "image.png"))
    assert strip.shape == (32, 6 * 32, 3)


def test_measures_that_different_fakes_fail(run, settings, models, refine_dir):
    metrics, _ = run(settings)
    kid = {name: row["kid"] for name, row in metrics["distribution"]["rows"].items()}
    assert metrics["distribution"]["features"] == NAME
    assert set(kid) == {"3d", "2d", "truth", "copied", "other", "untrained"}
    assert abs(kid["truth"]) < min(abs(value) for name, value in kid.items() if name != "truth")
    # the random networks' seeds differ; the truth is one object, and a copy has no seeds to differ by
    diversity = metrics["diversity"]
    assert set(diversity["rows"]) == {"3d", "2d"}
    assert min(row["lpips"] for row in diversity["rows"].values()) > 0
    metric = load_lpips(Path(models.lpips), torch.device("cpu"))
    draws = [torch.from_numpy(PriorCache.open(refine_dir).read(k)).permute(0, 3, 1, 2) / 127.5 - 1 for k in (0, 1)]
    apart = [metric(each[:1], each[1:]).item() for each in draws]  # of three poses, two are compared
    assert diversity["refined"] == pytest.approx(np.mean(apart), abs=1e-5)
    # the truth survives being carried by its depth, and a copy shows no change that a depth could explain
    consistency = metrics["consistency"]
    assert (consistency["step_frames"], consistency["still_least"]) == (1, 0.5)
    for name in ("truth", "other"):
        row = consistency["rows"][name]
        assert 0 < row["ratio"] == pytest.approx(row["warp_error"] / row["still_error"], abs=1e-5)
        assert row["ratio"] < 1
        assert row["pixels"] > 0
        assert 0 < row["share"] <= 1
    assert consistency["rows"]["copied"]["still_error"] == 0
    assert "ratio" not in consistency["rows"]["copied"]
    assert set(consistency["one_depth"]) <= {"3d", "2d"}
    assert len({row["pixels"] for row in consistency["one_depth"].values()}) <= 1
    # the shares of the seeds are those behind the mean
    for row in metrics["truth"]["rows"].values():
        assert np.mean(row["azimuth_right_seeds"]) == pytest.approx(row["azimuth_right"], abs=1e-6)
    assert len(metrics["truth"]["rows"]["3d"]["azimuth_right_seeds"]) == 2


def test_the_truths_distance_is_not_to_itself(run, settings, camera, source):
    """The true set lies half a step beside the frames, rendered here from angles in degrees."""
    found = run(settings)[0]["distribution"]["rows"]["truth"]["kid"]
    scorer = load_scorer(NAME, settings.scorers[NAME], torch.device("cpu"))
    views = {}
    for start in (180, 210):  # frames are 60 deg apart
        azimuth = torch.deg2rad(torch.arange(6, dtype=torch.float64) * 60 + start)
        poses = Poses(azimuth, torch.full((6,), math.radians(70), dtype=torch.float64))
        images = world.render_views(world.instance("mug", source.toyworld.seed), poses, camera, 32).images
        views[start] = scorer.images(images)
    assert found == pytest.approx(distribution.kid(views[180][None], views[210]), abs=1e-3)
    assert abs(found - distribution.kid(views[180][None], views[180])) > 0.1


def test_evaluation_is_deterministic(run, settings, tmp_path):
    for out in ("a", "b"):
        run(settings, out=tmp_path / out)
    assert digest(tmp_path / "a") == digest(tmp_path / "b")


def test_a_photograph_has_no_truth(run, settings, source, tmp_path):
    metrics, frames = run(settings, source=source.model_copy(update={"toyworld": None}))
    assert set(metrics["scorers"][NAME]["rows"]) == {"3d", "2d", "copied", "untrained"}
    assert not {"truth", "distribution", "relative_image"} & set(metrics)
    assert {"diversity", "consistency"} <= set(metrics)
    assert "silhouette_iou" not in frames
    assert not (tmp_path / "e/views/truth.png").exists()


def test_without_controls_only_ours(run, settings):
    metrics, _ = run(settings.model_copy(update={"controls": False}))
    assert set(metrics["scorers"][NAME]["rows"]) == {"3d", "2d"}
    assert set(metrics["distribution"]["rows"]) == {"3d", "2d"}
    assert set(metrics["diversity"]["rows"]) == {"3d", "2d"}
    assert metrics["relative_image"] == {}


def test_our_image_score_by_hand(run, settings, orbit_dir, input_dir):
    """One frame, scored outside of the stage."""
    _, frames = run(settings)
    scorer = load_scorer(NAME, settings.scorers[NAME], torch.device("cpu"))
    view = scorer.images(Orbit.open(orbit_dir).frame("3d", 1, 4)[None]).numpy()[0]
    reference = scorer.images(read_image(input_dir / "image.png")[None]).numpy()[0]
    found = frames[(frames["row"] == "3d") & (frames["seed"] == 1) & (frames["frame"] == 4)].iloc[0]
    assert found[f"image: {NAME}"] == pytest.approx(100 * float(view @ reference), abs=1e-3)


def test_a_broken_orbit_is_a_user_error(run, settings, orbit_dir, tmp_path):
    (orbit_dir / "3d/seed-0001/rgba-002.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match="seed-0001"):
        run(settings)
    assert not (tmp_path / "e").exists()


def test_a_step_of_a_whole_turn_is_a_user_error(run, settings, tmp_path):
    with pytest.raises(UserError, match=r"evaluate\.step_frames: 6 is a whole turn .* orbit of 6 frames"):
        run(settings.model_copy(update={"step_frames": 6}))
    assert not (tmp_path / "e").exists()


def test_missing_lpips_weights_are_a_user_error(run, settings, models, tmp_path):
    with pytest.raises(UserError, match="LPIPS trunk is missing"):
        run(settings, models=models.model_copy(update={"lpips": str(tmp_path / "none.safetensors")}))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_score_that_is_not_finite_is_a_user_error(value):
    """A mean over frames would leave it out without a word."""
    views = {"3d": torch.eye(2)[None], "2d": torch.eye(2)[None].clone()}
    views["2d"][0, 1, 0] = value
    table = pd.DataFrame({"row": ["3d", "3d", "2d", "2d"]})
    scorer = SimpleNamespace(name="odd", images=lambda _: torch.eye(2)[:1], texts=lambda _: torch.eye(2)[:1])
    reference = SimpleNamespace(image=np.zeros((4, 4, 3), np.uint8), prompt="a mug")
    with pytest.raises(UserError, match=r"evaluate\.scorers\.odd: its image scores of row 2d are not finite; "):
        add_scores(table, scorer, views, reference)
