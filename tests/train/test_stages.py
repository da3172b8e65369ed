import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cad.artifacts import Checkpoint, digest
from cad.camera import near_far, pixel_centers
from cad.errors import UserError
from cad.models.generator import Generator
from cad.models.layers import initialise
from cad.render.build import library
from cad.render.choice import use_renderer
from cad.render.image import crop
from cad.render.reference import Sampling
from cad.seeding import generator
from cad.train import loop
from cad.train.data import load_reals
from cad.train.distill import PLAIN, Distiller
from cad.train.load import load_generator, untrained_generator
from cad.train.stage1 import Stage1, train_stage1
from cad.train.stage2 import Branch3D, Stage2, train_stage2
from cad.train.synthesis import patch_3d, view_3d

CPU = torch.device("cpu")


@pytest.fixture
def run1(first, shape, judge, camera, prior, context, tmp_path):
    """A function that trains stage 1 into a folder of this name."""

    def run(name, **changes):
        out = tmp_path / name
        out.mkdir(exist_ok=True)
        train_stage1(first.model_copy(update=changes), shape, judge, camera, prior.folder, out, context)
        return out

    return run


@pytest.fixture
def run2(second, camera, models, prior, context, tmp_path, run1):
    """A function that trains stage 2 into a folder of this name, after a stage 1 that is made once."""

    def run(name, **changes):
        before = tmp_path / "before"
        if not before.is_dir():
            run1("before", kimg=0.004)
        out = tmp_path / name
        out.mkdir(exist_ok=True)
        train_stage2(second.model_copy(update=changes), camera, models, before, prior.folder, out, context)
        return out

    return run


def interrupted(monkeypatch, job, at):
    """Make the job die in this step, as a kill would."""
    step = job.step

    def dying(self, number):
        if number == at:
            raise KeyboardInterrupt
        return step(self, number)

    monkeypatch.setattr(job, "step", dying)
    return lambda: monkeypatch.setattr(job, "step", step)


GROUPS1 = {"generator", "generator_ema", "discriminator", "optimizer_g", "optimizer_d"}
GROUPS2 = GROUPS1 | {"upsampler", "upsampler_ema", "patch_discriminator", "optimizer_upsampler", "optimizer_patch"}


def same_run(a, b, kind, groups):
    one, other = Checkpoint.open(a, kind), Checkpoint.open(b, kind)
    assert set(one.groups) == set(other.groups) == groups
    for group in groups:
        left, right = one.tensors(group), other.tensors(group)
        assert left.keys() == right.keys()
        assert all(torch.equal(left[k], right[k]) for k in left), group
    assert (a / "history.csv").read_bytes() == (b / "history.csv").read_bytes()
    assert digest(a) == digest(b)  # whatever DVC would hash, preview.png and state.json included


NEEDS_COMPILER = pytest.mark.skipif(library() is None, reason="needs a C++ compiler")


@pytest.fixture(params=[pytest.param("fused", marks=NEEDS_COMPILER), "reference"])
def rendering(request):
    """Each renderer in turn."""
    with use_renderer(request.param):
        yield request.param


@pytest.mark.parametrize(("at", "precision"), [(4, "float32"), (5, "bfloat16")])
def test_stage_1_resumes_to_the_same_bits(run1, monkeypatch, tmp_path, at, precision, rendering):
    monkeypatch.setattr(loop, "LOG_STEPS", 2)  # windows that a checkpoint cuts in two
    whole = run1("whole", precision=precision)
    repair = interrupted(monkeypatch, Stage1, at)
    with pytest.raises(KeyboardInterrupt):
        run1("parts", precision=precision)
    repair()
    parts = tmp_path / "parts"
    state = Checkpoint.open(parts, "stage1").state
    assert (state["step"], state["renderer"], state["device"]) == (3, rendering, "cpu")
    (parts / "model.safetensors.next").write_bytes(b"half a checkpoint")  # a kill in the midst of the next one
    run1("parts", precision=precision)
    same_run(whole, parts, "stage1", GROUPS1)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_stage_2_resumes_to_the_same_bits(run2, monkeypatch, tmp_path, precision, rendering):
    monkeypatch.setattr(loop, "LOG_STEPS", 2)
    whole = run2("whole", precision=precision, plane_precision=precision)
    repair = interrupted(monkeypatch, Stage2, 4)
    with pytest.raises(KeyboardInterrupt):
        run2("parts", precision=precision, plane_precision=precision)
    repair()
    run2("parts", precision=precision, plane_precision=precision)
    same_run(whole, tmp_path / "parts", "stage2", GROUPS2)


@NEEDS_COMPILER
def test_a_training_that_the_other_renderer_began_is_refused(run1, monkeypatch, tmp_path):
    repair = interrupted(monkeypatch, Stage1, 4)
    with use_renderer("fused"), pytest.raises(KeyboardInterrupt):
        run1("parts")
    repair()
    before = digest(tmp_path / "parts")
    with pytest.raises(UserError, match=r"parts: was begun with renderer fused, but renderer is reference now"):
        run1("parts")
    assert digest(tmp_path / "parts") == before


