"""The benchmark of training steps: whose time is whose, what is read from the profiles, and a row made for real."""

import argparse
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import train_step
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from step_clock import Clock, watched
from torch import Tensor

from cad.render.build import library
from cad.train import synthesis
from cad.train.stage2 import Stage2

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
SMALL = {
    "z_dim": 8, "w_dim": 8, "plane_resolution": 8, "plane_channels": 4, "channel_base": 64, "channel_max": 8,
    "decoder_hidden": 8, "feature_channels": 8, "raw_resolution": 16, "output_resolution": 32, "upsampler_channels": 8,
}  # fmt: skip


def ticking() -> Clock:
    """A clock on which each look takes a second."""
    looks = iter(range(10_000))
    return Clock(CPU, lambda: float(next(looks)))


def small() -> dict[str, Any]:
    profile = train_step.profile_settings("smoke")
    profile["generator"] |= SMALL
    profile["discriminator"] |= {"channel_base": 128, "channel_max": 8}
    profile["stage2"] |= {"patch_channel_base": 128, "patch_channel_max": 8, "upsampler_channels": 8}
    return profile


@pytest.mark.parametrize("name", ["mini", "smoke", "paper"])
def test_profiles_are_read_as_hydra_composes_them(name: str) -> None:
    with initialize_config_dir(str(ROOT / "experiments"), version_base=None):
        composed = OmegaConf.to_container(compose("config", overrides=[f"profile={name}"]), resolve=True)
    found = train_step.profile_settings(name)
    sections = ("camera", "generator", "discriminator", "stage1", "stage2", "runtime")
    assert {section: found[section] for section in sections} == {section: composed[section] for section in sections}


