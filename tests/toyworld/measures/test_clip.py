"""Retrieval with a CLIP that is told what to find."""

from pathlib import Path

import numpy as np
import pytest
import torch

from cad.errors import UserError
from cad.toyworld.dataset import Dataset
from cad.toyworld.measures import clip as measures
from cad.toyworld.settings import ToyworldSettings
from cad.toyworld.world import families


def test_captions_are_distinct_and_of_all_families(held_out: Dataset) -> None:
    chosen = measures.distinct_captions(held_out, len(families()))
    assert {held_out.instances[i].family for i in chosen} == set(families())
    more = measures.distinct_captions(held_out, len(families()) + 3)
    assert more[: len(chosen)] == chosen
    assert len({held_out.instances[i].captions.specific for i in more}) == len(more)


def test_too_many_captions_are_refused(held_out: Dataset) -> None:
    with pytest.raises(UserError, match=r"check\.captions: 1000 is more than the 16"):
        measures.distinct_captions(held_out, 1000)


class Oracle:
    """A CLIP that knows every picture's instance, and answers wrongly for those in `fooled`."""

    def __init__(self, data: Dataset, fooled: int):
        self.known = {view.tobytes(): k for k, views in enumerate(data.images) for view in views}
        self.captions = {item.captions.specific: k for k, item in enumerate(data.instances)}
        self.count, self.fooled = len(data), fooled

    def images(self, images: np.ndarray) -> torch.Tensor:
        found = torch.tensor([self.known[image.tobytes()] for image in images])
        wrong = found < self.fooled
        return torch.nn.functional.one_hot(torch.where(wrong, (found + 2) % self.count, found), self.count).float()

    def texts(self, texts: list[str]) -> torch.Tensor:
        return torch.nn.functional.one_hot(torch.tensor([self.captions[text] for text in texts]), self.count).float()


@pytest.mark.parametrize(("fooled", "share"), [(0, 1.0), (2, 0.875)])
def test_retrieval_counts_the_pictures_that_find_their_caption(
    fooled: int, share: float, held_out: Dataset, settings: ToyworldSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Positions 0 and 1 are the robots; of the 8 distinct captions' 16 pictures, the first robot's two are wrong."""
    monkeypatch.setattr(measures.Clip, "load", lambda *_: Oracle(held_out, fooled))
    wanted = settings.model_copy(update={"check": settings.check.model_copy(update={"captions": 8})})
    (found,) = measures.measure_clip("clip", wanted, held_out, Path("unused"))
    assert found.value == pytest.approx(share)
    assert found.baseline == pytest.approx(1 / 8)
    assert found.examples == 16
    assert found.met
