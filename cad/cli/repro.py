"""`cad repro`: the main job, stages side by side."""

from typing import Annotated

import typer

from cad.cli.stage import PARAMS, ParamsFile


def repro(
    params: ParamsFile = PARAMS,
    jobs: Annotated[
        int | None, typer.Option("--jobs", "-j", min=1, help="Stages at a time. [default: cores / runtime.threads]")
    ] = None,
    name: Annotated[
        str | None, typer.Option("--object", help="Only the stages of this object, report excepted.")
    ] = None,
) -> None:
    """Run what has changed of dvc.yaml, as `dvc repro` does, but stages that don't wait for each other side by side."""
    from cad.config import load
    from cad.repro import reproduce, side_by_side, stages_of
    from cad.stages import require_picture

    settings = load(params)
    for each in settings.objects if name is None else [name]:
        require_picture(settings, each)
    reproduce(jobs or side_by_side(settings), None if name is None else stages_of(settings, name))
