"""The evaluation orbit (Sec. 4): 120 views around the object per seed, from the 2D branch and from the 3D branch."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn.functional import interpolate

from cad.artifacts import InputArtifact, Orbit, OrbitWriter, read_json, write_image, write_json, write_video
from cad.camera import Poses, near_far, orbit_poses
from cad.config import CameraSettings, OrbitSettings
from cad.context import Advance, Context, Do
from cad.errors import UserError
from cad.progress import progress
from cad.render.choice import check_begun, rendered_by
from cad.render.reference import Sampling
from cad.train.load import LoadedGenerator, Subject, load_generator, output_side

BRANCHES = ("2d", "3d")
RENDER = "render.json"  # the settings, the renderer and the kind of device
CONTACT_COLUMNS = 12
VIDEO_SIDE = 256  # smaller frames are enlarged by whole pixels, or players blur them [ours]


class Views(NamedTuple):
    """Rendered views: color uint8 [n, H, W, 3] on white, alpha uint8 [n, H, W], depth [n, H, W] in scene units."""

    color: NDArray[np.uint8]
    alpha: NDArray[np.uint8]
    depth: NDArray[np.float64]


@dataclass(frozen=True)
class Plan:
    """What the batches of frames of one orbit have in common."""

    settings: OrbitSettings
    camera: CameraSettings
    stage2_dir: Path
    input_dir: Path
    out: Path


def render_orbit(
    settings: OrbitSettings, camera: CameraSettings, stage2_dir: Path, input_dir: Path, out: Path, context: Context
) -> None:
    """Render the orbit of every seed and branch into `out`; frames that already lie there are kept.

    The orbit runs at the reference's polar angle and starts at its azimuth [ours: the paper gives no elevation], so
    frame 0 is the view to compare with the input. Raises UserError for a broken input or checkpoint, and for
    frames that another renderer or device began.
    """
    plan = Plan(settings, camera, stage2_dir, input_dir, out)
    side = output_side(stage2_dir, "stage2")
    # First, for a resumed run to compare: what the frames are rendered with, and a control's would have to be.
    if (out / RENDER).exists():
        check_begun(out, read_json(out / RENDER), context.device)
    write_json(out / RENDER, settings.model_dump() | rendered_by(context.device))
    writer, batches = writer_of(plan, side), batches_of(settings)
    gaps = {(branch, seed): writer.missing(branch, seed) for branch in BRANCHES for seed in writer.seeds}
    missing = [batches.index(batch) for batch in batches_with(gaps, settings)]
    total = len(BRANCHES) * settings.seeds * settings.frames
    with progress(total, "orbit", total - sum(len(batches[i].frames) for i in missing)) as bar:
        context.engine.run(begin_rendering, plan, missing, lambda *_: None, bar.advance, context)
    writer.finish()
    orbit = Orbit.open(out)
    for branch in BRANCHES:
        for seed in writer.seeds:
            name = f"{branch}-seed-{seed:04d}"
            write_video(out / f"{name}.mp4", video_frames(orbit, branch, seed), settings.fps)
            context.tracker.video(f"orbit/{name}", out / f"{name}.mp4")
    sheet = labelled_sheet(orbit)
    write_image(out / "contact.png", sheet)
    context.tracker.image("orbit/contact", sheet, 0)


class Batch(NamedTuple):
    """Frames of one branch and seed that are rendered at once."""

    branch: str
    seed: int
    frames: range


def batches_of(settings: OrbitSettings) -> list[Batch]:
    """Every batch of an orbit."""
    whole = {(branch, seed): list(range(settings.frames)) for branch in BRANCHES for seed in range(settings.seeds)}
    return batches_with(whole, settings)


def batches_with(frames: Mapping[tuple[str, int], list[int]], settings: OrbitSettings) -> list[Batch]:
    """The batches that hold any of these frames, of branches and seeds."""
    return [Batch(*which, batch) for which, some in frames.items() for batch in missing_batches(some, settings)]


def writer_of(plan: Plan, side: int) -> OrbitWriter:
    """What writes the plan's orbit, or goes on with it; side: of a frame, in pixels."""
    reference = InputArtifact.open(plan.input_dir)
    poses = orbit_poses(plan.settings.frames, reference.reference_polar, reference.reference_azimuth)
    lens = plan.camera
    return OrbitWriter(plan.out, poses, lens.radius, lens.fov_deg, side, BRANCHES, range(plan.settings.seeds))


def begin_rendering(plan: Plan, context: Context) -> Do:
    """Load the generator; returns what renders and writes one batch, by its place in `batches_of`."""
    settings, camera = plan.settings, plan.camera
    generator = load_generator(plan.stage2_dir, "stage2", context.device)
    writer, batches = writer_of(plan, generator.settings.output_resolution), batches_of(settings)
    poses = Poses(torch.from_numpy(writer.azimuth), torch.from_numpy(writer.polar))

    @lru_cache(maxsize=1)  # its planes serve all frames
    def subject(branch: str, seed: int) -> Subject:
        return generator.subject(branch, generator.w(seed, settings.truncation))

    def do(piece: int, advance: Advance) -> None:
        branch, seed, frames = batches[piece]
        views = view_subject(generator, subject(branch, seed), take(poses, frames), settings, camera)
        for k, color, alpha, depth in zip(frames, *views, strict=True):
            writer.write(branch, seed, k, color, alpha, depth)
        advance(len(frames))

    return do


