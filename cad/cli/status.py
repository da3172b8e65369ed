"""`cad status`: what is done, what runs and how long it still takes."""

from cad.cli.stage import PARAMS, ParamsFile


def status(params: ParamsFile = PARAMS) -> None:
    """Show each stage of each entry: done, outdated, running, interrupted, failed or missing; time left, previews."""
    from rich.console import Console

    from cad.config import load
    from cad.status import show_status

    show_status(load(params), Console())
