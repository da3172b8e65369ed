"""CLIP scorers behind one small protocol: embeddings of images and texts, with the weights named by their digest.

A score is 100 x cosine (Table 1). Scores of different weights are different units: whoever compares them has to look at
`weights_digest`, which is why every scorer carries one.
"""

import hashlib
import re
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from cad import plugins
from cad.artifacts import digest
from cad.config import PluginScorerSettings, ScorerSettings
from cad.errors import UserError
from cad.prior.weights import HUB_ID, local_folder

# The mean and standard deviation that CLIP was trained with, for open_clip models that name none.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(@.*)?")


class Scorer(Protocol):
    """Anything that embeds images and texts into one space (docs/extending.md for your own)."""

    name: str
    weights_digest: str
    preprocessing: str

    def images(self, images: np.ndarray) -> Tensor:
        """Unit embeddings [n, D] of images, uint8 [n, H, W, 3] on white."""
        ...

    def texts(self, texts: list[str]) -> Tensor:
        """Unit embeddings [n, D] of texts."""
        ...


def score(a: Tensor, b: Tensor) -> Tensor:
    """CLIP score of unit embeddings: 100 x cosine, [n, D] against [m, D] -> [n, m] (Table 1)."""
    return 100 * a.double() @ b.double().T


def load_scorer(name: str, settings: ScorerSettings | PluginScorerSettings, device: torch.device) -> Scorer:
    """The scorer that `evaluate.scorers.<name>` describes; UserError where its weights or its plug-in are missing."""
    if isinstance(settings, ScorerSettings):
        return KINDS[settings.kind](name, settings, device)
    where = f"evaluate.scorers.{name}.kind"
    made: Scorer = plugins.make(settings.kind, where, Scorer, name=name, settings=settings.settings, device=device)
    return made


