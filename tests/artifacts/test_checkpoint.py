import pytest
import torch
from safetensors.torch import save_file

from cad.artifacts import Checkpoint, digest, read_json, write_json
from cad.errors import UserError


def groups(value: float) -> dict[str, dict[str, torch.Tensor]]:
    shared = torch.full((2, 3), value)
    return {
        "generator": {"mapping.weight": shared, "bias": shared[0]},
        "generator_ema": {"mapping.weight": shared.T, "half": shared.half(), "count": torch.tensor(3)},
        "optimizer_g": {"0.exp_avg": shared},
    }


def write(folder, value: float, step: int) -> Checkpoint:
    return Checkpoint.write(folder, "stage1", groups(value), {"step": step, "ada_p": 0.25, "settings": {"z_dim": 8}})


def test_it_comes_back_as_it_was(tmp_path):
    write(tmp_path, 1.5, 7)
    checkpoint = Checkpoint.open(tmp_path, "stage1")
    assert checkpoint.state == {"step": 7, "ada_p": 0.25, "settings": {"z_dim": 8}}
    assert checkpoint.groups == ["generator", "generator_ema", "optimizer_g"]
    for group, members in groups(1.5).items():
        read = checkpoint.tensors(group)  # "generator" must not fetch "generator_ema"
        assert sorted(read) == sorted(members)
        for name, tensor in members.items():
            torch.testing.assert_close(read[name], tensor, rtol=0, atol=0)
            assert read[name].dtype == tensor.dtype


def test_equal_content_is_equal_bytes(tmp_path):
    write(tmp_path / "a", 1.0, 3)
    turned = {group: dict(reversed(members.items())) for group, members in reversed(groups(1.0).items())}
    Checkpoint.write(tmp_path / "b", "stage1", turned, {"settings": {"z_dim": 8}, "ada_p": 0.25, "step": 3})
    assert digest(tmp_path / "a") == digest(tmp_path / "b")


def test_without_optimisers_there_is_one_weights_file_and_neighbours_stay(tmp_path):
    write(tmp_path, 1.0, 1)
    (tmp_path / "preview.png").write_bytes(b"picture")
    Checkpoint.write(tmp_path, "stage1", {"generator_ema": {"w": torch.ones(1)}}, {"step": 2})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.safetensors", "preview.png", "state.json"]
    assert Checkpoint.open(tmp_path, "stage1").groups == ["generator_ema"]


def test_killed_at_any_rename_the_old_or_the_new_one_opens(tmp_path, kills):
    write(tmp_path, 1.0, 1)
    seen = []
    n = 1
    while kills.before_rename(n, lambda: write(tmp_path, 2.0, 2)):
        checkpoint = Checkpoint.open(tmp_path, "stage1")
        value = checkpoint.tensors("generator")["bias"][0].item()
        assert checkpoint.tensors("optimizer_g")["0.exp_avg"][0, 0].item() == value
        assert checkpoint.state["step"] == value
        seen.append(value)
        assert not list(tmp_path.glob("*.next"))
        write(tmp_path, 1.0, 1)
        n += 1
    assert seen == sorted(seen)
    assert {1.0, 2.0} == set(seen)
    assert Checkpoint.open(tmp_path, "stage1").state["step"] == 2
    names = sorted(p.name for p in tmp_path.iterdir() if not p.name.endswith(".tmp"))  # but for rests of killed writes
    assert names == ["model.safetensors", "state.json", "training.safetensors"]


def test_a_first_checkpoint_killed_half_way_does_not_exist(tmp_path, kills):
    assert not Checkpoint.exists(tmp_path)
    assert kills.before_rename(2, lambda: write(tmp_path / "c", 1.0, 1))
    assert (tmp_path / "c").is_dir()
    assert not Checkpoint.exists(tmp_path / "c")
    write(tmp_path / "c", 1.0, 1)
    assert Checkpoint.exists(tmp_path / "c")


@pytest.mark.parametrize("state", [{"kind": "x"}, {"files": {}}])
def test_reserved_names_are_refused(tmp_path, state):
    with pytest.raises(ValueError, match="cannot be called"):
        Checkpoint.write(tmp_path, "stage1", {}, state)
    with pytest.raises(ValueError, match="cannot be called"):
        Checkpoint.write(tmp_path, "stage1", {"a.b": {}}, {})


def rewrite(folder, **values) -> None:
    write_json(folder / "state.json", {**read_json(folder / "state.json"), **values})


MODEL, TRAINING = "model.safetensors", "training.safetensors"
BROKEN = {
    "no state": (lambda f: (f / "state.json").unlink(), "state.json", "missing"),
    "state cut": (lambda f: (f / "state.json").write_text("{"), "state.json", "not valid JSON"),
    "schema": (lambda f: rewrite(f, schema=0), "state.json", "schema version 0"),
    "kind": (lambda f: rewrite(f, kind="stage2"), "state.json", "a checkpoint of 'stage2'"),
    "files": (lambda f: rewrite(f, files={"../model.safetensors": "0"}), "state.json", "'files'"),
    "groups": (lambda f: rewrite(f, groups=[1]), "state.json", "'groups'"),
    "no model": (lambda f: (f / MODEL).unlink(), MODEL, "missing"),
    "no training": (lambda f: (f / TRAINING).unlink(), TRAINING, "missing"),
    "model cut": (lambda f: (f / MODEL).write_bytes((f / MODEL).read_bytes()[:-5]), MODEL, "truncated"),
    "model pickled": (lambda f: torch.save({}, f / MODEL), MODEL, "no safetensors file"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_checkpoint_is_named_when_it_is_opened(tmp_path, case):
    damage, file, fault = BROKEN[case]
    write(tmp_path, 1.0, 1)
    damage(tmp_path)
    with pytest.raises(UserError) as error:
        Checkpoint.open(tmp_path, "stage1")
    text = str(error.value)
    assert str(tmp_path / file) in text
    assert fault in text
    assert "\n" not in text


def test_other_weights_under_the_same_name_are_found(tmp_path):
    write(tmp_path, 1.0, 1)
    save_file({"generator.bias": torch.zeros(3)}, tmp_path / MODEL)
    with pytest.raises(UserError, match=r"model\.safetensors: damaged"):
        Checkpoint.open(tmp_path, "stage1").tensors("generator")


def test_an_unknown_group_is_one_line(tmp_path):
    write(tmp_path, 1.0, 1)
    with pytest.raises(UserError, match="'discriminator', only generator, generator_ema"):
        Checkpoint.open(tmp_path, "stage1").tensors("discriminator")
