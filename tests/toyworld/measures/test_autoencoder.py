"""The autoencoder's measures with networks that keep everything, or swap colours."""

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from skimage.color import deltaE_ciede2000, rgb2lab

from cad.errors import UserError
from cad.toyworld.dataset import Dataset
from cad.toyworld.measures import autoencoder as measures
from cad.toyworld.measures.table import Measure
from cad.toyworld.settings import ToyworldSettings
from cad.toyworld.world import families

Change = Callable[[torch.Tensor], torch.Tensor]


def measured(
    change: Change, data: Dataset, settings: ToyworldSettings, monkeypatch: pytest.MonkeyPatch
) -> list[Measure]:
    vae = SimpleNamespace(
        encode=lambda x: SimpleNamespace(latent_dist=SimpleNamespace(mode=lambda: x)),
        decode=lambda x: SimpleNamespace(sample=change(x)),
    )
    monkeypatch.setattr(measures, "load_network", lambda *_: vae)
    return measures.measure_autoencoder("autoencoder", settings, data, Path("unused"))


def test_an_autoencoder_that_keeps_everything(
    held_out: Dataset, settings: ToyworldSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    ratio, colors = measured(lambda x: x * 1.5 - 0.5 * x, held_out, settings, monkeypatch)
    assert ratio.value == pytest.approx(20 * math.log10(510))
    assert ratio.examples == len(families()) * held_out.views
    assert colors.value == pytest.approx(0, abs=1e-9)
    assert colors.examples > ratio.examples  # several parts a view
    assert ratio.met
    assert colors.met


def test_swapped_channels_are_wrong_colours(
    held_out: Dataset, settings: ToyworldSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    ratio, colors = measured(lambda x: x.flip(1), held_out, settings, monkeypatch)
    assert ratio.value < 20
    assert colors.value > 15
    assert not ratio.met
    assert not colors.met


def test_colours_by_hand() -> None:
    """Two views; the first has parts 0 (kept) and 1 (two pixels, one of them changed), the second a part too small."""
    images = np.full((2, 2, 2, 3), 255, np.uint8)
    images[0, 0], images[0, 1] = (200, 40, 40), (40, 60, 200)
    output = images.copy()
    output[0, 1, 1] = (80, 100, 200)
    parts = np.array([[[0, 0], [1, 1]], [[-1, -1], [-1, 2]]])
    found = measures.reconstructed_colors(output, images, parts, 2)
    mean = np.array([60, 80, 200]) / 255
    expected = deltaE_ciede2000(rgb2lab(mean), rgb2lab(images[0, 1, 0] / 255))
    np.testing.assert_allclose(found, [0, expected], atol=1e-3)


def test_parts_too_small_everywhere_are_a_users_fault(
    held_out: Dataset, settings: ToyworldSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = settings.model_copy(update={"check": settings.check.model_copy(update={"part_pixels": 257})})
    with pytest.raises(UserError, match=r"check\.part_pixels: no part covers 257 pixels; lower it"):
        measured(lambda x: x, held_out, wanted, monkeypatch)
