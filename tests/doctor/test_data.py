"""What `cad doctor` says of weights and inputs that are there, gone, damaged, or recorded nowhere."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from cad.config import Params
from cad.doctor import data, services
from cad.doctor.findings import BROKEN, MISSING, OK, UNKNOWN, Finding
from tests.doctor.conftest import ROOT, only


def weights(params: Params, name: str) -> Finding:
    return only(data.examine_weights(params, data.read_record()), name)


def test_dvcs_own_record_is_understood(monkeypatch: pytest.MonkeyPatch, params: Params) -> None:
    """By the file of data/ that nobody trains anew; others may be ahead of data.dvc while somebody works on them."""
    monkeypatch.chdir(ROOT)
    record = data.read_record()
    assert record is not None
    assert record.files
    found = only(data.examine_weights(params, record), "models.lpips")
    assert (found.state, found.says) == (OK, f"{params.models.lpips}, as data.dvc records")


def test_what_is_there_and_as_recorded_is_ok(project: Params) -> None:
    record = data.read_record()
    found = [*data.examine_weights(project, record), *data.examine_inputs(project, record), services.pulled(record)]
    assert [finding.state for finding in found] == [OK] * 9
    assert found[0].says == "data/weights/zero123, as data.dvc records"
    assert services.remote(record).state == OK


def test_missing_weights_are_pulled_where_they_are_recorded(project: Params) -> None:
    Path("data/weights/clip/unet/model.safetensors").unlink()
    found = weights(project, "models.clip")
    assert (found.state, found.remedy, found.needed) == (MISSING, "run `dvc pull data.dvc`", True)
    assert found.says == "data/weights/clip/unet/model.safetensors is missing"
    Path("data/weights/clip/unet").rmdir()
    Path("data/weights/clip").rmdir()
    assert weights(project, "models.clip").says == "data/weights/clip is missing"
    assert weights(project, "models.clip").remedy == "run `dvc pull data.dvc`"
    pulled = services.pulled(data.read_record())
    assert (pulled.state, pulled.needed) == (MISSING, True)
    assert pulled.says == "1 of 9 files are missing, first data/weights/clip/unet/model.safetensors"
    assert weights(project, "models.refiner").state == OK


def test_one_changed_byte_is_found(project: Params) -> None:
    path = Path("data/weights/refiner/unet/model.safetensors")
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    found = weights(project, "models.refiner")
    assert (found.state, found.needed) == (BROKEN, True)
    assert found.says == f"{path} is not what data.dvc records"
    assert found.remedy.startswith(f"remove {path} and run `dvc pull data.dvc`")
    assert services.pulled(data.read_record()).state == BROKEN


def test_unrecorded_weights_are_opened(project: Params) -> None:
    Path("mine").mkdir()
    own = project.model_copy(update={"models": project.models.model_copy(update={"clip": "mine"})})
    assert weights(own, "models.clip").says == "mine holds no safetensors file"
    save_file({"x": np.zeros(100, np.float32)}, "mine/model.safetensors")
    assert weights(own, "models.clip").state == OK
    assert weights(own, "models.clip").says == "mine, readable; no digest is recorded"
    Path("mine/model.safetensors").write_bytes(Path("mine/model.safetensors").read_bytes()[:200])
    found = weights(own, "models.clip")
    assert (found.state, found.needed) == (BROKEN, True)
    assert "mine/model.safetensors: truncated or no safetensors file" in found.says


def test_what_comes_from_the_network_is_unknown_and_a_lost_folder_is_not(project: Params) -> None:
    places = {"zero123": "kxic/zero123-xl", "clip": "data/weights/gone", "refiner": "x"}
    models = project.models.model_copy(update=places)
    scorer = project.evaluate.scorers["judge"].model_copy(
        update={"kind": "open_clip", "model": "ViT-B-32-quickgelu", "pretrained": "openai"}
    )
    evaluate = project.evaluate.model_copy(update={"scorers": {"CLIP": scorer}})
    own = project.model_copy(update={"models": models, "evaluate": evaluate})
    assert weights(own, "models.zero123").state == weights(own, "CLIP").state == UNKNOWN
    assert weights(own, "models.clip").state == weights(own, "models.refiner").state == MISSING
    assert "put the weights there" in weights(own, "models.clip").remedy


def test_missing_inputs_say_what_brings_them(project: Params) -> None:
    Path("data/objects/robot/prompt.txt").unlink()
    found = only(data.examine_inputs(project, data.read_record()), "robot")
    assert (found.state, found.remedy) == (MISSING, "run `dvc pull data.dvc`")
    Path("data.dvc").unlink()
    assert "correct objects.robot" in only(data.examine_inputs(project, data.read_record()), "robot").remedy


@pytest.mark.parametrize("text", ["", "outs: 3", "outs:\n- path: data\n", "{", "\xff"])
def test_an_unreadable_record_is_none(project: Params, text: str) -> None:
    Path("data.dvc").write_text(text)
    assert data.read_record() is None
    assert services.pulled(None).needed


def test_a_record_whose_list_is_nowhere_is_unknown(project: Params) -> None:
    Path("store/files/md5/12/3456.dir").write_text("[{]")
    record = data.read_record()
    assert record is not None
    assert services.pulled(record).state == UNKNOWN
    assert weights(project, "models.clip").says.endswith("readable; no digest is recorded")
