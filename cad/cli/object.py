"""`cad object`: taking pictures up as objects."""

from pathlib import Path
from typing import Annotated

import typer

from cad.cli.elevation import elevation
from cad.cli.stage import PARAMS, ParamsFile
from cad.memory import ELSEWHERE, memory_named

app = typer.Typer(no_args_is_help=True, help="Take up a picture as an object, given or made from text.")
NameOption = Annotated[
    str | None, typer.Option("--name", help="Name of the object. [default: the picture's file name]")
]
Prompt = Annotated[str | None, typer.Option(help="What the picture shows. [default: a caption by BLIP]")]
Polar = Annotated[
    float | None,
    typer.Option(help="Angle of the camera from straight above, degrees; 90 is level. [default: estimated]"),
]
Framed = Annotated[bool, typer.Option("--framed", help="Keep the framing of a square picture; else crop and centre.")]
Seed = Annotated[int, typer.Option(min=0, help="Other seeds give other pictures.")]
Model = Annotated[
    str | None, typer.Option(help="Stable Diffusion folder or hub id. [default: as experiments/inputs.yaml says]")
]
Picture = Annotated[Path, typer.Argument(help="PNG, JPEG, WebP or TIFF; with alpha, on white, or a photograph.")]
DATA, GROUPS, SETTINGS = Path("data/objects"), Path("experiments/object"), Path("experiments/inputs.yaml")
DRAWN = Path(".work/imagined")


@app.command()
def add(
    picture: Picture,
    name: NameOption = None,
    prompt: Prompt = None,
    polar: Polar = None,
    framed: Framed = False,
    params: ParamsFile = PARAMS,
) -> None:
    """Take up a picture: its files in data/objects/, its entry in experiments/object/ and in the settings file."""
    take_up(picture, name, prompt, polar, framed, params, {"kind": "picture"})


@app.command()
def imagine(
    text: Annotated[str, typer.Argument(help="What to draw, e.g. 'a burger, on a plain white background'.")],
    name: Annotated[str, typer.Option("--name", help="Name of the object.")],
    prompt: Annotated[str | None, typer.Option(help="The object's prompt. [default: the text]")] = None,
    polar: Polar = None,
    seed: Seed = 0,
    model: Model = None,
    params: ParamsFile = PARAMS,
) -> None:
    """Draw a picture from text and take it up (the third source of Sec. 4); the drawing stays in .work/imagined."""
    from cad.config import load
    from cad.inputs.objects import name_for
    from cad.inputs.settings import load_settings
    from cad.stages import fix_environment

    path = DRAWN / f"{name_for(name, Path(name))}.png"
    chosen = load(params)
    fix_environment(chosen.runtime.threads)  # before the next import brings torch, which reads it once
    from cad.inputs.drawing import draw

    with memory_named(path.stem, ELSEWHERE):
        origin = draw(text, seed, model, chosen, load_settings(SETTINGS), path)
    print(f"drawn: {path}")
    take_up(path, name, text if prompt is None else prompt, polar, False, params, origin)


app.command()(elevation)


def take_up(
    picture: Path,
    name: str | None,
    prompt: str | None,
    polar: float | None,
    framed: bool,
    params: Path,
    origin: dict[str, object],
) -> str:
    """Add an object and print what it is and what to do next; returns its name."""
    from cad.config import load
    from cad.stages import fix_environment

    fix_environment(load(params).runtime.threads)  # before the next import brings numpy, which reads it once
    from cad.inputs.objects import NewObject, Places, add_object, name_for
    from cad.inputs.settings import load_settings

    new = NewObject(name_for(name, picture), picture, prompt, polar, framed, origin)
    with memory_named(new.name, ELSEWHERE):  # whichever network it was: matting, caption or views
        added = add_object(new, Places(DATA, GROUPS, params), load_settings(SETTINGS))
    print(f"object {added.name}: {DATA / added.name}, {GROUPS / added.name}.yaml, {params}")
    print(f"prompt ({added.prompt_from}): {added.prompt}")
    print(f"polar angle ({added.polar_from}): {added.polar_deg:g} degrees")
    print(f"next: `dvc add data`, then `cad repro --object {added.name}`")
    return added.name
