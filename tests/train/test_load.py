import json

import pytest
import torch

from cad.artifacts import Checkpoint
from cad.camera import near_far
from cad.errors import UserError
from cad.render.reference import Sampling
from cad.train.load import load_generator, untrained_generator

CPU = torch.device("cpu")


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
