import json
import math
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional

from cad.camera import relative_pose
from cad.errors import UserError
from cad.prior import ddim
from cad.prior.zero123 import CCProjection, Zero123, draw_drops, training_loss
from cad.seeding import generator

CPU = torch.device("cpu")


def draw(name, *shape):
    return torch.randn(*shape, generator=generator("zero123", name))


class Spy(torch.nn.Module):
    """Stands in for the UNet and keeps what it is given; predicts a fixed mixture of its inputs."""

    def __init__(self, unet):
        super().__init__()
        self.config = unet.config
        self.calls = []

    def forward(self, sample, timestep, encoder_hidden_states):
        self.calls.append((sample, timestep, encoder_hidden_states))
        signal = encoder_hidden_states.mean((1, 2))[:, None, None, None] + sample[:, 4:]
        return type("Output", (), {"sample": 0.3 * sample[:, :4] + signal})


@pytest.fixture
def spied(zero123):
    return Zero123(
        zero123.vae, Spy(zero123.unet), zero123.image_encoder, zero123.feature_extractor, zero123.cc_projection,
        zero123.scheduler,
    )  # fmt: skip


def test_folder_has_the_published_layout(zero123_folder):
    names = {path.name for path in zero123_folder.iterdir()}
    assert names == {
        "vae", "unet", "image_encoder", "feature_extractor", "cc_projection", "scheduler", "model_index.json"
    }  # fmt: skip
    weights = load_file(zero123_folder / "cc_projection" / "diffusion_pytorch_model.safetensors")
    assert set(weights) == {"projection.weight", "projection.bias"}
    assert json.loads((zero123_folder / "unet" / "config.json").read_text())["in_channels"] == 8


def test_cc_projection_of_a_bare_config_has_the_published_size(tmp_path):
    CCProjection().save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"_class_name": "CCProjection"}')
    assert CCProjection.from_pretrained(tmp_path).projection.weight.shape == (768, 772)


def test_loaded_model_is_frozen_and_whole(zero123, zero123_folder):
    assert zero123.resolution == 16
    assert zero123.latent_shape == (4, 8, 8)
    saved = load_file(zero123_folder / "unet" / "diffusion_pytorch_model.safetensors")
    for name, tensor in zero123.unet.state_dict().items():
        assert torch.equal(tensor, saved[name])
    assert not any(p.requires_grad for p in zero123.unet.parameters())


def test_condition_by_hand(zero123):
    image = draw("image", 1, 3, 16, 16).clamp(-1, 1)
    embedding, latent = zero123.condition(image)
    small = functional.interpolate(image, (8, 8), mode="bicubic", align_corners=True)
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])[:, None, None]
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711])[:, None, None]
    vision = zero123.image_encoder.vision_model((0.5 * small + 0.5 - mean) / std).pooler_output
    torch.testing.assert_close(embedding, vision @ zero123.image_encoder.visual_projection.weight.T)
    assert not torch.allclose(embedding.norm(dim=-1), torch.ones(1), atol=1e-3)  # not normalised
    moments = zero123.vae.quant_conv(zero123.vae.encoder(image))
    torch.testing.assert_close(latent, moments[:, :4])  # the mode, unscaled


def test_align_corners_keeps_the_corner_pixels(zero123):
    image = draw("corners", 1, 3, 16, 16)
    small = functional.interpolate(image, (8, 8), mode="bicubic", align_corners=True)
    torch.testing.assert_close(small[..., 0, 0], image[..., 0, 0])
    torch.testing.assert_close(small[..., -1, -1], image[..., -1, -1])


def test_context_by_hand(zero123):
    embedding, pose = draw("e", 2, 12), draw("p", 2, 4)
    weight, bias = zero123.cc_projection.projection.weight, zero123.cc_projection.projection.bias
    expected = embedding @ weight[:, :12].T + pose @ weight[:, 12:].T + bias
    torch.testing.assert_close(zero123.context(embedding, pose), expected[:, None])


