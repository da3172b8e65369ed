import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from huggingface_hub import constants
from PIL import Image
from transformers import CLIPModel, CLIPTokenizer

from cad.config import ScorerSettings
from cad.errors import UserError
from cad.evaluate.scorers import CLIP_MEAN, CLIP_STD, load_scorer, preprocess, score
from cad.weights.table import MODELS

CPU = torch.device("cpu")
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def settings(kind: str, model: object, pretrained: str | None = None) -> ScorerSettings:
    return ScorerSettings.model_validate({"kind": kind, "model": str(model), "pretrained": pretrained})


def pictures(count: int, side: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def test_score_is_hundred_times_the_cosine():
    a, b = torch.tensor([[0.6, 0.8], [1.0, 0.0]]), torch.tensor([[0.8, 0.6], [0.0, -1.0]])
    np.testing.assert_allclose(score(a, b), [[96.0, -80.0], [80.0, 0.0]], atol=1e-5)


def test_preprocessing_is_clips_own():
    picture = pictures(1, 20)
    resized = np.asarray(Image.fromarray(picture[0]).resize((8, 8), Image.Resampling.BICUBIC)) / 255
    expected = (resized - np.array(CLIP_MEAN)) / np.array(CLIP_STD)
    np.testing.assert_allclose(preprocess(picture, 8, CLIP_MEAN, CLIP_STD)[0].permute(1, 2, 0), expected, atol=1e-5)


def test_transformers_scores_equal_a_plain_cosine(clip_folder):
    """The model called by hand: our resize, its projections, and a cosine written out."""
    scorer = load_scorer("tiny", settings("transformers", clip_folder), CPU)
    images, texts = pictures(3, 20), ["a toy mug", "a red robot"]
    ours = score(scorer.images(images), scorer.texts(texts)).numpy()

    model, tokenizer = CLIPModel.from_pretrained(clip_folder), CLIPTokenizer.from_pretrained(clip_folder)
    with torch.no_grad():
        seen = model.vision_model(preprocess(images, 8, CLIP_MEAN, CLIP_STD)).pooler_output
        a = model.visual_projection(seen).numpy()
        for j, text in enumerate(texts):
            read = model.text_model(**tokenizer(text, return_tensors="pt")).pooler_output
            b = model.text_projection(read).numpy()[0]
            for i in range(len(a)):
                cosine = sum(a[i] * b) / (sum(a[i] ** 2) ** 0.5 * sum(b**2) ** 0.5)
                assert ours[i, j] == pytest.approx(
                    100 * cosine, abs=0.05
                )  # its processor rounds the resize its own way


def test_an_image_scores_100_against_itself(clip_folder):
    scorer = load_scorer("tiny", settings("transformers", clip_folder), CPU)
    embedded = scorer.images(pictures(2, 8))
    np.testing.assert_allclose(score(embedded, embedded).diagonal(), 100, atol=1e-4)


def test_the_digest_is_that_of_the_weights_file(clip_folder):
    scorer = load_scorer("tiny", settings("transformers", clip_folder), CPU)
    assert scorer.weights_digest == hashlib.sha256((clip_folder / "model.safetensors").read_bytes()).hexdigest()
    assert "bicubic to 8x8" in scorer.preprocessing


def test_weights_in_shards_have_a_digest_of_their_tensors(clip_folder, tmp_path):
    for item in clip_folder.iterdir():
        if item.name != "model.safetensors":
            shutil.copy(item, tmp_path)
    model = CLIPModel.from_pretrained(clip_folder)
    model.save_pretrained(tmp_path, max_shard_size="10KB")
    assert not (tmp_path / "model.safetensors").exists()
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    found = load_scorer("tiny", settings("transformers", tmp_path), CPU).weights_digest
    assert found == load_scorer("tiny", settings("transformers", tmp_path), CPU).weights_digest
    with torch.no_grad():
        model.logit_scale += 1
    model.save_pretrained(tmp_path, max_shard_size="10KB")
    assert found != load_scorer("tiny", settings("transformers", tmp_path), CPU).weights_digest


def test_missing_weights_are_a_user_error(tmp_path):
    with pytest.raises(UserError, match=r"nowhere.*dvc pull"):
        load_scorer("tiny", settings("transformers", tmp_path / "nowhere"), CPU)


@pytest.mark.parametrize(("plain", "remedy"), [("ViT-L-14", "ViT-L-14-quickgelu"), ("ViT-B-32", "ViT-B-32-quickgelu")])
def test_plain_names_with_openai_weights_are_refused(plain, remedy):
    with pytest.raises(UserError, match=rf"evaluate.scorers.big.model: {plain} .*`{remedy}`"):
        load_scorer("big", settings("open_clip", plain, "openai"), CPU)


def test_open_clip_never_scores_with_random_weights():
    with pytest.raises(UserError, match=r"evaluate.scorers.big.pretrained: .*random"):
        load_scorer("big", settings("open_clip", "ViT-B-32-quickgelu"), CPU)


def test_pickled_weights_are_refused():
    with pytest.raises(UserError, match="pickle"):
        load_scorer("big", settings("open_clip", "ViT-B-32-quickgelu", "weights/ViT-B-32.pt"), CPU)


def write_open_clip(folder):
    """A tiny open_clip folder; its configuration says nothing of the activation, which is GELU then."""
    import open_clip
    from safetensors.torch import save_file

    config = {
        "embed_dim": 12,
        "vision_cfg": {"image_size": 8, "layers": 1, "width": 16, "head_width": 8, "patch_size": 4},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    }
    torch.manual_seed(0)
    model = open_clip.model.CLIP(**config).eval()
    cfg = {"mean": list(CLIP_MEAN), "std": list(CLIP_STD)}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": cfg}))
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "open_clip_model.safetensors")
    return model


