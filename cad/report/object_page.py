"""One object's page: its picture, the prior's samples, the previews and the orbit's videos, in one HTML file."""

import base64
import html
import math
from pathlib import Path

from cad.artifacts import InputArtifact, read_json, write_atomic
from cad.artifacts.files import digest
from cad.config import Params
from cad.errors import UserError

TYPES = {".png": "image/png", ".mp4": "video/mp4"}
STYLE = (
    "body{font:16px/1.5 sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}"
    "img,video{max-width:100%;border:1px solid #ddd;image-rendering:pixelated}"
    "video{width:16rem}figure{display:inline-block;margin:0 1rem 1rem 0;vertical-align:top}"
    "figcaption{font-size:.85em;color:#555}"
)


def write_page(params: Params, runs: Path, entry: str, page: Path) -> None:
    """Write the page of an entry of `orbits`; pictures and videos lie in the file itself, so that it can be sent.

    UserError for the first file that is missing or broken; then nothing is written.
    """
    above = {**params.ancestors("orbit", entry), "orbit": entry}
    folders = {stage: runs / name / stage for stage, name in above.items() if stage != "object"}
    given = InputArtifact.open(folders["input"])
    summary = read_json(folders["prune"] / "summary.json")
    videos = sorted(folders["orbit"].glob("*.mp4"))
    if not videos:
        raise UserError(f"{folders['orbit']}: holds no video; run `dvc repro orbit@{entry}`")
    kept = f"{summary['kept']} of {summary['poses']} poses kept. " if {"kept", "poses"} <= set(summary) else ""
    title = html.escape(f"{entry}: {given.prompt}")
    parts = [
        f"<h1>{title}</h1>",
        f"<p>Profile {html.escape(params.profile)}, seed {params.seed}. The picture is taken to be seen from "
        f"{math.degrees(given.reference_polar):.0f}° below the vertical (90° is level).</p>",
        figure(folders["input"] / "image.png", "The picture, as the prior is given it"),
        "<h2>Orbit</h2>",
        *[figure(path, caption(path)) for path in reversed(videos)],
        figure(folders["orbit"] / "contact.png", "Frames of the orbits"),
        "<h2>Samples of the prior</h2>",
        figure(folders["prune"] / "contact.png", f"{kept}What was kept, what rejected, and why (Sec. 3.3)"),
        figure(folders["refine"] / "contact.png", "Kept samples and their refinements (Sec. 3.3)"),
        "<h2>Training</h2>",
        figure(folders["stage1"] / "preview.png", "After stage 1"),
        figure(folders["stage2"] / "preview.png", "After stage 2"),
        "<h2>Made from</h2>",
        "<ul>",
        *[f"<li><code>{name.as_posix()}</code> sha256 <code>{digest(name)[:16]}</code></li>" for name in (
            folders[stage] / "lineage.json" for stage in folders
        )],
        "</ul>",
    ]  # fmt: skip
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{STYLE}</style>'
    write_atomic(page, "\n".join([head, *parts, "</html>", ""]).encode())


def caption(video: Path) -> str:
    """What a video of the orbit shows: `3d-seed-0001.mp4` is the 3D branch with latent seed 1."""
    branch, _, seed = video.stem.partition("-seed-")
    return f"{branch.upper()} branch, seed {int(seed)}" if seed.isdigit() else video.stem


def figure(path: Path, text: str) -> str:
    """A picture or video with its caption, embedded; UserError where it is missing."""
    if not path.is_file():
        raise UserError(f"{path}: missing; run the stage that writes it")
    data = f"data:{TYPES[path.suffix]};base64,{base64.b64encode(path.read_bytes()).decode()}"
    still = path.suffix == ".png"
    shown = f'<img src="{data}" alt="">' if still else f'<video src="{data}" controls loop muted></video>'
    return f"<figure>{shown}<figcaption>{html.escape(text)}</figcaption></figure>"