def test_pose_has_the_sign_of_the_camera_azimuth():
    turn = relative_pose(torch.tensor(math.radians(210.0)), torch.tensor(math.radians(60.0)), math.pi, math.radians(90))
    # 30 deg to the camera's own right and 30 deg up: d_polar negative, sine positive, no change of radius.
    expected = torch.tensor([-math.pi / 6, 0.5, math.sqrt(3) / 2, 0.0])
    torch.testing.assert_close(turn, expected, atol=1e-6, rtol=0)


def test_null_branch_is_zero_and_guidance_is_by_hand(spied):
    embedding, latent, pose, noise = draw("e", 1, 12), draw("l", 1, 4, 8, 8), draw("p", 3, 4), draw("n", 3, 4, 8, 8)
    found = spied.sample(embedding, latent, pose, noise, None, 1, 3.0, 0.0)
    (sample, time, context), *rest = spied.unet.calls
    assert not rest
    assert time == 1
    assert context.shape == (6, 1, 16)
    assert (context[:3] == 0).all()
    assert (sample[:3, 4:] == 0).all()
    torch.testing.assert_close(context[3:], spied.context(embedding.expand(3, -1), pose))
    torch.testing.assert_close(sample[3:, 4:], latent.expand(3, -1, -1, -1))
    torch.testing.assert_close(sample[:3, :4], noise)
    torch.testing.assert_close(sample[3:, :4], noise)
    # One deterministic step from t = 1 to the schedule's first entry, in closed form.
    null = 0.3 * noise
    conditional = 0.3 * noise + context[3:].mean((1, 2))[:, None, None, None] + latent
    epsilon = null + 3.0 * (conditional - null)
    alphas = spied.scheduler.alphas_cumprod.double()
    clean = (noise - (1 - alphas[1]).sqrt() * epsilon) / alphas[1].sqrt()
    end = alphas[0].sqrt() * clean + (1 - alphas[0]).sqrt() * epsilon
    image = spied.vae.decode((end / 0.5).float()).sample.clamp(-1, 1)
    torch.testing.assert_close(found, image, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_sample_does_not_depend_on_its_batch(zero123, eta):
    embedding, latent, pose, noise = draw("e", 1, 12), draw("l", 1, 4, 8, 8), draw("p", 3, 4), draw("n", 3, 4, 8, 8)
    steps = draw("steps", 4, 3, 4, 8, 8)
    together = zero123.sample(embedding, latent, pose, noise, lambda k: steps[k], 4, 3.0, eta)
    alone = zero123.sample(embedding, latent, pose[1:2], noise[1:2], lambda k: steps[k, 1:2], 4, 3.0, eta)
    torch.testing.assert_close(together[1:2], alone, atol=1e-4, rtol=1e-4)
    assert together.abs().max() <= 1


def test_training_loss_drops_what_sampling_drops(spied):
    latents, concat, noise = draw("x", 4, 4, 8, 8), draw("c", 4, 4, 8, 8), draw("n", 4, 4, 8, 8)
    embedding, pose = draw("e", 4, 12), draw("p", 4, 4)
    t = torch.tensor([1, 300, 600, 999])
    no_embedding, no_concat = torch.tensor([True, True, False, False]), torch.tensor([False, True, True, False])
    even = torch.ones(4, 1, 8, 8)
    loss = training_loss(spied, latents, concat, embedding, pose, t, noise, no_embedding, no_concat, even)
    ((sample, times, context),) = spied.unet.calls
    assert times is t
    assert [bool((row == 0).all()) for row in context] == no_embedding.tolist()
    assert [bool((row == 0).all()) for row in sample[:, 4:]] == no_concat.tolist()
    a = spied.scheduler.alphas_cumprod[t][:, None, None, None]
    torch.testing.assert_close(sample[:, :4], a.sqrt() * latents + (1 - a).sqrt() * noise)
    predicted = 0.3 * sample[:, :4] + context.mean((1, 2))[:, None, None, None] + sample[:, 4:]
    assert loss.item() == pytest.approx(((predicted - noise) ** 2).mean().item(), rel=1e-5)


def test_training_loss_reaches_unet_and_projection(zero123_folder):
    model = Zero123.load(zero123_folder, CPU, torch.float32)
    model.unet.requires_grad_(True)
    model.cc_projection.requires_grad_(True)
    keep = torch.zeros(2, dtype=torch.bool)
    training_loss(
        model, draw("x", 2, 4, 8, 8), draw("c", 2, 4, 8, 8), draw("e", 2, 12), draw("p", 2, 4),
        torch.tensor([10, 900]), draw("n", 2, 4, 8, 8), keep, keep, torch.ones(2, 1, 8, 8),
    ).backward()  # fmt: skip
    assert model.unet.conv_in.weight.grad.abs().sum() > 0
    assert model.cc_projection.projection.weight.grad.abs().sum() > 0


def test_drops_have_their_fractions():
    no_embedding, no_concat = draw_drops(100_000, 0.05, 0.10, 0.20, generator("drops"))
    assert (no_embedding & ~no_concat).float().mean().item() == pytest.approx(0.05, abs=0.005)
    assert (no_embedding & no_concat).float().mean().item() == pytest.approx(0.10, abs=0.005)
    assert (~no_embedding & no_concat).float().mean().item() == pytest.approx(0.20, abs=0.005)


def test_missing_folder_says_how_to_get_it(tmp_path):
    with pytest.raises(UserError, match=r"no/such/folder: no such folder of weights; run `dvc pull data.dvc`"):
        Zero123.load("no/such/folder", CPU, torch.float32)


@pytest.mark.parametrize("part", ["unet", "cc_projection", "image_encoder", "vae"])
def test_missing_and_truncated_weights_are_named(zero123_folder, tmp_path, part):
    folder = shutil.copytree(zero123_folder, tmp_path / "zero123")
    (weights,) = (folder / part).glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-40])
    with pytest.raises(UserError, match=part) as fault:
        Zero123.load(folder, CPU, torch.float32)
    assert "\n" not in str(fault.value)
    weights.unlink()
    with pytest.raises(UserError, match=part) as fault:
        Zero123.load(folder, CPU, torch.float32)
    assert "\n" not in str(fault.value)


