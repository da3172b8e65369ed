"""An orbit: frames of a turning camera for each branch and seed, readable without torch.

    cameras.json                      below
    <branch>/seed-0000/rgba-000.png   uint8 RGBA, straight alpha
    <branch>/seed-0000/depth-000.png  uint16, depth along the ray in units of `integer_depth_scale`; 0 is nothing

`cameras.json` has the layout of NeRF's transforms.json, so that NeRF programs read it: `camera_angle_x` in radians,
`frames` with `file_path` and `transform_matrix` (camera-to-world in OpenGL axes: right, up, backward). The paths are
those of the last branch's first seed; every other branch and seed has the same cameras and file names. Beside them:
{schema, branches, seeds, resolution, radius, integer_depth_scale, azimuth, polar (radians), files: {folder: sha256}}.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cad.artifacts.files import check_digest, check_schema, digest, read_json, write_json
from cad.artifacts.images import read_image, write_image
from cad.errors import UserError

if TYPE_CHECKING:
    from cad.camera import Poses

SCHEMA = 1
DEPTH_SCALE = 1e-4  # [ours] scene units per step of the 16-bit depth: up to 6.5 units, beyond any far plane here
AGAIN = "run the orbit stage again"


def seed_folder(branch: str, seed: int) -> str:
    """Folder of one branch and seed inside an orbit."""
    return f"{branch}/seed-{seed:04d}"


def frame_names(k: int) -> tuple[str, str]:
    """File names of a frame's colour and depth inside its folder."""
    return f"rgba-{k:03d}.png", f"depth-{k:03d}.png"


class Orbit:
    """A finished orbit: the presence of every frame is checked on opening, a folder's digest when it is first read."""

    def __init__(self, folder: Path, header: dict[str, Any]) -> None:
        """Hold a checked header; use `Orbit.open`."""
        self.folder = folder
        self.branches: list[str] = header["branches"]
        self.seeds: list[int] = header["seeds"]
        self.resolution: int = header["resolution"]
        self.radius: float = header["radius"]
        self.azimuth: NDArray[np.float64] = np.asarray(header["azimuth"], dtype=np.float64)
        self.polar: NDArray[np.float64] = np.asarray(header["polar"], dtype=np.float64)
        self._scale: float = header["integer_depth_scale"]
        self._files: dict[str, str] = header["files"]
        self._checked: set[str] = set()

    @classmethod
    def open(cls, folder: Path) -> "Orbit":
        """Open an orbit; UserError names the file and the fault."""
        folder = Path(folder)
        path = folder / "cameras.json"
        kinds: dict[str, type] = {
            "branches": list,
            "seeds": list,
            "resolution": int,
            "radius": float,
            "integer_depth_scale": float,
            "azimuth": list,
            "polar": list,
            "files": dict,
            "frames": list,
        }
        header = read_json(path, "schema", *kinds)
        check_schema(path, header, SCHEMA)
        for key, kind in kinds.items():
            if not isinstance(header[key], kind):
                raise UserError(f"{path}: '{key}' is {type(header[key]).__name__}, not {kind.__name__}; {AGAIN}")
        if not len(header["frames"]) == len(header["azimuth"]) == len(header["polar"]):
            raise UserError(f"{path}: frames, azimuth and polar differ in length; {AGAIN}")
        if not all(type(angle) is float for angle in header["azimuth"] + header["polar"]):
            raise UserError(f"{path}: 'azimuth' or 'polar' holds something else than radians; {AGAIN}")
        places = [seed_folder(branch, seed) for branch in header["branches"] for seed in header["seeds"]]
        if not places or sorted(places) != sorted(header["files"]):
            raise UserError(f"{path}: 'files' does not hold every branch and seed; {AGAIN}")
        for place in places:
            for name in (name for k in range(len(header["frames"])) for name in frame_names(k)):
                if not (folder / place / name).is_file():
                    raise UserError(f"{folder / place / name}: missing; {AGAIN}")
        return cls(folder, header)

    def __len__(self) -> int:
        """Number of frames per branch and seed."""
        return len(self.azimuth)

    @property
    def poses(self) -> "Poses":
        """The cameras' poses, frame by frame (imports torch)."""
        import torch

        from cad.camera import Poses

        return Poses(azimuth=torch.from_numpy(self.azimuth.copy()), polar=torch.from_numpy(self.polar.copy()))

    def frame(self, branch: str, seed: int, k: int) -> NDArray[np.uint8]:
        """Frame k on white, uint8 [H, W, 3]."""
        rgba = self._rgba(branch, seed, k).astype(np.float64)
        return np.rint(rgba[..., :3] * rgba[..., 3:] / 255 + 255 - rgba[..., 3:]).astype(np.uint8)

    def alpha(self, branch: str, seed: int, k: int) -> NDArray[np.uint8]:
        """Opacity of frame k, uint8 [H, W]: 0 is empty, 255 is solid."""
        return self._rgba(branch, seed, k)[..., 3]

    def depth(self, branch: str, seed: int, k: int) -> NDArray[np.float64]:
        """Depth along the ray in scene units, [H, W]; 0 where the ray met nothing."""
        shape = (self.resolution, self.resolution)
        return self._picture(branch, seed, frame_names(k)[1], shape, np.uint16) * self._scale

    def _rgba(self, branch: str, seed: int, k: int) -> NDArray[np.uint8]:
        return self._picture(branch, seed, frame_names(k)[0], (self.resolution, self.resolution, 4), np.uint8)

    def _picture(self, branch: str, seed: int, name: str, shape: tuple[int, ...], dtype: type[Any]) -> NDArray[Any]:
        place = seed_folder(branch, seed)
        path = self.folder / place / name
        if place not in self._files:
            raise UserError(f"{path}: no such branch and seed; the orbit holds {', '.join(self._files)}")
        if place not in self._checked:
            check_digest(path.parent, self._files[place])
            self._checked.add(place)
        pixels = read_image(path)
        if pixels.dtype != dtype or pixels.shape != shape:
            raise UserError(f"{path}: {pixels.dtype} {pixels.shape}, not {dtype.__name__} {shape}; {AGAIN}")
        return pixels


