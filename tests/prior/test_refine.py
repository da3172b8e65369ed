import math

import numpy as np
import pandas
import pytest
import torch

from cad.artifacts import PriorCache, digest, read_image, write_parquet
from cad.camera import sphere_poses
from cad.config import RefineSettings
from cad.prior import refine
from cad.prior.latent_diffusion import LatentDiffusion
from cad.prior.pictures import to_network, to_picture
from cad.seeding import generator

WALK = {"strength": 0.5, "guidance": 4.0, "steps": 4}
SETTINGS = RefineSettings.model_validate(
    {
        "enabled": True, "kind": "latent-diffusion", "settings": None,
        "precision": "float32", "bf16": False, "draws": 3, "batch": 2,
        "view_prompts": True, "shard_poses": 2, "latent_diffusion": WALK,
        "controlnet_depth": {**WALK, "conditioning_scale": 0.8},
        "deepfloyd_if": {"stage1": WALK, "stage2": {**WALK, "noise_level": 250}},
    }
)  # fmt: skip


@pytest.mark.parametrize(
    ("azimuth", "polar", "view"),
    [
        (180, 90, "front"), (-180, 70, "front"), (136, 90, "front"), (224, 90, "front"), (180 + 360, 90, "front"),
        (0, 90, "back"), (44, 90, "back"), (-44, 90, "back"), (316, 90, "back"), (359, 31, "back"),
        (90, 90, "side"), (270, 90, "side"), (46, 90, "side"), (134, 149, "side"), (226, 90, "side"),
        (180, 29, "overhead"), (0, 1, "overhead"), (180, 151, "bottom"), (90, 179, "bottom"),
    ],
)  # fmt: skip
def test_view_rule(azimuth, polar, view):
    assert refine.view_name(math.radians(azimuth), math.radians(polar)) == view
    assert refine.view_prompt("a toy", math.radians(azimuth), math.radians(polar)) == f"a toy, {view} view"


@pytest.fixture
def prior_dir(make_cache):
    images = np.random.default_rng(0).integers(0, 256, (4, 2, 16, 16, 3), np.uint8)
    return make_cache(sphere_poses(4, generator("refine")), images)


@pytest.fixture
def prune_dir(tmp_path, prior_dir):
    poses = PriorCache.open(prior_dir).poses
    table = pandas.DataFrame(
        {
            "pose": [0, 1, 2, 3],
            "azimuth": poses.azimuth.numpy(),
            "polar": poses.polar.numpy(),
            "bad_pixels_max": [0, 9, 0, 0],
            "clip_min": [0.9] * 4,
            "clip_max": [0.9] * 4,
            "chosen": [1, 0, 0, 1],
            "kept": [True, False, True, True],
            "reason": ["kept", "geometry", "kept", "kept"],
        }
    )
    (tmp_path / "prune").mkdir()
    write_parquet(tmp_path / "prune" / "decisions.parquet", table)
    return tmp_path / "prune"


def run(settings, camera, models, input_dir, prior_dir, prune_dir, out, context):
    out.mkdir(exist_ok=True)
    refine.refine_prior(settings, camera, models, input_dir, prior_dir, prune_dir, out, context)
    return PriorCache.open(out)


def test_disabled_passes_the_chosen_sample_through(
    camera, models, input_dir, prior_dir, prune_dir, tmp_path, context
):  # fmt: skip
    settings = SETTINGS.model_copy(update={"enabled": False})
    found = run(settings, camera, models, input_dir, prior_dir, prune_dir, tmp_path / "refine", context)
    prior = PriorCache.open(prior_dir)
    assert found.pose_ids == [0, 2, 3]
    assert torch.equal(found.poses.polar, prior.poses.polar[[0, 2, 3]])
    assert found.samples == 1
    expected = np.stack([prior.read(0)[1], prior.read(2)[0], prior.read(3)[1]])
    assert (found.load()[:, 0] == expected).all()


