"""The decoder's own training: latents stay, the pictures change, and every copy of the autoencoder follows."""

import shutil
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from cad.toyworld import decoder
from cad.toyworld.check import stale_copies
from cad.toyworld.dataset import Dataset
from cad.toyworld.settings import ToyworldSettings

FILE = "diffusion_pytorch_model.safetensors"


class Distance(nn.Module):
    """Stands in for LPIPS, which needs 31 px."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return (a - b).square().mean((1, 2, 3), keepdim=True)


@pytest.fixture
def home(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A weights folder whose Zero-1-to-3 has a copy of the autoencoder; no refiner yet."""
    shutil.copytree(weights, tmp_path / "weights")
    shutil.copytree(weights / "autoencoder", tmp_path / "weights/zero123/vae")
    monkeypatch.setattr(decoder, "load_lpips", lambda *_: Distance())
    return tmp_path / "weights"


def train(home: Path, data: Dataset, settings: ToyworldSettings, work: Path) -> None:
    decoder.train_decoder(settings.autoencoder, data, 0, home, work, lambda text: None)


def test_the_encoder_stays_and_the_decoder_learns(
    home: Path, data: Dataset, settings: ToyworldSettings, tmp_path: Path
) -> None:
    before = AutoencoderKL.from_pretrained(home / "autoencoder")
    train(home, data, settings, tmp_path / "work")
    after = AutoencoderKL.from_pretrained(home / "autoencoder")
    changed = {key for key, value in before.state_dict().items() if not torch.equal(value, after.state_dict()[key])}
    assert changed
    assert all(key.startswith(("decoder.", "post_quant_conv.")) for key in changed)
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
