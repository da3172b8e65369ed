"""One view of a benchmark scene, Synthetic-NeRF's or Synthetic-NSVF's, its pose ignored (Sec. 4).

    Synthetic-NeRF  SCENE/transforms_{train,val,test}.json   frames with `file_path` (without .png) and a pose
                    SCENE/{train,val,test}/r_K.png           RGBA
    Synthetic-NSVF  SCENE/rgb/{0,1,2}_*.png                  RGBA or on white; 0 is train, 1 val, 2 test
                    SCENE/pose/{0,1,2}_*.txt                 poses, one file to a picture

The paper does not say which view it takes. Ours is frame 0 of the training views [ours]: `VIEW`.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cad.errors import UserError

Layout = Literal["nerf-synthetic", "nsvf"]
Split = Literal["train", "val", "test"]
VIEW: tuple[Split, int] = ("train", 0)
PREFIXES: dict[Split, str] = {"train": "0_", "val": "1_", "test": "2_"}
SHOWN = 12  # scenes that an error lists


@dataclass(frozen=True)
class View:
    """A picture of a scene, and what to record of where it is from."""

    picture: Path
    record: dict[str, Any]


def find_view(layout: Layout, root: Path, scene: str, split: Split, frame: int) -> View:
    """The picture of one frame of a scene; `root` is the folder of the scenes, or of this one.

    No pose is read. UserError for a missing scene or frame, another layout, and a file that points out of the scene.
    """
    folder = _scene_folder(root, scene)
    pictures = _nerf_pictures(folder, split) if layout == "nerf-synthetic" else _nsvf_pictures(folder, split)
    if not 0 <= frame < len(pictures):
        raise UserError(
            f"--frame {frame}: {folder.name} has {len(pictures)} {split} views; give one from 0 to {len(pictures) - 1}"
        )
    name = pictures[frame].relative_to(folder).as_posix()
    record = {"dataset": layout, "scene": scene, "split": split, "frame": frame, "picture": name, "pose": "ignored"}
    return View(pictures[frame], record)


def _scene_folder(root: Path, scene: str) -> Path:
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; give the folder that holds the scenes")
    if Path(scene).name != scene:
        raise UserError(f"--scene {scene}: is no name of a scene; give the name of a folder in {root}")
    if (root / scene).is_dir():
        return root / scene
    if root.resolve().name == scene:
        return root
    there = sorted(path.name for path in root.iterdir() if path.is_dir())
    listed = ", ".join(there[:SHOWN]) + (", ..." if len(there) > SHOWN else "")
    raise UserError(f"{root / scene}: no such scene; {f'there are: {listed}' if there else 'give another folder'}")


def _nerf_pictures(folder: Path, split: Split) -> list[Path]:
    """The pictures of a Synthetic-NeRF split, in the order of its file."""
    path = folder / f"transforms_{split}.json"
    try:
        frames = json.loads(path.read_text(encoding="utf-8"))["frames"]
        names = [frame["file_path"] for frame in frames]
    except FileNotFoundError:
        raise UserError(f"{path}: missing; a scene of Synthetic-NeRF has it, is this one of nsvf?") from None
    except (ValueError, KeyError, TypeError, RecursionError):  # ValueError covers JSON and UTF-8
        raise UserError(f"{path}: is no transforms file of Synthetic-NeRF; unpack the scene again") from None
    return [_inside(folder, path, name) for name in names]


def _inside(folder: Path, path: Path, name: object) -> Path:
    """The picture that a foreign file names, if it lies inside the scene."""
    if not isinstance(name, str):
        raise UserError(f"{path}: names a picture by {name!r}, not by a path; unpack the scene again")
    picture = folder / (name if name.lower().endswith(".png") else f"{name}.png")
    if not picture.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"{path}: names {name}, which lies outside of {folder}; unpack the scene again")
    return folder / picture.resolve().relative_to(folder.resolve())


def _nsvf_pictures(folder: Path, split: Split) -> list[Path]:
    """The pictures of a Synthetic-NSVF split, by name."""
    for part in ("rgb", "pose"):
        if not (folder / part).is_dir():
            path = folder / part
            raise UserError(f"{path}: missing; a scene of Synthetic-NSVF has it, is this one of nerf-synthetic?")
    pictures = sorted((folder / "rgb").glob(f"{PREFIXES[split]}*.png"))
    if not pictures:
        raise UserError(f"{folder / 'rgb'}: holds no {PREFIXES[split]}*.png, the {split} views; unpack the scene again")
    return pictures
