"""Logged decisions of a contextual bandit from .csv, .csv.gz and .parquet.

| column     | what it holds                                                                                  |
|------------|------------------------------------------------------------------------------------------------|
| action     | the action taken: a text, or a whole number                                                    |
| reward     | a number                                                                                       |
| propensity | the probability with which it was taken, in (0, 1]; may be absent (no off-policy evaluation)   |
| allowed    | the actions that could be taken: a list, or a text "a|b|c"; or one 0/1 column allowed_NAME     |
|            | for each action; without any of them all actions are allowed                                   |
| timestamp  | when it was decided (numbers or dates); rows are put in its order; may be absent               |
| received   | when the reward became known, same unit; may be absent                                         |
| the others | the context: numbers, flags, or texts, each of which becomes a 0/1 column "country=NL"         |

An option named like a column says what the file calls it (?action=arm&reward=paid). context=x1,country names the
context's columns, and actions=a,b,c all actions in their order; without it they are those that the file mentions,
sorted. A policy's `context_names` and `action_names`, given as these options, read another file in just the way in
which the policy's own log was read. Rows are counted from 0, without the header.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from telos.core.errors import TelosError
from telos.data.extras import extra
from telos.data.options import Options
from telos.data.records import LoggedBandit

TABLES = (".csv", ".csv.gz")
LINES = (".jsonl", ".jsonl.gz")
COLUMNS = ("action", "reward", "propensity", "allowed", "timestamp", "received")
PREFIX = "allowed_"
MOST_CATEGORIES = 1000


def load_bandit(path: Path, options: Options) -> LoggedBandit:
    """Reads the log in `path`.

    Raises:
        TelosError: naming the file, the column and the first bad row.
    """
    options.only(*COLUMNS, "context", "actions")
    table = read_table(path)
    present = table.column_names
    names = {name: options.values.get(name, name) for name in COLUMNS}
    for name, column in names.items():
        if column not in present and (name in ("action", "reward") or name in options.values):
            raise TelosError(
                f"{path}: column '{column}' is missing", expected=", ".join(COLUMNS[:2]) + " and the context",
                got=", ".join(present) or "no columns", fix=f"say what it is called: ?{name}=COLUMN",
            )  # fmt: skip
    if table.num_rows == 0:
        raise TelosError(f"{path} is empty", expected="at least one decision")
    flags = [column for column in present if column.startswith(PREFIX)]
    taken = labels(table[names["action"]], f"{path}: column '{names['action']}'")
    lists = None
    if names["allowed"] in present:
        lists = allowed_lists(table[names["allowed"]], f"{path}: column '{names['allowed']}'")
    actions = given_names(options, "actions") or (
        [column.removeprefix(PREFIX) for column in flags]
        if flags and lists is None
        else in_order({*taken, *(label for row in lists or () for label in row)})
    )
    place = {label: index for index, label in enumerate(actions)}
    indices = np.array([place.get(label, -1) for label in taken])
    if (indices < 0).any():
        row = int(np.argmin(indices))
        raise TelosError(
            f"{path}: column '{names['action']}', row {row} is no known action", expected=" or ".join(actions[:20]),
            got=repr(taken[row]), fix="mend that row, or name all actions: ?actions=a,b,c",
        )  # fmt: skip
    given = given_names(options, "context")
    reserved = {*names.values(), *flags}
    wanted = given or [column for column in present if column not in reserved]
    context, context_names = contexts(table, wanted, bool(given), path)
    columns = {
        name: numbers(table[names[name]], f"{path}: column '{names[name]}'") for name in present_of(names, table)
    }
    return LoggedBandit.validated(
        contexts=context,
        actions=indices,
        rewards=columns["reward"],
        allowed=mask(table, lists, flags, actions, path),
        propensities=columns.get("propensity"),
        timestamps=columns.get("timestamp"),
        received=columns.get("received"),
        n_actions=len(actions),
        action_names=actions,
        context_names=context_names,
        origin=options.origin(path),
    )


def is_log(path: Path, options: Options) -> bool:
    """Whether a parquet file, which may hold texts as well, has the columns of a log."""
    with extra("lm", str(path)):
        import pyarrow as pa
        import pyarrow.parquet as pq
    try:
        present = set(pq.read_schema(path).names)
    except (pa.ArrowException, OSError):
        return False
    return {options.values.get(name, name) for name in ("action", "reward")} <= present


def read_table(path: Path) -> Any:
    """The file, .csv, .jsonl or .parquet, as a pyarrow Table."""
    with extra("rl", str(path)):
        import pyarrow as pa
        import pyarrow.csv
        import pyarrow.json
        import pyarrow.parquet
    if path.stat().st_size == 0:
        raise TelosError(f"{path} is empty", expected="a header and at least one decision")
    try:
        if path.name.endswith(TABLES):
            table = pyarrow.csv.read_csv(path)
        elif path.name.endswith(LINES):
            with pa.input_stream(path) as stream:
                table = pyarrow.json.read_json(stream)
        else:
            table = pyarrow.parquet.read_table(path)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        if isinstance(error, PermissionError):
            raise
        raise TelosError(
            f"{path} cannot be read", expected="a whole .csv with a header, .jsonl or .parquet",
            got=str(error).split("\n")[0], fix="write the file again, in UTF-8",
        ) from error  # fmt: skip
    # What pandas adds for its index; a row number among the context would be learnt from.
    table = table.drop_columns([name for name in table.column_names if name.startswith("__index_level_")])
    if "" in table.column_names:
        raise TelosError(
            f"{path}: column {table.column_names.index('')} has no name", expected="a name for each column",
            fix="name it, or remove it (pandas: to_csv(index=False))",
        )  # fmt: skip
    twice = sorted({name for name in table.column_names if table.column_names.count(name) > 1})
    if twice:
        raise TelosError(f"{path}: column '{twice[0]}' occurs twice", fix="rename one of them")
    return table


def present_of(names: dict[str, str], table: Any) -> list[str]:
    """The columns of numbers that the table has."""
    wanted = ("reward", "propensity", "timestamp", "received")
    return [name for name in wanted if names[name] in table.column_names]


def numbers(column: Any, where: str) -> np.ndarray:
    """(N,) float64; dates as seconds since 1970."""
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = column.type
    if column.null_count:
        row = column.is_null().to_pylist().index(True)
        raise TelosError(
            f"{where}, row {row} is empty", expected="a number", fix="fill it in, or remove the row or the column"
        )
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        return np.asarray(pc.cast(pc.cast(column, pa.timestamp("us")), pa.int64())).astype(np.float64) / 1e6
    if pa.types.is_boolean(kind):
        column = pc.cast(column, pa.int8())
    elif not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)):
        row, value = first_text(column)
        raise TelosError(f"{where}, row {row} is not a number", expected="a number", got=value, fix="mend that row")
    return np.asarray(pc.cast(column, pa.float64(), safe=False))


def first_text(column: Any) -> tuple[int, str]:
    """The first entry that is no number; one text makes a whole column of a .csv text."""
    for row, value in enumerate(column.to_pylist()):
        try:
            float(value)
        except (TypeError, ValueError):
            return row, repr(value)
    return 0, repr(column[0].as_py())


def labels(column: Any, where: str) -> list[str]:
    """Actions as texts."""
    found = column.to_pylist()
    for row, value in enumerate(found):
        if value is None or value == "" or (isinstance(value, float) and not value.is_integer()):
            raise TelosError(
                f"{where}, row {row} is no action", expected="a text or a whole number", got=repr(value),
                fix="fill it in, or remove the row",
            )  # fmt: skip
    return [label(value) for value in found]


def label(value: Any) -> str:
    """An action's name: 3 and 3.0 are the same one."""
    return str(int(value)) if isinstance(value, float) else str(value).strip()


