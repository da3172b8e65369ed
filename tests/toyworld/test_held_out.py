"""What is shown and scored was never trained or tuned on: the demo objects share no instance with training."""

from pathlib import Path

import numpy as np
import pytest

from cad.config import load
from cad.toyworld.dataset import instances
from cad.toyworld.settings import load_settings
from cad.toyworld.world import HELD_OUT, instance

ROOT = Path(__file__).resolve().parents[2]
OBJECTS = {name: item.toyworld for name, item in load(ROOT / "params.yaml").objects.items() if item.toyworld}
SETTINGS = load_settings(ROOT / "experiments/toyworld/params.yaml")


def test_the_demo_objects_are_two_families() -> None:
    assert len({subject.family for subject in OBJECTS.values()}) == len(OBJECTS) == 2


@pytest.mark.parametrize("name", OBJECTS)
def test_no_training_instance_is_a_demo_object(name: str) -> None:
    """By seed, and by shape and colours: no training instance of the family has the same parts."""
    subject = OBJECTS[name]
    scene = instance(subject.family, subject.seed).scene
    trained = list(instances("train", SETTINGS.data.train_instances, subject.family))
    assert len(trained) == SETTINGS.data.train_instances
    assert subject.seed >= HELD_OUT > max(item.seed for item in trained)
    assert min(np.abs(item.scene - scene).max() for item in trained) > 0.01


@pytest.mark.parametrize("name", OBJECTS)
def test_no_demo_object_measures_the_small_models(name: str) -> None:
    """`cad toyworld check` and `cad toyworld pruning` look at other held-out instances than the demo objects."""
    subject = OBJECTS[name]
    measured = instances("held-out", SETTINGS.data.held_out_instances, subject.family)
    assert subject.seed not in {item.seed for item in measured}
