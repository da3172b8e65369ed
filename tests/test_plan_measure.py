"""Measured rates: of what trains and renders here, on networks that take milliseconds, by a clock of our own."""

from pathlib import Path

import pytest
import torch

from cad import plan_measure
from cad.config import Params
from cad.config.compose import compose
from cad.plan import plan
from cad.plan_measure import measure_rates
from cad.train.stage1 import Stage1
from cad.train.stage2 import Stage2

ROOT = Path(__file__).parents[1]
TINY = {
    "input": {"resolution": 32},
    "generator": {
        "z_dim": 8, "w_dim": 8, "plane_resolution": 8, "plane_channels": 4, "channel_base": 64, "channel_max": 8,
        "decoder_hidden": 8, "feature_channels": 8, "raw_resolution": 16, "output_resolution": 32,
        "coarse_samples": 4, "fine_samples": 4, "upsampler_channels": 8,
    },
    "discriminator": {"channel_base": 128, "channel_max": 8, "mbstd_group": 2},
    "stage1": {"batch": 4, "density_points": 8, "r1_interval": 4, "density_interval": 2},
    "stage2": {
        "batch": 2, "density_points": 8, "r1_interval": 4, "density_interval": 2, "upsampler_channels": 8,
        "patch_size": 32, "patch_channel_base": 128, "patch_channel_max": 8,
    },
    "orbit": {"frames": 8, "seeds": 1, "batch": 2},
}  # fmt: skip


@pytest.fixture
def tiny(monkeypatch) -> Params:
    monkeypatch.chdir(ROOT)
    values = compose("mini", ["robot"], ROOT / "experiments").model_dump()
    values["runtime"] |= {"device": "cpu", "threads": 1, "renderer": "reference"}
    for section, changes in TINY.items():
        values[section] |= changes
    return Params.model_validate(values)


@pytest.fixture
def trained(tiny):
    """The costs of what trains and renders."""
    return [cost for cost in plan(tiny, [], {}) if cost.stage in ("stage1", "stage2", "orbit")]


@pytest.mark.skipif(not (ROOT / "data/weights/lpips").is_dir(), reason="needs the bundled weights")
def test_trainings_and_orbits_are_measured_by_steps_and_frames(tiny, trained, monkeypatch):
    """A step with every regulariser takes 5 s and a plain one 3 s, so that the mean is 3 + 2 / 2; 2 frames take 4 s."""
    steps, said = [], []
    for job in (Stage1, Stage2):
        step = job.step
        monkeypatch.setattr(job, "step", lambda self, k, step=step: steps.append((self.kind, k)) or step(self, k))

    def seconds(call, device):
        before = len(steps)
        call()
        return {(0,): 5.0, (1,): 3.0, (): 4.0}[tuple(k for _, k in steps[before:])]

    monkeypatch.setattr(plan_measure, "_seconds", seconds)
    rates, peaks = measure_rates(tiny, trained, said.append)
    assert rates == {"stage1": 4 / 4, "stage2": 2 / 4, "orbit": 2 * 2 / (4 + 4)}
    assert steps == [("stage1", k) for k in (0, 0, 1)] + [("stage2", k) for k in (0, 0, 1)]
    assert (peaks, said) == ({}, [])


def test_what_is_too_large_for_a_cpu_is_not_tried(tiny, trained, monkeypatch):
    monkeypatch.setattr(plan_measure, "CPU_LIMIT", 1000)
    said = []
    assert measure_rates(tiny, trained, said.append) == ({}, {})
    assert said == [f"not measured: {cost.stage} robot is too large for this CPU" for cost in trained]


def test_what_does_not_fit_is_said_and_the_rest_measured(tiny, trained, monkeypatch):
    def fails(params, entry, device):
        raise torch.OutOfMemoryError("CUDA out of memory")

    measures = plan_measure.MEASURES | {"stage1": fails, "stage2": fails, "orbit": lambda *_: ({"orbit": 2.0}, 7)}
    monkeypatch.setattr(plan_measure, "MEASURES", measures)
    said = []
    assert measure_rates(tiny, trained, said.append) == ({"orbit": 2.0}, {"orbit": 7})
    assert [line.partition(";")[0] for line in said] == [
        f"not measured: {s} robot: too little memory" for s in ("stage1", "stage2")
    ]


def test_the_papers_networks_are_too_large_for_a_cpu_and_minis_are_not():
    for profile, large in (("mini", False), ("single-gpu", True)):
        params = compose(profile, ["robot"], ROOT / "experiments")
        above = {**params.ancestors("orbit", "robot")}
        assert plan_measure._too_large(params, above, torch.device("cpu"), True) is large
