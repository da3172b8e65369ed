"""Loading parts of published models: every fault is one line that says how to get the weights, never random weights.

A source is a local folder, or a Hugging Face id at a full commit, `owner/name@commit`: a branch may move, and what was
made with it would then be of other weights unseen. A folder may hold any of the layouts that are published: plain or
half-precision files (`*.fp16.safetensors`), averages (`*_ema.safetensors`), in one piece or in shards. What of an id
is not in the hub's cache is downloaded: of a model of the registry the files that `cad weights fetch` takes, with its
checks of disk space and digests; of any other all that is safe to read, plain weights before half-precision copies.
"""

import importlib
import json
import re
from collections.abc import Iterable
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from cad.errors import UserError
from cad.memory import lacks_memory, memory_named

HUB_ID = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)@(?P<revision>[0-9a-f]{40})")
REMEDY = (
    "run `dvc pull data.dvc` for the weights in data/, or set models.* to a downloaded folder or a Hugging Face id at "
    "a full commit, owner/name@commit"
)
FETCH = "see `cad weights list`, and fetch it with `cad weights fetch`"
READ = ("*.json", "*.safetensors", "*.txt", "*.model")  # never a pickle
HALF = "*.fp16*"  # further copies of the same weights, downloaded where there is no other
VARIANT = re.compile(r"(?:diffusion_pytorch_)?model(?:\.(?P<name>[a-z0-9_]+))?(?:-\d+-of-\d+)?\.safetensors")


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

    `config` is the part's file that tells it is there; beside a config.json it must have weights, and of a model of the
    registry those that are fetched for it. What of a hub id is not there is downloaded, never a pickle. UserError
    without network, licence, disk space or such a model.
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
    if isinstance(cached, str) and (plain or weight_files(Path(cached).parent, source, part)):
        return Path(cached).parents[1] if part else Path(cached).parent
    if listed := next((model for model in registered(source) if covers(model, at + config)), None):
        fetching = importlib.import_module("cad.weights.fetch")
        return Path(fetching.download(listed, None, lambda line: None)[0])
    wanted = [*(at + pattern for pattern in READ), "model_index.json"]
    try:
        folder = Path(snapshot_download(repo, revision=revision, allow_patterns=wanted, ignore_patterns=[HALF]))
        if not plain and (folder / part / config).is_file() and not weight_files(folder / part, source, part):
            folder = Path(snapshot_download(repo, revision=revision, allow_patterns=wanted))
    except GatedRepoError:
        raise UserError(f"{source}: its licence is not accepted by your Hugging Face account; {FETCH}") from None
    except (OSError, ValueError, client) as fault:
        raise UserError(
            f"{source}: is not in the local cache and cannot be downloaded ({_first_line(fault)}); {FETCH}"
        ) from fault
    return folder


def registered(source: Path | str) -> list[Any]:
    """The registry's models of a hub id's repository, at the id's commit; none for a folder or an unknown one."""
    if not (found := HUB_ID.fullmatch(str(source))):
        return []
    # By its name: the list decides what is fetched, and a stage does not compute otherwise when it grows.
    models = importlib.import_module("cad.weights.table").MODELS
    return [replace(m, revision=found["revision"]) for m in models if m.repo == found["repo"] and not m.pickle]


def covers(model: Any, file: str) -> bool:
    """Whether fetching a model of the registry takes a file of its repository."""
    return any(fnmatch(file, pattern) for pattern in model.files)


def weight_files(folder: Path, source: Path | str, part: str) -> list[str]:
    """Names of a network's safetensors in a folder, of any variant.

    Where the registry has files of the part, only those that it takes: others in a cache are another program's.
    """
    names = sorted(p.name for p in folder.glob("*.safetensors") if VARIANT.fullmatch(p.name))
    at = f"{part}/" if part else ""
    listed = [model for model in registered(source) if covers(model, f"{at}config.json")]
    return [name for name in names if not listed or any(covers(model, at + name) for model in listed)]


def variant_of(names: Iterable[str]) -> str | None:
    """The variant to ask for among a network's files: averages, then plain weights (None), then fp16, then others.

    [ours] An average (`ema`, `fp16_ema`) comes first where there is one, for Zero-1-to-3's own demo samples with it.
    Stable Diffusion's plain files are averages already, and `non_ema` what they are of: it comes last.
    """
    found = {match["name"] or "" for name in names if (match := VARIANT.fullmatch(name))}

    def rank(name: str) -> tuple[int, str]:
        average = re.fullmatch(r"(.+_)?ema", name) and not name.endswith("non_ema")
        order = 0 if average else {"": 1, "fp16": 2}.get(name, 4 if name.endswith("non_ema") else 3)
        return order, name

    return min(found, key=rank, default="") or None


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
    variant = variant_of(weight_files(folder / part, source, part))
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


def _first_line(fault: BaseException) -> str:
    lines = str(fault).strip().splitlines()
    return f"{type(fault).__name__}: {lines[0][:200]}" if lines else type(fault).__name__
