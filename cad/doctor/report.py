"""All findings, as a table for people or as JSON for machines."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from cad.doctor.findings import BROKEN, MISSING, OK, UNKNOWN, Finding, of_error, ok
from cad.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

    from cad.config import Params

COLORS = {OK: "green", MISSING: "yellow", BROKEN: "red", UNKNOWN: "dim"}


def examine(params_file: Path) -> list[Finding]:
    """Look at everything; takes some seconds, and longer where the renderer is compiled for the first time.

    What is broken ends in a finding, never in an exception. Nothing is written but the renderer's library.
    """
    from cad.doctor.software import VERSIONS, examine_software

    software = examine_software()
    settings, params = examine_settings(params_file)
    if any(finding.area == VERSIONS and finding.name == "torch" and finding.state != OK for finding in software):
        return [*software, *settings]  # the rest stands on torch
    from cad.doctor.data import examine_inputs, examine_weights, read_record
    from cad.doctor.machine import examine_machine
    from cad.doctor.renderer import examine_renderer
    from cad.doctor.services import examine_dvc, examine_wandb

    record = read_record()
    of_settings = [*examine_weights(params, record), *examine_inputs(params, record)] if params else []
    return [
        *examine_machine(params),
        *examine_renderer(params),
        *software,
        *settings,
        *of_settings,
        *examine_wandb(params),
        *examine_dvc(params, record),
    ]


def examine_settings(path: Path) -> "tuple[list[Finding], Params | None]":
    """The settings file, and what it says if it is sound."""
    from cad.config import load

    try:
        params = load(path)
    except UserError as error:
        return [of_error("settings", str(path), BROKEN if path.exists() else MISSING, error, True)], None
    return [ok("settings", str(path), f"profile {params.profile}, objects {', '.join(params.objects)}")], params


def show(findings: list[Finding], console: "Console") -> None:
    """Print a table with a section for each area."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD)
    table.add_column("piece", no_wrap=True)
    table.add_column("state", no_wrap=True)
    table.add_column("what was found", overflow="fold")
    area = findings[0].area if findings else ""
    for finding in findings:
        if finding.area != area:
            table.add_section()
            area = finding.area
        says = Text(finding.says)
        if finding.remedy:
            says.append(f"\n→ {finding.remedy}", style="bold" if finding.needed else "")
        table.add_row(Text(f"{area}: {finding.name}"), Text(finding.state, COLORS[finding.state]), says)
    console.print(table)


def as_json(findings: list[Finding]) -> str:
    """One object: whether the main job can run, and the findings."""
    content = {"can_run": not faults(findings), "findings": [asdict(finding) for finding in findings]}
    return json.dumps(content, indent=2, ensure_ascii=False)


def faults(findings: list[Finding]) -> list[Finding]:
    """What keeps the main job from running."""
    return [finding for finding in findings if finding.needed and finding.state != OK]


def refuse(findings: list[Finding]) -> None:
    """UserError that names the first thing that keeps the main job from running, and its remedy."""
    found = faults(findings)
    if found:
        first, more = found[0], f" (and {len(found) - 1} more, see above)" if len(found) > 1 else ""
        raise UserError(f"{first.area}, {first.name}: {first.says}; {first.remedy}{more}")
