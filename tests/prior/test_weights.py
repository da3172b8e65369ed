"""Loading in all published layouts, and each way in which a folder, a file or the hub can be wrong."""

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection

from cad.errors import UserError
from cad.prior import weights
from cad.prior.zero123 import Zero123

CPU = torch.device("cpu")
NETWORKS = ("unet", "vae", "image_encoder", "cc_projection")
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def folder(zero123_folder, tmp_path):
    return Path(shutil.copytree(zero123_folder, tmp_path / "zero123"))


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """No network, and a hub cache of this test's own."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def stored(folder: Path) -> Path:
    (path,) = folder.glob("*.safetensors")
    return path


def same(found: Zero123, expected: Zero123, parts=NETWORKS) -> None:
    for part in parts:
        wanted = getattr(expected, part).state_dict()
        for name, tensor in getattr(found, part).state_dict().items():
            assert torch.equal(tensor, wanted[name]), (part, name)


def one_line(folder: Path | str) -> str:
    with pytest.raises(UserError) as fault:
        Zero123.load(folder, CPU, torch.float32)
    assert "\n" not in str(fault.value)
    return str(fault.value)


def test_half_files_are_found_and_widened(zero123, folder):
    """As bennyguo's conversion stores them: *.fp16.safetensors alone."""
    for part in NETWORKS:
        path = stored(folder / part)
        halves = {name: tensor.half() for name, tensor in load_file(path).items()}
        save_file(halves, path.with_suffix(".fp16.safetensors"), {"format": "pt"})
        path.unlink()
    found = Zero123.load(folder, CPU, torch.float32)
    for part in NETWORKS:
        wanted = getattr(zero123, part).state_dict()
        for name, tensor in getattr(found, part).state_dict().items():
            assert tensor.dtype == torch.float32
            assert torch.equal(tensor, wanted[name].half().float())


@pytest.mark.parametrize(
    ("names", "variant"),
    [
        (["diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors"], None),
        (["model.fp16.safetensors", "model.bf16.safetensors"], "fp16"),
        (["diffusion_pytorch_model.fp16_ema.safetensors"], "fp16_ema"),
        (["diffusion_pytorch_model.fp16.safetensors", "diffusion_pytorch_model.fp16_ema.safetensors"], "fp16_ema"),
        (["diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.ema.safetensors"], "ema"),
        (["diffusion_pytorch_model.non_ema.safetensors", "diffusion_pytorch_model.safetensors"], None),
        (["diffusion_pytorch_model.fp16.safetensors", "diffusion_pytorch_model.non_ema.safetensors"], "fp16"),
        (["diffusion_pytorch_model.non_ema.safetensors"], "non_ema"),
        (["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"], None),
        (["model.fp16-00001-of-00002.safetensors", "model.fp16-00002-of-00002.safetensors"], "fp16"),
        (["pytorch_model.bin", "open_clip_model.safetensors", "model.safetensors.index.fp16.json"], None),
    ],
)
def test_variant_by_file_names(tmp_path, names, variant):
    for name in names:
        (tmp_path / name).touch()
    found = weights.weight_files(tmp_path, tmp_path, "")
    assert found == sorted(names if "pytorch_model.bin" not in names else [])
    assert weights.variant_of(found) == variant


def shard(folder: Path, model: Zero123, variant: str | None = None) -> None:
    for part in ("unet", "image_encoder"):
        stored(folder / part).unlink()
        options = {"variant": variant} if variant else {}
        getattr(model, part).save_pretrained(folder / part, max_shard_size="20KB", **options)
        assert len(list((folder / part).glob("*.safetensors"))) > 1


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_shards_are_joined(zero123, folder, variant):
    shard(folder, zero123, variant)
    same(Zero123.load(folder, CPU, torch.float32), zero123)


@pytest.mark.parametrize("part", ["unet", "image_encoder"])
def test_a_missing_and_a_truncated_shard_are_one_line(zero123, folder, part):
    shard(folder, zero123)
    last = max((folder / part).glob("*.safetensors"))
    last.write_bytes(last.read_bytes()[:50])
    assert part in one_line(folder)
    last.unlink()
    assert part in one_line(folder)


