"""Loading parts of published models: every fault is one line that says how to get the weights, never random weights.

A source is a local folder or a Hugging Face id, `owner/name` or `owner/name@revision`. A folder may hold any of the
layouts that are published: plain or half-precision files (`*.fp16.safetensors`), in one piece or in shards.
"""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from cad.errors import UserError

HUB_ID = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[\w.-]+))?")
REMEDY = "run `dvc pull data.dvc` for the weights in data/, or set models.* to a downloaded folder or a Hugging Face id"
FETCH = "see `cad weights list`, and fetch it with `cad weights fetch`"
READ = ("*.json", "*.safetensors", "*.txt", "*.model")  # never a pickle
EXTRA = ("*.fp16*", "*ema*")  # further copies of the same weights, downloaded where there is no other
VARIANT = re.compile(r"(?:diffusion_pytorch_)?model\.(?P<name>[a-z0-9_]+)(?:-\d+-of-\d+)?\.safetensors")
WHOLE = re.compile(r"(?:diffusion_pytorch_)?model(?:-\d+-of-\d+)?\.safetensors")


def check_source(source: Path | str, config: str) -> None:
    """Refuse a local folder without its `config` file, and a path that is neither a folder nor a hub id."""
    folder = Path(source)
    if folder.is_dir():
        if not (folder / config).is_file():
            raise UserError(f"{folder / config}: is missing; {REMEDY}")
    elif not HUB_ID.fullmatch(str(source)):
        raise UserError(f"{folder}: no such folder of weights; {REMEDY}")


def local_folder(source: Path | str, part: str, config: str) -> Path:
    """The folder that holds `part` of a source: itself, or a hub id's snapshot in the local cache.

    `config` is the part's file that tells it is there; beside a config.json it must have weights. What of a hub id is
    not there is downloaded, never a pickle. UserError without network, licence or such a model.
    """
    found = HUB_ID.fullmatch(str(source))
    if Path(source).is_dir() or not found:
        return Path(source)
    from huggingface_hub import snapshot_download, try_to_load_from_cache
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError

    client: Any = HfHubHTTPError.__bases__[0]  # of all that its HTTP client raises
    repo, revision = found["repo"], found["revision"]
    at = f"{part}/" if part else ""
    plain = config != "config.json"
    cached = try_to_load_from_cache(repo, at + config, revision=revision)
    if isinstance(cached, str) and (plain or has_weights(Path(cached).parent)):
        return Path(cached).parents[1] if part else Path(cached).parent
    wanted = [*(at + pattern for pattern in READ), "model_index.json"]
    try:
        folder = Path(snapshot_download(repo, revision=revision, allow_patterns=wanted, ignore_patterns=[*EXTRA]))
        if not plain and (folder / part / config).is_file() and not has_weights(folder / part):
            folder = Path(snapshot_download(repo, revision=revision, allow_patterns=wanted))
    except GatedRepoError:
        raise UserError(f"{source}: its licence is not accepted by your Hugging Face account; {FETCH}") from None
    except (OSError, ValueError, client) as fault:
        raise UserError(
            f"{source}: is not in the local cache and cannot be downloaded ({_first_line(fault)}); {FETCH}"
        ) from fault
    return folder


def has_weights(folder: Path) -> bool:
    """Whether a folder holds safetensors of a network, of any variant."""
    return any(VARIANT.fullmatch(path.name) or WHOLE.fullmatch(path.name) for path in folder.glob("*.safetensors"))


def variant_of(folder: Path) -> str | None:
    """The variant to ask for: None where plain weights are, else fp16 before others (EMA copies).

    Zero-1-to-3's own inference leaves its averaged weights unused (FACTS section 4), hence the order.
    """
    names = [path.name for path in folder.glob("*.safetensors")]
    if any(WHOLE.fullmatch(name) for name in names):
        return None
    found = {match["name"] for name in names if (match := VARIANT.fullmatch(name))}
    return min(found, key=lambda name: (name != "fp16", name), default=None)


