"""Original checkpoints that hold code, are cut off or of another architecture: one line, and nothing is written."""

import pickle
import sys
from types import ModuleType

import pytest
import torch
from original_checkpoint import original_state, tiny_architecture

from cad.errors import UserError
from cad.prior import zero123_checkpoint as checkpoint


@pytest.fixture(scope="module")
def architecture(zero123):
    return tiny_architecture(zero123)


@pytest.fixture
def state(zero123):
    return original_state(zero123)


@pytest.fixture
def file(tmp_path, state):
    path = tmp_path / "zero123.ckpt"
    torch.save({"state_dict": state, "global_step": 3, "epoch": 1}, path)
    return path


class Code:
    def __reduce__(self):
        return (print, ("this ran",))


def refused(file, out, architecture):
    with pytest.raises(UserError) as fault:
        checkpoint.convert(file, out, architecture)
    assert not list(out.parent.glob("out*"))
    assert "\n" not in str(fault.value)
    assert str(file) in str(fault.value)
    return str(fault.value)


CALLBACK = "pytorch_lightning.callbacks.model_checkpoint"


def lightning(monkeypatch, path, state, module, name):
    """A file as Lightning before 1.5 wrote it: the states of callbacks are keyed by their class."""
    kind = type(name, (), {"__module__": module})
    with monkeypatch.context() as there:
        parts = module.split(".")
        for k in range(1, len(parts) + 1):
            there.setitem(sys.modules, ".".join(parts[:k]), ModuleType(parts[k - 1]))
        setattr(sys.modules[module], name, kind)
        seen = {"best_model_score": torch.tensor(0.5), "best_model_path": "last.ckpt", "monitor": "val/loss_simple_ema"}
        torch.save({"state_dict": state, "pytorch-lightning_version": "1.4.2", "callbacks": {kind: seen}}, path)
    return path


def test_a_file_of_lightning_before_1_5_names_the_class_of_its_callback(state, tmp_path, monkeypatch):
    file = lightning(monkeypatch, tmp_path / "genuine.ckpt", state, CALLBACK, "ModelCheckpoint")
    assert CALLBACK not in sys.modules
    allowed = set(torch.serialization.get_safe_globals())
    found = checkpoint.read_checkpoint(file)
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items())
    assert set(torch.serialization.get_safe_globals()) == allowed, "and nothing stays allowed"


@pytest.mark.parametrize(
    ("module", "name"),
    [(CALLBACK, "Other"), ("pytorch_lightning.callbacks.early_stopping", "EarlyStopping"), ("posixpath", "join2")],
)
def test_every_other_class_is_refused(state, architecture, tmp_path, monkeypatch, module, name):
    file = lightning(monkeypatch, tmp_path / "other.ckpt", state, module, name)
    assert f"its pickle holds code ({module}.{name})" in refused(file, tmp_path / "out", architecture)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_the_pickle_is_refused_and_not_run(state, architecture, tmp_path, capsys, zipped):
    path = tmp_path / "evil.ckpt"
    torch.save({"state_dict": state, "callbacks": Code()}, path, _use_new_zipfile_serialization=zipped)
    assert "its pickle holds code (print)" in refused(path, tmp_path / "out", architecture)
    assert capsys.readouterr().out == ""


def test_a_bare_pickle_with_code_is_refused(architecture, tmp_path, capsys):
    path = tmp_path / "evil.ckpt"
    path.write_bytes(pickle.dumps(Code(), protocol=2))
    assert "pickle holds code" in refused(path, tmp_path / "out", architecture)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("kept", [0, 1, 100, 0.5, 0.999])
def test_a_truncated_file_is_named(file, architecture, tmp_path, kept):
    whole = file.read_bytes()
    file.write_bytes(whole[: kept if isinstance(kept, int) else int(kept * len(whole))])
    assert "is truncated" in refused(file, tmp_path / "out", architecture)


def test_no_file_no_tensors_and_a_place_that_is_taken(file, architecture, tmp_path):
    assert "cannot be read" in refused(tmp_path / "gone.ckpt", tmp_path / "out", architecture)
    bare = tmp_path / "bare.ckpt"
    torch.save({"state_dict": {"step": 3}}, bare)
    assert "holds no state_dict of tensors" in refused(bare, tmp_path / "out", architecture)
    (tmp_path / "taken").mkdir()
    with pytest.raises(UserError, match="taken: is there already"):
        checkpoint.convert(file, tmp_path / "taken", architecture)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"cc_projection.weight": None}, "cc_projection.weight is missing"),
        ({"model.diffusion_model.input_blocks.2.0.op.weight": None}, "input_blocks.2.0.op.weight is missing"),
        ({"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(8, 4, 3, 3)}, "instead of [8, 8, 3, 3]"),
        ({"model.diffusion_model.input_blocks.9.0.op.weight": torch.zeros(1)}, "9.0.op.weight has no place"),
        ({"first_stage_model.decoder.up.7.block.0.norm1.bias": torch.zeros(1)}, "has no place"),
        ({"first_stage_model.encoder.mid.attn_1.q.weight": torch.zeros(8)}, "is of another architecture"),
        ({"cond_stage_model.model.visual.proj": torch.zeros(3, 5)}, "gives [5, 3] instead of [12, 16]"),
        ({"cond_stage_model.model.visual.transformer.resblocks.0.attn.in_proj_weight": torch.zeros(16, 16)}, "in_proj"),
        ({"alphas_cumprod": torch.linspace(1, 0, 1000)}, "another noise schedule"),
    ],
)  # fmt: skip
def test_another_architecture_is_named(state, architecture, tmp_path, change, says):
    path = tmp_path / "other.ckpt"
    kept = {name: tensor for name, tensor in (state | change).items() if tensor is not None}
    torch.save({"state_dict": kept}, path)
    assert says in refused(path, tmp_path / "out", architecture)


def test_a_full_disk_is_said_before_anything_is_written(file, architecture, tmp_path, monkeypatch):
    usage = checkpoint.shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(UserError, match=r"out: needs 0\.0 GB"):
        checkpoint.convert(file, tmp_path / "out", architecture)
