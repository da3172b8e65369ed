import json

import numpy as np
import pandas
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from cad.artifacts import PriorCache, read_image
from cad.camera import sphere_poses
from cad.config import ObjectSettings, PruneSettings, ToyworldSettings
from cad.errors import UserError
from cad.prior.clip import Clip
from cad.prior.pictures import foreground
from cad.prior.prune import count_bad_pixels, decide, dilate, prune_prior, read_decisions
from cad.seeding import generator
from cad.toyworld.world import instance, render_views

SETTINGS = PruneSettings(
    enabled=True, white_threshold=250, dilation_px=1, max_bad_pixels=3, min_clip_similarity=0.5, batch=3
)
PLAIN = ObjectSettings(image="i.png", prompt="p.txt", reference_polar_deg=70.0, framed=True, toyworld=None)
ROBOT = PLAIN.model_copy(update={"toyworld": ToyworldSettings(family="robot", seed=900001)})


def test_worked_example():
    """Two 3 x 3 squares, one shifted right by 2, share a column, which the dilation grows to 5 x 3."""
    shapes = np.zeros((2, 7, 9), bool)
    shapes[0, 2:5, 1:4] = True
    shapes[1, 2:5, 3:6] = True
    # Shared: column 3, rows 2-4. Dilated by 1: columns 2-4, rows 1-5. Outside: column 1, and column 5.
    assert count_bad_pixels(shapes, 1).tolist() == [3, 3]
    assert count_bad_pixels(shapes, 0).tolist() == [6, 6]
    assert count_bad_pixels(shapes, 2).tolist() == [0, 0]


def test_empty_overlap_counts_everything():
    shapes = np.zeros((2, 6, 6), bool)
    shapes[0, :2, :2] = True
    shapes[1, 3:, 3:] = True
    assert count_bad_pixels(shapes, 4).tolist() == [4, 9]


def test_foreground_is_what_is_not_white():
    image = np.full((1, 3, 3), 255, np.uint8)
    image[0, 1], image[0, 2] = (255, 249, 255), (250, 250, 250)
    assert foreground(image, 250).tolist() == [[False, True, False]]


@given(mask=arrays.arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9))), pixels=st.integers(0, 4))
def test_dilation_is_the_union_of_shifted_masks(mask, pixels):
    expected = np.zeros_like(mask)
    for y, x in zip(*np.nonzero(mask), strict=True):
        expected[max(0, y - pixels) : y + pixels + 1, max(0, x - pixels) : x + pixels + 1] = True
    assert (dilate(mask, pixels) == expected).all()


@given(shapes=arrays.arrays(bool, (3, 8, 8)), dilation=st.integers(0, 3))
def test_more_dilation_never_finds_more_bad_pixels(shapes, dilation):
    assert (count_bad_pixels(shapes, dilation + 1) <= count_bad_pixels(shapes, dilation)).all()
    assert (count_bad_pixels(shapes[:1], dilation) == 0).all()


@pytest.mark.parametrize(
    ("bad", "similarity", "kept", "reason"),
    [
        ([0, 3, 1], [0.5, 0.9, 0.7], True, "kept"),
        ([0, 4, 1], [0.5, 0.9, 0.7], False, "geometry"),
        ([0, 3, 1], [0.49, 0.9, 0.7], False, "similarity"),
        ([9, 9, 9], [0.1, 0.9, 0.7], False, "geometry and similarity"),
    ],
)
def test_thresholds_and_choice(bad, similarity, kept, reason):
    found = decide(np.array(bad), np.array(similarity), SETTINGS)
    assert (found.kept, found.reason, found.chosen) == (kept, reason, 1)
    assert (found.bad_pixels_max, found.clip_min, found.clip_max) == (max(bad), min(similarity), 0.9)


def test_disabled_keeps_the_first_never_the_best():
    found = decide(np.array([99, 99]), np.array([0.0, 1.0]), SETTINGS.model_copy(update={"enabled": False}))
    assert (found.kept, found.chosen, found.reason) == (True, 0, "not pruned")


@pytest.fixture
def prior_dir(make_cache, camera):
    """Six poses of true views, three samples each; at the odd ones a sample is a view from elsewhere."""
    poses = sphere_poses(6, generator("prune"))
    views = render_views(instance("robot", 900001), poses, camera, 16).images
    images = np.repeat(views[:, None], 3, axis=1)
    images[1::2, 2] = 255
    images[1::2, 2, :4, :4] = 0
    return make_cache(poses, images)


def run(settings, camera, models, input_dir, prior_dir, source, out, context):
    out.mkdir()
    prune_prior(settings, camera, models, input_dir, prior_dir, source, out, context)
    return read_decisions(out), json.loads((out / "summary.json").read_text())


def test_stage(camera, models, input_dir, prior_dir, tmp_path, context):
    settings = SETTINGS.model_copy(update={"min_clip_similarity": -1.0})
    table, summary = run(settings, camera, models, input_dir, prior_dir, ROBOT, tmp_path / "prune", context)
    assert table["kept"].tolist() == [True, False] * 3
    assert table["reason"].tolist() == ["kept", "geometry"] * 3
    assert summary["reasons"] == {"kept": 3, "geometry": 3}
    assert summary["truth"]["precision"] == summary["truth"]["recall"] == 1.0
    assert summary["truth"]["bad_poses"] == summary["truth"]["bad_samples"] == 3
    assert summary["truth"]["bad_after"] == 0
    assert read_image(tmp_path / "prune" / "contact.png").ndim == 3
    # The recorded similarities are plain cosines to the reference.
    clip = Clip.load(models.clip, context.device)
    a = clip.images(PriorCache.open(prior_dir).read(1))
    b = clip.images(read_image(input_dir / "image.png")[None])[0]
    cosines = [float(torch.dot(x, b) / x.norm() / b.norm()) for x in a]
    assert table["clip_min"][1] == pytest.approx(min(cosines), abs=1e-5)
    assert table["clip_max"][1] == pytest.approx(max(cosines), abs=1e-5)


def test_without_pruning_every_pose_stays(camera, models, input_dir, prior_dir, tmp_path, context):
    settings = SETTINGS.model_copy(update={"enabled": False})
    table, summary = run(settings, camera, models, input_dir, prior_dir, PLAIN, tmp_path / "prune", context)
    assert table["kept"].all()
    assert (table["chosen"] == 0).all()
    assert "truth" not in summary
    assert not (tmp_path / "prune" / "truth.parquet").exists()


def test_everything_pruned_names_the_extremes(camera, models, input_dir, prior_dir, tmp_path, context):
    settings = SETTINGS.model_copy(update={"min_clip_similarity": 1.0})
    with pytest.raises(UserError, match=r"prune: rejects all 6 poses; raise .* lower prune.min_clip_similarity"):
        run(settings, camera, models, input_dir, prior_dir, PLAIN, tmp_path / "prune", context)
    assert not list((tmp_path / "prune").iterdir())


def test_broken_decisions_are_named(tmp_path):
    with pytest.raises(UserError, match=r"decisions.parquet: missing"):
        read_decisions(tmp_path)
    pandas.DataFrame({"pose": [1]}).to_parquet(tmp_path / "decisions.parquet")
    with pytest.raises(UserError, match="azimuth"):
        read_decisions(tmp_path)