def rendered_with(folder: Path) -> OrbitSettings:
    """The settings that the orbit in a folder was rendered with."""
    content = read_json(folder / RENDER, *OrbitSettings.model_fields)
    return OrbitSettings(**{name: content[name] for name in OrbitSettings.model_fields})


def missing_batches(missing: list[int], settings: OrbitSettings) -> list[range]:
    """The batches with a missing frame. They are always the same ones, so that a resumed run computes the same bits."""
    starts = sorted({k - k % settings.batch for k in missing})
    return [range(start, min(start + settings.batch, settings.frames)) for start in starts]


def take(poses: Poses, frames: range | list[int]) -> Poses:
    """Some of the poses."""
    return Poses(poses.azimuth[list(frames)], poses.polar[list(frames)])


def render_views(
    generator: LoadedGenerator, branch: str, seed: int, poses: Poses, settings: OrbitSettings, camera: CameraSettings
) -> Views:
    """Render one seed's views at these poses through one branch ("2d" or "3d")."""
    subject = generator.subject(branch, generator.w(seed, settings.truncation))
    return view_subject(generator, subject, poses, settings, camera)


def view_subject(
    generator: LoadedGenerator, subject: Subject, poses: Poses, settings: OrbitSettings, camera: CameraSettings
) -> Views:
    """Render an object's views at these poses."""
    near, far = near_far(camera.radius, camera.half_side)
    sampling = Sampling(near, far, camera.half_side, settings.coarse_samples, settings.fine_samples)
    return to_views(*generator.render(subject, poses.cameras(camera.radius), sampling), far)


def to_views(image: Tensor, opacity: Tensor, depth: Tensor, far: float) -> Views:
    """Views from a rendering on white.

    image: [n, 3, H, W] in [-1, 1]; opacity: [n, 1, r, r] in [0, 1]; depth: [n, 1, r, r] along the ray, where the light
    that passes counts with `far`: it is taken out again, so that a soft edge has the surface's depth. The 2D branch has
    opacity and depth at its raw resolution only; they are resized to the image's. Depth is 0 where nothing is. Raises
    UserError for a rendering that is not finite, which would be stored as black or as empty.
    """
    for name, values in (("colour", image), ("opacity", opacity), ("depth", depth)):
        if not values.isfinite().all():
            raise UserError(f"stage2: its generator renders {name} that is not finite; train again with lower rates")
    side = image.shape[-1]
    if opacity.shape[-1] != side:
        opacity, depth = (interpolate(x, (side, side), mode="bilinear", antialias=True) for x in (opacity, depth))
    color = ((image.float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    alpha = (opacity[:, 0].clamp(0, 1) * 255).round().byte().cpu().numpy()
    surface = ((depth - (1 - opacity) * far) / opacity.clamp(min=1e-6))[:, 0].double().cpu().numpy()
    return Views(color, alpha, np.where(alpha == 0, 0.0, surface.clip(0, far)))


def video_frames(orbit: Orbit, branch: str, seed: int) -> Iterator[NDArray[np.uint8]]:
    """The frames of one branch and seed, uint8 [H, W, 3], enlarged to `VIDEO_SIDE` or more."""
    factor = math.ceil(VIDEO_SIDE / orbit.resolution)
    for k in range(len(orbit)):
        yield orbit.frame(branch, seed, k).repeat(factor, axis=0).repeat(factor, axis=1)


def labelled_sheet(orbit: Orbit) -> NDArray[np.uint8]:
    """One image to look at, uint8 [H, W, 3]: a row per branch and seed, a column per azimuth (30 deg apart)."""
    columns = [round(i * len(orbit) / CONTACT_COLUMNS) % len(orbit) for i in range(CONTACT_COLUMNS)]
    rows = [(branch, seed) for branch in reversed(orbit.branches) for seed in orbit.seeds]
    side, gap, left, top = orbit.resolution, 2, 66, 14
    sheet = Image.new("RGB", (left + CONTACT_COLUMNS * (side + gap), top + len(rows) * (side + gap)), "white")
    draw = ImageDraw.Draw(sheet)
    for column, frame in enumerate(columns):
        degrees = round(math.degrees(orbit.azimuth[frame])) % 360
        draw.text((left + column * (side + gap) + side / 2, 1), str(degrees), fill="black", anchor="ma")
    for row, (branch, seed) in enumerate(rows):
        y = top + row * (side + gap)
        draw.text((4, y + side / 2), f"{branch.upper()} seed {seed}", fill="black", anchor="lm")
        for column, frame in enumerate(columns):
            sheet.paste(Image.fromarray(orbit.frame(branch, seed, frame)), (left + column * (side + gap), y))
    return np.asarray(sheet)
