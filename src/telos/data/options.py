"""What `telos.load` is given: a name or path with options, as keywords or as a query (`pairs.jsonl?split=test`)."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode

import numpy as np

from telos.core.errors import TelosError


@dataclass(frozen=True)
class Options:
    """Options as text, so that they survive in a record's `origin`; each method reads one as its type.

    Args:
        what: the path or name without its query, for messages.
        values: option -> text.
    """

    what: str
    values: Mapping[str, str]

    @classmethod
    def parse(cls, what: str, given: Mapping[str, Any]) -> Options:
        """Splits a query off `what` (unless a file has that very name); keywords override the query."""
        values: dict[str, str] = {}
        if "?" in what and not os.path.exists(what):
            what, _, query = what.rpartition("?")
            try:
                values = dict(parse_qsl(query, strict_parsing=True, keep_blank_values=True))
            except ValueError as error:
                raise TelosError(
                    f"{what}: the options '?{query}' cannot be read", expected="?name=value&name=value",
                ) from error  # fmt: skip
        values |= {name: as_text(value) for name, value in given.items() if value is not None}
        return cls(what, values)

    def only(self, *allowed: str) -> None:
        """Raises TelosError for an option that is not among `allowed`."""
        for name in self.values:
            if name not in allowed:
                raise TelosError(
                    f"{self.what}: unknown option '{name}'", expected=", ".join(allowed) or "no options",
                    got=f"{name}={self.values[name]}",
                )  # fmt: skip

    def origin(self, base: str | Path) -> str:
        """`base` with the options as a query: what `telos.load` accepts again."""
        query = urlencode(sorted(self.values.items()), safe=",/:")
        return f"{base}?{query}" if query else str(base)

    def integer(self, name: str, default: int, least: int = 0) -> int:
        """A whole number of at least `least`."""
        text = self.values.get(name, str(default))
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least:
            raise TelosError(
                f"{self.what}: option '{name}' is wrong", expected=f"a whole number of at least {least}", got=text
            )
        return value

    def numbers(self, name: str) -> tuple[float, ...] | None:
        """Comma-separated finite numbers, or None if the option is absent."""
        if name not in self.values:
            return None
        try:
            values = tuple(float(part) for part in self.values[name].split(","))
        except ValueError:
            values = (float("nan"),)
        if not np.isfinite(values).all():
            raise TelosError(
                f"{self.what}: option '{name}' is wrong", expected="finite numbers, as 0.5 or -1,-1,2",
                got=self.values[name],
            )  # fmt: skip
        return values

    def flag(self, name: str, default: bool = False) -> bool:
        """true or false."""
        text = self.values.get(name, "true" if default else "false").lower()
        if text not in ("true", "false"):
            raise TelosError(f"{self.what}: option '{name}' is wrong", expected="true or false", got=text)
        return text == "true"


def as_text(value: Any) -> str:
    """An option's value as it stands in a query."""
    if isinstance(value, bool | np.bool_):
        return "true" if value else "false"
    if isinstance(value, Sequence | np.ndarray) and not isinstance(value, str):
        return ",".join(as_text(item) for item in np.asarray(value).ravel().tolist())
    return repr(value) if isinstance(value, float) else str(value)
