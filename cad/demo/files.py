"""A finished run, packed: what is needed to render and judge it again, without what only training needs.

    demo.json     {schema, entry, object, precision, rows, azimuth, polar (radians), orbit, made_from, files}, the last
                  two as {name: sha256}
    weights/      the stage-2 checkpoint with the averaged generator alone, in float16
    input/        the object input, copied
    frames.png    the run's own frames: a row per branch and seed and, where it is known, the true object; 8 azimuths
    videos/       the first orbit's MP4 file of the 3D branch, copied
    metrics.json  the scores, copied; they were measured on the run, not on the float16 copy

Equal runs give equal bytes: nothing here knows a clock or a machine.
"""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cad.artifacts import Checkpoint, InputArtifact, Orbit, digest, read_image, read_json, write_image, write_json
from cad.artifacts.files import PARTIAL, check_schema, full_disk_named
from cad.config import OrbitSettings
from cad.errors import UserError
from cad.report.strips import read_strip
from cad.stages import LINEAGE

if TYPE_CHECKING:
    from torch import Tensor

FORMER = ".former" + PARTIAL  # ends as what is partial does, so that it is never taken for a packed run
SCHEMA = 1
MANIFEST = "demo.json"
STAGES = ("input", "stage2", "orbit", "evaluate")  # the stages whose folders are packed
SEEDS = 2  # whose frames are packed, of each branch [ours]: the weights make all others
VIDEO = "3d-seed-0000.mp4"  # one is packed [ours]: the weights make all others, and videos are large
COLUMNS = 8  # azimuths of a row of frames, 45 deg apart [ours]
PRECISION = "float16"
AVERAGED = ("generator_ema", "upsampler_ema")  # what renders; optimisers and discriminators only train
NETWORKS = ("generator", "camera", "stage2")  # settings from which the networks are built again
INPUT_FILES = ("image.png", "mask.png", "input.json")
TRUTH = "truth"


@dataclass(frozen=True)
class Demo:
    """A packed run, every file checked; frames uint8 [rows, COLUMNS, H, W, 3] on white, angles in radians."""

    folder: Path
    entry: str
    reference: InputArtifact
    metrics: dict[str, Any]
    rows: list[tuple[str, int]]  # branch ("3d", "2d", or "truth") and seed of each row of frames
    frames: NDArray[np.uint8]
    azimuth: NDArray[np.float64]
    polar: float
    orbit: OrbitSettings
    videos: list[Path]

    @property
    def weights(self) -> Path:
        """The checkpoint's folder, for `cad.train.load.load_generator`."""
        return self.folder / "weights"

    def row(self, branch: str, seed: int) -> NDArray[np.uint8]:
        """The frames of one row, uint8 [COLUMNS, H, W, 3]."""
        return self.frames[self.rows.index((branch, seed))]


def pack_run(entry: str, runs: Mapping[str, Path], out: Path) -> None:
    """Pack the folders `runs` of STAGES, which must belong to one run, into `out`, in the place of a former one.

    Raises UserError for a broken folder, or one that was made from another run's; then `out` is as it was.
    """
    check_one_run(runs)
    partial, former = (out.with_name(out.name + end) for end in (PARTIAL, FORMER))
    if former.exists() and not out.exists():  # a pack was killed between the two renames below
        former.rename(out)
    for left in (partial, former):
        shutil.rmtree(left, ignore_errors=True)
    try:
        with full_disk_named(out):
            write_demo(entry, runs, partial)
            replace(out, partial, former)
    except BaseException:  # an interrupt too must leave nothing half-packed behind
        shutil.rmtree(partial, ignore_errors=True)
        raise


def replace(out: Path, new: Path, former: Path) -> None:
    """Put a folder in the place of another one, which waits aside as `former` until the new one is there."""
    if out.exists():
        out.rename(former)
    try:
        new.rename(out)
    except BaseException:
        if former.exists() and not out.exists():
            former.rename(out)
        raise
    shutil.rmtree(former, ignore_errors=True)


