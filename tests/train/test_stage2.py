import dataclasses
from pathlib import Path

import pytest
import torch
from PIL import Image

from cad.artifacts import Checkpoint
from cad.camera import pixel_centers
from cad.models.layers import initialise
from cad.render.image import crop
from cad.seeding import generator
from cad.train.data import load_reals
from cad.train.distill import Distiller
from cad.train.stage2 import Branch3D
from cad.train.synthesis import patch_3d, view_3d


@pytest.fixture
def branch(second, shape, judge, camera, prior, context, models):
    """Stage 2's players at 64 px, so that patches are crops."""
    wide = shape.model_copy(update={"output_resolution": 64})
    reals = load_reals(prior.folder, camera, 32)
    reals = dataclasses.replace(reals, images=reals.images.repeat_interleave(2, -1).repeat_interleave(2, -2))
    players = Distiller("stage2", second, wide, judge, camera, reals, context)
    branch = Branch3D(players, second, Path(models.lpips))
    initialise(branch.upsampler, generator("up"))
    for block in (b for plane in branch.upsampler.blocks for b in plane):
        torch.nn.init.normal_(block.out.weight, generator=generator("detail"))  # it starts silent, in stage 2
    return branch


def test_the_patch_discriminators_r1_is_lazy_too(branch, monkeypatch):
    branch.settings = branch.settings.model_copy(update={"patch_r1_interval": 3})
    descended = {}

    def descend(loss, optimizers, stage, name, step):
        descended[name, step] = loss.item()
        return 0.0

    monkeypatch.setattr("cad.train.stage2.descend", descend)
    values = [branch.penalty_step(step) for step in range(5)]
    assert [step for step in range(5) if "patch_r1" in values[step]] == [0, 3]
    for step in (0, 3):
        assert descended["patch r1", step] == pytest.approx(3 * values[step]["patch_r1"], rel=1e-6)


def test_equation_10_reaches_upsampler_and_trunk_but_never_the_2d_upsampler(branch):
    players = branch.players
    fakes = players.fakes(players.draws(0, "f"))
    losses = branch.losses(branch.patch(fakes, players.draws(0, "p")))
    losses["lpips"].backward()
    got = {name for name, p in players.generator.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert not {name for name in got if name.startswith("upsampler.")}
    assert {name.split(".")[0] for name in got} == {"mapping", "synthesis", "decoder"}
    assert all(p.grad.abs().sum() > 0 for p in branch.upsampler.parameters() if p.dim() > 1)
    assert all(p.grad is None for p in players.discriminator.parameters())


def test_patches_of_both_branches_lie_at_the_same_pixels(branch):
    players = branch.players
    lens, fakes = players.lens, players.fakes(players.draws(0, "f"))
    places = torch.tensor([[0, 32], [17, 5]])
    with torch.no_grad():
        lifted = branch.upsampler(fakes.planes, fakes.w)
        whole = view_3d(players.generator, lifted, fakes.cameras, lens).image
        patch = patch_3d(players.generator, lifted, fakes.cameras, places, 32, lens, None)
    torch.testing.assert_close(patch, crop(whole, places, 32), atol=2e-5, rtol=0)


def test_the_pixel_under_a_ray_is_the_pixel_of_the_crop():
    # A picture whose colours are the pixel centres themselves: what `crop` cuts out must be where `render_patch` looks.
    picture = pixel_centers(64).T.reshape(1, 2, 64, 64)
    cut = crop(picture, torch.tensor([[17, 5]]), 32)
    looked = (torch.tensor([17.0, 5.0]) + pixel_centers(32) * 32) / 64
    torch.testing.assert_close(cut[0].flatten(1).T, looked)


def test_stage_2_goes_on_from_stage_1_and_moves_both_branches(run2, tmp_path, context):
    out = run2("out")
    before, after = Checkpoint.open(tmp_path / "before", "stage1"), Checkpoint.open(out, "stage2")
    for group in ("generator", "generator_ema", "discriminator"):
        old, new = before.tensors(group), after.tensors(group)
        assert any(not torch.equal(old[k], new[k]) for k in old)
    assert after.state["stage1_images"] == 4
    # Adam's counts go on: 6 main and 2 density steps (0, 3) after stage 1's 2 and 1
    steps = after.tensors("optimizer_g")["generator.decoder.out.weight/step"].item()
    assert steps == 2 + 1 + 6 + 2
    assert any(v.abs().sum() > 0 for k, v in after.tensors("upsampler_ema").items() if k.endswith("out.weight"))
    _, values = context.tracker.logged[-1]
    assert {"lpips", "loss_patch_g", "loss_patch_d", "patch_r1", "loss_g", "loss_d", "r1"} <= set(values)
    assert "ada_p" not in values
    assert Image.open(out / "preview.png").size == (3 * 4 * 32, 4 * 32)


def test_stage_2_without_the_3d_branch_is_stage_1_going_on(run2):
    checkpoint = Checkpoint.open(run2("flat", branch_3d=False), "stage2")
    assert set(checkpoint.groups) == {"generator", "generator_ema", "discriminator", "optimizer_g", "optimizer_d"}
