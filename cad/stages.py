"""From an entry's name to a stage function's arguments: one mechanism for all stages, described by one table.

The paper's pipeline is this table read downwards. A stage's folder gets a `lineage.json` with the digests of what it
was made from; so a change anywhere above shows in the next folder's digest, and DVC needs only each stage's direct
upstream to notice it. Nothing heavy is imported until a stage runs.
"""

import importlib
import importlib.metadata
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cad.code import code_digest
from cad.errors import UserError

if TYPE_CHECKING:
    from cad.config import ObjectSettings, Params
    from cad.engine import Kind

RUNS = Path("runs")
LINEAGE = "lineage.json"


@dataclass(frozen=True)
class Stage:
    """What a stage function takes, by the names of its parameters (`settings`, `out` and `context` go to every one)."""

    function: str  # "module:function"
    reads: tuple[str, ...]  # stages whose folders it takes as `<stage>_dir`
    models: tuple[str, ...] = ()  # fields of ModelPaths it may load; any makes it take `models`
    source: bool = False  # takes `source`, the object's settings
    networks: tuple[str, ...] = ()  # sections it takes beside its own, by their names
    renders: bool = False  # whether the volume renderer makes part of it
    pieces: bool = False  # whether it comes in pieces, which workers can do
    team: bool = False  # whether several processes can run it together (data-parallel training)


STAGES = {
    "input": Stage("cad.inputs.prepare:prepare_input", reads=(), source=True),
    "prior": Stage("cad.prior.sample:sample_prior", reads=("input",), models=("zero123",), pieces=True),
    "prune": Stage("cad.prior.prune:prune_prior", reads=("input", "prior"), models=("clip",), source=True),
    "refine": Stage(
        "cad.prior.refine:refine_prior",
        reads=("input", "prior", "prune"),
        models=("refiner", "controlnet", "depth", "deepfloyd_stage1", "deepfloyd_stage2"),
        pieces=True,
    ),
    "stage1": Stage(
        "cad.train.stage1:train_stage1",
        reads=("refine",),
        networks=("generator", "discriminator"),
        renders=True,
        team=True,
    ),
    "stage2": Stage(
        "cad.train.stage2:train_stage2", reads=("stage1", "refine"), models=("lpips",), renders=True, team=True
    ),
    "orbit": Stage("cad.evaluate.orbit:render_orbit", reads=("stage2", "input"), renders=True, pieces=True),
    "evaluate": Stage(
        "cad.evaluate.score:evaluate_orbit",
        reads=("input", "refine", "orbit", "stage2"),
        models=("lpips",),
        source=True,
        renders=True,
        pieces=True,
    ),
}


def run_folder(stage: str, entry: str) -> Path:
    """Where a stage's entry lies: runs/<entry>/<stage>."""
    return RUNS / entry / stage


def run_stage(name: str, entry: str, params_file: Path, engine: "Kind" = "local") -> Path:
    """Run one stage of one entry, resuming what a kill left, and return its folder.

    engine: where the pieces of a stage that comes in pieces are done; what comes of it is the same. Processes that
    `accelerate launch` started train together, and the first of them writes.

    Work in progress is found again by settings, inputs, code and torch's version (`identity`); `lineage.json` leaves
    the last two out, for DVC hashes it, and tells the device and the renderer, for other ones give other bits.
    Raises UserError for any fault in the settings, the upstream folders or the user's files; then nothing is written.
    """
    from cad.config import load

    stage, params = STAGES[name], load(params_file)
    if launched() > 1 and not stage.team:
        raise UserError(f"accelerate launch: {name} is no training; start it once, with --engine ray for many machines")
    fix_environment(params.runtime.threads)  # before the next import brings numpy, which reads it once
    if not stage.reads:
        require_picture(params, params.object_of(name, entry))
    from cad.artifacts import write_json
    from cad.render.choice import rendered_by

    decides = identity(name, entry, params)
    arguments: dict[str, Any] = {"settings": params.resolve(name, entry)[0], "camera": params.camera}
    arguments |= {section: params.resolve(section, entry)[0] for section in stage.networks}
    arguments |= {f"{upstream}_dir": folder for upstream, folder in folders_read(name, entry, params).items()}
    if stage.models:
        arguments["models"] = params.models
    if stage.source:
        arguments["source"] = params.objects[decides["object"]]

    out = run_folder(name, entry)
    with _context(name, entry, params, decides, engine) as context:
        with _work(out, decides) as work:
            _function(stage)(out=work, context=context, **arguments)
            if is_first():
                ran_on = rendered_by(context.device) if stage.renders else {"device": context.device.type}
                ran_on |= {"processes": str(launched())} if launched() > 1 else {}
                write_json(work / LINEAGE, {"schema": 1, "stage": name, "inputs": decides["inputs"], **ran_on})
        context.tracker.artifact(f"{entry}-{name}", out, name)
    return out


