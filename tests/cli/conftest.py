"""A project folder of its own for the command line: settings, one object, tiny folders as stages would write them."""

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image

from cad.artifacts import InputArtifact, PriorCache, PriorCacheWriter, write_parquet
from cad.camera import sphere_poses
from cad.cli import main as cli
from cad.seeding import generator

ROOT = Path(__file__).parents[2]
SIDE = 32  # of every picture
TINY = {
    "tracking.mode": "disabled",
    "runtime.threads": 1,
    "input.resolution": SIDE,
    "prior": {"poses": 4, "samples": 2, "steps": 2, "batch": 4, "shard_poses": 2},
    "prune": {"max_bad_pixels": SIDE**2, "min_clip_similarity": -1.0},
    "refine": {"enabled": False, "shard_poses": 2},
    "generator": {
        "z_dim": 8, "w_dim": 8, "plane_resolution": 8, "plane_channels": 4, "channel_base": 64, "channel_max": 8,
        "decoder_hidden": 8, "feature_channels": 8, "raw_resolution": 16, "output_resolution": SIDE,
        "coarse_samples": 4, "fine_samples": 4, "upsampler_channels": 8,
    },
    "discriminator": {"channel_base": 128, "channel_max": 8, "mbstd_group": 2},
    "stage1": {"kimg": 0.004, "batch": 2, "checkpoint_kimg": 0.002, "density_points": 8},
    "orbit": {"frames": 2, "seeds": 1},
    "objects.robot.toyworld": None,
}  # fmt: skip


class Ended(NamedTuple):
    """How a command ended: its exit code (0: by itself) and the lines on both streams."""

    code: int
    out: list[str]
    err: list[str]


@pytest.fixture
def cad(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """Run the command line in this process and return how it ended."""

    def run(*arguments: str) -> Ended:
        monkeypatch.setattr("sys.argv", ["cad", *arguments])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capfd.readouterr()
        return Ended(int(ended.value.code or 0), out.splitlines(), err.splitlines())

    return run


@dataclass(frozen=True)
class Project:
    """A project folder; its object `robot` has a good picture (a red patch on white) and a good prompt."""

    folder: Path

    def __truediv__(self, name: str) -> Path:
        return self.folder / name

    def picture(self, box: Any, side: int = SIDE) -> np.ndarray:
        """A red patch on white."""
        pixels = np.full((side, side, 3), 255, np.uint8)
        pixels[box] = (200, 30, 30)
        return pixels

    def change(self, changes: dict[str, Any]) -> None:
        """Set keys of params.yaml by their dotted paths; a mapping is merged into what is there."""
        values = yaml.safe_load((self / "params.yaml").read_text())
        for path, value in changes.items():
            *parents, key = path.split(".")
            owner = values
            for parent in parents:
                owner = owner[parent]
            merged = isinstance(value, dict) and isinstance(owner.get(key), dict)
            owner[key] = {**owner[key], **value} if merged else value
        (self / "params.yaml").write_text(yaml.safe_dump(values, sort_keys=False))

    def give_input(self) -> None:
        """The folder that `cad input` would write."""
        image = self.picture(np.s_[8:24, 10:22])
        mask = image[..., 1] < 250
        InputArtifact.write(self / "runs/robot/input", image, mask, "a toy robot", "robot", 180.0, 70.0, "0" * 64)

    def give_cache(self, stage: str) -> Path:
        """A prior cache of noise, 4 poses and 2 samples in 2 shards, as the output of this stage."""
        folder = self / "runs/robot" / stage
        writer = PriorCacheWriter(folder, sphere_poses(4, generator("poses")), range(4), 2, SIDE, 2)
        images = np.random.default_rng(0).integers(0, 256, (4, 2, SIDE, SIDE, 3), dtype=np.uint8)
        for shard in writer.missing_shards():
            writer.write_shard(shard, images[list(writer.shard_range(shard))])
        writer.finish()
        return folder

    def give_decisions(self) -> Path:
        """All that refining reads: input, samples, and decisions that keep every pose. Returns the samples' folder."""
        self.give_input()
        folder = self.give_cache("prior")
        cache = PriorCache.open(folder)
        table = pd.DataFrame({"pose": cache.pose_ids, "azimuth": cache.azimuth, "polar": cache.polar})
        fixed = {"bad_pixels_max": 0, "clip_min": 0.9, "clip_max": 0.9, "chosen": 1, "kept": True, "reason": "kept"}
        write_parquet(self / "runs/robot/prune/decisions.parquet", table.assign(**fixed))
        return folder

    def give_weights(self, name: str) -> Path:
        """A copy of bundled weights, to be spoilt."""
        return shutil.copytree(ROOT / "data/weights" / name, self / "data/weights" / name)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    """The current folder, for as long as the test runs; weights have to be given."""
    monkeypatch.chdir(tmp_path)
    fixed = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS", "SOURCE_DATE_EPOCH")
    for name in (*fixed, "TOKENIZERS_PARALLELISM"):
        monkeypatch.setenv(name, os.environ.get(name, "1"))  # what the stages set ends with the test
    threads = torch.get_num_threads()
    made = Project(tmp_path)
    shutil.copy(ROOT / "params.yaml", tmp_path)
    made.change(TINY)
    folder = made / "data/objects/robot"
    folder.mkdir(parents=True)
    Image.fromarray(made.picture(np.s_[8:24, 10:22])).save(folder / "image.png")
    (folder / "prompt.txt").write_text("a toy robot\n")
    yield made
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(threads)