def check_one_run(runs: Mapping[str, Path]) -> None:
    """UserError unless the orbit and the scores were made from these very folders, by the digests in their lineage."""
    for stage in STAGES:
        if not (runs[stage] / LINEAGE).is_file():
            raise UserError(f"{runs[stage]}: is no finished stage; run `dvc repro {repro(stage, runs)}` first")
    digests = {stage: digest(runs[stage]) for stage in ("input", "stage2", "orbit")}
    for stage, upstream in (("orbit", ("input", "stage2")), ("evaluate", ("input", "stage2", "orbit"))):
        path = runs[stage] / LINEAGE
        made_from = read_json(path, "inputs")["inputs"]
        for name in upstream:
            if made_from.get(name) != digests[name]:
                said = f"{stage} was made from another {runs[name]}"
                raise UserError(f"{path}: {said}; run `dvc repro {repro(stage, runs)}` first")


def repro(stage: str, runs: Mapping[str, Path]) -> str:
    """DVC's name of a stage of an entry, from its folder runs/<entry>/<stage>."""
    return f"{stage}@{runs[stage].parent.name}"


def write_demo(entry: str, runs: Mapping[str, Path], folder: Path) -> None:
    """Write the files of a packed run into an empty folder."""
    reference, orbit = InputArtifact.open(runs["input"]), Orbit.open(runs["orbit"])
    recorded = read_json(runs["orbit"] / "render.json")  # the renderer and the device too
    rendered_with = OrbitSettings(**{name: recorded[name] for name in OrbitSettings.model_fields})
    for name in INPUT_FILES:
        copy(runs["input"] / name, folder / "input" / name)
    copy(runs["evaluate"] / "metrics.json", folder / "metrics.json")
    copy(runs["orbit"] / VIDEO, folder / "videos" / VIDEO)
    write_weights(runs["stage2"], folder / "weights")
    rows, frames = chosen_frames(orbit, runs["evaluate"] / "views" / "truth.png")
    write_image(folder / "frames.png", np.concatenate([np.concatenate(list(row), 1) for row in frames]))
    sources = [runs["stage2"] / "model.safetensors", runs["orbit"] / "cameras.json", runs["evaluate"] / "metrics.json"]
    places = chosen_places(len(orbit))
    manifest = {
        "schema": SCHEMA,
        "entry": entry,
        "object": reference.object,
        "precision": PRECISION,
        "rows": [[branch, seed] for branch, seed in rows],
        "azimuth": orbit.azimuth[places].tolist(),
        "polar": float(orbit.polar[0]),
        "orbit": rendered_with.model_dump(),
        "made_from": {path.as_posix(): digest(path) for path in sources},
        "files": {name: digest(folder / name) for name in file_names(folder)},
    }
    write_json(folder / MANIFEST, manifest)


def copy(source: Path, target: Path) -> None:
    """Copy a file; UserError if it is missing."""
    if not source.is_file():
        raise UserError(f"{source}: missing; run the stage that writes it")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def file_names(folder: Path) -> list[str]:
    """Relative names of all files in a folder, sorted."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def write_weights(stage2: Path, out: Path) -> None:
    """Write the averaged generator of a stage-2 checkpoint as a checkpoint of its own, in float16."""
    checkpoint = Checkpoint.open(stage2, "stage2")
    groups = {group: half(checkpoint.tensors(group), stage2) for group in AVERAGED if group in checkpoint.groups}
    stored = checkpoint.state["settings"]
    settings = {name: stored[name] for name in NETWORKS if name in stored}  # without an upsampler there is no stage2
    state = {"settings": settings, "precision": PRECISION, **{k: checkpoint.state[k] for k in ("step", "images")}}
    Checkpoint.write(out, "stage2", groups, state)


def half(tensors: "Mapping[str, Tensor]", origin: Path) -> "dict[str, Tensor]":
    """Floating-point tensors as float16, others as they are; UserError where a value is beyond float16's range."""
    halved = {name: value.half() if value.is_floating_point() else value for name, value in tensors.items()}
    for name, value in halved.items():
        if not value.isfinite().all():
            raise UserError(f"{origin}: the averaged {name} is not finite in {PRECISION}; train with lower rates")
    return halved


