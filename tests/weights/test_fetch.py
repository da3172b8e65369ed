"""Fetching and verifying, from a small server that speaks the endpoints of the hub which its client asks for."""

import hashlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlparse

import numpy as np
import pytest
from huggingface_hub import constants, try_to_load_from_cache
from safetensors.numpy import save

from cad.errors import UserError
from cad.weights import fetch as fetching
from cad.weights.table import Model, find

COMMIT = "0123456789abcdef0123456789abcdef01234567"
OTHER = "f" * 40
TENSORS = save({"weight": np.arange(5000, dtype=np.float32)})
FILES = {
    "config.json": b'{"_class_name": "A"}',
    "unet/diffusion_pytorch_model.fp16.safetensors": TENSORS,
    "unet/diffusion_pytorch_model.bin": b"a pickle",
    "README.md": b"not wanted",
}
MODEL = Model(
    "tiny", "some/tiny", COMMIT, "MIT", 0.1, "a test", "models.zero123",
    ("config.json", "unet/*"),
)  # fmt: skip


@dataclass
class Hub:
    """What the server holds and was asked for."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=lambda: dict(FILES))
    gated: bool = False
    cut: int | None = None  # bytes after which a download breaks off, once
    asked: list[tuple[str, str, str | None]] = field(default_factory=list)


def handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *given: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.do_GET()

        def answer(self, status: int, body: bytes, **headers: str) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def do_GET(self) -> None:
            path = urlparse(self.path).path
            hub.asked.append((self.command, path, self.headers.get("Range")))
            if not path.removeprefix("/api/models").startswith("/some/tiny"):
                return self.answer(404, b"{}", X_Error_Code="RepoNotFound")
            if match := re.fullmatch(r"/api/models/some/tiny/revision/(\w+)", path):
                return self.answer(200, json.dumps({"id": "some/tiny", "sha": COMMIT}).encode())
            if match := re.fullmatch(r"/api/models/some/tiny/tree/(\w+)", path):
                if match[1] != COMMIT:
                    return self.answer(404, b"{}", X_Error_Code="RevisionNotFound")
                return self.answer(200, json.dumps([self.entry(name) for name in hub.files]).encode())
            if match := re.fullmatch(r"/some/tiny/resolve/(\w+)/(.+)", path):
                if hub.gated:
                    return self.answer(403, b"{}", X_Error_Code="GatedRepo")
                return self.file(match[2])
            return self.answer(404, b"{}")

        def entry(self, name: str) -> dict[str, object]:
            content = hub.files[name]
            found = {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
            if name.endswith((".safetensors", ".bin")):
                found["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
            return found

        def file(self, name: str) -> None:
            content = hub.files[name]
            tag = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X_Repo_Commit": COMMIT}
            given = self.headers.get("Range")
            start = int(given.removeprefix("bytes=").split("-")[0]) if given else 0
            if start:
                tag["Content_Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            if hub.cut is not None and self.command == "GET" and len(content) > hub.cut:
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content[: hub.cut])
                self.wfile.flush()
                self.connection.shutdown(socket.SHUT_RDWR)
                self.close_connection = True
                hub.cut = None
                return
            self.answer(206 if start else 200, content[start:], **tag)

    return Handler


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    state = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(state))
    server.daemon_threads = True
    state.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    for name, value in (
        ("ENDPOINT", state.url), ("HF_HUB_OFFLINE", False), ("HF_HUB_CACHE", str(tmp_path / "hub")),
        ("HUGGINGFACE_CO_URL_TEMPLATE", state.url + "/{repo_id}/resolve/{revision}/{filename}"),
        ("HF_HUB_DISABLE_XET", True),
    ):  # fmt: skip
        monkeypatch.setattr(constants, name, value)
    yield state
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    return tmp_path / "weights.lock.json"


def refused(model: Model, lock: Path, folder: Path | None = None) -> str:
    with pytest.raises(UserError) as fault:
        fetching.fetch(model, folder, lock, lambda line: None)
    assert "\n" not in str(fault.value)
    return str(fault.value)


def test_wanted_files_come_and_are_recorded(hub: Hub, lock: Path) -> None:
    said: list[str] = []
    place = fetching.fetch(MODEL, None, lock, said.append)
    there = {path.relative_to(place).as_posix() for path in place.rglob("*") if path.is_file()}
    assert there == {"config.json", "unet/diffusion_pytorch_model.fp16.safetensors"}  # neither pickle nor README
    recorded = json.loads(lock.read_text())["models"]["tiny"]
    assert (recorded["repo"], recorded["commit"]) == ("some/tiny", COMMIT)
    assert recorded["files"]["config.json"] == {
        "size": 20, "sha256": hashlib.sha256(FILES["config.json"]).hexdigest()
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
    hub.asked.clear()
    found = try_to_load_from_cache("some/tiny", "config.json", revision="main")  # as a stage looks for it
    assert Path(str(found)).read_bytes() == FILES["config.json"]
    assert not hub.asked


def test_pickles_alone_are_refused_and_the_one_wanted_is_not(hub: Hub, lock: Path) -> None:
    del hub.files["unet/diffusion_pytorch_model.fp16.safetensors"]
    assert "holds no safetensors of the wanted names" in refused(MODEL, lock)
    assert not lock.exists()
    place = fetching.fetch(replace(MODEL, files=("unet/*",), pickle=True), None, lock, lambda line: None)
    assert (place / "unet/diffusion_pytorch_model.bin").read_bytes() == b"a pickle"


def test_no_licence_no_repository_no_revision(hub: Hub, lock: Path) -> None:
    said = refused(replace(MODEL, repo="other/tiny"), lock)
    assert "https://huggingface.co/other/tiny is gone or hidden" in said
    assert f"has no revision {OTHER}" in refused(replace(MODEL, revision=OTHER), lock)
    hub.gated = True
    said = refused(replace(MODEL, licence="a licence"), lock)
    assert "its licence (a licence) is not accepted by your account" in said
    assert "accept it at https://huggingface.co/some/tiny" in said
    assert not lock.exists()


def test_no_network_says_what_to_place_where(hub: Hub, lock: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # the discard port: nothing answers
    said = refused(MODEL, lock)
    assert said.startswith("tiny: cannot be fetched")
    assert f"config.json, unet/* of https://huggingface.co/some/tiny/tree/{COMMIT} in a FOLDER" in said
    assert said.endswith("name it in models.zero123")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "cannot be fetched (OfflineModeIsEnabled" in refused(MODEL, lock)


def test_too_little_disk_is_said_before_the_download(hub: Hub, lock: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr(fetching.shutil, "disk_usage", lambda path: usage)
    assert "tiny needs 0.0 GB and 0.0 GB are free" in refused(MODEL, lock)
    assert not [path for _, path, _ in hub.asked if "/resolve/" in path]


def test_other_bytes_under_the_recorded_commit_are_refused(hub: Hub, lock: Path, tmp_path: Path) -> None:
    fetching.fetch(MODEL, tmp_path / "first", lock, lambda line: None)
    before = lock.read_text()
    hub.files["config.json"] = b'{"_class_name": "B"}'
    assert "config.json is not the recorded one" in refused(MODEL, lock, tmp_path / "second")
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


def test_a_stage_downloads_what_it_needs_of_an_id_and_no_second_copy(hub: Hub) -> None:
    from cad.prior.weights import has_weights, local_folder

    hub.files["unet/config.json"] = b"{}"
    hub.files["unet/diffusion_pytorch_model.safetensors"] = TENSORS
    hub.files["vae/config.json"] = b"{}"
    hub.files["vae/diffusion_pytorch_model.fp16.safetensors"] = TENSORS  # the only one there
    hub.files["scheduler/scheduler_config.json"] = b"{}"
    source = f"some/tiny@{COMMIT}"
    place = local_folder(source, "unet", "config.json")
    assert {path.name for path in (place / "unet").iterdir()} == {
        "config.json", "diffusion_pytorch_model.safetensors"
    }  # fmt: skip
    assert has_weights(local_folder(source, "vae", "config.json") / "vae")
    assert (local_folder(source, "scheduler", "scheduler_config.json") / "scheduler/scheduler_config.json").is_file()
    hub.asked.clear()
    assert local_folder(source, "unet", "config.json") == place
    assert not hub.asked  # what the cache holds needs no network


def test_a_stage_says_that_a_licence_is_not_accepted_and_how_to_fetch(hub: Hub) -> None:
    from cad.prior.weights import local_folder

    hub.files["unet/config.json"] = b"{}"
    hub.gated = True
    with pytest.raises(UserError, match="its licence is not accepted by your Hugging Face account; see `cad weights"):
        local_folder(f"some/tiny@{COMMIT}", "unet", "config.json")
    with pytest.raises(UserError, match="cannot be downloaded"):
        local_folder("other/tiny", "unet", "config.json")


def cad(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cad.cli.main", "weights", *arguments]
    path = {"PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | path | environment)


def test_the_command_lists_without_network_and_ends_with_2_for_a_fault(tmp_path: Path) -> None:
    listed = cad("list")
    assert listed.returncode == 0
    assert "DeepFloyd/IF-I-XL-v1.0" in listed.stdout
    offline = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path), "HF_HUB_DISABLE_XET": "1"}
    failed = cad("fetch", "controlnet-depth", "--lock", str(tmp_path / "lock.json"), **offline)
    assert failed.returncode == 2
    assert failed.stderr.startswith("error: controlnet-depth: cannot be fetched")
    assert failed.stderr.count("\n") == 1
    assert "Traceback" not in failed.stderr
