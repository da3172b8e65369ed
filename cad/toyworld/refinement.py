"""Fig. 10 with numbers: what both families of refiners keep of a sample and how far draws differ, over noise strength.

The samples are Zero-1-to-3's of held-out instances; beside them stand the objects that were generated from refined
samples of some strengths.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file, save_file
from torch import nn

from cad.artifacts import digest
from cad.errors import UserError
from cad.prior.truth import MIN_IOU
from cad.prior.weights import check_source
from cad.prior.zero123 import Zero123
from cad.progress import progress
from cad.toyworld import refinement_report
from cad.toyworld.dataset import Dataset, render_dataset
from cad.toyworld.measures.pixels import pairwise
from cad.toyworld.measures.questions import CPU, Question, spread, synthesise
from cad.toyworld.measures.refiner import overlap
from cad.toyworld.measures.zero123 import LPIPS
from cad.toyworld.redraw import FAMILIES, Walk, models_of, redraw
from cad.toyworld.refinement_report import Generated, Refined
from cad.toyworld.settings import ToyworldSettings
from cad.toyworld.world import families
from cad.train.perceptual import load_lpips

UNREFINED = "Zero-1-to-3, not refined"
# Of the settings `check`, those that decide pictures.
DECIDES = {"steps", "guidance", "eta", "refine_guidance", "conditioning_scale", "bf16", "caption", "batch"}
Make = Callable[[Sequence[Question], np.ndarray | None], np.ndarray]


def compare(
    settings: ToyworldSettings, work: Path, weights: Path, runs: Path, reports: Path, report: Callable[[str], None]
) -> None:
    """Refine held-out samples at every strength and write reports/refinement.md, .csv and .png.

    Pictures go to `work`/refinement, where another run finds them. A family that is not trained is listed as such, an
    entry without `runs`/<entry>/evaluate/metrics.json with the command that makes it. Raises UserError without zero123
    and where the settings ask for more instances or views than there are.
    """
    chosen, device = settings.refinement, torch.device("cpu")
    asked = ask(settings)
    check_source(weights / "zero123", "model_index.json")
    distance = load_lpips(weights / LPIPS, device)
    count = settings.data.held_out_instances
    render_dataset(settings.data, settings.camera, "held-out", count, work / "held-out")
    data = Dataset(settings.data, "held-out", count, work / "held-out")
    digests = {"zero123": digest(weights / "zero123")}
    raw = sample(settings, data, asked, weights, work / "refinement", digests)
    rows = [measure(UNREFINED, None, raw, raw[:, 0], settings, distance)]
    shown = [asked.index(question) for question in spread(asked, chosen.shown)]
    pictures: dict[str, list[np.ndarray]] = {}
    untrained = []
    for family in FAMILIES:
        if missing := [model for model in models_of(family) if not (weights / model).is_dir()]:
            untrained.append((family, f"`cad toyworld train {missing[0]}`"))
            report(f"{family}: {weights / missing[0]} is not there; run `cad toyworld train {missing[0]}` first")
            continue
        digests |= {model: digest(weights / model) for model in models_of(family)}
        pictures[family] = []
        for strength in chosen.strengths:
            refined = refine(family, strength, settings, data, asked, raw[:, 0], weights, work / "refinement", digests)
            rows.append(measure(family, strength, refined, raw[:, 0], settings, distance))
            pictures[family].append(refined[shown, 0])
            report(refinement_report.sentence(rows[-1]))
    entries = sorted(chosen.generated.items(), key=lambda item: (item[1], item[0]))
    objects = [read_generated(runs, entry, strength) for entry, strength in entries]
    strip = refinement_report.Strip(raw[shown, 0], {name: np.stack(each, 1) for name, each in pictures.items()})
    refinement_report.write(rows, objects, untrained, strip, settings, digests, reports)


def ask(settings: ToyworldSettings) -> list[Question]:
    """The first `views` views that are uniform on the sphere, of `instances` instances, dealt to families in turn."""
    chosen, data, kinds = settings.refinement, settings.data, len(families())
    if chosen.instances > kinds * data.held_out_instances:
        most = f"{kinds} families of data.held_out_instances = {data.held_out_instances}"
        raise UserError(f"refinement.instances: {chosen.instances} is more than {most}; lower it")
    if chosen.views > data.targets:
        raise UserError(f"refinement.views: {chosen.views} is more than data.targets = {data.targets}; lower it")
    subjects = [(k % kinds) * data.held_out_instances + k // kinds for k in range(chosen.instances)]
    return [Question(subject, data.references + view) for subject in subjects for view in range(chosen.views)]


def sample(
    settings: ToyworldSettings, data: Dataset, asked: list[Question], weights: Path, work: Path, digests: dict[str, str]
) -> np.ndarray:
    """`draws` samples of every view, uint8 [Q, D, H, W, 3]; the first is the one that is refined."""
    model = Zero123.load(weights / "zero123", CPU, torch.float32)

    def make(questions: Sequence[Question], _: np.ndarray | None) -> np.ndarray:
        draws = range(settings.refinement.draws)
        return np.stack([synthesise(model, settings, data, questions, draw) for draw in draws], 1)

    place = work / f"zero123-{identity(settings, {'zero123': digests['zero123']})}"
    return each_instance(make, "sampling views", data, asked, None, place)


def refine(
    family: str,
    strength: float,
    settings: ToyworldSettings,
    data: Dataset,
    asked: list[Question],
    raw: np.ndarray,
    weights: Path,
    work: Path,
    digests: dict[str, str],
) -> np.ndarray:
    """`draws` refinements of every view's sample, uint8 [Q, H, W, 3] to [Q, D, H, W, 3]."""
    chosen = settings.refinement
    walk = Walk(strength, chosen.steps)

    def make(questions: Sequence[Question], images: np.ndarray | None) -> np.ndarray:
        assert images is not None  # as given below
        return redraw(family, walk, settings, data, questions, images, chosen.draws, weights)

    used = {model: digests[model] for model in ("zero123", *models_of(family))}
    place = work / f"{family}-{identity(settings, used)}" / f"{strength:g}"
    return each_instance(make, f"{family}, strength {strength:g}", data, asked, raw, place)