class Spend(torch.autograd.Function):
    """A part of a made-up step that looks at the clock as often as it is told, both ways."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, spend: Any, ahead: int, back: int) -> Tensor:
        ctx.spend, ctx.back = spend, back
        spend(ahead)
        return x * 2

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        ctx.spend(ctx.back)
        return gradient * 2, None, None, None


def test_each_part_gets_its_time_forward_and_backward() -> None:
    now = [0.0]

    def spend(seconds: float) -> None:
        now[0] += seconds

    clock = Clock(CPU, lambda: now[0])
    render = clock.part("rendering", lambda x: (Spend.apply(x, spend, 10, 20), None))
    judge = clock.part("discriminator", lambda x: Spend.apply(x, spend, 3, 5))
    penalty = clock.regulariser("R1", lambda x: judge(judge(x)).sum().backward())
    descend = clock.part("optimiser", lambda: spend(7))
    x = torch.ones(2, requires_grad=True)
    clock.start()
    spend(1)
    made, _ = render(x)
    loss = Spend.apply(judge(made), spend, 0.25, 0.5).sum()
    loss.backward()
    descend()
    penalty(x)
    spend(2)
    assert clock.stop() == {
        "rest": 1 + 0.25 + 0.5 + 2, "rendering": 30, "discriminator": 8, "optimiser": 7, "R1": 2 * (3 + 5),
    }  # fmt: skip
    clock.start()
    assert clock.stop() == {"rest": 0.0}


@pytest.mark.parametrize("stage", train_step.STAGES)
def test_every_part_of_a_real_step_is_found_and_nothing_is_left_wrapped(stage: str) -> None:
    job = train_step.make_job(stage, small(), {"r1_interval": 3, "density_interval": 2}, CPU)
    render, before = synthesis.render_view, [p.clone() for p in job.players.generator.parameters()]
    parts = train_step.seconds_of_parts(job, ticking(), 1)
    assert synthesis.render_view is render
    assert job.players.discriminator.__class__.__call__ is torch.nn.Module.__call__
    absent = {name for name in train_step.PARTS if parts[name] == 0}
    assert absent == ({"LPIPS"} if stage == "stage1" else set())
    assert parts["step"] == pytest.approx(sum(parts[name] for name in train_step.PARTS))
    assert not all(torch.equal(a, b) for a, b in zip(before, job.players.generator.parameters(), strict=True))


def test_a_watched_step_has_the_bits_of_any_other() -> None:
    plain, seen = (train_step.make_job("stage2", small(), {}, CPU) for _ in range(2))
    values = plain.step(0)
    with watched(ticking()):
        assert seen.step(0) == values
    for a, b in zip(plain.modules.values(), seen.modules.values(), strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def test_regularisers_are_due_in_every_timed_step_and_count_by_their_interval() -> None:
    changes = {"batch": 8, "r1_interval": 6, "density_interval": 4, "blur_kimg": 0.1}
    job = train_step.make_job("stage1", small(), changes, CPU)
    settings = job.settings
    steps = train_step.due_steps(settings, 3)
    assert steps == [24, 36, 48]  # 0.1 kimg are 12.5 steps of 8 images; 12 is the least common multiple
    assert all(step * settings.batch >= settings.blur_kimg * 1000 for step in steps)
    both = {"r1_interval": 1, "density_interval": 1}
    always = train_step.seconds_of_parts(train_step.make_job("stage1", small(), both, CPU), ticking(), 1)
    seldom = train_step.seconds_of_parts(
        train_step.make_job("stage1", small(), {name: 10 for name in both}, CPU), ticking(), 1
    )
    assert always["regularisation"] == pytest.approx(10 * seldom["regularisation"])
    assert {k: v for k, v in always.items() if k not in ("regularisation", "step")} == {
        k: v for k, v in seldom.items() if k not in ("regularisation", "step")
    }


@pytest.mark.skipif(library() is None, reason="needs a C++ compiler")
def test_the_renderings_of_a_step_are_timed_alone() -> None:
    job = train_step.make_job("stage2", small(), {}, CPU)
    assert isinstance(job, Stage2)
    assert all(train_step.rendering_alone(job, name, ticking(), 1) > 0 for name in ("fused", "reference"))


def row(step: float, rendering: float, **more: Any) -> dict[str, Any]:
    parts = dict.fromkeys(train_step.PARTS, 0.0) | {"rendering": rendering, "rest": step - rendering, "step": step}
    return {"parts": parts, "kimg": step * 125, "memory": 100.0, **more}


def test_the_prediction_is_amdahls() -> None:
    rows = {
        ("stage1", train_step.BEFORE): row(1.0, 0.5),
        ("stage1", train_step.AFTER): row(0.64, 0.1, alone={"reference": 0.4, "fused": 0.1}),
    }
    said = train_step.comparison(rows, "stage1")
    assert "rendering is 50 % of a step of 1.0000 s; by itself it becomes 4.0 times faster" in said
    assert f"a step of {0.5 + 0.5 / 4:.4f} s (1.60 times faster); measured 0.6400 s (1.56 times faster)" in said
    assert train_step.comparison({}, "stage1") == "not measured"


def namespace(**changes: Any) -> argparse.Namespace:
    given = {"device": "cpu", "steps": 2, "threads": 1, "clock": "wall", "variants": list(train_step.VARIANTS)}
    return argparse.Namespace(**given | changes)


def test_a_section_has_a_row_for_every_stage_and_variant_and_says_what_failed() -> None:
    def run(stage: str, variant: str) -> dict[str, Any]:
        return {"fault": "out of | memory"} if variant == "fused, compiled" else row(2.0, 0.5)

    text = train_step.section("mini", namespace(), run)
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len(table) == 2 + 2 * len(train_step.VARIANTS)
    assert len({line.count("|") for line in table}) == 1
    assert "| stage2 | fused, compiled | not measured: out of / memory |" in text
    assert "| stage1 | plain PyTorch, float32 | 2.0000 | 250.0 | 100 | 25 % |" in text


def test_the_papers_sizes_are_not_tried_on_a_cpu() -> None:
    text = train_step.section("paper", namespace(), lambda stage, variant: pytest.fail("tried"))
    assert "needs a GPU" in text


def test_other_sections_of_the_page_stay() -> None:
    first = train_step.merged("", ["## mini, A\n\nold\n", "## paper, CPU\n\nnone\n"])
    second = train_step.merged(first, ["## mini, A\n\nnew\n", "## mini, H\n\nfast\n"])
    headings = [line for line in second.splitlines() if line.startswith("## ")]
    assert headings == ["## mini, A", "## paper, CPU", "## mini, H"]
    assert "new" in second
    assert "old" not in second
    assert train_step.merged(second, []) == second
    third = train_step.merged(second, ["## paper, H\n\nfast\n"])
    assert "## paper, H" in third
    assert "## paper, CPU" not in third


def test_the_variants_are_settings_that_exist() -> None:
    for stage in train_step.STAGES:
        for _, changes in train_step.VARIANTS.values():
            assert set(changes) <= set(train_step.profile_settings("mini")[stage])


@pytest.mark.slow
def test_the_script_measures_the_smoke_profile(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks/train_step.py"), "--profile", "smoke", "--device", "cpu"]
    command += ["--steps", "2", "--threads", "1", "--no-write", "--variants", train_step.BEFORE, train_step.AFTER]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment, check=True)
    rows = [line.split(" | ") for line in ended.stdout.splitlines() if re.match(r"\| stage[12] ", line)]
    assert len({tuple(cells[:2]) for cells in rows}) == (4 if library() else 2)
    for cells in rows:
        if "not measured" not in cells[2]:
            step, kimg, memory = (float(cell) for cell in cells[2:5])
            batch = train_step.profile_settings("smoke")[cells[0].strip("| ")]["batch"]
            assert kimg == pytest.approx(step * 1000 / batch, rel=0.01)
            assert 10 < memory < 4000
            shares = [int(cell.strip(" %|")) for cell in cells[5:]]
            assert math.isclose(sum(shares), 100, abs_tol=len(shares))
    assert list(tmp_path.iterdir()) == []


def test_the_committed_page_has_both_profiles() -> None:
    text = train_step.TABLE.read_text()
    assert "\n## mini, " in text
    assert "\n## paper, " in text
    assert " | ".join(train_step.PARTS) in text
