"""Training of the two small CLIPs: one conditions and prunes, the other, of another seed and patch size, evaluates."""

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

from cad.artifacts import write_json
from cad.seeding import generator, seed_for
from cad.toyworld.dataset import Dataset
from cad.toyworld.fit import fit
from cad.toyworld.settings import ClipSettings, FitSettings
from cad.toyworld.world import COLORS, Instance, families, instance

MAX_TOKENS = 32
VOCABULARY = 512
START, END = "<|startoftext|>", "<|endoftext|>"
MEAN, STD = [0.5, 0.5, 0.5], [0.5, 0.5, 0.5]


def train_tokenizer(folder: Path) -> CLIPTokenizer:
    """A byte-pair tokenizer of CLIP's own form, learnt from captions of every family; any text can be encoded.

    One that lies in `folder` is taken as it is: a resumed training must see the tokens that it began with.
    """
    if (folder / "merges.txt").is_file():
        return _clip_tokenizer(folder)
    captions = [text for family in families() for k in range(300) for text in instance(family, k).captions.all()]
    views = [
        f"{family}, {view} view" for family in families() for view in ("front", "side", "back", "overhead", "bottom")
    ]
    bpe = Tokenizer(models.BPE(continuing_subword_prefix="", end_of_word_suffix="</w>", unk_token=END))
    bpe.normalizer = normalizers.Lowercase()
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=2 * VOCABULARY,
        initial_alphabet=alphabet,
        # Ties between merges are broken by the letters' numbers, which are random for these unless given in order.
        special_tokens=[letter + "</w>" for letter in alphabet],
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    bpe.train_from_iterator(captions + views + list(COLORS), trainer)
    partial = folder.with_name(f"{folder.name}.partial")
    partial.mkdir(parents=True, exist_ok=True)
    bpe.model.save(str(partial))
    partial.replace(folder)
    return _clip_tokenizer(folder)


