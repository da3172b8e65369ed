"""What every stage command shares: its two parameters and its last line."""

from pathlib import Path
from typing import Annotated

import typer

from cad.engine import Kind
from cad.memory import memory_named
from cad.stages import is_first, run_stage

Entry = Annotated[str, typer.Argument(help="Entry of the stage's table in the settings file, e.g. robot.")]
ParamsFile = Annotated[Path, typer.Option("--params", help="The settings file.")]
EngineOption = Annotated[
    Kind, typer.Option("--engine", envvar="CAD_ENGINE", help="Here, or on the GPUs and machines of a Ray cluster.")
]
PARAMS = Path("params.yaml")


def run(stage: str, entry: str, params: Path, engine: Kind = "local") -> None:
    """Run one stage and print where its output lies; UserError where there is too little memory for it."""
    with memory_named(f"{stage} {entry}"):
        folder = run_stage(stage, entry, params, engine)
    if is_first():
        print(f"{stage} {entry}: {folder}")
