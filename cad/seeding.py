"""Randomness as a pure function of what is drawn, never of order, batch, shard or worker ([ours]: DESIGN promise 1)."""

import hashlib
from collections.abc import Callable

import torch
from torch import Tensor


def seed_for(*parts: int | str) -> int:
    """A 63-bit seed from any sequence of integers and strings, e.g. (seed, object, pose, sample).

    Raises TypeError for anything else: the text of a float or an object is no stable identity.
    """
    for part in parts:
        if not isinstance(part, int | str) or isinstance(part, bool):
            raise TypeError(f"seed_for takes integers and strings, not {type(part).__name__}")
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(*parts: int | str) -> torch.Generator:
    """A CPU generator seeded by `seed_for(*parts)`; draws go through the CPU so that devices agree."""
    return torch.Generator().manual_seed(seed_for(*parts))


class Part(torch.Generator):
    """A stream from which several processes draw the same whole batch, each to keep its own rows of it."""

    batch: int
    rows: Tensor  # ascending, int64

    @classmethod
    def of(cls, stream: torch.Generator, batch: int, rows: Tensor) -> "Part":
        """The part of a stream's batches of `batch` rows that these rows are; `stream` itself is left alone."""
        part = cls(stream.device)
        part.set_state(stream.get_state())
        part.batch, part.rows = batch, rows
        return part


def drawn(draw: Callable[..., Tensor], count: int, *rest: int, generator: torch.Generator) -> Tensor:
    """`draw` (torch.rand, torch.randn) of [count, *rest] on the stream's device; of a `Part`, its rows of the batch.

    Raises ValueError for a part whose rows are not `count`.
    """
    if not isinstance(generator, Part):
        return draw(count, *rest, generator=generator, device=generator.device)
    if count != len(generator.rows):
        raise ValueError(f"a part of {len(generator.rows)} rows of a batch has no {count} rows")
    whole = draw(generator.batch, *rest, generator=generator, device=generator.device)
    return whole[generator.rows.to(whole.device)]


def drawn_integers(below: int, count: int, *rest: int, generator: torch.Generator) -> Tensor:
    """Uniform integers in 0 .. below - 1, int64 [count, *rest]; parts and errors as in `drawn`."""

    def draw(*shape: int, generator: torch.Generator, device: torch.device) -> Tensor:
        return torch.randint(below, shape, generator=generator, device=device)

    return drawn(draw, count, *rest, generator=generator)
