import numpy as np
import pytest
import torch

from cad.artifacts import InputArtifact, PriorCache, digest
from cad.camera import relative_pose, sphere_poses
from cad.config import PriorSettings
from cad.errors import UserError
from cad.prior import sample
from cad.prior.pictures import to_network, to_picture
from cad.prior.zero123 import Zero123
from cad.seeding import generator

SETTINGS = PriorSettings(
    kind="zero123", settings=None,
    poses=5, samples=2, steps=2, guidance=3.0, eta=1.0, precision="float32", bf16=False, offload=False, batch=3,
    shard_poses=2,
)  # fmt: skip


def run(settings, camera, models, input_dir, out, context):
    out.mkdir(exist_ok=True)
    sample.sample_prior(settings, camera, models, input_dir, out, context)
    return PriorCache.open(out)


def test_cache_holds_every_pose_and_sample(camera, models, input_dir, tmp_path, context):
    cache = run(SETTINGS, camera, models, input_dir, tmp_path / "prior", context)
    assert (len(cache), cache.samples, cache.resolution) == (5, 2, 16)
    expected = sphere_poses(5, generator(0, "robot", "poses"))
    assert torch.equal(cache.poses.azimuth, expected.azimuth)
    assert cache.pose_ids == [0, 1, 2, 3, 4]
    images = cache.load()
    assert (images[:, 0] != images[:, 1]).any(axis=(1, 2, 3)).all()


def test_sample_is_the_models_own(camera, models, input_dir, tmp_path, context):
    """Sample 1 at pose 3, drawn alone from its own generator."""
    cache = run(SETTINGS, camera, models, input_dir, tmp_path / "prior", context)
    model = Zero123.load(models.zero123, context.device, torch.float32)
    source = InputArtifact.open(input_dir)
    embedding, latent = model.condition(to_network(source.image[None], context.device))
    pose = relative_pose(cache.poses.azimuth, cache.poses.polar, np.pi, np.radians(70))[3:4].float()
    stream = generator(0, "robot", "prior", 3, 1)
    noise, *steps = [torch.randn(1, 4, 8, 8, generator=stream) for _ in range(3)]
    image = to_picture(model.sample(embedding, latent, pose, noise, lambda k: steps[k], 2, 3.0, 1.0))
    assert np.abs(image[0].astype(int) - cache.read(3)[1].astype(int)).max() <= 1


def test_batch_size_and_more_samples_change_nothing_else(camera, models, input_dir, tmp_path, context):
    first = run(SETTINGS, camera, models, input_dir, tmp_path / "a", context).load().astype(int)
    other = SETTINGS.model_copy(update={"batch": 1, "samples": 3, "shard_poses": 5})
    second = run(other, camera, models, input_dir, tmp_path / "b", context).load().astype(int)
    assert np.abs(first - second[:, :2]).max() <= 1


def test_half_precision_is_close_and_keeps_its_own_bits(camera, models, input_dir, tmp_path, context):
    """Of what untrained networks draw, a grey level or two; and again the same."""
    half = SETTINGS.model_copy(update={"bf16": True})
    first, again, whole = (
        run(settings, camera, models, input_dir, tmp_path / name, context).load().astype(int)
        for name, settings in (("a", half), ("b", half), ("c", SETTINGS))
    )
    assert np.array_equal(first, again)
    assert 0 < np.abs(first - whole).mean() < 3


def test_batch_size_moves_half_precision_by_rounding_only(camera, models, input_dir, tmp_path, context):
    """Far below what another noise changes: it is drawn per image."""
    half = SETTINGS.model_copy(update={"bf16": True})
    first = run(half, camera, models, input_dir, tmp_path / "a", context).load().astype(int)
    other = half.model_copy(update={"batch": 1})
    second = run(other, camera, models, input_dir, tmp_path / "b", context).load().astype(int)
    assert np.abs(first - second).max() <= 8
    assert np.abs(first - second).mean() < 1
    assert np.abs(first[:, 0] - first[:, 1]).mean() > 20


@pytest.mark.parametrize("bf16", [False, True])
def test_killed_sampling_resumes_to_the_same_bits(camera, models, input_dir, tmp_path, context, monkeypatch, bf16):
    settings = SETTINGS.model_copy(update={"bf16": bf16})
    run(settings, camera, models, input_dir, tmp_path / "whole", context)
    calls = []
    original = sample.sample_views

    def killed(*args):
        calls.append(args[3])
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(*args)

    monkeypatch.setattr(sample, "sample_views", killed)
    with pytest.raises(KeyboardInterrupt):
        run(settings, camera, models, input_dir, tmp_path / "part", context)
    run(settings, camera, models, input_dir, tmp_path / "part", context)
    assert calls[3][0] == (2, 0)  # the second shard is begun again, the first is not
    assert digest(tmp_path / "part") == digest(tmp_path / "whole")


def test_wrong_resolution_is_named(camera, models, tmp_path, context):
    image = np.zeros((32, 32, 3), np.uint8)
    InputArtifact.write(tmp_path / "input", image, image[..., 0] == 0, "a robot", "robot", 180.0, 70.0, "none")
    with pytest.raises(UserError, match=r"input.resolution: 32 does not fit models.zero123, which works at 16"):
        run(SETTINGS, camera, models, tmp_path / "input", tmp_path / "prior", context)


def test_white_is_exactly_white():
    picture = np.array([[[[255, 0, 128]]]], np.uint8)
    network = to_network(picture, torch.device("cpu"))
    assert network[0, 0, 0, 0] == 1
    assert network[0, 1, 0, 0] == -1
    assert (to_picture(network) == picture).all()
