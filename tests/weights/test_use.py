"""What a stage finds of a hub id, and what it downloads where it finds nothing."""

import shutil
from dataclasses import replace

import pytest
from hub import COMMIT, TENSORS, Hub
from huggingface_hub import snapshot_download

from cad.errors import UserError
from cad.prior.weights import check_source, local_folder, variant_of, weight_files
from cad.weights import table
from cad.weights.table import Model


def test_a_stage_downloads_what_it_needs_of_an_id_and_no_second_copy(hub: Hub) -> None:
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
    assert [p.name for p in (local_folder(source, "vae", "config.json") / "vae").glob("*.safetensors")]
    assert (local_folder(source, "scheduler", "scheduler_config.json") / "scheduler/scheduler_config.json").is_file()
    hub.asked.clear()
    assert local_folder(source, "unet", "config.json") == place
    assert not hub.asked  # what the cache holds needs no network


def test_a_stage_says_that_a_licence_is_not_accepted_and_how_to_fetch(hub: Hub) -> None:
    hub.files["unet/config.json"] = b"{}"
    hub.gated = True
    with pytest.raises(UserError, match="its licence is not accepted by your Hugging Face account; see `cad weights"):
        local_folder(f"some/tiny@{COMMIT}", "unet", "config.json")
    with pytest.raises(UserError, match="cannot be downloaded"):
        local_folder(f"other/tiny@{COMMIT}", "unet", "config.json")


KNOWN = Model(
    "known", "some/tiny", COMMIT, "MIT", 0.1, "a test", "models.zero123",
    ("model_index.json", "unet/*.json", "unet/*.fp16.safetensors", "scheduler/*.json"),
)  # fmt: skip
HALF = "diffusion_pytorch_model.fp16.safetensors"
PLAIN = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def known(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> str:
    """The id of a model of the registry; its repository holds the UNet in two precisions."""
    monkeypatch.setattr(table, "MODELS", (KNOWN, replace(KNOWN, name="original", files=("*.ckpt",), pickle=True)))
    hub.files |= {"unet/config.json": b"{}", f"unet/{PLAIN}": TENSORS, "scheduler/scheduler_config.json": b"{}"}
    return f"some/tiny@{COMMIT}"


def test_of_a_known_model_a_stage_takes_what_is_fetched_for_it_and_looks_only_at_that(hub: Hub, known: str) -> None:
    """Not the plain copies, of twice the size, and not what another program has left in the cache."""
    snapshot_download("some/tiny", revision=COMMIT, allow_patterns=["unet/config.json", f"unet/{PLAIN}"])
    place = local_folder(known, "unet", "config.json")
    there = {path.relative_to(place).as_posix() for path in place.rglob("*") if path.is_file()}
    scheduler = "scheduler/scheduler_config.json"
    assert there == {"model_index.json", "unet/config.json", f"unet/{PLAIN}", f"unet/{HALF}", scheduler}
    assert weight_files(place / "unet", known, "unet") == [HALF]
    assert variant_of(weight_files(place / "unet", known, "unet")) == "fp16"
    assert sorted(weight_files(place / "unet", place, "unet")) == [HALF, PLAIN]  # a folder says all that it has
    hub.asked.clear()
    assert local_folder(known, "unet", "config.json") == place
    assert not hub.asked


def test_a_download_that_a_stage_starts_is_checked_like_any_other(
    hub: Hub, known: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage("/")._replace(free=1000)
    with monkeypatch.context() as full:
        full.setattr(shutil, "disk_usage", lambda path: usage)
        with pytest.raises(UserError, match=r"known needs 0\.0 GB and 0\.0 GB are free"):
            local_folder(known, "unet", "config.json")
    assert not [path for _, path, _ in hub.asked if "/resolve/" in path]
    del hub.files[f"unet/{HALF}"]
    with pytest.raises(UserError, match="holds no safetensors of the wanted names in unet"):
        local_folder(known, "unet", "config.json")


@pytest.mark.parametrize("source", ["some/tiny", "some/tiny@main", f"some/tiny@{COMMIT[:7]}", "data/zero123"])
def test_what_names_no_full_commit_is_not_asked_of_the_network(hub: Hub, source: str) -> None:
    """A branch that moves would change results unseen, and a mistyped folder of two parts looks like an id."""
    with pytest.raises(UserError, match=f"^{source}: no such folder of weights; .* full commit, owner/name@commit"):
        check_source(source, "unet/config.json")
    assert not hub.asked
