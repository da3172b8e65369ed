"""The polar angle of a photograph by One-2-3-45's estimator (App. C): Zero-1-to-3's views of it, and their agreement.

What must agree is a setting: points matched in neighbours (`polar`), or silhouettes from all around (`outlines`).
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from cad.camera import relative_pose
from cad.config import CameraSettings, ElevationSettings, Params, PriorSettings
from cad.context import prepare_device
from cad.errors import UserError
from cad.inputs.matching import Matcher, load_matcher
from cad.inputs.outlines import agreed, ring_offsets, search_outlines
from cad.inputs.picture import read_picture
from cad.inputs.polar import PAIRS, Estimate, Pairs, collect_tracks, join_tracks, neighbour_offsets, search
from cad.inputs.prepare import frame_picture
from cad.prior.ddim import NoiseStreams, in_precision
from cad.prior.pictures import check_resolution, foreground, to_network, to_picture
from cad.prior.zero123 import Zero123
from cad.seeding import generator

Draw = Callable[[torch.Tensor], Sequence[np.ndarray]]  # offsets [n, 2] of views -> draws of them, uint8 [n, H, W, 3]
Estimator = Callable[[np.ndarray, Draw], Estimate]  # from a picture, uint8 [H, W, 3], and whatever draws its views


def estimate_polar(picture: np.ndarray, name: str, params: Params, device: torch.device) -> Estimate:
    """The polar angle of a picture, uint8 [H, W, 3] on white, framed as Zero-1-to-3 takes it (App. C).

    `name` seeds the noise. Raises UserError for weights that are missing and a picture of another size than the
    model's; an angle that the matches do not determine is no error but an Estimate without one.
    """
    settings = params.elevation
    home = torch.device("cpu") if params.prior.offload else device
    model = Zero123.load(params.models.zero123, home, getattr(torch, params.prior.precision))
    if params.prior.offload:
        model.offload_idle(device)
    check_resolution(len(picture), model.resolution, "models.zero123")
    streams = [(params.seed, name, "elevation", k) for k in range(settings.draws)]

    def draw(offsets: torch.Tensor) -> list[np.ndarray]:
        return [draw_views(model, picture, offsets, stream, params.prior, device) for stream in streams]

    return load_estimator(settings, params.camera, device)(picture, draw)


def estimate_named(what: str, params: Params) -> Estimate:
    """The polar angle of an object of the settings, or else of the picture file of this name.

    Raises UserError for a picture that is missing, broken or shows no object, and as `estimate_polar` does.
    """
    source = params.objects.get(what)
    path, framed = (Path(source.image), source.framed) if source else (Path(what), False)
    if not source and not path.exists():
        known = ", ".join(params.objects)
        raise UserError(f"{what}: is no object of the settings ({known}) and no file; name one of them")
    picture, _ = frame_picture(path, read_picture(path, params.input.min_side), params.input, framed)
    device = prepare_device(params.runtime.device, params.runtime.threads)
    return estimate_polar(picture, what if source else path.stem, params, device)


def draw_views(
    model: Zero123,
    picture: np.ndarray,
    offsets: torch.Tensor,
    stream: tuple[int | str, ...],
    settings: PriorSettings,
    device: torch.device,
) -> np.ndarray:
    """Zero-1-to-3's views of a picture, uint8 [n, H, W, 3], at offsets (d_polar, d_azimuth) in radians, [n, 2].

    `stream` and the position seed the noise. They are made of the picture itself [ours]: One-2-3-45 has the model draw
    the picture again first and makes them of that, which on toyworld's training instances was no better.
    """
    relative = relative_pose(offsets[:, 1], offsets[:, 0], 0.0, 0.0)
    streams = NoiseStreams([generator(*stream, k) for k in range(len(relative))], device, torch.float32)
    embedding, latent = model.condition(to_network(picture[None], device))
    with in_precision(device, settings.bf16):
        images = model.sample(
            embedding,
            latent,
            relative.float().to(device),
            streams.draw(model.latent_shape),
            (lambda step: streams.draw(model.latent_shape)) if settings.eta > 0 else None,
            settings.steps,
            settings.guidance,
            settings.eta,
        )
    return to_picture(images)


def load_estimator(settings: ElevationSettings, camera: CameraSettings, device: torch.device) -> Estimator:
    """The estimator that `elevation.score` names; UserError where its matcher lacks a package or weights."""
    return ESTIMATORS[settings.score](settings, camera, device)


def by_points(settings: ElevationSettings, camera: CameraSettings, device: torch.device) -> Estimator:
    """One-2-3-45's: points matched in the four neighbours."""
    matcher = load_matcher(settings, device)

    def estimate(picture: np.ndarray, draw: Draw) -> Estimate:
        return estimate_from_views(draw(neighbour_offsets(settings.turn_deg)), matcher, settings, camera)

    return estimate


def by_silhouettes(settings: ElevationSettings, camera: CameraSettings, device: torch.device) -> Estimator:
    """Ours: silhouettes of the picture itself and of views all around it, in each of which the draws vote."""
    ring = [0.0, *settings.ring_deg]

    def estimate(picture: np.ndarray, draw: Draw) -> Estimate:
        seen = foreground(np.stack(draw(ring_offsets(settings.ring_deg))), settings.white_threshold)
        own = foreground(picture[None], settings.white_threshold)
        return search_outlines(np.concatenate([own, agreed(seen)]), ring, settings, camera)

    return estimate


def estimate_from_views(
    seen: Sequence[np.ndarray], matcher: Matcher, settings: ElevationSettings, camera: CameraSettings
) -> Estimate:
    """The polar angle whose neighbours these are: draws of the four, each uint8 [4, H, W, 3]."""
    found = [collect_tracks(match_pairs(views, matcher, settings), settings.join) for views in seen]
    return search(join_tracks(found), settings, camera)


def match_pairs(views: np.ndarray, matcher: Matcher, settings: ElevationSettings) -> Pairs:
    """The matches of all six pairs of the neighbours, uint8 [4, H, W, 3], inside their foreground."""
    masks = foreground(views, settings.white_threshold)
    return {(i, j): matcher.match(views[i], views[j], (masks[i], masks[j])) for i, j in PAIRS}


ESTIMATORS: dict[str, Callable[[ElevationSettings, CameraSettings, torch.device], Estimator]] = {
    "points": by_points,
    "silhouettes": by_silhouettes,
}
