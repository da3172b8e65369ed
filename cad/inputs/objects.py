"""Taking a picture up as an object: data/objects/NAME/, experiments/object/NAME.yaml and the tables of params.yaml.

    image.png    the picture as given, upright, 8 bit; with the matting network's alpha where one was needed
    prompt.txt   the prompt on one line
    source.json  {schema, file, sha256, background, prompt, polar, origin}: what was given, and how the rest was found

All is decided and checked before anything is written; what an interrupt or a fault leaves half-written is taken back.
"""

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from cad.artifacts import digest, read_json, write_atomic, write_image, write_json
from cad.artifacts.files import PARTIAL
from cad.config import TABLES, CaseSettings, Params, load
from cad.errors import UserError
from cad.inputs.entries import entry_text, merged_text, object_entry
from cad.inputs.matting import background_of, cut_out
from cad.inputs.picture import read_picture
from cad.inputs.prepare import composite, frame_picture, read_prompt
from cad.inputs.settings import BringSettings

NAME = re.compile(r"[a-z][a-z0-9_-]{0,63}")  # narrower than the settings' own: YAML reads 1_0 as a number
WORDS = {"null", "true", "false", "yes", "no", "on", "off", "y", "n"}  # and these as no text
SOURCE = "source.json"


@dataclass(frozen=True)
class Places:
    """Where objects lie: their pictures, their entries, and the settings file."""

    data: Path
    groups: Path
    params: Path


@dataclass(frozen=True)
class NewObject:
    """What the user asks for; a prompt or polar angle of None is to be found, `origin` is recorded as it is."""

    name: str
    picture: Path
    prompt: str | None
    polar_deg: float | None
    framed: bool
    origin: dict[str, Any]


@dataclass(frozen=True)
class Added:
    """An object as it was taken up, and where its prompt and polar angle are from."""

    name: str
    prompt: str
    prompt_from: str
    polar_deg: float
    polar_from: str


def name_for(given: str | None, picture: Path) -> str:
    """The name of an object: the given one, or one made of the picture's file name. UserError where it is none."""
    name = given if given is not None else re.sub(r"[^a-z0-9_-]+", "-", picture.stem.lower()).strip("-_")
    if given is None and name[:1].isdigit():
        name = f"object-{name}"
    if not NAME.fullmatch(name) or name in WORDS:
        said = f"--name {given}" if given is not None else f"{picture}: its file name makes no name"
        raise UserError(f"{said}; give --name of lower-case letters, digits, - and _, a letter first, at most 64")
    return name


def is_taken_up(name: str, picture: Path, prompt: str | None, places: Places) -> bool:
    """Whether this very picture is the object of that name already, wholly.

    UserError where another picture is, and where a prompt is given that is not the object's.
    """
    found = _recorded(places.data / name)
    if found is None:
        return False
    if not picture.is_file():
        raise UserError(f"{picture}: missing; give the path of a PNG or JPEG picture")
    if found["sha256"] != digest(picture):
        raise UserError(f"{places.data / name}: is of another picture ({found['file']}); choose another --name")
    if not (places.groups / f"{name}.yaml").is_file() or name not in load(places.params).objects:
        return False
    path = places.data / name / "prompt.txt"
    if prompt is not None and " ".join(prompt.split()) != read_prompt(path):
        raise UserError(f"{path}: is another text than --prompt; choose another --name, or edit the file")
    return True


def add_object(new: NewObject, places: Places, settings: BringSettings) -> Added:
    """Take a picture up as a new object, or as the picture that a listed case of the paper waits for.

    Raises UserError for a name that is taken, a picture without object, an empty prompt, and networks that are missing
    where one is needed; then nothing is written. A picture that a kill left half taken up is taken up anew.
    """
    params = load(places.params)
    case = _case(places.groups / f"{new.name}.yaml", new.name)
    _check_free(new, places, params, case)
    pixels = read_picture(new.picture, params.input.min_side)
    background = background_of(pixels, params.input, settings.white_border)
    shown_by: dict[str, Any] = {"kind": background}
    if background == "other":
        pixels = cut_out(pixels, settings.matting_model, Path(settings.matting_folder))
        shown_by |= {"network": settings.matting_model}
    framed, _ = frame_picture(new.picture, pixels, params.input, new.framed)  # refuses what has no object
    prompt, prompt_from = _prompt(new, pixels, case, params, settings)
    polar, polar_from = _polar(new, framed, params, settings)

    folder = places.data / new.name
    entry = object_entry(new.name, folder, polar, new.framed)
    if case is not None:
        entry |= {"cases": {new.name: case.model_dump()}}
    text = merged_text(places.params, entry)
    source = {
        "schema": 1,
        "file": new.picture.name,
        "sha256": digest(new.picture),
        "background": shown_by,
        "prompt": prompt_from,
        "polar": polar_from,
        "origin": new.origin,
    }
    with _taken_back(folder, places.groups / f"{new.name}.yaml", places.params):
        staged = folder.with_name(folder.name + PARTIAL)
        shutil.rmtree(staged, ignore_errors=True)
        write_image(staged / "image.png", pixels if background != "white" else pixels[..., :3])
        write_atomic(staged / "prompt.txt", f"{prompt}\n".encode())
        write_json(staged / SOURCE, source)
        shutil.rmtree(folder, ignore_errors=True)  # the rest of one that was never wholly taken up
        staged.rename(folder)
        write_atomic(places.groups / f"{new.name}.yaml", entry_text(entry))
        write_atomic(places.params, text.encode())
    return Added(new.name, prompt, prompt_from, polar, polar_from)