def test_draws_of_kept_poses(camera, models, input_dir, prior_dir, prune_dir, tmp_path, context):
    found = run(SETTINGS, camera, models, input_dir, prior_dir, prune_dir, tmp_path / "refine", context)
    assert (len(found), found.samples) == (3, 3)
    assert read_image(tmp_path / "refine" / "contact.png").shape[2] == 3
    # Draw 2 of pose 3, alone, from its own generator and under its own view's prompt.
    prior = PriorCache.open(prior_dir)
    model = LatentDiffusion.load(models.refiner, context.device, torch.float32)
    azimuth, polar = float(prior.poses.azimuth[3]), float(prior.poses.polar[3])
    noise = torch.randn(1, 4, 8, 8, generator=generator(0, "robot", "refine", 3, 2))
    image = model.sdedit(
        to_network(prior.read(3)[1:2], context.device),
        model.embed([refine.view_prompt("a toy robot", azimuth, polar)]),
        model.embed([""]),
        noise,
        None,
        0.5,
        4.0,
        4,
    )
    assert np.abs(to_picture(image)[0].astype(int) - found.read(2)[2].astype(int)).max() <= 1


def test_prompts_without_views(camera, models, input_dir, prior_dir, prune_dir, tmp_path, context, monkeypatch):
    seen = []

    class Recorder:
        def refine(self, images, prompts, streams):
            seen.extend(prompts)
            return images

    monkeypatch.setitem(refine.REFINERS, "latent-diffusion", lambda *given: Recorder())
    settings = SETTINGS.model_copy(update={"view_prompts": False})
    found = run(settings, camera, models, input_dir, prior_dir, prune_dir, tmp_path / "refine", context)
    assert set(seen) == {"a toy robot"}
    assert len(seen) == 9
    assert (found.load()[:, 0] == found.load()[:, 2]).all()


def test_other_sizes_are_resized_and_back(models, context):
    model = refine.REFINERS["latent-diffusion"](models, SETTINGS, ["a toy"], context.device)
    streams = refine.NoiseStreams([generator("s")], context.device, torch.float32)
    assert model.refine(torch.ones(1, 3, 24, 24), ["a toy"], streams).shape == (1, 3, 24, 24)


def test_batch_size_moves_half_precision_by_rounding_only(
    camera, models, input_dir, prior_dir, prune_dir, tmp_path, context
):
    half = SETTINGS.model_copy(update={"bf16": True})
    alone = half.model_copy(update={"batch": 1})
    first, second = (
        run(settings, camera, models, input_dir, prior_dir, prune_dir, tmp_path / name, context).load().astype(int)
        for name, settings in (("a", half), ("b", alone))
    )
    assert np.abs(first - second).max() <= 8
    assert np.abs(first - second).mean() < 1
    assert np.abs(first[:, 0] - first[:, 1]).mean() > 20


@pytest.mark.parametrize("bf16", [False, True])
def test_killed_refinement_resumes_to_the_same_bits(
    camera, models, input_dir, prior_dir, prune_dir, tmp_path, context, monkeypatch, bf16
):
    settings = SETTINGS.model_copy(update={"bf16": bf16})
    run(settings, camera, models, input_dir, prior_dir, prune_dir, tmp_path / "whole", context)
    calls = []
    original = refine.LatentDiffusionRefiner.refine

    def killed(self, *args):
        calls.append(args)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return original(self, *args)

    monkeypatch.setattr(refine.LatentDiffusionRefiner, "refine", killed)
    with pytest.raises(KeyboardInterrupt):
        run(settings, camera, models, input_dir, prior_dir, prune_dir, tmp_path / "part", context)
    run(settings, camera, models, input_dir, prior_dir, prune_dir, tmp_path / "part", context)
    assert len(calls) == 4 + 2  # three batches of the first shard are not drawn again
    assert digest(tmp_path / "part") == digest(tmp_path / "whole")


@pytest.mark.parametrize("kind", ["controlnet-depth", "deepfloyd-if"])
def test_the_paper_s_refiners_draw_from_seed_object_pose_and_draw(
    kind, published_refiners, camera, input_dir, prior_dir, prune_dir, tmp_path, context
):
    """Whole and in batches of one: the same pictures but for rounding; and draws of one pose differ."""
    settings = SETTINGS.model_copy(update={"kind": kind})
    alone = settings.model_copy(update={"batch": 1, "shard_poses": 1})
    first, second = (
        run(chosen, camera, published_refiners, input_dir, prior_dir, prune_dir, tmp_path / name, context).load()
        for name, chosen in (("a", settings), ("b", alone))
    )
    assert first.shape == (3, 3, 16, 16, 3)
    assert np.abs(first.astype(int) - second.astype(int)).max() <= 1
    assert np.abs(first[:, 0].astype(int) - first[:, 1].astype(int)).mean() > 5
