"""Logged sessions, one row a step, from .csv, .jsonl (both also .gz) and .parquet: transitions with several responses.

| column     | what it holds                                                                                      |
|------------|----------------------------------------------------------------------------------------------------|
| session    | which session the step belongs to: a text or a number                                              |
| action     | the action taken: a text or a whole number; with action_low and action_high, columns of numbers    |
| reward     | the main response, a number                                                                        |
| timestamp  | orders the steps of a session (numbers or dates); without it they are in the file's order          |
| propensity | the probability (of continuous actions the density) with which the action was taken; may be absent |
| terminated | 0 or 1 at a session's last step: whether the session itself ended there, or the log was cut; may   |
|            | be absent (all ended)                                                                              |
| the others | what was observed before the action: numbers, flags, texts (0/1 columns "country=NL"), lists of    |
|            | numbers of one length                                                                              |

An option named like a column says what the file calls it: ?session=visit&action=item&reward=watch_time. Further:
auxiliary=like,share names columns with further responses; context=x1,country the observed columns; actions=a,b,c all
actions in their order (else those that the file mentions, sorted); action_low and action_high bounds of continuous
actions, of which action=a1,a2 may name several. The record's observation_names and action_names, given as options
context and actions, read another file in just the same way. Where the log was cut, the last step of a session, whose
next observation is unknown, is left out, and the one before is `truncated`. Rows count from 0, without the header.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from telos.core.errors import TelosError
from telos.data.bandit_formats import (
    LINES,
    contexts,
    given_names,
    in_order,
    labels,
    numbers,
    read_table,
)
from telos.data.options import Options
from telos.data.records import Discrete, Transitions
from telos.data.rl_formats import finished, given_space, shifted

NEEDED = ("session", "action", "reward")
COLUMNS = (*NEEDED, "timestamp", "propensity", "terminated")
OPTIONS = (*COLUMNS, "auxiliary", "context", "actions", "action_low", "action_high", "clip_actions")


def is_sessions(path: Path, options: Options, needed: Sequence[str] = NEEDED) -> bool:
    """Whether the file has these columns (or those that the options name in their place)."""
    wanted = {name for column in needed for name in options.values.get(column, column).split(",")}
    return wanted <= set(first_names(path))


def first_names(path: Path) -> list[str]:
    """The column names of a table's header or first row; empty where they cannot be read."""
    import gzip

    try:
        if path.name.endswith(".parquet"):
            import pyarrow.parquet as pq

            return pq.read_schema(path).names
        with gzip.open(path, "rb") if path.name.endswith(".gz") else path.open("rb") as file:
            line = file.readline().decode("utf-8-sig")
        if path.name.endswith(LINES):
            row = json.loads(line)
            return list(row) if isinstance(row, dict) else []
        return [name.strip().strip('"') for name in line.split(",")]
    except PermissionError:
        raise
    except (ImportError, OSError, EOFError, ValueError):
        return []


def load_sessions(path: Path, options: Options) -> Transitions:
    """Reads the sessions in `path`.

    Raises:
        TelosError: naming the file, the column and the first bad row.
    """
    options.only(*OPTIONS)
    table = flat(read_table(path), path)
    names = column_names(table.column_names, path, options)
    if table.num_rows == 0:
        raise TelosError(f"{path} is empty", expected="at least one step")
    auxiliary = given_names(options, "auxiliary")
    order, last = session_order(table, names, path)

    def column(name: str) -> np.ndarray:
        return numbers(table[name], f"{path}: column '{name}'")[order]

    given = given_names(options, "context")
    reserved = {*names["action"].split(","), *names.values(), *auxiliary}
    wanted = given or [name for name in table.column_names if name not in reserved]
    observations, observation_names = contexts(table, wanted, bool(given), path)
    columns = {"observations": observations[order], "rewards": column(names["reward"])}
    columns["actions"], actions = taken(table, names["action"], path, options)
    columns["actions"] = columns["actions"][order]
    if auxiliary:
        columns["auxiliary"] = np.stack([column(name) for name in auxiliary], 1)
    if names["propensity"] in table.column_names:
        columns["log_probs"] = log_probs(column(names["propensity"]), bool(actions), names["propensity"], path, order)
    ended = last
    if names["terminated"] in table.column_names:
        ended = column(names["terminated"]) != 0
        if (ended & ~last).any():
            row = int(order[int((ended & ~last).argmax())])
            raise TelosError(
                f"{path}: column '{names['terminated']}', row {row} ends its session, which goes on",
                expected="0 at all steps but the last of a session",
                fix="give what follows another session, or mend the order of its steps (?timestamp=COLUMN)",
            )
    columns = shifted(columns, ended, last & ~ended)
    if not len(columns["rewards"]):
        raise TelosError(
            f"{path}: no session has two steps, and all were cut", expected="steps with what follows them",
            fix=f"say which sessions ended by themselves in column '{names['terminated']}'",
        )  # fmt: skip
    width = columns["actions"].shape[1] if columns["actions"].ndim == 2 else 0
    space = Discrete(len(actions)) if actions else given_space(options, {}, width)
    assert space is not None
    named: dict[str, Any] = {
        "auxiliary_names": auxiliary, "observation_names": observation_names, "action_names": actions,
    }  # fmt: skip
    return finished({**columns, **named}, space, path, options)


