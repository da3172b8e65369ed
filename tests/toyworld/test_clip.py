"""The small CLIPs' tokenizer, loss and augmentation."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import settings as limits
from hypothesis import strategies as st
from torch import nn
from transformers import CLIPModel, CLIPTextModel, CLIPTokenizer, CLIPVisionModelWithProjection

from cad.prior.clip import Clip
from cad.toyworld.clip import (
    MAX_TOKENS,
    build_clip,
    caption,
    contrastive_loss,
    degrade,
    save_towers,
    train_clip,
    train_tokenizer,
)
from cad.toyworld.dataset import Dataset
from cad.toyworld.settings import ToyworldSettings
from cad.toyworld.world import families, instance


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> CLIPTokenizer:
    return train_tokenizer(tmp_path_factory.mktemp("clip") / "tokenizer")


@pytest.fixture
def model(tokenizer: CLIPTokenizer, settings: ToyworldSettings) -> CLIPModel:
    return build_clip(settings.clip, 16, tokenizer, 3).eval()


def tokens(tokenizer: CLIPTokenizer, texts: list[str]) -> torch.Tensor:
    return tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids


def test_captions_are_short_and_distinct(tokenizer: CLIPTokenizer) -> None:
    captions = [
        instance(family, seed).captions.specific + ", overhead view" for family in families() for seed in range(9)
    ]
    encoded = tokens(tokenizer, captions)
    assert encoded.shape == (len(captions), MAX_TOKENS)
    assert len({tuple(row) for row in encoded.tolist()}) == len(set(captions))
    # what counts is before the padding: no caption of the world is cut
    assert (encoded == tokenizer.eos_token_id).any(1).all()
    assert (encoded[:, -1] == tokenizer.eos_token_id).all()


def test_a_text_has_a_start_an_end_and_padding(tokenizer: CLIPTokenizer) -> None:
    row = tokens(tokenizer, ["a toy robot"])[0].tolist()
    assert row[0] == tokenizer.bos_token_id
    end = row.index(tokenizer.eos_token_id)
    assert 1 < end < MAX_TOKENS - 1
    assert set(row[end:]) == {tokenizer.pad_token_id} == {tokenizer.eos_token_id}
    assert tokenizer.decode(row[1:end]).strip() == "a toy robot"


def test_case_does_not_matter_and_words_do(tokenizer: CLIPTokenizer) -> None:
    a, b, c = tokens(tokenizer, ["A Toy Robot", "a toy robot", "a toy car"])
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


@limits(max_examples=50, deadline=None)
@given(st.text(max_size=200))
def test_any_text_can_be_encoded(tokenizer: CLIPTokenizer, text: str) -> None:
    row = tokens(tokenizer, [text])[0]
    assert row.shape == (MAX_TOKENS,)
    assert row.max() < len(tokenizer)
    assert row[0] == tokenizer.bos_token_id
    assert tokenizer.eos_token_id in row


def test_no_letter_is_unknown(tokenizer: CLIPTokenizer) -> None:
    """Byte-level: words that no caption holds differ from each other."""
    a, b = tokens(tokenizer, ["Ünïcödé 猫", "Ünïcödé 犬"])
    assert not torch.equal(a, b)


def test_learning_the_tokenizer_twice_gives_the_same(tokenizer: CLIPTokenizer, tmp_path: Path) -> None:
    for attempt in range(3):
        assert train_tokenizer(tmp_path / str(attempt)).get_vocab() == tokenizer.get_vocab()


def test_a_resumed_training_keeps_its_tokenizer(tmp_path: Path) -> None:
    first = train_tokenizer(tmp_path / "tokenizer")
    merges = (tmp_path / "tokenizer/merges.txt").read_text().splitlines()
    (tmp_path / "tokenizer/merges.txt").write_text("\n".join(merges[:50]))
    assert len(train_tokenizer(tmp_path / "tokenizer")) < len(first)
    assert list(tmp_path.iterdir()) == [tmp_path / "tokenizer"]


def test_a_saved_tokenizer_encodes_the_same(tokenizer: CLIPTokenizer, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    texts = ["a red robot with a blue head and a pink backpack, front view", "etwas ganz anderes", ""]
    assert torch.equal(tokens(CLIPTokenizer.from_pretrained(tmp_path), texts), tokens(tokenizer, texts))


def test_different_captions_have_different_embeddings(model: CLIPModel, tokenizer: CLIPTokenizer) -> None:
    """They are pooled at the end token; with the wrong id every caption would be pooled at its start."""
    texts = ["a toy robot", "a toy car", "a red car with a blue cabin and a pink spare wheel"]
    encoded = tokens(tokenizer, texts)
    with torch.no_grad():
        pooled = model.text_model(input_ids=encoded)
    states, found = pooled.last_hidden_state, pooled.pooler_output
    ends = (encoded == tokenizer.eos_token_id).int().argmax(1)
    torch.testing.assert_close(found, states[torch.arange(3), ends])
    for a in range(3):
        for b in range(a):
            assert (found[a] - found[b]).abs().max() > 1e-3


def test_the_seed_alone_decides_the_weights(tokenizer: CLIPTokenizer, settings: ToyworldSettings) -> None:
    torch.manual_seed(11)
    state = torch.get_rng_state()
    first = build_clip(settings.clip, 16, tokenizer, 3).state_dict()
    assert torch.equal(state, torch.get_rng_state())  # the global generator is left alone
    torch.manual_seed(12)
    second = build_clip(settings.clip, 16, tokenizer, 3).state_dict()
    other = build_clip(settings.clip, 16, tokenizer, 4).state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not torch.equal(first["text_projection.weight"], other["text_projection.weight"])


def logits(model: CLIPModel, pixels: torch.Tensor, encoded: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=encoded, pixel_values=pixels).logits_per_image


def test_distinct_captions_give_clips_own_loss(model: CLIPModel, tokenizer: CLIPTokenizer) -> None:
    pixels = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    encoded = tokens(tokenizer, ["a toy robot", "a toy car", "a toy mug"])
    with torch.no_grad():
        found = contrastive_loss(model, pixels, encoded)
        expected = model(input_ids=encoded, pixel_values=pixels, return_loss=True).loss
    torch.testing.assert_close(found, expected)
    plain = logits(model, pixels, encoded)
    own = torch.arange(3)
    by_hand = (nn.functional.cross_entropy(plain, own) + nn.functional.cross_entropy(plain.T, own)) / 2
    torch.testing.assert_close(found, by_hand)


def test_equal_captions_share_the_right_answer(model: CLIPModel, tokenizer: CLIPTokenizer) -> None:
    """Rows 0 and 2 have one caption: each is right with half of the weight, in both directions."""
    pixels = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    encoded = tokens(tokenizer, ["a toy robot", "a toy car", "a toy robot"])
    with torch.no_grad():
        found = contrastive_loss(model, pixels, encoded)
    target = torch.tensor([[0.5, 0, 0.5], [0, 1, 0], [0.5, 0, 0.5]])
    plain = logits(model, pixels, encoded)
    by_hand = -(target * plain.log_softmax(1)).sum(1).mean() / 2 - (target * plain.T.log_softmax(1)).sum(1).mean() / 2
    torch.testing.assert_close(found, by_hand)


def test_captions_are_specific_coloured_or_generic_with_a_direction_in_half() -> None:
    subject = instance("car", 0)
    front = (torch.pi, torch.pi / 2)

    def told(kind: float, direction: float) -> str:
        return caption(subject, *front, torch.tensor([kind, direction]))

    assert told(0.0, 0.9) == told(0.69, 0.5) == subject.captions.specific
    assert told(0.7, 0.9) == told(0.84, 0.9) == subject.captions.colored
    assert told(0.86, 0.9) == subject.captions.generic == "a toy car"
    assert told(0.86, 0.49) == "a toy car, front view"
    assert caption(subject, 0.0, torch.pi / 2, torch.tensor([0.9, 0.1])) == "a toy car, back view"


def test_a_third_of_the_images_is_left_as_it_is() -> None:
    stream = torch.Generator().manual_seed(0)
    images = torch.rand(600, 3, 8, 8, generator=stream) * 2 - 1
    found = degrade(images, stream)
    assert found.shape == images.shape
    assert found.min() >= -1
    assert found.max() <= 1
    untouched = (found == images).flatten(1).all(1).double().mean().item()
    assert untouched == pytest.approx(1 / 3, abs=0.06)  # three standard deviations of 600 draws
    assert torch.equal(
        degrade(images, torch.Generator().manual_seed(5)), degrade(images, torch.Generator().manual_seed(5))
    )


def test_training_writes_a_folder_that_the_prior_loads(
    data: Dataset, settings: ToyworldSettings, tmp_path: Path
) -> None:
    out = tmp_path / "weights"
    train_clip(settings.clip, data, 0, "clip", tmp_path / "work", out, lambda text: None)
    clip = Clip.load(out, torch.device("cpu"))
    assert clip.processor.size["shortest_edge"] == 16
    images = clip.images(data.images[:2, 0])
    texts = clip.texts(["a toy robot", "a toy car"])
    assert images.shape == texts.shape == (2, 16)
    torch.testing.assert_close(images.norm(dim=1), torch.ones(2))
    assert not torch.equal(texts[0], texts[1])
    # the processor does what training did: [-1, 1], no crop, no resize
    pixels = clip.processor(
        images=list(data.images[:2, 0].copy()), return_tensors="pt", input_data_format="channels_last"
    )
    expected = data.pick(torch.tensor([0, 1]), torch.tensor([0, 0]))
    torch.testing.assert_close(pixels["pixel_values"], expected, atol=1e-5, rtol=0)


def test_towers_are_the_files_that_the_diffusion_models_hold(model: CLIPModel, tmp_path: Path) -> None:
    kept = {key: value.clone() for key, value in model.half().state_dict().items()}
    save_towers(model, tmp_path / "clip")
    assert not (tmp_path / "clip/model.safetensors").exists()
    model.save_pretrained(tmp_path / "whole")
    assert (tmp_path / "clip/config.json").read_text() == (tmp_path / "whole/config.json").read_text()
    again = CLIPModel.from_pretrained(tmp_path / "clip", dtype=torch.float16).state_dict()
    assert again.keys() == kept.keys()
    assert all(torch.equal(again[key], value) for key, value in kept.items())
    towers = ((CLIPVisionModelWithProjection, 1), (CLIPTextModel, 2))
    for kind, k in towers:
        kind.from_pretrained(tmp_path / "clip", dtype=torch.float16).save_pretrained(tmp_path / "own")
        own = (tmp_path / "own/model.safetensors").read_bytes()
        assert (tmp_path / f"clip/model-{k:05}-of-00003.safetensors").read_bytes() == own
