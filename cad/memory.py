"""Too little memory, of the GPU or of the machine, as one line that says what did not fit and what to do."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from cad.errors import UserError

SMALLER = (
    "take a smaller `batch` in the stage's settings, or for a diffusion model a half `precision` or `offload: true`"
)
ELSEWHERE = "close what else uses it, or take a device or a machine with more (`runtime.device`)"


@contextmanager
def memory_named(what: str, remedy: str = SMALLER) -> Iterator[None]:
    """Turn a lack of memory, of the GPU or of the machine, into a UserError that names what did not fit."""
    try:
        yield
    except (RuntimeError, MemoryError) as fault:
        if not lacks_memory(fault):
            raise
        raise UserError(f"{what}: too little memory; {remedy}") from None


def lacks_memory(fault: BaseException) -> bool:
    """Whether a GPU's or the machine's memory ran out: torch's CPU allocator has no exception of its own."""
    torch = sys.modules.get("torch")  # not imported here: a command of the command line starts without it
    kinds = (MemoryError, torch.OutOfMemoryError) if torch else (MemoryError,)
    return isinstance(fault, kinds) or "DefaultCPUAllocator: " in str(fault)
