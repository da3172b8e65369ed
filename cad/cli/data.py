"""`cad data`: pictures from the paper's benchmark scenes."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from cad.cli.object import Framed, NameOption, Polar, Prompt, take_up
from cad.cli.stage import PARAMS, ParamsFile

app = typer.Typer(no_args_is_help=True, help="Take up pictures of the paper's benchmark scenes.")


class Layout(StrEnum):
    """The folder layouts that are read."""

    nerf_synthetic = "nerf-synthetic"
    nsvf = "nsvf"


class Split(StrEnum):
    """Parts of a scene."""

    train = "train"
    val = "val"
    test = "test"


@app.callback()
def group() -> None:
    """Take up pictures of the paper's benchmark scenes."""


@app.command("import")
def import_view(
    layout: Annotated[Layout, typer.Argument(help="Synthetic-NeRF's layout, or Synthetic-NSVF's.")],
    path: Annotated[Path, typer.Argument(help="Folder of the scenes, or of the one scene.")],
    scene: Annotated[str, typer.Option(help="Scene, e.g. lego.")],
    frame: Annotated[int, typer.Option(help="Which of the views; the paper names none, 0 is ours.")] = 0,
    split: Annotated[Split, typer.Option(help="Of which part.")] = Split.train,
    name: NameOption = None,
    prompt: Prompt = None,
    polar: Polar = None,
    framed: Framed = False,
    params: ParamsFile = PARAMS,
) -> None:
    """Take up one view of a scene and ignore its pose (Sec. 4); which one is recorded in the object's source.json."""
    from cad.inputs.scenes import find_view

    view = find_view(layout.value, path, scene, split.value, frame)
    print(f"view: {view.picture}")
    take_up(view.picture, name or scene.lower(), prompt, polar, framed, params, {"kind": "scene", **view.record})
