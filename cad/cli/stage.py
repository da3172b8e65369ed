"""What every stage command shares: its two parameters and its last line."""

from pathlib import Path
from typing import Annotated

import typer

from cad.stages import run_stage

Entry = Annotated[str, typer.Argument(help="Entry of the stage's table in the settings file, e.g. robot.")]
ParamsFile = Annotated[Path, typer.Option("--params", help="The settings file.")]
PARAMS = Path("params.yaml")


def run(stage: str, entry: str, params: Path) -> None:
    """Run one stage and print where its output lies."""
    print(f"{stage} {entry}: {run_stage(stage, entry, params)}")
