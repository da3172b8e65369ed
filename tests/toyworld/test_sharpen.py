"""The autoencoder's later training: latents hardly move, the pictures change, and every copy follows."""

import shutil
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from cad.toyworld import sharpen
from cad.toyworld.check import stale_copies
from cad.toyworld.dataset import Dataset
from cad.toyworld.settings import ToyworldSettings

FILE = "diffusion_pytorch_model.safetensors"


class Distance(nn.Module):
    """Stands in for LPIPS, which needs 31 px."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        assert not torch.is_autocast_enabled("cpu")
        assert a.dtype == b.dtype == torch.float32
        return (a - b).square().mean((1, 2, 3), keepdim=True)


@pytest.fixture
def home(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A weights folder whose Zero-1-to-3 has a copy of the autoencoder; no refiner yet."""
    shutil.copytree(weights, tmp_path / "weights")
    shutil.copytree(weights / "autoencoder", tmp_path / "weights/zero123/vae")
    monkeypatch.setattr(sharpen, "load_lpips", lambda *_: Distance())
    return tmp_path / "weights"


def train(home: Path, data: Dataset, settings: ToyworldSettings, work: Path) -> None:
    sharpen.sharpen_autoencoder(settings.autoencoder, data, 0, home, work, lambda text: None)


def drift(settings: ToyworldSettings, home: Path, data: Dataset, work: Path, weight: float) -> float:
    """Root mean square of what a training with this `latent_weight` does to the latents."""
    images = data.pick(torch.arange(4), torch.zeros(4, dtype=torch.int64))
    before = AutoencoderKL.from_pretrained(home / "autoencoder").float().encode(images).latent_dist.mode()
    fit = settings.autoencoder.sharpen.model_copy(update={"steps": 20, "lr": 3e-3, "cooldown": 0.9})
    chosen = settings.autoencoder.model_copy(update={"latent_weight": weight, "sharpen": fit})
    sharpen.sharpen_autoencoder(chosen, data, 0, home, work, lambda text: None)
    after = AutoencoderKL.from_pretrained(home / "autoencoder").float().encode(images).latent_dist.mode()
    return (after - before).square().mean().sqrt().item()


def test_pictures_change_and_latents_are_held(
    home: Path, data: Dataset, settings: ToyworldSettings, tmp_path: Path
) -> None:
    before = AutoencoderKL.from_pretrained(home / "autoencoder")
    copy = shutil.copytree(home, tmp_path / "free")
    held, free = drift(settings, home, data, tmp_path / "a", 1e4), drift(settings, copy, data, tmp_path / "b", 0.0)
    assert 0 < held < free / 2
    after = AutoencoderKL.from_pretrained(home / "autoencoder")
    decoded = {k for k, v in before.state_dict().items() if not torch.equal(v, after.state_dict()[k])}
    assert any(key.startswith("decoder.") for key in decoded)
    assert after.config.scaling_factor == before.config.scaling_factor


def test_copies_follow(home: Path, data: Dataset, settings: ToyworldSettings, tmp_path: Path) -> None:
    train(home, data, settings, tmp_path / "work")
    assert (home / "zero123/vae" / FILE).read_bytes() == (home / "autoencoder" / FILE).read_bytes()
    assert not (home / "refiner").exists()
    assert stale_copies(home) == []


def test_a_copy_that_was_saved_later_is_renewed_by_calling_again(
    home: Path, data: Dataset, settings: ToyworldSettings, tmp_path: Path
) -> None:
    """A diffusion model that began before the decoder's training ends with the old one."""
    old = (home / "autoencoder" / FILE).read_bytes()
    train(home, data, settings, tmp_path / "work")
    new = (home / "autoencoder" / FILE).read_bytes()
    (home / "zero123/vae" / FILE).write_bytes(old)
    assert stale_copies(home) == ["zero123"]
    train(home, data, settings, tmp_path / "work")
    assert (home / "zero123/vae" / FILE).read_bytes() == (home / "autoencoder" / FILE).read_bytes() == new


def test_a_resumed_training_starts_from_the_weights_of_its_beginning_in_half_precision_too(
    home: Path, data: Dataset, settings: ToyworldSettings, tmp_path: Path
) -> None:
    """Whatever was put into weights/autoencoder since."""
    fit = settings.autoencoder.sharpen.model_copy(update={"bf16": True})
    half = settings.model_copy(update={"autoencoder": settings.autoencoder.model_copy(update={"sharpen": fit})})
    train(home, data, half, tmp_path / "work")
    first = (home / "autoencoder" / FILE).read_bytes()
    (home / "autoencoder" / "config.json").write_text("{}")
    train(home, data, half, tmp_path / "work")
    assert (home / "autoencoder" / FILE).read_bytes() == first
    assert AutoencoderKL.from_pretrained(home / "autoencoder").config.block_out_channels == [8, 8]
    assert not [path for path in home.rglob(".*")], "no partial or former folder is left"


def test_a_kill_while_saving_leaves_the_former_weights(
    home: Path, data: Dataset, settings: ToyworldSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (home / "autoencoder" / FILE).read_bytes()
    save = AutoencoderKL.save_pretrained

    def killed(self: AutoencoderKL, folder: Path) -> None:
        save(self, folder)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(AutoencoderKL, "save_pretrained", killed)
        with pytest.raises(KeyboardInterrupt):
            train(home, data, settings, tmp_path / "work")
    assert (home / "autoencoder" / FILE).read_bytes() == before
    train(home, data, settings, tmp_path / "work")
    assert (home / "autoencoder" / FILE).read_bytes() != before
