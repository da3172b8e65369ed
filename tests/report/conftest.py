"""A synthetic run: every folder that the report reads, drawn by a few lines of numpy instead of networks."""

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image, ImageDraw

from cad.artifacts import InputArtifact, OrbitWriter, PriorCacheWriter, write_image, write_json, write_parquet
from cad.camera import Poses, orbit_poses, sphere_poses
from cad.report.overview import RunFolders

SIDE, SAMPLES, POSES, FRAMES = 64, 3, 24, 24
OWN = "toyworld CLIP"


def picture(azimuth: float, tint: int) -> np.ndarray:
    """A doll whose face moves with the azimuth."""
    image = Image.new("RGB", (SIDE * 4, SIDE * 4), "white")
    draw = ImageDraw.Draw(image)
    draw.rounded_rectangle((70, 100, 186, 220), 24, fill=(200 - tint, 60 + tint, 60))
    draw.ellipse((84, 28, 172, 116), fill=(240, 200 - tint, 90))
    draw.ellipse((48, 120, 80, 190), fill=(60, 110, 200))
    if math.cos(azimuth - math.pi) > 0:
        x = 128 - 40 * math.sin(azimuth - math.pi)
        draw.ellipse((x - 8, 60, x + 8, 76), fill=(30, 30, 30))
    return np.asarray(image.resize((SIDE, SIDE), Image.Resampling.LANCZOS))


def metrics(digest: str, image: float, subject: str = "robot") -> dict:
    """A metrics file as evaluate writes it, of an object that clears every bar."""

    def row(image: float, text: float, **more: float) -> dict:
        return {"image": image, "text": text, "views": FRAMES, **more}

    rows = {
        "3d": row(image, 24.5, image_std=0.42, text_std=0.1),
        "2d": row(image + 3, 25.0, image_std=0.3, text_std=0.2),
        "truth": row(92.0, 27.0),
        "copied": row(100.0, 28.0),
        "other": row(60.0, 15.0),
        "untrained": row(41.5, 12.0),
    }
    right = {"3d": 0.95, "2d": 0.9, "truth": 1.0, "copied": 0.175, "other": 0.2, "untrained": 0.15}
    overlap = {"3d": 0.85, "2d": 0.8, "truth": 1.0, "copied": 0.7, "other": 0.5, "untrained": 0.0}
    truth = {
        name: {"azimuth_right": right[name], "azimuth_right_seeds": [right[name]], "silhouette_iou": overlap[name]}
        for name in rows
    }
    truth["3d"] |= {"azimuth_right_std": 0.05, "azimuth_right_seeds": [0.95, 0.9, 1.0], "silhouette_iou_std": 0.01}
    kid = {"3d": 40.0, "2d": 30.0, "truth": -0.5, "copied": 200.0, "other": 400.0, "untrained": 500.0}
    warped = {"3d": (2.0, 8.0), "2d": (4.0, 8.0), "truth": (1.0, 10.0), "copied": (1.8, 0.0), "other": (1.7, 8.5)}
    compared = {
        row: {"warp_error": a, "still_error": b, "pixels": 900, "share": 0.97} | ({"ratio": a / b} if b else {})
        for row, (a, b) in warped.items()
    }
    part = {
        "kind": "transformers", "model": "data/weights/clip-evaluation", "pretrained": None, "weights": digest,
        "preprocessing": "white background, bicubic to 64x64", "rows": rows,
    }  # fmt: skip
    return {
        "schema": 1, "object": subject, "prompt": "a red toy robot with a yellow head", "frames": FRAMES, "seeds": 3,
        "scorers": {OWN: part}, "truth": {"within_deg": 30.0, "chance": 0.175, "rows": truth},
        "distribution": {"features": OWN, "unit": "KID x 1000", "rows": {row: {"kid": x} for row, x in kid.items()}},
        "diversity": {
            "distance": "LPIPS (AlexNet)", "refined": 0.2,
            "rows": {"3d": {"lpips": 0.12}, "2d": {"lpips": 0.1}},
        },
        "consistency": {
            "step_frames": 10, "still_least": 0.5, "unit": "mean absolute RGB difference, grey levels of 255",
            "rows": compared, "one_depth": {row: dict(compared[row]) for row in ("3d", "2d")},
        },
        "relative_image": {OWN: {"3d": 0.75, "2d": 0.8}}, "relative_span_least": 5.0,
    }  # fmt: skip


