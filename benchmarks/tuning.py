"""What other settings give, measured on training instances of the toyworld: never on the demo objects.

Runs the pipeline's own commands on each instance of experiments/tuning/variants.yaml, once per variant; what variants
share is made once, and what is finished is kept as long as its settings, inputs and code are the same, so variants can
be added. Writes benchmarks/tuning.md: the evaluate stage's measures of every variant that is finished, as means over
the instances.

    python benchmarks/tuning.py                  # every variant
    python benchmarks/tuning.py base fast        # some; the table holds the others that are finished too
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
from cad.artifacts.workspace import work_folder
from cad.camera import Poses
from cad.config import Params, load
from cad.errors import UserError
from cad.stages import identity, run_folder
from cad.toyworld.world import HELD_OUT, instance, render_views

ROOT = Path(__file__).resolve().parents[1]
WORK = ROOT / ".work" / "tuning"
TABLE = Path(__file__).with_suffix(".md")
SUITE = ROOT / "experiments" / "tuning" / "variants.yaml"
MADE = ".made"  # suffix of a note beside a stage's folder: the name of the work that it was
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


def check_suite(suite: dict[str, Any], chosen: list[str]) -> None:
    """UserError for a held-out instance, a variant that is not there, and a section that no stage reads."""
    known = [section for _, section, _ in STAGES.values()]
    for item in suite["instances"]:
        if item["seed"] >= HELD_OUT:
            raise UserError(f"{SUITE}: {item}: is held out, and nothing is tuned on held-out instances; take another")
    for variant, overrides in suite["variants"].items():
        if unknown := sorted(set(overrides) - set(known)):
            raise UserError(f"{SUITE}: variants.{variant}: no stage reads {unknown[0]}; known: {', '.join(known)}")
    if unknown := sorted(set(chosen) - set(suite["variants"])):
        raise UserError(f"variant {unknown[0]}: is not in {SUITE}; known: {', '.join(suite['variants'])}")


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
    first = suite["instances"][0]
    params["report"]["rows"] = {"base": f"{first['family']}{first['seed']}"}
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
    """Image and prompt of every instance."""
    params = load(WORK / "params.yaml")
    for item in suite["instances"]:
        subject = instance(item["family"], item["seed"])
        folder = WORK / "objects" / f"{item['family']}{item['seed']}"
        pose = Poses(*(torch.tensor([math.radians(x)], dtype=torch.float64) for x in (180.0, 70.0)))
        write_image(folder / "image.png", render_views(subject, pose, params.camera, params.input.resolution).images[0])
        write_atomic(folder / "prompt.txt", f"{getattr(subject.captions, suite['prompts'])}\n".encode())


def is_made(stage: str, own: str, params: Params) -> bool:
    """Whether an entry's folder is there, made by the present settings, inputs and code. Paths are those of WORK."""
    note = run_folder(stage, own).with_suffix(MADE)
    if not run_folder(stage, own).is_dir() or not note.is_file():
        return False
    try:
        return note.read_text() == work_folder(identity(stage, own, params)).name
    except UserError:  # something above it is missing
        return False


def run(item: dict[str, Any], variant: str, overrides: dict[str, dict[str, Any]], params: Params) -> None:
    """Make what is missing of one variant on one instance, or was made by something else."""
    for stage, (_, _, command) in STAGES.items():
        own = entry(item, variant, stage, overrides)
        if not is_made(stage, own, params):
            print(f"{own}: {stage}", flush=True)
            made_by = work_folder(identity(stage, own, params)).name
            subprocess.run([Path(sys.executable).parent / "cad", *command, own], check=True)
            write_atomic(run_folder(stage, own).with_suffix(MADE), made_by.encode())


def measured(
    item: dict[str, Any], variant: str, overrides: dict[str, dict[str, Any]], params: Params
) -> dict[str, float] | None:
    """A variant's measures on one instance; None unless all its stages are made."""
    entries = {stage: entry(item, variant, stage, overrides) for stage in STAGES}
    if not all(is_made(stage, own, params) for stage, own in entries.items()):
        return None
    metrics = json.loads((run_folder("evaluate", entries["evaluate"]) / "metrics.json").read_text())
    return {name: float(measure(metrics)) for name, measure in MEASURES.items()}


def table(suite: dict[str, Any], params: Params) -> str:
    """Markdown: a row of means for every variant that is finished on all instances."""
    rows = ["| variant | changes | " + " | ".join(MEASURES) + " |", "|" + "---|" * (len(MEASURES) + 2)]
    for variant, overrides in suite["variants"].items():
        found = [measured(item, variant, overrides, params) for item in suite["instances"]]
        done = [each for each in found if each is not None]
        if len(done) < len(found):
            continue
        means = [sum(each[name] for each in done) / len(done) for name in MEASURES]
        changes = ", ".join(f"{s}.{k} {v}" for s, values in overrides.items() for k, v in values.items())
        rows.append(f"| {variant} | {changes} | " + " | ".join(f"{mean:.3f}" for mean in means) + " |")
    names = ", ".join(f"{item['family']} {item['seed']}" for item in suite["instances"])
    title = f"# Settings tried on training instances ({names}), means; written by `benchmarks/tuning.py`"
    return "\n".join([title, "", *rows, ""])


def main() -> int:
    """Run the variants that are named and write the table of all that are finished; 2 for a fault in the suite."""
    suite = yaml.safe_load(SUITE.read_text())
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("variants", nargs="*", help="names in experiments/tuning/variants.yaml; all if none is given")
    chosen = parser.parse_args().variants or list(suite["variants"])
    try:
        check_suite(suite, chosen)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    WORK.mkdir(parents=True, exist_ok=True)
    if not (WORK / "data").exists():
        (WORK / "data").symlink_to(ROOT / "data")
    write_atomic(WORK / "params.yaml", yaml.safe_dump(settings(suite), sort_keys=False).encode())
    write_instances(suite)
    os.chdir(WORK)  # as its commands do: what a stage reads is named relative to it
    params = load(Path("params.yaml"))
    for variant in chosen:
        for item in suite["instances"]:
            run(item, variant, suite["variants"][variant], params)
        write_atomic(TABLE, table(suite, params).encode())
    print(TABLE.read_text())
    return 0


if __name__ == "__main__":
    sys.exit(main())