@pytest.mark.parametrize("part", ["unet", "cc_projection", "image_encoder"])
def test_a_missing_tensor_is_never_random(zero123_folder, tmp_path, part):
    folder = shutil.copytree(zero123_folder, tmp_path / "zero123")
    (path,) = (folder / part).glob("*.safetensors")
    tensors = load_file(path)
    tensors.pop(sorted(tensors)[0])
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match=part):
        Zero123.load(folder, CPU, torch.float32)


def test_misshapen_tensor_is_refused(zero123_folder, tmp_path):
    folder = shutil.copytree(zero123_folder, tmp_path / "zero123")
    path = folder / "cc_projection" / "diffusion_pytorch_model.safetensors"
    save_file({"projection.weight": torch.zeros(3, 3), "projection.bias": torch.zeros(3)}, path, {"format": "pt"})
    with pytest.raises(UserError, match="cc_projection"):
        Zero123.load(folder, CPU, torch.float32)


def test_half_precision_files_compute_in_the_wanted_precision(zero123_folder, tmp_path):
    Zero123.load(zero123_folder, CPU, torch.float16).save(tmp_path / "half")
    model = Zero123.load(tmp_path / "half", CPU, torch.float32)
    for part in (model.vae, model.unet, model.image_encoder, model.cc_projection):
        assert {p.dtype for p in part.parameters()} == {torch.float32}


def test_decoding_keeps_its_precision_under_autocast(zero123, refiner):
    """Between 0.996 and 1 bfloat16 has nothing: pixels that are nearly white would be white."""
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    for model in (zero123, refiner):
        with ddim.in_precision(latents.device, True):
            assert model.encode(torch.zeros(1, 3, 16, 16)).dtype == torch.float32
            under = model.decode(latents)
        assert torch.equal(under, model.decode(latents))
