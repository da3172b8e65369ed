"""The held-out views at 16 px, and a distance that stands in for LPIPS, which needs 31 px."""

from pathlib import Path

import pytest
from torch import Tensor, nn

from cad.toyworld.dataset import Dataset
from cad.toyworld.settings import ToyworldSettings


class Distance(nn.Module):
    """The mean absolute difference of two [B, 3, H, W]."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return (a - b).abs().mean((1, 2, 3), keepdim=True)


@pytest.fixture(scope="session")
def distance() -> Distance:
    return Distance()


@pytest.fixture(scope="session")
def held_out(settings: ToyworldSettings, work: Path) -> Dataset:
    return Dataset(settings.data, "held-out", settings.data.held_out_instances, work / "held-out")
