"""An object's rows in every table: its file in experiments/object/, and params.yaml with it."""

from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cad.config import TABLES, check
from cad.errors import UserError

HEADER = "# @package _global_\n"


def object_entry(name: str, folder: Path, polar_deg: float, framed: bool) -> dict[str, Any]:
    """The settings of an object whose files lie in `folder`, and its entry in each table, named as the object."""
    entry: dict[str, Any] = {
        "objects": {
            name: {
                "image": (folder / "image.png").as_posix(),
                "prompt": (folder / "prompt.txt").as_posix(),
                "reference_polar_deg": polar_deg,
                "framed": framed,
                "toyworld": None,
            }
        }
    }
    entry |= {table: {name: {link: name}} for table, link in TABLES.values()}
    return entry | {"report": {"rows": {f"CAD reproduced, {name}": name}}}


def entry_text(entry: dict[str, Any]) -> bytes:
    """An object's file in experiments/object/."""
    return (HEADER + yaml.safe_dump(entry, sort_keys=False, allow_unicode=True)).encode()


def merged_text(params_file: Path, entry: dict[str, Any]) -> str:
    """params.yaml with an object's entry at the end of each table; all else stays as it is, edits by hand included.

    It is what `dvc exp run -S 'object=[...]'` gives with that object as the last one. UserError if it is not sound.
    """
    try:
        merged = OmegaConf.merge(OmegaConf.load(params_file), OmegaConf.create(entry))
        values = OmegaConf.to_container(merged, resolve=True)
    except (OmegaConfBaseException, yaml.YAMLError) as fault:
        said = str(fault).splitlines()[0]
        raise UserError(f"{params_file}: cannot take an object up ({said}); compose it anew") from None
    if not isinstance(values, dict):
        raise UserError(f"{params_file}: holds no mapping; compose it anew")
    check({str(key): value for key, value in values.items()}, str(params_file))
    return OmegaConf.to_yaml(merged)
