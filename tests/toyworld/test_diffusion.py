"""The small Zero-1-to-3 and refiner: trained for a step, saved, loaded by the classes that the pipeline uses."""

import shutil
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL

from cad.artifacts import digest
from cad.camera import relative_pose
from cad.errors import UserError
from cad.prior import ddim
from cad.prior.latent_diffusion import LatentDiffusion
from cad.prior.zero123 import Zero123
from cad.seeding import generator
from cad.toyworld import fit as loop
from cad.toyworld import train
from cad.toyworld.dataset import Dataset
from cad.toyworld.diffusion import (
    build_refiner,
    build_scheduler,
    build_zero123,
    draw_timesteps,
    encode_views,
    frozen,
    importance,
    train_refiner,
    train_zero123,
    warm_start,
)
from cad.toyworld.settings import ToyworldSettings

CPU = torch.device("cpu")


def silent(text: str) -> None:
    pass


def test_the_schedule_is_the_published_one() -> None:
    """betas 0.00085 to 0.012, scaled-linear over 1000 steps; abar at the ends by hand."""
    scheduler = build_scheduler()
    steps = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    torch.testing.assert_close(scheduler.alphas_cumprod, (1 - steps).cumprod(0), rtol=1e-5, atol=1e-7)
    assert scheduler.alphas_cumprod[0].item() == pytest.approx(1 - 0.00085, abs=1e-6)
    assert scheduler.config.prediction_type == "v_prediction"
    clean, noise = torch.full((1, 4, 2, 2), 2.0), torch.full((1, 4, 2, 2), 3.0)
    root = scheduler.alphas_cumprod[500]
    v = ddim.target(scheduler, clean, noise, torch.tensor([500]))
    torch.testing.assert_close(v, root.sqrt() * noise - (1 - root).sqrt() * clean)


def test_zero123_has_the_published_form(weights: Path, settings: ToyworldSettings) -> None:
    model = build_zero123(settings.zero123, weights, 0)
    assert model.unet.config.in_channels == 8
    assert model.unet.config.out_channels == 4
    assert model.cc_projection.projection.in_features == settings.clip.width + 4
    assert model.latent_shape == (4, 8, 8)
    assert model.resolution == 16
    assert not any(p.requires_grad for part in (model.vae, model.image_encoder) for p in part.parameters())
    assert all(p.requires_grad for part in (model.unet, model.cc_projection) for p in part.parameters())


def test_latent_pixels_of_the_object_weigh_more(data: Dataset) -> None:
    """Two weights in the asked ratio, 1 in the mean, the larger one where any pixel of the cell is not white."""
    subjects, views = torch.tensor([0, 3, 5]), torch.tensor([1, 0, 2])
    weights = importance(data, subjects, views, 4, 3.0)
    assert weights.mean().item() == pytest.approx(1)
    dark = (data.images[subjects, views].min(-1) < 245).reshape(3, 4, 4, 4, 4).any((2, 4))
    assert 0 < dark.mean() < 1
    inside, outside = weights[:, 0][torch.from_numpy(dark)], weights[:, 0][torch.from_numpy(~dark)]
    assert inside.unique().numel() == outside.unique().numel() == 1
    assert (inside[0] / outside[0]).item() == pytest.approx(3)


def test_timesteps_prefer_low_noise_as_told(settings: ToyworldSettings) -> None:
    """Below the bound lie the preferred share and the uniform rest's part; a share of 0 is uniform."""
    chosen = settings.refiner.model_copy(update={"low_noise_share": 0.6, "low_noise": 0.25})
    drawn = draw_timesteps(50_000, chosen, 1000, generator("t"))
    assert drawn.dtype == torch.int64
    assert drawn.min() >= 0
    assert drawn.max() <= 999
    assert (drawn < 250).double().mean().item() == pytest.approx(0.6 + 0.4 * 0.25, abs=0.01)
    uniform = draw_timesteps(50_000, chosen.model_copy(update={"low_noise_share": 0.0}), 1000, generator("t"))
    assert (uniform < 250).double().mean().item() == pytest.approx(0.25, abs=0.01)


