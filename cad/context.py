"""What every stage function is handed besides its settings and folders."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from cad.engine import Advance, Do, Engine, Local
from cad.errors import UserError

if TYPE_CHECKING:
    from cad.tracking import Tracker


__all__ = ["Advance", "Context", "Do", "prepare_device"]


@dataclass(frozen=True)
class Context:
    """Root of the randomness, the object's name (part of every seed), where networks run, where numbers are logged.

    engine: what does the pieces of the stages that come in pieces.
    """

    seed: int
    object: str
    device: torch.device
    tracker: "Tracker"
    engine: Engine = field(default_factory=Local)


def prepare_device(name: str, threads: int) -> torch.device:
    """Fix torch's threads and its deterministic kernels, and return the device that `runtime.device` names.

    A CPU then gives the same bits again; on a GPU some kernels have no deterministic twin, so only the tolerances hold.
    """
    torch.set_num_threads(threads)
    cuda = torch.cuda.is_available()
    if name == "cuda" and not cuda:
        raise UserError("runtime.device: cuda is asked for, but torch finds no GPU; set it to cpu or auto")
    device = torch.device("cuda" if cuda and name != "cpu" else "cpu")
    # As `torch.use_deterministic_algorithms`, which imports the compiler besides, a second in each stage.
    torch.set_deterministic_debug_mode("error" if device.type == "cpu" else "default")
    torch.backends.cudnn.benchmark = device.type == "cuda"  # shapes stay: the fastest kernels are sought once
    # A debugging aid that costs time in every step; torch puts the attribute there at run time, which mypy cannot see.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    return device
