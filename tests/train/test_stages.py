import numpy as np
import pytest
import torch
from PIL import Image

from cad.artifacts import Checkpoint, digest
from cad.errors import UserError
from cad.models.generator import Generator
from cad.render.build import library
from cad.render.choice import use_renderer
from cad.seeding import generator
from cad.train import loop
from cad.train.data import load_reals
from cad.train.distill import PLAIN, Distiller
from cad.train.stage1 import Stage1
from cad.train.stage2 import Stage2, train_stage2


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


def test_stage_2_shows_plain_images():
    assert PLAIN == (0.0, 0.0)