def test_a_finished_training_is_left_as_it_is(run1, monkeypatch):
    out = run1("done")
    before = digest(out)
    monkeypatch.setattr(Stage1, "step", lambda self, step: pytest.fail("trained again"))
    run1("done")
    assert digest(out) == before


def test_previews_on_the_way_change_no_file_of_the_result(run1, context):
    """They come by the clock; the last one is drawn from the last weights, whatever was drawn before."""
    seldom = run1("seldom")
    before = len(context.tracker.images)
    often = run1("often", preview_seconds=1e-6)
    assert len(context.tracker.images) - before == 6 + 1
    assert digest(seldom) == digest(often)


def test_stage_1_moves_every_part_and_records_itself(run1, context, shape):
    out = run1("out")
    state = Checkpoint.open(out, "stage1").state
    assert (state["step"], state["images"], state["object"], state["kept_poses"]) == (6, 12, "thing", 5)
    assert state["settings"]["generator"] == shape.model_dump()
    assert 0 <= state["ada"]["p"] <= 1
    rows = (out / "history.csv").read_text().splitlines()
    assert {"loss_g", "loss_d", "d_real_sign", "d_fake_sign", "r1", "density", "ada_p"} <= set(rows[0].split(","))
    assert "sec" not in rows[0]
    step, values = context.tracker.logged[-1]
    assert step == 6
    assert values["sec_per_kimg"] > 0
    assert values["peak_memory_mb"] > 0
    picture = Image.open(out / "preview.png")
    assert picture.size == (2 * 4 * 32, 4 * 32)  # blocks raw and 2D, four azimuths; four latents
    assert np.array_equal(context.tracker.images[-1][1], np.asarray(picture))


def test_stage_1_trains_all_weights(first, shape, judge, camera, prior, context):
    players = Distiller("stage1", first, shape, judge, camera, load_reals(prior.folder, camera, 32), context)
    after = dict([*players.generator.named_parameters(), *players.discriminator.named_parameters()])
    before = {name: parameter.clone() for name, parameter in after.items()}
    values = Stage1(players, first, camera).step(0)
    unmoved = {name for name in before if torch.equal(before[name], after[name])}
    assert not unmoved
    assert values["blur_px"] == 2.0
    # the first step's moving average is the generator itself: nothing of the random start is kept
    assert all(
        torch.equal(a, b) for a, b in zip(players.average.parameters(), players.generator.parameters(), strict=True)
    )


def test_regularisers_are_due_every_interval_and_weigh_as_much_as_if_they_were_always(
    first, shape, judge, camera, prior, context, monkeypatch
):
    settings = first.model_copy(update={"r1_interval": 3, "density_interval": 5})
    players = Distiller("stage1", settings, shape, judge, camera, load_reals(prior.folder, camera, 32), context)
    descended = {}
    # descend(loss, optimizers, stage, name, step)
    monkeypatch.setattr("cad.train.distill.descend", lambda loss, *rest: descended.update({rest[-2:]: loss.item()}))
    recorded = {}
    for step in range(7):
        values = players.penalty_step(step, PLAIN) | players.density_step(step, {}, lambda planes, w: [planes])
        recorded |= {(name, step): value for name, value in values.items()}
    assert set(recorded) == set(descended) == {("r1", 0), ("r1", 3), ("r1", 6), ("density", 0), ("density", 5)}
    weights = {"r1": 3, "density": 5 * settings.density_weight}
    for (name, step), loss in descended.items():
        assert loss == pytest.approx(weights[name] * recorded[name, step], rel=1e-6)
        assert loss > 0


def test_steps_do_not_touch_the_global_generator(first, shape, judge, camera, prior, context):
    players = Distiller("stage1", first, shape, judge, camera, load_reals(prior.folder, camera, 32), context)
    state = torch.random.get_rng_state()
    Stage1(players, first, camera).step(0)
    assert torch.equal(state, torch.random.get_rng_state())


def test_pose_noise_touches_labels_only_when_asked(first, shape, judge, camera, prior, context):
    reals = load_reals(prior.folder, camera, 32)
    plain = Distiller("stage1", first, shape, judge, camera, reals, context)
    noisy = Distiller("stage1", first, shape, judge.model_copy(update={"pose_noise": 0.1}), camera, reals, context)
    assert plain.label(reals.labels, generator("n")) is reals.labels
    changed = noisy.label(reals.labels, generator("n"))
    assert 0.05 < (changed - reals.labels)[:, :12].std() < 0.2
    assert torch.equal(changed[:, 16:], reals.labels[:, 16:])


def test_a_diverged_training_names_loss_and_step(run1, monkeypatch, tmp_path):
    monkeypatch.setattr("cad.train.stage1.generator_loss", lambda logits: logits.mean() * float("nan"))
    with pytest.raises(UserError, match=r"stage1: the loss `generator` is nan at step 0; .*lower stage1\.lr_"):
        run1("bad")
    assert not (tmp_path / "bad/state.json").exists()


