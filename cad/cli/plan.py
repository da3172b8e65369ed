"""`cad plan`: what a run costs, before it is run."""

from pathlib import Path
from typing import Annotated

import typer

from cad.cli.stage import PARAMS, ParamsFile

EXPERIMENTS = Path("experiments")


def plan(
    entries: Annotated[
        list[str] | None, typer.Argument(help="Entries of `evaluations`; all, if none is named.")
    ] = None,
    params: ParamsFile = PARAMS,
    profile: Annotated[
        str | None, typer.Option(help="Compose this profile instead of reading the settings file.")
    ] = None,
    objects: Annotated[list[str] | None, typer.Option("--object", help="Object to compose the profile with.")] = None,
    rate: Annotated[
        list[str] | None, typer.Option(help="NAME=NUMBER per second, e.g. zero123=40, stage1=20; can be repeated.")
    ] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Time a few evaluations, steps and frames on this machine.")
    ] = False,
) -> None:
    """Show UNet evaluations, hours, memory, disk and DVC storage per stage; code 2 if the disk is too small."""
    from rich.console import Console

    from cad.config import load
    from cad.config.compose import compose
    from cad.errors import UserError
    from cad.plan_report import show_plan

    if objects and profile is None:
        raise UserError("--object: is for a profile that is composed; name it with --profile")
    settings = load(params) if profile is None else compose(profile, objects or [], EXPERIMENTS)
    show_plan(settings, entries or [], rate or [], measure, Console())