def allowed_lists(column: Any, where: str) -> list[list[str]]:
    """The allowed actions of each row, from lists or texts "a|b|c"."""
    rows: list[list[str]] = []
    for row, value in enumerate(column.to_pylist()):
        parts = value if isinstance(value, list) else str("" if value is None else value).split("|")
        found = [label(part) for part in parts if part is not None and str(part).strip()]
        if not found:
            raise TelosError(f"{where}, row {row} allows nothing", expected='actions, as "a|b|c"', got=repr(value))
        rows.append(found)
    return rows


def in_order(found: set[str]) -> list[str]:
    """Whole numbers by size, and where there are other names, all by alphabet."""
    return sorted(found, key=int) if all(name.lstrip("-").isdigit() for name in found) else sorted(found)


def given_names(options: Options, name: str) -> list[str]:
    """The comma-separated names of an option; empty without it."""
    found = [part for part in options.values.get(name, "").split(",") if part]
    if name in options.values and (not found or len(set(found)) != len(found)):
        raise TelosError(
            f"{options.what}: option '{name}' is wrong", expected="names, each once: a,b,c", got=options.values[name]
        )
    return found


def mask(table: Any, lists: list[list[str]] | None, flags: list[str], actions: list[str], path: Path) -> Any:
    """(N, K) bool; None where the file does not say what is allowed."""
    place = {name: index for index, name in enumerate(actions)}
    if lists is not None:
        allowed = np.zeros((len(lists), len(actions)), bool)
        for row, names in enumerate(lists):
            for name in names:
                if name not in place:
                    raise TelosError(
                        f"{path}: row {row} allows an unknown action", expected=" or ".join(actions[:20]),
                        got=repr(name), fix="name all actions: ?actions=a,b,c",
                    )  # fmt: skip
                allowed[row, place[name]] = True
        return allowed
    if not flags:
        return None
    allowed = np.zeros((table.num_rows, len(actions)), bool)
    for column in flags:
        name = column.removeprefix(PREFIX)
        values = numbers(table[column], f"{path}: column '{column}'")
        if name not in place or not np.isin(values, (0, 1)).all():
            raise TelosError(
                f"{path}: column '{column}' is wrong", expected="0 or 1 a row, for a known action",
                got=f"values {np.unique(values)[:5].tolist()}; actions {', '.join(actions[:20])}",
            )  # fmt: skip
        allowed[:, place[name]] = values > 0
    missing = [name for name in actions if PREFIX + name not in flags]
    if missing:
        raise TelosError(f"{path}: column '{PREFIX}{missing[0]}' is missing", expected="one for each action")
    return allowed


