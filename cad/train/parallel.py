"""Training by several processes that each take a share of every batch (data parallelism, `accelerate launch`).

Every process draws the whole batch's randomness and keeps its rows, so that what is drawn does not depend on how many
they are; gradients and what is recorded are means over the processes. Weights start alike and get the same gradients,
so they stay alike. Alone, a process does nothing of all this, and computes what it always did.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from cad.errors import UserError
from cad.seeding import Part

WAIT = timedelta(hours=1)  # for a process that draws a preview or saves, or one that is long in starting [ours]


@contextmanager
def team(device: torch.device) -> Iterator[None]:
    """Meet the processes that a launcher has started (WORLD_SIZE, RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT).

    On GPUs each takes that of its local rank. UserError where there are more processes than GPUs.
    """
    if device.type == "cuda":
        local = int(os.environ.get("LOCAL_RANK", "0"))
        if local >= torch.cuda.device_count():
            raise UserError(f"accelerate launch: process {local} of this machine has no GPU; start one per GPU")
        torch.cuda.set_device(local)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=WAIT)
    try:
        yield
    finally:
        dist.destroy_process_group()


def processes() -> int:
    """How many train together; 1 outside a team."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this process is the one that writes files, logs and shows."""
    return not dist.is_initialized() or dist.get_rank() == 0


def told() -> dict[str, int]:
    """What decides the bits of a training beside its inputs, as JSON data; nothing where one process trains alone."""
    return {"processes": processes()} if processes() > 1 else {}


def meet() -> None:
    """Wait until every process is here."""
    if processes() > 1:
        dist.barrier()


def share(stage: str, batch: int, group: int) -> int:
    """How many of a batch's samples are this process's.

    Whole groups of the minibatch deviation are: UserError where they don't divide among the processes. A batch below
    `group` is one group.
    """
    groups = batch // min(group, batch)
    if groups % processes():
        raise UserError(
            f"{stage}.batch: {batch} is {groups} groups of discriminator.mbstd_group = {min(group, batch)}, which "
            f"{processes()} processes cannot share evenly; make the number of groups a multiple of theirs"
        )
    return batch // processes()


def part_of(draws: torch.Generator, batch: int, group: int) -> torch.Generator:
    """The same stream, of whose draws for a whole batch this process keeps its rows.

    They are the rows of neighbouring minibatch-std groups: those are strided, sample i belongs to group i modulo their
    number, and so are those that a process makes of its own rows in their order.
    """
    if processes() == 1:
        return draws
    groups = batch // min(group, batch)
    own = groups // processes()
    first = dist.get_rank() * own
    rows = torch.arange(batch)
    rows = rows[(rows % groups >= first) & (rows % groups < first + own)]
    return Part.of(draws, batch, rows)


def mean(value: Tensor) -> Tensor:
    """The mean over processes of a tensor without gradient."""
    if processes() == 1:
        return value
    total = value.detach().clone()
    dist.all_reduce(total)
    return total / processes()


def mean_gradients(parameters: Sequence[torch.nn.Parameter]) -> None:
    """Put the mean over processes in the place of every gradient."""
    if processes() == 1:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = mean(torch.cat([gradient.flatten() for gradient in gradients]))
    for gradient, values in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(values.view_as(gradient))


def mean_values(values: Mapping[str, float]) -> dict[str, float]:
    """The mean over processes of what each records under the same names."""
    if processes() == 1:
        return dict(values)
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    means = mean(torch.tensor(list(values.values()), dtype=torch.float64, device=device))
    return dict(zip(values, means.tolist(), strict=True))


def gathered(rows: Tensor) -> Tensor:
    """The rows [b, ...] of all processes, [B, ...], without gradient, in the order of the processes."""
    if processes() == 1:
        return rows
    parts = [torch.empty_like(rows) for _ in range(processes())]
    dist.all_gather(parts, rows.detach().contiguous())
    return torch.cat(parts)
