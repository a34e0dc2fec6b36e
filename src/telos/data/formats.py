"""The data door: `load` turns a path or a name into a validated record."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import Any

from telos.core.errors import TelosError
from telos.data.bandit_formats import LINES, TABLES, is_log, load_bandit
from telos.data.options import Options
from telos.data.records import Demonstrations, LoggedBandit, Preferences, Prompts, Rankings, Transitions
from telos.data.rl_formats import MINARI_FILE, is_minari, load_gym, load_hdf5, load_minari, load_npz
from telos.data.rl_formats import save_npz as save_npz
from telos.data.scored import ScoredTexts
from telos.data.session_formats import NEEDED, is_sessions, load_sessions
from telos.data.text_formats import SUFFIXES, load_text, saved_dataset, text_files

TEXT = (Preferences, Demonstrations, Prompts, Rankings, ScoredTexts)
KNOWN = (
    "minari:ID, gym:ENV?steps=10000, a .npz, .hdf5, .jsonl, .jsonl.gz, .json, .parquet or .csv file, a folder with "
    "such text files or with a Minari or datasets.save_to_disk data set, or a hub name org/name"
)


def load(
    what: str | Path, *, kind: type | None = None, accepts: tuple[type, ...] = (), **options: Any
) -> Transitions | LoggedBandit | Preferences | Demonstrations | Prompts | Rankings | ScoredTexts:
    """Reads a data set and checks it.

    Args:
        what: where the data are. For transitions `minari:<dataset id>`, a Minari folder, .hdf5 or .h5 in D4RL's
            layout, .npz as `save_npz` writes it, or `gym:<EnvId>` to record from an environment. For texts .jsonl,
            .jsonl.gz, .json, .parquet, a folder with such files or from `datasets.save_to_disk`, or `org/name` on the
            hub. For logged decisions .csv, .csv.gz or .parquet with columns action and reward; with a column session
            besides they are transitions, for which .jsonl serves too. Options may follow as a query:
            `pairs?split=test`.
        kind: the record class that is wanted; None for the one that the columns suggest. Preferences also serve as
            Demonstrations (the chosen texts), and whatever has prompts as Prompts.
        accepts: record classes that will do as well: if the columns are those of one of them, that is what is made.
        options: `split`, `config` (hub) and column names (`prompt="question"`) for texts; `action_low`,
            `action_high`, `n_actions`, `clip_actions` for transitions from files; `steps`, `seed`, `policy` ("random"
            or the folder of a saved policy), `explore`, `scheme` for `gym:`; column names, `context` and `actions` for
            logged decisions and sessions, `auxiliary` for sessions. They override the query.

    Returns:
        a record whose `origin` is absolute, holds the options and can be loaded again.

    Raises:
        TelosError: naming the file, the record and the field, what was expected, what was got and the fix.
    """
    if accepts:
        found = load(what, **options)
        return found if isinstance(found, accepts) else load(what, kind=kind, **options)
    parsed = Options.parse(str(what), options)
    if not parsed.what:
        raise TelosError("no data set is named", expected=KNOWN)
    if kind is not None and kind not in (Transitions, LoggedBandit, *TEXT):
        raise TelosError(
            f"{parsed.what}: {kind.__name__} cannot be read from files", expected="Transitions, LoggedBandit, "
            "Preferences, Demonstrations, Prompts, Rankings or ScoredTexts",
            fix="make the record in Python and pass it to fit",
        )  # fmt: skip
    prefix, colon, name = parsed.what.partition(":")
    if colon and prefix in ("minari", "gym"):
        check_kind(kind, parsed.what, transitions=True)
        return load_minari(name, parsed) if prefix == "minari" else load_gym(name, parsed)

    path = Path(parsed.what).expanduser().absolute()
    try:
        return load_path(path, kind, parsed)
    except OSError as error:
        raise TelosError(
            f"{path} cannot be read", expected="a file or folder that you may read",
            got=error.strerror or str(error), fix="change its permissions, or copy it to a place of yours",
        ) from error  # fmt: skip


def load_path(path: Path, kind: type | None, options: Options) -> Any:
    """The record in a file or folder, or on the hub where there is no such path."""
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError, ValueError):
        name = options.what
        if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name) and not name.endswith((*SUFFIXES, ".npz", ".hdf5", ".h5")):
            check_kind(kind, name, transitions=False)
            return load_text(name, kind, options)
        raise TelosError(f"no such file or folder: {path}", expected=KNOWN, fix="check the path") from None
    if stat.S_ISDIR(mode):
        return load_folder(path, kind, options)
    if not stat.S_ISREG(mode):
        raise TelosError(f"{path} is no regular file", expected="a file or folder")
    if are_sessions(path, kind, options):
        return load_sessions(path, options)
    if path.name.endswith(TABLES) or (
        path.name.endswith(".parquet") and (kind is LoggedBandit or (kind is None and is_log(path, options)))
    ):
        if kind not in (None, LoggedBandit):
            raise TelosError(
                f"{path}: a .csv is read as logged decisions or sessions",
                expected=kind.__name__,
                fix="choose a method for these data, or convert texts to .jsonl",
            )
        return load_bandit(path, options)
    if path.name.endswith((*SUFFIXES,)):
        check_kind(kind, str(path), transitions=False)
        return load_text(path, kind, options)
    suffix = path.suffix.lower()
    if suffix not in (".npz", ".hdf5", ".h5"):
        raise TelosError(f"{path} has an unknown suffix '{suffix}'", expected=KNOWN, fix="convert the file")
    check_kind(kind, str(path), transitions=True)
    with path.open("rb") as file:
        if not file.read(1):
            raise TelosError(f"{path} is empty", expected="at least one transition")
    if path.name == MINARI_FILE and is_minari(path.parent):
        return load_minari(path.parent, options)
    return load_npz(path, options) if suffix == ".npz" else load_hdf5(path, options)


def are_sessions(path: Path, kind: type | None, options: Options) -> bool:
    """Whether a table is to be read as sessions: it says so, or transitions are wanted and it cannot be texts."""
    if kind not in (None, Transitions) or not path.name.endswith((*TABLES, *LINES, ".parquet")):
        return False
    if kind is None or path.name.endswith((*LINES, ".parquet")):
        return "session" in options.values or is_sessions(path, options, ("action", "reward") if kind else NEEDED)
    return True


def load_folder(folder: Path, kind: type | None, options: Options) -> Any:
    """The record in a Minari data set, a saved `datasets` folder, or a folder of text files."""
    inside = sorted(os.listdir(folder))
    minari = is_minari(folder)
    if minari is not None:
        check_kind(kind, str(folder), transitions=True)
        return load_minari(minari, options)
    if saved_dataset(folder) or text_files(folder):
        check_kind(kind, str(folder), transitions=False)
        return load_text(folder, kind, options)
    names = ", ".join(inside[:8]) + (", ..." if len(inside) > 8 else "")
    raise TelosError(
        f"{folder} holds no data set", expected=f"a folder with {', '.join(SUFFIXES)} files, or a Minari or "
        "datasets.save_to_disk data set", got=names or "an empty folder", fix="give the file itself",
    )  # fmt: skip


def check_kind(kind: type | None, what: str, *, transitions: bool) -> None:
    """Raises TelosError where transitions are wanted and texts are given, or the other way round, or a log is."""
    if kind is LoggedBandit or (kind is not None and (kind is Transitions) != transitions):
        raise TelosError(
            f"{what} holds {'transitions' if transitions else 'texts'}", expected=f"{kind.__name__}",
            fix="choose a method for these data, or other data",
        )  # fmt: skip
