"""Files that are either whole or absent: temporary file, sync, rename."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from telos.core.errors import TelosError


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turns the operating system's refusals (no permission, full disk, not a folder) into a TelosError."""
    try:
        yield
    except PermissionError as error:
        raise TelosError(
            f"cannot write {path}",
            expected="a folder that you may write to",
            got="permission denied",
            fix="choose another --out, or change the folder's permissions",
        ) from error
    except (OSError, SafetensorError) as error:
        raise TelosError(
            f"cannot write {path}",
            got=getattr(error, "strerror", None) or str(error),
            fix="free space on that disk, or choose another --out",
        ) from error


def sync_folder(folder: Path) -> None:
    """Makes a rename in `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomic(path: str | Path, write: Callable[[Path], None] | str | bytes) -> Path:
    """Writes `path` so that a reader sees the old file or the whole new one, never a part.

    Args:
        write: the contents, or a function that writes them to the (temporary) path it is given.
    """
    path = Path(path)
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        os.close(handle)
        temporary = Path(name)
        try:
            if callable(write):
                write(temporary)
            else:
                temporary.write_bytes(write.encode() if isinstance(write, str) else write)
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            temporary.chmod(0o644)
            os.replace(temporary, path)
            sync_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)
    return path


@contextlib.contextmanager
def folder_atomic(path: str | Path) -> Iterator[Path]:
    """A folder that appears whole under `path` when the block ends well, and not at all otherwise.

    A folder that was there is replaced only once the new one is complete.
    """
    path = Path(path)
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp"))
        temporary.chmod(0o755)
        try:
            yield temporary
            for file in temporary.rglob("*"):
                if file.is_file():
                    file.chmod(0o644)
                    with file.open("rb+") as opened:
                        os.fsync(opened.fileno())
            if path.exists():
                old = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".old"))
                os.replace(path, old / "old")
                os.replace(temporary, path)
                shutil.rmtree(old, ignore_errors=True)
            else:
                os.replace(temporary, path)
            sync_folder(path.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def write_json(path: str | Path, value: Any) -> Path:
    """Writes JSON with sorted keys and a final newline, atomically; NaN and infinity are refused."""
    return write_atomic(path, json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n")


def read_json(path: str | Path) -> Any:
    """Reads JSON; a missing, empty or broken file is a TelosError that names it."""
    path = Path(path)
    try:
        return json.loads(path.read_text())
    except FileNotFoundError as error:
        raise TelosError(f"no such file: {path}", fix="check the path") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise TelosError(f"{path} is not JSON", got=str(error), fix="write the file again") from error
