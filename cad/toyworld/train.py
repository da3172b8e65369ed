"""The small models by name, each trained from the views and from the models before it."""

import shutil
from collections.abc import Callable
from pathlib import Path

from cad.errors import UserError
from cad.toyworld.autoencoder import train_autoencoder
from cad.toyworld.clip import train_clip
from cad.toyworld.controlnet import train_controlnet
from cad.toyworld.dataset import Dataset, render_dataset
from cad.toyworld.depth import train_depth
from cad.toyworld.diffusion import export_refiner, export_zero123, train_refiner, train_zero123
from cad.toyworld.settings import ToyworldSettings
from cad.toyworld.sharpen import sharpen_autoencoder

MODELS = ("clip", "clip-evaluation", "autoencoder", "sharpen", "zero123", "refiner", "depth", "controlnet")
NEEDS = {
    "sharpen": ("autoencoder/config.json",),
    "zero123": ("clip/config.json", "autoencoder/config.json"),
    "refiner": ("clip/config.json", "autoencoder/config.json"),
    "controlnet": ("refiner/model_index.json", "depth/config.json"),
}


def render(settings: ToyworldSettings, work: Path) -> None:
    """Render both splits into `work`; what is already there is kept."""
    data = settings.data
    render_dataset(data, settings.camera, "held-out", data.held_out_instances, work / "held-out")
    render_dataset(data, settings.camera, "train", data.train_instances, work / "train")


def train(name: str, settings: ToyworldSettings, work: Path, weights: Path, report: Callable[[str], None]) -> None:
    """Train the model of this name, going on from `work`, and write it to `weights`/name.

    Raises UserError for an unknown name or where a model that it is built on is missing.
    """
    if name not in MODELS:
        raise UserError(f"model '{name}': unknown; choose one of {', '.join(MODELS)}")
    for needed in NEEDS.get(name, ()):
        if not (weights / needed).is_file():
            model = Path(needed).parent
            raise UserError(f"{weights / model}: is missing; run `cad toyworld train {model}` first")
    data = Dataset(settings.data, "train", settings.data.train_instances, work / "train")
    out = weights / name
    place = work / name
    seed = settings.seed
    if name == "clip":
        train_clip(settings.clip, data, seed, name, place, out, report)
    elif name == "clip-evaluation":
        train_clip(settings.clip_evaluation, data, seed, name, place, out, report)
    elif name == "autoencoder":
        train_autoencoder(settings.autoencoder, data, seed, place, out, report)
    elif name == "sharpen":
        sharpen_autoencoder(settings.autoencoder, data, seed, weights, place, report)
    elif name == "zero123":
        train_zero123(settings.zero123, data, seed, weights, place, out, report)
    elif name == "refiner":
        train_refiner(settings.refiner, data, seed, weights, place, out, report)
    elif name == "depth":
        train_depth(settings.depth, data, settings.camera, seed, place, out, report)
    else:
        train_controlnet(settings.controlnet, data, seed, weights, place, out, report)


def export(name: str, settings: ToyworldSettings, work: Path, weights: Path) -> None:
    """Write the weights of a diffusion model whose training is still under way."""
    exports = {"zero123": (export_zero123, settings.zero123), "refiner": (export_refiner, settings.refiner)}
    if name not in exports:
        raise UserError(f"model '{name}': only {' and '.join(exports)} can be exported before the end")
    write, sizes = exports[name]
    partial = weights / f".{name}"
    shutil.rmtree(partial, ignore_errors=True)
    write(sizes, settings.seed, weights, work / name, partial)
    shutil.rmtree(weights / name, ignore_errors=True)
    partial.rename(weights / name)