def chosen_places(frames: int) -> list[int]:
    """Places of COLUMNS frames at equal distances along an orbit, from its first."""
    return [k * frames // COLUMNS for k in range(COLUMNS)]


def chosen_frames(orbit: Orbit, truth: Path) -> tuple[list[tuple[str, int]], NDArray[np.uint8]]:
    """Rows of frames, 3D before 2D before the true object (if its strip of views is there), and their names."""
    places = chosen_places(len(orbit))
    rows = [(branch, seed) for branch in sorted(orbit.branches, reverse=True) for seed in orbit.seeds[:SEEDS]]
    frames = [np.stack([orbit.frame(branch, seed, k) for k in places]) for branch, seed in rows]
    if truth.is_file():
        frames.append(read_strip(truth, len(orbit), orbit.resolution)[places])
        rows.append((TRUTH, 0))
    return rows, np.stack(frames)


def restore(folder: Path) -> str:
    """How to get a packed run back; DVC does not overwrite a file that is there and was changed."""
    return f"remove {folder} and run `dvc pull data.dvc`"


def open_demos(root: Path, entries: list[str]) -> list[Demo]:
    """Open packed runs, all that are whole if none is named; UserError names what is missing or broken."""
    found = root.iterdir() if root.is_dir() else ()
    packed = sorted(path.name for path in found if path.is_dir() and not path.name.endswith(PARTIAL))
    if not packed:
        raise UserError(f"{root}: missing; run `dvc pull data.dvc`, or pack a finished run by `cad demo pack ENTRY`")
    if unknown := sorted(set(entries) - set(packed)):
        raise UserError(f"{root / unknown[0]}: missing; packed are {', '.join(packed)}; `cad demo pack` packs others")
    return [open_demo(root / entry) for entry in entries or packed]


def open_demo(folder: Path) -> Demo:
    """Open a packed run of exactly the recorded files; UserError names a wrong file and how to get it again."""
    path = folder / MANIFEST
    try:
        manifest = read_json(path, "files")
        check_schema(path, manifest, SCHEMA)
        for name, expected in manifest["files"].items():
            if not (folder / name).is_file():
                raise UserError(f"{folder / name}: missing")
            if digest(folder / name) != expected:
                raise UserError(f"{folder / name}: damaged, its digest is not the recorded one")
        if added := sorted(set(file_names(folder)) - {*manifest["files"], MANIFEST}):
            raise UserError(f"{folder / added[0]}: is no file of the packed run")
        frames = read_image(folder / "frames.png")
        side = frames.shape[1] // COLUMNS
        grid = frames.reshape(len(manifest["rows"]), side, COLUMNS, side, 3).swapaxes(1, 2)
        return Demo(
            folder=folder,
            entry=manifest["entry"],
            reference=InputArtifact.open(folder / "input"),
            metrics=read_json(folder / "metrics.json", "scorers", "frames", "seeds"),
            rows=[(branch, seed) for branch, seed in manifest["rows"]],
            frames=grid,
            azimuth=np.asarray(manifest["azimuth"], dtype=np.float64),
            polar=manifest["polar"],
            orbit=OrbitSettings.model_validate(manifest["orbit"]),
            videos=[folder / name for name in sorted(manifest["files"]) if name.endswith(".mp4")],
        )
    except UserError as error:  # the remedy is another one than for a run
        raise UserError(f"{str(error).split(';')[0]}; {restore(folder)}") from None
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        said = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UserError(f"{path}: is no packed run of this version ({said}); {restore(folder)}") from None
