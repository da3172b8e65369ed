"""Correspondences between two views of one object, inside its foreground, behind one small protocol.

Points are (x, y) in image sides, pixel centres at (i + 0.5) / W, as everywhere in `cad.camera`.
"""

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import interpolate, unfold

from cad.config import ElevationSettings
from cad.errors import UserError

LUMINANCE = (0.299, 0.587, 0.114)
LOFTR_SIDE = 256  # px, what One-2-3-45 gives LoFTR; a smaller picture has too few of its 8 px cells
LOFTR_REMEDY = "set elevation.loftr to kornia's loftr_outdoor.ckpt, or its tensors as .safetensors"


@dataclass(frozen=True)
class Matches:
    """Points [n, 2] in the first and in the second picture that show the same, and confidences [n] in 0 to 1."""

    first: Tensor
    second: Tensor
    confidence: Tensor

    def __len__(self) -> int:
        """The number of correspondences."""
        return len(self.confidence)

    def select(self, chosen: Tensor) -> "Matches":
        """Those that a mask or positions choose."""
        return Matches(self.first[chosen], self.second[chosen], self.confidence[chosen])


class Matcher(Protocol):
    """Anything that finds correspondences; a new matcher is one class and one entry in `MATCHERS`."""

    def match(self, first: np.ndarray, second: np.ndarray, masks: tuple[np.ndarray, np.ndarray]) -> Matches:
        """Matches of pictures uint8 [H, W, 3]; `masks`, bool [H, W], say where each of them shows the object."""
        ...


def inside(points: Tensor, mask: np.ndarray) -> Tensor:
    """Which points [n, 2] lie in a pixel of a mask [H, W], [n] bool; a mask's row is y and its column x."""
    height, width = mask.shape
    column = (points[:, 0] * width).floor().long()
    row = (points[:, 1] * height).floor().long()
    within = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    shown = torch.from_numpy(np.ascontiguousarray(mask))[row.clamp(0, height - 1), column.clamp(0, width - 1)]
    return within & shown


def in_foreground(matches: Matches, masks: tuple[np.ndarray, np.ndarray]) -> Matches:
    """The matches with both ends in the foreground, each end looked up in its own picture's mask."""
    return matches.select(inside(matches.first, masks[0]) & inside(matches.second, masks[1]))


class PatchMatcher:
    """Normalised cross-correlation of colour patches, forwards and backwards, to sub-pixel places; no weights [ours].

    A patch around a corner of the first picture is looked for in a window of the second, and what is found there is
    looked for in the first again: where that does not lead back, there is no match.
    """

    def __init__(self, settings: ElevationSettings):
        self.settings = settings

    def match(self, first: np.ndarray, second: np.ndarray, masks: tuple[np.ndarray, np.ndarray]) -> Matches:
        """Matches of square pictures of one side, uint8 [S, S, 3]."""
        side = first.shape[0]
        reach = self.settings.window * side
        own, other = (_descriptors(picture, self.settings.patch_px) for picture in (first, second))
        shown = [torch.from_numpy(np.ascontiguousarray(mask)).flatten() for mask in masks]
        anchors = _corners(first, masks[0], self.settings.patch_px, self.settings.min_texture)
        found, score = _search(own, other, anchors, shown[1], reach)
        places = _refine(own, other, anchors, found)
        back, _ = _search(other, own, found, shown[0], reach)
        strayed = (_columns_rows(back, side) - _columns_rows(anchors, side)).double().norm(dim=-1)
        kept = (strayed <= self.settings.max_return_px) & (score >= self.settings.min_correlation)
        starts = _columns_rows(anchors, side).float()
        matches = Matches((starts[kept] + 0.5) / side, (places[kept] + 0.5) / side, score[kept].clamp(0, 1))
        return in_foreground(matches, masks)


