import json

import numpy as np
import pandas as pd
import pytest

from cad.artifacts import Orbit, digest, read_image
from cad.config import EvaluateSettings
from cad.errors import UserError
from cad.evaluate.orbit import render_orbit
from cad.evaluate.score import evaluate_orbit, seed_statistics

NAME = "tiny CLIP"


@pytest.fixture
def settings(clip_folder):
    scorer = {"kind": "transformers", "model": str(clip_folder), "pretrained": None}
    return EvaluateSettings.model_validate({"scorers": {NAME: scorer}, "batch": 5, "controls": True})


@pytest.fixture
def orbit_dir(orbit_settings, camera, stage2_dir, input_dir, tmp_path, context):
    render_orbit(orbit_settings, camera, stage2_dir, input_dir, tmp_path / "orbit", context)
    return tmp_path / "orbit"


def evaluated(settings, camera, source, input_dir, orbit_dir, stage2_dir, out, context):
    evaluate_orbit(settings, camera, source, input_dir, orbit_dir, stage2_dir, out, context)
    return json.loads((out / "metrics.json").read_text()), pd.read_csv(out / "views" / "frames.csv")


def test_every_row_is_scored(settings, camera, source, input_dir, orbit_dir, stage2_dir, tmp_path, context):
    metrics, frames = evaluated(settings, camera, source, input_dir, orbit_dir, stage2_dir, tmp_path / "e", context)
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
    assert metrics["truth"]["rows"]["truth"] == {"azimuth_right": 1.0, "silhouette_iou": 1.0}
    assert metrics["truth"]["rows"]["other"]["silhouette_iou"] < 1
    first = frames[(frames["row"] == "truth") & (frames["frame"] == 0)].iloc[0]
    assert first[f"image: {NAME}"] == pytest.approx(100, abs=1e-3)
    assert first["azimuth_deg"] == pytest.approx(180)
    strip = read_image(tmp_path / "e/views/truth.png")
    np.testing.assert_array_equal(strip[:, :16], read_image(input_dir / "image.png"))
    assert strip.shape == (16, 6 * 16, 3)


def test_evaluation_is_deterministic(settings, camera, source, input_dir, orbit_dir, stage2_dir, tmp_path, context):
    for out in ("a", "b"):
        evaluate_orbit(settings, camera, source, input_dir, orbit_dir, stage2_dir, tmp_path / out, context)
    assert digest(tmp_path / "a") == digest(tmp_path / "b")


def test_a_photograph_has_no_truth(settings, camera, source, input_dir, orbit_dir, stage2_dir, tmp_path, context):
    photograph = source.model_copy(update={"toyworld": None})
    metrics, frames = evaluated(settings, camera, photograph, input_dir, orbit_dir, stage2_dir, tmp_path / "e", context)
    assert set(metrics["scorers"][NAME]["rows"]) == {"3d", "2d", "copied", "untrained"}
    assert "truth" not in metrics
    assert "silhouette_iou" not in frames
    assert not (tmp_path / "e/views/truth.png").exists()


def test_without_controls_only_ours(settings, camera, source, input_dir, orbit_dir, stage2_dir, tmp_path, context):
    bare = settings.model_copy(update={"controls": False})
    metrics, _ = evaluated(bare, camera, source, input_dir, orbit_dir, stage2_dir, tmp_path / "e", context)
    assert set(metrics["scorers"][NAME]["rows"]) == {"3d", "2d"}


def test_our_image_score_by_hand(settings, camera, source, input_dir, orbit_dir, stage2_dir, tmp_path, context):
    """One frame, scored outside of the stage."""
    import torch

    from cad.evaluate.scorers import load_scorer

    _, frames = evaluated(settings, camera, source, input_dir, orbit_dir, stage2_dir, tmp_path / "e", context)
    scorer = load_scorer(NAME, settings.scorers[NAME], torch.device("cpu"))
    view = scorer.images(Orbit.open(orbit_dir).frame("3d", 1, 4)[None]).numpy()[0]
    reference = scorer.images(read_image(input_dir / "image.png")[None]).numpy()[0]
    found = frames[(frames["row"] == "3d") & (frames["seed"] == 1) & (frames["frame"] == 4)].iloc[0]
    assert found[f"image: {NAME}"] == pytest.approx(100 * float(view @ reference), abs=1e-3)


def test_std_is_over_the_seeds_means():
    part = pd.DataFrame({"seed": [0, 0, 1, 1], "x": [1.0, 3.0, 4.0, 6.0]})  # means 2 and 5
    assert seed_statistics(part, "x", "image") == {"image": 3.5, "image_std": pytest.approx(4.5**0.5, abs=1e-6)}


def test_a_broken_orbit_is_a_user_error(settings, camera, source, input_dir, orbit_dir, stage2_dir, tmp_path, context):
    (orbit_dir / "3d/seed-0001/rgba-002.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match="seed-0001"):
        evaluate_orbit(settings, camera, source, input_dir, orbit_dir, stage2_dir, tmp_path / "e", context)
    assert not (tmp_path / "e").exists()
