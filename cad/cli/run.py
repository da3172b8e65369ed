"""`cad run`: from a picture to an orbit and a page."""

from typing import Annotated

import typer

from cad.cli.object import DATA, GROUPS, Framed, NameOption, Picture, Polar, Prompt, take_up
from cad.cli.stage import PARAMS, ParamsFile


def run(
    picture: Picture,
    name: NameOption = None,
    prompt: Prompt = None,
    polar: Polar = None,
    framed: Framed = False,
    profile: Annotated[
        str | None, typer.Option(help="Compose the settings file anew, if it is of another profile.")
    ] = None,
    params: ParamsFile = PARAMS,
) -> None:
    """Take up a picture, if it is new, run its stages up to the orbit and write a page; goes on where it stopped."""
    from cad.inputs.objects import Places, is_taken_up, name_for
    from cad.run import make_orbit, profile_chosen

    known, places = name_for(name, picture), Places(DATA, GROUPS, params)
    is_taken_up(known, picture, prompt, places)  # refuses the name of another picture before anything changes
    with profile_chosen(params, GROUPS.parent, profile):
        if not is_taken_up(known, picture, prompt, places):
            take_up(picture, name, prompt, polar, framed, params, {"kind": "picture"})
    page = make_orbit(known, params, print)
    print(f"orbit: runs/{known}/orbit")
    print(f"page: {page}")