def _clip_tokenizer(folder: Path) -> CLIPTokenizer:
    """CLIPTokenizer of a folder with vocab.json and merges.txt: CLIP's alphabet, the merges, start and end."""
    merges = [tuple(line.split()) for line in (folder / "merges.txt").read_text().splitlines() if line[0] != "#"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*letters, *(letter + "</w>" for letter in letters), *("".join(pair) for pair in merges), START, END]
    vocabulary = {token: k for k, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(
        vocab=vocabulary, merges=merges, model_max_length=MAX_TOKENS, bos_token=START, eos_token=END, pad_token=END
    )


def build_clip(settings: ClipSettings, resolution: int, tokenizer: CLIPTokenizer, seed: int) -> CLIPModel:
    """A CLIPModel with fresh weights drawn from the seed."""
    shared = {"hidden_size": settings.width, "intermediate_size": 4 * settings.width, "num_attention_heads": 4}
    config = CLIPConfig(
        text_config={
            **shared,
            "num_hidden_layers": settings.text_layers,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": MAX_TOKENS,
            "projection_dim": settings.width,
            # Without these, transformers pools every caption at the same place.
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={
            **shared,
            "num_hidden_layers": settings.vision_layers,
            "image_size": resolution,
            "patch_size": settings.patch,
            "projection_dim": settings.width,
        },
        projection_dim=settings.width,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return CLIPModel(config)


def caption(subject: Instance, azimuth: float, polar: float, draw: Tensor) -> str:
    """A caption of a view: specific in 70 %, colour only or generic in 15 % each; with its direction in half."""
    from cad.prior.refine import view_prompt

    options = subject.captions
    text = options.specific if draw[0] < 0.7 else options.colored if draw[0] < 0.85 else options.generic
    return view_prompt(text, azimuth, polar) if draw[1] < 0.5 else text


def degrade(images: Tensor, stream: torch.Generator) -> Tensor:
    """Blur, noise and brightness as generated views have them, [B, 3, H, W], a third of the images left as they are.

    Without it a small CLIP reads sharpness rather than content: the pictures it later scores are softer than renders.
    """
    count = len(images)
    soft = nn.functional.avg_pool2d(nn.functional.pad(images, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    draw = torch.rand(4, count, 1, 1, 1, generator=stream)
    changed = images + draw[0] * (soft - images)
    changed = changed + 0.12 * draw[1] * torch.randn(images.shape, generator=stream)
    changed = (changed * (0.9 + 0.2 * draw[2])).clamp(-1, 1)
    return torch.where(draw[3] < 1 / 3, images, changed)


def contrastive_loss(model: CLIPModel, pixels: Tensor, tokens: Tensor) -> Tensor:
    """CLIP's symmetric cross-entropy, where equal captions of a batch count as equally right; a scalar.

    pixels: [B, 3, H, W] normalised; tokens: [B, L].
    """
    output = model(input_ids=tokens, pixel_values=pixels)
    same = (tokens[:, None] == tokens[None]).all(-1).float()
    target = same / same.sum(1, keepdim=True)
    logits = output.logits_per_image.float()
    return (nn.functional.cross_entropy(logits, target) + nn.functional.cross_entropy(logits.T, target)) / 2


def train_clip(
    settings: ClipSettings, data: Dataset, seed: int, name: str, work: Path, out: Path, report: Callable[[str], None]
) -> None:
    """Train one CLIP and write `out` in the Hugging Face layout, float16."""
    resolution = data.images.shape[2]
    tokenizer = train_tokenizer(work / "tokenizer")
    model = build_clip(settings, resolution, tokenizer, seed_for(seed, name))
    batches: FitSettings = settings.fit

    def loss(step: int) -> Tensor:
        stream = generator(seed, name, step)
        subjects = torch.randint(len(data), (batches.batch,), generator=stream)
        views = torch.randint(data.views, (batches.batch,), generator=stream)
        draws = torch.rand(batches.batch, 2, generator=stream)
        texts = [
            caption(data.instances[i], data.azimuth[i, v].item(), data.polar[i, v].item(), draw)
            for i, v, draw in zip(subjects.tolist(), views.tolist(), draws, strict=True)
        ]
        tokens = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
        return contrastive_loss(model, degrade(data.pick(subjects, views), stream), tokens)

    fit(model, loss, batches, work, report)
    save_clip(model, tokenizer, resolution, out, name == "clip")


def save_clip(model: CLIPModel, tokenizer: CLIPTokenizer, resolution: int, out: Path, apart: bool) -> None:
    """Write model (float16), tokenizer and preprocessor; `apart`: each tower in a file of its own (`save_towers`)."""
    if apart:
        save_towers(model.half(), out)
    else:
        model.half().save_pretrained(out)
    tokenizer.save_pretrained(out)
    side = {"height": resolution, "width": resolution}
    CLIPImageProcessor(
        size={"shortest_edge": resolution}, crop_size=side, image_mean=MEAN, image_std=STD
    ).save_pretrained(out)


def save_towers(model: CLIPModel, out: Path) -> None:
    """Write config.json and weights in the layout of a sharded checkpoint: image tower, text tower, what joins them.

    The towers' files are, byte for byte, those of the diffusion models that use them (image_encoder/, text_encoder/),
    so that a store that goes by content keeps each once.
    """
    shards: list[dict[str, Tensor]] = [{}, {}, {}]
    for key, tensor in model.state_dict().items():
        tower = 0 if key.startswith("vis") else 1 if key.startswith("text_model.") else 2
        shards[tower][key] = tensor.contiguous()
    out.mkdir(parents=True, exist_ok=True)
    model.config.architectures, model.config.dtype = [type(model).__name__], model.dtype  # as save_pretrained does
    model.config.save_pretrained(out)
    places: dict[str, str] = {}
    for k, tensors in enumerate(shards, 1):
        name = f"model-{k:05}-of-{len(shards):05}.safetensors"
        save_file(tensors, out / name, metadata={"format": "pt"})
        places |= dict.fromkeys(tensors, name)
    size = sum(tensor.nbytes for tensors in shards for tensor in tensors.values())
    write_json(out / "model.safetensors.index.json", {"metadata": {"total_size": size}, "weight_map": places})
