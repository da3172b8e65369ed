"""The registry against the profiles that name its models, and its own promises."""

import json
import re
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from cad.errors import UserError
from cad.weights import listing
from cad.weights.table import MODELS, find

ROOT = Path(__file__).parents[2]
PAPER = YAML(typ="safe").load(ROOT / "experiments/profile/paper.yaml")
ON_A_HUB = [model for model in MODELS if model.repo]


def test_names_are_unique_and_an_unknown_one_is_answered_with_the_known() -> None:
    assert len({model.name for model in MODELS}) == len(MODELS)
    with pytest.raises(UserError, match="zero123: is no model of the registry; known: zero123-xl,"):
        find("zero123")


@pytest.mark.parametrize("field", ["zero123", "refiner", "controlnet", "depth", "deepfloyd_stage1", "clip"])
def test_each_model_of_the_paper_profile_is_here_at_its_revision(field: str) -> None:
    sources = {model.source for model in ON_A_HUB if model.place == f"models.{field}"}
    assert PAPER["models"][field] in sources


def test_so_is_each_scorer_and_every_one_of_them_is_pinned() -> None:
    scorers = {scorer["model"] for scorer in PAPER["evaluate"]["scorers"].values()}
    assert scorers == {model.source for model in ON_A_HUB if model.place == "evaluate.scorers"}
    hub = {source for source in PAPER["models"].values() if not source.startswith("data/")}
    assert not [source for source in hub | scorers if not re.fullmatch(r"[\w.-]+/[\w.-]+@[0-9a-f]{40}", source)]


def test_the_matcher_of_the_paper_profile_is_where_the_list_says() -> None:
    assert PAPER["elevation"]["loftr"] == find("loftr").place
    assert PAPER["models"]["lpips"] == find("lpips-alexnet").place


def test_only_the_original_checkpoints_are_pickles() -> None:
    assert {m.name for m in ON_A_HUB if m.pickle} == {"zero123-105000-original"}
    unsafe = re.compile(r"\.(bin|ckpt|pt|pth|pkl|msgpack|h5)$")
    assert not [pattern for m in ON_A_HUB if not m.pickle for pattern in m.files if unsafe.search(pattern)]
    assert not [pattern for m in ON_A_HUB for pattern in m.files if pattern in ("*", "**")]


def test_deepfloyd_is_gated_and_says_so() -> None:
    assert {m.repo for m in MODELS if m.gated} == {"DeepFloyd/IF-I-XL-v1.0", "DeepFloyd/IF-II-L-v1.0"}
    text = listing.as_text()
    assert text.count("licence: DeepFloyd IF License, accept it on the hub first") == 3


def test_revisions_are_commits_or_are_said_not_to_be() -> None:
    for model in ON_A_HUB:
        line = next(line for line in listing.as_text().splitlines() if f"{model.repo}@{model.revision}" in line)
        assert bool(re.fullmatch(r"[0-9a-f]{40}", model.revision)) != ("not pinned to a full commit" in line)


def test_the_json_holds_all_fields() -> None:
    rows = json.loads(listing.as_json())
    assert [row["name"] for row in rows] == [model.name for model in MODELS]
    assert all(row["licence"] and row["gigabytes"] > 0 and row["purpose"] and row["place"] for row in rows)
