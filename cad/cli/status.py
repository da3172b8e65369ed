"""`cad status`: what is done, what runs and how long it still takes."""

from cad.cli.stage import PARAMS, ParamsFile


def status(params: ParamsFile = PARAMS) -> None:
    """Show each stage of each entry: done, running, interrupted, missing; progress, time left, newest preview."""
    from rich.console import Console

    from cad.config import load
    from cad.status import show_status

    show_status(load(params), Console())