def load_plain(kind: Any, source: Path | str, part: str, config: str) -> Any:
    """A part without tensors (scheduler, tokenizer, image processor) by its class' `from_pretrained`."""
    check_source(source, str(Path(part) / config))
    folder = local_folder(source, part, config)
    check_source(folder, str(Path(part) / config))
    try:
        return kind.from_pretrained(str(folder), subfolder=part)
    except (OSError, ValueError, json.JSONDecodeError) as fault:
        raise UserError(f"{Path(source) / part}: cannot be read ({_first_line(fault)}); {REMEDY}") from fault


def load_network(
    kind: Any, source: Path | str, part: str, device: torch.device, dtype: torch.dtype, idle: tuple[str, ...] = ()
) -> Any:
    """A network by its class' `from_pretrained`, frozen and in evaluation mode, on `device` in `dtype`.

    Only safetensors are read. Both libraries only warn when tensors are missing and go on with random ones; here that
    is a UserError, as are a missing, truncated or misshapen file, the config of another class and too little memory.
    `idle` are prefixes of tensors that may be missing, for nothing is computed with them.
    """
    check_source(source, str(Path(part) / "config.json"))
    folder, place = local_folder(source, part, "config.json"), Path(source) / part
    check_class(kind, folder / part / "config.json")
    transformers = kind.__module__.split(".")[0] == "transformers"
    if transformers:
        from transformers.utils import logging

        logging.disable_progress_bar()  # or a bar stands on stderr before each fault's one line
    cast = {"dtype" if transformers else "torch_dtype": dtype}  # the two libraries name the same option differently
    variant = variant_of(folder / part)
    chosen = {"variant": variant} if variant else {}
    with memory_named(str(place)):
        try:
            model, found = kind.from_pretrained(
                str(folder), subfolder=part, use_safetensors=True, output_loading_info=True, **cast, **chosen
            )
        except (OSError, ValueError, RuntimeError, SafetensorError) as fault:
            if lacks_memory(fault):
                raise
            raise UserError(f"{place}: cannot be loaded from safetensors ({_first_line(fault)}); {REMEDY}") from fault
        missing = [str(key) for key in found["missing_keys"] if not (idle and str(key).startswith(idle))]
        absent = sorted(missing) + sorted(str(key) for key in found["mismatched_keys"])
        if absent:
            raise UserError(f"{place}: {len(absent)} tensors are missing or misshapen, first {absent[0]}; {REMEDY}")
        return model.to(device).eval().requires_grad_(False)


def check_class(kind: Any, config: Path) -> None:
    """Refuse a config.json that names another class than `kind`; one that names none passes."""
    try:
        says = json.loads(config.read_text(encoding="utf-8"))
        named = says.get("architectures") or [says.get("_class_name") or kind.__name__]
    except FileNotFoundError:
        raise UserError(f"{config}: is missing; {REMEDY}") from None
    except (ValueError, AttributeError, OSError) as fault:
        raise UserError(f"{config}: cannot be read ({_first_line(fault)}); {REMEDY}") from None
    if kind.__name__ not in named and not kind.__name__.startswith("AutoModel"):
        raise UserError(f"{config}: is of a {named[0]}, not of a {kind.__name__}; {REMEDY}")


@contextmanager
def memory_named(what: str) -> Iterator[None]:
    """Turn a lack of memory, of the GPU or of the machine, into a UserError that names what did not fit."""
    try:
        yield
    except (RuntimeError, MemoryError) as fault:
        if not lacks_memory(fault):
            raise
        raise UserError(
            f"{what}: too little memory; take a smaller `batch`, a half `precision` or `offload: true` in the stage's "
            "settings"
        ) from None


def lacks_memory(fault: BaseException) -> bool:
    """Whether a GPU's or the machine's memory ran out: torch's CPU allocator has no exception of its own."""
    return isinstance(fault, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator: " in str(fault)


def _first_line(fault: BaseException) -> str:
    lines = str(fault).strip().splitlines()
    return f"{type(fault).__name__}: {lines[0][:200]}" if lines else type(fault).__name__
