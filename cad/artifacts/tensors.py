"""Reading safetensors files with one line for each way in which they can be broken."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from cad.errors import UserError


@contextmanager
def faults_named(path: Path) -> Iterator[None]:
    """Turn safetensors' own errors about `path` into a UserError that names it."""
    try:
        yield
    except FileNotFoundError:
        raise UserError(f"{path}: missing; run the stage that writes it") from None
    except (SafetensorError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"{path}: truncated or no safetensors file ({reason}); remove it and run its stage again"
        ) from None


def open_tensors(path: Path, framework: str) -> Any:
    """Memory-map a safetensors file ("numpy" or "pt"); UserError if it is missing, truncated or something else."""
    with faults_named(path):
        return safe_open(str(path), framework=framework)
