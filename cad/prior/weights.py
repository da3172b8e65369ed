"""Loading parts of published models: every fault is one line that says how to get the weights, never random weights."""

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from cad.errors import UserError

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
REMEDY = "run `dvc pull data.dvc` for the weights in data/, or set models.* to a downloaded folder or a Hugging Face id"


def check_source(source: Path | str, config: str) -> None:
    """Refuse a local folder without its `config` file, and a path that is neither a folder nor a hub id."""
    folder = Path(source)
    if folder.is_dir():
        if not (folder / config).is_file():
            raise UserError(f"{folder / config}: is missing; {REMEDY}")
    elif not HUB_ID.fullmatch(str(source)):
        raise UserError(f"{folder}: no such folder of weights; {REMEDY}")


def load_plain(kind: Any, source: Path | str, part: str, config: str) -> Any:
    """A part without tensors (scheduler, tokenizer, image processor) by its class' `from_pretrained`."""
    check_source(source, str(Path(part) / config))
    try:
        return kind.from_pretrained(str(source), subfolder=part)
    except (OSError, ValueError, json.JSONDecodeError) as fault:
        raise UserError(f"{Path(source) / part}: cannot be read ({_first_line(fault)}); {REMEDY}") from fault


def load_network(kind: Any, source: Path | str, part: str, device: torch.device, dtype: torch.dtype) -> Any:
    """A network by its class' `from_pretrained`, frozen and in evaluation mode, on `device` in `dtype`.

    Only safetensors are read. Both libraries only warn when tensors are missing and go on with random ones; here that
    is a UserError, as are a missing, truncated or misshapen file.
    """
    check_source(source, str(Path(part) / "config.json"))
    # The two libraries name the same option differently.
    cast = {"torch_dtype": dtype} if kind.__module__.split(".")[0] != "transformers" else {"dtype": dtype}
    place = Path(source) / part
    try:
        model, found = kind.from_pretrained(
            str(source), subfolder=part, use_safetensors=True, output_loading_info=True, **cast
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as fault:
        raise UserError(f"{place}: cannot be loaded from safetensors ({_first_line(fault)}); {REMEDY}") from fault
    absent = sorted(str(key) for key in found["missing_keys"]) + sorted(str(key) for key in found["mismatched_keys"])
    if absent:
        raise UserError(f"{place}: {len(absent)} tensors are missing or misshapen, first {absent[0]}; {REMEDY}")
    return model.to(device).eval().requires_grad_(False)


def _first_line(fault: BaseException) -> str:
    lines = str(fault).strip().splitlines()
    return f"{type(fault).__name__}: {lines[0][:200]}" if lines else type(fault).__name__
