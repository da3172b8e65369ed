"""What `cad plan` counts against what the stages really call, on tiny settings: a hook on every UNet."""

from typing import Any

import numpy as np
import pandas
import pytest
import torch
from diffusers import UNet2DConditionModel

from cad.artifacts import write_parquet
from cad.camera import sphere_poses
from cad.config import PriorSettings, RefineSettings
from cad.plan import prior_work, refine_work
from cad.prior import refine, sample
from cad.prior.speed import measure_prior, measure_refine
from cad.seeding import generator

PRIOR = PriorSettings(
    kind="zero123", settings=None,
    poses=3, samples=2, steps=4, guidance=3.0, eta=0.0, precision="float32", bf16=False, offload=False, batch=4,
    shard_poses=2,
)  # fmt: skip


@pytest.fixture
def evaluations(monkeypatch):
    """Images that went through a UNet so far, one number in a list."""
    count = [0]
    forward = UNet2DConditionModel.forward

    def counted(self: Any, noisy: torch.Tensor, *rest: Any, **named: Any) -> Any:
        count[0] += len(noisy)
        return forward(self, noisy, *rest, **named)

    monkeypatch.setattr(UNet2DConditionModel, "forward", counted)
    return count


@pytest.fixture
def refine_settings():
    """Refinement of the fixture models' only family here; fields of other ones are null."""
    walk = {"strength": 0.7, "guidance": 2.0, "steps": 5}
    values = {
        "enabled": True, "kind": "latent-diffusion", "settings": None,
        "latent_diffusion": walk, "controlnet_depth": None,
        "deepfloyd_if": None, "precision": "float32", "bf16": False, "draws": 2, "batch": 3, "view_prompts": True,
        "shard_poses": 2,
    }  # fmt: skip
    return RefineSettings.model_validate({key: values[key] for key in RefineSettings.model_fields})


def test_sampling_calls_what_the_plan_counts(evaluations, camera, models, input_dir, tmp_path, context):
    out = tmp_path / "prior"
    out.mkdir()
    sample.sample_prior(PRIOR, camera, models, input_dir, out, context)
    assert evaluations == [prior_work(PRIOR)["zero123"]] == [3 * 2 * 4 * 2]


def test_refining_calls_what_the_plan_counts(
    evaluations, refine_settings, camera, models, input_dir, make_cache, tmp_path, context
):
    poses = sphere_poses(3, generator("counts"))
    prior_dir = make_cache(poses, np.random.default_rng(0).integers(0, 256, (3, 2, 16, 16, 3), np.uint8))
    table = {
        "pose": [0, 1, 2], "azimuth": poses.azimuth.numpy(), "polar": poses.polar.numpy(), "bad_pixels_max": [0, 0, 9],
        "clip_min": [0.9] * 3, "clip_max": [0.9] * 3, "chosen": [0, 1, 0], "kept": [True, True, False],
        "reason": ["kept", "kept", "geometry"],
    }  # fmt: skip
    write_parquet(tmp_path / "prune" / "decisions.parquet", pandas.DataFrame(table))
    out = tmp_path / "refine"
    out.mkdir()
    refine.refine_prior(refine_settings, camera, models, input_dir, prior_dir, tmp_path / "prune", out, context)
    # Two poses are kept; round(5 * 0.7) = 4 steps [Python rounds halves to even].
    assert evaluations == [refine_work(refine_settings, 2)["refiner"]] == [2 * 2 * 4 * 2]


def test_measuring_evaluates_batches_of_the_stage(evaluations, refine_settings, models):
    """Batches doubled for guidance, once to warm up and three times under the clock."""
    speed = measure_prior(PRIOR, models, torch.device("cpu"))["zero123"]
    assert evaluations == [4 * 2 * 4]
    assert speed.rate > 0
    assert speed.peak > 10**7
    found = measure_refine(refine_settings, models, torch.device("cpu"))
    assert list(found) == ["refiner"]
    assert evaluations == [4 * 2 * 4 + 4 * 2 * 3]
