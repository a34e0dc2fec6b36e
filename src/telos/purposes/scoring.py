"""Asking a purpose: the arguments by its signature, in batches, each different row once, every answer checked."""

from __future__ import annotations

import hashlib
import inspect
import math
import traceback
import types
import weakref
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from telos.core.errors import TelosError

REMEMBERED = 200_000
"""Scores kept for each purpose; the one not used for longest goes first."""

_MEMORIES: weakref.WeakKeyDictionary[Any, OrderedDict[bytes, float | None]] = weakref.WeakKeyDictionary()


@dataclass(frozen=True)
class Rows:
    """N prompts with their completions and the data's other columns, row by row."""

    prompts: Sequence[Any]
    completions: Sequence[Any]
    columns: Mapping[str, Sequence[Any]]
    completion_ids: Sequence[Any] | None = None

    def __post_init__(self) -> None:
        extra = {} if self.completion_ids is None else {"completion_ids": self.completion_ids}
        for name, column in {"completions": self.completions, **self.columns, **extra}.items():
            if len(column) != len(self.prompts):
                raise TelosError(
                    f"'{name}' has {len(column)} rows", expected=f"{len(self.prompts)}, one for each prompt"
                )

    def __len__(self) -> int:
        return len(self.prompts)

    def take(self, index: Sequence[int]) -> Rows:
        """The rows at `index`."""
        ids = self.completion_ids
        return Rows(
            [self.prompts[i] for i in index],
            [self.completions[i] for i in index],
            {name: [column[i] for i in index] for name, column in self.columns.items()},
            None if ids is None else [ids[i] for i in index],
        )

    def key(self, row: int) -> bytes:
        """A hash of all that a purpose can see of a row."""
        digest = hashlib.blake2b(digest_size=16)
        values = [self.prompts[row], self.completions[row], *(column[row] for column in self.columns.values())]
        if self.completion_ids is not None:
            values.append(self.completion_ids[row])
        for value in (*self.columns, *values):
            # The text of an array or a tensor leaves out its middle.
            whole = getattr(value, "tolist", lambda value=value: value)()
            digest.update(repr(whole).encode("utf-8", "replace"))
            digest.update(b"\x1e")
        return digest.digest()


def score(
    purpose: Any,
    prompts: Sequence[Any],
    completions: Sequence[Any],
    *,
    columns: Mapping[str, Sequence[Any]] | None = None,
    completion_ids: Sequence[Any] | None = None,
    batch_size: int = 256,
) -> np.ndarray:
    """(N,) float32 scores of completions, higher is better.

    Scores are remembered by content, and equal rows are asked once, where the purpose is deterministic by declaration:
    its attribute `cache`, which is True for built-in purposes and plain functions unless they say `cache = False`
    (needed where the score depends on chance, time or the other rows), and False for everything else.

    Args:
        purpose: what `resolve` returns, a reward model, or any callable with one of the signatures of
            `telos.purposes.user`.
        columns: the data's other columns, N values each.
        completion_ids: N lists of token ids, for functions that name them.
        batch_size: rows of one call at most.

    Raises:
        TelosError: columns of another length or missing; an exception inside the purpose, with the first prompt of
            its batch; the wrong number of scores; one that is no finite number (or None, unless another purpose of a
            weighted sum has a score there), with its prompt and completion.
    """
    rows = Rows(prompts, completions, columns or {}, completion_ids)
    terms = getattr(purpose, "terms", None)
    weighted = [(purpose, 1.0)] if terms is None else terms
    total = np.zeros(len(rows))
    scored = np.zeros(len(rows), dtype=bool)
    for term, weight in weighted:
        values = term_scores(term, rows, batch_size)
        present = np.array([value is not None for value in values], dtype=bool)
        total[present] += weight * np.array([value for value in values if value is not None], dtype=np.float64)
        scored |= present
    with np.errstate(over="ignore"):
        result = total.astype(np.float32)
    if not scored.all():
        row = int((~scored).argmax())
        raise bad_score(purpose, None, rows, row)
    if not np.isfinite(result).all():
        row = int((~np.isfinite(result)).argmax())
        raise bad_score(purpose, float(total[row]), rows, row)
    return result


def term_scores(purpose: Any, rows: Rows, batch_size: int) -> list[float | None]:
    """The scores of one purpose, None where it does not apply; remembered ones are not asked again."""
    if not remembers(purpose):
        return asked(purpose, rows, batch_size)
    memory = _MEMORIES.setdefault(purpose, OrderedDict())
    keys = [rows.key(row) for row in range(len(rows))]
    known = {key: memory[key] for key in keys if key in memory}
    # Of rows that are equal the first is asked.
    new = sorted({key: row for row, key in reversed(list(enumerate(keys))) if key not in known}.values())
    for row, value in zip(new, asked(purpose, rows.take(new), batch_size), strict=True):
        known[keys[row]] = value
    for key in known:
        memory[key] = known[key]
        memory.move_to_end(key)
    while len(memory) > REMEMBERED:
        memory.popitem(last=False)
    return [known[key] for key in keys]


