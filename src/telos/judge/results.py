"""Results on disk: results/<slug>.<scale>.json beside src/. Light: no torch, no numpy."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from telos.core.errors import TelosError
from telos.core.files import read_json, write_json
from telos.core.registry import PACKAGE

Result = dict[str, Any]

SCALES = ("laptop", "standard")
FILE_NAME = re.compile(r"^([a-z0-9_]+)\.([a-z]+)\.json$")


def repository() -> Path | None:
    """The source tree that this package runs from, or None where it is installed without one."""
    root = PACKAGE.parent.parent
    return root if root / "src" / "telos" == PACKAGE else None


def results_folder(root: Path | None = None) -> Path | None:
    """The folder results/ of the source tree (or of `root`), or None where there is none."""
    root = root or repository()
    return root / "results" if root is not None and (root / "results").is_dir() else None


def read_results(folder: Path | None = None) -> dict[tuple[str, str], Result]:
    """Every recorded result by (slug, scale), in order; empty where there is no results folder."""
    folder = folder or results_folder()
    found: dict[tuple[str, str], Result] = {}
    for path in sorted(folder.glob("*.json")) if folder is not None else ():
        named = FILE_NAME.match(path.name)
        if named:
            found[named[1], named[2]] = read_json(path)
    return found


def read_result(slug: str, scale: str = "laptop", folder: Path | None = None) -> Result:
    """One recorded result; TelosError where it has not been measured."""
    folder = folder or results_folder()
    file = folder / f"{slug}.{scale}.json" if folder is not None else None
    if file is None or not file.is_file():
        raise TelosError(f"no result of '{slug}' at scale '{scale}'", fix=f"`telos check {slug} --scale {scale}`")
    return read_json(file)


def mark_stale(slug: str, scale: str = "laptop", stale: bool = True, folder: Path | None = None) -> None:
    """Sets the field "stale" of a recorded result, which listings show; its word before goes into its history.

    The date of the mark is kept as "stale_since", or where the mark is taken back as "fresh_since". Nothing is written
    where the mark is set as asked already.
    """
    result = read_result(slug, scale, folder)
    if result["stale"] == stale:
        return
    folder = folder or results_folder()
    assert folder is not None
    kept = {key: value for key, value in result.items() if key not in ("stale_since", "fresh_since")}
    mark = {"stale": stale, "stale_since" if stale else "fresh_since": now(), "history": history_with(result)}
    write_json(folder / f"{slug}.{scale}.json", {**kept, **mark})


@dataclass(frozen=True)
class Change:
    """A claim got another word: from `date` (ISO, UTC) on it is `verdict`, or "stale"; `before` is None at first."""

    date: str
    slug: str
    scale: str
    verdict: str
    before: str | None


def changes(results: Mapping[tuple[str, str], Result]) -> list[Change]:
    """Every change of a word that the results and their histories tell of, newest first.

    The first verdict is a change; the same verdict measured again is none.
    """
    found: list[Change] = []
    for (slug, scale), result in results.items():
        before = None
        for state in history_with(result):
            if state["verdict"] != before:
                found.append(Change(state["date"], slug, scale, state["verdict"], before))
            before = state["verdict"]
    # Reversed after the stable sort: of two changes within one second the later stands first too.
    return sorted(found, key=lambda change: change.date)[::-1]


def history_with(result: Result) -> list[dict[str, Any]]:
    """The states that a result has had, oldest first, its own last: {"date", "verdict", "commit"}.

    "verdict" is the verdict or "stale", "date" since when it was that, "commit" the code that was measured. The same
    list stands in a result that replaces this one, under "history".
    """
    stale = result.get("stale", False)
    since = result.get("stale_since" if stale else "fresh_since", result["date"])
    commit = result["git"]["commit"] if result.get("git") else None
    state = {"date": since, "verdict": "stale" if stale else result["verdict"], "commit": commit}
    return [*result.get("history", []), state]


def now() -> str:
    """The time as results write it: ISO 8601, UTC, whole seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def git_state(root: Path | None) -> dict[str, Any] | None:
    """{"commit": hash, "dirty": changed paths outside results/}, or None outside git."""
    if root is None or not (root / ".git").exists():
        return None
    try:
        commit = _git(root, "rev-parse", "HEAD").strip()
        # -z: entries end with NUL and paths stand as they are, after two letters of state and a space.
        entries = _git(root, "status", "--porcelain", "-z", "--no-renames").split("\0")
    except (OSError, subprocess.CalledProcessError):
        return None
    changed = [entry[3:] for entry in entries if entry]
    return {"commit": commit, "dirty": [path for path in changed if not path.startswith("results/")]}


def _git(root: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=root, check=True, capture_output=True, text=True).stdout
