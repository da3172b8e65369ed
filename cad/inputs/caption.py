"""A prompt for a picture that came without one, by BLIP (Sec. 4: "an off-the-shelf image caption pipeline")."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import BertTokenizerFast, BlipForConditionalGeneration, BlipImageProcessor

from cad.errors import UserError
from cad.prior.weights import load_network, load_plain


class Captioner:
    """A BLIP folder (or hub id) with its own preprocessing, in float32."""

    def __init__(
        self, model: BlipForConditionalGeneration, processor: BlipImageProcessor, tokenizer: BertTokenizerFast
    ):
        self.model = model
        self.processor = processor
        self.tokenizer = tokenizer

    @classmethod
    def load(cls, source: Path | str, device: torch.device) -> "Captioner":
        """Load model, image processor and tokenizer; where they are missing or broken, UserError offers --prompt."""
        try:
            return cls(
                model=load_network(BlipForConditionalGeneration, source, "", device, torch.float32),
                processor=load_plain(BlipImageProcessor, source, "", "preprocessor_config.json"),
                tokenizer=load_plain(BertTokenizerFast, source, "", "tokenizer_config.json"),
            )
        except UserError as fault:
            raise UserError(f"no caption: {fault}; or give a prompt with --prompt") from fault

    @torch.no_grad()
    def caption(self, picture: NDArray[np.uint8], tokens: int) -> str:
        """The likeliest words, taken greedily, for a picture, uint8 [H, W, 3] on white; at most `tokens` of them.

        Raises UserError where the model has nothing to say.
        """
        pixels = self.processor(images=[picture.copy()], return_tensors="pt", input_data_format="channels_last")
        found = self.model.generate(
            pixel_values=pixels["pixel_values"].to(self.model.device),
            max_new_tokens=tokens,
            num_beams=1,
            do_sample=False,
        )
        text = " ".join(self.tokenizer.decode(found[0], skip_special_tokens=True).split())
        if not text:
            raise UserError("the captioner says nothing of this picture; give a prompt with --prompt")
        return text
