"""`cad object elevation`: from how high a picture was taken."""

from typing import Annotated

import typer

from cad.cli.stage import PARAMS, ParamsFile
from cad.memory import ELSEWHERE, memory_named
from cad.stages import fix_environment


def elevation(
    what: Annotated[str, typer.Argument(metavar="NAME|IMAGE", help="An object of the settings file, or a picture.")],
    params: ParamsFile = PARAMS,
) -> None:
    """Estimate the elevation of a picture's camera from Zero-1-to-3's views of it (One-2-3-45's algorithm)."""
    from cad.config import load

    settings = load(params)
    fix_environment(settings.runtime.threads)  # before the next import brings numpy and torch, which read it once
    from cad.inputs.elevation import estimate_named

    with memory_named(what, ELSEWHERE):
        estimate = estimate_named(what, settings)
    print(estimate.sentence())
