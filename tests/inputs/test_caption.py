"""Captions by a BLIP folder with the published classes and files, random weights, tiny sizes."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertTokenizerFast, BlipConfig, BlipForConditionalGeneration, BlipImageProcessor

from cad.errors import UserError
from cad.inputs.caption import Captioner

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "toy", "robot", "on", "white"]


@pytest.fixture(scope="module")
def blip(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("blip")
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    tokenizer = BertTokenizerFast(vocab={word: index for index, word in enumerate(WORDS)})
    text = {
        "vocab_size": len(tokenizer), "hidden_size": 16, "encoder_hidden_size": 16, "intermediate_size": 32,
        "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 32, "bos_token_id": 2,
        "eos_token_id": 3, "sep_token_id": 3, "pad_token_id": 0, "is_decoder": True,
    }  # fmt: skip
    vision = {
        "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 16,
        "patch_size": 8,
    }  # fmt: skip
    torch.manual_seed(3)
    model = BlipForConditionalGeneration(BlipConfig(text_config=text, vision_config=vision, projection_dim=8))
    with torch.no_grad():
        # Likely words, whatever the picture: "robot" before others, never a special token.
        model.text_decoder.cls.predictions.bias[:] = torch.tensor([-9.0] * 5 + [0.0] * 3 + [6.0] + [0.0] * 2)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    BlipImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder)
    return folder


def test_a_caption_is_words_of_the_vocabulary_and_the_same_again(blip):
    picture = np.full((40, 50, 3), 255, np.uint8)
    picture[10:20, 10:20] = (200, 0, 0)
    said = [Captioner.load(blip, torch.device("cpu")).caption(picture, 4) for _ in range(2)]
    assert said[0] == said[1]
    assert said[0].split()
    assert set(said[0].split()) <= set(WORDS[5:])
    assert "robot" in said[0]


@pytest.mark.parametrize("spoilt", ["config.json", "model.safetensors", "preprocessor_config.json", "folder"])
def test_missing_weights_offer_the_prompt(blip, tmp_path, spoilt):
    copy = tmp_path / "blip"
    if spoilt != "folder":
        shutil.copytree(blip, copy)
        (copy / spoilt).unlink()
    with pytest.raises(UserError, match=r"^no caption: .*; or give a prompt with --prompt$") as fault:
        Captioner.load(copy, torch.device("cpu"))
    assert "\n" not in str(fault.value)