def test_views_are_encoded_once(weights: Path, data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vae = frozen(AutoencoderKL.from_pretrained(weights / "autoencoder"))
    found = encode_views(vae, data, tmp_path)
    assert found.dtype == torch.float16
    assert found.shape == (len(data), data.views, 4, 8, 8)
    with torch.no_grad():
        expected = vae.encode(data.pick(torch.tensor([9]), torch.tensor([3]))).latent_dist.mode()[0]
    torch.testing.assert_close(found[9, 3].float(), expected, atol=5e-3, rtol=5e-3)
    monkeypatch.setattr(type(vae), "encode", None)
    assert torch.equal(encode_views(vae, data, tmp_path), found)
    next(vae.decoder.parameters()).data += 1  # a better decoder changes no latent
    assert torch.equal(encode_views(vae, data, tmp_path), found)
    next(vae.encoder.parameters()).data += 1
    with pytest.raises(TypeError):
        encode_views(vae, data, tmp_path)  # another encoder: encoded anew


@pytest.fixture(scope="module")
def zero123(weights: Path, data: Dataset, settings: ToyworldSettings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("zero123")
    train_zero123(settings.zero123, data, 0, weights, folder / "work", folder / "out", silent)
    return folder


def test_a_trained_zero123_loads_and_samples(
    zero123: Path, data: Dataset, weights: Path, settings: ToyworldSettings
) -> None:
    model = Zero123.load(zero123 / "out", CPU, torch.float32)
    # what was saved is what was trained, not what was drawn
    fresh = build_zero123(settings.zero123, weights, 0)
    before, after = fresh.unet.state_dict(), model.unet.state_dict()
    assert any((before[key] - after[key]).abs().max() > 1e-4 for key in before)
    # the frozen parts are the weights it was built on
    vae = AutoencoderKL.from_pretrained(weights / "autoencoder").state_dict()
    assert all(torch.equal(vae[key].float(), value) for key, value in model.vae.state_dict().items())
    embedding, latent = model.condition(data.pick(torch.tensor([0]), torch.tensor([0])))
    pose = relative_pose(data.azimuth[0, 2:], data.polar[0, 2:], data.azimuth[0, 0], data.polar[0, 0]).float()
    noise = torch.randn(2, *model.latent_shape, generator=torch.Generator().manual_seed(0))
    views = model.sample(embedding, latent, pose, noise, None, steps=2, guidance=3.0, eta=0.0)
    assert views.shape == (2, 3, 16, 16)
    assert torch.isfinite(views).all()
    assert views.abs().max() <= 1


def test_training_zero123_again_gives_the_same_bytes(
    zero123: Path, weights: Path, data: Dataset, settings: ToyworldSettings, tmp_path: Path
) -> None:
    train_zero123(settings.zero123, data, 0, weights, tmp_path / "work", tmp_path / "out", silent)
    assert digest(tmp_path / "out") == digest(zero123 / "out")


def test_a_trained_refiner_loads_and_redraws(
    weights: Path, data: Dataset, settings: ToyworldSettings, tmp_path: Path
) -> None:
    train_refiner(settings.refiner, data, 0, weights, tmp_path / "work", tmp_path / "out", silent)
    model = LatentDiffusion.load(tmp_path / "out", CPU, torch.float32)
    fresh = build_refiner(settings.refiner, weights, 0).unet.state_dict()
    assert any((fresh[key] - value).abs().max() > 1e-4 for key, value in model.unet.state_dict().items())
    images = data.pick(torch.tensor([0, 1]), torch.tensor([0, 1]))
    context, null = model.embed(["a toy robot", "a toy car"]), model.embed([""])
    assert not torch.equal(context[0], context[1])
    noise = torch.randn(2, *model.latent_shape, generator=torch.Generator().manual_seed(0))
    redrawn = model.sdedit(images, context, null, noise, None, strength=0.5, guidance=3.0, steps=2)
    assert redrawn.shape == images.shape
    assert torch.isfinite(redrawn).all()


@pytest.fixture
def running(weights: Path, work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """(work, weights) of a session in which both diffusion trainings are at their first save."""
    place, home = tmp_path / "work", tmp_path / "weights"
    shutil.copytree(weights, home)
    shutil.copytree(work, place)
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", -1)
    return place, home


@pytest.mark.parametrize("name", ["zero123", "refiner"])
def test_weights_are_exported_in_the_middle_of_training(
    name: str, running: tuple[Path, Path], settings: ToyworldSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, home = running
    averaged = loop._average

    def stopped(*arguments: object) -> None:
        if loop.saved_step(place / name) == 1:
            raise KeyboardInterrupt
        averaged(*arguments)

    monkeypatch.setattr(loop, "_average", stopped)
    with pytest.raises(KeyboardInterrupt):
        train.train(name, settings, place, home, silent)
    assert not (home / name).exists()
    state = (place / name / "state.safetensors").read_bytes()
    train.export(name, settings, place, home)
    loaded = {"zero123": Zero123, "refiner": LatentDiffusion}[name].load(home / name, CPU, torch.float32)
    assert loaded.latent_shape == (4, 8, 8)
    assert (place / name / "state.safetensors").read_bytes() == state  # training goes on from where it was
    monkeypatch.setattr(loop, "_average", averaged)
    train.train(name, settings, place, home, silent)
    assert loop.saved_step(place / name) == 2
    train.export(name, settings, place, home)  # over the folder of before
    assert not (home / f".{name}").exists()


def test_a_new_work_folder_goes_on_from_earlier_weights(
    zero123: Path, weights: Path, settings: ToyworldSettings, tmp_path: Path
) -> None:
    told: list[str] = []
    model = build_zero123(settings.zero123, weights, 1)
    stored = Zero123.load(zero123 / "out", CPU, torch.float32).unet.state_dict()
    warm_start(model.unet, tmp_path / "nothing", tmp_path, told.append)
    assert any(not torch.equal(value, stored[name]) for name, value in model.unet.state_dict().items())
    warm_start(model.unet, zero123 / "out" / "unet", tmp_path, told.append)
    assert all(torch.equal(value, stored[name]) for name, value in model.unet.state_dict().items())
    assert told == [f"{tmp_path.name}: goes on from {zero123 / 'out' / 'unet'}"]
    with pytest.raises(UserError, match="another architecture"):
        warm_start(build_refiner(settings.refiner, weights, 1).unet, zero123 / "out" / "unet", tmp_path, told.append)


def test_wrong_names_and_missing_parts_are_refused(settings: ToyworldSettings, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'zero124': unknown; choose one of clip, clip-evaluation"):
        train.train("zero124", settings, tmp_path, tmp_path, silent)
    with pytest.raises(UserError, match="clip: is missing; run `cad toyworld train clip` first"):
        train.train("zero123", settings, tmp_path, tmp_path, silent)
    with pytest.raises(UserError, match="'clip': only zero123 and refiner can be exported"):
        train.export("clip", settings, tmp_path, tmp_path)
