"""What trainings compute in other precisions, and compiled."""

from pathlib import Path

import pytest
import torch

from cad.errors import UserError
from cad.render.reference import strata
from cad.train.data import load_reals
from cad.train.distill import Distiller, jitter
from cad.train.stage1 import Stage1
from cad.train.stage2 import Branch3D, Stage2

HALF = {"precision": "bfloat16", "plane_precision": "bfloat16"}


@pytest.fixture
def made(first, second, shape, judge, camera, prior, context, models):
    """A function that makes a stage's job, with settings changed."""
    reals = load_reals(prior.folder, camera, 32)

    def make(stage, clamp=None, **changes):
        bounded = {"activation_clamp": clamp}
        sizes = shape.model_copy(update=bounded), judge.model_copy(update=bounded), camera, reals, context
        settings = (first if stage == "stage1" else second).model_copy(update=changes)
        players = Distiller(stage, settings, *sizes)
        if stage == "stage1":
            return Stage1(players, settings, camera)
        return Stage2(players, Branch3D(players, settings, Path(models.lpips)), settings, camera, 0)

    return make


def test_planes_are_float32_whatever_their_precision_and_round_only_where_asked(made):
    w = torch.ones(2, 8)
    planes = {name: made("stage1", plane_precision=name).players.planes(w) for name in ("float32", "bfloat16")}
    again = made("stage1", precision="bfloat16").players
    assert all(each.dtype == torch.float32 for each in planes.values())
    assert torch.equal(again.planes(w), planes["float32"])
    assert torch.equal(again.planes(w), again.generator.planes(w))
    difference = (planes["bfloat16"] - planes["float32"]).abs().max() / planes["float32"].abs().max()
    assert 1e-5 < difference < 0.03


def test_the_3d_branch_lifts_planes_in_their_precision(made):
    w, planes = torch.ones(2, 8), torch.rand(2, 3, 4, 8, 8)
    whole, half = (made("stage2", plane_precision=name).branch for name in ("float32", "bfloat16"))
    for branch in (whole, half):
        for block in (block for plane in branch.upsampler.blocks for block in plane):
            torch.nn.init.ones_(block.out.weight)
    a, b = whole.lifted(planes, w), half.lifted(planes, w)
    assert b.dtype == torch.float32
    assert 1e-5 < (a - b).abs().max() / a.abs().max() < 0.03


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_float16_needs_clamps_and_then_trains(made, stage):
    half = {"precision": "float16", "plane_precision": "float16"}
    with pytest.raises(UserError, match=rf"{stage}: float16 overflows without generator\.activation_clamp"):
        made(stage, **half)
    job = made(stage, clamp=256.0, **half)
    before = [p.clone() for module in job.modules.values() for p in module.parameters()]
    values = job.step(0)
    after = [p for module in job.modules.values() for p in module.parameters()]
    assert not any(torch.equal(a, b) for a, b in zip(before, after, strict=True) if a.dim() > 1)
    exact = made(stage, clamp=256.0).step(0)
    assert values.keys() == exact.keys()
    assert values["loss_d"] == pytest.approx(exact["loss_d"], rel=0.01)
    assert values["r1"] == pytest.approx(exact["r1"], rel=0.1)


def test_discriminators_get_no_gradient_in_the_generators_step(made):
    job = made("stage2")
    draws = job.players.draws(0, "fakes")
    fakes = job.players.fakes(draws)
    job._generator_step(0, fakes, job.branch.patch(fakes, draws))
    judges = [*job.players.discriminator.parameters(), *job.branch.patches.parameters()]
    assert all(p.requires_grad and p.grad is None for p in judges)
    assert any(p.grad is not None for p in job.branch.upsampler.parameters())


def test_jitter_goes_on_in_the_steps_stream_on_a_cpu(made):
    draws = made("stage1").players.draws(0, "fakes")
    assert jitter(draws, torch.device("cpu")) is draws


@pytest.mark.gpu
def test_jitter_of_a_gpu_is_drawn_there_and_depends_on_the_stream_alone(made):
    players, device = made("stage1").players, torch.device("cuda")
    found = [jitter(players.draws(step, "fakes"), device) for step in (0, 0, 1)]
    assert all(each.device.type == "cuda" for each in found)
    first, again, other = (strata(torch.zeros(2, 3, device=device), 4, each) for each in found)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_a_compiled_step_is_the_eager_one(made, stage, monkeypatch):
    """Traced, without generating code; R1 has second derivatives, which compiled networks don't."""
    traced = []

    def compile_(self, dynamic):
        traced.append(type(self).__name__)
        self._compiled_call_impl = torch.compile(self._call_impl, backend="aot_eager", fullgraph=True)

    plain = made(stage, **HALF).step(0)
    monkeypatch.setattr(torch.nn.Module, "compile", compile_)
    job = made(stage, compile=True, **HALF)
    values = job.step(0)
    torch._dynamo.reset()
    expected = ["Synthesis", "Upsampler2d", "Discriminator"]
    assert traced == expected + (["PlaneUpsampler", "PatchDiscriminator"] if stage == "stage2" else [])
    assert values == {name: pytest.approx(value, rel=0.02, abs=1e-4) for name, value in plain.items()}
    assert not any(hasattr(module, "_orig_mod") for module in job.modules.values())  # checkpoints keep their names
    assert "synthesis.start.value" in job.modules["generator"].state_dict()
