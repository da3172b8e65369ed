"""Every way in which weights can be wrong, end to end: one line on stderr that names it, code 2, nothing written."""

import json
import pickle
import shutil
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import standins
import torch
from huggingface_hub import constants

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SAMPLE, PRUNE = ("prior", "sample", "robot"), ("prior", "prune", "robot")
Spoil = Callable[[Path, pytest.MonkeyPatch], object]


class Code:
    """Unpickling it runs code."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("this ran",))


class Gated(BaseHTTPRequestHandler):
    """A hub whose every model wants its licence accepted."""

    def do_GET(self) -> None:
        self.send_response(403)
        self.send_header("X-Error-Code", "GatedRepo")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, *given: object) -> None:
        pass


@pytest.fixture
def gated(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Gated)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    yield
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return standins.write_zero123(tmp_path_factory.mktemp("standins") / "zero123")


@pytest.fixture
def weights(project: Any, good: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Zero-1-to-3 as a project's `models.zero123`, to be spoilt; nothing is in the hub's cache."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(project / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    project.give_input()
    folder = Path(shutil.copytree(good, project / "weights"))
    project.change({"models.zero123": "weights", "prior": {"precision": "float32", "bf16": False}})
    return folder


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def pickled(part: Path) -> None:
    (part / "diffusion_pytorch_model.safetensors").unlink()
    (part / "diffusion_pytorch_model.bin").write_bytes(pickle.dumps(Code()))


def no_gpu_memory(*given: Any, **named: Any) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB\nGPU 0 has a total of ...")


def no_memory(*given: Any, **named: Any) -> None:
    torch.empty(2**60, dtype=torch.uint8)  # torch's own failure, on the CPU


UNET = "weights/unet"
MODEL = "diffusion_pytorch_model.safetensors"
FAULTS = [
    pytest.param(shutil.rmtree, "weights: no such folder of weights; run `dvc pull", id="no folder"),
    pytest.param(lambda w: shutil.move(w / "unet", w / "net"), f"{UNET}/config.json: is missing", id="wrong folder"),
    pytest.param(
        lambda w: (w / "unet" / MODEL).unlink(),
        f"{UNET}: cannot be loaded from safetensors (OSError",
        id="missing file",
    ),
    pytest.param(
        lambda w: (w / "scheduler/scheduler_config.json").unlink(),
        "weights/scheduler/scheduler_config.json: is missing",
        id="missing config",
    ),
    pytest.param(
        lambda w: cut(w / "unet" / MODEL), f"{UNET}: cannot be loaded from safetensors (", id="truncated safetensors"
    ),
    pytest.param(lambda w: pickled(w / "unet"), f"{UNET}: cannot be loaded from safetensors (OSError", id="pickle"),
    pytest.param(
        lambda w: shutil.copy(w / "vae/config.json", w / "unet"),
        f"{UNET}/config.json: is of a AutoencoderKL, not of a UNet2DConditionModel",
        id="config of another class",
    ),
    pytest.param(
        lambda w: standins.tiny_unet(4).save_pretrained(w / "unet"),
        f"{UNET}: in_channels is 4, and 8 would fit the other parts: this is no Zero-1-to-3",
        id="another architecture",
    ),
]


def refused(ended: Any, said: str, project: Any) -> None:
    assert ended.code == 2, ended
    lines = [line for line in ended.err if line.startswith("error: ")]
    assert ended.err == lines, ended.err
    assert len(lines) == 1
    assert lines[0].startswith(f"error: {said}"), lines[0]
    assert "; " in lines[0], "the line says what to do"
    assert ended.out == [], "and no code of a pickle has printed"
    assert not (project / "runs/robot/prior").exists()


@pytest.mark.parametrize(("spoil", "said"), FAULTS)
def test_a_local_folder(project: Any, cad: Any, weights: Path, spoil: Callable[[Path], object], said: str) -> None:
    spoil(weights)
    refused(cad(*SAMPLE), said, project)


def test_good_weights_pass_up_to_the_pictures_side(project: Any, cad: Any, weights: Path) -> None:
    """What the other tests spoil is sound: these networks load, and then find another resolution than theirs."""
    refused(cad(*SAMPLE), "params.yaml: input.resolution: 32 does not fit models.zero123, which works at 16", project)


@pytest.mark.parametrize("lack", [no_gpu_memory, no_memory])
def test_too_little_memory(
    project: Any, cad: Any, weights: Path, monkeypatch: pytest.MonkeyPatch, lack: Callable[..., None]
) -> None:
    monkeypatch.setattr(torch.nn.Module, "to", lack)
    refused(cad(*SAMPLE), f"{UNET}: too little memory; take a smaller `batch`", project)


def test_no_network(project: Any, cad: Any, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    project.change({"models.zero123": f"some/zero123@{COMMIT}"})
    said = f"some/zero123@{COMMIT}: is not in the local cache and cannot be downloaded ("
    refused(cad(*SAMPLE), said, project)


def test_no_licence_accepted(project: Any, cad: Any, weights: Path, gated: None) -> None:
    project.change({"models.zero123": f"some/zero123@{COMMIT}"})
    said = f"some/zero123@{COMMIT}: its licence is not accepted by your Hugging Face account; see `cad weights list`"
    refused(cad(*SAMPLE), said, project)


@pytest.mark.parametrize("content", ["code", "cut", "text"])
def test_an_original_checkpoint(project: Any, cad: Any, content: str) -> None:
    file = project / "original.ckpt"
    if content == "code":
        torch.save({"state_dict": Code()}, file)
    elif content == "cut":
        torch.save({"state_dict": {"a": torch.zeros(1000)}}, file)
        cut(file)
    else:
        file.write_text(json.dumps({"state_dict": {}}))
    ended = cad("weights", "convert", "zero123", "original.ckpt", "out")
    refused(ended, "original.ckpt: ", project)
    assert not (project / "out").exists()
