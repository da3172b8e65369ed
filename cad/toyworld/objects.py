"""An object of the toyworld as a user would bring it: a picture, a prompt, and the entry that names its truth."""

import math
from pathlib import Path

import torch
import yaml

from cad.artifacts import write_atomic, write_image
from cad.camera import Poses
from cad.config import CameraSettings
from cad.errors import UserError
from cad.toyworld.world import HELD_OUT, instance, render_views


def write_object(
    name: str,
    family: str,
    seed: int,
    polar_deg: float,
    camera: CameraSettings,
    resolution: int,
    data: Path,
    groups: Path,
) -> None:
    """Write data/<name>/{image.png, prompt.txt} from the reference camera, and the Hydra entry groups/<name>.yaml.

    Raises UserError for a seed that the small models were trained on: an object must be held out.
    """
    if seed < HELD_OUT:
        raise UserError(f"--seed {seed}: belongs to the training instances; take one from {HELD_OUT} on")
    subject = instance(family, seed)
    pose = torch.tensor([[camera.reference_azimuth_deg], [polar_deg]], dtype=torch.float64) * math.pi / 180
    view = render_views(subject, Poses(azimuth=pose[0], polar=pose[1]), camera, resolution)
    folder = data / name
    write_image(folder / "image.png", view.images[0])
    write_atomic(folder / "prompt.txt", f"{subject.captions.specific}\n".encode())
    tables = [
        ("inputs", "object"),
        ("priors", "input"),
        ("prunes", "prior"),
        ("refines", "prune"),
        ("stage1s", "refine"),
    ]
    tables += [("stage2s", "stage1"), ("orbits", "stage2"), ("evaluations", "orbit")]
    entry = {
        "objects": {
            name: {
                "image": str(folder / "image.png"),
                "prompt": str(folder / "prompt.txt"),
                "reference_polar_deg": polar_deg,
                "framed": True,
                "toyworld": {"family": family, "seed": seed},
            }
        },
        **{table: {name: {upstream: name}} for table, upstream in tables},
        "report": {"rows": {f"CAD reproduced, {name}": name}},
    }
    write_atomic(groups / f"{name}.yaml", f"# @package _global_\n{yaml.safe_dump(entry, sort_keys=False)}".encode())