def test_a_generator_that_is_no_longer_finite_is_divergence_too(run1, monkeypatch, rendering):
    planes = Generator.planes
    monkeypatch.setattr(Generator, "planes", lambda self, w: planes(self, w) * float("nan"))
    with pytest.raises(UserError, match=r"stage1: the loss `discriminator` is nan at step 0; training diverged"):
        run1("bad")


def test_a_batch_that_does_not_divide_into_groups_is_refused(run1):
    with pytest.raises(UserError, match=r"stage1\.batch: 3 does not divide .*discriminator\.mbstd_group = 2"):
        run1("odd", batch=3)


def test_a_patch_that_does_not_fit_is_refused(run2):
    with pytest.raises(UserError, match=r"stage2\.patch_size: 64 px .*generator\.output_resolution = 32"):
        run2("large", patch_size=64)


def test_stage_2_needs_a_stage_1_checkpoint_and_its_camera(second, camera, models, prior, context, tmp_path, run1):
    arguments = (models, tmp_path / "before", prior.folder, tmp_path / "out", context)
    with pytest.raises(UserError, match=r"before/state\.json"):
        train_stage2(second, camera, *arguments)
    run1("before", kimg=0.002)
    with pytest.raises(UserError, match=r"before: was trained with another camera"):
        train_stage2(second, camera.model_copy(update={"fov_deg": 40.0}), *arguments)
    without = models.model_copy(update={"lpips": str(tmp_path / "none.safetensors")})
    with pytest.raises(UserError, match=r"none\.safetensors: the LPIPS trunk is missing"):
        train_stage2(second, camera, without, *arguments[1:])


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
    assert set(checkpoint.groups) == GROUPS1


def test_stage_2_shows_plain_images():
    assert PLAIN == (0.0, 0.0)


def sampling():
    return Sampling(*near_far(2.0, 0.7), 0.7, 6, 6)


def test_a_loaded_generator_renders_the_average(run2, prior):
    out = run2("out")
    loaded = load_generator(out, "stage2", CPU)
    stored = Checkpoint.open(out, "stage2").tensors("generator_ema")
    assert all(torch.equal(stored[k], v) for k, v in loaded.generator.state_dict().items())
    w, cameras = loaded.w(0, 0.7), prior.poses.cameras(2.0)[:2]
    flat, deep = (loaded.render(loaded.subject(branch, w), cameras, sampling()) for branch in ("2d", "3d"))
    assert (flat.image.shape, flat.opacity.shape, flat.depth.shape) == ((2, 3, 32, 32), (2, 1, 16, 16), (2, 1, 16, 16))
    assert (deep.image.shape, deep.opacity.shape) == ((2, 3, 32, 32), (2, 1, 32, 32))
    assert not flat.image.requires_grad
    one = loaded.render(loaded.subject("3d", w), cameras[1:], sampling()).image
    torch.testing.assert_close(one, deep.image[1:], atol=1e-5, rtol=0)
    assert torch.equal(loaded.w(3, 1.0), loaded.w(3, 1.0))
    assert not torch.equal(loaded.w(3, 1.0), loaded.w(4, 1.0))
    torch.testing.assert_close(loaded.w(3, 0.0), loaded.w(4, 0.0))


def test_the_untrained_control_has_other_weights_of_the_same_shapes(run2):
    out = run2("out")
    trained, fresh = load_generator(out, "stage2", CPU), untrained_generator(out, "stage2", 5, CPU)
    again = untrained_generator(out, "stage2", 5, CPU)
    left, right = trained.generator.state_dict(), fresh.generator.state_dict()
    assert {k: v.shape for k, v in left.items()} == {k: v.shape for k, v in right.items()}
    assert not torch.equal(left["synthesis.start.value"], right["synthesis.start.value"])
    assert all(torch.equal(v, again.generator.state_dict()[k]) for k, v in right.items())


def test_stage_1_loads_too_and_damage_is_named(run1):
    out = run1("out", kimg=0.004)
    loaded = load_generator(out, "stage1", CPU)
    assert loaded.upsampler is None
    with pytest.raises(UserError, match=r"state\.json: a checkpoint of 'stage1'.*stage2 run"):
        load_generator(out, "stage2", CPU)
    state = json.loads((out / "state.json").read_text())
    assert not {"time", "host", "clock"} & set(state)
    del state["settings"]["generator"]["z_dim"]
    (out / "state.json").write_text(json.dumps(state))
    with pytest.raises(UserError, match=r"state\.json: its settings are another version's \(z_dim: field required\)"):
        load_generator(out, "stage1", CPU)
    (out / "model.safetensors").write_bytes((out / "model.safetensors").read_bytes()[:100])
    with pytest.raises(UserError, match=r"model\.safetensors"):
        load_generator(out, "stage1", CPU)
