"""`telos site build OUT`: the pages as files, for any file server or none."""

from __future__ import annotations

import shutil
from pathlib import Path

from telos.core.errors import TelosError
from telos.core.files import folder_atomic
from telos.site.content import Library
from telos.site.render import Site

MARK = "telos-site.txt"
"""Lies in every folder that was built, so that only such a folder is ever replaced."""


def build(out: str | Path, *, base: str = "", library: Library | None = None) -> list[str]:
    """Writes every page below `out` and returns their paths; the folder appears whole or not at all.

    Args:
        base: the address where the site will stand, for the feed's links.

    Raises:
        TelosError: `out` holds something that telos has not written.
    """
    out = Path(out).resolve()
    if out.exists() and not out.is_dir():
        raise TelosError(f"{out} is a file", expected="a folder to write the pages to")
    if out.is_dir() and any(out.iterdir()) and not (out / MARK).is_file():
        raise TelosError(
            f"{out} holds files that telos did not write", expected="a new or empty folder, or an earlier build",
            fix="name another folder, or empty this one",
        )  # fmt: skip
    if base and not base.endswith("/"):
        base += "/"
    for path in leftovers(out):
        shutil.rmtree(path, ignore_errors=True)
    site = Site(library or Library(), base=base)
    written: list[str] = []
    with folder_atomic(out) as folder:
        (folder / MARK).write_text("Written by `telos site build`, which may replace this folder.\n")
        contents = {site.link(path): page for path, page in site.pages.items()} | dict(site.files)
        for path, make in contents.items():
            made = make()
            file = folder / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(made.encode() if isinstance(made, str) else made)
            written.append(path)
    return written


def leftovers(out: Path) -> list[Path]:
    """What builds to `out` left beside it when they were killed."""
    beside = out.parent.iterdir() if out.parent.is_dir() else ()
    found = [path for path in beside if path.name.startswith(f".{out.name}.") and path.suffix in (".tmp", ".old")]
    return [path for path in found if (path / MARK).is_file() or (path / "old" / MARK).is_file()]