class OrbitWriter:
    """Writes an orbit frame by frame; `missing` says what an interrupted run still has to render.

    poses: Poses of the frames; radius in scene units; fov_deg: full field of view; resolution in pixels.
    """

    def __init__(
        self,
        folder: Path,
        poses: "Poses",
        radius: float,
        fov_deg: float,
        resolution: int,
        branches: Sequence[str],
        seeds: Sequence[int],
    ) -> None:
        """Go on in `folder` with what is there."""
        self.folder = Path(folder)
        self.azimuth = np.asarray(poses.azimuth, dtype=np.float64)
        self.polar = np.asarray(poses.polar, dtype=np.float64)
        self.radius = radius
        self.fov_deg = fov_deg
        self.resolution = resolution
        self.branches = list(branches)
        self.seeds = list(seeds)

    def missing(self, branch: str, seed: int) -> list[int]:
        """The frames of a branch and seed that are not written yet; depth is written last and tells."""
        place = self.folder / seed_folder(branch, seed)
        return [k for k in range(len(self.azimuth)) if not (place / frame_names(k)[1]).exists()]

    def write(
        self,
        branch: str,
        seed: int,
        k: int,
        color: NDArray[np.uint8],
        alpha: NDArray[np.uint8],
        depth: NDArray[np.floating[Any]],
    ) -> None:
        """Write frame k: colour uint8 [H, W, 3] already on white, alpha uint8 [H, W], depth [H, W] in scene units.

        The file's colour is the one whose blend with white gives `color` back, as NeRF programs expect.
        """
        side = self.resolution
        shapes = (color.shape, alpha.shape, depth.shape)
        if shapes != ((side, side, 3), (side, side), (side, side)) or {color.dtype, alpha.dtype} != {
            np.dtype(np.uint8)
        }:
            raise ValueError(f"a frame has side {side} in uint8, not {color.dtype}, {alpha.dtype} {shapes}")
        # A pixel darker than white * (1 - alpha) cannot come from this alpha: raise alpha there, so that the frame on
        # white, which is what is scored, survives exactly.
        opacity = np.maximum(alpha, 255 - color.min(-1)).astype(np.float64)[..., None]
        share = np.where(opacity > 0, opacity, 255) / 255
        straight = np.clip(np.rint((color - 255 * (1 - share)) / share), 0, 255)
        steps = np.clip(np.rint(np.asarray(depth, dtype=np.float64) / DEPTH_SCALE), 0, 65535)
        place = self.folder / seed_folder(branch, seed)
        color_name, depth_name = frame_names(k)
        write_image(place / color_name, np.concatenate([straight, opacity], -1).astype(np.uint8))
        write_image(place / depth_name, steps.astype(np.uint16))

    def finish(self) -> None:
        """Write `cameras.json`, which makes the orbit a finished one; ValueError if a frame is missing."""
        shown = seed_folder(self.branches[-1], self.seeds[0])
        places = [(branch, seed) for branch in self.branches for seed in self.seeds]
        if any(self.missing(branch, seed) for branch, seed in places):
            raise ValueError(f"{self.folder}: frames are missing")
        matrices = [opengl_matrix(a, p, self.radius) for a, p in zip(self.azimuth, self.polar, strict=True)]
        content = {
            "schema": SCHEMA,
            "branches": self.branches,
            "seeds": self.seeds,
            "resolution": self.resolution,
            "radius": float(self.radius),
            "integer_depth_scale": DEPTH_SCALE,
            "camera_angle_x": float(np.radians(self.fov_deg)),
            "azimuth": self.azimuth.tolist(),
            "polar": self.polar.tolist(),
            "frames": [
                {"file_path": f"{shown}/{frame_names(k)[0]}", "transform_matrix": matrix.tolist()}
                for k, matrix in enumerate(matrices)
            ],
            "files": {seed_folder(b, s): digest(self.folder / seed_folder(b, s)) for b, s in places},
        }
        write_json(self.folder / "cameras.json", content)


def opengl_matrix(azimuth: float, polar: float, radius: float) -> NDArray[np.float64]:
    """Camera-to-world [4, 4] in OpenGL axes (right, up, backward), looking at the origin; cad.camera without torch."""
    sin_a, cos_a, sin_p, cos_p = np.sin(azimuth), np.cos(azimuth), np.sin(polar), np.cos(polar)
    outward = np.array([sin_p * cos_a, sin_p * sin_a, cos_p])
    right = np.array([-sin_a, cos_a, 0.0])
    matrix = np.eye(4)
    matrix[:3] = np.stack([right, np.cross(outward, right), outward, radius * outward], -1)
    return matrix
