"""Randomness as a pure function of what is drawn, never of order, batch, shard or worker ([ours]: DESIGN promise 1)."""

import hashlib

import torch


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
