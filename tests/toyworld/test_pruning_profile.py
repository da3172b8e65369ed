"""Which objects thresholds of pruning are chosen and measured on, and what the profile holds of them."""

import csv
import math
from pathlib import Path

import pytest
import torch
import yaml

from cad.errors import UserError
from cad.toyworld import pruning
from cad.toyworld.settings import load_settings
from cad.toyworld.thresholds import Thresholds
from cad.toyworld.world import HELD_OUT, families

ROOT = Path(__file__).parents[2]
MINI = ROOT / "experiments/profile/mini.yaml"
CPU = torch.device("cpu")


def test_what_the_profile_holds_is_said() -> None:
    prune = pruning.read_profile(MINI).prune
    held = Thresholds(prune.max_bad_pixels, prune.min_clip_similarity)
    assert pruning.agreement(held, prune, MINI) == f"{MINI} holds them"
    said = pruning.agreement(Thresholds(prune.max_bad_pixels + 1, 0.123), prune, MINI)
    assert said.endswith(f"set them to {prune.max_bad_pixels + 1} and 0.123")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "no such file"),
        ("prior: [1,", "is not YAML"),
        ("prior: {poses: 3}", "runtime: Field required"),
    ],
)
def test_a_broken_profile_is_a_users_fault(content: str | None, said: str, tmp_path: Path) -> None:
    path = tmp_path / "profile.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=rf"profile\.yaml: {said}"):
        pruning.read_profile(path)


def test_the_demo_objects_are_neither_chosen_nor_measured_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pruning, "families", families)
    settings = load_settings(ROOT / "experiments/toyworld/params.yaml")
    listed = pruning.list_subjects(settings, pruning.read_profile(MINI).prior, 16, "weights", CPU, Path("work"))
    used = {split: {(s.item.family, s.item.seed) for s in listed if s.split == split} for split in pruning.SPLITS}
    each = settings.pruning.instances * len(families())
    assert len(used["train"]) == len(used["held-out"]) == each
    assert all(seed < settings.data.train_instances for _, seed in used["train"])
    assert all(seed >= HELD_OUT for _, seed in used["held-out"])
    demos = [
        (entry["toyworld"]["family"], entry["toyworld"]["seed"])
        for path in (ROOT / "experiments/object").glob("*.yaml")
        for entry in yaml.safe_load(path.read_text()).get("objects", {}).values()
        if entry["toyworld"] is not None
    ]
    assert len(demos) >= 2
    assert used["train"].isdisjoint(demos)
    assert used["held-out"].isdisjoint(demos)


def test_the_main_jobs_profile_holds_the_committed_choice() -> None:
    """`cad toyworld pruning` is run anew whenever the models change, and mini takes what it chose."""
    text = (ROOT / "reports/pruning.csv").read_text()
    rows = csv.DictReader(text.splitlines())
    (both,) = [row for row in rows if (row["split"], row["way"]) == ("held-out", "both checks")]
    held = pruning.read_profile(MINI).prune
    assert held.max_bad_pixels == int(both["max_bad_pixels"])
    assert math.isclose(held.min_clip_similarity, float(both["min_clip_similarity"]))