def column_names(present: list[str], path: Path, options: Options) -> dict[str, str]:
    """What the file calls each column; TelosError for one that is missing or has two parts to play."""
    names = {name: options.values.get(name, name) for name in COLUMNS}
    parts = {name: called.split(",") if name == "action" else [called] for name, called in names.items()}
    parts["auxiliary"] = given_names(options, "auxiliary")
    for name, called in parts.items():
        for column in called:
            if column not in present and (name in NEEDED or name in options.values):
                raise TelosError(
                    f"{path}: column '{column}' is missing", expected=", ".join(NEEDED) + " and what was observed",
                    got=", ".join(present), fix=f"say what it is called: ?{name}=COLUMN",
                )  # fmt: skip
    chosen = [column for name, called in parts.items() for column in called if column in present]
    twice = next((column for column in chosen if chosen.count(column) > 1), None)
    if twice is not None:
        raise TelosError(
            f"{path}: column '{twice}' is asked for twice", expected="a column of its own for each option",
            got=" and ".join(name for name, called in parts.items() if twice in called), fix="mend the options",
        )  # fmt: skip
    return names


def flat(table: Any, path: Path) -> Any:
    """The table with each column of lists of numbers as columns NAME0, NAME1, ..."""
    import pyarrow as pa

    for name in table.column_names:
        kind = table[name].type
        if not (pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)):
            continue
        rows = table[name].to_pylist()
        widths = [len(row) if row is not None else -1 for row in rows]
        bad = next((row for row, width in enumerate(widths) if width != widths[0] or width < 1), None)
        if bad is not None:
            raise TelosError(
                f"{path}: column '{name}', row {bad} is no list like the others",
                expected=f"a list of {max(widths[0], 1)} numbers", got=repr(rows[bad])[:60], fix="mend that row",
            )  # fmt: skip
        place = table.column_names.index(name)
        table = table.remove_column(place)
        for index in range(widths[0]):
            table = table.add_column(place + index, f"{name}{index}", pa.array([row[index] for row in rows]))
    return table


def session_order(table: Any, names: dict[str, str], path: Path) -> tuple[np.ndarray, np.ndarray]:
    """The rows, session by session as they first appear and in the order of time; and which are a session's last."""
    sessions = table[names["session"]].to_pylist()
    empty = next((row for row, name in enumerate(sessions) if name is None or name == ""), None)
    if empty is not None:
        raise TelosError(
            f"{path}: column '{names['session']}', row {empty} is empty", expected="a text or a number",
            fix="fill it in, or remove the row",
        )  # fmt: skip
    place = {name: index for index, name in enumerate(dict.fromkeys(sessions))}
    session = np.array([place[name] for name in sessions])
    times = np.zeros(len(session))
    if names["timestamp"] in table.column_names:
        times = numbers(table[names["timestamp"]], f"{path}: column '{names['timestamp']}'")
    order = np.lexsort((np.arange(len(session)), times, session))
    ordered = session[order]
    return order, np.append(ordered[1:] != ordered[:-1], True)


def taken(table: Any, action: str, path: Path, options: Options) -> tuple[np.ndarray, list[str]]:
    """(N,) indices of discrete actions with their names, or (N, A) numbers and no names."""
    columns = action.split(",")
    if {"action_low", "action_high"} & set(options.values):
        return np.stack([numbers(table[name], f"{path}: column '{name}'") for name in columns], 1), []
    if len(columns) > 1:
        raise TelosError(
            f"{path}: actions of {len(columns)} columns need bounds", expected="action_low and action_high",
            got=f"?action={action}", fix="add them: &action_low=-1&action_high=1",
        )  # fmt: skip
    found = labels(table[action], f"{path}: column '{action}'")
    names = given_names(options, "actions") or in_order(set(found))
    place = {name: index for index, name in enumerate(names)}
    indices = np.array([place.get(name, -1) for name in found])
    if (indices < 0).any():
        row = int(np.argmin(indices))
        raise TelosError(
            f"{path}: column '{action}', row {row} is no known action", expected=" or ".join(names[:20]),
            got=repr(found[row]), fix="mend that row, or name all actions: ?actions=a,b,c",
        )  # fmt: skip
    return indices, names


def log_probs(propensities: np.ndarray, discrete: bool, name: str, path: Path, order: np.ndarray) -> np.ndarray:
    """Logarithms of the propensities (in the order of sessions), which must be in (0, 1], densities above 0."""
    bad = ~(propensities > 0) | (discrete & (propensities > 1))
    if bad.any():
        place = int(bad.argmax())
        raise TelosError(
            f"{path}: column '{name}', row {int(order[place])} is no probability",
            expected="above 0 and at most 1" if discrete else "a density above 0", got=f"{propensities[place]:g}",
            fix="mend that row, or leave the column out: then a policy cloned from the log stands for it",
        )  # fmt: skip
    return np.log(propensities)
