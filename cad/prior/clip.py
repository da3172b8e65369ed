"""CLIP embeddings of images and texts, for the similarity of Eq. 11."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

from cad.prior.weights import load_network, load_plain


class Clip:
    """A `CLIPModel` folder (or hub id) with its own preprocessing, in float32."""

    def __init__(self, model: CLIPModel, processor: CLIPImageProcessor, tokenizer: CLIPTokenizer):
        self.model = model
        self.processor = processor
        self.tokenizer = tokenizer

    @classmethod
    def load(cls, folder: Path | str, device: torch.device) -> "Clip":
        """Load model, image processor and tokenizer; raises UserError naming what is missing or broken."""
        return cls(
            model=load_network(CLIPModel, folder, "", device, torch.float32),
            processor=load_plain(CLIPImageProcessor, folder, "", "preprocessor_config.json"),
            tokenizer=load_plain(CLIPTokenizer, folder, "", "tokenizer_config.json"),
        )

    @torch.no_grad()
    def images(self, images: np.ndarray) -> Tensor:
        """Unit embeddings [B, D] on the CPU of images, uint8 [B, H, W, 3] on white."""
        pixels = self.processor(images=list(images.copy()), return_tensors="pt", input_data_format="channels_last")
        found = self.model.get_image_features(pixel_values=pixels["pixel_values"].to(self.model.device))
        return _unit(found)

    @torch.no_grad()
    def texts(self, texts: list[str]) -> Tensor:
        """Unit embeddings [B, D] on the CPU of texts, cut to the model's longest input."""
        length = self.model.config.text_config.max_position_embeddings
        tokens = self.tokenizer(texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        return _unit(self.model.get_text_features(**tokens.to(self.model.device)))


def _unit(features: Tensor | object) -> Tensor:
    # transformers 5 wraps the projected features in an output object.
    embedding = features if isinstance(features, Tensor) else features.pooler_output  # type: ignore[attr-defined]
    return torch.nn.functional.normalize(embedding.float(), dim=-1).cpu()
