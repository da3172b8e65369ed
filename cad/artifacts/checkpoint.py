"""Checkpoints of training: weights, optimisers and the state that a resumed run needs, without pickle.

    state.json             {schema, kind, groups, files: {name: sha256}, ...what the training loop put there}
    model.safetensors      "<group>.<tensor name>" for every group but the optimisers
    training.safetensors   the groups whose name starts with "optimizer"; absent if there is none

The folder may hold other files (previews, history): they are left alone.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cad.artifacts.files import check_digest, check_schema, digest, read_json, write_atomic, write_json
from cad.artifacts.tensors import faults_named, open_tensors
from cad.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

SCHEMA = 1
RESERVED = ("schema", "kind", "groups", "files")
MODEL, TRAINING, STATE = "model.safetensors", "training.safetensors", "state.json"
NEXT = ".next"  # suffix of a checkpoint that is written but not in its place yet


class Checkpoint:
    """A checkpoint on disk: `state` is what the training loop recorded, `tensors(group)` reads weights when asked."""

    def __init__(self, folder: Path, header: dict[str, Any]) -> None:
        """Hold a checked header; use `Checkpoint.open`."""
        self.folder = folder
        self.kind: str = header["kind"]
        self.groups: list[str] = header["groups"]
        self.state: dict[str, Any] = {key: value for key, value in header.items() if key not in RESERVED}
        self._files: dict[str, str] = header["files"]
        self._checked: set[str] = set()

    @staticmethod
    def exists(folder: Path) -> bool:
        """Whether a complete checkpoint lies in the folder, to resume from."""
        return (Path(folder) / STATE).exists() or (Path(folder) / (STATE + NEXT)).exists()

    @staticmethod
    def write(
        folder: Path, kind: str, tensors: Mapping[str, Mapping[str, "Tensor"]], state: Mapping[str, Any]
    ) -> "Checkpoint":
        """Write a checkpoint in the place of the former one; killed at any moment, one of the two can be opened.

        tensors: {group: {name: tensor}}, group names without a dot; state: JSON data (step, images, settings, ...).
        All files are written beside their places first, `state.json.next` last: once that one exists, whoever opens
        the folder finishes the renames, and until it exists the former checkpoint is untouched.
        """
        from safetensors.torch import save

        folder = Path(folder)
        if clash := sorted(set(state) & set(RESERVED)) + [group for group in tensors if "." in group]:
            raise ValueError(f"a checkpoint's state and groups cannot be called {clash}")
        _settle(folder)
        contents: dict[str, dict[str, Tensor]] = {MODEL: {}}
        for group, members in tensors.items():
            file = contents.setdefault(TRAINING if group.startswith("optimizer") else MODEL, {})
            # A clone, for safetensors refuses tensors that share their memory.
            file |= {f"{group}.{name}": value.detach().cpu().clone().contiguous() for name, value in members.items()}
        for name, content in contents.items():
            write_atomic(folder / (name + NEXT), save(content))
        header = {
            **state,
            "schema": SCHEMA,
            "kind": kind,
            "groups": sorted(tensors),
            "files": {name: digest(folder / (name + NEXT)) for name in contents},
        }
        write_json(folder / (STATE + NEXT), header)
        _settle(folder)
        return Checkpoint(folder, header)

    @staticmethod
    def open(folder: Path, kind: str) -> "Checkpoint":
        """Open a checkpoint of this kind ("stage1", "stage2"); UserError names the file and the fault."""
        folder = Path(folder)
        _settle(folder)
        path = folder / STATE
        header = read_json(path, *RESERVED)
        check_schema(path, header, SCHEMA)
        if header["kind"] != kind:
            raise UserError(f"{path}: a checkpoint of {header['kind']!r}; give the folder of a finished {kind} run")
        files, groups = header["files"], header["groups"]
        if not isinstance(files, dict) or MODEL not in files or not set(files) <= {MODEL, TRAINING}:
            raise UserError(f"{path}: 'files' does not name {MODEL}; run the training again")
        if not isinstance(groups, list) or not all(isinstance(group, str) for group in groups):
            raise UserError(f"{path}: 'groups' is no list of names; run the training again")
        for name in files:
            open_tensors(folder / name, "numpy")  # reads the header only: missing and truncated files show at once
        return Checkpoint(folder, header)

    def tensors(self, group: str) -> "dict[str, Tensor]":
        """The tensors of a group by name, on the CPU; the file's digest is checked before it is first read."""
        path = self.folder / (TRAINING if group.startswith("optimizer") else MODEL)
        if group not in self.groups:
            raise UserError(f"{self.folder / STATE}: no tensors called '{group}', only {', '.join(self.groups)}")
        if path.name not in self._checked:
            check_digest(path, self._files.get(path.name))
            self._checked.add(path.name)
        prefix = group + "."
        with faults_named(path), open_tensors(path, "pt") as file:
            names: list[str] = list(file.keys())
            return {name.removeprefix(prefix): file.get_tensor(name) for name in names if name.startswith(prefix)}


def _settle(folder: Path) -> None:
    """Finish the renames of a checkpoint that was completely written, or drop the parts of one that was not."""
    staged = folder / (STATE + NEXT)
    if not staged.exists():
        for name in (MODEL, TRAINING):
            (folder / (name + NEXT)).unlink(missing_ok=True)
        return
    names = read_json(staged, "files")["files"]
    for name in (MODEL, TRAINING):
        if name not in names:
            (folder / name).unlink(missing_ok=True)
        elif (folder / (name + NEXT)).exists():
            os.replace(folder / (name + NEXT), folder / name)
    os.replace(staged, folder / STATE)
