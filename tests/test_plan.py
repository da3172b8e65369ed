"""What a run costs, against totals computed by hand from the profiles' numbers."""

import re
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest
from huggingface_hub import constants
from rich.console import Console

from cad.config import Params
from cad.config.compose import compose
from cad.errors import UserError
from cad.plan import (
    Cost,
    Parameters,
    check_disk,
    checkpoint_bytes,
    denoising_steps,
    gigabytes,
    model_sources,
    plan,
    plan_entries,
    prior_work,
    refine_work,
    training_bytes,
    training_images,
    weight_bytes,
)
from cad.plan_report import parse_rates, show_plan, table_rows

EXPERIMENTS = Path(__file__).parents[1] / "experiments"


@pytest.fixture(scope="module")
def mini() -> Params:
    return compose("mini", ["robot"], EXPERIMENTS)


@pytest.fixture(scope="module")
def paper() -> Params:
    return compose("paper", ["robot"], EXPERIMENTS)


def costs(params: Params) -> dict[str, Cost]:
    return {cost.stage: cost for cost in plan(params, [], {})}


def test_the_paper_samples_four_million_times(paper):
    """10 000 poses x 4 samples x 50 steps, with condition and without (Sec. 4, Zero-1-to-3's sampler)."""
    assert prior_work(paper.prior) == {"zero123": 10_000 * 4 * 50 * 2}


def test_the_paper_refines_by_either_family(paper):
    """ControlNet: 0.8 of 50 steps; DeepFloyd: 0.3 of 80 and 0.7 of 50; all twice, for guidance."""
    assert refine_work(paper.refine, 10_000) == {"refiner": 10_000 * 40 * 2}
    other = paper.refine.model_copy(update={"kind": "deepfloyd-if"})
    assert refine_work(other, 10_000) == {"deepfloyd_stage1": 10_000 * 24 * 2, "deepfloyd_stage2": 10_000 * 35 * 2}


def test_at_guidance_1_a_latent_diffusion_model_runs_one_branch(paper):
    """Halves ControlNet's count; DeepFloyd runs both whatever the guidance."""
    one = paper.refine.controlnet_depth.model_copy(update={"guidance": 1.0})
    assert refine_work(paper.refine.model_copy(update={"controlnet_depth": one}), 10_000) == {"refiner": 10_000 * 40}
    two = paper.refine.deepfloyd_if
    low = two.model_copy(update={"stage1": two.stage1.model_copy(update={"guidance": 1.0})})
    found = refine_work(paper.refine.model_copy(update={"kind": "deepfloyd-if", "deepfloyd_if": low}), 10_000)
    assert found["deepfloyd_stage1"] == 10_000 * 24 * 2


def test_mini_by_hand(mini):
    """320 poses x 3 samples x 16 steps; 6 draws of 13 of 19 steps; 12 and 3.6 kimg; 2 branches x 6 seeds x 120."""
    found = costs(mini)
    assert found["prior"].work == {"zero123": 30_720}
    assert found["refine"].work == {"refiner": 49_920}
    assert found["stage1"].work == {"stage1": 12_000}
    assert found["stage2"].work == {"stage2": 3_600}
    assert found["orbit"].work == {"orbit": 1_440}
    assert all(found[stage].work == {} for stage in ("input", "prune", "evaluate"))


def test_minis_pictures_on_disk(mini):
    """320 x 3 and 320 x 6 pictures of 64 x 64 x 3 bytes; orbit frames hold RGBA and two bytes of depth."""
    found, sheets = costs(mini), costs(mini)["input"].disk
    assert found["prior"].disk - sheets == 960 * 12_288
    assert found["refine"].disk - sheets == 1_920 * 12_288
    assert found["orbit"].disk - sheets == 1_440 * 64 * 64 * 6


def test_disabled_refinement_costs_nothing_and_passes_one_draw(mini):
    off = mini.model_copy(update={"refine": mini.refine.model_copy(update={"enabled": False})})
    assert refine_work(off.refine, 320) == {}
    assert costs(off)["refine"].disk < costs(mini)["refine"].disk / 2


@pytest.mark.parametrize(("steps", "strength", "run"), [(50, 0.8, 40), (19, 0.684, 13), (80, 0.3, 24), (4, 1.0, 4)])
def test_strength_runs_a_share_of_the_steps(steps, strength, run):
    assert denoising_steps(steps, strength) == run


def test_training_runs_whole_steps():
    assert training_images(0.01, 4) == 12


def test_checkpoints_hold_weights_averages_and_moments():
    """G: weights, average, two moments. D: weights, two moments. Four bytes each."""
    sizes = Parameters(generator=10, discriminator=100, upsampler=1000, patches=10_000)
    assert checkpoint_bytes(sizes, branch_3d=False) == 4 * (4 * 10 + 3 * 100)
    assert checkpoint_bytes(sizes, branch_3d=True) == 4 * (4 * 1010 + 3 * 10_100)
    assert training_bytes(sizes, branch_3d=False) == 4 * (5 * 10 + 4 * 100)


def test_two_variants_share_what_is_above_them(mini):
    values = mini.model_dump()
    values["stage2s"]["robot-flat"] = {"stage1": "robot", "branch_3d": False}
    values["orbits"]["robot-flat"] = {"stage2": "robot-flat"}
    values["evaluations"]["robot-flat"] = {"orbit": "robot-flat"}
    both = Params.model_validate(values)
    pairs = plan_entries(both, [])
    assert pairs.count(("prior", "robot")) == 1
    assert [entry for stage, entry in pairs if stage == "stage2"] == ["robot", "robot-flat"]
    assert ("stage2", "robot-flat") not in plan_entries(both, ["robot"])