def remembers(purpose: Any) -> bool:
    """Whether the scores of `purpose` may be kept: it says so, or it is a plain function that does not say no."""
    if not getattr(purpose, "cache", isinstance(purpose, types.FunctionType)):
        return False
    try:
        weakref.ref(purpose)
        hash(purpose)
    except TypeError:
        return False
    return True


def asked(purpose: Any, rows: Rows, batch_size: int) -> list[float | None]:
    """The scores of all rows, a batch at a time."""
    values: list[float | None] = []
    for start in range(0, len(rows), batch_size):
        values += answers(purpose, rows.take(range(start, min(start + batch_size, len(rows)))))
    return values


def answers(purpose: Any, rows: Rows) -> list[float | None]:
    """One call, its answers as numbers."""
    try:
        found = call(purpose, rows)
        if hasattr(found, "detach"):
            found = found.detach().float().cpu()
        found = found.tolist() if hasattr(found, "tolist") else list(found)
    except TelosError:
        raise
    # The user's code raises what it likes.
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        raise TelosError(
            f"the purpose {title(purpose)} failed on a batch of {len(rows)} that begins with prompt "
            f"{shown(rows.prompts[0])}",
            got=f"{type(error).__name__}: {error} ({Path(place.filename).name}, line {place.lineno})",
            expected="one number for each completion",
        ) from error
    if len(found) != len(rows):
        raise TelosError(
            f"the purpose {title(purpose)} returned the wrong number of scores for a batch that begins with prompt "
            f"{shown(rows.prompts[0])}",
            expected=f"{len(rows)}, one for each completion",
            got=str(len(found)),
        )
    for row, value in enumerate(found):
        if value is not None and not (isinstance(value, int | float | np.number) and math.isfinite(value)):
            raise bad_score(purpose, value, rows, row)
    return [None if value is None else float(value) for value in found]


def call(purpose: Any, rows: Rows) -> Any:
    """Calls a purpose or function with what its parameters name.

    Raises:
        TelosError: a parameter without a default that is no column of the data; two parameters that may be the two
            texts, or not.
    """
    function = getattr(purpose, "function", purpose)
    texts: dict[str, Any] = {"prompts": rows.prompts, "completions": rows.completions}
    ids = {} if rows.completion_ids is None else {"completion_ids": rows.completion_ids}
    offered = {**rows.columns, **ids, **texts}
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return function(rows.prompts, rows.completions)
    first = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)][:2]
    names = [p.name for p in first]
    # TRL's functions are called by name. One with other names for the two texts takes them by position.
    by_position = len(first) == 2 and ("completions" not in names or names[0] not in offered)
    if by_position and set(names) & set(rows.columns):
        raise TelosError(
            f"the purpose {title(purpose)} names a column of the data but not the completions",
            got=f"the parameters {', '.join(p.name for p in parameters)}",
            fix="call the parameters prompts and completions",
        )
    by_position = by_position or (not first and any(p.kind is p.VAR_POSITIONAL for p in parameters))
    rest = [p for p in parameters if not (by_position and p in first)]
    given = {p.name: offered[p.name] for p in rest if p.name in offered}
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        given = {**rows.columns, **({} if by_position else texts), **given}
    for parameter in rest:
        several = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        if parameter.default is parameter.empty and not several and parameter.name not in given:
            raise TelosError(
                f"the purpose {title(purpose)} needs the column '{parameter.name}'",
                expected=f"a column of that name beside the prompts (there are: {', '.join(rows.columns) or 'none'})",
                fix="add the column to the data, or give the parameter a default",
            )
    return function(*(texts.values() if by_position else ()), **given)


def bad_score(purpose: Any, value: Any, rows: Rows, row: int) -> TelosError:
    """The error for a score that is not a finite number."""
    return TelosError(
        f"the purpose {title(purpose)} returned {value!r} for prompt {shown(rows.prompts[row])}",
        expected="a finite number" + (" (None only beside another purpose in a weighted sum)" if value is None else ""),
        got=f"for the completion {shown(rows.completions[row])}",
        fix="return a number for every completion",
    )


def title(purpose: Any) -> str:
    """The name of a purpose, for messages."""
    name = getattr(purpose, "origin", None) or getattr(purpose, "__name__", None) or type(purpose).__name__
    return f"'{str(name).partition(' sha256:')[0]}'"


def shown(value: Any) -> str:
    """A text or conversation, cut to 120 characters."""
    text = repr(value)
    return text if len(text) <= 120 else text[:117] + "..."


def plain(completion: Any) -> str:
    """The words of a completion: itself, or the contents of its messages."""
    if isinstance(completion, str):
        return completion
    return "\n".join(str(message.get("content") or "") for message in completion)
