"""How good the small models are, measured on held-out instances that no training has seen."""

from collections.abc import Callable
from pathlib import Path

from cad.artifacts import digest, write_atomic
from cad.errors import UserError
from cad.toyworld.dataset import Dataset, render_dataset
from cad.toyworld.measures.autoencoder import measure_autoencoder
from cad.toyworld.measures.clip import measure_clip
from cad.toyworld.measures.controlnet import measure_controlnet
from cad.toyworld.measures.depth import measure_depth
from cad.toyworld.measures.refiner import measure_refiner
from cad.toyworld.measures.table import Measure, markdown, sentence, table
from cad.toyworld.measures.zero123 import measure_zero123
from cad.toyworld.settings import ToyworldSettings
from cad.toyworld.sharpen import USERS
from cad.toyworld.world import families

WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"
MEASURES: dict[str, Callable[[str, ToyworldSettings, Dataset, Path], list[Measure]]] = {
    "clip": measure_clip,
    "clip-evaluation": measure_clip,
    "autoencoder": measure_autoencoder,
    "zero123": measure_zero123,
    "refiner": measure_refiner,
    "depth": measure_depth,
    "controlnet": measure_controlnet,
}


def check(settings: ToyworldSettings, work: Path, weights: Path, reports: Path, report: Callable[[str], None]) -> None:
    """Measure every model that lies in `weights` and write reports/toyworld.md and .csv; renders the views it needs.

    Models that are not there are listed as not trained. Raises UserError where the settings ask for more held-out
    instances than there are.
    """
    count, wanted = settings.data.held_out_instances, settings.check.instances
    if wanted > count:
        raise UserError(f"check.instances: {wanted} is more than data.held_out_instances = {count}; lower it")
    render_dataset(settings.data, settings.camera, "held-out", count, work / "held-out")
    data = Dataset(settings.data, "held-out", count, work / "held-out")
    measures: dict[str, list[Measure]] = {}
    for name, measure in MEASURES.items():
        if is_trained(weights / name):
            measures[name] = measure(name, settings, data, weights)
            report("\n".join(sentence(m) for m in measures[name]))
        else:
            report(f"{name}: not trained")
    for name in stale_copies(weights):
        report(f"{name}: holds another autoencoder than {weights / 'autoencoder'}; run `cad toyworld train sharpen`")
    digests = {name: digest(weights / name) for name in measures}
    page = markdown(list(MEASURES), measures, digests, introduction(settings))
    write_atomic(reports / "toyworld.md", page.encode())
    write_atomic(reports / "toyworld.csv", table(list(MEASURES), measures, digests).encode())


def is_trained(folder: Path) -> bool:
    """Whether a model's folder is there, one network (config.json) or a pipeline of several (model_index.json)."""
    return any((folder / name).is_file() for name in ("config.json", "model_index.json"))


def stale_copies(weights: Path) -> list[str]:
    """Diffusion models whose own copy of the autoencoder is not the one in `weights`: it was sharpened since."""
    own = weights / "autoencoder" / WEIGHTS_FILE
    copies = {name: weights / name / "vae" / WEIGHTS_FILE for name in USERS}
    return [name for name, copy in copies.items() if own.is_file() and copy.is_file() and digest(copy) != digest(own)]


def introduction(settings: ToyworldSettings) -> str:
    """What the table's numbers are about, in the settings' words."""
    chosen = settings.check
    return (
        f"Written by `cad toyworld check`: {chosen.instances} instances of each of {len(families())} families, none of "
        f"which was trained on. Zero-1-to-3 gives one sample for each of up to {chosen.views} views over "
        f"{chosen.min_angle_deg:g} deg from the reference, {chosen.steps} steps, guidance {chosen.guidance:g}, eta "
        f"{chosen.eta:g}. Parts are an object's primitives that cover at least {chosen.part_pixels} pixels of a view; "
        "their mean colours are compared by CIEDE2000. Left, right, front and back are those of the most similar of "
        f"the object's true views, where the camera asked for is over {chosen.side_margin:g} (of a unit vector) to a "
        "side. A sample is bad when its silhouette or its nearest true pose is off, by the thresholds that pruning is "
        f"measured with; no fault is injected. The share of bad samples is of the first {chosen.views} views of each "
        "instance that were drawn uniformly on the sphere, however near the reference. The refiner is given the "
        f"{chosen.caption} caption with its view, strength {chosen.strength:g}, guidance {chosen.refine_guidance:g}; "
        f"its samples and draws are of up to {chosen.draw_poses} of the views far from the reference, unpruned, and "
        "depend on zero123's weights too. Depth is estimated from the true views far from the reference; scale and "
        "shift are fitted to the inverse depth of each view's object. Control by depth is measured on the samples that "
        f"the refiner is measured on, at conditioning scale {chosen.conditioning_scale:g}, from the same noise with "
        "and without it."
    )