def activations(model):
    """The classes of the activations of every block of both towers."""
    return {type(block.mlp.gelu) for tower in (model.visual, model) for block in tower.transformer.resblocks}


@pytest.fixture
def cached(tmp_path, monkeypatch):
    """Folders of the hub's cache as `cad weights fetch` leaves them, by the id: a snapshot, no branch, no network."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))

    def folder(model):
        repo, _, commit = model.partition("@")
        place = tmp_path / "hub" / f"models--{repo.replace('/', '--')}" / "snapshots" / commit
        place.mkdir(parents=True)
        return place

    return folder


def test_open_clip_from_a_local_folder(tmp_path):
    """A tiny open_clip model against its own encoders and a plain cosine."""
    import open_clip

    model = write_open_clip(tmp_path)
    scorer = load_scorer("tiny", settings("open_clip", f"local-dir:{tmp_path}"), CPU)
    images = pictures(2, 8)
    found = score(scorer.images(images), scorer.texts(["a toy mug"]))[:, 0]
    with torch.no_grad():
        a = model.encode_image(preprocess(images, 8, CLIP_MEAN, CLIP_STD))
        b = model.encode_text(open_clip.tokenize(["a toy mug"]))
    np.testing.assert_allclose(found, 100 * torch.cosine_similarity(a, b), atol=1e-3)
    assert len(scorer.weights_digest) == 64


@pytest.mark.parametrize("entry", ["CLIP ViT-L/14", "CLIP ViT-B/32"])
def test_the_papers_scorers_are_loaded_at_their_commit_with_openais_activation(entry, cached):
    """Under the profile's own ids, with a small model in their place: nothing is asked of `main` or of the network."""
    from open_clip.transformer import QuickGELU

    profile = yaml.safe_load((Path(__file__).parents[2] / "experiments" / "profile" / "paper.yaml").read_text())
    chosen = profile["evaluate"]["scorers"][entry]
    assert chosen["model"] in {model.source for model in MODELS if model.place == "evaluate.scorers"}
    model = write_open_clip(cached(chosen["model"]))
    scorer = load_scorer(entry, settings(**chosen), CPU)
    assert activations(model) == {torch.nn.GELU}
    assert activations(scorer.model) == {QuickGELU}
    assert torch.equal(scorer.model.visual.proj, model.visual.proj)


def test_the_id_of_other_weights_keeps_its_own_activation(cached):
    write_open_clip(cached(f"some/clip@{COMMIT}"))
    assert activations(load_scorer("tiny", settings("open_clip", f"some/clip@{COMMIT}"), CPU).model) == {torch.nn.GELU}


@pytest.mark.parametrize("entry", ["ViT-L-14-quickgelu", "ViT-B-32-quickgelu"])
def test_the_quickgelu_names_are_built_with_it_at_full_size(entry):
    """Both towers without memory."""
    import open_clip
    from open_clip.transformer import QuickGELU

    def built(name):
        with torch.device("meta"):
            return open_clip.model.CLIP(**open_clip.get_model_config(name))

    assert activations(built(entry)) == {QuickGELU}
    assert activations(built(entry.removesuffix("-quickgelu"))) == {torch.nn.GELU}


@pytest.mark.parametrize("model", ["hf-hub:some/clip", "some/clip", "some/clip@main"])
def test_an_id_without_a_commit_is_refused(model):
    with pytest.raises(UserError, match=r"evaluate.scorers.tiny.model: .* names no commit.* `some/clip@` and the 40"):
        load_scorer("tiny", settings("open_clip", model), CPU)


def test_an_id_with_a_tag_is_refused():
    with pytest.raises(UserError, match=r"pretrained: some/clip@\w+ brings its own weights; set it to null"):
        load_scorer("tiny", settings("open_clip", f"some/clip@{COMMIT}", "openai"), CPU)


@pytest.mark.parametrize("kind", ["transformers", "open_clip"])
def test_an_id_that_is_not_here_is_one_line(kind, cached):
    with pytest.raises(UserError, match=rf"^some/clip@{COMMIT}: is not in the local cache") as fault:
        load_scorer("tiny", settings(kind, f"some/clip@{COMMIT}"), CPU)
    assert "\n" not in str(fault.value)


def test_transformers_reads_an_id_at_its_commit(clip_folder, cached):
    shutil.copytree(clip_folder, cached(f"some/clip@{COMMIT}"), dirs_exist_ok=True)
    found = load_scorer("tiny", settings("transformers", f"some/clip@{COMMIT}"), CPU)
    assert found.weights_digest == hashlib.sha256((clip_folder / "model.safetensors").read_bytes()).hexdigest()
