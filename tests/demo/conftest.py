"""A finished run of a tiny random generator: its checkpoint, its rendered orbit, made-up scores."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from cad.artifacts import Checkpoint, InputArtifact, digest, write_image, write_json
from cad.config import CameraSettings, GeneratorSettings, OrbitSettings, Stage2Settings, load
from cad.context import Context
from cad.evaluate.orbit import render_orbit
from cad.models.generator import Generator
from cad.models.layers import initialise
from cad.models.upsampler3d import PlaneUpsampler
from cad.seeding import generator

SIDE, FRAMES = 32, 8
PROMPT = "a mug with a broad handle"
CAMERA = CameraSettings(fov_deg=49.1, radius=2.0, half_side=0.7, reference_azimuth_deg=180.0)
SHAPE = GeneratorSettings(
    z_dim=8, w_dim=8, mapping_layers=2, mapping_lr_multiplier=0.01, plane_resolution=8, plane_channels=4,
    channel_base=64, channel_max=8, decoder_hidden=8, feature_channels=8, raw_resolution=8, output_resolution=SIDE,
    coarse_samples=4, fine_samples=4, upsampler_channels=8, activation_clamp=None,
)  # fmt: skip
ORBIT = OrbitSettings(frames=FRAMES, seeds=2, fps=8, batch=4, coarse_samples=8, fine_samples=8, truncation=1.0)
SETTINGS = load(Path(__file__).parents[2] / "params.yaml").stage2
STAGE2 = Stage2Settings.model_validate(SETTINGS.model_dump() | {"upsampler_channels": 8})


def write_checkpoint(folder: Path, scale: float) -> None:
    """A stage-2 checkpoint of random weights, with what only training needs; scale: contrast of the views."""
    network, upsampler = Generator(SHAPE), PlaneUpsampler(STAGE2, SHAPE.plane_channels, SHAPE.w_dim, None)
    initialise(network, generator("weights"))
    initialise(upsampler, generator("upsampler"))
    averaged = {name: value.clone() for name, value in network.state_dict().items()}
    for name in averaged:
        if name.startswith("decoder"):
            averaged[name] *= scale  # fresh weights render an even fog, which would hide any error
    lifted = upsampler.state_dict()
    tensors = {
        "generator": {name: value + 1 for name, value in averaged.items()},
        "generator_ema": averaged,
        "upsampler": {name: value + 1 for name, value in lifted.items()},
        "upsampler_ema": lifted,
        "discriminator": {"weight": torch.zeros(999)},
        "optimizer_g": {"weight": torch.zeros(999)},
    }
    settings = {"generator": SHAPE.model_dump(), "camera": CAMERA.model_dump(), "stage2": STAGE2.model_dump()}
    settings["discriminator"] = {"channel_base": 1}
    state = {"settings": settings, "step": 7, "images": 56, "object": "mug", "window": {"sign": 1.0}}
    Checkpoint.write(folder, "stage2", tensors, state)


def metrics() -> dict:
    """Scores as evaluate writes them, of the rows that every run has."""
    rows = {
        "3d": {"image": 71.25, "image_std": 0.5, "text": 61.5, "text_std": 0.25, "views": 2 * FRAMES},
        "copied": {"image": 100.0, "text": 65.0, "views": FRAMES},
    }
    part = {
        "kind": "transformers", "model": "data/weights/judge", "pretrained": None, "weights": "0123456789abcdef" * 4,
        "preprocessing": "none", "rows": rows,
    }  # fmt: skip
    content = {"schema": 1, "object": "mug", "prompt": PROMPT, "frames": FRAMES, "seeds": 2}
    return {**content, "scorers": {"judge of mugs": part}}


def write_run(runs: dict[str, Path], truth: bool) -> None:
    """All folders of a run; the true orbit is a strip of noise."""
    noise = np.random.default_rng(0).integers(0, 256, (SIDE, FRAMES * SIDE, 3), dtype=np.uint8)
    image = noise[:, :SIDE]
    InputArtifact.write(runs["input"], image, image[..., 0] > 9, PROMPT, "mug", 180.0, 70.0, "0" * 64)
    write_lineage(runs, "input", ())
    write_checkpoint(runs["stage2"], 20.0)
    write_lineage(runs, "stage2", ())
    tracker = SimpleNamespace(video=lambda *_: None, image=lambda *_: None)
    context = Context(seed=0, object="mug", device=torch.device("cpu"), tracker=tracker)
    render_orbit(ORBIT, CAMERA, runs["stage2"], runs["input"], runs["orbit"], context)
    write_lineage(runs, "orbit", ("input", "stage2"))
    write_json(runs["evaluate"] / "metrics.json", metrics())
    if truth:
        write_image(runs["evaluate"] / "views" / "truth.png", noise)
    write_lineage(runs, "evaluate", ("input", "stage2", "orbit"))


def write_lineage(runs: dict[str, Path], stage: str, upstream: tuple[str, ...]) -> None:
    inputs = {name: digest(runs[name]) for name in upstream}
    write_json(runs[stage] / "lineage.json", {"schema": 1, "stage": stage, "inputs": inputs})


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folders of a finished run, by stage; tests that change one copy it first."""
    root = tmp_path_factory.mktemp("runs") / "mug"
    runs = {stage: root / stage for stage in ("input", "stage2", "orbit", "evaluate")}
    write_run(runs, truth=True)
    return runs
