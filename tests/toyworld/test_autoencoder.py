"""The small autoencoder: what its loss weighs, and the latents' scale that it is saved with."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file

from cad.seeding import generator
from cad.toyworld.autoencoder import (
    build_autoencoder,
    foreground,
    reconstruction_loss,
    save_autoencoder,
    train_autoencoder,
)
from cad.toyworld.dataset import Dataset
from cad.toyworld.settings import ToyworldSettings


def test_foreground_is_what_is_not_white() -> None:
    images = torch.ones(1, 3, 1, 4)
    images[0, :, 0, 1] = -1  # black
    images[0, 2, 0, 2] = 0.9  # a yellowish tint in one channel
    images[0, :, 0, 3] = 0.97  # nearly white
    assert foreground(images).tolist() == [[[[False, True, True, False]]]]


def test_the_loss_weighs_the_foreground_by_hand() -> None:
    """Four pixels, one of them foreground with weight 7: the mean is over 7 + 1 + 1 + 1 = 10 shares."""
    images = torch.ones(1, 3, 2, 2)
    images[:, :, 0, 0] = -0.5
    output = images.clone()
    output[:, :, 0, 0] += 0.2  # error 0.2 in the foreground
    output[:, :, 1, 1] -= 0.4  # error 0.4 in one background pixel
    found = reconstruction_loss(output, images, 7.0, 0.0)
    assert found.item() == pytest.approx((7 * 0.2 + 0.4) / 10)
    assert reconstruction_loss(output, images, 1.0, 0.0).item() == pytest.approx((0.2 + 0.4) / 4)
    squared = reconstruction_loss(output, images, 7.0, 2.0)
    assert squared.item() == pytest.approx((7 * (0.2 + 2 * 0.04) + 0.4 + 2 * 0.16) / 10)


def test_a_plain_picture_has_a_plain_loss() -> None:
    images = torch.ones(2, 3, 4, 4)
    assert reconstruction_loss(images - 0.3, images, 7.0, 0.0).item() == pytest.approx(0.3)


def test_latents_are_a_quarter_of_the_side(settings: ToyworldSettings) -> None:
    """Three levels halve twice, as in experiments/toyworld/params.yaml: 64 px to 16 x 16 x 4."""
    three = settings.autoencoder.model_copy(update={"channels": [8, 8, 8]})
    model = build_autoencoder(three, 64, 0)
    with torch.no_grad():
        assert model.encode(torch.zeros(1, 3, 64, 64)).latent_dist.mode().shape == (1, 4, 16, 16)
    assert model.config.sample_size == 64


def test_the_seed_alone_decides_the_weights(settings: ToyworldSettings) -> None:
    state = torch.get_rng_state()
    first, second = (build_autoencoder(settings.autoencoder, 16, 5).state_dict() for _ in range(2))
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_it_is_saved_with_one_over_the_latents_deviation(
    data: Dataset, settings: ToyworldSettings, tmp_path: Path
) -> None:
    model = build_autoencoder(settings.autoencoder, 16, 5)
    stream = generator(0, "autoencoder-scale")
    subjects, views = (torch.randint(count, (512,), generator=stream) for count in (len(data), data.views))
    with torch.no_grad():
        expected = 1 / model.encode(data.pick(subjects, views)).latent_dist.mode().std().item()
    save_autoencoder(model, data, 0, tmp_path)
    loaded = AutoencoderKL.from_pretrained(tmp_path)
    assert loaded.config.scaling_factor == pytest.approx(expected, rel=1e-4)
    tensors = load_file(tmp_path / "diffusion_pytorch_model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}
    with torch.no_grad():
        scaled = loaded.encode(data.pick(subjects, views)).latent_dist.mode() * loaded.config.scaling_factor
    assert scaled.std().item() == pytest.approx(1, abs=0.01)


def test_training_writes_the_published_layout(data: Dataset, settings: ToyworldSettings, tmp_path: Path) -> None:
    told: list[str] = []
    train_autoencoder(settings.autoencoder, data, 0, tmp_path / "work", tmp_path / "out", told.append)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "config.json",
        "diffusion_pytorch_model.safetensors",
    }
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["_class_name"] == "AutoencoderKL"
    assert config["scaling_factor"] > 0
    again = tmp_path / "again"
    train_autoencoder(settings.autoencoder, data, 0, tmp_path / "other", again, told.append)
    name = "diffusion_pytorch_model.safetensors"
    assert (again / name).read_bytes() == (tmp_path / "out" / name).read_bytes()
