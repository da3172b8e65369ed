"""Distances between pictures: peak signal-to-noise ratio over a mask, and LPIPS."""

import itertools

import numpy as np
import torch
from torch import nn

from cad.prior.pictures import to_network


def psnr(images: np.ndarray, truth: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Peak signal-to-noise ratio in dB over the pixels of a mask, [B].

    images, truth: uint8 [B, H, W, 3]; mask: bool [B, H, W]. Half a grey level stands in for a perfect match, which
    would be infinite; an empty mask, which no true view has, counts as one.
    """
    squared = ((images.astype(np.float64) - truth) ** 2).mean(-1)
    error = (squared * mask).sum((1, 2)) / np.maximum(mask.sum((1, 2)), 1)
    return 10 * np.log10(255**2 / np.maximum(error, 0.25))


@torch.no_grad()
def perceptual(distance: nn.Module, a: np.ndarray, b: np.ndarray, batch: int) -> np.ndarray:
    """LPIPS between pictures, uint8 [B, H, W, 3] each, to float64 [B]; `batch` pairs at a time."""
    found = []
    for start in range(0, len(a), batch):
        first, second = (to_network(x[start : start + batch], torch.device("cpu")) for x in (a, b))
        found.append(distance(first, second).flatten().double().numpy())
    return np.concatenate(found)


def pairwise(distance: nn.Module, draws: np.ndarray, batch: int) -> float:
    """Mean LPIPS over all pairs of draws of the same pose and over the poses; draws: uint8 [Q, N, H, W, 3], N >= 2."""
    pairs = itertools.combinations(range(draws.shape[1]), 2)
    return float(np.mean([perceptual(distance, draws[:, i], draws[:, j], batch) for i, j in pairs]))