def rename_projection(folder: Path, config: dict | None) -> None:
    other = folder / "clip_camera_projection"
    (folder / "cc_projection").rename(other)
    path = stored(other)
    linear = {name.replace("projection.", "proj."): tensor for name, tensor in load_file(path).items()}
    save_file(linear, path, {"format": "pt"})
    (other / "config.json").write_text(json.dumps({"_class_name": "CLIPCameraProjection", **(config or {})}))


def test_the_other_name_of_the_projection_is_read_and_written_back_as_ours(zero123_folder, tmp_path):
    """Embedding 12, four pose numbers, context 12: there the projection keeps the embedding's width."""
    folder = Path(shutil.copytree(zero123_folder, tmp_path / "zero123"))
    torch.manual_seed(3)
    linear = torch.nn.Linear(16, 12)
    unet = json.loads((folder / "unet/config.json").read_text()) | {"cross_attention_dim": 12}
    UNet2DConditionModel.from_config(unet).save_pretrained(folder / "unet")
    rename_projection(folder, {"embedding_dim": 12, "additional_embeddings": 4})
    state = {"proj.weight": linear.weight.detach().clone(), "proj.bias": linear.bias.detach().clone()}
    save_file(state, stored(folder / "clip_camera_projection"), {"format": "pt"})
    (folder / "model_index.json").write_text('{"_class_name": "Zero123Pipeline"}')
    model = Zero123.load(folder, CPU, torch.float32)
    embedding, pose = torch.randn(2, 12), torch.randn(2, 4)
    torch.testing.assert_close(model.context(embedding, pose)[:, 0], linear(torch.cat([embedding, pose], 1)))
    assert not any(p.requires_grad for p in model.cc_projection.parameters())
    model.save(tmp_path / "again")
    saved = load_file(tmp_path / "again/cc_projection/diffusion_pytorch_model.safetensors")
    assert torch.equal(saved["projection.weight"], state["proj.weight"])
    same(Zero123.load(tmp_path / "again", CPU, torch.float32), model)


def test_the_other_name_without_its_folder_is_asked_for_by_it(folder):
    shutil.rmtree(folder / "cc_projection")
    (folder / "model_index.json").write_text('{"clip_camera_projection": ["zero123", "CLIPCameraProjection"]}')
    assert "clip_camera_projection/config.json: is missing" in one_line(folder)
    (folder / "model_index.json").unlink()
    assert "cc_projection/config.json: is missing" in one_line(folder)


def test_old_preprocessor_configs_and_no_index_are_read(zero123, folder):
    (folder / "model_index.json").unlink()
    path = folder / "feature_extractor/preprocessor_config.json"
    old = json.loads(path.read_text()) | {"size": 8, "crop_size": 8, "feature_extractor_type": "CLIPFeatureExtractor"}
    old.pop("image_processor_type", None)
    path.write_text(json.dumps(old))
    found = Zero123.load(folder, CPU, torch.float32)
    image = torch.linspace(-1, 1, 768).reshape(1, 3, 16, 16)
    assert torch.equal(found.condition(image)[0], zero123.condition(image)[0])


class Code:
    def __reduce__(self):
        return (print, ("this ran",))


@pytest.mark.parametrize("part", ["unet", "image_encoder"])
def test_a_pickle_is_neither_read_nor_run(folder, part, capsys):
    stored(folder / part).unlink()
    name = "pytorch_model.bin" if part == "image_encoder" else "diffusion_pytorch_model.bin"
    (folder / part / name).write_bytes(pickle.dumps(Code()))
    assert part in one_line(folder)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("part", "other"), [("unet", "vae"), ("vae", "unet"), ("image_encoder", "unet")])
def test_the_config_of_another_class_is_named(folder, part, other):
    shutil.copy(folder / other / "config.json", folder / part / "config.json")
    said = one_line(folder)
    assert f"{part}/config.json: is of a" in said
    assert "not of a" in said


