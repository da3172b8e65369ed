import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from cad.errors import UserError
from cad.prior.clip import Clip

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def clip(clip_folder):
    return Clip.load(clip_folder, CPU)


def test_image_embedding_by_hand(clip):
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    small = np.asarray(Image.fromarray(image).resize((8, 8), Image.Resampling.BICUBIC))
    mean = np.array([0.48145466, 0.4578275, 0.40821073])
    std = np.array([0.26862954, 0.26130258, 0.27577711])
    pixels = torch.tensor((small / 255 - mean) / std).float().permute(2, 0, 1)[None]
    with torch.no_grad():
        features = clip.model.visual_projection(clip.model.vision_model(pixels).pooler_output)
    expected = features / features.norm(dim=-1, keepdim=True)
    # torchvision's bicubic differs from PIL's by at most one gray level
    torch.testing.assert_close(clip.images(image[None]), expected, atol=5e-3, rtol=0)


def test_embeddings_are_unit_and_distinct(clip):
    texts = clip.texts(["a red robot", "a blue robot", "a red robot"])
    torch.testing.assert_close(texts.norm(dim=-1), torch.ones(3))
    assert torch.allclose(texts[0], texts[2])
    assert not torch.allclose(texts[0], texts[1], atol=1e-3)


def test_missing_tokenizer_is_named(clip_folder, tmp_path):
    folder = shutil.copytree(clip_folder, tmp_path / "clip")
    (folder / "tokenizer_config.json").unlink()
    with pytest.raises(UserError, match=r"tokenizer_config.json: is missing"):
        Clip.load(folder, CPU)
