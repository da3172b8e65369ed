"""`cad doctor`: what of this machine and this folder works."""

from typing import Annotated

import typer

from cad.cli.stage import PARAMS, ParamsFile


def doctor(
    params: ParamsFile = PARAMS,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Show device, compiler, renderer, versions, weights, W&B and DVC: what works, and the remedy for what does not.

    Ends with code 0 if the main job can run, else with 2 and the first remedy. Writes nothing into the project.
    """
    from rich.console import Console

    from cad.doctor import report

    findings = report.examine(params)
    if as_json:
        print(report.as_json(findings))
    else:
        report.show(findings, Console())
    report.refuse(findings)
