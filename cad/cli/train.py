"""`cad train`: the two stages of adversarial distillation (Sec. 3.2)."""

import typer

from cad.cli.stage import PARAMS, Entry, ParamsFile, run

app = typer.Typer(no_args_is_help=True, help="Train the 3D generator (Sec. 3.2).")


@app.command()
def stage1(entry: Entry, params: ParamsFile = PARAMS) -> None:
    """Distil the prior through the 2D upsampler."""
    run("stage1", entry, params)


@app.command()
def stage2(entry: Entry, params: ParamsFile = PARAMS) -> None:
    """Fine-tune with the 3D upsampler, tied to the 2D branch (Eq. 10)."""
    run("stage2", entry, params)
