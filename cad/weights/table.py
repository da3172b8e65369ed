"""Every published network, as data: id, pinned revision, licence, size, purpose, and the setting that names it.

Revisions are commits that public code pins or has in its caches. A revision that is no 40 digits is a branch, for no
commit of the repository is known here: fetching records the one that it stood for in the lock file, and says what the
setting is to name. Sizes are of the files that are fetched, rounded; most follow from the parameter counts.
"""

from dataclasses import dataclass

from cad.errors import UserError

JSON = "*.json"


@dataclass(frozen=True)
class Model:
    """One model: `files` are patterns of a hub repository, or the name of the one file behind `url`."""

    name: str
    repo: str  # id on the Hugging Face hub; empty for a `url`
    revision: str
    licence: str
    gigabytes: float
    purpose: str
    place: str  # the setting that names it, or where to put the file of a `url`
    files: tuple[str, ...]
    gated: bool = False  # the licence must be accepted on the hub, and a token given
    pickle: bool = False  # the one kind of file that is not safetensors, for `cad weights convert`
    url: str = ""
    md5: str = ""
    note: str = ""

    @property
    def pinned(self) -> bool:
        """Whether the revision is a full commit."""
        return len(self.revision) == 40

    @property
    def source(self) -> str:
        """What the setting should say."""
        return self.place if self.url or not self.repo else f"{self.repo}@{self.revision}"


def _parts(*parts: str, variant: str) -> tuple[str, ...]:
    """Patterns of a diffusers folder: configs, tokenizers, and the weights of some parts in one variant."""
    dot = f".{variant}" if variant else ""
    files = ["model_index.json"]
    for part in parts:
        files += [f"{part}/{JSON}", f"{part}/*.txt", f"{part}/*.model"]
        files += [f"{part}/diffusion_pytorch_model{dot}.safetensors", f"{part}/model{dot}.safetensors"]
        files += [f"{part}/model{dot}-*.safetensors"]
    return tuple(files)


_ZERO123 = ("unet", "vae", "image_encoder", "feature_extractor", "scheduler")

