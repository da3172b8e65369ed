"""`cad plugins`: what the plug-ins of all entries compute with, as DVC's stage of that name records it."""

from cad.cli.stage import PARAMS, ParamsFile


def plugins(params: ParamsFile = PARAMS) -> None:
    """Digest the plug-ins of all entries into plugins.json, by which DVC tells that one has changed."""
    from cad.config import load
    from cad.plugins import RECORD, write_record

    write_record(load(params), RECORD)
    print(f"plugins: {RECORD}")
