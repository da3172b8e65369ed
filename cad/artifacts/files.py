"""Digests, atomic writes and checked reads of single files: what every artefact is made of.

A file is written beside its place and renamed into it, so a kill at any moment leaves the old state or the new one.
Nothing here records a clock, a host or a run id, so equal content is equal bytes.
"""

import errno
import hashlib
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cad.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

PARTIAL = ".tmp"  # suffix of what is being written; never part of an artefact


def digest(path: Path) -> str:
    """SHA-256 of a file, or of a folder: the digest of its sorted relative file names and their contents.

    Half-written files (`*.tmp`) do not count. UserError if the path does not exist.
    """
    path = Path(path)
    if path.is_dir():
        names = sorted(p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file())
        listing = [[name, digest(path / name)] for name in names if not name.endswith(PARTIAL)]
        return hashlib.sha256(json.dumps(listing).encode()).hexdigest()
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise UserError(f"{path}: missing; run the stage that writes it") from None


@contextmanager
def full_disk_named(path: Path) -> Iterator[None]:
    """Turn a full disk or an exceeded quota while writing `path` into a UserError that names it."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(f"{path}: no space left on the disk; free some and run the same command again") from None
        raise


def partial_path(path: Path) -> Path:
    """Where to write what becomes `path`: a name beside it that no other writer of it uses, and that ends in `.tmp`."""
    return path.with_name(f"{path.name}.{os.getpid()}-{secrets.token_hex(4)}{PARTIAL}")


def write_atomic(path: Path, data: bytes) -> None:
    """Write bytes so that `path` holds either its old content or all of `data`; makes the folder if it is missing.

    Many may write one path at once (a worker that was given up may still be at work): the last one's content stays.
    """
    path = Path(path)
    partial = partial_path(path)
    with full_disk_named(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            partial.write_bytes(data)
            os.replace(partial, path)
        except BaseException:  # an interrupt too must leave no half-written file behind
            partial.unlink(missing_ok=True)
            raise


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write JSON with sorted keys and indent 2; ValueError on NaN or infinity, which JSON does not know."""
    text = json.dumps(content, sort_keys=True, indent=2, allow_nan=False, ensure_ascii=False)
    write_atomic(path, (text + "\n").encode())


def read_json(path: Path, *required: str) -> dict[str, Any]:
    """Read a JSON object and check that it has the required keys; UserError names the file and the fault."""
    path = Path(path)

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no JSON number")

    try:
        content = json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
    except FileNotFoundError:
        raise UserError(f"{path}: missing; run the stage that writes it") from None
    except (ValueError, RecursionError) as error:  # ValueError covers JSONDecodeError and UnicodeDecodeError
        raise UserError(f"{path}: not valid JSON ({error}); remove it and run its stage again") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds a JSON {type(content).__name__}, not an object; run its stage again")
    for key in required:
        if key not in content:
            raise UserError(f"{path}: the key '{key}' is missing; run its stage again")
    return content


def check_schema(path: Path, content: dict[str, Any], version: int) -> None:
    """UserError unless `content` (read from `path`) carries this schema version."""
    if content.get("schema") != version:
        raise UserError(
            f"{path}: schema version {content.get('schema')!r}, this program reads {version}; run its stage again"
        )


def check_digest(path: Path, expected: object) -> None:
    """UserError unless the file exists and its SHA-256 is the one that was recorded for it."""
    if digest(path) != expected:
        raise UserError(f"{path}: damaged, its digest is not the recorded one; restore it or run its stage again")


def write_parquet(path: Path, frame: "pd.DataFrame") -> None:
    """Write a data frame without its index as Parquet; equal frames give equal bytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    # pandas' own metadata holds library versions and an index description that no reader here needs.
    table = pa.Table.from_pandas(frame, preserve_index=False).replace_schema_metadata(None)
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    write_atomic(path, sink.getvalue().to_pybytes())


def read_parquet(path: Path, *required: str) -> "pd.DataFrame":
    """Read a Parquet file as a data frame and check that it has the required columns; UserError names the fault."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = Path(path)
    try:
        # read_table would take the names of the folders above for partition columns; ParquetFile reads this file only.
        with pq.ParquetFile(path) as file:
            frame: pd.DataFrame = file.read().to_pandas()
    except FileNotFoundError:
        raise UserError(f"{path}: missing; run the stage that writes it") from None
    except (pa.ArrowException, OSError, ValueError):
        raise UserError(f"{path}: not a readable Parquet file; remove it and run its stage again") from None
    for column in required:
        if column not in frame.columns:
            raise UserError(f"{path}: the column '{column}' is missing; run its stage again")
    return frame
