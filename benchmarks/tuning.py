"""What other settings give, measured on training instances of the toyworld: never on the demo objects.

Runs the pipeline's own commands on each instance of experiments/tuning/variants.yaml, once per variant; what variants
share is made once, and what is finished is kept, so variants can be added. Prints a table of the evaluate stage's
measures, the mean over instances, and writes it to benchmarks/tuning.md.

    python benchmarks/tuning.py                  # every variant
    python benchmarks/tuning.py base fast-d      # some
"""

import argparse
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from cad.artifacts import write_atomic, write_image
from cad.camera import Poses
from cad.config import load
from cad.toyworld.world import HELD_OUT, instance, render_views

ROOT = Path(__file__).resolve().parents[1]
WORK = ROOT / ".work" / "tuning"
TABLE = Path(__file__).with_suffix(".md")
SUITE = ROOT / "experiments" / "tuning" / "variants.yaml"
# stage -> its table, its settings, the folder it writes, the command that makes it
STAGES = {
    "input": ("inputs", "input", ["input"]),
    "prior": ("priors", "prior", ["prior", "sample"]),
    "prune": ("prunes", "prune", ["prior", "prune"]),
    "refine": ("refines", "refine", ["prior", "refine"]),
    "stage1": ("stage1s", "stage1", ["train", "stage1"]),
    "stage2": ("stage2s", "stage2", ["train", "stage2"]),
    "orbit": ("orbits", "orbit", ["orbit"]),
    "evaluate": ("evaluations", "evaluate", ["evaluate"]),
}
UPSTREAM = dict(zip(list(STAGES)[1:], STAGES, strict=False))
MEASURES = {
    "image": lambda m: next(iter(m["scorers"].values()))["rows"]["3d"]["image"],
    "image of truth": lambda m: next(iter(m["scorers"].values()))["rows"]["truth"]["image"],
    "azimuth": lambda m: m["truth"]["rows"]["3d"]["azimuth_right"],
    "IoU": lambda m: m["truth"]["rows"]["3d"]["silhouette_iou"],
    "KID": lambda m: m["distribution"]["rows"]["3d"]["kid"],
    "KID, 2D": lambda m: m["distribution"]["rows"]["2d"]["kid"],
    "LPIPS of seeds": lambda m: m["diversity"]["rows"]["3d"]["lpips"],
    "LPIPS of refined": lambda m: m["diversity"]["refined"],
    "warp": lambda m: m["consistency"]["rows"]["3d"]["warp_error"],
    "warp, 2D": lambda m: m["consistency"]["rows"]["2d"]["warp_error"],
}


def shared(stage: str, overrides: dict[str, dict[str, Any]]) -> bool:
    """Whether a variant leaves this stage and all above it as they are in the base."""
    above = list(STAGES)[: list(STAGES).index(stage) + 1]
    return not any(STAGES[name][1] in overrides for name in above)


def entry(item: dict[str, Any], variant: str, stage: str, overrides: dict[str, dict[str, Any]]) -> str:
    """The name of an entry: the instance's own where the variant changes nothing yet."""
    name = f"{item['family']}{item['seed']}"
    return name if shared(stage, overrides) else f"{name}-{variant}"


def settings(suite: dict[str, Any]) -> dict[str, Any]:
    """mini with training instances for objects and an entry for whatever a variant changes."""
    with initialize_config_dir(str(ROOT / "experiments"), version_base=None):
        params: dict[str, Any] = OmegaConf.to_container(compose("config"), resolve=True)  # type: ignore[assignment]  # typed as a union
    for table in ["objects", *(table for table, _, _ in STAGES.values())]:
        params[table] = {}
    params["report"]["rows"] = {}
    params["tracking"]["mode"] = "disabled"
    params["runtime"]["threads"] = int(os.environ.get("OMP_NUM_THREADS", params["runtime"]["threads"]))
    for section in ("orbit", "evaluate"):
        params[section] |= suite[section]
    for item in suite["instances"]:
        name = f"{item['family']}{item['seed']}"
        folder = f"objects/{name}"
        params["objects"][name] = {
            "image": f"{folder}/image.png", "prompt": f"{folder}/prompt.txt", "reference_polar_deg": 70.0,
            "framed": True, "toyworld": item,
        }  # fmt: skip
        for variant, overrides in suite["variants"].items():
            for stage, (table, section, _) in STAGES.items():
                own = entry(item, variant, stage, overrides)
                source = name if stage == "input" else entry(item, variant, UPSTREAM[stage], overrides)
                key = "object" if stage == "input" else UPSTREAM[stage]
                params[table].setdefault(own, {key: source} | overrides.get(section, {}))
    return params


def write_instances(suite: dict[str, Any]) -> None:
    """Image and prompt of every instance; refuses a held-out one."""
    params = load(WORK / "params.yaml")
    for item in suite["instances"]:
        assert item["seed"] < HELD_OUT, f"{item}: is held out, and nothing is tuned on held-out instances"
        subject = instance(item["family"], item["seed"])
        folder = WORK / "objects" / f"{item['family']}{item['seed']}"
        pose = Poses(*(torch.tensor([math.radians(x)], dtype=torch.float64) for x in (180.0, 70.0)))
        write_image(folder / "image.png", render_views(subject, pose, params.camera, params.input.resolution).images[0])
        write_atomic(folder / "prompt.txt", f"{getattr(subject.captions, suite['prompts'])}\n".encode())


def run(item: dict[str, Any], variant: str, overrides: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Make what is missing of one variant on one instance; its measures."""
    for stage, (_, _, command) in STAGES.items():
        own = entry(item, variant, stage, overrides)
        if not (WORK / "runs" / own / stage).is_dir():
            print(f"{own}: {stage}", flush=True)
            subprocess.run([Path(sys.executable).parent / "cad", *command, own], cwd=WORK, check=True)
    own = entry(item, variant, "evaluate", overrides)
    metrics = json.loads((WORK / "runs" / own / "evaluate" / "metrics.json").read_text())
    return {name: float(measure(metrics)) for name, measure in MEASURES.items()}


def main() -> None:
    """Run the variants that are named and write the table of all that are finished."""
    suite = yaml.safe_load(SUITE.read_text())
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("variants", nargs="*", help="names in experiments/tuning/variants.yaml; all if none is given")
    chosen = parser.parse_args().variants or list(suite["variants"])
    WORK.mkdir(parents=True, exist_ok=True)
    if not (WORK / "data").exists():
        (WORK / "data").symlink_to(ROOT / "data")
    write_atomic(WORK / "params.yaml", yaml.safe_dump(settings(suite), sort_keys=False).encode())
    write_instances(suite)
    rows = ["| variant | changes | " + " | ".join(MEASURES) + " |", "|" + "---|" * (len(MEASURES) + 2)]
    for variant in chosen:
        overrides = suite["variants"][variant]
        found = [run(item, variant, overrides) for item in suite["instances"]]
        means = [sum(each[name] for each in found) / len(found) for name in MEASURES]
        changes = ", ".join(f"{s}.{k} {v}" for s, values in overrides.items() for k, v in values.items())
        rows.append(f"| {variant} | {changes} | " + " | ".join(f"{mean:.3f}" for mean in means) + " |")
        print(rows[-1], flush=True)
    names = ", ".join(f"{item['family']} {item['seed']}" for item in suite["instances"])
    title = f"# Settings tried on training instances ({names}), means; written by `benchmarks/tuning.py`"
    write_atomic(TABLE, "\n".join([title, "", *rows, ""]).encode())


if __name__ == "__main__":
    main()