def _recorded(folder: Path) -> dict[str, Any] | None:
    """What a folder of data/objects/ says of its picture; None where nobody took one up."""
    path = folder / SOURCE
    return read_json(path, "file", "sha256") if path.is_file() else None


def _case(entry: Path, name: str) -> CaseSettings | None:
    """The case of the paper that an entry lists, or None."""
    if not entry.is_file():
        return None
    try:
        values = yaml.safe_load(entry.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        raise UserError(f"{entry}: is no valid YAML; correct it") from None
    case = ((values or {}).get("cases") or {}).get(name)
    return CaseSettings.model_validate(case) if case else None


def _check_free(new: NewObject, places: Places, params: Params, case: CaseSettings | None) -> None:
    """UserError where the name is taken: by a whole object, by foreign files, or by a variant in a table."""
    folder, entry = places.data / new.name, places.groups / f"{new.name}.yaml"
    found = _recorded(folder)
    resumes = found is not None and new.picture.is_file() and found["sha256"] == digest(new.picture)
    listed = entry.is_file() and case is None
    if folder.exists() and (not resumes or (entry.is_file() and new.name in params.objects)):
        raise UserError(f"{folder}: exists already; choose another --name, or remove it and {entry}")
    if listed and not resumes:
        raise UserError(f"{entry}: exists already; choose another --name, or remove it")
    if case is None and not resumes and new.name in params.objects:
        raise UserError(f"objects.{new.name}: is in {places.params} already; choose another --name, or remove it there")
    for table, _ in TABLES.values():
        if new.name in getattr(params, table) and new.name not in params.objects:
            raise UserError(f"{table}.{new.name}: is a variant of another object; choose another --name")


def _prompt(
    new: NewObject, pixels: NDArray[np.uint8], case: CaseSettings | None, params: Params, settings: BringSettings
) -> tuple[str, str]:
    """The prompt on one line and where it is from: given, the paper's, or a captioner's (Sec. 4)."""
    if new.prompt is not None:
        if not (words := " ".join(new.prompt.split())):
            raise UserError("--prompt: is empty; describe the object, or leave it out for a caption")
        return words, "given"
    if case is not None and case.prompt is not None:
        return case.prompt, "the paper's"
    import torch

    from cad.inputs.caption import Captioner

    captioner = Captioner.load(settings.captioner, torch.device("cpu"))
    shown = composite(pixels[..., :3], pixels[..., 3])
    return captioner.caption(shown, settings.caption_tokens), f"caption by {settings.captioner}"


def _polar(new: NewObject, framed: NDArray[np.uint8], params: Params, settings: BringSettings) -> tuple[float, str]:
    """The polar angle in degrees and where it is from: given, One-2-3-45's estimate (App. C), or assumed."""
    if new.polar_deg is not None:
        if not 0 < new.polar_deg < 180:
            raise UserError(f"--polar {new.polar_deg:g}: is no angle from straight above; give one between 0 and 180")
        return new.polar_deg, "given"
    from cad.context import prepare_device
    from cad.inputs.elevation import estimate_polar

    try:
        device = prepare_device(params.runtime.device, params.runtime.threads)
        estimate = estimate_polar(framed, new.name, params, device)
    except UserError as fault:
        raise UserError(f"no polar angle can be estimated: {fault}; or give --polar (90 is level)") from fault
    if estimate.polar_deg is None:
        return settings.assumed_polar_deg, f"assumed, for the estimate is undetermined: {estimate.why}"
    return float(estimate.polar_deg), "estimated"


@contextmanager
def _taken_back(folder: Path, entry: Path, params: Path) -> Iterator[None]:
    """Restore entry and settings and remove the folder if the body ends in an error or an interrupt."""
    before = {path: path.read_bytes() if path.is_file() else None for path in (entry, params)}
    try:
        yield
    except BaseException:
        for path, content in before.items():
            path.unlink(missing_ok=True) if content is None else write_atomic(path, content)
        shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(folder.with_name(folder.name + PARTIAL), ignore_errors=True)
        raise
