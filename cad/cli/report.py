"""`cad report`: tables and figures from the files of a run."""

from pathlib import Path
from typing import Annotated

import typer

from cad.cli.stage import PARAMS, ParamsFile
from cad.stages import RUNS, fix_environment

app = typer.Typer(no_args_is_help=True, help="Write and show tables and figures, from the files of a run.")
Folder = Annotated[Path, typer.Option("--reports", help="Folder of the report.")]
REPORTS = Path("reports")


@app.command()
def table1(params: ParamsFile = PARAMS, reports: Folder = REPORTS) -> None:
    """Write Table 1 as Markdown, CSV and LaTeX."""
    from cad.config import load
    from cad.report.page import write_tables

    write_tables(load(params), RUNS, reports)
    print(f"report: {reports / 'table1.md'}")


@app.command()
def measures(params: ParamsFile = PARAMS, reports: Folder = REPORTS) -> None:
    """Write and show what each measure says of ours, of the true object and of the controls."""
    from rich.console import Console

    from cad.config import load
    from cad.report.measures_forms import show_measures, write_measures
    from cad.report.page import metrics_files

    show_measures(write_measures(metrics_files(load(params), RUNS), reports), Console())
    print(f"report: {reports / 'measures.md'}")


@app.command()
def bars(params: ParamsFile = PARAMS, reports: Folder = REPORTS) -> None:
    """Write and show the bars a convincing result clears, met or missed; a missed one is no error."""
    from rich.console import Console

    from cad.config import load
    from cad.report.bars import show_bars, write_bars
    from cad.report.page import metrics_files

    show_bars(write_bars(metrics_files(load(params), RUNS), reports), Console())
    print(f"report: {reports / 'bars.md'}")


@app.command()
def overview(params: ParamsFile = PARAMS, reports: Folder = REPORTS) -> None:
    """Draw the overview figures, of all objects and of each: input, samples, pruning, refinement, orbits."""
    from cad.config import load
    from cad.report.page import write_overviews

    settings = load(params)
    fix_environment(settings.runtime.threads)
    write_overviews(settings, RUNS, reports)
    print(f"report: {reports / 'overview.png'}")


@app.command("all")
def everything(params: ParamsFile = PARAMS, reports: Folder = REPORTS) -> None:
    """Write Table 1, measures, bars, the overview figures and the page index.md."""
    from cad.config import load
    from cad.report.page import track_report, write_report

    settings = load(params)
    fix_environment(settings.runtime.threads)
    write_report(settings, RUNS, reports)
    track_report(settings, RUNS, reports)
    print(f"report: {reports / 'index.md'}")


@app.command()
def show(reports: Folder = REPORTS) -> None:
    """Show Table 1 and the bars in the terminal, and where the figures lie."""
    from cad.report.page import show_report

    show_report(reports)