def launched() -> int:
    """How many processes a launcher has started to run this stage together; 1 without one."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


def is_first() -> bool:
    """Whether this process is the only or the first one of those."""
    return launched() == 1 or os.environ["RANK"] == "0"


def identity(name: str, entry: str, params: "Params") -> dict[str, Any]:
    """All that decides what a stage writes for an entry, as JSON data: settings, and digests of all that it reads.

    Code is a digest of what the stage computes with (`cad.code`), libraries are the version of torch. Nothing is
    probed: `auto` stands for itself. Raises UserError that names an upstream folder which is missing.
    """
    from cad import plugins
    from cad.artifacts import digest

    stage, settings, above = STAGES[name], params.resolve(name, entry)[0], params.ancestors(name, entry)
    source = params.objects[above["object"]]
    folders = folders_read(name, entry, params)
    for upstream, folder in folders.items():
        if not folder.is_dir():
            raise UserError(f"{folder}: is missing; run `dvc repro {upstream}@{above[upstream]}` first")
    return {
        "stage": name,
        "object": above["object"],
        "seed": params.seed,
        "code": code_digest(stage.function.partition(":")[0]),
        "libraries": {"torch": importlib.metadata.version("torch")},
        "runtime": params.runtime.model_dump(include={"threads", "device", *(["renderer"] if stage.renders else [])}),
        "camera": params.camera.model_dump(),
        "settings": settings.model_dump(),
        "networks": {section: params.resolve(section, entry)[0].model_dump() for section in stage.networks},
        "source": source.model_dump() if stage.source else None,
        "models": {path: _digest_or_name(path) for path in models_read(name, entry, params)},
        "plugins": plugins.identities(getattr(settings, "plugins", [])),
        "inputs": {upstream: digest(folder) for upstream, folder in folders.items()} or _source_digests(source),
    }


def require_picture(params: "Params", name: str) -> None:
    """UserError that says where to get the picture of an object that the paper names, if it is not there yet."""
    if name not in params.objects:
        raise UserError(f"objects.{name}: there is no such object; known: {', '.join(params.objects)}")
    case, image = params.cases.get(name), Path(params.objects[name].image)
    if case is not None and not image.is_file():
        raise UserError(f"{image}: is missing; {case.bring}")


def folders_read(name: str, entry: str, params: "Params") -> dict[str, Path]:
    """The upstream folders that a stage of an entry reads, by their stages."""
    above = params.ancestors(name, entry)
    return {upstream: run_folder(upstream, above[upstream]) for upstream in STAGES[name].reads}


def models_read(name: str, entry: str, params: "Params") -> list[str]:
    """The weights that a stage of an entry loads: local files, local folders or model ids."""
    settings = params.resolve(name, entry)[0]
    fields = getattr(settings, "models", STAGES[name].models)  # settings that choose among models say which
    return [getattr(params.models, field) for field in fields] + getattr(settings, "scorer_models", [])


def _source_digests(source: "ObjectSettings") -> dict[str, str]:
    """Digests of what the user gave, the object's settings included: the first folder of a run carries them on."""
    import hashlib

    from cad.artifacts import digest

    digests = {"settings": hashlib.sha256(source.model_dump_json().encode()).hexdigest()}
    return digests | {path: digest(Path(path)) for path in (source.image, source.prompt) if Path(path).is_file()}


def _digest_or_name(path: str) -> str:
    """Digest of a local weights file or folder; a model id stands for itself, for only one at a commit is loaded."""
    from cad.artifacts import digest

    place = Path(path.removeprefix("local-dir:"))
    return digest(place) if place.exists() else path


def fix_environment(threads: int) -> None:
    """What must be set before numerical libraries are imported for a CPU to give the same bits again."""
    os.environ.update(fixed_environment(threads))


def fixed_environment(threads: int) -> dict[str, str]:
    """The variables that `fix_environment` sets."""
    return {
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "OPENBLAS_NUM_THREADS": str(threads),
        "NUMBA_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "false",
        "SOURCE_DATE_EPOCH": "0",
    }


@contextmanager
def _work(out: Path, decides: dict[str, Any]) -> Iterator[Path]:
    """The stage's work folder: of several processes the first one holds it, and moves it out when all have ended."""
    from cad.artifacts import workspace
    from cad.artifacts.workspace import work_folder

    if launched() == 1:
        with workspace(out, decides) as work:
            yield work
        return
    from cad.train.parallel import meet

    with workspace(out, decides) if is_first() else nullcontext(work_folder(decides)) as work:
        meet()  # the folder is there
        yield work
    meet()  # it is moved


@contextmanager
def _context(name: str, entry: str, params: "Params", decides: dict[str, Any], kind: "Kind") -> Iterator[Any]:
    from cad.context import Context, prepare_device
    from cad.engine import open_engine
    from cad.render.choice import resolve_renderer, use_renderer
    from cad.tracking import open_tracker

    threads = params.runtime.threads
    device = prepare_device(params.runtime.device, threads)
    with ExitStack() as open_till_end:
        if launched() > 1:
            from cad.train.parallel import team

            open_till_end.enter_context(team(device))
        renderer = resolve_renderer(params.runtime.renderer if STAGES[name].renders else "reference", device)
        open_till_end.enter_context(use_renderer(renderer))
        opened = open_engine(kind if STAGES[name].pieces else "local", threads, fixed_environment(threads), renderer)
        engine = open_till_end.enter_context(opened)
        tracking = params.tracking if is_first() else params.tracking.model_copy(update={"mode": "disabled"})
        tracker = open_till_end.enter_context(open_tracker(tracking, name, entry, decides, decides["inputs"]))
        yield Context(params.seed, decides["object"], device, tracker, engine)


def _function(stage: Stage) -> Any:
    """Import a stage's function, and with it what it computes with."""
    module, function = stage.function.split(":")
    return getattr(importlib.import_module(module), function)