def preprocess(images: np.ndarray, side: int, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """CLIP's own preprocessing of square images: PIL's bicubic resize, then mean and std; [n, 3, side, side]."""
    assert images.dtype == np.uint8, images.dtype
    assert images.ndim == 4, images.shape
    assert images.shape[1] == images.shape[2], f"CLIP would crop images that are not square: {images.shape}"
    if images.shape[1] != side:
        resized = [Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC) for image in images]
        images = np.stack([np.asarray(image) for image in resized])
    pixels = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 255
    return (pixels - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


def describe_preprocessing(side: int, mean: Sequence[float], std: Sequence[float]) -> str:
    """One line that says what `preprocess` does, for the metrics file."""
    numbers = [f"({', '.join(f'{value:.4f}' for value in values)})" for values in (mean, std)]
    return f"white background, bicubic to {side}x{side}, mean {numbers[0]}, std {numbers[1]}"


class TransformersScorer:
    """A `CLIPModel` folder in the Hugging Face layout, or the id of one on the hub, with its own image processor."""

    def __init__(self, name: str, settings: ScorerSettings, device: torch.device):
        """Load the model in float32; UserError where the folder or the hub has no such weights."""
        from cad.prior.clip import Clip  # transformers takes seconds to import, and an open_clip run does not need it

        if settings.pretrained is not None:
            raise UserError(f"evaluate.scorers.{name}.pretrained: only open_clip has such tags; set it to null")
        self.clip = Clip.load(settings.model, device)
        self.name = name
        file = local_folder(settings.model, "", "config.json") / "model.safetensors"
        self.weights_digest = digest(file) if file.is_file() else tensors_digest(self.clip.model)
        processor = self.clip.processor
        self.preprocessing = describe_preprocessing(
            self.clip.model.config.vision_config.image_size, processor.image_mean, processor.image_std
        )

    def images(self, images: np.ndarray) -> Tensor:
        """Unit embeddings [n, D] on the CPU."""
        return self.clip.images(images)

    def texts(self, texts: list[str]) -> Tensor:
        """Unit embeddings [n, D] on the CPU; a text longer than the model's context is cut, as CLIP does."""
        return self.clip.texts(texts)


class OpenClipScorer:
    """An open_clip model: a hub id at a commit, a `local-dir:` folder, or a name with a pretrained tag (not pinned)."""

    def __init__(self, name: str, settings: ScorerSettings, device: torch.device):
        """Load the model in float32; UserError for a name that contradicts its weights, or weights that are missing.

        What is found under a hub id whose name ends in `.openai` gets QuickGELU, as OpenAI's weights need, whatever
        its configuration says.
        """
        import open_clip

        refuse_contradictions(name, settings.model, settings.pretrained, open_clip.list_models())
        found = HUB_ID.fullmatch(settings.model)
        place = settings.model
        if found:  # open_clip itself would ask the hub for the branch `main`
            place = f"local-dir:{local_folder(settings.model, '', 'open_clip_model.safetensors')}"
        try:
            self.model = open_clip.create_model(
                place,
                pretrained=settings.pretrained,
                precision="fp32",
                require_pretrained=True,
                force_quick_gelu=found is not None and found["repo"].endswith(".openai"),
            )
            self.tokenizer = open_clip.get_tokenizer(place)
        except (OSError, ValueError, RuntimeError) as error:  # what open_clip and its hub client raise on loading
            raise UserError(
                f"evaluate.scorers.{name}.model: the weights of {settings.model} ({settings.pretrained}) cannot be "
                f"loaded ({first_line(error)}); run once where the hub can be reached, or name a `local-dir:` folder"
            ) from error
        self.model = self.model.to(device).eval().requires_grad_(False)
        self.device = device
        self.name = name
        self.weights_digest = tensors_digest(self.model)
        size = self.model.visual.image_size
        self.side = size[0] if isinstance(size, tuple) else size
        self.mean = tuple(self.model.visual.image_mean or CLIP_MEAN)
        self.std = tuple(self.model.visual.image_std or CLIP_STD)
        self.preprocessing = describe_preprocessing(self.side, self.mean, self.std)

    @torch.no_grad()
    def images(self, images: np.ndarray) -> Tensor:
        """Unit embeddings [n, D] on the CPU."""
        return unit(self.model.encode_image(preprocess(images, self.side, self.mean, self.std).to(self.device)))

    @torch.no_grad()
    def texts(self, texts: list[str]) -> Tensor:
        """Unit embeddings [n, D] on the CPU."""
        return unit(self.model.encode_text(self.tokenizer(texts).to(self.device)))


def _load_proxy(name: str, settings: ScorerSettings, device: torch.device) -> Scorer:
    from cad.evaluate.proxy import ProxyScorer  # which imports this file

    return ProxyScorer(name, settings, device)


KINDS: dict[str, Callable[[str, ScorerSettings, torch.device], Scorer]] = {
    "transformers": TransformersScorer,
    "open_clip": OpenClipScorer,
    "proxy": _load_proxy,
}


def refuse_contradictions(name: str, model: str, pretrained: str | None, known: list[str]) -> None:
    """UserError for a combination that open_clip would load with a wrong activation, or with random weights.

    OpenAI's weights were trained with QuickGELU; under the plain names open_clip builds GELU, and only warns.
    """
    if model.startswith("hf-hub:") or (HUB_ID.fullmatch(model) is None and HUB_NAME.fullmatch(model)):
        wanted = model.removeprefix("hf-hub:").partition("@")[0]
        raise UserError(
            f"evaluate.scorers.{name}.model: {model} names no commit, so its weights might change unseen; "
            f"set it to `{wanted}@` and the 40 digits of one"
        )
    located = model.startswith("local-dir:") or HUB_ID.fullmatch(model) is not None
    if located and pretrained is not None:
        raise UserError(f"evaluate.scorers.{name}.pretrained: {model} brings its own weights; set it to null")
    if pretrained is None and not located:
        raise UserError(
            f"evaluate.scorers.{name}.pretrained: {model} without pretrained weights would score with random ones; "
            "set it, e.g. to `openai`, or give the model as `local-dir:<folder>` or `owner/name@commit`"
        )
    if pretrained is not None and pretrained.endswith((".pt", ".pth", ".bin")):
        raise UserError(
            f"evaluate.scorers.{name}.pretrained: {pretrained} is a pickle, which is never loaded; "
            "convert it to safetensors and give the model as `local-dir:<folder>`"
        )
    if pretrained == "openai" and not located and "quickgelu" not in model:
        wanted = f"{model}-quickgelu"
        remedy = f"use `{wanted}`" if wanted in known else "use a model whose name ends in `-quickgelu`"
        raise UserError(
            f"evaluate.scorers.{name}.model: {model} has GELU but OpenAI's weights need QuickGELU, so its scores would "
            f"be wrong; {remedy}"
        )


def tensors_digest(model: nn.Module) -> str:
    """sha256 over names, types, shapes and bytes of a model's tensors, for weights that are not one file of ours."""
    total = hashlib.sha256()
    for key, tensor in sorted(model.state_dict().items()):
        total.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        total.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def unit(features: Tensor) -> Tensor:
    """Embeddings of length 1, [n, D], on the CPU."""
    return nn.functional.normalize(features.float(), dim=-1).cpu()


def first_line(error: Exception) -> str:
    """The first line of an exception's text, so that the one-line error stays one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