def _descriptors(picture: np.ndarray, patch: int) -> Tensor:
    """Colours around every pixel, each channel less its mean, of length 1 (flat ones: about 0), [S * S, 3 patch^2]."""
    pixels = torch.from_numpy(picture.astype(np.float32) / 255).permute(2, 0, 1)[None]
    padded = torch.nn.functional.pad(pixels, [patch // 2] * 4, mode="replicate")
    around = unfold(padded, patch)[0].T.reshape(-1, 3, patch * patch)
    centred = around - around.mean(-1, keepdim=True)
    flat = centred.flatten(1)
    return flat / (flat.norm(dim=-1, keepdim=True) + 1e-2)  # noise of a flat patch is not blown up


def _corners(picture: np.ndarray, mask: np.ndarray, patch: int, min_texture: float) -> Tensor:
    """Positions (row * S + column) of the foreground's pixels whose patch changes in every direction.

    The measure is the smaller eigenvalue of the structure tensor (Shi and Tomasi), summed over the patch and colours.
    """
    pixels = torch.from_numpy(picture.astype(np.float32) / 255).permute(2, 0, 1)
    dy, dx = torch.gradient(pixels, dim=(1, 2))
    products = torch.stack([(dx * dx).sum(0), (dy * dy).sum(0), (dx * dy).sum(0)])[None]
    xx, yy, xy = torch.nn.functional.avg_pool2d(products, patch, 1, patch // 2, divisor_override=1)[0]
    smaller = (xx + yy) / 2 - (((xx - yy) / 2) ** 2 + xy**2).sqrt()
    return ((smaller >= min_texture) & torch.from_numpy(np.ascontiguousarray(mask))).flatten().nonzero()[:, 0]


def _columns_rows(positions: Tensor, side: int) -> Tensor:
    return torch.stack([positions % side, positions // side], -1)


def _search(own: Tensor, other: Tensor, anchors: Tensor, allowed: Tensor, reach: float) -> tuple[Tensor, Tensor]:
    """The most similar allowed position within `reach` pixels of each anchor, [n], and its correlation, [n]."""
    side = round(len(own) ** 0.5)
    candidates = allowed.nonzero()[:, 0]
    if not len(candidates) or not len(anchors):
        return anchors, torch.full((len(anchors),), -1.0)
    places = _columns_rows(candidates, side)
    found, scores = [], []
    for part in anchors.split(1024):  # bounds the memory, changes no result
        correlation = own[part] @ other[candidates].T
        away = (_columns_rows(part, side)[:, None] - places).abs().amax(-1) > reach
        best = correlation.masked_fill(away, -1).max(-1)
        found.append(candidates[best.indices])
        scores.append(best.values)
    return torch.cat(found), torch.cat(scores)


def _refine(own: Tensor, other: Tensor, anchors: Tensor, found: Tensor) -> Tensor:
    """Where a parabola through the correlation beside each found pixel peaks, (column, row) [n, 2] in pixels."""
    side = round(len(own) ** 0.5)
    column_row = _columns_rows(found, side)
    centre = (own[anchors] * other[found]).sum(-1)
    moved = []
    for axis, stride in ((0, 1), (1, side)):
        edge = (column_row[:, axis] == 0) | (column_row[:, axis] == side - 1)
        before, after = (
            (own[anchors] * other[(found + step).clamp(0, len(other) - 1)]).sum(-1) for step in (-stride, stride)
        )
        curvature = before + after - 2 * centre
        peak = (before - after) / (2 * curvature.clamp(max=-1e-6))
        moved.append(torch.where(edge | (curvature > -1e-6), 0.0, peak.clamp(-0.5, 0.5)))
    return column_row + torch.stack(moved, -1)


class LoftrMatcher:
    """LoFTR through kornia, as One-2-3-45 has it; its weights are a local file."""

    def __init__(self, settings: ElevationSettings, device: torch.device):
        """Load the weights; UserError without kornia, and for a file that is missing, broken or holds code."""
        try:
            from kornia.feature import LoFTR
        except ImportError:
            raise UserError(
                "elevation.matcher: loftr needs kornia; install the extra: `pip install 'cad[elevation]'`, or set the "
                "matcher to patches"
            ) from None
        self.device = device
        path = Path(str(settings.loftr))
        network = LoFTR(pretrained=None)
        missing, unexpected = network.load_state_dict(read_weights(path), strict=False)
        if missing or unexpected:
            first = [*missing, *unexpected][0]
            raise UserError(f"{path}: its tensors are not LoFTR's, e.g. {first}; {LOFTR_REMEDY}")
        self.network = network.eval().requires_grad_(False).to(device)

    @torch.no_grad()
    def match(self, first: np.ndarray, second: np.ndarray, masks: tuple[np.ndarray, np.ndarray]) -> Matches:
        """Matches of pictures uint8 [H, W, 3]; they are enlarged to 256 px if they are smaller."""
        pictures = {f"image{k}": _gray(picture).to(self.device) for k, picture in enumerate((first, second))}
        found = self.network(pictures)
        ends = []
        for k in range(2):
            height, width = pictures[f"image{k}"].shape[-2:]
            # LoFTR's own frame has pixel centres at i + 0.5, as cad.camera; only its unit is the pixel.
            ends.append(found[f"keypoints{k}"].float().cpu() / torch.tensor([width, height]))
        return in_foreground(Matches(ends[0], ends[1], found["confidence"].float().cpu()), masks)


def _gray(picture: np.ndarray) -> Tensor:
    """Luminance in [0, 1], [1, 1, H, W], at least `LOFTR_SIDE` high and wide."""
    gray = torch.from_numpy(picture.astype(np.float32) / 255) @ torch.tensor(LUMINANCE)
    height, width = gray.shape
    factor = max(1.0, LOFTR_SIDE / min(height, width))
    size = (round(height * factor), round(width * factor))
    return interpolate(gray[None, None], size, mode="bicubic", align_corners=False).clamp(0, 1)


def read_weights(path: Path) -> dict[str, Tensor]:
    """Tensors of a .safetensors file, or of a checkpoint, of which nothing is executed; UserError for any fault."""
    if not path.is_file():
        raise UserError(f"{path}: no such file of weights; {LOFTR_REMEDY}")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise UserError(f"{path}: is no file of tensors alone, and nothing in it is executed; {LOFTR_REMEDY}") from None
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError) as fault:
        said = (str(fault).splitlines() or [type(fault).__name__])[0]
        raise UserError(f"{path}: cannot be read as weights ({said}); {LOFTR_REMEDY}") from None
    tensors = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise UserError(f"{path}: holds no state_dict; {LOFTR_REMEDY}")
    return tensors


def load_matcher(settings: ElevationSettings, device: torch.device) -> Matcher:
    """The matcher that `elevation.matcher` names; UserError where its package or its weights are missing."""
    return MATCHERS[settings.matcher](settings, device)


MATCHERS: dict[str, Callable[[ElevationSettings, torch.device], Matcher]] = {
    "patches": lambda settings, device: PatchMatcher(settings),
    "loftr": LoftrMatcher,
}
