"""How well a CLIP tells held-out instances apart."""

from pathlib import Path

import torch

from cad.errors import UserError
from cad.prior.clip import Clip
from cad.toyworld.dataset import Dataset
from cad.toyworld.measures import bars
from cad.toyworld.measures.questions import CPU
from cad.toyworld.measures.table import Measure
from cad.toyworld.settings import ToyworldSettings
from cad.toyworld.world import families


def measure_clip(name: str, settings: ToyworldSettings, data: Dataset, weights: Path) -> list[Measure]:
    """How often a reference view's own caption is the most similar one of `check.captions` distinct captions."""
    subjects = distinct_captions(data, settings.check.captions)
    clip = Clip.load(weights / name, CPU)
    texts = clip.texts([data.instances[i].captions.specific for i in subjects])
    pictures = data.images[subjects, : data.references]  # [captions, references, H, W, 3]
    images = torch.cat([clip.images(views) for views in pictures])
    own = torch.arange(len(subjects)).repeat_interleave(data.references)
    right = ((images @ texts.T).argmax(1) == own).double().mean().item()
    title = f"top-1 among {len(texts)} captions"
    return [Measure(name, title, right, 1 / len(texts), "chance", len(images), bars.RETRIEVAL)]


def distinct_captions(data: Dataset, count: int) -> list[int]:
    """Positions of the first `count` instances of which no two share a specific caption, families taking turns.

    Raises UserError where there are fewer.
    """
    own = len(data) // len(families())
    found: dict[str, int] = {}
    for position in (family * own + k for k in range(own) for family in range(len(families()))):
        found.setdefault(data.instances[position].captions.specific, position)
    if len(found) < count:
        raise UserError(f"check.captions: {count} is more than the {len(found)} of the held-out instances; lower it")
    return list(found.values())[:count]
