"""Tuning compares settings on training instances only, and makes once what variants share (benchmarks/tuning.py)."""

import json
from pathlib import Path
from typing import Any

import pytest
import tuning
import yaml

from cad.artifacts.workspace import work_folder
from cad.config import load
from cad.errors import UserError
from cad.stages import identity
from cad.toyworld.world import HELD_OUT

ROOT = Path(__file__).parents[1]
SUITE: dict[str, Any] = yaml.safe_load((ROOT / "experiments/tuning/variants.yaml").read_text())


def test_every_variant_is_valid_and_changes_what_it_says(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(tuning.settings(SUITE)))
    params = load(tmp_path / "params.yaml")
    mini = load(ROOT / "params.yaml")
    for item in SUITE["instances"]:
        for variant, overrides in SUITE["variants"].items():
            entry = tuning.entry(item, variant, "stage1", overrides)
            found = params.resolve("stage1", entry)[0]
            wanted = {k: v for k, v in overrides.get("stage1", {}).items() if k not in ("generator", "discriminator")}
            assert found == mini.stage1.model_copy(update=wanted)


def test_nothing_is_tuned_on_held_out_instances() -> None:
    assert SUITE["instances"]
    assert all(item["seed"] < HELD_OUT for item in SUITE["instances"])


def test_variants_share_what_they_leave_alone() -> None:
    item, late, early = {"family": "car", "seed": 3}, {"stage2": {"kimg": 1.0}}, {"refine": {"draws": 2}}
    assert [tuning.entry(item, "late", stage, late) for stage in ("refine", "stage1", "stage2", "orbit")] == [
        "car3", "car3", "car3-late", "car3-late",
    ]  # fmt: skip
    assert [tuning.entry(item, "early", stage, early) for stage in ("prune", "refine", "stage1")] == [
        "car3", "car3-early", "car3-early",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "chosen", "said"),
    [
        ({"instances": [{"family": "car", "seed": HELD_OUT}]}, [], "held out"),
        ({"variants": {"base": {}, "odd": {"stage3": {"kimg": 1.0}}}}, [], r"variants\.odd: no stage reads stage3"),
        ({}, ["bse"], "variant bse: is not in"),
    ],
)
def test_a_faulty_suite_is_refused(change: dict[str, Any], chosen: list[str], said: str) -> None:
    tuning.check_suite(SUITE, list(SUITE["variants"]))
    with pytest.raises(UserError, match=said):
        tuning.check_suite(SUITE | change, chosen)


METRICS = {
    "scorers": {"CLIP": {"rows": {"3d": {"image": 80.0}, "truth": {"image": 90.0}}}},
    "truth": {"rows": {"3d": {"azimuth_right": 0.5, "silhouette_iou": 0.7}}},
    "distribution": {"rows": {"3d": {"kid": 1.0}, "2d": {"kid": 2.0}}},
    "diversity": {"rows": {"3d": {"lpips": 0.1}}, "refined": 0.2},
    "consistency": {"rows": {"3d": {"warp_error": 3.0}, "2d": {"warp_error": 4.0}}},
}


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[dict[str, Any], list[str]]:
    """A suite of one instance and two variants in a folder of its own, whose stages only note that they ran."""
    suite = SUITE | {"instances": SUITE["instances"][:1], "variants": {"base": {}, "late": {"stage2": {"kimg": 1.0}}}}
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(tuning.settings(suite)))
    ran: list[str] = []

    def command(words: list[str], check: bool) -> None:
        (stage,) = (name for name, (_, _, command) in tuning.STAGES.items() if command == words[1:-1])
        ran.append(f"{stage} {words[-1]}")
        folder = Path("runs") / words[-1] / stage
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "metrics.json").write_text(json.dumps(METRICS))

    monkeypatch.setattr(tuning.subprocess, "run", command)
    return suite, ran


def test_a_stage_is_kept_while_what_made_it_is_the_same(
    small: tuple[dict[str, Any], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    suite, ran = small
    (item,) = suite["instances"]
    params = load(Path("params.yaml"))

    def made(variant: str) -> list[str]:
        ran.clear()
        tuning.run(item, variant, suite["variants"][variant], params)
        return list(ran)

    name = f"{item['family']}{item['seed']}"
    assert made("base") == [f"{stage} {name}" for stage in tuning.STAGES]
    assert made("late") == [f"{stage} {name}-late" for stage in ("stage2", "orbit", "evaluate")]
    assert made("base") == made("late") == []
    assert Path(f"runs/{name}/stage1.made").read_text() == work_folder(identity("stage1", name, params)).name
    Path(f"runs/{name}/orbit.made").unlink()  # as a run of before left it
    assert made("base") == [f"orbit {name}"]
    params = params.model_copy(update={"orbit": params.orbit.model_copy(update={"truncation": 0.5})})
    assert made("base") == [f"orbit {name}"]  # what the stand-in wrote is the same, so nothing below is made again
    monkeypatch.setattr("cad.stages.code_digest", lambda module: "changed" if "refine" in module else "same")
    assert len(made("base")) == len(tuning.STAGES)


def test_the_table_holds_all_that_is_finished_and_nothing_else(small: tuple[dict[str, Any], list[str]]) -> None:
    suite, _ = small
    (item,) = suite["instances"]
    params = load(Path("params.yaml"))
    tuning.run(item, "late", suite["variants"]["late"], params)

    def rows() -> list[str]:
        return [line for line in tuning.table(suite, params).splitlines() if line.startswith("| ")][1:]

    assert rows() == [
        "| late | stage2.kimg 1.0 | 80.000 | 90.000 | 0.500 | 0.700 | 1.000 | 2.000 | 0.100 | 0.200 | 3.000 | 4.000 |"
    ]
    tuning.run(item, "base", {}, params)
    assert [row.split(" | ")[0] for row in rows()] == ["| base", "| late"]
    Path(f"runs/{item['family']}{item['seed']}/stage1.made").write_text("another")
    assert rows() == []