def each_instance(
    make: Make, what: str, data: Dataset, asked: list[Question], images: np.ndarray | None, place: Path
) -> np.ndarray:
    """`make` of every instance's questions and their images, a file each in `place`; what is there is kept.

    Instance by instance, so that a run that was stopped goes on and ends with the same bits.
    """
    found = []
    groups = [list(group) for _, group in groupby(range(len(asked)), lambda k: asked[k].subject)]
    items = [data.instances[asked[group[0]].subject] for group in groups]
    paths = [place / f"{item.family}-{item.seed}.safetensors" for item in items]
    with progress(len(groups), what, sum(path.is_file() for path in paths)) as bar:
        for group, path in zip(groups, paths, strict=True):
            if not path.is_file():
                made = make([asked[k] for k in group], None if images is None else images[group])
                path.parent.mkdir(parents=True, exist_ok=True)
                partial = path.with_suffix(".partial")
                save_file({"images": np.ascontiguousarray(made)}, partial)
                partial.replace(path)
                bar.advance(1)
            found.append(load_file(path)["images"])
    return np.concatenate(found)


def identity(settings: ToyworldSettings, digests: dict[str, str]) -> str:
    """A name of all that decides the pictures but instances and strengths, which may be added to."""
    chosen = settings.refinement
    decides: dict[str, Any] = {
        "seed": settings.seed,
        "camera": settings.camera.model_dump(),
        "data": settings.data.model_dump(),
        "check": settings.check.model_dump(include=DECIDES),
        "refinement": [chosen.views, chosen.draws, chosen.steps],
        "weights": digests,
    }
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:12]


def measure(
    family: str,
    strength: float | None,
    draws: np.ndarray,
    unrefined: np.ndarray,
    settings: ToyworldSettings,
    distance: nn.Module,
) -> Refined:
    """Silhouette IoU of draws [Q, D, H, W, 3] with the samples [Q, H, W, 3], and LPIPS between draws."""
    ious = overlap(draws, unrefined[:, None], settings.check.white_threshold)
    if strength is None:  # a sample is not compared with itself
        ious = ious[:, 1:]
    low, middle, high = np.percentile(ious, [25, 50, 75])
    return Refined(
        family, strength, float(middle), float(low), float(high), float((ious < MIN_IOU).mean()),
        pairwise(distance, draws, settings.check.batch), int(ious.size),
    )  # fmt: skip


def read_generated(runs: Path, entry: str, strength: float) -> Generated:
    """An entry's diversity from its metrics.json, or None where it was not run; UserError for a broken file."""
    path = runs / entry / "evaluate/metrics.json"
    if not path.is_file():
        return Generated(entry, strength, None)
    try:
        diversity = json.loads(path.read_text())["diversity"]
        values = {name: float(row["lpips"]) for name, row in diversity["rows"].items() if name in ("3d", "2d")}
        return Generated(entry, strength, values | {"refined": float(diversity["refined"])})
    except (ValueError, KeyError, TypeError, AttributeError) as fault:
        raise UserError(f"{path}: holds no diversity ({fault!r}); run `cad evaluate {entry}` again") from fault