def write_run(root: Path) -> RunFolders:
    """Write the run's folders under `root`."""
    folders = RunFolders(**{name: root / name for name in ("input", "prior", "prune", "refine", "orbit", "evaluate")})
    image = picture(math.pi, 0)
    mask = image.min(-1) < 250
    prompt = "a red toy robot with a yellow head and blue arms"
    InputArtifact.write(folders.input, image, mask, prompt, "robot", 180.0, 70.0, "0" * 64)

    poses = sphere_poses(POSES, torch.Generator().manual_seed(1))
    angles = poses.azimuth.tolist()
    cache = PriorCacheWriter(folders.prior, poses, list(range(POSES)), SAMPLES, SIDE, 10)
    raw = np.stack([np.stack([picture(a, 20 * n) for n in range(SAMPLES)]) for a in angles])
    for shard in cache.missing_shards():
        cache.write_shard(shard, raw[list(cache.shard_range(shard))])
    cache.finish()

    kept = np.arange(POSES) % 4 != 1
    reasons = np.where(kept, "kept", np.where(np.arange(POSES) % 8 == 1, "geometry", "geometry and similarity"))
    decisions = pd.DataFrame(
        {
            "pose": np.arange(POSES), "azimuth": angles, "polar": poses.polar.tolist(), "chosen": 1, "kept": kept,
            "reason": reasons,
        }
    )  # fmt: skip
    write_parquet(folders.prune / "decisions.parquet", decisions)
    truth = {"precision": 0.83, "recall": None, "bad_before": 0.25, "bad_after": 0.05}
    reasons_count = {"kept": 18, "geometry": 6}
    summary = {"schema": 1, "poses": POSES, "kept": int(kept.sum()), "reasons": reasons_count, "truth": truth}
    write_json(folders.prune / "summary.json", summary)

    some = Poses(poses.azimuth[torch.from_numpy(kept)], poses.polar[torch.from_numpy(kept)])
    cache = PriorCacheWriter(folders.refine, some, np.flatnonzero(kept).tolist(), 2, SIDE, 10)
    redrawn = np.stack([np.stack([picture(a, 50 + 60 * n) for n in range(2)]) for a in some.azimuth.tolist()])
    for shard in cache.missing_shards():
        cache.write_shard(shard, redrawn[list(cache.shard_range(shard))])
    cache.finish()

    circle = orbit_poses(FRAMES, math.radians(70), math.pi)
    orbit = OrbitWriter(folders.orbit, circle, 2.0, 49.1, SIDE, ("2d", "3d"), (0, 1, 2))
    for branch in ("2d", "3d"):
        for seed in range(3):
            for k, azimuth in enumerate(circle.azimuth.tolist()):
                color = picture(azimuth, 60 * seed)
                alpha = np.where(color.min(-1) < 250, 255, 0).astype(np.uint8)
                orbit.write(branch, seed, k, color, alpha, np.full((SIDE, SIDE), 2.0))
    orbit.finish()
    strip = np.concatenate([picture(a, 10) for a in circle.azimuth.tolist()], 1)
    write_image(folders.evaluate / "views" / "truth.png", strip)
    write_json(folders.evaluate / "metrics.json", metrics("ab" * 32, 75.0))
    (folders.evaluate / "views" / "frames.csv").write_text("row,seed\n")
    return folders


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolders:
    return write_run(tmp_path_factory.mktemp("runs") / "robot")


@pytest.fixture
def metrics_file(tmp_path: Path) -> Path:
    path = tmp_path / "metrics.json"
    path.write_text(json.dumps(metrics("ab" * 32, 75.0)))
    return path