def test_a_whole_clip_is_no_image_encoder(folder, clip_folder):
    shutil.copy(clip_folder / "config.json", folder / "image_encoder/config.json")
    assert "is of a CLIPModel, not of a CLIPVisionModelWithProjection" in one_line(folder)


@pytest.mark.parametrize(
    ("part", "key", "value", "says"),
    [
        ("unet", "in_channels", 4, "unet: in_channels is 4, and 8 would fit"),
        ("unet", "cross_attention_dim", 24, "cc_projection: output is 16, and 24 would fit"),
        ("unet", "out_channels", 3, "unet: out_channels is 3, and 4 would fit"),
    ],
)
def test_parts_that_make_no_zero123_are_named(folder, part, key, value, says):
    """Stable Diffusion's UNet, for one, takes four channels."""
    config = json.loads((folder / part / "config.json").read_text()) | {key: value}
    UNet2DConditionModel.from_config(config).save_pretrained(folder / part)
    assert says in one_line(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "3"])
def test_a_broken_config_is_one_line(folder, text):
    (folder / "unet/config.json").write_text(text)
    assert "unet/config.json: cannot be read" in one_line(folder)


def test_wrong_folders_are_one_line(tmp_path, folder):
    assert "no such folder of weights" in one_line(tmp_path / "gone")
    assert "unet/config.json: is missing" in one_line(tmp_path)
    assert "no such folder of weights" in one_line(folder / "model_index.json")


def test_a_hub_id_without_network_says_how_to_get_it(offline):
    name = f"nobody/zero123@{COMMIT}"
    said = one_line(name)
    assert said.startswith(f"{name}: is not in the local cache and cannot be downloaded")
    assert "cad weights fetch" in said


def test_what_the_hub_s_cache_holds_at_a_revision_needs_no_network(zero123, zero123_folder, offline):
    place = offline / "models--some--zero123"
    shutil.copytree(zero123_folder, place / "snapshots" / COMMIT)
    same(Zero123.load(f"some/zero123@{COMMIT}", CPU, torch.float32), zero123)
    (place / "refs").mkdir()
    (place / "refs/main").write_text(COMMIT)
    for branch in ("some/zero123", "some/zero123@main"):  # which may move, and the results with it
        assert "at a full commit, owner/name@commit" in one_line(branch)


def test_the_average_is_loaded_where_a_folder_has_both(zero123, folder):
    """As bennyguo's conversion stores its UNet: the live weights as fp16, their average as fp16_ema."""
    path = stored(folder / "unet")
    tensors = load_file(path)
    save_file(tensors, path.with_suffix(".fp16.safetensors"), {"format": "pt"})
    save_file({name: -tensor for name, tensor in tensors.items()}, path.with_suffix(".fp16_ema.safetensors"))
    path.unlink()
    found = Zero123.load(folder, CPU, torch.float32).unet.state_dict()
    assert all(torch.equal(found[name], -tensor) for name, tensor in tensors.items())


def test_attention_is_sdpa(zero123):
    """Of UNet and VAE, by diffusers' processor, and of the image encoder, by transformers' switch."""
    for network in (zero123.unet, zero123.vae):
        kinds = {type(module.processor).__name__ for module in network.modules() if hasattr(module, "processor")}
        assert kinds == {"AttnProcessor2_0"}
    assert zero123.image_encoder.config._attn_implementation == "sdpa"


def test_parts_load_alone(zero123_folder):
    vae = weights.load_network(AutoencoderKL, zero123_folder, "vae", CPU, torch.float16)
    assert {p.dtype for p in vae.parameters()} == {torch.float16}
    folder = zero123_folder / "image_encoder"
    encoder = weights.load_network(CLIPVisionModelWithProjection, folder, "", CPU, torch.float32)
    assert not encoder.training
    plain = zero123_folder / "feature_extractor"
    assert weights.load_plain(CLIPImageProcessor, plain, "", "preprocessor_config.json").image_mean
