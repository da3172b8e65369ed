"""Train both stages as one of the processes that a launcher starts: python teammate.py JOB.json."""

import json
import sys
from contextlib import nullcontext
from pathlib import Path

import torch

from cad.config import (
    CameraSettings,
    DiscriminatorSettings,
    GeneratorSettings,
    ModelPaths,
    Stage1Settings,
    Stage2Settings,
)
from cad.context import Context
from cad.render.choice import use_renderer
from cad.stages import launched
from cad.tracking import Tracker
from cad.train.parallel import meet, team
from cad.train.stage1 import train_stage1
from cad.train.stage2 import train_stage2


def main(job: Path) -> None:
    read = json.loads(job.read_text())
    shape, judge = (GeneratorSettings(**read["shape"]), DiscriminatorSettings(**read["judge"]))
    camera, models = CameraSettings(**read["camera"]), ModelPaths(**read["models"])
    prior, out, device = Path(read["prior"]), Path(read["out"]), torch.device("cpu")
    context = Context(seed=0, object="thing", device=device, tracker=Tracker(None, None))
    torch.set_num_threads(1)
    with team(device) if launched() > 1 else nullcontext(), use_renderer("reference"):
        first, second = Stage1Settings(**read["first"]), Stage2Settings(**read["second"])
        train_stage1(first, shape, judge, camera, prior, out / "stage1", context)
        meet()  # stage 1 is written
        train_stage2(second, camera, models, out / "stage1", prior, out / "stage2", context)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
