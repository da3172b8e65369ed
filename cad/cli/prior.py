"""`cad prior`: sample, prune and refine the diffusion prior (Sec. 3.3)."""

import typer

from cad.cli.stage import PARAMS, EngineOption, Entry, ParamsFile, run

app = typer.Typer(no_args_is_help=True, help="Sample, prune and refine the diffusion prior (Sec. 3.3).")


@app.command()
def sample(entry: Entry, params: ParamsFile = PARAMS, engine: EngineOption = "local") -> None:
    """Draw N samples at each of M poses."""
    run("prior", entry, params, engine)


@app.command()
def prune(entry: Entry, params: ParamsFile = PARAMS) -> None:
    """Reject poses with bad samples, and keep the best sample of the others."""
    run("prune", entry, params)


@app.command()
def refine(entry: Entry, params: ParamsFile = PARAMS, engine: EngineOption = "local") -> None:
    """Noise and denoise the kept samples with the text-guided model."""
    run("refine", entry, params, engine)
