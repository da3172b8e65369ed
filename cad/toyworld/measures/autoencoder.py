"""How well the autoencoder keeps held-out views: their pixels, and their parts' colours."""

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL

from cad.errors import UserError
from cad.prior.pictures import to_network, to_picture
from cad.prior.weights import load_network
from cad.toyworld import autoencoder
from cad.toyworld.dataset import Dataset
from cad.toyworld.measures import bars
from cad.toyworld.measures.parts import color_distance, part_colors, visible
from cad.toyworld.measures.pixels import psnr
from cad.toyworld.measures.questions import CPU, Question, checked, truths
from cad.toyworld.measures.table import Measure
from cad.toyworld.settings import ToyworldSettings


def measure_autoencoder(name: str, settings: ToyworldSettings, data: Dataset, weights: Path) -> list[Measure]:
    """PSNR of decoded latent modes over the foreground, and CIEDE2000 of parts, of all views of checked instances."""
    vae = load_network(AutoencoderKL, weights / name, "", CPU, torch.float32)
    ratios, distances = [], []
    for subject in checked(settings.check, data):
        images = to_network(data.images[subject], CPU)
        with torch.no_grad():
            output = to_picture(vae.decode(vae.encode(images).latent_dist.mode()).sample)
        shape = autoencoder.foreground(images)[:, 0].numpy()
        ratios.append(psnr(output, data.images[subject], shape))
        truth = truths(data, [Question(subject, view) for view in range(data.views)], settings.camera)
        distances.append(reconstructed_colors(output, data.images[subject], truth.parts, settings.check.part_pixels))
    psnrs, colors = np.concatenate(ratios), np.concatenate(distances)
    if len(colors) == 0:
        raise UserError(f"check.part_pixels: no part covers {settings.check.part_pixels} pixels; lower it")
    title = "CIEDE2000 of parts to the input, median"
    return [
        Measure(name, "PSNR over the foreground, dB", float(psnrs.mean()), None, "", len(psnrs), bars.RECONSTRUCTION),
        Measure(name, title, float(np.median(colors)), None, "", len(colors), bars.RECONSTRUCTED_COLORS),
    ]


def reconstructed_colors(output: np.ndarray, images: np.ndarray, parts: np.ndarray, min_pixels: int) -> np.ndarray:
    """CIEDE2000 between each visible part's mean colour in an image and in its reconstruction, over all views, [n].

    output, images: uint8 [V, H, W, 3]; parts: int [V, H, W].
    """
    found = []
    for a, b, ids in zip(output, images, parts, strict=True):
        wanted, everywhere = visible(ids, min_pixels), np.ones(ids.shape, bool)
        found.append(color_distance(*(part_colors(x, ids, wanted, everywhere) for x in (a, b))))
    return np.concatenate(found)
