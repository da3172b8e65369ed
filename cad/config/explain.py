"""A fault in the settings in one line: the key's full path, what is wrong, what to do."""

import difflib
from types import UnionType
from typing import Any, TypeVar, get_args

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from cad.config.sections import Section
from cad.errors import UserError

S = TypeVar("S", bound=Section)
HIDDEN = ("[key]", "[own]", "[plug-in]")  # what pydantic adds to a path: no key of the file


def validate(model: type[S], values: dict[str, Any], where: str) -> S:
    """`values` as a checked section; a fault is one line, its path prefixed by `where`."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise UserError(_explain(error.errors()[0], model, where)) from None


def _explain(fault: ErrorDetails, model: type[Section], where: str) -> str:
    """One line for pydantic's first complaint: the key's full path, what is wrong, what to do."""
    path = where + ".".join(str(part) for part in fault["loc"] if str(part) not in HIDDEN)
    field = _field(model, fault["loc"])
    meaning = f"; it is {field.description}" if field is not None and field.description else ""
    match fault["type"]:
        case "extra_forbidden":
            known = _field_names(model, fault["loc"][:-1])
            return f"{path}: unknown key; {_meant(str(fault['loc'][-1]), known)}"
        case "missing":
            return f"{path}: is missing{meaning}; write a value, see experiments/profile/mini.yaml"
        case "value_error":
            return f"{path.removesuffix('.')}: {fault['msg'].removeprefix('Value error, ')}; correct one of them"
        case _:
            return f"{path}: {fault['msg'][0].lower()}{fault['msg'][1:]}, not {fault['input']!r}{meaning}; correct it"


def _field(model: type[Section], location: tuple[int | str, ...]) -> Any:
    """The pydantic field at a location, or None beneath a table."""
    field = None
    owner: Any = model
    for part in location:
        fields = getattr(owner, "model_fields", {})
        field = fields.get(part)
        owner = _section_of(field.annotation) if field is not None else None
    return field


def _field_names(model: type[Section], location: tuple[int | str, ...]) -> list[str]:
    """Known keys of the section at a location."""
    field = _field(model, location)
    owner = model if not location else _section_of(getattr(field, "annotation", None))
    return list(getattr(owner, "model_fields", {}))


def _section_of(annotation: Any) -> Any:
    """The section within `Section | None`; any other annotation as it is."""
    members = get_args(annotation) if isinstance(annotation, UnionType) else ()
    return next((each for each in members if hasattr(each, "model_fields")), annotation)


def unknown(kind: str, name: object, known: dict[str, Any]) -> str:
    """What is said of a name that is in no table, with the nearest one that is."""
    return f"there is no {kind} {name!r}; {_meant(str(name), list(known))}"


def _meant(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    if close:
        return f"did you mean {close[0]}?"
    return f"known: {', '.join(known)}" if known else "remove it or correct its spelling"