def test_an_unknown_evaluation_is_refused(mini):
    with pytest.raises(UserError, match=r"evaluations.robto.*did you mean robot"):
        plan_entries(mini, ["robto"])


def test_hours_need_every_rate():
    cost = Cost("refine", "x", {"deepfloyd_stage1": 3_600, "deepfloyd_stage2": 7_200}, 0, 0)
    assert cost.hours({"deepfloyd_stage1": 1.0}) is None
    assert cost.hours({"deepfloyd_stage1": 1.0, "deepfloyd_stage2": 4.0}) == pytest.approx(1.5)


def test_rates_are_parsed():
    assert parse_rates(["zero123=40", "stage1=2.5"]) == {"zero123": 40.0, "stage1": 2.5}


@pytest.mark.parametrize("text", ["zero=4", "zero123", "zero123=fast", "zero123=0", "zero123=-1", "stage1=nan"])
def test_bad_rates_are_one_line(text):
    with pytest.raises(UserError, match=re.escape(f"--rate {text}")):
        parse_rates([text])


class Usage(NamedTuple):
    total: int
    used: int
    free: int


def test_a_run_that_does_not_fit_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(shutil, "disk_usage", lambda place: Usage(10**9, 0, 1_000_000_000))
    some = [Cost("prior", "x", {}, 0, 300_000_000), Cost("orbit", "x", {}, 0, 150_000_000)]
    assert check_disk(some, 100_000_000, tmp_path) == 1_000_000_000
    with pytest.raises(UserError, match=r"needs 1\.0 GB .*900 MB, weights to fetch 100 MB\), and 1\.0 GB are free"):
        check_disk(some, 100_000_001, tmp_path)


def test_local_weights_are_measured_and_hub_ids_looked_up(tmp_path):
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "model.safetensors").write_bytes(b"12345")
    (tmp_path / "config.json").write_bytes(b"{}")
    known, missing = weight_bytes([str(tmp_path), "Intel/dpt-large", "nobody/nothing"])
    assert known[str(tmp_path)] == 5
    assert missing == known["Intel/dpt-large"] > 1e9
    assert "nobody/nothing" not in known


@pytest.mark.parametrize(("scorer", "size"), [("ViT-L-14-quickgelu", 1.7e9), ("ViT-B-32-quickgelu", 0.6e9)])
def test_open_clips_architectures_have_the_size_of_their_weights(scorer, size, monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert weight_bytes([scorer]) == ({scorer: size}, size)


def test_the_papers_scorers_count(paper):
    known, _ = weight_bytes(model_sources(paper, []))
    assert sum(known[scorer.model] for scorer in paper.evaluate.scorers.values()) == 1.7e9 + 0.6e9


def test_what_the_hubs_cache_holds_is_not_fetched_again(monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    commit = "a6f597a30f7b82c51704746581f9a4e41421e878"
    source = f"timm/vit_base_patch32_clip_224.openai@{commit}"
    folder = tmp_path / "models--timm--vit_base_patch32_clip_224.openai/snapshots" / commit
    folder.mkdir(parents=True)
    assert weight_bytes([source])[1] == 0.6e9
    for name, size, left in (
        ("another.bin", 590_000_000, 600_000_000),
        ("open_clip_config.json", 1_000_000, 599_000_000),
        ("open_clip_model.safetensors", 570_000_000, 0),
    ):
        with (folder / name).open("wb") as file:
            file.truncate(size)
        assert weight_bytes([source]) == ({source: 600_000_000}, left), name
    assert weight_bytes([source.replace(commit, "0" * 40)])[1] == 0.6e9, "of another commit"


def test_work_that_was_begun_needs_no_room_again(monkeypatch, tmp_path):
    monkeypatch.setattr(shutil, "disk_usage", lambda place: Usage(10**9, 0, 500_000_000))
    some = [Cost("prior", "x", {}, 0, 300_000_000)]
    assert check_disk(some, 0, tmp_path, 100_000_000) == 600_000_000
    with pytest.raises(UserError, match="needs 600 MB"):
        check_disk(some, 0, tmp_path, 99_999_999)


def test_the_paper_needs_its_own_models(paper):
    sources = model_sources(paper, [])
    assert {paper.models.zero123, paper.models.controlnet, paper.models.clip} <= set(sources)
    assert paper.models.deepfloyd_stage1 not in sources  # its refiner is not chosen


def test_the_table_says_what_is_bounded_and_what_is_unknown(mini):
    rows = {row[0]: row for row in table_rows(plan(mini, [], {}), {"zero123": 30_720 / 3600}, {"prior": 2 * 10**9})}
    assert rows["prior"][2:5] == ["30,720 zero123 UNet evaluations", "1.00", "2.0 GB measured"]
    assert rows["refine"][2] == "≤ 49,920 refiner UNet evaluations"
    assert rows["refine"][3] == "—"
    assert rows["stage1"][4].startswith("> ")
    assert rows["orbit"][4] == rows["evaluate"][4] == "not measured"


def test_the_whole_plan_is_shown(mini, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    console = Console(width=200, record=True)
    show_plan(mini, [], ["zero123=100", "refiner=100"], False, console)
    text = console.export_text()
    for word in ("30,720", "49,920", "12,000", "zero123: 100.0", "without orbit, stage1, stage2"):
        assert word in text


def test_gigabytes():
    assert (gigabytes(1_500_000_000), gigabytes(2_340_000)) == ("1.5 GB", "2 MB")
