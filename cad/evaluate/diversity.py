"""Diversity: how far apart are objects of different seeds, and the refined samples they were learnt from, in LPIPS?

Both are compared at equal pose, so that turning the object does not count. A generator that has collapsed to one object
has no distance between seeds, however varied the samples were.
"""

from collections.abc import Iterable
from itertools import combinations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from cad.artifacts import PriorCache
from cad.prior.pictures import to_network

DISTANCE = "LPIPS (AlexNet)"


def seed_diversity(
    metric: nn.Module, images: NDArray[np.uint8], interval: int, batch: int, device: torch.device
) -> float | None:
    """Mean LPIPS over the pairs of seeds and every `interval`-th frame of images [S, F, H, W, 3]; None for one seed."""
    return mean_pairwise(metric, (images[:, k] for k in range(0, images.shape[1], interval)), batch, device)


def draw_diversity(
    metric: nn.Module, refined: PriorCache, poses: int, batch: int, device: torch.device
) -> float | None:
    """Mean LPIPS over the pairs of draws at each of `poses` poses, spread evenly over the cache; None for one draw."""
    count = min(poses, len(refined))
    return mean_pairwise(metric, (refined.read(k * len(refined) // count) for k in range(count)), batch, device)


@torch.no_grad()
def mean_pairwise(
    metric: nn.Module, groups: Iterable[NDArray[np.uint8]], batch: int, device: torch.device
) -> float | None:
    """Mean distance over the unordered pairs within each group of images uint8 [N, H, W, 3]; None without a pair.

    metric: maps two [B, 3, H, W] in [-1, 1] to distances [B, 1, 1, 1]; batch: pairs of one call.
    """
    pairs = [pair for group in groups for pair in combinations(group, 2)]
    if not pairs:
        return None
    found = []
    for start in range(0, len(pairs), batch):
        chunk = pairs[start : start + batch]
        first, second = (to_network(np.stack(side), device) for side in zip(*chunk, strict=True))
        found.append(metric(first, second).flatten().double().cpu())
    return float(torch.cat(found).mean())
