"""The profile for one card: it composes, departs from the paper's only where it says so and why, and fits the card."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from cad.config import Params
from cad.config.compose import compose
from cad.plan import model_sources, plan, weight_bytes
from cad.weights.table import MODELS

ROOT = Path(__file__).parents[1]
EXPERIMENTS = ROOT / "experiments"
FILE = EXPERIMENTS / "profile/single-gpu.yaml"


@pytest.fixture(scope="module")
def profiles() -> tuple[Params, Params]:
    return compose("paper", ["robot"], EXPERIMENTS), compose("single-gpu", ["robot"], EXPERIMENTS)


def leaves(values: dict[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


def test_it_departs_from_paper_where_it_says_so_and_nowhere_else(profiles: tuple[Params, Params]) -> None:
    paper, single = (dict(leaves(each.model_dump())) for each in profiles)
    changed = {path for path in single if single[path] != paper[path]} - {"profile"}
    assert single.keys() == paper.keys()
    written = yaml.safe_load(FILE.read_text())
    assert changed == {path for path, _ in leaves(written)} - {"profile", "defaults"}


def test_every_departure_is_marked_with_its_reason() -> None:
    lines = [line for line in FILE.read_text().splitlines() if re.match(r" +\w+: ", line)]
    assert len(lines) > 10
    for line in lines:
        assert re.search(r"# \[ours\] \w.{5,}", line), line


def test_no_licence_has_to_be_accepted_for_it(profiles: tuple[Params, Params]) -> None:
    paper, single = profiles
    gated = {model.repo for model in MODELS if model.gated}
    assert {source.partition("@")[0] for _, source in leaves({"models": paper.models.model_dump()})} & gated
    loaded = {str(source).partition("@")[0] for _, source in leaves({"models": single.models.model_dump()})}
    assert not loaded & gated
    assert single.refine.models == ("refiner", "controlnet", "depth")


def test_the_scaled_settings_follow_eg3ds_rules_for_the_batch(profiles: tuple[Params, Params]) -> None:
    """EG3D: the average's half-life is batch * 10 / 32 kimg, the blur fades over batch * 200 / 32 kimg."""
    single = profiles[1]
    assert single.stage1.ema_kimg == single.stage1.batch * 10 / 32
    assert single.stage2.ema_kimg == single.stage2.batch * 10 / 32
    assert single.stage1.blur_kimg == single.stage1.batch * 200 / 32


def test_what_is_held_besides_activations_leaves_most_of_the_card_free(profiles: tuple[Params, Params]) -> None:
    known, _ = weight_bytes(model_sources(profiles[1], []))
    costs = {cost.stage: cost for cost in plan(profiles[1], [], known)}
    assert all(cost.memory < 12e9 for cost in costs.values())
    assert costs["prior"].work == {"zero123": 2000 * 4 * 50 * 2}
    assert costs["refine"].work == {"refiner": 2000 * 40 * 2}
