"""A packed run: what it keeps, that equal runs are equal bytes, and which faults are told apart."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from ruamel.yaml import YAML
from safetensors.torch import load_file

from cad.artifacts import Checkpoint, Orbit, digest, write_json
from cad.demo import files as subject
from cad.demo.files import MANIFEST, chosen_places, file_names, half, open_demo, open_demos, pack_run, replace
from cad.errors import UserError

ROOT = Path(__file__).parents[2]
Runs = dict[str, Path]


@pytest.fixture
def packed(finished: Runs, tmp_path: Path) -> Path:
    pack_run("mug", finished, tmp_path / "demo/mug")
    return tmp_path / "demo/mug"


@pytest.fixture
def copied(finished: Runs, tmp_path: Path) -> Runs:
    """The run again, to be spoilt."""
    shutil.copytree(finished["input"].parent, tmp_path / "runs/mug")
    return {stage: tmp_path / "runs/mug" / stage for stage in finished}


def test_the_weights_are_the_averaged_ones_in_float16_and_no_others(packed: Path, finished: Runs) -> None:
    kept, whole = load_file(packed / "weights/model.safetensors"), load_file(finished["stage2"] / "model.safetensors")
    wanted = {name for name in whole if name.split(".")[0] in ("generator_ema", "upsampler_ema")}
    assert set(kept) == wanted
    assert len({name.split(".")[0] for name in wanted}) == 2
    for name, value in kept.items():
        assert value.dtype == torch.float16
        np.testing.assert_array_equal(value.numpy(), whole[name].numpy().astype(np.float16))  # numpy rounds apart


def test_the_checkpoint_says_what_it_is_and_keeps_nothing_of_the_training(packed: Path) -> None:
    state = json.loads((packed / "weights/state.json").read_text())
    assert state["precision"] == "float16"
    assert set(state["settings"]) == {"generator", "camera", "stage2"}
    assert "window" not in state
    assert file_names(packed / "weights") == ["model.safetensors", "state.json"]


def test_frames_are_the_orbit_s_own_at_eight_azimuths(packed: Path, finished: Runs) -> None:
    demo, orbit = open_demo(packed), Orbit.open(finished["orbit"])
    assert demo.rows == [("3d", 0), ("3d", 1), ("2d", 0), ("2d", 1), ("truth", 0)]
    assert np.degrees(demo.azimuth) % 360 == pytest.approx([180, 225, 270, 315, 0, 45, 90, 135])
    assert np.degrees(demo.polar) == pytest.approx(70)
    np.testing.assert_array_equal(demo.row("2d", 1)[3], orbit.frame("2d", 1, 3))
    strip = np.asarray(Image.open(finished["evaluate"] / "views/truth.png"))
    np.testing.assert_array_equal(demo.row("truth", 0)[5], strip[:, 5 * 32 : 6 * 32])


def test_places_are_an_eighth_of_the_orbit_apart() -> None:
    assert chosen_places(120) == [0, 15, 30, 45, 60, 75, 90, 105]
    assert chosen_places(2) == [0, 0, 0, 0, 1, 1, 1, 1]


def test_input_scores_and_video_are_copies(packed: Path, finished: Runs) -> None:
    assert digest(packed / "metrics.json") == digest(finished["evaluate"] / "metrics.json")
    assert digest(packed / "videos/3d-seed-0000.mp4") == digest(finished["orbit"] / "3d-seed-0000.mp4")
    assert len(open_demo(packed).videos) == 1
    assert open_demo(packed).reference.prompt == "a mug with a broad handle"


def test_of_many_seeds_the_first_are_packed(finished: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cad.demo.files.SEEDS", 1)
    pack_run("mug", finished, tmp_path / "mug")
    demo = open_demo(tmp_path / "mug")
    assert demo.rows == [("3d", 0), ("2d", 0), ("truth", 0)]


def test_equal_runs_are_equal_bytes_and_a_packed_one_is_replaced(packed: Path, finished: Runs, tmp_path: Path) -> None:
    before = digest(packed)
    (packed / "stale.txt").write_text("of an earlier version")
    pack_run("mug", finished, packed)
    pack_run("mug", finished, tmp_path / "again")
    assert digest(packed) == digest(tmp_path / "again") == before
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_run_whose_truth_is_unknown_is_packed_without_it(copied: Runs, tmp_path: Path) -> None:
    (copied["evaluate"] / "views/truth.png").unlink()
    pack_run("mug", copied, tmp_path / "mug")
    assert open_demo(tmp_path / "mug").rows[-1] == ("2d", 1)


def test_values_beyond_float16_are_refused_and_integers_stay() -> None:
    assert half({"steps": torch.tensor([70_000])}, Path("x"))["steps"].item() == 70_000
    with pytest.raises(UserError, match=r"^x: the averaged weight is not finite in float16; "):
        half({"weight": torch.tensor([1.0, 70_000.0])}, Path("x"))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda runs: shutil.rmtree(runs["stage2"]), "stage2: is no finished stage; run `dvc repro stage2@mug` first"),
        (lambda runs: (runs["orbit"] / "3d-seed-0000.mp4").write_bytes(b"another"), "evaluate was made from another"),
        (lambda runs: (runs["input"] / "note.txt").write_text("changed"), "orbit was made from another"),
        (
            lambda runs: (runs["evaluate"] / "lineage.json").unlink(),
            "evaluate: is no finished stage; run `dvc repro evaluate@mug` first",
        ),
    ],
    ids=["missing stage", "another orbit", "another input", "no lineage"],
)
def test_what_is_not_one_whole_run_is_refused_and_the_packed_one_stays(
    packed: Path, copied: Runs, spoil, said: str
) -> None:
    before = digest(packed)
    spoil(copied)
    with pytest.raises(UserError, match=said):
        pack_run("mug", copied, packed)
    assert digest(packed) == before


def test_a_fault_while_packing_leaves_nothing_half_packed(copied: Runs, packed: Path) -> None:
    before = digest(packed)
    checkpoint = Checkpoint.open(copied["stage2"], "stage2")
    wild = {name: value * 1e9 for name, value in checkpoint.tensors("generator_ema").items()}
    shutil.rmtree(copied["stage2"])
    Checkpoint.write(copied["stage2"], "stage2", {"generator_ema": wild}, checkpoint.state)
    write_json(copied["stage2"] / "lineage.json", {"schema": 1, "stage": "stage2", "inputs": {}})
    for stage, upstream in (("orbit", "stage2"), ("evaluate", "stage2"), ("evaluate", "orbit")):
        path = copied[stage] / "lineage.json"
        lineage = json.loads(path.read_text())
        write_json(path, lineage | {"inputs": lineage["inputs"] | {upstream: digest(copied[upstream])}})
    with pytest.raises(UserError, match="not finite in float16"):
        pack_run("mug", copied, packed)
    assert digest(packed) == before
    assert [path.name for path in packed.parent.iterdir()] == ["mug"]


def test_a_folder_half_packed_is_no_packed_run(packed: Path) -> None:
    for name in ("cup.tmp", "mug.former.tmp"):
        shutil.copytree(packed, packed.parent / name)
    assert [demo.folder.name for demo in open_demos(packed.parent, [])] == ["mug"]
    with pytest.raises(UserError, match=r"cup\.tmp: missing; packed are mug;"):
        open_demos(packed.parent, ["cup.tmp"])
    shutil.rmtree(packed)
    with pytest.raises(UserError, match=r"demo: missing; run `dvc pull data.dvc`, or pack a finished run"):
        open_demos(packed.parent, [])


def test_a_packed_run_is_there_until_the_new_one_is(packed: Path, tmp_path: Path) -> None:
    before = digest(packed)
    with pytest.raises(FileNotFoundError):
        replace(packed, tmp_path / "nowhere", packed.with_name("mug.former.tmp"))
    assert digest(packed) == before
    assert [path.name for path in packed.parent.iterdir()] == ["mug"]


def test_a_pack_killed_between_the_renames_is_made_good_even_if_the_next_one_fails(
    packed: Path, finished: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = digest(packed)
    packed.rename(packed.with_name("mug.former.tmp"))
    with monkeypatch.context() as patch:
        patch.setattr(subject, "write_demo", lambda *_: (_ for _ in ()).throw(UserError("disk: full; tidy up")))
        with pytest.raises(UserError, match="full"):
            pack_run("mug", finished, packed)
    assert digest(packed) == before
    pack_run("mug", finished, packed)
    assert [path.name for path in packed.parent.iterdir()] == ["mug"]


@pytest.mark.parametrize("name", ["notes.txt", "weights/extra.safetensors"])
def test_a_file_that_the_manifest_does_not_name_is_refused(packed: Path, name: str) -> None:
    (packed / name).write_text("of another version")
    with pytest.raises(UserError) as refused:
        open_demo(packed)
    assert str(refused.value).startswith(f"{packed / name}: is no file of the packed run; remove {packed} and run")


def test_a_strip_of_another_orbit_is_refused(copied: Runs, tmp_path: Path) -> None:
    path = copied["evaluate"] / "views/truth.png"
    Image.fromarray(np.asarray(Image.open(path))[:, :-32]).save(path)
    with pytest.raises(UserError, match=r"truth\.png: is 224 x 32 pixels, not the 256 x 32 of 8 views"):
        pack_run("mug", copied, tmp_path / "mug")
    assert not list(tmp_path.glob("mug*"))


@pytest.mark.parametrize("name", ["weights/model.safetensors", "frames.png", "metrics.json", "videos/3d-seed-0000.mp4"])
@pytest.mark.parametrize("fault", ["missing", "damaged"])
def test_a_broken_file_is_named_with_the_way_to_get_it_back(packed: Path, name: str, fault: str) -> None:
    path = packed / name
    path.unlink() if fault == "missing" else path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(UserError) as refused:
        open_demo(packed)
    assert str(refused.value).startswith(f"{path}: {fault}")
    assert str(refused.value).endswith(f"; remove {packed} and run `dvc pull data.dvc`")


@pytest.mark.parametrize(
    "change",
    [{"schema": 2}, {"rows": 3}, {"orbit": {"frames": 8}}, {"azimuth": "east"}, {"files": ["frames.png"]}],
    ids=lambda change: next(iter(change)),
)
def test_a_manifest_of_another_form_is_one_line(packed: Path, change: dict) -> None:
    path = packed / MANIFEST
    write_json(path, json.loads(path.read_text()) | change)
    with pytest.raises(UserError, match=r"run `dvc pull data.dvc`$") as refused:
        open_demo(packed)
    assert str(refused.value).startswith(f"{path}: ")
    assert "\n" not in str(refused.value)


def test_all_packed_runs_are_opened_or_the_named_ones(packed: Path) -> None:
    shutil.copytree(packed, packed.parent / "cup")
    assert [demo.folder.name for demo in open_demos(packed.parent, [])] == ["cup", "mug"]
    assert [demo.folder.name for demo in open_demos(packed.parent, ["mug"])] == ["mug"]
    with pytest.raises(UserError, match=r"jug: missing; packed are cup, mug"):
        open_demos(packed.parent, ["mug", "jug"])


def test_without_packed_runs_the_remedy_is_to_pull_them(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nothing: missing; run `dvc pull data.dvc`"):
        open_demos(tmp_path / "nothing", [])


def test_no_stage_depends_on_the_packed_runs() -> None:
    """So that packing a run makes no stage stale, neither by its data nor by the code that packs."""
    stages = YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"].values()
    deps = [Path(dep) for stage in stages for dep in stage.get("do", stage)["deps"]]
    for demo in (Path("data/demo/robot/metrics.json"), Path("cad/demo/files.py"), Path("cad/cli/demo.py")):
        assert not [dep for dep in deps if dep == demo or dep in demo.parents]
    assert [dep for dep in deps if dep.parts[0] == "data"], "the reader is not blind"