def contexts(table: Any, wanted: Sequence[str], chosen: bool, path: Path) -> tuple[np.ndarray, list[str]]:
    """The context (N, D) and its D names. `chosen` columns may be "country=NL": 1 where the text is that."""
    import pyarrow as pa

    if not wanted:
        raise TelosError(
            f"{path}: no context", expected="columns besides " + ", ".join(COLUMNS), fix="add a constant column"
        )
    found: list[np.ndarray] = []
    names: list[str] = []
    known: dict[str, list[str]] = {}
    for name in wanted:
        column, sign, category = name.partition("=")
        if chosen and sign and name not in table.column_names and column in table.column_names:
            known.setdefault(column, []).append(category)
            found.append(np.array([value == category for value in texts(table[column], path, column)], np.float64))
            names.append(name)
            continue
        if name not in table.column_names:
            raise TelosError(
                f"{path}: column '{name}' is missing", expected="the columns that option 'context' names",
                got=", ".join(table.column_names), fix="mend the option: ?context=x1,x2",
            )  # fmt: skip
        kind = table[name].type
        if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
            raise TelosError(
                f"{path}: column '{name}' holds dates, which are no context", expected="numbers, flags or categories",
                fix=f"if it is when decisions were made: ?timestamp={name}; or name the context: ?context=x1,x2",
            )  # fmt: skip
        if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_dictionary(kind):
            values = texts(table[name], path, name)
            categories = sorted(set(values))
            check_categories(categories, values, path, name)
            found += [np.array([value == category for value in values], np.float64) for category in categories]
            names += [f"{name}={category}" for category in categories]
        else:
            found.append(numbers(table[name], f"{path}: column '{name}'"))
            names.append(name)
    for column, categories in known.items():
        for row, value in enumerate(texts(table[column], path, column)):
            if value not in categories:
                raise TelosError(
                    f"{path}: column '{column}', row {row} holds a category that was not named",
                    expected=" or ".join(categories[:20]), got=repr(value),
                    fix=f"remove that row, or fit on data that have it (then {column}={value} is among the names)",
                )  # fmt: skip
    return np.stack(found, 1), names


def texts(column: Any, path: Path, name: str) -> list[str]:
    """A context's texts."""
    values = column.to_pylist()
    if None in values:
        raise TelosError(
            f"{path}: column '{name}', row {values.index(None)} is empty", expected="a text",
            fix="name what is missing, for example 'unknown'",
        )  # fmt: skip
    return [str(value) for value in values]


def check_categories(categories: list[str], values: list[str], path: Path, name: str) -> None:
    """Raises TelosError where texts are no categories, or could not be named in an option."""
    if len(categories) > min(MOST_CATEGORIES, max(20, len(values) // 2)):
        texts_that_are_numbers = sum(value.replace(".", "", 1).lstrip("-").isdigit() for value in values)
        row, value = first_bad(values) if texts_that_are_numbers > len(values) // 2 else (0, repr(values[0]))
        raise TelosError(
            f"{path}: column '{name}' has {len(categories)} different texts in {len(values)} rows",
            expected="numbers, or a few categories", got=f"{value} in row {row}",
            fix="mend it, or name the context's columns without it: ?context=x1,x2",
        )  # fmt: skip
    comma = next((category for category in categories if "," in category), None)
    if comma is not None:
        raise TelosError(
            f"{path}: column '{name}' holds {comma!r}", expected="categories without commas", fix="replace the comma"
        )


def first_bad(values: list[str]) -> tuple[int, str]:
    """The first text that is no number."""
    return next((row, repr(v)) for row, v in enumerate(values) if not v.replace(".", "", 1).lstrip("-").isdigit())