MODELS = (
    Model(
        "zero123-xl", "bennyguo/zero123-xl-diffusers", "ae385edfaf74c677408f96bd04b513483bd326ac",
        "the original's (MIT code); the conversion names none", 2.5, "samples views (Sec. 3.3)", "models.zero123",
        (
            *_parts("unet", variant="fp16_ema"),
            *_parts("vae", "image_encoder", "feature_extractor", "scheduler", "clip_camera_projection", variant="fp16"),
        ),
        note="the UNet's running average, which the authors' demo samples with",
    ),
    Model(
        "zero123-xl-ashawkey", "ashawkey/zero123-xl-diffusers", "10e9e8e75adaa3bf77f5ac9c381419016fed68c7",
        "as zero123-xl", 2.5, "another conversion of it", "models.zero123",
        (*_parts(*_ZERO123, "clip_camera_projection", variant=""), *_parts(*_ZERO123, variant="fp16")),
        note="its variants are not known here: whatever is safetensors is fetched",
    ),
    Model(
        "zero123-xl-kxic", "kxic/zero123-xl", "7d8aec2223b93e84eb26893d1e732e013523474b",
        "as zero123-xl", 5.0, "another conversion of it", "models.zero123",
        _parts(*_ZERO123, "cc_projection", variant=""),
        note="may hold pickles alone, which are not fetched",
    ),
    Model(
        "zero123-165000-kxic", "kxic/zero123-165000", "main",
        "as zero123-xl", 5.0, "Zero-1-to-3 before XL", "models.zero123",
        _parts(*_ZERO123, "cc_projection", variant=""),
        note="may hold pickles alone, which are not fetched",
    ),
    Model(
        "zero123-105000-original", "cvlab/zero123-weights", "main",
        "MIT (code)", 15.5, "an original file, for `cad weights convert zero123`", "models.zero123",
        ("105000.ckpt",), pickle=True,
        note="the one pickle that is fetched; reading it executes nothing of it",
    ),
    Model(
        "zero123-xl-original", "", "", "MIT (code)", 15.5, "XL's original file, likewise", "zero123-xl.ckpt",
        ("zero123-xl.ckpt",), pickle=True, url="https://zero123.cs.columbia.edu/assets/zero123-xl.ckpt",
        note="no digest is published",
    ),
    Model(
        "stable-diffusion-v1-5", "stable-diffusion-v1-5/stable-diffusion-v1-5",
        "451f4fe16113bff5a5d2269ed5ad43b0592e9a14", "CreativeML OpenRAIL-M", 4.3,
        "refines, with the depth ControlNet (App. C)", "models.refiner",
        _parts("unet", "vae", "text_encoder", "tokenizer", "scheduler", variant=""),
    ),
    Model(
        "controlnet-depth", "lllyasviel/control_v11f1p_sd15_depth", "539f99181d33db39cf1af2e517cd8056785f0a87",
        "CreativeML OpenRAIL-M", 1.4, "ties refinement to depth (App. C)", "models.controlnet",
        ("config.json", "diffusion_pytorch_model.safetensors"),
    ),
    Model(
        "dpt-large", "Intel/dpt-large", "bc15f29aa3a80d532f2ed650b5e16ac48d8958f9", "Apache-2.0", 1.4,
        "depth for the ControlNet", "models.depth", (JSON, "model.safetensors"),
        note="the commit that transformers' own depth pipeline names",
    ),
    Model(
        "dpt-hybrid-midas", "Intel/dpt-hybrid-midas", "11eaf7a1cf4bd70740697dbc216f98980c0aeb03", "Apache-2.0", 0.5,
        "smaller, instead of dpt-large", "models.depth", (JSON, "model.safetensors"),
        note="may hold a pickle alone, which is not fetched",
    ),
    Model(
        "deepfloyd-if-1", "DeepFloyd/IF-I-XL-v1.0", "c03d510e9b75bce9f9db5bb85148c1402ad7e694",
        "DeepFloyd IF License", 8.6, "refines at 64 px (App. C)", "models.deepfloyd_stage1",
        _parts("unet", "scheduler", "tokenizer", variant="fp16"), gated=True,
    ),
    Model(
        "deepfloyd-t5", "DeepFloyd/IF-I-XL-v1.0", "c03d510e9b75bce9f9db5bb85148c1402ad7e694",
        "DeepFloyd IF License", 9.5, "T5 XXL encoder of its prompts", "models.deepfloyd_stage1",
        _parts("text_encoder", "tokenizer", variant="fp16"), gated=True,
    ),
    Model(
        "deepfloyd-if-2", "DeepFloyd/IF-II-L-v1.0", "609476ce702b2d94aff7d1f944dcc54d4f972901",
        "DeepFloyd IF License", 2.5, "super-resolution to 256 px (App. C)", "models.deepfloyd_stage2",
        _parts("unet", "scheduler", "image_noising_scheduler", "tokenizer", variant="fp16"), gated=True,
    ),
    Model(
        "clip-vit-large-patch14", "openai/clip-vit-large-patch14", "32bd64288804d66eefd0ccbe215aa642df71cc41",
        "MIT (code)", 1.7, "prunes (Eq. 11)", "models.clip", (JSON, "merges.txt", "model.safetensors"),
    ),
    Model(
        "clip-vit-l-14", "timm/vit_large_patch14_clip_224.openai", "18d0535469bb561bf468d76c1d73aa35156c922b",
        "Apache-2.0; weights OpenAI's (MIT code)", 1.7, "scores (Table 1)", "evaluate.scorers",
        (JSON, "*.txt", "open_clip_model.safetensors"),
    ),
    Model(
        "clip-vit-b-32", "timm/vit_base_patch32_clip_224.openai", "a6f597a30f7b82c51704746581f9a4e41421e878",
        "Apache-2.0; weights OpenAI's (MIT code)", 0.6, "scores (Table 1)", "evaluate.scorers",
        (JSON, "*.txt", "open_clip_model.safetensors"),
    ),
    Model(
        "blip", "Salesforce/blip-image-captioning-large", "353689b859fcf0523410b1806dace5fb46ecdf41",
        "BSD-3-Clause", 1.9, "captions a photograph without a prompt (Sec. 4)", "captioner in experiments/inputs.yaml",
        (JSON, "*.txt", "model.safetensors"),
    ),
    Model(
        "loftr", "", "", "Apache-2.0", 0.05, "matches views for the elevation (App. C)",
        "data/weights/loftr/loftr_outdoor.ckpt", ("loftr_outdoor.ckpt",), pickle=True,
        url="https://cmp.felk.cvut.cz/~mishkdmy/models/loftr_outdoor.ckpt",
        note="kornia's file; no digest is published",
    ),
    Model(
        "u2net", "", "", "Apache-2.0", 0.18, "mattes photographs (rembg)", "~/.u2net/u2net.onnx", ("u2net.onnx",),
        url="https://github.com/danielgatis/rembg/releases/download/v0.0.0/u2net.onnx",
        md5="60024c5c889badc19c04ad937298a77b",
    ),
    Model(
        "isnet", "", "", "Apache-2.0", 0.18, "mattes photographs better (rembg)",
        "~/.u2net/isnet-general-use.onnx", ("isnet-general-use.onnx",),
        url="https://github.com/danielgatis/rembg/releases/download/v0.0.0/isnet-general-use.onnx",
        md5="fc16ebd8b0c10d971d3513d564d01e29",
    ),
    Model(
        "lpips-alexnet", "", "", "BSD-2-Clause", 0.01, "Eq. 10's perceptual distance",
        "data/weights/lpips/alexnet.safetensors", ("alexnet.safetensors",), note="bundled: `dvc pull data.dvc`",
    ),
)  # fmt: skip


def find(name: str) -> Model:
    """The model of a name; UserError that lists the known ones."""
    for model in MODELS:
        if model.name == name:
            return model
    raise UserError(f"{name}: is no model of the registry; known: {', '.join(model.name for model in MODELS)}")
