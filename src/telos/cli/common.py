"""What the verbs share: a parser whose errors are TelosErrors, JSON on standard output."""

from __future__ import annotations

import argparse
import difflib
import json
import math
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from telos.core.errors import TelosError


class Parser(argparse.ArgumentParser):
    """argparse without abbreviations, whose errors are TelosErrors."""

    def __init__(self, verb: str, description: str):
        super().__init__(
            prog=f"telos {verb}",
            description=description,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    def error(self, message: str) -> NoReturn:
        raise TelosError(f"{self.prog}: {message}", fix=f"{self.prog} --help")

    def read(self, argv: Sequence[str]) -> argparse.Namespace:
        """The options in `argv`; TelosError for one that is unknown or wrong."""
        known, rest = self.parse_known_args(argv)
        if rest:
            close = difflib.get_close_matches(rest[0].split("=")[0], self._option_string_actions, n=2)
            fix = f"did you mean {' or '.join(close)}?" if close else f"{self.prog} --help"
            what = "option" if rest[0].startswith("-") else "argument"
            raise TelosError(f"{self.prog}: unknown {what} '{rest[0]}'", fix=fix)
        return known


def positive(text: str) -> int:
    """A whole number above 0, for argparse."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not a positive number")
    return value


def print_json(value: Any) -> None:
    """JSON on standard output, nothing else; numbers that JSON has not become null."""
    sys.stdout.write(json.dumps(finite(value), indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def finite(value: Any) -> Any:
    """The same with None for NaN and infinity."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def number(value: float) -> str:
    """Four significant digits."""
    return f"{value:.4g}"
