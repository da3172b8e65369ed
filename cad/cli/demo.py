"""`cad demo`: finished runs, packed small, and what they show in seconds without training."""

from pathlib import Path
from typing import Annotated

import typer

from cad.cli.stage import PARAMS, ParamsFile
from cad.stages import RUNS, fix_environment

app = typer.Typer(no_args_is_help=True, help="Pack finished runs small, and show them in seconds without training.")
Folder = Annotated[Path, typer.Option("--demo", help="Folder of the packed runs.")]
DEMO, PICTURES = Path("data/demo"), Path("reports/demo")
THREADS = 2  # [ours] the networks are small: more threads wait for each other


@app.command()
def pack(
    entries: Annotated[list[str], typer.Argument(help="Entries of `evaluations` in the settings file, e.g. robot.")],
    params: ParamsFile = PARAMS,
    demo: Folder = DEMO,
) -> None:
    """Pack finished runs: averaged generator in float16, a video, frames, input and scores."""
    from cad.config import load
    from cad.demo.files import STAGES, file_names, pack_run

    settings = load(params)
    for entry in entries:
        above = settings.ancestors("evaluate", entry) | {"evaluate": entry}
        pack_run(entry, {stage: RUNS / above[stage] / stage for stage in STAGES}, demo / entry)
        size = sum((demo / entry / name).stat().st_size for name in file_names(demo / entry))
        print(f"demo: {demo / entry}, {size / 1e6:.2f} MB")
    print("run `dvc add data` to version it")


@app.command()
def show(
    entries: Annotated[list[str] | None, typer.Argument(help="Packed runs; all, if none is named.")] = None,
    demo: Folder = DEMO,
    out: Annotated[Path, typer.Option(help="Folder that the pictures go to; Git ignores the default.")] = PICTURES,
) -> None:
    """Show packed runs: prompt, scores, views of new seeds from the float16 weights, paths of the videos."""
    fix_environment(THREADS)  # before the next import brings numpy and torch, which read it once
    from rich.console import Console

    from cad.demo.show import show_demos

    show_demos(demo, entries or [], out, Console())
