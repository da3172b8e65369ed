"""The registry as text and as JSON."""

import json
from dataclasses import asdict

from cad.weights.table import MODELS, Model


def as_text() -> str:
    """Two lines a model: name, size, purpose, place; then origin and licence, and whether it is pinned."""
    width = max(len(model.name) for model in MODELS)
    lines = []
    for model in MODELS:
        lines.append(f"{model.name:{width}}  {model.gigabytes:5.2f} GB  {model.purpose}  [{model.place}]")
        gate = ", accept it on the hub first" if model.gated else ""
        note = f"; {model.note}" if model.note else ""
        lines.append(f"{'':{width}}  {_origin(model)}; licence: {model.licence}{gate}{note}")
    return "\n".join(lines)


def as_json() -> str:
    """All fields of all models."""
    return json.dumps([asdict(model) | {"pinned": model.pinned} for model in MODELS], indent=2)


def _origin(model: Model) -> str:
    if not model.repo:
        return model.url or "bundled"
    how = "" if model.pinned else ", not pinned to a full commit"
    return f"{model.repo}@{model.revision}{how}"
