"""`cad weights`: the published networks of the paper profile."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="List, fetch, verify and convert the published networks.")
convert = typer.Typer(no_args_is_help=True, help="Convert an original checkpoint.")
app.add_typer(convert, name="convert")

LOCK = Path("experiments/weights.lock.json")
Lock = Annotated[Path, typer.Option(help="File that records commits and digests.")]
Names = Annotated[list[str] | None, typer.Argument(help="Models, as `cad weights list` names them.")]


@app.command("list")
def show(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Show each model's id, revision, licence, size, purpose and place; needs no network."""
    from cad.weights import listing

    print(listing.as_json() if as_json else listing.as_text())


@app.command()
def fetch(
    names: Annotated[list[str], typer.Argument(help="Models, as `cad weights list` names them.")],
    to: Annotated[Path | None, typer.Option(help="Folder for the one model, instead of the hub's cache.")] = None,
    lock: Lock = LOCK,
) -> None:
    """Download models at their revision, resuming what was cut off, and check every digest."""
    from cad.errors import UserError
    from cad.weights import fetch as fetching
    from cad.weights.table import find

    models = [find(name) for name in names]
    if to is not None and len(models) > 1:
        raise UserError("--to: is the folder of one model; fetch them one by one")
    for model in models:
        place = fetching.fetch(model, to, lock, typer.echo)
        setting = to or fetching.source(model, lock)
        typer.echo(f"{model.name} is in {place}; {model.place}: {setting}")


@app.command()
def verify(
    names: Names = None,
    at: Annotated[Path | None, typer.Option(help="Folder of the one model, instead of the hub's cache.")] = None,
    lock: Lock = LOCK,
) -> None:
    """Compare what is here with the recorded or published digests; all models if none is named."""
    from cad.errors import UserError
    from cad.weights import fetch as fetching
    from cad.weights.table import MODELS, find

    models = [find(name) for name in names] if names else list(MODELS)
    if at is not None and len(models) != 1:
        raise UserError("--at: is the folder of one model; name it")
    for model in models:
        state, place = fetching.verify(model, at, lock)
        if state in ("absent", "not recorded") and names:
            remedy = f"run `cad weights fetch {model.name}`" if model.repo else fetching.by_hand(model)
            raise UserError(f"{model.name}: is {state}; {remedy}")
        typer.echo(f"{model.name}: {state}{f', {place}' if place else ''}")


@convert.command("zero123")
def convert_zero123(
    file: Annotated[Path, typer.Argument(help="The original .ckpt; nothing in it is executed.")],
    out: Annotated[Path, typer.Argument(help="Folder to write.")],
    architecture: Annotated[
        Path | None, typer.Option(help="JSON with unet, vae and image_encoder, for other sizes than the published.")
    ] = None,
) -> None:
    """Write Zero-1-to-3's original checkpoint as a folder that models.zero123 can name."""
    from cad.prior import zero123_checkpoint as checkpoint

    sizes = checkpoint.read_architecture(architecture) if architecture else checkpoint.PUBLISHED
    checkpoint.convert(file, out, sizes)
    typer.echo(f"{out} written; models.zero123: {out}")
