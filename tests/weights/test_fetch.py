"""Fetching and verifying, from a small server that speaks the endpoints of the hub which its client asks for."""

import hashlib
import json
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hub import COMMIT, FILES, OTHER, TENSORS, Hub
from huggingface_hub import constants, try_to_load_from_cache

from cad.errors import UserError
from cad.weights import fetch as fetching
from cad.weights.table import Model, find

MODEL = Model(
    "tiny", "some/tiny", COMMIT, "MIT", 0.1, "a test", "models.zero123",
    ("model_index.json", "unet/*"),
)  # fmt: skip


def refused(model: Model, lock: Path, folder: Path | None = None) -> str:
    with pytest.raises(UserError) as fault:
        fetching.fetch(model, folder, lock, lambda line: None)
    assert "\n" not in str(fault.value)
    return str(fault.value)


def test_wanted_files_come_and_are_recorded(hub: Hub, lock: Path) -> None:
    said: list[str] = []
    place = fetching.fetch(MODEL, None, lock, said.append)
    there = {path.relative_to(place).as_posix() for path in place.rglob("*") if path.is_file()}
    assert there == {"model_index.json", "unet/diffusion_pytorch_model.fp16.safetensors"}  # neither pickle nor README
    recorded = json.loads(lock.read_text())["models"]["tiny"]
    assert (recorded["repo"], recorded["commit"]) == ("some/tiny", COMMIT)
    assert recorded["files"]["model_index.json"] == {
        "size": 20, "sha256": hashlib.sha256(FILES["model_index.json"]).hexdigest()
    }  # fmt: skip
    assert said == [f"some/tiny@{COMMIT}: 2 files, 0.00 GB"]
    assert fetching.verify(MODEL, None, lock) == ("ok", str(place))


def test_what_is_there_is_not_downloaded_again_and_a_cut_download_goes_on(
    hub: Hub, lock: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)  # what was received is kept by whole chunks
    hub.cut = 7000
    fetching.fetch(MODEL, tmp_path / "here", lock, lambda line: None)  # the client itself tries again
    ranges = [given for kind, path, given in hub.asked if kind == "GET" and path.endswith("safetensors")]
    assert ranges[0] is None
    assert ranges[1] in {f"bytes={kept}000-" for kept in range(1, 8)}
    hub.asked.clear()
    fetching.fetch(MODEL, tmp_path / "here", lock, lambda line: None)
    assert not [path for kind, path, _ in hub.asked if kind == "GET" and "/resolve/" in path]
    assert (tmp_path / "here/unet/diffusion_pytorch_model.fp16.safetensors").read_bytes() == TENSORS


def test_a_branch_is_recorded_as_the_commit_behind_it(hub: Hub, lock: Path) -> None:
    fetching.fetch(replace(MODEL, revision="main"), None, lock, lambda line: None)
    assert json.loads(lock.read_text())["models"]["tiny"]["commit"] == COMMIT
    source = fetching.source(MODEL, lock)
    assert source == f"some/tiny@{COMMIT}"
    hub.asked.clear()
    found = try_to_load_from_cache("some/tiny", "model_index.json", revision=COMMIT)  # as a stage looks for it
    assert Path(str(found)).read_bytes() == FILES["model_index.json"]
    assert not hub.asked


def test_pickles_alone_are_refused_and_the_one_wanted_is_not(hub: Hub, lock: Path) -> None:
    del hub.files["unet/diffusion_pytorch_model.fp16.safetensors"]
    assert "holds no safetensors of the wanted names" in refused(MODEL, lock)
    assert not lock.exists()
    place = fetching.fetch(replace(MODEL, files=("unet/*",), pickle=True), None, lock, lambda line: None)
    assert (place / "unet/diffusion_pytorch_model.bin").read_bytes() == b"a pickle"


def test_a_network_without_weights_of_the_wanted_names_is_refused(hub: Hub, lock: Path) -> None:
    """Else a mistake in the list would show only when a stage looks for the part."""
    hub.files |= {"vae/config.json": b"{}", "vae/diffusion_pytorch_model.safetensors": TENSORS}
    wanted = replace(MODEL, files=(*MODEL.files, "vae/*.json", "vae/*.fp16.safetensors"))
    assert "holds no safetensors of the wanted names in vae, and pickles are not fetched" in refused(wanted, lock)
    assert not [path for _, path, _ in hub.asked if "/resolve/" in path]


def test_no_licence_no_repository_no_revision(hub: Hub, lock: Path) -> None:
    said = refused(replace(MODEL, repo="other/tiny"), lock)
    assert "https://huggingface.co/other/tiny is gone or hidden" in said
    assert f"has no revision {OTHER}" in refused(replace(MODEL, revision=OTHER), lock)
    hub.gated = True
    said = refused(replace(MODEL, licence="a licence"), lock)
    assert "its licence (a licence) is not accepted by your account" in said
    assert "accept it at https://huggingface.co/some/tiny" in said
    assert not lock.exists()


def test_no_network_says_what_to_place_where(
    hub: Hub, lock: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # the client waits longer before each of its retries
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # the discard port: nothing answers
    said = refused(MODEL, lock)
    assert said.startswith("tiny: cannot be fetched")
    assert f"model_index.json, unet/* of https://huggingface.co/some/tiny/tree/{COMMIT} in a FOLDER" in said
    assert said.endswith("name it in models.zero123")
    assert capfd.readouterr().err == ""  # not a word of the retries
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "cannot be fetched (OfflineModeIsEnabled" in refused(MODEL, lock)


def test_too_little_disk_is_said_before_the_download(hub: Hub, lock: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    assert "tiny needs 0.0 GB and 0.0 GB are free" in refused(MODEL, lock)
    assert not [path for _, path, _ in hub.asked if "/resolve/" in path]


def test_other_bytes_under_the_recorded_commit_are_refused(hub: Hub, lock: Path, tmp_path: Path) -> None:
    fetching.fetch(MODEL, tmp_path / "first", lock, lambda line: None)
    before = lock.read_text()
    hub.files["model_index.json"] = b'{"_class_name": "B"}'
    assert "model_index.json is not the recorded one" in refused(MODEL, lock, tmp_path / "second")
    assert lock.read_text() == before


def test_verify_names_the_damaged_and_the_missing_file(hub: Hub, lock: Path, tmp_path: Path) -> None:
    assert fetching.verify(MODEL, None, lock) == ("not recorded", "")
    place = fetching.fetch(MODEL, tmp_path / "here", lock, lambda line: None)
    assert fetching.verify(MODEL, None, lock) == ("absent", "")  # not in the cache
    assert fetching.verify(MODEL, place, lock) == ("ok", str(place))
    weights = place / "unet/diffusion_pytorch_model.fp16.safetensors"
    weights.write_bytes(TENSORS[:-4])
    with pytest.raises(UserError, match=r"fp16\.safetensors: is damaged or another file; remove it"):
        fetching.verify(MODEL, place, lock)
    weights.unlink()
    with pytest.raises(UserError, match=r"tiny: unet/.* is missing; run `cad weights fetch tiny`"):
        fetching.verify(MODEL, place, lock)
    lock.write_text('{"schema": 9, "models": {}}')
    with pytest.raises(UserError, match="has schema 9"):
        fetching.verify(MODEL, place, lock)


@pytest.mark.parametrize("name", ["loftr", "u2net", "lpips-alexnet"])
def test_what_no_hub_holds_says_where_it_is_and_goes(name: str, lock: Path) -> None:
    model = find(name)
    said = refused(model, lock)
    assert (model.url and model.url in said and model.place in said) or "dvc pull" in said
